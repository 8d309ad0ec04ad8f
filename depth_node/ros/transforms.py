"""Where one frame stands in another: from TF where tf2_ros is installed.

tf2_ros is imported only when a transform is first needed: the wheels of PyPI have neither it nor
tf2_msgs, and listening to /tf costs the receiving thread time for every message there.
"""

from __future__ import annotations

from dataclasses import dataclass
import math
import time
from typing import Any

from builtin_interfaces.msg import Time as TimeMessage
import numpy as np
from numpy.typing import ArrayLike, NDArray
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time

NO_TF2 = 'tf2_ros is not installed here (Debian package ros-<distro>-tf2-ros-py)'
# After this time of listening, what TF does not know will hardly come.
_STARTING_S = 2.0


class TransformError(ValueError):
    """A transform that cannot be had; the text says why and what to do.

    Attributes:
        known: TF connects the two frames, but not at the time asked for.
    """

    def __init__(self, text: str, *, known: bool = False) -> None:
        """Keep the text and whether another time would do."""
        super().__init__(text)
        self.known = known


@dataclass(frozen=True, eq=False)
class Pose:
    """Pose of a source frame in a target frame: p_target = rotation p_source + translation.

    Attributes:
        rotation: (3, 3).
        translation: (3,) metres; the source's origin in the target frame.
    """

    rotation: NDArray[np.float64]
    translation: NDArray[np.float64]

    @classmethod
    def identity(cls) -> Pose:
        """Return the pose of a frame in itself."""
        return cls(np.eye(3), np.zeros(3))

    @classmethod
    def from_quaternion(cls, xyzw: ArrayLike, translation: ArrayLike) -> Pose:
        """Return a pose from a quaternion of any length but zero.

        Source: Shuster, A survey of attitude representations (1993), equation 117, transposed.

        Raises:
            ValueError: the quaternion is no rotation, or a number is not finite.
        """
        quaternion = np.asarray(xyzw, np.float64)
        length = float(np.linalg.norm(quaternion))
        if not (math.isfinite(length) and length > 1e-6):
            raise ValueError(f'quaternion {quaternion.tolist()} (x, y, z, w) is no rotation')
        x, y, z, w = quaternion / length
        return cls._checked(np.array([
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]]), translation)

    @classmethod
    def from_rpy(cls, x: float, y: float, z: float, roll: float, pitch: float,
                 yaw: float) -> Pose:
        """Return a pose from metres and radians, in static_transform_publisher's meaning.

        The source frame is turned about the target's fixed axes: x by roll, then y by pitch, then
        z by yaw (REP 103).

        Raises:
            ValueError: a number is not finite.
        """
        (sr, sp, sy), (cr, cp, cy) = (
            [turn(angle) for angle in (roll, pitch, yaw)] for turn in (math.sin, math.cos))
        return cls._checked(np.array([
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr]]), (x, y, z))

    @classmethod
    def _checked(cls, rotation: NDArray[np.float64], translation: ArrayLike) -> Pose:
        place = np.asarray(translation, np.float64)
        if not np.isfinite(place).all():
            raise ValueError(f'translation {place.tolist()} is not finite')
        return cls(rotation, place)

    def apply(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (N, 3) points of the source frame in the target frame."""
        moved: NDArray[np.float32] = points @ self.rotation.T.astype(np.float32)
        moved += self.translation.astype(np.float32)
        return moved


class Transforms:
    """TF as this node hears it; one for all that need it.

    `listen` and `destroy` belong to the executor's thread, `pose` to any.
    """

    def __init__(self, node: Node) -> None:
        """Do nothing yet: `listen` begins."""
        self._node = node
        self._tf2: Any = None
        self._buffer: Any = None
        self._listener: Any = None
        self._missing = ''
        self._since = -math.inf  # time.monotonic when listening began

    @property
    def missing(self) -> str:
        """Why there is no TF, '' if there is or nobody has asked for it."""
        return self._missing

    @property
    def starting(self) -> bool:
        """True in the first seconds of listening, in which not everything is there yet."""
        return time.monotonic() - self._since < _STARTING_S

    def listen(self) -> None:
        """Begin to listen to /tf and /tf_static; nothing happens where that is done already."""
        if self._buffer is not None or self._missing:
            return
        try:
            import tf2_ros
        except ImportError as error:
            self._missing = NO_TF2 if isinstance(error, ModuleNotFoundError) and (
                error.name == 'tf2_ros') else f'tf2_ros cannot be imported: {error}'
            return
        self._tf2 = tf2_ros
        buffer = tf2_ros.Buffer()
        self._listener = tf2_ros.TransformListener(buffer, self._node, spin_thread=False)
        self._since = time.monotonic()
        self._buffer = buffer

    def pose(self, target: str, source: str, stamp: TimeMessage, *,
             newest_within_s: float = 0.0) -> Pose:
        """Return where the frame `source` stands in the frame `target`, without waiting.

        Args:
            target: frame id.
            source: frame id.
            stamp: when.
            newest_within_s: where TF has not yet, or no longer, the time asked for, take its
                newest transform if it is no farther away in time than this.

        Raises:
            TransformError: with the reason and the remedy.
        """
        # tf2 refuses the leading slash that ROS 1 allowed
        target, source = target.removeprefix('/'), source.removeprefix('/')
        if not target or not source:
            raise TransformError(
                f'{"the image" if not target else "the measurement"} has no frame_id: its '
                'driver must name one')
        if target == source:
            return Pose.identity()
        if self._buffer is None:
            raise TransformError(f'the pose of {source!r} in {target!r} is not known: '
                                 f'{self._missing or "nobody listens to TF yet"}')
        at = Time.from_msg(stamp)
        try:
            try:
                found = self._look_up(target, source, at)
            except self._tf2.ExtrapolationException:
                if newest_within_s <= 0:
                    raise
                found = self._look_up(target, source, Time(clock_type=at.clock_type))
                newest = Time.from_msg(found.header.stamp)
                if abs(at.nanoseconds - newest.nanoseconds) > 1e9 * newest_within_s:
                    raise
        except self._tf2.ExtrapolationException as error:
            raise TransformError(
                f'TF knows {source!r} and {target!r}, but not at the time of the message: {error}',
                known=True) from error
        except self._tf2.TransformException as error:
            raise TransformError(
                f'TF does not connect {source!r} with {target!r} ({str(error).strip(" .")}): '
                'publish it (static_transform_publisher, robot_state_publisher)') from error
        turn, place = found.transform.rotation, found.transform.translation
        try:
            return Pose.from_quaternion((turn.x, turn.y, turn.z, turn.w),
                                        (place.x, place.y, place.z))
        except ValueError as error:
            raise TransformError(f'TF between {source!r} and {target!r}: {error}') from error

    def _look_up(self, target: str, source: str, at: Time) -> Any:
        return self._buffer.lookup_transform(target, source, at, Duration())

    def forget(self) -> None:
        """Drop what moves, as after a step of time backwards; static transforms stay."""
        if self._buffer is not None:
            self._buffer.clear()

    def destroy(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.unregister()
        self._listener = self._buffer = self._tf2 = None
        self._missing, self._since = '', -math.inf
