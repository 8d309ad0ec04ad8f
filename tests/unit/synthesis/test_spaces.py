"""Plans of corridors, offices, kitchens and clutter, without a renderer."""

import itertools

from depth_node.synthesis import recipe
from depth_node.synthesis.catalogue import Asset
from depth_node.synthesis.layout import SHAPES, Floor, Footprint, RoomPlan
from depth_node.synthesis.spaces import SPACES
import numpy as np
import pytest


def asset(name, role, size_m, category='Office', elevation_m=0.0):
    return Asset(f'Test/{name}', name, category, 'Test', 'x.obj', size_m, None, elevation_m,
                 'nobody', 'CC0-1.0', role)


ASSETS = [
    asset('bookcase', 'wall', (0.9, 0.35, 1.9)),
    asset('fridge', 'wall', (0.6, 0.6, 1.8), 'Kitchen'),
    asset('desk', 'table', (1.4, 0.8, 0.75)), asset('chair', 'chair', (0.45, 0.5, 0.9)),
    asset('plant', 'floor', (0.4, 0.4, 1.2)), asset('cup', 'small', (0.08, 0.1, 0.1)),
    asset('lamp', 'floor', (0.2, 0.2, 0.4)), asset('person', 'person', (0.5, 0.3, 1.7)),
    asset('door', 'door', (0.9, 0.1, 2.05)),
]


@pytest.mark.parametrize('kind', SPACES)
@pytest.mark.parametrize('seed', range(6))
def test_things_stand_inside_and_apart_and_doorways_are_free(kind, seed):
    plan = SPACES[kind](np.random.default_rng(seed), ASSETS)
    half = np.array(plan.size_xy) / 2
    standing = [item.footprint for item in plan.items
                if item.z == 0 and item.asset.role != 'chair']
    standing += [solid.footprint for solid in plan.solids
                 if solid.z == 0 and solid.shape != 'cable']
    for spot in standing:
        assert np.all(np.abs(spot.corners()) <= half + 0.03)
    assert not any(a.overlaps(b, -0.004) for a, b in itertools.combinations(standing, 2))
    assert {solid.shape for solid in plan.solids} <= set(SHAPES)
    for opening in plan.openings:
        assert opening.low + opening.height < plan.height
        assert abs(opening.middle) + opening.width / 2 < plan.wall_length(opening.side) / 2
        if opening.what == 'doorway':
            x, y = plan.on_wall(opening.side, opening.middle, 0.4)
            assert not any(spot.contains(x, y) for spot in standing)


@pytest.mark.parametrize('kind', SPACES)
def test_spaces_are_repeatable_and_differ(kind):
    plans = [SPACES[kind](np.random.default_rng(seed), ASSETS) for seed in (5, 5, 6)]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]


@pytest.mark.parametrize('kind', SPACES)
def test_spaces_can_be_planned_without_furniture(kind):
    plan = SPACES[kind](np.random.default_rng(0), [])
    assert plan.items == []


def test_spaces_have_what_they_are_named_for():
    rng = np.random.default_rng(0)
    made = {kind: [SPACES[kind](rng, ASSETS) for _ in range(8)] for kind in SPACES}
    assert all(max(plan.size_xy) / min(plan.size_xy) > 1.8 for plan in made['corridor'])
    for kind, shape in (('office', 'monitor'), ('kitchen', 'counter'), ('office', 'shelf')):
        assert any(solid.shape == shape for plan in made[kind] for solid in plan.solids)
    on_floor = {kind: np.mean([(len(p.solids) + len(p.items)) / np.prod(p.size_xy)
                               for p in made[kind]]) for kind in made}
    assert on_floor['clutter'] > 1.5 * on_floor['room']


@pytest.mark.parametrize('side', range(4))
def test_walls_and_their_coordinates_agree(side):
    plan = RoomPlan((6.0, 4.0), 2.5, 'mixed')
    x, y = plan.on_wall(side, 0.7, 0.25)
    expected = {0: (0.7, 1.75), 1: (2.75, 0.7), 2: (0.7, -1.75), 3: (-2.75, 0.7)}[side]
    assert (x, y) == pytest.approx(expected)
    assert plan.wall_length(side) == (6.0 if side in (0, 2) else 4.0)


def test_openings_of_one_wall_do_not_touch():
    floor = Floor(RoomPlan((4.0, 4.0), 2.6, 'mixed'))
    rng = np.random.default_rng(0)
    opened = sum(floor.open(rng, 'window', 0) for _ in range(60))
    assert 1 <= opened < 8
    spans = sorted((o.middle - o.width / 2, o.middle + o.width / 2) for o in floor.plan.openings)
    assert all(b[0] - a[1] > 0.1 for a, b in itertools.pairwise(spans))


def test_a_doorway_is_not_cut_behind_furniture():
    floor = Floor(RoomPlan((3.0, 4.0), 2.6, 'mixed'))
    floor.taken.append(Footprint(0, 1.7, 3.0, 0.6, 0.0))
    assert not any(floor.open(np.random.default_rng(s), 'doorway', 0) for s in range(20))


def test_kinds_are_drawn_by_their_shares():
    rng = np.random.default_rng(0)
    drawn = [recipe.draw_kind(rng, 0.25) for _ in range(4000)]
    tables = sum(recipe.KINDS[kind].table for kind in drawn)
    assert tables / 4000 == pytest.approx(0.25, abs=0.03)
    assert drawn.count('corridor') / (4000 - tables) == pytest.approx(0.14, abs=0.03)
