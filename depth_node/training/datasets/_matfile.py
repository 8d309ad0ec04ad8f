"""MATLAB files of version 5 to 7, as far as data sets use them: numbers, texts, cell arrays.

SciPy reads these files too, but a damaged one can end the whole process there (seen with SciPy
1.17 and one changed byte). This reader refuses what it does not understand.
Source: MathWorks, "MAT-File Format" (version 5): elements of a tag (type, bytes) and data.
"""

from __future__ import annotations

from collections.abc import Sequence
import math
from pathlib import Path
from typing import NamedTuple
import zlib

from depth_node.training.datasets.base import DatasetError, read_bytes
import numpy as np
from numpy.typing import NDArray

# A value: numbers (rows, columns, ...), a text, or the cells of a cell array, column by column.
MatValue = NDArray[np.generic] | str | list['MatValue']

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
# Types of stored data.
_STORED = {1: 'i1', 2: 'u1', 3: 'i2', 4: 'u2', 5: 'i4', 6: 'u4', 7: 'f4', 9: 'f8', 12: 'i8',
           13: 'u8'}  # fmt: skip
_TEXT = {1: 'latin-1', 2: 'latin-1', 4: 'utf-16', 16: 'utf-8', 17: 'utf-16', 18: 'utf-32'}
# Classes of arrays; their data may be stored in a smaller type.
_CLASSES = {6: 'f8', 7: 'f4', 8: 'i1', 9: 'u1', 10: 'i2', 11: 'u2', 12: 'i4', 13: 'u4', 14: 'i8',
            15: 'u8'}  # fmt: skip
_CELL, _CHAR = 1, 4
_COMPLEX = 0x0800
_MAX_BYTES = 2**28
_MAX_NESTING = 8


class _Element(NamedTuple):
    kind: int
    data: memoryview


class _FormatError(ValueError):
    """What is found is not what the format says."""


def load_mat(path: Path, names: Sequence[str]) -> dict[str, MatValue]:
    """Read variables of a MATLAB file older than v7.3.

    Raises:
        DatasetError: missing, damaged, of another version, or without one of the variables.
    """
    data = read_bytes(path)
    try:
        found = _variables(memoryview(data), names)
    except _FormatError as error:
        raise DatasetError(
            f'{path}: not a readable MATLAB file of version 5 to 7 ({len(data)} bytes; {error}); '
            'fetch it again'
        ) from error
    absent = [name for name in names if name not in found]
    if absent:
        raise DatasetError(f'{path}: has no variable {absent[0]!r}, expected {", ".join(names)}')
    return found


def numbers(path: Path, name: str, value: MatValue) -> NDArray[np.generic]:
    """Return a variable that must be an array of numbers.

    Raises:
        DatasetError: it is a text or a cell array.
    """
    if not isinstance(value, np.ndarray):
        kind = 'a text' if isinstance(value, str) else 'a cell array'
        raise DatasetError(f'{path}: {name} is {kind}, expected numbers')
    return value


def _variables(data: memoryview, names: Sequence[str]) -> dict[str, MatValue]:
    if len(data) < _HEADER:
        raise _FormatError('shorter than its header')
    mark = bytes(data[126:128])
    if mark not in (b'IM', b'MI'):
        raise _FormatError(f'its header ends in {mark!r}')
    order = '<' if mark == b'IM' else '>'
    version = int(np.frombuffer(data[124:126], f'{order}u2')[0])
    if version != 0x0100:
        raise _FormatError(f'version {version:#06x}, expected 0x0100; 0x0200 is HDF5')
    found: dict[str, MatValue] = {}
    rest = data[_HEADER:]
    while rest:
        element, rest = _next(rest, order)
        if element.kind == _COMPRESSED:
            element, _ = _next(memoryview(_inflate(element.data)), order)
        if element.kind != _MATRIX:
            raise _FormatError(f'element of type {element.kind} where a variable should be')
        name, value = _matrix(element.data, order, names, 0)
        if value is not None:
            found[name] = value
    return found


def _inflate(data: memoryview) -> bytes:
    try:
        unpacker = zlib.decompressobj()
        unpacked = unpacker.decompress(data, _MAX_BYTES)
    except zlib.error as error:
        raise _FormatError(f'compressed data: {error}') from error
    if not unpacker.eof:
        raise _FormatError('compressed data: cut off, or too large')
    return unpacked


def _next(data: memoryview, order: str) -> tuple[_Element, memoryview]:
    """Take an element off the front."""
    if len(data) < 8:
        raise _FormatError('cut off in a tag')
    kind, size = (int(value) for value in np.frombuffer(data[:8], f'{order}u4'))
    if kind >> 16:  # small: both numbers in the first four bytes, the data in the others
        kind, size = kind & 0xFFFF, kind >> 16
        if size > 4:
            raise _FormatError(f'small element of {size} bytes')
        return _Element(kind, data[4 : 4 + size]), data[8:]
    if size > len(data) - 8:
        raise _FormatError(f'cut off: an element of {size} bytes has {len(data) - 8} left')
    padded = size if kind == _COMPRESSED else -(-size // 8) * 8
    return _Element(kind, data[8 : 8 + size]), data[8 + padded :]


def _matrix(
    data: memoryview, order: str, names: Sequence[str] | None, depth: int
) -> tuple[str, MatValue | None]:
    """Read a variable, or the cell of one.

    Args:
        data: what follows the tag.
        order: '<' or '>'.
        names: of the variables that are wanted; None for cells, which have no names.
        depth: how deep in cells.

    Returns:
        The name, and the value or None where it is not wanted.
    """
    if not data and names is None:
        return '', np.empty((0, 0))  # how a cell that holds nothing may be written
    flags, data = _next(data, order)
    shape, data = _next(data, order)
    label, data = _next(data, order)
    if flags.kind != 6 or len(flags.data) != 8 or shape.kind != 5 or label.kind not in (1, 2):
        raise _FormatError('a variable does not begin with flags, dimensions and name')
    name = bytes(label.data).decode('latin-1')
    if names is not None and name not in names:
        return name, None
    word = int(np.frombuffer(flags.data[:4], f'{order}u4')[0])
    sizes = [int(size) for size in _array(shape, order)]
    if len(sizes) < 2 or min(sizes) < 0:
        raise _FormatError(f'{name}: dimensions {sizes}')
    count = math.prod(sizes)
    if word & 0xFF == _CELL:
        return name, _cells(data, order, count, depth)
    if word & 0xFF not in (*_CLASSES, _CHAR) or word & _COMPLEX:
        raise _FormatError(f'{name}: class {word & 0xFF}, expected numbers, a text or cells')
    content, _ = _next(data, order)
    if word & 0xFF == _CHAR:
        return name, _text(content, order)
    values = _array(content, order)
    if values.size != count:
        raise _FormatError(f'{name}: {values.size} values for dimensions {sizes}')
    with np.errstate(all='ignore'):
        return name, values.astype(_CLASSES[word & 0xFF]).reshape(sizes, order='F')


def _cells(data: memoryview, order: str, count: int, depth: int) -> list[MatValue]:
    if depth >= _MAX_NESTING:
        raise _FormatError(f'cells in cells, deeper than {_MAX_NESTING}')
    if count > len(data) // 8:  # a tag for each
        raise _FormatError(f'{count} cells in {len(data)} bytes')
    cells: list[MatValue] = []
    for _ in range(count):
        element, data = _next(data, order)
        if element.kind != _MATRIX:
            raise _FormatError(f'element of type {element.kind} where a cell should be')
        _, value = _matrix(element.data, order, None, depth + 1)
        assert value is not None
        cells.append(value)
    return cells


def _array(element: _Element, order: str) -> NDArray[np.generic]:
    dtype = _STORED.get(element.kind)
    if dtype is None or len(element.data) % np.dtype(dtype).itemsize:
        raise _FormatError(f'{len(element.data)} bytes of numbers of type {element.kind}')
    return np.frombuffer(element.data, np.dtype(dtype).newbyteorder(order))


def _text(element: _Element, order: str) -> str:
    encoding = _TEXT.get(element.kind)
    if encoding is None:
        raise _FormatError(f'text of type {element.kind}')
    if encoding in ('utf-16', 'utf-32'):
        encoding += '-le' if order == '<' else '-be'
    return bytes(element.data).decode(encoding, 'replace')
