"""Losses of logarithms against closed forms; test_skeleton.py has what all losses share."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip('torch')
from depth_node.training.losses.logarithmic import (  # noqa: E402
    bts_silog_loss,
    gradient_loss,
    log_l1_loss,
    scale_invariant_loss,
    silog_loss,
)

ALL = [silog_loss, bts_silog_loss, scale_invariant_loss, log_l1_loss, gradient_loss]


def pair(seed: int = 0, shape: tuple[int, ...] = (2, 1, 6, 9)) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    target = 0.5 + 4 * torch.rand(shape, generator=generator, dtype=torch.float64)
    pred = target * torch.exp(0.3 * torch.randn(shape, generator=generator, dtype=torch.float64))
    valid = torch.rand(shape, generator=generator) > 0.3
    return pred, target, valid


def of_log_ratio(rows: list[list[float]]) -> tuple[torch.Tensor, ...]:
    """One picture a row, whose log ratios are given, and whose true depth is 3 m."""
    ratio = torch.tensor(rows, dtype=torch.float64)[:, None, None]
    target = torch.full_like(ratio, 3.0)
    return ratio.exp() * target, target, torch.ones_like(ratio, dtype=torch.bool)


def test_a_wrong_scale_costs_its_logarithm():
    _, target, valid = pair()
    assert log_l1_loss(2 * target, target, valid).item() == pytest.approx(math.log(2))
    loss = silog_loss(2 * target, target, valid, mean_weight=0.25, eps=0.0)
    assert loss.item() == pytest.approx(0.5 * math.log(2))
    assert gradient_loss(2 * target, target, valid).item() == pytest.approx(0.0, abs=1e-12)
    forgiven = scale_invariant_loss(2 * target, target, valid, eigen_lambda=1.0)
    assert forgiven.item() == pytest.approx(0.0, abs=1e-12)
    half = scale_invariant_loss(2 * target, target, valid)
    assert half.item() == pytest.approx(0.5 * math.log(2) ** 2)


def test_silog_is_the_mean_of_each_pictures_own_spread():
    maps = of_log_ratio([[1.0, -1.0, 1.0, -1.0], [3.0, 3.0, 3.0, 3.0]])
    loss = silog_loss(*maps, mean_weight=0.25, eps=0.0)
    assert loss.item() == pytest.approx((1.0 + 0.5 * 3.0) / 2)


def test_bts_silog_pools_the_batch():
    maps = of_log_ratio([[1.0, -1.0, 1.0, -1.0], [3.0, 3.0, 3.0, 3.0]])
    mean_square, mean = (4 * 1 + 4 * 9) / 8, 12 / 8
    loss = bts_silog_loss(*maps, eps=0.0)
    assert loss.item() == pytest.approx(10 * math.sqrt(mean_square - 0.85 * mean**2))


def test_scale_invariant_error_is_eigens_sum():
    pred, target, valid = pair(2)
    expected = 0.0
    for index in range(2):
        d = (pred[index][valid[index]] / target[index][valid[index]]).log()
        n = d.numel()
        expected += ((d**2).sum() / n - 0.3 / n**2 * d.sum() ** 2).item() / 2
    loss = scale_invariant_loss(pred, target, valid, eigen_lambda=0.3)
    assert loss.item() == pytest.approx(expected)


def test_trap_01_scale_invariant_errors_of_the_papers_differ():
    d = [0.4, -0.1, 0.3, 0.2]
    maps = of_log_ratio([d])
    mean = sum(d) / 4
    variance = sum((value - mean) ** 2 for value in d) / 4
    # Eigen, lambda 0.5, no root; MegaDepth, lambda 1
    eigen = scale_invariant_loss(*maps).item()
    assert eigen == pytest.approx(variance + 0.5 * mean**2)
    megadepth = scale_invariant_loss(*maps, eigen_lambda=1.0).item()
    assert megadepth == pytest.approx(variance)
    # BTS, 0.85 and a factor of 10; UniDepth, the same root with the mean's share said as 0.15
    bts = bts_silog_loss(*maps, eps=0.0).item()
    unidepth = silog_loss(*maps, mean_weight=0.15, eps=0.0).item()
    assert bts == pytest.approx(10 * math.sqrt(variance + 0.15 * mean**2))
    assert unidepth == pytest.approx(bts / 10)
    # the score SILog: 100 times the root, nothing of the mean
    score = 100 * silog_loss(*maps, mean_weight=0.0, eps=0.0).item()
    assert score == pytest.approx(100 * math.sqrt(variance))
    assert len({round(value, 6) for value in (eigen, megadepth, bts, unidepth, score)}) == 5


def test_the_first_order_term_adds_squared_steps_between_valid_neighbours():
    d = torch.tensor([[0.0, 0.1, 0.4], [0.2, 9.0, 0.5]], dtype=torch.float64)[None, None]
    valid = torch.ones_like(d, dtype=torch.bool)
    valid[..., 1, 1] = False
    target = torch.full_like(d, 2.0)
    plain = scale_invariant_loss(target * d.exp(), target, valid)
    loss = scale_invariant_loss(target * d.exp(), target, valid, gradient=True)
    steps = (0.1**2 + 0.3**2 + 0.2**2 + 0.1**2) / 5
    assert loss.item() - plain.item() == pytest.approx(steps)


def test_the_first_order_term_keeps_to_the_skeletons_rules():
    pred, target, valid = pair(3, (1, 1, 4, 5))
    pred.requires_grad_(True)

    def loss(pred: torch.Tensor) -> torch.Tensor:
        return scale_invariant_loss(pred, target, valid, gradient=True)

    assert torch.autograd.gradcheck(loss, (pred,))
    value = scale_invariant_loss(pred, target, torch.zeros_like(valid), gradient=True)
    (gradient,) = torch.autograd.grad(value, pred)
    assert value.item() == 0.0
    assert (gradient == 0).all()


def test_extremes_of_the_true_depth_can_be_left_out():
    target = torch.tensor([[1.0, 2.0, 3.0, 5.0, 5.0, 0.0]], dtype=torch.float64)[None, None]
    d = torch.tensor([[7.0, 0.1, 0.3, 7.0, 7.0, 7.0]], dtype=torch.float64)[None, None]
    pred = torch.where(target > 0, target, 1.0) * d.exp()
    loss = scale_invariant_loss(pred, target, target > 0, eigen_lambda=0.0, drop_extremes=True)
    assert loss.item() == pytest.approx((0.01 + 0.09) / 2)
    flat = torch.full_like(target, 2.0)
    everything = scale_invariant_loss(pred, flat, target > 0, drop_extremes=True)
    assert everything.item() == 0.0  # all pixels are the smallest


@pytest.mark.parametrize('loss', ALL)
def test_logarithms_are_taken_once(loss):
    pred, target, valid = pair(4)
    value = loss(pred, target, valid).item()
    given = loss(pred.log(), torch.where(valid, target.log(), torch.nan), valid, of_logs=True)
    assert given.item() == pytest.approx(value)


def test_gradient_loss_of_a_ramp_is_its_slope():
    # log ratio rises by 0.1 a column: 0.1 at full size, 0.2 at half, 0.4, 0.8
    ramp = torch.arange(32, dtype=torch.float64) * 0.1
    pred = ramp.exp().expand(1, 1, 16, 32)
    target = torch.ones_like(pred)
    valid = torch.ones_like(pred, dtype=torch.bool)
    for scales, slopes in ((1, [0.1]), (4, [0.1, 0.2, 0.4, 0.8])):
        loss = gradient_loss(pred, target, valid, scales=scales)
        assert loss.item() == pytest.approx(sum(slopes) / len(slopes))


def test_gradient_loss_ignores_pairs_across_unknown_pixels():
    pred = torch.ones(1, 1, 1, 5, dtype=torch.float64)
    pred[..., 2] = 50.0
    valid = torch.ones_like(pred, dtype=torch.bool)
    valid[..., 2] = False
    assert gradient_loss(pred, torch.ones_like(pred), valid, scales=1).item() == 0.0
