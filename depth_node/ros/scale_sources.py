"""What gives one camera its metric scale: measured points, the floor, or numbers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
import time
from typing import Any

from builtin_interfaces.msg import Time
from depth_node.ground import GroundEstimator, Mount
from depth_node.model_card import ModelCard
from depth_node.ros import settings
from depth_node.ros.measurement_topic import MeasurementTopic
from depth_node.ros.measurements import (
    Measured,
    MeasurementError,
    RangeReading,
    cloud_points,
    range_reading,
    scan_points,
    thinned,
)
from depth_node.ros.messages import stamp_s
from depth_node.ros.parameters import Parameters
from depth_node.ros.transforms import Pose, TransformError, Transforms
from depth_node.scale import Scale, ScaleEstimator
from depth_node.scale_points import PointsEstimator
import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import LaserScan, PointCloud2, Range
from std_msgs.msg import Header

TYPES = {'sensor_msgs/msg/PointCloud2': PointCloud2, 'sensor_msgs/msg/LaserScan': LaserScan,
         'sensor_msgs/msg/Range': Range}
# Points handed to the fit per message.
MOST_IN_FRONT = 8_000
# Nearer to the camera's plane than this a point has no useful place in the picture.
FRONT_M = 0.05
# While no image wants a scale for this long, messages are not decoded.
IDLE_S = 10.0
# Decoded messages that wait for an image, and those that wait for TF.
MOST_WAITING = 50
MOST_LATE = 5


@dataclass(frozen=True)
class Heard:
    """A decoded message that waits to be placed before the camera."""

    what: Measured | RangeReading
    frame: str
    stamp: Time


class ScaleSource:
    """Keeps the estimators of one camera fed; see `choose`.

    `watch`, `destroy` and the callback belong to the executor's thread, `choose` and `reset` to
    the worker's; `facts` and `problem` to any.
    """

    def __init__(self, node: Node, transforms: Transforms, parameters: Parameters,
                 card: ModelCard, *, on_mismatch: Callable[[str, Any], None],
                 own: Callable[[], Collection[str]] = tuple) -> None:
        """Subscribe to nothing yet.

        Args:
            node: owner of the subscription.
            transforms: TF.
            parameters: of this camera.
            card: of the network whose depth is corrected.
            on_mismatch: told the topic and the event where a publisher's QoS does not match.
            own: full names of the node's own topics, which are no measurements.
        """
        self._transforms = transforms
        self._card = card
        kind = parameters.scale.points_type
        self._topic = MeasurementTopic(
            node, parameters.scale.points_topic, TYPES, 'scale.points_topic', self._on_message,
            on_mismatch=on_mismatch, only='' if kind == 'auto' else f'sensor_msgs/msg/{kind}',
            own=own)
        self._points = PointsEstimator(settings.points(parameters, card))
        self._ground = GroundEstimator(settings.ground(parameters, card))
        self._settings_of = parameters.scale
        self._source = ''
        self._waiting: deque[Heard] = deque(maxlen=MOST_WAITING)
        self._late: deque[Heard] = deque(maxlen=MOST_LATE)
        self._wanted_at = float('-inf')
        self._message_problem = ''
        self._place_problem = ''
        self._last = ''
        self._frame = ''

    @property
    def qos(self) -> dict[str, QoSProfile]:
        """QoS of the subscription by full topic name."""
        return self._topic.qos

    @property
    def problem(self) -> str:
        """What keeps measurements from being used, with the remedy; '' if nothing does."""
        if self._source != 'points':
            return ''
        return self._topic.problem or self._message_problem or self._place_problem

    # --- executor's thread

    def watch(self, parameters: Parameters, *, active: bool) -> None:
        """Subscribe while the source is `points`; call it about twice a second."""
        wanted = active and parameters.scale.source == 'points'
        if wanted and parameters.scale.extrinsic_from != 'parameter':
            self._transforms.listen()
        self._topic.watch(wanted=wanted)

    def _on_message(self, message: Any) -> None:
        if time.monotonic() - self._wanted_at > IDLE_S:
            return
        what: Measured | RangeReading | None
        try:
            if isinstance(message, PointCloud2):
                what = cloud_points(message)
            elif isinstance(message, LaserScan):
                what = scan_points(message)
            else:
                what = range_reading(message)
        except MeasurementError as error:
            self._message_problem = f'{self._topic.topic}: {error}'
            return
        if what is None or (isinstance(what, Measured) and not len(what.points)):
            self._message_problem = f'{self._topic.topic}: the newest message measured nothing'
            return
        self._message_problem = ''
        self._waiting.append(Heard(what, message.header.frame_id, message.header.stamp))

    # --- worker's thread

    def choose(self, header: Header, parameters: Parameters,
               mount: Mount | None) -> Scale | ScaleEstimator:
        """Return what corrects the image of this header, with all measurements handed over.

        Args:
            header: of the image; its frame is the camera's optical frame.
            parameters: in force.
            mount: how the camera hangs, for the source `ground`; None where that is not known.
        """
        source = parameters.scale.source
        if source != self._source:
            self.reset()
            self._source = source
        if source not in ('points', 'ground'):
            return settings.scale(parameters)
        if parameters.scale != self._settings_of:
            self._points.update(settings.points(parameters, self._card))
            self._ground.update(settings.ground(parameters, self._card))
            self._settings_of = parameters.scale
        if source == 'ground':
            self._ground.set_mount(mount)
            return self._ground
        self._wanted_at = time.monotonic()
        again = list(self._late)
        self._late.clear()
        new = [self._waiting.popleft() for _ in range(len(self._waiting))]
        for heard in (*again, *new):
            try:
                self._hand_over(heard, header.frame_id, parameters)
            except TransformError as error:
                self._place_problem = str(error)
                if error.known or self._transforms.starting:
                    self._late.append(heard)  # TF may come after the measurement
        return self._points

    def _hand_over(self, heard: Heard, camera_frame: str, parameters: Parameters) -> None:
        pose = self._pose(camera_frame, heard, parameters)
        self._frame = heard.frame
        stamp = stamp_s(heard.stamp)
        what = heard.what
        if isinstance(what, RangeReading):
            self._last = f'{what.distance_m:.3f} m'
            self._place_problem = ''
            self._points.add_ranges(what.distance_m, pose.rotation[:, 0], what.half_angle_rad,
                                    stamp, origin=pose.translation)
            return
        points = pose.apply(what.points)
        front = np.flatnonzero(points[:, 2] >= FRONT_M)
        self._last = f'{len(front)} of {what.offered} in front of the camera'
        if not len(front):
            self._place_problem = (
                f'none of the {len(points)} points of {heard.frame!r} lies in front of the camera '
                f'{camera_frame!r} (its z axis): check TF or scale.extrinsic')
            return
        self._place_problem = ''
        chosen = thinned(len(front), MOST_IN_FRONT)
        if chosen is not None:
            front = front[chosen]
        if what.delay_s is not None:  # when the beams that this camera sees were shot
            stamp += float(np.median(what.delay_s[front]))
        self._points.add(points[front], stamp)

    def _pose(self, camera_frame: str, heard: Heard, parameters: Parameters) -> Pose:
        """Return the sensor's pose in the camera's frame.

        Raises:
            TransformError: it is not known.
        """
        wanted = parameters.scale
        given = any(wanted.extrinsic)
        if wanted.extrinsic_from == 'parameter':
            if given or heard.frame != camera_frame:
                return self._given(camera_frame, heard.frame, parameters)
            return Pose.identity()
        try:
            return self._transforms.pose(camera_frame, heard.frame, heard.stamp)
        except TransformError as error:
            if wanted.extrinsic_from == 'tf' or error.known or self._transforms.starting:
                raise
            if given:
                return self._given(camera_frame, heard.frame, parameters)
            raise TransformError(f'{error}; or set scale.extrinsic') from error

    @staticmethod
    def _given(camera_frame: str, frame: str, parameters: Parameters) -> Pose:
        if not any(parameters.scale.extrinsic):
            raise TransformError(
                f'scale.extrinsic is all zero, which means not given: set the pose of {frame!r} '
                f'in {camera_frame!r} (x, y, z in metres, roll, pitch, yaw in radians)')
        return Pose.from_rpy(*parameters.scale.extrinsic)

    def reset(self) -> None:
        """Forget earlier measurements and estimates."""
        self._waiting.clear()
        self._late.clear()
        self._points.reset()
        self._ground.reset()
        self._message_problem = self._place_problem = self._last = ''

    # --- reporting

    def facts(self) -> dict[str, str]:
        """Return what /diagnostics lists about the source of measured points."""
        if self._source != 'points':
            return {}
        facts = {**self._topic.facts(), 'sensor_frame': self._frame, 'newest': self._last}
        if self.problem:
            facts['problem'] = self.problem
        return facts

    def destroy(self) -> None:
        """Drop the subscription."""
        self._topic.destroy()
