"""A small Hypersim: rooms whose HDF5 files hold the distance to a tilted wall."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np

SCENES = {'train': 'ai_001_001', 'val': 'ai_003_004', 'test': 'ai_037_002'}
COLUMNS = ('scene_name', 'camera_name', 'frame_id', 'included_in_public_release',
           'exclude_reason', 'split_partition_name')  # fmt: skip


def write(
    root: Path, *, frames: int = 4, size_hw: tuple[int, int] = (48, 64), seed: int = 0
) -> dict[str, Any]:
    """Write a scene for each split, brighter where it is deeper, and the publishers' table.

    Of each scene's last frame the table says that it is not public, and it is not on disk.

    Returns:
        `depth` {(scene, frame): metres, NaN = unknown}, `focal_px`.
    """
    rng = np.random.default_rng(seed)
    height, width = size_hw
    focal = 886.81 * width / 1024
    v, u = np.mgrid[:height, :width].astype(float)
    x, y = (u - (width - 1) / 2) / focal, (v - (height - 1) / 2) / focal
    truth: dict[str, Any] = {'depth': {}, 'focal_px': focal}
    rows = []
    for split, scene in SCENES.items():
        images = root / scene / 'images'
        preview = images / 'scene_cam_00_final_preview'
        geometry = images / 'scene_cam_00_geometry_hdf5'
        preview.mkdir(parents=True)
        geometry.mkdir()
        for frame in range(frames + 1):
            public = frame < frames
            reason = '' if public else 'extreme values'
            rows.append((scene, 'cam_00', frame, public, reason, split))
            if not public:
                continue
            # plane: Z = a + b X + c Y, with X = x Z, Y = y Z
            b, c = rng.uniform(-0.3, 0.3, 2)
            depth = rng.uniform(2, 6) / (1 - b * x - c * y)
            depth[:3, -5:] = np.nan  # a window
            distance = depth * np.sqrt(1 + x**2 + y**2)
            with h5py.File(geometry / f'frame.{frame:04d}.depth_meters.hdf5', 'w') as file:
                file.create_dataset('dataset', data=distance.astype(np.float16), chunks=True,
                                    compression='gzip')  # fmt: skip
            grey = np.clip(20 + 25 * np.nan_to_num(depth, nan=9), 0, 235)[..., None]
            rgb = (grey + rng.integers(0, 15, (*size_hw, 3))).astype(np.uint8)
            cv2.imwrite(str(preview / f'frame.{frame:04d}.tonemap.jpg'), rgb[..., ::-1],
                        [cv2.IMWRITE_JPEG_QUALITY, 98])  # fmt: skip
            truth['depth'][scene, frame] = depth
    with open(root / 'metadata_images_split_scene_v1.csv', 'w', newline='') as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        table.writerows(rows)
    return truth
