"""A plain folder: three forms of depth, units, splits that share no file, and broken files."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cv2
from depth_node.training.datasets import DatasetError, open_dataset
from depth_node.training.datasets.base import AbsentSplitError
from depth_node.training.datasets.folder import recognise
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

_SPEC = importlib.util.spec_from_file_location(
    'write_folder', Path(__file__).with_name('write_folder.py')
)
writer = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(writer)

SIZE_HW = (30, 44)
SPLITS = ('train', 'val', 'test')


def names(path, split, **options):
    try:
        dataset = open_dataset('folder', path, split, **options)
    except AbsentSplitError:
        return []
    return [dataset.name(index) for index in range(len(dataset))]


@pytest.mark.parametrize('suffix', ['.png', '.jpg'])
@pytest.mark.parametrize('form', writer.FORMS)
def test_every_form(tmp_path, form, suffix):
    truth = writer.write(tmp_path, size_hw=SIZE_HW, form=form, rgb_suffix=suffix, frames=2)
    for split in SPLITS:
        dataset = open_dataset('folder', tmp_path, split)
        assert len(dataset) == 2
        for index in range(2):
            rgb, depth = truth[dataset.name(index)]
            frame = dataset.read(index)
            np.testing.assert_allclose(frame.depth, depth, rtol=1e-6)
            assert np.abs(frame.rgb.astype(int) - rgb).mean() < (6 if suffix == '.jpg' else 1e-9)
            assert frame.camera is None
            assert (frame.depth == 0).any()


@pytest.mark.parametrize(('unit', 'scale'), [('cm', 100), ('mm', 1000), ('kitti', 256)])
def test_units(tmp_path, unit, scale):
    stored = np.full(SIZE_HW, 3 * scale, np.uint16)
    for name, save in (
        ('a_depth.png', lambda path: cv2.imwrite(str(path), stored)),
        ('b.npy', lambda path: np.save(path, stored.astype(np.float64))),
        ('c.npy', lambda path: np.save(path, stored.astype(np.int32))),
        ('d_depth_mm.png', lambda path: cv2.imwrite(str(path), np.full(SIZE_HW, 3000, np.uint16))),
    ):
        (tmp_path / 'test').mkdir(exist_ok=True)
        save(tmp_path / 'test' / name)
        cv2.imwrite(str(tmp_path / 'test' / f'{name[0]}.png'), np.zeros((*SIZE_HW, 3), np.uint8))
    dataset = open_dataset('folder', tmp_path, 'test', unit=unit)
    assert len(dataset) == 4
    for index in range(4):
        np.testing.assert_allclose(dataset.read(index).depth, 3.0, rtol=1e-6)
    with pytest.raises(ValueError, match="unit 'inch': expected one of m, cm, mm, kitti"):
        open_dataset('folder', tmp_path, 'test', unit='inch')


def test_camera_by_k_or_by_angle(tmp_path):
    writer.write(tmp_path, size_hw=SIZE_HW)
    camera = open_dataset('folder', tmp_path, 'val', k=(50, 52, 20, 14)).read(0).camera
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (50, 52, 20, 14)
    assert camera.size_hw == SIZE_HW
    dataset = open_dataset('folder', tmp_path, 'val', hfov_deg=90)
    assert dataset.has_camera
    assert dataset.read(0).camera.fx == pytest.approx(22)
    for options in ({'k': (1, 2, 3)}, {'k': (0, 1, 2, 3)}, {'hfov_deg': 200},
                    {'k': (50, 52, 20, 14), 'hfov_deg': 90}):  # fmt: skip
        with pytest.raises(ValueError, match=r'expected'):
            open_dataset('folder', tmp_path, 'val', **options)


@example(stems={'0', '000', '8'}, shares=(0.25, 0.25))  # two by chance in test, none in val
@given(
    stems=st.sets(st.text('abcxyz0123456789-', min_size=1, max_size=5), min_size=1, max_size=25),
    shares=st.tuples(st.floats(0, 0.45), st.floats(0, 0.45)),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_file_is_in_two_splits(tmp_path_factory, stems, shares):
    root = tmp_path_factory.mktemp('folder')
    for stem in stems:
        (root / f'{stem}.jpg').touch()
        (root / f'{stem}_depth.png').touch()
    options = {'val_share': shares[0], 'test_share': shares[1]}
    parts = [names(root, split, **options) for split in SPLITS]
    assert sorted(name for part in parts for name in part) == sorted(stems)
    assert parts[0], 'nothing to train on'
    if len(stems) >= 3:
        assert all(part for part, share in zip(parts[1:], shares, strict=True) if share > 0)
    assert parts == [names(root, split, **options) for split in SPLITS]


def test_more_frames_move_none_to_another_split(tmp_path):
    for index in range(200):
        (tmp_path / f'{index}.jpg').touch()
        (tmp_path / f'{index}_depth_mm.png').touch()
    before = {split: set(names(tmp_path, split)) for split in SPLITS}
    assert 10 <= len(before['val']) <= 30
    assert 10 <= len(before['test']) <= 30
    for index in range(200, 300):
        (tmp_path / f'{index}.jpg').touch()
        (tmp_path / f'{index}_depth_mm.png').touch()
    for split in SPLITS:
        assert before[split] <= set(names(tmp_path, split))


def test_videos_stay_together(tmp_path):
    writer.write(tmp_path, size_hw=(6, 8), splits=tuple(f'drive_{index}' for index in range(8)))
    parts = [
        {name.split('/')[0] for name in names(tmp_path, split, group='folder')} for split in SPLITS
    ]
    assert sum(map(len, parts)) == 8
    assert set.union(*parts) == {f'drive_{index}' for index in range(8)}
    assert all(parts)


def test_only_the_split_folders_that_are_there(tmp_path):
    writer.write(tmp_path, size_hw=(6, 8), splits=('train', 'val'))
    with pytest.raises(AbsentSplitError, match=r"test: no such folder; found \['train', 'val'\]"):
        open_dataset('folder', tmp_path, 'test')
    assert len(names(tmp_path, 'val')) == 4
    (tmp_path / 'test').mkdir()
    with pytest.raises(AbsentSplitError, match=r"no frames of 'test'; expected X\.jpg"):
        open_dataset('folder', tmp_path, 'test')


def test_pictures_without_depth_are_counted(tmp_path):
    writer.write(tmp_path, size_hw=(6, 8), splits=('train',), form='_depth.png')
    (tmp_path / 'train' / 'frame_002_depth.png').unlink()
    dataset = open_dataset('folder', tmp_path, 'train')
    assert len(dataset) == 3
    assert dataset.without_depth == 1
    assert '1 pictures without depth' in dataset.note


def test_recognised(tmp_path):
    writer.write(tmp_path / 'a', size_hw=(6, 8))
    assert recognise(tmp_path / 'a') == 'test/frame_000_depth_mm.png beside its picture'
    assert recognise(tmp_path) is not None
    (tmp_path / 'b').mkdir()
    (tmp_path / 'b' / 'x_depth.png').touch()
    (tmp_path / 'b' / 'photo.jpg').touch()
    assert recognise(tmp_path / 'b') is None
    assert recognise(tmp_path / 'b' / 'photo.jpg') is None


def test_broken_frames_are_named(tmp_path):
    writer.write(tmp_path, size_hw=SIZE_HW, frames=1)
    dataset = open_dataset('folder', tmp_path, 'train')
    rgb, depth = dataset.files(0)
    for image, message in (
        (np.zeros(SIZE_HW, np.uint16), 'no pixel of known depth'),
        (np.full(SIZE_HW, 3, np.uint16), r'median depth 0\.003 m'),
        (np.full((7, 9), 3000, np.uint16), r'depth has size \(7, 9\), its picture \(30, 44\)'),
        (np.full(SIZE_HW, 3, np.uint8), 'uint8 .* expected a grey picture of uint16'),
        (np.full((*SIZE_HW, 3), 3, np.uint16), 'uint16 with shape'),
    ):
        cv2.imwrite(str(depth), image)
        with pytest.raises(DatasetError, match=f'{depth.name}: {message}'):
            dataset.read(0)
    rgb.unlink()
    with pytest.raises(DatasetError, match=r'frame_000\.png: no such file'):
        dataset.read(0)
    with pytest.raises(DatasetError, match=r'frame_000\.jpg: no such file'):
        open_dataset('folder', tmp_path, 'train').read(0)
    np.save(tmp_path / 'train' / 'frame_000.npy', np.ones(SIZE_HW))
    with pytest.raises(DatasetError, match=r'depth of the same picture; remove one'):
        open_dataset('folder', tmp_path, 'train')
    with pytest.raises(DatasetError, match='nothing: no such folder'):
        open_dataset('folder', tmp_path / 'nothing', 'train')
    for options in ({'group': 'scene'}, {'val_share': 0.7, 'test_share': 0.3}):
        with pytest.raises(ValueError, match='expected'):
            open_dataset('folder', tmp_path, 'train', **options)


@pytest.mark.parametrize(
    ('array', 'message'),
    [
        (np.full(SIZE_HW, 3000, np.int32), 'int32, expected float metres'),
        (np.full(SIZE_HW, 3000.0), 'median depth 3000 m'),
        (np.ones(SIZE_HW, bool), 'bool, expected float metres'),
        (np.full(SIZE_HW, np.nan), 'no pixel of known depth'),
        (np.full(SIZE_HW, 1e300), 'no pixel of known depth'),
        (np.full(SIZE_HW, -2.0), 'no pixel of known depth'),
        (np.full(5, 2.0), r'shape \(5,\)'),
    ],
)
def test_arrays_that_are_no_depth_are_refused(tmp_path, array, message):
    writer.write(tmp_path, size_hw=SIZE_HW, frames=1, form='.npy')
    dataset = open_dataset('folder', tmp_path, 'val')
    path = dataset.files(0)[1]
    np.save(path, array)
    with pytest.raises(DatasetError, match=rf'{path.name}: .*{message}'):
        dataset.read(0)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(form=st.sampled_from(writer.FORMS), which=st.integers(0, 1), kept=st.floats(0, 0.95),
       tail=st.binary(max_size=20))  # fmt: skip
def test_truncated_files_give_nothing_but_our_error(tmp_path_factory, form, which, kept, tail):
    root = tmp_path_factory.mktemp('folder')
    writer.write(root, size_hw=(12, 16), frames=1, form=form)
    dataset = open_dataset('folder', root, 'train')
    path = dataset.files(0)[which]
    data = path.read_bytes()
    cut = data[: int(kept * len(data))] + tail
    path.write_bytes(cut if len(cut) < len(data) else b'')
    with pytest.raises(DatasetError, match=path.name):
        dataset.read(0)
