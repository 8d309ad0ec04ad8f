"""Frames written by `depth-node synthesize`.

Layout: <root>/<split>/<scene>/<frame>.jpg, <frame>.depth.png (uint16, millimetres of depth along
the optical axis, 0 = unknown) and <frame>.json (K of that size). No scene is in two splits.

Folders rendered with --channels have <frame>.normal.png (bytes 128 + 127 n of unit vectors in the
optical frame, RGB is x, y, z; 0, 0, 0 = unknown) and <frame>.label.png (uint8, class + 1, 0 =
unknown; the names are in meta.json). With --sequence, frames of one camera motion follow each
other: `sequence` and `step` in the .json say which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from depth_node.training.frame import Frame, View
import numpy as np
from numpy.typing import NDArray

CHANNELS = ('normals', 'labels')
VIEWS = {'previous': -1, 'next': 1}
_SUFFIX = {'normals': 'normal', 'labels': 'label'}


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

    def channel(self, name: str) -> Path:
        """The file of one of CHANNELS."""
        return self.info.with_name(f'{self.info.stem}.{_SUFFIX[name]}.png')


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


def read_frame(files: FrameFiles, channels: Sequence[str] = ()) -> Frame:
    """Read a frame from disk, with those of CHANNELS that are asked for.

    Raises:
        DatasetError: a file cannot be decoded, or they disagree about the size.
    """
    rgb = read_rgb(files.rgb)
    size_hw = (rgb.shape[0], rgb.shape[1])
    depth = read_png(files.depth).astype(np.float32) * np.float32(1e-3)
    camera = _read_camera(files.info, size_hw)
    normals = labels = None
    if 'normals' in channels:
        normals = _read_normals(files.channel('normals'), size_hw)
    if 'labels' in channels:
        labels = _read_labels(files.channel('labels'), size_hw)
    return Frame(rgb, clean_depth(depth, files.depth, size_hw), camera, normals=normals,
                 labels=labels)


def _read_normals(path: Path, size_hw: tuple[int, int]) -> NDArray[np.float32]:
    stored = read_rgb(path)
    _check_size(path, stored.shape[:2], size_hw)
    normals = (stored.astype(np.float32) - 128) / 127
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    known = stored.any(-1, keepdims=True) & (length > 0)
    return np.where(known, normals / np.where(known, length, 1), 0).astype(np.float32)


def _read_labels(path: Path, size_hw: tuple[int, int]) -> NDArray[np.int32]:
    stored = read_png(path, np.uint8)
    _check_size(path, stored.shape, size_hw)
    return stored.astype(np.int32) - 1


def _check_size(path: Path, found: tuple[int, ...], size_hw: tuple[int, int]) -> None:
    if tuple(found) != size_hw:
        raise DatasetError(f'{path}: has size {tuple(found)}, its picture {size_hw}; '
                           'both must have one size')


def _read_info(path: Path) -> dict[str, object]:
    try:
        raw = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise DatasetError(f'{path}: not readable as JSON ({error})') from error
    if not isinstance(raw, dict):
        raise DatasetError(f'{path}: expected a JSON object')
    return raw


def _read_pose(path: Path) -> NDArray[np.float64]:
    """Optical frame to world, (4, 4)."""
    try:
        pose = np.array(_read_info(path)['camera_to_world'], np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f'{path}: no usable camera_to_world ({error!r})') from error
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        raise DatasetError(f'{path}: camera_to_world has shape {pose.shape}, expected 4 x 4 '
                           'numbers')
    return pose


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

    def __init__(
        self, root: Path, split: str, *, channels: Sequence[str] = (),
        views: Sequence[str] = (), also: Sequence[str] = (),
    ) -> None:
        """Index a split.

        Args:
            root: the data folder.
            split: train, val or test.
            channels: of `normals` and `labels`, where the folder was rendered with them.
            views: of `previous` and `next`, where it was rendered with --sequence; frames that
                lack one of them are left out.
            also: further data folders of the same layout, whose frames follow; a folder without
                this split adds none.

        Raises:
            DatasetError: no such folder, split or option, a frame that lacks a file, or no frame
                with the views.
        """
        super().__init__(root, split)
        for option, names, known in (('channels', channels, CHANNELS), ('views', views, VIEWS)):
            for name in names:
                if name not in known:
                    raise DatasetError(f'{option} {name!r}: expected one of {", ".join(known)}')
        self._channels, self._kinds = tuple(channels), tuple(views)
        self._frames = index_frames(self.root, split)
        self._several = bool(also)
        for folder in also:
            try:
                self._frames += index_frames(Path(folder).expanduser(), split)
            except AbsentSplitError:
                if not Path(folder).expanduser().is_dir():
                    raise
        for frame in self._frames:
            for name in self._channels:
                if not frame.channel(name).is_file():
                    raise DatasetError(
                        f'{frame.channel(name)}: missing; render the frames with '
                        f'--channels {",".join(self._channels)}, or do not ask for {name}')
        self._views: list[tuple[FrameFiles, ...]] = [()] * len(self._frames)
        if self._kinds:
            self._find_views()

    def _find_views(self) -> None:
        """Keep the frames that have all views, with the files of these."""
        places: dict[tuple[Path, object, object], FrameFiles] = {}
        keys = []
        for frame in self._frames:
            info = _read_info(frame.info)
            keys.append((frame.info.parent, info.get('sequence'), info.get('step')))
            places[keys[-1]] = frame
        kept = []
        for frame, (folder, sequence, step) in zip(self._frames, keys, strict=True):
            if not isinstance(step, int):
                continue
            found = [places.get((folder, sequence, step + VIEWS[kind])) for kind in self._kinds]
            views = tuple(view for view in found if view is not None)
            if len(views) == len(found):
                kept.append((frame, views))
        if not kept:
            raise DatasetError(
                f'{self.root / self.split}: no frame has {" and ".join(self._kinds)}; render with '
                f'--sequence {1 + len(set(self._kinds))} or more')
        self._frames = [frame for frame, _ in kept]
        self._views = [views for _, views in kept]

    def __len__(self) -> int:
        """Count the frames."""
        return len(self._frames)

    def name(self, index: int) -> str:
        """Return scene/frame, with several folders folder/scene/frame."""
        info = self._frames[index].info
        name = f'{info.parent.name}/{info.stem}'
        return f'{info.parents[2].name}/{name}' if self._several else name

    def scene(self, index: int) -> str:
        """Return the kind of scene: room, table, ..."""
        return self._frames[index].kind

    def files(self, index: int) -> tuple[Path, ...]:
        """Return picture, depth and camera, the channels, and the same of the views."""
        frame = self._frames[index]
        views = [path for view in self._views[index] for path in (view.rgb, view.depth, view.info)]
        return (frame.rgb, frame.depth, frame.info,
                *(frame.channel(name) for name in self._channels), *views)

    def read(self, index: int) -> Frame:
        """See `DepthDataset.read`."""
        files = self._frames[index]
        frame = read_frame(files, self._channels)
        if not self._kinds:
            return frame
        pose = _read_pose(files.info)
        views = []
        for kind, other in zip(self._kinds, self._views[index], strict=True):
            seen = read_frame(other)
            if seen.size_hw != frame.size_hw or seen.camera is None:
                raise DatasetError(f'{other.rgb}: size {seen.size_hw}, the picture of the frame '
                                   f'has {frame.size_hw}')
            motion = np.linalg.inv(_read_pose(other.info)) @ pose
            views.append(View(seen.rgb, seen.camera, motion, seen.depth, kind))
        return replace(frame, views=tuple(views))


def recognise(path: Path) -> str | None:
    """Say why a folder is of this kind; None when it is not."""
    for split in SPLITS:
        first = next((path / split).glob('*/*.depth.png'), None)
        if first is not None and first.with_name(
            first.name.removesuffix('.depth.png') + '.json'
        ).is_file():
            return f'{split}/<scene>/<frame>.depth.png with a .json of intrinsics beside it'
    return None
