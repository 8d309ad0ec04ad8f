"""From depth to points, and to the bytes of a point cloud."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
from depth_node.camera import Camera
import numpy as np
from numpy.typing import NDArray

POINT_STEP = 16  # x, y, z, rgb: four float32; half of PCL's 32 bytes and no gap between fields


def depth_to_points(depth: NDArray[np.float32], camera: Camera) -> NDArray[np.float32]:
    """Back-project a depth image into the camera's optical frame.

    Depth is Z along the optical axis, not ray length.  Source: Hartley & Zisserman (2004)
    section 6.1; axes REP 103, depth REP 118.

    Args:
        depth: (H, W) metres; not finite where there is no depth.
        camera: rectified camera of this image size.

    Returns:
        (H, W, 3) float32: x right, y down, z forward, metres; NaN where depth is not finite.

    Raises:
        ValueError: the camera belongs to another image size or is distorted.
    """
    return CloudPacker(camera).points(depth)[..., :3].copy()


@dataclass(frozen=True)
class CloudLayout:
    """Shape of a cloud.

    Attributes:
        stride: every n-th column and row.
        organised: keep the image's rows and columns, NaN where invalid; otherwise one row of
            valid points only.
        roi: (u0, v0, width, height) in image pixels, None for all.  What lies outside of the
            image is cut off.
    """

    stride: int = 1
    organised: bool = True
    roi: tuple[int, int, int, int] | None = None

    def __post_init__(self) -> None:
        """Refuse strides and regions that mean nothing."""
        if self.stride < 1:
            raise ValueError(f'cloud: stride {self.stride}, expected at least 1')
        if self.roi is not None and (min(self.roi[:2]) < 0 or min(self.roi[2:]) < 1):
            raise ValueError(f'cloud: region {self.roi}, expected u0, v0 >= 0 and a size >= 1')


@dataclass(frozen=True)
class PackedCloud:
    """Bytes of a point cloud: `height` x `width` points of `POINT_STEP` bytes.

    Attributes:
        data: (height * width * POINT_STEP,) uint8, little-endian float32 x, y, z and packed
            0x00RRGGBB; a view that the packer's next call overwrites.
        height: rows; 1 if not organised.
        width: columns.
        is_dense: True if no point is NaN.
    """

    data: NDArray[np.uint8]
    height: int
    width: int
    is_dense: bool


class CloudPacker:
    """Packs depth images of one camera into point clouds, in buffers made once."""

    def __init__(self, camera: Camera, layout: CloudLayout = CloudLayout()) -> None:
        if camera.is_distorted:
            raise ValueError('points need a rectified camera, this one has distortion '
                             f'{camera.distortion_model} {camera.D}')
        self.camera = camera
        self.layout = layout
        height, width = camera.size_hw
        u0, v0, roi_w, roi_h = layout.roi or (0, 0, width, height)
        self._window = (slice(v0, min(v0 + roi_h, height), layout.stride),
                        slice(u0, min(u0 + roi_w, width), layout.stride))
        u = np.arange(width)[self._window[1]]
        v = np.arange(height)[self._window[0]]
        self._ray_x = ((u - camera.cx) / camera.fx).astype(np.float32)[None, :]
        self._ray_y = ((v - camera.cy) / camera.fy).astype(np.float32)[:, None]
        self._points: NDArray[np.float32] = np.zeros((len(v), len(u), 4), np.float32)
        self._z: NDArray[np.float32] = np.empty((len(v), len(u)), np.float32)
        self._colour: NDArray[np.uint8] = np.zeros((len(v), len(u), 4), np.uint8)

    def points(self, depth: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (h, w, 4) float32 x, y, z, unused; see `depth_to_points`; a reused buffer.

        Raises:
            ValueError: the depth image has another size than the camera.
        """
        if depth.shape != self.camera.size_hw:
            raise ValueError(f'points: depth {depth.shape}, camera {self.camera.size_hw}')
        seen = depth[self._window]
        with np.errstate(invalid='ignore'):
            np.subtract(seen, seen, out=self._z)  # 0 where finite, NaN elsewhere (Inf - Inf)
        self._z += seen
        # Inf + NaN stays NaN: an invalid point is NaN and never Inf (MoveIt drops only NaN)
        np.multiply(self._ray_x, self._z, out=self._points[..., 0])
        np.multiply(self._ray_y, self._z, out=self._points[..., 1])
        self._points[..., 2] = self._z
        return self._points

    def pack(self, depth: NDArray[np.float32],
             rgb: NDArray[np.uint8] | None = None) -> PackedCloud:
        """Return the cloud of a depth image, coloured if an (H, W, 3) RGB image is given.

        Raises:
            ValueError: depth or colour has another size than the camera.
        """
        points = self.points(depth)
        height, width = points.shape[:2]
        if rgb is not None:
            if rgb.shape[:2] != self.camera.size_hw:
                raise ValueError(f'points: rgb {rgb.shape[:2]}, camera {self.camera.size_hw}')
            # bytes B, G, R, 0 are the little-endian number 0x00RRGGBB
            cv2.mixChannels([np.ascontiguousarray(rgb[self._window])], [self._colour],
                            [0, 2, 1, 1, 2, 0])
            points.view(np.uint32)[..., 3] = self._colour.view(np.uint32)[..., 0]
        else:
            points[..., 3] = 0.0
        if self.layout.organised:
            dense = not np.isnan(self._z).any()
            return PackedCloud(points.reshape(-1).view(np.uint8), height, width, bool(dense))
        kept = points[~np.isnan(self._z)]
        return PackedCloud(kept.reshape(-1).view(np.uint8), 1, len(kept), True)
