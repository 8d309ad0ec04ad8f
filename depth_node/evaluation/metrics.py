"""Depth metrics, alignments and the plane baseline: pure functions on numpy arrays.

Words: `depth` is Z along the optical axis [m]; `predicted` and `true` are (H, W) depth images of
one size; `valid` selects pixels (True = usable). A pixel counts only where both depths are finite
and positive; an empty selection gives NaN, never 0, so that "nothing measured" cannot read as
"perfect".

Every metric is computed from sums that add up (`ErrorSums`, `BoundarySums`, `OrdinalSums`,
`NormalSums`), which makes the two ways to aggregate a data set one line each: the mean of
per-image values, or one value over all pixels (pooled). They differ (RMS above all), so a report
has to name the one it used.

Sources: EIG14 = Eigen, Puhrsch, Fergus 2014 (arXiv:1406.2283), section 4; LAI16 = Laina et al.
2016 (arXiv:1606.00373); GEI13 = the KITTI depth benchmark; RAN20 = Ranftl et al. 2020
(arXiv:1907.01341), section 5; ZHO17 = Zhou et al. 2017 (arXiv:1704.07813); BOC24 = Bochkovskii et
al. 2024 (arXiv:2410.02073), section 3; CHE16 = Chen et al. 2016 (arXiv:1604.03901); ZOR15 = Zoran
et al. 2015 (learning ordinal relationships); LI18 = Li, Snavely 2018 (MegaDepth,
arXiv:1804.00607); FOU13 = Fouhey, Gupta, Hebert 2013 (the shares of normals within an angle).
"""

from __future__ import annotations

from dataclasses import dataclass, field
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatImage = NDArray[np.floating[Any]]
BoolImage = NDArray[np.bool_]

DELTA_BASE = 1.25  # EIG14: thresholds 1.25, 1.25^2, 1.25^3
BOUNDARY_THRESHOLDS = tuple(float(t) for t in np.linspace(0.05, 0.25, 10))  # BOC24: 5 % to 25 %
SDR_THRESHOLD = 0.1  # LI18: depths whose ratio is within 1.1 are equal
NORMAL_LIMITS_DEG = (11.25, 22.5, 30.0)  # FOU13
_BINS_PER_DEG = 20  # the median angle is exact to 0.05 degrees

METRIC_NAMES = (
    'abs_rel',
    'sq_rel',
    'log10',
    'rms',
    'rms_log',
    'silog',
    'sc_inv',
    'si_rmse',
    'delta1',
    'delta2',
    'delta3',
    'above1',
)
# Bands of true depth [m] by which errors are listed: arm's length, table, room, hall.
RANGE_BANDS_M = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, math.inf)
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
            true: (H, W) depth, metres; it is what divides in `abs_rel` and `sq_rel`, the only two
                where exchanging both changes the value.
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

    @classmethod
    def by_range(
        cls, predicted: FloatImage, true: FloatImage, valid: BoolImage | None = None
    ) -> tuple[ErrorSums, ...]:
        """Sum the errors of one image apart for each band of true depth.

        Args:
            predicted: (H, W) depth, metres.
            true: (H, W) depth, metres; from RANGE_BANDS_M[i] up to below RANGE_BANDS_M[i + 1] is
                band i.
            valid: (H, W) selection or None.

        Returns:
            One for each band; their sum is `of` the same images.

        Raises:
            ValueError: the images differ in size.
        """
        good = usable(predicted, true, valid)
        d, t = predicted[good], true[good]
        band = np.searchsorted(RANGE_BANDS_M, t, side='right') - 1
        return tuple(
            cls.of(d[inside], t[inside])
            for inside in (band == i for i in range(len(RANGE_BANDS_M) - 1))
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
    def si_rmse(self) -> float:
        """Root of mean R^2 - (mean R)^2 with R = ln d - ln d* (LI18): `sc_inv` by another name."""
        return self.sc_inv

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

    @property
    def above1(self) -> float:
        """Share of pixels with max(d/d*, d*/d) of 1.25 or more (RAN20 prints it in percent)."""
        return 1.0 - self.delta1

    def values(self) -> dict[str, float]:
        """All metrics by name (METRIC_NAMES); NaN when empty."""
        return {name: float(getattr(self, name)) for name in METRIC_NAMES}


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


@dataclass(frozen=True)
class OrdinalSums:
    """Counts of pairs and of wrong ones among them, equal and unequal apart; `a + b` pools.

    WKDR (ZOR15, CHE16) is `rate` over labelled pairs, WKDR= and WKDR-unequal are `rate_eq` and
    `rate_ne`; SDR, SDR= and SDR-unequal (LI18) are the same over pairs labelled by true depth.
    """

    equal: int = 0
    equal_wrong: int = 0
    unequal: int = 0
    unequal_wrong: int = 0

    @classmethod
    def of(
        cls, log_ratio: NDArray[np.floating[Any]], relation: NDArray[Any], threshold: float
    ) -> OrdinalSums:
        """Judge pairs.

        Args:
            log_ratio: (P,) ln(d_a / d_b) of the prediction; NaN (no prediction) counts as wrong.
            relation: (P,) truth: +1 a is farther, -1 a is nearer, 0 equal.
            threshold: a prediction is equal where the ratio is within 1 + threshold.

        Returns:
            The counts.

        Raises:
            ValueError: a negative threshold, or arrays of different sizes.
        """
        if threshold < 0 or log_ratio.shape != relation.shape:
            raise ValueError(
                f'ordinal: threshold {threshold}, {log_ratio.shape} ratios and {relation.shape} '
                'relations; expected a threshold of 0 or more and one relation per ratio'
            )
        limit = math.log1p(threshold)
        found = np.where(np.abs(log_ratio) > limit, np.sign(log_ratio), 0.0)
        wrong = (found != relation) | np.isnan(log_ratio)
        equal = relation == 0
        return cls(
            int(equal.sum()),
            int((wrong & equal).sum()),
            int((~equal).sum()),
            int((wrong & ~equal).sum()),
        )

    def __add__(self, other: OrdinalSums) -> OrdinalSums:
        return OrdinalSums(
            self.equal + other.equal,
            self.equal_wrong + other.equal_wrong,
            self.unequal + other.unequal,
            self.unequal_wrong + other.unequal_wrong,
        )

    @property
    def rate(self) -> float:
        """Share of wrong pairs; NaN when there are none."""
        return _share(self.equal_wrong + self.unequal_wrong, self.equal + self.unequal)

    @property
    def rate_eq(self) -> float:
        """Share of wrong pairs among those that are equal in the truth."""
        return _share(self.equal_wrong, self.equal)

    @property
    def rate_ne(self) -> float:
        """Share of wrong pairs among those that are not equal in the truth."""
        return _share(self.unequal_wrong, self.unequal)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def pair_log_ratios(depth: FloatImage, uv: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Look pairs up in a depth image.

    Args:
        depth: (H, W) depth at the size of the picture that the pairs were marked in.
        uv: (P, 4) u_a, v_a, u_b, v_b, pixels, whole at centres; rounded to the nearest pixel.

    Returns:
        (P,) ln(d_a / d_b); NaN where either depth is not finite and positive.

    Raises:
        ValueError: another shape, or a point outside of the image.
    """
    if uv.ndim != 2 or uv.shape[1] != 4:
        raise ValueError(f'pairs have shape {uv.shape}, expected (P, 4): u_a, v_a, u_b, v_b')
    index = np.floor(uv.astype(np.float64) + 0.5).astype(np.int64)
    u, v = index[:, 0::2], index[:, 1::2]
    if ((u < 0) | (v < 0) | (u >= depth.shape[1]) | (v >= depth.shape[0])).any():
        raise ValueError(
            f'pairs reach to u = {u.max()}, v = {v.max()}, the image is {depth.shape}; '
            'bring the prediction to the size of the picture first'
        )
    values = depth[v, u].astype(np.float64)
    good = np.isfinite(values) & (values > 0)
    logs = np.log(np.where(good, values, 1.0))
    return np.where(good.all(axis=1), logs[:, 0] - logs[:, 1], np.nan)


def whdr(log_ratio: NDArray[np.floating[Any]], relation: NDArray[Any]) -> float:
    """Share of pairs in the wrong order (CHE16 on Depth in the Wild); there is no equal class.

    Args:
        log_ratio: (P,) ln(d_a / d_b) of the prediction; a tie or NaN counts as wrong.
        relation: (P,) +1 a is farther, -1 a is nearer; pairs that are equal (0) are left out.

    Returns:
        0..1; NaN when no pair is unequal.
    """
    return OrdinalSums.of(log_ratio, relation, 0.0).rate_ne


def equal_error_threshold(log_ratio: NDArray[np.floating[Any]], relation: NDArray[Any]) -> float:
    """Find the ratio threshold at which WKDR= and WKDR-unequal are closest (ZOR15, CHE16).

    A larger threshold calls more pairs equal: fewer equal pairs are then wrong, and more unequal
    ones. All sizes of the predicted ratios are tried, so nothing between them is missed.

    Args:
        log_ratio: (P,) ln(d_a / d_b) of the prediction over the whole data set.
        relation: (P,) +1, -1 or 0.

    Returns:
        The threshold (0.02 = 2 %); NaN when one of the classes is empty.
    """
    equal = relation == 0
    if not equal.any() or equal.all():
        return math.nan
    size = np.abs(log_ratio)
    candidates = np.unique(np.append(size[np.isfinite(size)], 0.0))
    of_equal = np.sort(np.where(np.isnan(size[equal]), np.inf, size[equal]))
    right_sign = ~equal & (np.sign(log_ratio) == relation)
    of_right = np.sort(size[right_sign])
    wrong_eq = 1.0 - np.searchsorted(of_equal, candidates, 'right') / of_equal.size
    still_right = of_right.size - np.searchsorted(of_right, candidates, 'right')
    wrong_ne = 1.0 - still_right / int((~equal).sum())
    best = int(np.argmin(np.abs(wrong_eq - wrong_ne)))
    # half way to the next size: the same pairs are equal, and rounding cannot change which
    above = candidates[best + 1] if best + 1 < candidates.size else 2 * candidates[best]
    return math.expm1(float(candidates[best] + above) / 2)


def sdr_sums(
    predicted: FloatImage,
    true: FloatImage,
    valid: BoolImage | None = None,
    *,
    pairs: int,
    seed: int = 0,
) -> OrdinalSums:
    """Judge the order of random pairs of known pixels: SDR (LI18), threshold 1.1.

    LI18 takes pairs of its sparse reconstruction; here they are drawn from all known pixels,
    always the same ones for the same truth.

    Args:
        predicted: (H, W) depth, any scale.
        true: (H, W) depth.
        valid: (H, W) selection or None.
        pairs: how many to draw.
        seed: of the draw.

    Returns:
        The counts; all zero when fewer than two pixels are known.

    Raises:
        ValueError: the images differ in size.
    """
    known = np.flatnonzero(usable(true, true, valid))
    usable(predicted, true)
    if known.size < 2 or pairs < 1:
        return OrdinalSums()
    rng = np.random.default_rng(seed)
    first = rng.integers(known.size, size=pairs)
    second = (first + rng.integers(1, known.size, size=pairs)) % known.size  # never the same
    uv = np.empty((pairs, 4))
    width = true.shape[1]
    for column, chosen in ((0, known[first]), (2, known[second])):
        uv[:, column], uv[:, column + 1] = chosen % width, chosen // width
    true_ratio = pair_log_ratios(true, uv)
    relation = np.where(np.abs(true_ratio) > math.log1p(SDR_THRESHOLD), np.sign(true_ratio), 0.0)
    return OrdinalSums.of(pair_log_ratios(predicted, uv), relation, SDR_THRESHOLD)


def normals_from_depth(
    depth: FloatImage, fx: float, fy: float, cx: float, cy: float
) -> NDArray[np.float64]:
    """Compute surface normals by central differences of the back-projected points.

    Args:
        depth: (H, W) depth, any scale.
        fx: focal length along u, pixels of this image.
        fy: focal length along v.
        cx: principal point u.
        cy: principal point v.

    Returns:
        (H, W, 3) unit vectors in the optical frame, towards the camera ((0, 0, -1) for a wall
        ahead); NaN at the border, and where the pixel or one of its four neighbours is unknown.
    """
    height, width = depth.shape
    z = np.where(np.isfinite(depth) & (depth > 0), depth, np.nan).astype(np.float64)
    u, v = np.arange(width) - cx, (np.arange(height) - cy)[:, None]
    points = np.stack([u / fx * z, v / fy * z, z], axis=-1)
    along_u = points[1:-1, 2:] - points[1:-1, :-2]
    along_v = points[2:, 1:-1] - points[:-2, 1:-1]
    normals = np.full((height, width, 3), np.nan)
    with np.errstate(invalid='ignore', divide='ignore'):
        inner = np.cross(along_v, along_u)
        inner /= np.linalg.norm(inner, axis=-1, keepdims=True)
        away = (inner * points[1:-1, 1:-1]).sum(axis=-1) > 0
    inner[away] *= -1.0
    inner[~np.isfinite(z[1:-1, 1:-1])] = np.nan
    if inner.size:
        normals[1:-1, 1:-1] = inner
    return normals


@dataclass(frozen=True)
class NormalSums:
    """Angles between normals, as sums and a fine histogram; `a + b` pools."""

    count: int = 0
    sum_deg: float = 0.0
    within: tuple[int, int, int] = (0, 0, 0)
    histogram: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(180 * _BINS_PER_DEG, np.int64)
    )

    @classmethod
    def of(
        cls,
        predicted: NDArray[np.floating[Any]],
        true: NDArray[np.floating[Any]],
        valid: BoolImage | None = None,
    ) -> NormalSums:
        """Measure the angles of one image.

        Args:
            predicted: (H, W, 3) vectors of any length; NaN or zero = unknown.
            true: (H, W, 3) likewise.
            valid: (H, W) selection or None.

        Returns:
            The sums over the pixels where both are known.

        Raises:
            ValueError: the images differ in size.
        """
        if predicted.shape != true.shape or true.shape[2:] != (3,):
            raise ValueError(
                f'normals: predicted {predicted.shape}, true {true.shape}; expected (H, W, 3) of '
                'one size'
            )
        lengths = np.linalg.norm(predicted, axis=-1) * np.linalg.norm(true, axis=-1)
        good = np.isfinite(lengths) & (lengths > 0)
        if valid is not None:
            good &= valid
        cosine = (predicted[good] * true[good]).sum(axis=-1) / lengths[good]
        angles = np.degrees(np.arccos(np.clip(cosine.astype(np.float64), -1.0, 1.0)))
        bins = np.minimum((angles * _BINS_PER_DEG).astype(np.int64), 180 * _BINS_PER_DEG - 1)
        narrow, middle, wide = (int((angles < limit).sum()) for limit in NORMAL_LIMITS_DEG)
        return cls(
            int(angles.size),
            float(angles.sum()),
            (narrow, middle, wide),
            np.bincount(bins, minlength=180 * _BINS_PER_DEG).astype(np.int64),
        )

    def __add__(self, other: NormalSums) -> NormalSums:
        narrow, middle, wide = (a + b for a, b in zip(self.within, other.within, strict=True))
        return NormalSums(
            self.count + other.count,
            self.sum_deg + other.sum_deg,
            (narrow, middle, wide),
            self.histogram + other.histogram,
        )

    @property
    def median_deg(self) -> float:
        """Median angle, degrees, to within a bin of 0.05; NaN when empty."""
        if not self.count:
            return math.nan
        index = int(np.searchsorted(np.cumsum(self.histogram), 0.5 * self.count))
        return (index + 0.5) / _BINS_PER_DEG

    def values(self) -> dict[str, float]:
        """Mean, median [degrees] and the shares within 11.25, 22.5 and 30; NaN when empty."""
        shares = (_share(part, self.count) for part in self.within)
        names = ('normal_within_11', 'normal_within_22', 'normal_within_30')
        return {
            'normal_mean_deg': self.sum_deg / self.count if self.count else math.nan,
            'normal_median_deg': self.median_deg,
            **dict(zip(names, shares, strict=True)),
        }


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
    scale, shift = _line(p, t)
    known = np.isfinite(predicted) & (predicted > 0)
    inv_depth = scale / np.where(known, predicted, 1.0).astype(np.float64) + shift
    farthest = float(1.0 / t.min()) if max_depth is None else max_depth
    aligned = _invert(inv_depth, min_depth, farthest)
    aligned[~known] = np.nan
    return Alignment(aligned, scale, shift, 'inv_depth')


def align_affine_depth(
    predicted: FloatImage,
    true: FloatImage,
    valid: BoolImage | None = None,
    *,
    min_depth: float = 1e-3,
    max_depth: float | None = None,
) -> Alignment:
    """Least-squares scale and shift of depth per image, then clamp.

    For networks whose depth (larger = farther) is true up to scale and shift; `align_affine` is
    for those whose inverse depth is. Minimises sum((scale * d + shift - d*)^2).

    Args:
        predicted: (H, W) depth, any affine-in-depth units.
        true: (H, W) depth, metres.
        valid: (H, W) selection or None.
        min_depth: metres, lower clamp.
        max_depth: metres, upper clamp; None = the largest usable true depth.

    Returns:
        The aligned depth; all NaN with a NaN scale when no pixel is usable. A constant prediction
        gives scale 0 and the mean of the truth.

    Raises:
        ValueError: the images differ in size.
    """
    good = usable(predicted, true, valid)
    if not good.any():
        return Alignment(np.full(true.shape, np.nan), math.nan, math.nan, 'depth')
    t = true[good].astype(np.float64)
    scale, shift = _line(predicted[good].astype(np.float64), t)
    known = np.isfinite(predicted) & (predicted > 0)
    aligned = scale * np.where(known, predicted, 1.0).astype(np.float64) + shift
    aligned = clamp_depth(aligned, min_depth, float(t.max()) if max_depth is None else max_depth)
    aligned[~known] = np.nan
    return Alignment(aligned, scale, shift, 'depth')


def _line(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Scale and shift of the least-squares line y = scale * x + shift; 0 for a constant x."""
    x_mean, y_mean = x.mean(), y.mean()
    spread = float(((x - x_mean) ** 2).mean())
    constant = spread <= (1e-9 * x_mean) ** 2
    scale = 0.0 if constant else float(((x - x_mean) * (y - y_mean)).mean() / spread)
    return scale, float(y_mean - scale * x_mean)


def _invert(
    inv_depth: NDArray[np.float64], min_depth: float, max_depth: float
) -> NDArray[np.float64]:
    """Depth within [min_depth, max_depth]; what lies behind the camera or at infinity is far."""
    clamped: NDArray[np.float64] = 1.0 / np.clip(inv_depth, 1.0 / max_depth, 1.0 / min_depth)
    return clamped


ALIGNMENTS = {
    'none': align_none,
    'median': align_median,
    'affine': align_affine,
    'affine_depth': align_affine_depth,
}


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
