"""Readers on small files written here, broken ones included."""

import cv2
from depth_node.evaluation import readers
from depth_node.evaluation.readers import DataError, open_own, read_depth
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


def test_osd_intrinsics_and_size(tmp_path):
    write(tmp_path / 'learn00.jpg', colours((480, 640)))
    write(tmp_path / 'learn00_depth_mm.png', np.full((480, 640), 900, np.uint16))
    write(tmp_path / 'learn01.jpg', colours())
    write(tmp_path / 'learn01_depth_mm.png', millimetres())
    reader = open_own('osd', str(tmp_path))
    (sample,) = list(reader)
    assert reader.name == 'osd'
    assert sample.camera.size_hw == (480, 640)
    assert (sample.camera.fx, sample.camera.fy) == (525.0, 525.0)
    assert (sample.camera.cx, sample.camera.cy) == (319.5, 239.5)
    assert [item.name for item in reader.skipped] == ['learn01']
    assert '16x12' in reader.skipped[0].reason
    assert '640x480' in reader.skipped[0].reason


@pytest.fixture
def frame(tmp_path):
    """Two frames of full size; the first is to be broken."""
    for name in ('learn00', 'learn01'):
        write(tmp_path / f'{name}.jpg', colours((480, 640)))
        write(tmp_path / f'{name}_depth_mm.png', millimetres((480, 640)))
    return tmp_path


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        (
            lambda f: (f / 'learn00.jpg').write_bytes(b'\xff\xd8junk'),
            'learn00.jpg: not a readable',
        ),
        (lambda f: (f / 'learn00_depth_mm.png').unlink(), 'No such file'),
        (lambda f: (f / 'learn00_depth_mm.png').write_bytes(b''), 'not a readable PNG'),
        (lambda f: write(f / 'learn00_depth_mm.png', colours()), 'one channel'),
        (lambda f: write(f / 'learn00_depth_mm.png', millimetres((640, 480))), 'aspect'),
    ],
)
def test_broken_frame_is_skipped_and_named(frame, change, reason):
    change(frame)
    reader = open_own('osd', str(frame))
    assert [sample.name for sample in reader] == ['learn01']
    assert [item.name for item in reader.skipped] == ['learn00']
    assert reason in reader.skipped[0].reason
    assert 'learn00' in reader.skipped[0].reason
    assert len(list(reader)) == 1
    assert len(reader.skipped) == 1  # not counted twice by a second pass


def test_frame_is_read_as_it_is(frame):
    sample = next(iter(open_own('osd', str(frame))))
    assert sample.rgb.dtype == np.uint8
    assert np.abs(sample.rgb[..., 2].astype(int) - 200).mean() < 12  # RGB, not BGR
    assert sample.true_depth.dtype == np.float32
    assert np.isnan(sample.true_depth[0, 0])
    assert sample.true_depth[3, 5] == pytest.approx(1.35)
    assert sample.pairs is None
    assert sample.normals is None


@pytest.mark.parametrize(
    ('name', 'array', 'reason'),
    [
        ('metres.png', np.full(SIZE_HW, 2, np.uint16), 'another unit'),
        ('grey8.png', np.full(SIZE_HW, 200, np.uint8), 'uint8'),
        ('empty.png', np.zeros(SIZE_HW, np.uint16), 'no pixel of known depth'),
    ],
)
def test_wrong_unit_or_type_is_detected(tmp_path, name, array, reason):
    write(tmp_path / name, array)
    with pytest.raises(DataError, match=reason) as caught:
        read_depth(tmp_path / name)
    assert name in str(caught.value)


def test_reading_is_lazy(frame):
    samples = iter(open_own('osd', str(frame)))
    assert next(samples).name == 'learn00'
    (frame / 'learn01.jpg').unlink()
    assert next(samples, None) is None  # the second was not in memory yet


def test_limit_spreads_over_the_set(tmp_path):
    for i in range(9):
        write(tmp_path / f'learn{i}.jpg', colours((480, 640)))
        write(tmp_path / f'learn{i}_depth_mm.png', millimetres((480, 640)))
    reader = open_own('osd', str(tmp_path))
    assert [sample.name for sample in reader.limited(3)] == ['learn0', 'learn4', 'learn8']
    assert reader.limited(99) is reader
    with pytest.raises(DataError, match='leaves nothing'):
        reader.limited(0)


def test_aloe_has_no_metres(tmp_path):
    write(tmp_path / 'aloeL.jpg', colours())
    disparity = np.full(SIZE_HW, 50, np.uint8)
    disparity[:, 8:] = 100
    disparity[0, :] = 0
    write(tmp_path / 'aloeGT.png', disparity)
    reader = open_own('aloe', str(tmp_path))
    (sample,) = list(reader)
    assert not reader.metric
    assert reader.truth == 'affine'
    assert sample.camera is None
    assert np.isnan(sample.true_depth[0]).all()
    assert sample.true_depth[5, 3] / sample.true_depth[5, 12] == pytest.approx(2)
    assert np.nanmedian(1 / sample.true_depth) == pytest.approx(1)
    (tmp_path / 'aloeGT.png').unlink()
    with pytest.raises(DataError, match='opencv-doc'):
        open_own('aloe', str(tmp_path))


def test_motorcycle_has_the_published_depths():
    pytest.importorskip('skimage')
    (sample,) = list(open_own('motorcycle', ''))
    assert sample.rgb.shape == (500, 741, 3)
    assert sample.camera.size_hw == sample.true_depth.shape == (500, 741)
    known = sample.true_depth[np.isfinite(sample.true_depth)]
    assert 1 - known.size / sample.true_depth.size == pytest.approx(0.0735, abs=1e-4)
    assert np.percentile(known, [1, 50, 99]) == pytest.approx([2.16, 2.75, 4.84], abs=0.01)


def test_motorcycle_without_scikit_image_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'skimage', None)
    reader = open_own('motorcycle', '')
    assert list(reader) == []
    assert 'pip install scikit-image' in reader.skipped[0].reason


@pytest.mark.parametrize(
    ('kind', 'path', 'reason'),
    [
        ('osd', '', 'the folder is missing'),
        ('aloe', '', 'the folder is missing'),
        ('motorcycle', 'here', 'takes no path'),
        ('osd', '/does/not/exist', 'nothing there'),
    ],
)
def test_wrong_paths(kind, path, reason):
    with pytest.raises(DataError, match=reason):
        open_own(kind, path)


def test_empty_folder_and_file_instead_of_folder(tmp_path):
    with pytest.raises(DataError, match='expected pairs'):
        open_own('osd', str(tmp_path))
    (tmp_path / 'file').write_text('')
    with pytest.raises(DataError, match='a file there'):
        open_own('osd', str(tmp_path / 'file'))
    assert set(readers.KINDS) == {'osd', 'motorcycle', 'aloe'}
