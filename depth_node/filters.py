"""Filters on the depth grid, each O(pixels): what they remove, in which order, and how much.

`FilterChain` runs them.  On the network's grid, where a filter costs a sixth of what it costs on a
640x480 image: temporal, median, flying pixels, speckle.  At the image's size, where a border must
be exact: range, sky, confidence, region, polygons and mask.  docs/filters.md has the reasons and
the numbers.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
import functools
import json
import math
import os
from pathlib import Path
from typing import Any

import cv2
from depth_node.camera import Camera
import numpy as np
from numpy.typing import NDArray

TEMPORAL_MODES = ('off', 'ema', 'median')
MEDIAN_SIZES = (0, 3, 5)
MAX_FRAMES = 15
# Networks bend their map within this many pixels of its border (padding): no verdict there.
RIM_PX = 2
# Of the jump: how far nearness (1 / depth) must leave a straight line to be an edge, not a slope.
_BEND_SHARE = 0.1
# Steps of the logarithm of depth in an int16: 0.05 % each, from 1e-7 m to 1e7 m.
_LOG_STEPS = 2000.0
_UNKNOWN_STEP = -32768

Polygon = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class FilterSettings:
    """What is removed from the depth image.

    Pixels are those of the rectified image; whole numbers are pixel centres.

    Attributes:
        near_m: nearer depths become -Inf (REP 117: too close); None takes the card's range.
        far_m: farther depths become +Inf (REP 117: out of range); None takes the card's range.
        flying_pixel_angle_deg: surfaces seen at a smaller angle to the viewing ray become NaN;
            0 switches this test off.
        flying_pixel_jump: pixels beside a bent step of depth larger than this share become NaN;
            0 switches this test off.
        speckle_px: connected patches of fewer image pixels become NaN; 0 is off.
        speckle_jump: neighbours that differ by more than this share are not connected.
        median: width of the median window on the network's grid, one of `MEDIAN_SIZES`; 0 is off.
        temporal: one of `TEMPORAL_MODES`; needs stamps that grow.
        temporal_frames: how many frames are averaged where nothing moves.
        temporal_gate: relative change of depth that is followed at once.
        min_confidence: pixels of smaller confidence become NaN; 0 is off.
        roi: (u0, v0, width, height): what lies outside becomes NaN; width or height 0 reaches to
            the border; None is all.
        ignore: polygons of (u, v) whose inside becomes NaN (the robot's own parts).
        mask_file: picture of the image's size; black (0) becomes NaN; empty is none.
    """

    near_m: float | None = None
    far_m: float | None = None
    flying_pixel_angle_deg: float = 0.0
    flying_pixel_jump: float = 0.08
    speckle_px: int = 0
    speckle_jump: float = 0.1
    median: int = 0
    temporal: str = 'ema'
    temporal_frames: int = 8
    temporal_gate: float = 0.05
    min_confidence: float = 0.0
    roi: tuple[int, int, int, int] | None = None
    ignore: tuple[Polygon, ...] = ()
    mask_file: str = ''

    def __post_init__(self) -> None:
        """Refuse ranges and numbers that keep nothing or mean nothing."""
        near, far = self.near_m or 0.0, self.far_m if self.far_m is not None else math.inf
        if not 0 <= near < far:
            raise ValueError(f'filter: near {self.near_m} m, far {self.far_m} m; expected '
                             '0 <= near < far')
        if not 0 <= self.flying_pixel_angle_deg < 45:
            raise ValueError(f'filter: flying pixel angle {self.flying_pixel_angle_deg} degrees, '
                             'expected 0 (off) to 45')
        for name, value, low, high in (
                ('flying pixel jump', self.flying_pixel_jump, 0.0, 1.0),
                ('speckle jump', self.speckle_jump, 0.001, 1.0),
                ('temporal gate', self.temporal_gate, 0.001, 1.0),
                ('minimum confidence', self.min_confidence, 0.0, 1.0)):
            if not low <= value <= high:
                raise ValueError(f'filter: {name} {value}, expected {low:g} to {high:g}')
        if self.speckle_px < 0:
            raise ValueError(f'filter: speckle of {self.speckle_px} pixels, expected 0 (off) or '
                             'more')
        if self.median not in MEDIAN_SIZES:
            raise ValueError(f'filter: median {self.median}, expected one of '
                             f'{", ".join(map(str, MEDIAN_SIZES))}')
        if self.temporal not in TEMPORAL_MODES:
            raise ValueError(f'filter: temporal {self.temporal!r}, expected one of '
                             f'{", ".join(TEMPORAL_MODES)}')
        if not 2 <= self.temporal_frames <= MAX_FRAMES:
            raise ValueError(f'filter: {self.temporal_frames} temporal frames, expected 2 to '
                             f'{MAX_FRAMES}')
        if self.roi is not None and (len(self.roi) != 4 or min(self.roi) < 0):
            raise ValueError(f'filter: region {self.roi}, expected x, y, width, height, none '
                             'below 0')
        for polygon in self.ignore:
            if len(polygon) < 3:
                raise ValueError(f'filter: polygon {list(polygon)} has {len(polygon)} corners, '
                                 'expected at least 3')

    @classmethod
    def off(cls) -> FilterSettings:
        """Return settings that keep every depth that the network gives."""
        return cls(near_m=0.0, far_m=math.inf, flying_pixel_angle_deg=0.0, flying_pixel_jump=0.0,
                   temporal='off')

    def range_m(self, card_range_m: tuple[float, float] | None) -> tuple[float, float]:
        """Return the (near, far) in force, metres, given the card's own range."""
        near, far = card_range_m if card_range_m is not None else (0.0, math.inf)
        return (self.near_m if self.near_m is not None else near,
                self.far_m if self.far_m is not None else far)


def parse_polygons(text: str) -> tuple[Polygon, ...]:
    """Read polygons as Nav2 writes them: '[[u, v], [u, v], [u, v]]', or a list of such.

    Raises:
        ValueError: anything else; the text says what was found.
    """
    if not text.strip():
        return ()
    wanted = "expected '[[u, v], [u, v], [u, v]]' in pixels, or a list of such polygons"
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f'polygon {text!r} cannot be read ({error}); {wanted}') from error
    if not isinstance(found, list):
        raise ValueError(f'polygon {text!r}: {wanted}')
    lists = [found] if found and _is_corner(found[0]) else found
    polygons: list[Polygon] = []
    for polygon in lists:
        if not isinstance(polygon, list) or not all(_is_corner(corner) for corner in polygon):
            raise ValueError(f'polygon {polygon!r}: {wanted}')
        if len(polygon) < 3:
            raise ValueError(f'polygon {polygon!r} has {len(polygon)} corners; {wanted}')
        polygons.append(tuple((float(u), float(v)) for u, v in polygon))
    return tuple(polygons)


def _is_corner(value: Any) -> bool:
    # beyond 16 bits no image has pixels, and drawing in fixed point would overflow
    return isinstance(value, list) and len(value) == 2 and all(
        isinstance(part, (int, float)) and not isinstance(part, bool)
        and -65536 <= part <= 65536 for part in value)


def read_mask(path: str | os.PathLike[str]) -> NDArray[np.bool_]:
    """Read a mask picture: (H, W), True where it is black, that is where depth is ignored.

    Raises:
        ValueError: the file is not there, or is no picture.
    """
    file = Path(path).expanduser()
    try:
        changed_ns = file.stat().st_mtime_ns
    except OSError as error:
        raise ValueError(f'mask {file}: {error.strerror or error}') from error
    return _read_mask(file, changed_ns)


@functools.lru_cache(maxsize=8)
def _read_mask(file: Path, _changed_ns: int) -> NDArray[np.bool_]:
    try:
        raw = np.fromfile(file, np.uint8)
    except OSError as error:
        raise ValueError(f'mask {file}: {error.strerror or error}') from error
    grey = cv2.imdecode(raw, cv2.IMREAD_GRAYSCALE) if raw.size else None
    if grey is None:
        raise ValueError(f'mask {file}: not a picture; expected a PNG of the size of the image, '
                         'black where depth is to be ignored')
    return np.asarray(grey == 0)


class Scratch:
    """Arrays that the filters work in, kept from frame to frame.

    Fresh arrays of this size cost page faults, which on a busy machine take longer than the
    arithmetic.
    """

    def __init__(self) -> None:
        self._kept: dict[str, NDArray[Any]] = {}

    def real(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return the float32 array of that name, of any content."""
        return self._array(name, shape, np.float32)

    def truth(self, name: str, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Return the boolean array of that name, of any content."""
        return self._array(name, shape, np.bool_)

    def _array(self, name: str, shape: tuple[int, ...], kind: type[Any]) -> NDArray[Any]:
        size = math.prod(shape)
        kept = self._kept.get(name)
        if kept is None or kept.size < size:
            kept = self._kept[name] = np.empty(size, kind)
        return kept[:size].reshape(shape)


def range_clip(depth: NDArray[np.float32], near_m: float, far_m: float) -> tuple[int, int]:
    """Mark depths outside of [near, far] as REP 117 asks: -Inf too close, +Inf out of range.

    Args:
        depth: (H, W) metres, NaN unknown; changed in place.
        near_m: smallest depth kept, metres.
        far_m: largest depth kept, metres.

    Returns:
        How many pixels were too near and too far.
    """
    too_near, too_far = depth < near_m, depth > far_m
    counts = int(np.count_nonzero(too_near)), int(np.count_nonzero(too_far))
    if counts[0]:
        depth[too_near] = -np.inf
    if counts[1]:
        depth[too_far] = np.inf
    return counts


def flying_pixels(depth: NDArray[np.float32], camera: Camera, min_angle_deg: float,
                  jump: float = 0.0, scratch: Scratch | None = None) -> int:
    """Remove the ramps that a network draws between two surfaces: its points hang in the air.

    Two tests, each can be switched off.

    Angle: two neighbouring pixels are points Z / f apart sideways and dZ apart in depth.  Where
    the line through them meets the viewing ray at less than `min_angle_deg`, that is where
    |dZ| f / min(Z) > cot(angle), both are removed (the shadow-point test of laser scan filters,
    written for a pinhole camera near its axis).  It depends on the angle only, not on the
    resolution or the distance: a floor seen from height h is kept up to h / tan(angle).

    Jump: a pixel is removed where the largest depth of its 3x3 window exceeds the smallest by
    more than the share `jump`, unless the window lies on a slope.  Nearness 1 / Z is linear in
    the pixel on every plane; only where it bends by more than a tenth of the jump per pixel, in
    the pixel or beside it, is a step an edge.  So a floor stays up to the horizon.

    The outermost `RIM_PX` pixels are not judged, because networks bend their maps there; they
    share the verdict of the nearest pixel that is.

    Args:
        depth: (H, W) metres, not finite where unknown; removed pixels become NaN in place.
        camera: rectified camera of this grid.
        min_angle_deg: smallest angle kept, degrees; 0 keeps all.
        jump: largest step kept, as a share; 0 keeps all.
        scratch: arrays to work in, of the caller's last call.

    Returns:
        How many pixels were removed.

    Raises:
        ValueError: the camera belongs to another size.
    """
    if min_angle_deg <= 0 and jump <= 0:
        return 0
    if camera.size_hw != depth.shape:
        raise ValueError(f'filter: depth {depth.shape}, camera {camera.size_hw}')
    scratch = scratch or Scratch()
    rim = RIM_PX if min(depth.shape) > 3 * RIM_PX else 0
    inner = depth[rim:depth.shape[0] - rim, rim:depth.shape[1] - rim]
    flying = scratch.truth('flying', inner.shape)
    flying.fill(False)
    with np.errstate(all='ignore'):
        if jump > 0:
            _mark_jumps(inner, jump, flying, scratch)
        if min_angle_deg > 0:
            _mark_grazing(inner, camera, math.tan(math.radians(min_angle_deg)), flying, scratch)
    if not flying.any():
        return 0
    if rim:
        flying = cv2.copyMakeBorder(flying.view(np.uint8), rim, rim, rim, rim,
                                    cv2.BORDER_REPLICATE).view(np.bool_)
    flying &= np.isfinite(depth, out=scratch.truth('finite', depth.shape))
    depth[flying] = np.nan
    return int(np.count_nonzero(flying))


def _mark_grazing(depth: NDArray[np.float32], camera: Camera, tangent: float,
                  flying: NDArray[np.bool_], scratch: Scratch) -> None:
    for first, second, focal in (
            (np.s_[:, :-1], np.s_[:, 1:], camera.fx), (np.s_[:-1], np.s_[1:], camera.fy)):
        rise = scratch.real('rise', depth.shape)[first]
        np.subtract(depth[second], depth[first], out=rise)
        np.abs(rise, out=rise)
        rise *= np.float32(focal * tangent)
        least = scratch.real('least', depth.shape)[first]
        np.minimum(depth[first], depth[second], out=least)
        edge = np.greater(rise, least, out=scratch.truth('edge', depth.shape)[first])
        flying[first] |= edge
        flying[second] |= edge


def _mark_jumps(depth: NDArray[np.float32], jump: float, flying: NDArray[np.bool_],
                scratch: Scratch) -> None:
    shape = depth.shape
    known = np.isfinite(depth, out=scratch.truth('known', shape))
    known &= np.greater(depth, 0, out=scratch.truth('positive', shape))
    nearness = np.reciprocal(depth, out=scratch.real('nearness', shape))
    nearest = farthest = nearness
    if not known.all():
        unknown = ~known
        nearest, farthest = scratch.real('nearest', shape), scratch.real('farthest', shape)
        np.copyto(nearest, nearness)
        np.copyto(farthest, nearness)
        nearest[unknown], farthest[unknown] = 0.0, np.inf  # never the extreme of a window
        nearness[unknown] = np.nan
    window = np.ones((3, 3), np.uint8)
    highest = np.asarray(cv2.dilate(nearest, window, dst=scratch.real('highest', shape)))
    lowest = np.asarray(cv2.erode(farthest, window, dst=scratch.real('lowest', shape)),
                        np.float32)
    lowest *= np.float32(1 + jump)
    steps = np.greater(highest, lowest, out=scratch.truth('steps', shape))
    bent = scratch.truth('bent', shape)
    bent.fill(False)
    allowed = np.multiply(nearness, np.float32(_BEND_SHARE * jump),
                          out=scratch.real('allowed', shape))
    for before, here, after in (
            (np.s_[:, :-2], np.s_[:, 1:-1], np.s_[:, 2:]), (np.s_[:-2], np.s_[1:-1], np.s_[2:])):
        bend = scratch.real('bend', shape)[here]
        np.add(nearness[before], nearness[after], out=bend)
        bend -= nearness[here]
        bend -= nearness[here]
        np.abs(bend, out=bend)
        # a comparison with NaN is False: no bend is known beside an unknown pixel
        bent[here] |= np.greater(bend, allowed[here], out=scratch.truth('edge', shape)[here])
    steps &= cv2.dilate(bent.view(np.uint8), window).view(np.bool_)
    steps &= known
    flying |= steps


def speckle(depth: NDArray[np.float32], min_px: int, jump: float) -> int:
    """Remove connected patches of fewer than `min_px` pixels.

    Pixels are connected to their four neighbours where the depths differ by at most the share
    `jump` (on a logarithm in steps of 0.05 %).  What is not finite connects nothing.

    Args:
        depth: (H, W) metres; removed pixels become NaN in place.
        min_px: smallest patch kept, pixels of this grid.
        jump: relative step of depth that cuts.

    Returns:
        How many pixels were removed.
    """
    if min_px <= 1:
        return 0
    known = np.isfinite(depth) & (depth > 0)
    steps = np.asarray(cv2.log(depth), np.float32)
    steps *= np.float32(_LOG_STEPS)
    steps[~known] = _UNKNOWN_STEP
    labels = np.rint(steps, out=steps).astype(np.int16)
    cv2.filterSpeckles(labels, _UNKNOWN_STEP, min_px - 1, round(_LOG_STEPS * math.log1p(jump)))
    small = labels == _UNKNOWN_STEP
    small &= known
    count = int(np.count_nonzero(small))
    if count:
        depth[small] = np.nan
    return count


def median(depth: NDArray[np.float32], size: int, scratch: Scratch | None = None) -> None:
    """Replace each known depth by the median of the known ones in its window, in place.

    Unknown pixels stay as they are and count for nothing; beyond the border the outermost pixels
    go on.  The median of an even number of depths is the mean of the middle two.

    Args:
        depth: (H, W) metres, not finite where unknown.
        size: width of the window, 3 or 5 pixels.
        scratch: arrays to work in, of the caller's last call.
    """
    scratch = scratch or Scratch()
    unknown = ~np.isfinite(depth)
    if not unknown.any():
        depth[:] = cv2.medianBlur(depth, size)
        return
    smooth = cv2.medianBlur(np.where(unknown, np.float32(0), depth), size)
    touched = cv2.dilate(unknown.view(np.uint8), np.ones((size, size), np.uint8)).view(np.bool_)
    v, u = np.nonzero(touched & ~unknown)
    if v.size:
        reach = size // 2
        padded = cv2.copyMakeBorder(np.where(unknown, np.float32(np.nan), depth),
                                    reach, reach, reach, reach, cv2.BORDER_REPLICATE)
        corner = v * padded.shape[1] + u
        flat = padded.reshape(-1)
        window = scratch.real('window', (size * size, v.size))
        for row, (dv, du) in enumerate(np.ndindex(size, size)):
            # mode clip writes straight into `out`; no index is outside
            flat[dv * padded.shape[1] + du:].take(corner, out=window[row], mode='clip')
        smooth[v, u] = _known_median(window, scratch)
    np.copyto(depth, smooth, where=~unknown)


def _known_median(stack: NDArray[np.float32], scratch: Scratch) -> NDArray[np.float32]:
    """Return the median along the first axis of what is not NaN, NaN where all is.

    The stack is sorted in place by a network of exchanges: for a few values per pixel several
    times faster than np.sort along that axis.
    """
    known = np.equal(stack, stack, out=scratch.truth('known of stack', stack.shape))
    complete = bool(known.all())
    if not complete:
        cv2.patchNaNs(stack.reshape(len(stack), -1), np.inf)  # sorted behind all others
    rows, spare = list(stack), scratch.real('spare', stack.shape[1:])
    for low, high, with_high in _exchanges(len(rows)):
        if with_high:
            np.maximum(rows[low], rows[high], out=spare)
        np.minimum(rows[low], rows[high], out=rows[low])
        if with_high:
            rows[high], spare = spare, rows[high]
    middle: NDArray[np.float32]
    half_of = np.float32(0.5)  # of each before they are added: no overflow
    if complete:
        middle = rows[(len(rows) - 1) // 2] * half_of
        middle += rows[len(rows) // 2] * half_of
    else:
        count = known.view(np.uint8).sum(0, dtype=np.uint8).reshape(-1).astype(np.intp)
        half = len(rows) // 2 + 1
        lower = scratch.real('lower half', (half, *stack.shape[1:]))
        lower = np.stack(rows[:half], out=lower).reshape(-1)
        here = np.arange(count.size)
        middle = lower.take((np.maximum(count - 1, 0) >> 1) * count.size + here, mode='clip')
        middle *= half_of
        middle += lower.take((count >> 1) * count.size + here, mode='clip') * half_of
        middle[count == 0] = np.nan
        middle = middle.reshape(stack.shape[1:])
    return middle


@functools.cache
def _exchanges(count: int) -> tuple[tuple[int, int, bool], ...]:
    """Return (low, high, with_high): what sorts the lower half of `count` values.

    Batcher's merge exchange (Knuth, TAOCP 3, 5.2.2, algorithm M), without the exchanges that
    only the upper half needs; `with_high` is False where the larger value is not needed any more.
    """
    pairs: list[tuple[int, int]] = []
    top = 1 << max(0, (count - 1).bit_length() - 1)
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            pairs += [(i, i + d) for i in range(count - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
    needed, found = set(range(count // 2 + 1)), list[tuple[int, int, bool]]()
    for low, high in reversed(pairs):
        if low in needed or high in needed:
            found.append((low, high, high in needed))
            needed |= {low, high}
    return tuple(reversed(found))


class TemporalFilter:
    """Steadies depth over time where nothing moves, and follows at once where something does.

    Each pixel holds an average (or the median) of the frames since it last moved, at most
    `frames` of them.  It starts anew, with the newest depth alone, where

    - the picture changed: a difference of more than `PICTURE_STEP` grey levels, averaged over 3x3
      pixels, to the picture that the average was made from, in the pixel or within `REACH_PX`;
    - the camera moved: such changes in more than `MOVING_SHARE` of a raster of 12 x 16 fields;
    - the depth changed by more than the share `gate`;
    - the depth was unknown: an unknown pixel stays unknown and forgets.

    The picture decides because it is far more certain than the depth: on a static camera a
    network's noise is correlated in space and looks like motion, and slow motion of the camera
    changes depth by less than that noise.
    """

    PICTURE_STEP = 4.0
    REACH_PX = 4
    MOVING_SHARE = 0.25
    MAX_GAP_S = 2.0

    def __init__(self, mode: str, frames: int, gate: float) -> None:
        """Prepare a filter.

        Args:
            mode: `ema` (running mean, then exponential with weight 1 / frames) or `median`.
            frames: how many frames are averaged.
            gate: relative change of depth that is followed at once.
        """
        self.mode, self.frames, self.gate = mode, frames, gate
        self._scratch = Scratch()
        #: Share of pixels that were smoothed over more than one frame in the last call.
        self.smoothed_share = 0.0
        self.reset()

    def reset(self) -> None:
        """Forget all frames."""
        self._context: Hashable = None
        self._stamp = -math.inf
        self._state: NDArray[np.float32] = np.empty((0, 0), np.float32)
        self._count: NDArray[np.float32] = np.empty((0, 0), np.float32)
        self._grey: NDArray[np.float32] | None = None
        self._history: NDArray[np.float32] = np.empty((0, 0, 0), np.float32)
        self._next = 0
        self.smoothed_share = 0.0

    def __call__(self, depth: NDArray[np.float32], stamp: float, *,
                 picture: NDArray[np.uint8] | None = None, context: Hashable = None) -> None:
        """Smooth one frame in place.

        Args:
            depth: (H, W) metres, not finite where unknown.
            stamp: acquisition time, seconds.  A stamp that does not grow, or that is more than
                `MAX_GAP_S` later, starts anew.
            picture: (h, w, 3) uint8, what the depth was made from; without it only depth tells
                of motion.
            context: camera, scale source and whatever else makes frames comparable; another
                value than last time starts anew.
        """
        grey = None if picture is None else self._grey_of(picture, depth.shape)
        fresh = not (0 < stamp - self._stamp <= self.MAX_GAP_S) or context != self._context
        fresh |= self._state.shape != depth.shape or (grey is None) != (self._grey is None)
        self._stamp, self._context = stamp, context
        moved: NDArray[np.bool_] | None = None
        if not fresh and grey is not None:
            moved = self._moved(grey)
            fresh = moved is None
        if fresh:
            self._start(depth, grey)
            return
        shape, state, count = depth.shape, self._state, self._count
        change, part = self._scratch.real('change', shape), self._scratch.real('part', shape)
        follow = self._scratch.truth('follow', shape)
        unknown = np.isfinite(depth, out=self._scratch.truth('unknown', shape))
        np.logical_not(unknown, out=unknown)
        with np.errstate(all='ignore'):
            np.subtract(depth, state, out=change)
            np.abs(change, out=part)
            part /= state
            # written so that NaN on either side follows
            np.less_equal(part, np.float32(self.gate), out=follow)
            np.logical_not(follow, out=follow)
            if moved is not None:
                follow |= moved
            count += 1
            np.minimum(count, np.float32(self.frames), out=count)
            count[follow] = 1
            change /= count
            state += change
            np.copyto(state, depth, where=follow)  # an unknown pixel follows, so that it forgets
        if grey is not None and self._grey is not None:
            grey -= self._grey
            grey /= count
            self._grey += grey
        smoothed = state
        if self.mode == 'median':
            self._next = (self._next + 1) % self.frames
            self._history[:, follow] = np.nan
            np.copyto(self._history[self._next], depth)
            stack = self._scratch.real('stack', self._history.shape)
            np.copyto(stack, self._history)
            smoothed = _known_median(stack, self._scratch)
        np.copyto(depth, smoothed, where=np.logical_not(unknown, out=unknown))
        self.smoothed_share = 1 - float(np.count_nonzero(follow)) / depth.size

    def _start(self, depth: NDArray[np.float32], grey: NDArray[np.float32] | None) -> None:
        known = np.isfinite(depth)
        self._state = np.where(known, depth, np.float32(np.nan))
        self._count = np.ones(depth.shape, np.float32)
        self._grey = grey
        self.smoothed_share = 0.0
        if self.mode == 'median':
            self._history = np.full((self.frames, *depth.shape), np.nan, np.float32)
            self._history[self._next] = self._state

    @staticmethod
    def _grey_of(picture: NDArray[np.uint8], size_hw: tuple[int, ...]) -> NDArray[np.float32]:
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        if grey.shape != size_hw:
            grey = cv2.resize(grey, (size_hw[1], size_hw[0]), interpolation=cv2.INTER_AREA)
        return np.asarray(grey, np.float32)

    def _moved(self, grey: NDArray[np.float32]) -> NDArray[np.bool_] | None:
        """Return where the picture moved, None if the camera did."""
        assert self._grey is not None
        change = cv2.blur(cv2.subtract(grey, self._grey), (3, 3))
        moved = (np.abs(change) > self.PICTURE_STEP).view(np.uint8)
        moved *= 255
        fields = cv2.resize(moved, (16, 12), interpolation=cv2.INTER_AREA)
        if np.count_nonzero(fields > 5) > self.MOVING_SHARE * fields.size:
            return None
        side = 2 * self.REACH_PX + 1
        reached = cv2.dilate(moved, np.ones((side, side), np.uint8))
        return np.asarray(reached > 0)


@dataclass
class _Masks:
    """What settings alone exclude from images of one size, in order of the reasons."""

    size_hw: tuple[int, int]
    parts: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    together: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: FilterSettings, size_hw: tuple[int, int]) -> _Masks:
        """Draw the region, the polygons and the mask file for one image size."""
        height, width = size_hw
        found = cls(size_hw)
        if settings.roi is not None:
            u0, v0, roi_w, roi_h = settings.roi
            outside = np.ones(size_hw, np.bool_)
            outside[v0:v0 + (roi_h or height), u0:u0 + (roi_w or width)] = False
            found.parts['outside_roi'] = outside
        if settings.ignore:
            drawn = np.zeros(size_hw, np.uint8)
            for polygon in settings.ignore:
                # fixed point: sixteenths of a pixel
                corners = np.rint(np.asarray(polygon) * 16).astype(np.int32)
                cv2.fillPoly(drawn, [corners], 1, shift=4)
            found.parts['ignore_polygon'] = drawn.astype(np.bool_)
        if settings.mask_file:
            problem = ''
            try:
                mask = read_mask(settings.mask_file)
            except ValueError as error:
                problem = str(error)
            else:
                if mask.shape == size_hw:
                    found.parts['mask'] = mask
                else:
                    problem = (
                        f'mask {settings.mask_file} is {mask.shape[1]}x{mask.shape[0]}, the image '
                        f'{width}x{height}; draw it on a rectified image of this size')
            if problem:
                found.notes = (f'filter: the mask is not applied: {problem}',)
        if found.parts:
            found.together = np.logical_or.reduce(list(found.parts.values()))
        return found


class FilterChain:
    """All filters in their order, with the buffers and the memory that they need.

    Not thread-safe: one thread calls `update`, `on_grid` and `on_image`.

    Attributes:
        notes: what a user should know about the last `on_image` (a mask that does not fit).
    """

    def __init__(self, settings: FilterSettings | None = None) -> None:
        self._settings = settings or FilterSettings()
        self._temporal: TemporalFilter | None = None
        self._masks: _Masks | None = None
        self._scratch = Scratch()
        self.notes: tuple[str, ...] = ()
        self._make_temporal()

    @property
    def settings(self) -> FilterSettings:
        """Settings in force."""
        return self._settings

    def update(self, settings: FilterSettings) -> None:
        """Change settings between frames; what earlier frames left stays where it still fits."""
        before, self._settings = self._settings, settings
        if settings == before:
            return
        self._masks = None
        if (settings.temporal, settings.temporal_frames, settings.temporal_gate) != (
                before.temporal, before.temporal_frames, before.temporal_gate):
            self._make_temporal()

    def reset(self) -> None:
        """Forget all that came from earlier frames; a mask file is read again."""
        self._masks = None
        if self._temporal is not None:
            self._temporal.reset()

    @property
    def smoothed_share(self) -> float:
        """Share of the grid that the temporal filter smoothed in the last frame, 0..1."""
        return self._temporal.smoothed_share if self._temporal is not None else 0.0

    def on_grid(self, depth: NDArray[np.float32], camera: Camera, *, stamp: float = 0.0,
                picture: NDArray[np.uint8] | None = None, context: Hashable = None,
                image_size_hw: tuple[int, int] | None = None) -> dict[str, int]:
        """Run what belongs on the network's grid: temporal, median, flying pixels, speckle.

        Args:
            depth: (h, w) metres, NaN unknown; changed in place.
            camera: rectified camera of this grid.
            stamp: acquisition time, seconds; for the temporal filter, as the two below.
            picture: uint8 RGB that the depth was made from, any size.
            context: as `TemporalFilter` takes it; the camera is added here.
            image_size_hw: size of the image that the grid covers, for sizes given in its pixels;
                the grid's own if None.

        Returns:
            How many pixels of the grid each filter removed, without zeros.

        Raises:
            ValueError: the camera belongs to another size.
        """
        settings = self._settings
        if self._temporal is not None:
            self._temporal(depth, stamp, picture=picture, context=(camera, context))
        if settings.median:
            median(depth, settings.median, self._scratch)
        counts = {'flying_pixels': flying_pixels(
            depth, camera, settings.flying_pixel_angle_deg, settings.flying_pixel_jump,
            self._scratch)}
        if settings.speckle_px:
            image = image_size_hw or camera.size_hw
            share = depth.size / (image[0] * image[1])
            counts['speckle'] = speckle(
                depth, math.ceil(settings.speckle_px * share), settings.speckle_jump)
        return {reason: count for reason, count in counts.items() if count}

    def on_image(self, depth: NDArray[np.float32], *,
                 range_m: tuple[float, float] | None = None,
                 sky: NDArray[np.bool_] | None = None,
                 confidence: NDArray[np.float32] | None = None,
                 inside: NDArray[np.bool_] | None = None) -> dict[str, int]:
        """Run what belongs on the image: range, sky, confidence, and the masks.

        Args:
            depth: (H, W) metres, NaN unknown; changed in place.
            range_m: the model card's range; the settings' own goes first.
            sky: (H, W) True where the network sees sky: +Inf, also where depth was unknown.
            confidence: (H, W) 0..1.
            inside: (H, W) False where the rectified image sees outside of the raw one.

        Returns:
            How many pixels lost their depth by each reason, without zeros; each pixel is counted
            once, by the first reason.
        """
        settings, counts = self._settings, dict[str, int]()
        size_hw = depth.shape[0], depth.shape[1]
        if self._masks is None or self._masks.size_hw != size_hw:
            self._masks = _Masks.of(settings, size_hw)
        self.notes = self._masks.notes
        near_m, far_m = settings.range_m(range_m)
        counts['too_near'], counts['too_far'] = range_clip(depth, near_m, far_m)
        if sky is not None:
            counts['sky'] = _mark(depth, sky, np.inf)
        if settings.min_confidence > 0:
            if confidence is None:
                self.notes += ('filter: the network gives no confidence: min_confidence '
                               f'{settings.min_confidence:g} has no effect',)
            else:
                # written so that an unknown confidence counts as low
                counts['low_confidence'] = _mark(
                    depth, ~(confidence >= settings.min_confidence), np.nan)
        if inside is not None:
            counts['outside_image'] = _mark(depth, ~inside, np.nan)
        if self._masks.parts:
            left = np.isfinite(depth, out=self._scratch.truth('left', size_hw))
            hit = self._scratch.truth('hit', size_hw)
            for reason, mask in self._masks.parts.items():
                counts[reason] = int(np.count_nonzero(np.logical_and(left, mask, out=hit)))
                np.greater(left, mask, out=left)  # left and not masked
            depth[self._masks.together] = np.nan
        return {reason: count for reason, count in counts.items() if count}

    def _make_temporal(self) -> None:
        settings = self._settings
        self._temporal = None if settings.temporal == 'off' else TemporalFilter(
            settings.temporal, settings.temporal_frames, settings.temporal_gate)


def _mark(depth: NDArray[np.float32], where: NDArray[np.bool_], value: float) -> int:
    """Write `value`, and return how many finite depths it replaced."""
    count = int(np.count_nonzero(where & np.isfinite(depth)))
    if count or where.any():
        depth[where] = value
    return count
