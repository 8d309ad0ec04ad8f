"""What every loss that a configuration may name must keep to."""

from __future__ import annotations

import pytest

torch = pytest.importorskip('torch')
from depth_node.training.losses import LOSSES, weighted_losses  # noqa: E402

SHAPE = (2, 1, 13, 17)  # the SSIM window of 11 px fits
# A smoothness term: smallest for a flat prediction (test_pixel.py says so).
NOT_SMALLEST_AT_A_FIT = ('keras_edge',)


@pytest.fixture(params=sorted(LOSSES))
def loss(request):
    (term,) = weighted_losses({request.param: 1.0})
    return term


def sample(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> tuple[torch.Tensor, ...]:
    """Positive pred and target, float64, and where they are valid."""
    generator = torch.Generator().manual_seed(seed)
    target = 0.5 + 4 * torch.rand(shape, generator=generator, dtype=torch.float64)
    pred = target * torch.exp(0.3 * torch.randn(shape, generator=generator, dtype=torch.float64))
    valid = torch.rand(shape, generator=generator) > 0.3
    return pred, target, valid


def test_it_is_a_positive_number_with_a_gradient(loss):
    pred, target, valid = sample()
    pred.requires_grad_(True)
    value = loss.function(pred, target, valid)
    assert value.shape == ()
    assert value.item() > 0
    (gradient,) = torch.autograd.grad(value, pred)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0


def test_nothing_valid_is_zero_with_a_zero_gradient(loss):
    pred, target, valid = sample()
    pred.requires_grad_(True)
    value = loss.function(pred, torch.full_like(target, torch.nan), torch.zeros_like(valid))
    (gradient,) = torch.autograd.grad(value, pred)
    assert value.item() == 0.0
    assert (gradient == 0).all()


@pytest.mark.parametrize('poison', [float('nan'), 0.0, float('inf'), -1.0])
def test_what_is_not_valid_changes_nothing(loss, poison):
    pred, target, valid = sample()
    clean = loss.function(pred, target, valid).item()
    pred = torch.where(valid, pred, poison).requires_grad_(True)
    value = loss.function(pred, torch.where(valid, target, poison), valid)
    (gradient,) = torch.autograd.grad(value, pred)
    assert value.item() == pytest.approx(clean, rel=1e-12)
    assert torch.isfinite(gradient).all()
    assert (gradient[~valid] == 0).all()


def test_a_perfect_fit_has_a_finite_gradient_and_costs_least(loss):
    pred, target, valid = sample()
    fit = target.clone().requires_grad_(True)
    value = loss.function(fit, target, valid)
    (gradient,) = torch.autograd.grad(value, fit)
    assert torch.isfinite(gradient).all()
    if loss.name in NOT_SMALLEST_AT_A_FIT:
        return
    assert 0 <= value.item() <= 1e-3
    for share in (0.01, 0.1, 1.0):
        worse = loss.function(target + share * (pred - target), target, valid)
        assert worse.item() > value.item()


def test_its_gradient_matches_finite_differences(loss):
    # The last row is held still and holds the largest residual: berHu takes the threshold that
    # it sets for a constant, finite differences do not.
    pred, target, valid = sample(3)
    rows, still = pred[:, :, :-1], pred[:, :, -1:] + 20.0
    valid[:, :, -1] = True

    def of_rows(rows: torch.Tensor) -> torch.Tensor:
        return loss.function(torch.cat((rows, still), 2), target, valid)

    assert torch.autograd.gradcheck(of_rows, (rows.requires_grad_(True),), fast_mode=False)


def test_two_equal_pictures_cost_what_one_does(loss):
    pred, target, valid = (part[:1] for part in sample(5))
    one = loss.function(pred, target, valid).item()
    two = loss.function(
        pred.expand(2, -1, -1, -1), target.expand(2, -1, -1, -1), valid.expand(2, -1, -1, -1)
    )
    assert two.item() == pytest.approx(one, rel=1e-12)


def test_a_picture_without_valid_pixels_does_not_count(loss):
    pred, target, valid = sample(6)
    one = loss.function(pred[:1], target[:1], valid[:1]).item()
    valid[1] = False
    assert loss.function(pred, target, valid).item() == pytest.approx(one, rel=1e-12)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_full(loss, dtype):
    pred, target, valid = sample(7)
    # 300 m: its square is beyond the largest number of half precision; and so is, at any
    # precision, the exponential that keras_edge takes of a map's mean step
    unit = 1.0 if loss.name == 'keras_edge' else 60.0
    pred, target = (unit * pred).to(dtype), (unit * target).to(dtype)
    value = loss.function(pred, target, valid)
    with torch.autocast('cpu', torch.bfloat16):
        mixed = loss.function(pred.float(), target.float(), valid)
    full = loss.function(pred.float(), target.float(), valid)
    assert full.dtype == value.dtype == mixed.dtype == torch.float32
    assert torch.isfinite(full)
    assert value.item() == pytest.approx(full.item(), rel=1e-6)
    assert mixed.item() == pytest.approx(full.item(), rel=1e-6)


def test_other_shapes_are_refused_by_name_of_both(loss):
    pred, target, valid = sample()
    for wrong in (
        (pred[..., :-1], target, valid),
        (pred, target[:, :, :1], valid),
        (pred, target[:1], valid[:1]),
    ):
        with pytest.raises(ValueError, match='expected') as error:
            loss.function(*wrong)
        for part in wrong[:2]:
            assert str(tuple(part.shape)) in str(error.value)


def test_valid_must_be_bool(loss):
    pred, target, valid = sample()
    with pytest.raises(ValueError, match='bool'):
        loss.function(pred, target, valid.double())
