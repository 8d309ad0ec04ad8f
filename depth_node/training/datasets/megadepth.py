"""MegaDepth: photographs of landmarks with depth from multi-view stereo, up to scale.

<scene>/dense<n>/imgs/<name>.jpg and <scene>/dense<n>/depths/<name>.h5, whose `/depth` has the
picture's size. A file where all values are small whole numbers is no depth but an ordinal map:
which pixels are foreground, which background. The codes are unverified; two readings are known
and both are understood: negative = background and positive = foreground, or, without a negative
value, 1 = foreground and 2 = background.
"""

from __future__ import annotations

from collections.abc import Sequence
import io
from pathlib import Path
import pickle
from typing import Any

from depth_node.training.datasets._shared import divide, missing
from depth_node.training.datasets.base import (
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

PERCENTILES = (1.0, 98.0)  # of known depth; outside of them stereo is mostly wrong
SMALLEST_DEPTH = 1e-8
LARGEST_PIXELS = 2**28
ORDINAL_CODES = (-1, 0, 1, 2, 3)
FOREGROUND, BACKGROUND = 1, 2  # as in `Frame.ordinal`
LISTS = ('imgs_MD', 'targets_MD')


class MegaDepth(DepthDataset):
    """Depth in a unit of each scene's own, or an ordinal map; `ordinal` is always given."""

    kind = 'megadepth'
    metric = False
    has_camera = False
    note = 'multi-view stereo up to scale, 1st to 98th percentile; or foreground and background'

    def __init__(
        self,
        root: Path,
        split: str,
        *,
        lists: Sequence[str] = (),
        test_scenes: Sequence[str] = (),
        val: str = 'held_out',
        val_share: float = 0.05,
        ordinal: bool = True,
    ) -> None:
        """List the pictures.

        Args:
            root: the folder with the scenes, or the one above MegaDepth_v1.
            split: train, val or test. Whole scenes are held out.
            lists: folders (of landscape and of portrait pictures) with imgs_MD and targets_MD,
                each a .txt with one path a line or the published .p; relative to the root. The
                paths in them are relative to the root or the one above. Only what is listed is
                used; without lists all pictures with a depth file are.
            test_scenes: these make the test split.
            val: 'held_out' takes scenes away from training; 'test' validates on the test scenes.
            val_share: about this part of the training scenes is held out.
            ordinal: False leaves ordinal maps out, which opens each depth file once.

        Raises:
            ValueError: an option is not what it can be.
            DatasetError: a folder or a file is missing, or a list cannot be used; names it.
        """
        super().__init__(root, split)
        check_split(split)
        inner = self.root / 'MegaDepth_v1'
        self.base = inner if inner.is_dir() else self.root
        pairs = self._listed(lists) if lists else self._found()
        if not pairs:
            raise DatasetError(
                f'{self.base}: no pictures; expected <scene>/dense<n>/imgs/*.jpg with '
                'depths/*.h5 beside imgs'
            )
        test = set(test_scenes)
        unknown = test - {self._scene(image) for image, _ in pairs}
        if unknown:
            raise DatasetError(f'{self.base / sorted(unknown)[0]}: a test scene without pictures')
        parts = {
            'train': [pair for pair in pairs if self._scene(pair[0]) not in test],
            'test': [pair for pair in pairs if self._scene(pair[0]) in test],
        }
        self._pairs = divide(
            split, {name: part for name, part in parts.items() if part},
            lambda pair: self._scene(pair[0]), val=val, val_share=val_share, where=self.base,
        )  # fmt: skip
        if not ordinal:
            self._pairs = [p for p in self._pairs if not is_ordinal(_read_h5(p[1], None))]
            if not self._pairs:
                raise DatasetError(f'{self.base}: all depth files of {split} are ordinal maps')

    def _scene(self, image: Path) -> str:
        return image.relative_to(self.base).parts[0]

    def _found(self) -> list[tuple[Path, Path]]:
        pairs = []
        for depth in sorted(self.base.glob('*/dense*/depths/*.h5')):
            folder = depth.parent.parent / 'imgs'
            candidates = [folder / f'{depth.stem}{end}' for end in ('.jpg', '.JPG', '.png')]
            image = next((path for path in candidates if path.is_file()), None)
            if image is None:
                raise DatasetError(
                    f'{candidates[0]}: missing, {depth} belongs to it; unpack the scene again or '
                    'remove the depth file'
                )
            pairs.append((image, depth))
        return pairs

    def _listed(self, lists: Sequence[str]) -> list[tuple[Path, Path]]:
        pairs = []
        for folder in lists:
            images, targets = (_read_list(self.root / folder, stem) for stem in LISTS)
            if len(images) != len(targets):
                raise DatasetError(
                    f'{self.root / folder}: {len(images)} pictures and {len(targets)} targets '
                    'are listed; both lists must have one length'
                )
            pairs += [
                (self._resolve(image), self._resolve(target))
                for image, target in zip(images, targets, strict=True)
            ]
        return pairs

    def _resolve(self, name: str) -> Path:
        path = Path(name.lstrip('/'))
        if path.parts[:1] == ('MegaDepth_v1',):
            path = Path(*path.parts[1:])
        if len(path.parts) < 2 or '..' in path.parts:
            raise DatasetError(
                f'{self.base / path}: a list names it, expected <scene>/dense<n>/... below the '
                'root'
            )
        return self.base / path

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self._pairs)

    def name(self, index: int) -> str:
        """Name a picture by its path below the root."""
        return self._pairs[index][0].relative_to(self.base).as_posix()

    def files(self, index: int) -> tuple[Path, ...]:
        """List the picture and its depth."""
        return self._pairs[index]

    def read(self, index: int) -> Frame:
        """See `DepthDataset.read`."""
        image, path = self._pairs[index]
        rgb = read_rgb(image)
        size_hw = (rgb.shape[0], rgb.shape[1])
        stored = _read_h5(path, size_hw)
        if is_ordinal(stored):
            return Frame(
                rgb, np.zeros(size_hw, np.float32), ordinal=_regions(stored, path)
            )
        with np.errstate(invalid='ignore'):
            stored = np.where(stored > SMALLEST_DEPTH, stored, 0)
        depth = clean_depth(stored, path, size_hw, metric=False)
        return Frame(rgb, without_extremes(depth), ordinal=np.zeros(size_hw, np.int8))


def is_ordinal(stored: NDArray[np.floating]) -> bool:
    """Tell an ordinal map, small whole numbers only, from depth; all zero is neither."""
    return bool(np.isin(stored, ORDINAL_CODES).all() and stored.any())


def without_extremes(depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Set what lies outside of PERCENTILES of the known depth to 0, unknown."""
    known = depth > 0
    if not known.any():
        return depth
    low, high = np.percentile(depth[known], PERCENTILES)
    return np.where((depth >= low) & (depth <= high), depth, 0).astype(np.float32)


def _regions(stored: NDArray[np.floating], path: Path) -> NDArray[np.int8]:
    if (stored < 0).any():
        foreground, background = stored > 0, stored < 0
    else:
        foreground, background = stored == 1, stored == 2
    if not foreground.any() or not background.any():
        raise DatasetError(
            f'{path}: an ordinal map (values {np.unique(stored).tolist()}) without both '
            'foreground and background; remove the frame'
        )
    regions = np.zeros(stored.shape, np.int8)
    regions[foreground], regions[background] = FOREGROUND, BACKGROUND
    return regions


def _read_h5(path: Path, size_hw: tuple[int, int] | None) -> NDArray[np.float32]:
    """Read `/depth`; its size is checked before memory is asked for."""
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise missing('h5py', path, error) from None
    data = read_bytes(path)
    try:
        with h5py.File(io.BytesIO(data), 'r') as file:
            found = file.get('depth')
            if not isinstance(found, h5py.Dataset):
                raise DatasetError(f'{path}: has no data set /depth, only {sorted(file)[:8]}')
            shape = found.shape
            if size_hw is not None and shape != size_hw:
                raise DatasetError(
                    f'{path}: depth has size {shape}, its picture {size_hw}; both must have one '
                    'size'
                )
            if found.dtype.kind not in 'fiu' or len(shape) != 2:
                raise DatasetError(
                    f'{path}: /depth is {found.dtype} with shape {shape}, expected numbers (H, W)'
                )
            if found.size > LARGEST_PIXELS:
                raise DatasetError(f'{path}: /depth has shape {shape}, which is no photograph')
            if found.id.get_storage_size() == 0 and found.size:
                raise DatasetError(f'{path}: /depth was never written; fetch it again')
            return np.asarray(found[()], np.float32)
    except DatasetError:
        raise
    except Exception as error:  # the library lets a damaged file raise whatever it runs into
        raise DatasetError(
            f'{path}: not a readable HDF5 file ({len(data)} bytes; {error!r}); fetch it again'
        ) from error


class _ListOfTexts(pickle.Unpickler):
    """Reads plain lists of strings; a pickle that names any class or function is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ('_codecs', 'encode'):  # bytes and old text of protocols 0 to 2
            return _encoded
        raise pickle.UnpicklingError(f'it names {module}.{name}')

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError('it refers to something outside')


def _encoded(text: str, encoding: str) -> bytes:
    if not isinstance(text, str) or encoding != 'latin1':
        raise pickle.UnpicklingError('it encodes something else than latin1 text')
    return text.encode('latin1')


def _read_list(folder: Path, stem: str) -> list[str]:
    """Read <stem>.txt or <stem>.p.

    Raises:
        DatasetError: neither is there, or it is not a list of paths.
    """
    text = folder / f'{stem}.txt'
    if text.is_file():
        lines = read_bytes(text).decode('utf-8', 'surrogateescape').splitlines()
        names: Any = [line.strip() for line in lines if line.strip()]
        path = text
    else:
        path = folder / f'{stem}.p'
        data = read_bytes(path)
        try:
            names = _ListOfTexts(io.BytesIO(data), encoding='latin1').load()
        except Exception as error:  # a damaged pickle raises whatever it runs into
            raise DatasetError(
                f'{path}: not a pickled list of paths ({error}); write them to {text.name} '
                'beside it, one a line'
            ) from error
        if isinstance(names, (list, tuple)):
            names = [
                name.decode('latin1') if isinstance(name, bytes) else name for name in names
            ]
    if not isinstance(names, list) or not names or not all(
        isinstance(name, str) and name and '\0' not in name for name in names
    ):
        raise DatasetError(f'{path}: expected a list of paths, one a picture; fetch it again')
    return names


def recognise(path: Path) -> str | None:
    """Say why a folder is of this kind; None when it is not."""
    for base in (path / 'MegaDepth_v1', path):
        first = next(base.glob('*/dense*/depths/*.h5'), None)
        if first is not None:
            return f'{first.relative_to(path)}'
    return None
