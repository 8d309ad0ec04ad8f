"""KITTI: lists, both truths in closed form, views, the crop, and what broken files say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cv2
from depth_node.training.datasets import DatasetError, open_dataset
from depth_node.training.datasets.kitti import project_velodyne, recognise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

_SPEC = importlib.util.spec_from_file_location(
    'write_kitti', Path(__file__).with_name('write_kitti.py')
)
writer = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(writer)

SIZE_HW = (60, 100)
DRIVE = writer.TRAIN_DRIVE


@pytest.fixture(scope='module')
def kitti(tmp_path_factory):
    root = tmp_path_factory.mktemp('kitti')
    return root, writer.write(root, frames=4, size_hw=SIZE_HW, seed=3)


def fresh(tmp_path):
    return tmp_path, writer.write(tmp_path, frames=3, size_hw=SIZE_HW, seed=5)


def brute_force(points, P, size_hw, use):
    """Project point by point, as the definition reads."""
    image = np.zeros(size_hw)
    for x, y, z in points.astype(float):
        if x < 0:
            continue
        u, v, w = P @ writer.RECT_FROM_VELO @ (x, y, z, 1)
        if w <= 0:
            continue
        column, row = round(u / w) - 1, round(v / w) - 1
        value = w if use == 'z' else x
        if 0 <= column < size_hw[1] and 0 <= row < size_hw[0]:
            old = image[row, column]
            image[row, column] = value if old == 0 else min(old, value)
    return image


def test_trap_10_annotated_depth_is_value_over_256(kitti):
    root, truth = kitti
    data = open_dataset('kitti', root, 'train')
    assert len(data) == 4
    frame = data.read(1)
    assert frame.size_hw == SIZE_HW
    np.testing.assert_allclose(frame.depth, truth['depth'][DRIVE, 6, 'l'], rtol=1e-6)
    np.testing.assert_array_equal(frame.rgb, truth['rgb'][DRIVE, 6, 'l'])
    P = truth['P']['l']
    camera = (frame.camera.fx, frame.camera.fy, frame.camera.cx, frame.camera.cy)
    assert camera == pytest.approx((P[0, 0], P[1, 1], P[0, 2], P[1, 2]), rel=1e-6)
    assert data.name(1) == f'{DRIVE} 0000000006 l'
    assert len(open_dataset('kitti', root, 'val')) == 2


@pytest.mark.parametrize('use', ['z', 'x'])
def test_trap_10_velodyne_depth_is_z_of_the_camera_or_x_of_the_scanner(kitti, use):
    root, truth = kitti
    data = open_dataset(
        'kitti', root, 'train', truth='velodyne', velodyne_depth=use, drives={'train': [DRIVE]}
    )
    depth = data.read(0).depth
    expected = brute_force(truth['points'][DRIVE, 5], truth['P']['l'], SIZE_HW, use)
    np.testing.assert_array_equal(depth > 0, expected > 0)
    np.testing.assert_allclose(depth, expected, rtol=1e-5)
    assert (depth > 0).mean() > 0.1


def test_trap_10_z_and_x_differ_by_the_distance_between_scanner_and_camera(kitti):
    root, _ = kitti
    frames = [
        open_dataset(
            'kitti', root, 'val', truth='velodyne', velodyne_depth=use, drives={'val': ['*0002*']}
        ).read(0)
        for use in ('z', 'x')
    ]
    known = frames[0].depth > 0
    # 0.27 m to the camera, less 2.7 mm between the cameras
    np.testing.assert_allclose(
        (frames[1].depth - frames[0].depth)[known], 0.27 - 0.0027, atol=1e-5
    )


def test_projected_plane_is_the_annotated_plane(kitti):
    """The two truths agree within what a pixel's slope allows, after the convention's shift."""
    root, _ = kitti
    dense = open_dataset('kitti', root, 'train').read(2).depth
    sparse = open_dataset(
        'kitti', root, 'train', truth='velodyne', drives={'train': [DRIVE]}
    ).read(2).depth  # fmt: skip
    shifted = np.zeros_like(sparse)
    shifted[1:, 1:] = sparse[:-1, :-1]  # undo "minus one"
    both = (shifted > 0) & (dense > 0)
    assert both.sum() > 300
    assert np.median(np.abs(shifted - dense)[both] / dense[both]) < 0.01


def test_nearest_of_two_points_in_a_pixel_stays():
    P = np.array([[50.0, 0, 20, 0], [0, 40, 15, 0], [0, 0, 1, 0]])
    ray = np.array([3.0, 0.0, 0.0])  # straight ahead of the scanner, nearly on the axis
    points = np.stack([ray * 4, ray, ray * 2, ray * 3])
    motion = writer.CAMERA_FROM_VELO.copy()
    motion[:3, 3] = 0
    image = project_velodyne(points, P, motion, (30, 45))
    assert image[14, 19] == pytest.approx(3.0)
    assert np.count_nonzero(image) == 1


def test_points_behind_scanner_or_camera_are_dropped():
    P = np.array([[50.0, 0, 20, 0], [0, 40, 15, 0], [0, 0, 1, 0]])
    camera_behind = writer.CAMERA_FROM_VELO.copy()
    camera_behind[2, 3] = 0.5
    points = np.array([[-0.2, 0.0, 0.0], [7.0, 0.2, 0.0]])
    image = project_velodyne(points, P, camera_behind, (30, 45))
    assert image[image > 0] == pytest.approx([7.5])
    # between the two, where a point would be mirrored into the picture
    between = np.array([[0.1, 0.0, -0.08], [7.0, 0.2, 0.0]])
    image = project_velodyne(between, P, writer.CAMERA_FROM_VELO, (30, 45))
    assert image[image != 0] == pytest.approx([7.0 - 0.27])


def test_views_are_neighbours_and_the_other_eye(kitti):
    root, truth = kitti
    data = open_dataset('kitti', root, 'train', views=['previous', 'next', 'right'])
    assert [data.name(i)[-3:-2] for i in range(len(data))] == ['6', '7']
    assert data.skipped == {'without the previous picture': 1, 'without the next picture': 1}
    assert 'left out: 1 without the previous picture' in data.note
    previous, following, right = data.read(0).views
    assert (previous.kind, following.kind, right.kind) == ('previous', 'next', 'right')
    np.testing.assert_array_equal(previous.rgb, truth['rgb'][DRIVE, 5, 'l'])
    np.testing.assert_array_equal(following.rgb, truth['rgb'][DRIVE, 7, 'l'])
    np.testing.assert_array_equal(right.rgb, truth['rgb'][DRIVE, 6, 'r'])
    assert previous.view_from_frame is None
    np.testing.assert_allclose(right.depth, truth['depth'][DRIVE, 6, 'r'], rtol=1e-6)
    expected = np.eye(4)
    expected[:3, 3] = (-writer.BASELINE_M, 0.002 - 0.0003, 0.0025 - 0.0027)
    np.testing.assert_allclose(right.view_from_frame, expected, atol=1e-6)
    assert len(data.files(0)) == 5
    assert all(path.is_file() for path in data.files(0))


def test_right_view_shows_the_same_points(kitti):
    """A left pixel with its depth, moved by view_from_frame, meets its depth on the right."""
    root, _ = kitti
    frame = open_dataset('kitti', root, 'train', views=['right']).read(0)
    right = frame.views[0]
    v, u = np.argwhere((frame.depth > 0) & (frame.depth < 25))[::7].T
    z = frame.depth[v, u]
    points = np.stack((u * z, v * z, z)).astype(float)
    moved = right.view_from_frame[:3, :3] @ np.linalg.solve(frame.camera.K, points)
    moved += right.view_from_frame[:3, 3:]
    u2, v2, _ = np.rint(right.camera.K @ moved / moved[2]).astype(int)
    inside = (u2 >= 0) & (u2 < SIZE_HW[1]) & (v2 >= 0) & (v2 < SIZE_HW[0])
    assert inside.sum() > 100
    there = right.depth[v2[inside], u2[inside]]
    assert np.median(np.abs(there - moved[2, inside]) / moved[2, inside]) < 0.01


def test_velodyne_truth_of_the_right_view(kitti):
    root, truth = kitti
    data = open_dataset(
        'kitti', root, 'train', truth='velodyne', views=['right'], drives={'train': [DRIVE]}
    )
    expected = brute_force(truth['points'][DRIVE, 5], truth['P']['r'], SIZE_HW, 'z')
    np.testing.assert_allclose(data.read(0).views[0].depth, expected, rtol=1e-5)


def test_poses_of_neighbours_from_oxts(kitti):
    root, truth = kitti
    data = open_dataset('kitti', root, 'train', views=['previous', 'next'], poses='oxts')
    left = np.eye(4)
    left[:3, 3] = np.linalg.solve(truth['P']['l'][:, :3], truth['P']['l'][:, 3])
    camera_from_imu = left @ writer.RECT_FROM_VELO @ writer.VELO_FROM_IMU
    world_from_camera = [
        writer.world_from_imu(frame) @ np.linalg.inv(camera_from_imu) for frame in (5, 6, 7)
    ]
    views = data.read(0).views
    for view, there in zip(views, (world_from_camera[0], world_from_camera[2]), strict=True):
        expected = np.linalg.inv(there) @ world_from_camera[1]
        np.testing.assert_allclose(view.view_from_frame, expected, atol=2e-4)
    # driving forward: what the next picture sees is nearer
    assert views[1].view_from_frame[2, 3] == pytest.approx(-0.9, abs=0.1)
    assert [path.parts[-3] for path in data.files(0)[-3:]] == ['oxts'] * 3
    plain = open_dataset('kitti', root, 'train', views=['next']).read(0).views[0]
    assert plain.view_from_frame is None


def test_broken_or_missing_oxts(tmp_path):
    root, _ = fresh(tmp_path)
    options = {'views': ['next'], 'poses': 'oxts'}
    record = root / writer.DATE / DRIVE / 'oxts/data/0000000006.txt'
    for text in ('49.0 8.4 110', 'a b c d e f', '1 2 3 4 5 nan'):
        record.write_text(text)
        with pytest.raises(DatasetError, match=r'oxts/data/0000000006\.txt: .*expected latitude'):
            open_dataset('kitti', root, 'train', **options).read(0)
    record.unlink()
    with pytest.raises(DatasetError, match=r'none of 3 .*without oxts \(2\)'):
        open_dataset('kitti', root, 'train', **options)
    (root / writer.DATE / 'calib_imu_to_velo.txt').unlink()
    with pytest.raises(DatasetError, match=r'calib_imu_to_velo\.txt: no such file'):
        open_dataset('kitti', root, 'train', **options)


def test_trap_12_no_crop_unless_asked_then_k_moves_too(tmp_path):
    size_hw = (375, 1242)
    writer.write(tmp_path, frames=1, size_hw=size_hw, seed=1)
    options = {'views': ['right']}
    full = open_dataset('kitti', tmp_path, 'train', **options).read(0)
    assert full.size_hw == size_hw
    cut = open_dataset('kitti', tmp_path, 'train', crop='kb', **options).read(0)
    top, left = 375 - 352, (1242 - 1216) // 2
    np.testing.assert_array_equal(cut.rgb, full.rgb[top:, left : left + 1216])
    np.testing.assert_array_equal(cut.depth, full.depth[top:, left : left + 1216])
    assert (cut.camera.cx, cut.camera.cy) == (full.camera.cx - left, full.camera.cy - top)
    assert cut.camera.size_hw == cut.size_hw == (352, 1216)
    view, whole = cut.views[0], full.views[0]
    np.testing.assert_array_equal(view.rgb, whole.rgb[top:, left : left + 1216])
    np.testing.assert_array_equal(view.depth, whole.depth[top:, left : left + 1216])
    assert (view.camera.cx, view.camera.cy) == (whole.camera.cx - left, whole.camera.cy - top)


def test_crop_of_a_smaller_picture_is_refused(kitti):
    data = open_dataset('kitti', kitti[0], 'train', crop='kb')
    with pytest.raises(DatasetError, match=r'0000000005\.png.*smaller than the KB crop'):
        data.read(0)


@pytest.mark.parametrize(
    'line',
    [
        f'{writer.DATE}/{DRIVE} 0000000007 l',
        f'{writer.DATE}/{DRIVE} 7 l',
        f'{writer.DATE}/{DRIVE}/image_02/data/0000000007.jpg '
        f'{writer.DATE}/{DRIVE}/image_03/data/0000000007.jpg',
        f'{writer.DATE}/{DRIVE}/image_02/data/0000000007.png',
        f'{DRIVE}_02 0000000007',
        f'{writer.DATE}/{DRIVE}/image_02/data/0000000007.png '
        f'{DRIVE}/proj_depth/groundtruth/image_02/0000000007.png 721.5377',
    ],
)
def test_list_lines_of_every_known_form(kitti, tmp_path, line):
    (tmp_path / 'train_files.txt').write_text(f'\n{line}\n')
    data = open_dataset('kitti', kitti[0], 'train', split_file=str(tmp_path / '{split}_files.txt'))
    assert [data.name(i) for i in range(len(data))] == [f'{DRIVE} 0000000007 l']


def test_right_eye_of_a_list(kitti, tmp_path):
    root, truth = kitti
    path = tmp_path / 'list.txt'
    path.write_text(f'{writer.DATE}/{DRIVE} 6 r\n{writer.DATE}/{DRIVE} 6 l\n')
    both = open_dataset('kitti', root, 'test', split_file=str(path))
    np.testing.assert_array_equal(both.read(0).rgb, truth['rgb'][DRIVE, 6, 'r'])
    np.testing.assert_allclose(both.read(0).depth, truth['depth'][DRIVE, 6, 'r'], rtol=1e-6)
    pair = open_dataset('kitti', root, 'test', split_file=str(path), views=['right'])
    assert len(pair) == 1  # the same pair of pictures, named from either eye
    np.testing.assert_array_equal(pair.read(0).rgb, truth['rgb'][DRIVE, 6, 'l'])


def test_listed_frame_without_truth_is_counted(tmp_path):
    root, truth = fresh(tmp_path)
    lost = root / 'train' / DRIVE / 'proj_depth/groundtruth/image_02/0000000006.png'
    lost.unlink()
    data = open_dataset('kitti', root, 'train', split_file=str(truth['lists']['train']))
    assert len(data) == 2
    assert data.skipped == {'without annotated depth': 1}


def test_listed_frame_without_picture_is_an_error(tmp_path):
    root, truth = fresh(tmp_path)
    lost = root / writer.DATE / DRIVE / 'image_02/data/0000000006.png'
    lost.unlink()
    with pytest.raises(DatasetError, match=r'image_02/data/0000000006\.png: no such picture'):
        open_dataset('kitti', root, 'train', split_file=str(truth['lists']['train']))


@pytest.mark.parametrize(
    ('file', 'old', 'new', 'message'),
    [
        ('calib_cam_to_cam.txt', 'P_rect_02', 'P_rect_09', "no entry 'P_rect_02'"),
        ('calib_cam_to_cam.txt', 'S_rect_02: 1.000000e+02', 'S_rect_02: wide', 'S_rect_02: .wide'),
        ('calib_velo_to_cam.txt', 'T: 3.0', 'T: 1 2 3 3.0', 'T: .*expected 3 finite numbers'),
        ('calib_velo_to_cam.txt', 'R: 0.0', 'R: nan ', 'R: .*expected 9 finite numbers'),
        ('calib_cam_to_cam.txt', 'P_rect_02: 5.8', 'P_rect_02: -5.8', 'focal lengths'),
    ],
)
def test_calibration_errors_name_file_and_entry(tmp_path, file, old, new, message):
    root, _ = fresh(tmp_path)
    path = root / writer.DATE / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DatasetError, match=rf'{file}: .*{message}|{file}: {message}'):
        open_dataset('kitti', root, 'train', truth='velodyne', drives={'train': [DRIVE]})


def test_broken_files_are_named_on_reading(tmp_path):
    root, _ = fresh(tmp_path)
    velodyne = {'truth': 'velodyne', 'drives': {'train': [DRIVE]}}
    scan = root / writer.DATE / DRIVE / 'velodyne_points/data/0000000005.bin'
    scan.write_bytes(scan.read_bytes()[:-3])
    with pytest.raises(DatasetError, match=r'0000000005\.bin: \d+ bytes.*cut off'):
        open_dataset('kitti', root, 'train', **velodyne).read(0)
    scan.write_bytes(np.full(40, np.nan, '<f4').tobytes())
    with pytest.raises(DatasetError, match=r'0000000005\.bin: no pixel of known depth'):
        open_dataset('kitti', root, 'train', **velodyne).read(0)
    annotated = root / 'train' / DRIVE / 'proj_depth/groundtruth/image_02/0000000005.png'
    cv2.imwrite(str(annotated), np.full((30, 50), 2560, np.uint16))
    with pytest.raises(DatasetError, match=r'0000000005\.png: depth has size \(30, 50\)'):
        open_dataset('kitti', root, 'train').read(0)
    annotated.write_bytes(annotated.read_bytes()[:60])
    with pytest.raises(DatasetError, match=r'0000000005\.png: not a readable picture'):
        open_dataset('kitti', root, 'train').read(0)
    picture = root / writer.DATE / DRIVE / 'image_02/data/0000000006.png'
    cv2.imwrite(str(picture), np.zeros((30, 50, 3), np.uint8))
    with pytest.raises(DatasetError, match=r'0000000006\.png: size \(30, 50\).*calib_cam_to_cam'):
        open_dataset('kitti', root, 'train').read(1)


@pytest.mark.parametrize(
    ('split', 'options', 'message'),
    [
        ('trian', {}, 'expected one of train, val, test'),
        ('test', {}, 'needs split_file or drives'),
        ('train', {'truth': 'velodyne'}, 'needs split_file or drives'),
        ('train', {'truth': 'lidar'}, "truth 'lidar': expected one of annotated, velodyne"),
        ('train', {'views': ['left']}, "views 'left'"),
        ('train', {'step': 0}, 'step 0'),
        ('train', {'drives': {'train': ['2012*']}}, r'no picture in a drive named 2012\*'),
        ('train', {'drives': {'val': ['*']}}, 'none for the split train'),
        ('train', {'depth_root': '/nonexistent'}, '/nonexistent/train: no <drive>'),
        ('train', {'split_file': '/nonexistent/a.txt'}, '/nonexistent/a.txt: no such file'),
    ],
)
def test_wrong_options_say_what_is_expected(kitti, split, options, message):
    with pytest.raises(DatasetError, match=message):
        open_dataset('kitti', kitti[0], split, **options)


def test_list_of_another_kind(kitti, tmp_path):
    path = tmp_path / 'list.txt'
    for text, message in (('a.png b.png\n', "line 1: 'a.png b.png'"), ('\n', 'no frame in')):
        path.write_text(text)
        with pytest.raises(DatasetError, match=message):
            open_dataset('kitti', kitti[0], 'train', split_file=str(path))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=400), which=st.integers(0, 4))
def test_hostile_bytes_give_only_dataset_errors(kitti, data, which):
    root, truth = kitti
    folder = root / writer.DATE
    paths = (
        folder / 'calib_cam_to_cam.txt',
        folder / 'calib_velo_to_cam.txt',
        folder / DRIVE / 'velodyne_points/data/0000000005.bin',
        folder / DRIVE / 'image_02/data/0000000005.png',
        truth['lists']['train'],
    )
    old = paths[which].read_bytes()
    paths[which].write_bytes(data)
    try:
        frame = open_dataset(
            'kitti', root, 'train', truth='velodyne', split_file=str(truth['lists']['train'])
        ).read(0)
        assert (frame.depth > 0).any()
        assert np.isfinite(frame.depth).all()
    except DatasetError as error:
        complaint = str(error)
    else:
        complaint = paths[which].name
    finally:
        paths[which].write_bytes(old)
    assert paths[which].name in complaint


def test_recognise(kitti, tmp_path):
    assert '2 drives' in recognise(kitti[0])
    assert recognise(tmp_path) is None
    assert recognise(tmp_path / 'nothing') is None
