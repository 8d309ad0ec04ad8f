"""Frames written by `depth-node synthesize`.

Layout: <root>/<split>/<scene>/<frame>.jpg, <frame>.depth.png (uint16, millimetres of depth along
the optical axis, 0 = unknown) and <frame>.json (K of that size). No scene is in two splits.
"""

from __future__ import annotations

from dataclasses import dataclass
import json
from pathlib import Path

from depth_node.camera import Camera
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
from depth_node.training.frame import Frame
import numpy as np


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
    check_split(split)
    folder = root / split
    if not folder.is_dir():
        raise AbsentSplitError(
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
        raise AbsentSplitError(
            f'{folder}: no frames; render some with: depth-node synthesize --out {root}'
        )
    return frames


def read_frame(files: FrameFiles) -> Frame:
    """Read a frame from disk.

    Raises:
        DatasetError: a file cannot be decoded, or the three disagree about the size.
    """
    rgb = read_rgb(files.rgb)
    size_hw = (rgb.shape[0], rgb.shape[1])
    depth = read_png(files.depth).astype(np.float32) * np.float32(1e-3)
    camera = _read_camera(files.info, size_hw)
    return Frame(rgb, clean_depth(depth, files.depth, size_hw), camera)


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


class Rendered(DepthDataset):
    """See the module."""

    kind = 'rendered'
    note = 'rendered, exact, every pixel known but sky'

    def __init__(self, root: Path, split: str) -> None:
        """Index a split.

        Raises:
            DatasetError: no such folder or split, or a frame lacks a file.
        """
        super().__init__(root, split)
        self._frames = index_frames(self.root, split)

    def __len__(self) -> int:
        """Count the frames."""
        return len(self._frames)

    def name(self, index: int) -> str:
        """Return scene/frame."""
        info = self._frames[index].info
        return f'{info.parent.name}/{info.stem}'

    def files(self, index: int) -> tuple[Path, ...]:
        """Return picture, depth and camera."""
        frame = self._frames[index]
        return frame.rgb, frame.depth, frame.info

    def read(self, index: int) -> Frame:
        """See `DepthDataset.read`."""
        return read_frame(self._frames[index])


def recognise(path: Path) -> str | None:
    """Say why a folder is of this kind; None when it is not."""
    for split in SPLITS:
        first = next((path / split).glob('*/*.depth.png'), None)
        if first is not None and first.with_name(
            first.name.removesuffix('.depth.png') + '.json'
        ).is_file():
            return f'{split}/<scene>/<frame>.depth.png with a .json of intrinsics beside it'
    return None
