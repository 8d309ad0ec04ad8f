"""Frames written by `depth-node synthesize`.

Layout: <root>/<split>/<scene>/<frame>.jpg, <frame>.depth.png (uint16, millimetres of depth along
the optical axis, 0 = unknown) and <frame>.json (K of that size). No scene is in two splits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
import hashlib
import json
from pathlib import Path

import cv2
from depth_node.camera import Camera
from depth_node.training.augment import Augmenter, Frame, fit
import numpy as np
from numpy.typing import NDArray
import torch
from torch.utils.data import Dataset, Sampler

SPLITS = ('train', 'val', 'test')


class DatasetError(ValueError):
    """A data folder or a frame in it cannot be used; the text names the file and the remedy."""


@dataclass(frozen=True)
class FrameFiles:
    """The three files of a frame, and what is known without opening the pictures."""

    rgb: Path
    depth: Path
    info: Path
    kind: str

    @classmethod
    def of(cls, info: Path) -> FrameFiles:
        """Name the files beside `info`."""
        stem = info.name.removesuffix('.json')
        folder = info.parent
        kind = folder.name.partition('-')[0]
        return cls(folder / f'{stem}.jpg', folder / f'{stem}.depth.png', info, kind)


def index_frames(root: Path, split: str) -> list[FrameFiles]:
    """List the frames of a split, sorted by name.

    Raises:
        DatasetError: no such folder, an unknown split, a frame that lacks a file, or none at all.
    """
    if split not in SPLITS:
        raise DatasetError(f'split {split!r}: expected one of {", ".join(SPLITS)}')
    folder = root / split
    if not folder.is_dir():
        raise DatasetError(
            f'{folder}: no such folder; render frames with: depth-node synthesize --out {root}'
        )
    frames = []
    for info in sorted(folder.glob('*/*.json')):
        if info.name == 'scene.json':
            continue
        files = FrameFiles.of(info)
        for path in (files.rgb, files.depth):
            if not path.is_file():
                raise DatasetError(
                    f'{path}: missing, {info.name} beside it needs it; '
                    f'delete the folder {info.parent} and render it again'
                )
        frames.append(files)
    if not frames:
        raise DatasetError(
            f'{folder}: no frames; render some with: depth-node synthesize --out {root}'
        )
    return frames


def fingerprint(root: Path) -> dict[str, object]:
    """Identify a data folder: frames per split and a hash of all names and file sizes."""
    digest = hashlib.sha256()
    counts = {}
    for split in SPLITS:
        infos = [p for p in sorted((root / split).glob('*/*.json')) if p.name != 'scene.json']
        counts[split] = len(infos)
        for info in infos:
            files = FrameFiles.of(info)
            sizes = f'{files.rgb.stat().st_size} {files.depth.stat().st_size}'
            digest.update(f'{info.relative_to(root)} {sizes}\n'.encode())
    return {'frames': counts, 'sha256_of_names_and_sizes': digest.hexdigest()}


def read_frame(files: FrameFiles) -> Frame:
    """Read a frame from disk.

    Raises:
        DatasetError: a file cannot be decoded, or the three disagree about the size.
    """
    bgr = cv2.imread(str(files.rgb), cv2.IMREAD_COLOR)
    if bgr is None:
        raise DatasetError(
            f'{files.rgb}: not a readable picture; delete the scene and render it again'
        )
    millimetres = cv2.imread(str(files.depth), cv2.IMREAD_UNCHANGED)
    if millimetres is None or millimetres.dtype != np.uint16 or millimetres.ndim != 2:
        found = (
            'unreadable'
            if millimetres is None
            else (f'{millimetres.dtype} with shape {millimetres.shape}')
        )
        raise DatasetError(f'{files.depth}: {found}, expected a 16-bit grey PNG in millimetres')
    if millimetres.shape != bgr.shape[:2]:
        raise DatasetError(
            f'{files.depth}: {millimetres.shape}, but the picture beside it is '
            f'{bgr.shape[:2]}; both must have one size'
        )
    camera = _read_camera(files.info, (bgr.shape[0], bgr.shape[1]))
    depth = millimetres.astype(np.float32) * np.float32(1e-3)
    return Frame(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), depth, camera)


def _read_camera(path: Path, size_hw: tuple[int, int]) -> Camera:
    try:
        raw = json.loads(path.read_text(encoding='utf-8'))
        stated = (int(raw['height']), int(raw['width']))
        camera = Camera(stated, *(float(raw[key]) for key in ('fx', 'fy', 'cx', 'cy')))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f'{path}: not usable intrinsics ({error!r}); expected JSON with width, '
            'height, fx, fy, cx, cy'
        ) from error
    if stated != size_hw:
        raise DatasetError(f'{path}: says {stated}, but the picture is {size_hw}')
    return camera


class RenderedFrames(Dataset[dict[str, torch.Tensor]]):
    """Frames at network size, as tensors.

    An item's key is an index, or (index, seed) for an augmented draw. Each item has `rgb`
    (3, H, W) uint8, `depth` (1, H, W) float32 metres with 0 where unknown, and `focal_px`, the
    geometric mean of fx and fy at network size.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        size_hw: tuple[int, int],
        *,
        augmenter: Augmenter | None = None,
        limit: int | None = None,
    ) -> None:
        """Index a split.

        Args:
            root: the data folder.
            split: train, val or test.
            size_hw: the network's size.
            augmenter: applied to keys with a seed.
            limit: use this many frames at most, spread evenly over the split.
        """
        self.files = index_frames(root, split)
        if limit is not None and limit < len(self.files):
            chosen = np.linspace(0, len(self.files) - 1, limit).round().astype(int)
            self.files = [self.files[index] for index in chosen]
        self.size_hw = size_hw
        self.augmenter = augmenter

    def __len__(self) -> int:
        """Count the frames."""
        return len(self.files)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, torch.Tensor]:
        """Read, augment and convert one frame."""
        index, seed = key if isinstance(key, tuple) else (key, None)
        frame = read_frame(self.files[index])
        if seed is not None and self.augmenter is not None:
            frame = self.augmenter(frame, self.size_hw, np.random.default_rng(seed))
        else:
            frame = fit(frame, self.size_hw)
        rgb: NDArray[np.uint8] = np.ascontiguousarray(frame.rgb.transpose(2, 0, 1))
        focal_px = float(np.sqrt(frame.camera.fx * frame.camera.fy))
        return {
            'rgb': torch.from_numpy(rgb),
            'depth': torch.from_numpy(np.ascontiguousarray(frame.depth[None])),
            'focal_px': torch.tensor(focal_px, dtype=torch.float32),
        }


class SeededSampler(Sampler[tuple[int, int]]):
    """Shuffled (index, seed) keys: the same run seed and epoch give the same pictures.

    The seed of a draw travels with its index, so that neither the number of loader workers nor
    their order changes what the network sees.
    """

    def __init__(self, length: int, seed: int) -> None:
        """Sample `length` frames once an epoch."""
        self._length, self._seed, self._epoch = length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Keys an epoch."""
        return self._length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield the keys of the current epoch."""
        rng = np.random.default_rng((self._seed, self._epoch))
        seeds = rng.integers(0, 2**62, self._length)
        for index, seed in zip(rng.permutation(self._length), seeds, strict=True):
            yield int(index), int(seed)
