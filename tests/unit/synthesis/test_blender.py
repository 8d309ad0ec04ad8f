"""What only Blender can answer; skipped where it cannot be imported."""

import importlib.util

from depth_node.synthesis.blender import Stage
from depth_node.synthesis.layout import Footprint, Opening, RoomPlan
from depth_node.synthesis.raycast import RayStage
from depth_node.synthesis.recipe import CHANNELS, CLASSES
from depth_node.synthesis.scenes import cramped
from depth_node.synthesis.shell import build_shell
from depth_node.synthesis.viewpoints import View, focal_px
import numpy as np
import pytest

pytestmark = [
    pytest.mark.synthesis,
    pytest.mark.skipif(
        importlib.util.find_spec('bpy') is None or importlib.util.find_spec('OpenEXR') is None,
        reason='bpy or OpenEXR is not installed (pip install bpy OpenEXR, Python 3.11)',
    ),
]
SIZE_HW = (48, 80)


@pytest.fixture(scope='module', params=[Stage, RayStage])
def stage(request, tmp_path_factory):
    if request.param is RayStage:
        pytest.importorskip('embreex')
    return request.param(SIZE_HW, 1, tmp_path_factory.mktemp('assets'), {}, channels=CHANNELS)


def plane_depth(view, normal, offset):
    """Depth of the plane normal . x = offset at every pixel centre, in closed form."""
    height, width = SIZE_HW
    focal = focal_px(width, view.hfov_deg)
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    rays = np.stack([(u - (width - 1) / 2) / focal, (v - (height - 1) / 2) / focal,
                     np.ones_like(u, float)], -1)
    directions = rays @ view.camera_to_world[:3, :3].T
    return (offset - np.dot(normal, view.position)) / (directions @ np.array(normal))


def test_depth_is_planar_z_and_not_ray_length(stage):
    rng = np.random.default_rng(0)
    stage.clear()
    stage.sky(None, 1.0)
    corners = np.array([[-9, -9, 0], [9, -9, 0], [9, 9, 0], [-9, 9, 0]], float)
    stage.sheet(corners, corners[:, :2], stage.material(rng))
    view = View((0.3, -0.4, 1.3), 25.0, -52.0, 4.0, 75.0)
    _, depth = stage.render(view)
    truth = plane_depth(view, (0, 0, 1), 0.0)
    # Cycles' samples are up to half a pixel off centre: allow the plane's slope over that distance
    slope = np.hypot(*np.gradient(truth)) * (type(stage) is Stage)
    assert np.all(np.abs(depth - truth) < 0.75 * slope + 1e-3)
    assert np.abs(np.median(depth / truth) - 1) < 2e-3
    lengths = truth * np.sqrt(1 + (40 / focal_px(80, 75.0)) ** 2)
    assert np.abs(depth - lengths)[:, -1].min() > 0.1  # ray length would fail


def test_facing_plane_has_one_depth_and_background_none(stage):
    rng = np.random.default_rng(0)
    stage.clear()
    stage.sky(None, 1.0)
    wall = np.array([[2, -0.5, 0], [2, 0.5, 0], [2, 0.5, 2], [2, -0.5, 2]], float)
    stage.sheet(wall, wall[:, 1:], stage.material(rng))
    _, depth = stage.render(View((0, 0, 1), 0.0, 0.0, 0.0, 80.0))
    known = np.isfinite(depth)
    assert depth[known] == pytest.approx(2.0, abs=1e-4)
    # 1 m wide at 2 m with hfov 80: 0.5 / (2 tan 40) of the width
    assert known[24].sum() == pytest.approx(80 * 0.5 / (2 * np.tan(np.radians(40))), abs=1.5)


def test_probe_agrees_with_the_rendered_depth(stage):
    rng = np.random.default_rng(0)
    stage.clear()
    stage.sky(None, 1.0)
    stage.box(Footprint(2.0, 0.1, 0.6, 0.8, 0.4), 0.9, 0.0, [stage.material(rng)])
    floor = np.array([[-9, -9, 0], [9, -9, 0], [9, 9, 0], [-9, 9, 0]], float)
    stage.sheet(floor, floor[:, :2], stage.material(rng))
    stage.update()
    view = View((0.0, 0.0, 1.4), 0.0, -30.0, 0.0, 60.0)
    probed = stage.probe(view).reshape(5, 7)
    _, depth = stage.render(view)
    rows = ((np.arange(5) + 0.5) / 5 * 48 - 0.5).round().astype(int)
    columns = ((np.arange(7) + 0.5) / 7 * 80 - 0.5).round().astype(int)
    rendered = depth[np.ix_(rows, columns)]
    assert np.median(np.abs(probed - rendered)) < 0.03
    assert (np.abs(probed - rendered) < 0.15).mean() > 0.85  # the rest: across a border


def test_next_scene_does_not_show_the_last_one(stage):
    rng = np.random.default_rng(0)
    corners = np.array([[-9, -9, 0], [9, -9, 0], [9, 9, 0], [-9, 9, 0]], float)
    view = View((0, 0, 2), 0.0, -80.0, 0.0, 60.0)
    means = []
    for red in (255, 0):
        stage.clear()
        stage.sky(None, 1.0)
        picture = np.zeros((256, 256, 3), np.uint8)
        picture[..., 0 if red else 2] = 255
        stage.sheet(corners, corners[:, :2], stage.material(rng, picture=picture))
        radiance, _ = stage.render(view)
        means.append(radiance.mean((0, 1)))
    assert means[0][0] > 5 * means[0][2]
    assert means[1][2] > 5 * means[1][0]


def test_rendered_channels_agree_with_the_scene(stage):
    rng = np.random.default_rng(0)
    stage.clear()
    stage.sky(None, 1.0)
    corners = np.array([[-9, -9, 0], [9, -9, 0], [9, 9, 0], [-9, 9, 0]], float)
    # wound both ways: a normal must face the camera all the same
    stage.sheet(corners[::-1], corners[:, :2], stage.material(rng), label='floor')
    stage.box(Footprint(2.0, 0.0, 0.5, 0.5, 0.0), 1.0, 0.0, [stage.material(rng)], label='cabinet')
    view = View((0.0, 0.0, 0.5), 0.0, 0.0, 0.0, 80.0)
    shot = stage.shoot(view)
    assert shot.labels[20, 40] == CLASSES.index('cabinet') + 1
    assert shot.normals[20, 40] == pytest.approx([0, 0, -1], abs=1e-3)
    assert shot.labels[45, 3] == CLASSES.index('floor') + 1
    assert shot.normals[45, 3] == pytest.approx([0, -1, 0], abs=1e-3)
    assert shot.labels[2, 3] == 0  # the sky
    assert not shot.normals[2, 3].any()


def test_walls_have_holes_where_the_plan_has_openings(stage):
    plan = RoomPlan((4.0, 6.0), 2.5, 'mixed', openings=[
        Opening(1, 0.8, 1.2, 0.9, 1.0, 'window'), Opening(2, -0.5, 1.0, 0.0, 2.1, 'doorway')])
    stage.clear()
    build_shell(stage, np.random.default_rng(5), plan)
    stage.update()
    assert stage.ray((0, 0.8 + 0.35, 1.2), (1, 0, 0)) == np.inf  # through the window
    assert stage.ray((0, -1.5, 1.2), (1, 0, 0)) == pytest.approx(2.0, abs=0.2)  # the wall beside
    assert stage.ray((0, 0, 1.2), (-1, 0, 0)) == pytest.approx(2.0, abs=0.2)
    assert stage.ray((0, 0, 1.0), (0, 0, 1)) == pytest.approx(1.5, abs=0.01)
    behind = stage.ray((-0.5, 0, 2.0), (0, -1, 0))  # past the doorway lies the next room
    assert 3.2 < behind < 9


def test_a_camera_in_a_narrow_place_is_noticed(stage):
    rng = np.random.default_rng(0)
    stage.clear()
    for x in (-0.1, 0.1):
        stage.box(Footprint(x, 0.0, 0.05, 1.0, 0.0), 1.0, 0.0, [stage.material(rng)])
    stage.update()
    assert cramped(stage, (0.0, 0.0, 0.5), 0.1)
    assert not cramped(stage, (0.0, 0.0, 0.5), 0.05)


def test_views_of_one_look_agree_and_another_look_differs(stage):
    if type(stage) is Stage:
        pytest.skip('Cycles gives every view the same look')
    rng = np.random.default_rng(3)
    stage.clear()
    stage.seed(4)
    stage.sky(None, 1.0)
    for x in (1.5, 2.0, 2.5, 3.0):
        for y in (-0.6, 0.0, 0.6):
            stage.box(Footprint(x, y, 0.3, 0.3, 0.0), 0.9, 0.0, [stage.material(rng)])
    stage.light('POINT', (1.0, 0.0, 2.0), 60.0, (1, 1, 1))
    stage.update()
    view = View((0.0, 0.0, 0.6), 0.0, 0.0, 0.0, 80.0)
    first, again = stage.render(view)[0], stage.render(view)[0]
    colours = []
    for _ in range(5):
        stage.new_look()
        colours.append(stage.render(view)[0])
    apart = [np.abs(other - first).mean() for other in colours]
    assert max(apart) > 3 * np.abs(again - first).mean()


def test_a_scene_is_the_same_whatever_was_rendered_before(stage):
    view = View((0.0, 0.0, 0.6), 0.0, 0.0, 0.0, 80.0)

    def first():
        rng = np.random.default_rng(5)
        stage.clear()
        stage.seed(9)
        stage.sky(None, 1.0)
        for x in (1.5, 2.5):
            stage.box(Footprint(x, 0.2, 0.4, 0.4, 0.3), 0.9, 0.0, [stage.surface(rng, 'box')])
        stage.light('POINT', (1.0, 0.0, 2.0), 60.0, (1, 1, 1))
        stage.update()
        stage.new_look()
        return stage.render(view)

    alone = first()
    stage.clear()
    stage.seed(1)
    stage.sky(None, 1.0)
    stage.box(Footprint(2.0, 0.0, 0.5, 0.5, 0.0), 1.0, 0.0,
              [stage.surface(np.random.default_rng(1), 'wall')])
    stage.render(view)
    for found, expected in zip(first(), alone, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
