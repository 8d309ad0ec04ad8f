"""Direct supervision: a weighted sum of losses between predicted and true depth."""

from __future__ import annotations

from typing import Any

from depth_node.training.losses import weighted_losses
from depth_node.training.networks.base import DepthNetwork
from depth_node.training.objectives.base import Batch, Objective, as_depth, resize_like, truth
import torch
from torch.nn import functional

_OF_DEPTH = ('depth', 'inv_depth', 'log_depth')
SPACES = (*_OF_DEPTH, 'raw')
RESIZES = ('nearest', 'mean', 'mean_inv', 'upsample')


class Supervised(Objective):
    """Losses on one map."""

    def __init__(
        self,
        *,
        losses: dict[str, Any],
        space: str = 'depth',
        target_resize: str = 'nearest',
    ) -> None:
        """Choose the losses.

        Args:
            losses: name to weight, or to {weight, space, options of the loss}.
            space: what the losses without a space of their own compare: depth [m], its inverse,
                its logarithm, or the network's own `raw` output with the truth encoded.
            target_resize: how the truth comes to the network's output size: the nearest pixel,
                the mean of known depths or inverse depths; or `upsample`, the prediction comes
                to the truth's size.

        Raises:
            ValueError: an unknown loss, option, space or way to resize.
        """
        super().__init__()
        if space not in SPACES or target_resize not in RESIZES:
            raise ValueError(
                f'space {space!r}, target_resize {target_resize!r}: expected one of {SPACES} and '
                f'one of {RESIZES}'
            )
        self.terms = weighted_losses(losses)
        self.space, self.target_resize = space, target_resize
        for term in self.terms:
            if term.space not in (None, space, *_OF_DEPTH) or (term.space and space == 'raw'):
                raise ValueError(f'losses.{term.name}: space {term.space!r} beside the '
                                 f"objective's {space!r}: expected one of {_OF_DEPTH}, where the "
                                 'objective does not compare the raw output')

    def losses(self, network: DepthNetwork, batch: Batch) -> dict[str, torch.Tensor]:
        """See `Objective.losses`."""
        rgb = network.normalise(batch['rgb']).contiguous(memory_format=torch.channels_last)
        outputs = network.outputs(rgb)
        target, valid = truth(network, batch)
        pred = outputs['raw' if self.space == 'raw' else 'prediction'].float()
        if self.space != 'raw':
            pred = as_depth(pred, network.output_kind)
        if self.target_resize == 'upsample':
            pred = resize_like(pred, target)
        else:
            target, valid = resize_truth(
                target, valid, (pred.shape[-2], pred.shape[-1]), self.target_resize
            )
        target = torch.where(valid, target, 1.0)
        if self.space == 'raw':
            target = network.encode(target)
        parts = {}
        loss = pred.sum() * 0.0
        for term in self.terms:
            space = term.space or self.space
            value = term.function(_to_space(pred, space), _to_space(target, space), valid,
                                  **term.options)
            parts[term.name] = value.detach()
            loss = loss + term.weight * value
        return {'loss': loss, **parts}


def _to_space(values: torch.Tensor, space: str) -> torch.Tensor:
    """Depth as one of SPACES; `raw` values are left alone."""
    if space == 'inv_depth':
        return 1 / values
    return values.log() if space == 'log_depth' else values


def resize_truth(
    depth: torch.Tensor, valid: torch.Tensor, size_hw: tuple[int, int], how: str = 'nearest'
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bring the truth to a network's output size without inventing depth at borders of holes.

    Args:
        depth: (N, 1, H, W), positive where valid.
        valid: (N, 1, H, W) bool.
        size_hw: the wanted size.
        how: 'nearest'; 'mean' or 'mean_inv', the mean over the known pixels of each cell.

    Returns:
        Depth and `valid` at `size_hw`; a cell without a known pixel is not valid.
    """
    if tuple(depth.shape[-2:]) == tuple(size_hw):
        return depth, valid
    if how == 'nearest':
        depth = functional.interpolate(depth, size=size_hw, mode='nearest-exact')
        small = functional.interpolate(valid.float(), size=size_hw, mode='nearest-exact')
        return depth, small > 0.5
    inverse = how == 'mean_inv'
    safe = torch.where(valid, depth, 1.0)
    values = torch.where(valid, 1 / safe if inverse else safe, 0.0)
    share = functional.adaptive_avg_pool2d(valid.float(), size_hw)
    mean = functional.adaptive_avg_pool2d(values, size_hw) / share.clamp(min=1e-9)
    known = share > 0
    mean = torch.where(known, mean, 1.0)
    return (1 / mean if inverse else mean), known
