"""Ranking losses against their formulas, their signs, and finite differences."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip('torch')
from depth_node.training.losses.ranking import (  # noqa: E402
    chen_ranking_loss,
    megadepth_ordinal_loss,
    pick,
    places_of,
    ratio_relation,
    sample_pixels,
    xian_online_ranking_loss,
    xian_ranking_loss,
)

ON_PAIRS = [chen_ranking_loss, xian_ranking_loss, megadepth_ordinal_loss]


def pairs(seed: int = 0, shape: tuple[int, int] = (3, 40)) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    z_a = torch.randn(shape, generator=generator, dtype=torch.float64)
    z_b = torch.randn(shape, generator=generator, dtype=torch.float64)
    relation = torch.randint(-1, 2, shape, generator=generator).to(torch.int8)
    valid = torch.rand(shape, generator=generator) > 0.3
    return z_a, z_b, relation, valid


def one(a: float, b: float, relation: int) -> tuple[torch.Tensor, ...]:
    return (
        torch.tensor([[a]], dtype=torch.float64, requires_grad=True),
        torch.tensor([[b]], dtype=torch.float64),
        torch.tensor([[relation]], dtype=torch.int8),
        torch.tensor([[True]]),
    )


def chen_in_words(a: float, b: float, relation: int) -> float:
    if relation == 0:
        return (a - b) ** 2
    return math.log(1 + math.exp(-a + b if relation == 1 else a - b))


@pytest.mark.parametrize('relation', [1, -1, 0])
def test_chen_is_its_formula(relation):
    assert chen_ranking_loss(*one(0.7, 1.9, relation)).item() == pytest.approx(
        chen_in_words(0.7, 1.9, relation)
    )


def test_chen_is_the_mean_over_pictures_of_their_pairs():
    z_a, z_b, relation, valid = pairs()
    valid[0, 5:] = False  # few pairs weigh as much as many
    valid[1] = False  # no pair does not count
    rows = [
        [
            chen_in_words(z_a[i, k].item(), z_b[i, k].item(), int(relation[i, k]))
            for k in range(40)
            if valid[i, k]
        ]
        for i in (0, 2)
    ]
    expected = sum(sum(row) / len(row) for row in rows) / 2
    assert chen_ranking_loss(z_a, z_b, relation, valid).item() == pytest.approx(expected)


@pytest.mark.parametrize('loss', ON_PAIRS)
@pytest.mark.parametrize('relation', [1, -1])
def test_trap_18_plus_one_raises_the_first(loss, relation):
    z_a, *rest = one(0.2, 0.3, relation)
    (slope,) = torch.autograd.grad(loss(z_a, *rest), z_a)
    assert -slope.item() * relation > 0  # descent moves a in the relation's direction


def test_great_differences_stay_finite():
    z_a, z_b, relation, valid = one(-2000.0, 2000.0, 1)
    loss = chen_ranking_loss(z_a, z_b, relation, valid)
    loss.backward()
    assert loss.item() == pytest.approx(4000.0)
    assert z_a.grad.item() == pytest.approx(-1.0)


def test_xian_drops_the_easiest_quarter_of_the_unequal():
    # unequal: penalties rise with -difference; equal: 4 = (2 - 0)^2
    z_a = torch.tensor([[3.0, -1.0, 2.0, 0.0, 1.0, 2.0, -2.0, -3.0, 0.5]], dtype=torch.float64)
    z_b = torch.zeros_like(z_a)
    relation = torch.tensor([[1, 1, 1, 1, 1, 0, 1, 1, 1]], dtype=torch.int8)
    valid = torch.ones_like(z_a, dtype=torch.bool)
    valid[0, 8] = False
    # seven unequal pairs: a quarter is 1.75, rounded down 1: that of 3.0
    kept = [math.log1p(math.exp(-z)) for z in (-1, 2, 0, 1, -2, -3)] + [4.0]
    assert xian_ranking_loss(z_a, z_b, relation, valid).item() == pytest.approx(sum(kept) / 8)
    kept = [math.log1p(math.exp(-z)) for z in (-1, 0, -2, -3)] + [4.0]  # of 0.5: 3, 2, 1
    value = xian_ranking_loss(z_a, z_b, relation, valid, drop=0.5).item()
    assert value == pytest.approx(sum(kept) / 8)
    undropped = xian_ranking_loss(z_a, z_b, relation, valid, drop=0.0)
    assert undropped.item() == pytest.approx(chen_ranking_loss(z_a, z_b, relation, valid).item())


def test_xian_drops_in_each_picture_for_itself():
    z_a, z_b, relation, valid = pairs(4)
    both = xian_ranking_loss(z_a[:2], z_b[:2], relation[:2], valid[:2])
    alone = [
        xian_ranking_loss(z_a[i : i + 1], z_b[i : i + 1], relation[i : i + 1], valid[i : i + 1])
        for i in range(2)
    ]
    assert both.item() == pytest.approx(sum(v.item() for v in alone) / 2)


@pytest.mark.parametrize('tau', [0.25, 0.1, 2.0])
def test_megadepth_is_its_formula_on_both_sides_and_continuous(tau):
    constant = math.log(1 + math.exp(tau)) - math.log(1 + math.exp(math.sqrt(tau)))
    for wrong in (-3.0, 0.0, tau / 2):
        loss = megadepth_ordinal_loss(*one(1.0, 1.0 + wrong, 1), tau=tau)
        assert loss.item() == pytest.approx(math.log(1 + math.exp(wrong)))
    for wrong in (tau * 1.5, 4.0, 100.0):
        loss = megadepth_ordinal_loss(*one(1.0 + wrong, 1.0, -1), tau=tau)
        assert loss.item() == pytest.approx(
            math.log(1 + math.exp(math.sqrt(wrong))) + constant
        )
    below = megadepth_ordinal_loss(*one(0.0, tau - 1e-9, 1), tau=tau).item()
    above = megadepth_ordinal_loss(*one(0.0, tau + 1e-9, 1), tau=tau).item()
    assert above == pytest.approx(below, abs=1e-8)


def test_megadepth_has_no_equal_pairs():
    z_a, z_b, relation, valid = pairs()
    expected = megadepth_ordinal_loss(z_a, z_b, relation, valid & (relation != 0))
    assert megadepth_ordinal_loss(z_a, z_b, relation, valid).item() == expected.item()


@pytest.mark.parametrize('loss', ON_PAIRS)
def test_gradients_match_finite_differences(loss):
    z_a, z_b, relation, valid = pairs(2, (2, 9))
    z_a.requires_grad_(True)
    z_b.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, relation, valid), (z_a, z_b))


@pytest.mark.parametrize('loss', ON_PAIRS)
def test_padding_changes_nothing(loss):
    z_a, z_b, relation, valid = pairs(3)
    clean = loss(z_a, z_b, relation, valid).item()
    z_a = torch.where(valid, z_a, torch.nan).requires_grad_(True)
    z_b = torch.where(valid, z_b, torch.inf).requires_grad_(True)
    value = loss(z_a, z_b, torch.where(valid, relation, 1).to(torch.int8), valid)
    value.backward()
    assert value.item() == pytest.approx(clean)
    for z in (z_a, z_b):
        assert torch.isfinite(z.grad).all()
        assert (z.grad[~valid] == 0).all()


@pytest.mark.parametrize('loss', ON_PAIRS)
def test_no_pair_is_zero_with_a_zero_gradient(loss):
    z_a, z_b, relation, valid = pairs()
    z_a.requires_grad_(True)
    value = loss(z_a, z_b, relation, torch.zeros_like(valid))
    value.backward()
    assert value.item() == 0.0
    assert (z_a.grad == 0).all()


@pytest.mark.parametrize('loss', ON_PAIRS)
def test_a_perfect_order_and_a_tie_have_finite_gradients(loss):
    _, _, relation, valid = pairs()
    for gap in (30.0, 0.0):
        z_a = (gap * relation).double().requires_grad_(True)
        value = loss(z_a, torch.zeros_like(z_a), relation, valid)
        value.backward()
        assert torch.isfinite(z_a.grad).all()
        if gap:
            assert value.item() < 1e-9


@pytest.mark.parametrize('loss', ON_PAIRS)
def test_what_does_not_fit_is_refused(loss):
    z_a, z_b, relation, valid = pairs()
    with pytest.raises(ValueError, match='expected one shape'):
        loss(z_a, z_b[:, :1], relation, valid)
    with pytest.raises(ValueError, match='expected bool'):
        loss(z_a, z_b, relation, valid.int())


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match=r'drop 1\.0'):
        xian_ranking_loss(*pairs(), drop=1.0)
    with pytest.raises(ValueError, match='tau 0'):
        megadepth_ordinal_loss(*pairs(), tau=0)


# --- drawing pairs


def test_pixels_are_looked_up_in_row_and_column():
    values = torch.arange(2 * 5 * 7, dtype=torch.float64).view(2, 1, 5, 7)
    uv = torch.tensor([[[6.0, 4.0], [0.4, 1.6]], [[3.0, 0.0], [2.51, 3.0]]])
    expected = [[34.0, 14.0], [35 + 3.0, 35 + 24.0]]  # v * 7 + u
    assert pick(values, places_of(uv, 7)).tolist() == expected


def test_drawn_pixels_are_known_and_spread_evenly():
    known = torch.zeros(3, 1, 6, 9, dtype=torch.bool)
    known[0, 0, 2, 3:7] = True
    known[2, 0] = True
    places, seen = sample_pixels(known, 4000, torch.Generator().manual_seed(1))
    assert seen.tolist() == [True, False, True]
    assert known[0].flatten()[places[0]].all()
    assert (places[1] == 0).all()
    counts = torch.bincount(places[0], minlength=54)[21:25]
    assert (counts.sum(), counts.min() > 900) == (4000, True)
    assert len(places[2].unique()) == 54


def test_draws_repeat_with_the_generator():
    known = torch.rand(2, 1, 8, 9) > 0.5
    first = sample_pixels(known, 50, torch.Generator().manual_seed(3))[0]
    again = sample_pixels(known, 50, torch.Generator().manual_seed(3))[0]
    other = sample_pixels(known, 50, torch.Generator().manual_seed(4))[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_relations_by_ratio():
    g_a = torch.tensor([1.03, 1.0, 1.01, 1.0, 0.0, 0.0, 0.5])
    g_b = torch.tensor([1.0, 1.03, 1.0, 1.01, 0.0, 0.5, 0.0])
    assert ratio_relation(g_a, g_b, 0.02).tolist() == [1, -1, 0, 0, 0, -1, 1]
    assert ratio_relation(g_a, g_b, 0.04).tolist()[:2] == [0, 0]


def test_online_loss_is_the_loss_of_the_pairs_it_draws():
    generator = torch.Generator().manual_seed(5)
    target = torch.rand(2, 1, 6, 8, generator=generator, dtype=torch.float64) + 0.1
    z = torch.randn(2, 1, 6, 8, generator=generator, dtype=torch.float64)
    valid = torch.rand(2, 1, 6, 8, generator=generator) > 0.2
    value = xian_online_ranking_loss(
        z, target, valid, pairs=30, sigma=0.3, generator=torch.Generator().manual_seed(9)
    )
    again = torch.Generator().manual_seed(9)
    a, _ = sample_pixels(valid, 30, again)
    b, _ = sample_pixels(valid, 30, again)
    relation = ratio_relation(pick(target, a), pick(target, b), 0.3)
    assert set(relation.flatten().tolist()) == {-1, 0, 1}
    expected = xian_ranking_loss(pick(z, a), pick(z, b), relation, torch.ones_like(a).bool())
    assert value.item() == pytest.approx(expected.item())


def test_online_loss_ranks_a_monotone_picture_best():
    target = torch.rand(1, 1, 20, 30, generator=torch.Generator().manual_seed(0)) + 0.1
    valid = torch.ones_like(target, dtype=torch.bool)

    def loss(z: torch.Tensor) -> float:
        generator = torch.Generator().manual_seed(1)
        return xian_online_ranking_loss(z, target, valid, generator=generator).item()

    assert loss(10 * target.log()) < 0.2 < loss(0 * target) < loss(-10 * target.log())


def test_online_gradients_finite_differences_holes_and_emptiness():
    z = torch.randn(2, 1, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.rand(2, 1, 4, 5, dtype=torch.float64) + 0.1
    valid = torch.ones_like(target, dtype=torch.bool)
    valid[0, 0, 1] = False
    target[~valid] = torch.nan
    z = torch.where(valid, z, torch.nan).requires_grad_(True)

    def loss(z: torch.Tensor, valid: torch.Tensor = valid) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        return xian_online_ranking_loss(z, target, valid, pairs=40, generator=generator)

    (slope,) = torch.autograd.grad(loss(z), z)
    assert torch.isfinite(slope).all()
    assert (slope[~valid] == 0).all()
    full = torch.where(valid, z.detach(), 0.0).requires_grad_(True)
    assert torch.autograd.gradcheck(loss, (full,))
    nothing = loss(full, torch.zeros_like(valid))
    (slope,) = torch.autograd.grad(nothing, full)
    assert nothing.item() == 0.0
    assert (slope == 0).all()
    with pytest.raises(ValueError, match='expected one shape'):
        xian_online_ranking_loss(z, target[..., :3], valid)
