"""Depth in the wild: pictures from the web, of each one pair of pixels and which is farther.

DIW_train.csv, DIW_val.csv and DIW_test.csv, in the root or in <root>/DIW_Annotations, have two
lines a sample: the picture's path, then yA,xA,yB,xB,relation,width,height with pixels counted
from 1 and '>' or '<'. '>' is depth A > depth B, A is farther: so the authors' code scores it, and
their networks that were trained with it return depth on NYU. (Their paper calls +1 'closer'.)
"""

from __future__ import annotations

from pathlib import Path

from depth_node.training.datasets.base import (
    SPLITS,
    AbsentSplitError,
    DatasetError,
    DepthDataset,
    check_split,
    read_bytes,
    read_rgb,
)
from depth_node.training.frame import Frame, Pairs
import numpy as np
from numpy.typing import NDArray

RELATIONS = {'>': 1, '<': -1}
FIELDS = 'yA,xA,yB,xB,relation,width,height'
LARGEST_SIDE = 100_000


class Diw(DepthDataset):
    """One pair a picture; no depth, no camera."""

    kind = 'diw'
    metric = False
    has_camera = False
    note = 'one human judgement a picture: which of two pixels is farther'

    def __init__(
        self, root: Path, split: str, *, csv: str | None = None, images: str | None = None
    ) -> None:
        """Read the annotations.

        Args:
            root: the folder with the csv files and the pictures' folders.
            split: train, val or test.
            csv: another annotation file, relative to the root.
            images: the folder that the paths in the file start from, relative to the root; by
                default the root itself.

        Raises:
            AbsentSplitError: there is no file for this split.
            DatasetError: the file is not what the format says; names the line.
        """
        super().__init__(root, split)
        check_split(split)
        self.csv = self._find_csv(csv)
        self.images = self.root / images if images else self.root
        names, uv, relation, sizes = _read_annotations(self.csv)
        self._names, self._uv, self._relation, self._sizes = names, uv, relation, sizes

    def _find_csv(self, csv: str | None) -> Path:
        name = csv or f'DIW_{self.split}.csv'
        candidates = [self.root / name, self.root / 'DIW_Annotations' / name]
        for path in candidates:
            if path.is_file():
                return path
        problem = DatasetError if csv else AbsentSplitError
        raise problem(
            f'{candidates[0]}: no such file, nor in DIW_Annotations; unpack the annotations of '
            'DIW there, or name the file with data.options.csv'
        )

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self._names)

    def name(self, index: int) -> str:
        """Name a picture by its line in the file: a picture may be listed twice."""
        return f'{self.csv.name}:{2 * index + 1}'

    def files(self, index: int) -> tuple[Path, ...]:
        """List the picture."""
        return (self.images / self._names[index],)

    def read(self, index: int) -> Frame:
        """See `DepthDataset.read`."""
        path = self.files(index)[0]
        rgb = read_rgb(path)
        stated = (int(self._sizes[index, 1]), int(self._sizes[index, 0]))
        if rgb.shape[:2] != stated:
            raise DatasetError(
                f'{path}: the picture is {rgb.shape[:2]}, but {self.name(index)} was annotated '
                f'at {stated} (height, width); use the original picture, not turned by a viewer'
            )
        return Frame(
            rgb=rgb,
            depth=np.zeros(stated, np.float32),
            pairs=Pairs(
                self._uv[index : index + 1].astype(np.float32),
                self._relation[index : index + 1],
            ),
        )


def _read_annotations(
    path: Path,
) -> tuple[list[str], NDArray[np.int32], NDArray[np.int8], NDArray[np.int32]]:
    """Read names, (n, 4) pixels u v u v counted from 0, relations, and (n, 2) width, height."""
    try:
        lines = read_bytes(path).decode('utf-8').splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(f'{path}: not a text file ({error}); fetch it again') from error
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise DatasetError(f'{path}: empty; fetch it again')
    if len(lines) % 2:
        raise DatasetError(
            f'{path}: {len(lines)} lines, expected two a sample; the file is cut short'
        )
    names = []
    numbers = np.empty((len(lines) // 2, 7), np.int32)
    for index in range(len(lines) // 2):
        name = lines[2 * index].strip().strip('"').strip()
        if not name or '\0' in name:
            raise DatasetError(f'{path}:{2 * index + 1}: found {name!r}, expected a picture path')
        names.append(name)
        numbers[index] = _parse_pair(lines[2 * index + 1], f'{path}:{2 * index + 2}')
    uv = numbers[:, [1, 0, 3, 2]] - 1
    return names, uv, numbers[:, 4].astype(np.int8), numbers[:, 5:]


def _parse_pair(line: str, where: str) -> tuple[int, ...]:
    fields = [field.strip().strip('"') for field in line.split(',')]
    if len(fields) != 7 or fields[4] not in RELATIONS:
        raise DatasetError(f'{where}: found {line[:80]!r}, expected {FIELDS} with > or <')
    try:
        y_a, x_a, y_b, x_b, width, height = (int(fields[i]) for i in (0, 1, 2, 3, 5, 6))
    except ValueError as error:
        raise DatasetError(f'{where}: {error}; expected {FIELDS} in whole numbers') from error
    if not 0 < width <= LARGEST_SIDE or not 0 < height <= LARGEST_SIDE:
        raise DatasetError(f'{where}: width {width}, height {height} cannot be')
    if not all(1 <= x <= width for x in (x_a, x_b)) or not all(
        1 <= y <= height for y in (y_a, y_b)
    ):
        raise DatasetError(
            f'{where}: pixels ({x_a}, {y_a}) and ({x_b}, {y_b}), counted from 1, are not all in '
            f'a picture of {width} x {height}'
        )
    if (x_a, y_a) == (x_b, y_b):
        raise DatasetError(f'{where}: both points are ({x_a}, {y_a}); remove the sample')
    return y_a, x_a, y_b, x_b, RELATIONS[fields[4]], width, height


def recognise(path: Path) -> str | None:
    """Say why a folder is of this kind; None when it is not."""
    for folder in (path, path / 'DIW_Annotations'):
        for split in SPLITS:
            if (folder / f'DIW_{split}.csv').is_file():
                return f'DIW_{split}.csv'
    return None
