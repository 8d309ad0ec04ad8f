"""Where the floor is: how a camera hangs above it."""

from __future__ import annotations

from dataclasses import dataclass
import math

import cv2
from depth_node.camera import Camera
from depth_node.scale import Estimate, Scale, ScaleTracker, TrackSettings
from depth_node.scale_fit import BLOCKS, MIN_ERROR, MIN_SPREAD, few_blocks, median
from depth_node.scale_views import Views
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Mount:
    """Direction against gravity, and the camera's height, seen from the camera.

    A point X of the optical frame (x right, y down, z forward; REP 103) is `up` . X + height_m
    above the floor.

    Attributes:
        up: unit vector against gravity in the optical frame.
        height_m: of the optical centre above the floor, metres; NaN where it is not known.
    """

    up: tuple[float, float, float]
    height_m: float = math.nan

    def __post_init__(self) -> None:
        """Refuse what is no direction."""
        length = math.sqrt(sum(part * part for part in self.up))
        if not 0.999 < length < 1.001:
            raise ValueError(f'mount: up {self.up} has length {length:g}, expected 1')
        if math.isfinite(self.height_m) and self.height_m <= 0:
            raise ValueError(f'mount: height {self.height_m} m, expected more than 0')

    @classmethod
    def from_angles(cls, height_m: float, pitch_deg: float, roll_deg: float = 0.0) -> Mount:
        """Return the mount of a camera that looks forward, turned as REP 103 counts.

        Args:
            height_m: of the optical centre above the floor, metres.
            pitch_deg: positive looks down.
            roll_deg: positive lowers the right side of the picture's scene, that is the camera
                turns clockwise about its own viewing direction.
        """
        pitch, roll = math.radians(pitch_deg), math.radians(roll_deg)
        return cls((-math.sin(roll) * math.cos(pitch), -math.cos(roll) * math.cos(pitch),
                    -math.sin(pitch)), height_m)

    def heights(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the height above the floor of (..., 3) points in the optical frame, metres."""
        result: NDArray[np.float32] = points @ np.asarray(self.up, np.float32)
        result += np.float32(self.height_m)
        return result


@dataclass(frozen=True)
class GroundSettings(TrackSettings):
    """How the floor becomes a scale; names as the node's parameters where there is one.

    Attributes:
        estimate_tilt: take the floor's own tilt where only the height is known for sure.  What
            the network bends in its picture of the floor then goes into the scale.
        tilt_error_deg: standard deviation of the mount's pitch and roll.
        max_tilt_deg: a plane that is tilted by more against the mount's floor is refused.
        height_error: relative standard deviation of the mount's height.
        min_share: share of the image that the floor must fill.
        views: in how many pictures that differ the same floor must be seen before its scale comes
            into force; one is enough where `low` and `high` are close to each other, because a
            table top is then known by its factor.
    """

    estimate_tilt: bool = False
    tilt_error_deg: float = 0.5
    max_tilt_deg: float = 12.0
    height_error: float = 0.01
    min_share: float = 0.04
    views: int = 3

    def __post_init__(self) -> None:
        """Refuse settings that let nothing pass."""
        super().__post_init__()
        for name in ('tilt_error_deg', 'max_tilt_deg', 'height_error', 'min_share',
                     'views'):
            if not getattr(self, name) > 0:
                raise ValueError(f'scale: {name} {getattr(self, name)}, expected more than 0')

    @property
    def narrow(self) -> bool:
        """True where the bounds of the factor tell a floor from a table top."""
        return self.high <= _NARROW * self.low


class GroundEstimator:
    """Fits the network's floor to the known height of the camera; a `ScaleEstimator`.

    A plane at height -h below the camera has the inverse depth 1 / Z = -(up . m) / h in the pixel
    with the ray m = ((u - cx) / fx, (v - cy) / fy, 1): linear in (u, v), and one factor takes any
    network's plane to the true one.

    Attributes:
        problem: why the newest image has no estimate of its own, '' where it has.
    """

    def __init__(self, settings: GroundSettings | None = None) -> None:
        self._settings = settings or GroundSettings()
        # A table top before the camera looks like a floor that came nearer: it takes the place of
        # the floor only when the floor has not been seen for as long as an estimate lasts.
        self._tracker = ScaleTracker('ground', self._settings,
                                     patience_s=self._settings.max_age_s, smaller_first=True,
                                     gate=_GATE)
        self._views = Views(_CHANGE, _SHARE)
        self._mount: Mount | None = None

    @property
    def settings(self) -> GroundSettings:
        """The settings in force."""
        return self._settings

    @property
    def problem(self) -> str:
        """Why the newest image has no estimate of its own, '' where it has."""
        return self._tracker.problem

    def update(self, settings: GroundSettings) -> None:
        """Change the settings."""
        self._settings = self._tracker.settings = settings
        self._tracker.patience_s = settings.max_age_s

    def set_mount(self, mount: Mount | None) -> None:
        """Say how the camera hangs at the next image; None where that is not known."""
        self._mount = mount

    def reset(self) -> None:
        """Forget what came from earlier images."""
        self._tracker.reset()
        self._views.reset()

    def estimate(self, depth: NDArray[np.float32], camera: Camera, stamp: float) -> Scale:
        """Return the correction for one image; see `ScaleEstimator`.

        Raises:
            ValueError: the camera belongs to another size.
        """
        if camera.size_hw != depth.shape:
            raise ValueError(f'scale: depth {depth.shape}, camera {camera.size_hw}')
        found = self._fit(depth, camera)
        if isinstance(found, str):
            self._tracker.refuse(found)
        elif self._settings.narrow or self._settings.views == 1:
            self._tracker.add(found, stamp)
        else:
            # all pictures of a camera that stands still say the same, right or wrong
            new = self._views.new(depth)
            if self._tracker.add(found, stamp, self._settings.views, new=new) and new:
                self._views.count(depth)
        return self._tracker.scale(stamp)

    def _fit(self, depth: NDArray[np.float32], camera: Camera) -> Estimate | str:
        settings, mount = self._settings, self._mount
        if settings.relative:
            return ('a floor gives one factor, and the depth of this network has an unknown '
                    'shift too: choose scale.source points')
        if mount is None or not math.isfinite(mount.height_m):
            return ('the height of the camera above the floor is not known: set mount.frame or '
                    'mount.height_m')
        plane = find_floor(depth, camera, mount, settings)
        if isinstance(plane, str):
            return plane
        factor = mount.height_m / plane.height
        # the floor is a part of the picture, and the rest may be off against it
        error = math.sqrt(plane.error**2 + settings.height_error**2
                          + (_REST * settings.local_error) ** 2)
        note, proven = plane.note, settings.narrow or plane.beyond >= _MIN_BEYOND
        if not proven:
            note = ('the picture shows next to nothing but what lies below the camera: a table '
                    'top would look like this floor; look up a little, or set scale.low and '
                    'scale.high around the factor that is known')
        return Estimate(np.array([math.log(factor)]), np.array([[error * error]]),
                        support=plane.pixels, proven=proven, note=note)


@dataclass(frozen=True)
class Floor:
    """A floor in a network's depth.

    Attributes:
        height: of the camera above it, in the network's unit.
        error: relative standard error of that.
        up: unit vector against gravity by the plane itself, in the optical frame.
        pixels: of the image that agree with it.
        beyond: share of the image that lies above the horizon or little below it, where the
            floor would end and something below a table top would be seen.
        note: what a reader of the status should know.
    """

    height: float
    error: float
    up: tuple[float, float, float]
    pixels: int
    beyond: float = 0.0
    note: str = ''


def find_floor(depth: NDArray[np.float32], camera: Camera, mount: Mount,
               settings: GroundSettings | None = None) -> Floor | str:
    """Find the floor in a network's depth image, or say why there is none.

    Each pixel below the horizon whose surface is level says how far below the camera that
    surface is.  The lowest level that many of them share is the floor; a plane is fitted to it.

    Args:
        depth: (h, w) the network's depth, of any scale; what is not finite and positive is left
            out.
        camera: of that grid.
        mount: direction against gravity; its height is not used.
        settings: see there.
    """
    settings = settings or GroundSettings()
    step = max(1, round(max(depth.shape) / _GRID))
    size_hw = depth.shape[0] // step, depth.shape[1] // step
    if min(size_hw) < 8:
        return f'the depth image {depth.shape} is too small'
    camera = camera.scaled(size_hw)
    with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
        # means over the cells, because a network's normals are noisy
        q: NDArray[np.float32] = np.asarray(cv2.resize(
            np.reciprocal(depth), (size_hw[1], size_hw[0]), interpolation=cv2.INTER_AREA),
            np.float32)
        up = np.asarray(mount.up)
        x = (np.arange(size_hw[1]) - camera.cx) / camera.fx
        y = (np.arange(size_hw[0])[:, None] - camera.cy) / camera.fy
        fall = -(up[0] * x + up[1] * y + up[2])  # of the ray, per metre of depth
        steep = fall / np.sqrt(x * x + y * y + 1) > math.sin(math.radians(_MIN_FALL_DEG))
        known = (q > 0) & (q < np.inf)
        below = steep & known
        wanted = settings.min_share * q.size
        if np.count_nonzero(steep) < wanted:
            return ('the picture shows too little below the horizon: a floor cannot be seen with '
                    'this tilt (mount.pitch_deg, mount.roll_deg)')
        # n / d of the plane through a pixel and its neighbours
        qu = np.full(q.shape, np.nan)
        qv = np.full(q.shape, np.nan)
        qu[:, 1:-1] = (q[:, 2:] - q[:, :-2]) * (camera.fx / 2)
        qv[1:-1] = (q[2:] - q[:-2]) * (camera.fy / 2)
        qz = q - x * qu - y * qv
        along = -(up[0] * qu + up[1] * qv + up[2] * qz)
        level = below & (along > _LEVEL_COS * np.sqrt(qu * qu + qv * qv + qz * qz))
        log_height = np.log(fall / q)
    count = int(np.count_nonzero(level))
    if count < wanted:
        return (f'no level surface: {100 * count / q.size:.0f} % of the picture is level below '
                f'the camera, expected at least {100 * settings.min_share:.0f} %')
    levels = _levels(log_height[level], wanted)
    if not levels:
        return 'no level surface: what is level lies at all heights'
    lowest, share = levels[-1]
    if share < _MIN_LEVEL_SHARE:
        return (f'several levels: only {100 * share:.0f} % of what is level lies on the lowest '
                'one (stairs?)')
    near = level & (np.abs(log_height - lowest) < 2 * _WINDOW)
    plane = _fit_plane(near, q, x, y, up, settings)
    if isinstance(plane, str):
        return plane
    height, error, found_up, agreeing = plane
    # behind the edge of a table something lies below it, and nothing lies below a floor
    deeper = float(np.count_nonzero(log_height[below] > math.log(height) + _BELOW)) / q.size
    if deeper > _MAX_BELOW:
        return (f'{100 * deeper:.1f} % of the picture lies below the lowest level surface: it is '
                'no floor (a table top?), or the tilt is wrong')
    note = ''
    if len(levels) > 1:
        note = (f'{len(levels)} level surfaces: took the lowest, '
                f'{100 * (math.exp(lowest - levels[0][0]) - 1):.0f} % farther below the camera '
                'than the highest')
    beyond = 1 - float(np.count_nonzero(steep)) / q.size
    return Floor(height, error, found_up, agreeing * step * step, beyond, note)


def _levels(log_height: NDArray[np.float64], wanted: float) -> list[tuple[float, float]]:
    """Return (log height below the camera, share) of the heights that many pixels have.

    Highest surface first.
    """
    # what is 20 times nearer or farther than the middle would only make the histogram long
    usual = log_height[np.abs(log_height - median(log_height)) < 3.0]
    low = float(usual.min())
    bins = np.bincount(((usual - low) / _BIN).astype(np.intp))
    width = 2 * round(_WINDOW / _BIN) + 1
    mass = np.convolve(bins, np.ones(width), 'same')[:len(bins)] if len(bins) >= width else (
        np.full(len(bins), float(bins.sum())))
    found: list[tuple[float, float]] = []
    enough = max(wanted, _MIN_OF_LARGEST * float(mass.max()))
    while True:
        top = int(mass.argmax())
        if mass[top] < enough:
            return sorted(found)
        # the middle of what is in the window, not of the bin
        middle = low + (top + 0.5) * _BIN
        inside = np.abs(log_height - middle) <= _WINDOW + _BIN
        found.append((median(log_height[inside]), float(inside.mean())))
        # the flanks of a peak are no peaks
        mass[max(0, top - width):top + width + 1] = 0.0


def _fit_plane(near: NDArray[np.bool_], q: NDArray[np.float32], x: NDArray[np.float64],
               y: NDArray[np.float64], up: NDArray[np.float64], settings: GroundSettings,
               ) -> tuple[float, float, tuple[float, float, float], int] | str:
    """Fit a plane to pixels near a level: q = -(A up + B e1 + C e2) . m, e1, e2 level.

    Tukey's biweight on relative residuals; B and C are held by a prior, the tilt that the mount
    may have.

    Returns:
        height, its relative standard error, up by the plane, and how many pixels agree.
    """
    v, u = np.nonzero(near)
    rays = np.stack([x[u], y[v, 0], np.ones(len(u))], 1)
    # two level directions; the axis least along up makes the first
    first = np.cross(up, np.eye(3)[int(np.abs(up).argmin())])
    first /= np.linalg.norm(first)
    axes = np.stack([up, first, np.cross(up, first)])
    rows = -(rays @ axes.T) / q[near][:, None]
    block = (v * BLOCKS // q.shape[0]) * BLOCKS + u * BLOCKS // q.shape[1]
    share = (1.0 / np.sqrt(np.maximum(np.bincount(block), 1)))[block]
    free = _irls(rows, share, block, math.radians(_FREE_TILT_DEG))
    tilt = math.degrees(math.atan2(math.hypot(free[0][1], free[0][2]), free[0][0]))
    if not tilt <= settings.max_tilt_deg:
        return (f'the lowest level surface is tilted by {tilt:.0f} degrees against the mount, '
                f'more than {settings.max_tilt_deg:g}: a ramp, or a wrong tilt of the mount')
    if settings.estimate_tilt:
        parameters, covariance, agreeing = free
    else:
        parameters, covariance, agreeing = _irls(rows, share, block,
                                                 math.radians(settings.tilt_error_deg))
    length = float(np.linalg.norm(parameters))
    if not (0 < length < math.inf and np.isfinite(covariance).all()):
        return 'the floor that is seen is too small for a fit'
    direction = parameters / length
    error = math.sqrt(max(float(direction @ covariance @ direction), 0.0)) / length
    by_plane = direction @ axes
    return (1 / length, math.hypot(error, MIN_ERROR),
            (float(by_plane[0]), float(by_plane[1]), float(by_plane[2])), agreeing)


def _irls(rows: NDArray[np.float64], share: NDArray[np.float64], block: NDArray[np.int64],
          tilt_rad: float) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Solve rows @ p = 1 robustly, with p[1:] / p[0] expected to be 0 +- tilt_rad.

    Returns:
        (3,) p, (3, 3) its covariance between blocks of the image, and how many rows agree.
    """
    p = np.array([1 / median(rows[:, 0]), 0.0, 0.0])
    spread = max(median(np.abs(rows @ p - 1)) * 1.5, MIN_SPREAD)
    blocks = max(1, int(np.count_nonzero(np.bincount(block))))
    for _ in range(5):
        residual = rows @ p - 1
        reduced = residual / (4.685 * spread)
        inside = np.abs(reduced) < 1
        weight = np.where(inside, (1 - reduced * reduced) ** 2, 0.0) * share
        weighted = rows * weight[:, None]
        # the prior weighs against blocks, because pixels of a block err together
        held = np.diag([0.0, 1.0, 1.0]) * (float(weight.sum()) / blocks
                                           * (spread / (tilt_rad * p[0])) ** 2)
        bread = weighted.T @ rows + held
        try:
            p = np.linalg.solve(bread, weighted.sum(axis=0))
        except np.linalg.LinAlgError:
            return p, np.full((3, 3), math.inf), 0
        near = np.abs(rows @ p - 1)
        near = near[near < 3 * spread]
        spread = max(median(near) * 1.4826 if near.size else spread, MIN_SPREAD)
    residual = rows @ p - 1
    agrees = np.abs(residual) < 3 * spread
    used = int(np.count_nonzero(np.bincount(block, agrees)))
    if used < 2 or not p[0] > 0:
        return p, np.full((3, 3), math.inf), 0
    pull = np.stack([np.bincount(block, weight * residual * column) for column in rows.T], 1)
    bend = np.linalg.inv(bread)
    covariance = bend @ (few_blocks(used) ** 2 * (pull.T @ pull)
                         + held @ held * (tilt_rad * p[0]) ** 2) @ bend
    return p, covariance, int(np.count_nonzero(agrees))


_REST = 0.4  # of the local error; measured with benchmarks/scale.py
_GRID = 80  # cells along the longer side of the image
_MIN_FALL_DEG = 6.0  # rays that fall less meet the floor too far away
_LEVEL_COS = math.cos(math.radians(30))  # a cell whose normal is nearer to up is level
_BIN = 0.02  # of the histogram of log heights
_WINDOW = 0.12  # half width of a level, log
_MIN_OF_LARGEST = 0.3  # a level has at least this share of the largest one's pixels
_MIN_LEVEL_SHARE = 0.35  # of all that is level
# Log: what is so much lower than the floor is below it. On rendered frames less than one floor in
# a hundred of the bundled network, and none of a good one, has so much of the picture below it;
# of the table tops three quarters (benchmarks/scale.py).
_BELOW = 0.3
_MAX_BELOW = 0.005
_MIN_BEYOND = 0.08  # of the picture, in which the end of a table would show
# Floors of several pictures share what makes their stated errors, so that right ones are closer to
# each other than those say.
_GATE = 2.0
_NARROW = 2.0  # ratio of scale.high to scale.low
# The picture is another one when a seventh of it lies at a depth that differs by this share: a
# floor looks alike from everywhere, only what stands on it changes.
_CHANGE, _SHARE = 0.1, 0.15
_FREE_TILT_DEG = 15.0
