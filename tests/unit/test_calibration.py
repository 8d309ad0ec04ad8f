"""Calibration against pictures drawn from known geometry."""

from __future__ import annotations

from collections.abc import Callable

import cv2
from depth_node import calibration
from depth_node.calibration import CalibrationError, Sample, Settings
from depth_node.camera import Camera, Rectifier
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


def test_plane_through_exact_corners(monkeypatch: pytest.MonkeyPatch):
    """Finding corners costs half a percent; what is made of them costs nothing."""
    rotation, place = pose(5, 0.7)
    grid = np.zeros((35, 3))
    grid[:, :2] = (np.mgrid[0:7, 0:5].T.reshape(-1, 2) - [3, 2]) * 0.03
    corners = cv2.projectPoints(grid, cv2.Rodrigues(rotation)[0], place, CAMERA.K, None)[0]
    monkeypatch.setattr(cv2, 'findChessboardCornersSB',
                        lambda *_: (True, corners.astype(np.float32)))
    found = calibration.chessboard(np.zeros((480, 640, 3), np.uint8), CAMERA, (7, 5), 0.03)
    assert found is not None
    inside = np.isfinite(found.depth)
    np.testing.assert_allclose(found.depth[inside], plane_depth(rotation, place)[inside],
                               rtol=2e-4)


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
    for wrong in ({'method': 'chessboard', 'corners_wh': (2, 6)},
                  {'method': 'chessboard', 'square_m': -1.0}, {'method': 'tag', 'tag_m': 0.0},
                  {'method': 'tag', 'family': 'qr'}, {'method': 'distance'},
                  {'method': 'distance', 'distance_m': np.nan}, {'method': 'laser'}):
        with pytest.raises(CalibrationError, match='expected'):
            Settings(**wrong)
    with pytest.raises(CalibrationError, match='outside'):
        Settings(distance_m=1.0, at=(640.0, 3.0)).look(
            empty, np.ones((480, 640), np.float32), CAMERA, CAMERA)


def test_opencv_without_aruco_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(cv2, 'aruco')
    with pytest.raises(CalibrationError, match='no module aruco'):
        Settings('tag')


def test_board_on_its_head_mirrored_or_square_and_cut_off():
    rotation, place = pose(2, 0.7)
    rgb = seen(board_texture(7, 5), 0.03 / 60, rotation, place)
    centred = Camera((480, 640), 520.0, 560.0, 319.5, 239.5)
    plain = calibration.chessboard(rgb, centred, (7, 5), 0.03)
    assert plain is not None
    for turn in (np.s_[::-1, ::-1], np.s_[:, ::-1], np.s_[::-1]):
        turned = calibration.chessboard(np.ascontiguousarray(rgb[turn]), centred, (7, 5), 0.03)
        assert turned is not None, turn
        both = np.isfinite(turned.depth[turn]) & np.isfinite(plain.depth)
        assert np.count_nonzero(both) > 0.9 * np.count_nonzero(np.isfinite(plain.depth))
        np.testing.assert_allclose(turned.depth[turn][both], plain.depth[both], rtol=0.01)
    swapped = calibration.chessboard(rgb, centred, (5, 7), 0.03)
    if swapped is not None:
        np.testing.assert_allclose(np.nanmedian(swapped.depth), np.nanmedian(plain.depth),
                                   rtol=0.01)
    square = calibration.chessboard(seen(board_texture(6, 6), 0.03 / 60, rotation, place), CAMERA,
                                    (6, 6), 0.03)
    assert square is not None
    known = np.isfinite(square.depth)
    np.testing.assert_allclose(square.depth[known], plane_depth(rotation, place)[known],
                               rtol=0.006)
    beside = seen(board_texture(7, 5), 0.03 / 60, rotation, place + np.array([0.42, 0, 0]))
    assert calibration.chessboard(beside, CAMERA, (7, 5), 0.03) is None


def test_the_largest_of_several_tags_counts_and_a_tiny_one_is_refused():
    dictionary = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_APRILTAG_36h11)
    rgb = np.full((480, 640, 3), 255, np.uint8)
    for number, (size, top, left) in enumerate([(60, 40, 60), (200, 200, 330), (80, 300, 100)]):
        marker = cv2.aruco.generateImageMarker(dictionary, number, size)
        rgb[top:top + size, left:left + size] = marker[..., None]
    found = calibration.tag(rgb, CAMERA, 0.16)
    assert found is not None
    assert 'number 1,' in found.words
    # fx and fy differ, so a square of pixels is no square of metres: between the two distances
    assert 520 * 0.16 / 200 < np.nanmedian(found.depth) < 560 * 0.16 / 200
    rgb[:] = 255
    rgb[100:112, 100:112] = cv2.aruco.generateImageMarker(
        cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_4X4_50), 3, 12)[..., None]
    assert calibration.tag(rgb, CAMERA, 0.16) is None


LENSES = {
    'plumb_bob': (-0.28, 0.09, 0.001, -0.0005, 0.0),
    'equidistant': (-0.02, 0.01, -0.005, 0.001)}


@pytest.mark.parametrize('model', LENSES)
def test_pixels_of_a_distorted_picture_find_their_ray(model: str):
    """The picture as it was taken shows the ray (x, y, 1) at (u, v): by OpenCV's projection."""
    raw = Camera((480, 640), 400.0, 430.0, 331.0, 228.0, model, LENSES[model],
                 P=(350.0, 360.0, 310.0, 250.0))
    project = cv2.fisheye.projectPoints if model == 'equidistant' else cv2.projectPoints
    ray = np.array([0.45, -0.3, 1.0])
    u, v = project(ray.reshape(1, 1, 3), np.zeros(3), np.zeros(3), raw.K,
                   np.array(raw.D))[0].ravel()
    found = calibration.rectified_pixel(raw, (u, v))
    assert found == pytest.approx((0.45 * 350 + 310, -0.3 * 360 + 250), abs=0.01)
    pinhole = raw.rectified()
    rgb = np.zeros((480, 640, 3), np.uint8)
    reference, sample = Settings(distance_m=2.0, at=(float(u), float(v))).look(
        rgb, np.ones((480, 640), np.float32), pinhole, raw)
    assert np.nanmedian(reference.depth) == pytest.approx(2 / np.linalg.norm(ray), rel=1e-4)
    assert sample.true_m == pytest.approx(2 / np.linalg.norm(ray), rel=1e-4)
    # what is not warped keeps its pixels, whatever P says
    flat = Camera((480, 640), 400.0, 430.0, 331.0, 228.0, P=(350.0, 360.0, 310.0, 250.0))
    assert calibration.rectified_pixel(flat, (3.0, 5.0)) == (3.0, 5.0)


def test_chessboard_through_a_distorted_lens():
    """Drawn by casting the ray of every raw pixel, rectified by the pipeline's own Rectifier."""
    raw = Camera((480, 640), 400.0, 430.0, 331.0, 228.0, 'plumb_bob', LENSES['plumb_bob'],
                 P=(350.0, 360.0, 310.0, 250.0))
    rotation, place = pose(3, 0.5)
    vv, uu = np.mgrid[0:480, 0:640]
    rays = cv2.undistortPoints(np.stack([uu, vv], -1).reshape(-1, 1, 2).astype(np.float64), raw.K,
                               np.array(raw.D)).reshape(480, 640, 2)
    rays = np.concatenate([rays, np.ones((480, 640, 1))], -1)
    depth = (rotation[:, 2] @ place) / (rays @ rotation[:, 2])
    on_board = (rays * depth[..., None] - place) @ rotation
    texture = board_texture(7, 5)
    at = on_board[..., :2] / (0.03 / 60) + [(texture.shape[1] - 1) / 2, (texture.shape[0] - 1) / 2]
    blurred = cv2.GaussianBlur(texture, (0, 0), 1.5)
    picture = cv2.remap(blurred, at.astype(np.float32), None, cv2.INTER_LINEAR,
                        borderValue=(120, 140, 130))
    rectifier = Rectifier(raw)
    reference, sample = Settings('chessboard', corners_wh=(7, 5), square_m=0.03).look(
        rectifier(picture), np.full((480, 640), 0.4, np.float32), rectifier.camera, raw)
    vv, uu = np.nonzero(np.isfinite(reference.depth))
    straight = np.stack([(uu - 310) / 350, (vv - 250) / 360, np.ones(len(uu))], -1)
    np.testing.assert_allclose(reference.depth[vv, uu],
                               (rotation[:, 2] @ place) / (straight @ rotation[:, 2]), rtol=0.006)
    assert sample.true_m == pytest.approx(np.nanmedian(reference.depth), rel=0.01)


@given(u=st.floats(0, 639), v=st.floats(0, 479), distance=st.floats(0.1, 20))
def test_distance_runs_along_the_ray(u: float, v: float, distance: float):
    found = calibration.known_distance(CAMERA, distance, (u, v))
    z = float(np.nanmedian(found.depth))
    point = np.array([(u - CAMERA.cx) / CAMERA.fx * z, (v - CAMERA.cy) / CAMERA.fy * z, z])
    assert np.linalg.norm(point) == pytest.approx(distance, rel=1e-5)
    rows, columns = np.nonzero(np.isfinite(found.depth))
    assert np.hypot(rows - v, columns - u).max() <= 0.02 * 640 + 1e-3  # it rounds as float32


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
    assert found.spread > 0.01


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


def test_a_shift_stands_among_outliers():
    rng = np.random.default_rng(16)
    true = rng.uniform(0.6, 3.0, 20)
    predicted = (true - 0.25) / 0.8 * np.exp(rng.normal(0, 0.004, 20))
    predicted[:6] *= rng.uniform(1.5, 3.0, 6)
    found = calibration.fit(samples(predicted, true), shift=True)
    assert found.scale == pytest.approx(0.8, abs=0.02)
    assert found.shift == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize('count', [4, 6, 12])
def test_noise_alone_makes_no_shift(count: int):
    taken = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        true = np.linspace(1.0, 2.5, count)
        predicted = true / 1.2 * np.exp(rng.normal(0, 0.04, count))
        taken += calibration.fit(samples(predicted, true)).shift != 0.0
    assert taken <= 5, f'{taken} of 60'


def test_a_shift_that_hides_near_things_is_named():
    true = np.linspace(0.6, 3.0, 8)
    found = calibration.fit(samples((true + 0.3) / 1.1, true))
    assert found.shift == pytest.approx(-0.3, abs=1e-6)
    assert '0.27 m by the network' in found.notes[-1]


def test_average_of_a_sensors_factors():
    found = calibration.average([1.30, 1.25, 1.24, 9.0], [0.02, np.nan, 0.03, 0.02])
    assert found.scale == pytest.approx(np.sqrt(1.25 * 1.30))
    assert (found.shift, found.reach_m) == (0.0, None)
    assert found.spread > 0.02
    assert found.before == pytest.approx(1 - 1 / 1.275, abs=0.01)
    with pytest.raises(CalibrationError, match='differ by'):
        calibration.average([1.0, 1.6, 0.6, 2.2], [])
    with pytest.raises(CalibrationError, match=r'0\.05 to 20'):
        calibration.average([0.01] * 3, [])
    with pytest.raises(CalibrationError, match='found no scale'):
        calibration.average([], [])


def test_relative_networks_are_refused(tiny_card: Callable):
    calibration.check_model(tiny_card(size_hw=(24, 32)))
    relative = tiny_card('relative', size_hw=(24, 32), check=False, changes={
        'output': {'kind': 'rel_inv_depth', 'unit': 'none', 'range_m': None}})
    with pytest.raises(CalibrationError, match='from picture to picture'):
        calibration.check_model(relative)
