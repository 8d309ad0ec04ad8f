"""SUN RGB-D (Song et al., CVPR 2015): four depth cameras, indoors.

Layout: any depth of folders below the root, a frame's holding `image/*.jpg`, `depth/*.png` (as the
sensor saw it), `depth_bfx/*.png` (holes closed) and `intrinsics.txt` (K, nine numbers). The bits
of the 16-bit PNG are rotated by three, which makes millimetres of them; farther than 8 m is not
trusted. `kv1/NYUdata` is NYU Depth v2 again.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
import re

from depth_node.training.datasets._matfile import load_mat
from depth_node.training.datasets._shared import divide, hash_share, parse_intrinsics, walk
from depth_node.training.datasets.base import (
    DatasetError,
    DepthDataset,
    check_split,
    clean_depth,
    read_png,
    read_rgb,
)
from depth_node.training.frame import Frame
import numpy as np
from numpy.typing import NDArray

FAR_M = 8.0
TRUTHS = {'raw': 'depth', 'filled': 'depth_bfx'}
# Where the toolbox keeps the official split (depth-systems does not say; from memory).
SPLIT_FILE = 'SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat'
SPLIT_CHOICES = ('official', 'hash')
_NYU = 'kv1/NYUdata'
_TEST_SHARE = 0.5  # about the official one's


class SunRgbd(DepthDataset):
    """10,335 frames of Kinect v1, Kinect v2, RealSense and Xtion.

    Attributes:
        excluded: frames of NYU Depth v2 that were left out of all splits.
    """

    kind = 'sunrgbd'

    def __init__(
        self,
        root: Path,
        split: str,
        *,
        truth: str = 'raw',
        exclude_nyu: bool = False,
        split_by: str | None = None,
        val_share: float = 0.05,
    ) -> None:
        """Index a split.

        Args:
            root: the folder of kv1, kv2, realsense and xtion.
            split: train, val or test.
            truth: 'raw' or 'filled'.
            exclude_nyu: leave out kv1/NYUdata; needed where NYU trains or tests the same network.
            split_by: 'official' reads the toolbox's allsplit.mat below `root`; 'hash' halves the
                groups of frames by their names. By default official where that file is there.
            val_share: part of the training groups to hold out; there is no official part.
        """
        super().__init__(root, split)
        check_split(split)
        if truth not in TRUTHS:
            raise ValueError(f'truth {truth!r}: expected one of {", ".join(TRUTHS)}')
        if split_by not in (None, *SPLIT_CHOICES):
            raise ValueError(f'split_by {split_by!r}: expected official or hash')
        if not self.root.is_dir():
            raise DatasetError(f'{root}: no such folder')
        frames = sorted(
            path.parent.relative_to(self.root).as_posix()
            for path in self.root.rglob('intrinsics.txt')
        )
        if not frames:
            raise DatasetError(
                f'{root}: no intrinsics.txt below it; expected the folders kv1, kv2, realsense, '
                'xtion of SUN RGB-D'
            )
        kept = [frame for frame in frames if not (exclude_nyu and is_nyu(frame))]
        self.excluded = len(frames) - len(kept)
        official = self.root / SPLIT_FILE
        if split_by is None:
            split_by = 'official' if official.is_file() else 'hash'
        parts = _official(official, kept) if split_by == 'official' else _by_hash(kept)
        self._frames = divide(
            split, parts, _group_of, val='held_out', val_share=val_share, where=self.root
        )
        self._truth = TRUTHS[truth]
        self.note = f'SUN RGB-D, {truth} truth to {FAR_M:g} m, {split_by} split' + (
            f', without {self.excluded} frames of NYU' if exclude_nyu else ''
        )

    def __len__(self) -> int:
        """Count the frames."""
        return len(self._frames)

    def name(self, index: int) -> str:
        """Name a frame by its folder."""
        return self._frames[index]

    def files(self, index: int) -> tuple[Path, ...]:
        """List picture, depth and intrinsics."""
        folder = self.root / self._frames[index]
        return (
            _only(folder / 'image', ('.jpg', '.png')),
            _only(folder / self._truth, ('.png',)),
            folder / 'intrinsics.txt',
        )

    def read(self, index: int) -> Frame:
        """Read a frame."""
        picture, depth_path, intrinsics = self.files(index)
        for path in (picture, depth_path):
            if path.name in ('image', self._truth):
                raise DatasetError(f'{path}: expected one picture in it, found none or several')
        rgb = read_rgb(picture)
        size_hw = (rgb.shape[0], rgb.shape[1])
        metres = rotate_bits(read_png(depth_path)).astype(np.float32) * np.float32(1e-3)
        return Frame(
            rgb,
            clean_depth(metres, depth_path, size_hw, far=FAR_M),
            parse_intrinsics(intrinsics, size_hw),
        )


def recognise(path: Path) -> str | None:
    """Return why this is SUN RGB-D, or None."""
    if path.is_dir():
        for file in walk(path):
            if file.name == 'intrinsics.txt' and all(
                (file.parent / name).is_dir() for name in ('image', 'depth')
            ):
                return f'{file.relative_to(path)} beside image/ and depth/'
    return None


def rotate_bits(stored: NDArray[np.generic]) -> NDArray[np.uint16]:
    """Turn stored depth into millimetres: the 16 bits rotate right by three."""
    bits = stored.astype(np.uint16)
    return (bits >> np.uint16(3)) | (bits << np.uint16(13))


def is_nyu(frame: str) -> bool:
    """Tell whether a frame is one of NYU Depth v2's."""
    return f'/{_NYU}/' in f'/{frame}/'


def _only(folder: Path, suffixes: tuple[str, ...]) -> Path:
    """Return the picture of a folder; the folder itself where there is not exactly one."""
    try:
        found = [path for path in folder.iterdir() if path.suffix.lower() in suffixes]
    except OSError:
        found = []
    return found[0] if len(found) == 1 else folder


def _by_hash(frames: list[str]) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {'train': [], 'test': []}
    for frame in frames:
        parts['test' if hash_share(_group_of(frame)) < _TEST_SHARE else 'train'].append(frame)
    return parts


def _official(path: Path, frames: list[str]) -> dict[str, list[str]]:
    """Divide as the toolbox says; frames that it does not name are in no part.

    Raises:
        DatasetError: the file is damaged, or names none of the frames.
    """
    variables = {'train': 'alltrain', 'test': 'alltest'}
    found = load_mat(path, tuple(variables.values()))
    parts = {}
    for part, variable in variables.items():
        cells = found[variable]
        if not isinstance(cells, list) or not all(isinstance(cell, str) for cell in cells):
            raise DatasetError(f'{path}: {variable} is not a cell array of texts')
        named = {_from_sensor(str(cell)).strip('/') for cell in cells}
        parts[part] = [frame for frame in frames if _from_sensor(frame) in named]
    if not any(parts.values()):
        raise DatasetError(f'{path}: names none of the {len(frames)} frames below the root')
    both = set(parts['train']) & set(parts['test'])
    if both:
        raise DatasetError(f'{path}: {min(both)} is in both alltrain and alltest')
    return parts


def _from_sensor(frame: str) -> str:
    """Drop what is before the sensor's folder, which differs from machine to machine."""
    return re.sub(r'^.*?(?=(kv1|kv2|realsense|xtion)/)', '', frame)


def _group_of(frame: str) -> str:
    """Name what a frame must stay together with: its recording, where folders name one.

    xtion/sun3ddata/harvard_c3/hv_c3_1/0000150-... is one of a walk through a room; the frames of
    kv1/NYUdata and kv2/kinect2data lie side by side, and each stands for itself.
    """
    path = PurePosixPath(_from_sensor(frame))
    return str(path.parent) if len(path.parts) > 3 else frame


