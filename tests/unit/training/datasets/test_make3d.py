"""Make3D: channel 4, pairs across folders, sizes, and broken files."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cv2
from depth_node.training.datasets import DatasetError, open_dataset
from depth_node.training.datasets.base import AbsentSplitError
from depth_node.training.datasets.make3d import recognise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy.io import savemat

_SPEC = importlib.util.spec_from_file_location(
    'write_make3d', Path(__file__).with_name('write_make3d.py')
)
writer = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(writer)

SIZE_HW = (66, 48)
GRID_HW = (11, 24)


@pytest.fixture(scope='module')
def make3d(tmp_path_factory):
    root = tmp_path_factory.mktemp('make3d')
    return root, writer.write(root, frames=4, size_hw=SIZE_HW, seed=6, grid_hw=GRID_HW)


def frames_of(path, split, **options):
    dataset = open_dataset('make3d', path, split, **options)
    return {dataset.name(index): dataset.read(index) for index in range(len(dataset))}


@pytest.mark.parametrize('split', ['train', 'test'])
def test_channel_4_at_the_nearest_measurement(make3d, split):
    root, truth = make3d
    frames = frames_of(root, split, val='test', size_hw=SIZE_HW, far_m=np.inf)
    assert frames.keys() == truth[split].keys()
    for name, frame in frames.items():
        rgb, grid = truth[split][name]
        assert np.abs(frame.rgb.astype(int) - rgb).mean() < 6  # JPEG
        expected = grid.repeat(SIZE_HW[0] // GRID_HW[0], 0).repeat(SIZE_HW[1] // GRID_HW[1], 1)
        np.testing.assert_allclose(frame.depth, expected, rtol=1e-6)
        assert frame.camera is None


def test_default_size_is_that_of_the_literature(make3d):
    root, truth = make3d
    far = [
        (name, frame, far_m)
        for far_m, options in ((70, {}), (60, {'far_m': 60}))
        for name, frame in frames_of(root, 'test', **options).items()
    ]
    for name, frame, far_m in far:
        assert frame.size_hw == (460, 345)
        rows = np.floor((np.arange(460) + 0.5) * GRID_HW[0] / 460).astype(int)
        columns = np.floor((np.arange(345) + 0.5) * GRID_HW[1] / 345).astype(int)
        expected = truth['test'][name][1][np.ix_(rows, columns)]
        kept = np.where(expected > far_m, 0, expected)
        np.testing.assert_allclose(frame.depth, kept, rtol=1e-6)
    assert any((frame.depth == 0).any() for _, frame, _ in far)


def test_places_are_held_out(make3d):
    root, truth = make3d
    train, val = (frames_of(root, split) for split in ('train', 'val'))
    assert sorted([*train, *val]) == sorted(truth['train'])
    places = [{name.partition('-p-')[0] for name in frames} for frames in (train, val)]
    assert all(places)
    assert places[0].isdisjoint(places[1])


def test_the_innermost_folder_says_the_split(tmp_path):
    root = tmp_path / 'test_of_something' / 'training'
    writer.write(root, size_hw=SIZE_HW)
    assert len(frames_of(root, 'train', val='test')) == 4
    assert len(frames_of(root, 'test')) == 2


def test_recognised(make3d, tmp_path):
    assert recognise(make3d[0]).startswith('depth_sph_corr-')
    assert recognise(tmp_path) is None
    assert recognise(next(make3d[0].rglob('*.mat'))) is None


def test_what_is_missing_is_named(make3d, tmp_path):
    with pytest.raises(DatasetError, match='no such folder'):
        open_dataset('make3d', tmp_path / 'x', 'train')
    with pytest.raises(DatasetError, match=r'expected img-\*\.jpg in folders'):
        open_dataset('make3d', tmp_path, 'train')
    with pytest.raises(ValueError, match='size_hw'):
        open_dataset('make3d', make3d[0], 'train', size_hw=(0, 5))
    with pytest.raises(ValueError, match='far_m -1'):
        open_dataset('make3d', make3d[0], 'train', far_m=-1)
    writer.write(tmp_path, size_hw=SIZE_HW)
    dataset = open_dataset('make3d', tmp_path, 'test')
    picture, mat = dataset.files(0)
    mat.unlink()
    reopened = open_dataset('make3d', tmp_path, 'test')
    with pytest.raises(DatasetError, match=rf'{mat.name}: no such file'):
        reopened.read(0)
    picture.write_bytes(b'')
    with pytest.raises(DatasetError, match=rf'{picture.name}: not a readable picture'):
        reopened.read(0)
    for path in tmp_path.glob('Test134/*'):
        path.unlink()
    with pytest.raises(AbsentSplitError, match="no frames of split 'test'"):
        open_dataset('make3d', tmp_path, 'test')


def test_broken_grids_are_named(tmp_path):
    writer.write(tmp_path, size_hw=SIZE_HW)
    dataset = open_dataset('make3d', tmp_path, 'test')
    mat = dataset.files(0)[1]
    grid = np.full((*GRID_HW, 4), 9.0)
    for content, message in (
        ({'Grid': grid}, "has no variable 'Position3DGrid'"),
        ({'Position3DGrid': grid[..., :3]}, r'shape \(11, 24, 3\)'),
        ({'Position3DGrid': grid * 1000}, 'median depth 9000 m'),
        ({'Position3DGrid': grid * np.nan}, 'no pixel of known depth'),
        ({'Position3DGrid': 'depth'}, 'is a text, expected numbers'),
        ({'Position3DGrid': grid.astype(np.int16)}, 'is int16 .* expected float'),
    ):
        savemat(mat, content)
        with pytest.raises(DatasetError, match=rf'{mat.name}: .*{message}'):
            open_dataset('make3d', tmp_path, 'test', far_m=np.inf).read(0)


def test_pictures_are_shrunk_by_areas(tmp_path):
    writer.write(tmp_path, size_hw=SIZE_HW)
    dataset = open_dataset('make3d', tmp_path, 'test', size_hw=(33, 24))
    rgb = cv2.imread(str(dataset.files(0)[0]))[..., ::-1].astype(float)
    mean = rgb.reshape(33, 2, 24, 2, 3).mean((1, 3))
    assert np.abs(dataset.read(0).rgb - mean).max() <= 1


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(kept=st.floats(0, 0.97), tail=st.binary(max_size=40))
def test_a_truncated_grid_gives_nothing_but_our_error(tmp_path, kept, tail):
    writer.write(tmp_path, frames=2, size_hw=(6, 4), grid_hw=(5, 8))
    dataset = open_dataset('make3d', tmp_path, 'test', size_hw=(6, 4))
    mat = dataset.files(0)[1]
    data = mat.read_bytes()
    mat.write_bytes(data[: int(kept * len(data))] + tail)
    with pytest.raises(DatasetError, match=mat.name):
        dataset.read(0)
