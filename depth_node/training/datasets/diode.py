"""DIODE (arXiv:1908.00463): laser-scanned depth, indoors and outdoors.

Layout: {train,val}/{indoors,outdoor}/scene_XXXXX/scan_XXXXX/NAME.png, NAME_depth.npy (float
metres, (H, W, 1)) and NAME_depth_mask.npy (1 = valid). Its test part was never given out.
"""

from __future__ import annotations

import io
from pathlib import Path

from depth_node.camera import Camera
from depth_node.training.datasets._shared import divide, walk
from depth_node.training.datasets.base import (
    AbsentSplitError,
    DatasetError,
    DepthDataset,
    check_split,
    clean_depth,
    read_bytes,
    read_rgb,
)
from depth_node.training.frame import Frame
import numpy as np
from numpy.typing import NDArray

DIODE_CAMERA = Camera((768, 1024), 886.81, 927.06, 512.0, 384.0)
MAX_RANGE_M = 300.0
PARTS = ('all', 'indoors', 'outdoor')
DIVISIONS = ('none', 'val')
_DEPTH = '_depth.npy'


class Diode(DepthDataset):
    """Depth of a survey-grade laser scanner, with its mask."""

    kind = 'diode'

    def __init__(
        self,
        root: Path,
        split: str,
        *,
        part: str = 'all',
        divide_part: str = 'none',
        val_share: float = 0.2,
        max_range_m: float = MAX_RANGE_M,
    ) -> None:
        """Index a split.

        Args:
            root: the folder with `train` and `val`.
            split: train or val.
            part: all, indoors or outdoor.
            divide_part: 'val' trains and validates on the val folder alone (2.6 GB instead of
                81): `val_share` of its scans are held out.
            val_share: for `divide_part`.
            max_range_m: farther truth is unknown; the scanner reaches 300 m, indoors 50 m
                (depth-systems: the latter unverified).
        """
        super().__init__(root, split)
        check_split(split)
        if part not in PARTS:
            raise ValueError(f'part {part!r}: expected one of {", ".join(PARTS)}')
        if divide_part not in DIVISIONS:
            raise ValueError(f'divide_part {divide_part!r}: expected none or val')
        if split == 'test':
            raise AbsentSplitError(f'{root}: DIODE has no test frames with depth; use val')
        folder = self.root / ('val' if divide_part == 'val' else split)
        if not folder.is_dir():
            raise AbsentSplitError(f'{folder}: no such folder; unpack that part of DIODE there')
        places = ('indoors', 'outdoor') if part == 'all' else (part,)
        depths = [
            path
            for place in places
            for path in sorted((folder / place).glob(f'scene_*/scan_*/*{_DEPTH}'))
        ]
        if not depths:
            raise AbsentSplitError(
                f'{folder}: no {"/".join(places)}/scene_*/scan_*/*{_DEPTH} in it'
            )
        if divide_part == 'val':
            depths = divide(
                split, {'train': depths}, lambda path: path.parent.name,
                val='held_out', val_share=val_share, where=folder,
            )  # fmt: skip
        self.note = f'DIODE {part}, laser scanner, masked, to {max_range_m:g} m'
        self._depths, self._max_range_m = depths, max_range_m

    def __len__(self) -> int:
        """Count the frames."""
        return len(self._depths)

    def name(self, index: int) -> str:
        """Name a frame by its path."""
        path = self._depths[index]
        return path.relative_to(self.root).as_posix().removesuffix(_DEPTH)

    def files(self, index: int) -> tuple[Path, ...]:
        """List picture, depth and mask."""
        depth = self._depths[index]
        stem = depth.name.removesuffix(_DEPTH)
        return depth.with_name(f'{stem}.png'), depth, depth.with_name(f'{stem}_depth_mask.npy')

    def read(self, index: int) -> Frame:
        """Read a frame."""
        rgb_path, depth_path, mask_path = self.files(index)
        rgb = read_rgb(rgb_path)
        size_hw = (rgb.shape[0], rgb.shape[1])
        depth = read_npy(depth_path)
        mask = read_npy(mask_path)
        if depth.dtype.kind != 'f':
            raise DatasetError(
                f'{depth_path}: {depth.dtype}, expected float metres; DIODE has no other unit'
            )
        if mask.shape != depth.shape:
            raise DatasetError(f'{mask_path}: mask {mask.shape}, but its depth is {depth.shape}')
        # also drops a NaN in a float mask
        known = np.where(mask == 1, depth, 0)
        return Frame(
            rgb,
            clean_depth(known, depth_path, size_hw, far=self._max_range_m),
            DIODE_CAMERA if size_hw == DIODE_CAMERA.size_hw else DIODE_CAMERA.scaled(size_hw),
        )


def recognise(path: Path) -> str | None:
    """Return why this is DIODE, or None."""
    if not path.is_dir():
        return None
    for split in ('val', 'train'):
        for place in ('indoors', 'outdoor'):
            folder = path / split / place
            if folder.is_dir() and any(file.name.endswith(_DEPTH) for file in walk(folder)):
                return f'{split}/{place}/.../*{_DEPTH}'
    return None


def read_npy(path: Path) -> NDArray[np.generic]:
    """Read a numeric array of one image; a last axis of length 1 is dropped.

    Raises:
        DatasetError: missing, truncated, not an array of numbers, or not an image.
    """
    data = read_bytes(path)
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # a damaged header is evaluated as far as it goes
        raise DatasetError(
            f'{path}: not a readable .npy ({len(data)} bytes; {error}); replace or remove it'
        ) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in 'fiub':
        found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise DatasetError(f'{path}: {found}, expected numbers')
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2 or not array.size:
        raise DatasetError(f'{path}: shape {array.shape}, expected (H, W) or (H, W, 1)')
    return array
