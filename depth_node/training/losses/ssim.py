"""Structural similarity of two pictures or two depth maps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from depth_node.training.geometry import without_autocast
from depth_node.training.losses.masked import full_precision, masked_pair, picture_mean
import torch
from torch.nn import functional

KINDS = ('gaussian', 'box')
PADDINGS = ('reflect', 'valid')


def ssim_map(
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    window: int = 11,
    kind: str = 'gaussian',
    sigma: float = 1.5,
    c1: float,
    c2: float,
    padding: str = 'reflect',
) -> torch.Tensor:
    """Structural similarity around every pixel.

    (2 mx my + c1) (2 cov + c2) / ((mx^2 + my^2 + c1) (vx + vy + c2)), with the window's weighted
    means and population variances. Source: Wang et al. 2004, 'Image quality assessment: from
    error visibility to structural similarity', eq. 13; c1 = (k1 L)^2, c2 = (k2 L)^2, L the range
    of the values.

    Args:
        x: (N, C, H, W).
        y: (N, C, H, W).
        window: side of the window, odd [px].
        kind: weights within it, 'gaussian' or 'box' (all equal).
        sigma: of the Gaussian [px].
        c1: keeps the comparison of means stable, in squared units of the values.
        c2: the same for the variances.
        padding: 'reflect' keeps the size; 'valid' takes whole windows only.

    Returns:
        (N, C, h, w) in [-1, 1], 1 where the windows are equal.

    Raises:
        ValueError: shapes differ, the window is even or does not fit, an unknown kind or padding.
    """
    if x.shape != y.shape:
        raise ValueError(f'x {tuple(x.shape)}, y {tuple(y.shape)}: expected one shape')
    x, y = full_precision(x), full_precision(y)
    blur = _blur(x, window, kind, sigma, padding)
    return _similarity(x, y, blur, c1, c2)


def ssim_loss(
    pred: torch.Tensor,
    target: torch.Tensor,
    valid: torch.Tensor,
    *,
    data_range: float = 100.0,
    window: int = 11,
    kind: str = 'gaussian',
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: str = 'valid',
) -> torch.Tensor:
    """Structural dissimilarity (1 - SSIM) / 2 of two maps.

    The defaults are DenseDepth's: maps of m / depth up to L = 100, whole windows only. Source:
    Alhashim & Wonka 2018, arXiv:1812.11941, eq. 4. Where pixels are unknown, a window's means and
    variances are those of its known pixels, and only windows around known pixels count.

    Args:
        pred: (N, 1, H, W).
        target: (N, 1, H, W).
        valid: (N, 1, H, W) bool.
        data_range: L, the span of the values: 100 for 10 m / depth from 0.1 to 10 m; too large a
            span hides every difference.
        window: side of the window, odd [px].
        kind: 'gaussian' or 'box'.
        sigma: of the Gaussian [px].
        k1: c1 = (k1 L)^2.
        k2: c2 = (k2 L)^2.
        padding: 'valid' or 'reflect', see `ssim_map`.

    Returns:
        Scalar in [0, 1]; the mean over pictures.
    """
    pred, target = masked_pair(pred, target, valid)
    blur = _blur(pred, window, kind, sigma, padding)
    known = valid.to(pred.dtype)
    # The share of each window that is known; at least its centre where that is known.
    share = blur(known)
    edge = 0 if padding == 'reflect' else window // 2
    height, width = valid.shape[-2:]
    counts = valid[..., edge : height - edge, edge : width - edge]
    safe = torch.where(counts, share, 1.0)
    similarity = _similarity(
        pred, target, lambda values: blur(values) / safe, (k1 * data_range) ** 2,
        (k2 * data_range) ** 2,
    )  # fmt: skip
    return picture_mean(((1 - similarity) / 2).clamp(0, 1), counts)


def _similarity(
    x: torch.Tensor,
    y: torch.Tensor,
    blur: Callable[[torch.Tensor], torch.Tensor],
    c1: float,
    c2: float,
) -> torch.Tensor:
    mean_x, mean_y = blur(x), blur(y)
    xx, yy, xy = mean_x.square(), mean_y.square(), mean_x * mean_y
    spread = blur(x * x) - xx + blur(y * y) - yy
    covariance = blur(x * y) - xy
    return (2 * xy + c1) * (2 * covariance + c2) / ((xx + yy + c1) * (spread + c2))


def _blur(
    like: torch.Tensor, window: int, kind: str, sigma: float, padding: str
) -> Callable[[torch.Tensor], torch.Tensor]:
    if kind not in KINDS or padding not in PADDINGS:
        raise ValueError(
            f'kind {kind!r}, padding {padding!r}: expected one of {KINDS} and one of {PADDINGS}'
        )
    height, width = like.shape[-2:]
    if window < 1 or window % 2 == 0 or window > min(height, width):
        raise ValueError(
            f'window of {window} px over a map of {height}x{width} px: expected an odd window no '
            'larger than the map'
        )
    at = torch.arange(window, dtype=like.dtype, device=like.device) - window // 2
    weights = torch.ones_like(at) if kind == 'box' else torch.exp(-(at**2) / (2 * sigma**2))
    return partial(weighted_window, weights=weights / weights.sum(), padding=padding)


# Mixed precision would convolve in half, where variances are differences of rounding errors.
@without_autocast
def weighted_window(values: torch.Tensor, *, weights: torch.Tensor, padding: str) -> torch.Tensor:
    """Weigh each pixel's surroundings, rows and columns by the same `weights` (odd length).

    Args:
        values: (N, C, H, W).
        weights: (window,), their sum is 1.
        padding: 'reflect' keeps the size; 'valid' takes whole windows only.
    """
    channels, half = values.shape[1], weights.shape[0] // 2
    if padding == 'reflect' and half:
        values = functional.pad(values, (half, half, half, half), mode='reflect')
    rows = weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    columns = weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    values = functional.conv2d(values, rows, groups=channels)
    return functional.conv2d(values, columns, groups=channels)
