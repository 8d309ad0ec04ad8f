"""Losses: each takes `valid`, and is zero, with a gradient, where nothing is valid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from depth_node.training.registry import check_options, resolve
import torch

__all__ = ['LOSSES', 'LossTerm', 'weighted_losses']

_HERE = 'depth_node.training.losses'
# f(pred, target, valid, **options) -> scalar: what `objective.losses` may name.
LOSSES = {
    'l1': f'{_HERE}.pixel:l1_loss',
    'l2': f'{_HERE}.pixel:l2_loss',
    'berhu': f'{_HERE}.pixel:berhu_loss',
    'mare': f'{_HERE}.pixel:mare_loss',
    'log_l1': f'{_HERE}.logarithmic:log_l1_loss',
    'silog': f'{_HERE}.logarithmic:silog_loss',
    'scale_invariant': f'{_HERE}.logarithmic:scale_invariant_loss',
    'bts_silog': f'{_HERE}.logarithmic:bts_silog_loss',
    'gradient': f'{_HERE}.logarithmic:gradient_loss',
    'edge_l1': f'{_HERE}.pixel:edge_l1_loss',
    'keras_edge': f'{_HERE}.pixel:keras_edge_loss',
    'ssim': f'{_HERE}.ssim:ssim_loss',
    'affine_invariant': f'{_HERE}.relative:affine_invariant_loss',
}


@dataclass(frozen=True)
class LossTerm:
    """One summand."""

    name: str
    weight: float
    function: Callable[..., torch.Tensor]
    options: dict[str, Any]
    space: str | None = None


def weighted_losses(section: dict[str, Any]) -> list[LossTerm]:
    """Read a `losses` section: name to weight, or to {weight, space, options}.

    `space` is the term's own (see `objectives.supervised`), None that of the objective.

    Raises:
        ValueError: an unknown loss or option, a weight that is no positive number, or no loss.
    """
    terms = []
    for name, value in section.items():
        options = dict(value) if isinstance(value, dict) else {'weight': value}
        weight, space = options.pop('weight', 1.0), options.pop('space', None)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or weight < 0:
            raise ValueError(f'losses.{name}: weight {weight!r}, expected a number >= 0')
        function = resolve(LOSSES, name, 'loss')
        check_options(function, options, f'losses.{name}')
        if weight:
            terms.append(LossTerm(name, float(weight), function, options, space))
    if not terms:
        raise ValueError('losses: none has a weight above 0; name at least one')
    return terms
