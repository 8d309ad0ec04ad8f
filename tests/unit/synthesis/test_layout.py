import itertools

from depth_node.synthesis import textures
from depth_node.synthesis.catalogue import Asset
from depth_node.synthesis.layout import Footprint, against_wall, plan_room, plan_table
import numpy as np
import pytest


def asset(name, role, size_m, category='Living room', elevation_m=0.0):
    return Asset(f'Test/{name}', name, category, 'Test', 'x.obj', size_m, None, elevation_m,
                 'nobody', 'CC0-1.0', role)


ASSETS = [
    asset('bookcase', 'wall', (0.9, 0.35, 1.9)), asset('sofa', 'wall', (1.9, 0.9, 0.8)),
    asset('table', 'table', (1.4, 0.8, 0.75)), asset('chair', 'chair', (0.45, 0.5, 0.9)),
    asset('plant', 'floor', (0.4, 0.4, 1.2)), asset('cup', 'small', (0.08, 0.1, 0.1)),
    asset('pan', 'small', (0.3, 0.2, 0.1)), asset('person', 'person', (0.5, 0.3, 1.7)),
    asset('cabinet', 'mounted', (0.6, 0.35, 0.6), elevation_m=1.4),
    asset('door', 'door', (0.9, 0.1, 2.05)),
]


def test_rotated_rectangles_overlap_by_their_true_shape():
    # a bar turned by 45 degrees: the bounding boxes overlap, the rectangles do not
    bar = Footprint(0, 0, 2.0, 0.2, np.pi / 4)
    assert not bar.overlaps(Footprint(0.6, -0.6, 0.5, 0.5, 0))
    assert bar.overlaps(Footprint(0.5, 0.5, 0.2, 0.2, 0))
    assert not bar.overlaps(Footprint(0, 0.5, 0.1, 0.1, np.pi / 4))
    assert bar.overlaps(Footprint(0, 0.5, 0.1, 0.1, np.pi / 4), gap=0.4)


def test_point_in_rotated_rectangle():
    bar = Footprint(1.0, 2.0, 2.0, 0.2, np.pi / 2)
    assert bar.contains(1.05, 2.9)
    assert not bar.contains(1.9, 2.0)
    assert bar.contains(1.15, 2.0, margin=0.1)


@pytest.mark.parametrize(
    ('side', 'wall_axis', 'wall', 'front'),
    [(0, 1, 1.5, (0, -1)), (1, 0, 2.5, (-1, 0)), (2, 1, -1.5, (0, 1)), (3, 0, -2.5, (1, 0))],
)
def test_furniture_has_its_back_to_the_wall(side, wall_axis, wall, front):
    rng = np.random.default_rng(side)
    spot = against_wall(rng, (0.9, 0.4, 2.0), (5.0, 3.0), side, gap=0.02)
    reach = spot.corners()[:, wall_axis]
    nearest = reach.max() if wall > 0 else reach.min()
    assert abs(wall - nearest) == pytest.approx(0.02)
    turned = (np.sin(spot.yaw), -np.cos(spot.yaw))  # where the model's front (-y) points
    assert turned == pytest.approx(front, abs=1e-12)


def test_too_long_furniture_finds_no_wall():
    assert against_wall(np.random.default_rng(0), (3.2, 0.4, 1), (5.0, 3.0), 1) is None


@pytest.mark.parametrize('seed', range(12))
def test_room_furniture_stands_inside_and_apart(seed):
    plan = plan_room(np.random.default_rng(seed), ASSETS)
    half = np.array(plan.size_xy) / 2
    standing = [item.footprint for item in plan.items if item.z == 0]
    standing += [solid.footprint for solid in plan.solids if solid.use != 'wall']
    for spot in standing:
        assert np.all(np.abs(spot.corners()) <= half + 0.03)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(standing, 2))


def test_rooms_differ_and_repeat():
    plans = [plan_room(np.random.default_rng(seed), ASSETS) for seed in (1, 1, 2)]
    assert plans[0] == plans[1]
    assert plans[0].size_xy != plans[2].size_xy


@pytest.mark.parametrize(
    ('density', 'least', 'most'),
    [('bare', 1, 5), ('packed', 2, 11), ('set', 3, 14), ('dense', 7, 40)],
)
def test_tables_carry_what_they_should(density, least, most):
    for seed in range(8):
        plan = plan_table(np.random.default_rng(seed), ASSETS, density, half_xy=(0.7, 0.45),
                          top=0.72)
        bottom = [item.footprint for item in plan.items]
        bottom += [solid.footprint for solid in plan.solids if solid.z == 0.72]
        assert least <= len(bottom) <= most
        assert not any(a.overlaps(b) for a, b in itertools.combinations(bottom, 2))
        assert all(np.hypot(spot.x, spot.y) < 0.95 for spot in bottom)


def test_packages_are_tall_and_stacked():
    rng = np.random.default_rng(3)
    plans = [plan_table(rng, [], 'packed', half_xy=(0.7, 0.45), top=0.7) for _ in range(40)]
    solids = [solid for plan in plans for solid in plan.solids]
    cartons = [solid for solid in solids if solid.shape == 'box']
    assert {solid.shape for solid in solids} == {'box', 'can'}
    assert all(0.009 < min(s.footprint.width, s.footprint.depth, s.height) for s in cartons)
    assert all(max(s.footprint.width, s.footprint.depth, s.height) <= 0.36 for s in cartons)
    upright = [s for s in cartons if s.height > max(s.footprint.width, s.footprint.depth)]
    assert 0.25 < len(upright) / len(cartons) < 0.55
    assert sum(solid.z > 0.7 for solid in solids) > 20


def test_a_heap_overlaps_and_its_things_are_tilted():
    plan = plan_table(np.random.default_rng(1), ASSETS, 'heap', half_xy=(0.7, 0.45), top=0.7)
    spots = [item.footprint for item in plan.items] + [solid.footprint for solid in plan.solids]
    assert len(spots) >= 20
    assert sum(a.overlaps(b) for a, b in itertools.combinations(spots, 2)) > 20
    assert any(solid.tilt != (0.0, 0.0) for solid in plan.solids)


def test_stacks_stand_on_each_other():
    stacked = 0
    for seed in range(30):
        plan = plan_table(np.random.default_rng(seed), ASSETS, 'set', top=0.5)
        for below, above in itertools.pairwise(plan.solids):
            if above.z > 0.5:
                stacked += 1
                assert above.z == pytest.approx(below.z + below.height)
    assert stacked > 3


@pytest.mark.parametrize('kind', textures.KINDS)
def test_textures_have_structure_and_repeat(kind):
    first, second = (textures.make(np.random.default_rng(5), kind) for _ in range(2))
    assert first.shape == (textures.SIZE, textures.SIZE, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, second)
    assert not np.array_equal(first, textures.make(np.random.default_rng(6), kind))


def test_every_use_draws_known_textures():
    rng = np.random.default_rng(0)
    for use in textures.USES:
        assert {textures.draw_kind(rng, use) for _ in range(50)} <= set(textures.KINDS)


def test_unknown_texture_is_refused():
    with pytest.raises(ValueError, match='expected one of'):
        textures.make(np.random.default_rng(0), 'velvet')
