"""Losses between two maps, pixel by pixel or neighbour by neighbour.

All take `pred` and `target` (N, 1, H, W) in any one unit, and `valid` (N, 1, H, W) bool, and
return the mean over pictures of each picture's value; zero, with a gradient of zero, where
nothing is valid.
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

# Below this every residual is linear: it stands in for a threshold of 0, which is divided by.
SMALLEST_THRESHOLD = 1e-6


def l1_loss(pred: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean of |pred - target|."""
    pred, target = masked_pair(pred, target, valid)
    return picture_mean((pred - target).abs(), valid)


def l2_loss(pred: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean of (pred - target)^2."""
    pred, target = masked_pair(pred, target, valid)
    return picture_mean((pred - target).square(), valid)


def berhu_loss(
    pred: torch.Tensor,
    target: torch.Tensor,
    valid: torch.Tensor,
    *,
    share: float = 0.2,
    per_picture: bool = False,
) -> torch.Tensor:
    """Reverse Huber: linear for small residuals, quadratic for large ones.

    |x| where |x| <= c, else (x^2 + c^2) / (2 c), with c = share * the largest |x| over the valid
    pixels of the whole batch, a constant without gradient. Source: Laina et al. 2016,
    arXiv:1606.00373, eq. 1. Of several processes each has a batch, and a c, of its own.

    Args:
        pred: (N, 1, H, W).
        target: (N, 1, H, W).
        valid: (N, 1, H, W) bool.
        share: of the largest residual.
        per_picture: take the largest residual of each picture instead: then a picture's loss does
            not depend on its neighbours in the batch.
    """
    pred, target = masked_pair(pred, target, valid)
    residual = (pred - target).abs()
    largest = residual.detach().flatten(1).amax(1)
    if not per_picture:
        largest = largest.amax().expand_as(largest)
    threshold = (share * largest).clamp(min=SMALLEST_THRESHOLD).view(-1, 1, 1, 1)
    quadratic = (residual.square() + threshold.square()) / (2 * threshold)
    return picture_mean(torch.where(residual <= threshold, residual, quadratic), valid)


def mare_loss(pred: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean of |pred - target| / target, the mean absolute relative error.

    The same number as the score AbsRel. It divides by the target, which must be positive where
    `valid`: unmasked, a hole of depth 0 makes it infinite.
    """
    pred, target = masked_pair(pred, target, valid, fill=1.0)
    return picture_mean((pred - target).abs() / target, valid)


def edge_l1_loss(pred: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean of |d/du e| + |d/dv e|, e = pred - target, by forward differences.

    The last column and row have no forward neighbour and count as 0, and so does a step to or
    from a pixel that is not valid. Source: Alhashim & Wonka 2018 (DenseDepth), arXiv:1812.11941,
    eq. 3.
    """
    pred, target = masked_pair(pred, target, valid)
    error = pred - target
    total = error.flatten(1).sum(1) * 0.0
    for axis in (-1, -2):
        steps = forward_differences(error, axis).abs() * both_known(valid, axis)
        total = total + steps.flatten(1).sum(1)
    return mean_of_pictures(total, valid.flatten(1).sum(1).to(total.dtype))


def keras_edge_loss(pred: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Weigh the prediction's roughness by how rough the target is as a whole.

    exp(mean |d/du target|) * mean |d/du pred|, plus the same downwards. Called an edge loss in
    the Keras depth-estimation example and the DIODE U-Net that follows it, but it compares no
    edge with an edge: it is a smoothness term whose weight is one number a picture, it is
    smallest for a flat prediction, and not at a perfect fit. Here for training as that paper did;
    `edge_l1_loss` compares.
    """
    pred, target = masked_pair(pred, target, valid)
    total = pred.sum() * 0.0
    for axis in (-1, -2):
        pairs = both_known(valid, axis)
        count = pairs.flatten(1).sum(1).to(pred.dtype)
        rough = forward_differences(target, axis).abs() * pairs
        weight = (rough.flatten(1).sum(1) / count.clamp(min=1)).exp()
        steps = forward_differences(pred, axis).abs() * pairs
        total = total + mean_of_pictures(weight * steps.flatten(1).sum(1), count)
    return total
