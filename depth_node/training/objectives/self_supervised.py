"""Depth from video or stereo pairs alone: one picture must explain its neighbours.

The target's depth and the camera's motion warp each source picture into the target's place; what
still differs is the loss. `method` chooses a paper's loss; single weights and habits can be
overridden.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from depth_node.training.geometry import (
    flow_warp,
    image_pyramid,
    inverse_warp,
    invert_pose,
    rigid_flow,
    scale_intrinsics,
)
from depth_node.training.losses.masked import picture_mean
from depth_node.training.losses.photometric import (
    consistent_flow,
    explainability_loss,
    minimum_reprojection,
    photometric_error,
)
from depth_node.training.losses.smoothness import (
    edge_aware_smoothness,
    normalise_inv_depth,
    second_order_smoothness,
)
from depth_node.training.networks.base import DepthNetwork
from depth_node.training.networks.geonet import GeoNet
from depth_node.training.networks.self_supervised import SCALES, SelfSupervisedNetwork
from depth_node.training.networks.sfmlearner import SfMLearner
from depth_node.training.objectives.base import Batch, Objective
import torch
from torch.nn import functional

POSES = ('network', 'given', 'mixed')
OUT_OF_VIEW = ('zeros', 'border', 'ignore')
MONITORS = ('photometric', 'abs_rel')


@dataclass(frozen=True)
class Recipe:
    """A paper's loss.

    Attributes:
        offset: subtracted from RGB in 0..255 before pictures are compared.
        divisor: divides the rest.
        photometric_weight: of the difference between the warped and the real picture.
        ssim_weight: share of SSIM in it.
        ssim_finest_only: the coarser sizes compare by absolute difference alone.
        c1: of SSIM.
        c2: of SSIM.
        minimum: each pixel takes its best source; else the sources' means are added.
        auto_mask: pixels that the unwarped source explains better do not count.
        upsample: coarse inverse depth warps full pictures; else each size its own.
        mean_over_scales: else the sizes are added.
        out_of_view: pixels that a source does not see are compared with 0 ('zeros'; `offset` is
            what that looks like), with the source's nearest pixel ('border'), or not at all
            ('ignore').
        both_directions: the target is warped to the sources too, by their own depth.
        smoothness_weight: at size s divided by 2^s.
        smoothness_order: 1, forgiven at edges of the picture, or 2.
        smoothness_scales: the sizes that count.
        smooth_finest_too: at each of them also the finest map, made that small.
        explainability_weight: above 0 the network's masks weigh the error (SfMLearner).
        flow_smoothness_weight: at size s divided by 2^(s+1).
        consistency_weight: of the flow there and back.
        normalise_for_warp: with `normalise_inv_depth`, pictures are warped by the normalised
            inverse depth too, not only smoothness is measured on it.
        normalised_mean: what the mean becomes.
    """

    offset: float = 127.5
    divisor: float = 127.5
    photometric_weight: float = 1.0
    ssim_weight: float = 0.85
    ssim_finest_only: bool = False
    c1: float = 0.01**2
    c2: float = 0.03**2
    minimum: bool = False
    auto_mask: bool = False
    upsample: bool = False
    mean_over_scales: bool = False
    out_of_view: str = 'zeros'
    both_directions: bool = False
    smoothness_weight: float = 0.5
    smoothness_order: int = 1
    smoothness_scales: tuple[int, ...] = tuple(range(SCALES))
    smooth_finest_too: bool = False
    explainability_weight: float = 0.0
    flow_smoothness_weight: float = 0.0
    consistency_weight: float = 0.0
    normalise_for_warp: bool = True
    normalised_mean: float = 1.0


# Weights: arXiv:1704.07813 and its release; 1803.02276; 1712.00175; 1806.01260 (by recall).
RECIPES = {
    'sfmlearner': Recipe(ssim_weight=0.0, smoothness_order=2),
    'geonet_rigid': Recipe(both_directions=True),
    'geonet_flow': Recipe(
        both_directions=True, flow_smoothness_weight=0.2, consistency_weight=0.2
    ),
    'ddvo': Recipe(
        offset=0.0,
        ssim_finest_only=True,
        c1=0.001,
        c2=0.009,
        out_of_view='ignore',
        both_directions=True,
        smoothness_weight=0.01,
        smoothness_order=2,
        smoothness_scales=(2, 3),
        smooth_finest_too=True,
        normalised_mean=10.0,
    ),
    'monodepth2': Recipe(
        offset=0.0,
        divisor=255.0,
        minimum=True,
        auto_mask=True,
        upsample=True,
        mean_over_scales=True,
        out_of_view='border',
        smoothness_weight=1e-3,
        normalise_for_warp=False,
    ),
}


@dataclass(frozen=True)
class _Pairs:
    """Pictures and the pictures that must explain them, one of each: M = N S.

    Attributes:
        target: (M, 3, h, w) at SCALES sizes.
        source: (M, 3, h, w) at SCALES sizes.
        inv_depth: (M, 1, h, w) of the target, for warping, at SCALES sizes.
        pose: (M, 4, 4), source from target.
        K_target: (M, 3, 3) of the finest size.
        K_source: (M, 3, 3).
    """

    target: list[torch.Tensor]
    source: list[torch.Tensor]
    inv_depth: list[torch.Tensor]
    pose: torch.Tensor
    K_target: torch.Tensor
    K_source: torch.Tensor

    def K_at(self, scale: int) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: N802
        """Both intrinsics at a size."""
        full, size = _size(self.target[0]), _size(self.target[scale])
        return (
            scale_intrinsics(self.K_target, full, size),
            scale_intrinsics(self.K_source, full, size),
        )


@dataclass(frozen=True)
class _Scene:
    """What the networks say about a batch.

    Attributes:
        forward: target and sources.
        backward: sources and target; None where only one direction is asked for.
        smooth: (P, 1, h, w) inverse depth, for smoothness, at SCALES sizes.
        smooth_images: (P, 3, h, w), their pictures.
        masks: logits (N, S, 2, h, w) of explainability, or none.
        count: S.
    """

    forward: _Pairs
    backward: _Pairs | None
    smooth: list[torch.Tensor]
    smooth_images: list[torch.Tensor]
    masks: list[torch.Tensor]
    count: int


class SelfSupervised(Objective):
    """Photometric consistency between views."""

    learns_from = frozenset({'views'})
    monitor = 'photometric'

    def __init__(
        self,
        *,
        method: str = 'monodepth2',
        pose: str = 'network',
        normalise_inv_depth: bool = True,
        monitor: str = 'photometric',
        photometric_weight: float | None = None,
        ssim_weight: float | None = None,
        minimum: bool | None = None,
        auto_mask: bool | None = None,
        upsample: bool | None = None,
        out_of_view: str | None = None,
        both_directions: bool | None = None,
        smoothness_weight: float | None = None,
        smoothness_order: int | None = None,
        explainability_weight: float | None = None,
        flow_smoothness_weight: float | None = None,
        consistency_weight: float | None = None,
    ) -> None:
        """Choose the loss; what is None is as in the method's paper (see `Recipe`).

        Args:
            method: 'sfmlearner', 'geonet_rigid', 'geonet_flow', 'ddvo' or 'monodepth2'.
            pose: where the motion comes from: the 'network'; 'given' by the data set (a stereo
                pair's baseline: then depth becomes metric); 'mixed', given where it is known.
            normalise_inv_depth: measure each picture's inverse depth by its mean, against a
                slow shrinking to zero. False is faithful to SfMLearner and GeoNet as printed.
                Where a pose is given, only smoothness is measured so: the warp must be metric.
            monitor: the score that chooses the best checkpoint: 'photometric', or 'abs_rel'
                after median scaling where the validation data have true depth.
            photometric_weight: see `Recipe`, and so for the others.
            ssim_weight: 0 to 1.
            minimum: best source.
            auto_mask: leave out what does not move; needs `minimum`.
            upsample: warp full pictures at every scale.
            out_of_view: 'zeros', 'border' or 'ignore'.
            both_directions: not with `minimum`.
            smoothness_weight: 0 or more.
            smoothness_order: 1 or 2.
            explainability_weight: needs the network option `explainability`.
            flow_smoothness_weight: of geonet_flow.
            consistency_weight: of geonet_flow.

        Raises:
            ValueError: an unknown name, a negative weight, or habits that exclude each other.
        """
        super().__init__()
        for name, value, known in (
            ('method', method, tuple(RECIPES)), ('pose', pose, POSES),
            ('monitor', monitor, MONITORS),
        ):  # fmt: skip
            if value not in known:
                raise ValueError(f'{name} {value!r}: expected one of {", ".join(known)}')
        given: dict[str, Any] = {
            'photometric_weight': photometric_weight,
            'ssim_weight': ssim_weight,
            'minimum': minimum,
            'auto_mask': auto_mask,
            'upsample': upsample,
            'out_of_view': out_of_view,
            'both_directions': both_directions,
            'smoothness_weight': smoothness_weight,
            'smoothness_order': smoothness_order,
            'explainability_weight': explainability_weight,
            'flow_smoothness_weight': flow_smoothness_weight,
            'consistency_weight': consistency_weight,
        }
        overrides = {name: value for name, value in given.items() if value is not None}
        self.recipe = _checked(replace(RECIPES[method], **overrides), method)
        if method == 'geonet_flow' and monitor != 'photometric':
            raise ValueError('method geonet_flow leaves depth as it is: use monitor: photometric')
        self.method, self.pose = method, pose
        self.normalise_inv_depth = normalise_inv_depth
        self.monitor = monitor
        needed = {'views', 'view_K'} | ({'view_from_frame'} if pose != 'network' else set())
        self.needs = frozenset(needed)

    def losses(self, network: DepthNetwork, batch: Batch) -> dict[str, torch.Tensor]:
        """See `Objective.losses`."""
        if self.method == 'geonet_flow':
            return self._flow_losses(_flow_network(network), batch)
        scene = self._scene(network, batch)
        r = self.recipe
        parts: dict[str, torch.Tensor] = {}
        photometric, moved = [], []
        for scale in range(SCALES):
            value, share = self._photometric(scene, scale)
            photometric.append(value)
            if share is not None:
                moved.append(share)
        parts['photometric'] = torch.stack(photometric).sum()
        parts['smoothness'] = self._smoothness(scene)
        loss = (
            r.photometric_weight * parts['photometric'] + r.smoothness_weight * parts['smoothness']
        )
        if r.mean_over_scales:
            loss = loss / SCALES
            parts = {name: value / SCALES for name, value in parts.items()}
        if scene.masks:
            parts['explainability'] = (
                scene.count
                * torch.stack(
                    [explainability_loss(logits.flatten(0, 1)) for logits in scene.masks]
                ).sum()
            )
            loss = loss + r.explainability_weight * parts['explainability']
        if moved:
            parts['moved_share'] = torch.stack(moved).mean()
        return {'loss': loss, **{name: value.detach() for name, value in parts.items()}}

    @torch.no_grad()
    def scores(self, network: DepthNetwork, batch: Batch) -> dict[str, torch.Tensor]:
        """See `Objective.scores`; and `photometric`, the error of the finest warp."""
        scores = super().scores(network, batch)
        if self.method == 'geonet_flow':
            flow_network = _flow_network(network)
            scene = self._scene(flow_network, batch)
            assert scene.backward is not None
            forward, _ = self._full_flows(flow_network, scene.forward, scene.backward)
            warped, _ = flow_warp(scene.forward.source[0], forward[0])
            error = self._error(warped, scene.forward.target[0], 0)
        else:
            scene = self._scene(network, batch)
            error, _ = self._warp_error(scene.forward, 0)
        by_source = error.unflatten(0, (-1, scene.count))[:, :, 0]
        best = by_source.amin(1) if self.recipe.minimum else by_source.mean(1)
        scores['photometric'] = best.mean((1, 2))
        return scores

    def _scene(self, network: DepthNetwork, batch: Batch) -> _Scene:
        """Ask the networks, and lay the pictures out in pairs."""
        if not isinstance(network, SelfSupervisedNetwork):
            raise ValueError(
                f'objective self_supervised: {type(network).__name__} predicts no motion; use '
                'sfmlearner, geonet, ddvo or monodepth2'
            )
        r = self.recipe
        frames, count = batch['views'].shape[:2]
        target = network.normalise(batch['rgb'])
        sources = network.normalise(batch['views'].flatten(0, 1))
        seen = torch.cat([target, sources]) if r.both_directions else target
        outputs = network.outputs(seen.contiguous(memory_format=torch.channels_last))
        maps = [outputs[f'inv_depth_{scale}'].float() for scale in range(SCALES)]
        smooth = maps
        if self.normalise_inv_depth:
            smooth = [normalise_inv_depth(inv, mean=r.normalised_mean) for inv in maps]
            if r.normalise_for_warp and self.pose == 'network':
                maps = smooth
        K, source_K = batch['K'].float(), batch['view_K'].float()
        masks: list[torch.Tensor] = []
        if self.pose == 'given':
            pose = _given_pose(batch)
        else:
            ordered = sources.unflatten(0, (frames, count))
            if r.explainability_weight > 0:
                pose, masks = _explaining_network(network).pose_and_explainability(target, ordered)
            else:
                pose = network.pose(
                    target, ordered, inv_depth=maps[0][:frames], K=K, source_K=source_K
                )
            if self.pose == 'mixed':
                known = batch['view_from_frame'].float()
                is_known = known.isfinite().all(-1).all(-1)[..., None, None]
                pose = torch.where(is_known, known.nan_to_num(), pose)
        images = image_pyramid(self._compared(batch['rgb']), SCALES)
        views = image_pyramid(self._compared(batch['views'].flatten(0, 1)), SCALES)
        repeated = [image.repeat_interleave(count, 0) for image in images]
        poses = pose.flatten(0, 1)
        repeated_K, flat_K = K.repeat_interleave(count, 0), source_K.flatten(0, 1)
        inv = [level[:frames].repeat_interleave(count, 0) for level in maps]
        forward = _Pairs(repeated, views, inv, poses, repeated_K, flat_K)
        backward = None
        smooth_images = images
        if r.both_directions:
            source_inv = [level[frames:] for level in maps]
            backward = _Pairs(views, repeated, source_inv, invert_pose(poses), flat_K, repeated_K)
            smooth_images = [torch.cat(pair) for pair in zip(images, views, strict=True)]
        return _Scene(forward, backward, smooth, smooth_images, masks, count)

    def _compared(self, rgb: torch.Tensor) -> torch.Tensor:
        return (rgb.float() - self.recipe.offset) / self.recipe.divisor

    def _error(self, warped: torch.Tensor, target: torch.Tensor, scale: int) -> torch.Tensor:
        r = self.recipe
        ssim_weight = r.ssim_weight
        if r.ssim_finest_only and scale:
            ssim_weight = 0.0
        return photometric_error(warped, target, ssim_weight=ssim_weight, c1=r.c1, c2=r.c2)

    def _warp_error(self, pairs: _Pairs, scale: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Error (M, 1, h, w) of the sources warped at a size, and where it counts."""
        r = self.recipe
        inv, at = pairs.inv_depth[scale], scale
        if r.upsample:
            at = 0
            inv = functional.interpolate(
                inv, size=_size(pairs.target[0]), mode='bilinear', align_corners=False
            )
        K_target, K_source = pairs.K_at(at)
        warped = inverse_warp(
            pairs.source[at], 1 / inv, pairs.pose, K_target, K_source,
            padding='zeros' if r.out_of_view == 'zeros' else 'border',
        )  # fmt: skip
        error = self._error(warped.image, pairs.target[at], scale)
        valid = warped.valid if r.out_of_view == 'ignore' else torch.ones_like(warped.valid)
        return error, valid

    def _photometric(self, scene: _Scene, scale: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The term at a size, and the share of pixels that auto-masking keeps."""
        r, pairs = self.recipe, scene.forward
        error, valid = self._warp_error(pairs, scale)
        if r.minimum:

            def by_source(values: torch.Tensor) -> torch.Tensor:
                return values.unflatten(0, (-1, scene.count))[:, :, 0]

            identity = None
            if r.auto_mask:
                at = 0 if r.upsample else scale
                identity = by_source(self._error(pairs.source[at], pairs.target[at], scale))
            best = minimum_reprojection(by_source(error), by_source(valid), identity=identity)
            share = best.moved.float().mean() if r.auto_mask else None
            return picture_mean(best.error, best.valid), share
        if scene.masks:
            error = error * scene.masks[scale].softmax(2)[:, :, 1:].flatten(0, 1)
        value = scene.count * picture_mean(error, valid)
        if scene.backward is not None:
            back, back_valid = self._warp_error(scene.backward, scale)
            value = (value + scene.count * picture_mean(back, back_valid)) / 2
        return value, None

    def _smoothness(self, scene: _Scene) -> torch.Tensor:
        r = self.recipe
        total = scene.smooth[0].sum() * 0.0
        small = image_pyramid(scene.smooth[0], SCALES) if r.smooth_finest_too else []
        for scale in r.smoothness_scales:
            maps = [scene.smooth[scale], *small[scale : scale + 1]]
            for values in maps:
                if r.smoothness_order == 1:
                    value = edge_aware_smoothness(values, scene.smooth_images[scale])
                else:
                    value = second_order_smoothness(values)
                total = total + value / 2**scale
        return total

    def _full_flows(
        self, network: GeoNet, forward: _Pairs, backward: _Pairs
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Flow of the camera's motion plus the residual, both directions, at SCALES sizes."""
        rigid = []
        for scale in range(SCALES):
            both = [
                rigid_flow(1 / pairs.inv_depth[scale], pairs.pose, *pairs.K_at(scale))[0]
                for pairs in (forward, backward)
            ]
            rigid.append(torch.cat(both))
        r = self.recipe

        def as_input(images: torch.Tensor) -> torch.Tensor:
            return network.normalise(images * r.divisor + r.offset)

        target = as_input(torch.cat([forward.target[0], backward.target[0]]))
        source = as_input(torch.cat([forward.source[0], backward.source[0]]))
        warped, _ = flow_warp(source, rigid[0])
        residual = network.residual_flows(target, source, warped, rigid[0])
        full = [camera + own for camera, own in zip(rigid, residual, strict=True)]
        count = forward.pose.shape[0]
        return [flow[:count] for flow in full], [flow[count:] for flow in full]

    def _flow_losses(self, network: GeoNet, batch: Batch) -> dict[str, torch.Tensor]:
        """The second stage of GeoNet: photometric, smoothness and consistency of the full flow."""
        r = self.recipe
        with torch.no_grad():
            scene = self._scene(network, batch)
        assert scene.backward is not None
        forward, backward = self._full_flows(network, scene.forward, scene.backward)
        zero = forward[0].sum() * 0.0
        parts = {'photometric': zero, 'flow_smoothness': zero, 'consistency': zero}
        kept = []
        for scale in range(SCALES):
            for pairs, flow, other in (
                (scene.forward, forward[scale], backward[scale]),
                (scene.backward, backward[scale], forward[scale]),
            ):
                warped, _ = flow_warp(pairs.source[scale], flow)
                returning, inside = flow_warp(other, flow)
                # What leaves the picture is consistent with nothing.
                valid = inside & consistent_flow(flow, returning, pixel_size=2.0**scale)
                error = self._error(warped, pairs.target[scale], scale)
                gap = (flow + returning).abs()
                smooth = edge_aware_smoothness(flow, pairs.target[scale]) / 2 ** (scale + 1)
                both = scene.count / 2
                parts['photometric'] = parts['photometric'] + both * picture_mean(error, valid)
                parts['flow_smoothness'] = parts['flow_smoothness'] + smooth
                parts['consistency'] = parts['consistency'] + picture_mean(gap, valid) / 2
                kept.append(valid.float().mean())
        loss = (
            r.photometric_weight * parts['photometric']
            + r.flow_smoothness_weight * parts['flow_smoothness']
            + r.consistency_weight * parts['consistency']
        )
        parts['consistent_share'] = torch.stack(kept).mean()
        return {'loss': loss, **{name: value.detach() for name, value in parts.items()}}


def _checked(recipe: Recipe, method: str) -> Recipe:
    for item in fields(recipe):
        value = getattr(recipe, item.name)
        if item.name.endswith('_weight') and not 0 <= value < float('inf'):
            raise ValueError(f'{item.name} {value}: expected a number >= 0')
    if recipe.ssim_weight > 1:
        raise ValueError(f'ssim_weight {recipe.ssim_weight}: expected 0 to 1')
    if recipe.out_of_view not in OUT_OF_VIEW:
        raise ValueError(
            f'out_of_view {recipe.out_of_view!r}: expected one of {", ".join(OUT_OF_VIEW)}'
        )
    if recipe.smoothness_order not in (1, 2):
        raise ValueError(f'smoothness_order {recipe.smoothness_order}: expected 1 or 2')
    if recipe.auto_mask and not recipe.minimum:
        raise ValueError('auto_mask compares with the best source: set minimum: true with it')
    if recipe.minimum and (recipe.both_directions or recipe.explainability_weight):
        raise ValueError(
            'minimum: true chooses among the sources of one target; it excludes both_directions '
            'and explainability_weight'
        )
    if method == 'geonet_flow' and not recipe.both_directions:
        raise ValueError('method geonet_flow compares the flow there and back: both_directions')
    return recipe


def _size(images: torch.Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]


def _given_pose(batch: Batch) -> torch.Tensor:
    pose = batch['view_from_frame'].float()
    if not bool(pose.isfinite().all()):
        raise ValueError(
            'pose: given, but the data set does not know the pose of some views; use stereo '
            'pairs alone, or set pose: mixed'
        )
    return pose


def _flow_network(network: DepthNetwork) -> GeoNet:
    if not isinstance(network, GeoNet) or network.stage != 'flow':
        raise ValueError(
            f'method geonet_flow: {type(network).__name__} trains no flow; use network geonet '
            'with stage: flow'
        )
    return network


def _explaining_network(network: DepthNetwork) -> SfMLearner:
    if not isinstance(network, SfMLearner) or not network.explainability:
        raise ValueError(
            f'explainability_weight: {type(network).__name__} predicts no masks; use network '
            'sfmlearner with explainability: true'
        )
    return network
