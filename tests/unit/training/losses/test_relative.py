"""The affine-invariant loss and its alignment, against numpy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip('torch')
from depth_node.training.losses.logarithmic import (  # noqa: E402
    gradient_loss,
    scale_invariant_loss,
)
from depth_node.training.losses.relative import affine_fit, affine_invariant_loss  # noqa: E402

BOTH = ['median', 'least_squares']


def maps(seed: int = 0, shape: tuple[int, ...] = (3, 1, 7, 10)) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    target = 0.1 + torch.rand(shape, generator=generator, dtype=torch.float64)
    pred = target + 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    valid = torch.rand(shape, generator=generator) > 0.3
    return pred, target, valid


def test_the_fit_is_that_of_numpy():
    pred, target, valid = maps()
    valid[1] = False
    scale, shift = affine_fit(pred, torch.where(valid, target, torch.nan), valid)
    for index in (0, 2):
        expected = np.polyfit(pred[index][valid[index]], target[index][valid[index]], 1)
        found = [scale[index].item(), shift[index].item()]
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert (scale[1].item(), shift[1].item()) == (0.0, 0.0)


def test_a_positive_fit_does_not_swap_near_and_far():
    pred, target, valid = maps()
    same = affine_fit(pred, target, valid, positive=True)
    for found, expected in zip(same, affine_fit(pred, target, valid), strict=True):
        assert torch.equal(found, expected)
    scale, shift = affine_fit(-pred, target, valid, positive=True)
    assert (scale == 0).all()
    assert shift[0].item() == pytest.approx(target[0][valid[0]].mean().item())


def test_the_fit_keeps_its_digits_far_from_zero():
    pred, target, valid = maps()
    pred, target = (pred + 1e3).float(), target.float()
    scale, _ = affine_fit(pred, target, valid)
    exact, _ = affine_fit(pred.double(), target.double(), valid)
    np.testing.assert_allclose(scale.flatten(), exact.flatten(), rtol=1e-3)


def test_a_constant_prediction_is_fitted_by_the_mean():
    _, target, valid = maps()
    scale, shift = affine_fit(torch.full_like(target, 4.0), target, valid)
    assert (scale == 0).all()
    assert shift[0].item() == pytest.approx(target[0][valid[0]].mean().item())


def lower_median(values: np.ndarray) -> float:
    return float(np.sort(values)[(len(values) - 1) // 2])


def robust(values: np.ndarray) -> np.ndarray:
    centred = values - lower_median(values)
    return centred / np.abs(centred).mean()


def differences(residual: np.ndarray, valid: np.ndarray, scales: int) -> float:
    total = 0.0
    for level in range(scales):
        r, ok = residual[:: 2**level, :: 2**level], valid[:: 2**level, :: 2**level]
        height, width = r.shape
        change = 0.0
        for v in range(height):
            for u in range(width):
                if u + 1 < width and ok[v, u] and ok[v, u + 1]:
                    change += abs(r[v, u + 1] - r[v, u])
                if v + 1 < height and ok[v, u] and ok[v + 1, u]:
                    change += abs(r[v + 1, u] - r[v, u])
        total += change / max(ok.sum(), 1)
    return total


@pytest.mark.parametrize(
    ('alignment', 'trim', 'scales'),
    [('median', 0.2, 4), ('median', 0.0, 1), ('median', 0.5, 3), ('least_squares', 0.2, 3)],
)
def test_the_loss_is_its_formula(alignment, trim, scales):
    pred, target, valid = maps(1)
    expected = 0.0
    rows = zip(pred[:, 0].numpy(), target[:, 0].numpy(), valid[:, 0].numpy(), strict=True)
    for p, t, ok in rows:
        known = robust(t[ok])
        if alignment == 'median':
            error = robust(p[ok]) - known
            count = len(error)
            kept = np.sort(np.abs(error))[: int(np.ceil((1 - trim) * count))]
            data = kept.sum() / (2 * count)
        else:
            scale, shift = np.polyfit(p[ok], known, 1)
            error = scale * p[ok] + shift - known
            data = (error**2).sum() / (2 * len(error))
        residual = np.zeros(t.shape)
        residual[ok] = error
        expected += (data + 0.5 * differences(residual, ok, scales)) / 3
    value = affine_invariant_loss(
        pred, target, valid, alignment=alignment, trim=trim, scales=scales
    )
    assert value.item() == pytest.approx(expected)


@pytest.mark.parametrize('alignment', BOTH)
def test_scale_and_shift_of_either_do_not_matter(alignment):
    pred, target, valid = maps()
    value = affine_invariant_loss(pred, target, valid, alignment=alignment).item()
    moved = affine_invariant_loss(3 * pred + 7, 0.2 * target + 1, valid, alignment=alignment)
    assert moved.item() == pytest.approx(value)
    assert value > 0.05


def test_the_gradient_term_sums_two_absolute_values():
    # A residual that rises to the right as fast as it falls downwards.
    v, u = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing='ij')
    target = torch.rand(1, 1, 6, 8, generator=torch.Generator().manual_seed(2)).double()
    pred = target + 0.1 * (u - v)
    valid = torch.ones_like(target, dtype=torch.bool)

    def term(p: torch.Tensor) -> float:
        with_it, without = (
            affine_invariant_loss(p, target, valid, gradient_weight=w, scales=1).item()
            for w in (1.0, 0.0)
        )
        return with_it - without

    assert term(pred) > 0.1


@pytest.mark.parametrize('alignment', BOTH)
def test_gradients_match_finite_differences(alignment):
    pred, target, valid = maps(3, (2, 1, 4, 5))
    pred.requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda p: affine_invariant_loss(p, target, valid, alignment=alignment, scales=2), (pred,)
    )


@pytest.mark.parametrize('alignment', BOTH)
def test_a_perfect_fit_is_zero_with_a_finite_gradient(alignment):
    _, target, valid = maps()
    pred = (2 * target + 3).requires_grad_(True)
    value = affine_invariant_loss(pred, target, valid, alignment=alignment)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert torch.isfinite(pred.grad).all()


@pytest.mark.parametrize('alignment', BOTH)
def test_holes_change_nothing_and_emptiness_is_zero(alignment):
    pred, target, valid = maps()
    clean = affine_invariant_loss(pred, target, valid, alignment=alignment).item()
    poisoned = torch.where(valid, pred, torch.nan).requires_grad_(True)
    value = affine_invariant_loss(
        poisoned, torch.where(valid, target, torch.inf), valid, alignment=alignment
    )
    value.backward()
    assert value.item() == pytest.approx(clean)
    assert torch.isfinite(poisoned.grad).all()
    assert (poisoned.grad[~valid] == 0).all()
    pred.requires_grad_(True)
    nothing = affine_invariant_loss(
        pred, target, torch.zeros_like(valid), alignment=alignment
    )
    nothing.backward()
    assert nothing.item() == 0.0
    assert (pred.grad == 0).all()


@pytest.mark.parametrize('alignment', BOTH)
def test_pictures_without_shape_or_pixels_do_not_count(alignment):
    pred, target, valid = maps()
    alone = affine_invariant_loss(pred[:1], target[:1], valid[:1], alignment=alignment).item()
    target[1] = 0.4
    valid[2] = False
    value = affine_invariant_loss(pred, target, valid, alignment=alignment)
    assert value.item() == pytest.approx(alone)


@pytest.mark.parametrize('alignment', BOTH)
def test_a_constant_prediction_has_a_finite_loss_and_gradient(alignment):
    _, target, valid = maps()
    pred = torch.full_like(target, 2.0).requires_grad_(True)
    value = affine_invariant_loss(pred, target, valid, alignment=alignment)
    value.backward()
    assert 0.1 < value.item() < 10
    assert torch.isfinite(pred.grad).all()


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match="alignment 'mean'"):
        affine_invariant_loss(*maps(), alignment='mean')
    with pytest.raises(ValueError, match=r'trim 1\.0'):
        affine_invariant_loss(*maps(), trim=1.0)


# --- what MegaDepth takes from the logarithmic losses


def test_trap_19_megadepth_sums_two_absolute_slopes():
    # R rises by 0.1 to the right and falls by 0.1 downwards: |dx + dy| would be 0.
    v, u = torch.meshgrid(torch.arange(8.0), torch.arange(16.0), indexing='ij')
    ratio = 0.1 * (u - v).double()[None, None]
    target = torch.full_like(ratio, 3.0)
    valid = torch.ones_like(ratio, dtype=torch.bool)
    value = gradient_loss(target * ratio.exp(), target, valid, scales=1)
    assert value.item() == pytest.approx(0.2)


def test_trap_19_megadepth_data_term_has_lambda_one():
    _, target, valid = maps()
    ratio = torch.randn(3, 1, 7, 10, generator=torch.Generator().manual_seed(1)).double()
    value = scale_invariant_loss(target * ratio.exp(), target, valid, eigen_lambda=1.0)
    expected = np.mean([r[ok].numpy().var() for r, ok in zip(ratio, valid, strict=True)])
    assert value.item() == pytest.approx(expected)
    doubled = scale_invariant_loss(5 * target * ratio.exp(), target, valid, eigen_lambda=1.0)
    assert doubled.item() == pytest.approx(expected)
