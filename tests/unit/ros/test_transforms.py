"""Poses against SciPy, and TF: a stand-in always, the real tf2_ros where it is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import math
import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip('rclpy')

from builtin_interfaces.msg import Time
from depth_node.ros.transforms import NO_TF2, Pose, TransformError, Transforms
from geometry_msgs.msg import TransformStamped
from hypothesis import given, settings
from hypothesis import strategies as st
import rclpy
import tf_stand_in

angles = st.floats(-7, 7)


@settings(deadline=None)  # the first one imports SciPy
@given(angles, angles, angles)
def test_roll_pitch_yaw_turn_about_fixed_axes(roll: float, pitch: float, yaw: float) -> None:
    spatial = pytest.importorskip('scipy.spatial.transform')
    pose = Pose.from_rpy(1.0, 2.0, 3.0, roll, pitch, yaw)
    # lower-case letters are SciPy's fixed axes
    expected = spatial.Rotation.from_euler('xyz', [roll, pitch, yaw]).as_matrix()
    assert pose.rotation == pytest.approx(expected, abs=1e-12)
    assert pose.translation.tolist() == [1, 2, 3]


@settings(deadline=None)
@given(st.lists(st.floats(-2, 2), min_size=4, max_size=4).filter(
    lambda q: np.linalg.norm(q) > 0.01))
def test_quaternion_of_any_length(xyzw: list[float]) -> None:
    spatial = pytest.importorskip('scipy.spatial.transform')
    pose = Pose.from_quaternion(xyzw, (0, 0, 0))
    assert pose.rotation == pytest.approx(spatial.Rotation.from_quat(xyzw).as_matrix(), abs=1e-9)


@pytest.mark.parametrize('xyzw', [(0, 0, 0, 0), (math.nan, 0, 0, 1), (math.inf, 0, 0, 1)])
def test_quaternion_that_is_none(xyzw: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match='no rotation'):
        Pose.from_quaternion(xyzw, (0, 0, 0))


def test_translation_that_is_none() -> None:
    with pytest.raises(ValueError, match='not finite'):
        Pose.from_rpy(math.nan, 0, 0, 0, 0, 0)


def test_points_are_turned_then_moved() -> None:
    # yaw of 90 degrees: the source's x axis is the target's y axis
    pose = Pose.from_rpy(10.0, 20.0, 30.0, 0.0, 0.0, math.pi / 2)
    points = np.array([[1, 0, 0], [0, 2, 0], [0, 0, 3]], np.float32)
    moved = pose.apply(points)
    assert moved == pytest.approx(np.array([[10, 21, 30], [8, 20, 30], [10, 20, 33]]), abs=1e-5)
    assert moved.dtype == np.float32


@pytest.fixture
def node() -> Iterator[Any]:
    context = rclpy.Context()
    rclpy.init(context=context)
    made = rclpy.create_node('listens', context=context)
    yield made
    made.destroy_node()
    rclpy.shutdown(context=context)


@pytest.fixture(params=['stand_in', 'real'])
def tf(request: pytest.FixtureRequest, node: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give Transforms that listen, and what puts a transform into them."""
    if request.param == 'stand_in':
        monkeypatch.setitem(sys.modules, 'tf2_ros', tf_stand_in.module())
    else:
        pytest.importorskip('tf2_ros')
    made = Transforms(node)
    made.listen()

    def put(parent: str, child: str, x: float, sec: int | None = None,
            xyzw: tuple[float, ...] = (0.0, 0.0, 0.0, 1.0)) -> None:
        message = TransformStamped()
        message.header.frame_id, message.child_frame_id = parent, child
        message.transform.translation.x = x
        turn = message.transform.rotation
        turn.x, turn.y, turn.z, turn.w = xyzw
        if sec is None:
            made._buffer.set_transform_static(message, 'test')
        else:
            message.header.stamp = Time(sec=sec)
            made._buffer.set_transform(message, 'test')

    yield made, put
    made.destroy()


Put = Callable[..., None]


def test_static_transform_holds_at_any_time(tf: tuple[Transforms, Put]) -> None:
    transforms, put = tf
    half = math.sqrt(0.5)
    put('cam', 'lidar', 0.5, xyzw=(0.0, 0.0, half, half))
    for sec in (0, 5, 2_000_000_000):
        pose = transforms.pose('cam', 'lidar', Time(sec=sec))
        assert pose.apply(np.array([[1, 0, 0]], np.float32)) == pytest.approx(
            np.array([[0.5, 1, 0]]), abs=1e-6)
    assert transforms.pose('/cam', '/lidar', Time()).translation[0] == 0.5
    transforms.forget()
    assert transforms.pose('cam', 'lidar', Time()).translation[0] == 0.5


def test_time_that_tf_does_not_have(tf: tuple[Transforms, Put]) -> None:
    transforms, put = tf
    put('base', 'cam', 1.0, sec=100)
    assert transforms.pose('base', 'cam', Time(sec=100)).translation[0] == 1.0
    with pytest.raises(TransformError, match='not at the time of the message') as caught:
        transforms.pose('base', 'cam', Time(sec=100, nanosec=1))
    assert caught.value.known
    later = Time(sec=102)
    assert transforms.pose('base', 'cam', later, newest_within_s=2.0).translation[0] == 1.0
    with pytest.raises(TransformError, match='not at the time'):
        transforms.pose('base', 'cam', later, newest_within_s=1.9)


def test_what_moves_is_forgotten(tf: tuple[Transforms, Put]) -> None:
    transforms, put = tf
    put('base', 'cam', 1.0, sec=100)
    transforms.forget()
    with pytest.raises(TransformError):
        transforms.pose('base', 'cam', Time(sec=100))


def test_frames_that_tf_does_not_know(tf: tuple[Transforms, Put]) -> None:
    transforms, put = tf
    put('base', 'cam', 1.0)
    with pytest.raises(TransformError, match=r"does not connect 'nose' with 'cam'.*publish") as c:
        transforms.pose('cam', 'nose', Time())
    assert not c.value.known


@pytest.mark.parametrize('tf', ['stand_in'], indirect=True)  # tf2 itself drops such a message
def test_transform_without_rotation(tf: tuple[Transforms, Put]) -> None:
    transforms, put = tf
    put('base', 'cam', 1.0, xyzw=(0.0, 0.0, 0.0, 0.0))
    with pytest.raises(TransformError, match='no rotation'):
        transforms.pose('base', 'cam', Time())


def test_same_frame_needs_no_tf(node: Any) -> None:
    pose = Transforms(node).pose('cam', '/cam', Time())
    assert (pose.rotation == np.eye(3)).all()
    assert not pose.translation.any()


@pytest.mark.parametrize(('target', 'source', 'said'), [
    ('', 'lidar', 'the image has no frame_id'), ('cam', '', 'the measurement has no frame_id')])
def test_missing_frame_id(node: Any, target: str, source: str, said: str) -> None:
    with pytest.raises(TransformError, match=said):
        Transforms(node).pose(target, source, Time())


def test_machine_without_tf2_ros(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'tf2_ros', None)
    transforms = Transforms(node)
    with pytest.raises(TransformError, match='nobody listens'):
        transforms.pose('cam', 'lidar', Time())
    transforms.listen()
    assert not transforms.starting
    assert transforms.missing == NO_TF2
    with pytest.raises(TransformError, match='tf2_ros is not installed'):
        transforms.pose('cam', 'lidar', Time())
    transforms.forget()
    transforms.destroy()


def test_listening_begins_once_and_ends(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'tf2_ros', tf_stand_in.module())
    transforms = Transforms(node)
    transforms.listen()
    first = transforms._buffer
    assert transforms.starting
    transforms.listen()
    assert transforms._buffer is first
    transforms.destroy()
    assert not transforms.starting
    with pytest.raises(TransformError, match='nobody listens'):
        transforms.pose('cam', 'lidar', Time())
