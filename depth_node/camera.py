"""The pinhole camera with its lens distortion, and rectification.

A `Camera` holds the intrinsics of one image size.  It takes the plain values of a ROS
`sensor_msgs/CameraInfo` but knows no ROS.  Pixel (u, v) = (column, row), whole numbers at pixel
centres, so that resizing by s maps cx to (cx + 0.5) s - 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
import math
import os
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
import yaml

# Number of coefficients that OpenCV accepts per model name of sensor_msgs/distortion_models.hpp.
_COEFFICIENTS = {
    'plumb_bob': (4, 5),
    'rational_polynomial': (8, 12, 14),
    'equidistant': (4,),
}
_ALIASES = {'fisheye': 'equidistant', 'rational': 'rational_polynomial', 'radtan': 'plumb_bob',
            'radial-tangential': 'plumb_bob', 'kannala_brandt4': 'equidistant'}
_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


class CameraError(ValueError):
    """A calibration that cannot be used.

    Attributes:
        reason: short stable name for counters: `uncalibrated`, `invalid`, `size`, `distortion`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Camera:
    """Intrinsics of one image size.

    Attributes:
        size_hw: (height, width) of the image that K belongs to, pixels.
        fx, fy, cx, cy: K of the raw (possibly distorted) image, pixels.
        distortion_model: `none`, `plumb_bob`, `rational_polynomial` or `equidistant`.
        D: its coefficients in OpenCV's order; empty with `none`.
        R: rectification rotation, row-major 3x3 (identity for most monocular cameras).
        P: (fx, fy, cx, cy) of the rectified image, pixels; None means the same as K.
    """

    size_hw: tuple[int, int]
    fx: float
    fy: float
    cx: float
    cy: float
    distortion_model: str = 'none'
    D: tuple[float, ...] = ()
    R: tuple[float, ...] = _IDENTITY
    P: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        """Refuse values that no camera can have."""
        height, width = self.size_hw
        if height < 1 or width < 1:
            raise CameraError('size', f'camera: image size {width}x{height}, '
                              'expected at least 1x1')
        values = (self.fx, self.fy, self.cx, self.cy, *self.D, *self.R, *(self.P or ()))
        if not all(math.isfinite(value) for value in values):
            raise CameraError('invalid', 'camera: K, D, R or P holds NaN or Inf; calibrate the '
                              'camera again or repair its calibration file')
        focals = (self.fx, self.fy) + (self.P[:2] if self.P is not None else ())
        if min(focals) <= 0:
            raise CameraError('uncalibrated', f'camera: focal lengths {focals}, expected > 0; '
                              'zero means an uncalibrated camera (CameraInfo.msg)')
        if self.distortion_model != 'none':
            allowed = _COEFFICIENTS.get(self.distortion_model)
            if allowed is None:
                raise CameraError(
                    'distortion', f'camera: distortion model {self.distortion_model!r}, '
                    f'expected one of {", ".join(_COEFFICIENTS)}')
            if len(self.D) not in allowed:
                raise CameraError(
                    'distortion', f'camera: {self.distortion_model} with {len(self.D)} '
                    f'coefficients, expected {" or ".join(map(str, allowed))}')

    @property
    def K(self) -> NDArray[np.float64]:  # noqa: N802
        """The 3x3 matrix of the raw image, pixels."""
        return _matrix(self.fx, self.fy, self.cx, self.cy)

    @property
    def is_distorted(self) -> bool:
        """True where the raw image must be remapped to become the rectified one."""
        return (self.distortion_model != 'none' and any(self.D)) or self.R != _IDENTITY

    @property
    def hfov_deg(self) -> float:
        """Horizontal field of view of the pinhole model, degrees, ignoring distortion."""
        return math.degrees(2 * math.atan(0.5 * self.size_hw[1] / self.fx))

    @classmethod
    def from_fov(cls, size_hw: tuple[int, int], hfov_deg: float) -> Camera:
        """Return an undistorted camera with square pixels and a centred principal point.

        Args:
            size_hw: image (height, width), pixels.
            hfov_deg: full horizontal angle of view, degrees, 1 to 179.
        """
        if not 1 <= hfov_deg <= 179:
            raise CameraError('invalid', f'camera: horizontal field of view {hfov_deg} degrees, '
                              'expected 1 to 179')
        focal = 0.5 * size_hw[1] / math.tan(math.radians(hfov_deg) / 2)
        return cls(size_hw, focal, focal, (size_hw[1] - 1) / 2, (size_hw[0] - 1) / 2)

    @classmethod
    def from_calibration(
            cls, *, width: int, height: int, distortion_model: str, d: Sequence[float],
            k: Sequence[float], r: Sequence[float] = (), p: Sequence[float] = (),
            binning_x: int = 0, binning_y: int = 0,
            roi_xywh: tuple[int, int, int, int] = (0, 0, 0, 0),
            image_size_hw: tuple[int, int] | None = None) -> Camera:
        """Return the camera of the image at hand from the values of a CameraInfo message.

        K and P of a CameraInfo belong to the full resolution; binning and region of interest
        turn them into those of the image (CameraInfo.msg; REP 104).

        Args:
            width: full resolution that the calibration belongs to; 0 means the image's own.
            height: likewise.
            distortion_model: name of the lens model.
            d: its coefficients.
            k: row-major 3x3 matrix.
            r: row-major 3x3 matrix, empty or zero means identity.
            p: row-major 3x4 matrix, empty or zero means K.
            binning_x: 0 and 1 mean none.
            binning_y: likewise.
            roi_xywh: x, y, width, height in full-resolution pixels; zero size means all.
            image_size_hw: size of the image that arrived, checked against the calibration.

        Raises:
            CameraError: uncalibrated, not finite, unknown lens model, or another image size.
        """
        if len(k) != 9:
            raise CameraError('invalid', f'CameraInfo: K has {len(k)} values, expected 9')
        if not all(math.isfinite(value) for value in (*k, *d, *r, *p)):
            raise CameraError('invalid', 'CameraInfo: K, D, R or P holds NaN or Inf')
        if k[0] == 0 or k[4] == 0:
            raise CameraError('uncalibrated', 'CameraInfo: K is zero: the camera is not '
                              'calibrated; run camera_calibration, or set camera_info_url or '
                              'fov_deg')
        if (width == 0) != (height == 0) or width < 0 or height < 0:
            raise CameraError('size', f'CameraInfo: size {width}x{height}')
        if width == 0 and image_size_hw is not None:
            height, width = image_size_hw
        x0, y0, roi_w, roi_h = roi_xywh
        if roi_w == 0 or roi_h == 0:
            x0, y0, roi_w, roi_h = 0, 0, width, height
        bx, by = max(1, binning_x), max(1, binning_y)
        size_hw = roi_h // by, roi_w // bx
        if image_size_hw is not None and size_hw != tuple(image_size_hw):
            cut = f' (after region of interest and binning {bx}x{by})' if (
                size_hw != (height, width)) else ''
            raise CameraError(
                'size', f'CameraInfo is for {size_hw[1]}x{size_hw[0]} images{cut}, the image is '
                f'{image_size_hw[1]}x{image_size_hw[0]}: the driver or the resize node between '
                'must publish the CameraInfo of this size')
        model = distortion_model.strip().lower()
        model = _ALIASES.get(model, model)
        if not any(d):
            model, d = 'none', ()
        elif model == '':
            raise CameraError('distortion', f'CameraInfo: D = {list(d)} without a '
                              'distortion_model')
        rotation = tuple(float(value) for value in r) if len(r) == 9 and any(r) else _IDENTITY
        projection: tuple[float, float, float, float] | None = None
        if len(p) == 12 and p[0] != 0 and p[5] != 0:
            projection = (float(p[0]), float(p[5]), float(p[2]), float(p[6]))
        camera = cls(
            (height, width), float(k[0]), float(k[4]), float(k[2]), float(k[5]), model,
            tuple(float(value) for value in d), rotation, projection)
        if (x0, y0, roi_w, roi_h) != (0, 0, width, height):
            camera = camera.cropped(x0, y0, (roi_h, roi_w))
        if (bx, by) != (1, 1):
            camera = camera._resized(1 / bx, 1 / by, size_hw)
        return camera

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> Camera:
        """Read the YAML that `camera_calibration` writes and `camera_info_manager` reads.

        Args:
            path: file path, `file://` URL allowed.

        Raises:
            CameraError: not readable or not a calibration.
        """
        text = os.fspath(path)
        file = Path(text[len('file://'):] if text.startswith('file://') else text).expanduser()
        try:
            raw = yaml.safe_load(file.read_text(encoding='utf-8'))
            return cls.from_calibration(
                width=int(raw['image_width']), height=int(raw['image_height']),
                distortion_model=str(raw.get('distortion_model', '')),
                d=_data(raw, 'distortion_coefficients'), k=_data(raw, 'camera_matrix'),
                r=_data(raw, 'rectification_matrix'), p=_data(raw, 'projection_matrix'))
        except OSError as error:
            raise CameraError('invalid', f'{file}: {error.strerror or error}') from error
        except UnicodeDecodeError as error:  # its repr has the whole file in it
            raise CameraError('invalid', f'{file}: not a camera calibration YAML: no text at all'
                              ) from error
        except CameraError as error:
            raise CameraError(error.reason, f'{file}: {error}') from error
        except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise CameraError(
                'invalid', f'{file}: not a camera calibration YAML (expected image_width, '
                f'image_height, camera_matrix.data, ...): {error!r}') from error

    def scaled(self, size_hw: tuple[int, int]) -> Camera:
        """Return the camera of the same picture resized to `size_hw`; D stays as it is."""
        return self._resized(size_hw[1] / self.size_hw[1], size_hw[0] / self.size_hw[0], size_hw)

    def cropped(self, u0: int, v0: int, size_hw: tuple[int, int]) -> Camera:
        """Return the camera of the window that begins at column `u0`, row `v0`."""
        projection = self.P and (self.P[0], self.P[1], self.P[2] - u0, self.P[3] - v0)
        return replace(self, size_hw=(size_hw[0], size_hw[1]), cx=self.cx - u0, cy=self.cy - v0,
                       P=projection)

    def rectified(self) -> Camera:
        """Return the pinhole camera of the rectified image (K = P, D = 0)."""
        fx, fy, cx, cy = self.P if self.P is not None else (self.fx, self.fy, self.cx, self.cy)
        return Camera(self.size_hw, fx, fy, cx, cy)

    def _resized(self, sx: float, sy: float, size_hw: tuple[int, int]) -> Camera:
        projection = self.P and (self.P[0] * sx, self.P[1] * sy,
                                 (self.P[2] + 0.5) * sx - 0.5, (self.P[3] + 0.5) * sy - 0.5)
        return replace(
            self, size_hw=(size_hw[0], size_hw[1]), fx=self.fx * sx, fy=self.fy * sy,
            cx=(self.cx + 0.5) * sx - 0.5, cy=(self.cy + 0.5) * sy - 0.5, P=projection)


class Rectifier:
    """Removes lens distortion from images of one camera.

    The lookup maps are made once; a call is one `cv2.remap` into a buffer that the next call
    reuses.

    Attributes:
        source: the raw camera.
        camera: the pinhole camera of the rectified images, same size.
        valid: (H, W) bool, False where the rectified image sees outside of the raw one; None
            where everything is inside.
    """

    def __init__(self, source: Camera) -> None:
        self.source = source
        self.camera = source.rectified()
        height, width = source.size_hw
        rotation = np.asarray(source.R, np.float64).reshape(3, 3)
        coefficients = np.asarray(source.D, np.float64)
        if source.distortion_model == 'equidistant':
            map_u, map_v = cv2.fisheye.initUndistortRectifyMap(
                source.K, coefficients, rotation, self.camera.K, (width, height), cv2.CV_32FC1)
        else:
            map_u, map_v = cv2.initUndistortRectifyMap(
                source.K, coefficients, rotation, self.camera.K, (width, height), cv2.CV_32FC1)
        # all four neighbours of the source position inside; remap rounds to 1/32 pixel
        slack = 1 / 64
        inside = ((map_u >= -slack) & (map_u <= width - 1 + slack)
                  & (map_v >= -slack) & (map_v <= height - 1 + slack))
        self.valid: NDArray[np.bool_] | None = None if inside.all() else inside
        self._maps = cv2.convertMaps(map_u, map_v, cv2.CV_16SC2)
        self._buffer: NDArray[np.uint8] = np.empty((height, width, 3), np.uint8)

    def __call__(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the rectified (H, W, 3) image; black outside of the raw one.

        Raises:
            ValueError: the image has another size than the camera.
        """
        if rgb.shape[:2] != self.source.size_hw:
            raise ValueError(f'rectify: image {rgb.shape[:2]}, camera {self.source.size_hw}')
        cv2.remap(rgb, self._maps[0], self._maps[1], cv2.INTER_LINEAR, self._buffer,
                  cv2.BORDER_CONSTANT)
        return self._buffer

    def nearest(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a rectified (H, W) image whose values must not be mixed, such as depth.

        0 outside of the raw image.

        Raises:
            ValueError: the image has another size than the camera.
        """
        if image.shape != self.source.size_hw:
            raise ValueError(f'rectify: image {image.shape}, camera {self.source.size_hw}')
        return np.asarray(cv2.remap(image, self._maps[0], self._maps[1], cv2.INTER_NEAREST,
                                    None, cv2.BORDER_CONSTANT), np.float32)


def _matrix(fx: float, fy: float, cx: float, cy: float) -> NDArray[np.float64]:
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def _data(raw: dict[str, dict[str, Sequence[float]]], key: str) -> list[float]:
    if key in ('rectification_matrix', 'projection_matrix') and key not in raw:
        return []
    return [float(value) for value in raw[key]['data']]
