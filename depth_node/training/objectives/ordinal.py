"""Relative depth: rankings of pairs, MegaDepth's mixture, and the affine-invariant loss.

What `z` is: a network of a `rel_` kind gives its unclamped value as `outputs()['raw']`, which
grows with what it publishes; for the others it is the logarithm of their depth. `rel_inv_depth`
grows with nearness, so relations, which are about depth, change their sign for it.
"""

from __future__ import annotations

import math

from depth_node.training.losses.logarithmic import gradient_loss, scale_invariant_loss
from depth_node.training.losses.ranking import (
    chen_ranking_loss,
    megadepth_ordinal_loss,
    pick,
    places_of,
    ratio_relation,
    sample_pixels,
    xian_online_ranking_loss,
)
from depth_node.training.losses.relative import ALIGNMENTS, affine_fit, affine_invariant_loss
from depth_node.training.networks.base import DepthNetwork
from depth_node.training.objectives.base import (
    Batch,
    Objective,
    as_depth,
    depth_scores,
    resize_like,
    truth,
)
import torch

MODES = ('pairs', 'online', 'megadepth', 'affine')
SCORED_PAIRS = 2000
SCORE_SEED = 0


def euclidean_pictures(
    known: torch.Tensor, sky: torch.Tensor | None = None, *, share: float = 0.3
) -> torch.Tensor:
    """Tell pictures with enough depth for metric losses from candidates for ordinal ones.

    MegaDepth's rule: known depth on at least `share` of what is not sky. Source: Li & Snavely
    2018, arXiv:1804.00607, section 3.3.

    Args:
        known: (N, 1, H, W) bool, depth is known.
        sky: (N, 1, H, W) bool; None = no sky is marked.
        share: 0.3 in the paper.

    Returns:
        (N,) bool; False for a picture that is all sky.
    """
    ground = torch.ones_like(known) if sky is None else ~sky
    size = ground.flatten(1).sum(1)
    covered = (known & ground).flatten(1).sum(1)
    # Divided, not multiplied: 30 of 100 pixels are 0.3 in float32, 0.3 times 100 is above 30.
    return (covered / size.clamp(min=1) >= share) & (size > 0)


class Ordinal(Objective):
    """Training without metres."""

    draws: torch.Tensor

    def __init__(
        self,
        *,
        mode: str = 'pairs',
        pairs: int = 3000,
        sigma: float = 0.02,
        drop: float = 0.25,
        euclidean_share: float = 0.3,
        grad_weight: float = 0.5,
        ordinal_weight: float = 0.1,
        tau: float = 0.25,
        scales: int = 4,
        alignment: str = 'median',
        trim: float = 0.2,
        seed: int = 0,
    ) -> None:
        """Choose what is compared.

        Args:
            mode: 'pairs', Chen's ranking loss on the data set's pairs. 'online', Xian's on pairs
                drawn from `rel_inv_depth` or, where there is none, from depth (with `drop` 0:
                Chen's loss on drawn pairs). 'megadepth', per picture either data + grad_weight *
                gradients of log depth, or ordinal_weight * the ordinal loss between foreground
                and background. 'affine', MiDaS's loss of inverse depth.
            pairs: drawn pairs a picture, of 'online' and of the ordinal loss.
            sigma: of 'online', equal when the ratio is within 1 + sigma.
            drop: of 'online', share of the easiest unequal pairs that is left out.
            euclidean_share: of 'megadepth', see `euclidean_pictures`.
            grad_weight: weight of the gradient term of 'megadepth' and 'affine'.
            ordinal_weight: of 'megadepth'; 0 = pictures with little depth are left out.
            tau: of 'megadepth', see `megadepth_ordinal_loss`.
            scales: of the gradient terms.
            alignment: of 'affine', 'median' or 'least_squares'.
            trim: of 'affine', share of the largest residuals that is left out.
            seed: of the drawn pairs.

        Raises:
            ValueError: an unknown mode or alignment, or a number out of its range.
        """
        super().__init__()
        if mode not in MODES or alignment not in ALIGNMENTS:
            raise ValueError(
                f'mode {mode!r}, alignment {alignment!r}: expected one of {MODES} and one of '
                f'{ALIGNMENTS}'
            )
        for name, value in (('pairs', pairs), ('scales', scales)):
            if value < 1:
                raise ValueError(f'{name} {value}: expected 1 or more')
        for name, number in (
            ('sigma', sigma), ('grad_weight', grad_weight), ('ordinal_weight', ordinal_weight),
        ):  # fmt: skip
            if not number >= 0:
                raise ValueError(f'{name} {number}: expected 0 or more')
        for name, number in (('drop', drop), ('trim', trim)):
            if not 0 <= number < 1:
                raise ValueError(f'{name} {number}: expected a share, 0 or more and below 1')
        if not 0 < euclidean_share <= 1 or not tau > 0:
            raise ValueError(
                f'euclidean_share {euclidean_share}, tau {tau}: expected a share above 0, and '
                'more than 0'
            )
        self.mode, self.pairs, self.sigma, self.drop = mode, pairs, sigma, drop
        self.euclidean_share, self.grad_weight = euclidean_share, grad_weight
        self.ordinal_weight, self.tau, self.scales = ordinal_weight, tau, scales
        self.alignment, self.trim = alignment, trim
        self.seed = seed
        # A buffer, so that a resumed run goes on with the pairs that come next.
        self.register_buffer('draws', torch.zeros((), dtype=torch.int64))
        self.needs = frozenset()
        if mode == 'pairs':
            self.needs = frozenset({'pairs', 'relation', 'pair_valid'})
        elif mode == 'megadepth' and ordinal_weight:
            self.needs = frozenset({'ordinal'})
        self.learns_from = frozenset({
            'pairs': {'pairs'}, 'megadepth': {'depth', 'ordinal'},
        }.get(mode, {'rel_inv_depth', 'depth'}))  # fmt: skip
        self.monitor = {'megadepth': 'abs_rel', 'affine': 'affine_mae'}.get(mode, 'whdr')

    # --- losses

    def losses(self, network: DepthNetwork, batch: Batch) -> dict[str, torch.Tensor]:
        """See `Objective.losses`."""
        rgb = network.normalise(batch['rgb']).contiguous(memory_format=torch.channels_last)
        outputs = network.outputs(rgb)
        if self.mode == 'pairs':
            z_a, z_b, relation, valid = _ranked(network, outputs, batch)
            return {'loss': chen_ranking_loss(z_a, z_b, relation, valid)}
        if self.mode == 'megadepth':
            return self._megadepth(network, outputs, batch)
        target, valid = _inverse_truth(network, batch)
        if self.mode == 'affine':
            loss = affine_invariant_loss(
                resize_like(_inverse(network, outputs), target), target, valid,
                alignment=self.alignment, trim=self.trim, gradient_weight=self.grad_weight,
                scales=self.scales,
            )  # fmt: skip
            return {'loss': loss}
        z = resize_like(_z(network, outputs), target)
        nearness = z if _grows_with_nearness(network) else -z
        loss = xian_online_ranking_loss(
            nearness, target, valid, pairs=self.pairs, sigma=self.sigma, drop=self.drop,
            generator=self._next_draw(),
        )  # fmt: skip
        return {'loss': loss}

    def _next_draw(self) -> torch.Generator:
        """Return what draws one batch's pairs: new ones in training, the same at validation."""
        if not (self.training and torch.is_grad_enabled()):
            return torch.Generator().manual_seed(SCORE_SEED)
        self.draws += 1
        # Of a seed only 32 bits count.
        return torch.Generator().manual_seed((self.seed * 1_000_003 + int(self.draws)) % 2**32)

    def _megadepth(
        self, network: DepthNetwork, outputs: dict[str, torch.Tensor], batch: Batch
    ) -> dict[str, torch.Tensor]:
        target, known = truth(network, batch)
        sky = batch.get('sky')
        if sky is not None:
            known = known & ~sky
        euclidean = euclidean_pictures(known, sky, share=self.euclidean_share)
        pred = as_depth(outputs['prediction'].float(), network.output_kind)
        pred = resize_like(pred, target)
        valid = known & euclidean[:, None, None, None]
        data = scale_invariant_loss(pred, target, valid, eigen_lambda=1.0)
        # The paper's L_grad is the sum over its scales, of which `gradient_loss` is the mean.
        gradient = self.scales * gradient_loss(pred, target, valid, scales=self.scales)
        total = euclidean.sum() * (data + self.grad_weight * gradient)
        count = euclidean.sum()
        parts = {'data': data.detach(), 'gradient': gradient.detach()}
        if self.ordinal_weight:
            generator = self._next_draw()
            a, near = sample_pixels(batch['ordinal'] == 1, self.pairs, generator)
            b, far = sample_pixels(batch['ordinal'] == 2, self.pairs, generator)
            usable = near & far & ~euclidean
            log_depth = pred.log()
            ordinal = megadepth_ordinal_loss(
                pick(log_depth, a), pick(log_depth, b),
                torch.full_like(a, -1),  # the foreground is nearer
                usable[:, None].expand_as(a), tau=self.tau,
            )  # fmt: skip
            total = total + usable.sum() * self.ordinal_weight * ordinal
            count = count + usable.sum()
            parts['ordinal'] = ordinal.detach()
        return {'loss': total / count.clamp(min=1), **parts}

    # --- scores

    @torch.no_grad()
    def scores(self, network: DepthNetwork, batch: Batch) -> dict[str, torch.Tensor]:
        """Score what needs no metres.

        'pairs': `whdr`. The others: `affine_mae`, the mean error of inverse depth after a
        least-squares fit with a scale of 0 or more, as a share of the truth's mean absolute
        deviation; and, unless the truth itself is relative, `abs_rel`, `delta1` and
        `abs_rel_median`, aligned as the network's kind allows. 'online' adds `whdr` of drawn
        unequal pairs, the same at each validation.
        """
        rgb = network.normalise(batch['rgb']).contiguous(memory_format=torch.channels_last)
        outputs = network.outputs(rgb)
        if self.mode == 'pairs':
            return {'whdr': whdr(*_ranked(network, outputs, batch))}
        inverse, known = _inverse_truth(network, batch)
        pred = resize_like(_inverse(network, outputs), inverse)
        scale, shift = affine_fit(pred, inverse, known, positive=True)
        aligned = scale * pred + shift
        scores = {'affine_mae': _affine_mae(aligned, inverse, known)}
        if 'rel_inv_depth' not in batch:
            scores.update(_aligned_depth_scores(network, outputs, batch, aligned))
        if self.mode == 'online':
            generator = torch.Generator().manual_seed(SCORE_SEED)
            a, seen = sample_pixels(known, SCORED_PAIRS, generator)
            b, _ = sample_pixels(known, SCORED_PAIRS, generator)
            z = resize_like(_z(network, outputs), inverse)
            nearness = z if _grows_with_nearness(network) else -z
            relation = ratio_relation(pick(inverse, a), pick(inverse, b), self.sigma)
            scores['whdr'] = whdr(
                pick(nearness, a), pick(nearness, b), relation, seen[:, None].expand_as(a)
            )
        return scores


def whdr(
    z_a: torch.Tensor, z_b: torch.Tensor, relation: torch.Tensor, valid: torch.Tensor
) -> torch.Tensor:
    """Share of the unequal pairs of each picture that are ordered wrongly; a tie is wrong.

    Source: Chen et al. 2016, arXiv:1604.03901, section 5 (all weights 1).

    Returns:
        (N,), NaN for a picture without an unequal pair.
    """
    asked = valid & (relation != 0)
    wrong = asked & ~((z_a - z_b) * relation > 0)
    share = wrong.sum(1) / asked.sum(1).clamp(min=1)
    return torch.where(asked.any(1), share, math.nan)


def _grows_with_nearness(network: DepthNetwork) -> bool:
    return network.output_kind == 'rel_inv_depth'


def _z(network: DepthNetwork, outputs: dict[str, torch.Tensor]) -> torch.Tensor:
    if network.output_kind.startswith('rel_'):
        return outputs.get('raw', outputs['prediction']).float()
    return as_depth(outputs['prediction'].float(), network.output_kind).log()


def _inverse(network: DepthNetwork, outputs: dict[str, torch.Tensor]) -> torch.Tensor:
    pred = outputs['prediction'].float()
    if network.output_kind in ('rel_inv_depth', 'inv_depth'):
        return pred
    return 1 / as_depth(pred, network.output_kind).clamp(min=1e-6)


def _inverse_truth(
    network: DepthNetwork, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inverse depth, of the data set or of its depth, and where it is known."""
    if 'rel_inv_depth' in batch:
        target = batch['rel_inv_depth']
        valid = torch.isfinite(target)
        return torch.where(valid, target, 0.0), valid
    depth, valid = truth(network, batch)
    return torch.where(valid, 1 / torch.where(valid, depth, 1.0), 0.0), valid


def _ranked(
    network: DepthNetwork, outputs: dict[str, torch.Tensor], batch: Batch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return z at both pixels of the data set's pairs, the relation of z, and which are real."""
    z = resize_like(_z(network, outputs), batch['rgb'])
    width = z.shape[-1]
    z_a = pick(z, places_of(batch['pairs'][..., :2], width))
    z_b = pick(z, places_of(batch['pairs'][..., 2:], width))
    relation = -batch['relation'] if _grows_with_nearness(network) else batch['relation']
    return z_a, z_b, relation, batch['pair_valid']


def _aligned_depth_scores(
    network: DepthNetwork, outputs: dict[str, torch.Tensor], batch: Batch, aligned: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Score depth; `aligned` is the inverse depth that was fitted to that of the truth."""
    depth, valid = truth(network, batch)
    if network.output_kind == 'rel_inv_depth':
        # A fitted inverse depth can be negative: nothing is farther than the farthest truth.
        cap = torch.where(valid, depth, 0.0).amax((1, 2, 3), keepdim=True).clamp(min=1e-6)
        return depth_scores(1 / torch.maximum(aligned, 1 / cap), depth, valid)
    pred = as_depth(outputs['prediction'].float(), network.output_kind)
    relative = network.output_kind.startswith('rel_')
    return depth_scores(resize_like(pred, depth), depth, valid, relative=relative)


def _affine_mae(
    aligned: torch.Tensor, target: torch.Tensor, valid: torch.Tensor
) -> torch.Tensor:
    result = torch.full((len(target),), math.nan, device=target.device)
    for index in range(len(target)):
        known = target[index][valid[index]]
        if len(known) == 0:
            continue
        deviation = (known - known.median()).abs().mean()
        if deviation > 0:
            error = (aligned[index][valid[index]] - known).abs().mean()
            result[index] = (error / deviation).nan_to_num(nan=math.inf)
    return result
