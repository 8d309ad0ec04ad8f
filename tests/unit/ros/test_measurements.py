"""Points from sensor messages, against readers of their own, and messages that lie."""

from __future__ import annotations

from array import array
import math
import struct
from types import SimpleNamespace
from typing import Any

from depth_node.ros import measurements
from depth_node.ros.measurements import (
    MeasurementError,
    cloud_points,
    range_reading,
    scan_points,
    thinned,
)
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

FLOAT32, FLOAT64 = 7, 8


def field(name: str, offset: int, datatype: int = FLOAT32, count: int = 1) -> Any:
    return SimpleNamespace(name=name, offset=offset, datatype=datatype, count=count)


def cloud(points: Any, *, fields: Any = None, step: int = 16, padding: int = 0,
          bigendian: bool = False, **changes: Any) -> Any:
    """Return a PointCloud2 packed value by value with struct; points are (height, width, 3)."""
    points = np.asarray(points, float)
    fields = fields or [field(axis, 4 * index) for index, axis in enumerate('xyz')]
    order = '>' if bigendian else '<'
    data = bytearray()
    for row in points:
        for point in row:
            slot = bytearray(b'\xa5' * step)
            for value, axis in zip(point, 'xyz', strict=True):
                item = next(entry for entry in fields if entry.name == axis)
                struct.pack_into(order + {FLOAT32: 'f', FLOAT64: 'd'}[item.datatype], slot,
                                 item.offset, value)
            data += slot
        data += b'\x5a' * padding
    message = SimpleNamespace(
        height=points.shape[0], width=points.shape[1], fields=fields, is_bigendian=bigendian,
        point_step=step, row_step=points.shape[1] * step + padding, is_dense=False,
        data=array('B', bytes(data)))
    vars(message).update(changes)
    return message


LAYOUTS = {
    'plain': {},
    'unordered': dict(fields=[field('intensity', 0), field('z', 4), field('x', 12),
                              field('y', 20)], step=24),
    'unaligned': dict(fields=[field('x', 1), field('y', 5), field('z', 9)], step=13),
    'mixed': dict(fields=[field('x', 0, FLOAT64), field('y', 8), field('z', 12, FLOAT64)],
                  step=22),
    'big_endian': dict(bigendian=True),
    'big_endian_64': dict(bigendian=True, step=32, fields=[
        field('x', 0, FLOAT64), field('y', 8, FLOAT64), field('z', 16, FLOAT64)]),
    'padded_rows': dict(padding=7),
    'count_zero': dict(fields=[field(axis, 4 * i, count=0) for i, axis in enumerate('xyz')]),
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_every_layout_gives_the_same_points(layout: str) -> None:
    points = np.random.default_rng(1).normal(size=(3, 5, 3)).astype(np.float32)
    found = cloud_points(cloud(points, **LAYOUTS[layout]))
    assert found.points == pytest.approx(points.reshape(-1, 3))
    assert found.points.dtype == np.float32
    assert (found.offered, found.delay_s) == (15, None)


def test_points_that_measured_nothing_are_left_out() -> None:
    nan, inf = math.nan, math.inf
    points = [[[1, 2, 3], [nan, 2, 3], [1, inf, 3], [1, 2, -inf], [0, 0, 0], [0.001, 0, 0.002],
               [0, -0.02, 0], [1e7, 0, 1]]]
    found = cloud_points(cloud(points))
    assert found.points.tolist() == pytest.approx(np.array([[1, 2, 3], [0, -0.02, 0]]))
    assert found.offered == 8
    huge = cloud([[[1e300, 0, 1], [1, 2, 3]]], step=24, fields=[
        field(axis, 8 * index, FLOAT64) for index, axis in enumerate('xyz')])
    assert cloud_points(huge).points.tolist() == [[1, 2, 3]]


def test_row_step_of_a_single_row_does_not_count() -> None:
    assert len(cloud_points(cloud([[[1, 2, 3], [4, 5, 6]]], row_step=0)).points) == 2


def test_empty_cloud() -> None:
    found = cloud_points(cloud(np.zeros((1, 0, 3))))
    assert (len(found.points), found.offered) == (0, 0)


@pytest.mark.parametrize(('changes', 'said'), [
    (dict(fields=[field('x', 0), field('depth', 4)]), 'without field y, z; it has x, depth'),
    (dict(fields=[field('x', 0), field('y', 4), field('z', 8, 5)]), 'field z is int32'),
    (dict(fields=[field('x', 0), field('y', 4), field('z', 8, 77)]), 'of datatype 77'),
    (dict(fields=[field('x', 0, count=3), field('y', 4), field('z', 8)]), '3 values a point'),
    (dict(fields=[field('x', 0), field('y', 4), field('z', 14)]), 'ends at byte 18 of a point'),
    (dict(point_step=0), 'ends at byte 4 of a point of 0'),
    (dict(height=2, row_step=47), 'row_step 47, expected at least width 3 x point_step 16'),
    (dict(width=4), '48 bytes of data, its size 1 x 4 needs 64'),
    (dict(height=2, row_step=48), 'needs 96'),
    (dict(height=2**31, row_step=2**32 - 1), 'needs'),
    (dict(data=array('B')), 'has 0 bytes'),
])
def test_cloud_that_lies_is_refused_with_the_reason(changes: dict[str, Any], said: str) -> None:
    message = cloud([[[1, 2, 3]] * 3])
    vars(message).update(changes)
    with pytest.raises(MeasurementError, match=said):
        cloud_points(message)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_hostile_cloud_is_read_or_refused(data: st.DataObject) -> None:
    size = st.one_of(st.integers(0, 9), st.sampled_from([2**16, 2**31, 2**32 - 1]))
    byte = st.one_of(st.integers(0, 40), st.sampled_from([2**31, 2**32 - 1]))
    message = SimpleNamespace(
        height=data.draw(size), width=data.draw(size), point_step=data.draw(byte),
        row_step=data.draw(byte), is_bigendian=data.draw(st.booleans()), is_dense=True,
        data=array('B', data.draw(st.binary(max_size=200))),
        fields=[field(name, data.draw(byte), data.draw(st.integers(0, 12)),
                      data.draw(st.integers(0, 2))) for name in data.draw(
                          st.sampled_from(['xyz', 'zyxw', 'xy', 'xxyz', '']))])
    try:
        found = cloud_points(message, most=10)
    except MeasurementError:
        return
    assert found.points.shape[1] == 3
    assert len(found.points) <= 10
    assert np.isfinite(found.points).all()
    # what was accepted fits into the data
    assert message.width * message.height == 0 or (
        (message.height - 1) * (message.row_step if message.height > 1 else 0)
        + message.width * message.point_step <= len(message.data))


def test_huge_cloud_is_thinned_evenly() -> None:
    rings, columns = 16, 1000
    points = np.zeros((columns, rings, 3), np.float32)
    points[..., 0] = 1 + np.arange(rings)
    points[..., 1] = np.arange(columns)[:, None]
    message = cloud(points[:1])
    message.height, message.data = columns, array('B', np.pad(
        points, ((0, 0), (0, 0), (0, 1))).tobytes())
    found = cloud_points(message, most=1000)
    assert len(found.points) == 1000
    assert found.offered == 16000
    per_ring = np.bincount(found.points[:, 0].astype(int), minlength=rings + 1)[1:]
    assert per_ring.min() > 30, 'a step of 16 would have met one ring only'
    assert np.diff(found.points[:, 1]).max() <= 2


def test_thinned_cloud_with_padded_rows_keeps_its_points_whole() -> None:
    points = np.arange(3 * 7 * 5).reshape(5, 7, 3) + 1.0
    found = cloud_points(cloud(points, padding=9), most=6)
    assert len(found.points) == 6
    rows = found.points[:, 0].astype(int)
    assert (found.points == np.stack([rows, rows + 1, rows + 2], 1)).all()
    assert (rows % 3 == 1).all()
    assert (np.diff(rows) > 0).all()


@settings(deadline=None)
@given(st.integers(0, 5000), st.integers(1, 300))
def test_thinned_draws_one_of_each_part(count: int, most: int) -> None:
    chosen = thinned(count, most)
    if count <= most:
        assert chosen is None
        return
    assert chosen is not None
    assert len(np.unique(chosen)) == most
    bounds = [part * count // most for part in range(most + 1)]
    assert all(low <= item < high for item, low, high in zip(
        chosen, bounds, bounds[1:], strict=False))


def scan(ranges: Any, **changes: Any) -> Any:
    message = SimpleNamespace(
        angle_min=-0.5, angle_increment=0.25, time_increment=0.0, range_min=0.1, range_max=10.0,
        ranges=array('f', ranges))
    vars(message).update(changes)
    return message


def test_scan_points_lie_at_their_angles() -> None:
    found = scan_points(scan([1.0, 2.0, 3.0, 4.0], time_increment=0.001))
    expected = [(r * math.cos(a), r * math.sin(a), 0.0) for r, a in (
        (1, -0.5), (2, -0.25), (3, 0.0), (4, 0.25))]
    assert found.points == pytest.approx(np.array(expected))
    assert found.delay_s == pytest.approx(np.array([0, 0.001, 0.002, 0.003]))
    backwards = scan_points(scan([1.0, 2.0], angle_min=0.5, angle_increment=-0.25))
    assert backwards.points[1] == pytest.approx((2 * math.cos(0.25), 2 * math.sin(0.25), 0))
    assert backwards.delay_s is None


def test_scan_leaves_out_what_hit_nothing_and_keeps_the_angles_of_the_rest() -> None:
    nan, inf = math.nan, math.inf
    found = scan_points(scan([nan, inf, -inf, 0.0, 0.05, 10.0, 12.0, 5.0, -2.0],
                             time_increment=0.01))
    assert found.points == pytest.approx(np.array(
        [[5 * math.cos(1.25), 5 * math.sin(1.25), 0]]))
    assert found.delay_s == pytest.approx(np.array([0.07]))
    assert found.offered == 9


@pytest.mark.parametrize('limits', [
    dict(range_min=0.0, range_max=0.0), dict(range_min=math.nan, range_max=math.nan),
    dict(range_min=5.0, range_max=5.0), dict(range_min=0.0, range_max=math.inf)])
def test_limits_that_leave_nothing_do_not_count(limits: dict[str, float]) -> None:
    assert len(scan_points(scan([0.0, 7.0, math.inf], **limits)).points) == 1


@pytest.mark.parametrize('changes', [
    dict(angle_min=math.nan), dict(angle_increment=math.inf), dict(angle_increment=0.0),
    dict(time_increment=math.nan)])
def test_scan_that_lies_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(MeasurementError, match='LaserScan'):
        scan_points(scan([1.0, 2.0], **changes))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(width=32), max_size=20), st.floats(width=32), st.floats(width=32),
       st.floats(width=32), st.floats(width=32), st.floats(width=32))
def test_hostile_scan_is_read_or_refused(ranges: list[float], first: float, step: float,
                                         wait: float, low: float, high: float) -> None:
    message = scan(ranges, angle_min=first, angle_increment=step, time_increment=wait,
                   range_min=low, range_max=high)
    try:
        found = scan_points(message)
    except MeasurementError:
        return
    assert np.isfinite(found.points).all()
    assert len(found.points) <= len(ranges)


def reading(**changes: Any) -> Any:
    message = SimpleNamespace(range=1.5, field_of_view=0.4, min_range=0.2, max_range=4.0)
    vars(message).update(changes)
    return message


def test_range_is_the_nearest_surface_in_a_cone() -> None:
    found = range_reading(reading())
    assert found is not None
    assert (found.distance_m, found.half_angle_rad) == (1.5, 0.2)


@pytest.mark.parametrize('changes', [
    dict(range=math.inf), dict(range=-math.inf), dict(range=math.nan), dict(range=0.0),
    dict(range=0.1), dict(range=4.0), dict(range=5.0), dict(range=-1.0)])
def test_range_out_of_reach_is_no_measurement(changes: dict[str, float]) -> None:
    assert range_reading(reading(**changes)) is None


def test_range_without_limits_counts() -> None:
    assert range_reading(reading(min_range=0.0, max_range=0.0)) is not None


@pytest.mark.parametrize(('changes', 'said'), [
    (dict(min_range=2.0, max_range=2.0), 'fixed-distance'),
    (dict(field_of_view=-0.1), 'field_of_view'), (dict(field_of_view=4.0), 'field_of_view'),
    (dict(field_of_view=math.nan), 'field_of_view')])
def test_range_that_measures_no_distance_is_refused(changes: dict[str, float],
                                                    said: str) -> None:
    with pytest.raises(MeasurementError, match=said):
        range_reading(reading(**changes))


def test_messages_of_rclpy_and_of_a_bag_reader_are_read_alike() -> None:
    pytest.importorskip('sensor_msgs')
    from sensor_msgs.msg import LaserScan, PointCloud2, PointField, Range

    plain = cloud([[[1, 2, 3], [4, 5, 6]]])
    message = PointCloud2(height=1, width=2, point_step=16, row_step=32, fields=[
        PointField(name=item.name, offset=item.offset, datatype=item.datatype, count=1)
        for item in plain.fields])
    message.data.frombytes(plain.data.tobytes())
    assert (cloud_points(message).points == cloud_points(plain).points).all()
    plain.data = np.asarray(plain.data)
    assert (cloud_points(message).points == cloud_points(plain).points).all()
    laser = LaserScan(angle_increment=0.1, range_max=9.0, ranges=[1.0, 2.0])
    assert len(scan_points(laser).points) == 2
    assert range_reading(Range(range=1.0, field_of_view=0.2, max_range=4.0)) is not None
    assert measurements._FLOATS == {PointField.FLOAT32: 'f4', PointField.FLOAT64: 'f8'}
