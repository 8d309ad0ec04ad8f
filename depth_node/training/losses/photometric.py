"""Photometric losses of self-supervised systems: how alike a warped picture and the real one are.

None of them has a truth; `valid` says where the warped picture could be seen at all.
"""

from __future__ import annotations

from typing import NamedTuple

from depth_node.training.losses.masked import full_precision
from depth_node.training.losses.ssim import ssim_map
import torch


class Reprojection(NamedTuple):
    """The error that counts at each pixel.

    Attributes:
        error: (N, 1, H, W).
        moved: (N, 1, H, W) bool, where the warp explains the picture better than doing nothing.
        valid: (N, 1, H, W) bool, where at least one source saw the pixel.
    """

    error: torch.Tensor
    moved: torch.Tensor
    valid: torch.Tensor


def photometric_error(
    pred: torch.Tensor,
    target: torch.Tensor,
    *,
    ssim_weight: float = 0.85,
    window: int = 3,
    c1: float = 0.01**2,
    c2: float = 0.03**2,
) -> torch.Tensor:
    """Weigh structural dissimilarity against the absolute difference, at every pixel.

    w clip((1 - SSIM) / 2, 0, 1) + (1 - w) |pred - target|, averaged over channels. Source: Yin &
    Shi 2018 (GeoNet), arXiv:1803.02276, eq. 3; Godard 2019 (Monodepth2), arXiv:1806.01260, eq. 2.

    Args:
        pred: (N, C, H, W), finite everywhere.
        target: (N, C, H, W).
        ssim_weight: w; 0 leaves the absolute difference (SfMLearner).
        window: side of the box window of SSIM [px].
        c1: of SSIM, in squared units of the values.
        c2: of SSIM, in squared units of the values.

    Returns:
        (N, 1, H, W), 0 where both agree.

    Raises:
        ValueError: the shapes differ, or the weight is not in 0..1.
    """
    if pred.shape != target.shape:
        raise ValueError(f'pred {tuple(pred.shape)}, target {tuple(target.shape)}: not one shape')
    if not 0 <= ssim_weight <= 1:
        raise ValueError(f'ssim_weight {ssim_weight}: expected 0 to 1')
    pred, target = full_precision(pred), full_precision(target)
    error = (1 - ssim_weight) * (pred - target).abs()
    if ssim_weight > 0:
        similarity = ssim_map(pred, target, window=window, kind='box', c1=c1, c2=c2)
        error = error + ssim_weight * ((1 - similarity) / 2).clamp(0, 1)
    return error.mean(1, keepdim=True)


def minimum_reprojection(
    errors: torch.Tensor,
    valid: torch.Tensor,
    *,
    identity: torch.Tensor | None = None,
) -> Reprojection:
    """Take each pixel's best source, and leave out those that do not move.

    A pixel that is hidden in one source is explained by another. Where the unwarped source fits
    better (`identity`; a standing camera, an object that moves along), that error, which no
    network can change, takes the place: the pixel has no gradient. A tie counts as not moved,
    where the release lets noise of 1e-5 decide. Source: Godard 2019 (Monodepth2),
    arXiv:1806.01260, eqs. 4 and 5.

    Args:
        errors: (N, S, H, W), of the S warped sources.
        valid: (N, S, H, W) bool; a source that does not see a pixel is not chosen there.
        identity: (N, S, H, W), of the unwarped sources; None: no auto-mask.

    Returns:
        The error, 0 where no source sees the pixel.
    """
    if errors.shape != valid.shape or (identity is not None and identity.shape != errors.shape):
        raise ValueError(
            f'errors {tuple(errors.shape)}, valid {tuple(valid.shape)}, identity '
            f'{None if identity is None else tuple(identity.shape)}: expected one shape'
        )
    seen = valid.any(1, keepdim=True)
    best = torch.where(valid, errors, torch.inf).amin(1, keepdim=True)
    best = torch.where(seen, best, 0.0)
    if identity is None:
        return Reprojection(best, seen, seen)
    still = identity.detach().amin(1, keepdim=True)
    moved = seen & (best < still)
    return Reprojection(torch.where(moved, best, still) * seen, moved, seen)


def explainability_loss(logits: torch.Tensor) -> torch.Tensor:
    """Cross-entropy between the explainability mask and 'everything is explained'.

    Keeps the mask from hiding the whole picture. Source: Zhou 2017 (SfMLearner),
    arXiv:1704.07813, section 3.3.

    Args:
        logits: (N, 2, H, W), of not explained and explained.
    """
    return -full_precision(logits).log_softmax(1)[:, 1].mean()


def consistent_flow(
    forward: torch.Tensor,
    backward_at_target: torch.Tensor,
    *,
    pixel_size: float = 1.0,
    floor_px: float = 3.0,
    share: float = 0.05,
) -> torch.Tensor:
    """Find the pixels whose flow there and back ends where it began.

    |f + b| < max(floor, share |f|) in pixels of the full picture; the others are hidden in one of
    the two, or wrong. The bound carries no gradient. Source: Yin & Shi 2018 (GeoNet),
    arXiv:1803.02276, section 3.4.

    Args:
        forward: (N, 2, H, W), target to source [px of this size].
        backward_at_target: (N, 2, H, W), source to target, looked up by `forward`.
        pixel_size: how many pixels of the full picture one of these is: 2^level.
        floor_px: the smallest bound.
        share: of the length of the flow.

    Returns:
        (N, 1, H, W) bool, without gradient.
    """
    forward = forward.detach()
    gap = (forward + backward_at_target.detach()).norm(dim=1, keepdim=True) * pixel_size
    bound = (share * pixel_size * forward.norm(dim=1, keepdim=True)).clamp(min=floor_px)
    return gap < bound
