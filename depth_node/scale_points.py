"""Metric scale from measured points: lidar, sparse SLAM, laser scanners, range finders."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
import functools
import math
import threading

import cv2
from depth_node.camera import Camera
from depth_node.scale import Estimate, Scale, ScaleTracker, TrackSettings, affine_space
from depth_node.scale_fit import (
    BLOCKS,
    MIN_SPREAD,
    Floats,
    Ints,
    fit_affine,
    fit_factor,
    median,
    search_affine,
    shortest_half,
)
from depth_node.scale_ranges import Cone, Ranges
from depth_node.scale_views import Views
import numpy as np
from numpy.typing import NDArray

FITS = ('auto', 'scale', 'scale_shift')
_MAX_POINTS = 1000  # of one measurement that are fitted; more only cost time
_MAX_SETS = 32  # measurements that wait for their image
_MAX_GRIDS = 8  # images that wait for late measurements
_MAX_PER_IMAGE = 4  # measurements that are fitted per image
_CELL_SHARE = 1 / 64  # of the image width: cell of the occlusion test
_HIDDEN = 1.25  # a point farther than this times a nearer neighbour is taken for hidden by it
_EDGE = 1.2  # ratio of depths within one pixel around a point that makes it lie on an edge
_AFFINE_EDGE = 0.15  # the same as a share of the spread of the network's values
_TRIED = 150  # points that judge whether measurements and image belong together
_SHUFFLES = 8
_PAIRS = 120  # lines tried through two points: with 40 % outliers one in three is clean
# Displacements of the picture under the measurements, as shares of its width and height.
_MOVES = np.array([(-0.25, 0), (-0.125, 0), (0.125, 0), (0.25, 0), (0, -0.25), (0, -0.125),
                   (0, 0.125), (0, 0.25), (-0.125, -0.125), (-0.125, 0.125), (0.125, -0.125),
                   (0.125, 0.125)])
_VIEWS = 12  # that count as evidence; half of them are enough
_NEW_VIEW = 0.05  # relative change of a quarter of the image that makes a new one
_MOVED_SHARE = 0.6  # of the points must stay inside of the picture to judge a displacement
# Below this spread, measured and predicted depth are so alike that there is nothing to compare.
_FLAT = 0.05
# A sensor that says the same distance everywhere, to this share, is stuck.
_STUCK = 1e-3
# Where a shift is fitted to a network with metres of its own: expected shift as a share of the
# measured inverse depth.
_SHIFT_SHARE = 0.2
_SQUARE = np.ones((3, 3), np.uint8)


@dataclass(frozen=True)
class PointsSettings(TrackSettings):
    """How measured points become a scale; names as the node's parameters.

    Attributes:
        fit: `scale` (one factor), `scale_shift` (factor and shift in the network's own space) or
            `auto`: scale_shift for relative networks.
        min_points: fewer agreeing pixels are no estimate; does not apply to ranges.
        sync_tolerance_s: how far measurement and image may be apart, seconds.
        confirmations: how many measurements must agree with each other before a first estimate
            comes into force; does not apply to ranges.
        places: how many places of the scene a range finder must have seen before its estimate is
            `ok` and not `coarse`.
    """

    fit: str = 'auto'
    min_points: int = 20
    sync_tolerance_s: float = 0.1
    confirmations: int = 3
    places: int = 6

    def __post_init__(self) -> None:
        """Refuse settings that let nothing pass."""
        super().__post_init__()
        if self.fit not in FITS:
            raise ValueError(f'scale: fit {self.fit!r}, expected one of {", ".join(FITS)}')
        for name in ('min_points', 'sync_tolerance_s', 'confirmations', 'places'):
            if not getattr(self, name) > 0:
                raise ValueError(f'scale: {name} {getattr(self, name)}, expected more than 0')

    @property
    def affine(self) -> bool:
        """True where a shift is fitted too."""
        return self.fit == 'scale_shift' or (self.fit == 'auto' and self.relative)

    @property
    def space(self) -> str:
        """One of `scale.SPACES`, where the fit is made."""
        return affine_space(self.kind) if self.affine else 'depth'


@dataclass(frozen=True)
class _Measurement:
    stamp: float
    points: NDArray[np.float32]
    cone: Cone | None = None


@dataclass(frozen=True)
class _Grid:
    stamp: float
    depth: NDArray[np.float32]
    camera: Camera


class PointsEstimator:
    """Fits the network's depth to measured points; a `ScaleEstimator`.

    Measurements and images are paired by their stamps, whichever comes first: a measurement that
    arrives late is fitted to the image of its own time.  `add`, `add_ranges` and `update` may be
    called from another thread than `estimate`.

    Attributes:
        problem: why the newest image has no estimate of its own, '' where it has or where nothing
            came for it.
    """

    def __init__(self, settings: PointsSettings | None = None) -> None:
        self._settings = settings or PointsSettings()
        self._lock = threading.Lock()
        self._tracker = ScaleTracker('points', self._settings)
        self._waiting: deque[_Measurement] = deque(maxlen=_MAX_SETS)
        self._grids: deque[_Grid] = deque(maxlen=_MAX_GRIDS)
        self._evidence = Evidence()
        self._ranges = Ranges()
        self.problem = ''

    @property
    def settings(self) -> PointsSettings:
        """The settings in force."""
        return self._settings

    def update(self, settings: PointsSettings) -> None:
        """Change the settings; what was estimated in another space is forgotten."""
        with self._lock:
            if (settings.space, settings.affine) != (self._settings.space, self._settings.affine):
                self._tracker.reset()
                self._evidence = Evidence()
                self._ranges = Ranges()
            self._settings = settings
            self._tracker.settings = settings

    def add(self, points: NDArray[np.floating], stamp: float) -> None:
        """Take measured points.

        Args:
            points: (N, 3) metres in the camera's optical frame (x right, y down, z forward, REP
                103) at `stamp`; what is not finite or behind the camera is left out.  Copied.
            stamp: time of the measurement, seconds.

        Raises:
            ValueError: another shape.
        """
        if points.ndim != 2 or points.shape[1] != 3:
            raise ValueError(f'scale: points have shape {points.shape}, expected (N, 3)')
        with np.errstate(invalid='ignore', over='ignore'):
            points = np.asarray(points, np.float32)
            x, y, z = points[:, 0], points[:, 1], points[:, 2]
            # comparisons with NaN are False
            ahead = (z > 1e-3) & (z < 1e6) & (np.abs(x) < 20 * z) & (np.abs(y) < 20 * z)
        self._put(_Measurement(stamp, points[ahead]))

    def add_ranges(self, distance_m: float, direction: NDArray[np.floating] | tuple[float, ...],
                   half_angle_rad: float, stamp: float,
                   origin: NDArray[np.floating] | tuple[float, ...] = (0.0, 0.0, 0.0)) -> None:
        """Take the nearest surface inside of a cone, as sonars and infrared rangers give it.

        Args:
            distance_m: from the sensor, not along an axis.
            direction: (3,) where the sensor looks, in the camera's optical frame.
            half_angle_rad: half of its field of view.
            stamp: time of the measurement, seconds.
            origin: (3,) where the sensor is in the camera's optical frame, metres.

        Raises:
            ValueError: not a direction, or not a cone.
        """
        axis, place = np.asarray(direction, np.float64), np.asarray(origin, np.float64)
        with np.errstate(over='ignore', invalid='ignore'):
            length = float(np.linalg.norm(axis)) if axis.shape == (3,) else 0.0
        if not 0 < length < math.inf or place.shape != (3,) or not np.isfinite(place).all():
            raise ValueError(f'scale: range from {origin} towards {direction}, expected two '
                             'vectors of three finite numbers, the second not 0')
        if not 0 <= half_angle_rad < math.pi / 2:
            raise ValueError(f'scale: half angle {half_angle_rad} rad of a range, expected 0 to '
                             'pi / 2')
        if not 0 < distance_m < math.inf:  # REP 117: Inf and NaN are no measurement
            return
        self._put(_Measurement(stamp, np.empty((0, 3), np.float32),
                               Cone(distance_m, axis / length, half_angle_rad, place)))

    def _put(self, measurement: _Measurement) -> None:
        if math.isfinite(measurement.stamp):
            with self._lock:
                self._waiting.append(measurement)

    def reset(self) -> None:
        """Forget measurements, images and estimates."""
        with self._lock:
            self._waiting.clear()
            self._grids.clear()
            self._tracker.reset()
            self._evidence = Evidence()
            self._ranges = Ranges()
            self.problem = ''

    def estimate(self, depth: NDArray[np.float32], camera: Camera, stamp: float) -> Scale:
        """Return the correction for one image; see `ScaleEstimator`.

        Raises:
            ValueError: the camera belongs to another size.
        """
        if camera.size_hw != depth.shape or min(depth.shape) < 3:
            raise ValueError(f'scale: depth {depth.shape}, camera {camera.size_hw}; expected the '
                             'same, and not less than 3 x 3')
        with self._lock:
            if self._grids and not abs(stamp - self._grids[-1].stamp) < 60:
                self._grids.clear()  # another recording, or a clock that was set
            self._grids.append(_Grid(stamp, depth.copy(), camera))
            due, reason = self._due(stamp)
            settings, tracker = self._settings, self._tracker
        if reason:
            tracker.refuse(reason)
        for measurement, grid in due:
            found = self._fit_range(measurement, grid, settings) if measurement.cone else (
                _fit_points(measurement.points, grid, settings, self._evidence))
            if isinstance(found, str):
                tracker.refuse(found)
            else:
                tracker.add(found, measurement.stamp,
                            1 if measurement.cone else settings.confirmations)
        self.problem = tracker.problem
        return tracker.scale(stamp)

    def _fit_range(self, measurement: _Measurement, grid: _Grid,
                   settings: PointsSettings) -> Estimate | str:
        if settings.affine:
            return ('a range is one distance, and scale and shift are two numbers: choose '
                    'scale.fit scale, or a sensor with more points')
        assert measurement.cone is not None
        return self._ranges.add(measurement.cone, grid.depth, grid.camera, measurement.stamp,
                                settings.local_error, settings.places)

    def _due(self, stamp: float) -> tuple[list[tuple[_Measurement, _Grid]], str]:
        """Take out the measurements whose image is there, with the nearest image each."""
        tolerance, reason = self._settings.sync_tolerance_s, ''
        due: list[tuple[_Measurement, _Grid]] = []
        later: list[_Measurement] = []
        for one in self._waiting:
            grid = min(self._grids, key=lambda grid: abs(grid.stamp - one.stamp))
            gap = one.stamp - grid.stamp
            if abs(gap) <= tolerance and (one.stamp <= stamp or gap <= 0.0):
                due.append((one, grid))
            elif one.stamp > stamp:
                later.append(one)  # the next image may be nearer
                if gap > max(1.0, 2 * tolerance):
                    reason = _out_of_step(gap, tolerance)
            else:
                reason = _out_of_step(gap, tolerance)
        self._waiting.clear()
        self._waiting.extend(later)
        return due[-_MAX_PER_IMAGE:], reason


def _out_of_step(gap: float, tolerance: float) -> str:
    side = 'newer' if gap > 0 else 'older'
    return (f'the measurement is {abs(gap):.3g} s {side} than the nearest image, more than '
            f'{tolerance:g} s (scale.sync_tolerance_s): are the clocks the same?')


@dataclass(frozen=True)
class _Samples:
    """Measured depth, and what the network says at the same place.

    Attributes:
        z: (n,) measured depth, metres.
        x: (n,) the network's inverse depth, or depth, there.
        block: (n,) part of the image.
        some: (m,) which of them judge the match.
        displaced: (k, m) the network's value at displaced places, NaN where it gave none.
        pixels: how many pixels are covered.
    """

    z: Floats
    x: Floats
    block: Ints
    some: Ints
    displaced: Floats
    pixels: int


def _sample(points: NDArray[np.float32], grid: _Grid, settings: PointsSettings) -> _Samples | str:
    """Project points into the network's grid, drop hidden ones and those on edges, and sample."""
    height, width = grid.depth.shape
    camera = grid.camera
    z = points[:, 2]
    u = camera.fx * (points[:, 0] / z) + camera.cx
    v = camera.fy * (points[:, 1] / z) + camera.cy
    inside = np.flatnonzero((u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1))
    if not inside.size:
        return (f'none of {len(points)} measured points lies in the picture: check the '
                'extrinsic, and that the sensor looks where the camera looks')
    if inside.size > 4 * _MAX_POINTS:
        inside = inside[:: inside.size // (2 * _MAX_POINTS)]
    u, v, z = u[inside], v[inside], z[inside]
    cell = max(2.0, width * _CELL_SHARE)
    column, row = (u / cell).astype(np.intp), (v / cell).astype(np.intp)
    nearest = np.full((int(height / cell) + 1, int(width / cell) + 1), np.inf, np.float32)
    # far ones first; numpy sorts 16 bits ten times as fast
    order = np.argsort((z.min() / z * np.float32(65535)).astype(np.uint16), kind='stable')
    nearest[row[order], column[order]] = z[order]  # the last one, the nearest, stays
    seen = np.flatnonzero(z <= _HIDDEN * cv2.erode(nearest, _SQUARE)[row, column])
    if seen.size > _MAX_POINTS:
        seen = seen[:: -(-seen.size // _MAX_POINTS)]
    u, v, z = u[seen], v[seen], z[seen]
    iu, iv = (u + 0.5).astype(np.intp), (v + 0.5).astype(np.intp)
    # 3 x 3 pixels around each point; at the rim the nearest such window inside of the grid
    left = np.minimum(np.maximum(iu - 1, 0), width - 3)
    top = np.minimum(np.maximum(iv - 1, 0), height - 3)
    window = grid.depth.ravel()[(top * width + left) + _offsets(width)].astype(np.float64)
    if settings.space == 'inv_depth' or not settings.affine:
        with np.errstate(divide='ignore'):
            window = 1 / window
    low, high = window.min(axis=0), window.max(axis=0)
    with np.errstate(invalid='ignore'):
        # comparisons with NaN are False: no samples beside holes
        if settings.affine:
            known = np.sort(window[4][np.isfinite(window[4])])
            rim = known.size // 20
            spread = float(known[-1 - rim] - known[rim]) if known.size else 0.0
            smooth = high - low <= _AFFINE_EDGE * spread + 1e-3 * np.abs(high)
        else:
            smooth = high <= _EDGE * low
        keep = np.flatnonzero(smooth & (low > -np.inf) & (high < np.inf))
    if not keep.size:
        return (f'none of the {inside.size} measured points in the picture lies on a surface '
                'that the network shows: all are on edges, hidden or without depth')
    u, v, iu, iv, left, top = u[keep], v[keep], iu[keep], iv[keep], left[keep], top[keep]
    # inverse depth of a plane is linear in the pixel: bilinear sampling is exact for it
    column = np.minimum((u - left).astype(np.intp), 1)
    row = np.minimum((v - top).astype(np.intp), 1)
    du, dv = (u - left - column).astype(np.float64), (v - top - row).astype(np.float64)
    corner = 3 * row + column
    x = ((1 - dv) * ((1 - du) * window[corner, keep] + du * window[corner + 1, keep])
         + dv * ((1 - du) * window[corner + 3, keep] + du * window[corner + 4, keep]))
    pixel = np.sort(iv * width + iu)
    pixels = 1 + int(np.count_nonzero(pixel[1:] != pixel[:-1]))
    block = (iv * BLOCKS // height) * BLOCKS + iu * BLOCKS // width
    some = np.arange(0, keep.size, -(-keep.size // _TRIED))
    moved_u = iu[some] + np.rint(_MOVES[:, :1] * width).astype(np.intp)
    moved_v = iv[some] + np.rint(_MOVES[:, 1:] * height).astype(np.intp)
    outside = (moved_u < 0) | (moved_u >= width) | (moved_v < 0) | (moved_v >= height)
    displaced = grid.depth[moved_v % height, moved_u % width].astype(np.float64)
    if settings.space == 'inv_depth' or not settings.affine:
        with np.errstate(divide='ignore'):
            displaced = 1 / displaced
    displaced[outside] = np.nan
    return _Samples(z[keep].astype(np.float64), x, block, some, displaced, pixels)


def _offsets(width: int) -> Ints:
    """Return (9, 1) offsets of a 3 x 3 window's pixels in an image of that width."""
    down, right = np.divmod(np.arange(9), 3)
    return np.asarray(down * width + right)[:, None]


def _fit_points(points: NDArray[np.float32], grid: _Grid, settings: PointsSettings,
                evidence: Evidence) -> Estimate | str:
    """Return the correction that points ask for, or why there is none."""
    if not len(points):
        return 'the measurement holds no points in front of the camera'
    samples = _sample(points, grid, settings)
    if isinstance(samples, str):
        return samples
    if samples.pixels < max(settings.min_points, 4):
        return (f'{samples.pixels} pixels of the picture have a measurement, expected at least '
                f'{max(settings.min_points, 4)} (scale.min_points)')
    ordered, rim = np.sort(samples.z), samples.z.size // 50
    near, far = float(ordered[rim]), float(ordered[-1 - rim])
    if far - near <= _STUCK * near:
        return (f'all measurements say {near:.3g} m: the sensor is stuck, or measures its own '
                'housing')
    found = (_affine if settings.affine else _factor)(samples, grid, settings)
    if isinstance(found, str):
        return found
    estimate, agrees, predict = found
    if estimate.support < settings.min_points:
        return (f'{estimate.support} measurements agree, expected at least '
                f'{settings.min_points} (scale.min_points)')
    if agrees.mean() < 0.5:
        return f'only {100 * agrees.mean():.0f} % of the measurements agree with any one fit'
    if np.count_nonzero(np.bincount(samples.block, agrees)) < 2:
        return ('all measurements lie in one corner of the picture: how exact the fit is cannot '
                'be told')
    match = Match.of(samples.z[samples.some], samples.x[samples.some], samples.displaced, predict)
    if not match.flat:
        evidence.add(match, grid.depth)
    if match.proves or (match.allows and evidence.proves):
        return estimate
    if match.flat or match.allows:
        return replace(estimate, proven=False, note=match.objection)
    return match.objection


_Fit = tuple[Estimate, NDArray[np.bool_], Callable[[Floats], Floats]]


def _factor(samples: _Samples, grid: _Grid, settings: PointsSettings) -> _Fit | str:
    """Fit one factor."""
    middle, error, agrees = fit_factor(np.log(samples.z * samples.x), samples.block)
    estimate = Estimate(np.array([middle]), np.array([[error * error]]),
                        support=round(samples.pixels * float(agrees.mean())))
    return estimate, agrees, lambda x: middle - np.log(x)


def _affine(samples: _Samples, grid: _Grid, settings: PointsSettings) -> _Fit | str:
    """Fit scale and shift in the space in which the network is right up to both."""
    inverse = settings.space == 'inv_depth'
    y, x = (1 / samples.z if inverse else samples.z), samples.x
    flat = float(shortest_half(np.log(samples.z)[None])[1][0]) < _FLAT
    if flat and settings.relative:
        return ('all measurements are at one distance: a network whose depth is relative needs '
                'near and far ones, for its scale and its shift')
    # the same pairs each time: an estimate must not depend on chance
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, len(samples.some), (2, _PAIRS))
    start = search_affine(x[samples.some], y[samples.some], pairs)
    prior = math.inf if settings.relative else _SHIFT_SHARE * float(np.median(y))
    if not settings.relative and (flat or not start[2] < math.inf):
        start = math.exp(fit_factor(np.log(y / x), samples.block)[0]), 0.0, 0.1
    if not start[2] < math.inf:
        return 'no line with a positive scale goes through the measurements: they do not fit'
    parameters, covariance, agrees = fit_affine(x, y, samples.block, start, prior)
    at, positive = _typical(grid, parameters, inverse)
    if positive < 0.5:
        return (f'the fit leaves a depth in {100 * positive:.0f} % of the picture only: the '
                'measurements do not fit it')
    estimate = Estimate(parameters, covariance, settings.space, at,
                        round(samples.pixels * float(agrees.mean())))
    sign = -1.0 if inverse else 1.0
    return estimate, agrees, lambda x: sign * np.log(parameters[0] * x + parameters[1])


@dataclass(frozen=True)
class Match:
    """Whether measurements and image belong together: spreads of log(measured / corrected depth).

    Any data give some fit.  Measurements of this very scene fit better than the same ones
    shuffled among their pixels, and better than with the picture moved under them.  The second
    test is the sharper one: most scenes have a floor that is near below and far above, so that
    points of another scene beat shuffled ones too.

    Attributes:
        spread: of the measurements as they are.
        chance: `spread` as a share of the shuffled measurements' spread.
        displaced: median of the spread's share of that with the picture moved.
        worst: the largest such share; above 1 some displacement fits better.
        worst_move: that displacement, shares of the width and height.
    """

    spread: float
    chance: float
    displaced: float
    worst: float
    worst_move: tuple[float, float]

    @classmethod
    def of(cls, z: Floats, x: Floats, displaced: Floats,
           predict: Callable[[Floats], Floats]) -> Match:
        """Measure.

        Args:
            z: (m,) measured depth.
            x: (m,) the network's value at the same places.
            displaced: (k, m) and at displaced ones, NaN where unknown.
            predict: from the network's value to the log of the corrected depth.
        """
        shuffles, log_z = _shuffles(len(z)), np.log(z)
        with np.errstate(invalid='ignore', divide='ignore'):
            here, there = predict(x), predict(displaced)
        there[~np.isfinite(there)] = np.nan
        known = there == there
        enough = np.count_nonzero(known, axis=1) >= _MOVED_SHARE * len(z)
        # against the same points only, for others leave the picture with each displacement
        same = np.where(known, log_z - here, np.nan)[enough]
        rows = np.concatenate([(log_z - here)[None], log_z - here[shuffles], same,
                               log_z - there[enough]])
        spreads = np.maximum(shortest_half(rows)[1], MIN_SPREAD)
        own, shuffled = float(spreads[0]), spreads[1:1 + _SHUFFLES]
        # of few points some shuffle may fit by chance: the best one counts too
        chance = own / min(float(shuffled.mean()), 1.5 * float(shuffled.min()))
        if not enough.any():
            return cls(own, chance, chance, 1.0, (0.0, 0.0))
        half = len(same)
        share = spreads[1 + _SHUFFLES:][:half] / spreads[1 + _SHUFFLES + half:]
        worst = int(share.argmax())
        return cls(own, chance, median(share), float(share[worst]),
                   tuple(_MOVES[enough][worst].tolist()))

    @property
    def proves(self) -> bool:
        """True where a first estimate may be built on it.

        The limits let pass 1 in 30 measurements of another scene (benchmarks/scale.py), before
        `confirmations`.
        """
        return self.chance < 0.5 and self.displaced < 0.72 and self.worst < 1.1

    @property
    def allows(self) -> bool:
        """True where it may confirm an estimate that is in force and agrees."""
        return self.chance < 0.7 and self.displaced < 0.9 and self.worst < 1.25

    @property
    def flat(self) -> bool:
        """True where there is nothing to compare: all fits fit."""
        return self.spread < _FLAT and self.spread / self.chance < 2 * _FLAT

    @property
    def objection(self) -> str:
        """Why they do not belong together."""
        if self.flat:
            return ('picture and measurements are flat: nothing in them could show that they do '
                    'not belong together')
        if self.worst > 1.1 and self.chance < 0.5:
            right, down = self.worst_move
            return ('measurements and picture do not fit together: with the picture moved by '
                    f'{100 * right:.0f} % of its width and {100 * down:.0f} % of its height they '
                    f'fit {self.worst:.1f} times better; check extrinsic and stamps')
        return ('measurements and picture do not fit together: their ratios spread '
                f'{100 * self.chance:.0f} % as much as with the measurements shuffled, and '
                f'{100 * self.displaced:.0f} % as much as with them displaced; check extrinsic '
                'and stamps, and that both see the same scene')


@functools.lru_cache(maxsize=8)
def _shuffles(count: int) -> Ints:
    """Return the same shuffles each time: an estimate must not depend on chance."""
    rng = np.random.default_rng(0)
    return np.stack([rng.permutation(count) for _ in range(_SHUFFLES)])


class Evidence:
    """What several views say together about whether measurements and images belong together.

    A network that is off by much at every place makes few single measurements that prove
    anything, but over some views the displaced ones fit worse on average, which chance does not
    do.  Views count when the picture has changed: the same one again is no news.
    """

    def __init__(self) -> None:
        self._matches: deque[tuple[float, float]] = deque(maxlen=_VIEWS)
        self._views = Views(_NEW_VIEW, 0.25)

    def add(self, match: Match, depth: NDArray[np.float32]) -> None:
        """Count a view, if it is a new one.

        Args:
            match: of the measurements with it.
            depth: (h, w) the network's depth.
        """
        if self._views.new(depth):
            self._views.count(depth)
            self._matches.append((math.log(match.chance), math.log(match.displaced)))

    @property
    def proves(self) -> bool:
        """True where they belong together."""
        if len(self._matches) < _VIEWS // 2:
            return False
        chance, displaced = np.exp(np.mean(self._matches, axis=0))
        return bool(chance < 0.7 and displaced < 0.85)


def _typical(grid: _Grid, parameters: Floats, inverse: bool) -> tuple[tuple[float, ...], float]:
    """Return the network's values at a near, a middle and a far pixel, and the usable share."""
    value = grid.depth[::4, ::4].astype(np.float64)
    if inverse:
        with np.errstate(divide='ignore'):
            value = 1 / value
    value = value[np.isfinite(value)]
    usable = value[value * parameters[0] + parameters[1] > 0]
    if not usable.size:
        return (), 0.0
    return tuple(np.quantile(usable, (0.1, 0.5, 0.9)).tolist()), usable.size / value.size
