"""What all data sets read files by, and the names of data sets."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
import struct
import subprocess
import sys

import cv2
from depth_node.evaluation import readers
from depth_node.training.datasets import DATASETS, DatasetError, open_dataset
from depth_node.training.datasets._shared import divide, hold_out, missing
from depth_node.training.datasets.base import (
    AbsentSplitError,
    DepthDataset,
    check_split,
    clean_depth,
    read_bytes,
    read_png,
    read_rgb,
)
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

SIZE_HW = (13, 21)


def picture(path, image):
    assert cv2.imwrite(str(path), image)
    return path


def test_a_picture_comes_as_rgb(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (*SIZE_HW, 3), np.uint8)
    path = picture(tmp_path / 'a.png', rgb[..., ::-1])
    np.testing.assert_array_equal(read_rgb(path), rgb)
    grey = picture(tmp_path / 'b.png', rgb[..., 0])
    np.testing.assert_array_equal(read_rgb(grey), rgb[..., :1].repeat(3, -1))


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_a_grey_png_keeps_its_values(tmp_path, dtype):
    top = np.iinfo(dtype).max
    image = np.random.default_rng(0).integers(0, top, SIZE_HW, dtype, endpoint=True)
    image[0, :2] = 0, top
    path = picture(tmp_path / 'a.png', image)
    found = read_png(path, dtype)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, image)
    other = np.uint16 if dtype == np.uint8 else np.uint8
    with pytest.raises(DatasetError, match=rf'a\.png: {np.dtype(dtype)} with shape \(13, 21\)'):
        read_png(path, other)


def test_a_coloured_png_is_no_depth(tmp_path):
    path = picture(tmp_path / 'a.png', np.zeros((*SIZE_HW, 3), np.uint16))
    with pytest.raises(DatasetError, match=r'shape \(13, 21, 3\), expected a grey picture'):
        read_png(path)


@pytest.mark.parametrize('ending', ['.jpg', '.png'])
@pytest.mark.parametrize('share', [0.05, 0.5, 0.9, 0.99])
def test_a_truncated_picture_is_refused(tmp_path, ending, share):
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    path = picture(tmp_path / f'a{ending}', cv2.GaussianBlur(noise, (0, 0), 3))
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(DatasetError, match=rf'a\{ending}: not a readable picture'):
        read_rgb(path)


@settings(max_examples=80, deadline=None)
@given(data=st.binary(max_size=200) | st.binary(max_size=50).map(b'\x89PNG\r\n\x1a\n'.__add__))
def test_random_bytes_are_no_picture(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / 'random.png'
    path.write_bytes(data)
    for reader in (read_rgb, read_png):
        with pytest.raises(DatasetError, match=rf'random\.png: .* \({len(data)} bytes\)'):
            reader(path)


def test_missing_and_unreadable_files_are_named(tmp_path):
    for reader in (read_bytes, read_rgb, read_png):
        with pytest.raises(DatasetError, match=r'a\.png: no such file'):
            reader(tmp_path / 'a.png')
        with pytest.raises(DatasetError, match=r'cannot be read'):
            reader(tmp_path)


@given(
    values=st.lists(
        st.floats(width=32) | st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -1.0, 2.0]),
        min_size=12, max_size=12,
    ),
    far=st.sampled_from([np.inf, 80.0, 3.0]),
)  # fmt: skip
@settings(deadline=None)
def test_clean_depth_keeps_what_is_known_or_refuses(values, far):
    depth = np.array(values, np.float32).reshape(3, 4)
    known = np.array([np.isfinite(v) and 0 < v <= far for v in depth.ravel()]).reshape(3, 4)
    plausible = known.any() and 0.05 <= np.median(depth[known].astype(float)) <= 200
    if known.any() and not plausible:
        with pytest.raises(DatasetError, match=r'f\.png: median depth .* another unit'):
            clean_depth(depth, Path('f.png'), (3, 4), far=far)
        plausible = True
        cleaned = clean_depth(depth, Path('f.png'), (3, 4), far=far, metric=False)
    elif known.any():
        cleaned = clean_depth(depth, Path('f.png'), (3, 4), far=far)
    else:
        with pytest.raises(DatasetError, match=r'f\.png: (no pixel of known|all depth is beyond)'):
            clean_depth(depth, Path('f.png'), (3, 4), far=far)
        return
    assert cleaned.dtype == np.float32
    np.testing.assert_array_equal(cleaned[known], depth[known])
    assert not cleaned[~known].any()


@pytest.mark.parametrize(
    ('scale', 'far', 'message'),
    [
        (1e-3, np.inf, r'median depth 0\.0025 m, expected 0\.05 to 200\.0 m'),
        (1e3, np.inf, r'median depth 2500 m'),
        (1e3, 80.0, r'all depth is beyond 80 m, its median is 2500 m; is the file'),
    ],
)
def test_millimetres_and_metres_mixed_up(scale, far, message):
    depth = np.full(SIZE_HW, 2.5 * scale)
    with pytest.raises(DatasetError, match=message):
        clean_depth(depth, Path('f.png'), SIZE_HW, far=far)


def test_depth_of_another_size_than_its_picture():
    with pytest.raises(DatasetError, match=r'depth has size \(21, 13\), its picture \(13, 21\)'):
        clean_depth(np.ones(SIZE_HW[::-1]), Path('f.png'), SIZE_HW)


def test_check_split():
    check_split('val')
    check_split('mine', ('mine',))
    with pytest.raises(AbsentSplitError, match="split 'all': expected one of train, val, test"):
        check_split('all')


class Files(DepthDataset):
    """Two frames of a file each."""

    kind = 'files'

    def __len__(self):
        return 2

    def name(self, index):
        return f'frame{index}'

    def files(self, index):
        return (self.root / f'{index}.bin',)

    def read(self, index):
        raise AssertionError('a fingerprint opens nothing')


def test_fingerprint_is_of_names_and_sizes(tmp_path):
    (tmp_path / '0.bin').write_bytes(b'12345')
    found = Files(tmp_path, 'val').fingerprint()
    expected = hashlib.sha256(b'frame0 5\nframe1 -\n').hexdigest()
    assert found == {
        'kind': 'files', 'split': 'val', 'frames': 2, 'sha256_of_names_and_sizes': expected,
    }  # fmt: skip
    (tmp_path / '1.bin').write_bytes(b'')
    assert Files(tmp_path, 'val').fingerprint() != found


def test_unknown_kinds_and_options_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data set 'nyu' is not known; expected one of \['bag'"):
        open_dataset('nyu', tmp_path, 'train')
    with pytest.raises(ValueError, match=r"data\.options of folder: option 'fov' is not known"):
        open_dataset('folder', tmp_path, 'train', fov=3)


@given(groups=st.lists(st.text(max_size=8), min_size=1, max_size=60), share=st.floats(0.01, 0.99))
def test_held_out_groups_are_some_and_never_all(groups, share):
    held = hold_out(groups, share)
    assert held <= set(groups)
    assert bool(held) == (len(set(groups)) > 1)
    assert held < set(groups)
    assert held == hold_out(sorted(groups, reverse=True), share)


def test_about_the_share_is_held_out():
    groups = [f'scene_{index:04d}' for index in range(2000)]
    assert len(hold_out(groups, 0.1)) / 2000 == pytest.approx(0.1, abs=0.02)


@given(
    frames=st.lists(st.integers(0, 30), min_size=1, max_size=60),
    tests=st.lists(st.integers(100, 120), max_size=5),
    share=st.floats(0.01, 0.9),
)
def test_divided_parts_share_no_group(frames, tests, share):
    def part(split):
        try:
            return divide(split, {'train': frames, 'test': tests}, lambda n: str(n // 3),
                          val='held_out', val_share=share, where=Path('x'))  # fmt: skip
        except AbsentSplitError:
            return []

    train, val, test = part('train'), part('val'), part('test')
    assert sorted(train + val) == sorted(frames)
    assert {n // 3 for n in train}.isdisjoint(n // 3 for n in val)
    assert test == tests
    assert train


def test_options_of_a_division_are_checked():
    parts = {'train': [1, 2], 'test': [3]}
    for options, message in (
        ({'val': 'train', 'val_share': 0.1}, "val 'train': expected one of held_out, test"),
        ({'val': 'held_out', 'val_share': 1.0}, 'val_share 1.0'),
    ):
        with pytest.raises(ValueError, match=message):
            divide('train', parts, str, where=Path('x'), **options)


def test_a_missing_package_is_named_with_its_cure():
    error = ModuleNotFoundError('No module', name='h5py.h5')
    cured = missing('h5py', Path('a.mat'), error)
    assert cured.name == 'h5py'
    assert str(cured) == (
        "a.mat is read by the Python package 'h5py', which is not installed; install it with: "
        "pip install '.[data]' in the clone"
    )
    inner = ModuleNotFoundError('No module', name='numpy')
    assert missing('h5py', Path('a.mat'), inner) is inner


def test_data_sets_need_no_torch_h5py_or_scipy_to_be_imported():
    modules = [target.partition(':')[0] for target in DATASETS.values()]
    there = [name for name in modules if importlib.util.find_spec(name) is not None]
    assert len(there) >= 7
    code = (
        'import sys; sys.modules.update(dict.fromkeys(["torch", "lightning", "h5py", "scipy", '
        f'"rosbags"])); import {", ".join(there)}'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize('orientation', [1, 3, 6, 8])
def test_a_picture_is_read_as_stored_whatever_its_exif_says(tmp_path, orientation):
    """Truth lies on the stored pixels: turned by 180 degrees, nothing would notice."""
    rgb = np.zeros((24, 40, 3), np.uint8)
    rgb[:12, :20] = 220
    path = tmp_path / 'turned.jpg'
    data = cv2.imencode('.jpg', rgb)[1].tobytes()
    # EXIF: big-endian TIFF with one entry, 0x0112 (orientation), a short
    tiff = b'MM\x00*\x00\x00\x00\x08' + struct.pack(
        '>HHHIHHI', 1, 0x0112, 3, 1, orientation, 0, 0
    )
    exif = b'Exif\x00\x00' + tiff
    path.write_bytes(data[:2] + b'\xff\xe1' + struct.pack('>H', len(exif) + 2) + exif + data[2:])
    turned = cv2.imread(str(path)).shape != rgb.shape
    assert turned == (orientation in (6, 8))  # others would follow it: the file says so
    for read in (read_rgb, readers.read_rgb):
        np.testing.assert_allclose(read(path).astype(int), rgb, atol=12)
