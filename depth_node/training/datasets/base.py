"""What every data set offers, and how its files are read with errors that name them."""

from __future__ import annotations

from abc import ABC, abstractmethod
import hashlib
from pathlib import Path

import cv2
from depth_node.training.frame import Frame
import numpy as np
from numpy.typing import NDArray

SPLITS = ('train', 'val', 'test')
# A median outside of this is another unit: metres in a file of millimetres read as 0.003 m,
# millimetres in a file of metres as 2000 m.
PLAUSIBLE_MEDIAN_M = (0.05, 200.0)


class DatasetError(ValueError):
    """A data folder or a file in it cannot be used; the text names the file and the remedy."""


class AbsentSplitError(DatasetError):
    """The data set has no such split, which is no fault in it."""


class DepthDataset(ABC):
    """A list of frames on disk; indexing opens no picture.

    Attributes:
        kind: the name on the command line and in configurations.
        metric: depth is in metres. False: in a unit of its own, or only relations are known.
        has_camera: every frame brings intrinsics.
        note: what the truth is (sensor, holes filled or not, cap), for reports.
    """

    kind: str
    metric: bool = True
    has_camera: bool = True
    note: str = ''

    def __init__(self, root: Path, split: str) -> None:
        """Remember where; subclasses index here and raise DatasetError when nothing is found."""
        self.root, self.split = Path(root), split

    @abstractmethod
    def __len__(self) -> int:
        """Count the frames."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Name a frame, uniquely in the data set, for messages and reports."""

    def scene(self, index: int) -> str:
        """Return the kind of scene that a frame shows; empty where the data set does not say."""
        return ''

    @abstractmethod
    def files(self, index: int) -> tuple[Path, ...]:
        """List the files that a frame is read from."""

    @abstractmethod
    def read(self, index: int) -> Frame:
        """Read a frame.

        Raises:
            DatasetError: a file is missing, truncated, of the wrong type, size or unit.
        """

    def fingerprint(self) -> dict[str, object]:
        """Identify the data: how many frames, and a hash of all names and file sizes."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            sizes = ' '.join(str(p.stat().st_size) if p.is_file() else '-'
                             for p in self.files(index))  # fmt: skip
            digest.update(f'{self.name(index)} {sizes}\n'.encode())
        return {
            'kind': self.kind,
            'split': self.split,
            'frames': len(self),
            'sha256_of_names_and_sizes': digest.hexdigest(),
        }


def check_split(split: str, known: tuple[str, ...] = SPLITS) -> None:
    """Refuse a split that a data set does not have.

    Raises:
        AbsentSplitError: naming those it has.
    """
    if split not in known:
        raise AbsentSplitError(f'split {split!r}: expected one of {", ".join(known)}')


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """Read a picture as (H, W, 3) uint8 RGB.

    As it is stored: an orientation in its EXIF is not followed, as truth is laid out, and pairs
    are counted, on the stored pixels.

    Raises:
        DatasetError: missing, truncated or not a picture.
    """
    data = read_bytes(path)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    if bgr is None:
        raise DatasetError(
            f'{path}: not a readable picture ({len(data)} bytes); replace or remove it'
        )
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def read_png(path: Path, dtype: type[np.generic] = np.uint16) -> NDArray[np.generic]:
    """Read a grey PNG of depth or labels without touching its values.

    Args:
        path: the file.
        dtype: what the format prescribes, np.uint16 or np.uint8.

    Returns:
        (H, W) of `dtype`.

    Raises:
        DatasetError: missing, truncated, or of another type.
    """
    data = read_bytes(path)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if image is None:
        raise DatasetError(
            f'{path}: not a readable picture ({len(data)} bytes); replace or remove it'
        )
    if image.dtype != dtype or image.ndim != 2:
        raise DatasetError(
            f'{path}: {image.dtype} with shape {image.shape}, expected a grey picture of '
            f'{np.dtype(dtype)}'
        )
    return np.asarray(image)


def read_bytes(path: Path) -> bytes:
    """Read a file.

    Raises:
        DatasetError: it is missing or may not be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DatasetError(f'{path}: no such file') from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in a name from a list
        raise DatasetError(f'{path}: cannot be read ({error})') from error


def clean_depth(
    depth: NDArray[np.floating],
    path: Path,
    size_hw: tuple[int, int],
    *,
    metric: bool = True,
    far: float = np.inf,
) -> NDArray[np.float32]:
    """Turn what a file says into `Frame.depth`, and refuse what cannot be depth.

    Args:
        depth: (H, W), metres where `metric`; NaN, Inf, zero and negative values are unknown.
        path: for messages.
        size_hw: the picture's size.
        metric: check that the median is plausible in metres.
        far: deeper values are unknown.

    Returns:
        (H, W) float32, 0 = unknown.

    Raises:
        DatasetError: another size than the picture, no known pixel at all, or a wrong unit.
    """
    if depth.shape != tuple(size_hw):
        raise DatasetError(
            f'{path}: depth has size {depth.shape}, its picture {tuple(size_hw)}; '
            'both must have one size'
        )
    with np.errstate(invalid='ignore'):
        known = np.isfinite(depth) & (depth > 0) & (depth <= far)
    if not known.any():
        with np.errstate(invalid='ignore'):
            beyond = np.isfinite(depth) & (depth > far)
        if beyond.any():
            raise DatasetError(
                f'{path}: all depth is beyond {far:g} m, its median is '
                f'{np.median(depth[beyond]):.4g} m; is the file in another unit (millimetres read '
                'as metres)?'
            )
        raise DatasetError(f'{path}: no pixel of known depth; remove the frame')
    if metric:
        some = depth[known]
        # 20,000 pixels tell the unit as well as 300,000 do, in a tenth of the time
        median = float(np.median(some[:: max(1, some.size // 20_000)]))
        low, high = PLAUSIBLE_MEDIAN_M
        if not low <= median <= high:
            raise DatasetError(
                f'{path}: median depth {median:.4g} m, expected {low} to {high} m; is the file '
                'in another unit (millimetres and metres mixed up)?'
            )
    return np.where(known, depth, 0).astype(np.float32, copy=False)
