"""What a range sensor would have measured of a scene whose depth is known, and how it goes wrong.

For figures about `scale.source: points`: the truth is a depth image, the sensor sits at the
camera (what else it would see from another place a depth image cannot tell).
"""

from __future__ import annotations

from typing import Any

import cv2
from depth_node.camera import Camera
from depth_node.evaluation.metrics import FloatImage
import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


def beams(elevations_deg: NDArray[np.floating[Any]] | list[float], azimuth_step_deg: float,
          azimuth_deg: tuple[float, float] = (-60.0, 60.0)) -> Points:
    """Return the unit directions of a lidar's beams in the optical frame.

    Args:
        elevations_deg: of its rings, positive is up; one ring is a laser scanner.
        azimuth_step_deg: between two beams of a ring.
        azimuth_deg: first and last, positive is right; 0 is where the camera looks.

    Returns:
        (N, 3) x right, y down, z forward.
    """
    azimuth, elevation = np.meshgrid(
        np.radians(np.arange(azimuth_deg[0], azimuth_deg[1] + 1e-9, azimuth_step_deg)),
        np.radians(np.asarray(elevations_deg, np.float64)))
    return np.stack([np.cos(elevation) * np.sin(azimuth), -np.sin(elevation),
                     np.cos(elevation) * np.cos(azimuth)], -1).reshape(-1, 3)


def measure(depth: FloatImage, camera: Camera, directions: Points) -> Points:
    """Return the points where beams from the camera's centre meet the scene.

    Args:
        depth: (H, W) true depth, metres, NaN = unknown.
        camera: of it.
        directions: (N, 3) in the optical frame.

    Returns:
        (M, 3) metres, M <= N: beams outside of the image or without known depth are left out.
    """
    ahead = directions[directions[:, 2] > 1e-3]
    rays = ahead / ahead[:, 2:]
    u = np.floor(camera.fx * rays[:, 0] + camera.cx + 0.5)
    v = np.floor(camera.fy * rays[:, 1] + camera.cy + 0.5)
    height, width = depth.shape
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    rays = rays[inside]
    z = np.asarray(depth, np.float64)[v[inside].astype(np.intp), u[inside].astype(np.intp)]
    known = np.isfinite(z) & (z > 0)
    return np.asarray(rays[known] * z[known, None])


def disturb(points: Points, rng: np.random.Generator, *, noise_m: float = 0.02,
            noise_share: float = 0.005, outliers: float = 0.3,
            outlier_range_m: tuple[float, float] = (0.3, 8.0)) -> Points:
    """Return measurements with noise along the beam, and a share of them anywhere on it.

    Args:
        points: (N, 3) metres, in the sensor's frame.
        rng: source of chance.
        noise_m: standard deviation, metres.
        noise_share: standard deviation as a share of the distance, added to it.
        outliers: share of the points whose distance is replaced by a random one.
        outlier_range_m: from and to where.
    """
    distance = np.linalg.norm(points, axis=1)
    noisy = distance + rng.normal(0, 1, len(points)) * (noise_m + noise_share * distance)
    wrong = rng.random(len(points)) < outliers
    noisy[wrong] = rng.uniform(*outlier_range_m, int(wrong.sum()))
    return np.asarray(points * (noisy / distance)[:, None])


def turned(points: Points, axis: NDArray[np.floating[Any]], angle_deg: float,
           offset_m: NDArray[np.floating[Any]] | tuple[float, ...] = (0.0, 0.0, 0.0)) -> Points:
    """Return points turned about an axis through the camera and moved: a wrong extrinsic.

    Args:
        points: (N, 3) metres.
        axis: (3,) of any length but 0.
        angle_deg: right-handed.
        offset_m: (3,) added after the turn.
    """
    unit = np.asarray(axis, np.float64) / np.linalg.norm(axis)
    rotation = cv2.Rodrigues(unit * np.radians(angle_deg))[0]
    return np.asarray(points @ rotation.T + np.asarray(offset_m))


def nearest_in_cone(depth: FloatImage, camera: Camera, direction: NDArray[np.floating[Any]],
                    half_angle_rad: float) -> float:
    """Return the distance of the nearest surface in a cone from the camera, NaN if none is seen.

    Args:
        depth: (H, W) true depth, metres, NaN = unknown.
        camera: of it.
        direction: (3,) of any length but 0, in the optical frame.
        half_angle_rad: half of the cone's angle.
    """
    v, u = np.mgrid[0:depth.shape[0], 0:depth.shape[1]]
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(u.shape)],
                    -1)
    length = np.linalg.norm(rays, axis=-1)
    cosine = rays @ (np.asarray(direction, np.float64) / np.linalg.norm(direction)) / length
    seen = (cosine >= np.cos(half_angle_rad)) & np.isfinite(depth)
    return float((depth * length)[seen].min()) if seen.any() else float('nan')


def like_network(depth: FloatImage, rng: np.random.Generator, *, factor: float,
                 local_error: float = 0.05, pixel_error: float = 0.01,
                 blur_px: float = 1.2) -> NDArray[np.float32]:
    """Return true depth with the errors of a good network whose scale is off.

    Edges are blurred, every place is off by a smooth random share (correlated over a fifth of
    the image), every pixel by a little more, and all by a factor.

    Args:
        depth: (H, W) true depth, metres, NaN = unknown.
        rng: source of chance.
        factor: true depth = factor * what is returned, apart from the errors.
        local_error: standard deviation of the smooth error, relative.
        pixel_error: of the independent error, relative.
        blur_px: standard deviation of the blur.

    Returns:
        (H, W) float32, NaN where the truth is.
    """
    height, width = depth.shape
    known = np.isfinite(depth)
    inverse = np.where(known, 1 / np.where(known, depth, 1.0), 0.0).astype(np.float32)
    weight = known.astype(np.float32)
    if blur_px > 0:
        inverse = cv2.GaussianBlur(inverse, (0, 0), blur_px)
        weight = cv2.GaussianBlur(weight, (0, 0), blur_px)
    coarse = rng.normal(0, 1, (6, 7)).astype(np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    smooth *= np.float32(local_error) / smooth.std()
    smooth -= smooth.mean()
    noise = smooth + rng.normal(0, pixel_error, depth.shape)
    with np.errstate(divide='ignore', invalid='ignore'):
        result = weight / inverse * np.exp(noise) / factor
    return np.where(known, result, np.nan).astype(np.float32)
