"""Filters: what each removes and keeps, in closed form, beside an oracle, on hostile images."""

from collections import deque
import itertools
import math
import warnings

import cv2
from depth_node.camera import Camera
from depth_node.evaluation.flying import flying_points
from depth_node.filters import (
    RIM_PX,
    FilterChain,
    FilterSettings,
    TemporalFilter,
    flying_pixels,
    median,
    parse_polygons,
    range_clip,
    read_mask,
    speckle,
)
from depth_node.geometry import depth_to_points
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
import numpy as np
import pytest

CAMERA = Camera((120, 170), 151.0, 143.0, 84.0, 61.0)
OFF = FilterSettings.off()


def test_range_clip_marks_as_rep_117():
    depth = np.array([[0.1, 0.3, 5.0], [np.nan, 10.0, 10.1]], np.float32)
    assert range_clip(depth, 0.3, 10.0) == (1, 1)
    np.testing.assert_array_equal(
        depth, np.array([[-np.inf, 0.3, 5.0], [np.nan, 10.0, np.inf]], np.float32))


def test_range_clip_counts_an_infinite_depth_once():
    depth = np.array([[np.inf, 2.0]], np.float32)
    assert range_clip(depth, 0.0, 3.0) == (0, 1)
    assert range_clip(depth, 0.0, math.inf) == (0, 0)


def sloped(angle_deg: float, axis: int) -> np.ndarray:
    """Return a surface whose neighbouring pixels always meet the ray at `angle_deg`."""
    focal = (CAMERA.fy, CAMERA.fx)[axis]
    growth = 1 + 1 / (focal * math.tan(math.radians(angle_deg)))
    steps = growth ** np.arange(CAMERA.size_hw[axis])
    line = np.expand_dims(steps, 1 - axis)
    return (0.1 * np.broadcast_to(line, CAMERA.size_hw)).astype(np.float32)


@pytest.mark.parametrize('axis', [0, 1])
@pytest.mark.parametrize(('angle_deg', 'kept'), [(3.0, False), (3.9, False), (4.1, True),
                                                 (20.0, True)])
def test_slope_is_judged_by_its_angle_alone(axis, angle_deg, kept):
    depth = sloped(angle_deg, axis)
    removed = flying_pixels(depth, CAMERA, 4.0)
    assert removed == (0 if kept else depth.size)
    assert np.isnan(depth).all() == (not kept)


def test_ramp_between_two_walls_is_removed_and_the_walls_stay():
    depth = np.full(CAMERA.size_hw, 1.0, np.float32)
    depth[:, 80:] = 3.0
    depth[:, 77:83] = np.linspace(1.0, 3.0, 6, dtype=np.float32)
    removed = flying_pixels(depth, CAMERA, 4.0)
    assert removed == 6 * 120
    assert np.isnan(depth[:, 77:83]).all()
    assert np.isfinite(depth[:, :77]).all()
    assert np.isfinite(depth[:, 83:]).all()


def test_floor_is_kept_up_to_height_over_tangent():
    height_m, angle_deg = 0.5, 4.0
    camera = Camera((240, 320), 250.0, 250.0, 159.5, 60.0)  # horizon at row 60, looking level
    v = np.arange(240)[:, None] - 60.0
    floor = np.where(v > 0, height_m * 250.0 / np.maximum(v, 0.1), np.nan)
    depth = np.broadcast_to(floor, (240, 320)).astype(np.float32)
    depth = np.ascontiguousarray(depth)
    flying_pixels(depth, camera, angle_deg)
    # the step from row v to v + 1 below the horizon is removed while v < f tan(angle)
    row = math.ceil(250.0 * math.tan(math.radians(angle_deg)))
    assert np.nanmax(depth) == pytest.approx(height_m * 250.0 / (row + 1))
    # which is h / tan(angle) but for the pixel that both steps share
    assert np.nanmax(depth) == pytest.approx(height_m / math.tan(math.radians(angle_deg)),
                                             rel=2 / row)


def test_unknown_neighbours_remove_nothing():
    depth = np.full((120, 170), 2.0, np.float32)
    depth[50:60, 50:60] = np.nan
    depth[70:80, 70:80] = np.inf
    before = np.isfinite(depth[40:50, 40:50]).all()
    removed = flying_pixels(depth, CAMERA, 4.0)
    assert before
    assert np.isnan(depth[50:60, 50:60]).all()
    # a step to Inf is a step: its rim goes, the unknown's rim stays
    assert removed == 4 * 10
    assert np.isfinite(depth[49, 50:60]).all()


def test_angle_zero_switches_the_filter_off():
    depth = np.random.default_rng(1).uniform(0.5, 9, CAMERA.size_hw).astype(np.float32)
    before = depth.copy()
    assert flying_pixels(depth, CAMERA, 0.0) == 0
    np.testing.assert_array_equal(depth, before)


def test_camera_of_another_size_is_refused():
    with pytest.raises(ValueError, match='120, 170'):
        flying_pixels(np.ones((10, 10), np.float32), CAMERA, 4.0)


@given(near=st.floats(-1, 20), far=st.floats(-1, 20))
def test_settings_refuse_empty_ranges(near, far):
    if 0 <= near < far:
        assert FilterSettings(near, far).range_m((1.0, 2.0)) == (near, far)
    else:
        with pytest.raises(ValueError, match='near'):
            FilterSettings(near, far)


def test_settings_fall_back_to_the_card():
    assert FilterSettings().range_m((0.2, 9.0)) == (0.2, 9.0)
    assert FilterSettings(far_m=5.0).range_m((0.2, 9.0)) == (0.2, 5.0)
    assert FilterSettings().range_m(None) == (0.0, math.inf)


@pytest.mark.parametrize(('changes', 'reason'), [
    ({'flying_pixel_angle_deg': -1.0}, 'angle'), ({'flying_pixel_angle_deg': 45.0}, 'angle'),
    ({'flying_pixel_jump': 1.5}, 'jump 1.5, expected 0 to 1'),
    ({'flying_pixel_jump': math.nan}, 'jump'), ({'speckle_jump': 0.0}, 'speckle jump'),
    ({'speckle_px': -1}, 'speckle of -1'), ({'median': 4}, 'one of 0, 3, 5'),
    ({'temporal': 'kalman'}, 'off, ema, median'), ({'temporal_frames': 1}, '2 to 15'),
    ({'temporal_gate': 0.0}, 'temporal gate'), ({'min_confidence': 1.1}, 'confidence'),
    ({'roi': (0, -1, 5, 5)}, 'region'), ({'ignore': (((0.0, 0.0), (1.0, 1.0)),)}, '2 corners')])
def test_settings_refuse_what_means_nothing(changes, reason):
    with pytest.raises(ValueError, match=reason):
        FilterSettings(**changes)


def test_settings_that_are_off_change_no_depth():
    depth = np.random.default_rng(1).uniform(0.01, 90, CAMERA.size_hw).astype(np.float32)
    depth[3:9, 4:7] = np.nan
    chain, found = FilterChain(OFF), depth.copy()
    assert chain.on_grid(found, CAMERA, stamp=1.0) == {}
    assert chain.on_image(found, range_m=(0.2, 8.0)) == {}
    np.testing.assert_array_equal(found, depth)


# --- flying pixels: jumps


def plane(camera, normal, offset):
    """Return the depth of the plane normal . X = offset; NaN where it is not seen."""
    v, u = np.mgrid[0:camera.size_hw[0], 0:camera.size_hw[1]]
    nearness = (normal[0] * (u - camera.cx) / camera.fx + normal[1] * (v - camera.cy) / camera.fy
                + normal[2]) / offset
    return np.where(nearness > 1e-3, 1 / np.maximum(nearness, 1e-3), np.nan).astype(np.float32)


@given(pan=st.floats(-80, 80), tilt=st.floats(-85, 85), offset=st.floats(0.1, 5))
@settings(max_examples=40, deadline=None)
def test_no_plane_is_a_jump_however_steep(pan, tilt, offset):
    pan, tilt = math.radians(pan), math.radians(tilt)
    normal = (math.sin(pan) * math.cos(tilt), math.sin(tilt), math.cos(pan) * math.cos(tilt))
    depth = plane(CAMERA, normal, offset)
    known = np.isfinite(depth)
    assert flying_pixels(depth, CAMERA, 0.0, 0.1) == 0
    np.testing.assert_array_equal(np.isfinite(depth), known)


@pytest.mark.parametrize('axis', [0, 1])
@pytest.mark.parametrize(('far', 'removed'), [(1.09, 0), (1.12, 2), (3.0, 2)])
def test_a_step_takes_the_pixel_on_either_side(axis, far, removed):
    depth = np.ones(CAMERA.size_hw, np.float32)
    beyond = (np.s_[60:], np.s_[:, 60:])[axis]
    depth[beyond] = far
    lines = CAMERA.size_hw[1 - axis]
    assert flying_pixels(depth, CAMERA, 0.0, 0.1) == removed * lines
    gone = np.isnan(depth).all(1 - axis)
    assert np.flatnonzero(gone).tolist() == ([59, 60] if removed else [])


def test_a_far_floor_stays_and_the_box_on_it_gets_its_edge():
    floor = plane(CAMERA, (0.0, 1.0, 0.05), 0.3)
    depth = floor.copy()
    depth[70:100, 60:90] = 0.5 * depth[100, 75]  # stands upright, its foot is on row 100
    removed = flying_pixels(depth, CAMERA, 0.0, 0.1)
    gone = np.isnan(depth) & np.isfinite(floor)
    assert removed == gone.sum() > 0
    rim = np.zeros(depth.shape, bool)
    rim[68:102, 58:92] = True
    rim[72:98, 62:88] = False
    assert not (gone & ~rim).any()
    assert gone[71:99, 59:61].all()
    assert np.nanmax(depth) == np.nanmax(floor) > 9  # 0.3 m high, so by the angle alone: 4.3 m


def test_unknown_neighbours_are_no_jump():
    depth = np.full(CAMERA.size_hw, 2.0, np.float32)
    depth[50:60, 50:60], depth[70:80, 70:80], depth[90:95, 9:19] = np.nan, np.inf, -3.0
    before = depth.copy()
    assert flying_pixels(depth, CAMERA, 0.0, 0.1) == 0
    np.testing.assert_array_equal(depth, before)


def test_a_crease_beside_an_unknown_pixel_is_no_jump():
    crease = 2.0 + 0.05 * np.abs(np.arange(170) - 80)  # bends, by less than a tenth per window
    depth = np.broadcast_to(crease, CAMERA.size_hw).astype(np.float32)
    depth[60, 80:82], depth[70, 79] = np.nan, np.inf
    before = depth.copy()
    assert flying_pixels(depth, CAMERA, 0.0, 0.1) == 0
    np.testing.assert_array_equal(depth, before)


@pytest.mark.parametrize('turn', [0, 1, 2, 3])
def test_the_rim_of_a_map_is_not_judged_but_shares_the_verdict_beside_it(turn):
    size_hw = (120, 170) if turn % 2 == 0 else (170, 120)
    camera = Camera(size_hw, 151.0, 143.0, 60.0, 61.0)
    depth = np.full((120, 170), 2.0, np.float32)
    depth[:, -RIM_PX:] *= 0.7  # what padding does to a network's last columns
    bent = np.ascontiguousarray(np.rot90(depth, turn))
    assert flying_pixels(bent, camera, 4.0, 0.1) == 0
    depth[50:] = 5.0  # an edge that runs into the border
    edge = np.ascontiguousarray(np.rot90(depth, turn))
    flying_pixels(edge, camera, 4.0, 0.1)
    gone = np.isnan(np.rot90(edge, -turn))
    assert gone[49:51].all()
    assert not gone[:49].any()
    assert not gone[51:].any()


def room(camera):
    """Return the depth of a room with boxes, rendered by intersecting rays with planes."""
    v, u = np.mgrid[0:camera.size_hw[0], 0:camera.size_hw[1]]
    pitch = math.radians(18)
    x, down = (u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy
    rays = np.stack([x, down * math.cos(pitch) + math.sin(pitch),
                     math.cos(pitch) - down * math.sin(pitch)], -1)  # level frame, y down
    depth = np.full(camera.size_hw, np.inf)
    for axis, at in ((1, 1.1), (2, 4.2), (0, -1.9), (0, 2.2), (1, -1.3)):
        with np.errstate(divide='ignore'):
            hit = at / rays[..., axis]
        depth = np.where(hit > 0, np.minimum(depth, hit), depth)
    for low, high in (((-1.2, 0.4, 1.6), (-0.5, 1.1, 2.3)), ((0.3, -0.4, 2.4), (0.9, 1.1, 2.9)),
                      ((0.2, 0.5, 1.2), (0.6, 0.9, 1.5)), ((-0.4, -1.0, 3.0), (-0.3, 1.1, 3.1))):
        with np.errstate(divide='ignore'):
            a, b = np.array(low) / rays, np.array(high) / rays
        enter, leave = np.minimum(a, b).max(-1), np.maximum(a, b).min(-1)
        depth = np.where((enter < leave) & (enter > 0), np.minimum(depth, enter), depth)
    return depth.astype(np.float32)


@pytest.mark.parametrize(('sigma_px', 'at_most'), [(0.7, 0.001), (1.0, 0.003), (2.0, 0.02)])
def test_what_a_blur_hangs_between_surfaces_goes_and_the_surfaces_stay(sigma_px, at_most):
    camera = Camera((144, 208), 172.0, 158.0, 99.0, 75.0)
    truth = room(camera)
    coarse = cv2.GaussianBlur(truth, (0, 0), sigma_px)

    def cloud(settings):
        grid = coarse.copy()
        FilterChain(settings).on_grid(grid, camera)
        fine = cv2.resize(grid, (520, 360), interpolation=cv2.INTER_LINEAR)
        points = depth_to_points(fine, camera.scaled((360, 520)))
        return fine, flying_points(points, truth, camera)

    plain, before = cloud(OFF)
    found, after = cloud(FilterSettings())
    surface = np.isfinite(plain) & ~before.is_flying
    assert before.share > 0.03
    assert after.share <= at_most
    assert (np.isfinite(found) & surface).sum() >= 0.93 * surface.sum()


# --- speckle


def patches(depth, jump):
    """Return the size of the connected patch of each pixel, by walking."""
    sizes, seen = np.zeros(depth.shape, int), np.zeros(depth.shape, bool)
    for start in itertools.product(*map(range, depth.shape)):
        if seen[start] or not np.isfinite(depth[start]):
            continue
        patch, queue = [], deque([start])
        seen[start] = True
        while queue:
            v, u = queue.popleft()
            patch.append((v, u))
            for near in ((v - 1, u), (v + 1, u), (v, u - 1), (v, u + 1)):
                if (0 <= near[0] < depth.shape[0] and 0 <= near[1] < depth.shape[1]
                        and not seen[near] and np.isfinite(depth[near])
                        and max(depth[near], depth[v, u]) <= (1 + jump) * min(depth[near],
                                                                              depth[v, u])):
                    seen[near] = True
                    queue.append(near)
        for pixel in patch:
            sizes[pixel] = len(patch)
    return sizes


@pytest.mark.parametrize(('seed', 'jump', 'min_px'), [(1, 0.1, 5), (2, 0.25, 12), (3, 0.05, 3),
                                                      (4, 0.1, 2)])
def test_speckle_takes_the_patches_that_a_walk_finds(seed, jump, min_px):
    rng = np.random.default_rng(seed)
    # levels that differ by 8 % or 16 % ...: clear of the 0.05 % to which steps are rounded
    depth = (0.4 * 1.08 ** rng.integers(0, 5, (37, 53))).astype(np.float32)
    depth[rng.random(depth.shape) < 0.2] = np.nan
    depth[rng.random(depth.shape) < 0.05] = np.inf
    small = np.isfinite(depth) & (patches(depth, jump) < min_px)
    before = depth.copy()
    assert 20 < small.sum() < np.isfinite(depth).sum() - 20
    assert speckle(depth, min_px, jump) == small.sum()
    np.testing.assert_array_equal(np.isnan(depth), np.isnan(before) | small)
    np.testing.assert_array_equal(depth[~small], before[~small])


@given(depth=st.floats(1e-5, 1e5), share=st.floats(0.002, 1.0), wide=st.booleans())
@settings(deadline=None)
def test_speckle_cuts_where_neighbours_differ_by_more_than_the_share(depth, share, wide):
    step = 1 + share * (1.01 if wide else 0.99) + (0.001 if wide else -0.001)
    image = np.full((9, 11), np.nan, np.float32)
    image[4, 3:5] = depth, depth * step
    assert speckle(image, 2, share) == (2 if wide else 0)


def test_speckle_of_a_pixel_or_less_is_off():
    depth = np.random.default_rng(1).uniform(0.1, 9, (20, 30)).astype(np.float32)
    assert speckle(depth.copy(), 0, 0.01) == speckle(depth.copy(), 1, 0.01) == 0


# --- median


@pytest.mark.parametrize('size', [3, 5])
@pytest.mark.parametrize('unknown', [0.0, 0.02, 0.4, 0.97])
def test_median_is_that_of_the_known_pixels_in_the_window(size, unknown):
    rng = np.random.default_rng(5)
    depth = rng.uniform(0.2, 9, (41, 67)).astype(np.float32)
    lost = rng.random(depth.shape)
    depth[lost < unknown] = np.nan
    depth[lost < unknown / 3] = np.inf
    depth[lost < unknown / 6] = -np.inf
    known = np.where(np.isfinite(depth), depth, np.nan)
    padded = np.pad(known, size // 2, mode='edge')
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', RuntimeWarning)  # of windows without any depth
        expected = np.nanmedian(windows, (2, 3))
    found = depth.copy()
    median(found, size)
    np.testing.assert_allclose(found, np.where(np.isfinite(depth), expected, depth), rtol=1e-6)


# --- time


def picture(seed=0, size_hw=(48, 70)):
    low = np.random.default_rng(seed).integers(30, 220, (9, 13, 3), np.uint8)
    return cv2.resize(low, size_hw[::-1], interpolation=cv2.INTER_CUBIC)


def noisy_depths(count, share=0.01, seed=0, size_hw=(48, 70)):
    rng = np.random.default_rng(seed)
    base = rng.uniform(1, 4, size_hw)
    return [np.asarray(base * (1 + share * rng.standard_normal(size_hw)), np.float32)
            for _ in range(count)]


def run_all(temporal, depths, pictures=None, start=10.0, step=0.1, **more):
    results = []
    for index, depth in enumerate(depths):
        found = depth.copy()
        shown = None if pictures is None else pictures[index]
        temporal(found, start + index * step, picture=shown, **more)
        results.append(found)
    return results


def test_ema_is_the_mean_of_what_came_and_then_forgets_by_one_part_in_frames():
    depths = noisy_depths(12)
    found = run_all(TemporalFilter('ema', 5, 0.5), depths)
    state = depths[0].astype(np.float64)
    for index, depth in enumerate(depths):
        state += (depth - state) / min(index + 1, 5)
        np.testing.assert_allclose(found[index], state, rtol=1e-5)
        if index < 5:
            np.testing.assert_allclose(found[index], np.mean(depths[:index + 1], 0), rtol=1e-5)


def test_median_over_time_is_that_of_the_last_frames():
    depths = noisy_depths(9)
    depths[6][5:9] *= 1.3  # one bad frame, within the gate
    found = run_all(TemporalFilter('median', 5, 0.5), depths)
    for index in range(9):
        np.testing.assert_allclose(
            found[index], np.median(depths[max(0, index - 4):index + 1], 0), rtol=1e-6)


@pytest.mark.parametrize(('mode', 'least'), [('ema', 3.0), ('median', 2.2)])
def test_a_static_scene_becomes_steady_though_the_camera_is_noisy(mode, least):
    rng = np.random.default_rng(3)
    shown = [np.clip(picture() + rng.normal(0, 2, (48, 70, 3)), 0, 255).astype(np.uint8)
             for _ in range(80)]
    depths = noisy_depths(80)
    found = run_all(TemporalFilter(mode, 8, 0.06), depths, shown)
    before, after = (np.median(np.std(part[10:], 0)) for part in (depths, found))
    assert before / after >= least
    assert abs(np.mean(found[10:]) / np.mean(depths[10:]) - 1) < 1e-3


def test_what_moves_in_the_picture_is_followed_at_once_and_the_rest_stays_calm():
    depths = noisy_depths(6, share=0.001)
    shown = [picture() for _ in depths]
    shown[5] = shown[5].copy()
    shown[5][20:26, 30:36] //= 2
    temporal = TemporalFilter('ema', 8, 0.05)
    found = run_all(temporal, depths, shown)
    same = found[5] == depths[5]
    reach = TemporalFilter.REACH_PX
    assert same[20 - reach:26 + reach, 30 - reach:36 + reach].all()
    far = np.ones(same.shape, bool)
    far[20 - reach - 1:26 + reach + 1, 30 - reach - 1:36 + reach + 1] = False
    assert same[far].mean() < 0.02
    assert temporal.smoothed_share == pytest.approx(1 - same.mean(), abs=0.02)


def test_a_camera_that_moves_has_no_lag_where_depth_alone_would_hide_it():
    wide = picture(4, (48, 140))
    depths = [np.full((48, 70), 2 - 0.01 * index, np.float32) for index in range(10)]
    shown = [np.ascontiguousarray(wide[:, 3 * index:3 * index + 70]) for index in range(10)]
    found = run_all(TemporalFilter('ema', 8, 0.05), depths, shown)
    blind = run_all(TemporalFilter('ema', 8, 0.05), depths)
    for index in range(1, 10):
        np.testing.assert_array_equal(found[index], depths[index])
        assert (blind[index] > depths[index]).all()  # each step of 0.5 % is within the gate


def test_motion_that_creeps_is_seen_against_the_picture_of_the_mean():
    shown = [np.full((48, 70, 3), 100 + 2 * index, np.uint8) for index in range(8)]
    temporal = TemporalFilter('ema', 8, 0.5)
    smoothed = []
    for index, depth in enumerate(noisy_depths(8)):
        temporal(depth, 1 + index / 10, picture=shown[index])
        smoothed.append(temporal.smoothed_share)
    # two grey levels per frame, against the mean of all before: 2, 3, 4, and then 5
    assert smoothed == [0, 1, 1, 1, 0, 1, 1, 1]


def test_depth_beyond_the_gate_is_followed_and_depth_within_it_is_not():
    first = np.full((6, 9), 2.0, np.float32)
    second = first.copy()
    second[0], second[1], second[2] = 2.09, 2.11, 1.89
    third = second * np.float32(1.01)
    _, found, then = run_all(TemporalFilter('ema', 8, 0.05), [first, second, third])
    np.testing.assert_allclose(found[0], 2.045)
    np.testing.assert_array_equal(found[1:3], second[1:3])
    np.testing.assert_allclose(then[0], (2.0 + second[0] + third[0]) / 3, rtol=1e-6)
    np.testing.assert_allclose(then[1:3], (second[1:3] + third[1:3]) / 2, rtol=1e-6)


@pytest.mark.parametrize('mode', ['ema', 'median'])
def test_an_unknown_pixel_stays_unknown_and_forgets(mode):
    first, second, third = noisy_depths(3)
    second[7, 3], second[8, 3], second[9, 3] = np.nan, np.inf, -np.inf
    found = run_all(TemporalFilter(mode, 8, 0.5), [first, second, third])
    np.testing.assert_array_equal(found[1][7:10, 3], second[7:10, 3])
    np.testing.assert_array_equal(found[2][7:10, 3], third[7:10, 3])
    assert (found[2] != third).mean() > 0.6


@pytest.mark.parametrize('jump', ['same stamp', 'back', 'gap', 'size', 'context', 'no picture',
                                  'first picture', 'reset'])
@pytest.mark.parametrize('mode', ['ema', 'median'])
def test_frames_that_do_not_belong_together_start_anew(mode, jump):
    depths = noisy_depths(4)
    temporal = TemporalFilter(mode, 8, 0.5)
    shown = picture()
    run_all(temporal, depths[:3], None if jump == 'first picture' else [shown] * 3, context='a')
    last, stamp, context = depths[3].copy(), 10.3, 'a'
    if jump in ('same stamp', 'back', 'gap'):
        stamp = {'same stamp': 10.2, 'back': 9.0, 'gap': 12.5}[jump]
    elif jump == 'size':
        last = np.ascontiguousarray(last[:40])
    elif jump == 'context':
        context = 'b'
    elif jump == 'reset':
        temporal.reset()
    found = last.copy()
    temporal(found, stamp, picture=None if jump == 'no picture' else shown, context=context)
    np.testing.assert_array_equal(found, last)
    assert temporal.smoothed_share == 0
    again = depths[0].copy()  # and goes on from there
    temporal(again, stamp + 0.1, picture=None if jump == 'no picture' else shown,
             context=context)
    if jump != 'size':
        np.testing.assert_allclose(again, (last + depths[0]) / 2, rtol=1e-5)


def test_frames_that_belong_together_do_not_start_anew():
    depths = noisy_depths(2)
    found = run_all(TemporalFilter('ema', 8, 0.5), depths, [picture()] * 2, context='a')
    np.testing.assert_allclose(found[1], (depths[0] + depths[1]) / 2, rtol=1e-5)


# --- masks


def test_region_polygon_and_mask_remove_exactly_their_pixels_once(tmp_path):
    mask = np.full((60, 90), 255, np.uint8)
    mask[50:, 20:50] = 0
    cv2.imwrite(str(tmp_path / 'mask.png'), mask)
    chain = FilterChain(FilterSettings(
        near_m=0.0, far_m=math.inf, roi=(5, 7, 70, 0),
        ignore=(((10.0, 40.0), (30.0, 40.0), (30.0, 55.0), (10.0, 55.0)),),
        mask_file=str(tmp_path / 'mask.png')))
    depth = np.full((60, 90), 2.0, np.float32)
    depth[45, 12], depth[52, 40], depth[0, 0] = np.nan, np.inf, -np.inf
    counts = chain.on_image(depth)
    v, u = np.mgrid[0:60, 0:90]
    outside = (u < 5) | (u >= 75) | (v < 7)
    polygon = (u >= 10) & (u <= 30) & (v >= 40) & (v <= 55) & ~outside
    masked = (v >= 50) & (u >= 20) & (u < 50) & ~outside & ~polygon
    np.testing.assert_array_equal(np.isnan(depth), outside | polygon | masked)
    # what was not finite before has been counted by what made it so
    assert counts == {'too_near': 1, 'outside_roi': outside.sum() - 1,
                      'ignore_polygon': polygon.sum() - 1, 'mask': masked.sum() - 1}
    assert (depth[~(outside | polygon | masked)] == 2.0).all()


def test_a_triangle_takes_what_is_inside_of_its_three_lines():
    corners = np.array([(12.0, 8.0), (80.0, 20.0), (30.0, 55.0)])
    chain = FilterChain(FilterSettings(
        near_m=0.0, far_m=math.inf, ignore=(tuple(map(tuple, corners)),)))
    depth = np.ones((60, 90), np.float32)
    chain.on_image(depth)
    v, u = np.mgrid[0:60, 0:90]
    ends = np.roll(corners, -1, 0)
    away = []  # signed distance of each pixel to each side, positive inside
    for (u0, v0), (u1, v1) in zip(corners, ends, strict=True):
        cross = (u1 - u0) * (v - v0) - (v1 - v0) * (u - u0)
        away.append(cross / math.hypot(u1 - u0, v1 - v0))
    inside = np.min(away, 0)
    assert np.isnan(depth[inside > 0]).all()
    assert (depth[inside < -1.1] == 1).all()  # what touches a side by less than a pixel goes too


def test_a_mask_of_another_size_or_none_is_not_applied_and_says_so(tmp_path):
    file = tmp_path / 'mask.png'
    cv2.imwrite(str(file), np.zeros((30, 50), np.uint8))
    chain = FilterChain(FilterSettings(mask_file=str(file)))
    depth = np.ones((60, 90), np.float32)
    assert chain.on_image(depth) == {}
    assert '50x30' in chain.notes[0]
    assert '90x60' in chain.notes[0]
    assert chain.on_image(np.ones((30, 50), np.float32)) == {'mask': 1500}
    assert chain.notes == ()
    file.unlink()
    chain.reset()
    assert chain.on_image(np.ones((30, 50), np.float32)) == {}
    assert 'No such file' in chain.notes[0]


def test_masks_follow_the_settings_and_are_not_read_again_for_every_frame(tmp_path):
    file = tmp_path / 'mask.png'
    cv2.imwrite(str(file), np.zeros((30, 50), np.uint8))
    chain = FilterChain(FilterSettings(mask_file=str(file)))
    assert chain.on_image(np.ones((30, 50), np.float32)) == {'mask': 1500}
    file.unlink()
    chain.update(FilterSettings(mask_file=str(file)))
    assert chain.on_image(np.ones((30, 50), np.float32)) == {'mask': 1500}
    chain.update(FilterSettings(roi=(0, 0, 40, 30)))
    assert chain.on_image(np.ones((30, 50), np.float32)) == {'outside_roi': 300}
    chain.update(FilterSettings())
    assert chain.on_image(np.ones((30, 50), np.float32)) == {}


def test_mask_files_that_are_none_are_refused(tmp_path):
    (tmp_path / 'text.png').write_text('no picture')
    (tmp_path / 'empty.png').write_bytes(b'')
    for name in ('text.png', 'empty.png'):
        with pytest.raises(ValueError, match='not a picture'):
            read_mask(tmp_path / name)
    with pytest.raises(ValueError, match='No such file'):
        read_mask(tmp_path / 'missing.png')
    with pytest.raises(ValueError, match='directory'):
        read_mask(tmp_path)


def test_polygons_are_read_as_nav2_writes_them():
    square = ((0.0, 1.5), (4.0, 1.0), (4.0, 5.0))
    assert parse_polygons('') == parse_polygons('  ') == parse_polygons('[]') == ()
    assert parse_polygons('[[0, 1.5], [4, 1], [4, 5]]') == (square,)
    assert parse_polygons('[[[0, 1.5], [4, 1], [4, 5]], [[9, 9], [8, 9], [8, 8]]]') == (
        square, ((9.0, 9.0), (8.0, 9.0), (8.0, 8.0)))


@pytest.mark.parametrize('text', [
    '[[0, 1], [2, 3]]', '[[0, 1], [2, 3], [4]]', '[[0, 1], [2, 3], [4, "a"]]', '{"a": 1}', '7',
    '[[0, 1], [2, 3], [4, NaN]]', '[[0, 1], [2, 3], [4, Infinity]]', '[[0, 1], [2, 3], [4, 1e9]]',
    '[[0, 1], [2, 3]', '[1, 2, 3]', '[[true, 1], [2, 3], [4, 5]]', '[[]]', 'polygon'])
def test_other_polygons_are_refused_with_what_is_expected(text):
    with pytest.raises(ValueError, match=r"expected '\[\[u, v\]"):
        parse_polygons(text)


# --- the chain


def test_confidence_below_the_minimum_and_unknown_confidence_remove():
    depth = np.full((4, 6), 2.0, np.float32)
    sure = np.linspace(0, 1, 24, dtype=np.float32).reshape(4, 6)
    sure[0, 0] = 0.9
    sure[3, 5] = np.nan
    chain = FilterChain(FilterSettings(min_confidence=0.5))
    low = ~(sure >= 0.5)
    assert chain.on_image(depth, confidence=sure) == {'low_confidence': low.sum()}
    np.testing.assert_array_equal(np.isnan(depth), low)
    assert chain.notes == ()
    assert chain.on_image(np.ones((4, 6), np.float32)) == {}
    assert 'min_confidence 0.5' in chain.notes[0]


def test_sky_is_out_of_range_but_what_is_masked_stays_unknown():
    depth = np.full((20, 30), 2.0, np.float32)
    depth[2, 3], depth[4, 5] = np.nan, 0.05
    sky, inside = np.zeros((20, 30), bool), np.ones((20, 30), bool)
    sky[:10], inside[:, :4] = True, False
    chain = FilterChain(FilterSettings(roi=(0, 0, 25, 20)))
    counts = chain.on_image(depth, range_m=(0.1, 8.0), sky=sky, inside=inside)
    expected = np.full((20, 30), 2.0, np.float32)
    expected[:10], expected[:, :4], expected[:, 25:] = np.inf, np.nan, np.nan
    np.testing.assert_array_equal(depth, expected)
    assert counts == {'too_near': 1, 'sky': 298, 'outside_image': 40, 'outside_roi': 50}
    lost = np.full((20, 30), np.nan, np.float32)
    assert chain.on_image(lost, sky=sky) == {}
    assert np.isposinf(lost[:10, :25]).all()


def test_speckle_is_given_in_pixels_of_the_image():
    depth = np.full((48, 64), np.nan, np.float32)
    depth[10:13, 10:14] = 2.0  # 12 pixels of the grid: 300 of an image five times as wide
    for pixels, removed in ((300, 0), (301, 12)):
        chain = FilterChain(FilterSettings(
            flying_pixel_angle_deg=0.0, flying_pixel_jump=0.0, speckle_px=pixels))
        found = chain.on_grid(depth.copy(), Camera((48, 64), 60.0, 50.0, 31.5, 23.5),
                              image_size_hw=(240, 320))
        assert found == ({'speckle': removed} if removed else {})


def test_temporal_memory_outlives_other_settings_and_not_its_own():
    camera = Camera((48, 70), 60.0, 50.0, 31.5, 23.5)
    first, second, third = noisy_depths(3)
    base = FilterSettings(near_m=0.0, far_m=math.inf, flying_pixel_angle_deg=0.0,
                          flying_pixel_jump=0.0, temporal='ema', temporal_gate=0.5)
    chain = FilterChain(base)
    chain.on_grid(first.copy(), camera, stamp=1.0)
    chain.update(FilterSettings(**{**vars(base), 'near_m': 0.1}))
    found = second.copy()
    chain.on_grid(found, camera, stamp=1.1)
    np.testing.assert_allclose(found, (first + second) / 2, rtol=1e-5)
    assert chain.smoothed_share == 1
    chain.update(FilterSettings(**{**vars(base), 'temporal_frames': 4}))
    found = third.copy()
    chain.on_grid(found, camera, stamp=1.2)
    np.testing.assert_array_equal(found, third)
    chain.update(OFF)
    assert chain.smoothed_share == 0
    assert chain.settings is OFF


def test_another_camera_starts_anew():
    first, second = noisy_depths(2)
    chain = FilterChain(FilterSettings(flying_pixel_angle_deg=0.0, flying_pixel_jump=0.0))
    chain.on_grid(first.copy(), Camera((48, 70), 60.0, 50.0, 31.5, 23.5), stamp=1.0)
    found = second.copy()
    chain.on_grid(found, Camera((48, 70), 61.0, 50.0, 31.5, 23.5), stamp=1.1)
    np.testing.assert_array_equal(found, second)


EVERYTHING = FilterSettings(
    near_m=0.5, far_m=20.0, speckle_px=9, median=3, temporal='median', temporal_frames=3,
    min_confidence=0.3, roi=(1, 1, 11, 9), ignore=(((2.0, 2.0), (5.0, 2.0), (5.0, 4.0)),))


@given(data=st.data(), mode=st.sampled_from(['off', 'ema', 'median']),
       size=st.sampled_from([0, 3, 5]))
@settings(max_examples=80, deadline=None)
def test_no_image_breaks_the_chain_and_no_depth_is_invented(data, mode, size):
    shape = data.draw(st.sampled_from([(1, 1), (1, 7), (5, 2), (9, 13)]))
    numbers = st.floats(width=32) | st.sampled_from(
        [math.nan, math.inf, -math.inf, 0.0, -0.0, -2.0, 1e-45, 3e38, 1.0, 2.0, 2.05])
    camera = Camera(shape, 9.0, 7.0, 3.0, 2.0)
    chain = FilterChain(FilterSettings(**{**vars(EVERYTHING), 'temporal': mode, 'median': size}))
    for number in range(3):
        depth = data.draw(arrays.arrays(np.float32, shape, elements=numbers))
        known = np.isfinite(depth)
        kept = depth.copy()
        chain.on_grid(depth, camera, stamp=1 + number / 10)
        assert not (np.isfinite(depth) & ~known).any()
        np.testing.assert_array_equal(depth[~known], kept[~known])  # Inf stays Inf
        assert np.isnan(depth[known & ~np.isfinite(depth)]).all()
        left = np.isfinite(depth)
        sure = data.draw(arrays.arrays(np.float32, shape, elements=st.floats(0, 1, width=32)))
        infinite = int(np.isinf(depth).sum())
        counts = chain.on_image(depth, confidence=sure)
        final = np.isfinite(depth)
        assert not (final & ~left).any()
        assert ((depth[final] >= 0.5) & (depth[final] <= 20)).all()
        # what was infinite before is counted again as out of range, nothing else twice
        lost = int((left & ~final).sum())
        assert lost <= sum(counts.values()) <= lost + infinite
