"""Pixel losses against closed forms."""

from __future__ import annotations

import pytest

torch = pytest.importorskip('torch')
from depth_node.training.losses.pixel import (  # noqa: E402
    berhu_loss,
    edge_l1_loss,
    keras_edge_loss,
    l1_loss,
    l2_loss,
    mare_loss,
)
from depth_node.training.objectives.base import depth_scores  # noqa: E402


def maps(*pictures: list[list[float]]) -> torch.Tensor:
    return torch.tensor(pictures, dtype=torch.float64)[:, None]


def all_valid(like: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(like, dtype=torch.bool)


def test_means_over_known_pixels():
    target = maps([[2.0, 4.0, 8.0], [1.0, 5.0, 0.0]])
    pred = target + maps([[1.0, -2.0, 4.0], [0.5, 0.0, 99.0]])
    valid = target > 0
    assert l1_loss(pred, target, valid).item() == pytest.approx(7.5 / 5)
    assert l2_loss(pred, target, valid).item() == pytest.approx((1 + 4 + 16 + 0.25) / 5)
    relative = (1 / 2 + 2 / 4 + 4 / 8 + 0.5 / 1) / 5
    assert mare_loss(pred, target, valid).item() == pytest.approx(relative)


def test_pictures_count_equally_whatever_their_number_of_pixels():
    target = torch.zeros(2, 1, 3, 4, dtype=torch.float64)
    pred = torch.cat((torch.full_like(target[:1], 1.0), torch.full_like(target[:1], 5.0)))
    valid = all_valid(target)
    valid[1, :, 1:] = False
    assert l1_loss(pred, target, valid).item() == pytest.approx((1 + 5) / 2)


def test_mare_is_the_score_abs_rel():
    generator = torch.Generator().manual_seed(1)
    pred, target = 1 + torch.rand(2, 2, 1, 5, 7, generator=generator)
    valid = target > 1.3
    scores = depth_scores(pred, target, valid)['abs_rel']
    assert mare_loss(pred, target, valid).item() == pytest.approx(scores.mean().item())


def test_berhu_is_linear_below_its_threshold_and_quadratic_above():
    residual = maps([[0.5, -2.0, 4.0, -10.0]])  # c = 0.2 * 10 = 2
    loss = berhu_loss(residual, torch.zeros_like(residual), all_valid(residual))
    expected = (0.5 + 2.0 + (16 + 4) / 4 + (100 + 4) / 4) / 4
    assert loss.item() == pytest.approx(expected)


def test_trap_15_berhu_threshold_is_the_batchs_masked_and_has_no_gradient():
    # The largest valid residual, 10, is in the other picture; 1000 and NaN are not valid.
    pred = maps([[1.0, 4.0, 1000.0]], [[10.0, float('nan'), 0.0]]).requires_grad_(True)
    target = torch.zeros_like(pred)
    valid = torch.tensor([[[[True, True, False]]], [[[True, False, True]]]])
    c = 2.0
    value = berhu_loss(pred, target, valid)
    first, second = (1.0 + (16 + c**2) / (2 * c)) / 2, ((100 + c**2) / (2 * c) + 0.0) / 2
    assert value.item() == pytest.approx((first + second) / 2)
    (gradient,) = torch.autograd.grad(value, pred)
    # of x^2 / (2 c) with c held: x / c; with c = 0.2 x it would be 2.6
    assert gradient[1, 0, 0, 0].item() == pytest.approx(10.0 / c / 4)
    assert gradient[0, 0, 0, :2].tolist() == pytest.approx([1 / 4, 4.0 / c / 4])
    assert (gradient[~valid] == 0).all()


def test_berhu_of_each_picture_by_itself():
    pred = maps([[1.0, 4.0]], [[10.0, 1.0]])
    target = torch.zeros_like(pred)
    each = [berhu_loss(part[None], target[:1], all_valid(part[None])) for part in pred]
    own = berhu_loss(pred, target, all_valid(pred), per_picture=True)
    assert own.item() == pytest.approx((each[0].item() + each[1].item()) / 2)
    assert own.item() != pytest.approx(berhu_loss(pred, target, all_valid(pred)).item())


def test_berhu_share_moves_the_threshold():
    residual = maps([[3.0, 10.0]])
    c = 5.0
    loss = berhu_loss(residual, torch.zeros_like(residual), all_valid(residual), share=0.5)
    assert loss.item() == pytest.approx((3.0 + (100 + c**2) / (2 * c)) / 2)


def test_edge_l1_sums_both_directions_over_all_pixels():
    # e rises 1 a column and 10 a row: 2 x 2 steps across, 1 x 3 steps down, 6 pixels
    error = maps([[0.0, 1.0, 2.0], [10.0, 11.0, 12.0]])
    loss = edge_l1_loss(error + 7.0, torch.full_like(error, 7.0), all_valid(error))
    assert loss.item() == pytest.approx((4 * 1.0 + 3 * 10.0) / 6)


def test_edge_l1_takes_no_step_over_a_hole():
    error = maps([[0.0, 50.0, 2.0, 5.0]])
    valid = torch.tensor([[[[True, False, True, True]]]])
    assert edge_l1_loss(error, torch.zeros_like(error), valid).item() == pytest.approx(3.0 / 3)


def test_trap_25_gradients_flip_sign_on_a_mirror():
    generator = torch.Generator().manual_seed(2)
    pred, target = torch.rand(2, 1, 1, 6, 9, generator=generator, dtype=torch.float64)
    across = target[..., 1:] - target[..., :-1]
    mirrored = target.flip(-1)[..., 1:] - target.flip(-1)[..., :-1]
    torch.testing.assert_close(mirrored, -across.flip(-1))
    # so a loss of gradients is the same for a pair that is mirrored together
    loss = edge_l1_loss(pred, target, all_valid(target))
    flipped = edge_l1_loss(pred.flip(-1), target.flip(-1), all_valid(target))
    assert flipped.item() == pytest.approx(loss.item())


def test_trap_17_keras_edge_term_is_smallest_for_a_flat_prediction():
    target = maps([[1.0, 1.5, 2.0], [2.0, 2.5, 3.0]])  # mean steps: 0.5 across, 1 down
    pred = maps([[0.0, 0.2, 0.2], [0.4, 0.4, 0.7]])
    across, down = (0.2 + 0.0 + 0.0 + 0.3) / 4, (0.4 + 0.2 + 0.5) / 3
    loss = keras_edge_loss(pred, target, all_valid(target)).item()
    expected = across * torch.tensor(0.5).exp() + down * torch.tensor(1.0).exp()
    assert loss == pytest.approx(expected.item())
    fit = keras_edge_loss(target, target, all_valid(target)).item()
    flat = keras_edge_loss(torch.ones_like(target), target, all_valid(target)).item()
    assert flat == 0.0 < loss < fit


@pytest.mark.parametrize('loss', [l1_loss, mare_loss, edge_l1_loss, keras_edge_loss])
def test_trap_17_masks_are_used(loss):
    generator = torch.Generator().manual_seed(4)
    pred, target = 1 + torch.rand(2, 1, 1, 6, 9, generator=generator, dtype=torch.float64)
    valid = all_valid(target)
    valid[..., 4:] = False
    half = loss(pred[..., :4], target[..., :4], valid[..., :4])
    assert loss(pred, target, valid).item() == pytest.approx(half.item())
