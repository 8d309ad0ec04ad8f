"""Agreement of the depth maps of transformed copies of one picture."""

from __future__ import annotations

from itertools import combinations

from depth_node.training.losses.masked import full_precision, mean_of_pictures
import torch


def set_loss(maps: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean squared difference between every two copies' maps, in one frame.

    2 / (N (N - 1)) * the sum over pairs i < j of (1 / n) * the sum over pixels of
    (D_i - g_ij(D_j))^2. Source: Li, Klein & Yao 2017, arXiv:1607.00730 (form and constants from
    secondary sources, unverified). The paper's g_ij brings copy j to copy i's frame; here the
    caller brings all copies to one frame, which is the same for mirroring and whole shifts.

    Args:
        maps: (B, N, h, w), N copies of each of B pictures.
        valid: (B, N, h, w) bool, where a copy's map covers the frame; a pair counts the pixels
            that both cover, and does not count where there are none.

    Returns:
        Scalar: the mean over pictures.

    Raises:
        ValueError: shapes differ, `valid` is not bool, or there is one copy only.
    """
    if maps.ndim != 4 or maps.shape != valid.shape or valid.dtype != torch.bool:
        raise ValueError(
            f'maps {tuple(maps.shape)}, valid {tuple(valid.shape)} {valid.dtype}: expected '
            '(B, N, h, w) twice and bool'
        )
    if maps.shape[1] < 2:
        raise ValueError(f'{maps.shape[1]} copy of each picture: a set needs at least 2')
    maps = torch.where(valid, full_precision(maps), 0.0)
    total = maps.flatten(1).sum(1) * 0.0
    pairs = torch.zeros_like(total)
    for i, j in combinations(range(maps.shape[1]), 2):
        both = valid[:, i] & valid[:, j]
        squares = (maps[:, i] - maps[:, j]).square() * both
        count = both.flatten(1).sum(1)
        total = total + squares.flatten(1).sum(1) / count.clamp(min=1)
        pairs = pairs + (count > 0)
    return mean_of_pictures(total, pairs)
