"""Lists of frames: both dialects, units, frames without depth, and broken lists."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cv2
from depth_node.training.datasets import DatasetError, open_dataset
from depth_node.training.datasets.base import AbsentSplitError
from depth_node.training.datasets.list_file import recognise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

_SPEC = importlib.util.spec_from_file_location(
    'write_list_file', Path(__file__).with_name('write_list_file.py')
)
writer = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(writer)

SIZE_HW = (30, 44)
BTS_TRAIN = 'nyudepthv2_train_files_with_gt.txt'


def frames_of(path, split, **options):
    dataset = open_dataset('list', path, split, **options)
    return {dataset.name(index): dataset.read(index) for index in range(len(dataset))}


def test_bts_rows_with_focal_length_and_missing_depth(tmp_path):
    truth = writer.write(tmp_path, frames=5, size_hw=SIZE_HW, seed=1)['train']
    frames = frames_of(tmp_path, 'train', val='test')
    without = [name for name, (_, depth) in truth.items() if depth is None]
    assert len(without) == 1
    assert frames.keys() == truth.keys() - set(without)
    for name, frame in frames.items():
        rgb, depth = truth[name]
        np.testing.assert_array_equal(frame.rgb, rgb)
        np.testing.assert_allclose(frame.depth, depth, rtol=1e-6)
        camera = frame.camera
        assert (camera.fx, camera.fy, camera.cx, camera.cy) == (518.8579, 518.8579, 21.5, 14.5)
    dataset = open_dataset('list', tmp_path, 'train', val='test')
    assert dataset.has_camera
    assert dataset.skipped == 1
    assert '1 frames without depth' in dataset.note


def test_frames_without_depth_are_kept_on_request(tmp_path):
    truth = writer.write(tmp_path, frames=5, size_hw=SIZE_HW)['train']
    frames = frames_of(tmp_path, 'train', val='test', missing='keep')
    assert frames.keys() == truth.keys()
    (name,) = (name for name, (_, depth) in truth.items() if depth is None)
    assert not frames[name].depth.any()
    with pytest.raises(ValueError, match="missing 'drop': expected one of skip, keep"):
        open_dataset('list', tmp_path, 'train', missing='drop')


def test_depth_anything_rows_have_absolute_paths_and_no_camera(tmp_path):
    truth = writer.write(tmp_path / 'data', size_hw=SIZE_HW, dialect='dav2')['test']
    lists = tmp_path / 'lists'
    lists.mkdir()
    for name in ('train.txt', 'test.txt'):
        (tmp_path / 'data' / name).rename(lists / name)
    frames = frames_of(lists, 'test')
    assert len(frames) == len(truth)
    for name, frame in frames.items():
        short = str((Path('/') / name).relative_to((tmp_path / 'data').resolve()))
        np.testing.assert_allclose(frame.depth, truth[short][1], rtol=1e-6)
        assert frame.camera is None
    assert not open_dataset('list', lists, 'test').has_camera


def test_intrinsics_by_option(tmp_path):
    writer.write(tmp_path, size_hw=SIZE_HW)
    camera = next(iter(frames_of(tmp_path, 'test', k=[50, 52, 20, 14]).values())).camera
    assert (camera.size_hw, camera.fx, camera.fy, camera.cx) == (SIZE_HW, 50, 52, 20)
    with pytest.raises(ValueError, match='fx, fy, cx, cy'):
        open_dataset('list', tmp_path, 'test', k=[50, 52])


def test_rows_on_own_lists_and_roots(tmp_path):
    truth = writer.write(tmp_path / 'a', size_hw=SIZE_HW)['test']
    (tmp_path / 'a' / 'nyudepthv2_test_files_with_gt.txt').rename(tmp_path / 'mine.txt')
    frames = frames_of(tmp_path, 'val', lists={'val': 'mine.txt'}, rgb_root='a', depth_root='a')
    assert frames.keys() == truth.keys()
    with pytest.raises(ValueError, match="lists: 'eval' is not one of train, val, test"):
        open_dataset('list', tmp_path, 'val', lists={'eval': 'mine.txt'})


@pytest.mark.parametrize(
    ('name', 'scale'),
    [
        ('proj_depth/groundtruth/image_02/{:010d}.png', 256),
        ('sync_depth_{:05d}.png', 1000),
        ('Scene01/clone/depth_{:05d}.png', 100),
        ('depth_{:05d}.png', 1000),
    ],
)
def test_trap_10_the_unit_is_what_the_files_are_called(tmp_path, name, scale):
    truth = writer.write(tmp_path, size_hw=SIZE_HW, depth_scale=scale, depth_name=name)['test']
    assert open_dataset('list', tmp_path, 'test').depth_scale == scale
    for key, frame in frames_of(tmp_path, 'test').items():
        np.testing.assert_allclose(frame.depth, truth[key][1], rtol=1e-6)


def test_a_scale_that_contradicts_the_names_is_refused(tmp_path):
    name = 'proj_depth/groundtruth/image_02/{:010d}.png'
    writer.write(tmp_path, size_hw=SIZE_HW, depth_scale=256, depth_name=name)
    with pytest.raises(DatasetError, match=r'depth_scale is 1000, but .*png is called as .*KITTI'):
        open_dataset('list', tmp_path, 'test', depth_scale=1000)
    assert open_dataset('list', tmp_path, 'test', depth_scale=256).depth_scale == 256
    with pytest.raises(ValueError, match='depth_scale 0'):
        open_dataset('list', tmp_path, 'test', depth_scale=0)


def test_millimetres_read_as_metres_are_refused(tmp_path):
    writer.write(tmp_path, size_hw=SIZE_HW, depth_name='d_{:05d}.png')
    with pytest.raises(DatasetError, match=r'd_00000\.png: median depth .*another unit'):
        frames_of(tmp_path, 'test', depth_scale=1)


def test_truth_beyond_the_limit_is_unknown(tmp_path):
    truth = writer.write(tmp_path, size_hw=SIZE_HW)['test']
    for name, frame in frames_of(tmp_path, 'test', max_depth_m=4.0).items():
        depth = truth[name][1]
        assert (depth > 4).any()
        np.testing.assert_allclose(frame.depth, np.where(depth > 4, 0, depth), rtol=1e-6)


def test_both_eyes_of_a_drive_are_on_one_side(tmp_path):
    lines = []
    rng = np.random.default_rng(0)
    for drive in range(6):
        for eye in ('image_02', 'image_03'):
            folder = f'2011_09_26/2011_09_26_drive_{drive:04d}_sync/{eye}/data'
            (tmp_path / folder).mkdir(parents=True)
            cv2.imwrite(str(tmp_path / folder / '0.png'),
                        rng.integers(0, 255, (4, 6, 3), np.uint8))  # fmt: skip
            cv2.imwrite(str(tmp_path / folder / 'd.png'), np.full((4, 6), 3000, np.uint16))
            lines.append(f'{folder}/0.png {folder}/d.png 721.5377')
    (tmp_path / 'train.txt').write_text('\n'.join(lines))
    drives = [
        {name.split('/')[1] for name in frames_of(tmp_path, split, val_share=0.3)}
        for split in ('train', 'val')
    ]
    assert len(drives[0]) + len(drives[1]) == 6
    assert drives[0].isdisjoint(drives[1])
    assert drives[1]


def test_a_list_serves_the_split_that_its_name_says(tmp_path):
    writer.write(tmp_path, size_hw=SIZE_HW)
    path = tmp_path / BTS_TRAIN
    assert len(open_dataset('list', path, 'train', val='test')) == 3
    with pytest.raises(AbsentSplitError, match="no frames of split 'test'; found train"):
        open_dataset('list', path, 'test')
    plain = path.rename(tmp_path / 'frames.txt')
    assert len(open_dataset('list', plain, 'test')) == 3


def test_recognised(tmp_path):
    writer.write(tmp_path, size_hw=SIZE_HW)
    assert recognise(tmp_path / BTS_TRAIN) == "rows of 'rgb depth focal'"
    assert 'rgb depth focal' in recognise(tmp_path)
    for text in ('a.jpg\n', 'some words here\n', 'a.png b.png c d\n', '\xff\n'):
        other = tmp_path / 'x.txt'
        other.write_text(text)
        assert recognise(other) is None
    assert recognise(tmp_path / 'train_room_0000' / 'rgb_00000.png') is None
    (tmp_path / 'empty').mkdir()
    assert recognise(tmp_path / 'empty') is None


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('a.png', r'\(1 words\)'),
        ('a b.png c.png 518.8', r'\(4 words\).*without spaces'),
        ('a.png b.png near', 'could not convert'),
        ('a.png b.png -3', r'focal length -3'),
        ('a.png b.png nan', r'focal length nan'),
    ],
)
def test_a_line_that_is_none_is_refused(tmp_path, line, message):
    writer.write(tmp_path, size_hw=SIZE_HW)
    with (tmp_path / BTS_TRAIN).open('a') as stream:
        stream.write(f'{line}\n')
    with pytest.raises(DatasetError, match=f'{BTS_TRAIN}: line 5 is .*{message}'):
        open_dataset('list', tmp_path, 'train')


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(DatasetError, match='no list; expected'):
        open_dataset('list', tmp_path, 'train')
    (tmp_path / 'train.txt').write_text('\n')
    with pytest.raises(DatasetError, match=r'train\.txt: no line'):
        open_dataset('list', tmp_path, 'train')
    (tmp_path / 'train.txt').write_text('a.png None 5\n')
    with pytest.raises(DatasetError, match='none of the 1 frames of train has depth'):
        open_dataset('list', tmp_path, 'train', val='test')
    (tmp_path / 'train2.txt').write_text('a.png b.png\n')
    with pytest.raises(DatasetError, match=r'train\.txt, train2\.txt may each'):
        open_dataset('list', tmp_path, 'train')
    writer.write(tmp_path / 'b', size_hw=SIZE_HW)
    dataset = open_dataset('list', tmp_path / 'b', 'test')
    rgb, depth = dataset.files(0)
    depth.unlink()
    with pytest.raises(DatasetError, match=rf'{depth.name}: no such file'):
        dataset.read(0)
    cv2.imwrite(str(depth), np.full((4, 4), 3000, np.uint16))
    with pytest.raises(DatasetError, match=rf'{depth.name}: depth has size \(4, 4\)'):
        dataset.read(0)
    cv2.imwrite(str(depth), np.full(SIZE_HW, 200, np.uint8))
    with pytest.raises(DatasetError, match=rf'{depth.name}: uint8 .*expected a grey .*uint16'):
        dataset.read(0)
    rgb.write_bytes(rgb.read_bytes()[:200])
    with pytest.raises(DatasetError, match=rf'{rgb.name}: not a readable picture \(200 bytes\)'):
        dataset.read(0)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=60) | st.text('/.0 \nNonepg\0é', max_size=60).map(str.encode))
def test_a_hostile_list_gives_nothing_but_our_error(tmp_path, data):
    (tmp_path / 'train.txt').write_bytes(data)
    recognise(tmp_path)
    with pytest.raises(DatasetError):
        frames_of(tmp_path, 'train', val='test', missing='keep')
