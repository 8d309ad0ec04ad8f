"""Writes SfMLearner's format with a true scene: planes with texture, seen by a moving camera.

Every picture is rendered on its own, by cutting each pixel's ray with the planes; the texture is a
formula of the place in the world, so that pictures agree wherever both see the same place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray


class Patch(NamedTuple):
    """Part of the plane n . X = d in the world: the places where |(X - middle) . axis| <= half."""

    n: NDArray[np.float64]
    d: float
    middle: NDArray[np.float64]
    half: float


def rotation(wx: float, wy: float, wz: float) -> NDArray[np.float64]:
    """Rotate by an axis times an angle."""
    return np.asarray(cv2.Rodrigues(np.array([wx, wy, wz], np.float64))[0])


def pose(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """Make (4, 4) of tx ty tz wx wy wz."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(*vector[3:])
    matrix[:3, 3] = vector[:3]
    return matrix


def make_scene(rng: np.random.Generator) -> list[Patch]:
    """A back wall that is a bit slanted, a floor, and a board in front of them."""
    wall = np.array([rng.uniform(-0.15, 0.15), 0.05, 1.0])
    board = np.array([rng.uniform(-0.2, 0.2), 0.0, 1.0])
    at = np.array([rng.uniform(-0.5, 0.5), rng.uniform(-0.1, 0.2), 2.2])
    everywhere = np.zeros(3)
    return [
        Patch(wall, rng.uniform(4.0, 5.0), everywhere, np.inf),
        Patch(np.array([0.0, 1.0, 0.05]), rng.uniform(0.9, 1.1), everywhere, np.inf),
        Patch(board, float(board @ at), at, 0.45),
    ]


def texture(points: NDArray[np.float64], waves: NDArray[np.float64]) -> NDArray[np.float64]:
    """Colour of places in the world, 0..1: waves, and brighter where it is farther away."""
    phase = points @ waves[:, :3].T + waves[:, 3]
    amount = np.sin(phase).reshape(*points.shape[:-1], 3, -1).mean(-1)
    return np.clip(0.25 + 0.06 * points[..., 2:] + 0.45 * amount, 0, 1)


def render(
    patches: list[Patch],
    waves: NDArray[np.float64],
    camera_from_world: NDArray[np.float64],
    K: NDArray[np.float64],
    size_hw: tuple[int, int],
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Picture (H, W, 3) and depth (H, W), pixel centres at whole numbers."""
    v, u = np.mgrid[: size_hw[0], : size_hw[1]].astype(np.float64)
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(K).T
    world_from_camera = np.linalg.inv(camera_from_world)
    directions = rays @ world_from_camera[:3, :3].T
    origin = world_from_camera[:3, 3]
    depth = np.full(size_hw, np.inf)
    for patch in patches:
        with np.errstate(divide='ignore', invalid='ignore'):
            z = (patch.d - patch.n @ origin) / (directions @ patch.n)
        points = origin + directions * np.where(np.isfinite(z), z, 1)[..., None]
        inside = (np.abs(points - patch.middle)[..., :2] <= patch.half).all(-1)
        depth = np.where((z > 0.1) & (z < depth) & inside, z, depth)
    points = origin + directions * depth[..., None]
    rgb = np.rint(255 * texture(points, waves)).astype(np.uint8)
    return rgb, depth.astype(np.float32)


def write(
    root: Path, *, frames: int = 4, size_hw: tuple[int, int] = (64, 96), seed: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """Write `frames` triptychs for training and half as many for validation.

    Returns:
        'train' and 'val': for each frame `name`, `strip` (rgb before compression), `depth`
        (H, W), `K` (3, 3) and `view_from_frame`, the (4, 4) poses of the previous and next one.
    """
    rng = np.random.default_rng(seed)
    height, width = size_hw
    K = np.array([[0.72 * width, 0, 0.51 * width], [0, 1.05 * height, 0.48 * height], [0, 0, 1.0]])
    truth: dict[str, list[dict[str, Any]]] = {}
    for split, count in (('train', frames), ('val', max(1, frames // 2))):
        truth[split] = []
        lines = []
        for index in range(count):
            folder, frame = f'drive_{split}_{index // 2:04d}_sync_02', f'{index:010d}'
            patches = make_scene(rng)
            # Waves long enough for the sampling of the picture, 3 colours of 4 waves each.
            length = rng.uniform(2.0, 6.5, (12, 1))
            direction = rng.normal(size=(12, 3))
            direction /= np.linalg.norm(direction, axis=1, keepdims=True)
            waves = np.concatenate([length * direction, rng.uniform(0, 7, (12, 1))], 1)
            forward = np.array([0.02, 0.0, -0.15, 0.0, 0.01, 0.0])
            forward += rng.normal(size=6) * np.array([0.05, 0.02, 0.03, 0.004, 0.008, 0.004])
            following = pose(forward)
            motions = [np.linalg.inv(pose(forward * rng.uniform(0.8, 1.2))), np.eye(4), following]
            pictures, depths = zip(
                *(render(patches, waves, motion, K, size_hw) for motion in motions), strict=True
            )
            strip = np.concatenate(pictures, 1)
            (root / folder).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(
                str(root / folder / f'{frame}.jpg'), strip[..., ::-1],
                [
                    cv2.IMWRITE_JPEG_QUALITY, 100,
                    cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
                ],
            )  # fmt: skip
            (root / folder / f'{frame}_cam.txt').write_text(
                f'{K[0, 0]:f},0.,{K[0, 2]:f},0.,{K[1, 1]:f},{K[1, 2]:f},0.,0.,1.'
            )
            lines.append(f'{folder} {frame}\n')
            truth[split].append({
                'name': f'{folder}/{frame}',
                'strip': strip,
                'depth': depths[1],
                'view_depths': (depths[0], depths[2]),
                'K': K,
                'view_from_frame': np.stack([motions[0], motions[2]]),
            })  # fmt: skip
        (root / f'{split}.txt').write_text(''.join(lines))
    return truth
