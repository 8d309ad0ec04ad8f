"""Lists of pictures with their depth, one frame a line.

Two dialects: 'rgb depth focal' (BTS and its successors; 'None' where a frame has no depth) and
'rgb depth' (Depth Anything V2). Depth is a 16-bit PNG; nothing in the list says its unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math
from pathlib import Path, PurePosixPath
import re
from typing import NamedTuple

from depth_node.camera import Camera, CameraError
from depth_node.training.datasets._shared import camera_of, divide
from depth_node.training.datasets.base import (
    SPLITS,
    DatasetError,
    DepthDataset,
    check_split,
    clean_depth,
    read_bytes,
    read_png,
    read_rgb,
)
from depth_node.training.frame import Frame
import numpy as np

MILLIMETRES, KITTI = 1000.0, 256.0
NO_DEPTH = 'None'
# Folders and names that tell the unit: KITTI's depth maps, NYU as BTS synchronises it, Virtual
# KITTI 2 (centimetres).
_TELLING = (
    (re.compile(r'proj_depth/(groundtruth|velodyne_raw)/'), KITTI, "KITTI's 1/256 m"),
    (re.compile(r'(^|/)sync_depth_\d+\.png$'), MILLIMETRES, 'millimetres'),
    (re.compile(r'Scene\d\d/.*depth_\d{5}\.png$'), 100.0, 'centimetres of Virtual KITTI 2'),
)
# Folders between a picture and its scene.
_PLAIN_FOLDERS = re.compile(
    r'data|rgb|images?|color|left|right|image_0[0-3]|Camera_[01]|scene_cam_.*|frames', re.I
)
_MEANINGS = {
    'train': re.compile('train', re.I),
    'val': re.compile('val', re.I),
    'test': re.compile('test', re.I),
}
MISSING_CHOICES = ('skip', 'keep')


class _Row(NamedTuple):
    rgb: Path
    depth: Path | None
    focal_px: float | None
    name: str


class ListFile(DepthDataset):
    """Frames that a text file names.

    Attributes:
        depth_scale: the PNG's units in a metre.
        skipped: rows of the split without depth that were left out.
    """

    kind = 'list'

    def __init__(
        self,
        root: Path,
        split: str,
        *,
        lists: Mapping[str, str] | None = None,
        rgb_root: str | None = None,
        depth_root: str | None = None,
        depth_scale: float | None = None,
        max_depth_m: float = math.inf,
        missing: str = 'skip',
        k: Sequence[float] | None = None,
        val: str = 'held_out',
        val_share: float = 0.03,
    ) -> None:
        """Index a split.

        Args:
            root: a list, or the folder with the lists (*.txt with train, val or test in their
                names), to which their paths are relative.
            split: train, val or test.
            lists: split to list, relative to `root`, where the names do not tell.
            rgb_root: what the pictures' paths are relative to, itself relative to `root`.
            depth_root: likewise for depth.
            depth_scale: the PNG's units in a metre: 1000 for millimetres, 256 for KITTI, 100 for
                Virtual KITTI 2. By default what the files' names tell, else 1000. A scale that
                contradicts the names is refused.
            max_depth_m: farther truth is unknown (80 for Virtual KITTI 2, whose sky is 655.35).
            missing: frames whose depth is 'None': 'skip', or 'keep' with no pixel known.
            k: fx, fy, cx, cy in pixels, the same for all pictures; instead of the list's focal
                length, for which the principal point is taken to be the middle.
            val: without a list for val, 'held_out' takes scenes (the folders of the pictures)
                away from train, 'test' validates on the test frames.
            val_share: part of the training scenes to hold out.
        """
        super().__init__(root, split)
        check_split(split)
        if missing not in MISSING_CHOICES:
            raise ValueError(f'missing {missing!r}: expected one of {", ".join(MISSING_CHOICES)}')
        if depth_scale is not None and not 0 < depth_scale < math.inf:
            raise ValueError(f'depth_scale {depth_scale}: expected units a metre, above 0')
        base = self.root.parent if self.root.is_file() else self.root
        roots = tuple(base / (folder or '') for folder in (rgb_root, depth_root))
        found = _lists_of(self.root, lists)
        parts = {part: _read_list(path, roots) for part, path in found.items()}
        rows = divide(
            split, parts, lambda row: _scene_of(row.name),
            val=val, val_share=val_share, where=self.root,
        )  # fmt: skip
        usable = [row for row in rows if missing == 'keep' or row.depth is not None]
        self.skipped = len(rows) - len(usable)
        if not usable:
            raise DatasetError(f'{self.root}: none of the {len(rows)} frames of {split} has depth')
        self.depth_scale = _scale_of(rows, depth_scale, self.root)
        self._rows, self._max_depth_m, self._k = usable, max_depth_m, k
        camera_of(k, (1, 1))
        self.has_camera = k is not None or all(row.focal_px is not None for row in usable)
        self.note = f'list of PNG with {self.depth_scale:g} units a metre' + (
            f', {self.skipped} frames without depth left out' if self.skipped else ''
        )

    def __len__(self) -> int:
        """Count the frames."""
        return len(self._rows)

    def name(self, index: int) -> str:
        """Name a frame as the list names its picture."""
        return self._rows[index].name

    def files(self, index: int) -> tuple[Path, ...]:
        """List picture and depth."""
        row = self._rows[index]
        return (row.rgb,) if row.depth is None else (row.rgb, row.depth)

    def read(self, index: int) -> Frame:
        """Read a frame."""
        row = self._rows[index]
        rgb = read_rgb(row.rgb)
        size_hw = (rgb.shape[0], rgb.shape[1])
        if row.depth is None:
            depth = np.zeros(size_hw, np.float32)
        else:
            units = read_png(row.depth).astype(np.float32)
            depth = clean_depth(
                units / np.float32(self.depth_scale), row.depth, size_hw, far=self._max_depth_m
            )
        camera = camera_of(self._k, size_hw)
        if camera is None and row.focal_px is not None:
            middle = (size_hw[1] - 1) / 2, (size_hw[0] - 1) / 2
            try:
                camera = Camera(size_hw, row.focal_px, row.focal_px, *middle)
            except CameraError as error:
                raise DatasetError(f'{row.name}: {error}') from error
        return Frame(rgb, depth, camera)


def recognise(path: Path) -> str | None:
    """Return why this is a list or a folder with lists, or None."""
    if path.is_file():
        return _looks_like_a_list(path)
    if path.is_dir():
        for file in sorted(path.glob('*.txt')):
            if any(meaning.search(file.name) for meaning in _MEANINGS.values()):
                reason = _looks_like_a_list(file)
                if reason:
                    return f'{file.name}: {reason}'
    return None


def _looks_like_a_list(path: Path) -> str | None:
    if path.suffix != '.txt':
        return None
    with path.open('rb') as stream:
        words = stream.readline(4096).decode('utf-8', 'replace').split()
    picture = re.compile(r'\.(png|jpe?g)$', re.I)
    if len(words) in (2, 3) and picture.search(words[0]) and (
        picture.search(words[1]) or words[1] == NO_DEPTH
    ):
        return "rows of 'rgb depth focal'" if len(words) == 3 else "rows of 'rgb depth'"
    return None


def _lists_of(root: Path, lists: Mapping[str, str] | None) -> dict[str, Path]:
    """Find the list of each split.

    Raises:
        ValueError: `lists` names an unknown split.
        DatasetError: no list, or two of which each could be a split's.
    """
    if lists is not None:
        unknown = sorted(set(lists) - set(SPLITS))
        if unknown:
            raise ValueError(f'lists: {unknown[0]!r} is not one of {", ".join(SPLITS)}')
        folder = root.parent if root.is_file() else root
        return {split: folder / name for split, name in lists.items()}
    if root.is_file():
        for split, meaning in _MEANINGS.items():
            if meaning.search(root.name):
                return {split: root}
        return {'test': root}
    found = {}
    for split, meaning in _MEANINGS.items():
        candidates = [p for p in sorted(root.glob('*.txt')) if meaning.search(p.name)]
        if len(candidates) > 1:
            names = ', '.join(path.name for path in candidates)
            raise DatasetError(
                f'{root}: {names} may each be the list of {split}; name one by the option lists'
            )
        if candidates:
            found[split] = candidates[0]
    if not found:
        raise DatasetError(
            f'{root}: no list; expected *.txt with train, val or test in its name, or the option '
            'lists'
        )
    return found


def _read_list(path: Path, roots: tuple[Path, ...]) -> list[_Row]:
    """Read a list; its paths are below `roots` even where they begin with a slash, as BTS has it.

    Raises:
        DatasetError: a line that has not two or three words, or whose third is no number.
    """
    lines = read_bytes(path).decode('utf-8', 'replace').splitlines()
    rows = []
    absolute = None
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        try:
            if '\0' in line or len(words) not in (2, 3):
                raise ValueError(f'{len(words)} words')
            rgb, depth, *rest = words
            focal_px = float(rest[0]) if rest else None
            if focal_px is not None and not 0 < focal_px < math.inf:
                raise ValueError(f'focal length {focal_px}')
        except ValueError as error:
            raise DatasetError(
                f"{path}: line {number} is {line[:200]!r} ({error}); expected 'rgb depth focal' "
                "or 'rgb depth', without spaces in the names"
            ) from None
        if absolute is None:
            absolute = rgb.startswith('/') and _is_file(Path(rgb))
        rows.append(
            _Row(
                _below(roots[0], rgb, absolute),
                None if depth == NO_DEPTH else _below(roots[1], depth, absolute),
                focal_px,
                rgb.lstrip('/'),
            )
        )
    if not rows:
        raise DatasetError(f'{path}: no line in it')
    return rows


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _below(root: Path, name: str, absolute: bool) -> Path:
    return Path(name) if absolute else root / name.lstrip('/')


def _scale_of(rows: Sequence[_Row], asked: float | None, where: Path) -> float:
    """Return the PNGs' units in a metre.

    Raises:
        DatasetError: what was asked for contradicts what the files are called.
    """
    depth = next((row.depth for row in rows if row.depth is not None), None)
    for pattern, scale, unit in _TELLING if depth is not None else ():
        if pattern.search(str(depth)):
            if asked is not None and asked != scale:
                raise DatasetError(
                    f'{where}: depth_scale is {asked:g}, but {depth} is called as files in {unit} '
                    f'are; set depth_scale: {scale:g}, or leave it out'
                )
            return scale
    return MILLIMETRES if asked is None else asked


def _scene_of(name: str) -> str:
    """Name the folder of a picture's scene, the same for both eyes and all cameras."""
    folders = list(PurePosixPath(name).parent.parts)
    while folders and _PLAIN_FOLDERS.fullmatch(folders[-1]):
        folders.pop()
    return '/'.join(folders) or name
