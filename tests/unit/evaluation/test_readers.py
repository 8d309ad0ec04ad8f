"""Readers on small files written here, broken ones included."""

import json

import cv2
from depth_node.evaluation import readers
from depth_node.evaluation.readers import DataError, open_reader, read_depth
import numpy as np
import pytest

SIZE_HW = (12, 16)


def colours(size_hw=SIZE_HW):
    v, u = np.mgrid[0 : size_hw[0], 0 : size_hw[1]]
    return np.stack([u * 10, v * 10, np.full_like(u, 200)], axis=-1).astype(np.uint8)


def millimetres(size_hw=SIZE_HW):
    v, u = np.mgrid[0 : size_hw[0], 0 : size_hw[1]]
    mm = (1000 + 10 * u + 100 * v).astype(np.uint16)
    mm[0, 0] = 0
    return mm


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == '.npy':
        np.save(path, array)
        return
    ok, data = cv2.imencode(path.suffix, array[..., ::-1] if array.ndim == 3 else array)
    assert ok
    path.write_bytes(data.tobytes())


def write_rendered(root, split='test', scene='room_0', frame='0000', **changes):
    folder = root / split / scene
    write(folder / f'{frame}.jpg', colours())
    write(folder / f'{frame}.depth.png', millimetres())
    values = {'fx': 14.0, 'fy': 15.0, 'cx': 7.0, 'cy': 5.0, 'width': 16, 'height': 12}
    values.update(changes)
    (folder / f'{frame}.json').write_text(json.dumps(values))
    return folder


def test_folder_with_16_bit_png(tmp_path):
    write(tmp_path / 'a.png', colours())
    write(tmp_path / 'a_depth_mm.png', millimetres())
    reader = open_reader(f'folder:{tmp_path}', intrinsics=(14.0, 15.0, 7.0, 5.0))
    (sample,) = list(reader)
    assert len(reader) == 1
    assert reader.skipped == []
    assert sample.name == 'a'
    assert sample.rgb.dtype == np.uint8
    assert (sample.rgb == colours()).all()  # PNG: exact, and RGB not BGR
    assert sample.true_depth.dtype == np.float32
    assert np.isnan(sample.true_depth[0, 0])
    assert sample.true_depth[3, 5] == pytest.approx(1.35)
    assert sample.camera.size_hw == SIZE_HW
    assert (sample.camera.fx, sample.camera.fy) == (14.0, 15.0)
    assert (sample.camera.cx, sample.camera.cy) == (7.0, 5.0)


def test_folder_with_npy_in_metres_or_millimetres(tmp_path):
    write(tmp_path / 'a.jpg', colours())
    metres = millimetres().astype(np.float64) / 1000
    metres[1, 1] = np.inf
    write(tmp_path / 'a.npy', metres)
    write(tmp_path / 'b.jpg', colours())
    write(tmp_path / 'b_depth.npy', millimetres().astype(np.int32))
    a, b = open_reader(f'folder:{tmp_path}')
    assert a.camera is None
    assert a.true_depth[3, 5] == b.true_depth[3, 5] == pytest.approx(1.35)
    assert np.isnan(a.true_depth[0, 0])
    assert np.isnan(a.true_depth[1, 1])
    assert np.isnan(b.true_depth[0, 0])


def test_osd_intrinsics_and_size(tmp_path):
    write(tmp_path / 'learn00.jpg', colours((480, 640)))
    write(tmp_path / 'learn00_depth_mm.png', np.full((480, 640), 900, np.uint16))
    write(tmp_path / 'learn01.jpg', colours())
    write(tmp_path / 'learn01_depth_mm.png', millimetres())
    reader = open_reader(f'osd:{tmp_path}')
    (sample,) = list(reader)
    assert reader.name == 'osd'
    assert sample.camera.size_hw == (480, 640)
    assert (sample.camera.fx, sample.camera.fy) == (525.0, 525.0)
    assert (sample.camera.cx, sample.camera.cy) == (319.5, 239.5)
    assert [item.name for item in reader.skipped] == ['learn01']
    assert '16x12' in reader.skipped[0].reason
    assert '640x480' in reader.skipped[0].reason


def test_rendered_root_split_and_scene(tmp_path):
    write_rendered(tmp_path, 'test', 'room_0', '0000')
    write_rendered(tmp_path, 'test', 'table_1', '0000')
    write_rendered(tmp_path, 'train', 'room_9', '0000')
    root = open_reader(f'rendered:{tmp_path}')
    assert root.name == 'rendered/test'
    assert [sample.name for sample in root] == ['room_0/0000', 'table_1/0000']
    assert len(open_reader(f'rendered:{tmp_path}/train')) == 1
    scene = open_reader(f'rendered:{tmp_path}/test/room_0')
    (sample,) = list(scene)
    assert sample.camera.size_hw == SIZE_HW
    assert (sample.camera.fx, sample.camera.fy) == (14.0, 15.0)
    assert sample.true_depth[3, 5] == pytest.approx(1.35)


def test_rendered_root_without_test_split_says_what_to_type(tmp_path):
    write_rendered(tmp_path, 'val')
    with pytest.raises(DataError, match=f'rendered:{tmp_path}/val'):
        open_reader(f'rendered:{tmp_path}')
    assert len(open_reader(f'rendered:{tmp_path}/val')) == 1


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        (lambda f: (f / '0000.json').write_text('{'), '0000.json'),
        (lambda f: (f / '0000.json').write_text('{"fx": 3}'), 'expected JSON with fx'),
        (lambda f: (f / '0000.json').write_text('[]'), 'expected JSON with fx'),
        (lambda f: (f / '0000.json').unlink(), 'No such file'),
        (lambda f: (f / '0000.jpg').write_bytes(b'\xff\xd8junk'), '0000.jpg: not a readable'),
        (lambda f: (f / '0000.jpg').unlink(), 'No such file'),
        (lambda f: (f / '0000.depth.png').write_bytes(b''), '0000.depth.png: not a readable PNG'),
        (lambda f: write(f / '0000.depth.png', colours()), 'one channel'),
        (lambda f: write(f / '0000.depth.png', millimetres((16, 12))), 'aspect'),
        (lambda f: write(f / '0000.jpg', colours((24, 32))), '32x24'),
    ],
)
def test_broken_frame_is_skipped_and_named(tmp_path, change, reason):
    folder = write_rendered(tmp_path)
    change(folder)
    write_rendered(tmp_path, frame='0001')
    reader = open_reader(f'rendered:{tmp_path}')
    assert [sample.name for sample in reader] == ['room_0/0001']
    assert [item.name for item in reader.skipped] == ['room_0/0000']
    assert reason in reader.skipped[0].reason
    assert '0000' in reader.skipped[0].reason
    assert len(list(reader)) == 1
    assert len(reader.skipped) == 1  # not counted twice by a second pass


def test_useless_intrinsics_are_named(tmp_path):
    write_rendered(tmp_path, fx=0.0)
    reader = open_reader(f'rendered:{tmp_path}')
    assert list(reader) == []
    assert '0000.json' in reader.skipped[0].reason
    assert 'focal' in reader.skipped[0].reason


@pytest.mark.parametrize(
    ('name', 'array', 'reason'),
    [
        ('metres.png', np.full(SIZE_HW, 2, np.uint16), 'another unit'),
        ('grey8.png', np.full(SIZE_HW, 200, np.uint8), 'uint8'),
        ('mm.npy', np.full(SIZE_HW, 1500.0, np.float32), 'another unit'),
        ('m.npy', np.full(SIZE_HW, 2, np.int32), 'another unit'),
        ('empty.png', np.zeros(SIZE_HW, np.uint16), 'no pixel of known depth'),
        ('nan.npy', np.full(SIZE_HW, np.nan), 'no pixel of known depth'),
        ('cube.npy', np.ones((2, 3, 4)), r'expected a \(H, W\)'),
        ('words.npy', np.array([['a', 'b']]), 'expected floats'),
    ],
)
def test_wrong_unit_or_type_is_detected(tmp_path, name, array, reason):
    write(tmp_path / name, array)
    with pytest.raises(DataError, match=reason) as caught:
        read_depth(tmp_path / name)
    assert name in str(caught.value)


def test_broken_npy_is_named(tmp_path):
    (tmp_path / 'a.npy').write_bytes(b'\x93NUMPY')
    with pytest.raises(DataError, match=r'a\.npy: not a readable NPY'):
        read_depth(tmp_path / 'a.npy')


def test_pickled_npy_is_refused(tmp_path):
    np.save(tmp_path / 'a.npy', np.array([{'x': 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r'a\.npy: not a readable NPY'):
        read_depth(tmp_path / 'a.npy')


def test_picture_without_depth_is_skipped(tmp_path):
    write(tmp_path / 'a.jpg', colours())
    reader = open_reader(f'folder:{tmp_path}')
    assert list(reader) == []
    assert 'a_depth_mm.png' in reader.skipped[0].reason


def test_reading_is_lazy(tmp_path):
    write_rendered(tmp_path, frame='0000')
    write_rendered(tmp_path, frame='0001')
    samples = iter(open_reader(f'rendered:{tmp_path}'))
    assert next(samples).name == 'room_0/0000'
    (tmp_path / 'test/room_0/0001.jpg').unlink()
    assert next(samples, None) is None  # the second was not in memory yet


def test_limit_spreads_over_the_set(tmp_path):
    for i in range(9):
        write_rendered(tmp_path, frame=f'{i:04d}')
    reader = open_reader(f'rendered:{tmp_path}')
    names = [sample.name[-4:] for sample in reader.limited(3)]
    assert names == ['0000', '0004', '0008']
    assert reader.limited(99) is reader
    with pytest.raises(DataError, match='leaves nothing'):
        reader.limited(0)


def test_aloe_has_no_metres(tmp_path):
    write(tmp_path / 'aloeL.jpg', colours())
    disparity = np.full(SIZE_HW, 50, np.uint8)
    disparity[:, 8:] = 100
    disparity[0, :] = 0
    write(tmp_path / 'aloeGT.png', disparity)
    reader = open_reader(f'aloe:{tmp_path}')
    (sample,) = list(reader)
    assert not reader.metric
    assert not sample.metric
    assert sample.camera is None
    assert np.isnan(sample.true_depth[0]).all()
    assert sample.true_depth[5, 3] / sample.true_depth[5, 12] == pytest.approx(2)
    assert np.nanmedian(1 / sample.true_depth) == pytest.approx(1)
    (tmp_path / 'aloeGT.png').unlink()
    with pytest.raises(DataError, match='opencv-doc'):
        open_reader(f'aloe:{tmp_path}')


def test_motorcycle_has_the_published_depths():
    pytest.importorskip('skimage')
    (sample,) = list(open_reader('motorcycle'))
    assert sample.rgb.shape == (500, 741, 3)
    assert sample.camera.size_hw == sample.true_depth.shape == (500, 741)
    known = sample.true_depth[np.isfinite(sample.true_depth)]
    assert 1 - known.size / sample.true_depth.size == pytest.approx(0.0735, abs=1e-4)
    assert np.percentile(known, [1, 50, 99]) == pytest.approx([2.16, 2.75, 4.84], abs=0.01)


def test_motorcycle_without_scikit_image_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'skimage', None)
    reader = open_reader('motorcycle')
    assert list(reader) == []
    assert 'pip install scikit-image' in reader.skipped[0].reason


@pytest.mark.parametrize(
    ('spec', 'reason'),
    [
        ('nyu:here', "unknown kind 'nyu'"),
        ('osd', 'the folder is missing'),
        ('motorcycle:here', 'takes no path'),
        ('rendered:/does/not/exist', 'nothing there'),
        ('folder:/does/not/exist', 'nothing there'),
    ],
)
def test_wrong_data_set_names(spec, reason):
    with pytest.raises(DataError, match=reason):
        open_reader(spec)


def test_empty_folder_and_file_instead_of_folder(tmp_path):
    for kind in ('osd', 'folder', 'rendered'):
        with pytest.raises(DataError, match='expected'):
            open_reader(f'{kind}:{tmp_path}')
    (tmp_path / 'file').write_text('')
    with pytest.raises(DataError, match='a file there'):
        open_reader(f'rendered:{tmp_path}/file')


def test_every_kind_is_described():
    assert set(readers.KINDS) == {'osd', 'motorcycle', 'aloe', 'rendered', 'folder'}
