"""Loss between class scores and labels."""

from __future__ import annotations

from depth_node.training.losses.masked import full_precision, picture_mean
import torch
from torch.nn import functional


def cross_entropy_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each pixel's softmax, the mean over pictures.

    Source: Eigen & Fergus 2015, arXiv:1411.4734, eq. 4.

    Args:
        logits: (N, classes, h, w).
        labels: (N, h, w) int64 class indices, -1 = unknown.

    Raises:
        ValueError: sizes differ, or a label is no class.
    """
    if logits.ndim != 4 or labels.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(
            f'logits {tuple(logits.shape)}, labels {tuple(labels.shape)}: expected '
            '(N, classes, h, w) and (N, h, w)'
        )
    classes = logits.shape[1]
    low, high = int(labels.min()), int(labels.max())
    if low < -1 or high >= classes:
        raise ValueError(
            f'labels from {low} to {high}, but the network has {classes} classes: expected -1 '
            f'(unknown) to {classes - 1}; set the number of classes of the network'
        )
    known = labels >= 0
    logits = torch.where(known[:, None], full_precision(logits), 0.0)
    values = functional.cross_entropy(logits, labels.clamp(min=0), reduction='none')
    return picture_mean(values, known)
