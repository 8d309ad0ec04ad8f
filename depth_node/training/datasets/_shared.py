"""What several data sets do alike: held-out groups, intrinsics, looking into folders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import hashlib
import os
from pathlib import Path
from typing import TypeVar

from depth_node.camera import Camera
from depth_node.training.datasets.base import (
    SPLITS,
    AbsentSplitError,
    DatasetError,
    check_split,
    read_bytes,
)

Item = TypeVar('Item')

VAL_CHOICES = ('held_out', 'test')


def hash_share(text: str) -> float:
    """Turn a name into a number in [0, 1) that looks random and never changes."""
    digest = hashlib.sha256(text.encode('utf-8', 'surrogateescape')).digest()
    return int.from_bytes(digest[:8], 'big') / 2**64


def hold_out(groups: Iterable[str], share: float) -> frozenset[str]:
    """Choose the groups that training shall not see.

    A group's own name decides, so that more data never moves a group from one side to the other,
    except where the choice would else be empty or all.

    Args:
        groups: scenes, folders or frames; repeated names count once.
        share: about this part of the groups, 0 to 1.

    Returns:
        At least one group and never all; none when there is only one.
    """
    ranked = sorted(set(groups), key=hash_share)
    chosen = sum(hash_share(group) < share for group in ranked)
    return frozenset(ranked[: min(max(chosen, 1), len(ranked) - 1)])


def divide(
    split: str,
    parts: Mapping[str, Sequence[Item]],
    group: Callable[[Item], str],
    *,
    val: str,
    val_share: float,
    where: Path,
) -> list[Item]:
    """Choose the frames of a split where the data set itself has `train` and `test` alone.

    Args:
        split: train, val or test.
        parts: the data set's own parts; an own `val` is taken as it is.
        group: names what must stay together: the scene of a frame.
        val: 'held_out' takes groups away from train, 'test' validates on the test part.
        val_share: about this part of the groups is held out.
        where: for messages.

    Raises:
        ValueError: an option is not what it can be.
        AbsentSplitError: the data set has no such part.
    """
    check_split(split)
    if val not in VAL_CHOICES:
        raise ValueError(f'val {val!r}: expected one of {", ".join(VAL_CHOICES)}')
    if not 0 < val_share < 1:
        raise ValueError(f'val_share {val_share}: expected a number between 0 and 1')
    if split == 'val' and 'val' not in parts and val == 'test':
        split = 'test'
    if split == 'test' or 'val' in parts or val == 'test':
        chosen = list(parts.get(split, ()))
    else:
        train = parts.get('train', ())
        held = hold_out((group(item) for item in train), val_share)
        chosen = [item for item in train if (group(item) in held) == (split == 'val')]
        if split == 'val' and train and not chosen:
            raise AbsentSplitError(
                f'{where}: all training frames are of one scene, so none can be held out for '
                'validation; give more, or set val: test'
            )
    if not chosen:
        known = ', '.join(name for name in SPLITS if parts.get(name)) or 'no frame at all'
        raise AbsentSplitError(f'{where}: no frames of split {split!r}; found {known}')
    return chosen


def camera_of(k: Sequence[float] | None, size_hw: tuple[int, int]) -> Camera | None:
    """Make the camera that an option `k: [fx, fy, cx, cy]` describes.

    Raises:
        ValueError: not four numbers that a camera can have.
    """
    if k is None:
        return None
    if len(k) != 4:
        raise ValueError(f'k {list(k)}: expected fx, fy, cx, cy in pixels')
    fx, fy, cx, cy = (float(value) for value in k)
    return Camera(size_hw, fx, fy, cx, cy)


def parse_intrinsics(path: Path, size_hw: tuple[int, int]) -> Camera:
    """Read a text file with the nine numbers of K, row by row.

    Raises:
        DatasetError: not nine numbers, or no camera.
    """
    text = read_bytes(path).decode('utf-8', 'replace')
    try:
        fx, skew, cx, zero, fy, cy, *last = (float(word) for word in text.split())
        if (zero, *last) != (0.0, 0.0, 0.0, 1.0):
            raise ValueError(f'the matrix ends in {[zero, *last]}')
        if abs(skew) > 1e-6 * fx:
            raise ValueError(f'skew {skew:g}')
        return Camera(size_hw, fx, fy, cx, cy)
    except ValueError as error:
        raise DatasetError(
            f'{path}: not the 3x3 matrix of a camera ({error}); expected fx 0 cx 0 fy cy 0 0 1'
        ) from error


def missing(module: str, path: Path, error: ModuleNotFoundError) -> ModuleNotFoundError:
    """Say what a package is needed for; an error within an installed package stays as it is."""
    if (error.name or '').partition('.')[0] != module:
        return error
    return ModuleNotFoundError(
        f'{path} is read by the Python package {module!r}, which is not installed; '
        "install it with: pip install '.[data]' in the clone",
        name=module,
    )


def walk(root: Path, limit: int = 5000) -> Iterator[Path]:
    """Go through a folder, nearest files first, at most `limit` entries: enough to recognise it.

    Of a folder's subfolders the first three are entered: data sets repeat themselves.
    """
    waiting = [root]
    seen = 0
    while waiting:
        folder = waiting.pop(0)
        subfolders = []
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            seen += 1
            if seen > limit:
                return
            if entry.is_dir():
                subfolders.append(folder / entry.name)
            else:
                yield folder / entry.name
        waiting += subfolders[:3]
