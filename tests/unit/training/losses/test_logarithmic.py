"""Losses against closed forms; their gradients against finite differences."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip('torch')
from depth_node.training.losses.logarithmic import (  # noqa: E402
    gradient_loss,
    log_l1_loss,
    silog_loss,
)

ALL = [silog_loss, log_l1_loss, gradient_loss]


def pair(seed: int = 0, shape: tuple[int, ...] = (2, 1, 6, 9)) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    target = 0.5 + 4 * torch.rand(shape, generator=generator, dtype=torch.float64)
    pred = target * torch.exp(0.3 * torch.randn(shape, generator=generator, dtype=torch.float64))
    valid = torch.rand(shape, generator=generator) > 0.3
    return pred, target, valid


def test_a_wrong_scale_costs_its_logarithm():
    _, target, valid = pair()
    assert log_l1_loss(2 * target, target, valid).item() == pytest.approx(math.log(2))
    loss = silog_loss(2 * target, target, valid, mean_weight=0.25, eps=0.0)
    assert loss.item() == pytest.approx(0.5 * math.log(2))
    assert gradient_loss(2 * target, target, valid).item() == pytest.approx(0.0, abs=1e-12)


def test_silog_is_the_mean_of_each_pictures_own_spread():
    target = torch.ones(2, 1, 1, 4, dtype=torch.float64)
    ratio = torch.tensor([[1.0, -1.0, 1.0, -1.0], [3.0, 3.0, 3.0, 3.0]], dtype=torch.float64)
    pred = ratio.exp().view(2, 1, 1, 4)
    valid = torch.ones_like(pred, dtype=torch.bool)
    loss = silog_loss(pred, target, valid, mean_weight=0.25, eps=0.0)
    assert loss.item() == pytest.approx((1.0 + 0.5 * 3.0) / 2)


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


@pytest.mark.parametrize('loss', ALL)
def test_gradients_match_finite_differences(loss):
    pred, target, valid = pair(3, (1, 1, 4, 5))
    pred.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda p: loss(p, target, valid), (pred,))


@pytest.mark.parametrize('loss', ALL)
def test_invalid_pixels_change_nothing(loss):
    pred, target, valid = pair()
    poisoned = torch.where(valid, target, torch.nan)
    pred = pred.requires_grad_(True)
    value = loss(pred, poisoned, valid)
    value.backward()
    assert value.item() == pytest.approx(loss(pred.detach(), target, valid).item())
    assert torch.isfinite(pred.grad).all()
    assert (pred.grad[~valid] == 0).all()


@pytest.mark.parametrize('loss', ALL)
def test_nothing_valid_is_zero_with_a_zero_gradient(loss):
    pred, target, valid = pair()
    pred.requires_grad_(True)
    value = loss(pred, target, torch.zeros_like(valid))
    value.backward()
    assert value.item() == 0.0
    assert (pred.grad == 0).all()


@pytest.mark.parametrize('loss', ALL)
def test_a_perfect_fit_has_a_finite_gradient(loss):
    _, target, valid = pair()
    pred = target.clone().requires_grad_(True)
    value = loss(pred, target, valid)
    value.backward()
    assert value.item() <= 1e-3
    assert torch.isfinite(pred.grad).all()


def test_shapes_that_would_broadcast_are_refused():
    pred, target, valid = pair()
    with pytest.raises(ValueError, match='expected one shape'):
        log_l1_loss(pred[:, 0], target, valid)
    with pytest.raises(ValueError, match='bool'):
        log_l1_loss(pred, target, valid.float())
