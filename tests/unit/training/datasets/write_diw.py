"""Write a small copy of depth in the wild, in the format of its csv files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np


def scene(rng: np.random.Generator, size_hw: tuple[int, int]) -> tuple[Any, Any]:
    """Return depth of a tilted plane with a box before it, and a picture brighter with depth."""
    height, width = size_hw
    v, u = np.mgrid[:height, :width] / np.array([height, width])[:, None, None]
    depth = 3 + rng.uniform(-2, 2) * u + rng.uniform(-2, 2) * v
    top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
    depth[top : top + height // 3, left : left + width // 3] *= 0.5
    rgb = 20 + 25 * depth[..., None] + rng.integers(0, 6, (height, width, 3))
    return depth.astype(np.float32), rgb.clip(0, 255).astype(np.uint8)


def write(
    root: Path, *, frames: int = 4, size_hw: tuple[int, int] = (48, 64), seed: int = 0
) -> dict[str, Any]:
    """Write all three splits, `frames` pictures for training and half as many for the others.

    Returns:
        For each split a list of samples: `image`, the path; `depth`; `a` and `b`, (u, v) counted
        from 0; `relation`, +1 where a is farther.
    """
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    height, width = size_hw
    truth: dict[str, Any] = {}
    for split, count in (
        ('train', frames), ('val', max(1, frames // 2)), ('test', max(1, frames // 2)),
    ):  # fmt: skip
        folder = root / ('DIW_test' if split == 'test' else 'DIW_train_val')
        folder.mkdir(exist_ok=True)
        lines, samples = [], []
        for index in range(count):
            depth, rgb = scene(rng, size_hw)
            name = f'{split}{index:05d}.thumb'  # a JPEG, as the published ones
            (folder / name).write_bytes(
                cv2.imencode('.jpg', rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 97])[1].tobytes()
            )
            while True:
                (ua, ub), (va, vb) = rng.integers(0, width, 2), rng.integers(0, height, 2)
                if abs(depth[va, ua] - depth[vb, ub]) > 0.3:
                    break
            farther = depth[va, ua] > depth[vb, ub]
            lines += [
                f'./{folder.name}/{name}',
                f'{va + 1},{ua + 1},{vb + 1},{ub + 1},{">" if farther else "<"},{width},{height}',
            ]
            samples.append({
                'image': folder / name, 'depth': depth, 'a': (int(ua), int(va)),
                'b': (int(ub), int(vb)), 'relation': 1 if farther else -1,
            })  # fmt: skip
        (root / f'DIW_{split}.csv').write_text('\n'.join(lines) + '\n')
        truth[split] = samples
    return truth
