"""The small copies that the tests of each data set write, for tests that train on them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import cv2
from depth_node.training.datasets import DATASETS
from learnable_scene import scene
import numpy as np

FOLDER = Path(__file__).parent / 'unit' / 'training' / 'datasets'
# Kinds whose file is named otherwise.
FILES = {kind: f'write_{kind}.py' for kind in DATASETS} | {'list': 'write_list_file.py'}


def write(kind: str, root: Path, **options: Any) -> Any:
    """Write a small data set of a kind; returns the truth that its writer returns."""
    if kind == 'rendered':
        return write_rendered(root, **options)
    path = FOLDER / FILES[kind]
    spec = importlib.util.spec_from_file_location(f'depth_node_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write(root, **options)


def write_rendered(
    root: Path, *, frames: int = 4, size_hw: tuple[int, int] = (48, 64), seed: int = 0
) -> None:
    """Write frames as `depth-node synthesize` does, in three splits."""
    rng = np.random.default_rng(seed)
    height, width = size_hw
    info = {'fx': 0.9 * width, 'fy': width, 'cx': (width - 1) / 2, 'cy': (height - 1) / 2,
            'width': width, 'height': height}  # fmt: skip
    for split in ('train', 'val', 'test'):
        folder = root / split / f'room-{split}'
        folder.mkdir(parents=True)
        for index in range(frames):
            rgb, depth = scene(size_hw, rng)
            stored = np.rint(depth * 1000).astype(np.uint16)
            cv2.imwrite(str(folder / f'{index:03d}.jpg'), rgb[..., ::-1])
            cv2.imwrite(str(folder / f'{index:03d}.depth.png'), stored)
            (folder / f'{index:03d}.json').write_text(json.dumps(info))
