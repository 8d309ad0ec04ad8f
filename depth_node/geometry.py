"""From depth to points, and to the bytes of a point cloud."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
import math

import cv2
from depth_node.camera import Camera
from depth_node.ground import Mount
import numpy as np
from numpy.typing import NDArray

POINT_STEP = 16  # least bytes of a point: x, y, z, rgb; half of PCL's 32 and no gap between fields
FIELDS = ('rgb', 'intensity', 'confidence')  # what may follow x, y, z, in this order
NO_MOUNT = ('how the camera hangs above the floor is not known: set mount.height_m and '
            'mount.pitch_deg, or mount.frame')
# Voxel numbers of three axes share one int64; what lies outside of +-2^20 voxels is left out.
_AXIS_BITS = 21
LEAST_VOXEL_M = 0.001  # one kilometre of reach
_HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio (Knuth, TAOCP 3, section 6.4)


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
    """Shape of a cloud, and what is left out of it.

    Attributes:
        stride: every n-th column and row.
        organised: keep the image's rows and columns, NaN where invalid; otherwise one row of
            valid points only.
        roi: (u0, v0, width, height) in image pixels, None for all.  What lies outside of the
            image is cut off.
        fields: which of `FIELDS` follow x, y, z; rgb and nothing else fills the 16 bytes.
        far_m: depths beyond are left out, metres.
        far_points: instead of leaving out what is farther than `far_m`, or out of range (+Inf),
            put a point at the depth `far_m` on its ray: the ray is known to be free up to there.
            Unknown pixels (NaN, -Inf) never become points.
        voxel_m: edge of the cubes of which one point each is kept, metres; 0 keeps all.  Not
            organised only: the points that remain have no place in a grid of pixels.
        min_height_m: points lower above the floor are left out, metres.
        max_height_m: points higher above the floor are left out, metres.
        remove_ground: leave out the floor and what is below it.
        ground_margin_m: height above the floor at the camera up to which a point counts as floor.
        ground_margin_per_m: what is added to it per metre of horizontal distance; 0.02 forgives
            a mount that is wrong by one degree.
    """

    stride: int = 1
    organised: bool = True
    roi: tuple[int, int, int, int] | None = None
    fields: tuple[str, ...] = ('rgb',)
    far_m: float = math.inf
    far_points: bool = False
    voxel_m: float = 0.0
    min_height_m: float = -math.inf
    max_height_m: float = math.inf
    remove_ground: bool = False
    ground_margin_m: float = 0.05
    ground_margin_per_m: float = 0.02

    def __post_init__(self) -> None:
        """Refuse layouts that mean nothing."""
        if self.stride < 1:
            raise ValueError(f'cloud: stride {self.stride}, expected at least 1')
        if self.roi is not None and (min(self.roi[:2]) < 0 or min(self.roi[2:]) < 1):
            raise ValueError(f'cloud: region {self.roi}, expected u0, v0 >= 0 and a size >= 1')
        if self.fields != tuple(name for name in FIELDS if name in self.fields):
            raise ValueError(f'cloud: fields {self.fields}, expected some of {FIELDS}, each once '
                             'and in this order')
        if not self.far_m > 0:
            raise ValueError(f'cloud: far {self.far_m} m, expected more than 0')
        if self.far_points and math.isinf(self.far_m):
            raise ValueError('cloud: far points need a finite far_m, the depth to put them at')
        if not (self.voxel_m == 0 or LEAST_VOXEL_M <= self.voxel_m < math.inf):
            raise ValueError(f'cloud: voxel {self.voxel_m} m, expected 0 (off) or at least '
                             f'{LEAST_VOXEL_M} m')
        if self.voxel_m and self.organised:
            raise ValueError('cloud: voxels need organised false: what remains of an organised '
                             'cloud would no longer be a grid of pixels')
        if not self.min_height_m < self.max_height_m:
            raise ValueError(f'cloud: heights {self.min_height_m} to {self.max_height_m} m, '
                             'expected min < max')
        margins = self.ground_margin_m, self.ground_margin_per_m
        if not all(math.isfinite(margin) and margin >= 0 for margin in margins):
            raise ValueError(f'cloud: ground margin {margins[0]} m + {margins[1]} per metre, '
                             'expected 0 or more')

    @property
    def has_height_band(self) -> bool:
        """Whether heights above the floor limit the cloud."""
        return math.isfinite(self.min_height_m) or math.isfinite(self.max_height_m)

    @property
    def point_step(self) -> int:
        """Bytes of a point."""
        return max(POINT_STEP, 4 * (3 + len(self.fields)))


@dataclass(frozen=True)
class PackedCloud:
    """Bytes of a point cloud: `height` x `width` points of `point_step` bytes.

    Attributes:
        data: (height * width * point_step,) uint8, little-endian: float32 x, y, z, then the
            fields in 4 bytes each: rgb packed as 0x00RRGGBB, intensity float32 0..255 (the
            picture's brightness), confidence float32 0..1.  A view that the packer's next call
            overwrites.
        height: rows; 1 if not organised.
        width: columns.
        is_dense: True if no point is NaN.
        fields: names of what follows x, y, z.
        point_step: bytes of a point.
        removed: how many points were left out, by reason: `far`, `height`, `ground`, `voxel`.
        note: what was asked for and could not be done, '' if nothing.
        buffer: the same bytes as an array that a message can hold without copying them; None
            where there is none (not organised). The packer's next call overwrites it, too.
    """

    data: NDArray[np.uint8]
    height: int
    width: int
    is_dense: bool
    fields: tuple[str, ...] = ('rgb',)
    point_step: int = POINT_STEP
    removed: dict[str, int] = field(default_factory=dict)
    note: str = ''
    buffer: array[int] | None = None


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
        columns = layout.point_step // 4
        self._buffer = array('B', bytes(len(v) * len(u) * layout.point_step))
        self._points = np.frombuffer(self._buffer, np.float32).reshape(len(v), len(u), columns)
        # x, y, z and the fields one by one; interleaved by one pass over the points
        self._planes: NDArray[np.float32] = np.zeros((columns, len(v), len(u)), np.float32)
        self._z = self._planes[2]
        self._scratch: NDArray[np.float32] = np.empty((len(v), len(u)), np.float32)
        self._colour: NDArray[np.uint8] = np.zeros((len(v), len(u), 4), np.uint8)
        self._mount: Mount | None = None
        self._rise: NDArray[np.float32] = np.empty((0, 0), np.float32)
        self._rise_above_margin: NDArray[np.float32] = self._rise
        self._thinner = VoxelThinner(layout.voxel_m) if layout.voxel_m else None

    def points(self, depth: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (h, w, n) float32 x, y, z and unused ones; see `depth_to_points`.

        A reused buffer.  Nothing is left out of it.

        Raises:
            ValueError: the depth image has another size than the camera.
        """
        self._read(depth)
        self._back_project()
        return self._interleaved()

    def _read(self, depth: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fill the buffer of depths, NaN where not finite; return the window of the image."""
        if depth.shape != self.camera.size_hw:
            raise ValueError(f'points: depth {depth.shape}, camera {self.camera.size_hw}')
        seen = depth[self._window]
        with np.errstate(invalid='ignore'):
            np.subtract(seen, seen, out=self._z)  # 0 where finite, NaN elsewhere (Inf - Inf)
        self._z += seen
        # Inf + NaN stays NaN: an invalid point is NaN and never Inf (MoveIt drops only NaN)
        return seen

    def _back_project(self) -> None:
        np.multiply(self._ray_x, self._z, out=self._planes[0])
        np.multiply(self._ray_y, self._z, out=self._planes[1])

    def _interleaved(self) -> NDArray[np.float32]:
        # as whole numbers: no copy may touch the bits of a colour
        planes, points = self._planes.view(np.int32), self._points.view(np.int32)
        if points.size:
            cv2.merge(list(planes), points)
        return self._points

    def pack(self, depth: NDArray[np.float32], rgb: NDArray[np.uint8] | None = None, *,
             confidence: NDArray[np.float32] | None = None,
             mount: Mount | None = None) -> PackedCloud:
        """Return the cloud of a depth image.

        Points are left out in this order: far, height band, ground, voxels.

        Args:
            depth: (H, W) metres; NaN unknown, -Inf too close, +Inf out of range (REP 117).
            rgb: (H, W, 3) picture for rgb and intensity; both are 0 without it.
            confidence: (H, W) for the field confidence; NaN without it.
            mount: where the floor is; without it no heights are known, the points stay and
                `note` says so.

        Raises:
            ValueError: an image has another size than the camera.
        """
        layout = self.layout
        seen = self._read(depth)
        removed: dict[str, int] = {}
        note = ''
        if not math.isinf(layout.far_m):
            removed['far'] = self._crop_far(seen)
        if layout.has_height_band or layout.remove_ground:
            if mount is None or math.isnan(mount.height_m):
                what = ' and '.join(
                    name for name, asked in (('height band', layout.has_height_band),
                                             ('ground removal', layout.remove_ground)) if asked)
                note = f'no {what} in the cloud: {NO_MOUNT}'
            else:
                removed.update(self._crop_heights(mount))
        self._back_project()
        self._fill_fields(rgb, confidence)
        points = self._interleaved()
        removed = {reason: count for reason, count in removed.items() if count}
        height, width = points.shape[:2]
        if layout.organised:
            dense = not np.isnan(self._z).any()
            return PackedCloud(points.reshape(-1).view(np.uint8), height, width, bool(dense),
                               layout.fields, layout.point_step, removed, note, self._buffer)
        # one item per point: indexing rows of numbers takes thirty times as long
        rows = points.reshape(height * width, layout.point_step // 4).view(
            np.dtype((np.void, layout.point_step)))
        kept = rows[np.flatnonzero(~np.isnan(self._z)), 0]
        if self._thinner is not None:
            numbers = kept.view(np.float32).reshape(len(kept), layout.point_step // 4)
            averaged = [3 + layout.fields.index(name) for name in layout.fields if name != 'rgb']
            thin = self._thinner(numbers, averaged)
            if len(thin) < len(kept):
                removed['voxel'] = len(kept) - len(thin)
            return PackedCloud(thin.reshape(-1).view(np.uint8), 1, len(thin), True,
                               layout.fields, layout.point_step, removed, note)
        return PackedCloud(kept.view(np.uint8), 1, len(kept), True, layout.fields,
                           layout.point_step, removed, note)

    def _crop_far(self, seen: NDArray[np.float32]) -> int:
        """Leave out or pull in what is beyond `far_m`; return how many points were left out."""
        far = self.layout.far_m
        if not self.layout.far_points:
            return self._drop(self._z > far)
        np.copyto(self._z, np.float32(far), where=seen > far)
        return 0

    def _crop_heights(self, mount: Mount) -> dict[str, int]:
        """Leave out what is outside of the height band or floor."""
        layout = self.layout
        if mount != self._mount:
            self._learn_mount(mount)
        removed = {}
        if layout.has_height_band:
            rises = np.multiply(self._z, self._rise, out=self._scratch)
            low = np.float32(layout.min_height_m - mount.height_m)
            high = np.float32(layout.max_height_m - mount.height_m)
            removed['height'] = self._drop((rises < low) | (rises > high))
        if layout.remove_ground:
            rises = np.multiply(self._z, self._rise_above_margin, out=self._scratch)
            removed['ground'] = self._drop(
                rises < np.float32(layout.ground_margin_m - mount.height_m))
        return removed

    def _learn_mount(self, mount: Mount) -> None:
        """Make the tables of rise per metre of depth: height = z * rise + mount.height_m."""
        x, y, z = (np.float32(part) for part in mount.up)
        self._rise = (x * self._ray_x + z) + y * self._ray_y
        if self.layout.remove_ground:
            # horizontal metres per metre of depth; floor is z * rise + h < margin + slope * away
            away = np.sqrt(np.maximum(
                self._ray_x ** 2 + (1 + self._ray_y ** 2) - self._rise ** 2, 0))
            self._rise_above_margin = self._rise - (
                np.float32(self.layout.ground_margin_per_m) * away)
        self._mount = mount

    def _drop(self, unwanted: NDArray[np.bool_]) -> int:
        count = int(np.count_nonzero(unwanted))
        if count:
            np.copyto(self._z, np.float32(np.nan), where=unwanted)
        return count

    def _fill_fields(self, rgb: NDArray[np.uint8] | None,
                     confidence: NDArray[np.float32] | None) -> None:
        picture = None
        for image, name in ((rgb, 'rgb'), (confidence, 'confidence')):
            if image is not None and image.shape[:2] != self.camera.size_hw:
                raise ValueError(f'points: {name} {image.shape[:2]}, camera '
                                 f'{self.camera.size_hw}')
        coloured = 'rgb' in self.layout.fields or 'intensity' in self.layout.fields
        if rgb is not None and coloured and self._z.size:  # cv2 refuses an empty picture
            picture = np.ascontiguousarray(rgb[self._window])
        for plane, name in zip(self._planes[3:], self.layout.fields, strict=False):
            if name == 'rgb' and picture is not None:
                # bytes B, G, R, 0 are the little-endian number 0x00RRGGBB; cv2 makes B, G, R, 255
                cv2.cvtColor(picture, cv2.COLOR_RGB2BGRA, dst=self._colour)
                np.bitwise_and(self._colour.view(np.uint32)[..., 0], np.uint32(0x00FFFFFF),
                               out=plane.view(np.uint32))
            elif name == 'intensity' and picture is not None:
                plane[:] = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
            elif name == 'confidence':
                plane[:] = np.nan if confidence is None else confidence[self._window]
            else:
                plane[:] = 0.0


class VoxelThinner:
    """Keeps one point per cube of a grid at the origin: the mean of the points in it.

    Points are grouped through a hash table of point numbers: whoever of a cube is the last to
    write its number stands for the cube, and what fell into a slot of another cube tries again.
    That takes time in proportion to the number of points; sorting them (numpy.unique) takes ten
    times as long.
    """

    def __init__(self, voxel_m: float) -> None:
        """Prepare for cubes of an edge in metres."""
        self.voxel_m = voxel_m
        self._table: NDArray[np.int32] = np.empty(0, np.int32)
        self._shift = np.uint64(0)

    def __call__(self, points: NDArray[np.float32],
                 averaged: Sequence[int] = ()) -> NDArray[np.float32]:
        """Return (M, C) points.

        Args:
            points: (N, C), x, y, z first, finite.
            averaged: further columns whose mean is meant; the others are those of one point of
                the cube (a packed colour has no mean).
        """
        keys = self._keys(points)
        if keys is None:
            reach_m = 0.999 * self.voxel_m * (1 << _AXIS_BITS - 1)
            points = points[np.abs(points[:, :3]).max(1) < reach_m]
            keys = self._keys(points)
            assert keys is not None
        group, first = self._groups(keys)
        result = points.take(first, axis=0)
        count = np.bincount(group, minlength=len(first))
        for column in (0, 1, 2, *averaged):
            result[:, column] = np.bincount(group, points[:, column], len(first)) / count
        return result

    def _keys(self, points: NDArray[np.float32]) -> NDArray[np.int64] | None:
        """Return each point's cube as one number; None where a point is out of reach."""
        keys: NDArray[np.int64] = np.zeros(len(points), np.int64)
        half = 1 << _AXIS_BITS - 1
        for axis in range(3):
            cells = points[:, axis] * np.float32(1 / self.voxel_m)
            np.floor(cells, out=cells)
            if len(cells) and not (-half <= cells.min() and cells.max() < half):
                return None
            keys <<= _AXIS_BITS
            keys += cells.astype(np.int32) + np.int32(half)
        return keys

    def _groups(self, keys: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return each point's group number, and one point of each group."""
        count = len(keys)
        bits = max(10, (4 * count - 1).bit_length())
        if len(self._table) < 1 << bits:
            self._table = np.empty(1 << bits, np.int32)  # read only where just written
            self._shift = np.uint64(64 - bits)
        slots = ((keys.view(np.uint64) * _HASH_FACTOR) >> self._shift).astype(np.intp)
        numbers = np.arange(count, dtype=np.int32)
        self._table[slots] = numbers
        chosen = self._table.take(slots)
        lost = np.flatnonzero(keys.take(chosen) != keys)
        while len(lost):
            again = slots.take(lost)
            self._table[again] = lost
            winner = self._table.take(again)
            chosen[lost] = winner
            lost = lost[keys.take(winner) != keys.take(lost)]
        stands = chosen == numbers
        rank = np.cumsum(stands)
        rank -= 1
        return rank.take(chosen), np.flatnonzero(stands)
