"""Write a small copy of ReDWeb: Imgs/*.jpg and RDs/*.png."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np


def write(
    root: Path, *, frames: int = 4, size_hw: tuple[int, int] = (48, 64), seed: int = 0
) -> dict[str, Any]:
    """Write pictures that are brighter the farther they are.

    Returns:
        For each name `relative`, the stored 8-bit inverse depth.
    """
    rng = np.random.default_rng(seed)
    height, width = size_hw
    v, u = np.mgrid[:height, :width] / np.array([height, width])[:, None, None]
    for folder in ('Imgs', 'RDs'):
        (root / folder).mkdir(parents=True, exist_ok=True)
    truth = {}
    for index in range(frames):
        near = 0.5 + rng.uniform(-0.4, 0.4) * u + rng.uniform(-0.4, 0.4) * v
        near[: height // 3, rng.integers(0, width // 2) :] *= 0.4
        relative = np.rint(255 * near.clip(0, 1)).astype(np.uint8)
        rgb = 230 - 180 * near[..., None] + rng.integers(0, 8, (height, width, 3))
        name = f'web_{index:04d}'
        bgr = rgb.clip(0, 255).astype(np.uint8)[..., ::-1]
        (root / f'Imgs/{name}.jpg').write_bytes(
            cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, 97])[1].tobytes()
        )
        (root / f'RDs/{name}.png').write_bytes(cv2.imencode('.png', relative)[1].tobytes())
        truth[name] = relative
    return truth
