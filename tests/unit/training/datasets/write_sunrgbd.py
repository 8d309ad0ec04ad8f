"""A small SUN RGB-D: the folders of three sensors, depth with rotated bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
from learnable_scene import scene
import numpy as np
from scipy.io import savemat

K = (529.5, 531.0, 36.0, 20.5)


def write(
    root: Path,
    *,
    frames: int = 4,
    size_hw: tuple[int, int] = (48, 64),
    seed: int = 0,
    official: bool = True,
) -> dict[str, Any]:
    """Write `frames` frames for each of kv2, kv1/NYUdata and a walk of xtion.

    Args:
        root: where.
        frames: of each sensor.
        size_hw: of all.
        seed: of the scenes.
        official: write the toolbox's allsplit.mat too; its test part is every third frame.

    Returns:
        folder of a frame to (rgb, raw depth [mm] with 0 = unknown), and `parts`: the official
        train and test.
    """
    rng = np.random.default_rng(seed)
    truth: dict[str, Any] = {}
    folders = [
        pattern.format(index + 1)
        for pattern in ('kv2/kinect2data/{:06d}', 'kv1/NYUdata/NYU{:04d}',
                        'xtion/sun3ddata/brown_1/walk/{:07d}')
        for index in range(frames)
    ]  # fmt: skip
    for frame in folders:
        folder = root / frame
        for name in ('image', 'depth', 'depth_bfx'):
            (folder / name).mkdir(parents=True, exist_ok=True)
        rgb, depth = scene(size_hw, rng, far_m=9.0)
        filled = np.rint(depth * 1000).astype(np.uint16)
        raw = np.where(rng.random(size_hw) < 0.2, 0, filled).astype(np.uint16)
        cv2.imwrite(str(folder / 'image' / 'a.jpg'), rgb[..., ::-1])
        for name, millimetres in (('depth', raw), ('depth_bfx', filled)):
            cv2.imwrite(str(folder / name / 'a.png'), stored(millimetres))
        fx, fy, cx, cy = K
        (folder / 'intrinsics.txt').write_text(f'{fx} 0 {cx} \n0 {fy} {cy} \n0 0 1 \n')
        truth[frame] = rgb, raw
    parts = {'train': [f for i, f in enumerate(folders) if i % 3 != 2], 'test': folders[2::3]}
    if official:
        path = root / 'SUNRGBDtoolbox' / 'traintestSUNRGBD' / 'allsplit.mat'
        path.parent.mkdir(parents=True, exist_ok=True)
        cells = {}
        for part, variable in (('train', 'alltrain'), ('test', 'alltest')):
            cells[variable] = np.empty((1, len(parts[part])), object)
            for index, frame in enumerate(parts[part]):
                cells[variable][0, index] = f'/n/fs/sun3d/data/SUNRGBD/{frame}/'
        savemat(path, cells)
    return {**truth, 'parts': parts}


def stored(millimetres: np.ndarray) -> np.ndarray:
    """Rotate the bits of millimetres left by three, number by number."""
    return np.array(
        [[int(f'{mm:016b}'[3:] + f'{mm:016b}'[:3], 2) for mm in row] for row in millimetres],
        np.uint16,
    )
