"""From PointCloud2, LaserScan and Range messages to points in the sensor's own frame.

The messages are read by their fields alone, so that they may come from rclpy or from a bag reader.
What a message says about itself is checked before its data is touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Points looked at in one cloud: more cost time and tell no more about one number.
MOST_POINTS = 20_000
# Nearer to the sensor's origin than this is its own housing, or zeros for "no return".
NEAREST_M = 0.01
# Beyond the reach of any sensor; float32 squares stay finite.
FARTHEST_M = 1e5
_FLOATS = {7: 'f4', 8: 'f8'}  # PointField.FLOAT32, FLOAT64
_TYPE_NAMES = {1: 'int8', 2: 'uint8', 3: 'int16', 4: 'uint16', 5: 'int32', 6: 'uint32'}


class MeasurementError(ValueError):
    """A message that contradicts itself or cannot be read; the text says how."""


@dataclass(frozen=True)
class Measured:
    """What one message measured.

    Attributes:
        points: (N, 3) float32 in the sensor's frame, metres, all finite.
        delay_s: (N,) seconds after the header's stamp, or None where all were taken at once.
        offered: measurements in the message, usable or not.
    """

    points: NDArray[np.float32]
    delay_s: NDArray[np.float32] | None
    offered: int


@dataclass(frozen=True)
class RangeReading:
    """The nearest surface within a cone about the sensor's x axis.

    Attributes:
        distance_m: from the sensor's origin.
        half_angle_rad: of the cone.
    """

    distance_m: float
    half_angle_rad: float


@lru_cache(maxsize=8)  # clouds of one sensor are of one size, or of a few
def thinned(count: int, most: int) -> NDArray[np.int64] | None:
    """Return about `most` indices below `count`, evenly spread; None for all of them.

    One is drawn from each of `most` equal parts: a fixed step would meet the same ring or column
    of an organised cloud again and again.
    """
    if count <= most:
        return None
    edges = np.arange(most + 1, dtype=np.int64) * count // most
    draws = np.random.default_rng(0).random(most)
    chosen = edges[:-1] + (draws * (edges[1:] - edges[:-1])).astype(np.int64)
    chosen.flags.writeable = False
    return chosen


def cloud_points(message: Any, most: int = MOST_POINTS) -> Measured:
    """Return the points of a sensor_msgs/PointCloud2.

    Fields x, y and z may stand anywhere in a point, as float32 or float64 of either byte order;
    rows may be padded. Points that are not finite, or at the sensor's origin, are left out.

    Raises:
        MeasurementError: the layout contradicts itself or the length of the data.
    """
    height, width = int(message.height), int(message.width)
    step, count = int(message.point_step), height * width
    fields = {field.name: field for field in message.fields}
    absent = [axis for axis in 'xyz' if axis not in fields]
    if absent:
        raise MeasurementError(f'PointCloud2 without field {", ".join(absent)}; it has '
                               f'{", ".join(fields) or "none"}')
    if count == 0:
        return Measured(np.empty((0, 3), np.float32), None, 0)
    layout = []
    for axis in 'xyz':
        field = fields[axis]
        kind = _FLOATS.get(int(field.datatype))
        if kind is None:
            found = _TYPE_NAMES.get(int(field.datatype), f'of datatype {field.datatype}')
            raise MeasurementError(f'PointCloud2 field {axis} is {found}, expected float32 or '
                                   'float64')
        if int(field.count) > 1:
            raise MeasurementError(f'PointCloud2 field {axis} has {field.count} values a point, '
                                   'expected 1')
        dtype = np.dtype(kind).newbyteorder('>' if message.is_bigendian else '<')
        if int(field.offset) + dtype.itemsize > step:
            raise MeasurementError(f'PointCloud2 field {axis} ends at byte '
                                   f'{int(field.offset) + dtype.itemsize} of a point of {step}')
        layout.append((dtype, int(field.offset)))
    row = int(message.row_step) if height > 1 else width * step
    if row < width * step:
        raise MeasurementError(f'PointCloud2 row_step {row}, expected at least width {width} x '
                               f'point_step {step}')
    needed = (height - 1) * row + width * step
    if len(message.data) < needed:
        raise MeasurementError(f'PointCloud2 has {len(message.data)} bytes of data, its size '
                               f'{height} x {width} needs {needed}')
    data = np.frombuffer(message.data, np.uint8)
    chosen = thinned(count, most)
    packed = row == width * step
    index: Any = chosen if packed or chosen is None else np.divmod(chosen, width)
    points = np.empty((3, count if chosen is None else len(chosen)), np.float32)
    with np.errstate(over='ignore', invalid='ignore'):  # float64 beyond float32 becomes Inf
        for number, (dtype, offset) in enumerate(layout):
            values: NDArray[Any] = (
                np.ndarray((count,), dtype, data, offset, (step,)) if packed
                else np.ndarray((height, width), dtype, data, offset, (row, step)))
            points[number] = values.reshape(-1) if index is None else values[index]
        reach = np.maximum(np.maximum(np.abs(points[0]), np.abs(points[1])), np.abs(points[2]))
        # NaN compares false
        good = (reach >= NEAREST_M) & (reach <= FARTHEST_M)
    return Measured(np.ascontiguousarray(points[:, good].T), None, count)


def scan_points(message: Any) -> Measured:
    """Return the end points of the beams of a sensor_msgs/LaserScan.

    Left out: NaN, Inf (nothing hit; REP 117), zeros, and ranges outside of range_min to range_max;
    range_max itself, which many drivers send for "nothing hit", counts as outside.

    Raises:
        MeasurementError: angles or times that are no numbers.
    """
    ranges = np.asarray(message.ranges, np.float32)
    first, step = float(message.angle_min), float(message.angle_increment)
    wait = float(message.time_increment)
    if not (math.isfinite(first) and math.isfinite(step) and math.isfinite(wait)):
        raise MeasurementError(f'LaserScan has angle_min {first}, angle_increment {step}, '
                               f'time_increment {wait}: expected finite numbers')
    if step == 0.0 and len(ranges) > 1:
        raise MeasurementError(f'LaserScan has angle_increment 0 with {len(ranges)} beams')
    low, high = float(message.range_min), float(message.range_max)
    good = np.isfinite(ranges) & (ranges >= NEAREST_M) & (ranges <= FARTHEST_M)
    if math.isfinite(low):
        good &= ranges >= low
    if math.isfinite(high) and high > max(low, 0.0):  # some drivers leave it zero
        good &= ranges < high
    index = np.flatnonzero(good)
    angle = first + step * index
    distance = ranges[index]
    points = np.zeros((len(index), 3), np.float32)
    points[:, 0] = distance * np.cos(angle)
    points[:, 1] = distance * np.sin(angle)
    delay = (wait * index).astype(np.float32) if wait else None
    return Measured(points, delay, len(ranges))


def range_reading(message: Any) -> RangeReading | None:
    """Return what a sensor_msgs/Range measured; None where nothing was in reach.

    Raises:
        MeasurementError: a fixed-distance detector, or a cone that is none.
    """
    distance, angle = float(message.range), float(message.field_of_view)
    low, high = float(message.min_range), float(message.max_range)
    if math.isfinite(low) and low == high and low > 0:
        raise MeasurementError(f'Range of a fixed-distance detector (min_range = max_range = '
                               f'{low:g} m) measures no distance')
    if not 0.0 <= angle < math.pi:
        raise MeasurementError(f'Range field_of_view {angle} rad, expected 0 to 3.14')
    if not (math.isfinite(distance) and NEAREST_M <= distance <= FARTHEST_M):
        return None
    if math.isfinite(low) and distance < low:
        return None
    if math.isfinite(high) and high > max(low, 0.0) and distance >= high:
        return None
    return RangeReading(distance, 0.5 * angle)
