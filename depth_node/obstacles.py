"""What stands in the way: a level laser scan and the nearest obstacle, from a depth image."""

from __future__ import annotations

from dataclasses import dataclass
import math

import cv2
from depth_node.camera import Camera
from depth_node.geometry import NO_MOUNT
from depth_node.ground import Mount
import numpy as np
from numpy.typing import NDArray

# A camera that looks more steeply than this has no forward direction that a scan could start from.
STEEPEST_DEG = 75.0
# Share of a bearing's rays that must be seen to be free before the bearing counts as free.
_FREE_SHARE = 0.5
# A mount that turned less than this, or rose less, is taken for the old one, so that tables are
# not made anew for every jitter of an IMU: no tilt is known better (9 mm of height at 5 m).
_SAME_TILT_RAD = math.radians(0.1)
_SAME_HEIGHT_M = 0.002
# Width of the grid on which the nearest obstacle is looked for, pixels at least.
_COARSE_WIDTH = 320


class ScanError(ValueError):
    """There can be no scan; the text says why and what to do."""


@dataclass(frozen=True)
class BandSettings:
    """What counts as an obstacle: whatever is in a band of heights above the floor.

    Attributes:
        min_height_m: lower end of the band at the camera, metres.
        max_height_m: upper end, metres.
        margin_per_m: what is added to the lower end per metre of horizontal distance, so that a
            floor that seems to rise, because the mount is not quite right, is no obstacle.
        near_m: least depth that the depth image holds, metres; nearer surfaces are -Inf.
    """

    min_height_m: float = 0.1
    max_height_m: float = 1.0
    margin_per_m: float = 0.02
    near_m: float = 0.0

    def __post_init__(self) -> None:
        """Refuse bands that hold nothing."""
        if not (math.isfinite(self.min_height_m) and math.isfinite(self.max_height_m)
                and self.min_height_m < self.max_height_m):
            raise ValueError(f'scan: heights {self.min_height_m} to {self.max_height_m} m, '
                             'expected min < max')
        if not (math.isfinite(self.margin_per_m) and self.margin_per_m >= 0):
            raise ValueError(f'scan: margin {self.margin_per_m} per metre, expected 0 or more')
        if not self.near_m >= 0:
            raise ValueError(f'scan: near {self.near_m} m, expected 0 or more')


@dataclass(frozen=True)
class ScanSettings(BandSettings):
    """Shape of a scan.

    Attributes:
        range_min_m: obstacles nearer than this are `too close` (-Inf), metres.
        range_max_m: farther obstacles do not matter, metres.
        angle_increment_deg: width of a bin, degrees; 0 makes as many bins as the image has
            columns, as depthimage_to_laserscan does.
        min_rows: an obstacle fills at least so many pixels one above the other; 1 takes every
            pixel for one.
    """

    range_min_m: float = 0.2
    range_max_m: float = 8.0
    angle_increment_deg: float = 0.25
    min_rows: int = 2

    def __post_init__(self) -> None:
        """Refuse ranges and angles that hold nothing."""
        super().__post_init__()
        if not (0 <= self.range_min_m < self.range_max_m < math.inf):
            raise ValueError(f'scan: ranges {self.range_min_m} to {self.range_max_m} m, expected '
                             '0 <= min < max')
        if not 0 <= self.angle_increment_deg <= 45:
            raise ValueError(f'scan: angle increment {self.angle_increment_deg} degrees, expected '
                             '0 (one bin per column) to 45')
        if self.min_height_m + self.margin_per_m * self.range_max_m >= self.max_height_m:
            raise ValueError(
                f'scan: at {self.range_max_m} m the margin lifts the lower end of the heights to '
                f'{self.min_height_m + self.margin_per_m * self.range_max_m:g} m, above their '
                f'upper end {self.max_height_m} m; lower the margin or the range')
        if self.min_rows < 1:
            raise ValueError(f'scan: {self.min_rows} rows, expected at least 1')


@dataclass(frozen=True)
class LevelScan:
    """Ranges in the level frame at the camera: x along its horizontal viewing direction, z up.

    Attributes:
        ranges: (n,) float32, horizontal metres to the nearest obstacle; +Inf where the way is
            free up to range_max_m, NaN where that is not known, -Inf where something is nearer
            than can be measured (REP 117).  Made anew by every scan.
        angle_min: bearing of the first, radians, counter-clockwise from x (REP 103).
        angle_increment: between neighbours, radians.
        axes: (3, 3), the level frame's axes forward, left, up in the optical frame, one per row.
        note: what a reader should know about this scan, '' if nothing.
    """

    ranges: NDArray[np.float32]
    angle_min: float
    angle_increment: float
    axes: NDArray[np.float64]
    note: str = ''

    @property
    def angle_max(self) -> float:
        """Bearing of the last, radians."""
        return self.angle_min + (len(self.ranges) - 1) * self.angle_increment


def level_axes(mount: Mount) -> NDArray[np.float64]:
    """Return the axes of the level frame at the camera: rows forward, left, up.

    They are unit vectors in the optical frame, so that the matrix turns points of the optical
    frame into the level one.

    Raises:
        ScanError: the camera looks so steeply that forward means nothing.
    """
    up = np.asarray(mount.up, np.float64)
    up /= np.linalg.norm(up)
    forward = np.array([0.0, 0.0, 1.0]) - up * up[2]  # the optical axis without its vertical part
    length = float(np.linalg.norm(forward))
    if length < math.cos(math.radians(STEEPEST_DEG)):
        raise ScanError(f'the camera looks {"down" if up[2] < 0 else "up"} at '
                        f'{math.degrees(math.acos(length)):.0f} degrees, more than '
                        f'{STEEPEST_DEG:g}: no direction is forward')
    forward /= length
    return np.stack([forward, np.cross(up, forward), up])


def _differs(before: Mount | None, mount: Mount) -> bool:
    """Return whether tables made for one mount are no good for another."""
    if before is None:
        return True
    turned = math.sqrt(sum((a - b) ** 2 for a, b in zip(before.up, mount.up, strict=True)))
    return (turned > _SAME_TILT_RAD
            or not abs(before.height_m - mount.height_m) <= _SAME_HEIGHT_M)


@dataclass(frozen=True)
class _Rays:
    """What follows from a mount for each ray of a grid; all float32 arrays of one shape.

    A surface at depth z is `z * away` metres away horizontally and `z * rise + height` above the
    floor; it is above the lower end of the band where `z * rise_above_margin` is not less than
    `min_height - height`.
    """

    away: NDArray[np.float32]
    rise: NDArray[np.float32]
    rise_above_margin: NDArray[np.float32]

    @classmethod
    def of(cls, x: NDArray[np.float64], y: NDArray[np.float64], mount: Mount,
           band: BandSettings) -> _Rays:
        """Return the table of rays (x, y, 1) that broadcast to one shape."""
        rise = (mount.up[0] * x + mount.up[2]) + mount.up[1] * y
        away = np.sqrt(np.maximum(x * x + (1 + y * y) - rise * rise, 0))
        return cls(away.astype(np.float32), rise.astype(np.float32),
                   (rise - band.margin_per_m * away).astype(np.float32))

    def is_obstacle(self, depth: NDArray[np.float32], mount: Mount,
                    band: BandSettings) -> NDArray[np.bool_]:
        """Return where a surface at these depths is in the band; False where not finite."""
        with np.errstate(invalid='ignore', over='ignore'):  # 0 * Inf
            found: NDArray[np.bool_] = depth * self.rise_above_margin >= np.float32(
                band.min_height_m - mount.height_m)
            found &= depth * self.rise <= np.float32(band.max_height_m - mount.height_m)
        found &= np.isfinite(depth)
        found &= depth > 0
        return found

    def can_be_too_close(self, mount: Mount, band: BandSettings) -> NDArray[np.bool_]:
        """Return where a surface nearer than `near_m` cannot be the floor."""
        return self.rise_above_margin * np.float32(band.near_m) > np.float32(
            band.min_height_m - mount.height_m)


def _largest(values: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    """Return the largest of each value's neighbours; +Inf at the border."""
    return np.asarray(cv2.dilate(
        values, np.ones((rows, columns), np.uint8), borderType=cv2.BORDER_CONSTANT,
        borderValue=(np.inf,) * 4), np.float32)


class ScanMaker:
    """Makes scans from the depth images of one camera, in tables made once per mount.

    The angles follow from the lens alone: a scan keeps its number of ranges when the camera's tilt
    changes a little (slam_toolbox expects that).
    """

    def __init__(self, camera: Camera, settings: ScanSettings = ScanSettings()) -> None:
        if camera.is_distorted:
            raise ValueError('a scan needs a rectified camera, this one has distortion '
                             f'{camera.distortion_model} {camera.D}')
        self.camera = camera
        self.settings = settings
        self._mount: Mount | None = None

    def scan(self, depth: NDArray[np.float32], mount: Mount | None) -> LevelScan:
        """Return the scan of a depth image.

        Every bin looks at all pixels whose bearing falls into it.  It is the range of the nearest
        obstacle; free (+Inf) only if at least half of the rays that pass through the band were
        seen to leave it, and at least half of those that stay in it up to range_max_m; NaN else.

        Args:
            depth: (H, W) metres; NaN unknown, -Inf too close, +Inf out of range (REP 117).
            mount: how the camera hangs above the floor.

        Raises:
            ScanError: no mount, or one that no scan can be made with.
            ValueError: the depth image has another size than the camera.
        """
        if depth.shape != self.camera.size_hw:
            raise ValueError(f'scan: depth {depth.shape}, camera {self.camera.size_hw}')
        if mount is None or math.isnan(mount.height_m):
            raise ScanError(NO_MOUNT)
        if _differs(self._mount, mount):
            self._mount = None
            self._learn(mount)
            self._mount = mount
        mount, settings = self._mount or mount, self.settings
        rays = self._rays
        z = np.take(depth.reshape(-1), self._pixels, out=self._depth, mode='clip')
        with np.errstate(invalid='ignore', over='ignore'):  # 0 * Inf
            above_low = np.multiply(z, rays.rise_above_margin, out=self._away) >= np.float32(
                settings.min_height_m - mount.height_m)
            below_high = np.multiply(z, rays.rise, out=self._away) <= np.float32(
                settings.max_height_m - mount.height_m)
            away = np.multiply(z, rays.away, out=self._away)
            known = z > 0
            # left the band before it was stopped: through its floor, its ceiling or its far end
            free = np.greater(self._descends, above_low)
            free |= np.greater(self._ascends, below_high)
            free |= (away >= np.float32(settings.range_max_m)) & self._passes
            free &= known
            obstacle = above_low & below_high
            obstacle &= known & self._passes
        np.copyto(away, np.float32(np.inf), where=~obstacle)
        if settings.min_rows > 1:
            # the largest of neighbours: what remains is seen by so many rows
            away = _largest(away, settings.min_rows, 1)
        ranges: NDArray[np.float32] = away.min(0).reshape(self._bins, -1).min(1)
        near = ranges < settings.range_min_m
        too_close = np.isneginf(self._depth)
        if too_close.any():
            too_close &= self._may_be_close
            near |= self._per_column(too_close).max(1) >= settings.min_rows
        enough = self._per_bin(free) >= self._enough
        enough &= self._per_bin(free & self._stays) >= self._enough_stay
        ranges[ranges > settings.range_max_m] = np.nan
        ranges[np.isnan(ranges) & enough] = np.inf
        ranges[near] = -np.inf
        return LevelScan(ranges, self._angle_min, self._increment, self._axes, self._note)

    def _per_column(self, mask: NDArray[np.bool_]) -> NDArray[np.int32]:
        """Return (bins, samples of a bin) counts."""
        counts: NDArray[np.int32] = np.asarray(cv2.reduce(
            mask.view(np.uint8), 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S), np.int32)
        return counts.reshape(self._bins, -1)

    def _per_bin(self, mask: NDArray[np.bool_]) -> NDArray[np.int32]:
        """Return how many rays of each bin are True."""
        counts: NDArray[np.int32] = self._per_column(mask).sum(1, dtype=np.int32)
        return counts

    def _learn(self, mount: Mount) -> None:
        """Make the tables: which pixel each row shows at each bearing, and what it means there."""
        camera, settings = self.camera, self.settings
        self._axes = level_axes(mount)
        forward, left, up = self._axes
        height, width = camera.size_hw
        # Along a row the bearing grows with the column; of a camera turned on its side, along a
        # column with the row.  p is that axis, q the other.
        upright = abs(left[0]) >= abs(left[1])
        (p, focal, centre, count), (q, q_focal, q_centre, q_count) = (
            (0, camera.fx, camera.cx, width), (1, camera.fy, camera.cy, height))[
                ::1 if upright else -1]
        # bearings of the outermost pixels of a level camera, as depthimage_to_laserscan has them
        ends = sorted(math.atan(end / focal) for end in (centre, centre - (count - 1)))
        if left[p] > 0:  # upside down
            ends = [-ends[1], -ends[0]]
        if settings.angle_increment_deg > 0:
            self._increment = math.radians(settings.angle_increment_deg)
            self._bins = 1 + round((ends[1] - ends[0]) / self._increment)
        else:
            self._bins = count
            self._increment = (ends[1] - ends[0]) / max(1, count - 1) or 1 / focal
        self._angle_min = ends[0]
        # Samples so dense that no pixel is missed: a pixel is 1 / (focal * ahead * (1 + tan^2))
        # wide as a bearing, where ahead is the forward part of the ray at the middle of its row.
        along = (np.arange(count).astype(np.float64) - centre) / focal
        across = (np.arange(q_count).astype(np.float64) - q_centre) / q_focal
        ahead = max(float((forward[q] * across + forward[2]).max()), 1e-3)
        steepest = max(abs(math.tan(end)) for end in ends)
        samples = math.ceil(self._increment * focal * ahead * (1 + steepest ** 2) - 1e-6)
        samples = max(1, samples)
        steps = np.arange(self._bins * samples)
        bearing = ends[0] + self._increment * ((steps + 0.5) / samples - 0.5)
        # a ray of this bearing has no part along the normal of the vertical plane at the bearing
        normal = left[:, None] * np.cos(bearing) - forward[:, None] * np.sin(bearing)
        with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
            slant, start = -normal[[q, 2]] / normal[p] * focal
            place: NDArray[np.float32] = (slant.astype(np.float32)
                                          * across.astype(np.float32)[:, None])
            place += (start + centre).astype(np.float32)
        np.rint(place, out=place)
        inside = (place >= 0) & (place < count)
        np.copyto(place, 0, where=~inside)
        column = place.astype(np.intp)
        # from here on the rays are those of pixels, not of bearings
        inside &= _looked_up(forward[p] * along, column, forward[q] * across + forward[2]) > 0
        rise = _looked_up(up[p] * along, column, up[q] * across + up[2])
        away = _looked_up(along ** 2, column, 1 + across ** 2)
        away -= rise * rise
        np.sqrt(np.maximum(away, 0, out=away), out=away)
        above = rise - np.float32(settings.margin_per_m) * away
        # At the distance s the ray is at the height s * rise / away above the camera; it passes
        # through the band if each of the band's ends is on its right side somewhere on the way.
        to_min, to_max = (np.float32(end - mount.height_m) * away
                          for end in (settings.min_height_m, settings.max_height_m))
        near, far = np.float32(settings.range_min_m), np.float32(settings.range_max_m)
        low_far, high_far = far * above >= to_min, far * rise <= to_max
        passes = inside & (low_far | (near * above >= to_min))
        passes &= high_far | (near * rise <= to_max)
        rows = np.flatnonzero(passes.any(1))
        if not len(rows):
            raise ScanError(
                f'the camera sees nothing between {settings.min_height_m:g} and '
                f'{settings.max_height_m:g} m above the floor within {settings.range_max_m:g} m')
        part = slice(rows[0], rows[-1] + 1)  # contiguous, as rows are
        line = np.arange(q_count)[part, None]
        column = column[part]
        self._pixels: NDArray[np.intp] = (
            line * width + column if upright else column * width + line)
        self._depth: NDArray[np.float32] = np.empty(self._pixels.shape, np.float32)
        self._away: NDArray[np.float32] = np.empty_like(self._depth)
        self._rays = _Rays(away[part], rise[part], above[part])
        self._passes: NDArray[np.bool_] = passes[part]
        self._stays: NDArray[np.bool_] = self._passes & low_far[part] & high_far[part]
        self._descends: NDArray[np.bool_] = self._passes & (self._rays.rise_above_margin < 0)
        self._ascends: NDArray[np.bool_] = self._passes & (self._rays.rise > 0)
        self._may_be_close = self._passes & self._rays.can_be_too_close(mount, settings)
        self._enough = np.maximum(1, _FREE_SHARE * self._per_bin(self._passes))
        self._enough_stay = np.maximum(1, _FREE_SHARE * self._per_bin(self._stays))
        self._note = '' if self._stays.any() else (
            'no bearing of ~/scan is ever free: the camera does not see the heights '
            f'{settings.min_height_m:g} to {settings.max_height_m:g} m as far as '
            f'scan.range_max_m, {settings.range_max_m:g} m; lower it')


def _looked_up(values: NDArray[np.float64], index: NDArray[np.intp],
               per_row: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return values[index] + per_row of the index' rows."""
    result: NDArray[np.float32] = values.astype(np.float32).take(index)
    result += per_row.astype(np.float32)[:, None]
    return result


@dataclass(frozen=True)
class Obstacle:
    """The nearest thing in view.

    Attributes:
        basis: `floor`: of what is in the height band above the floor, measured horizontally;
            `depth`: of all that is seen, the floor too, along the optical axis, because the mount
            is not known.
        distance_m: +Inf where nothing is in view, -Inf where something is nearer than can be
            measured, NaN where that is not known.
        bearing_rad: counter-clockwise (left) from the direction that the camera looks to; NaN
            where there is no obstacle or no direction.
        height_m: of that point above the floor; NaN where not known.
    """

    basis: str
    distance_m: float = math.nan
    bearing_rad: float = math.nan
    height_m: float = math.nan


class NearestObstacle:
    """Finds the nearest obstacle in depth images of one camera.

    A single wrong pixel is no obstacle: all nine of a square of pixels, on a grid of at least 320
    columns, must be as near.
    """

    def __init__(self, camera: Camera, band: BandSettings = BandSettings()) -> None:
        self.camera = camera
        self.band = band
        self._stride = max(1, camera.size_hw[1] // _COARSE_WIDTH)
        v, u = (np.arange(0, size, self._stride).astype(np.float64) for size in camera.size_hw)
        self._x = (u[None, :] - camera.cx) / camera.fx
        self._y = (v[:, None] - camera.cy) / camera.fy
        self._mount: Mount | None = None

    def find(self, depth: NDArray[np.float32], mount: Mount | None) -> Obstacle:
        """Return the nearest obstacle; see `Obstacle`.

        Args:
            depth: (H, W) metres; NaN unknown, -Inf too close, +Inf out of range (REP 117).
            mount: how the camera hangs above the floor; None where that is not known.

        Raises:
            ValueError: the depth image has another size than the camera.
        """
        if depth.shape != self.camera.size_hw:
            raise ValueError(f'obstacle: depth {depth.shape}, camera {self.camera.size_hw}')
        coarse = np.ascontiguousarray(depth[::self._stride, ::self._stride])
        unknown = np.isnan(coarse)
        if mount is None or math.isnan(mount.height_m):
            known = (coarse > 0) | np.isneginf(coarse)
            distance = np.where(known, coarse, np.float32(np.inf))
            return self._nearest('depth', distance, coarse, unknown, None)
        if _differs(self._mount, mount):
            self._rays = _Rays.of(self._x, self._y, mount, self.band)
            self._mount = mount
        mount = self._mount or mount
        counts = self._rays.is_obstacle(coarse, mount, self.band)
        with np.errstate(invalid='ignore', over='ignore'):
            distance = coarse * self._rays.away
        np.copyto(distance, np.float32(np.inf), where=~counts)
        too_close = np.isneginf(coarse)
        too_close &= self._rays.can_be_too_close(mount, self.band)
        np.copyto(distance, np.float32(-np.inf), where=too_close)
        return self._nearest('floor', distance, coarse, unknown, mount)

    def _nearest(self, basis: str, distance: NDArray[np.float32], coarse: NDArray[np.float32],
                 unknown: NDArray[np.bool_], mount: Mount | None) -> Obstacle:
        agreed = _largest(distance, 3, 3)
        v, u = divmod(int(np.argmin(agreed)), agreed.shape[1])
        if np.isposinf(agreed[v, u]):
            free = np.count_nonzero(unknown) <= (1 - _FREE_SHARE) * unknown.size
            return Obstacle(basis, math.inf if free else math.nan)
        # the farthest of the nine, not the one in their middle, which may be the wrong pixel
        down, right = divmod(int(np.argmax(distance[v - 1:v + 2, u - 1:u + 2])), 3)
        v, u = v - 1 + down, u - 1 + right
        ray = np.array([self._x[0, u], self._y[v, 0], 1.0])
        if mount is None:
            return Obstacle(basis, float(distance[v, u]), -math.atan2(ray[0], 1.0))
        try:
            forward, left, _ = level_axes(mount)
            bearing = math.atan2(left @ ray, forward @ ray)
        except ScanError:
            bearing = math.nan
        height = float(coarse[v, u] * self._rays.rise[v, u] + mount.height_m)
        return Obstacle(basis, float(distance[v, u]), bearing,
                        height if math.isfinite(height) else math.nan)
