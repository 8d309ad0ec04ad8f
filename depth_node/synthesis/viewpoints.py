"""Where the camera stands and what it must not see: poses, rays and rejection rules.

Frames: world x, y horizontal, z up [m]; camera optical frame (x right, y down, z forward).
Angles: yaw counter-clockwise from +x, pitch positive upwards, roll positive clockwise as seen in
the image's viewing direction.
"""

from __future__ import annotations

from dataclasses import dataclass

from depth_node.synthesis.recipe import LIMITS
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
        kind: the style of view, of `recipe.LIMITS`.
    """
    limits = LIMITS[kind]
    hit = depths[np.isfinite(depths)]
    if hit.size < 0.7 * depths.size:
        return 'nothing there'
    if hit.min() < limits.nearest:
        return 'too near'
    if np.median(hit) < limits.middle:
        return 'too close overall'
    if hit.max() / hit.min() < limits.spread:
        return 'flat'
    return ''


ROOM_STYLES = {'robot': 0.34, 'low': 0.16, 'hand': 0.34, 'high': 0.08, 'near': 0.08}


def draw_hfov(rng: np.random.Generator) -> float:
    """A horizontal field of view of 40 to 90 degrees, log-uniform in the focal length."""
    low, high = (1 / np.tan(np.radians(a / 2)) for a in (90, 40))
    focal = np.exp(rng.uniform(np.log(low), np.log(high)))
    return float(2 * np.degrees(np.arctan(1 / focal)))


def sample_room_view(
    rng: np.random.Generator, size_xy: tuple[float, float], height_m: float,
    style: str = 'hand', *, along: bool = False,
) -> View:
    """A view somewhere in a room, turned roughly towards its inside.

    Args:
        rng: the scene's generator.
        size_xy: the room's extent [m].
        height_m: its height.
        style: 'robot' (0.1 to 0.4 m above the floor), 'low' (0.4 to 1 m), 'hand' (1 to 1.8 m) or
            'high' (up to the ceiling).
        along: look along the longer side, as one does in a corridor.
    """
    half = np.array(size_xy) / 2
    margin = np.minimum(0.25, half * 0.4)
    x, y = rng.uniform(-half + margin, half - margin)
    low, high = {'robot': (0.1, 0.4), 'low': (0.4, 1.0), 'hand': (1.0, 1.8),
                 'high': (1.8, 3.2)}[style]
    z = float(min(rng.uniform(low, high), height_m - 0.3))
    target = rng.normal(0, 0.3, 2) * half
    yaw = np.degrees(np.arctan2(target[1] - y, target[0] - x)) + rng.normal(0, 35)
    if along and rng.uniform() < 0.8:
        axis = 0.0 if size_xy[0] >= size_xy[1] else 90.0
        yaw = axis + (180 if (x if axis == 0 else y) > 0 else 0) + rng.normal(0, 18)
    centre = 2 - 11 * z if style != 'robot' else 0.0  # the higher, the more the camera looks down
    pitch = float(np.clip(rng.normal(centre, 9), -65, 22))
    return View((float(x), float(y), z), float(yaw), pitch, _roll(rng), draw_hfov(rng))


def sample_near_view(
    rng: np.random.Generator, thing: tuple[float, float, float, float]
) -> View:
    """A view of one thing from 0.3 to 1.2 m away, as before grasping or docking.

    Args:
        rng: the scene's generator.
        thing: x, y, radius and height of its middle above the floor [m].
    """
    x, y, radius, middle = thing
    distance = radius * rng.uniform(0.6, 1.0) + float(np.exp(rng.uniform(np.log(0.3),
                                                                       np.log(1.2))))
    azimuth = rng.uniform(0, 2 * np.pi)
    z = float(np.clip(middle + rng.uniform(-0.2, 0.7) * distance, 0.12, 2.0))
    where = (float(x + distance * np.cos(azimuth)), float(y + distance * np.sin(azimuth)), z)
    yaw, pitch = look_at(where, (x, y, middle))
    return View(where, yaw + float(rng.normal(0, 8)), pitch + float(rng.normal(0, 5)), _roll(rng),
                draw_hfov(rng))


def nearby_views(
    rng: np.random.Generator, view: View, count: int, step_m: float
) -> list[View]:
    """A short camera motion that starts at a view: `count` poses about `step_m` apart."""
    heading = np.radians(view.yaw_deg) + rng.normal(0, 0.7) + (np.pi if rng.uniform() < 0.2 else 0)
    drift = step_m * np.array([np.cos(heading), np.sin(heading), rng.normal(0, 0.15)])
    turn = rng.normal(0, (1.2, 0.5, 0.3))
    views = []
    for index in range(count):
        x, y, z = np.array(view.position) + index * drift + (index > 0) * rng.normal(
            0, 0.04 * step_m, 3)
        yaw, pitch, roll = index * turn + (index > 0) * rng.normal(0, (0.2, 0.2, 0.1))
        views.append(View((float(x), float(y), float(z)), float(view.yaw_deg + yaw),
                          float(view.pitch_deg + pitch), float(view.roll_deg + roll),
                          view.hfov_deg))
    return views


def sample_table_view(
    rng: np.random.Generator, top_m: float, half_xy: tuple[float, float], style: str,
    things_xy: list[tuple[float, float]] | None = None,
) -> View:
    """A view onto a table top at height `top_m` with half extents `half_xy`.

    Args:
        rng: the scene's generator.
        top_m: height of the table top [m].
        half_xy: half extents of the table top [m].
        style: 'close' (0.18 to 0.5 m), 'workspace' (0.5 to 1.6 m, any tilt), 'kinect' (like a
            depth camera on a stand: 0.6 to 1.3 m, tilted down 25 to 55 degrees, 58 to 66 wide) or
            'across' (over the edge of the table and the room behind it).
        things_xy: where things stand; most views look at the surroundings of one of them.
    """
    extent = np.array(half_xy)
    spread = 0.65 if style == 'close' else 0.35
    target = np.append(rng.uniform(-spread, spread, 2) * extent, top_m + rng.uniform(0, 0.08))
    if things_xy and rng.uniform() < 0.75:
        thing = np.array(things_xy[int(rng.integers(len(things_xy)))])
        target[:2] = thing + rng.normal(0, 0.05 if style == 'close' else 0.12, 2)
    if style == 'close':
        distance, tilt = np.exp(rng.uniform(np.log(0.18), np.log(0.5))), rng.uniform(5, 75)
        hfov = draw_hfov(rng)
    elif style == 'kinect':
        distance, tilt = rng.uniform(0.6, 1.3), rng.uniform(25, 55)
        hfov = rng.uniform(58, 66)
    elif style == 'across':
        distance, tilt = rng.uniform(0.4, 1.4), rng.uniform(3, 18)
        hfov = draw_hfov(rng)
    else:
        distance, tilt = rng.uniform(0.5, 1.6), rng.uniform(10, 88)
        hfov = draw_hfov(rng)
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
    if rng.uniform() < 0.2:  # held in a hand, or on an arm
        return float(rng.uniform(-15, 15))
    return float(np.clip(rng.normal(0, 2.0), -5, 5))
