"""How the camera hangs: from TF, gravity or numbers, against SciPy's rotations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import dataclasses
import math
import sys
import time
from typing import Any

import numpy as np
import pytest

pytest.importorskip('rclpy')

from builtin_interfaces.msg import Time
from depth_node.ros.mount import STANDARD_GRAVITY, Gravity, MountSource
from depth_node.ros.parameters import Parameters
from depth_node.ros.transforms import Transforms
from geometry_msgs.msg import TransformStamped
import rclpy
from sensor_msgs.msg import Imu
from std_msgs.msg import Header
import tf_stand_in

Rotation = pytest.importorskip('scipy.spatial.transform').Rotation

HEADER = Header(frame_id='cam_optical_frame', stamp=Time(sec=100))
PITCH, ROLL, YAW, HEIGHT = 12.0, -7.0, 40.0, 0.83
# columns: right, down and forward of the optical frame in the body's axes (REP 103)
OPTICAL_IN_BODY = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])


def body() -> Any:
    """Return the rotation from a camera's body to a level frame, z up."""
    return Rotation.from_euler('xyz', [ROLL, PITCH, YAW], degrees=True)


def with_mount(**changes: Any) -> Parameters:
    base = Parameters()
    return dataclasses.replace(base, mount=dataclasses.replace(base.mount, **changes))


Made = tuple[MountSource, Transforms, Callable[..., None]]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    monkeypatch.setitem(sys.modules, 'tf2_ros', tf_stand_in.module())
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node('hangs', context=context)
    transforms = Transforms(node)
    transforms.listen()
    transforms._since -= 10  # not just begun

    def put(parent: str, child: str, rotation: Any, place: Any, sec: int | None = None) -> None:
        message = TransformStamped()
        message.header.frame_id, message.child_frame_id = parent, child
        turn, move = message.transform.rotation, message.transform.translation
        turn.x, turn.y, turn.z, turn.w = map(float, rotation.as_quat())
        move.x, move.y, move.z = map(float, place)
        if sec is None:
            transforms._buffer.set_transform_static(message, '')
        else:
            message.header.stamp = Time(sec=sec)
            transforms._buffer.set_transform(message, '')

    source = MountSource(node, transforms, '/imu', on_mismatch=lambda *_: None)
    yield source, transforms, put
    source.destroy()
    node.destroy_node()
    rclpy.shutdown(context=context)


def imu(acceleration: Any, rate: Any = (0.0, 0.0, 0.0), *, sec: int = 100,
        frame: str = 'imu_link') -> Imu:
    message = Imu()
    message.header.frame_id, message.header.stamp = frame, Time(sec=sec)
    force, turn = message.linear_acceleration, message.angular_velocity
    force.x, force.y, force.z = map(float, acceleration)
    turn.x, turn.y, turn.z = map(float, rate)
    return message


def test_numbers(made: Made) -> None:
    found = made[0].find(HEADER, with_mount(height_m=HEIGHT, pitch_deg=PITCH, roll_deg=ROLL))
    assert (found.source, found.problem) == ('parameters', 'mount.imu_topic /imu: no message yet')
    assert found.mount is not None
    up = body().inv().apply([0, 0, 1]) @ OPTICAL_IN_BODY
    assert found.mount.up == pytest.approx(tuple(up), abs=1e-12)
    assert found.mount.height_m == HEIGHT


def test_tf_gives_height_and_tilt_whatever_the_heading(made: Made) -> None:
    source, _, put = made
    optical = body() * Rotation.from_matrix(OPTICAL_IN_BODY)
    put('base_footprint', 'cam_optical_frame', optical, (3, -4, HEIGHT))
    found = source.find(HEADER, with_mount(frame='base_footprint', height_m=9.0))
    assert (found.source, found.problem) == ('tf', '')
    assert found.mount is not None
    assert found.mount.height_m == HEIGHT
    assert found.mount.up == pytest.approx(
        tuple(body().inv().apply([0, 0, 1]) @ OPTICAL_IN_BODY), abs=1e-9)
    facts = source.facts()
    assert (facts['source'], facts['height_m']) == ('tf', '0.830')
    assert (float(facts['pitch_deg']), float(facts['roll_deg'])) == pytest.approx((PITCH, ROLL))


def test_tf_that_is_a_little_late_is_used_and_very_late_not(made: Made) -> None:
    source, _, put = made
    put('base', 'cam_optical_frame', body(), (0, 0, 1), sec=99)
    wanted = with_mount(frame='base', height_m=0.4)
    assert source.find(HEADER, wanted).source == 'tf'
    late = Header(frame_id='cam_optical_frame', stamp=Time(sec=102))
    found = source.find(late, wanted)
    assert (found.source, found.mount.height_m) == ('parameters', 0.4)
    assert 'not at the time' in found.problem


def test_camera_below_its_floor_is_refused(made: Made) -> None:
    source, _, put = made
    put('map', 'cam_optical_frame', body(), (0, 0, -0.5))
    found = source.find(HEADER, with_mount(frame='map'))
    assert found.mount is None
    assert 'must lie on the floor' in found.problem


def test_nothing_given(made: Made) -> None:
    source, transforms, _ = made
    found = source.find(HEADER, with_mount())
    assert (found.mount, found.source) == (None, 'none')
    assert 'no message yet' in found.problem
    found = MountSource(transforms._node, transforms, '', on_mismatch=lambda *_: None).find(
        HEADER, with_mount())
    assert 'set mount.frame, or mount.height_m' in found.problem


def gravity_in(frame_to_level: Any) -> Any:
    """Return what an accelerometer at rest reads, whose frame is turned so (REP 145)."""
    return frame_to_level.inv().apply([0, 0, STANDARD_GRAVITY])


def test_imu_of_the_cameras_body(made: Made) -> None:
    source, _, _ = made
    source._on_imu(imu(gravity_in(body())))
    found = source.find(HEADER, with_mount(height_m=HEIGHT, pitch_deg=-30.0))
    assert (found.source, found.problem) == ('imu', '')
    assert found.mount is not None
    assert found.mount.height_m == HEIGHT
    assert found.mount.up == pytest.approx(
        tuple(body().inv().apply([0, 0, 1]) @ OPTICAL_IN_BODY), abs=1e-9)
    assert source.facts()['imu_axes'].startswith("assumed: of the camera's body")


def test_imu_in_optical_axes(made: Made) -> None:
    source, _, _ = made
    up = body().inv().apply([0, 0, 1]) @ OPTICAL_IN_BODY
    for frame, axes in (('cam_optical_frame', 'of the image'),
                        ('camera_imu_optical_frame', 'assumed: of the optical frame')):
        source._on_imu(imu(STANDARD_GRAVITY * up, frame=frame))
        found = source.find(HEADER, with_mount())
        assert found.mount is not None
        assert found.mount.up == pytest.approx(tuple(up), abs=1e-9)
        assert math.isnan(found.mount.height_m)
        assert source.facts()['imu_axes'] == axes


def test_imu_elsewhere_goes_through_tf(made: Made) -> None:
    source, _, put = made
    mounted = Rotation.from_euler('xyz', [20, -80, 130], degrees=True)  # IMU in the optical frame
    up = body().inv().apply([0, 0, 1]) @ OPTICAL_IN_BODY
    put('cam_optical_frame', 'imu_link', mounted, (1, 2, 3))
    source._on_imu(imu(STANDARD_GRAVITY * mounted.inv().apply(up)))
    found = source.find(HEADER, with_mount(height_m=HEIGHT))
    assert found.mount is not None
    assert found.mount.up == pytest.approx(tuple(up), abs=1e-9)
    assert source.facts()['imu_axes'] == 'TF'


def test_imu_waits_for_tf_that_has_just_begun(made: Made) -> None:
    source, transforms, _ = made
    transforms._since = time.monotonic()
    source._on_imu(imu(gravity_in(body())))
    found = source.find(HEADER, with_mount(height_m=HEIGHT))
    assert found.source == 'parameters'
    assert 'does not connect' in found.problem


def test_imu_without_acceleration(made: Made) -> None:
    source, _, _ = made
    message = imu((0, 0, 0))
    message.linear_acceleration_covariance[0] = -1.0
    source._on_imu(message)
    assert 'measures no acceleration' in source.find(HEADER, with_mount()).problem


def test_imu_that_falls_silent(made: Made) -> None:
    source, _, _ = made
    source._on_imu(imu(gravity_in(body())))
    frame, up, problem, heard = source._newest
    source._newest = frame, up, problem, heard - 3.0
    found = source.find(HEADER, with_mount(height_m=HEIGHT))
    assert found.source == 'parameters'
    assert 'silent for 3 s' in found.problem


@pytest.mark.parametrize(('acceleration', 'said'), [
    ((0, 0, 1.0), 'in units of g'), ((0, 0, 0.1), 'gravity removed'),
    ((0, 0, 15.0), 'length 15.00'), ((math.nan, 0, 9.8), 'length nan')])
def test_acceleration_that_is_not_gravity(acceleration: Any, said: str) -> None:
    gravity = Gravity()
    gravity.add(np.array(acceleration, float), None, 1.0)
    assert gravity.up is None
    assert said in gravity.problem


def fed(rate: Any, seconds: float, *, gyro: bool) -> tuple[Any, Any]:
    """Return the filter's direction and the true one after a turn at a constant rate."""
    gravity, turned = Gravity(), Rotation.identity()
    step = 0.005
    for index in range(round(seconds / step) + 1):
        turned = Rotation.from_rotvec(np.asarray(rate) * step * index)
        gravity.add(gravity_in(turned), np.asarray(rate, float) if gyro else None, step * index)
    assert gravity.up is not None
    return gravity.up, gravity_in(turned) / STANDARD_GRAVITY


def angle_deg(one: Any, other: Any) -> float:
    return math.degrees(math.acos(min(1.0, float(np.dot(one, other)))))


def test_gyroscope_carries_the_direction_through_a_turn() -> None:
    rate = (0.5, -0.3, 0.2)
    up, true = fed(rate, 2.0, gyro=True)
    assert angle_deg(up, true) < 0.2
    up, true = fed(rate, 2.0, gyro=False)
    assert angle_deg(up, true) > 5, 'the low-pass alone lags behind'


def test_low_pass_follows_a_step_with_its_time_constant() -> None:
    gravity, step = Gravity(), 0.01
    tilt = math.radians(2)
    gravity.add(np.array([0, 0, STANDARD_GRAVITY]), None, 0.0)
    for index in range(1, 51):  # one time constant
        gravity.add(STANDARD_GRAVITY * np.array([math.sin(tilt), 0, math.cos(tilt)]), None,
                    step * index)
    assert gravity.up is not None
    assert math.asin(gravity.up[0]) == pytest.approx(tilt * (1 - math.exp(-1)), rel=0.01)


def test_jolts_do_not_count_and_a_gap_begins_anew() -> None:
    gravity = Gravity()
    gravity.add(np.array([0, 0, STANDARD_GRAVITY]), None, 0.0)
    gravity.add(np.array([25.0, 0, 9.8]), None, 0.1)
    assert gravity.up == pytest.approx(np.array([0, 0, 1]))
    for stamp in (5.0, 1.0):  # a gap, then time that runs backwards
        gravity.add(np.array([STANDARD_GRAVITY, 0, 0]), None, stamp)
        assert gravity.up == pytest.approx(np.array([1, 0, 0]))
        gravity.add(np.array([0, 0, STANDARD_GRAVITY]), None, stamp + 1.0)
        assert gravity.up == pytest.approx(np.array([0, 0, 1]))


def test_opposite_readings_begin_anew() -> None:
    gravity = Gravity()
    gravity.add(np.array([0, 0, STANDARD_GRAVITY]), None, 0.0)
    gravity.add(np.array([0, 0, -STANDARD_GRAVITY]), None, 0.5 * math.log(2))
    assert gravity.up is None
    assert 'contradict' in gravity.problem
    gravity.add(np.array([0, 0, -STANDARD_GRAVITY]), None, 0.4)
    assert gravity.up == pytest.approx(np.array([0, 0, -1]))
