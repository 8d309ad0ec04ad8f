"""DIODE: masks, folders, the division of its val part, and broken files."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from depth_node.training.datasets import DatasetError, open_dataset
from depth_node.training.datasets.base import AbsentSplitError
from depth_node.training.datasets.diode import recognise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

_SPEC = importlib.util.spec_from_file_location(
    'write_diode', Path(__file__).with_name('write_diode.py')
)
writer = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(writer)

SIZE_HW = (30, 44)


@pytest.fixture(scope='module')
def diode(tmp_path_factory):
    root = tmp_path_factory.mktemp('diode')
    return root, writer.write(root, frames=4, size_hw=SIZE_HW, seed=6)


def frames_of(path, split, **options):
    dataset = open_dataset('diode', path, split, **options)
    return {dataset.name(index): dataset.read(index) for index in range(len(dataset))}


def test_frames_are_what_was_written_and_masked_is_unknown(diode):
    root, truth = diode
    found = {**frames_of(root, 'train'), **frames_of(root, 'val')}
    assert found.keys() == truth.keys()
    for name, frame in found.items():
        rgb, depth = truth[name]
        np.testing.assert_array_equal(frame.rgb, rgb)
        np.testing.assert_array_equal(frame.depth, depth)
        assert (frame.depth == 0).any()


def test_camera_is_that_of_1024x768(diode):
    camera = next(iter(frames_of(diode[0], 'val').values())).camera
    sx, sy = SIZE_HW[1] / 1024, SIZE_HW[0] / 768
    assert (camera.fx, camera.fy) == pytest.approx((886.81 * sx, 927.06 * sy))
    assert (camera.cx, camera.cy) == pytest.approx((512.5 * sx - 0.5, 384.5 * sy - 0.5))


@pytest.mark.parametrize(('part', 'count'), [('all', 5), ('indoors', 4), ('outdoor', 1)])
def test_parts(diode, part, count):
    names = frames_of(diode[0], 'val', part=part)
    assert len(names) == count
    assert part == 'all' or all(name.startswith(f'val/{part}/') for name in names)


def test_val_alone_is_divided_by_scans(diode):
    root, truth = diode
    options = {'part': 'indoors', 'divide_part': 'val'}
    train, val = (frames_of(root, split, **options) for split in ('train', 'val'))
    assert sorted([*train, *val]) == [name for name in sorted(truth) if 'val/indoors' in name]
    scans = [{name.split('/')[3] for name in frames} for frames in (train, val)]
    assert all(scans)
    assert scans[0].isdisjoint(scans[1])


def test_truth_beyond_the_range_is_unknown(diode):
    root, truth = diode
    for name, frame in frames_of(root, 'val', part='outdoor', max_range_m=60).items():
        depth = truth[name][1]
        assert (depth > 60).any()
        np.testing.assert_array_equal(frame.depth, np.where(depth > 60, 0, depth))


def test_recognised(diode, tmp_path):
    assert recognise(diode[0])
    assert recognise(tmp_path) is None
    assert recognise(diode[0] / 'val') is None
    assert recognise(next(diode[0].rglob('*.png'))) is None


def test_splits_and_options_that_are_none(diode, tmp_path):
    with pytest.raises(AbsentSplitError, match='no test frames'):
        open_dataset('diode', diode[0], 'test')
    with pytest.raises(AbsentSplitError, match='train: no such folder'):
        open_dataset('diode', tmp_path, 'train')
    (tmp_path / 'val').mkdir()
    with pytest.raises(DatasetError, match=r'val: no indoors/scene_\*'):
        open_dataset('diode', tmp_path, 'val', part='indoors')
    with pytest.raises(ValueError, match="part 'garden'"):
        open_dataset('diode', diode[0], 'val', part='garden')
    with pytest.raises(ValueError, match="divide_part 'all'"):
        open_dataset('diode', diode[0], 'val', divide_part='all')


def one(tmp_path):
    writer.write(tmp_path, frames=1, size_hw=SIZE_HW)
    dataset = open_dataset('diode', tmp_path, 'val', part='indoors')
    return dataset, *dataset.files(0)


def test_broken_files_are_named(tmp_path):
    dataset, rgb, depth, mask = one(tmp_path)
    metres = np.load(depth)
    for path, array, message in (
        (mask, np.zeros(SIZE_HW), rf'{depth.name}: no pixel of known depth'),
        (mask, np.full(SIZE_HW, np.nan), rf'{depth.name}: no pixel of known depth'),
        (mask, np.ones((3, 4)), rf'{mask.name}: mask \(3, 4\), but its depth is \(30, 44\)'),
        (depth, (metres * 1000).astype(np.uint16), rf'{depth.name}: uint16, expected float'),
        (depth, metres * 1000, rf'{depth.name}: all depth is beyond 300 m, .*another unit'),
        (depth, metres * np.nan, rf'{depth.name}: no pixel of known depth'),
        (depth, metres[:-1], rf'{mask.name}: mask \(30, 44\), but its depth is \(29, 44\)'),
        (depth, np.array(['a']), rf'{depth.name}: <U1, expected numbers'),
        (depth, np.zeros((2, 3, 4, 5)), rf'{depth.name}: shape \(2, 3, 4, 5\)'),
    ):
        before = path.read_bytes()
        np.save(path, array)
        with pytest.raises(DatasetError, match=message):
            dataset.read(0)
        path.write_bytes(before)
    mask.unlink()
    with pytest.raises(DatasetError, match=rf'{mask.name}: no such file'):
        dataset.read(0)
    rgb.unlink()
    with pytest.raises(DatasetError, match=rf'{rgb.name}: no such file'):
        dataset.read(0)


def test_a_pickle_is_not_run(tmp_path):
    dataset, _, depth, _ = one(tmp_path)
    np.save(depth, np.array([{}], object))
    with pytest.raises(DatasetError, match=rf'{depth.name}: not a readable \.npy'):
        dataset.read(0)


def test_single_nan_pixels_are_unknown(tmp_path):
    dataset, _, depth, mask = one(tmp_path)
    metres = np.load(depth)
    metres[2, 3] = np.nan
    np.save(depth, metres)
    np.save(mask, np.ones(SIZE_HW))
    frame = dataset.read(0)
    assert frame.depth[2, 3] == 0
    assert np.isfinite(frame.depth).all()


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(which=st.integers(0, 2), kept=st.floats(0, 0.99), tail=st.binary(max_size=40))
def test_truncated_files_give_nothing_but_our_error(tmp_path, which, kept, tail):
    dataset, *files = one(tmp_path)
    data = files[which].read_bytes()
    cut = data[: int(kept * len(data))] + tail
    files[which].write_bytes(cut if len(cut) < len(data) else b'')
    with pytest.raises(DatasetError, match=files[which].name):
        dataset.read(0)
