from depth_node.synthesis import viewpoints
from depth_node.synthesis.blender import camera_normals
from depth_node.synthesis.viewpoints import View
import numpy as np
import pytest


def project(view, size_hw, point):
    """Pinhole projection of a world point: (u, v, depth)."""
    pose = view.camera_to_world
    x, y, z = pose[:3, :3].T @ (np.array(point) - pose[:3, 3])
    focal = viewpoints.focal_px(size_hw[1], view.hfov_deg)
    return focal * x / z + (size_hw[1] - 1) / 2, focal * y / z + (size_hw[0] - 1) / 2, z


def test_level_camera_looks_along_its_yaw():
    pose = viewpoints.camera_to_world((1, 2, 3), 90, 0, 0)
    assert pose[:3, 2] == pytest.approx([0, 1, 0], abs=1e-12)  # forward
    assert pose[:3, 0] == pytest.approx([1, 0, 0], abs=1e-12)  # right
    assert pose[:3, 1] == pytest.approx([0, 0, -1], abs=1e-12)  # down
    assert pose[:3, 3] == pytest.approx([1, 2, 3])


@pytest.mark.parametrize('angles', [(10, -35, 4), (200, 20, -5), (-75, 60, 0)])
def test_pose_is_a_rotation(angles):
    rotation = viewpoints.camera_to_world((0, 0, 0), *angles)[:3, :3]
    assert rotation @ rotation.T == pytest.approx(np.eye(3), abs=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)


def test_positive_roll_turns_the_camera_clockwise():
    # the camera's right side sinks, so a point straight ahead and high moves left
    view = View((0, 0, 0), 0, 0, 5, 60)
    u, _, depth = project(view, (48, 64), (2, 0, 0.5))
    assert depth == pytest.approx(2)
    assert u == pytest.approx(
        31.5 - viewpoints.focal_px(64, 60) * 0.25 * np.sin(np.radians(5)), abs=1e-9)


def test_looked_at_point_is_in_the_middle():
    where, target = (0.4, -1.1, 1.5), (1.2, 0.7, 0.6)
    view = View(where, *viewpoints.look_at(where, target), 3.0, 70)
    u, v, depth = project(view, (48, 64), target)
    assert (u, v) == pytest.approx((31.5, 23.5))
    assert depth == pytest.approx(np.linalg.norm(np.subtract(target, where)))


def test_focal_length_gives_the_field_of_view():
    focal = viewpoints.focal_px(640, 66)
    assert 2 * np.degrees(np.arctan(320 / focal)) == pytest.approx(66)


def test_ray_factors_turn_lengths_into_depth():
    view = View((0, 0, 1), 30, -20, 3, 75)
    directions, factors = viewpoints.ray_directions(view, (48, 64))
    assert directions.shape == (35, 3)
    assert np.linalg.norm(directions, axis=1) == pytest.approx(1)
    assert directions @ view.camera_to_world[:3, 2] == pytest.approx(factors)
    u, v, _ = project(view, (48, 64), np.array(view.position) + 2 * directions[0])
    assert (u, v) == pytest.approx((64 / 14 - 0.5, 48 / 10 - 0.5))  # first cell's centre


@pytest.mark.parametrize(
    ('depths', 'kind', 'reason'),
    [
        ([0.2, 1.5, 2, 3], 'room', 'too near'),
        ([0.2, 1.5, 2, 3], 'near', ''),
        ([0.09, 0.15, 0.3, 0.4], 'close', ''),
        ([0.2, 0.5, 0.6, 0.9], 'table', ''),
        ([0.5, 0.6, 0.7, 3], 'room', 'too close overall'),
        ([2.0, 2.05, 2.1, 2.15], 'room', 'flat'),
        ([1.0, np.inf, np.inf, 2.0], 'table', 'nothing there'),
        ([0.9, 1.4, 2.5, 4.0], 'room', ''),
    ],
)
def test_useless_views_are_rejected(depths, kind, reason):
    assert viewpoints.rejection(np.array(depths), kind) == reason


@pytest.mark.parametrize(
    ('style', 'low', 'high'),
    [('robot', 0.1, 0.4), ('low', 0.4, 1.0), ('hand', 1.0, 1.8), ('high', 1.8, 2.1)],
)
def test_room_views_stay_in_the_room_and_the_ranges(style, low, high):
    rng = np.random.default_rng(3)
    pitches = []
    for _ in range(300):
        view = viewpoints.sample_room_view(rng, (1.3, 8.0), 2.4, style)
        assert abs(view.position[0]) < 0.65
        assert abs(view.position[1]) < 4
        assert low <= view.position[2] <= high
        assert -15 <= view.roll_deg <= 15
        assert 40 <= view.hfov_deg <= 90
        pitches.append(view.pitch_deg)
    # the higher, the more it looks down
    assert np.mean(pitches) == pytest.approx({'robot': 0, 'low': -6, 'hand': -13, 'high': -21}[
        style], abs=3)


def test_corridor_views_look_along_it():
    rng = np.random.default_rng(3)
    views = [viewpoints.sample_room_view(rng, (12.0, 1.5), 2.4, along=True) for _ in range(300)]
    forward = np.array([view.camera_to_world[:3, 2] for view in views])
    inwards = -np.sign([view.position[0] for view in views])
    assert (forward[:, 0] * inwards > 0.7).mean() > 0.7


def test_focal_lengths_are_spread_evenly_on_a_log_scale():
    rng = np.random.default_rng(0)
    focals = np.log([viewpoints.focal_px(256, viewpoints.draw_hfov(rng)) for _ in range(4000)])
    low, high = (np.log(viewpoints.focal_px(256, hfov)) for hfov in (90, 40))
    assert focals.min() >= low
    assert focals.max() <= high
    assert np.mean(focals) == pytest.approx((low + high) / 2, abs=0.02)


def test_near_views_look_at_their_thing_from_graspable_distance():
    rng = np.random.default_rng(0)
    for _ in range(200):
        view = viewpoints.sample_near_view(rng, (1.0, -2.0, 0.2, 0.5))
        offset = np.array([1.0, -2.0, 0.5]) - view.position
        assert 0.3 < np.hypot(*offset[:2]) < 1.5
        assert view.camera_to_world[:3, 2] @ offset / np.linalg.norm(offset) > np.cos(
            np.radians(50))


def test_motion_starts_at_the_view_and_goes_on():
    start = View((1.0, 2.0, 0.8), 40.0, -10.0, 1.0, 60.0)
    views = viewpoints.nearby_views(np.random.default_rng(1), start, 4, 0.05)
    assert views[0] == start
    steps = np.diff([view.position for view in views], axis=0)
    assert np.linalg.norm(steps, axis=1) == pytest.approx([0.05] * 3, rel=0.4)
    assert {view.hfov_deg for view in views} == {60.0}
    assert views[1].yaw_deg != views[2].yaw_deg


@pytest.mark.parametrize(
    ('style', 'nearest', 'farthest'),
    [('close', 0.15, 0.6), ('kinect', 0.55, 1.4), ('workspace', 0.45, 1.7)],
)
def test_table_views_keep_their_distance(style, nearest, farthest):
    rng = np.random.default_rng(4)
    for _ in range(200):
        view = viewpoints.sample_table_view(rng, 0.75, (0.6, 0.4), style, [(0.1, 0.1)])
        forward = view.camera_to_world[:3, 2]
        assert view.position[2] > 0.75
        if view.pitch_deg < -15:  # the axis meets the table top about at the target
            distance = (0.79 - view.position[2]) / forward[2]
            assert nearest * 0.6 < distance < farthest * 1.8
        if style == 'kinect':
            assert -68 < view.pitch_deg < -12


def test_views_are_repeatable():
    first, second = (viewpoints.sample_room_view(np.random.default_rng(9), (4, 5), 2.5)
                     for _ in range(2))
    assert first == second


def test_normals_are_of_the_optical_frame_and_face_the_camera():
    # a floor seen by a camera that looks 30 degrees down: up is (0, -cos 30, -sin 30) there
    rotation = View((0, 0, 1), 70.0, -30.0, 0.0, 60.0).camera_to_world[:3, :3]
    world = np.zeros((2, 3, 3))
    world[..., 2] = 0.8  # two surfaces in a pixel shorten the mean
    world[1, 2] = (0, 0, 0.3)
    normals = camera_normals(world, rotation)
    expected = (0, -np.cos(np.radians(30)), -np.sin(np.radians(30)))
    assert normals[0] == pytest.approx(np.array([expected] * 3), abs=1e-6)
    assert normals[1, 2].tolist() == [0, 0, 0]
    assert normals.dtype == np.float32
