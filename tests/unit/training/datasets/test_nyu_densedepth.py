"""DenseDepth's NYU: two units, read from the zip, held-out scenes, and broken files."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
import pickle
import zipfile

import cv2
from depth_node.training.datasets import DatasetError, open_dataset
from depth_node.training.datasets.base import AbsentSplitError
from depth_node.training.datasets.nyu_densedepth import recognise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

_SPEC = importlib.util.spec_from_file_location(
    'write_nyu_densedepth', Path(__file__).with_name('write_nyu_densedepth.py')
)
writer = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(writer)

SIZE_HW = (30, 44)


@pytest.fixture(scope='module', params=[True, False], ids=['zip', 'folder'])
def dense(request, tmp_path_factory):
    root = tmp_path_factory.mktemp('dense')
    return writer.write(root, frames=6, size_hw=SIZE_HW, seed=2, zipped=request.param)


def unpacked(tmp_path, **options):
    return writer.write(tmp_path, size_hw=SIZE_HW, zipped=False, **options)


def frames_of(path, split, **options):
    dataset = open_dataset('nyu_densedepth', path, split, **options)
    return {f'data/{dataset.name(index)}': dataset.read(index) for index in range(len(dataset))}


def test_trap_07_8_bits_are_over_10_m_and_16_bits_are_millimetres(dense):
    train = frames_of(dense['path'], 'train', val='test')
    test = frames_of(dense['path'], 'test')
    assert len(train) == 6
    assert len(test) == 3
    for frames, truth in ((train, dense['train']), (test, dense['test'])):
        for name, depth in truth.items():
            frame = frames[name.rpartition('.')[0]]
            np.testing.assert_allclose(frame.depth, depth, rtol=1e-6)
            assert frame.size_hw == SIZE_HW
    # 8 bits leave steps of 3.9 cm, 16 bits of 1 mm
    steps = np.unique(np.concatenate([frame.depth.ravel() for frame in train.values()]))
    assert np.diff(steps).min() == pytest.approx(10 / 255, rel=1e-4)


def test_trap_07_8_bit_values_stored_as_16_bits_are_refused(tmp_path):
    unpacked(tmp_path)
    path = next(tmp_path.glob('data/nyu2_train/*/1.png'))
    cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.uint16))
    with pytest.raises(DatasetError, match=r'1\.png: 16 bits with values up to \d+'):
        frames_of(tmp_path, 'train', val='test')


def test_an_unknown_label_pixel_stays_unknown(tmp_path):
    unpacked(tmp_path)
    path = next(tmp_path.glob('data/nyu2_train/*/1.png'))
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    image[3, 5] = 0
    cv2.imwrite(str(path), image)
    frame = frames_of(tmp_path, 'train', val='test')[
        str(path.relative_to(tmp_path).with_suffix(''))]  # fmt: skip
    assert frame.depth[3, 5] == 0
    assert (frame.depth > 0).sum() == frame.depth.size - 1


def test_whole_scenes_are_held_out(dense):
    train, val = (frames_of(dense['path'], split) for split in ('train', 'val'))
    assert len(train) + len(val) == 6
    scenes = [{name.split('/')[2] for name in frames} for frames in (train, val)]
    assert all(scenes)
    assert not scenes[0] & scenes[1]
    assert frames_of(dense['path'], 'val', val='test').keys() == frames_of(
        dense['path'], 'test').keys()  # fmt: skip


def test_lists_of_the_newer_code(tmp_path):
    unpacked(tmp_path)
    data = tmp_path / 'data'
    rows = (data / 'nyu2_train.csv').read_text().splitlines()
    (data / 'trainData.csv').write_text('\n'.join(rows[:3]))
    (data / 'valData.csv').write_text('\n'.join(rows[3:]))
    for name in ('nyu2_train.csv', 'nyu2_test.csv'):
        (data / name).unlink()
    assert len(frames_of(tmp_path, 'train')) == 3
    assert len(frames_of(tmp_path, 'val')) == 1
    with pytest.raises(AbsentSplitError, match="'test'; found train, val"):
        open_dataset('nyu_densedepth', tmp_path, 'test')


def test_zip_folder_and_data_are_the_same(tmp_path):
    writer.write(tmp_path / 'a', size_hw=SIZE_HW, seed=5)
    unpacked(tmp_path / 'b', seed=5)
    reference = frames_of(tmp_path / 'a', 'train')
    for root in (tmp_path / 'a' / 'nyu_data.zip', tmp_path / 'b', tmp_path / 'b' / 'data'):
        assert recognise(root)
        frames = frames_of(root, 'train')
        assert frames.keys() == reference.keys()
        for name, frame in frames.items():
            np.testing.assert_array_equal(frame.rgb, reference[name].rgb)
            np.testing.assert_array_equal(frame.depth, reference[name].depth)
    assert recognise(tmp_path) is None
    assert recognise(tmp_path / 'b' / 'data' / 'nyu2_train.csv') is None


def test_a_worker_opens_the_zip_for_itself(tmp_path):
    writer.write(tmp_path, frames=8, size_hw=SIZE_HW)
    dataset = open_dataset('nyu_densedepth', tmp_path, 'train', val='test')
    expected = [dataset.read(index).depth for index in range(len(dataset))]
    assert pickle.loads(pickle.dumps(dataset))._source._handle is None
    # three forked readers at once, which would mix up each other's position in a shared file
    children = []
    for _ in range(3):
        child = os.fork()
        if not child:
            status = 1
            try:
                same = all(
                    np.array_equal(dataset.read(index).depth, expected[index])
                    for _ in range(10) for index in range(len(dataset))
                )  # fmt: skip
                status = 0 if same and dataset._source._pid == os.getpid() else 1
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]


@pytest.mark.parametrize(
    'row', ['a.jpg', 'a.jpg,b.png,c', '/etc/a.jpg,/etc/b.png', 'data/../../a.jpg,data/b.png', ',']
)
def test_a_row_that_names_no_two_files_below_is_refused(tmp_path, row):
    unpacked(tmp_path)
    with (tmp_path / 'data' / 'nyu2_train.csv').open('a') as stream:
        stream.write(f'{row}\n')
    with pytest.raises(DatasetError, match=r'nyu2_train\.csv: line 5 is'):
        open_dataset('nyu_densedepth', tmp_path, 'train')


def test_what_is_missing_is_named(tmp_path, dense):
    with pytest.raises(DatasetError, match=r'neither nyu_data\.zip nor data/nyu2_train\.csv'):
        open_dataset('nyu_densedepth', tmp_path, 'train')
    with pytest.raises(DatasetError, match=r"split 'all': expected one of"):
        open_dataset('nyu_densedepth', dense['path'], 'all')
    unpacked(tmp_path)
    dataset = open_dataset('nyu_densedepth', tmp_path, 'test')
    dataset.files(0)[1].unlink()
    with pytest.raises(DatasetError, match=r'00000_depth\.png: no such file'):
        dataset.read(0)


def test_a_member_that_is_missing_or_damaged_is_named(tmp_path):
    path = writer.write(tmp_path, size_hw=SIZE_HW)['path']
    name = 'data/nyu2_test/00000_depth.png'
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
        info = archive.getinfo(name)
        offset = info.header_offset + 30 + len(name) + info.compress_size // 2
    damaged = bytearray(path.read_bytes())
    damaged[offset] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(DatasetError, match=f'nyu_data.zip/{name}: .*damaged in the zip'):
        frames_of(path, 'test')
    with zipfile.ZipFile(path, 'w') as archive:
        for member, data in members.items():
            if member != name:
                archive.writestr(member, data)
    with pytest.raises(DatasetError, match=f'nyu_data.zip/{name}: no such file'):
        frames_of(path, 'test')


def test_depth_of_another_size_is_named(tmp_path):
    unpacked(tmp_path)
    path = tmp_path / 'data' / 'nyu2_test' / '00001_depth.png'
    cv2.imwrite(str(path), np.full(SIZE_HW[::-1], 2000, np.uint16))
    with pytest.raises(DatasetError, match=r'00001_depth\.png: depth has size \(44, 30\)'):
        frames_of(tmp_path, 'test')


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(kept=st.floats(0, 0.9), tail=st.binary(max_size=60))
def test_a_truncated_zip_gives_nothing_but_our_error(tmp_path, kept, tail):
    path = writer.write(tmp_path, size_hw=(6, 10))['path']
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))] + tail)
    with pytest.raises(DatasetError, match=r'nyu_data\.zip'):
        frames_of(path, 'train')


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 0.9999), bits=st.integers(1, 255))
def test_a_changed_byte_gives_the_same_frames_or_our_error(tmp_path, place, bits):
    path = writer.write(tmp_path, size_hw=(6, 10))['path']
    before = {name: frame.depth for name, frame in frames_of(path, 'train').items()}
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= bits
    path.write_bytes(data)
    try:
        after = frames_of(path, 'train')
    except DatasetError as error:
        message = str(error)
        after = {}
    else:
        message = 'nyu_data.zip'
    assert 'nyu_data.zip' in message
    for name, frame in after.items():
        np.testing.assert_array_equal(frame.depth, before[name])
