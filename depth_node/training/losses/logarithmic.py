"""Pixel losses between two positive depth images.

All take `pred` and `target` (N, 1, H, W) in metres, positive where `valid` (same shape, bool), and
return a scalar. Where nothing is valid they return zero that still has a gradient (of zero).
"""

from __future__ import annotations

import torch


def _log_ratio(pred: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Log of pred / target where valid, 0 elsewhere, with finite gradients everywhere."""
    if not pred.shape == target.shape == valid.shape or valid.dtype != torch.bool:
        raise ValueError(
            f'pred {tuple(pred.shape)}, target {tuple(target.shape)}, valid '
            f'{tuple(valid.shape)} {valid.dtype}: expected one shape and a bool `valid`'
        )
    # `where` before the logarithm: masking afterwards would leave NaN gradients.
    one = torch.ones((), dtype=pred.dtype, device=pred.device)
    return torch.where(valid, pred, one).log() - torch.where(valid, target, one).log()


def silog_loss(
    pred: torch.Tensor,
    target: torch.Tensor,
    valid: torch.Tensor,
    *,
    mean_weight: float = 0.15,
    eps: float = 1e-6,
) -> torch.Tensor:
    """Scale-aware logarithmic error, one root per picture, averaged over pictures.

    With g = log pred - log target: sqrt(Var[g] + mean_weight * Mean[g]^2 + eps). Source: Eigen
    2014, arXiv:1406.2283, eq. 4, in the rooted form of BTS (Lee 2019), arXiv:1907.10326, whose
    lambda is 1 - `mean_weight`. BTS pools the batch; here each picture has its own variance, so
    that pictures at other scales than their neighbours do not dominate.

    Args:
        pred: (N, 1, H, W).
        target: (N, 1, H, W).
        valid: (N, 1, H, W) bool.
        mean_weight: share of a wrong scale that counts; 0 is scale invariant.
        eps: keeps the root's gradient finite at a perfect fit.

    Returns:
        Scalar; pictures without a valid pixel do not count.
    """
    ratio = _log_ratio(pred, target, valid).flatten(1)
    weight = valid.flatten(1).to(ratio.dtype)
    count = weight.sum(1)
    mean = ratio.sum(1) / count.clamp(min=1)
    variance = ((ratio - mean[:, None]).square() * weight).sum(1) / count.clamp(min=1)
    root = (variance + mean_weight * mean.square() + eps).sqrt()
    has_pixels = (count > 0).to(ratio.dtype)
    return (root * has_pixels).sum() / has_pixels.sum().clamp(min=1)


def log_l1_loss(pred: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean of |log pred - log target| over all valid pixels.

    Robust and metric: an error of scale costs its full size. Source: the absolute form of Eigen
    2014, arXiv:1406.2283, eq. 1 without the scale-invariant term.
    """
    ratio = _log_ratio(pred, target, valid)
    return ratio.abs().sum() / valid.sum().clamp(min=1)


def gradient_loss(
    pred: torch.Tensor, target: torch.Tensor, valid: torch.Tensor, *, scales: int = 4
) -> torch.Tensor:
    """Multi-scale gradient matching of log depth.

    With R = log pred - log target: the mean of |dR/du| + |dR/dv| over neighbouring pairs of valid
    pixels, averaged over `scales` pictures, each taking every second pixel of the one before.
    Source: Li & Snavely 2018 (MegaDepth), arXiv:1804.00607, the term L_grad. It compares
    derivatives and smooths nothing, so sharp borders survive it.
    """
    ratio = _log_ratio(pred, target, valid)
    total = ratio.sum() * 0.0
    for level in range(scales):
        step = 2**level
        r, ok = ratio[..., ::step, ::step], valid[..., ::step, ::step]
        for axis in (-1, -2):
            length = r.shape[axis]
            if length < 2:
                continue
            after, before = r.narrow(axis, 1, length - 1), r.narrow(axis, 0, length - 1)
            both = ok.narrow(axis, 1, length - 1) & ok.narrow(axis, 0, length - 1)
            total = total + ((after - before).abs() * both).sum() / both.sum().clamp(min=1)
    return total / scales
