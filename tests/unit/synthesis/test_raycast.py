"""Light, surfaces and pictures of the ray caster, against closed forms."""

from __future__ import annotations

import importlib.util
import sys

from depth_node.synthesis import raycast
from depth_node.synthesis.viewpoints import View
import numpy as np
import pytest

SIZE_HW = (36, 52)
_LINEAR = ((np.arange(256) / 255 + 0.055) / 1.055) ** 2.4
DOWN = View((0.0, 0.0, 2.0), 0.0, -90.0, 0.0, 60.0)


def quad(corners):
    """Two triangles."""
    a, b, c, d = np.array(corners, np.float32)
    return np.array([[a, b, c], [a, c, d]])


def floor(size=20.0, z=0.0):
    return quad([[-size, -size, z], [size, -size, z], [size, size, z], [-size, size, z]])


def lights(kind, power, *, centre=(0, 0, 0), size=(0, 0), facing=(0, 0, -1), radius=0.0):
    one = np.float32
    return raycast._Lights(
        np.array([centre], one), np.array([[size[0] / 2, 0, 0]], one),
        np.array([[0, size[1] / 2, 0]], one), np.array([facing], one), np.array([radius], one),
        np.full((1, 3), power, one), np.array([kind]))


def world_of(triangles, lamps, *, colour=(0.5, 0.4, 0.3), roughness=1.0, pictures=()):
    count = len(triangles)
    surfaces = raycast._Surfaces(
        np.array([colour], np.float32), np.ones((1, 3), np.float32),
        np.array([0 if pictures else -1]), np.ones((1, 2), np.float32),
        np.zeros((1, 2), np.float32), np.array([roughness], np.float32),
        np.zeros(1, np.float32), np.zeros(1, np.float32))
    normal = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    uv = triangles[..., :2].astype(np.float32)
    tracer = raycast.Tracer(triangles)
    return raycast._World(
        tracer, tracer, triangles.astype(np.float32), np.repeat(normal[:, None], 3, 1), uv,
        raycast._density(triangles, uv), np.zeros(count, np.int64), np.full(count, 3, np.uint8),
        surfaces, lamps, raycast.Atlas(list(pictures)), np.zeros((1, 1, 3), np.float32), 0.0,
        False)


def picture_of(world, view=DOWN, *, returned=0.0, seed=0):
    look = raycast._Look(world.surfaces, world.lights.power, returned, 0.5)
    return raycast._Picture(world, look, np.random.default_rng(seed), view, SIZE_HW, ('labels',))


def spots(z=2.0, hfov=60.0):
    """Where the pixel centres of DOWN meet the floor, (H, W) x and y."""
    height, width = SIZE_HW
    focal = width / 2 / np.tan(np.radians(hfov) / 2)
    v, u = np.mgrid[:height, :width]
    return (u - (width - 1) / 2) / focal * z, (v - (height - 1) / 2) / focal * z


embree = pytest.mark.skipif(importlib.util.find_spec('embreex') is None,
                            reason='embreex is not installed (pip install embreex)')


@embree
def test_a_bulb_lights_by_the_inverse_square_and_the_cosine():
    shot = picture_of(world_of(floor(), lights(1, 7.0, centre=(0.0, 0.0, 1.5)))).take()
    x, y = spots()
    squared = x**2 + y**2 + 1.5**2
    expected = 7.0 * 1.5 / squared**1.5 / np.pi
    inner = (slice(7, -7), slice(7, -7))  # smoothing repeats what lies at the border
    for channel, albedo in enumerate((0.5, 0.4, 0.3)):
        assert shot.radiance[(*inner, channel)] == pytest.approx(albedo * expected[inner],
                                                                 rel=0.03)
    assert shot.depth == pytest.approx(np.full(SIZE_HW, 2.0), abs=1e-4)
    assert (shot.labels == 3).all()


@embree
def test_a_flat_lamp_gives_what_its_solid_angle_says():
    """Below the middle of a rectangle: Lambertian form factor of its four quarters."""
    a, b, z = 0.9, 0.5, 0.7
    shot = picture_of(world_of(floor(), lights(0, 3.0, centre=(0, 0, z), size=(2 * a, 2 * b)),
                               colour=(1, 1, 1))).take()
    p, q = np.hypot(a, z), np.hypot(b, z)
    quarter = (a / p * np.arctan(b / p) + b / q * np.arctan(a / q)) / (2 * np.pi)
    radiance = 3.0 / (4 * a * b)  # power 3.0 along its axis from its whole area
    expected = np.pi * radiance * 4 * quarter / np.pi * 0.9  # albedo is bounded by 0.9
    middle = shot.radiance[14:22, 22:30, 0].mean()
    assert middle == pytest.approx(expected, rel=0.06)


@embree
def test_the_sun_is_even_and_a_plate_throws_its_shadow():
    plate = quad([[-0.4, -0.4, 0.8], [0.4, -0.4, 0.8], [0.4, 0.4, 0.8], [-0.4, 0.4, 0.8]])
    sun = lights(2, 2.0, facing=(0.6, 0.0, -0.8))
    shot = picture_of(world_of(np.concatenate([floor(), plate]), sun, colour=(0.5, 0.5, 0.5))
                      ).take()
    x, y = spots()
    pose = DOWN.camera_to_world
    world_x = pose[0, 0] * x + pose[0, 1] * y
    world_y = pose[1, 0] * x + pose[1, 1] * y
    shift = 0.8 * 0.6 / 0.8
    on_floor = np.abs(shot.depth - 2) < 1e-3
    inside = (np.abs(world_x - shift) < 0.1) & (np.abs(world_y) < 0.1) & on_floor
    outside = (np.abs(world_x - shift) > 0.75) & on_floor
    assert inside.any()
    assert shot.radiance[inside].max() < 0.05
    assert shot.radiance[outside] == pytest.approx(0.5 * 2 * 0.8 / np.pi, rel=0.02)
    assert (np.abs(shot.depth - 1.2) < 1e-3).sum() > 20, 'the plate itself'


@embree
def test_light_from_everywhere_is_weaker_in_a_corner():
    wall = quad([[0.5, -20, 0], [0.5, 20, 0], [0.5, 20, 9], [0.5, -20, 9]])
    lamp = lights(2, 2.0)
    made = picture_of(world_of(np.concatenate([floor(), wall]), lamp), returned=1.0)
    own = made._rays()
    direction = own @ DOWN.camera_to_world[:3, :3].T.astype(np.float32)
    hits = made._meet(direction, made._pixel_angle(own))
    openness = made._openness(hits)
    on_floor = hits.known & (hits.point[:, 2] < 0.01)
    near = on_floor & (np.abs(hits.point[:, 0] - 0.5) < 0.1) & (hits.point[:, 0] < 0.5)
    far = on_floor & (hits.point[:, 0] < -0.55)
    assert near.sum() > 50
    assert openness[far].mean() > 0.99
    assert 0.4 < openness[near].mean() < 0.75  # half of the rays end at the wall at the corner


@embree
def test_what_is_not_hit_is_unknown():
    plate = floor(0.4)
    shot = picture_of(world_of(plate, lights(1, 1.0, centre=(0, 0, 1)))).take()
    x, y = spots()
    assert np.array_equal(np.isfinite(shot.depth), (np.abs(x) < 0.4) & (np.abs(y) < 0.4))
    assert (shot.labels[~np.isfinite(shot.depth)] == 0).all()


def test_pictures_are_looked_up_between_their_texels():
    rng = np.random.default_rng(2)
    pictures = [rng.integers(0, 256, shape, np.uint8) for shape in ((8, 12, 3), (5, 4, 3))]
    atlas = raycast.Atlas(pictures)
    for which, picture in enumerate(pictures):
        height, width = picture.shape[:2]
        linear = np.where(picture / 255 <= 0.04045, picture / 255 / 12.92, _LINEAR[picture])
        rows, columns = np.mgrid[:height, :width]
        uv = np.stack([(columns.ravel() + 0.5) / width, (rows.ravel() + 0.5) / height], 1)
        index = np.full(len(uv), which)
        exact = atlas.look_up(index, uv.astype(np.float32) + 3, np.zeros(len(uv)))
        assert exact == pytest.approx(linear.reshape(-1, 3), abs=1e-4)
        half = atlas.look_up(index, (uv + np.array([0.5 / width, 0])).astype(np.float32),
                             np.zeros(len(uv)))
        expected = (linear + np.roll(linear, -1, axis=1)) / 2  # pictures repeat
        assert half == pytest.approx(expected.reshape(-1, 3), abs=1e-4)


def test_far_pictures_are_smooth():
    board = np.zeros((64, 64, 3), np.uint8)
    board[::2, ::2] = board[1::2, 1::2] = 255
    atlas = raycast.Atlas([board])
    uv = np.random.default_rng(0).random((500, 2), np.float32)
    near = atlas.look_up(np.zeros(500, int), uv, np.zeros(500))
    far = atlas.look_up(np.zeros(500, int), uv, np.full(500, 3.0))
    assert near.std() > 0.1
    assert far.std() < 0.01
    beyond = atlas.look_up(np.zeros(500, int), uv, np.full(500, 99.0))
    assert np.isfinite(beyond).all()


def test_density_is_texture_per_metre():
    triangle = np.array([[[0, 0, 0], [2, 0, 0], [0, 3, 0]]], np.float32)
    uv = np.array([[[0, 0], [1, 0], [0, 1.5]]], np.float32)
    assert raycast._density(triangle, uv) == pytest.approx([0.5])


def test_smoothing_stays_within_a_surface():
    rng = np.random.default_rng(1)
    depth = np.full((30, 44), 2.0, np.float32)
    depth[:, 20:] = 1.0
    normal = np.zeros((30, 44, 3), np.float32)
    normal[..., 2] = -1
    normal[:10, :20, 2], normal[:10, :20, 1] = 0, -1
    level = np.where(depth == 2, 1.0, 5.0) + np.where(normal[..., 1] < 0, 2.0, 0)
    light = (level[..., None] * rng.uniform(0.5, 1.5, (30, 44, 3))).astype(np.float32)
    smooth = raycast._smoothed(light, depth, normal)
    for area in (level == 1, level == 3, level == 5):
        expected = level[area].mean()
        assert smooth[area].mean() == pytest.approx(expected, rel=0.05)
        assert smooth[area].std() < 0.35 * light[area].std()


def test_other_looks_keep_what_shines_and_what_is_pictured():
    rng = np.random.default_rng(6)
    count = 400
    picture = np.where(np.arange(count) % 2, 0, -1)
    table = raycast._Surfaces(
        rng.random((count, 3), np.float32), np.ones((count, 3), np.float32), picture,
        np.ones((count, 2), np.float32), np.zeros((count, 2), np.float32),
        rng.random(count, np.float32), np.full(count, 0.04, np.float32),
        np.where(np.arange(count) % 5 == 0, 2.0, 0.0).astype(np.float32))
    atlas = raycast.Atlas([np.zeros((2, 2, 3), np.uint8), np.zeros((4, 2, 3), np.uint8)])
    changed = 0
    for _ in range(10):
        new = raycast._restyled(table, atlas, rng)
        assert np.array_equal(new.picture >= 0, picture >= 0)
        assert np.array_equal(new.colour[table.emission > 0], table.colour[table.emission > 0])
        assert new.colour.min() >= 0
        assert new.colour.max() <= 1
        changed += not np.array_equal(new.colour, table.colour)
    assert 2 <= changed <= 9  # some views keep the scene's own colours


def test_missing_embree_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'embreex', None)
    with pytest.raises(raycast.RenderError, match=r'pip install .embreex'):
        raycast.import_embree()
