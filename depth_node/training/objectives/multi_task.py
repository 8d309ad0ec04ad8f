"""Depth, surface normals and labels at once."""

from __future__ import annotations

import math
from typing import Any

from depth_node.training.geometry import back_project
from depth_node.training.losses.labels import cross_entropy_loss
from depth_node.training.losses.logarithmic import scale_invariant_loss
from depth_node.training.losses.normals import normals_loss
from depth_node.training.networks.base import DepthNetwork
from depth_node.training.objectives.base import Batch, Objective, as_depth, truth
from depth_node.training.objectives.supervised import RESIZES, resize_truth
import torch
from torch.nn import functional

TASKS = ('depth', 'normals', 'labels')
NORMALS = ('given', 'from_depth')
# Normals span this much to either side: over less, the slope is the sensor's noise.
REACH_PX = 3
LARGEST_JUMP = 0.1  # relative change of depth over the reach that is a border, not a slope


class MultiTask(Objective):
    """The losses of Eigen & Fergus 2015, arXiv:1411.4734, sections 4.1 to 4.3.

    Depth: the scale-invariant logarithmic loss with gradients, eq. 1. Normals: the mean cosine,
    eq. 3. Labels: cross-entropy of each pixel, eq. 4. Truth comes to the map's size; normals and
    labels by the nearest pixel.

    The network has the outputs `normals` (N, 3, h, w) and `labels` (N, classes, h, w), logits.
    """

    def __init__(
        self,
        *,
        weights: dict[str, Any],
        eigen_lambda: float = 0.5,
        normals: str = 'given',
        target_resize: str = 'nearest',
    ) -> None:
        """Choose the tasks.

        Args:
            weights: task (depth, normals, labels) to its weight; 0 leaves it out.
            eigen_lambda: of the depth loss: 0 counts a wrong scale fully, 1 not at all.
            normals: 'given' by the data set, or 'from_depth': those of the true depth's surface
                (the paper's come from the depth of NYU too, by others' plane fits).
            target_resize: how true depth comes to the map's size, see `Supervised`.

        Raises:
            ValueError: an unknown task or way to resize, or no weight above 0.
        """
        super().__init__()
        for task, weight in weights.items():
            if task not in TASKS:
                raise ValueError(f'weights.{task}: no task; expected one of {TASKS}')
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or weight < 0:
                raise ValueError(f'weights.{task}: {weight!r}, expected a number >= 0')
        self.weights = {task: float(w) for task, w in weights.items() if w > 0}
        if not self.weights:
            raise ValueError(f'weights {weights}: expected one of {TASKS} above 0')
        if normals not in NORMALS:
            raise ValueError(f'normals {normals!r}: expected one of {NORMALS}')
        if target_resize not in RESIZES or target_resize == 'upsample':
            raise ValueError(
                f'target_resize {target_resize!r}: expected one of '
                f'{[how for how in RESIZES if how != "upsample"]}'
            )
        self.eigen_lambda, self.target_resize = eigen_lambda, target_resize
        self.normals_from_depth = normals == 'from_depth'
        self.heads = frozenset(self.weights) - {'depth'}
        self.learns_from = frozenset(
            'depth' if task == 'normals' and self.normals_from_depth else task
            for task in self.weights
        )
        self.needs = self.heads - ({'normals'} if self.normals_from_depth else set())

    def losses(self, network: DepthNetwork, batch: Batch) -> dict[str, torch.Tensor]:
        """See `Objective.losses`."""
        outputs = self._outputs(network, batch)
        values = {}
        if 'depth' in self.weights:
            pred = as_depth(outputs['prediction'].float(), network.output_kind)
            target, valid = truth(network, batch)
            target, valid = resize_truth(
                target, valid, (pred.shape[-2], pred.shape[-1]), self.target_resize
            )
            values['depth'] = scale_invariant_loss(
                pred,
                torch.where(valid, target, 1.0),
                valid,
                eigen_lambda=self.eigen_lambda,
                gradient=True,
            )
        if 'normals' in self.weights:
            target, valid = self._true_normals(batch, outputs['normals'])
            values['normals'] = normals_loss(outputs['normals'], target, valid)
        if 'labels' in self.weights:
            labels = _labels_like(batch['labels'], outputs['labels'])
            values['labels'] = cross_entropy_loss(outputs['labels'], labels)
        loss = outputs['prediction'].sum() * 0.0
        for task, value in values.items():
            loss = loss + self.weights[task] * value
        return {'loss': loss, **{task: value.detach() for task, value in values.items()}}

    @torch.no_grad()
    def scores(self, network: DepthNetwork, batch: Batch) -> dict[str, torch.Tensor]:
        """Score depth as every objective, and the other tasks.

        `normals_deg`: mean angle between predicted and true normals. `pixel_accuracy`: share of
        known pixels whose label is right.
        """
        scores = super().scores(network, batch)
        if not self.heads:
            return scores
        outputs = self._outputs(network, batch)
        if 'normals' in self.heads:
            target, valid = self._true_normals(batch, outputs['normals'])
            cosine = functional.cosine_similarity(outputs['normals'].float(), target, dim=1)
            angle = cosine.clamp(-1, 1).acos().rad2deg()
            scores['normals_deg'] = _mean_where(angle, valid[:, 0])
        if 'labels' in self.heads:
            labels = _labels_like(batch['labels'], outputs['labels'])
            right = outputs['labels'].argmax(1) == labels
            scores['pixel_accuracy'] = _mean_where(right.float(), labels >= 0)
        return scores

    def _outputs(self, network: DepthNetwork, batch: Batch) -> dict[str, torch.Tensor]:
        rgb = network.normalise(batch['rgb']).contiguous(memory_format=torch.channels_last)
        outputs = network.outputs(rgb)
        for task in sorted(self.heads):
            if task not in outputs:
                raise ValueError(
                    f'objective multi_task: {type(network).__name__} predicts no {task}; add it '
                    f'to network.options.heads, or take weights.{task} out'
                )
            if task in self.needs and task not in batch:
                raise ValueError(
                    f'objective multi_task: the data set has no {task}; take weights.{task} out'
                    f'{", or set normals: from_depth" if task == "normals" else ""}'
                )
        return outputs

    def _true_normals(self, batch: Batch, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return true normals at a map's size, and where they are known."""
        if self.normals_from_depth:
            return _normals_like(normals_from_depth(batch['depth'], batch['K']), like)
        return _normals_like(batch['normals'], like)


def normals_from_depth(depth: torch.Tensor, K: torch.Tensor) -> torch.Tensor:
    """Return the surface normals of a depth image, towards the camera.

    The cross product of what lies between the points to the left and right and between those above
    and below, `REACH_PX` away: exact on planes.

    Args:
        depth: (N, 1, H, W) metres, 0 = unknown.
        K: (N, 3, 3) intrinsics of that size.

    Returns:
        (N, 3, H, W) unit vectors in the optical frame; 0 = unknown: near the picture's rim,
        where one of the five pixels is unknown, and where depth jumps between them.
    """
    points = functional.pad(back_project(depth, K), (REACH_PX,) * 4)
    height, width = depth.shape[-2:]

    def moved(right: int, down: int) -> torch.Tensor:
        v, u = (1 + down) * REACH_PX, (1 + right) * REACH_PX
        return points[:, :, v : v + height, u : u + width]

    right, left, below, above = moved(1, 0), moved(-1, 0), moved(0, 1), moved(0, -1)
    known = depth > 0
    for neighbour in (right, left, below, above):
        z = neighbour[:, 2:]
        known = known & (z > 0) & ((z - depth).abs() < LARGEST_JUMP * depth)
    # z is forward, u right, v down: down x right points back to the camera.
    normals = torch.linalg.cross(below - above, right - left, dim=1)
    return torch.where(known, functional.normalize(normals, dim=1, eps=1e-12), 0.0)


def _normals_like(normals: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Bring true normals to a map's size; (N, 3, h, w) and (N, 1, h, w), where they are known."""
    normals = functional.interpolate(normals.float(), size=like.shape[-2:], mode='nearest-exact')
    return normals, normals.norm(dim=1, keepdim=True) > 0.5


def _labels_like(labels: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Bring labels (N, H, W) to a map's size."""
    # Through float64: interpolation takes no integers, and a label is exact in it.
    resized = functional.interpolate(
        labels[:, None].double(), size=like.shape[-2:], mode='nearest-exact'
    )
    return resized[:, 0].long()


def _mean_where(values: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Per-picture mean over known pixels; NaN for a picture without any, and for it alone."""
    count = known.flatten(1).sum(1)
    total = torch.where(known, values, 0.0).flatten(1).sum(1)
    mean = (total / count.clamp(min=1)).nan_to_num(nan=math.inf)
    return torch.where(count > 0, mean, math.nan)
