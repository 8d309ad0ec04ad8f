"""The labelled NYU file: axes, counting from 1, both truths, and what broken files say."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
import pickle

from depth_node.training.datasets import DatasetError, open_dataset
from depth_node.training.datasets.base import AbsentSplitError
from depth_node.training.datasets.nyu_mat import MAT_NAME, recognise
import h5py
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy.io import loadmat, savemat

_SPEC = importlib.util.spec_from_file_location(
    'write_nyu_mat', Path(__file__).with_name('write_nyu_mat.py')
)
writer = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(writer)

SIZE_HW = (30, 44)


@pytest.fixture(scope='module')
def nyu(tmp_path_factory):
    root = tmp_path_factory.mktemp('nyu')
    return root, writer.write(root, frames=9, size_hw=SIZE_HW, seed=3)


def numbers(dataset):
    """Frame numbers of a split, from 0."""
    return [int(dataset.name(index)[:4]) - 1 for index in range(len(dataset))]


def test_trap_05_splits_count_from_1(nyu):
    root, truth = nyu
    test = open_dataset('nyu_mat', root, 'test')
    assert numbers(test) == truth['test'] == [0, 4, 8]
    # the independent reading: MATLAB's number n is the n-th sample of the file
    first = int(loadmat(root / 'splits.mat')['testNdxs'].min())
    with h5py.File(root / MAT_NAME) as file:
        np.testing.assert_array_equal(test.read(0).rgb.T, file['images'][first - 1])


def test_splits_that_count_from_0_are_refused(tmp_path):
    truth = writer.write(tmp_path, frames=5, size_hw=SIZE_HW)
    savemat(tmp_path / 'splits.mat', {'trainNdxs': truth['train'], 'testNdxs': truth['test']})
    with pytest.raises(DatasetError, match=r'splits\.mat: .* go from 0 .* expected 1 to 5'):
        open_dataset('nyu_mat', tmp_path, 'train')


def test_trap_06_axes_come_back_in_our_order(nyu):
    root, truth = nyu
    dataset = open_dataset('nyu_mat', root, 'test')
    for index, number in enumerate(truth['test']):
        frame = dataset.read(index)
        assert frame.size_hw == SIZE_HW
        np.testing.assert_array_equal(frame.rgb, truth['rgb'][number])
        np.testing.assert_array_equal(frame.depth, truth['filled'][number])
        np.testing.assert_array_equal(frame.labels, truth['labels'][number].astype(int) - 1)
        assert frame.rgb.flags.c_contiguous


def test_trap_06_a_file_that_was_not_reversed_is_refused(tmp_path):
    truth = writer.write(tmp_path, frames=5, size_hw=SIZE_HW)
    with h5py.File(tmp_path / MAT_NAME, 'r+') as file:
        del file['images']
        file['images'] = truth['rgb']
    with pytest.raises(DatasetError, match=r'expected \(frames, 3, width, height\)'):
        open_dataset('nyu_mat', tmp_path, 'train')


def test_trap_04_raw_and_filled_truth(nyu):
    root, truth = nyu
    number = truth['test'][0]
    raw = open_dataset('nyu_mat', root, 'test', truth='raw')
    filled = open_dataset('nyu_mat', root, 'test', truth='filled')
    np.testing.assert_array_equal(raw.read(0).depth, truth['raw'][number])
    assert (raw.read(0).depth == 0).any()
    assert (filled.read(0).depth > 0).all()
    assert 'raw' in raw.note
    assert 'filled' in filled.note
    with pytest.raises(ValueError, match='filled, raw'):
        open_dataset('nyu_mat', root, 'test', truth='sparse')


def test_whole_scenes_are_held_out(nyu):
    root, truth = nyu
    train, val = (open_dataset('nyu_mat', root, split) for split in ('train', 'val'))
    assert sorted(numbers(train) + numbers(val)) == truth['train']
    assert len(val) > 0
    assert not set(train.scene_counts()) & set(val.scene_counts())
    assert set(val.scene_counts()) <= set(truth['scenes'])
    assert train.classes == list(writer.CLASSES)


def test_validation_on_the_test_frames(nyu):
    root, truth = nyu
    assert numbers(open_dataset('nyu_mat', root, 'val', val='test')) == truth['test']
    assert numbers(open_dataset('nyu_mat', root, 'train', val='test')) == truth['train']


def test_one_scene_cannot_be_divided(tmp_path):
    writer.write(tmp_path, frames=2, size_hw=SIZE_HW)
    with pytest.raises(AbsentSplitError, match='one scene'):
        open_dataset('nyu_mat', tmp_path, 'val')


def test_camera_is_the_kinects_of_640x480(nyu):
    root, _ = nyu
    camera = open_dataset('nyu_mat', root, 'test').read(0).camera
    sx, sy = SIZE_HW[1] / 640, SIZE_HW[0] / 480
    assert (camera.fx, camera.fy) == pytest.approx((518.8579 * sx, 519.4696 * sy))
    assert camera.cx == pytest.approx((325.5824 + 0.5) * sx - 0.5)
    assert camera.cy == pytest.approx((253.7362 + 0.5) * sy - 0.5)


def test_label_map(nyu, tmp_path):
    root, truth = nyu
    path = tmp_path / 'map.txt'
    path.write_text('1\n0\n-1\n1\n')
    dataset = open_dataset('nyu_mat', root, 'test', label_map=str(path))
    expected = np.array([-1, 1, 0, -1, 1])[truth['labels'][truth['test'][1]]]
    np.testing.assert_array_equal(dataset.read(1).labels, expected)
    path.write_text('1\n0\n')
    with pytest.raises(DatasetError, match='label map has 2 lines'):
        open_dataset('nyu_mat', root, 'test', label_map=str(path)).read(1)
    path.write_text('wall\n')
    with pytest.raises(DatasetError, match=r'map\.txt: not a label map'):
        open_dataset('nyu_mat', root, 'test', label_map=str(path))
    assert open_dataset('nyu_mat', root, 'test', labels=False).read(0).labels is None


def test_a_worker_process_opens_the_file_for_itself(nyu):
    root, _ = nyu
    dataset = open_dataset('nyu_mat', root, 'test')
    expected = dataset.read(1).depth
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy._file._handle is None
    np.testing.assert_array_equal(copy.read(1).depth, expected)
    # three forked readers at once; the parent's open file must serve none of them
    children = []
    for _ in range(3):
        child = os.fork()
        if not child:
            status = 1
            try:
                same = all(np.array_equal(dataset.read(1).depth, expected) for _ in range(20))
                status = 0 if same and dataset._file._pid == os.getpid() else 1
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]


def test_recognised_as_file_and_as_folder(nyu, tmp_path):
    root, _ = nyu
    assert recognise(root)
    assert recognise(root / MAT_NAME)
    assert recognise(root / 'splits.mat') is None
    assert recognise(tmp_path) is None
    assert len(open_dataset('nyu_mat', root / MAT_NAME, 'test')) == 3


@pytest.mark.parametrize('name', [MAT_NAME, 'splits.mat'])
def test_a_missing_file_is_named(tmp_path, name):
    writer.write(tmp_path, frames=5, size_hw=SIZE_HW)
    (tmp_path / name).unlink()
    with pytest.raises(DatasetError, match=f'{name}: no such file'):
        open_dataset('nyu_mat', tmp_path, 'train')


def test_what_is_wrong_in_a_frame_is_named(tmp_path):
    writer.write(tmp_path, frames=5, size_hw=SIZE_HW)
    with h5py.File(tmp_path / MAT_NAME, 'r+') as file:
        file['depths'][0] *= 1000
        file['depths'][4] = np.nan
    dataset = open_dataset('nyu_mat', tmp_path, 'test')
    with pytest.raises(DatasetError, match=r'\.mat: depths of frame 1: median .* another unit'):
        dataset.read(0)
    with pytest.raises(DatasetError, match=r'depths of frame 5: no pixel of known depth'):
        dataset.read(1)


@pytest.mark.parametrize(
    ('name', 'shape', 'dtype', 'message'),
    [
        ('depths', (5, 44, 29), 'f4', r'depths have shape \(5, 44, 29\)'),
        ('depths', (5, 44, 30), 'u2', 'depths are uint16, expected float32'),
        ('images', (5, 3, 44, 30), 'f4', 'images are float32, expected uint8'),
        ('labels', (4, 44, 30), 'u2', r'labels have shape \(4, 44, 30\)'),
    ],
)
def test_arrays_of_another_shape_or_type_are_refused(tmp_path, name, shape, dtype, message):
    writer.write(tmp_path, frames=5, size_hw=SIZE_HW)
    with h5py.File(tmp_path / MAT_NAME, 'r+') as file:
        del file[name]
        file[name] = np.zeros(shape, dtype)
    with pytest.raises(DatasetError, match=message):
        open_dataset('nyu_mat', tmp_path, 'train')


def test_a_frame_in_both_splits_is_refused(tmp_path):
    writer.write(tmp_path, frames=5, size_hw=SIZE_HW)
    savemat(tmp_path / 'splits.mat', {'trainNdxs': [[1, 3]], 'testNdxs': [[2, 3]]})
    with pytest.raises(DatasetError, match='frame 3 is in both'):
        open_dataset('nyu_mat', tmp_path, 'train')


def read_all(root):
    for split in ('train', 'val', 'test'):
        dataset = open_dataset('nyu_mat', root, split)
        for index in range(len(dataset)):
            dataset.read(index)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=st.sampled_from([MAT_NAME, 'splits.mat']), kept=st.floats(0, 0.999),
       tail=st.binary(max_size=40))  # fmt: skip
def test_a_truncated_file_gives_nothing_but_our_error(tmp_path, name, kept, tail):
    writer.write(tmp_path, frames=5, size_hw=(6, 10))
    data = (tmp_path / name).read_bytes()
    cut = data[: int(kept * len(data))] + tail
    assume(not cut.startswith(data.rstrip(b'\0')))  # zeros may be what was cut off
    (tmp_path / name).write_bytes(cut)
    with pytest.raises(DatasetError, match=name):
        read_all(tmp_path)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=300))
def test_random_bytes_give_nothing_but_our_error(tmp_path, data):
    writer.write(tmp_path, frames=5, size_hw=(6, 10))
    (tmp_path / MAT_NAME).write_bytes(data)
    with pytest.raises(DatasetError, match=MAT_NAME):
        read_all(tmp_path)
