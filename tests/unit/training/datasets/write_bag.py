"""A small RGB-D bag: a camera that comes closer to a tilted plane, with or without distortion."""

from __future__ import annotations

from pathlib import Path
import struct
from typing import Any

import cv2
import numpy as np

IMAGE, DEPTH, INFO = (
    '/camera/color/image_raw', '/camera/aligned_depth_to_color/image_raw',
    '/camera/color/camera_info')  # fmt: skip
FRAME_ID = 'camera_color_optical_frame'
BEGIN_NS = 1_700_000_000_123_456_789
PERIOD_S = 2.0
_DEPTH_QUANTISATION = 100.0


def plane_depth(rays: np.ndarray, plane: tuple[float, float, float]) -> np.ndarray:
    """Return Z where rays (H, W, 2), X/Z and Y/Z, meet Z = a + b X + c Y."""
    a, b, c = plane
    return a / (1 - b * rays[..., 0] - c * rays[..., 1])


def pixel_rays(K: np.ndarray, size_hw: tuple[int, int], D: tuple[float, ...] = ()) -> np.ndarray:
    """Return (H, W, 2), the direction X/Z, Y/Z that each pixel of the (distorted) picture sees."""
    v, u = np.mgrid[: size_hw[0], : size_hw[1]].astype(np.float64)
    points = np.stack((u, v), -1).reshape(-1, 1, 2)
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-12)
    ideal = cv2.undistortPointsIter(points, K, np.array(D or (0.0,) * 5), None, None, criteria)
    return ideal.reshape(*size_hw, 2)


def encode_rgb(rgb: np.ndarray, form: str) -> tuple[str, str, bytes]:
    """Return (message type, encoding or format, data)."""
    bgr = np.ascontiguousarray(rgb[..., ::-1])
    if form in ('jpeg', 'png'):
        quality = [cv2.IMWRITE_JPEG_QUALITY, 98] if form == 'jpeg' else []
        data = cv2.imencode(f'.{form}', bgr, quality)[1].tobytes()
        return 'sensor_msgs/msg/CompressedImage', f'rgb8; {form} compressed bgr8', data
    return 'sensor_msgs/msg/Image', form, (bgr if form == 'bgr8' else rgb).tobytes()


def encode_depth(depth: np.ndarray, form: str) -> tuple[str, str, bytes, np.ndarray]:
    """Return (message type, encoding or format, data, metres as stored; 0 = unknown)."""
    millimetres = np.rint(depth * 1000).astype(np.uint16)
    if form == '32FC1':
        data = np.where(depth > 0, depth, np.nan).astype('<f4')
        return 'sensor_msgs/msg/Image', form, data.tobytes(), depth.astype(np.float32)
    if form in ('16UC1', 'mono16'):
        return 'sensor_msgs/msg/Image', form, millimetres.tobytes(), millimetres / 1000
    header, values, stored = struct.pack('<iff', 1, 0, 0), millimetres, millimetres / 1000
    if form == '32FC1; compressedDepth png':
        A = _DEPTH_QUANTISATION * (_DEPTH_QUANTISATION + 1)
        B = 1 - A / 10.0
        header = struct.pack('<iff', 1, A, B)
        with np.errstate(divide='ignore'):
            values = np.where(depth > 0, np.rint(A / depth + B), 0).astype(np.uint16)
            stored = np.where(values > 0, A / (values - B), 0)
    elif 'compressedDepth' not in form:
        header = b''
    data = header + cv2.imencode('.png', values)[1].tobytes()
    return 'sensor_msgs/msg/CompressedImage', form, data, stored


def write(
    root: Path,
    *,
    frames: int = 4,
    size_hw: tuple[int, int] = (48, 64),
    seed: int = 0,
    storage: str = 'mcap',
    compression: str | None = None,
    rgb_format: str = 'rgb8',
    depth_format: str = '16UC1',
    depth_size_hw: tuple[int, int] | None = None,
    depth_delay_s: float = 0.004,
    depth_frame_id: str = FRAME_ID,
    image_topic: str = IMAGE,
    depth_topic: str = DEPTH,
    info_topic: str | None = INFO,
    D: tuple[float, ...] = (),
    period_s: float = PERIOD_S,
    burst_s: float | None = None,
    stamped: bool = True,
    name: str = 'bag',
    extra_topics: tuple[tuple[str, str], ...] = (),
) -> dict[str, Any]:
    """Write `root`/`name`: at least 20 pictures, so that each split gets some; farther = brighter.

    Args:
        root: folder of bags.
        frames: a fifth of the pictures, if that is more than 20.
        size_hw: of pictures.
        seed: of the scene.
        storage: mcap or sqlite3.
        compression: None, `message`, `storage` or `file`.
        rgb_format: rgb8, bgr8, jpeg or png.
        depth_format: 16UC1, mono16, 32FC1, or a format of compressed depth.
        depth_size_hw: None = the pictures'.
        depth_delay_s: stamps of depth are later by this.
        depth_frame_id: of the depth.
        image_topic: of the pictures.
        depth_topic: of the depth.
        info_topic: None = no CameraInfo.
        D: plumb_bob coefficients; picture and depth are distorted by them.
        period_s: between frames.
        burst_s: the recorder's times stand still for so long; None = they do not.
        stamped: False leaves the headers' stamps 0.
        name: of the bag.
        extra_topics: (topic, encoding) of more images, 4x4 px.

    Returns:
        `path`, `K`, `stamps` [ns], `rgb`, `depth` [m, 0 = unknown, as stored], `planes` (of
        frames) and `D`.
    """
    from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    rng = np.random.default_rng(seed)
    store = get_typestore(Stores.ROS2_HUMBLE)
    types = store.types
    height, width = size_hw
    K = np.array([[0.9 * width, 0, 0.52 * width], [0, 0.95 * width, 0.47 * height], [0, 0, 1]])
    rays = pixel_rays(K, size_hw, D)
    count = max(20, 5 * frames)
    root.mkdir(parents=True, exist_ok=True)
    truth: dict[str, Any] = {
        'path': root / name, 'K': K, 'stamps': [], 'rgb': [], 'depth': [], 'planes': [], 'D': D,
    }  # fmt: skip

    def header(stamp: int, frame_id: str) -> Any:
        stamp *= stamped
        time = types['builtin_interfaces/msg/Time'](stamp // 10**9, stamp % 10**9)
        return types['std_msgs/msg/Header'](time, frame_id)

    def image(kind: str, form: str, data: bytes, stamp: int, frame_id: str, hw: Any) -> Any:
        array = np.frombuffer(data, np.uint8)
        if kind.endswith('CompressedImage'):
            return types[kind](header(stamp, frame_id), form, array)
        return types[kind](
            header(stamp, frame_id), hw[0], hw[1], form, 0, len(array) // hw[0], array
        )

    plugin = {'mcap': StoragePlugin.MCAP, 'sqlite3': StoragePlugin.SQLITE3}[storage]
    writer = Writer(root / name, version=9, storage_plugin=plugin)
    if compression is not None:
        writer.set_compression(CompressionMode[compression.upper()], CompressionFormat.ZSTD)
    connections: dict[str, Any] = {}

    def send(topic: str, kind: str, stamp: int, message: Any) -> None:
        if topic not in connections:
            connections[topic] = writer.add_connection(topic, kind, typestore=store)
        # the bag's time is that of the message's arrival
        arrival = stamp + 30_000_000
        if burst_s is not None:
            arrival -= arrival % round(burst_s * 1e9)
        writer.write(connections[topic], arrival, store.serialize_cdr(message, kind))

    with writer:
        for index in range(count):
            stamp = BEGIN_NS + round(index * period_s * 1e9)
            plane = (5.0 - 3.0 * index / count, rng.uniform(-0.3, 0.3), rng.uniform(-0.3, 0.3))
            depth = plane_depth(rays, plane)
            depth[-2:, :3] = 0  # a hole
            grey = np.clip(20 + 28 * depth, 0, 235)[..., None]
            rgb = (grey + rng.integers(0, 15, (*size_hw, 3))).astype(np.uint8)
            kind, form, data = encode_rgb(rgb, rgb_format)
            send(image_topic, kind, stamp, image(kind, form, data, stamp, FRAME_ID, size_hw))
            if info_topic is not None:
                info = types['sensor_msgs/msg/CameraInfo'](
                    header(stamp, FRAME_ID), height, width, 'plumb_bob', np.array(D or (0.0,) * 5),
                    K.ravel(), np.eye(3).ravel(),
                    np.column_stack((K, np.zeros(3))).ravel(), 0, 0,
                    types['sensor_msgs/msg/RegionOfInterest'](0, 0, 0, 0, False),
                )  # fmt: skip
                send(info_topic, 'sensor_msgs/msg/CameraInfo', stamp, info)
            if depth_size_hw is not None:
                depth = cv2.resize(depth, depth_size_hw[::-1], interpolation=cv2.INTER_NEAREST)
            kind, form, data, stored = encode_depth(depth, depth_format)
            later = stamp + round(depth_delay_s * 1e9)
            send(depth_topic, kind, later,
                 image(kind, form, data, later, depth_frame_id, depth.shape))  # fmt: skip
            for topic, encoding in extra_topics:
                size = {'mono8': 1, 'rgb8': 3, '16UC1': 2}[encoding]
                send(topic, 'sensor_msgs/msg/Image', stamp, image(
                    'sensor_msgs/msg/Image', encoding, bytes(16 * size), stamp, FRAME_ID, (4, 4),
                ))  # fmt: skip
            truth['stamps'].append(stamp)
            truth['rgb'].append(rgb)
            truth['depth'].append(stored)
            truth['planes'].append(plane)
    return truth
