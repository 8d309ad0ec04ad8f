"""How a camera hangs above the floor: from TF, from an IMU's gravity, or from parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import math
import time
from typing import Any

from depth_node.ground import Mount
from depth_node.ros import settings
from depth_node.ros.measurement_topic import MeasurementTopic
from depth_node.ros.messages import stamp_s
from depth_node.ros.parameters import Parameters
from depth_node.ros.transforms import Pose, TransformError, Transforms
import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Imu
from std_msgs.msg import Header

STANDARD_GRAVITY = 9.80665  # m/s^2
# An accelerometer whose reading is this near to gravity is hardly accelerated by anything else.
GRAVITY_TOLERANCE = 1.0  # m/s^2
TILT_TIME_CONSTANT_S = 0.5
# After a gap the old direction says nothing any more.
_GAP_S = 0.5
_SILENT_S = 2.0
# TF of a moving robot comes a little later than the image; the mount hardly changes meanwhile.
_TF_TOLERANCE_S = 1.0
# Axes of a camera's body (x forward, y left, z up) in its optical frame (REP 103).
BODY_IN_OPTICAL = Pose(np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]]),
                       np.zeros(3))


class Gravity:
    """The direction against gravity in the frame of an IMU.

    A complementary filter (Mahony, Hamel and Pflimlin, Nonlinear complementary filters on SO(3),
    2008, section IV, without bias): the gyroscope carries the direction on, the accelerometer
    pulls it back while it measures hardly anything but gravity.

    Attributes:
        problem: why there is no direction, '' if there is one.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.up: NDArray[np.float64] | None = None
        self.problem = 'no message yet'
        self._stamp = -math.inf

    def add(self, acceleration: NDArray[np.float64], rate: NDArray[np.float64] | None,
            stamp: float) -> None:
        """Take one reading.

        Args:
            acceleration: (3,) m/s^2, gravity included: at rest it points up (REP 145).
            rate: (3,) rad/s about the IMU's axes, or None without a gyroscope.
            stamp: seconds.
        """
        passed, self._stamp = stamp - self._stamp, stamp
        up = self.up if 0 <= passed <= _GAP_S else None
        if up is not None and rate is not None and np.isfinite(rate).all():
            up = up + np.cross(up, rate) * passed  # a fixed direction turns against the body
        length = float(np.linalg.norm(acceleration))
        if math.isfinite(length) and abs(length - STANDARD_GRAVITY) <= GRAVITY_TOLERANCE:
            measured = acceleration / length
            if up is None:
                up = measured
            else:
                share = 1 - math.exp(-passed / TILT_TIME_CONSTANT_S)
                up = up + share * (measured - up)
        if up is None:
            self.up = None
            hint = ''
            if abs(length - 1.0) < 0.1:
                hint = ' (in units of g? REP 145 asks for m/s^2)'
            elif length < GRAVITY_TOLERANCE:
                hint = ' (gravity removed? REP 145 keeps it in)'
            self.problem = (f'linear_acceleration has length {length:.2f} m/s^2, expected about '
                            f'9.8{hint}')
            return
        size = float(np.linalg.norm(up))
        # opposite directions can cancel each other; the new reading then begins anew
        self.up = up / size if size > 1e-3 else None
        self.problem = '' if self.up is not None else 'the readings contradict each other'


@dataclass(frozen=True)
class Found:
    """Where a mount comes from.

    Attributes:
        mount: None where it is not known.
        source: `tf`, `imu`, `parameters` or `none`.
        problem: why a better source, or any, has none; '' if nothing is wrong.
    """

    mount: Mount | None
    source: str
    problem: str = ''


class MountSource:
    """Finds the mount of one camera for each image; mount.frame before the IMU before numbers.

    `watch`, `destroy` and the callback belong to the executor's thread, `find` to the worker's.
    """

    def __init__(self, node: Node, transforms: Transforms, topic: str, *,
                 on_mismatch: Callable[[str, Any], None]) -> None:
        """Subscribe to nothing yet.

        Args:
            node: owner of the subscription.
            transforms: TF.
            topic: of the IMU, '' for none.
            on_mismatch: told the topic and the event where a publisher's QoS does not match.
        """
        self._transforms = transforms
        self._imu = None if not topic else MeasurementTopic(
            node, topic, {'sensor_msgs/msg/Imu': Imu}, 'mount.imu_topic', self._on_imu,
            on_mismatch=on_mismatch)
        self._gravity = Gravity()
        # frame, direction, problem, time.monotonic: replaced as a whole, for the other thread
        self._newest: tuple[str, NDArray[np.float64] | None, str, float] = (
            '', None, 'no message yet', -math.inf)
        self._axes = ''
        self.last = Found(None, 'none')

    @property
    def qos(self) -> dict[str, QoSProfile]:
        """QoS of the subscription by full topic name."""
        return {} if self._imu is None else self._imu.qos

    def watch(self, parameters: Parameters, *, active: bool) -> None:
        """Subscribe while the node is active; call it about twice a second."""
        if active and (parameters.mount.frame or self._imu is not None):
            self._transforms.listen()
        if self._imu is not None:
            self._imu.watch(wanted=active)

    def _on_imu(self, message: Imu) -> None:
        # REP 145: a covariance that begins with -1 says that there are no such readings
        acceleration = message.linear_acceleration
        if message.linear_acceleration_covariance[0] == -1:
            self._newest = (message.header.frame_id, None,
                            'the IMU says that it measures no acceleration', time.monotonic())
            return
        rate = message.angular_velocity
        self._gravity.add(
            np.array([acceleration.x, acceleration.y, acceleration.z]),
            None if message.angular_velocity_covariance[0] == -1
            else np.array([rate.x, rate.y, rate.z]), stamp_s(message.header.stamp))
        self._newest = (message.header.frame_id, self._gravity.up, self._gravity.problem,
                        time.monotonic())

    def find(self, header: Header, parameters: Parameters) -> Found:
        """Return the mount for the image of this header; also kept in `last`."""
        self.last = self._find(header, parameters)
        return self.last

    def _find(self, header: Header, parameters: Parameters) -> Found:
        given, problems = parameters.mount, []
        if given.frame:
            try:
                return Found(self._from_tf(header, given.frame), 'tf')
            except ValueError as error:
                problems.append(f'mount.frame: {error}')
        if self._imu is not None:
            try:
                mount = self._from_imu(header, given.height_m or math.nan)
                return Found(mount, 'imu', '; '.join(problems))
            except ValueError as error:
                problems.append(f'mount.imu_topic {self._imu.topic}: {error}')
        numbers = settings.mount(parameters)
        if numbers is not None:
            return Found(numbers, 'parameters', '; '.join(problems))
        if not problems:
            problems.append("the camera's height and tilt are not known: set mount.frame, or "
                            'mount.height_m with mount.pitch_deg or mount.imu_topic')
        return Found(None, 'none', '; '.join(problems))

    def _from_tf(self, header: Header, frame: str) -> Mount:
        pose = self._transforms.pose(frame, header.frame_id, header.stamp,
                                     newest_within_s=_TF_TOLERANCE_S)
        height = float(pose.translation[2])
        if height <= 0:
            raise ValueError(f'the camera is {height:.2f} m above {frame!r}: that frame must lie '
                             'on the floor with its z axis up')
        return _mount(pose.rotation[2], height)

    def _from_imu(self, header: Header, height_m: float) -> Mount:
        assert self._imu is not None
        frame, up, problem, heard = self._newest
        if self._imu.problem:
            raise ValueError(self._imu.problem)
        silent = time.monotonic() - heard
        if up is not None and silent > _SILENT_S:
            raise ValueError(f'silent for {silent:.0f} s')
        if up is None:
            raise ValueError(problem)
        return _mount(self._imu_pose(header, frame).rotation @ up, height_m)

    def _imu_pose(self, header: Header, frame: str) -> Pose:
        """Return the IMU's pose in the optical frame; where TF has none, as conventions say."""
        try:
            pose = self._transforms.pose(header.frame_id, frame, header.stamp,
                                         newest_within_s=_TF_TOLERANCE_S)
        except TransformError:
            if self._transforms.starting:
                raise
            if 'optical' in frame:
                self._axes = 'assumed: of the optical frame'
                return Pose.identity()
            self._axes = "assumed: of the camera's body, x forward, y left, z up"
            return BODY_IN_OPTICAL
        self._axes = 'TF' if frame != header.frame_id else 'of the image'
        return pose

    def facts(self) -> dict[str, str]:
        """Return what /diagnostics lists about the mount."""
        found = self.last
        facts = {'source': found.source}
        if found.mount is not None:
            right, down, forward = found.mount.up
            facts['height_m'] = f'{found.mount.height_m:.3f}'
            pitch = math.degrees(math.asin(max(-1.0, min(1.0, -forward))))
            roll = math.degrees(math.atan2(-right, -down))
            # no -0.0
            facts['pitch_deg'] = f'{round(pitch, 1) + 0.0:.1f}'
            facts['roll_deg'] = f'{round(roll, 1) + 0.0:.1f}'
        if found.source == 'imu':
            facts['imu_axes'] = self._axes
        if self._imu is not None:
            facts.update({f'imu_{key}': value for key, value in self._imu.facts().items()})
        if found.problem:
            facts['problem'] = found.problem
        return facts

    def reset(self) -> None:
        """Forget earlier readings, as after a step of time backwards."""
        self._gravity.reset()

    def destroy(self) -> None:
        """Drop the subscription."""
        if self._imu is not None:
            self._imu.destroy()


def is_wanted(parameters: Parameters) -> bool:
    """Return whether the mount is given in some way, or needed in any case."""
    given = parameters.mount
    return bool(parameters.scale.source == 'ground' or given.frame or given.imu_topic
                or settings.mount(parameters))


def _mount(up: NDArray[np.float64], height_m: float) -> Mount:
    right, down, forward = (float(part) for part in up)
    return Mount((right, down, forward), height_m)
