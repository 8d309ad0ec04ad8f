"""Loss between two maps of surface normals."""

from __future__ import annotations

from depth_node.training.losses.masked import masked_pair, picture_mean
import torch


def normals_loss(pred: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """One minus the mean cosine between predicted and true normals.

    Both are brought to length 1 first. Source: Eigen & Fergus 2015, arXiv:1411.4734, eq. 3, plus
    one, so that a perfect fit costs 0. A picture that is mirrored left to right needs its normals'
    x negated as well as mirrored.

    Args:
        pred: (N, 3, h, w), any length.
        target: (N, 3, h, w), any length but zero where `valid`.
        valid: (N, 1, h, w) bool.

    Returns:
        Scalar in [0, 2]; the mean over pictures.
    """
    if pred.ndim != 4 or pred.shape[1] != 3 or valid.ndim != 4 or valid.shape[1] != 1:
        raise ValueError(
            f'pred {tuple(pred.shape)}, target {tuple(target.shape)}, valid '
            f'{tuple(valid.shape)}: expected (N, 3, h, w) twice and (N, 1, h, w)'
        )
    pred, target = masked_pair(pred, target, valid)
    cosine = (_unit(pred) * _unit(target)).sum(1, keepdim=True)
    return picture_mean(1 - cosine, valid)


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    # 1e-8: a vector of zeros stays zero, with a gradient; a unit vector changes by 5e-9.
    return vectors / (vectors.square().sum(1, keepdim=True) + 1e-8).sqrt()
