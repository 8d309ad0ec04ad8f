"""Which intrinsics belong to a frame: CameraInfo, else a calibration file, else a field of view.

No ROS in here.  The node's receiving thread calls `take`, its working thread calls `resolve`.
"""

from __future__ import annotations

from dataclasses import dataclass

from depth_node.camera import Camera, CameraError


@dataclass(frozen=True)
class Calibration:
    """The values of a CameraInfo message; see `Camera.from_calibration`."""

    width: int
    height: int
    distortion_model: str
    d: tuple[float, ...]
    k: tuple[float, ...]
    r: tuple[float, ...]
    p: tuple[float, ...]
    binning_x: int = 0
    binning_y: int = 0
    roi_xywh: tuple[int, int, int, int] = (0, 0, 0, 0)

    def camera(self, size_hw: tuple[int, int]) -> Camera:
        """Return the camera of an image of this size.

        Raises:
            CameraError: the calibration cannot be used for it.
        """
        return Camera.from_calibration(
            width=self.width, height=self.height, distortion_model=self.distortion_model,
            d=self.d, k=self.k, r=self.r, p=self.p, binning_x=self.binning_x,
            binning_y=self.binning_y, roi_xywh=self.roi_xywh, image_size_hw=size_hw)


@dataclass(frozen=True)
class Resolved:
    """The intrinsics found for an image size.

    Attributes:
        camera: None where there are none.
        source: `topic`, `url`, `fov` or `none`.
        problem: name of what is wrong with the better sources, '' if nothing: `camera_info_` +
            `missing`, `uncalibrated`, `invalid`, `size` or `distortion`.
        message: the problem for people.
    """

    camera: Camera | None
    source: str
    problem: str = ''
    message: str = ''


class CameraSource:
    """Remembers the newest CameraInfo and finds the camera for each image size."""

    def __init__(self, file_camera: Camera | None = None, *, rectified_topic: bool = False,
                 topic: str = 'camera_info') -> None:
        """Start without a CameraInfo.

        Args:
            file_camera: the camera of `input.camera_info_url`, if set.
            rectified_topic: the images are rectified already, so D does not apply to them.
            topic: name for messages.
        """
        self._file_camera = file_camera
        self._rectified_topic = rectified_topic
        self._topic = topic
        self._calibration: Calibration | None = None
        self._cache_key: object = None
        self._cached = Resolved(None, 'none')

    @property
    def has_info(self) -> bool:
        """True once a CameraInfo has arrived."""
        return self._calibration is not None

    def take(self, calibration: Calibration) -> None:
        """Use this CameraInfo from the next frame on."""
        if calibration != self._calibration:
            self._calibration = calibration

    def resolve(self, size_hw: tuple[int, int], fov_deg: float) -> Resolved:
        """Return the intrinsics for images of this size, from the best source that has them."""
        key = (self._calibration, size_hw, fov_deg)
        if key != self._cache_key:
            self._cached = self._resolve(self._calibration, size_hw, fov_deg)
            self._cache_key = key
        return self._cached

    def _resolve(self, calibration: Calibration | None, size_hw: tuple[int, int],
                 fov_deg: float) -> Resolved:
        if calibration is None:
            problem, message = 'camera_info_missing', f'no CameraInfo on {self._topic}'
        else:
            try:
                return Resolved(self._as_seen(calibration.camera(size_hw)), 'topic')
            except CameraError as error:
                problem = f'camera_info_{error.reason}'
                message = f'{self._topic}: {error}'
        if self._file_camera is not None:
            if self._file_camera.size_hw == size_hw:
                return Resolved(self._as_seen(self._file_camera), 'url', problem,
                                f'{message}; the calibration file is used')
            height, width = self._file_camera.size_hw
            problem = 'camera_info_size'
            message += (f'; the calibration file is for {width}x{height} images, the image is '
                        f'{size_hw[1]}x{size_hw[0]}')
        if fov_deg > 0:
            return Resolved(Camera.from_fov(size_hw, fov_deg), 'fov', problem,
                            f'{message}; a field of view of {fov_deg:g} degrees is used')
        return Resolved(None, 'none', problem, f'{message}; depth is published without points')

    def _as_seen(self, camera: Camera) -> Camera:
        # P belongs to image_rect* topics, and their CameraInfo still carries the raw image's D
        if not self._rectified_topic:
            return camera
        return camera.rectified()
