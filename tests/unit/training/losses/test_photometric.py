"""Photometric errors against closed forms, and what may not leak through their masks."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip('torch')
from depth_node.training.losses.photometric import (  # noqa: E402
    consistent_flow,
    explainability_loss,
    minimum_reprojection,
    photometric_error,
)
from torch.nn import functional  # noqa: E402


def pictures(count: int = 2, height: int = 9, width: int = 13) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(count, 3, height, width, dtype=torch.float64)


def test_equal_pictures_have_no_error_and_a_finite_gradient():
    target = pictures()
    pred = target.clone().requires_grad_()
    error = photometric_error(pred, target)
    assert error.shape == (2, 1, 9, 13)
    assert error.abs().max() < 1e-12
    error.sum().backward()
    assert torch.isfinite(pred.grad).all()


def test_flat_pictures_have_the_closed_form():
    """No variance: SSIM = (2ab + c1) / (a^2 + b^2 + c1)."""
    a, b, c1 = 0.3, 0.5, 0.01**2
    error = photometric_error(torch.full((1, 3, 6, 8), a), torch.full((1, 3, 6, 8), b))
    ssim = (2 * a * b + c1) / (a * a + b * b + c1)
    expected = 0.85 * (1 - ssim) / 2 + 0.15 * (b - a)
    torch.testing.assert_close(error, torch.full((1, 1, 6, 8), expected))


def test_ssim_part_is_of_three_by_three_windows_with_population_variances():
    x, y = pictures(1), pictures(2)[1:]

    def mean(values: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(functional.pad(values, (1, 1, 1, 1), mode='reflect'), 3, 1)

    c1, c2 = 0.001, 0.009
    mx, my = mean(x), mean(y)
    numerator = (2 * mx * my + c1) * (2 * (mean(x * y) - mx * my) + c2)
    spread = mean(x * x) - mx**2 + mean(y * y) - my**2
    ssim = numerator / ((mx**2 + my**2 + c1) * (spread + c2))
    expected = ((1 - ssim) / 2).clamp(0, 1).mean(1, keepdim=True)
    found = photometric_error(x, y, ssim_weight=1.0, c1=c1, c2=c2)
    torch.testing.assert_close(found, expected)


def test_without_ssim_it_is_the_mean_absolute_difference_over_channels():
    x, y = pictures(1), pictures(2)[1:]
    expected = (x - y).abs().sum(1, keepdim=True) / 3
    torch.testing.assert_close(photometric_error(x, y, ssim_weight=0.0), expected)


def test_gradient_of_the_error():
    torch.manual_seed(1)
    target = torch.rand(1, 2, 4, 5).double()
    pred = torch.rand(1, 2, 4, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: photometric_error(p, target), pred)


def test_each_pixel_takes_its_best_source_that_sees_it():
    errors = torch.tensor([[0.1, 0.5, 0.2, 0.9], [0.4, 0.3, 0.1, 0.8]]).view(1, 2, 1, 4)
    valid = torch.tensor([[True, True, True, False], [True, True, False, False]]).view(1, 2, 1, 4)
    errors.requires_grad_()
    result = minimum_reprojection(errors, valid)
    assert result.error.flatten().tolist() == pytest.approx([0.1, 0.3, 0.2, 0.0])
    assert result.valid.flatten().tolist() == [True, True, True, False]
    result.error.sum().backward()
    expected = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 0]]).view(1, 2, 1, 4)
    assert torch.equal(errors.grad, expected)


def test_auto_mask_takes_the_gradient_from_what_does_not_move():
    errors = torch.tensor([0.2, 0.2, 0.2]).view(1, 1, 1, 3).requires_grad_()
    identity = torch.tensor([0.3, 0.1, 0.2]).view(1, 1, 1, 3).requires_grad_()
    valid = torch.ones(1, 1, 1, 3, dtype=torch.bool)
    result = minimum_reprojection(errors, valid, identity=identity)
    assert result.moved.flatten().tolist() == [True, False, False]  # the tie is not moved
    assert result.error.flatten().tolist() == pytest.approx([0.2, 0.1, 0.2])
    result.error.sum().backward()
    assert errors.grad.flatten().tolist() == [1, 0, 0]
    assert identity.grad is None


def test_a_standing_camera_is_masked_out_altogether():
    """Source and target are equal and so is the warp: every pixel ties, and ties do not move."""
    errors = torch.zeros(1, 2, 20, 30)
    valid = torch.ones_like(errors, dtype=torch.bool)
    still = minimum_reprojection(errors, valid, identity=errors.clone())
    assert not still.moved.any()


def test_explainability_costs_nothing_when_everything_is_explained():
    logits = torch.zeros(2, 2, 3, 4)
    assert explainability_loss(logits).item() == pytest.approx(math.log(2))
    logits[:, 1] = 50.0
    assert explainability_loss(logits).item() == pytest.approx(0.0, abs=1e-6)
    logits[:, 1] = -50.0
    assert explainability_loss(logits).item() == pytest.approx(50.0)


def test_consistent_flow_has_a_floor_and_a_share():
    """|f| = 100: the bound is 5 px; |f| = 10: it is 3 px."""
    forward = torch.zeros(1, 2, 1, 4)
    forward[0, 0, 0] = torch.tensor([100.0, 100.0, 10.0, 10.0])
    backward = torch.zeros(1, 2, 1, 4)
    backward[0, 0, 0] = -forward[0, 0, 0]
    backward[0, 1, 0] = torch.tensor([4.9, 5.1, 2.9, 3.1])
    assert consistent_flow(forward, backward).flatten().tolist() == [True, False, True, False]
    # At level 2 a pixel is 4 px wide: a gap of 2.9 is 11.6 px, bounds are 20 and 3 px.
    found = consistent_flow(forward, backward, pixel_size=4.0)
    assert found.flatten().tolist() == [True, False, False, False]


def test_consistent_flow_carries_no_gradient():
    forward = torch.ones(1, 2, 2, 3, requires_grad=True)
    assert not consistent_flow(forward, -forward).requires_grad


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match='not one shape'):
        photometric_error(torch.zeros(1, 3, 4, 5), torch.zeros(1, 3, 5, 4))
    with pytest.raises(ValueError, match=r'ssim_weight 1\.5'):
        photometric_error(torch.zeros(1, 3, 4, 5), torch.zeros(1, 3, 4, 5), ssim_weight=1.5)
    with pytest.raises(ValueError, match='expected one shape'):
        minimum_reprojection(torch.zeros(1, 2, 3, 4), torch.ones(1, 1, 3, 4, dtype=torch.bool))
