"""Smoothness of inverse depth and flow, and the normalisation that keeps it from cheating.

Smoothness alone is least for a picture that is infinitely far away: without normalisation every
loss of the self-supervised family slowly shrinks the inverse depth to zero (Wang 2018, DDVO,
arXiv:1712.00175, section 3.2).
"""

from __future__ import annotations

from depth_node.training.losses.masked import forward_differences, full_precision
import torch


def normalise_inv_depth(inv_depth: torch.Tensor, *, mean: float = 1.0) -> torch.Tensor:
    """Scale each picture's inverse depth to a fixed mean: d_i N / sum_j d_j (DDVO, eq. 8).

    Args:
        inv_depth: (N, 1, H, W), positive.
        mean: what the mean becomes.

    Returns:
        The same whatever factor `inv_depth` is multiplied by, as its gradient shows: it has no
        part along `inv_depth`.
    """
    inv_depth = full_precision(inv_depth)
    return inv_depth * (mean / inv_depth.mean((2, 3), keepdim=True).clamp(min=1e-7))


def edge_aware_smoothness(values: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """First differences, forgiven at edges of the picture.

    mean |dx| exp(-mean_c |dI/dx|) + mean |dy| exp(-mean_c |dI/dy|), the mean over channels c of
    the picture. Source: Godard 2017, arXiv:1609.03677, eq. 4; GeoNet, arXiv:1803.02276, eq. 4;
    Monodepth2, arXiv:1806.01260, eq. 3.

    Args:
        values: (N, C, H, W), inverse depth or flow; flow's two channels are averaged.
        image: (N, 3, H, W), of that size, in the range that the paper's weight is tuned for.
    """
    if values.shape[-2:] != image.shape[-2:] or values.shape[0] != image.shape[0]:
        raise ValueError(
            f'values {tuple(values.shape)}, image {tuple(image.shape)}: expected one size'
        )
    values, image = full_precision(values), full_precision(image)
    total = values.sum() * 0.0
    for axis in (-1, -2):
        edge = forward_differences(image, axis).abs().mean(1, keepdim=True)
        total = total + (forward_differences(values, axis).abs() * (-edge).exp()).mean()
    return total


def second_order_smoothness(values: torch.Tensor) -> torch.Tensor:
    """Second differences: mean |xx| + mean |xy| + mean |yx| + mean |yy|.

    Slanted planes cost nothing. Source: SfMLearner, arXiv:1704.07813, section 3.1, and DDVO.

    Args:
        values: (N, C, H, W), at least 3 pixels a side.
    """
    values = full_precision(values)
    dx, dy = forward_differences(values, -1), forward_differences(values, -2)
    parts = [
        forward_differences(first, axis).abs().mean() for first in (dx, dy) for axis in (-1, -2)
    ]
    return torch.stack(parts).sum()
