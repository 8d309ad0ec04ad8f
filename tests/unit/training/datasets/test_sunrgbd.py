"""SUN RGB-D: the rotated bits, K of each frame, NYU left out, splits, and broken files."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cv2
from depth_node.training.datasets import DatasetError, open_dataset
from depth_node.training.datasets.base import AbsentSplitError
from depth_node.training.datasets.sunrgbd import SPLIT_FILE, is_nyu, recognise, rotate_bits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy.io import savemat

_SPEC = importlib.util.spec_from_file_location(
    'write_sunrgbd', Path(__file__).with_name('write_sunrgbd.py')
)
writer = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(writer)

SIZE_HW = (30, 44)


@pytest.fixture(scope='module')
def sun(tmp_path_factory):
    root = tmp_path_factory.mktemp('sun')
    return root, writer.write(root, frames=6, size_hw=SIZE_HW, seed=8)


def names(path, split, **options):
    dataset = open_dataset('sunrgbd', path, split, **options)
    return [dataset.name(index) for index in range(len(dataset))]


@given(st.integers(0, 2**16 - 1))
def test_trap_11_bits_rotate_right_by_three(value):
    bits = f'{value:016b}'
    expected = int(bits[-3:] + bits[:-3], 2)
    assert rotate_bits(np.array([[value]], np.uint16)) == expected


def test_trap_11_frames_are_in_metres(sun):
    root, truth = sun
    dataset = open_dataset('sunrgbd', root, 'test')
    for index in range(len(dataset)):
        rgb, millimetres = truth[dataset.name(index)]
        frame = dataset.read(index)
        expected = np.where(millimetres > 8000, 0, millimetres) / 1000
        np.testing.assert_allclose(frame.depth, expected, rtol=1e-6)
        assert np.abs(frame.rgb.astype(int) - rgb).mean() < 6  # JPEG
        assert (frame.camera.fx, frame.camera.fy) == writer.K[:2]
        assert (frame.camera.cx, frame.camera.cy) == writer.K[2:]
        assert frame.camera.size_hw == SIZE_HW


def test_raw_and_filled_truth(sun):
    root, _ = sun
    raw = open_dataset('sunrgbd', root, 'test').read(0).depth
    filled = open_dataset('sunrgbd', root, 'test', truth='filled').read(0).depth
    np.testing.assert_array_equal(raw[raw > 0], filled[raw > 0])
    assert (filled > 0).sum() > (raw > 0).sum()


def test_official_split(sun):
    root, truth = sun
    assert names(root, 'test') == sorted(truth['parts']['test'])
    assert sorted(names(root, 'train') + names(root, 'val')) == sorted(truth['parts']['train'])
    assert 'official' in open_dataset('sunrgbd', root, 'test').note


@pytest.mark.parametrize('above', [False, True])
def test_split_by_hash_keeps_recordings_together(tmp_path, above):
    truth = writer.write(tmp_path / 'SUNRGBD', frames=6, size_hw=(6, 8), official=False)
    del truth['parts']
    root = tmp_path if above else tmp_path / 'SUNRGBD'
    found = {split: names(root, split) for split in ('train', 'val', 'test')}
    everything = [name.removeprefix('SUNRGBD/') for part in found.values() for name in part]
    assert sorted(everything) == sorted(truth)
    walks = [any('brown_1/walk' in name for name in part) for part in found.values()]
    assert walks.count(True) == 1
    assert [names(root, split) for split in found] == list(found.values())


def test_nyu_is_left_out_on_request(sun):
    root, _ = sun
    for split in ('train', 'val', 'test'):
        assert not any(is_nyu(name) for name in names(root, split, exclude_nyu=True))
    assert any(is_nyu(name) for name in names(root, 'train'))
    dataset = open_dataset('sunrgbd', root, 'test', exclude_nyu=True)
    assert dataset.excluded == 6
    assert 'without 6 frames of NYU' in dataset.note
    assert not is_nyu('kv1/NYUdata2/a')


def test_recognised(sun, tmp_path):
    assert recognise(sun[0]).endswith('beside image/ and depth/')
    assert recognise(tmp_path) is None
    assert recognise(next(sun[0].rglob('intrinsics.txt'))) is None


def test_options_and_splits_that_are_none(sun, tmp_path):
    root, _ = sun
    with pytest.raises(ValueError, match="truth 'bfx': expected one of raw, filled"):
        open_dataset('sunrgbd', root, 'test', truth='bfx')
    with pytest.raises(ValueError, match="split_by 'random'"):
        open_dataset('sunrgbd', root, 'test', split_by='random')
    with pytest.raises(DatasetError, match=r'no intrinsics\.txt below it'):
        open_dataset('sunrgbd', tmp_path, 'test')
    with pytest.raises(DatasetError, match='no such folder'):
        open_dataset('sunrgbd', tmp_path / 'x', 'test')
    writer.write(tmp_path, frames=1, size_hw=(6, 8), official=False)
    with pytest.raises(DatasetError, match=r'allsplit\.mat: no such file'):
        open_dataset('sunrgbd', tmp_path, 'test', split_by='official')


def cells(*texts):
    array = np.empty((1, len(texts)), object)
    array[0, :] = texts
    return array


def test_official_splits_that_do_not_fit_are_refused(tmp_path):
    writer.write(tmp_path, frames=1, size_hw=(6, 8))
    path = tmp_path / SPLIT_FILE
    savemat(path, {'alltrain': cells('/x/kv2/other'), 'alltest': cells('/x/kv2/another')})
    with pytest.raises(DatasetError, match=r'allsplit\.mat: names none of the 3 frames'):
        open_dataset('sunrgbd', tmp_path, 'test')
    frame = cells('/x/kv2/kinect2data/000001/')
    savemat(path, {'alltrain': frame, 'alltest': frame})
    with pytest.raises(DatasetError, match='kv2/kinect2data/000001 is in both'):
        open_dataset('sunrgbd', tmp_path, 'test')
    savemat(path, {'alltrain': frame, 'alltest': cells('/x/kv2/none')})
    with pytest.raises(AbsentSplitError, match="split 'test'; found train"):
        open_dataset('sunrgbd', tmp_path, 'test')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('1 2 3', 'not enough values'),
        ('500 0 20 0 510 15 0 0', 'the matrix ends in'),
        ('500 0 20 0 510 15 0 0 2', 'the matrix ends in'),
        ('500 3 20 0 510 15 0 0 1', 'skew 3'),
        ('0 0 20 0 510 15 0 0 1', 'focal lengths'),
        ('nan 0 20 0 510 15 0 0 1', 'NaN or Inf'),
        ('500 0 20 0 fy 15 0 0 1', 'could not convert'),
        ('', 'not enough values'),
    ],
)
def test_intrinsics_that_are_none_are_refused(tmp_path, text, message):
    writer.write(tmp_path, frames=1, size_hw=SIZE_HW, official=False)
    for path in tmp_path.rglob('intrinsics.txt'):
        path.write_text(text)
    dataset = open_dataset('sunrgbd', tmp_path, 'train')
    with pytest.raises(DatasetError, match=rf'intrinsics\.txt: not the 3x3 .*{message}'):
        dataset.read(0)


def test_broken_files_are_named(tmp_path):
    writer.write(tmp_path, frames=1, size_hw=SIZE_HW, official=False)
    dataset = open_dataset('sunrgbd', tmp_path, 'train')
    picture, depth, _ = dataset.files(0)
    good = cv2.imread(str(depth), cv2.IMREAD_UNCHANGED)
    for image, message in (
        (np.zeros(SIZE_HW, np.uint16), 'no pixel of known depth'),
        (np.full((5, 6), 9000, np.uint16), r'depth has size \(5, 6\)'),
        (np.full(SIZE_HW, 9, np.uint8), 'uint8'),
        # millimetres whose bits were never rotated: 1 mm to 8 mm, and what is odd beyond 8 m
        (np.full(SIZE_HW, 16, np.uint16), r'median depth 0\.002 m'),
    ):
        cv2.imwrite(str(depth), image)
        with pytest.raises(DatasetError, match=rf'depth/{depth.name}: {message}'):
            dataset.read(0)
    cv2.imwrite(str(depth), good)
    (depth.parent / 'b.png').write_bytes(b'')
    with pytest.raises(DatasetError, match='/depth: expected one picture in it, found none or'):
        dataset.read(0)
    (depth.parent / 'b.png').unlink()
    picture.unlink()
    with pytest.raises(DatasetError, match='/image: expected one picture in it'):
        dataset.read(0)
    picture.parent.rmdir()
    with pytest.raises(DatasetError, match='/image: expected one picture in it'):
        dataset.read(0)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(which=st.sampled_from(['image/a.jpg', 'depth/a.png', 'intrinsics.txt', SPLIT_FILE]),
       kept=st.floats(0, 0.9), tail=st.binary(max_size=40))  # fmt: skip
def test_truncated_files_give_nothing_but_our_error(tmp_path, which, kept, tail):
    writer.write(tmp_path, frames=1, size_hw=(6, 8))
    for path in tmp_path.rglob(which):
        data = path.read_bytes()
        cut = int(kept * len(data.rstrip()[:-1]))
        path.write_bytes(data[:cut] + (tail if which == 'depth/a.png' else b''))
    with pytest.raises(DatasetError):
        open_dataset('sunrgbd', tmp_path, 'train').read(0)
