"""Make3D (Saxena et al.): outdoor pictures with the sparse depth of a rotating laser.

Layout: `img-NAME.jpg` (2272x1704, upright) in folders whose names begin with Train or Test, and
`depth_sph_corr-NAME.mat` anywhere below: `Position3DGrid` (55, 305, 4), whose fourth channel is
depth in metres (depth-systems: sizes unverified). The camera is not known.
"""

from __future__ import annotations

from pathlib import Path
import re

import cv2
from depth_node.training.datasets._matfile import load_mat, numbers
from depth_node.training.datasets._shared import divide, walk
from depth_node.training.datasets.base import (
    DatasetError,
    DepthDataset,
    check_split,
    clean_depth,
    read_rgb,
)
from depth_node.training.frame import Frame
import numpy as np

_PICTURE, _DEPTH = 'img-', 'depth_sph_corr-'
GRID = 'Position3DGrid'
# C1 errors count what is nearer (Liu et al.; FCRN's evaluation).
C1_FAR_M = 70.0
EVALUATED_HW = (460, 345)


class Make3D(DepthDataset):
    """400 frames to train on, 134 to test on."""

    kind = 'make3d'
    has_camera = False

    def __init__(
        self,
        root: Path,
        split: str,
        *,
        size_hw: tuple[int, int] = EVALUATED_HW,
        far_m: float = C1_FAR_M,
        val: str = 'held_out',
        val_share: float = 0.1,
    ) -> None:
        """Index a split.

        Args:
            root: a folder that has all of the data set below it.
            split: train, val or test.
            size_hw: both are brought to this size, the picture by areas, depth by the nearest
                measurement; 460x345 is where the literature compares.
            far_m: farther truth is unknown; 70 for C1 errors, .inf for C2.
            val: 'held_out' takes places away from train, 'test' validates on the test frames.
            val_share: part of the training places to hold out.
        """
        super().__init__(root, split)
        check_split(split)
        if len(size_hw) != 2 or min(size_hw) < 1:
            raise ValueError(f'size_hw {size_hw}: expected height and width in pixels')
        if not far_m > 0:
            raise ValueError(f'far_m {far_m}: expected metres above 0')
        self.note = f'Make3D, laser 55x305, to {far_m:g} m'
        self._size_hw, self._far_m = (int(size_hw[0]), int(size_hw[1])), far_m
        if not self.root.is_dir():
            raise DatasetError(f'{root}: no such folder')
        parts: dict[str, list[Path]] = {'train': [], 'test': []}
        for path in sorted(self.root.rglob(f'{_PICTURE}*.jpg')):
            part = _part_of(path, self.root)
            if part:
                parts[part].append(path)
        self._mats = {
            path.stem.removeprefix(_DEPTH): path for path in self.root.rglob(f'{_DEPTH}*.mat')
        }
        if not any(parts.values()) or not self._mats:
            raise DatasetError(
                f'{root}: expected {_PICTURE}*.jpg in folders named Train... and Test..., and '
                f'{_DEPTH}*.mat'
            )
        self._pictures = divide(
            split, parts, _place_of, val=val, val_share=val_share, where=self.root
        )

    def __len__(self) -> int:
        """Count the frames."""
        return len(self._pictures)

    def name(self, index: int) -> str:
        """Name a frame as its two files do."""
        return self._pictures[index].stem.removeprefix(_PICTURE)

    def files(self, index: int) -> tuple[Path, ...]:
        """List picture and depth."""
        picture = self._pictures[index]
        name = self.name(index)
        return picture, self._mats.get(name, picture.with_name(f'{_DEPTH}{name}.mat'))

    def read(self, index: int) -> Frame:
        """Read a frame."""
        picture, mat = self.files(index)
        rgb = read_rgb(picture)
        grid = numbers(mat, GRID, load_mat(mat, (GRID,))[GRID])
        if grid.ndim != 3 or grid.shape[2] != 4 or grid.dtype.kind != 'f' or not grid.size:
            raise DatasetError(
                f'{mat}: {GRID} is {grid.dtype} with shape {grid.shape}, expected float '
                'with shape (rows, columns, 4)'
            )
        height, width = self._size_hw
        rgb = np.asarray(cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        with np.errstate(over='ignore'):  # what float32 cannot hold is unknown
            depth = _nearest(grid[..., 3].astype(np.float32), self._size_hw)
        return Frame(rgb, clean_depth(depth, mat, self._size_hw, far=self._far_m))


def recognise(path: Path) -> str | None:
    """Return why this is Make3D, or None."""
    if path.is_dir():
        for file in walk(path):
            if file.name.startswith(_DEPTH) and file.suffix == '.mat':
                return file.name
    return None


def _nearest(image: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Resize by the source pixel in which each target pixel's centre lies."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip(size_hw, image.shape, strict=True)
    )
    return image[rows[:, None], columns]


def _part_of(path: Path, root: Path) -> str | None:
    for folder in reversed(path.relative_to(root.parent).parts[:-1]):
        match = re.match('train|test', folder, re.IGNORECASE)
        if match:
            return match.group().lower()
    return None


def _place_of(path: Path) -> str:
    """Name the place of a frame: img-math7-p-282t0 and img-math7-p-313t0 stand together."""
    return path.stem.partition('-p-')[0]
