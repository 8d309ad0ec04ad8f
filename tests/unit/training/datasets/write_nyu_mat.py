"""A small nyu_depth_v2_labeled.mat, laid out as MATLAB's `save -v7.3` does, and its splits.mat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
from learnable_scene import scene
import numpy as np
from scipy.io import savemat

CLASSES = ('book', 'bottle', 'cabinet', 'wall')
# What MATLAB puts before the HDF5 part of the file.
USER_BLOCK = 512


def write(
    root: Path, *, frames: int = 4, size_hw: tuple[int, int] = (48, 64), seed: int = 0
) -> dict[str, Any]:
    """Write both files; every fourth frame, from the last back, is for testing.

    Returns:
        rgb (N, H, W, 3), filled and raw (N, H, W) metres, labels (N, H, W) as in the file,
        scenes, and train and test: frame numbers from 0.
    """
    rng = np.random.default_rng(seed)
    pictures = [scene(size_hw, rng) for _ in range(frames)]
    rgb = np.stack([picture for picture, _ in pictures])
    filled = np.stack([depth for _, depth in pictures]).astype(np.float32)
    raw = np.where(rng.random(filled.shape) < 0.2, np.float32(0), filled)
    labels = rng.integers(0, len(CLASSES) + 1, filled.shape).astype(np.uint16)
    scenes = [f'room_{index // 2:04d}' for index in range(frames)]
    root.mkdir(parents=True, exist_ok=True)
    path = root / 'nyu_depth_v2_labeled.mat'
    with h5py.File(path, 'w', userblock_size=USER_BLOCK) as file:
        # MATLAB's height x width x 3 x frames: HDF5 names the axes from the last to the first.
        file['images'] = rgb.transpose(0, 3, 2, 1)
        file['depths'] = filled.transpose(0, 2, 1)
        file['rawDepths'] = raw.transpose(0, 2, 1)
        file['labels'] = labels.transpose(0, 2, 1)
        write_strings(file, 'scenes', scenes)
        write_strings(file, 'names', CLASSES)
    header = b'MATLAB 7.3 MAT-file, Platform: GLNXA64'.ljust(124) + bytes([0, 2]) + b'IM'
    with path.open('r+b') as stream:
        stream.write(header.ljust(USER_BLOCK, b'\0'))
    test = [index for index in range(frames) if (frames - 1 - index) % 4 == 0]
    train = [index for index in range(frames) if index not in test]
    savemat(
        root / 'splits.mat',
        {'trainNdxs': np.array([train], float).T + 1, 'testNdxs': np.array([test], float).T + 1},
    )
    return {
        'rgb': rgb, 'filled': filled, 'raw': raw, 'labels': labels, 'scenes': scenes,
        'train': train, 'test': test,
    }  # fmt: skip


def write_strings(file: h5py.File, name: str, texts: Any) -> None:
    """Write a cell array: references to columns of character codes."""
    cells = np.empty((1, len(texts)), h5py.ref_dtype)
    for index, text in enumerate(texts):
        codes = np.frombuffer(text.encode('utf-16-le'), '<u2')[:, None]
        cells[0, index] = file.create_dataset(f'#refs#/{name}_{index}', data=codes).ref
    file.create_dataset(name, data=cells, dtype=h5py.ref_dtype)
