"""Pictures and depth with the lists that name them, as BTS and Depth Anything V2 write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
from learnable_scene import scene
import numpy as np

FOCAL_PX = 518.8579


def write(
    root: Path,
    *,
    frames: int = 4,
    size_hw: tuple[int, int] = (48, 64),
    seed: int = 0,
    dialect: str = 'bts',
    depth_scale: float = 1000.0,
    depth_name: str = 'sync_depth_{:05d}.png',
) -> dict[str, Any]:
    """Write `frames` training frames of two scenes, half as many test frames, and the lists.

    Args:
        root: where.
        frames: of training.
        size_hw: of all.
        seed: of the scenes.
        dialect: 'bts': 'rgb depth focal' with a leading slash, the last training frame without
            depth ('None'); 'dav2': 'rgb depth' with absolute paths.
        depth_scale: units in a metre.
        depth_name: format of a depth file's name.

    Returns:
        path of each picture below root to (rgb, depth [m] or None), under train and test.
    """
    rng = np.random.default_rng(seed)
    truth: dict[str, Any] = {'train': {}, 'test': {}}
    for part, count in (('train', frames), ('test', max(1, frames // 2))):
        lines = []
        for index in range(count):
            folder = f'{part}_room_{index % 2:04d}'
            rgb_name = f'{folder}/rgb_{index:05d}.png'
            name = f'{folder}/{depth_name.format(index)}'
            rgb, depth = scene(size_hw, rng)
            stored = np.rint(depth * depth_scale).astype(np.uint16)
            for target, image in ((rgb_name, rgb[..., ::-1]), (name, stored)):
                (root / target).parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(root / target), image)
            without = dialect == 'bts' and part == 'train' and count > 1 and index == count - 1
            truth[part][rgb_name] = rgb, None if without else stored / depth_scale
            if dialect == 'bts':
                lines.append(f'/{rgb_name} {"None" if without else f"/{name}"} {FOCAL_PX}')
            else:
                lines.append(f'{(root / rgb_name).resolve()} {(root / name).resolve()}')
        file = f'nyudepthv2_{part}_files_with_gt.txt' if dialect == 'bts' else f'{part}.txt'
        (root / file).write_text('\n'.join(lines) + '\n')
    return truth
