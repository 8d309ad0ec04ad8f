"""Plays a folder of pictures as if a camera took them, for `depth-node demo` and demo.launch.py.

    python -m depth_node.ros.clip_player CLIP --rate 30

The folder holds pictures, played in the order of their names, and `camera.yaml` (as
camera_calibration writes it).  Images are stamped with the time at which they are published.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
import itertools
from pathlib import Path
import sys
import time
from typing import IO

import cv2
from depth_node.camera import Camera, CameraError
from depth_node.ros import messages
from depth_node.ros.interrupts import Interrupts
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSHistoryPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.utilities import remove_ros_args
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

PICTURE_SUFFIXES = ('.jpg', '.jpeg', '.png')
DEPTH_SUFFIX = '.depth.png'
# Up to this many pictures are decoded once and kept (0.9 MB each at 640x480).
KEEP = 120


class ClipError(ValueError):
    """The folder holds no clip that can be played."""


def pictures_of(folder: Path) -> list[Path]:
    """Return the pictures of a clip in their order.

    Raises:
        ClipError: there is none.
    """
    found = sorted(
        path for path in (folder.iterdir() if folder.is_dir() else ())
        if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.endswith(DEPTH_SUFFIX))
    if not found:
        raise ClipError(f'{folder}: no pictures there ({", ".join(PICTURE_SUFFIXES)}); expected '
                        'the folder of a clip')
    return found


def there_and_back(count: int) -> Iterator[int]:
    """Count from 0 to count - 1 and back, for ever: the camera never jumps."""
    return itertools.cycle([*range(count), *range(count - 2, 0, -1)])


class ClipPlayer(Node):
    """Publishes a clip as image and CameraInfo."""

    def __init__(self, folder: Path, *, frame_id: str, reliable: bool,
                 log: IO[str] | None) -> None:
        """Read the clip and create the publishers.

        Args:
            folder: of the clip.
            frame_id: optical frame of the camera.
            reliable: QoS of the camera; False is best effort, as most drivers do.
            log: gets one line per image: its stamp in nanoseconds and the picture's file name.

        Raises:
            ClipError: no pictures, unreadable ones, or of another size than the camera.
            CameraError: no usable camera.yaml.
        """
        self.pictures = pictures_of(folder)
        camera = Camera.from_yaml(folder / 'camera.yaml')
        self._size_hw = camera.size_hw
        super().__init__('clip_player')
        self._frame_id = frame_id
        self._log = log
        self._kept: dict[int, Image] = {}
        policy = (QoSReliabilityPolicy.RELIABLE if reliable
                  else QoSReliabilityPolicy.BEST_EFFORT)
        profile = QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=5, reliability=policy)
        self._images = self.create_publisher(Image, '/camera/image_raw', profile)
        self._infos = self.create_publisher(CameraInfo, '/camera/camera_info', profile)
        self._info = self._camera_info(camera)
        for index in range(min(KEEP, len(self.pictures))):
            self._kept[index] = self._read(index)

    def _camera_info(self, camera: Camera) -> CameraInfo:
        info = CameraInfo()
        info.height, info.width = camera.size_hw
        info.distortion_model = ('plumb_bob' if camera.distortion_model == 'none'
                                 else camera.distortion_model)
        info.d = [float(value) for value in camera.D] or [0.0] * 5
        info.k = [float(value) for value in camera.K.ravel()]
        info.r = list(camera.R) if camera.R is not None else [
            1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
        fx, fy, cx, cy = camera.P or (camera.fx, camera.fy, camera.cx, camera.cy)
        info.p = [fx, 0.0, cx, 0.0, 0.0, fy, cy, 0.0, 0.0, 0.0, 1.0, 0.0]
        return info

    def _read(self, index: int) -> Image:
        path = self.pictures[index]
        bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if bgr is None:
            raise ClipError(f'{path}: not a readable picture')
        if bgr.shape[:2] != self._size_hw:
            raise ClipError(f'{path}: {bgr.shape[1]}x{bgr.shape[0]}, camera.yaml says '
                            f'{self._size_hw[1]}x{self._size_hw[0]}')
        return messages.image(Header(), cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), 'rgb8')

    def publish(self, index: int) -> None:
        """Publish one picture of the clip, as of now."""
        image = self._kept.get(index)
        if image is None:
            image = self._read(index)
        stamp = self.get_clock().now().to_msg()
        for message in (self._info, image):
            message.header.stamp = stamp
            message.header.frame_id = self._frame_id
        if self._log is not None:
            self._log.write(f'{stamp.sec * 10**9 + stamp.nanosec} {self.pictures[index].name}\n')
        self._infos.publish(self._info)
        self._images.publish(image)

    def play(self, rate_hz: float, seconds: float) -> None:
        """Publish at a steady rate until the time is over; 0 seconds: until shut down.

        A picture that could not be published in time shifts all later ones; none is left out.
        """
        start = due = time.monotonic()
        for index in there_and_back(len(self.pictures)):
            if not self.context.ok() or (seconds > 0 and due - start >= seconds):
                return
            time.sleep(max(0.0, due - time.monotonic()))
            self.publish(index)
            due = max(due + 1 / rate_hz, time.monotonic())


def main(arguments: Sequence[str] | None = None) -> int:
    """Play until told to stop; return the exit code."""
    given = list(sys.argv if arguments is None else ['clip_player', *arguments])
    parser = argparse.ArgumentParser(prog='python -m depth_node.ros.clip_player',
                                     description=(__doc__ or '').split('\n', 1)[0])
    parser.add_argument('clip', type=Path, help='folder with pictures and camera.yaml')
    parser.add_argument('--rate', type=float, default=30.0, metavar='HZ', help='images/s (30)')
    parser.add_argument('--seconds', type=float, default=0.0, metavar='S',
                        help='end after this time; 0: play there and back for ever (0)')
    parser.add_argument('--frame-id', default='camera_optical_frame', help='(%(default)s)')
    parser.add_argument('--reliable', action='store_true',
                        help='publish reliably; without it best effort, as most cameras do')
    parser.add_argument('--log', type=Path, metavar='FILE',
                        help='write stamp [ns] and file name of every image')
    options = parser.parse_args(remove_ros_args(given)[1:])
    if not 0 < options.rate <= 1000:
        parser.error(f'--rate {options.rate:g}: above 0 and at most 1000 is expected')
    log = open(options.log, 'w', buffering=1, encoding='utf-8') if options.log else None
    player = None
    interrupts = Interrupts()
    try:
        rclpy.init(args=given)
        player = ClipPlayer(options.clip, frame_id=options.frame_id, reliable=options.reliable,
                            log=log)
        player.get_logger().info(f'{len(player.pictures)} pictures of {options.clip} at '
                                 f'{options.rate:g} Hz')
        interrupts.starting = False
        player.play(options.rate, options.seconds)
    except (ClipError, CameraError) as error:
        print(f'clip_player: {error}', file=sys.stderr)
        return 2
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except Exception:
        if rclpy.ok():  # publishing fails in the moment in which a signal shuts the context down
            raise
    finally:
        interrupts.ignore()
        if player is not None:
            player.destroy_node()
        rclpy.try_shutdown()
        interrupts.ignore()  # the shutdown gives signals back to whoever had them before rclpy
        if log is not None:
            log.close()
    return 0


if __name__ == '__main__':
    sys.exit(main())
