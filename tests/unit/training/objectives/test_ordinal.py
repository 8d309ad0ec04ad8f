"""Training without metres: what is compared with what, in which direction."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch')
from depth_node.training.datasets import open_dataset  # noqa: E402
from depth_node.training.loading import FrameTensors, collate_frames  # noqa: E402
from depth_node.training.losses.ranking import (  # noqa: E402
    chen_ranking_loss,
    megadepth_ordinal_loss,
)
from depth_node.training.networks.base import DepthNetwork  # noqa: E402
from depth_node.training.objectives import build_objective  # noqa: E402
from depth_node.training.objectives.ordinal import (  # noqa: E402
    Ordinal,
    euclidean_pictures,
    whdr,
)
from torch import nn  # noqa: E402

HEIGHT, WIDTH = 12, 17


class Given(DepthNetwork):
    """Returns a map that the test chose; `raw` is its logarithm."""

    def __init__(self, prediction: torch.Tensor, kind: str) -> None:
        super().__init__()
        self.size_hw = self.output_hw = tuple(prediction.shape[-2:])
        self.output_kind = kind
        self.depth_range_m = (1e-6, 1e6)
        self.raw = nn.Parameter(prediction.log())

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.outputs(batch)['prediction']

    def outputs(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {'prediction': self.raw.exp(), 'raw': self.raw}


def scenes(count: int = 3, seed: int = 0) -> torch.Tensor:
    """Depth of a few pictures; no two pixels have the same."""
    generator = torch.Generator().manual_seed(seed)
    return 0.5 + 5 * torch.rand(count, 1, HEIGHT, WIDTH, generator=generator)


def batch_of(depth: torch.Tensor, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    rgb = torch.zeros(len(depth), 3, *depth.shape[-2:], dtype=torch.uint8)
    return {'rgb': rgb, 'depth': depth, 'K': torch.eye(3).expand(len(depth), 3, 3), **more}


def with_pairs(depth: torch.Tensor, count: int = 30, seed: int = 0) -> dict[str, torch.Tensor]:
    """True relations between random pixels; the last third of each picture is padding."""
    generator = torch.Generator().manual_seed(seed)
    limit = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    uv = (torch.rand(len(depth), count, 4, generator=generator) * limit).floor()
    relation = torch.zeros(len(depth), count, dtype=torch.int8)
    for i in range(len(depth)):
        for k, (ua, va, ub, vb) in enumerate(uv[i].long().tolist()):
            relation[i, k] = int(torch.sign(depth[i, 0, va, ua] - depth[i, 0, vb, ub]))
    valid = (torch.arange(count) < 2 * count // 3).expand(len(depth), count)
    nothing = torch.zeros_like(depth)
    return batch_of(nothing, pairs=uv, relation=relation, pair_valid=valid)


def slope_of(objective: Ordinal, network: Given, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    (slope,) = torch.autograd.grad(objective.losses(network, batch)['loss'], network.raw)
    return slope


# --- pairs


def test_pairs_are_ranked_by_chens_loss():
    depth = scenes()
    batch = with_pairs(depth)
    network = Given(scenes(seed=1), 'rel_depth')
    u_a, v_a, u_b, v_b = batch['pairs'].long().unbind(-1)
    rows = torch.arange(3)[:, None]
    z = network.raw[:, 0]
    expected = chen_ranking_loss(
        z[rows, v_a, u_a], z[rows, v_b, u_b], batch['relation'], batch['pair_valid']
    )
    assert Ordinal().losses(network, batch)['loss'].item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ('kind', 'right'),
    [
        ('rel_depth', lambda d: 3 * d**2),
        ('rel_inv_depth', lambda d: 3 / d),
        ('depth', lambda d: 2 * d),
        ('inv_depth', lambda d: 2 / d),
        ('log_depth', lambda d: 1 + d.log() - (d.log().min() - 1)),
    ],
)
def test_trap_21_the_kind_decides_which_way_is_farther(kind, right):
    depth = scenes()
    batch = with_pairs(depth)
    objective = Ordinal()
    prediction = right(depth)
    assert objective.scores(Given(prediction, kind), batch)['whdr'].tolist() == [0.0] * 3
    wrong = objective.scores(Given(1 / prediction, kind), batch)['whdr']
    assert (wrong > 0.9).all()  # a pair of one pixel is equal, and is not asked for
    good, bad = (
        objective.losses(Given(p, kind), batch)['loss'] for p in (prediction, 1 / prediction)
    )
    assert good < bad


def test_trap_18_from_the_file_to_the_gradient(tmp_path):
    spec = importlib.util.spec_from_file_location(
        'write_diw', Path(__file__).parents[1] / 'datasets/write_diw.py'
    )
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    truth = writer.write(tmp_path, frames=6, size_hw=(30, 44))['train']
    tensors = FrameTensors(open_dataset('diw', tmp_path, 'train'), (30, 44))
    batch = collate_frames([tensors[i] for i in range(6)])
    depth = torch.from_numpy(np.stack([sample['depth'] for sample in truth]))[:, None]
    objective = Ordinal()
    for kind, good in (('rel_depth', depth), ('rel_inv_depth', 1 / depth)):
        assert objective.scores(Given(good, kind), batch)['whdr'].tolist() == [0.0] * 6
        assert objective.scores(Given(1 / good, kind), batch)['whdr'].tolist() == [1.0] * 6
        # From a flat picture, descent makes the farther pixel farther.
        flat = Given(torch.ones_like(depth), kind)
        step = -slope_of(objective, flat, batch)
        for i, sample in enumerate(truth):
            (ua, va), (ub, vb) = sample['a'], sample['b']
            outwards = sample['relation'] * (1 if kind == 'rel_depth' else -1)
            assert step[i, 0, va, ua] * outwards > 0
            assert step[i, 0, vb, ub] * outwards < 0
            assert (step[i] != 0).sum() == 2


def test_a_smaller_map_is_brought_to_the_pictures_size_first():
    depth = torch.linspace(1, 9, WIDTH).expand(1, 1, HEIGHT, WIDTH)
    batch = with_pairs(depth)
    small = torch.linspace(1, 9, 5).expand(1, 1, 4, 5)
    assert Ordinal().scores(Given(small, 'rel_depth'), batch)['whdr'].item() < 0.2


def test_whdr_counts_wrong_unequal_pairs_and_ties_as_wrong():
    z_a = torch.tensor([[1.0, 1.0, 2.0, 5.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    z_b = torch.tensor([[2.0, 1.0, 1.0, 5.0, 9.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    relation = torch.tensor([[1, 1, 1, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.int8)
    valid = torch.tensor([[True, True, True, True, False]]).expand(2, 5)
    score = whdr(z_a, z_b, relation, valid)
    assert score[0].item() == pytest.approx(2 / 3)
    assert math.isnan(score[1].item())


def test_pictures_without_pairs_are_zero_and_unscored():
    batch = with_pairs(scenes())
    batch['pair_valid'] = torch.zeros_like(batch['pair_valid'])
    network = Given(scenes(seed=1), 'rel_depth')
    loss = Ordinal().losses(network, batch)['loss']
    loss.backward()
    assert loss.item() == 0.0
    assert (network.raw.grad == 0).all()
    assert Ordinal().scores(network, batch)['whdr'].isnan().all()


# --- online


@pytest.mark.parametrize('truth', ['depth', 'rel_inv_depth'])
@pytest.mark.parametrize('kind', ['rel_depth', 'rel_inv_depth', 'depth'])
def test_online_ranks_in_the_direction_of_the_kind(kind, truth):
    depth = scenes()
    holes = torch.rand(depth.shape, generator=torch.Generator().manual_seed(3)) < 0.2
    if truth == 'depth':
        batch = batch_of(torch.where(holes, 0.0, depth))
    else:
        batch = batch_of(
            torch.zeros_like(depth), rel_inv_depth=torch.where(holes, math.nan, 0.3 / depth)
        )
    good = depth**20 if kind != 'rel_inv_depth' else depth**-20
    objective = Ordinal(mode='online', pairs=500)
    right, wrong = Given(good, kind), Given(1 / good, kind)
    assert objective.losses(right, batch)['loss'].item() < 0.3
    assert objective.losses(wrong, batch)['loss'].item() > 3
    assert objective.scores(right, batch)['whdr'].tolist() == [0.0] * 3
    assert objective.scores(wrong, batch)['whdr'].tolist() == [1.0] * 3
    slope = slope_of(objective, right, batch)
    assert torch.isfinite(slope).all()
    assert (slope[holes] == 0).all()


def test_online_draws_repeat_with_the_seed_and_change_from_step_to_step():
    batch = batch_of(scenes())
    network = Given(scenes(seed=1), 'rel_depth')

    def curve(seed: int) -> list[float]:
        objective = Ordinal(mode='online', pairs=40, seed=seed)
        return [objective.losses(network, batch)['loss'].item() for _ in range(3)]

    assert curve(1) == curve(1)
    assert len({*curve(1), *curve(2)}) == 6


def test_online_scores_do_not_depend_on_what_was_drawn_before():
    batch = batch_of(scenes())
    network = Given(scenes(seed=1), 'rel_depth')
    objective = Ordinal(mode='online', pairs=40)
    first = objective.scores(network, batch)['whdr']
    objective.losses(network, batch)
    assert torch.equal(first, objective.scores(network, batch)['whdr'])


# --- MegaDepth


def test_thirty_percent_of_what_is_not_sky_make_a_euclidean_picture():
    known = torch.zeros(5, 1, 10, 10, dtype=torch.bool)
    known[0, 0, :3] = True  # 30 %
    known[1, 0, :3] = True
    known[1, 0, 0, 0] = False  # 29 %
    known[2, 0, :2] = True  # 20 of the 50 below the sky
    known[3, 0, 5:] = True  # 50, all in what is called sky
    sky = torch.zeros_like(known)
    sky[2:, 0, 5:] = True
    sky[4] = True
    assert euclidean_pictures(known, sky).tolist() == [True, False, True, False, False]
    assert euclidean_pictures(known).tolist() == [True, False, False, True, False]
    assert euclidean_pictures(known, share=0.5).tolist() == [False, False, False, True, False]


def mixture() -> dict[str, torch.Tensor]:
    """Two pictures with depth, one with an ordinal map, one with little depth and no map."""
    depth = scenes(4)
    ordinal = torch.zeros(4, 1, HEIGHT, WIDTH, dtype=torch.int8)
    depth[2] = 0
    ordinal[2, 0, :4], ordinal[2, 0, 8:] = 1, 2
    depth[3, 0, 2:] = 0
    ordinal[0, 0, :6], ordinal[0, 0, 6:] = 1, 2  # not looked at: the picture has depth
    return batch_of(depth, ordinal=ordinal)


def test_megadepth_is_the_mean_over_pictures_of_their_own_terms():
    batch = mixture()
    prediction = scenes(4, seed=1)
    # one value for the foreground and one for the background: any drawn pair is the same
    prediction[2, 0, :4], prediction[2, 0, 8:] = 3.0, 2.0
    network = Given(prediction, 'rel_depth')
    parts = Ordinal(mode='megadepth', scales=1, pairs=7).losses(network, batch)
    expected = 0.0
    for i in (0, 1):
        ratio = (prediction[i, 0] / batch['depth'][i, 0]).log().double().numpy()
        data = ratio.var()
        slopes = sum(np.abs(np.diff(ratio, axis=axis)).mean() for axis in (0, 1))
        expected += data + 0.5 * slopes
    ordinal = megadepth_ordinal_loss(
        torch.tensor([[3.0]]).log(), torch.tensor([[2.0]]).log(), torch.tensor([[-1]]),
        torch.tensor([[True]]),
    )  # fmt: skip
    assert parts['ordinal'].item() == pytest.approx(ordinal.item())
    expected = (expected + 0.1 * ordinal.item()) / 3
    assert parts['loss'].item() == pytest.approx(expected, rel=1e-5)


def test_megadepth_pulls_each_picture_by_its_own_term():
    batch = mixture()
    network = Given(scenes(4, seed=1), 'rel_depth')
    slope = slope_of(Ordinal(mode='megadepth', pairs=2000), network, batch)
    assert (slope[:2] != 0).flatten(1).float().mean() > 0.9
    assert (slope[2, 0, :4] < 0).float().mean() < 0.1  # the foreground is to come nearer
    assert (slope[2, 0, 8:] > 0).float().mean() < 0.1
    assert (slope[2, 0, 4:8] == 0).all()
    assert (slope[3] == 0).all()


def test_megadepth_does_not_look_at_the_sky():
    batch = mixture()
    sky = torch.zeros_like(batch['depth'], dtype=torch.bool)
    sky[0, 0, :5] = True
    network = Given(scenes(4, seed=1), 'rel_depth')
    slope = slope_of(Ordinal(mode='megadepth'), network, batch | {'sky': sky})
    assert (slope[0, 0, :5] == 0).all()
    assert (slope[0, 0, 5:] != 0).float().mean() > 0.9


def test_megadepth_forgives_the_scale_and_takes_other_kinds():
    batch = mixture()
    batch['ordinal'][:] = 0
    depth = torch.where(batch['depth'] > 0, batch['depth'], 1.0)
    for kind, prediction in (('rel_depth', 7 * depth), ('rel_inv_depth', 7 / depth)):
        loss = Ordinal(mode='megadepth').losses(Given(prediction, kind), batch)['loss']
        assert loss.item() == pytest.approx(0, abs=1e-6)


def test_megadepth_without_its_ordinal_term_needs_no_maps():
    batch = mixture()
    del batch['ordinal']
    objective = Ordinal(mode='megadepth', ordinal_weight=0.0)
    assert objective.needs == frozenset()
    parts = objective.losses(Given(scenes(4, seed=1), 'rel_depth'), batch)
    assert parts['loss'].item() == pytest.approx(
        parts['data'].item() + 0.5 * parts['gradient'].item()
    )


def test_trap_19_megadepth_sums_its_scales():
    """The paper's term is the sum; of a slope that is the same at all scales, but for its step."""
    v, u = torch.meshgrid(torch.arange(12.0), torch.arange(17.0), indexing='ij')
    depth = torch.full((2, 1, HEIGHT, WIDTH), 3.0)
    network = Given(depth * (0.1 * u - 0.05 * v).exp(), 'rel_depth')
    for scales, steps in ((1, 1), (3, 1 + 2 + 4)):
        objective = Ordinal(mode='megadepth', ordinal_weight=0.0, scales=scales)
        gradient = objective.losses(network, batch_of(depth))['gradient']
        assert gradient.item() == pytest.approx(0.15 * steps, rel=1e-4)


@pytest.mark.parametrize('mode', ['online', 'megadepth'])
def test_a_resumed_run_goes_on_with_the_pairs_that_come_next(mode):
    batch, network = mixture(), Given(scenes(4, seed=1), 'rel_depth')

    def losses_of(objective, count):
        return [objective.losses(network, batch)['loss'].item() for _ in range(count)]

    first = Ordinal(mode=mode, pairs=5, seed=3)
    whole = losses_of(first, 4)
    assert len(set(whole)) == 4
    begun = Ordinal(mode=mode, pairs=5, seed=3)
    assert losses_of(begun, 2) == whole[:2]
    begun.eval()
    with torch.no_grad():  # validation in between draws the same ones each time
        assert len(set(losses_of(begun, 2))) == 1
    resumed = Ordinal(mode=mode, pairs=5, seed=3)
    resumed.load_state_dict(begun.state_dict())
    assert losses_of(resumed, 2) == whole[2:]
    assert losses_of(Ordinal(mode=mode, pairs=5, seed=4), 4) != whole


# --- affine


@pytest.mark.parametrize('alignment', ['median', 'least_squares'])
def test_affine_forgives_scale_and_shift_of_inverse_depth(alignment):
    depth = scenes()
    batch = batch_of(depth)
    objective = Ordinal(mode='affine', alignment=alignment)
    network = Given(5 / depth + 2, 'rel_inv_depth')
    assert objective.losses(network, batch)['loss'].item() == pytest.approx(0, abs=1e-4)
    scores = objective.scores(network, batch)
    for name, value in (('affine_mae', 0.0), ('abs_rel', 0.0), ('delta1', 1.0)):
        np.testing.assert_allclose(scores[name], value, atol=1e-4)
    other = objective.losses(Given(scenes(seed=2), 'rel_inv_depth'), batch)['loss']
    assert other.item() > 0.3


def test_affine_on_inverse_depth_of_the_data_set():
    relative = 0.2 / scenes()
    relative[:, :, 3:5] = math.nan
    batch = batch_of(torch.zeros_like(relative), rel_inv_depth=relative)
    network = Given(torch.where(relative.isnan(), 9.0, 4 * relative + 1), 'rel_inv_depth')
    objective = Ordinal(mode='affine')
    loss = objective.losses(network, batch)['loss']
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-4)
    assert torch.isfinite(network.raw.grad).all()
    scores = objective.scores(network, batch)
    np.testing.assert_allclose(scores['affine_mae'], 0, atol=1e-4)
    assert set(scores) == {'affine_mae'}  # there is no depth


def test_affine_mae_of_a_constant_picture_is_that_of_its_mean():
    depth = scenes(1)
    inverse = (1 / depth).numpy().ravel()
    score = Ordinal(mode='affine').scores(
        Given(torch.full_like(depth, 3.0), 'rel_inv_depth'), batch_of(depth)
    )['affine_mae']
    median = np.sort(inverse)[(inverse.size - 1) // 2]
    expected = np.abs(inverse - inverse.mean()).mean() / np.abs(inverse - median).mean()
    assert score.item() == pytest.approx(expected, rel=1e-5)


def test_a_swapped_picture_scores_no_better_than_a_constant_one():
    depth = scenes()
    objective = Ordinal(mode='affine')
    swapped, constant = (
        objective.scores(Given(p, 'rel_inv_depth'), batch_of(depth))['affine_mae']
        for p in (depth, torch.ones_like(depth))
    )
    torch.testing.assert_close(swapped, constant)


def test_a_fitted_inverse_depth_below_zero_is_as_far_as_the_farthest_truth():
    depth = torch.full((1, 1, HEIGHT, WIDTH), 1.0)
    depth[..., WIDTH // 2 :] = 10.0
    prediction = torch.full_like(depth, 2.0)
    prediction[..., WIDTH // 2 :] = 1.0
    prediction[..., -1, -1] = 1e-3  # the fit puts it far below zero
    scores = Ordinal(mode='affine').scores(Given(prediction, 'rel_inv_depth'), batch_of(depth))
    assert scores['abs_rel'].item() < 0.6


# --- what holds for all


@pytest.mark.parametrize('mode', ['pairs', 'online', 'megadepth', 'affine'])
def test_the_monitored_score_is_there_one_number_a_picture(mode):
    depth = scenes()
    batch = with_pairs(depth) | {'depth': depth}
    batch['ordinal'] = torch.zeros_like(depth, dtype=torch.int8)
    objective = build_objective('ordinal', mode=mode)
    assert objective.needs <= set(batch)
    scores = objective.scores(Given(scenes(seed=1), 'rel_depth'), batch)
    assert scores[objective.monitor].isfinite().all()
    assert all(value.shape == (3,) for value in scores.values())


@pytest.mark.parametrize('mode', ['online', 'megadepth', 'affine'])
def test_nothing_known_is_zero_with_a_gradient_and_no_score(mode):
    nothing = torch.zeros(2, 1, HEIGHT, WIDTH)
    batch = batch_of(nothing, ordinal=nothing.to(torch.int8))
    network = Given(scenes(2), 'rel_depth')
    objective = Ordinal(mode=mode)
    loss = objective.losses(network, batch)['loss']
    loss.backward()
    assert loss.item() == 0.0
    assert (network.raw.grad == 0).all()
    assert all(value.isnan().all() for value in objective.scores(network, batch).values())


def test_a_network_of_depth_is_scored_relatively_where_its_kind_is_relative():
    depth = scenes()
    scores = Ordinal(mode='megadepth').scores(
        Given(3 * depth, 'rel_depth'), batch_of(depth, ordinal=torch.zeros_like(depth).char())
    )
    np.testing.assert_allclose(scores['abs_rel'], 0, atol=1e-5)


@pytest.mark.parametrize(
    ('options', 'reason'),
    [
        ({'mode': 'order'}, "mode 'order'"),
        ({'alignment': 'mean'}, "alignment 'mean'"),
        ({'pairs': 0}, 'pairs 0'),
        ({'scales': 0}, 'scales 0'),
        ({'sigma': -0.1}, 'sigma -0.1'),
        ({'grad_weight': math.nan}, 'grad_weight nan'),
        ({'ordinal_weight': -1}, 'ordinal_weight -1'),
        ({'drop': 1}, 'drop 1'),
        ({'trim': 1}, 'trim 1'),
        ({'euclidean_share': 0}, 'euclidean_share 0'),
        ({'tau': 0}, 'tau 0'),
    ],
)
def test_impossible_options_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        Ordinal(**options)


@pytest.mark.parametrize('mode', ['pairs', 'online', 'affine'])
def test_a_prediction_that_is_no_number_scores_worst_instead_of_dropping_out(mode):
    depth = scenes()
    network = Given(depth, 'rel_depth')
    network.raw.data[1] = math.nan
    batch = with_pairs(depth) if mode == 'pairs' else batch_of(depth)
    scores = Ordinal(mode=mode).scores(network, batch)
    name = 'affine_mae' if mode == 'affine' else 'whdr'
    assert scores[name][1] == (math.inf if mode == 'affine' else 1.0)
    assert (scores[name][::2] < 0.5).all()
