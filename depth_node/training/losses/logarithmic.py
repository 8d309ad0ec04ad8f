"""Losses between the logarithms of two depth images.

All take `pred` and `target` (N, 1, H, W), positive depth where `valid`; or, with `of_logs`, their
natural logarithms (a network's raw output): the logarithm is taken once. The result is a scalar,
the mean over pictures unless it says otherwise.
"""

from __future__ import annotations

from depth_node.training.losses.masked import (
    both_known,
    forward_differences,
    masked_pair,
    mean_of_pictures,
    picture_mean,
)
import torch


def _log_ratio(
    pred: torch.Tensor, target: torch.Tensor, valid: torch.Tensor, of_logs: bool
) -> torch.Tensor:
    """Log of pred / target where valid, 0 elsewhere, with finite gradients everywhere."""
    pred, target = masked_pair(pred, target, valid, fill=0.0 if of_logs else 1.0)
    return pred - target if of_logs else pred.log() - target.log()


def _moments(
    ratio: torch.Tensor, valid: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Population variance and mean of each row's valid values, and their number."""
    ratio, weight = ratio.flatten(1), valid.flatten(1).to(ratio.dtype)
    count = weight.sum(1)
    mean = (ratio * weight).sum(1) / count.clamp(min=1)
    variance = ((ratio - mean[:, None]).square() * weight).sum(1) / count.clamp(min=1)
    return variance, mean, count


def silog_loss(
    pred: torch.Tensor,
    target: torch.Tensor,
    valid: torch.Tensor,
    *,
    mean_weight: float = 0.15,
    eps: float = 1e-6,
    of_logs: bool = False,
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
        of_logs: both are logarithms already.

    Returns:
        Scalar; pictures without a valid pixel do not count.
    """
    variance, mean, count = _moments(_log_ratio(pred, target, valid, of_logs), valid)
    root = (variance + mean_weight * mean.square() + eps).sqrt()
    return mean_of_pictures(root * count, count)


def bts_silog_loss(
    pred: torch.Tensor,
    target: torch.Tensor,
    valid: torch.Tensor,
    *,
    variance_focus: float = 0.85,
    factor: float = 10.0,
    eps: float = 1e-8,
    of_logs: bool = False,
) -> torch.Tensor:
    """Scale-aware logarithmic error of BTS: one root over all pixels of the batch.

    With e = log pred - log target: factor * sqrt(Mean[e^2] - variance_focus * Mean[e]^2 + eps).
    Source: Lee et al. 2019 (BTS), arXiv:1907.10326, eq. 4 (its lambda is `variance_focus`, its
    alpha `factor`).

    Args:
        pred: (N, 1, H, W).
        target: (N, 1, H, W).
        valid: (N, 1, H, W) bool.
        variance_focus: 1 is scale invariant, 0 the root mean square.
        factor: scales the loss.
        eps: keeps the root's gradient finite at a perfect fit.
        of_logs: both are logarithms already.
    """
    ratio = _log_ratio(pred, target, valid, of_logs)
    variance, mean, count = _moments(ratio.flatten()[None], valid.flatten()[None])
    # Variance and mean apart: the difference of two means loses digits where they are close.
    root = (variance + (1 - variance_focus) * mean.square() + eps).sqrt()
    return factor * mean_of_pictures(root * count, count)


def scale_invariant_loss(
    pred: torch.Tensor,
    target: torch.Tensor,
    valid: torch.Tensor,
    *,
    eigen_lambda: float = 0.5,
    gradient: bool = False,
    drop_extremes: bool = False,
    of_logs: bool = False,
) -> torch.Tensor:
    """Eigen's scale-invariant squared error of logarithms, and Eigen & Fergus' gradient term.

    With d = log pred - log target over a picture's n valid pixels: sum(d^2) / n - eigen_lambda *
    sum(d)^2 / n^2; with `gradient` also sum((d right - d)^2 + (d below - d)^2) / n over pairs of
    valid neighbours. Source: Eigen 2014, arXiv:1406.2283, eq. 4; Eigen & Fergus 2015,
    arXiv:1411.4734, eq. 1. MegaDepth's data term is `eigen_lambda` = 1.

    Args:
        pred: (N, 1, H, W).
        target: (N, 1, H, W).
        valid: (N, 1, H, W) bool.
        eigen_lambda: 0 is the mean square, 1 forgives a wrong scale wholly. `silog_loss` counts
            the other way: its `mean_weight` is 1 - lambda.
        gradient: add the first-order term.
        drop_extremes: leave out pixels at a picture's smallest and largest true depth, as Eigen
            2014, section 3.2, does: there a sensor saturates.
        of_logs: both are logarithms already.
    """
    ratio = _log_ratio(pred, target, valid, of_logs)
    if drop_extremes:
        known = torch.where(valid, target, torch.inf).flatten(1)
        low = known.min(1).values.view(-1, 1, 1, 1)
        high = torch.where(valid, target, -torch.inf).flatten(1).max(1).values.view(-1, 1, 1, 1)
        valid = valid & (target != low) & (target != high)
        ratio = torch.where(valid, ratio, 0.0)
    variance, mean, count = _moments(ratio, valid)
    total = (variance + (1 - eigen_lambda) * mean.square()) * count
    if gradient:
        for axis in (-1, -2):
            steps = forward_differences(ratio, axis).square() * both_known(valid, axis)
            total = total + steps.flatten(1).sum(1)
    return mean_of_pictures(total, count)


def log_l1_loss(
    pred: torch.Tensor, target: torch.Tensor, valid: torch.Tensor, *, of_logs: bool = False
) -> torch.Tensor:
    """Mean of |log pred - log target|.

    Robust and metric: an error of scale costs its full size. Source: the absolute form of Eigen
    2014, arXiv:1406.2283, eq. 1 without the scale-invariant term.
    """
    return picture_mean(_log_ratio(pred, target, valid, of_logs).abs(), valid)


def gradient_loss(
    pred: torch.Tensor,
    target: torch.Tensor,
    valid: torch.Tensor,
    *,
    scales: int = 4,
    of_logs: bool = False,
) -> torch.Tensor:
    """Multi-scale gradient matching of log depth.

    With R = log pred - log target: the mean of |dR/du| + |dR/dv| over neighbouring pairs of valid
    pixels, averaged over `scales` pictures, each taking every second pixel of the one before.
    Source: Li & Snavely 2018 (MegaDepth), arXiv:1804.00607, the term L_grad (the number of
    scales is unverified). It compares derivatives and smooths nothing, so sharp borders survive.
    """
    ratio = _log_ratio(pred, target, valid, of_logs)
    total = ratio.sum() * 0.0
    for level in range(scales):
        step = 2**level
        r, ok = ratio[..., ::step, ::step], valid[..., ::step, ::step]
        for axis in (-1, -2):
            if r.shape[axis] > 1:
                total = total + picture_mean(
                    forward_differences(r, axis).abs(), both_known(ok, axis)
                )
    return total / scales
