"""Rooms of planes and boxes whose depth and distances are known in closed form, for tests."""

from __future__ import annotations

from dataclasses import dataclass

from depth_node.camera import Camera
from depth_node.ground import Mount
import numpy as np

# H != W and fx != fy, so that a swapped axis fails.
CAMERA = Camera((96, 128), 108.0, 101.0, 60.5, 49.0)
ROOM = ((-3.0, -2.5, 0.0), (3.5, 3.0, 2.7))


@dataclass(frozen=True)
class Pose:
    """A camera in the world (z up): rotation from the optical frame, and position."""

    rotation: np.ndarray
    position: np.ndarray

    @classmethod
    def looking(cls, position, yaw_deg, pitch_deg, roll_deg=0.0) -> Pose:
        """Yaw 0 looks along x; positive pitch looks down."""
        yaw, pitch, roll = np.radians([yaw_deg, pitch_deg, roll_deg])
        forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch),
                            -np.sin(pitch)])
        right = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
        down = np.cross(forward, right)
        right, down = (np.cos(roll) * right + np.sin(roll) * down,
                       np.cos(roll) * down - np.sin(roll) * right)
        return cls(np.stack([right, down, forward], 1), np.asarray(position, float))

    @property
    def mount(self) -> Mount:
        return Mount(tuple(self.rotation.T @ [0.0, 0.0, 1.0]), float(self.position[2]))


def cast(boxes, origin, directions) -> np.ndarray:
    """Return (n,) distances along (n, 3) unit directions to a room's inside and boxes' outsides.

    `boxes`: (low, high) corners; the first is the room itself.
    """
    with np.errstate(divide='ignore', invalid='ignore'):
        nearest = np.full(len(directions), np.inf)
        for index, (low, high) in enumerate(boxes):
            first = (np.asarray(low) - origin) / directions
            second = (np.asarray(high) - origin) / directions
            enter = np.nanmax(np.minimum(first, second), axis=1)
            leave = np.nanmin(np.maximum(first, second), axis=1)
            if index == 0:
                hit = leave
            else:
                hit = np.where((enter > 0) & (enter <= leave), enter, np.inf)
            nearest = np.minimum(nearest, hit)
    return nearest


def rays(camera: Camera) -> np.ndarray:
    """Return (h, w, 3) rays of depth 1 in the optical frame."""
    v, u = np.mgrid[0:camera.size_hw[0], 0:camera.size_hw[1]].astype(float)
    return np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy,
                     np.ones(camera.size_hw)], -1)


def depth_of(boxes, pose: Pose, camera: Camera = CAMERA) -> np.ndarray:
    """Return the (h, w) float32 depth image of a pose."""
    optical = rays(camera).reshape(-1, 3)
    length = np.linalg.norm(optical, axis=1)
    distance = cast(boxes, pose.position, optical / length[:, None] @ pose.rotation.T)
    return (distance / length).reshape(camera.size_hw).astype(np.float32)


def measured_from(boxes, pose: Pose, offset, directions) -> np.ndarray:
    """Return (n, 3) what a lidar at `offset` (optical frame) measures along its beams."""
    place = pose.position + pose.rotation @ np.asarray(offset, float)
    distance = cast(boxes, place, directions @ pose.rotation.T)
    return directions * distance[:, None] + np.asarray(offset, float)


def random_room(seed: int):
    """Return boxes and a pose of a furnished room; the camera stands clear of the boxes."""
    rng = np.random.default_rng(seed)
    size = np.array([rng.uniform(4.5, 8.0), rng.uniform(4.0, 6.5), rng.uniform(2.3, 3.0)])
    room = ((-size[0] / 2, -size[1] / 2, 0.0), (size[0] / 2, size[1] / 2, size[2]))
    height = rng.uniform(0.35, 1.4)
    position = np.array([-size[0] / 2 + rng.uniform(0.3, 0.8), rng.uniform(-0.6, 0.6), height])
    boxes = [room]
    for _ in range(rng.integers(3, 7)):
        extent = np.array([rng.uniform(0.3, 1.0), rng.uniform(0.3, 1.2), rng.uniform(0.3, 1.6)])
        corner = np.array([rng.uniform(position[0] + 1.2, size[0] / 2 - extent[0]),
                           rng.uniform(-size[1] / 2, size[1] / 2 - extent[1]), 0.0])
        boxes.append((corner, corner + extent))
    pose = Pose.looking(position, rng.uniform(-18, 18), rng.uniform(2, 12) + 12 * height,
                        rng.uniform(-4, 4))
    return boxes, pose
