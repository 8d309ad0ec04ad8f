"""A small KITTI: both eyes, calibration, velodyne scans of a plane, annotated depth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

DATE = '2011_09_26'
TRAIN_DRIVE, VAL_DRIVE = f'{DATE}_drive_0001_sync', f'{DATE}_drive_0002_sync'
BASELINE_M = 0.54
# The camera is 0.27 m ahead of the scanner and 0.08 m below it; z forward = x of the scanner.
CAMERA_FROM_VELO = np.array(
    [[0.0, -1, 0, 0.03], [0, 0, -1, -0.08], [1, 0, 0, -0.27], [0, 0, 0, 1]]
)
# Rectifying rolls the picture a little, which leaves z as it is.
RECTIFY = np.array([[np.cos(0.02), -np.sin(0.02), 0], [np.sin(0.02), np.cos(0.02), 0], [0, 0, 1]])
RECT_FROM_VELO = np.block([[RECTIFY, np.zeros((3, 1))], [np.zeros((1, 3)), 1]]) @ CAMERA_FROM_VELO
VELO_FROM_IMU = np.array([[1.0, 0, 0, -0.81], [0, 1, 0, 0.32], [0, 0, 1, -0.8], [0, 0, 0, 1]])
START_DEG = (49.0, 8.4)  # latitude, longitude
# Metres of the plane z = a + b x + c y, in the frame of the rectified camera 0.
PLANE = (12.0, 0.35, -1.9)


def numbers(values: np.ndarray) -> str:
    """Write numbers as KITTI does."""
    return ' '.join(f'{v:.6e}' for v in np.ravel(values))


def projection(fx: float, fy: float, cx: float, cy: float, shift: np.ndarray) -> np.ndarray:
    """Return P_rect = K [I | shift]."""
    K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    return K @ np.column_stack((np.eye(3), shift))


def plane_depth(
    P: np.ndarray, size_hw: tuple[int, int], plane: tuple[float, float, float]
) -> np.ndarray:
    """Return the plane's depth in an eye's picture: closed form per pixel."""
    K, shift = P[:, :3], np.linalg.solve(P[:, :3], P[:, 3])
    v, u = np.mgrid[: size_hw[0], : size_hw[1]].astype(float)
    rays = np.stack(((u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1]), -1)
    a, b, c = plane
    # X0 = ray * Z - shift; Z - shift_z = a + b (rx Z - shift_x) + c (ry Z - shift_y)
    numerator = a + shift[2] - b * shift[0] - c * shift[1]
    return numerator / (1 - b * rays[..., 0] - c * rays[..., 1])


def write_calibration(folder: Path, size_hw: tuple[int, int]) -> dict[str, np.ndarray]:
    """Write both calibration files of a date; return P_rect of both eyes."""
    height, width = size_hw
    fx, fy, cx, cy = 0.58 * width, 0.6 * width, 0.49 * width, 0.46 * height
    P = {
        'l': projection(fx, fy, cx, cy, np.array([0.06, 0.0003, 0.0027])),
        'r': projection(fx, fy, cx, cy, np.array([0.06 - BASELINE_M, 0.002, 0.0025])),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'calib_cam_to_cam.txt').write_text(
        'calib_time: 09-Jan-2012 13:57:47\n'
        'corner_dist: 9.950000e-02\n'
        f'S_00: {numbers(np.array([width * 1.1, height * 1.1]))}\n'
        f'R_rect_00: {numbers(RECTIFY)}\n'
        f'S_rect_02: {numbers(np.array([width, height]))}\n'
        f'P_rect_02: {numbers(P["l"])}\n'
        f'S_rect_03: {numbers(np.array([width, height]))}\n'
        f'P_rect_03: {numbers(P["r"])}\n'
    )
    (folder / 'calib_velo_to_cam.txt').write_text(
        'calib_time: 15-Mar-2012 11:37:16\n'
        f'R: {numbers(CAMERA_FROM_VELO[:3, :3])}\n'
        f'T: {numbers(CAMERA_FROM_VELO[:3, 3])}\n'
        'delta_f: 0.000000e+00 0.000000e+00\n'
    )
    (folder / 'calib_imu_to_velo.txt').write_text(
        'calib_time: 25-May-2012 16:47:16\n'
        f'R: {numbers(VELO_FROM_IMU[:3, :3])}\n'
        f'T: {numbers(VELO_FROM_IMU[:3, 3])}\n'
    )
    return P


def world_from_imu(frame: int) -> np.ndarray:
    """Return (4, 4): 0.9 m a frame to the east, 0.2 m to the north, a bit up, turning left."""
    yaw, pitch = 0.02 * frame, 0.003 * frame
    about_z = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    about_y = np.array(
        [[np.cos(pitch), 0, np.sin(pitch)], [0, 1, 0], [-np.sin(pitch), 0, np.cos(pitch)]]
    )
    pose = np.eye(4)
    pose[:3, :3] = about_z @ about_y
    pose[:3, 3] = (0.9 * frame, 0.2 * frame, 110 + 0.01 * frame)
    return pose


def write_oxts(path: Path, frame: int) -> None:
    """Write a record of `world_from_imu`, by the length of a degree where it starts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metres_per_deg = np.pi / 180 * 6378137
    east, north, up = world_from_imu(frame)[:3, 3]
    latitude = START_DEG[0] + north / metres_per_deg
    longitude = START_DEG[1] + east / (metres_per_deg * np.cos(np.radians(START_DEG[0])))
    rest = ' '.join(['0'] * 24)
    path.write_text(
        f'{latitude:.12f} {longitude:.12f} {up:.6f} 0 {0.003 * frame} {0.02 * frame} {rest}\n'
    )


def write_scan(path: Path, points: np.ndarray) -> None:
    """Write (N, 3) points as a scan with reflectances."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.column_stack((points, np.full(len(points), 0.5)))
    path.write_bytes(rows.astype('<f4').tobytes())


def write(
    root: Path, *, frames: int = 4, size_hw: tuple[int, int] = (60, 100), seed: int = 0
) -> dict[str, Any]:
    """Write a training drive of `frames` and a validation drive of two, with everything.

    The scene is a tilted plane that is brighter where it is farther. Depth pictures are dense,
    scans hit the plane at random and twice at some pixels.

    Returns:
        `P`, `depth` {(drive, frame, eye): metres}, `rgb` likewise, `points` {(drive, frame): scan
        of the plane}, `lists` {split: file of the Eigen kind}.
    """
    rng = np.random.default_rng(seed)
    P = write_calibration(root / DATE, size_hw)
    velo_from_rect = np.linalg.inv(RECT_FROM_VELO)
    truth: dict[str, Any] = {'P': P, 'depth': {}, 'rgb': {}, 'points': {}, 'lists': {}}
    for split, drive, count in (('train', TRAIN_DRIVE, frames), ('val', VAL_DRIVE, 2)):
        folder = root / DATE / drive
        lines = []
        for frame in range(5, 5 + count):  # annotated depth begins at frame 5
            plane = (PLANE[0] + rng.uniform(-3, 3), PLANE[1] + rng.uniform(-0.2, 0.2), PLANE[2])
            for eye, image in (('l', 'image_02'), ('r', 'image_03')):
                depth = plane_depth(P[eye], size_hw, plane)
                depth = np.where((depth > 0) & (depth < 80), depth, 0)
                stored = np.rint(depth * 256).astype(np.uint16)
                grey = np.clip(30 + 4 * depth, 0, 230)[..., None]
                rgb = (grey + rng.integers(0, 20, (*size_hw, 3))).astype(np.uint8)
                picture = folder / image / 'data' / f'{frame:010d}.png'
                annotated = root / split / drive / 'proj_depth' / 'groundtruth' / image
                for parent in (picture.parent, annotated):
                    parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(picture), rgb[..., ::-1])
                cv2.imwrite(str(annotated / f'{frame:010d}.png'), stored)
                truth['depth'][drive, frame, eye] = stored / 256
                truth['rgb'][drive, frame, eye] = rgb
            x, y = rng.uniform(-20, 20, 4000), rng.uniform(-3, 3, 4000)
            z = plane[0] + plane[1] * x + plane[2] * y
            in_front = z > 1
            camera_points = np.column_stack((x, y, z, np.ones_like(x)))[in_front]
            points = (camera_points @ velo_from_rect.T)[:, :3].astype(np.float32)
            write_scan(folder / 'velodyne_points' / 'data' / f'{frame:010d}.bin', points)
            truth['points'][drive, frame] = points
            write_oxts(folder / 'oxts' / 'data' / f'{frame:010d}.txt', frame)
            lines.append(f'{DATE}/{drive} {frame} l\n')
        truth['lists'][split] = root / f'{split}_files.txt'
        truth['lists'][split].write_text(''.join(lines))
    return truth
