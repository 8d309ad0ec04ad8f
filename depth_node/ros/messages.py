"""Between ROS messages and the core's arrays.

Large data is an array('B') from the start or filled by `msg.data.frombytes` on a new message:
every other way is 3 to 3000 times slower on some distribution (field checks, conversion item by
item).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
import math
from typing import Any

from builtin_interfaces.msg import Time
from depth_node import images
from depth_node.camera import Camera
from depth_node.geometry import PackedCloud
from depth_node.obstacles import LevelScan, Obstacle, ScanSettings
from depth_node.pipeline import DepthFrame
from depth_node.ros import bridge
from depth_node.ros.camera_source import Calibration
from depth_node.ros.statistics import Snapshot
from geometry_msgs.msg import TransformStamped
import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import (
    CameraInfo,
    CompressedImage,
    Image,
    LaserScan,
    PointCloud2,
    PointField,
)
from std_msgs.msg import Header

try:
    from depth_node.msg import DepthStatus
except ImportError:  # a checkout or a pip install without the message generators
    DepthStatus = None  # type: ignore[assignment, misc]


def stamp_s(stamp: Time) -> float:
    """Return a message's time in seconds."""
    return float(stamp.sec) + 1e-9 * float(stamp.nanosec)


def to_rgb(msg: Image | CompressedImage) -> NDArray[np.uint8]:
    """Return the picture of either image message; rgb8 is a view of the message.

    Raises:
        ImageError: with the reason that makes the image unusable.
    """
    if isinstance(msg, CompressedImage):
        return images.decode_compressed(msg.data, msg.format)
    try:
        return images.to_rgb(msg.data, height=msg.height, width=msg.width, encoding=msg.encoding,
                             step=msg.step, is_bigendian=bool(msg.is_bigendian))
    except images.ImageError as error:
        if error.reason != 'unknown_encoding':
            raise
        return bridge.to_rgb(msg, error)


def calibration(msg: CameraInfo) -> Calibration:
    """Return the plain values of a CameraInfo."""
    roi = msg.roi
    return Calibration(
        width=int(msg.width), height=int(msg.height), distortion_model=str(msg.distortion_model),
        d=tuple(map(float, msg.d)), k=tuple(map(float, msg.k)), r=tuple(map(float, msg.r)),
        p=tuple(map(float, msg.p)), binning_x=int(msg.binning_x), binning_y=int(msg.binning_y),
        roi_xywh=(int(roi.x_offset), int(roi.y_offset), int(roi.width), int(roi.height)))


def _fill(data: array[int], values: NDArray[Any]) -> None:
    data.frombytes(np.ascontiguousarray(values).reshape(-1).view(np.uint8))


def image(header: Header, values: NDArray[Any], encoding: str) -> Image:
    """Return an Image of a (H, W) or (H, W, C) array whose type fits `encoding`."""
    msg = Image()
    msg.header = header
    msg.height, msg.width = values.shape[:2]
    msg.encoding = encoding
    msg.step = values.itemsize * values[0].size
    _fill(msg.data, values)
    return msg


def depth_image(header: Header, depth: NDArray[np.float32], encoding: str) -> Image:
    """Return depth as 32FC1 metres, or as 16UC1 millimetres with 0 for what is not finite."""
    if encoding == '16UC1':
        return image(header, images.depth_to_16uc1(depth), encoding)
    return image(header, depth, '32FC1')


def camera_info(header: Header, camera: Camera) -> CameraInfo:
    """Return the CameraInfo of a rectified image: D = 0, R = I, K = P.

    Consumers differ in which of K and P they read (RViz and depth_image_proc P, MoveIt K), so
    both say the same.
    """
    pinhole = camera.rectified()
    fx, fy, cx, cy = pinhole.fx, pinhole.fy, pinhole.cx, pinhole.cy
    msg = CameraInfo()
    msg.header = header
    msg.height, msg.width = pinhole.size_hw
    msg.distortion_model = 'plumb_bob'
    msg.d = [0.0, 0.0, 0.0, 0.0, 0.0]
    msg.k = [fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0]
    msg.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    msg.p = [fx, 0.0, cx, 0.0, 0.0, fy, cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    return msg


def point_cloud(header: Header, cloud: PackedCloud) -> PointCloud2:
    """Return a PointCloud2 of packed points; every field is a float32, rgb in its bits."""
    msg = PointCloud2()
    msg.header = header
    msg.height, msg.width = cloud.height, cloud.width
    msg.fields = [PointField(name=name, offset=4 * index, datatype=PointField.FLOAT32, count=1)
                  for index, name in enumerate((*'xyz', *cloud.fields))]
    msg.is_bigendian = False
    msg.point_step = cloud.point_step
    msg.row_step = cloud.point_step * cloud.width
    msg.is_dense = cloud.is_dense
    if cloud.buffer is None:
        _fill(msg.data, cloud.data)
    else:
        msg.data = cloud.buffer  # an array('B') is taken as it is by every distribution's setter
    return msg


def laser_scan(header: Header, frame_id: str, scan: LevelScan,
               settings: ScanSettings) -> LaserScan:
    """Return a LaserScan in a level frame, taken at one moment."""
    msg = LaserScan()
    msg.header.stamp = header.stamp
    msg.header.frame_id = frame_id
    msg.angle_min, msg.angle_max = scan.angle_min, scan.angle_max
    msg.angle_increment = scan.angle_increment
    msg.range_min, msg.range_max = settings.range_min_m, settings.range_max_m
    _fill(msg.ranges, scan.ranges)
    return msg


def level_frame(header: Header, frame_id: str, axes: NDArray[np.float64]) -> TransformStamped:
    """Return the pose in the image's frame of a frame at its origin with these axes as rows."""
    msg = TransformStamped()
    msg.header.stamp = header.stamp
    msg.header.frame_id = header.frame_id
    msg.child_frame_id = frame_id
    x, y, z, w = _quaternion(axes.T)
    turn = msg.transform.rotation
    turn.x, turn.y, turn.z, turn.w = x, y, z, w
    return msg


def _quaternion(rotation: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Return x, y, z, w of a rotation matrix.

    Source: Shepperd, Quaternion from rotation matrix (1978): begins with the largest of the four.
    """
    m, trace = rotation, float(np.trace(rotation))
    largest = int(np.argmax([m[0, 0], m[1, 1], m[2, 2], trace]))
    if largest == 3:
        parts = [m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], 1 + trace]
    else:
        i, j, k = largest, (largest + 1) % 3, (largest + 2) % 3
        parts = [0.0] * 4
        parts[i] = 1 + 2 * m[i, i] - trace
        parts[j], parts[k] = m[i, j] + m[j, i], m[i, k] + m[k, i]
        parts[3] = m[k, j] - m[j, k]
    x, y, z, w = (float(part) / math.hypot(*parts) for part in parts)
    return x, y, z, w


def status(header: Header, frame: DepthFrame, *, camera: str, model: str, backend: str,
           precision: str, device: str, camera_source: str, rectified: bool, input_age_ms: float,
           latency_ms: float, stage_ms: dict[str, float], counters: Snapshot,
           obstacle: Obstacle, notes: Sequence[str]) -> Any:
    """Return the DepthStatus of one frame; only where the message exists."""
    msg = DepthStatus()
    msg.header = header
    msg.camera = camera
    msg.model, msg.backend, msg.precision, msg.device = model, backend, precision, device
    msg.scale_source = frame.scale.source
    msg.scale_state, msg.scale_space = frame.scale.state, frame.scale.space
    msg.scale, msg.shift = float(frame.scale.scale), float(frame.scale.shift)
    msg.scale_uncertainty = float(frame.scale.uncertainty)
    msg.scale_support, msg.scale_age_s = frame.scale.support, float(frame.scale.age_s)
    msg.height, msg.width = frame.depth.shape
    msg.camera_source = camera_source
    msg.rectified = rectified
    msg.valid_share = float(frame.valid_share)
    msg.removed_reasons = list(frame.removed)
    msg.removed_counts = list(frame.removed.values())
    msg.obstacle_basis = obstacle.basis
    msg.obstacle_distance_m = obstacle.distance_m
    msg.obstacle_bearing_rad = obstacle.bearing_rad
    msg.obstacle_height_m = obstacle.height_m
    msg.input_age_ms = input_age_ms if math.isfinite(input_age_ms) else math.nan
    msg.latency_ms = latency_ms
    msg.stage_names = list(stage_ms)
    msg.stage_ms = list(stage_ms.values())
    msg.received, msg.processed = counters.received, counters.processed
    msg.published, msg.dropped_newer = counters.published, counters.dropped_newer
    msg.lost_in_transport = counters.lost_in_transport
    msg.skipped_reasons = list(counters.skipped)
    msg.skipped_counts = list(counters.skipped.values())
    msg.notes = list(notes)
    return msg
