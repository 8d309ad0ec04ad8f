"""NYU Depth v2 as the DenseDepth paper (arXiv:1812.11941) gives it out.

`nyu_data.zip`, read in place or unpacked: `data/nyu2_train.csv` and `data/nyu2_test.csv` with rows
`rgb,depth`, paths from the zip's root. Training depth is an 8-bit PNG over 10 m, so in steps of
3.9 cm; test depth a 16-bit PNG in millimetres. The pictures keep the white border of the Kinect.
"""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path, PurePosixPath
from typing import NamedTuple, cast
import zipfile
import zlib

import cv2
from depth_node.training.datasets._shared import divide
from depth_node.training.datasets.base import (
    DatasetError,
    DepthDataset,
    check_split,
    clean_depth,
    read_bytes,
    read_rgb,
)
from depth_node.training.datasets.nyu_mat import NYU_CAMERA
from depth_node.training.frame import Frame
import numpy as np
from numpy.typing import NDArray

ZIP_NAME = 'nyu_data.zip'
# The first that is there: of the published zip, then of the authors' newer code.
LISTS = {
    'train': ('data/nyu2_train.csv', 'data/trainData.csv'),
    'val': ('data/valData.csv',),
    'test': ('data/nyu2_test.csv',),
}
TRAIN_RANGE_M = 10.0


class _Row(NamedTuple):
    rgb: str
    depth: str


class NyuDenseDepth(DepthDataset):
    """50,688 frames of 284 scenes with 8-bit depth to train on, the 654 test frames with 16."""

    kind = 'nyu_densedepth'

    def __init__(
        self, root: Path, split: str, *, val: str = 'held_out', val_share: float = 0.03
    ) -> None:
        """Index a split.

        Args:
            root: the zip, or a folder with the zip, with `data/`, or `data` itself.
            split: train, val or test.
            val: 'held_out' takes scenes away from train (where there is no valData.csv), 'test'
                validates on the test frames as the paper does.
            val_share: part of the training scenes to hold out.
        """
        super().__init__(root, split)
        check_split(split)
        self._source = _source_of(self.root)
        self.note = (
            'NYU v2 by DenseDepth: filled truth, 8 bit over 10 m in train, 16-bit mm in test, '
            'white border kept'
        )
        parts = {}
        for part, names in LISTS.items():
            for name in names:
                if self._source.exists(name):
                    parts[part] = _read_list(self._source.path(name))
                    break
        if not parts:
            expected = ', '.join(name for names in LISTS.values() for name in names)
            raise DatasetError(f'{self._source.where}: no list of frames; expected {expected}')
        self._rows = divide(
            split, parts, _scene_of, val=val, val_share=val_share, where=self._source.where
        )

    def __len__(self) -> int:
        """Count the frames."""
        return len(self._rows)

    def name(self, index: int) -> str:
        """Name a frame by its picture's path without the folder of all."""
        path = PurePosixPath(self._rows[index].rgb)
        return '/'.join(path.with_suffix('').parts[1:])

    def files(self, index: int) -> tuple[Path, ...]:
        """List the two files, or the zip."""
        if isinstance(self._source, _Archive):
            return (self._source.where,)
        return tuple(self._source.path(name) for name in self._rows[index])

    def read(self, index: int) -> Frame:
        """Read a frame."""
        row = self._rows[index]
        rgb = read_rgb(self._source.path(row.rgb))
        size_hw = (rgb.shape[0], rgb.shape[1])
        path = self._source.path(row.depth)
        depth = clean_depth(read_depth(path), path, size_hw)
        camera = NYU_CAMERA if size_hw == NYU_CAMERA.size_hw else NYU_CAMERA.scaled(size_hw)
        return Frame(rgb, depth, camera)


def recognise(path: Path) -> str | None:
    """Return why this is the zip or its folder, or None."""
    if not path.is_dir() and not zipfile.is_zipfile(path):
        return None
    try:
        source = _source_of(path)
        found = [name for names in LISTS.values() for name in names if source.exists(name)]
    except DatasetError:
        return None
    return f'{found[0]} in {source.where}' if found else None


def read_depth(path: Path) -> NDArray[np.float32]:
    """Read a depth PNG: its bit depth says which of the two units it has.

    Returns:
        (H, W) metres, 0 = unknown.

    Raises:
        DatasetError: not a grey PNG, or 8-bit values in a file of 16 bits.
    """
    data = read_bytes(path)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if image is None:
        raise DatasetError(
            f'{path}: not a readable picture ({len(data)} bytes); replace or remove it'
        )
    if image.ndim == 2 and image.dtype == np.uint8:
        return image.astype(np.float32) * np.float32(TRAIN_RANGE_M / 255)
    if image.ndim == 2 and image.dtype == np.uint16:
        if 0 < image.max() <= 255:
            raise DatasetError(
                f'{path}: 16 bits with values up to {image.max()}, expected millimetres; it looks '
                'like 8-bit depth over 10 m that was stored as 16 bits: convert it to 8 bits'
            )
        return image.astype(np.float32) * np.float32(1e-3)
    raise DatasetError(
        f'{path}: {image.dtype} with shape {image.shape}, expected a grey picture of 8 bits '
        '(255 = 10 m) or 16 bits (mm)'
    )


class _Folder:
    """An unpacked zip."""

    def __init__(self, where: Path) -> None:
        self.where = where

    def exists(self, name: str) -> bool:
        return self.path(name).is_file()

    def path(self, name: str) -> Path:
        return self.where / name


class _Member:
    """A file in a zip, as far as the readers need a path: its name and its bytes."""

    def __init__(self, archive: _Archive, name: str) -> None:
        self._archive, self._name = archive, name

    def __str__(self) -> str:
        return f'{self._archive.where}/{self._name}'

    def read_bytes(self) -> bytes:
        return self._archive.read(self._name)


class _Archive:
    """A zip that is opened again in every process: two must not share a position in a file."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self._handle: zipfile.ZipFile | None = None
        self._pid = -1

    def __getstate__(self) -> dict[str, object]:
        return {'where': self.where, '_handle': None, '_pid': -1}

    def exists(self, name: str) -> bool:
        return name in self._open().NameToInfo

    def path(self, name: str) -> Path:
        return cast(Path, _Member(self, name))

    def read(self, name: str) -> bytes:
        """Read a member.

        Raises:
            FileNotFoundError: there is none of that name.
            OSError: it is damaged.
        """
        try:
            return self._open().read(name)
        except KeyError:
            raise FileNotFoundError(name) from None
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError,
                RuntimeError) as error:  # fmt: skip
            raise OSError(f'damaged in the zip: {error}') from error

    def _open(self) -> zipfile.ZipFile:
        if self._handle is None or self._pid != os.getpid():
            try:
                self._handle = zipfile.ZipFile(self.where)
            except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
                raise DatasetError(
                    f'{self.where}: not a readable zip ({error}); fetch it again'
                ) from error
            self._pid = os.getpid()
        return self._handle


_Source = _Folder | _Archive


def _source_of(root: Path) -> _Source:
    if root.is_file():
        return _Archive(root)
    lists = [name for names in LISTS.values() for name in names]
    if any((root / name).is_file() for name in lists):
        return _Folder(root)
    if root.name == 'data' and any((root.parent / name).is_file() for name in lists):
        return _Folder(root.parent)
    if (root / ZIP_NAME).is_file():
        return _Archive(root / ZIP_NAME)
    raise DatasetError(f'{root}: neither {ZIP_NAME} nor {lists[0]} is there')


def _read_list(path: Path) -> list[_Row]:
    """Read the rows of a list.

    Raises:
        DatasetError: a row that does not have two paths below the root.
    """
    text = read_bytes(path).decode('utf-8', 'replace')
    rows = []
    try:
        for number, cells in enumerate(csv.reader(io.StringIO(text)), 1):
            if not cells:
                continue
            names = [cell.strip() for cell in cells]
            if len(names) != 2 or not all(_is_below(name) for name in names):
                raise DatasetError(
                    f'{path}: line {number} is {",".join(cells)[:200]!r}, expected two relative '
                    'paths: rgb,depth'
                )
            rows.append(_Row(*names))
    except csv.Error as error:
        raise DatasetError(f'{path}: not a list of frames ({error})') from error
    return rows


def _is_below(name: str) -> bool:
    """Tell whether a name stays below the folder that it is relative to."""
    path = PurePosixPath(name)
    return bool(name) and '\0' not in name and not path.is_absolute() and '..' not in path.parts


def _scene_of(row: _Row) -> str:
    return str(PurePosixPath(row.rgb).parent)
