"""What all losses share: the check of their inputs, and the mean over known pixels."""

from __future__ import annotations

import torch

_HALF = (torch.float16, torch.bfloat16)


def masked_pair(
    pred: torch.Tensor, target: torch.Tensor, valid: torch.Tensor, *, fill: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put `fill` where a value is not known, so that NaN there reaches no gradient.

    `where` before the arithmetic: multiplying by zero afterwards would leave NaN gradients.

    Args:
        pred: (N, C, H, W); half precision is brought to float32, squares overflow in it.
        target: as `pred`.
        valid: as `pred`, or with one channel for all; bool.
        fill: what stands in for both.

    Returns:
        `pred` and `target`, equal where not `valid`.

    Raises:
        ValueError: shapes that differ (they would broadcast), or `valid` is not bool.
    """
    one_channel = (*pred.shape[:1], 1, *pred.shape[2:])
    if pred.shape != target.shape or valid.shape not in (pred.shape, one_channel):
        raise ValueError(
            f'pred {tuple(pred.shape)}, target {tuple(target.shape)}, valid '
            f'{tuple(valid.shape)}: expected one shape (N, C, H, W); resize the target first'
        )
    if valid.dtype != torch.bool:
        raise ValueError(f'valid is {valid.dtype}: expected bool, True where both are known')
    pred, target = full_precision(pred), full_precision(target).to(pred.device)
    stand_in = torch.full((), fill, dtype=pred.dtype, device=pred.device)
    return torch.where(valid, pred, stand_in), torch.where(valid, target.to(pred.dtype), stand_in)


def full_precision(values: torch.Tensor) -> torch.Tensor:
    """Bring half precision to float32; leave the rest."""
    return values.float() if values.dtype in _HALF else values


def picture_mean(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Mean over each picture's pixels, then over the pictures that have any.

    Args:
        values: (N, ...), finite.
        weight: as `values`, or with one channel for all; 1 or True for a pixel that counts.

    Returns:
        Scalar; zero, with a gradient of zero, where no pixel counts.
    """
    weight = weight.to(values.dtype).expand_as(values)
    return mean_of_pictures((values * weight).flatten(1).sum(1), weight.flatten(1).sum(1))


def mean_of_pictures(total: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Mean of total / count, both (N,), over the pictures whose count is above 0."""
    seen = (count > 0).to(total.dtype)
    return (total * seen / count.clamp(min=1)).sum() / seen.sum().clamp(min=1)


def forward_differences(values: torch.Tensor, axis: int) -> torch.Tensor:
    """Return what comes after each element along `axis`, less the element; one shorter."""
    length = values.shape[axis]
    return values.narrow(axis, 1, length - 1) - values.narrow(axis, 0, length - 1)


def both_known(valid: torch.Tensor, axis: int) -> torch.Tensor:
    """Where both elements of `forward_differences` are known."""
    length = valid.shape[axis]
    return valid.narrow(axis, 1, length - 1) & valid.narrow(axis, 0, length - 1)
