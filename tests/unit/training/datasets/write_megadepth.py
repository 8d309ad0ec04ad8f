"""Write a small copy of MegaDepth: <scene>/dense0/{imgs/*.jpg, depths/*.h5}."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np

SCENES = ('0008', '0015', '0063')


def write(
    root: Path, *, frames: int = 4, size_hw: tuple[int, int] = (48, 64), seed: int = 0
) -> dict[str, Any]:
    """Write `frames` pictures in each of three scenes, every third with an ordinal map.

    Depth is in a unit of the scene's own, with holes, and with a few wild values that the
    percentiles take away. Ordinal maps have 1 = foreground and 2 = background.

    Returns:
        For each name `depth` as stored, or `ordinal`.
    """
    rng = np.random.default_rng(seed)
    height, width = size_hw
    v, u = np.mgrid[:height, :width] / np.array([height, width])[:, None, None]
    truth: dict[str, Any] = {}
    for scene in SCENES:
        unit = rng.uniform(0.2, 20)
        folder = root / scene / 'dense0'
        for name in ('imgs', 'depths'):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(frames):
            metres = 4 + rng.uniform(-2, 2) * u + rng.uniform(-2, 2) * v
            top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
            person = np.zeros(size_hw, bool)
            person[top : top + height // 3, left : left + width // 3] = True
            metres[person] *= 0.4
            rgb = 20 + 25 * metres[..., None] + rng.integers(0, 6, (height, width, 3))
            if index % 3 == 2:
                stored = np.zeros(size_hw, np.float32)
                stored[person] = 1
                stored[(metres > np.quantile(metres, 0.75)) & ~person] = 2
                kind = 'ordinal'
            else:
                stored = (unit * metres).astype(np.float32)
                stored[rng.random(size_hw) < 0.2] = 0
                wild = rng.integers(0, stored.size, 4)
                stored.flat[wild[:2]], stored.flat[wild[2:]] = 1e4 * unit, 1e-3 * unit
                kind = 'depth'
            stem = f'{rng.integers(10**9):09d}_o'
            bgr = rgb.clip(0, 255).astype(np.uint8)[..., ::-1]
            (folder / f'imgs/{stem}.jpg').write_bytes(
                cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, 97])[1].tobytes()
            )
            with h5py.File(folder / f'depths/{stem}.h5', 'w') as file:
                file.create_dataset('depth', data=stored, compression='gzip')
            truth[f'{scene}/dense0/imgs/{stem}.jpg'] = {kind: stored}
    return truth
