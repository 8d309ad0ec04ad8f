"""Losses between inverse depths that are known up to scale and shift, and their alignment."""

from __future__ import annotations

from depth_node.training.losses.masked import (
    both_known,
    forward_differences,
    masked_pair,
    mean_of_pictures,
)
import torch

ALIGNMENTS = ('median', 'least_squares')
# A picture whose truth varies less than this has no shape to learn; a prediction that does is
# divided by this.
SMALLEST_SPREAD = 1e-6


def affine_fit(
    pred: torch.Tensor, target: torch.Tensor, valid: torch.Tensor, *, positive: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit target = scale * pred + shift by least squares, picture by picture.

    Source: Ranftl et al. 2020 (MiDaS), arXiv:1907.01341, eq. 4, with centred sums, which keep
    their digits where the closed form of the paper loses them.

    Args:
        pred: (N, 1, H, W).
        target: (N, 1, H, W).
        valid: (N, 1, H, W) bool.
        positive: the best fit with a scale of 0 or more: near and far are not to be swapped.

    Returns:
        `scale` and `shift`, (N, 1, 1, 1); scale 0 where `pred` is constant, both 0 for a picture
        without a valid pixel.
    """
    pred, target = masked_pair(pred, target, valid)
    weight = valid.to(pred.dtype)
    count = weight.sum((1, 2, 3), keepdim=True).clamp(min=1)
    pred_mean = pred.sum((1, 2, 3), keepdim=True) / count
    target_mean = target.sum((1, 2, 3), keepdim=True) / count
    centred = (pred - pred_mean) * weight
    variance = centred.square().sum((1, 2, 3), keepdim=True)
    covariance = (centred * (target - target_mean)).sum((1, 2, 3), keepdim=True)
    varies = variance > (SMALLEST_SPREAD**2) * count
    scale = torch.where(varies, covariance / torch.where(varies, variance, 1.0), 0.0)
    if positive:
        scale = scale.clamp(min=0)
    return scale, target_mean - scale * pred_mean


def affine_invariant_loss(
    pred: torch.Tensor,
    target: torch.Tensor,
    valid: torch.Tensor,
    *,
    alignment: str = 'median',
    trim: float = 0.2,
    gradient_weight: float = 0.5,
    scales: int = 4,
) -> torch.Tensor:
    """Scale- and shift-invariant loss of MiDaS.

    The truth is always brought to median 0 and mean absolute deviation 1. `median`: so is the
    prediction; the `trim` largest residuals of a picture are dropped, and half the absolute rest
    is divided by the number of all its pixels. `least_squares`: the prediction is fitted to the
    truth, half the mean squared residual. Both add `gradient_weight` times the sum over `scales`
    of |dR/du| + |dR/dv| per pixel, R the residual, each scale with every second pixel of the one
    before. Source: Ranftl et al. 2020 (MiDaS), arXiv:1907.01341, eq. 5 to 11.

    Args:
        pred: (N, 1, H, W) inverse depth, up to a positive scale and a shift. (`least_squares`
            would forgive a negative scale too.)
        target: (N, 1, H, W) inverse depth, up to scale and shift.
        valid: (N, 1, H, W) bool.
        alignment: 'median' or 'least_squares'.
        trim: share of the residuals that counts as wrong truth, 0 where there is none such (no
            sorting then); of `median` only.
        gradient_weight: 0 = no gradient term.
        scales: of the gradient term.

    Returns:
        Scalar; a picture without a valid pixel, or with a constant truth, does not count.

    Raises:
        ValueError: an unknown alignment, or `trim` outside of [0, 1).
    """
    if alignment not in ALIGNMENTS:
        raise ValueError(f'alignment {alignment!r}: expected one of {", ".join(ALIGNMENTS)}')
    if not 0 <= trim < 1:
        raise ValueError(f'trim {trim}: expected a share, 0 <= trim < 1')
    pred, target = masked_pair(pred, target, valid)
    target, spread = _median_and_deviation_removed(target, valid)
    valid = valid & (spread > SMALLEST_SPREAD)
    count = valid.flatten(1).sum(1)
    if alignment == 'median':
        pred, _ = _median_and_deviation_removed(pred, valid)
        residual = torch.where(valid, pred - target, 0.0)
        kept = ((1 - trim) * count).ceil()[:, None]
        size = residual.abs().flatten(1)
        if trim:
            # Ascending, what is not known last.
            size = torch.where(valid.flatten(1), size, torch.inf).sort(1).values
            rank = torch.arange(size.shape[1], device=size.device)
            size = torch.where(rank < kept, size, 0.0)
        total = size.sum(1)
    else:
        scale, shift = affine_fit(pred, target, valid)
        residual = torch.where(valid, scale * pred + shift - target, 0.0)
        total = residual.square().flatten(1).sum(1)
    loss = mean_of_pictures(total / 2, count)
    if gradient_weight:
        loss = loss + gradient_weight * _gradient_term(residual, valid, scales)
    return loss


def _median_and_deviation_removed(
    values: torch.Tensor, valid: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bring each picture's valid values to median 0 and mean absolute deviation 1, the rest to 0.

    Returns:
        The values, and the deviation that they had, (N, 1, 1, 1).
    """
    shape = (len(values), 1, 1, 1)
    known = torch.where(valid, values, torch.nan).flatten(1)
    median = torch.where(valid.flatten(1).any(1), known.nanmedian(1).values, 0.0).view(shape)
    centred = torch.where(valid, values - median, 0.0)
    count = valid.flatten(1).sum(1).clamp(min=1).view(shape)
    spread = centred.abs().sum((1, 2, 3), keepdim=True) / count
    return centred / spread.clamp(min=SMALLEST_SPREAD), spread


def _gradient_term(residual: torch.Tensor, valid: torch.Tensor, scales: int) -> torch.Tensor:
    total = residual.sum() * 0.0
    for level in range(scales):
        step = 2**level
        r, ok = residual[..., ::step, ::step], valid[..., ::step, ::step]
        change = r.flatten(1).sum(1) * 0.0
        for axis in (-1, -2):
            steps = forward_differences(r, axis).abs() * both_known(ok, axis)
            change = change + steps.flatten(1).sum(1)
        total = total + mean_of_pictures(change, ok.flatten(1).sum(1))
    return total
