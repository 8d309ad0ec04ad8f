"""NYU Depth v2, the 1449 labelled frames, as their authors give them out.

`nyu_depth_v2_labeled.mat` is a MATLAB v7.3 file, that is HDF5: h5py sees every axis reversed, and
strings as references to arrays of character codes. `splits.mat` beside it is of the old format
and counts frames from 1. The pictures have a white border of some pixels, from the alignment of
the Kinect's two cameras; nothing is cut off here, that is for the evaluator's crops to do.
"""

from __future__ import annotations

from collections import Counter
import os
from pathlib import Path
from typing import Any

from depth_node.camera import Camera
from depth_node.training.datasets._matfile import load_mat, numbers
from depth_node.training.datasets._shared import divide, missing
from depth_node.training.datasets.base import (
    DatasetError,
    DepthDataset,
    check_split,
    clean_depth,
    read_bytes,
)
from depth_node.training.frame import Frame
import numpy as np
from numpy.typing import NDArray

MAT_NAME = 'nyu_depth_v2_labeled.mat'
SPLITS_NAME = 'splits.mat'
# The RGB camera of the toolbox that comes with the data set.
NYU_CAMERA = Camera((480, 640), 518.8579, 519.4696, 325.5824, 253.7362)
TRUTHS = {'filled': 'depths', 'raw': 'rawDepths'}


class NyuMat(DepthDataset):
    """The labelled frames with the official split: 795 to train on, 654 to test on.

    Attributes:
        scenes: name of each frame's scene, '' where the file lacks them.
        classes: what the labels mean, [] where the file lacks the names or `label_map` is given.
    """

    kind = 'nyu_mat'

    def __init__(
        self,
        root: Path,
        split: str,
        *,
        truth: str = 'filled',
        labels: bool = True,
        label_map: str | None = None,
        val: str = 'held_out',
        val_share: float = 0.06,
    ) -> None:
        """Index a split.

        Args:
            root: the folder of both files, or the .mat file of the frames.
            split: train, val or test.
            truth: 'filled' (holes closed by colorization: FCRN, DenseDepth, Eigen) or 'raw' (as
                the Kinect saw it: BTS and most since). Scores on the two do not compare.
            labels: read the class of each pixel.
            label_map: text file that maps the file's classes to fewer: line n holds the class
                (from 0; -1 = unknown) that label n stands for.
            val: the split has no validation part. 'held_out' takes scenes away from train,
                'test' validates on the test frames.
            val_share: part of the training scenes to hold out; 0.06 leaves about the 750 of 795
                frames that Chen et al. (arXiv:1604.03901) train on.
        """
        super().__init__(root, split)
        check_split(split)
        if truth not in TRUTHS:
            raise ValueError(f'truth {truth!r}: expected one of {", ".join(TRUTHS)}')
        self.mat = _mat_of(self.root)
        self.note = f'NYU v2 labelled, {truth} truth, white border kept'
        self._truth, self._labels = TRUTHS[truth], labels
        self._label_map = None if label_map is None else _read_label_map(Path(label_map))
        self._file = _MatFile(self.mat)
        count = self._check_shapes()
        self.scenes = self._file.strings('scenes') or [''] * count
        self.classes = [] if label_map is not None else self._file.strings('names')
        if len(self.scenes) != count:
            raise DatasetError(f'{self.mat}: {len(self.scenes)} scenes for {count} images')
        self._indices = divide(
            split,
            _read_splits(self.mat.parent / SPLITS_NAME, count),
            self._group,
            val=val,
            val_share=val_share,
            where=self.root,
        )

    def __len__(self) -> int:
        """Count the frames."""
        return len(self._indices)

    def name(self, index: int) -> str:
        """Name a frame by its number in the file, from 1 as in splits.mat, and its scene."""
        number = self._indices[index]
        return f'{number + 1:04d}_{self.scenes[number]}'.rstrip('_')

    def files(self, index: int) -> tuple[Path, ...]:
        """All frames are in the one file."""
        return (self.mat,)

    def read(self, index: int) -> Frame:
        """Read a frame."""
        number = self._indices[index]
        rgb = self._file.sample('images', number)
        depth = self._file.sample(self._truth, number)
        size_hw = (rgb.shape[0], rgb.shape[1])
        where = Path(f'{self.mat}: {self._truth} of frame {number + 1}')
        labels = None
        if self._labels and self._file.has('labels'):
            # 0 = unlabelled
            labels = self._file.sample('labels', number).astype(np.int32) - 1
            if self._label_map is not None:
                labels = self._mapped(labels)
        return Frame(
            rgb,
            clean_depth(depth, where, size_hw),
            NYU_CAMERA if size_hw == NYU_CAMERA.size_hw else NYU_CAMERA.scaled(size_hw),
            labels=labels,
        )

    def scene_counts(self) -> dict[str, int]:
        """Count the frames of each scene in this split."""
        return dict(Counter(self.scenes[number] for number in self._indices))

    def _group(self, number: int) -> str:
        return self.scenes[number] or str(number)

    def _mapped(self, labels: NDArray[np.int32]) -> NDArray[np.int32]:
        assert self._label_map is not None
        if labels.max(initial=-1) >= len(self._label_map):
            raise DatasetError(
                f'{self.mat}: label {labels.max() + 1}, but the label map has '
                f'{len(self._label_map)} lines'
            )
        # the entry behind the last is what -1 picks
        return np.append(self._label_map, np.int32(-1))[labels]

    def _check_shapes(self) -> int:
        """Compare the arrays' shapes and types; return how many frames there are."""
        images = self._file.shape('images')
        depth = self._file.shape(self._truth)
        if len(images) != 4 or images[1] != 3:
            raise DatasetError(
                f'{self.mat}: images have shape {images} in HDF5, expected (frames, 3, width, '
                'height), which is how MATLAB stores height x width x 3 x frames'
            )
        count, _, width, height = images
        wanted = {self._truth: depth}
        if self._labels and self._file.has('labels'):
            wanted['labels'] = self._file.shape('labels')
        for name, shape in wanted.items():
            if shape != (count, width, height):
                raise DatasetError(
                    f'{self.mat}: {name} have shape {shape} in HDF5, expected '
                    f'{(count, width, height)} as the images say'
                )
        for name, kind in (('images', 'u1'), (self._truth, 'f4')):
            if self._file.dtype(name) != np.dtype(kind):
                raise DatasetError(
                    f'{self.mat}: {name} are {self._file.dtype(name)}, expected {np.dtype(kind)}'
                )
        return count


def recognise(path: Path) -> str | None:
    """Return why this is the labelled NYU file or its folder, or None."""
    mat = path / MAT_NAME if path.is_dir() else path
    if mat.name == MAT_NAME and mat.is_file():
        return f'{MAT_NAME}'
    return None


class _MatFile:
    """An HDF5 file that is opened again in every process: a handle does not survive a fork."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: Any = None
        self._pid = -1

    def __getstate__(self) -> dict[str, Any]:
        return {'_path': self._path, '_handle': None, '_pid': -1}

    def has(self, name: str) -> bool:
        return name in self._open()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._dataset(name).shape)

    def dtype(self, name: str) -> np.dtype[Any]:
        dtype: np.dtype[Any] = self._dataset(name).dtype
        return dtype

    def sample(self, name: str, index: int) -> NDArray[Any]:
        """Return an image with its axes in our order: (H, W) or (H, W, channels)."""
        dataset = self._dataset(name)
        try:
            return np.ascontiguousarray(dataset[index].T)
        except Exception as error:  # h5py passes on whatever the HDF5 library says
            raise DatasetError(
                f'{self._path}: {name} of frame {index + 1} cannot be read ({error}); '
                'fetch the file again'
            ) from error

    def strings(self, name: str) -> list[str]:
        """Read a cell array of strings; [] where the file has none of that name."""
        if not self.has(name):
            return []
        handle = self._open()
        try:
            cells = np.asarray(handle[name][()]).ravel()
            codes = [np.asarray(handle[cell][()]).ravel() for cell in cells]
            return [bytes(code.astype('<u2')).decode('utf-16-le') for code in codes]
        except Exception as error:
            raise DatasetError(
                f'{self._path}: {name} is not a cell array of strings ({error!r})'
            ) from error

    def _dataset(self, name: str) -> Any:
        handle = self._open()
        try:
            found = handle[name] if name in handle else None
        except Exception as error:
            raise DatasetError(f'{self._path}: {name} cannot be read ({error})') from error
        if found is None or not hasattr(found, 'shape'):
            raise DatasetError(
                f'{self._path}: has no array {name!r}; expected the arrays images, depths, '
                f'rawDepths of {MAT_NAME}'
            )
        return found

    def _open(self) -> Any:
        if self._handle is None or self._pid != os.getpid():
            try:
                import h5py
            except ModuleNotFoundError as error:
                raise missing('h5py', self._path, error) from None
            if not self._path.is_file():
                raise DatasetError(f'{self._path}: no such file')
            try:
                self._handle = h5py.File(self._path, 'r')
            except Exception as error:
                raise DatasetError(
                    f'{self._path}: not a readable MATLAB v7.3 (HDF5) file of '
                    f'{self._path.stat().st_size} bytes ({error}); fetch it again'
                ) from error
            self._pid = os.getpid()
        return self._handle


def _mat_of(root: Path) -> Path:
    mat = root / MAT_NAME if root.is_dir() else root
    if not mat.is_file():
        raise DatasetError(
            f'{mat}: no such file; put {MAT_NAME} and {SPLITS_NAME} of NYU Depth v2 there'
        )
    return mat


def _read_splits(path: Path, count: int) -> dict[str, list[int]]:
    """Read which frames are for training and which for testing, counted from 0.

    Raises:
        DatasetError: not the file, or not for this many frames.
    """
    found = load_mat(path, ('trainNdxs', 'testNdxs'))
    parts = {}
    for part, name in (('train', 'trainNdxs'), ('test', 'testNdxs')):
        counted = numbers(path, name, found[name]).ravel().astype(np.float64)
        if not np.all(counted == np.round(counted)):
            raise DatasetError(f'{path}: {name} are not whole numbers')
        if counted.size and not 1 <= counted.min() <= counted.max() <= count:
            raise DatasetError(
                f'{path}: {name} go from {counted.min():g} to {counted.max():g}, expected 1 to '
                f'{count}, as MATLAB counts'
            )
        parts[part] = [int(number) - 1 for number in counted]
    both = set(parts['train']) & set(parts['test'])
    if both:
        raise DatasetError(f'{path}: frame {min(both) + 1} is in both trainNdxs and testNdxs')
    return parts


def _read_label_map(path: Path) -> NDArray[np.int32]:
    text = read_bytes(path).decode('utf-8', 'replace')
    try:
        return np.array([int(word) for word in text.split()], np.int32)
    except (ValueError, OverflowError) as error:
        raise DatasetError(
            f'{path}: not a label map ({error}); expected a whole number on each line'
        ) from error
