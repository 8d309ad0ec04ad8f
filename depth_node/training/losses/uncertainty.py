"""How wrong a prediction says it is, against how wrong it was."""

from __future__ import annotations

from depth_node.training.losses.masked import masked_pair, picture_mean
import torch


def scale_free_residual(
    pred: torch.Tensor, target: torch.Tensor, valid: torch.Tensor
) -> torch.Tensor:
    """Return log pred - log target less its median over each picture.

    Args:
        pred: (N, 1, H, W), positive where valid.
        target: (N, 1, H, W), positive where valid.
        valid: (N, 1, H, W) bool.

    Returns:
        (N, 1, H, W); 0 where not valid. The median of an even number is the mean of the middle
        two.
    """
    pred, target = masked_pair(pred, target, valid, fill=1.0)
    residual = pred.log() - target.log()
    known = torch.where(valid, residual, torch.nan).flatten(1)
    both = torch.stack([known.nanmedian(1).values, -(-known).nanmedian(1).values])
    middle = both.mean(0).nan_to_num()[:, None, None, None]
    return torch.where(valid, residual - middle, torch.zeros_like(residual))


def laplace_nll(
    residual: torch.Tensor, log_spread: torch.Tensor, valid: torch.Tensor
) -> torch.Tensor:
    """Negative log likelihood of residuals under Laplace distributions of predicted width.

    |r| exp(-s) + s with s = log b, without the constant log 2: smallest, per pixel, at
    b = E|r|. Source: Kendall & Gal 2017, arXiv:1703.04977, section 3, with Laplace's density as
    in Klodt & Vedaldi 2018.

    Args:
        residual: (N, 1, H, W).
        log_spread: (N, 1, H, W), s.
        valid: (N, 1, H, W) bool.

    Returns:
        Scalar; the mean over each picture's valid pixels, then over pictures.
    """
    log_spread, residual = masked_pair(log_spread, residual, valid)
    return picture_mean(residual.abs() * torch.exp(-log_spread) + log_spread, valid)
