"""Losses on pairs of pixels of which it is known which is farther.

The rules of sign, in one place: `z` grows with depth for networks of kind `rel_depth`, and with
nearness for `rel_inv_depth`. `relation` is always about `z`: +1 = z_a is to be larger. What data
sets give (`Frame.pairs`, `batch['relation']`) is about depth, +1 = a is farther; for a z that
grows with nearness the caller negates it.

All pair tensors are (N, P), one row a picture; `valid` is bool, and what stands under ~valid
(padding, NaN) reaches neither value nor gradient. Results are the mean over pictures.
"""

from __future__ import annotations

import math

from depth_node.training.losses.masked import full_precision, mean_of_pictures, picture_mean
import torch
from torch.nn import functional


def pick(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Look values up.

    Args:
        values: (N, 1, H, W).
        places: (N, P) int64, row-major places (v * W + u) in each picture.

    Returns:
        (N, P).
    """
    return values.flatten(1).gather(1, places)


def places_of(uv: torch.Tensor, width: int) -> torch.Tensor:
    """Turn pixels (N, P, 2), (u, v), into what `pick` takes: the nearest whole pixels."""
    whole = uv.round().long()
    return whole[..., 1] * width + whole[..., 0]


def sample_pixels(
    known: torch.Tensor, count: int, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw known pixels of each picture, evenly, with repetition.

    Args:
        known: (N, 1, H, W) bool.
        count: how many of each picture.
        generator: of the CPU, whatever device `known` is on: draws do not depend on the device.

    Returns:
        Places for `pick`, (N, count); and (N,) bool, False for a picture without a known pixel,
        whose places are all 0.
    """
    rows = known.flatten(1)
    places = torch.zeros(len(rows), count, dtype=torch.int64, device=known.device)
    for index, row in enumerate(rows):
        candidates = row.nonzero().squeeze(1)
        # Drawn for every picture, so that a hole in one does not change the next one's pairs.
        share = torch.rand(count, generator=generator, dtype=torch.float64)
        if len(candidates):
            places[index] = candidates[(share * len(candidates)).long().to(known.device)]
    return places, rows.any(1)


def ratio_relation(g_a: torch.Tensor, g_b: torch.Tensor, sigma: float = 0.02) -> torch.Tensor:
    """Label pairs by the ratio of two values that are not negative.

    +1 where g_a / g_b > 1 + sigma, -1 where g_b / g_a > 1 + sigma, 0 otherwise (also for two
    zeros). Source: Xian et al. 2018, section 4.2; its number sigma is unverified.
    """
    farther = (g_a > (1 + sigma) * g_b).to(torch.int8)
    return farther - (g_b > (1 + sigma) * g_a).to(torch.int8)


def _penalties(
    z_a: torch.Tensor, z_b: torch.Tensor, relation: torch.Tensor, valid: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each pair's penalty, 0 where not valid, and where two z are to be unequal."""
    difference, sign = _signed(z_a, z_b, relation, valid)
    penalty = torch.where(
        sign == 0, difference.square(), functional.softplus(-sign * difference)
    )
    return torch.where(valid, penalty, 0.0), valid & (sign != 0)


def _signed(
    z_a: torch.Tensor, z_b: torch.Tensor, relation: torch.Tensor, valid: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    if not z_a.shape == z_b.shape == relation.shape == valid.shape or z_a.ndim != 2:
        raise ValueError(
            f'z_a {tuple(z_a.shape)}, z_b {tuple(z_b.shape)}, relation {tuple(relation.shape)}, '
            f'valid {tuple(valid.shape)}: expected one shape (N, P)'
        )
    if valid.dtype != torch.bool:
        raise ValueError(f'valid is {valid.dtype}: expected bool, True for a real pair')
    z_a, z_b = full_precision(z_a), full_precision(z_b)
    difference = torch.where(valid, z_a, 0.0) - torch.where(valid, z_b, 0.0)
    return difference, torch.where(valid, relation, 0).to(difference.dtype)


def chen_ranking_loss(
    z_a: torch.Tensor, z_b: torch.Tensor, relation: torch.Tensor, valid: torch.Tensor
) -> torch.Tensor:
    """Ranking loss of depth in the wild.

    ln(1 + exp(-r (z_a - z_b))) for r = +-1, (z_a - z_b)^2 for r = 0; the mean over a picture's
    pairs. Source: Chen et al. 2016, arXiv:1604.03901, eq. 1. The paper calls +1 'closer', its
    code scores '>' as z_a > z_b and compares z with depth: here z is depth and +1 farther.

    Args:
        z_a: (N, P) the network's unclamped output at each pair's first pixel.
        z_b: (N, P) at the second.
        relation: (N, P), +1 = z_a is to be larger, -1 = smaller, 0 = equal.
        valid: (N, P) bool.

    Returns:
        Scalar; pictures without a valid pair do not count.
    """
    penalty, _ = _penalties(z_a, z_b, relation, valid)
    return picture_mean(penalty, valid)


def xian_ranking_loss(
    z_a: torch.Tensor,
    z_b: torch.Tensor,
    relation: torch.Tensor,
    valid: torch.Tensor,
    *,
    drop: float = 0.25,
) -> torch.Tensor:
    """Ranking loss that leaves the easiest unequal pairs out.

    Chen's penalties; of each picture's unequal pairs the share `drop` with the smallest penalty
    has weight 0, which lifts the weight of equal pairs. The mean counts all pairs. Source: Xian
    et al. 2018, section 4.2.

    Args:
        z_a: as `chen_ranking_loss`.
        z_b: as `chen_ranking_loss`.
        relation: as `chen_ranking_loss`.
        valid: as `chen_ranking_loss`.
        drop: 0 to 1, rounded down to whole pairs.
    """
    if not 0 <= drop < 1:
        raise ValueError(f'drop {drop}: expected a share, 0 <= drop < 1')
    penalty, unequal = _penalties(z_a, z_b, relation, valid)
    order = torch.where(unequal, penalty.detach(), math.inf).argsort(dim=1, stable=True)
    rank = order.argsort(dim=1)  # 0 = easiest
    easy = rank < (drop * unequal.sum(1, keepdim=True)).floor()
    total = torch.where(unequal & easy, 0.0, penalty).sum(1)
    return mean_of_pictures(total, valid.sum(1))


def xian_online_ranking_loss(
    z: torch.Tensor,
    target: torch.Tensor,
    valid: torch.Tensor,
    *,
    pairs: int = 3000,
    sigma: float = 0.02,
    drop: float = 0.25,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Draw pairs, label them by the truth's ratio, and rank them by `xian_ranking_loss`.

    Args:
        z: (N, 1, H, W) the network's unclamped output; grows with `target`.
        target: (N, 1, H, W), not negative where valid: depth, inverse depth, or inverse depth
            up to scale (labels are ratios: a shift changes them).
        valid: (N, 1, H, W) bool.
        pairs: of each picture and call; 3000 is unverified, other code uses 4000.
        sigma: see `ratio_relation`.
        drop: see `xian_ranking_loss`.
        generator: see `sample_pixels`.

    Raises:
        ValueError: shapes that differ.
    """
    if not z.shape == target.shape == valid.shape:
        raise ValueError(
            f'z {tuple(z.shape)}, target {tuple(target.shape)}, valid {tuple(valid.shape)}: '
            'expected one shape (N, 1, H, W)'
        )
    a, seen = sample_pixels(valid, pairs, generator)
    b, _ = sample_pixels(valid, pairs, generator)
    relation = ratio_relation(pick(target, a), pick(target, b), sigma)
    return xian_ranking_loss(
        pick(z, a), pick(z, b), relation, seen[:, None].expand_as(a), drop=drop
    )


def megadepth_ordinal_loss(
    log_a: torch.Tensor,
    log_b: torch.Tensor,
    relation: torch.Tensor,
    valid: torch.Tensor,
    *,
    tau: float = 0.25,
) -> torch.Tensor:
    """Robust ordinal loss of MegaDepth.

    With P = -r (L_a - L_b), r = +1 where a is farther: ln(1 + e^P) for P <= tau, else
    ln(1 + e^sqrt(P)) + c, where c = ln(1 + e^tau) - ln(1 + e^sqrt(tau)) makes it continuous. Far
    wrong pairs, likely wrong labels, pull less. Source: Li & Snavely 2018, arXiv:1804.00607,
    eq. 5; tau is unverified.

    Args:
        log_a: (N, P) log depth at each pair's first pixel.
        log_b: (N, P) at the second.
        relation: (N, P), +1 = a is farther, -1 = nearer; a pair with 0 does not count.
        valid: (N, P) bool.
        tau: where the root takes over, above 0.
    """
    if not tau > 0:
        raise ValueError(f'tau {tau}: expected more than 0, the root has no slope there')
    difference, sign = _signed(log_a, log_b, relation, valid)
    valid = valid & (sign != 0)
    wrong = -sign * difference
    far = wrong > tau
    # `where` before the root as well: its slope is infinite at 0.
    root = torch.where(far, wrong, tau).sqrt()
    constant = math.log1p(math.exp(tau)) - math.log1p(math.exp(math.sqrt(tau)))
    penalty = torch.where(
        far, functional.softplus(root) + constant, functional.softplus(wrong)
    )
    return picture_mean(torch.where(valid, penalty, 0.0), valid)
