"""Smoothness against closed forms; normalisation takes the way out to infinity."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip('torch')
from depth_node.training.losses.smoothness import (  # noqa: E402
    edge_aware_smoothness,
    normalise_inv_depth,
    second_order_smoothness,
)


def test_first_order_is_the_slope_forgiven_by_the_exponential_of_the_edge():
    u = torch.arange(7.0).expand(1, 1, 5, 7)
    v = torch.arange(5.0)[:, None].expand(1, 1, 5, 7)
    image = torch.cat([2 * u + v, 0 * u, 4 * u], 1)  # mean |dI/dx| = 2, |dI/dy| = 1/3
    found = edge_aware_smoothness(3 * u - 5 * v, image)
    expected = 3 * math.exp(-2) + 5 * math.exp(-1 / 3)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_second_order_is_blind_to_planes_and_sees_curvature():
    u = torch.arange(7.0).expand(1, 1, 5, 7)
    v = torch.arange(5.0)[:, None].expand(1, 1, 5, 7)
    assert second_order_smoothness(3 * u - 5 * v + 1).item() == 0
    assert second_order_smoothness(u * u).item() == pytest.approx(2)
    assert second_order_smoothness(u * v).item() == pytest.approx(2)  # xy and yx
    assert second_order_smoothness(1.5 * v * v + u * u).item() == pytest.approx(5)


@pytest.mark.parametrize('order', [1, 2])
def test_gradients(order):
    torch.manual_seed(0)
    values = torch.rand(2, 1, 4, 5).double().requires_grad_()
    image = torch.rand(2, 3, 4, 5).double()

    def loss(values: torch.Tensor) -> torch.Tensor:
        if order == 1:
            return edge_aware_smoothness(values, image)
        return second_order_smoothness(values)

    assert torch.autograd.gradcheck(loss, values)


def test_a_constant_map_has_no_loss_and_a_finite_gradient():
    values = torch.full((1, 1, 4, 5), 0.7, requires_grad=True)
    loss = edge_aware_smoothness(values, torch.rand(1, 3, 4, 5)) + second_order_smoothness(values)
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(values.grad).all()


def test_normalisation_is_per_picture_and_reaches_the_stated_mean():
    torch.manual_seed(0)
    values = torch.rand(3, 1, 4, 5) * torch.tensor([0.01, 1, 50]).view(3, 1, 1, 1)
    for mean in (1.0, 10.0):
        found = normalise_inv_depth(values, mean=mean)
        torch.testing.assert_close(found.mean((1, 2, 3)), torch.full((3,), mean))
        ratio = (found / values).flatten(1)
        torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))


def test_trap_20_without_normalisation_shrinking_inverse_depth_pays_and_with_it_it_does_not():
    """The derivative of each smoothness along 'everything farther away', d loss / d ln scale."""
    torch.manual_seed(0)
    inv_depth = torch.rand(1, 1, 8, 12).double() + 0.2
    image = torch.rand(1, 3, 8, 12).double()
    for smoothness in (lambda d: edge_aware_smoothness(d, image), second_order_smoothness):
        log_scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
        plain = smoothness(inv_depth * log_scale.exp())
        (slope,) = torch.autograd.grad(plain, log_scale)
        assert slope.item() == pytest.approx(plain.item())  # proportional to the scale: cheats
        assert slope.item() > 0.1
        normalised = smoothness(normalise_inv_depth(inv_depth * log_scale.exp()))
        (slope,) = torch.autograd.grad(normalised, log_scale)
        assert abs(slope.item()) < 1e-12


def test_sizes_that_differ_are_named():
    with pytest.raises(ValueError, match='expected one size'):
        edge_aware_smoothness(torch.zeros(1, 1, 4, 5), torch.zeros(1, 3, 8, 10))
