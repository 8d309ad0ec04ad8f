"""Flying points against a scene of two walls whose geometry is known."""

from dataclasses import dataclass
import math

from depth_node.evaluation.flying import (
    flying_pixels_of_depth,
    flying_points,
    hanging_at_edges,
)
import numpy as np
import pytest


@dataclass(frozen=True)
class Pinhole:
    size_hw: tuple = (40, 60)
    fx: float = 50.0
    fy: float = 55.0
    cx: float = 31.0
    cy: float = 18.0


CAMERA = Pinhole()


def two_walls():
    """A near wall at 1 m left of column 30, a far one at 2 m."""
    true = np.full(CAMERA.size_hw, 2.0, np.float32)
    true[:, :30] = 1.0
    return true


def points_of(depth):
    v, u = np.mgrid[0 : depth.shape[0], 0 : depth.shape[1]]
    x = (u - CAMERA.cx) / CAMERA.fx * depth
    y = (v - CAMERA.cy) / CAMERA.fy * depth
    return np.stack([x, y, depth], axis=-1)


def ramp():
    """What a network draws: columns 26 to 33 climb from 1 to 2 m."""
    depth = two_walls().astype(np.float64)
    depth[:, 26:34] = 1 + (np.arange(8) + 0.5) / 8  # 1.0625, 1.1875, ... 1.9375
    return depth


def test_true_cloud_has_no_flying_points():
    result = flying_points(points_of(two_walls()), two_walls(), CAMERA)
    assert (result.judged, result.flying, result.unjudged) == (2400, 0, 0)
    assert result.share == 0
    assert result.coverage == 1


def test_ramp_between_walls_flies():
    # tolerances 5 cm (at 1 m) and 6 cm (at 2 m): all eight columns are farther from both
    result = flying_points(points_of(ramp()), two_walls(), CAMERA)
    assert result.flying == 8 * 40
    assert result.is_flying[:, 26:34].all()
    assert not result.is_flying[:, :26].any()
    assert result.share == pytest.approx(320 / 2400)


def test_larger_of_the_two_tolerances_counts():
    wide = flying_points(points_of(ramp()), two_walls(), CAMERA, tolerance_m=0.07)
    # 1.0625 is near 1 m on its own ray; 1.9375 near 2 m (column 33 sees the far wall)
    assert wide.flying == 6 * 40
    relative = flying_points(
        points_of(ramp()), two_walls(), CAMERA, tolerance_m=0.0, tolerance_share=0.04
    )
    assert relative.flying == 7 * 40  # 8 cm at 2 m takes 1.9375 in, 4 cm at 1 m leaves 1.0625 out


def test_edge_off_by_one_pixel_is_forgiven_and_by_three_is_not():
    shifted = np.roll(two_walls(), 1, axis=1)
    shifted[:, 0] = 1.0
    assert flying_pixels_of_depth(shifted, two_walls()).flying == 0
    assert flying_pixels_of_depth(shifted, two_walls(), radius_px=0).flying == 40
    shifted = two_walls()
    shifted[:, 30:33] = 1.0
    assert flying_pixels_of_depth(shifted, two_walls()).flying == 2 * 40


def test_order_of_points_does_not_matter():
    points = points_of(ramp()).reshape(-1, 3)
    order = np.random.default_rng(0).permutation(len(points))
    flat = flying_points(points, two_walls(), CAMERA)
    mixed = flying_points(points[order], two_walls(), CAMERA)
    assert flat.is_flying.shape == (2400,)
    assert (mixed.is_flying == flat.is_flying[order]).all()


def test_depth_image_and_cloud_give_the_same_verdict():
    rng = np.random.default_rng(1)
    depth = rng.uniform(0.8, 2.2, CAMERA.size_hw)
    depth[rng.random(CAMERA.size_hw) < 0.2] = np.nan
    depth[0, 0] = np.inf
    true = two_walls()
    true[rng.random(CAMERA.size_hw) < 0.5] = np.nan
    of_depth = flying_pixels_of_depth(depth, true)
    of_cloud = flying_points(points_of(depth), true, CAMERA)
    assert 0 < of_depth.flying < of_depth.judged < 2400
    assert (of_depth.is_flying == of_cloud.is_flying).all()
    assert of_depth.coverage == pytest.approx(of_cloud.coverage)


def test_coverage_and_points_that_cannot_be_judged():
    true = two_walls()
    true[:, 40:] = np.nan
    depth = two_walls()
    depth[:20] = np.nan
    result = flying_points(points_of(depth), true, CAMERA)
    assert result.coverage == pytest.approx(0.5)  # 20 of 40 rows of the known 40 columns
    assert result.judged == 20 * 41  # column 40 has a known neighbour
    assert result.unjudged == 20 * 19
    outside = flying_points(np.array([[5.0, 0.0, 1.0], [0.0, 0.0, -1.0]]), true, CAMERA)
    assert (outside.judged, outside.unjudged) == (0, 1)
    assert math.isnan(outside.share)


def test_alignment_judges_the_shape_only():
    far = points_of(two_walls() * 1.3)
    assert flying_points(far, two_walls(), CAMERA).share == 1
    aligned = flying_points(far, two_walls(), CAMERA, align_scale=True)
    assert aligned.scale == pytest.approx(1 / 1.3)
    assert aligned.flying == 0


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match='camera belongs to'):
        flying_points(points_of(two_walls()), np.ones((4, 5)), CAMERA)
    with pytest.raises(ValueError, match='expected \\(N, 3\\)'):
        flying_points(np.zeros((4, 2)), two_walls(), CAMERA)
    with pytest.raises(ValueError, match='negative'):
        flying_pixels_of_depth(two_walls(), two_walls(), radius_px=-1)
    with pytest.raises(ValueError, match='resize'):
        flying_pixels_of_depth(np.ones((3, 4)), two_walls())


def test_ramp_hangs_whatever_the_scale_and_the_shift_of_the_prediction():
    # columns 27 to 32 are farther than 5 cm from 1 m and 6 cm from 2 m; 26 and 33 are 6.25 cm off
    for scale, shift in ((1.0, 0.0), (2.5, 0.0), (0.4, 3.0)):
        result = hanging_at_edges(ramp() * scale + shift, two_walls(), window_px=6)
        hangs = np.zeros(CAMERA.size_hw, bool)
        drawn = result.near_edge - result.missed
        if scale != 0.4:
            hangs[:, 26:34] = True
            assert result.missed == 0
            assert result.share == pytest.approx(8 / 14)  # columns 23 to 36 are within 6 of 29, 30
        else:  # 3.4 to 3.8 m: less than half of the step
            assert drawn == 0
            assert math.isnan(result.share)
        np.testing.assert_array_equal(result.hanging, hangs)


@pytest.mark.parametrize('turned', [False, True])
def test_window_of_an_edge_reaches_as_far_as_it_says(turned):
    true = two_walls()
    predicted = true.copy()
    predicted[:, 45:50] = 1.5  # in the air, but far from the edge at 29, 30
    predicted[:, 33] = 1.5  # 3 pixels from it
    if turned:
        true, predicted = true.T, predicted.T
    near = hanging_at_edges(predicted, true, window_px=3)
    hangs = near.hanging.T if turned else near.hanging
    assert np.flatnonzero(hangs.all(0)).tolist() == [33]
    assert hangs.sum() == 40
    assert near.near_edge == 40 * 8  # columns 26 to 33
    assert not hanging_at_edges(predicted, true, window_px=2).hanging.any()


def test_border_that_is_off_within_the_window_does_not_hang():
    shifted = two_walls()
    shifted[:, 30:33] = 1.0
    assert not hanging_at_edges(shifted, two_walls()).hanging.any()


def test_unknown_pixels_are_no_edge_and_do_not_hang():
    true, predicted = two_walls(), ramp()
    true[:, 20:40] = np.nan
    assert hanging_at_edges(predicted, true).near_edge == 0
    true = two_walls()
    predicted[10:20] = np.nan
    result = hanging_at_edges(predicted, true, window_px=6)
    assert not result.hanging[10:20].any()
    assert result.hanging[25:, 26:34].all()
    assert result.near_edge == 30 * 14


def test_hanging_refuses_what_cannot_be_compared():
    with pytest.raises(ValueError, match='one size'):
        hanging_at_edges(np.ones((3, 4)), two_walls())
    with pytest.raises(ValueError, match='0 px'):
        hanging_at_edges(two_walls(), two_walls(), window_px=0)
