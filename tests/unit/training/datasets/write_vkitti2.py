"""A small Virtual KITTI 2: a plane seen by two cameras that drive forward and turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

BASELINE_M = 0.532725
SCENES = {'train': 'Scene01', 'val': 'Scene18', 'test': 'Scene20'}


def pose(frame: int, camera: int) -> np.ndarray:
    """Return (4, 4) world to camera: 1.5 m forward a frame, slowly turning right."""
    angle = 0.03 * frame
    turn = np.array(
        [[np.cos(angle), 0, -np.sin(angle)], [0, 1, 0], [np.sin(angle), 0, np.cos(angle)]]
    )
    matrix = np.eye(4)
    matrix[:3, :3] = turn
    matrix[:3, 3] = -turn @ (0.2 * frame, -0.1, 1.5 * frame)
    matrix[0, 3] -= BASELINE_M * camera
    return matrix


def depth_of(K: np.ndarray, world_to_camera: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Return the depth of the ground plane y = 1.6 m, inf above the horizon."""
    v, u = np.mgrid[: size_hw[0], : size_hw[1]].astype(float)
    rays = np.stack((u, v, np.ones_like(u)), -1) @ np.linalg.inv(K).T
    world_from_camera = np.linalg.inv(world_to_camera)
    down = rays @ world_from_camera[1, :3]
    with np.errstate(divide='ignore'):
        return np.where(down > 1e-6, (1.6 - world_from_camera[1, 3]) / down, np.inf)


def write(
    root: Path,
    *,
    frames: int = 4,
    size_hw: tuple[int, int] = (48, 80),
    seed: int = 0,
    variations: tuple[str, ...] = ('clone', 'fog'),
) -> dict[str, Any]:
    """Write three scenes; the road is brighter where it is farther, the sky blue.

    Returns:
        `K`, `poses` {(frame, camera): world to camera}, `depth` {(scene, variation, frame,
        camera): metres, inf = sky}, rounded as stored.
    """
    rng = np.random.default_rng(seed)
    height, width = size_hw
    K = np.array([[0.6 * width, 0, 0.51 * width], [0, 0.7 * width, 0.45 * height], [0, 0, 1]])
    quality = [cv2.IMWRITE_JPEG_QUALITY, 98]
    truth: dict[str, Any] = {'K': K, 'poses': {}, 'depth': {}}
    for scene in SCENES.values():
        for variation in variations:
            folder = root / scene / variation
            intrinsic = ['frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]']
            extrinsic = [
                'frame cameraID r1,1 r1,2 r1,3 t1 r2,1 r2,2 r2,3 t2 r3,1 r3,2 r3,3 t3 0 0 0 1'
            ]
            for frame in range(frames):
                for camera in (0, 1):
                    matrix = pose(frame, camera)
                    truth['poses'][frame, camera] = matrix
                    intrinsic.append(f'{frame} {camera} {K[0, 0]} {K[1, 1]} {K[0, 2]} {K[1, 2]}')
                    extrinsic.append(
                        f'{frame} {camera} ' + ' '.join(map(repr, matrix.ravel().tolist()))
                    )
                    depth = depth_of(K, matrix, size_hw)
                    # below 655.35 m it is depth, all beyond is sky
                    stored = np.where(depth < 655, np.rint(depth * 100), 65535).astype(np.uint16)
                    sky = stored == 65535
                    truth['depth'][scene, variation, frame, camera] = np.where(
                        sky, np.inf, stored / 100
                    )
                    grey = np.where(sky, 0, np.clip(40 + 2.2 * np.minimum(depth, 80), 0, 225))
                    rgb = np.repeat(grey[..., None], 3, -1) + rng.integers(0, 12, (*size_hw, 3))
                    rgb[sky] = (120, 160, 240)
                    for what, name, image in (
                        ('rgb', f'rgb_{frame:05d}.jpg', rgb[..., ::-1].astype(np.uint8)),
                        ('depth', f'depth_{frame:05d}.png', stored),
                    ):
                        path = folder / 'frames' / what / f'Camera_{camera}' / name
                        path.parent.mkdir(parents=True, exist_ok=True)
                        cv2.imwrite(str(path), image, quality if what == 'rgb' else [])
            (folder / 'intrinsic.txt').write_text('\n'.join(intrinsic) + '\n')
            (folder / 'extrinsic.txt').write_text('\n'.join(extrinsic) + '\n')
    return truth
