"""MATLAB files of version 5 to 7: SciPy writes, our reader reads, and damage is refused."""

from __future__ import annotations

import io
from pathlib import Path
import struct

from depth_node.training.datasets import DatasetError
from depth_node.training.datasets._matfile import load_mat, numbers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
import numpy as np
import pytest
from scipy.io import savemat

TYPES = ['f8', 'f4', 'i1', 'u1', 'i2', 'u2', 'i4', 'u4', 'i8', 'u8']


def saved(variables, **options) -> bytes:
    stream = io.BytesIO()
    savemat(stream, variables, **options)
    return stream.getvalue()


@pytest.fixture
def load(tmp_path):
    def call(data: bytes, *names: str):
        path = tmp_path / 'a.mat'
        path.write_bytes(data)
        return load_mat(path, names)
    return call


@st.composite
def any_array(draw):
    return draw(arrays(draw(st.sampled_from(TYPES)), array_shapes(min_dims=2, max_side=5)))


@settings(deadline=None)
@given(array=any_array(), packed=st.booleans())
def test_numbers_of_every_type_and_shape(tmp_path_factory, array, packed):
    path = tmp_path_factory.getbasetemp() / 'numbers.mat'
    path.write_bytes(saved({'other': 'x', 'a': array, 'z': 3.0}, do_compression=packed))
    found = load_mat(path, ('a', 'z'))
    assert found.keys() == {'a', 'z'}
    assert found['a'].dtype == array.dtype
    np.testing.assert_array_equal(found['a'], array)
    assert found['z'] == [[3.0]]


@pytest.mark.parametrize('packed', [False, True])
def test_texts_and_cells(load, packed):
    cells = np.empty((2, 3), object)
    cells[...] = [['kv2/a', 'b', ''], ['ü', np.arange(3.0), 'f']]
    inner = np.empty((1, 1), object)
    inner[0, 0] = 'deep'
    cells[0, 1] = inner
    found = load(saved({'c': cells, 't': 'text'}, do_compression=packed), 'c', 't')
    assert found['t'] == 'text'
    # column by column
    assert found['c'][0] == 'kv2/a'
    assert found['c'][1] == 'ü'
    assert found['c'][2] == ['deep']
    np.testing.assert_array_equal(found['c'][3], [[0, 1, 2]])
    assert found['c'][5] == 'f'


def element(kind, data):
    return struct.pack('>II', kind, len(data)) + data + bytes(-len(data) % 8)


def test_big_endian_with_doubles_stored_as_bytes(load):
    content = (
        element(6, struct.pack('>II', 6, 0))
        + element(5, struct.pack('>ii', 2, 3))
        + struct.pack('>HH4s', 1, 1, b'n')  # a small element
        + element(2, bytes([1, 2, 3, 4, 5, 6]))
    )
    header = b'MATLAB 5.0 MAT-file'.ljust(124) + b'\x01\x00MI'
    found = load(header + element(14, content), 'n')['n']
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, [[1, 3, 5], [2, 4, 6]])


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (b'', 'shorter than its header'),
        (bytes(128), 'its header ends in'),
        (b'MATLAB 7.3 MAT-file'.ljust(124) + b'\x00\x02IM', 'version 0x0200, .* 0x0200 is HDF5'),
        (saved({'a': 1.0}, format='4') + bytes(128), 'its header ends in'),
        (saved({'a': 1 + 2j}), 'a: class 6'),
        (saved({'a': {'b': 1.0}}), 'a: class 2'),
        (saved({'b': 1.0}), "has no variable 'a', expected a"),
        (saved({'a': np.ones((9, 9))})[:-8], r'cut off: an element of \d+ bytes'),
        (saved({'a': np.ones((9, 9))}, do_compression=True)[:-4], r'cut off: an element'),
    ],
    # no ids from the bytes: SciPy writes the time into them, and every process must collect
    # the same names
    ids=[
        'empty', 'zeros', 'version 7.3', 'version 4', 'complex', 'struct', 'another name',
        'cut off', 'packed, cut off',
    ],
)
def test_what_is_not_read_is_refused(load, data, message):
    with pytest.raises(DatasetError, match=rf'a\.mat: .*{message}'):
        load(data, 'a')


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r'a\.mat: no such file'):
        load_mat(tmp_path / 'a.mat', ('a',))


def test_texts_and_cells_are_no_numbers():
    path = Path('a.mat')
    for value, kind in (('x', 'a text'), (['x'], 'a cell array')):
        with pytest.raises(DatasetError, match=rf'a\.mat: n is {kind}, expected numbers'):
            numbers(path, 'n', value)


def test_a_bomb_is_not_unpacked(load, monkeypatch):
    monkeypatch.setattr('depth_node.training.datasets._matfile._MAX_BYTES', 10_000)
    data = saved({'a': np.zeros((300, 300))}, do_compression=True)
    with pytest.raises(DatasetError, match='cut off, or too large'):
        load(data, 'a')


def test_cells_in_cells_end(load):
    cell = 'x'
    for _ in range(20):
        outer = np.empty((1, 1), object)
        outer[0, 0] = cell
        cell = outer
    with pytest.raises(DatasetError, match='cells in cells'):
        load(saved({'a': cell}), 'a')


VICTIMS = [
    saved({'a': np.arange(12.0).reshape(3, 4), 'c': np.array([['x', 'yz']], object)},
          do_compression=packed)
    for packed in (False, True)
]  # fmt: skip


@settings(max_examples=400, deadline=None)
@example(0, [(128, 255)], 1.0)
@given(
    which=st.integers(0, 1),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=6),
    kept=st.floats(0, 1) | st.just(1.0),
)
def test_damage_gives_a_value_or_our_error(tmp_path_factory, which, changes, kept):
    data = bytearray(VICTIMS[which])
    for place, bits in changes:
        data[place % len(data)] ^= bits
    path = tmp_path_factory.getbasetemp() / 'damaged.mat'
    path.write_bytes(data[: round(kept * len(data))])
    try:
        found = load_mat(path, ('a', 'c'))
    except DatasetError as error:
        message = str(error)
    else:
        message = 'damaged.mat'
        assert found.keys() == {'a', 'c'}
    assert 'damaged.mat' in message
