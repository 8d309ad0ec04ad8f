"""A small nyu_data.zip of DenseDepth, or the same unpacked."""

from __future__ import annotations

from pathlib import Path
from typing import Any
import zipfile

import cv2
from learnable_scene import scene
import numpy as np


def write(
    root: Path,
    *,
    frames: int = 4,
    size_hw: tuple[int, int] = (48, 64),
    seed: int = 0,
    zipped: bool = True,
) -> dict[str, Any]:
    """Write `frames` training frames of two scenes and half as many test frames.

    Returns:
        name of each picture in the zip to its true depth (H, W) [m], as far as the file's steps
        keep it, under train and test; and `path`, the zip or the folder.
    """
    rng = np.random.default_rng(seed)
    members: dict[str, bytes] = {}
    truth: dict[str, dict[str, np.ndarray]] = {'train': {}, 'test': {}}
    rows: dict[str, list[str]] = {'train': [], 'test': []}
    for index in range(frames):
        stem = f'data/nyu2_train/room_{index % 2:04d}_out/{index // 2 + 1}'
        rgb, depth = scene(size_hw, rng)
        stored = np.rint(depth / 10 * 255).astype(np.uint8)
        members[f'{stem}.jpg'] = encoded('.jpg', rgb[..., ::-1])
        members[f'{stem}.png'] = encoded('.png', stored)
        truth['train'][f'{stem}.jpg'] = stored / 255 * 10
        rows['train'].append(f'{stem}.jpg,{stem}.png')
    for index in range(max(1, frames // 2)):
        stem = f'data/nyu2_test/{index:05d}'
        rgb, depth = scene(size_hw, rng)
        stored = np.rint(depth * 1000).astype(np.uint16)
        members[f'{stem}_colors.png'] = encoded('.png', rgb[..., ::-1])
        members[f'{stem}_depth.png'] = encoded('.png', stored)
        truth['test'][f'{stem}_colors.png'] = stored / 1000
        rows['test'].append(f'{stem}_colors.png,{stem}_depth.png')
    for part, lines in rows.items():
        members[f'data/nyu2_{part}.csv'] = ('\n'.join(lines) + '\n').encode()
    root.mkdir(parents=True, exist_ok=True)
    path = root
    if zipped:
        path = root / 'nyu_data.zip'
        with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    else:
        for name, data in members.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
    return {**truth, 'path': path}


def encoded(ending: str, image: np.ndarray) -> bytes:
    """Encode a picture."""
    done, data = cv2.imencode(ending, np.ascontiguousarray(image))
    assert done
    return data.tobytes()
