"""The protocol between a task and what it trains for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
import math

from depth_node.training.networks.base import DepthNetwork
from depth_node.training.registry import OptionError
import torch
from torch import nn
from torch.nn import functional

Batch = dict[str, torch.Tensor]


class Objective(nn.Module):
    """Losses for training and scores for validation.

    A batch holds, all at the network's input size (see `loading.collate_frame`): `rgb`
    (N, 3, H, W) uint8; `depth` (N, 1, H, W) float32, 0 = unknown; `K` (N, 3, 3); and, where the
    data set has them, `rel_inv_depth` (N, 1, H, W) NaN = unknown, `normals` (N, 3, H, W) 0 =
    unknown, `labels` (N, H, W) int64 -1 = unknown, `ordinal` (N, 1, H, W) int8, `sky`
    (N, 1, H, W) bool, `pairs` (N, P, 4) float32 (u_a, v_a, u_b, v_b) with `relation` (N, P) int8
    and `pair_valid` (N, P) bool, `views` (N, S, 3, H, W) uint8 with `view_K` (N, S, 3, 3),
    `view_from_frame` (N, S, 4, 4) NaN = unknown, and `view_depth` (N, S, 1, H, W).

    Attributes:
        needs: keys that a batch must have beyond `rgb`, `depth` and `K`.
        learns_from: what of a batch teaches: of 'depth', 'rel_inv_depth', 'pairs', 'ordinal',
            'normals', 'labels' and 'views'.
        monitor: the score by which the best checkpoint is chosen.
        monitor_mode: 'min' or 'max'.
        starts_from_weights: whether it makes sense only for a network that is trained already.
    """

    needs: frozenset[str] = frozenset()
    learns_from: frozenset[str] = frozenset({'depth'})
    monitor: str = 'abs_rel'
    monitor_mode: str = 'min'
    starts_from_weights: bool = False

    def check(self, network: DepthNetwork) -> None:
        """Refuse a network that cannot be trained for this.

        Raises:
            OptionError: says which option to change.
        """
        if network.has_confidence:
            raise OptionError(
                'with network.options.confidence=true depth is frozen, and the confidence head '
                'learns by objective confidence alone; leave the option out to train depth'
            )

    @abstractmethod
    def losses(self, network: DepthNetwork, batch: Batch) -> dict[str, torch.Tensor]:
        """Compute `loss`, a scalar with gradient, and its parts by name for the logs.

        The mean over pictures, so that the gradient of a batch is the mean of its parts'.
        """

    @torch.no_grad()
    def can_teach(self, network: DepthNetwork, batch: Batch) -> bool:
        """Tell whether a batch can teach at all: else every loss is a zero that lies."""
        known = {
            'depth': lambda: truth(network, batch)[1].any(),
            'rel_inv_depth': lambda: not batch['rel_inv_depth'].isnan().all(),
            'pairs': lambda: batch['pair_valid'].any(),
            'ordinal': lambda: (batch['ordinal'] > 0).any(),
            'labels': lambda: (batch['labels'] >= 0).any(),
            'normals': lambda: (batch['normals'] != 0).any(),
            'views': lambda: True,
        }
        return any(bool(known[key]()) for key in self.learns_from if key in batch)

    @torch.no_grad()
    def scores(self, network: DepthNetwork, batch: Batch) -> dict[str, torch.Tensor]:
        """Score the pictures of a batch: name to (N,), NaN where a picture has no truth."""
        pred, target, valid = prediction_and_truth(network, batch)
        return depth_scores(pred, target, valid, relative=network.output_kind.startswith('rel_'))

    def begin_validation(self) -> None:
        """Prepare for the scores of all validation frames."""

    def end_validation(
        self,
        networks: Sequence[DepthNetwork],
        total: Callable[[torch.Tensor], torch.Tensor],
    ) -> dict[str, float]:
        """Fit what is fitted on the validation frames, after the last of them was scored.

        Args:
            networks: that are trained and that is judged; both get the result.
            total: sums a tensor over all processes of the run.

        Returns:
            Further scores for the log.
        """
        return {}


def prediction_and_truth(
    network: DepthNetwork, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Predict depth at the truth's size.

    Returns:
        Prediction (metres; canonical metres for a canonical network; inverted where the network
        says inverse depth), the truth in the same space, and `valid`; all (N, 1, H, W).
    """
    rgb = network.normalise(batch['rgb']).contiguous(memory_format=torch.channels_last)
    pred = as_depth(network(rgb), network.output_kind)
    target, valid = truth(network, batch)
    return resize_like(pred, target), target, valid


def as_depth(prediction: torch.Tensor, kind: str) -> torch.Tensor:
    """Turn a network's output into depth (relative kinds: up to what they are relative to)."""
    if kind == 'log_depth':
        return prediction.exp()
    if kind in ('inv_depth', 'rel_inv_depth'):
        return 1 / prediction.clamp(min=1e-6)
    return prediction


def truth(network: DepthNetwork, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return true depth in the network's metres, and where it is known and in its range."""
    target = batch['depth']
    if network.canonical_focal_px is not None:
        K = batch['K']
        focal_px = (K[:, 0, 0] * K[:, 1, 1]).sqrt()
        target = target * (network.canonical_focal_px / focal_px)[:, None, None, None]
    near, far = network.depth_range_m
    valid = target > 0
    if not network.output_kind.startswith('rel_'):
        valid = valid & (target > near) & (target < far)
    return target, valid


def resize_like(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Bring a prediction to the target's size, bilinear, pixel edges aligned."""
    if pred.shape[-2:] == target.shape[-2:]:
        return pred
    return functional.interpolate(
        pred, size=target.shape[-2:], mode='bilinear', align_corners=False
    )


def depth_scores(
    pred: torch.Tensor, target: torch.Tensor, valid: torch.Tensor, *, relative: bool = False
) -> dict[str, torch.Tensor]:
    """Per-picture scores, (N,) each, NaN for a picture without valid pixels.

    A prediction that is not a number where the truth is known scores infinity, not NaN: NaN says
    that there was nothing to score, and the picture would drop out of the mean.

    `abs_rel` and `delta1` as in Eigen 2014, arXiv:1406.2283, section 4.2; `abs_rel_median` after
    dividing out the median ratio. Where `relative`, all are after dividing it out. The full set
    is in `depth_node.evaluation.metrics`.
    """
    nan = torch.full((pred.shape[0],), math.nan, device=pred.device)
    scores = {name: nan.clone() for name in ('abs_rel', 'delta1', 'abs_rel_median')}
    for index in range(pred.shape[0]):
        ok = valid[index]
        if not ok.any():
            continue
        ratio = pred[index][ok] / target[index][ok]
        scaled = ratio / ratio.median()
        if relative:
            ratio = scaled
        scores['abs_rel'][index] = (ratio - 1).abs().mean().nan_to_num(nan=math.inf)
        scores['delta1'][index] = (torch.maximum(ratio, 1 / ratio) < 1.25).float().mean()
        scores['abs_rel_median'][index] = (scaled - 1).abs().mean().nan_to_num(nan=math.inf)
    return scores
