"""Where the camera stands and what it must not see: poses, rays and rejection rules.

Frames: world x, y horizontal, z up [m]; camera optical frame (x right, y down, z forward).
Angles: yaw counter-clockwise from +x, pitch positive upwards, roll positive clockwise as seen in
the image's viewing direction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class View:
    """A camera pose with its field of view."""

    position: tuple[float, float, float]
    yaw_deg: float
    pitch_deg: float
    roll_deg: float
    hfov_deg: float

    @property
    def camera_to_world(self) -> NDArray[np.float64]:
        """(4, 4) transform from the optical frame to the world."""
        return camera_to_world(self.position, self.yaw_deg, self.pitch_deg, self.roll_deg)


def camera_to_world(
    position: tuple[float, float, float], yaw_deg: float, pitch_deg: float, roll_deg: float
) -> NDArray[np.float64]:
    """Build the (4, 4) transform from the optical frame to the world."""
    yaw, pitch, roll = np.radians([yaw_deg, pitch_deg, roll_deg])
    forward = np.array(
        [np.cos(pitch) * np.cos(yaw), np.cos(pitch) * np.sin(yaw), np.sin(pitch)]
    )
    right = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
    down = np.cross(forward, right)
    pose = np.eye(4)
    pose[:3, 0] = np.cos(roll) * right + np.sin(roll) * down
    pose[:3, 1] = np.cos(roll) * down - np.sin(roll) * right
    pose[:3, 2] = forward
    pose[:3, 3] = position
    return pose


def look_at(
    position: tuple[float, float, float], target: tuple[float, float, float]
) -> tuple[float, float]:
    """Yaw and pitch [deg] that point the optical axis from a position at a target."""
    dx, dy, dz = np.subtract(target, position)
    return float(np.degrees(np.arctan2(dy, dx))), float(
        np.degrees(np.arctan2(dz, np.hypot(dx, dy)))
    )


def focal_px(width: int, hfov_deg: float) -> float:
    """Focal length [px] of a pinhole camera with square pixels."""
    return float(width / 2 / np.tan(np.radians(hfov_deg) / 2))


def ray_directions(
    view: View, size_hw: tuple[int, int], grid_hw: tuple[int, int] = (5, 7)
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rays through a regular grid of image points.

    Returns:
        (N, 3) unit directions in the world, and (N,) factors that turn the ray length into
        depth (the cosine of the angle to the optical axis).
    """
    height, width = size_hw
    focal = focal_px(width, view.hfov_deg)
    rows = (np.arange(grid_hw[0]) + 0.5) / grid_hw[0] * height - height / 2
    columns = (np.arange(grid_hw[1]) + 0.5) / grid_hw[1] * width - width / 2
    u, v = np.meshgrid(columns, rows)
    rays = np.stack([u.ravel() / focal, v.ravel() / focal, np.ones(u.size)], 1)
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    return rays @ view.camera_to_world[:3, :3].T, rays[:, 2]


def rejection(depths: NDArray[np.float64], kind: str) -> str:
    """Why a view is not worth rendering, '' when it is.

    Args:
        depths: (N,) depth of the probe rays [m], +Inf where nothing is hit.
        kind: 'room' or 'table'.
    """
    nearest, middle, spread = (0.28, 1.1, 1.15) if kind == 'room' else (0.11, 0.25, 1.15)
    hit = depths[np.isfinite(depths)]
    if hit.size < 0.7 * depths.size:
        return 'nothing there'
    if hit.min() < nearest:
        return 'too near'
    if np.median(hit) < middle:
        return 'too close overall'
    if hit.max() / hit.min() < spread:
        return 'flat'
    return ''


def sample_room_view(
    rng: np.random.Generator, size_xy: tuple[float, float], height_m: float
) -> View:
    """A robot's or a hand's view somewhere in a room, turned roughly towards its inside."""
    half = np.array(size_xy) / 2
    margin = np.minimum(0.3, half * 0.4)
    x, y = rng.uniform(-half + margin, half - margin)
    z = min(rng.choice([rng.uniform(0.25, 0.7), rng.uniform(0.7, 1.7)]), height_m - 0.4)
    target = rng.normal(0, 0.3, 2) * half
    yaw = np.degrees(np.arctan2(target[1] - y, target[0] - x)) + rng.normal(0, 35)
    centre = -4 - 9 * z  # the higher, the more the camera looks down
    pitch = float(np.clip(rng.normal(centre, 9), -50, 15))
    return View(
        (float(x), float(y), float(z)), float(yaw), pitch, _roll(rng), float(rng.uniform(45, 85))
    )


def sample_table_view(
    rng: np.random.Generator, top_m: float, half_xy: tuple[float, float], style: str,
    things_xy: list[tuple[float, float]] | None = None,
) -> View:
    """A view onto a table top at height `top_m` with half extents `half_xy`.

    Args:
        rng: the scene's generator.
        top_m: height of the table top [m].
        half_xy: half extents of the table top [m].
        style: 'close' (0.25 to 0.6 m), 'workspace' (0.6 to 1.5 m, any tilt) or 'kinect' (like a
            depth camera on a stand: 0.6 to 1.25 m, tilted down 25 to 55 degrees, 58 to 66 wide).
        things_xy: where things stand; most views look at the surroundings of one of them.
    """
    extent = np.array(half_xy)
    spread = 0.65 if style == 'close' else 0.35
    target = np.append(rng.uniform(-spread, spread, 2) * extent, top_m + rng.uniform(0, 0.08))
    if things_xy and rng.uniform() < 0.75:
        thing = np.array(things_xy[int(rng.integers(len(things_xy)))])
        target[:2] = thing + rng.normal(0, 0.05 if style == 'close' else 0.12, 2)
    if style == 'close':
        distance, tilt = np.exp(rng.uniform(np.log(0.25), np.log(0.6))), rng.uniform(8, 65)
        hfov = rng.uniform(45, 80)
    elif style == 'kinect':
        distance, tilt = rng.uniform(0.6, 1.25), rng.uniform(25, 55)
        hfov = rng.uniform(58, 66)
    else:
        distance, tilt = rng.uniform(0.6, 1.5), rng.uniform(10, 75)
        hfov = rng.uniform(45, 85)
    azimuth = rng.uniform(0, 2 * np.pi)
    tilt = np.radians(tilt)
    offset = distance * np.array(
        [np.cos(azimuth) * np.cos(tilt), np.sin(azimuth) * np.cos(tilt), np.sin(tilt)]
    )
    position = target + offset
    where = (float(position[0]), float(position[1]), float(position[2]))
    yaw, pitch = look_at(where, (float(target[0]), float(target[1]), float(target[2])))
    yaw += float(rng.normal(0, 3))
    pitch += float(rng.normal(0, 3))
    return View(where, yaw, pitch, _roll(rng), float(hfov))


def _roll(rng: np.random.Generator) -> float:
    return float(np.clip(rng.normal(0, 2.0), -5, 5))
