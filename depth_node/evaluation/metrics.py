"""Depth metrics, alignments and the plane baseline: pure functions on numpy arrays.

Words: `depth` is Z along the optical axis [m]; `predicted` and `true` are (H, W) depth images of
one size; `valid` selects pixels (True = usable). A pixel counts only where both depths are finite
and positive; an empty selection gives NaN, never 0, so that "nothing measured" cannot read as
"perfect".

Every metric is computed from sums that add up (`ErrorSums`, `BoundarySums`), which makes the two
ways to aggregate a data set one line each: the mean of per-image values, or one value over all
pixels (pooled). They differ (RMS above all), so a report has to name the one it used.

Sources: EIG14 = Eigen, Puhrsch, Fergus 2014 (arXiv:1406.2283), section 4; LAI16 = Laina et al.
2016 (arXiv:1606.00373); GEI13 = the KITTI depth benchmark; RAN20 = Ranftl et al. 2020
(arXiv:1907.01341), section 5; ZHO17 = Zhou et al. 2017 (arXiv:1704.07813); BOC24 = Bochkovskii et
al. 2024 (arXiv:2410.02073), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatImage = NDArray[np.floating[Any]]
BoolImage = NDArray[np.bool_]

DELTA_BASE = 1.25  # EIG14: thresholds 1.25, 1.25^2, 1.25^3
BOUNDARY_THRESHOLDS = tuple(float(t) for t in np.linspace(0.05, 0.25, 10))  # BOC24: 5 % to 25 %

METRIC_NAMES = (
    'abs_rel',
    'sq_rel',
    'log10',
    'rms',
    'rms_log',
    'silog',
    'sc_inv',
    'delta1',
    'delta2',
    'delta3',
)
METRES_NEEDED = ('sq_rel', 'rms')  # not scale free: meaningless where the truth has no unit


def usable(predicted: FloatImage, true: FloatImage, valid: BoolImage | None = None) -> BoolImage:
    """Pixels on which a metric is defined: selected, and both depths finite and positive.

    Args:
        predicted: (H, W) depth, metres; NaN unknown, +Inf beyond range.
        true: (H, W) depth, metres; NaN unknown.
        valid: (H, W) selection, True = usable; all pixels when None.

    Returns:
        (H, W), True where the metrics apply.

    Raises:
        ValueError: the images differ in size.
    """
    if predicted.shape != true.shape or (valid is not None and valid.shape != true.shape):
        raise ValueError(
            f'images of different sizes: predicted {predicted.shape}, true {true.shape}'
            + (f', valid {valid.shape}' if valid is not None else '')
            + '; resize the prediction to the size of the truth first'
        )
    good = np.isfinite(predicted) & np.isfinite(true) & (predicted > 0) & (true > 0)
    return good if valid is None else good & valid.astype(bool)


@dataclass(frozen=True)
class ErrorSums:
    """Sums over the usable pixels of one or more images; `a + b` pools their pixels.

    The log error is kept as mean and squared deviation (Chan, Golub, LeVeque 1979) because the
    plain difference of sums loses all digits where the prediction is right up to a scale.
    """

    count: int = 0
    sum_abs_rel: float = 0.0
    sum_sq_rel: float = 0.0
    sum_abs_log10: float = 0.0
    sum_sq: float = 0.0
    log_mean: float = 0.0
    log_deviation: float = 0.0
    within: tuple[int, int, int] = (0, 0, 0)

    @classmethod
    def of(
        cls, predicted: FloatImage, true: FloatImage, valid: BoolImage | None = None
    ) -> ErrorSums:
        """Sum the errors of one image.

        Args:
            predicted: (H, W) depth, metres.
            true: (H, W) depth, metres.
            valid: (H, W) selection or None.

        Returns:
            The sums; all zero when no pixel is usable.

        Raises:
            ValueError: the images differ in size.
        """
        good = usable(predicted, true, valid)
        d = predicted[good].astype(np.float64)
        t = true[good].astype(np.float64)
        if d.size == 0:
            return cls()
        difference = d - t
        log_error = np.log(d) - np.log(t)
        log_mean = float(log_error.mean())
        ratio = np.exp(np.abs(log_error))  # max(d/t, t/d)
        return cls(
            count=int(d.size),
            sum_abs_rel=float((np.abs(difference) / t).sum()),
            sum_sq_rel=float((difference**2 / t).sum()),
            sum_abs_log10=float(np.abs(log_error).sum() / math.log(10)),
            sum_sq=float((difference**2).sum()),
            log_mean=log_mean,
            log_deviation=float(((log_error - log_mean) ** 2).sum()),
            within=(
                int((ratio < DELTA_BASE).sum()),
                int((ratio < DELTA_BASE**2).sum()),
                int((ratio < DELTA_BASE**3).sum()),
            ),
        )

    def __add__(self, other: ErrorSums) -> ErrorSums:
        count = self.count + other.count
        if count == 0:
            return self
        step = other.log_mean - self.log_mean
        return ErrorSums(
            count=count,
            sum_abs_rel=self.sum_abs_rel + other.sum_abs_rel,
            sum_sq_rel=self.sum_sq_rel + other.sum_sq_rel,
            sum_abs_log10=self.sum_abs_log10 + other.sum_abs_log10,
            sum_sq=self.sum_sq + other.sum_sq,
            log_mean=self.log_mean + step * other.count / count,
            log_deviation=self.log_deviation
            + other.log_deviation
            + step**2 * self.count * other.count / count,
            within=(
                self.within[0] + other.within[0],
                self.within[1] + other.within[1],
                self.within[2] + other.within[2],
            ),
        )

    def _mean(self, total: float) -> float:
        return total / self.count if self.count else math.nan

    @property
    def abs_rel(self) -> float:
        """Mean of abs(d - d*) / d* (EIG14). NaN when empty."""
        return self._mean(self.sum_abs_rel)

    @property
    def sq_rel(self) -> float:
        """Mean of (d - d*)^2 / d*, metres (EIG14). NaN when empty."""
        return self._mean(self.sum_sq_rel)

    @property
    def log10(self) -> float:
        """Mean of abs(log10 d - log10 d*) (LAI16). NaN when empty."""
        return self._mean(self.sum_abs_log10)

    @property
    def rms(self) -> float:
        """Root of the mean of (d - d*)^2, metres (EIG14). NaN when empty."""
        return math.sqrt(self._mean(self.sum_sq))

    @property
    def rms_log(self) -> float:
        """Root of the mean of (ln d - ln d*)^2 (EIG14). NaN when empty."""
        return math.sqrt(self._mean(self.log_deviation) + self.log_mean**2)

    @property
    def sc_inv(self) -> float:
        """Standard deviation of ln d - ln d* (EIG14, eq. 1, rooted as in the tables)."""
        return math.sqrt(self._mean(self.log_deviation))

    @property
    def silog(self) -> float:
        """SILog of GEI13: 100 times the standard deviation of ln d - ln d*. NaN when empty."""
        return 100.0 * self.sc_inv

    @property
    def delta1(self) -> float:
        """Share of pixels with max(d/d*, d*/d) < 1.25 (EIG14). NaN when empty."""
        return self._mean(self.within[0])

    @property
    def delta2(self) -> float:
        """Share of pixels with max(d/d*, d*/d) < 1.25^2 (EIG14). NaN when empty."""
        return self._mean(self.within[1])

    @property
    def delta3(self) -> float:
        """Share of pixels with max(d/d*, d*/d) < 1.25^3 (EIG14). NaN when empty."""
        return self._mean(self.within[2])

    def values(self) -> dict[str, float]:
        """All metrics by name (METRIC_NAMES); NaN when empty."""
        return {name: float(getattr(self, name)) for name in METRIC_NAMES}


def compute(
    predicted: FloatImage, true: FloatImage, valid: BoolImage | None = None
) -> dict[str, float]:
    """All error metrics of one image by name (METRIC_NAMES); NaN where no pixel is usable.

    Args:
        predicted: (H, W) depth, metres.
        true: (H, W) depth, metres.
        valid: (H, W) selection or None.

    Returns:
        Metric name to value; the formulas are in `ErrorSums`.

    Raises:
        ValueError: the images differ in size.
    """
    return ErrorSums.of(predicted, true, valid).values()


def abs_rel(predicted: FloatImage, true: FloatImage, valid: BoolImage | None = None) -> float:
    """Mean of abs(d - d*) / d* (EIG14); NaN when no pixel is usable."""
    return ErrorSums.of(predicted, true, valid).abs_rel


def sq_rel(predicted: FloatImage, true: FloatImage, valid: BoolImage | None = None) -> float:
    """Mean of (d - d*)^2 / d*, metres (EIG14); NaN when no pixel is usable."""
    return ErrorSums.of(predicted, true, valid).sq_rel


def log10(predicted: FloatImage, true: FloatImage, valid: BoolImage | None = None) -> float:
    """Mean of abs(log10 d - log10 d*) (LAI16); NaN when no pixel is usable."""
    return ErrorSums.of(predicted, true, valid).log10


def rms(predicted: FloatImage, true: FloatImage, valid: BoolImage | None = None) -> float:
    """Root of the mean of (d - d*)^2, metres (EIG14); NaN when no pixel is usable."""
    return ErrorSums.of(predicted, true, valid).rms


def rms_log(predicted: FloatImage, true: FloatImage, valid: BoolImage | None = None) -> float:
    """Root of the mean of (ln d - ln d*)^2 (EIG14); NaN when no pixel is usable."""
    return ErrorSums.of(predicted, true, valid).rms_log


def sc_inv(predicted: FloatImage, true: FloatImage, valid: BoolImage | None = None) -> float:
    """Standard deviation of ln d - ln d* (EIG14, eq. 1, rooted); NaN when no pixel is usable."""
    return ErrorSums.of(predicted, true, valid).sc_inv


def silog(predicted: FloatImage, true: FloatImage, valid: BoolImage | None = None) -> float:
    """100 times the standard deviation of ln d - ln d* (GEI13); NaN when no pixel is usable."""
    return ErrorSums.of(predicted, true, valid).silog


def delta(
    predicted: FloatImage,
    true: FloatImage,
    valid: BoolImage | None = None,
    *,
    power: int = 1,
) -> float:
    """Share of pixels with max(d/d*, d*/d) < 1.25^power (EIG14); NaN when no pixel is usable.

    Args:
        predicted: (H, W) depth, metres.
        true: (H, W) depth, metres.
        valid: (H, W) selection or None.
        power: 1, 2 or 3.

    Returns:
        A share, 0..1.

    Raises:
        ValueError: another power, or images of different sizes.
    """
    if power not in (1, 2, 3):
        raise ValueError(f'delta is defined here for power 1, 2 and 3, not {power}')
    sums = ErrorSums.of(predicted, true, valid)
    return sums._mean(sums.within[power - 1])


@dataclass(frozen=True)
class BoundarySums:
    """Counts of occluding steps between neighbours, per threshold; `a + b` pools images.

    A step of threshold t is an ordered pair of 4-neighbours i, j with d_j / d_i > 1 + t (BOC24,
    eq. 3).
    """

    hits: tuple[int, ...] = (0,) * len(BOUNDARY_THRESHOLDS)
    predicted: tuple[int, ...] = (0,) * len(BOUNDARY_THRESHOLDS)
    true: tuple[int, ...] = (0,) * len(BOUNDARY_THRESHOLDS)

    @classmethod
    def of(
        cls, predicted: FloatImage, true: FloatImage, valid: BoolImage | None = None
    ) -> BoundarySums:
        """Count the steps of one image over the pairs whose two pixels are usable.

        Args:
            predicted: (H, W) depth, metres.
            true: (H, W) depth, metres.
            valid: (H, W) selection or None.

        Returns:
            The counts per threshold.

        Raises:
            ValueError: the images differ in size.
        """
        good = usable(predicted, true, valid)
        log_predicted = np.log(np.where(good, predicted, 1.0).astype(np.float64))
        log_true = np.log(np.where(good, true, 1.0).astype(np.float64))
        steps_predicted = []
        steps_true = []
        for axis in (0, 1):
            first, second = (
                ((slice(None, -1), slice(None)), (slice(1, None), slice(None)))
                if axis == 0
                else ((slice(None), slice(None, -1)), (slice(None), slice(1, None)))
            )
            both = good[first] & good[second]
            steps_predicted.append((log_predicted[second] - log_predicted[first])[both])
            steps_true.append((log_true[second] - log_true[first])[both])
        p = np.concatenate(steps_predicted)
        t = np.concatenate(steps_true)
        # A pair is a step of threshold t when |log ratio| > log(1 + t); its sign says which side
        # is nearer.
        shared = np.where(p * t > 0, np.minimum(np.abs(p), np.abs(t)), 0.0)
        limits = np.log1p(np.asarray(BOUNDARY_THRESHOLDS))

        def above(sizes: NDArray[np.float64]) -> tuple[int, ...]:
            ordered = np.sort(sizes[sizes > limits[0]])
            return tuple(int(n) for n in ordered.size - np.searchsorted(ordered, limits, 'right'))

        return cls(hits=above(shared), predicted=above(np.abs(p)), true=above(np.abs(t)))

    def __add__(self, other: BoundarySums) -> BoundarySums:
        def add(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(x + y for x, y in zip(a, b, strict=True))

        return BoundarySums(
            add(self.hits, other.hits),
            add(self.predicted, other.predicted),
            add(self.true, other.true),
        )

    @property
    def f1(self) -> float:
        """F1 of the steps, mean over the thresholds weighted by the threshold (BOC24).

        A threshold at which neither map has a step is left out; NaN when that leaves none.
        """
        total = 0.0
        weights = 0.0
        for weight, hits, predicted, true in zip(
            BOUNDARY_THRESHOLDS, self.hits, self.predicted, self.true, strict=True
        ):
            if predicted + true:
                total += weight * 2.0 * hits / (predicted + true)  # = 2PR / (P + R)
                weights += weight
        return total / weights if weights else math.nan


def boundary_f1(predicted: FloatImage, true: FloatImage, valid: BoolImage | None = None) -> float:
    """Boundary F1 (BOC24): do depth steps between neighbours lie where the truth has them.

    Invariant to scale. Thresholds are 5 % to 25 % in ten steps, weighted by the threshold.

    Args:
        predicted: (H, W) depth, metres.
        true: (H, W) depth, metres.
        valid: (H, W) selection or None.

    Returns:
        0..1; NaN when neither map has a step of 5 %.

    Raises:
        ValueError: the images differ in size.
    """
    return BoundarySums.of(predicted, true, valid).f1


@dataclass(frozen=True)
class Alignment:
    """A prediction brought to the truth's scale, and what it took.

    `space` names where scale and shift apply: 'depth' (depth = scale * predicted + shift) or
    'inv_depth' (1/depth = scale / predicted + shift). NaN scale: nothing to align with.
    """

    depth: NDArray[np.float64]
    scale: float
    shift: float
    space: str


def clamp_depth(depth: FloatImage, min_depth: float, max_depth: float) -> NDArray[np.float64]:
    """Limit finite depths to [min_depth, max_depth] metres; NaN and Inf stay what they are."""
    result = depth.astype(np.float64)
    finite = np.isfinite(result)
    result[finite] = np.clip(result[finite], min_depth, max_depth)
    return result


def align_none(
    predicted: FloatImage,
    true: FloatImage,
    valid: BoolImage | None = None,
    *,
    min_depth: float = 1e-3,
    max_depth: float = math.inf,
) -> Alignment:
    """Metric comparison: the prediction as it is, clamped to the protocol's range [m]."""
    usable(predicted, true, valid)
    return Alignment(clamp_depth(predicted, min_depth, max_depth), 1.0, 0.0, 'depth')


def align_median(
    predicted: FloatImage,
    true: FloatImage,
    valid: BoolImage | None = None,
    *,
    min_depth: float = 1e-3,
    max_depth: float = math.inf,
) -> Alignment:
    """Multiply by median(true) / median(predicted) over the usable pixels, then clamp (ZHO17).

    Args:
        predicted: (H, W) depth, metres or any scale.
        true: (H, W) depth, metres.
        valid: (H, W) selection or None.
        min_depth: metres, lower clamp.
        max_depth: metres, upper clamp.

    Returns:
        The aligned depth; all NaN with a NaN scale when no pixel is usable.

    Raises:
        ValueError: the images differ in size.
    """
    good = usable(predicted, true, valid)
    if not good.any():
        return Alignment(np.full(true.shape, np.nan), math.nan, 0.0, 'depth')
    scale = float(np.median(true[good].astype(np.float64)))
    scale /= float(np.median(predicted[good].astype(np.float64)))
    scaled = predicted.astype(np.float64) * scale
    return Alignment(clamp_depth(scaled, min_depth, max_depth), scale, 0.0, 'depth')


def align_affine(
    predicted: FloatImage,
    true: FloatImage,
    valid: BoolImage | None = None,
    *,
    min_depth: float = 1e-3,
    max_depth: float | None = None,
) -> Alignment:
    """Least-squares scale and shift of inverse depth per image, then clamp and invert (RAN20).

    Minimises sum((scale / d + shift - 1 / d*)^2) over the usable pixels. A fitted inverse depth
    below 1 / max_depth (zero and negative included) becomes max_depth.

    Args:
        predicted: (H, W) depth, any affine-in-inverse-depth units.
        true: (H, W) depth, metres.
        valid: (H, W) selection or None.
        min_depth: metres, lower clamp.
        max_depth: metres, upper clamp; None = the largest usable true depth.

    Returns:
        The aligned depth; all NaN with a NaN scale when no pixel is usable. A constant prediction
        gives scale 0 and the mean inverse depth of the truth.

    Raises:
        ValueError: the images differ in size.
    """
    good = usable(predicted, true, valid)
    if not good.any():
        return Alignment(np.full(true.shape, np.nan), math.nan, math.nan, 'inv_depth')
    p = 1.0 / predicted[good].astype(np.float64)
    t = 1.0 / true[good].astype(np.float64)
    p_mean = p.mean()
    t_mean = t.mean()
    spread = float(((p - p_mean) ** 2).mean())
    if spread <= (1e-9 * p_mean) ** 2:
        scale = 0.0
    else:
        scale = float(((p - p_mean) * (t - t_mean)).mean() / spread)
    shift = float(t_mean - scale * p_mean)
    known = np.isfinite(predicted) & (predicted > 0)
    inv_depth = scale / np.where(known, predicted, 1.0).astype(np.float64) + shift
    farthest = float(1.0 / t.min()) if max_depth is None else max_depth
    aligned = _invert(inv_depth, min_depth, farthest)
    aligned[~known] = np.nan
    return Alignment(aligned, scale, shift, 'inv_depth')


def _invert(
    inv_depth: NDArray[np.float64], min_depth: float, max_depth: float
) -> NDArray[np.float64]:
    """Depth within [min_depth, max_depth]; what lies behind the camera or at infinity is far."""
    clamped: NDArray[np.float64] = 1.0 / np.clip(inv_depth, 1.0 / max_depth, 1.0 / min_depth)
    return clamped


ALIGNMENTS = {'none': align_none, 'median': align_median, 'affine': align_affine}


@dataclass(frozen=True)
class PlaneFit:
    """The plane 1/Z = a*u + b*v + c (u, v in pixels) and its depth image."""

    depth: NDArray[np.float64]
    a: float
    b: float
    c: float


def plane_baseline(
    true: FloatImage,
    valid: BoolImage | None = None,
    *,
    min_depth: float = 1e-3,
    max_depth: float | None = None,
) -> PlaneFit:
    """The best plane in inverse depth, fitted to the truth itself: what a network has to beat.

    A plane in space is exactly a linear function of (u, v) in inverse depth (1/Z = n.(u, v, 1)K^-T
    / distance). No picture is looked at, so a score near this one shows that the network learned a
    typical layout and no more.

    Args:
        true: (H, W) depth, metres.
        valid: (H, W) selection or None.
        min_depth: metres, lower clamp.
        max_depth: metres, upper clamp; None = the largest usable true depth.

    Returns:
        The plane; all NaN when the truth has no usable pixel. With fewer pixels than unknowns, or
        all on one line, the smallest coefficients that fit.

    Raises:
        ValueError: the images differ in size.
    """
    good = usable(true, true, valid)
    if not good.any():
        return PlaneFit(np.full(true.shape, np.nan), math.nan, math.nan, math.nan)
    height, width = true.shape
    # centred, unit-size coordinates keep the normal equations well conditioned
    scale = 1.0 / max(height, width)
    u = (np.arange(width) - (width - 1) / 2) * scale
    v = (np.arange(height) - (height - 1) / 2) * scale
    uu, vv = np.meshgrid(u, v)
    x = np.stack([uu[good], vv[good], np.ones(int(good.sum()))], axis=1)
    y = 1.0 / true[good].astype(np.float64)
    coefficients = np.linalg.lstsq(x.T @ x, x.T @ y, rcond=1e-12)[0]
    inv_depth = coefficients[0] * uu + coefficients[1] * vv + coefficients[2]
    a = float(coefficients[0] * scale)
    b = float(coefficients[1] * scale)
    c = float(coefficients[2] - a * (width - 1) / 2 - b * (height - 1) / 2)
    farthest = float(1.0 / y.min()) if max_depth is None else max_depth
    return PlaneFit(_invert(inv_depth, min_depth, farthest), a, b, c)
