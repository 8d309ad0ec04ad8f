"""Calibration against pictures drawn from known geometry."""

from __future__ import annotations

import cv2
from depth_node import calibration
from depth_node.calibration import CalibrationError, Sample, Settings
from depth_node.camera import Camera
from depth_node.scale import Scale
from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

CAMERA = Camera((480, 640), 520.0, 560.0, 331.0, 228.0)


def pose(seed: int, distance_m: float) -> tuple[np.ndarray, np.ndarray]:
    """A board that is turned by up to 30 degrees, about in the middle of the picture."""
    rng = np.random.default_rng(seed)
    turn = rng.uniform(-0.5, 0.5, 3)
    rotation = cv2.Rodrigues(turn)[0]
    return rotation, np.array([*rng.uniform(-0.05, 0.05, 2), distance_m])


def plane_depth(rotation: np.ndarray, place: np.ndarray) -> np.ndarray:
    """True depth of the board's plane in every pixel, by intersecting rays."""
    height, width = CAMERA.size_hw
    vv, uu = np.mgrid[0:height, 0:width]
    rays = np.stack([(uu - CAMERA.cx) / CAMERA.fx, (vv - CAMERA.cy) / CAMERA.fy,
                     np.ones_like(uu)], axis=-1)
    normal = rotation[:, 2]
    return (normal @ place) / (rays @ normal)


def seen(texture: np.ndarray, metres_per_px: float, rotation: np.ndarray, place: np.ndarray
         ) -> np.ndarray:
    """The picture of a flat texture whose middle is the board's origin."""
    height, width = texture.shape[:2]
    onto = np.array([[metres_per_px, 0, -metres_per_px * (width - 1) / 2],
                     [0, metres_per_px, -metres_per_px * (height - 1) / 2], [0, 0, 1]])
    warp = CAMERA.K @ np.column_stack([rotation[:, 0], rotation[:, 1], place]) @ onto
    warp *= np.sign(warp[2, 2])
    size = CAMERA.size_hw[1], CAMERA.size_hw[0]
    big = cv2.warpPerspective(texture, np.diag([2.0, 2.0, 1.0]) @ warp,
                              (2 * size[0], 2 * size[1]), flags=cv2.INTER_AREA,
                              borderValue=(120, 140, 130))
    return cv2.resize(big, size, interpolation=cv2.INTER_AREA)


def board_texture(columns: int, rows: int, square_px: int = 60) -> np.ndarray:
    squares = np.indices((rows + 1, columns + 1)).sum(axis=0) % 2
    grey = np.kron(255 * squares, np.ones((square_px, square_px))).astype(np.uint8)
    grey = cv2.copyMakeBorder(grey, square_px, square_px, square_px, square_px,
                              cv2.BORDER_CONSTANT, value=255)
    return np.repeat(grey[..., None], 3, axis=2)


@pytest.mark.parametrize('seed', range(4))
def test_chessboard_gives_the_depth_of_its_plane(seed: int):
    rotation, place = pose(seed, 0.7)
    rgb = seen(board_texture(7, 5), 0.03 / 60, rotation, place)
    found = calibration.chessboard(rgb, CAMERA, (7, 5), 0.03)
    assert found is not None
    inside = np.isfinite(found.depth)
    assert np.count_nonzero(inside) > 8000
    np.testing.assert_allclose(found.depth[inside], plane_depth(rotation, place)[inside],
                               rtol=0.006)
    # no pixel of the surroundings, whose depth is another, is among them
    outline = np.zeros(CAMERA.size_hw, np.uint8)
    cv2.fillConvexPoly(outline, np.round(found.outline).astype(np.int32), 1)
    assert not (inside & (outline == 0)).any()


@pytest.mark.parametrize('family', sorted(calibration.TAG_FAMILIES))
def test_tag_gives_the_depth_of_its_plane(family: str):
    rotation, place = pose(11, 0.6)
    dictionary = cv2.aruco.getPredefinedDictionary(
        getattr(cv2.aruco, calibration.TAG_FAMILIES[family]))
    marker = cv2.aruco.generateImageMarker(dictionary, 7, 400)
    texture = cv2.copyMakeBorder(marker, 80, 80, 80, 80, cv2.BORDER_CONSTANT, value=255)
    rgb = seen(np.repeat(texture[..., None], 3, axis=2), 0.16 / 400, rotation, place)
    found = calibration.tag(rgb, CAMERA, 0.16, family)
    assert found is not None
    assert 'number 7' in found.words
    inside = np.isfinite(found.depth)
    assert np.count_nonzero(inside) > 5000
    np.testing.assert_allclose(found.depth[inside], plane_depth(rotation, place)[inside],
                               rtol=0.012)


def test_nothing_seen_is_none_and_impossible_settings_are_refused():
    empty = np.full((480, 640, 3), 128, np.uint8)
    assert calibration.chessboard(empty, CAMERA, (7, 5), 0.03) is None
    assert calibration.tag(empty, CAMERA, 0.16) is None
    for wrong in (Settings('chessboard', corners_wh=(6, 6)), Settings('tag', tag_m=0.0),
                  Settings('chessboard', square_m=-1.0), Settings('tag', family='qr'),
                  Settings('distance', distance_m=0.0),
                  Settings('distance', distance_m=1.0, at=(640.0, 3.0))):
        with pytest.raises(CalibrationError, match=r'expected|outside'):
            wrong.reference(empty, CAMERA)
    with pytest.raises(CalibrationError, match='method'):
        Settings('laser')


@given(u=st.floats(0, 639), v=st.floats(0, 479), distance=st.floats(0.1, 20))
def test_distance_runs_along_the_ray(u: float, v: float, distance: float):
    found = calibration.known_distance(CAMERA, distance, (u, v))
    z = float(np.nanmedian(found.depth))
    point = np.array([(u - CAMERA.cx) / CAMERA.fx * z, (v - CAMERA.cy) / CAMERA.fy * z, z])
    assert np.linalg.norm(point) == pytest.approx(distance, rel=1e-5)
    rows, columns = np.nonzero(np.isfinite(found.depth))
    assert np.hypot(rows - v, columns - u).max() <= 0.02 * 640


def test_compare_takes_the_median_ratio_and_refuses_little():
    rng = np.random.default_rng(3)
    truth = calibration.known_distance(CAMERA, 2.0)
    depth = (truth.depth / 1.25 * np.exp(rng.normal(0, 0.02, truth.depth.shape))
             ).astype(np.float32)
    inside = np.nonzero(np.isfinite(depth))
    depth[inside[0][:60], inside[1][:60]] = 9.0  # something in front of the wall
    sample = calibration.compare(depth, truth)
    assert sample.true_m / sample.predicted_m == pytest.approx(1.25, rel=0.01)
    assert sample.spread == pytest.approx(0.02, rel=0.4)
    depth[inside[0][:-15], inside[1][:-15]] = np.nan
    with pytest.raises(CalibrationError, match=r'15 of the .* pixels'):
        calibration.compare(depth, truth)
    with pytest.raises(CalibrationError, match='depth of'):
        calibration.compare(np.ones((3, 4), np.float32), truth)


def samples(predicted: np.ndarray, true: np.ndarray) -> list[Sample]:
    return [Sample(float(p), float(t), 0.01, 500) for p, t in zip(predicted, true, strict=True)]


def test_fit_finds_the_factor_among_outliers():
    rng = np.random.default_rng(5)
    true = rng.uniform(1.0, 1.3, 30)
    predicted = true / 1.4 * np.exp(rng.normal(0, 0.01, 30))
    predicted[:9] *= rng.uniform(1.3, 3.0, 9)
    found = calibration.fit(samples(predicted, true))
    assert found.shift == 0.0
    assert found.scale == pytest.approx(1.4, rel=0.02)
    assert found.reach_m == (true.min(), true.max())
    assert any('elsewhere' in note for note in found.notes)
    assert found.uncertainty > 0.01


def test_fit_finds_a_shift_where_the_distances_tell():
    rng = np.random.default_rng(6)
    true = np.linspace(0.6, 3.0, 12)
    predicted = (true - 0.2) / 0.9 * np.exp(rng.normal(0, 0.003, 12))
    found = calibration.fit(samples(predicted, true))
    assert found.scale == pytest.approx(0.9, abs=0.02)
    assert found.shift == pytest.approx(0.2, abs=0.03)
    assert np.abs(found.residuals).max() < 0.02
    assert found.before == pytest.approx(np.median(np.abs(predicted / true - 1)))
    without = calibration.fit(samples(predicted, true), shift=False)
    assert without.shift == 0.0
    # a pure factor needs no shift, and gets none
    assert calibration.fit(samples(true / 1.2, true)).shift == 0.0


def test_fit_refuses_what_contradicts_itself():
    with pytest.raises(CalibrationError, match='nothing'):
        calibration.fit([])
    with pytest.raises(CalibrationError, match='metres'):
        calibration.fit(samples(np.array([1.0]), np.array([1000.0])))
    with pytest.raises(CalibrationError, match='contradict'):
        calibration.fit(samples(np.array([1.0, 2.0, 4.0, 1.0]), np.ones(4)))
    with pytest.raises(CalibrationError, match='differ by half'):
        calibration.fit(samples(np.ones(5), np.ones(5)), shift=True)
    assert 'fewer than 3' in calibration.fit(samples(np.ones(1), np.ones(1))).notes[0]


@given(scale=st.floats(0.1, 10), shift=st.floats(-0.05, 0.3),
       space=st.sampled_from(['depth', 'inv_depth']))
def test_uncorrected_undoes_a_scale(scale: float, shift: float, space: str):
    own = np.random.default_rng(8).uniform(0.7, 3.0, (5, 7)).astype(np.float32)
    depth = own.copy()
    Scale('fixed', scale, shift, space=space).apply(depth)
    known = np.isfinite(depth)
    np.testing.assert_allclose(
        calibration.uncorrected(depth, Scale('fixed', scale, shift, space=space))[known],
        own[known], rtol=2e-3)
