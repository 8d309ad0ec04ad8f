"""Flying points: points of a cloud that lie on no true surface, and the covered share.

A network smooths depth across an object's border; the points in between hang in the air, where a
planner sees an obstacle that is not there. This module counts them against true depth.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
import math
from typing import Any, Protocol

from depth_node.evaluation.metrics import BoolImage, FloatImage
import numpy as np
from numpy.typing import NDArray

TOLERANCE_M = 0.05
TOLERANCE_SHARE = 0.03


class PinholeCamera(Protocol):
    """The part of depth_node.camera.Camera that a projection needs."""

    @property
    def size_hw(self) -> tuple[int, int]:
        """Image size."""

    @property
    def fx(self) -> float:
        """Focal length along u, px."""

    @property
    def fy(self) -> float:
        """Focal length along v, px."""

    @property
    def cx(self) -> float:
        """Principal point u, px."""

    @property
    def cy(self) -> float:
        """Principal point v, px."""


@dataclass(frozen=True)
class FlyingResult:
    """Count of judged points, flying ones among them, and coverage.

    Attributes:
        judged: points whose rays meet at least one pixel of known true depth.
        flying: judged points farther than the tolerance from every true surface along their rays.
        unjudged: finite points without known truth near their ray, or projecting outside the
            image.
        coverage: share of the pixels of known true depth that have a finite point.
        scale: factor applied to the points before judging (1 unless aligned).
        is_flying: (N,) or (H, W) like the points, True where judged and flying.
    """

    judged: int
    flying: int
    unjudged: int
    coverage: float
    scale: float
    is_flying: BoolImage

    @property
    def share(self) -> float:
        """Flying share of the judged points; NaN when none was judged."""
        return self.flying / self.judged if self.judged else math.nan


def flying_points(
    points: NDArray[np.floating[Any]],
    true_depth: FloatImage,
    camera: PinholeCamera,
    *,
    tolerance_m: float = TOLERANCE_M,
    tolerance_share: float = TOLERANCE_SHARE,
    radius_px: int = 1,
    align_scale: bool = False,
) -> FlyingResult:
    """Judge a cloud in the optical frame of the camera that the true depth belongs to.

    A point flies when abs(Z - d*) > max(tolerance_m, tolerance_share * d*) for every known true
    depth d* within `radius_px` pixels of its projection. The neighbourhood forgives an edge that
    is off by a pixel, and only that.

    A network's error of scale would make every point fly; `align_scale` first multiplies the
    points by median(true Z) / median(point Z) of the same rays, which leaves the shape alone.

    Args:
        points: (N, 3) or (H, W, 3), metres, x right, y down, z forward; NaN = no point.
        true_depth: (H, W) depth, metres, NaN or non-positive = unknown; of the camera's size.
        camera: intrinsics of the rectified image that `true_depth` belongs to.
        tolerance_m: metres.
        tolerance_share: share of the true depth.
        radius_px: half size of the square of rays, pixels; 0 = the point's own ray.
        align_scale: judge the shape only, see above.

    Returns:
        Counts and the per-point verdict.

    Raises:
        ValueError: shapes that do not fit, or a negative tolerance or radius.
    """
    if points.shape[-1:] != (3,) or points.ndim not in (2, 3):
        raise ValueError(f'points have shape {points.shape}, expected (N, 3) or (H, W, 3)')
    if true_depth.shape != tuple(camera.size_hw):
        raise ValueError(
            f'the true depth is {true_depth.shape}, the camera belongs to '
            f'{tuple(camera.size_hw)}; '
            'scale the camera to the depth image'
        )
    if tolerance_m < 0 or tolerance_share < 0 or radius_px < 0:
        raise ValueError(
            f'tolerances and radius must not be negative: {tolerance_m} m, {tolerance_share}, '
            f'{radius_px} px'
        )
    height, width = true_depth.shape
    known = np.isfinite(true_depth) & (true_depth > 0)
    truth = np.where(known, true_depth, np.nan).astype(np.float64)

    flat = points.reshape(-1, 3).astype(np.float64)
    finite = np.isfinite(flat).all(axis=1) & (flat[:, 2] > 0)
    x, y, z = flat[finite].T
    u = np.floor(camera.fx * x / z + camera.cx + 0.5).astype(
        np.int64
    )  # whole numbers at pixel centres
    v = np.floor(camera.fy * y / z + camera.cy + 0.5).astype(np.int64)
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)

    covered = np.zeros((height, width), bool)
    covered[v[inside], u[inside]] = True
    known_count = int(known.sum())
    coverage = float((covered & known).sum() / known_count) if known_count else math.nan

    u, v, z = u[inside], v[inside], z[inside]
    scale = 1.0
    if align_scale:
        own = truth[v, u]
        with_truth = np.isfinite(own)
        if with_truth.any():
            scale = float(np.median(own[with_truth]) / np.median(z[with_truth]))
            z = z * scale

    padded = np.pad(truth, radius_px, constant_values=np.nan)
    seen = np.zeros(z.shape, bool)
    supported = np.zeros(z.shape, bool)
    for dv in range(2 * radius_px + 1):
        for du in range(2 * radius_px + 1):
            surface = padded[v + dv, u + du]
            seen |= np.isfinite(surface)
            # comparisons with NaN are False: an unknown ray supports nothing
            supported |= np.abs(z - surface) <= np.maximum(tolerance_m, tolerance_share * surface)
    flies = seen & ~supported

    verdict_inside = np.zeros(inside.shape, bool)
    verdict_inside[inside] = flies
    verdict = np.zeros(finite.shape, bool)
    verdict[finite] = verdict_inside
    judged = int(seen.sum())
    return FlyingResult(
        judged=judged,
        flying=int(flies.sum()),
        unjudged=int(finite.sum()) - judged,
        coverage=coverage,
        scale=scale,
        is_flying=verdict.reshape(points.shape[:-1]),
    )


def flying_pixels_of_depth(
    depth: FloatImage,
    true_depth: FloatImage,
    *,
    tolerance_m: float = TOLERANCE_M,
    tolerance_share: float = TOLERANCE_SHARE,
    radius_px: int = 1,
    align_scale: bool = False,
) -> FlyingResult:
    """`flying_points` for a depth image of the truth's size, each pixel its own ray.

    Args:
        depth: (H, W) predicted depth, metres; NaN and Inf = no point.
        true_depth: (H, W) true depth, metres.
        tolerance_m: metres.
        tolerance_share: share of the true depth.
        radius_px: half size of the square of rays, pixels.
        align_scale: judge the shape only.

    Returns:
        Counts and the (H, W) verdict.

    Raises:
        ValueError: the images differ in size, or a negative tolerance or radius.
    """
    if depth.shape != true_depth.shape:
        raise ValueError(
            f'depth is {depth.shape}, the truth {true_depth.shape}; resize the depth to the truth '
            'first'
        )
    height, width = depth.shape
    uu, vv = np.meshgrid(np.arange(width), np.arange(height))
    z = np.where(np.isfinite(depth), depth, np.nan).astype(np.float64)
    unit = _UnitCamera((height, width))
    return flying_points(
        np.stack([uu * z, vv * z, z], axis=-1),
        true_depth,
        unit,
        tolerance_m=tolerance_m,
        tolerance_share=tolerance_share,
        radius_px=radius_px,
        align_scale=align_scale,
    )


@dataclass(frozen=True)
class _UnitCamera:
    size_hw: tuple[int, int]
    fx: float = 1.0
    fy: float = 1.0
    cx: float = 0.0
    cy: float = 0.0


@dataclass(frozen=True)
class RampResult:
    """Pixels that hang between the two surfaces of a true edge, whatever the scale and shape.

    Attributes:
        near_edge: pixels of known prediction and truth near a true edge.
        missed: of these, where the prediction shows less than half of the true step.
        hanging: (H, W) True where the prediction draws the step and the pixel lies on neither
            side of it.
    """

    near_edge: int
    missed: int
    hanging: BoolImage

    @property
    def share(self) -> float:
        """Hanging share of the pixels at edges that the prediction draws; NaN without any."""
        drawn = self.near_edge - self.missed
        return float(self.hanging.sum()) / drawn if drawn else math.nan


def hanging_at_edges(
    depth: FloatImage,
    true_depth: FloatImage,
    *,
    window_px: int = 4,
    min_step: float = 0.1,
    tolerance_m: float = TOLERANCE_M,
    tolerance_share: float = TOLERANCE_SHARE,
) -> RampResult:
    """Find the pixels that a network leaves in the air at object borders.

    A network is wrong about the shape of a room by far more than the tolerance of
    `flying_points`; by that test nearly all of its points fly, and nothing is said about edges.
    Here each pixel within `window_px` of a true edge (two neighbours that differ by more than
    `min_step`) is aligned by itself: the smallest and the largest predicted depth in the window
    of twice that half size are mapped linearly onto the smallest and the largest true one.  What
    is then farther than max(tolerance_m, tolerance_share * d*) from every true depth d* in the
    window hangs between the surfaces.  A border that is off by some pixels is forgiven, a ramp
    is not.

    Args:
        depth: (H, W) predicted depth before any filter, metres; not finite = unknown.
        true_depth: (H, W) true depth, metres, NaN or non-positive = unknown.
        window_px: how far from an edge pixels are judged.
        min_step: relative step of true depth that is an edge.
        tolerance_m: metres.
        tolerance_share: share of the true depth.

    Returns:
        Counts and the (H, W) verdict.

    Raises:
        ValueError: the images differ in size, or a window below one pixel.
    """
    if depth.shape != true_depth.shape or depth.ndim != 2:
        raise ValueError(
            f'depth is {depth.shape}, the truth {true_depth.shape}; expected two (H, W) of one '
            'size'
        )
    if window_px < 1:
        raise ValueError(f'window of {window_px} px, expected at least 1')
    known = np.isfinite(true_depth) & (true_depth > 0)
    truth = np.where(known, true_depth, np.nan).astype(np.float64)
    seen = np.where(np.isfinite(depth) & (depth > 0), depth, np.nan).astype(np.float64)

    edge = np.zeros(truth.shape, bool)
    for first, second in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        low = np.fmin(truth[first], truth[second])
        steep = np.abs(truth[first] - truth[second]) > min_step * low  # False beside NaN
        edge[first] |= steep
        edge[second] |= steep

    near_edge = np.zeros(truth.shape, bool)
    for edge_there in _shifted(edge, window_px, fill=False):
        near_edge |= edge_there
    near_edge &= known & np.isfinite(seen)
    # the wider window holds both sides of an edge that the narrower one touches
    wide_px = 2 * window_px
    true_low, true_high = np.full((2, *truth.shape), np.nan)
    seen_low, seen_high = np.full((2, *truth.shape), np.nan)
    for surface in _shifted(truth, wide_px, fill=np.nan):
        true_low, true_high = np.fmin(true_low, surface), np.fmax(true_high, surface)
    for surface in _shifted(seen, wide_px, fill=np.nan):
        seen_low, seen_high = np.fmin(seen_low, surface), np.fmax(seen_high, surface)
    with np.errstate(invalid='ignore', divide='ignore'):
        drawn = np.log(seen_high / seen_low) >= 0.5 * np.log(true_high / true_low)
        share = (seen - seen_low) / (seen_high - seen_low)
        mapped = true_low + share * (true_high - true_low)
    supported = np.zeros(truth.shape, bool)
    for surface in _shifted(truth, wide_px, fill=np.nan):
        supported |= np.abs(mapped - surface) <= np.maximum(tolerance_m, tolerance_share * surface)
    return RampResult(
        near_edge=int(near_edge.sum()),
        missed=int((near_edge & ~drawn).sum()),
        hanging=near_edge & drawn & ~supported,
    )


def _shifted(image: NDArray[Any], reach: int, *, fill: float) -> Iterator[NDArray[Any]]:
    """Yield the image moved by every step of the square window, `fill` beyond its border."""
    padded = np.pad(image, reach, constant_values=fill)
    for dv in range(2 * reach + 1):
        for du in range(2 * reach + 1):
            yield padded[dv : dv + image.shape[0], du : du + image.shape[1]]
