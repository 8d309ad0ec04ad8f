"""A small DIODE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
from learnable_scene import scene
import numpy as np


def write(
    root: Path, *, frames: int = 4, size_hw: tuple[int, int] = (48, 64), seed: int = 0
) -> dict[str, Any]:
    """Write `frames` indoor frames in two scans of train and of val, and one outdoors in each.

    Returns:
        a frame's path without endings to (rgb, depth [m], 0 where the mask says unknown).
    """
    rng = np.random.default_rng(seed)
    truth: dict[str, Any] = {}
    for part in ('train', 'val'):
        for index in range(frames + 1):
            place = 'indoors' if index < frames else 'outdoor'
            scan = f'{index % 2:05d}'
            folder = root / part / place / 'scene_00019' / f'scan_{scan}'
            folder.mkdir(parents=True, exist_ok=True)
            stem = f'00019_{scan}_{place}_{10 * index:03d}_010'
            far_m = 6.0 if place == 'indoors' else 120.0
            rgb, depth = scene(size_hw, rng, far_m=far_m)
            mask = rng.random(size_hw) > 0.2
            stored = depth.astype(np.float32)
            stored[~mask] = rng.uniform(0, 400, int((~mask).sum()))  # what is masked is noise
            cv2.imwrite(str(folder / f'{stem}.png'), rgb[..., ::-1])
            np.save(folder / f'{stem}_depth.npy', stored[..., None])
            np.save(folder / f'{stem}_depth_mask.npy', mask.astype(np.float64))
            name = (folder / stem).relative_to(root).as_posix()
            truth[name] = rgb, np.where(mask, depth, 0).astype(np.float32)
    return truth
