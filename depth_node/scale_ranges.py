"""Metric scale from a range finder: single distances, collected over places of the scene."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
import math

import cv2
from depth_node.camera import Camera
from depth_node.scale import Estimate
from depth_node.scale_fit import MIN_ERROR, Floats, few_blocks, median, shortest_half
from depth_node.scale_views import Views
import numpy as np
from numpy.typing import NDArray

# Share of a cone's pixels that are nearer than what returned the echo. Means over 3 x 3 pixels
# are taken first, so that noise does not make the nearest: with these two the factor has no bias
# on rendered frames (benchmarks/scale.py).
_NEAREST = 0.005
_MEAN = np.full((3, 3), 1 / 9, np.float32)
_FIRST = 3  # readings before anything is said
_READINGS = 16  # of one place that are kept
_PLACES = 12  # that are kept
# The picture has changed when half of it lies at a depth that differs by this share.
_CHANGE, _SHARE = 0.1, 0.5
# The readings of one place spread by less than this (log), or something moves there.
_SCATTER = 0.15
_SPREAD = 0.03  # the places' spread is not told apart from less
_BIWEIGHT = 4.685  # see scale_fit
# Standard error of the average above which the places have too little in common to be exact.
# With a good network it is 2 %, with the ranges of another scene 12 % and more.
_EXACT = 0.1
# What the sensor measures must follow what the picture shows: the spread of the factors, as a
# share of that with the ranges of other places. Above the first limit it does not prove that both
# belong together, above the second it proves that they do not.
_FOLLOWS, _DIFFERS = 0.4, 0.9
# Ranges that spread by less (log) give nothing to follow; a sensor that is stuck gives such ones.
_VARIED = 0.12
_PAUSE_S = 60.0  # after which what was measured before does not count any more


@dataclass(frozen=True)
class Cone:
    """The nearest surface inside of a cone.

    Attributes:
        distance_m: from the sensor.
        direction: (3,) unit vector in the optical frame.
        half_angle_rad: half of the cone's angle.
        origin: (3,) where the sensor is in the optical frame, metres.
    """

    distance_m: float
    direction: Floats
    half_angle_rad: float
    origin: Floats


@dataclass(frozen=True)
class Reading:
    """What one range says about the scale.

    Attributes:
        log_factor: of the factor that brings the network's depth to the range.
        ambiguity: relative error because the echo may have come from somewhere else in the cone.
        distance_m: that was measured.
    """

    log_factor: float
    ambiguity: float
    distance_m: float


@dataclass
class _Place:
    view: int
    direction: Floats
    readings: deque[Reading] = field(default_factory=lambda: deque(maxlen=_READINGS))

    def middle(self) -> tuple[float, float, float, float]:
        """Return log factor, spread, ambiguity and log distance of the readings."""
        values = np.array([one.log_factor for one in self.readings])
        logs = np.log([one.distance_m for one in self.readings])
        ambiguity = median(np.array([one.ambiguity for one in self.readings]))
        if len(values) == 1:
            return float(values[0]), 0.0, ambiguity, float(logs[0])
        found, spread = shortest_half(values[None])
        # the distance of the readings that agree
        near = np.argsort(np.abs(values - found[0]))[:(len(values) + 1) // 2]
        return float(found[0]), float(spread[0]), ambiguity, median(logs[near])


class Ranges:
    """Collects ranges until they know the scale of the picture and not of one place.

    A network's depth is off by several percent at any one place, and a range knows one place:
    its factor is no better than that.  Ranges to other places average it out.  Readings belong to
    the same place while the picture stays as it is and the beam points into the same direction.
    """

    def __init__(self) -> None:
        self._places: deque[_Place] = deque(maxlen=_PLACES)
        self._views = Views(_CHANGE, _SHARE)
        self._view = 0
        self._stamp = math.nan

    def add(self, cone: Cone, depth: NDArray[np.float32], camera: Camera, stamp: float,
            local_error: float, wanted: int) -> Estimate | str:
        """Take a range; return what all of them say about the scale, or why nothing yet.

        Args:
            cone: the range.
            depth: (h, w) the network's depth at that time.
            camera: of that grid.
            stamp: of the measurement, seconds.
            local_error: relative error of the network's depth at one place.
            wanted: how many places it takes; an estimate from fewer is `coarse`.
        """
        reading = fit_cone(cone, depth, camera)
        if isinstance(reading, str):
            return reading
        if not abs(stamp - self._stamp) <= _PAUSE_S:
            self._places.clear()
        self._stamp = stamp
        if self._views.new(depth):
            self._views.count(depth)
            self._view += 1
        self._place(cone).readings.append(reading)
        return self._estimate(local_error, wanted)

    def _place(self, cone: Cone) -> _Place:
        apart = math.cos(max(cone.half_angle_rad, 0.05) * 2)
        for place in reversed(self._places):
            if place.view != self._view:
                break
            if float(place.direction @ cone.direction) > apart:
                return place
        self._places.append(_Place(self._view, cone.direction))
        return self._places[-1]

    def _estimate(self, local_error: float, wanted: int) -> Estimate | str:
        count = sum(len(place.readings) for place in self._places)
        if count < _FIRST:
            return f'{count} of {_FIRST} ranges so far'
        middles = np.array([place.middle() for place in self._places])
        sizes = np.array([len(place.readings) for place in self._places])
        steady = middles[:, 1] < _SCATTER
        if np.count_nonzero(steady) < max(1, 0.5 * len(middles)):
            return ('ranges to one place of an unchanged picture contradict each other: the '
                    'sensor measures something else, or something moves before it')
        values, _, ambiguity, distance = middles[steady].T
        middle, error, agrees = _average(values)
        if agrees.mean() < 0.5:
            return f'only {100 * agrees.mean():.0f} % of the places agree with any one factor'
        number = len(values)
        own = math.hypot(local_error, median(ambiguity)) / math.sqrt(number)
        varied = float(distance[agrees].std()) > _VARIED
        chance = _chance(distance, values) if varied else 0.0
        note = ''
        agreeing = int(np.count_nonzero(agrees))
        if agreeing < wanted:
            note = (f'ranges to {agreeing} of {wanted} places that agree: to be sure, the sensor '
                    'has to see other parts of the scene')
        elif not varied:
            note = ('all places are equally far away: nothing could show that the ranges do not '
                    'belong to the picture')
        elif chance > _DIFFERS:
            return ('the ranges do not follow what the picture shows: their ratios spread '
                    f'{100 * chance:.0f} % as much as with the ranges of other places; check the '
                    'sensor, and scale.extrinsic or TF')
        elif chance > _FOLLOWS or error > _EXACT:
            note = (f'the factors of {number} places leave {100 * error:.0f} % in doubt: the '
                    'network is not exact here, or the sensor looks elsewhere')
        variance = error**2 + own**2 + MIN_ERROR**2
        return Estimate(np.array([middle]), np.array([[variance]]),
                        support=int(sizes[steady][agrees].sum()), coarse=bool(note), note=note)


def _average(values: Floats) -> tuple[float, float, NDArray[np.bool_]]:
    """Return a robust average of few values, its standard error, and which agree with it.

    Tukey's biweight from the median on; with few values the median of the distances from it is a
    better spread than the shortest half is.
    """
    number = len(values)
    middle = float(np.median(values))
    if number < 4:
        return middle, float(values.std()), np.ones(number, bool)
    spread = max(float(np.median(np.abs(values - middle))) * 1.4826 * number / (number - 1),
                 _SPREAD)
    for _ in range(8):
        reduced = (values - middle) / (_BIWEIGHT * spread)
        inside = np.abs(reduced) < 1
        weight = np.where(inside, (1 - reduced * reduced) ** 2, 0.0)
        middle = float(weight @ values / weight.sum())
    residual = values - middle
    agrees = np.abs(residual) < 3 * spread
    slope = float(np.where(inside, (1 - reduced**2) * (1 - 5 * reduced**2), 0.0).sum())
    used = int(np.count_nonzero(agrees))
    if slope <= 0:
        return middle, math.inf, agrees
    return middle, math.sqrt(float(weight**2 @ residual**2)) / slope * few_blocks(used), agrees


def _chance(log_distance: Floats, log_factor: Floats) -> float:
    """Return the factors' spread as a share of that with the ranges of other places."""
    seen = log_distance - log_factor  # what the network says, apart from the scale
    number = len(seen)
    shifted = np.stack([np.roll(log_distance, step) - seen for step in range(number)])
    off = np.median(np.abs(shifted - np.median(shifted, axis=1, keepdims=True)), axis=1)
    return float(off[0]) / max(float(off[1:].mean()), _SPREAD) if number > 1 else 0.0


def fit_cone(cone: Cone, depth: NDArray[np.float32], camera: Camera) -> Reading | str:
    """Return the factor that a range asks for, or why there is none.

    Args:
        cone: the range.
        depth: (h, w) the network's depth.
        camera: of that grid.
    """
    height, width = depth.shape
    with np.errstate(over='ignore'):
        x = (np.arange(width, dtype=np.float32) - np.float32(camera.cx)) / np.float32(camera.fx)
        y = (np.arange(height, dtype=np.float32) - np.float32(camera.cy)) / np.float32(camera.fy)
        # holes are infinitely far, and so is what touches them
        smooth = cv2.filter2D(np.where(depth > 0, depth, np.float32(np.inf)), -1, _MEAN,
                              borderType=cv2.BORDER_REPLICATE)
    log_factor = 0.0
    ranges = np.empty(0, np.float32)
    # The place of a sensor beside the camera is in metres and the network's depth is not yet:
    # the factor decides which pixels the cone holds, so it is found by iteration.
    ahead = float(cone.origin @ cone.direction)
    limit = max(cone.half_angle_rad, 1.5 / min(camera.fx, camera.fy))
    for _ in range(6):
        with np.errstate(over='ignore', invalid='ignore'):
            scaled = smooth * np.float32(math.exp(log_factor))
            dx, dy, dz = (scaled * x - np.float32(cone.origin[0]),
                          scaled * y[:, None] - np.float32(cone.origin[1]),
                          scaled - np.float32(cone.origin[2]))
            distance = np.sqrt(dx * dx + dy * dy + dz * dz)
            along = (dx * np.float32(cone.direction[0]) + dy * np.float32(cone.direction[1])
                     + dz * np.float32(cone.direction[2]))
            inside = along >= np.float32(math.cos(limit)) * distance
            inside &= np.isfinite(distance)
        ranges = distance[inside]
        if ranges.size < 4:
            return ('the cone of the range lies outside of the picture, or where the network '
                    'gives no depth')
        nearest = float(np.quantile(ranges, _NEAREST))
        # along the axis it is sensor and camera together that grow with the factor
        both = max(cone.distance_m + ahead, 1e-3) / max(nearest + ahead, 1e-3)
        step = math.log(both)
        log_factor = min(max(log_factor + step, -20.0), 20.0)
        if abs(step) < 1e-3 or not cone.origin.any():
            break
    # pixels of the whole spot at that distance: how much of it the picture shows
    away = float(cone.origin[2] + cone.distance_m * cone.direction[2])
    radius = cone.distance_m * math.tan(limit) / max(away, 1e-3)
    whole = math.pi * radius**2 * camera.fx * camera.fy / max(float(cone.direction[2]), 0.1)
    if ranges.size < 0.5 * whole:
        return ('more than half of the cone of the range lies outside of the picture: what it '
                'measured may lie there')
    near, wide = (max(float(value), 1e-6) for value in np.quantile(ranges, (_NEAREST, 0.3)))
    # what returns the echo is not always the very nearest
    return Reading(log_factor, math.log(wide / near) / 2, cone.distance_m)
