"""What verbs share that read pictures: the files, and the camera that took them."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from depth_node.cli import CommandError, UsageError
from depth_node.cli._common import positive_float

if TYPE_CHECKING:
    from depth_node.camera import Camera
    import numpy as np
    from numpy.typing import NDArray

PICTURES: Final = frozenset(('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm',
                             '.pgm'))


def add_camera_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which camera took the pictures."""
    camera = parser.add_mutually_exclusive_group()
    camera.add_argument('--hfov', type=positive_float, metavar='DEG',
                        help="the picture's horizontal field of view, degrees; upright pictures "
                             'of a phone have about 52 to 56, level ones 65 to 70')
    camera.add_argument('--camera-yaml', type=Path, metavar='FILE', help='its calibration')


class CameraChoice:
    """The camera that `add_camera_arguments` describes, for pictures of any size."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Read the calibration.

        Raises:
            UsageError: a field of view that no camera has.
            CameraError: an unusable calibration file.
        """
        from depth_node.camera import Camera, CameraError

        self._hfov: float | None = args.hfov
        if self._hfov is not None:
            try:
                Camera.from_fov((100, 100), self._hfov)
            except CameraError as error:
                raise UsageError(f'--hfov {self._hfov:g}: {error}') from error
        self._calibration = Camera.from_yaml(args.camera_yaml) if args.camera_yaml else None

    def of(self, size_hw: tuple[int, int]) -> Camera | None:
        """Return the camera of a picture, None where nothing was said.

        Raises:
            CommandError: the calibration belongs to another camera.
        """
        from depth_node.camera import Camera

        if self._hfov is not None:
            return Camera.from_fov(size_hw, self._hfov)
        if self._calibration is None or self._calibration.size_hw == size_hw:
            return self._calibration
        height, width = self._calibration.size_hw
        if abs(math.log(width / height * size_hw[0] / size_hw[1])) > 0.01:
            raise CommandError(
                f'the picture is {size_hw[1]}x{size_hw[0]}, the calibration is for '
                f'{width}x{height}: another aspect ratio is another camera')
        return self._calibration.scaled(size_hw)


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Read a picture strictly: a JPEG or PNG that is cut off is an error, not half a picture."""
    import cv2
    from depth_node.images import ImageError, decode_compressed
    import numpy as np

    data = path.read_bytes()
    try:
        return decode_compressed(data, '', apply_orientation=True)
    except ImageError as error:
        if error.reason != 'unknown_format':
            raise
    bgr: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if bgr is None:
        raise CommandError(f'{len(data)} bytes that OpenCV cannot read as a picture')
    rgb: NDArray[np.uint8] = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    return rgb
