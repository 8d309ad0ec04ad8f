"""The demo clip: a hand-held-like walk through a held-out room, with depth and camera file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import json
from pathlib import Path
from typing import Any

import cv2
from depth_node.synthesis import scenes
from depth_node.synthesis.blender import Stage
from depth_node.synthesis.catalogue import Asset
from depth_node.synthesis.layout import RoomPlan
from depth_node.synthesis.recipe import RECIPE
from depth_node.synthesis.viewpoints import View, focal_px, look_at, rejection
from depth_node.synthesis.worker import scene_rng
from depth_node.synthesis.writer import brightness, depth_to_millimetres, split_of, tone_map
import numpy as np
import yaml

HFOV_DEG = 66.0
RATE_HZ = 30
_TRIES = 400


def clip_views(start: View, target: tuple[float, float, float], stride_m: float, frames: int
               ) -> Iterator[View]:
    """A smooth walk towards a target with a slight pan, bob and sway.

    Args:
        start: the first pose; its angles are replaced.
        target: the point that the camera keeps looking at, about.
        stride_m: how far it walks.
        frames: number of poses, at RATE_HZ.
    """
    position = np.array(start.position)
    heading = np.array(target[:2]) - position[:2]
    heading /= np.linalg.norm(heading)
    aside = np.array([-heading[1], heading[0]])
    for index in range(frames):
        t = index / max(1, frames - 1)
        eased = t * t * (3 - 2 * t)
        seconds = index / RATE_HZ
        sway = 0.02 * np.sin(2 * np.pi * 0.9 * seconds)
        xy = position[:2] + heading * stride_m * eased + aside * sway
        z = position[2] + 0.012 * np.sin(2 * np.pi * 1.8 * seconds + 0.7)
        where = (float(xy[0]), float(xy[1]), float(z))
        yaw, pitch = look_at(where, target)
        yield View(where, yaw - 8 + 16 * eased, pitch + 0.5 * np.sin(2 * np.pi * 1.1 * seconds),
                   1.2 * np.sin(2 * np.pi * 0.6 * seconds), HFOV_DEG)


def find_path(
    stage: Stage, rng: np.random.Generator, plan: RoomPlan, frames: int
) -> list[View] | None:
    """Look for the walk through a room that shows the most; None when there is none."""
    half = np.array(plan.size_xy) / 2
    hosts = [item for item in plan.tables if item.asset.size_m[2] < 1.0]
    best: tuple[float, list[View]] | None = None
    for _ in range(_TRIES if hosts else 0):
        host = hosts[int(rng.integers(len(hosts)))]
        target = (host.footprint.x, host.footprint.y, host.asset.size_m[2] - 0.1)
        x, y = rng.uniform(-half + 0.25, half - 0.25)
        where = (float(x), float(y), float(rng.uniform(1.05, 1.45)))
        stride = 0.65
        if not 1.7 < np.hypot(x - target[0], y - target[1]) < 3.4:
            continue
        views = list(clip_views(View(where, 0, 0, 0, HFOV_DEG), target, stride, frames))
        keys = [views[i] for i in np.linspace(0, frames - 1, 5).astype(int)]
        if any(scenes.inside_furniture(plan, view.position, 0.2) for view in keys):
            continue
        score = 0.0
        for view in keys:
            depths = stage.probe(view)
            if rejection(depths, 'room') or depths.min() < 0.55:
                score = -1
                break
            score += 1 - scenes.bare_share(depths, view, plan) + 0.3 * float(np.log(depths).std())
        if score > 0 and (best is None or score > best[0]):
            best = (score, views)
    return best[1] if best else None


def stage_clip_room(
    stage: Stage, assets: list[Asset], seed: int, scene: int
) -> tuple[RoomPlan, np.random.Generator]:
    """Build the room of a held-out scene number.

    Raises:
        ValueError: the scene belongs to the training or validation split.
    """
    if split_of(scene) != 'test':
        raise ValueError(
            f'scene {scene} belongs to the {split_of(scene)} split: expected one of the test '
            'split, so that no network has been trained on the clip (scene % 25 = 9 or 22)')
    rng = scene_rng(seed, scene)
    stage.clear()
    stage.seed(int(rng.integers(2**31)))
    plan = scenes.build_room(stage, rng, assets)
    stage.update()
    return plan, rng


def render_clip(
    stage: Stage, assets: list[Asset], out: Path, *, seed: int, scene: int, frames: int = 60,
    progress: Callable[[int], None] = lambda _done: None,
) -> dict[str, Any]:
    """Render the clip into `out`: NNN.jpg, NNN.depth.png at half size, camera.yaml, clip.json.

    Returns:
        What clip.json says: recipe, seed, scene, assets, poses.
    """
    plan, rng = stage_clip_room(stage, assets, seed, scene)
    views = find_path(stage, rng, plan, frames)
    if views is None:
        raise ValueError(f'scene {scene} of seed {seed}: no free walk towards a table was found; '
                         'choose another --clip scene number')
    out.mkdir(parents=True, exist_ok=True)
    height, width = stage.size_hw
    reference = None
    for index, view in enumerate(views):
        stem = out / f'{index:03d}'
        radiance, depth = stage.render(view)
        if reference is None:  # one exposure for the whole clip: no flicker
            reference = brightness(radiance, 94)
        rgb = tone_map(radiance, level=0.75, reference=reference)
        cv2.imwrite(f'{stem}.jpg', cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR),
                    [cv2.IMWRITE_JPEG_QUALITY, 84])
        cv2.imwrite(f'{stem}.depth.png', depth_to_millimetres(depth)[::2, ::2],
                    [cv2.IMWRITE_PNG_COMPRESSION, 9])
        progress(index + 1)
    write_camera(out / 'camera.yaml', width, height)
    notes = {
        'recipe': RECIPE, 'seed': seed, 'scene': scene, 'frames': len(views), 'rate_hz': RATE_HZ,
        'split': split_of(scene), 'assets': sorted(stage.used),
        'depth': 'NNN.depth.png: uint16 millimetres of planar Z, pixel (v, u) is that of '
                 'pixel (2v, 2u) of NNN.jpg, 0 = unknown',
        'camera_to_world': [view.camera_to_world.round(6).tolist() for view in views],
    }
    (out / 'clip.json').write_text(json.dumps(notes))
    return notes


def write_camera(path: Path, width: int, height: int) -> None:
    """Write the pinhole camera in the format of camera_calibration (camera_info_url)."""
    focal = round(focal_px(width, HFOV_DEG), 4)
    cx, cy = (width - 1) / 2, (height - 1) / 2

    def matrix(rows: int, columns: int, data: list[float]) -> dict[str, Any]:
        return {'rows': rows, 'cols': columns, 'data': data}

    path.write_text(yaml.safe_dump({
        'image_width': width, 'image_height': height, 'camera_name': 'demo_camera',
        'camera_matrix': matrix(3, 3, [focal, 0.0, cx, 0.0, focal, cy, 0.0, 0.0, 1.0]),
        'distortion_model': 'plumb_bob',
        'distortion_coefficients': matrix(1, 5, [0.0] * 5),
        'rectification_matrix': matrix(3, 3, [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]),
        'projection_matrix': matrix(
            3, 4, [focal, 0.0, cx, 0.0, 0.0, focal, cy, 0.0, 0.0, 0.0, 1.0, 0.0]),
    }, sort_keys=False, default_flow_style=None))
