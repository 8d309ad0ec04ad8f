"""A plain folder of pictures with depth beside them.

A frame is X.jpg or X.png with one of: X_depth_mm.png (16 bits, millimetres), X_depth.png (16 bits,
in the option's unit), X.npy (float metres, or the option's unit). In the subfolders train, val and
test where there are such; otherwise the names decide by a hash which split a frame is of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from depth_node.camera import Camera
from depth_node.training.datasets._shared import camera_of, hash_share, walk
from depth_node.training.datasets.base import (
    SPLITS,
    AbsentSplitError,
    DatasetError,
    DepthDataset,
    check_split,
    clean_depth,
    read_png,
    read_rgb,
)
from depth_node.training.datasets.diode import read_npy
from depth_node.training.frame import Frame
import numpy as np

# Units in a metre.
UNITS = {'m': 1.0, 'cm': 100.0, 'mm': 1000.0, 'kitti': 256.0}
GROUPS = ('frame', 'folder')
_RGB = ('.jpg', '.jpeg', '.png', '.JPG', '.JPEG', '.PNG')
# The longer ending first: X_depth_mm.png ends in neither of the others.
_DEPTH = ('_depth_mm.png', '_depth.png', '.npy')


class _Files(NamedTuple):
    name: str
    rgb: Path
    depth: Path


class Folder(DepthDataset):
    """Your own pictures."""

    kind = 'folder'

    def __init__(
        self,
        root: Path,
        split: str,
        *,
        k: Sequence[float] | None = None,
        hfov_deg: float | None = None,
        unit: str | None = None,
        max_depth_m: float = np.inf,
        val_share: float = 0.1,
        test_share: float = 0.1,
        group: str = 'frame',
    ) -> None:
        """Index a split.

        Args:
            root: the folder.
            split: train, val or test.
            k: fx, fy, cx, cy in pixels, the same for all pictures.
            hfov_deg: instead of `k`, the horizontal field of view.
            unit: of X_depth.png (default mm) and X.npy (default m): m, cm, mm, or kitti for
                1/256 m. X_depth_mm.png is in millimetres whatever this says.
            max_depth_m: farther truth is unknown.
            val_share: part of the groups for val where there are no subfolders of splits.
            test_share: likewise for test.
            group: 'frame' decides for every frame, 'folder' for the subfolder it lies in: use
                that for videos, whose frames resemble each other.
        """
        super().__init__(root, split)
        check_split(split)
        if unit not in (None, *UNITS):
            raise ValueError(f'unit {unit!r}: expected one of {", ".join(UNITS)}')
        if group not in GROUPS:
            raise ValueError(f'group {group!r}: expected one of {", ".join(GROUPS)}')
        if k is not None and hfov_deg is not None:
            raise ValueError('k and hfov_deg: expected one of the two')
        if not (0 <= val_share and 0 <= test_share and val_share + test_share < 1):
            raise ValueError(
                f'val_share {val_share} and test_share {test_share}: expected parts that leave '
                'some for train'
            )
        camera_of(k, (1, 1))
        if hfov_deg is not None:
            Camera.from_fov((1, 1), hfov_deg)
        self._k, self._hfov_deg, self._unit = k, hfov_deg, unit
        self._max_depth_m = max_depth_m
        self.has_camera = k is not None or hfov_deg is not None
        if not self.root.is_dir():
            raise DatasetError(f'{root}: no such folder')
        named = [name for name in SPLITS if (self.root / name).is_dir()]
        if named and split not in named:
            raise AbsentSplitError(f'{self.root / split}: no such folder; found {named}')
        self._files, self.without_depth = _index(
            self.root, self.root / split if named else self.root
        )
        if not named:
            self._files = _by_hash(self._files, split, val_share, test_share, group)
        if not self._files:
            raise AbsentSplitError(
                f'{self.root}: no frames of {split!r}; expected X.jpg or X.png with '
                'X_depth_mm.png, X_depth.png or X.npy'
            )
        self.note = 'own folder' + (
            f', {self.without_depth} pictures without depth left out' if self.without_depth else ''
        )

    def __len__(self) -> int:
        """Count the frames."""
        return len(self._files)

    def name(self, index: int) -> str:
        """Name a frame by its path without endings."""
        return self._files[index].name

    def files(self, index: int) -> tuple[Path, ...]:
        """List picture and depth."""
        files = self._files[index]
        return files.rgb, files.depth

    def read(self, index: int) -> Frame:
        """Read a frame."""
        _, rgb_path, depth_path = self._files[index]
        rgb = read_rgb(rgb_path)
        size_hw = (rgb.shape[0], rgb.shape[1])
        if depth_path.suffix == '.npy':
            stored = read_npy(depth_path)
            whole = stored.dtype.kind in 'iu'
            if stored.dtype.kind == 'b' or (whole and self._unit is None):
                raise DatasetError(
                    f'{depth_path}: {stored.dtype}, expected float metres; or name the unit by '
                    'the option unit'
                )
            scale = UNITS[self._unit or 'm']
        else:
            stored = read_png(depth_path)
            in_mm = depth_path.name.endswith(_DEPTH[0])
            scale = UNITS['mm' if in_mm else self._unit or 'mm']
        with np.errstate(over='ignore'):  # a float64 that float32 cannot hold is unknown
            metres = stored.astype(np.float32) / np.float32(scale)
        return Frame(
            rgb,
            clean_depth(metres, depth_path, size_hw, far=self._max_depth_m),
            self._camera(size_hw),
        )

    def _camera(self, size_hw: tuple[int, int]) -> Camera | None:
        if self._hfov_deg is not None:
            return Camera.from_fov(size_hw, self._hfov_deg)
        return camera_of(self._k, size_hw)


def recognise(path: Path) -> str | None:
    """Return why this is such a folder, or None."""
    if path.is_dir():
        for file in walk(path):
            stem = _stem(file)
            if stem is not None and _picture(stem, Path.is_file) is not None:
                return f'{file.relative_to(path)} beside its picture'
    return None


def _stem(path: Path) -> Path | None:
    """Return the path of a depth file without its ending; None for other files."""
    for ending in _DEPTH:
        if path.name.endswith(ending) and path.name != ending:
            return path.with_name(path.name.removesuffix(ending))
    return None


def _picture(stem: Path, exists: Callable[[Path], bool]) -> Path | None:
    """Find the picture of a frame."""
    candidates = (stem.with_name(stem.name + suffix) for suffix in _RGB)
    return next((path for path in candidates if exists(path)), None)


def _index(root: Path, folder: Path) -> tuple[list[_Files], int]:
    """List the frames below a folder, and count the pictures that have no depth.

    Raises:
        DatasetError: a picture with depth in two files.
    """
    frames: dict[Path, _Files] = {}
    used: set[Path] = set()
    paths = sorted(path for path in folder.rglob('*') if path.is_file())
    there = set(paths)
    for path in paths:
        stem = _stem(path)
        if stem is None:
            continue
        if stem in frames:
            raise DatasetError(
                f'{path}: {frames[stem].depth.name} is depth of the same picture; remove one'
            )
        # without a picture the frame stays, so that reading it names what is missing
        rgb = _picture(stem, there.__contains__) or stem.with_name(f'{stem.name}.jpg')
        frames[stem] = _Files(stem.relative_to(root).as_posix(), rgb, path)
        used |= {rgb, path}
    left = sum(path.suffix in _RGB and path not in used for path in paths)
    return list(frames.values()), left


def _by_hash(
    frames: list[_Files], split: str, val_share: float, test_share: float, group: str
) -> list[_Files]:
    """Choose the frames of a split by their names alone, so that it does not change.

    Val and test are the two ends of an order by hash; chance must not leave one of them empty, so
    each gets one group at least, as long as one is left for train.
    """

    def key(files: _Files) -> str:
        return files.name.rpartition('/')[0] if group == 'folder' else files.name

    ranked = sorted({key(files) for files in frames}, key=hash_share)
    n_val = max(sum(hash_share(name) < val_share for name in ranked), val_share > 0)
    n_test = max(sum(hash_share(name) >= 1 - test_share for name in ranked), test_share > 0)
    while n_val + n_test >= len(ranked) and n_val + n_test:
        n_val, n_test = (n_val, n_test - 1) if n_test >= n_val else (n_val - 1, n_test)
    train_end = len(ranked) - n_test
    parts = {'val': ranked[:n_val], 'train': ranked[n_val:train_end], 'test': ranked[train_end:]}
    chosen = set(parts[split])
    return [files for files in frames if key(files) in chosen]
