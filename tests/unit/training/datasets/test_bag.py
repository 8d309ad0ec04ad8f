"""RGB-D bags in both storages: pairing, splits, encodings, rectification, topics, damage."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import multiprocessing
import os
from pathlib import Path
import pickle
import struct
import warnings

import cv2
from depth_node.camera import Camera
from depth_node.images import ImageError
from depth_node.training.datasets import DatasetError, open_dataset
from depth_node.training.datasets.base import AbsentSplitError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

pytest.importorskip('rosbags')
from depth_node.training.datasets.bag import (
    decode_depth,
    in_split,
    pair_stamps,
    recognise,
)

_SPEC = importlib.util.spec_from_file_location(
    'write_bag', Path(__file__).with_name('write_bag.py')
)
writer = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(writer)

SIZE_HW = (48, 64)
STORAGES = ['mcap', 'sqlite3']
ALL = {'shares': (1, 0, 0)}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


@pytest.fixture(scope='module', params=STORAGES)
def bag(request, tmp_path_factory):
    return writer.write(tmp_path_factory.mktemp('bags'), size_hw=SIZE_HW, storage=request.param)


def kept_indexes(tmp_path):
    return sorted((tmp_path / 'cache' / 'depth_node' / 'bags').glob('*'))


def test_every_frame_is_what_was_recorded(bag):
    data = open_dataset('bag', bag['path'], 'train', **ALL)
    assert len(data) == 20
    for index in (19, 0, 7, 8):  # in any order
        frame = data.read(index)
        np.testing.assert_array_equal(frame.rgb, bag['rgb'][index])
        np.testing.assert_allclose(frame.depth, bag['depth'][index], rtol=1e-6)
        assert (frame.depth[-2:, :3] == 0).all()
        np.testing.assert_allclose(frame.camera.K, bag['K'])
        assert frame.camera.size_hw == frame.size_hw == SIZE_HW
        assert data.name(index) == f'bag {bag["stamps"][index] / 1e9:.6f}'
    assert [p.suffix for p in data.files(0)] in (['.mcap'], ['.db3'])
    assert data.fingerprint()['frames'] == 20


def test_a_storage_file_alone_is_a_bag(bag):
    file = open_dataset('bag', bag['path'], 'train', **ALL).files(0)[0]
    data = open_dataset('bag', file, 'train', **ALL)
    np.testing.assert_array_equal(data.read(3).rgb, bag['rgb'][3])


@pytest.mark.parametrize('storage', STORAGES)
def test_messages_that_arrived_at_one_time_are_told_apart(tmp_path, storage):
    truth = writer.write(tmp_path, size_hw=(12, 17), storage=storage, burst_s=7.0)
    data = open_dataset('bag', truth['path'], 'train', **ALL)
    for index in range(20):
        frame = data.read(index)
        np.testing.assert_array_equal(frame.rgb, truth['rgb'][index])
        np.testing.assert_allclose(frame.depth, truth['depth'][index], rtol=1e-6)


def test_times_of_arrival_serve_where_there_are_no_stamps(tmp_path):
    truth = writer.write(tmp_path, stamped=False)
    data = open_dataset('bag', truth['path'], 'train')
    assert len(data) == 15
    assert data.name(3) == f'bag {truth["stamps"][3] / 1e9 + 0.03:.6f}'
    np.testing.assert_array_equal(data.read(3).rgb, truth['rgb'][3])


def test_splits_are_apart_in_time(bag):
    names = {}
    for split in ('train', 'val', 'test'):
        data = open_dataset('bag', bag['path'], split)
        names[split] = [float(data.name(i).split()[1]) for i in range(len(data))]
    assert [len(names[s]) for s in ('train', 'val', 'test')] == [15, 1, 2]
    assert names['val'][0] - names['train'][-1] > 1.0
    assert names['test'][0] - names['val'][-1] > 1.0
    with pytest.raises(AbsentSplitError, match=r'no frame in split val .*split_gap_s 6'):
        open_dataset('bag', bag['path'], 'val', split_gap_s=6.0)


@pytest.mark.parametrize('storage', STORAGES)
@pytest.mark.parametrize('compression', ['message', 'storage'])
def test_compressed_bags(tmp_path, storage, compression):
    if storage == 'sqlite3' and compression == 'storage':
        pytest.skip('sqlite3 has no compression of its own')
    truth = writer.write(tmp_path, size_hw=(12, 17), storage=storage, compression=compression)
    frame = open_dataset('bag', truth['path'], 'train').read(5)
    np.testing.assert_array_equal(frame.rgb, truth['rgb'][5])
    np.testing.assert_allclose(frame.depth, truth['depth'][5], rtol=1e-6)


@pytest.mark.parametrize('storage', STORAGES)
def test_bag_compressed_as_a_file_is_refused(tmp_path, storage):
    truth = writer.write(tmp_path, size_hw=(12, 17), storage=storage, compression='file')
    with pytest.raises(DatasetError, match=r'\.zstd: compressed as a whole.*ros2 bag convert'):
        open_dataset('bag', truth['path'], 'train')


@pytest.mark.parametrize(
    ('rgb_format', 'depth_format', 'tolerance'),
    [
        ('bgr8', '32FC1', 1e-6),
        ('png', 'mono16', 1e-6),
        ('png', '16UC1; compressedDepth png', 1e-6),
        ('png', '16UC1; compressedDepth', 1e-6),
        ('png', '16UC1; png compressed ', 1e-6),
        ('png', '32FC1; compressedDepth png', 1e-5),
    ],
)
def test_encodings(tmp_path, rgb_format, depth_format, tolerance):
    truth = writer.write(
        tmp_path, size_hw=(14, 19), rgb_format=rgb_format, depth_format=depth_format
    )
    frame = open_dataset('bag', truth['path'], 'train').read(2)
    np.testing.assert_array_equal(frame.rgb, truth['rgb'][2])
    np.testing.assert_allclose(frame.depth, truth['depth'][2], rtol=tolerance)
    assert (frame.depth == 0).sum() == 6
    plane = writer.plane_depth(writer.pixel_rays(truth['K'], (14, 19)), truth['planes'][2])
    known = frame.depth > 0
    np.testing.assert_allclose(frame.depth[known], plane[known], rtol=3e-3)


def test_jpeg_pictures_of_the_compressed_topic(tmp_path):
    truth = writer.write(
        tmp_path, rgb_format='jpeg', image_topic=writer.IMAGE + '/compressed', size_hw=SIZE_HW
    )
    frame = open_dataset('bag', truth['path'], 'train').read(2)  # camera_info is found beside
    assert np.abs(frame.rgb.astype(int) - truth['rgb'][2]).mean() < 4


def test_rectification_takes_depth_along(tmp_path):
    """The plane's depth, in closed form, at every pixel of the undistorted picture."""
    D = (-0.28, 0.07, 0.001, -0.0015, 0.0)
    truth = writer.write(tmp_path, size_hw=(60, 80), D=D)
    data = open_dataset('bag', truth['path'], 'train')
    frame = data.read(4)
    assert not frame.camera.is_distorted
    np.testing.assert_allclose(frame.camera.K, truth['K'])
    ideal = writer.plane_depth(writer.pixel_rays(truth['K'], (60, 80)), truth['planes'][4])
    known = frame.depth > 0
    assert known.mean() > 0.9
    # Nearest sampling: half a pixel of the raw picture in each direction, which the lens makes
    # 0.69 pixels in the corners of this one; and 1 mm of rounding.
    slope = np.abs(np.stack(np.gradient(ideal))).sum(0)
    error = np.abs(frame.depth - ideal)
    assert (error[known] <= 0.7 * slope[known] + 1e-3).all()
    assert abs((frame.depth - ideal)[known].mean()) < 0.1 * slope.mean()  # and no shift
    raw = open_dataset('bag', truth['path'], 'train', rectify='off').read(4)
    np.testing.assert_array_equal(raw.rgb, truth['rgb'][4])
    off = np.abs(raw.depth - ideal)[known & (raw.depth > 0)]
    assert off.max() > 4 * error[known].max()
    # the picture moves with its depth: brightness is a function of it; the next one leaves it be
    data.read(12)
    grey = frame.rgb.mean(-1)
    inner = known & (cv2.erode(known.astype(np.uint8), np.ones((3, 3))) > 0)
    assert np.abs(grey - (20 + 28 * ideal + 7))[inner].mean() < 4


def test_depth_that_is_rectified_already_stays(tmp_path):
    truth = writer.write(tmp_path, size_hw=(60, 80), D=(-0.3, 0.1, 0.0, 0.0, 0.0))
    options = {'depth_is_rectified': True}
    frame = open_dataset('bag', truth['path'], 'train', **options).read(1)
    np.testing.assert_allclose(frame.depth, truth['depth'][1], rtol=1e-6)
    assert (frame.rgb != truth['rgb'][1]).mean() > 0.3


def test_image_rect_topic_is_not_rectified_again(tmp_path):
    options = {'D': (-0.3, 0.1, 0.0, 0.0, 0.0), 'image_topic': '/camera/color/image_rect_color'}
    truth = writer.write(tmp_path, **options)
    frame = open_dataset('bag', truth['path'], 'train').read(1)
    np.testing.assert_array_equal(frame.rgb, truth['rgb'][1])
    again = open_dataset('bag', truth['path'], 'train', rectify='on').read(1)
    assert (again.rgb != truth['rgb'][1]).mean() > 0.3


def test_topics_are_listed_where_the_choice_is_not_clear(tmp_path):
    truth = writer.write(
        tmp_path, extra_topics=(('/infra1/image_rect_raw', 'mono8'), ('/depth/raw', '16UC1'))
    )
    path = truth['path']
    with pytest.raises(DatasetError) as error:
        open_dataset('bag', path, 'train')
    text = str(error.value)
    assert '2 topics with colour images, expected one; choose by image_topic' in text
    assert '/infra1/image_rect_raw (sensor_msgs/msg/Image, mono8, 20 messages)' in text
    assert f'{writer.INFO} (sensor_msgs/msg/CameraInfo, 20 messages)' in text
    with pytest.raises(DatasetError, match='2 topics with depth images'):
        open_dataset('bag', path, 'train', image_topic=writer.IMAGE)
    options = {'image_topic': writer.IMAGE, 'depth_topic': writer.DEPTH}
    np.testing.assert_array_equal(
        open_dataset('bag', path, 'train', **options).read(0).rgb, truth['rgb'][0]
    )
    with pytest.raises(DatasetError, match='image_topic /nowhere: no image messages on it'):
        open_dataset('bag', path, 'train', image_topic='/nowhere')
    with pytest.raises(DatasetError, match='camera_info_topic /nowhere: no CameraInfo'):
        open_dataset('bag', path, 'train', **options, camera_info_topic='/nowhere')
    swapped = open_dataset(
        'bag', path, 'train', image_topic=writer.DEPTH, depth_topic=writer.IMAGE
    )
    with pytest.raises(DatasetError, match='this is a depth image, a colour or grey camera'):
        swapped.read(0)
    other = open_dataset(
        'bag', path, 'train', image_topic=writer.IMAGE, depth_topic='/infra1/image_rect_raw'
    )
    with pytest.raises(DatasetError, match="depth_topic with encoding 'mono8': expected 16UC1"):
        other.read(0)


def test_calibration_from_elsewhere(tmp_path):
    truth = writer.write(tmp_path, info_topic=None)
    path = truth['path']
    with pytest.raises(DatasetError, match=r'0 topics with CameraInfo.*camera_yaml'):
        open_dataset('bag', path, 'train')
    yaml = tmp_path / 'camera.yaml'
    K = truth['K'].ravel().tolist()
    text = (
        'image_width: 64\nimage_height: 48\ndistortion_model: plumb_bob\n'
        f'camera_matrix: {{data: {K}}}\ndistortion_coefficients: {{data: [0, 0, 0, 0, 0]}}\n'
    )
    yaml.write_text(text)
    data = open_dataset('bag', path, 'train', camera_yaml=str(yaml))
    np.testing.assert_allclose(data.read(0).camera.K, truth['K'])
    yaml.write_text(text.replace('64', '640'))
    with pytest.raises(DatasetError, match=r'camera_yaml is for \(48, 640\)'):
        open_dataset('bag', path, 'train', camera_yaml=str(yaml)).read(0)
    yaml.write_text('[]')
    with pytest.raises(DatasetError, match=r'camera\.yaml: not a camera calibration'):
        open_dataset('bag', path, 'train', camera_yaml=str(yaml))


def test_the_other_info_topic_is_chosen_by_name_only_if_it_is_the_only_one(tmp_path):
    truth = writer.write(tmp_path, info_topic='/elsewhere/info')
    data = open_dataset('bag', truth['path'], 'train')
    np.testing.assert_allclose(data.read(0).camera.K, truth['K'])


def test_unregistered_depth_is_refused(tmp_path):
    small = writer.write(tmp_path, depth_size_hw=(24, 40), name='small')
    data = open_dataset('bag', small['path'], 'train')
    with pytest.raises(DatasetError, match=r'size \(24, 40\), the picture \(48, 64\).*registered'):
        data.read(0)
    frame = writer.write(tmp_path, depth_frame_id='camera_depth_optical_frame', name='frame')
    with pytest.raises(DatasetError, match=r"'camera_depth_optical_frame'.*same_frame_id"):
        open_dataset('bag', frame['path'], 'train')
    assert len(open_dataset('bag', frame['path'], 'train', same_frame_id=False)) == 15


def test_pairs_need_near_stamps(tmp_path):
    path = writer.write(tmp_path, depth_delay_s=0.031)['path']
    with pytest.raises(DatasetError, match=r'within max_gap_s 0\.02 s.*difference is 0\.031 s'):
        open_dataset('bag', path, 'train')
    assert len(open_dataset('bag', path, 'train', max_gap_s=0.04, **ALL)) == 20


@settings(max_examples=60, deadline=None)
@given(
    first=st.lists(st.integers(0, 300), max_size=14, unique=True),
    second=st.lists(st.integers(0, 300), max_size=14, unique=True),
    gap=st.integers(0, 60),
)
def test_pairing_against_the_definition(first, second, gap):
    a, b = np.array(first, np.int64), np.array(second, np.int64)
    pairs = pair_stamps(a, b, gap)
    assert len(set(pairs[:, 0])) == len(set(pairs[:, 1])) == len(pairs)
    assert (np.diff(a[pairs[:, 0]]) > 0).all()
    for i, j in pairs:
        assert abs(a[i] - b[j]) <= gap
        assert abs(a[i] - b[j]) == np.abs(a - b[j]).min() == np.abs(a[i] - b).min()
    free_a = np.delete(a, pairs[:, 0])
    for i in free_a:  # whoever is alone has no strictly mutual partner
        for j in b:
            only = (np.abs(a - j) <= abs(i - j)).sum() == (np.abs(b - i) <= abs(i - j)).sum() == 1
            assert abs(i - j) > gap or not only


@settings(max_examples=60, deadline=None)
@given(
    stamps=st.lists(st.integers(0, 10_000), min_size=1, max_size=40, unique=True),
    cuts=st.tuples(st.integers(0, 10), st.integers(0, 10)),
    gap=st.integers(0, 3000),
)
def test_splits_never_touch(stamps, cuts, gap):
    low, high = sorted(cuts)
    shares = (low / 10, (high - low) / 10, 1 - high / 10)
    times = np.array(stamps, np.int64) + 10**18
    masks = [in_split(times, split, shares, gap) for split in ('train', 'val', 'test')]
    assert sum(mask.astype(int) for mask in masks).max() <= 1
    present = [times[mask] for mask in masks if mask.any()]
    for earlier, later in itertools.pairwise(present):
        assert later.min() - earlier.max() > gap
    if gap == 0:
        assert sum(mask.sum() for mask in masks) == len(times)


def test_bag_is_read_through_once(tmp_path, monkeypatch):
    from rosbags.rosbag2 import Reader

    truth = writer.write(tmp_path)
    calls = []
    messages = Reader.messages

    def spy(self, connections=(), start=None, stop=None):
        calls.append(start)
        return messages(self, connections, start, stop)

    monkeypatch.setattr(Reader, 'messages', spy)
    open_dataset('bag', truth['path'], 'train')
    assert calls == [None]
    assert len(kept_indexes(tmp_path)) == 1
    data = open_dataset('bag', truth['path'], 'val')
    data.read(0)
    assert None not in calls[1:]
    assert len(calls) == 3
    # another bag at the same place is indexed anew
    file = data.files(0)[0]
    file.touch()
    open_dataset('bag', truth['path'], 'val')
    assert calls[3:] == [None]
    for path in kept_indexes(tmp_path):
        path.write_text('{"listing"')
    assert len(open_dataset('bag', truth['path'], 'val')) == 1


def test_cache_folder_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    truth = writer.write(tmp_path)
    blocked = tmp_path / 'file'
    blocked.write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(blocked))
    np.testing.assert_array_equal(
        open_dataset('bag', truth['path'], 'train').read(0).rgb, truth['rgb'][0]
    )


def _read_in_child(data, index, queue):
    queue.put((data.read(index).rgb, data._bags[0]._process == os.getpid()))


def test_loader_processes_open_the_bag_themselves(bag):
    data = open_dataset('bag', bag['path'], 'train')
    data.read(0)  # open here too
    context = multiprocessing.get_context('fork')
    queue = context.Queue()
    children = [context.Process(target=_read_in_child, args=(data, 6, queue)) for _ in range(2)]
    for child in children:
        child.start()
    pictures = [queue.get(timeout=30) for _ in children]
    for child in children:
        child.join(30)
        assert child.exitcode == 0
    for picture, opened_here in pictures:
        assert opened_here
        np.testing.assert_array_equal(picture, bag['rgb'][6])
    np.testing.assert_array_equal(data.read(7).rgb, bag['rgb'][7])


def test_an_open_bag_travels_to_a_spawned_process(bag):
    data = open_dataset('bag', bag['path'], 'train')
    data.read(0)
    copy = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(copy.read(6).rgb, bag['rgb'][6])


def test_folder_of_bags(tmp_path):
    truths = [
        writer.write(tmp_path / 'bags', name=name, seed=n, storage=storage)
        for n, (name, storage) in enumerate((('kitchen', 'mcap'), ('yard', 'sqlite3')))
    ]
    data = open_dataset('bag', tmp_path / 'bags', 'train')
    assert len(data) == 30
    assert data.name(15).startswith('yard ')
    np.testing.assert_array_equal(data.read(16).rgb, truths[1]['rgb'][1])
    assert '2 rosbag2 folders: kitchen' in recognise(tmp_path / 'bags')


def test_recognise(bag, tmp_path):
    assert recognise(bag['path']).startswith('rosbag2: bag.')
    assert recognise(tmp_path) is None
    assert recognise(tmp_path / 'nothing') is None


@pytest.mark.parametrize('storage', STORAGES)
def test_cut_off_bags_are_named(tmp_path, storage):
    path = writer.write(tmp_path, storage=storage)['path']
    file = next(p for p in path.iterdir() if p.suffix != '.yaml')
    whole = file.read_bytes()
    for share in (0.0, 0.3, 0.97):
        file.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(DatasetError, match=r'bag.*not a readable bag.*reindex'):
            open_dataset('bag', path, 'train').read(0)
    file.unlink()
    with pytest.raises(DatasetError, match=r'no \.mcap or \.db3 file beside it'):
        open_dataset('bag', path, 'train')
    (path / 'metadata.yaml').unlink()
    with pytest.raises(DatasetError, match=r'no bag: neither metadata\.yaml'):
        open_dataset('bag', path, 'train')
    with pytest.raises(DatasetError, match='no such file or folder'):
        open_dataset('bag', path / 'x', 'train')


def test_mcap_without_chunk_index_is_refused(tmp_path):
    path = writer.write(tmp_path)['path']
    file = path / 'bag.mcap'
    blob = bytearray(file.read_bytes())
    blob[-28:-20] = struct.pack('<Q', 0)  # no summary section
    file.write_bytes(bytes(blob))
    with pytest.raises(DatasetError, match=r'bag\.mcap: no chunk index.*mcap sort'):
        open_dataset('bag', path, 'train')


def test_bag_that_changes_while_it_is_used(tmp_path):
    path = writer.write(tmp_path / 'a', size_hw=(12, 16))['path']
    data = open_dataset('bag', path, 'train')
    other = writer.write(tmp_path / 'b', size_hw=(12, 16), period_s=1.7)['path']
    (path / 'bag.mcap').write_bytes((other / 'bag.mcap').read_bytes())
    with pytest.raises(DatasetError, match='the bag was changed'):
        data.read(7)


def test_wrong_units_and_empty_depth(tmp_path, monkeypatch):
    def as_metres_in_16uc1(depth, form):
        return 'sensor_msgs/msg/Image', '16UC1', depth.astype(np.uint16).tobytes(), depth

    def as_millimetres_in_32fc1(depth, form):
        return 'sensor_msgs/msg/Image', '32FC1', (depth * 1e3).astype('<f4').tobytes(), depth

    def empty(depth, form):
        return 'sensor_msgs/msg/Image', '32FC1', (depth * np.nan).astype('<f4').tobytes(), depth

    for number, (encode, message) in enumerate(
        (
            (as_metres_in_16uc1, 'median depth 0.00'),
            (as_millimetres_in_32fc1, 'another unit'),
            (empty, 'no pixel of known depth'),
        )
    ):
        monkeypatch.setattr(writer, 'encode_depth', encode)
        path = writer.write(tmp_path, name=str(number))['path']
        with pytest.raises(DatasetError, match=rf'{writer.DEPTH} at 17\d+\.\d+: .*{message}'):
            open_dataset('bag', path, 'train').read(0)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'rectify': 'yes'}, "rectify 'yes': expected one of auto, on, off"),
        ({'shares': (0.5, 0.5)}, 'expected three numbers'),
        ({'shares': (0.9, 0.2, 0.1)}, 'expected three numbers'),
        ({'shares': (0, 0.5, 0.5)}, 'no frame in split train'),
    ],
)
def test_wrong_options(bag, options, message):
    with pytest.raises(DatasetError, match=message):
        open_dataset('bag', bag['path'], 'train', **options)
    with pytest.raises(DatasetError, match='expected one of train, val, test'):
        open_dataset('bag', bag['path'], 'all')


def test_uncalibrated_camera_is_named_at_once(tmp_path, monkeypatch):
    rays = writer.pixel_rays
    monkeypatch.setattr(writer, 'pixel_rays', lambda K, size_hw, D: rays(K, size_hw))
    truth = writer.write(tmp_path, D=(np.nan, 0, 0, 0, 0), size_hw=(8, 9))
    with pytest.raises(DatasetError, match=f'{writer.INFO}: CameraInfo: K, D, R or P holds NaN'):
        open_dataset('bag', truth['path'], 'train')


class _Compressed:
    """A CompressedImage as rosbags gives it."""

    def __init__(self, format: str, data: bytes) -> None:
        self.format, self.data = format, np.frombuffer(data, np.uint8)


@pytest.mark.parametrize('form', ['16UC1; compressedDepth rvl', 'jpeg', '16UC1; compressedDepth'])
@pytest.mark.parametrize('data', [b'', b'0' * 12, b'0' * 40])
def test_compressed_depth_that_cannot_be_read(form, data):
    with pytest.raises(ImageError):
        decode_depth(_Compressed(form, data))


@pytest.mark.parametrize('storage', STORAGES)
def test_hostile_bytes_give_only_dataset_errors(tmp_path, storage):
    path = writer.write(tmp_path, size_hw=(6, 8), storage=storage)['path']
    file = next(p for p in path.iterdir() if p.suffix != '.yaml')
    whole = file.read_bytes()

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(at=st.floats(0, 1), junk=st.binary(max_size=60), cut=st.booleans(), alone=st.booleans())
    def attack(at, junk, cut, alone):
        begin = int(at * len(whole))
        file.write_bytes(whole[:begin] + junk + (b'' if cut else whole[begin + len(junk) :]))
        try:
            opened = open_dataset('bag', file if alone else path, 'train', **ALL)
            frame = opened.read(min(3, len(opened) - 1))  # a changed stamp can leave fewer
            assert np.isfinite(frame.depth).all()
            complaint = 'bag'
        except DatasetError as error:
            complaint = str(error)
        assert 'bag' in complaint

    attack()
    metadata = path / 'metadata.yaml'
    file.write_bytes(whole)
    for text in ('', 'a: [', 'rosbag2_bagfile_information: {version: 9}', '\0\1'):
        metadata.write_text(text)
        with pytest.raises(DatasetError, match='not a readable bag'):
            open_dataset('bag', path, 'train')


def test_a_bag_that_is_damaged_inside_is_closed_again(tmp_path):
    path = writer.write(tmp_path, size_hw=(6, 8), storage='mcap')['path']
    file = next(p for p in path.iterdir() if p.suffix == '.mcap')
    whole = bytearray(file.read_bytes())
    half = len(whole) // 2
    whole[half // 2 : half] = b'\xff' * (half - half // 2)  # messages; the index is whole
    file.write_bytes(whole)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always', ResourceWarning)
        with pytest.raises(DatasetError, match='not a readable bag'):
            open_dataset('bag', path, 'train')
        gc.collect()
    assert [text for text in map(str, (one.message for one in told)) if str(path) in text] == []


def test_camera_of_a_frame_is_a_camera(bag):
    camera = open_dataset('bag', bag['path'], 'train').read(0).camera
    K = bag['K']
    assert camera == Camera(SIZE_HW, K[0, 0], K[1, 1], K[0, 2], K[1, 2])
