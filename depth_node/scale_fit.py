"""Robust fits between a network's depth and measured depth.

Errors of a network are not independent from pixel to pixel: a wall that it places too near is too
near in all of its pixels.  So the variance of every fit is taken between blocks of the image, as
clustered standard errors are (Liang & Zeger 1986, equation 7), not between points.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Blocks of the image per side whose errors count as independent. With 4 x 4 the stated
# uncertainty holds for the bundled network (benchmarks/scale.py); with more it is too small.
BLOCKS = 4
# Half width of the window around the middle in which half of a normal distribution lies, in
# standard deviations.
_HALF_NORMAL = 0.6745
# Where Tukey's biweight becomes zero, in standard deviations (95 % efficient; Huber & Ronchetti,
# Robust Statistics, 2009, section 4.8).
_BIWEIGHT = 4.685
# Spreads below this (a share of depth) are not told apart from it.
MIN_SPREAD = 0.003
# Standard error that no fit gets below: what extrinsics and sensor leave in all points alike.
MIN_ERROR = 0.005


def shortest_half(values: Floats) -> tuple[Floats, Floats]:
    """Return middle and spread of the shortest window that holds half of the values of a row.

    The middle follows the densest part, so that up to half of the values may be anything
    (Rousseeuw & Leroy, Robust Regression and Outlier Detection, 1987, section 4.2).

    Args:
        values: (k, n), NaN where there is none.

    Returns:
        (k,) middle, and (k,) the standard deviation of a normal distribution whose half is as
        wide; NaN and Inf for a row with fewer than two values.
    """
    ordered = np.sort(values, axis=1)  # NaN last
    middle, spread = np.full(len(ordered), np.nan), np.full(len(ordered), np.inf)
    counts = np.count_nonzero(ordered == ordered, axis=1)
    for count in np.unique(counts):  # most rows have as many values as their neighbours
        if count > 1:
            rows, half = np.flatnonzero(counts == count), int(count) // 2
            low, high = ordered[rows, :count - half], ordered[rows, half:count]
            first = (high - low).argmin(axis=1)
            row = np.arange(len(rows))
            low, high = low[row, first], high[row, first]
            middle[rows], spread[rows] = (low + high) / 2, (high - low) / (2 * _HALF_NORMAL)
    return middle, spread


def inverse(matrix: Floats) -> Floats:
    """Return the inverse of a symmetric 1 x 1 or 2 x 2 matrix, Inf or NaN where there is none."""
    with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
        if matrix.shape == (1, 1):
            return np.asarray(1 / matrix)
        (a, b), (c, d) = matrix
        return np.asarray(np.array([[d, -b], [-c, a]]) / (a * d - b * c))


def median(values: Floats) -> float:
    """Return the upper median of some values; `numpy.median` costs ten times as much."""
    middle = values.size // 2
    return float(np.partition(values, middle)[middle])


def fit_factor(log_ratio: Floats, block: Ints) -> tuple[float, float, NDArray[np.bool_]]:
    """Fit one factor to many ratios of measured to predicted depth.

    Tukey's biweight from the shortest half on; blocks of the image count alike, however many
    points lie in one.

    Args:
        log_ratio: (n,) log of measured / predicted depth, finite, n >= 2.
        block: (n,) which part of the image each belongs to, from 0.

    Returns:
        log of the factor, its standard error, and (n,) which ratios agree with it.
    """
    middle, spread = (float(value[0]) for value in shortest_half(log_ratio[None]))
    share = (1.0 / np.sqrt(np.maximum(np.bincount(block), 1)))[block]
    weight = share
    for _ in range(5):
        spread = max(spread, MIN_SPREAD)
        residual = log_ratio - middle
        reduced = residual / (_BIWEIGHT * spread)
        inside = np.abs(reduced) < 1
        weight = np.where(inside, (1 - reduced * reduced) ** 2, 0.0) * share
        total = float(weight.sum())
        if total <= 0:
            break
        step = float(weight @ residual) / total
        middle += step
        near = np.abs(residual - step)
        near = near[near < 3 * spread]
        spread = median(near) / _HALF_NORMAL if near.size else spread
    agrees = np.abs(log_ratio - middle) < 3 * max(spread, MIN_SPREAD)
    residual = log_ratio - middle
    slope = np.where(inside, (1 - reduced * reduced) * (1 - 5 * reduced * reduced), 0.0) * share
    bread = float(slope.sum())
    pull = np.bincount(block, weight * residual)
    used = int(np.count_nonzero(np.bincount(block, agrees)))
    if bread <= 0 or used < 2:
        return middle, math.inf, agrees
    error = math.sqrt(float(pull @ pull)) / bread * few_blocks(used)
    # Where outliers lie on one side, the median goes with them and the biweight hardly: how far
    # they are apart is how far either may be off.
    apart = median(log_ratio) - middle
    return middle, math.sqrt(error**2 + apart**2 + MIN_ERROR**2), agrees


def few_blocks(count: int) -> float:
    """Return by how much a standard error from `count` blocks has to grow.

    The unbiased variance takes n / (n - 1), and a deviation in units of such an error follows
    Student's t with n - 1 degrees of freedom, whose standard deviation is sqrt((n-1) / (n-3)).
    """
    if count < 4:
        return math.inf if count < 2 else {2: 12.7 / 2, 3: 4.3 / 2}[count] * math.sqrt(
            count / (count - 1))
    return math.sqrt(count / (count - 3))


def search_affine(x: Floats, y: Floats, pairs: Ints) -> tuple[float, float, float]:
    """Return the best line y = scale x + shift through two points each, by relative residuals.

    Least median of squares over random pairs (Rousseeuw & Leroy 1987, section 5.1).

    Args:
        x: (n,) predicted.
        y: (n,) measured, > 0.
        pairs: (2, h) indices of the pairs to try.

    Returns:
        scale, shift and relative spread of the best line with a positive scale; spread Inf where
        there is none.
    """
    x1, y1 = x[pairs[0]], y[pairs[0]]
    with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
        scale = (y[pairs[1]] - y1) / (x[pairs[1]] - x1)
        shift = y1 - scale * x1
        usable = np.flatnonzero((scale > 0) & (scale < np.inf) & np.isfinite(shift))
        if not usable.size:
            return 1.0, 0.0, math.inf
        scale, shift = scale[usable], shift[usable]
        residual = np.abs((scale[:, None] * x + shift[:, None]) / y - 1)
    middle = len(y) // 2
    spread = np.partition(residual, middle, axis=1)[:, middle] / _HALF_NORMAL
    best = int(spread.argmin())
    return float(scale[best]), float(shift[best]), float(spread[best])


def fit_affine(x: Floats, y: Floats, block: Ints, start: tuple[float, float, float],
               prior_shift: float = math.inf,
               ) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Refine y = scale x + shift by Tukey's biweight on relative residuals.

    Args:
        x: (n,) predicted.
        y: (n,) measured, > 0.
        block: (n,) which part of the image each belongs to, from 0.
        start: scale, shift and relative spread to begin with.
        prior_shift: how large a shift is expected, standard deviation in the unit of y; Inf: any.

    Returns:
        (2,) scale and shift, (2, 2) their covariance, and (n,) which points agree.
    """
    parameters = np.array(start[:2])
    spread = start[2]
    share = (1.0 / np.sqrt(np.maximum(np.bincount(block), 1)))[block]
    # relative residual: (scale x + shift) / y - 1, that is rows @ parameters - 1
    rows = np.stack([x / y, 1 / y], 1)
    bread = np.eye(2)
    weight, residual = share, rows @ parameters - 1
    inside = np.ones(len(x), bool)
    reduced = np.zeros(len(x))
    held = np.zeros((2, 2))
    for _ in range(6):
        spread = max(spread, MIN_SPREAD)
        residual = rows @ parameters - 1
        reduced = residual / (_BIWEIGHT * spread)
        inside = np.abs(reduced) < 1
        weight = np.where(inside, (1 - reduced * reduced) ** 2, 0.0) * share
        weighted = rows * weight[:, None]
        # the prior is worth what its own variance says against one block's
        held[1, 1] = (spread / prior_shift) ** 2 if math.isfinite(prior_shift) else 0.0
        bread = weighted.T @ rows + held
        parameters = inverse(bread) @ weighted.sum(axis=0)
        near = np.abs(rows @ parameters - 1)
        near = near[near < 3 * spread]
        spread = median(near) / _HALF_NORMAL if near.size else spread
    spread = max(spread, MIN_SPREAD)
    residual = rows @ parameters - 1
    agrees = np.abs(residual) < 3 * spread
    used = int(np.count_nonzero(np.bincount(block, agrees)))
    slope = np.where(inside, (1 - reduced * reduced) * (1 - 5 * reduced * reduced), 0.0) * share
    bend = inverse((rows * slope[:, None]).T @ rows + held)
    pull = np.stack([np.bincount(block, weight * residual * rows[:, 0]),
                     np.bincount(block, weight * residual * rows[:, 1])], 1)
    middle = pull.T @ pull + held * spread**2
    if used < 2:
        return parameters, np.full((2, 2), math.inf), agrees
    covariance: Floats = bend @ middle @ bend.T * few_blocks(used) ** 2
    # an error in all points alike is one of the factor on both numbers
    covariance += MIN_ERROR**2 * np.outer(parameters, parameters)
    return parameters, covariance, agrees
