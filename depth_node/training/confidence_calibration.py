"""Calibration of a confidence: predicted log spread against how often depth was right.

Proper scoring with two parameters, as Platt's scaling (1999) does for classifiers: they minimise
the log loss of the event |r| < ln 1.1 under the probability that the head gives it.
"""

from __future__ import annotations

from dataclasses import dataclass

from depth_node.training.networks.confidence import LOG_SPREAD_LIMITS, LOG_WITHIN
import numpy as np
from numpy.typing import NDArray
import torch

BIN = 0.01  # of log b: a hundredth moves no confidence by more than 0.004
LEAST_PIXELS = 100
SLOPE_LIMITS = (0.05, 20.0)
_EDGES = np.arange(
    round((LOG_SPREAD_LIMITS[1] - LOG_SPREAD_LIMITS[0]) / BIN) + 1
) * BIN + LOG_SPREAD_LIMITS[0]  # fmt: skip
_CENTRES = (_EDGES[:-1] + _EDGES[1:]) / 2
NO_COUNTS = torch.zeros((2, len(_CENTRES)), dtype=torch.float64)


@dataclass(frozen=True)
class Calibration:
    """What was fitted, and on how much.

    Attributes:
        slope: of log b' = slope * log b + offset.
        offset: as above.
        log_loss: mean of the event's log loss, after the fit.
        error: expected calibration error in 10 bins, after the fit.
        right: share of the pixels within the tolerance.
        pixels: how many.
    """

    slope: float
    offset: float
    log_loss: float
    error: float
    right: float
    pixels: int


def count(
    log_spread: torch.Tensor, residual: torch.Tensor, valid: torch.Tensor
) -> torch.Tensor:
    """Count pixels by their predicted spread: all of them, and those that are right.

    Args:
        log_spread: (N, 1, H, W) within `LOG_SPREAD_LIMITS`.
        residual: (N, 1, H, W) scale-free.
        valid: (N, 1, H, W) bool.

    Returns:
        (2, bins) float64; sums of several counts are counts of all.
    """
    s, r = log_spread[valid].double(), residual[valid]
    index = ((s - LOG_SPREAD_LIMITS[0]) / BIN).long().clamp(0, len(_CENTRES) - 1)
    right = (r.abs() < LOG_WITHIN).double()
    bins = len(_CENTRES)
    return torch.stack([
        torch.bincount(index, minlength=bins).double(),
        torch.bincount(index, weights=right, minlength=bins),
    ])  # fmt: skip


def fit(counts: torch.Tensor) -> Calibration | None:
    """Find slope and offset by Newton's method on the log loss.

    Args:
        counts: of `count`, summed over the validation frames.

    Returns:
        None where there are fewer than `LEAST_PIXELS`, or all are right, or none is.
    """
    total, right = counts.cpu().numpy().astype(np.float64)
    pixels, rights = total.sum(), right.sum()
    if pixels < LEAST_PIXELS or not 0 < rights < pixels:
        return None
    middle = float((total * _CENTRES).sum() / pixels)
    x = np.stack([_CENTRES - middle, np.ones_like(_CENTRES)])  # centred: well conditioned
    theta = np.array([1.0, middle])

    def loss(theta: NDArray[np.float64]) -> float:
        p = _probability(theta @ x)
        return float(-(right * np.log(p) + (total - right) * np.log1p(-p)).sum() / pixels)

    best = loss(theta)
    for _ in range(50):
        t = theta @ x
        p = _probability(t)
        # p = 1 - exp(-m), m = ln 1.1 / exp(t): dp/dt = -m exp(-m); Fisher's information keeps
        # the second derivative positive
        m = LOG_WITHIN * np.exp(-t)
        slope_p = -m * (1 - p)
        gradient = x @ (-(right - total * p) / (p * (1 - p)) * slope_p)
        information = (x * (total * slope_p**2 / (p * (1 - p)))) @ x.T
        step = np.linalg.solve(information + 1e-9 * pixels * np.eye(2), gradient)
        size = 1.0
        while size > 1e-4 and not loss(theta - size * step) <= best:
            size /= 2
        theta = theta - size * step
        theta[0] = np.clip(theta[0], *SLOPE_LIMITS)
        now = loss(theta)
        if abs(best - now) < 1e-12:
            break
        best = min(best, now)
    p = _probability(theta @ x)
    return Calibration(
        slope=float(theta[0]), offset=float(theta[1] - theta[0] * middle), log_loss=loss(theta),
        error=_calibration_error(p, total, right), right=float(rights / pixels),
        pixels=int(pixels),
    )  # fmt: skip


def _probability(log_spread: NDArray[np.float64]) -> NDArray[np.float64]:
    """P(|r| < ln 1.1), kept off 0 and 1 where its logarithm would not be finite."""
    p = -np.expm1(-LOG_WITHIN * np.exp(-log_spread))
    return np.asarray(np.clip(p, 1e-9, 1 - 1e-9))


def _calibration_error(
    p: NDArray[np.float64], total: NDArray[np.float64], right: NDArray[np.float64]
) -> float:
    index = np.minimum((p * 10).astype(int), 9)
    gaps = np.zeros(10)
    np.add.at(gaps, index, total * p - right)
    return float(np.abs(gaps).sum() / total.sum())
