"""A small data folder of rendered frames with known depth."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed: no training tests')
torch.set_num_threads(1)

HEIGHT, WIDTH = 60, 80


def write_frame(folder: Path, name: str, rng: np.random.Generator) -> None:
    """Write a floor that gets brighter with depth, seen by a tilted camera."""
    folder.mkdir(parents=True, exist_ok=True)
    fx = float(rng.uniform(60, 100))
    v = np.arange(HEIGHT)[:, None] * np.ones((1, WIDTH))
    depth = 0.9 / (0.12 + 0.9 * v / HEIGHT)
    texture = rng.integers(0, 25, (HEIGHT, WIDTH, 3))
    rgb = np.clip(40 + 25 * depth[..., None] + texture, 0, 255).astype(np.uint8)
    cv2.imwrite(str(folder / f'{name}.jpg'), rgb[..., ::-1])
    cv2.imwrite(str(folder / f'{name}.depth.png'), np.rint(depth * 1000).astype(np.uint16))
    info = {'fx': fx, 'fy': fx, 'cx': (WIDTH - 1) / 2, 'cy': (HEIGHT - 1) / 2,
            'width': WIDTH, 'height': HEIGHT, 'kind': 'room'}  # fmt: skip
    (folder / f'{name}.json').write_text(json.dumps(info))


def write_frames(root: Path) -> Path:
    """Write eight training, two validation and one test frame, the same each time."""
    rng = np.random.default_rng(4)
    for split, scene, count in (
        ('train', 'room-000001', 5),
        ('train', 'table-000002', 3),
        ('val', 'room-000003', 2),
        ('test', 'room-000009', 1),
    ):
        folder = root / split / scene
        for index in range(count):
            write_frame(folder, f'{index:03d}', rng)
        (folder / 'scene.json').write_text('{}')
    return root


@pytest.fixture
def frames_root(tmp_path: Path) -> Path:
    """Give a folder of `write_frames`."""
    return write_frames(tmp_path / 'frames')


@pytest.fixture(scope='module')
def kept_frames_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder of `write_frames` for a whole module, whose tests leave it as it is."""
    return write_frames(tmp_path_factory.mktemp('kept') / 'frames')
