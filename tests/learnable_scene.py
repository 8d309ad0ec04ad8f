"""A picture whose brightness tells its depth, for the data sets that tests write."""

from __future__ import annotations

import numpy as np


def scene(
    size_hw: tuple[int, int], rng: np.random.Generator, near_m: float = 1.0, far_m: float = 6.0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a tilted plane with boxes before it.

    Returns:
        rgb (H, W, 3) uint8, which falls from light to dark with depth, each channel its own way,
        and depth (H, W) float64 metres.
    """
    height, width = size_hw
    v, u = np.mgrid[:height, :width]
    slope_v, slope_u = rng.uniform(-0.5, 0.5, 2)
    share = 0.7 + 0.25 * (slope_v * v / height + slope_u * u / width) / 0.5
    for _ in range(3):
        top, left = rng.integers(0, max(1, height // 2)), rng.integers(0, max(1, width // 2))
        bottom = top + rng.integers(2, max(3, height // 2))
        right = left + rng.integers(2, max(3, width // 2))
        share[top:bottom, left:right] = rng.uniform(0.05, 0.6)
    share = share.clip(0, 1)
    depth = near_m + (far_m - near_m) * share
    light = np.stack([230 - 200 * share, 200 - 120 * share, 160 - 150 * share], -1)
    rgb = (light + rng.uniform(-4, 4, (height, width, 3))).clip(0, 255).astype(np.uint8)
    return rgb, depth
