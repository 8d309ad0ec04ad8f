"""A small Make3D: upright pictures, and laser grids that are wider than high."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
from learnable_scene import scene
import numpy as np
from scipy.io import savemat


def write(
    root: Path,
    *,
    frames: int = 4,
    size_hw: tuple[int, int] = (64, 48),
    seed: int = 0,
    grid_hw: tuple[int, int] = (11, 24),
) -> dict[str, Any]:
    """Write `frames` training frames of two places and half as many test frames.

    Returns:
        name of a frame to (rgb, depth of the grid [m]), under train and test.
    """
    rng = np.random.default_rng(seed)
    truth: dict[str, Any] = {'train': {}, 'test': {}}
    folders = {'train': ('Train400Img', 'Train400Depth'), 'test': ('Test134', 'Gridlaserdata')}
    for part, count in (('train', frames), ('test', max(1, frames // 2))):
        pictures, grids = (root / folder for folder in folders[part])
        pictures.mkdir(parents=True, exist_ok=True)
        grids.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            name = f'{part}{index % 2}-p-{100 + index}t0'
            rgb, depth = scene(size_hw, rng, near_m=2.0, far_m=81.0)
            rows = (np.arange(grid_hw[0]) + 0.5) * size_hw[0] / grid_hw[0]
            columns = (np.arange(grid_hw[1]) + 0.5) * size_hw[1] / grid_hw[1]
            grid = rng.uniform(-50, 50, (*grid_hw, 4))
            grid[..., 3] = depth[rows.astype(int)[:, None], columns.astype(int)]
            cv2.imwrite(
                str(pictures / f'img-{name}.jpg'), rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98]
            )
            savemat(grids / f'depth_sph_corr-{name}.mat', {'Position3DGrid': grid})
            truth[part][name] = rgb, grid[..., 3]
    return truth
