"""Virtual KITTI 2: rendered drives with dense depth, both eyes and exact poses.

Layout: <root>/<scene>/<variation>/frames/rgb|depth/Camera_0|1/rgb_<frame>.jpg, depth_<frame>.png
(uint16 centimetres, 65535 = sky), and <root>/<scene>/<variation>/intrinsic.txt, extrinsic.txt
(depth-systems, section 3; that the sky is 65535 is marked [M] there).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from depth_node.camera import Camera, CameraError
from depth_node.training.datasets.base import (
    AbsentSplitError,
    DatasetError,
    DepthDataset,
    check_split,
    clean_depth,
    read_bytes,
    read_png,
    read_rgb,
)
from depth_node.training.frame import Frame, View
import numpy as np
from numpy.typing import NDArray

VIEWS = ('previous', 'next', 'right')
_SKY_CM = 65535
_LEFT, _RIGHT = 0, 1


@dataclass(frozen=True)
class _Drive:
    """A scene in one weather or turn, with what its text files say of (frame, camera)."""

    folder: Path
    intrinsics: dict[tuple[int, int], NDArray[np.float64]]  # fx, fy, cx, cy [px]
    poses: dict[tuple[int, int], NDArray[np.float64]]  # (4, 4) world to camera [m]

    def file(self, what: str, frame: int, camera: int) -> Path:
        name = f'rgb_{frame:05d}.jpg' if what == 'rgb' else f'depth_{frame:05d}.png'
        return self.folder / 'frames' / what / f'Camera_{camera}' / name


class VirtualKitti2(DepthDataset):
    """Frames of the left camera of Virtual KITTI 2.

    Attributes:
        skipped: reason -> frames that were left out, because `views` asks for more than there is.
    """

    kind = 'vkitti2'

    def __init__(
        self,
        root: Path,
        split: str,
        *,
        val_scenes: Sequence[str] = ('Scene18',),
        test_scenes: Sequence[str] = ('Scene20',),
        variations: Sequence[str] = ('*',),
        views: Sequence[str] = (),
        step: int = 1,
        max_depth_m: float = 80.0,
    ) -> None:
        """Index a split.

        Args:
            root: the folder of the scenes.
            split: train, val or test. The data set has no split of its own: these are ours.
            val_scenes: patterns of scenes for validation.
            test_scenes: patterns of scenes for the test; all others are for training.
            variations: patterns of variations, such as `clone` or `15-deg-*`.
            views: which of `previous`, `next` and `right` come with each frame, with pose and
                depth.
            step: frames from a picture to its previous and next.
            max_depth_m: deeper values are unknown.

        Raises:
            DatasetError: an option, a text file, or no frame at all.
        """
        check_split(split)
        super().__init__(root, split)
        for view in views:
            if view not in VIEWS:
                raise DatasetError(f'views {view!r}: expected one of {", ".join(VIEWS)}')
        if step < 1:
            raise DatasetError(f'step {step}: expected 1 or more frames')
        self._views, self._step, self._max_depth_m = tuple(views), step, max_depth_m
        self.note = f'Virtual KITTI 2, rendered depth up to {max_depth_m:g} m'
        self.skipped: Counter[str] = Counter()
        folders = sorted(path.parents[2] for path in self.root.glob('*/*/frames/rgb/Camera_0'))
        if not folders:
            raise DatasetError(
                f'{root}: no <scene>/<variation>/frames/rgb/Camera_0; expected the unpacked rgb, '
                'depth and textgt archives of Virtual KITTI 2 in one folder'
            )
        scenes = {'val': val_scenes, 'test': test_scenes}
        self._items: list[tuple[_Drive, int]] = []
        for folder in folders:
            own = next((s for s in scenes if _matches(folder.parent.name, scenes[s])), 'train')
            if own == split and _matches(folder.name, variations):
                self._index(folder)
        if not self._items:
            raise AbsentSplitError(
                f'{root}: no frame in split {split}; there are '
                f'{", ".join(sorted({f.parent.name for f in folders}))} in '
                f'{", ".join(sorted({f.name for f in folders}))}; see val_scenes, test_scenes, '
                f'variations{f"; left out: {dict(self.skipped)}" if self.skipped else ""}'
            )

    def _index(self, folder: Path) -> None:
        drive = _Drive(
            folder,
            _read_table(folder / 'intrinsic.txt', 4),
            {
                key: row.reshape(4, 4)
                for key, row in _read_table(folder / 'extrinsic.txt', 16).items()
            },
        )
        frames = sorted((folder / 'frames' / 'rgb' / 'Camera_0').glob('rgb_*.jpg'))
        numbers = [int(path.stem[4:]) for path in frames if path.stem[4:].isdigit()]
        known = set(numbers)
        for number in numbers:
            needed = [self._view_of(view, number) for view in self._views]
            if any(frame not in known for frame, _ in needed):
                self.skipped['without previous or next'] += 1
                continue
            for frame, camera in ((number, _LEFT), *needed):
                for table, name in ((drive.intrinsics, 'in'), (drive.poses, 'ex')):
                    if (frame, camera) not in table:
                        raise DatasetError(
                            f'{folder / f"{name}trinsic.txt"}: no line for frame {frame}, camera '
                            f'{camera}; unpack the textgt archive again'
                        )
            self._items.append((drive, number))

    def _view_of(self, view: str, frame: int) -> tuple[int, int]:
        if view == 'right':
            return frame, _RIGHT
        return frame + (self._step if view == 'next' else -self._step), _LEFT

    def __len__(self) -> int:
        """Count the frames."""
        return len(self._items)

    def name(self, index: int) -> str:
        """Name a frame: scene, variation, number."""
        drive, number = self._items[index]
        return f'{drive.folder.parent.name}/{drive.folder.name} {number:05d}'

    def files(self, index: int) -> tuple[Path, ...]:
        """List pictures and depth of the frame and its views."""
        drive, number = self._items[index]
        wanted = [(number, _LEFT), *(self._view_of(view, number) for view in self._views)]
        return tuple(drive.file(what, *key) for key in wanted for what in ('rgb', 'depth'))

    def read(self, index: int) -> Frame:
        """Read a frame with its views."""
        drive, number = self._items[index]
        rgb, depth, camera, sky = self._read_one(drive, number, _LEFT)
        views = []
        for kind in self._views:
            key = self._view_of(kind, number)
            view_rgb, view_depth, view_camera, _ = self._read_one(drive, *key)
            if view_rgb.shape != rgb.shape:
                raise DatasetError(
                    f'{drive.file("rgb", *key)}: size {view_rgb.shape[:2]}, the picture of the '
                    f'frame has {rgb.shape[:2]}'
                )
            motion = drive.poses[key] @ np.linalg.inv(drive.poses[number, _LEFT])
            views.append(View(view_rgb, view_camera, motion, view_depth, kind))
        return Frame(rgb=rgb, depth=depth, camera=camera, sky=sky, views=tuple(views))

    def _read_one(
        self, drive: _Drive, frame: int, camera: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32], Camera, NDArray[np.bool_]]:
        path = drive.file('depth', frame, camera)
        rgb = read_rgb(drive.file('rgb', frame, camera))
        size_hw = rgb.shape[0], rgb.shape[1]
        centimetres = read_png(path)
        sky = centimetres == _SKY_CM
        metres = np.where(sky, np.nan, centimetres.astype(np.float32) / np.float32(100))
        depth = clean_depth(metres, path, size_hw, far=self._max_depth_m)
        fx, fy, cx, cy = (float(value) for value in drive.intrinsics[frame, camera])
        try:
            intrinsics = Camera(size_hw, fx, fy, cx, cy)
        except CameraError as error:
            raise DatasetError(f'{drive.folder / "intrinsic.txt"}: {error}') from error
        if not (0 < cx < size_hw[1] and 0 < cy < size_hw[0]):
            raise DatasetError(
                f'{drive.folder / "intrinsic.txt"}: centre ({cx:g}, {cy:g}) lies outside of the '
                f'picture of size {size_hw}; pictures must not be resized'
            )
        return rgb, depth, intrinsics, sky


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _read_table(path: Path, count: int) -> dict[tuple[int, int], NDArray[np.float64]]:
    """Read `frame cameraID number...` lines below a headline.

    Raises:
        DatasetError: missing, empty, or a line with other than `count` finite numbers.
    """
    rows = {}
    lines = read_bytes(path).decode('utf-8', errors='replace').splitlines()
    for number, line in enumerate(lines[1:], 2):
        words = line.split()
        if not words:
            continue
        try:
            frame, camera = int(words[0]), int(words[1])
            values = np.array([float(word) for word in words[2:]])
        except (ValueError, IndexError):
            frame, camera, values = 0, 0, np.zeros(0)
        if values.size != count or not np.isfinite(values).all():
            raise DatasetError(
                f'{path}, line {number}: {line[:80]!r}, expected frame, camera and {count} finite '
                'numbers'
            )
        rows[frame, camera] = values
    if not rows:
        raise DatasetError(f'{path}: no line of numbers; unpack the textgt archive again')
    return rows


def recognise(path: Path) -> str | None:
    """Say why a folder looks like Virtual KITTI 2, or None."""
    found = next(path.glob('*/*/frames/rgb/Camera_0'), None) if path.is_dir() else None
    if found is None:
        return None
    variation = found.parents[2]
    return f'Virtual KITTI 2: {variation.parent.name}/{variation.name}/frames/rgb/Camera_0'
