"""Whether a confidence can be trusted: calibration, and whether it puts the errors in order.

Confidence c of a pixel claims: with probability c its depth is within 10 % of the truth once the
picture's own scale is right, |r| < ln 1.1 with r = log d - log d* - the median of that over the
picture (`depth_node.training.networks.confidence`).

- Calibration: of the pixels with c near 0.7, 70 % should be right. The expected calibration error
  is the mean of |right - c| over ten bins of c, weighted by their pixels (Guo et al. 2017,
  arXiv:1706.04599, eq. 3).
- Order: leaving the least confident pixels out should leave the smallest errors. Sparsification
  and AUSE, its distance to leaving out the largest errors themselves, are of Ilg et al. 2018,
  arXiv:1802.07095, section 5; not normalised, so in the unit of the error, which here is
  |d / d* - 1| after the median.
"""

from __future__ import annotations

from dataclasses import dataclass, field
import math

from depth_node.evaluation.metrics import BoolImage, FloatImage, usable
import numpy as np
from numpy.typing import NDArray

WITHIN = 0.1
LOG_WITHIN = math.log(1 + WITHIN)
BINS = 10
KEPT = (0.5, 0.75, 0.9, 1.0)  # shares of the pixels, the most confident ones
STEPS = 50  # of the sparsification curve: 2 % of the pixels each


@dataclass(frozen=True)
class ConfidenceScore:
    """One frame's, or the sum of several frames': counts add up, curves are summed.

    Attributes:
        count: (BINS,) pixels by confidence.
        claimed: (BINS,) sum of their confidence.
        right: (BINS,) those within 10 %.
        curve: (STEPS,) mean error of the most confident 100 %, 98 %, ... 2 % of the pixels.
        oracle: (STEPS,) the same where the smallest errors are kept.
        kept: (len(KEPT),) mean error of the most confident `KEPT` of the pixels.
        frames: how many frames' curves are summed.
    """

    count: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))
    claimed: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))
    right: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))
    curve: NDArray[np.float64] = field(default_factory=lambda: np.zeros(STEPS))
    oracle: NDArray[np.float64] = field(default_factory=lambda: np.zeros(STEPS))
    kept: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(KEPT)))
    frames: int = 0

    @classmethod
    def of(
        cls,
        confidence: FloatImage,
        predicted: FloatImage,
        true: FloatImage,
        valid: BoolImage | None = None,
    ) -> ConfidenceScore:
        """Score one frame.

        Args:
            confidence: (H, W), 0 to 1; NaN = unknown, such pixels do not count.
            predicted: (H, W) depth in any unit; not finite or not positive = no prediction.
            true: (H, W) depth.
            valid: (H, W) selection or None.

        Raises:
            ValueError: the images differ in size.
        """
        if confidence.shape != predicted.shape:
            raise ValueError(
                f'confidence is {confidence.shape}, depth {predicted.shape}; resize it first'
            )
        good = usable(predicted, true, valid) & np.isfinite(confidence)
        pixels = int(good.sum())
        if not pixels:
            return cls()
        c = np.clip(confidence[good].astype(np.float64), 0, 1)
        r = np.log(predicted[good].astype(np.float64)) - np.log(true[good].astype(np.float64))
        r -= np.median(r)
        index = np.minimum((c * BINS).astype(int), BINS - 1)
        error = np.abs(np.expm1(r))
        by_confidence = _means_of_first(error[np.argsort(-c, kind='stable')])
        by_error = _means_of_first(np.sort(error))
        shares = 1 - np.arange(STEPS) / STEPS
        return cls(
            count=np.bincount(index, minlength=BINS).astype(np.float64),
            claimed=np.bincount(index, weights=c, minlength=BINS),
            right=np.bincount(index, weights=np.abs(r) < LOG_WITHIN, minlength=BINS),
            curve=by_confidence[_last(shares, pixels)],
            oracle=by_error[_last(shares, pixels)],
            kept=by_confidence[_last(np.array(KEPT), pixels)],
            frames=1,
        )

    def __add__(self, other: ConfidenceScore) -> ConfidenceScore:
        return ConfidenceScore(
            self.count + other.count, self.claimed + other.claimed, self.right + other.right,
            self.curve + other.curve, self.oracle + other.oracle, self.kept + other.kept,
            self.frames + other.frames,
        )  # fmt: skip

    def values(self) -> dict[str, float]:
        """Return the figures; NaN without frames.

        Keys: 'ece' (expected calibration error, over all pixels), 'mean' (confidence), 'right'
        (share of the pixels within 10 %); means over frames: 'ause', 'random' (AUSE of a
        confidence that knows nothing: the error of all less the oracle), 'error_50' to
        'error_100' (of the most confident 50 % to all).
        """
        pixels = self.count.sum()
        with np.errstate(invalid='ignore', divide='ignore'):
            curve, oracle = self.curve / self.frames, self.oracle / self.frames
            kept = self.kept / self.frames
            return {
                'ece': float(np.abs(self.claimed - self.right).sum() / pixels),
                'mean': float(self.claimed.sum() / pixels),
                'right': float(self.right.sum() / pixels),
                'ause': float((curve - oracle).mean()),
                'random': float((curve[0] - oracle).mean()),
                **{f'error_{100 * share:.0f}': float(value)
                   for share, value in zip(KEPT, kept, strict=True)},
            }

    def bins(self) -> list[dict[str, float | None]]:
        """Return for each bin of confidence its share of the pixels, what it claims and holds."""
        total = max(1.0, float(self.count.sum()))
        return [
            {
                'share': float(n / total),
                'confidence': float(claimed / n) if n else None,
                'right': float(right / n) if n else None,
            }
            for n, claimed, right in zip(self.count, self.claimed, self.right, strict=True)
        ]


NAMES = tuple(ConfidenceScore().values())


def _means_of_first(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the first 1, 2, ... values."""
    return np.asarray(np.cumsum(values) / np.arange(1, len(values) + 1))


def _last(shares: NDArray[np.float64], pixels: int) -> NDArray[np.int64]:
    """Index of the last pixel of each share; at least one pixel is kept."""
    return np.maximum(np.rint(shares * pixels).astype(np.int64), 1) - 1
