"""Virtual KITTI 2: centimetres, sky, cap, poses in closed form, splits, broken files."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cv2
from depth_node.training.datasets import DatasetError, open_dataset
from depth_node.training.datasets.vkitti2 import recognise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

_SPEC = importlib.util.spec_from_file_location(
    'write_vkitti2', Path(__file__).with_name('write_vkitti2.py')
)
writer = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(writer)

SIZE_HW = (48, 80)


@pytest.fixture(scope='module')
def vkitti(tmp_path_factory):
    root = tmp_path_factory.mktemp('vkitti2')
    return root, writer.write(root, frames=4, size_hw=SIZE_HW, seed=2)


def test_trap_09_depth_is_centimetres_sky_is_unknown_and_80_m_the_limit(vkitti):
    root, truth = vkitti
    data = open_dataset('vkitti2', root, 'train')
    assert [data.name(i) for i in (0, 4)] == ['Scene01/clone 00000', 'Scene01/fog 00000']
    assert len(data) == 8
    frame = data.read(2)
    expected = truth['depth']['Scene01', 'clone', 2, 0]
    within = expected <= 80
    np.testing.assert_allclose(frame.depth[within], expected[within], rtol=1e-6)
    assert (frame.depth[~within] == 0).all()
    np.testing.assert_array_equal(frame.sky, np.isinf(expected))
    far = ~within & ~frame.sky
    assert 0 < within.mean() < 1
    assert far.any()
    deep = open_dataset('vkitti2', root, 'train', max_depth_m=600.0).read(2).depth
    np.testing.assert_allclose(deep[far & (expected < 600)], expected[far & (expected < 600)])
    K = truth['K']
    assert frame.camera.K == pytest.approx(K)


def test_views_bring_poses_from_extrinsic(vkitti):
    root, truth = vkitti
    data = open_dataset('vkitti2', root, 'train', views=['previous', 'next', 'right'])
    assert len(data) == 4
    assert data.skipped == {'without previous or next': 4}
    frame = data.read(0)
    poses = truth['poses']
    for view, key in zip(frame.views, ((0, 0), (2, 0), (1, 1)), strict=True):
        motion = poses[key] @ np.linalg.inv(poses[1, 0])
        np.testing.assert_allclose(view.view_from_frame, motion, atol=1e-12)
        expected = truth['depth'][('Scene01', 'clone', *key)]
        np.testing.assert_allclose(view.depth, np.where(expected <= 80, expected, 0), rtol=1e-6)
    right = frame.views[2].view_from_frame
    np.testing.assert_allclose(right[:3, 3], (-writer.BASELINE_M, 0, 0), atol=1e-12)
    np.testing.assert_allclose(right[:3, :3], np.eye(3), atol=1e-12)
    assert len(data.files(0)) == 8
    assert all(path.is_file() for path in data.files(0))


def test_pixels_moved_into_the_next_view_meet_its_depth(vkitti):
    root, _ = vkitti
    frame = open_dataset('vkitti2', root, 'train', views=['next']).read(0)
    view = frame.views[0]
    v, u = np.argwhere((frame.depth > 4) & (frame.depth < 12)).T
    z = frame.depth[v, u]
    points = np.linalg.solve(frame.camera.K, np.stack((u * z, v * z, z)).astype(float))
    moved = view.view_from_frame[:3, :3] @ points + view.view_from_frame[:3, 3:]
    u2, v2, _ = np.rint(view.camera.K @ moved / moved[2]).astype(int)
    inside = (u2 >= 0) & (u2 < SIZE_HW[1]) & (v2 >= 0) & (v2 < SIZE_HW[0])
    assert inside.sum() > 50
    there = view.depth[v2[inside], u2[inside]]
    assert np.median(np.abs(there - moved[2, inside]) / moved[2, inside]) < 0.05


def test_splits_are_by_scene(vkitti):
    root, _ = vkitti
    assert open_dataset('vkitti2', root, 'val').name(0).startswith('Scene18/')
    assert open_dataset('vkitti2', root, 'test', variations=['fog']).name(0) == 'Scene20/fog 00000'
    everything = open_dataset('vkitti2', root, 'train', val_scenes=[], test_scenes=[])
    assert len(everything) == 24
    with pytest.raises(DatasetError, match='no frame in split val; there are Scene01, Scene18'):
        open_dataset('vkitti2', root, 'val', val_scenes=['Scene02'])
    with pytest.raises(DatasetError, match='in clone, fog; see'):
        open_dataset('vkitti2', root, 'train', variations=['rain'])


@pytest.mark.parametrize(
    ('split', 'options', 'message'),
    [
        ('all', {}, 'expected one of train, val, test'),
        ('train', {'views': ['left']}, "views 'left'"),
        ('train', {'step': 0}, 'step 0'),
        ('train', {'views': ['next'], 'step': 9}, "without previous or next': 8"),
    ],
)
def test_wrong_options(vkitti, split, options, message):
    with pytest.raises(DatasetError, match=message):
        open_dataset('vkitti2', vkitti[0], split, **options)


def test_broken_files_are_named(tmp_path):
    writer.write(tmp_path, frames=2, size_hw=SIZE_HW, variations=('clone',))
    folder = tmp_path / 'Scene01' / 'clone'
    depth = folder / 'frames/depth/Camera_0/depth_00000.png'
    good = depth.read_bytes()
    data = open_dataset('vkitti2', tmp_path, 'train')
    for image, message in (
        (np.full(SIZE_HW, 65535, np.uint16), 'no pixel of known depth'),
        (np.full((24, 80), 900, np.uint16), r'depth has size \(24, 80\)'),
        (np.full(SIZE_HW, 90, np.uint8), 'uint8 with shape'),
        # 3 cm: metres or decimetres in a file of centimetres
        (np.full(SIZE_HW, 3, np.uint16), r'median depth 0\.03 m'),
    ):
        cv2.imwrite(str(depth), image)
        with pytest.raises(DatasetError, match=rf'depth_00000\.png: {message}'):
            data.read(0)
    depth.write_bytes(good[: len(good) // 2])
    with pytest.raises(DatasetError, match=r'depth_00000\.png: not a readable picture'):
        data.read(0)
    depth.unlink()
    with pytest.raises(DatasetError, match=r'depth_00000\.png: no such file'):
        data.read(0)
    (folder / 'frames/rgb/Camera_1/rgb_00001.jpg').unlink()
    with pytest.raises(DatasetError, match=r'Camera_1/rgb_00001\.jpg: no such file'):
        open_dataset('vkitti2', tmp_path, 'train', views=['right']).read(1)


@pytest.mark.parametrize(
    ('file', 'change', 'message'),
    [
        ('intrinsic.txt', lambda t: t.replace('0 0 48.0', '0 0 nan'), 'line 2: .*4 finite'),
        ('intrinsic.txt', lambda t: t.replace('0 0 48.0', '0 0 wide'), 'line 2: .*4 finite'),
        ('intrinsic.txt', lambda t: t.split('\n')[0], 'no line of numbers'),
        ('intrinsic.txt', lambda t: t.replace('0 0 48.0', '7 0 48.0'), 'no line for frame 0'),
        ('extrinsic.txt', lambda t: t.replace(' 0.0 0.0 0.0 1.0', ' 0.0 1.0', 1), '16 finite'),
        ('extrinsic.txt', lambda t: None, 'no such file'),
    ],
)
def test_text_files_are_checked(tmp_path, file, change, message):
    writer.write(tmp_path, frames=2, size_hw=SIZE_HW, variations=('clone',))
    path = tmp_path / 'Scene01' / 'clone' / file
    text = change(path.read_text())
    assert text != path.read_text()
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(DatasetError, match=rf'{file}.*{message}'):
        open_dataset('vkitti2', tmp_path, 'train')


def test_intrinsics_of_another_size_are_noticed(tmp_path):
    writer.write(tmp_path, frames=1, size_hw=SIZE_HW, variations=('clone',))
    path = tmp_path / 'Scene01' / 'clone' / 'intrinsic.txt'
    path.write_text('frame cameraID\n0 0 725.0 726.0 620.5 187\n0 1 725.0 726.0 620.5 187\n')
    data = open_dataset('vkitti2', tmp_path, 'train')
    with pytest.raises(DatasetError, match=r'intrinsic\.txt: centre \(620\.5, 187\) lies outside'):
        data.read(0)
    path.write_text('frame cameraID\n0 0 0.0 726.0 40 20\n0 1 725.0 726.0 40 20\n')
    with pytest.raises(DatasetError, match=r'intrinsic\.txt: camera: focal lengths'):
        open_dataset('vkitti2', tmp_path, 'train').read(0)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=300), which=st.integers(0, 3), keep=st.integers(0, 2000))
def test_hostile_bytes_give_only_dataset_errors(vkitti, data, which, keep):
    root, _ = vkitti
    folder = root / 'Scene01' / 'clone'
    path = (
        folder
        / (
            'intrinsic.txt',
            'extrinsic.txt',
            'frames/rgb/Camera_0/rgb_00000.jpg',
            'frames/depth/Camera_0/depth_00000.png',
        )[which]
    )
    old = path.read_bytes()
    path.write_bytes(old[:keep] + data)
    try:
        frame = open_dataset('vkitti2', root, 'train').read(0)
        assert np.isfinite(frame.depth).all()
    except DatasetError as error:
        complaint = str(error)
    else:
        complaint = path.name
    finally:
        path.write_bytes(old)
    assert path.name in complaint


def test_recognise(vkitti, tmp_path):
    assert recognise(vkitti[0]).startswith('Virtual KITTI 2: Scene')
    assert recognise(tmp_path) is None
    with pytest.raises(DatasetError, match='expected the unpacked rgb'):
        open_dataset('vkitti2', tmp_path, 'train')
