"""Metric scale: the last affine step between a network's depth and metres."""

from __future__ import annotations

from dataclasses import dataclass, replace
import math
from typing import Protocol

from depth_node.camera import Camera
from depth_node.model_card import METRIC_KINDS
from depth_node.scale_fit import inverse
import numpy as np
from numpy.typing import NDArray

SOURCES = ('model', 'fixed', 'points', 'ground')
SPACES = ('depth', 'inv_depth')
# ok: in force and recent; coarse: in force, but from too few places to be exact; waiting: no
# estimate yet; held: the last good one while its source is silent; refused: what the source said
# could not be used.
STATES = ('ok', 'coarse', 'waiting', 'held', 'refused')
WHEN_STALE = ('hold', 'model', 'blank')


def affine_space(kind: str) -> str:
    """Return the space in which a network of this output kind is right up to scale and shift."""
    return 'depth' if kind == 'rel_depth' else 'inv_depth'


@dataclass(frozen=True)
class Scale:
    """Correction of the network's depth, in one of two spaces.

    `depth`: depth = scale * depth + shift [m].  `inv_depth`: 1 / depth = scale / depth + shift
    [1/m], the space in which affine-invariant networks are right up to scale and shift (Ranftl et
    al., MiDaS, TPAMI 2022, section 5).

    Attributes:
        source: `model` (the network's own metres, scale 1, shift 0), `fixed` (given numbers, say
            from a tape measure), `points` (measured points) or `ground` (camera height).
        scale: factor, > 0.
        shift: metres, or 1/m in the space `inv_depth`.
        space: one of `SPACES`.
        state: one of `STATES`.
        usable: False where depth must not be published, because no scale is known.
        uncertainty: relative standard uncertainty of the corrected depth (0.02 = 2 %), NaN where
            nothing is known.
        support: how many measurements agreed with it.
        age_s: seconds between the newest measurement in it and the image, NaN where there is none.
        note: what a reader of the status should know about it.
    """

    source: str = 'model'
    scale: float = 1.0
    shift: float = 0.0
    space: str = 'depth'
    state: str = 'ok'
    usable: bool = True
    uncertainty: float = math.nan
    support: int = 0
    age_s: float = math.nan
    note: str = ''

    def __post_init__(self) -> None:
        """Refuse a correction that would turn depth over or away."""
        for name, value, known in (('source', self.source, SOURCES),
                                   ('space', self.space, SPACES), ('state', self.state, STATES)):
            if value not in known:
                raise ValueError(f'scale {name} {value!r}, expected one of {", ".join(known)}')
        if not (math.isfinite(self.scale) and self.scale > 0 and math.isfinite(self.shift)):
            raise ValueError(f'scale {self.scale}, shift {self.shift}: expected a positive, '
                             'finite scale and a finite shift')
        if self.source == 'model' and (self.scale, self.shift) != (1.0, 0.0):
            raise ValueError('scale source model takes the network at its word (scale 1, shift '
                             '0); for other numbers choose source fixed')

    @property
    def identity(self) -> bool:
        """True where depth stays as the network gave it."""
        return self.scale == 1.0 and self.shift == 0.0

    def apply(self, depth: NDArray[np.float32]) -> None:
        """Correct (h, w) depth in metres in place; what is not positive afterwards becomes NaN.

        A network that knows inverse depth only up to a shift may say 0 or less where it is far
        (depth +-Inf or negative here); with the shift such a value is a depth like any other.
        """
        if not self.usable:
            depth.fill(np.nan)
            return
        inverse = self.space == 'inv_depth' and self.shift != 0.0
        with np.errstate(divide='ignore', over='ignore', invalid='ignore'):
            if inverse:
                np.reciprocal(depth, out=depth)
            if self.scale != 1.0:
                # without a shift a factor on 1 / depth is a divisor of depth
                factor = self.scale if inverse or self.space == 'depth' else 1 / self.scale
                depth *= np.float32(factor)
            if self.shift != 0.0:
                depth += np.float32(self.shift)
            if inverse:
                np.reciprocal(depth, out=depth)
            unusable = ~((depth > 0) & (depth < np.inf))
        if unusable.any():
            depth[unusable] = np.nan


class ScaleEstimator(Protocol):
    """Finds the scale of each image from something measured."""

    def estimate(self, depth: NDArray[np.float32], camera: Camera, stamp: float) -> Scale:
        """Return the correction for one image.

        Args:
            depth: (h, w) the network's depth before any correction, NaN where unknown; not to be
                changed or kept.
            camera: rectified camera of that grid.
            stamp: acquisition time of the image, seconds.
        """

    def reset(self) -> None:
        """Forget what came from earlier images."""


@dataclass(frozen=True)
class TrackSettings:
    """What becomes of the estimates of single images.

    Attributes:
        low: smaller factors are refused (networks with metres of their own only).
        high: larger ones are.
        max_uncertainty: larger relative uncertainties are refused.
        smoothing_s: time constant of the smoothing, seconds; 0 is none.
        max_age_s: an estimate whose newest measurement is older is stale, seconds.
        when_stale: one of `WHEN_STALE`: hold the last estimate (before the first one the
            network's own depth), take the network's own depth, or blank.
        kind: the network's output kind (`model_card.OUTPUT_KINDS`).
        local_error: relative error of the network's depth at one place once the scale is right;
            the uncertainty of what one place alone says.  The bundled network's is 0.2.
    """

    low: float = 0.4
    high: float = 2.5
    max_uncertainty: float = 0.25
    smoothing_s: float = 1.0
    max_age_s: float = 3.0
    when_stale: str = 'hold'
    kind: str = 'depth'
    local_error: float = 0.2

    def __post_init__(self) -> None:
        """Refuse settings that let nothing pass."""
        if not 0 < self.low < self.high:
            raise ValueError(f'scale: low {self.low}, high {self.high}; expected 0 < low < high')
        if not (self.max_uncertainty > 0 and self.smoothing_s >= 0 and self.max_age_s > 0
                and self.local_error > 0):
            raise ValueError(
                f'scale: max_uncertainty {self.max_uncertainty}, smoothing_s '
                f'{self.smoothing_s}, max_age_s {self.max_age_s}, local_error '
                f'{self.local_error}; expected more than 0 (smoothing_s: not less)')
        if self.when_stale not in WHEN_STALE:
            raise ValueError(f'scale: when_stale {self.when_stale!r}, expected one of '
                             f'{", ".join(WHEN_STALE)}')

    @property
    def relative(self) -> bool:
        """True for networks whose depth is no metres before it is fitted."""
        return self.kind not in METRIC_KINDS


@dataclass(frozen=True)
class Estimate:
    """The correction that one image's measurements ask for.

    Attributes:
        parameters: (1,) log of the factor, or (2,) scale and shift in `space`.
        covariance: of `parameters`.
        space: one of `SPACES`.
        at: values that the network gave (in `space`) at near, middle and far pixels; where the
            uncertainty of scale and shift together is judged.  Not used with one parameter.
        support: how many measurements agree with it.
        proven: False where nothing in the measurement could have contradicted it; such an
            estimate confirms the one in force and does nothing else.
        coarse: True where it knows too little of the picture to be exact.
        note: what a reader of the status should know.
    """

    parameters: NDArray[np.float64]
    covariance: NDArray[np.float64]
    space: str = 'depth'
    at: tuple[float, ...] = ()
    support: int = 0
    proven: bool = True
    coarse: bool = False
    note: str = ''

    @property
    def scale(self) -> float:
        """The factor."""
        first = float(self.parameters[0])
        return math.exp(min(first, 700.0)) if self.parameters.size == 1 else first

    @property
    def shift(self) -> float:
        """The shift, in the unit of `space`."""
        return float(self.parameters[1]) if self.parameters.size == 2 else 0.0

    @property
    def uncertainty(self) -> float:
        """Relative standard uncertainty of the corrected depth (root mean square over `at`)."""
        if self.parameters.size == 1:
            return math.sqrt(max(float(self.covariance[0, 0]), 0.0))
        rows = np.stack([np.asarray(self.at), np.ones(len(self.at))], 1)
        value = rows @ self.parameters
        if not len(value) or (value <= 0).any():
            return math.inf
        # d log(depth) = -+ d(value) / value in either space
        variance = np.einsum('ni,ij,nj->n', rows, self.covariance, rows) / value**2
        return math.sqrt(max(float(variance.mean()), 0.0))

    def distance(self, other: Estimate) -> float:
        """Return how many standard deviations two estimates are apart."""
        if self.parameters.size != other.parameters.size or self.space != other.space:
            return math.inf
        difference = self.parameters - other.parameters
        covariance = self.covariance + other.covariance
        square = float(difference @ inverse(covariance) @ difference)
        return math.sqrt(square) if square >= 0 else math.inf


class ScaleTracker:
    """From estimates of single images to the scale in force: smoothing, gating, stale-out.

    Estimates are averaged by their information (inverse covariance), older ones counting less by
    exp(-age / smoothing_s).  The uncertainty of the average is not smaller than that of its
    parts, because neighbouring images share their errors.  Where a scale and a shift average to
    what no estimate may be (a factor that is not positive), the newest stands alone.  An estimate
    that contradicts the average waits until it has repeated itself; then the average starts again
    from it.

    Attributes:
        settings: may be replaced at any time.
        problem: why the newest image gave no estimate, '' where it did.
    """

    def __init__(self, source: str, settings: TrackSettings, *, patience_s: float = 0.0,
                 smaller_first: bool = False, gate: float = 2.5) -> None:
        """Begin without any estimate.

        Args:
            source: one of `SOURCES`, for the status.
            settings: see there.
            patience_s: how long estimates must contradict the average before they replace it;
                at least three of them in any case.
            smaller_first: a smaller factor outranks a larger one: it does not need patience, and
                larger ones do not count while it waits for its confirmations.
            gate: estimates that are closer than this many standard deviations confirm each other.
        """
        self.source = source
        self.settings = settings
        self.patience_s = patience_s
        self.smaller_first = smaller_first
        self.gate = gate
        self.reset()

    def reset(self) -> None:
        """Forget all estimates."""
        self.problem = ''
        self._state: Estimate | None = None
        self._weight = 0.0
        self._stamp = math.nan
        self._rival: Estimate | None = None
        self._rival_since = self._rival_stamp = math.nan
        self._rivals = 0

    def refuse(self, reason: str) -> None:
        """Note that an image gave no estimate."""
        self.problem = reason

    def add(self, estimate: Estimate, stamp: float, confirmations: int = 1, *,
            new: bool = True) -> bool:
        """Take the estimate of one image, or note in `problem` why not.

        Args:
            estimate: of one image.
            stamp: time of its measurements, seconds.
            confirmations: how many must agree with each other before they come into force.
            new: False where it says nothing that the one before did not say; it then counts as
                no confirmation.

        Returns:
            True where it came into force or counted as a confirmation.
        """
        self.problem = self._objection(estimate)
        if self.problem:
            return False
        if stamp < self._stamp - self.settings.max_age_s:
            self.reset()  # the clock went back: another recording
        state = self._state
        if state is None or not self._agree(estimate, state, _GATE):
            return self._replace(estimate, stamp, confirmations, new)
        self._rival, self._rivals = None, 0
        gap = abs(stamp - self._stamp)
        smoothing = self.settings.smoothing_s
        kept = self._weight * math.exp(-gap / smoothing) if smoothing > 0 else 0.0
        own = 1.0 / (1.0 + kept)
        old = (1 - own) * inverse(state.covariance)
        new_weight = own * inverse(estimate.covariance)
        covariance = inverse(old + new_weight)
        mean = covariance @ (old @ state.parameters + new_weight @ estimate.parameters)
        averaged = replace(estimate, parameters=mean, covariance=covariance)
        if self._objection(averaged):  # the mean of two vectors need not lie between them
            averaged, kept = estimate, 0.0
        self._state = averaged
        self._weight, self._stamp = 1.0 + kept, max(stamp, self._stamp)
        return True

    def scale(self, stamp: float) -> Scale:
        """Return the correction in force at a time."""
        settings, state = self.settings, self._state
        if state is None:
            return self._without(math.nan, self.problem or 'no measurement yet')
        age = stamp - self._stamp
        note = state.note
        if -settings.max_age_s <= age <= settings.max_age_s:
            condition = 'coarse' if state.coarse else 'ok'
            if self.problem:
                note = f'newest measurement not used: {self.problem}'
        else:
            reason = self.problem or f'no usable measurement for {age:.1f} s'
            if settings.when_stale != 'hold':
                return self._without(age, reason)
            condition = 'refused' if self.problem else 'held'
            note = f'{reason}; holding the estimate of then'
        return Scale(self.source, state.scale, state.shift, state.space, condition, True,
                     state.uncertainty, state.support, age, note)

    def _without(self, age: float, reason: str) -> Scale:
        blank = self.settings.when_stale == 'blank'
        instead = 'no depth until then' if blank else (
            "the network's own depth, which is not metric, until then"
            if self.settings.relative else "the network's own metres until then")
        return Scale(self.source, state='refused' if self.problem else 'waiting',
                     usable=not blank, age_s=age, note=f'{reason}; {instead}')

    def _objection(self, estimate: Estimate) -> str:
        settings = self.settings
        scale, shift = estimate.scale, estimate.shift
        if not (0 < scale < math.inf and math.isfinite(shift)
                and (np.diag(estimate.covariance) > 0).all()
                and np.isfinite(inverse(estimate.covariance)).all()):
            return 'the fit has no finite, positive factor'
        if not settings.relative and not settings.low <= scale <= settings.high:
            return (f'factor {scale:.3g} is outside of {settings.low:g} to {settings.high:g} '
                    '(scale.low, scale.high)')
        uncertainty = estimate.uncertainty
        if not uncertainty < math.inf:
            return 'too few parts of the picture agree: how exact the fit is cannot be told'
        if not uncertainty <= settings.max_uncertainty:
            return (f'uncertainty {100 * uncertainty:.0f} % is more than '
                    f'{100 * settings.max_uncertainty:.0f} % (scale.max_uncertainty)')
        return ''

    @staticmethod
    def _agree(one: Estimate, other: Estimate, gate: float) -> bool:
        return one.distance(other) <= gate or (
            one.parameters.size == other.parameters.size == 1
            and abs(one.scale / other.scale - 1) < _SAME)

    def _replace(self, estimate: Estimate, stamp: float, confirmations: int, new: bool) -> bool:
        """Begin from an estimate, once it has repeated itself; return whether it counted."""
        state = self._state
        if state is not None and not abs(stamp - self._stamp) <= self.settings.max_age_s:
            state = None  # stale: nothing is left to defend
        if not estimate.proven:
            self.problem = estimate.note if state is None else _CONTRADICTS.format(
                estimate.scale, state.scale)
            return False
        rival = self._rival
        if rival is not None and not abs(stamp - self._rival_stamp) <= self.settings.max_age_s:
            rival = None
        if rival is not None and not self._agree(estimate, rival, self.gate):
            if self.smaller_first and estimate.scale > rival.scale:
                self.problem = _CONTRADICTS.format(estimate.scale, rival.scale)
                return False
            rival = None
        if rival is None:
            self._rival_since, self._rivals, new = stamp, 0, True
        self._rival_stamp = stamp
        self._rival, self._rivals = estimate, self._rivals + new
        needed = confirmations if state is None else max(confirmations, 3)
        smaller = self.smaller_first and state is not None and estimate.scale < state.scale
        waited = stamp - self._rival_since
        if self._rivals >= needed and (state is None or smaller or waited >= self.patience_s):
            self._state, self._weight, self._stamp = estimate, 1.0, stamp
            self._rival, self._rivals = None, 0
        elif state is None:
            self.problem = (f'factor {estimate.scale:.3g} found {self._rivals} time(s), needs '
                            f'{needed} that agree' + ('' if new else
                                                      ' in pictures that differ: move the camera'))
        else:
            self.problem = _CONTRADICTS.format(estimate.scale, state.scale)
        return new


_CONTRADICTS = ('factor {:.3g} contradicts {:.3g}, the estimate so far; waiting whether it stays')
# Estimates farther apart than this many standard deviations contradict each other, ...
_GATE = 4.0
# ... unless their factors differ by less than this share.
_SAME = 0.02
