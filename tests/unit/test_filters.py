"""Filters: REP 117 marks, and slopes kept or removed by their angle to the ray."""

import math

from depth_node.camera import Camera
from depth_node.filters import FilterSettings, flying_pixels, range_clip
from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

CAMERA = Camera((120, 170), 151.0, 143.0, 84.0, 61.0)


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


@pytest.mark.parametrize('angle', [-1.0, 45.0, 90.0])
def test_settings_refuse_angles_that_keep_nothing(angle):
    with pytest.raises(ValueError, match='angle'):
        FilterSettings(flying_pixel_angle_deg=angle)
