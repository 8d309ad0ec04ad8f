"""A plain folder of pictures with depth, in its three forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
from learnable_scene import scene
import numpy as np

FORMS = ('_depth_mm.png', '_depth.png', '.npy')


def write(
    root: Path,
    *,
    frames: int = 4,
    size_hw: tuple[int, int] = (48, 64),
    seed: int = 0,
    form: str = '_depth_mm.png',
    rgb_suffix: str = '.png',
    splits: tuple[str, ...] = ('train', 'val', 'test'),
) -> dict[str, Any]:
    """Write `frames` frames for each of `splits`, or for none of them into `root` itself.

    Returns:
        a frame's path without endings to (rgb, depth [m], 0 = unknown).
    """
    rng = np.random.default_rng(seed)
    truth: dict[str, Any] = {}
    for split in splits or ('.',):
        folder = root / split
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(frames):
            rgb, depth = scene(size_hw, rng)
            depth[rng.random(size_hw) < 0.1] = 0
            name = f'frame_{index:03d}'
            cv2.imwrite(str(folder / f'{name}{rgb_suffix}'), rgb[..., ::-1])
            if form == '.npy':
                stored: Any = np.where(depth > 0, depth, np.nan).astype(np.float32)
                np.save(folder / f'{name}.npy', stored)
                metres = depth.astype(np.float32)
            else:
                stored = np.rint(depth * 1000).astype(np.uint16)
                cv2.imwrite(str(folder / f'{name}{form}'), stored)
                metres = stored / 1000
            truth[(folder / name).relative_to(root).as_posix()] = rgb, metres
    return truth
