"""Data sets with true depth, read one frame at a time.

A data set is named `KIND` or `KIND:PATH` on the command line (`open_reader`). A frame that cannot
be read is skipped, counted and named in `skipped`; a data set without any frame is a `DataError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
import json
from pathlib import Path
from typing import Any

import cv2
from depth_node.camera import Camera, CameraError
from depth_node.images import ImageError, depth_from_16uc1
import numpy as np
from numpy.typing import NDArray

PICTURE_SUFFIXES = ('.jpg', '.jpeg', '.png')
DEPTH_SUFFIX = '_depth_mm.png'
OSD_FOCAL_PX, OSD_CX, OSD_CY = 525.0, 319.5, 239.5  # the Kinect default of the data set, 640x480
SPLITS = ('test', 'val', 'train')
# A median outside of this is another unit: metres in a millimetre file read as 0.003 m,
# millimetres in a metre file as 2000 m.
PLAUSIBLE_MEDIAN_M = (0.05, 200.0)


class DataError(ValueError):
    """A data set, or one file of it, that cannot be used; the text names the file."""


@dataclass(frozen=True)
class Sample:
    """One frame with its truth.

    Attributes:
        name: unique inside the data set.
        rgb: (H, W, 3) uint8.
        true_depth: (H', W') float32, metres (unitless where not `metric`), NaN = unknown; may
            differ in size from `rgb` but shows the same view.
        camera: intrinsics of `rgb`, None when not known.
        metric: False when the truth is known up to a scale and shift only.
    """

    name: str
    rgb: NDArray[np.uint8]
    true_depth: NDArray[np.float32]
    camera: Camera | None
    metric: bool = True


@dataclass(frozen=True)
class Skipped:
    """A frame that could not be read, and why."""

    name: str
    reason: str


@dataclass
class Reader:
    """A list of frames, each read when the iteration reaches it.

    Attributes:
        name: short name in tables.
        kind: the reader's kind as on the command line.
        note: what the reader knows about the truth, for the report.
        metric: False when only alignment-free-of-scale-and-shift scores make sense.
        skipped: frames refused so far; reset when an iteration starts.
    """

    name: str
    kind: str
    note: str
    frames: list[_Frame]
    metric: bool = True
    skipped: list[Skipped] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[Sample]:
        self.skipped = []
        for frame in self.frames:
            try:
                yield frame.read()
            except (DataError, CameraError) as error:
                self.skipped.append(Skipped(frame.name, str(error)))

    def limited(self, count: int) -> Reader:
        """The same data set with at most `count` frames, evenly spread over it."""
        if count < 1:
            raise DataError(f'a limit of {count} frames leaves nothing to measure; use 1 or more')
        if count >= len(self.frames):
            return self
        chosen = np.unique(np.linspace(0, len(self.frames) - 1, count).round().astype(int))
        return Reader(
            self.name, self.kind, self.note, [self.frames[i] for i in chosen], self.metric
        )


class _Frame:
    """One frame to be read; `name` for messages."""

    name: str

    def read(self) -> Sample:
        raise NotImplementedError


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """Read a picture as (H, W, 3) uint8 RGB.

    Raises:
        DataError: missing or not a picture.
    """
    data = _read_bytes(path)
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if bgr is None:
        raise DataError(
            f'{path}: not a readable picture ({len(data)} bytes); replace or remove the file'
        )
    rgb: NDArray[np.uint8] = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
    return rgb


def read_depth(path: Path) -> NDArray[np.float32]:
    """Read a depth image.

    PNG: 16 bits, millimetres, 0 = unknown. NPY: floats are metres, integers millimetres.

    Args:
        path: `.png` or `.npy`.

    Returns:
        (H, W) float32, metres, NaN = unknown.

    Raises:
        DataError: missing, broken, not a depth image, without any known pixel, or in another unit
            by its range.
    """
    if path.suffix.lower() == '.npy':
        depth = _depth_from_npy(path)
        expected = 'float metres or integer millimetres'
    else:
        data = _read_bytes(path)
        raw = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
        if raw is None:
            raise DataError(
                f'{path}: not a readable PNG ({len(data)} bytes); replace or remove the file'
            )
        if raw.ndim != 2:
            raise DataError(
                f'{path}: {raw.ndim}-dimensional {raw.dtype} picture of shape {raw.shape}, '
                'expected one channel of uint16 '
                'millimetres; a coloured depth picture cannot be measured'
            )
        try:
            depth = depth_from_16uc1(np.asarray(raw))
        except ImageError as error:
            raise DataError(f'{path}: {error}; convert it to 16-bit millimetres') from error
        expected = 'uint16 millimetres'
    _check_unit(path, depth, expected)
    return depth


def _depth_from_npy(path: Path) -> NDArray[np.float32]:
    try:
        raw = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f'{path}: not a readable NPY file: {error}') from error
    if not isinstance(raw, np.ndarray) or raw.ndim != 2:
        found = f'shape {raw.shape}' if isinstance(raw, np.ndarray) else type(raw).__name__
        raise DataError(f'{path}: {found}, expected a (H, W) array of depth')
    if raw.dtype.kind in 'ui':
        depth = raw.astype(np.float32) / np.float32(1000.0)
    elif raw.dtype.kind == 'f':
        depth = raw.astype(np.float32)
    else:
        raise DataError(f'{path}: items of type {raw.dtype}, expected floats [m] or integers [mm]')
    depth[~(np.isfinite(depth) & (depth > 0))] = np.nan
    return depth


def _check_unit(path: Path, depth: NDArray[np.float32], expected: str) -> None:
    known = depth[np.isfinite(depth)]
    if known.size == 0:
        raise DataError(f'{path}: no pixel of known depth; remove the frame')
    median = float(np.median(known))
    low, high = PLAUSIBLE_MEDIAN_M
    if not low <= median <= high:
        raise DataError(
            f'{path}: median depth {median:.4g} m when read as {expected}, plausible is {low} to '
            f'{high:.0f} m; '
            'the file is in another unit: convert it'
        )


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f'{path}: {error.strerror or error}') from error


def _same_aspect(rgb: NDArray[np.uint8], depth: NDArray[np.float32], path: Path) -> None:
    (rgb_h, rgb_w), (depth_h, depth_w) = rgb.shape[:2], depth.shape
    # one pixel of rounding per side is a resized image, more is another view
    if abs(rgb_w * depth_h - depth_w * rgb_h) > max(rgb_w, rgb_h, depth_w, depth_h):
        raise DataError(
            f'{path}: depth is {depth_w}x{depth_h}, its picture {rgb_w}x{rgb_h}: another aspect '
            'ratio, so not the same view'
        )


@dataclass
class _PairFrame(_Frame):
    """A picture and a depth file, one K for all."""

    name: str
    picture: Path
    depth: Path | None
    intrinsics: tuple[float, float, float, float] | None
    size_hw: tuple[int, int] | None = None  # that the intrinsics belong to

    def read(self) -> Sample:
        if self.depth is None:
            raise DataError(
                f'{self.picture}: no depth file beside it; expected '
                f'{self.picture.stem}{DEPTH_SUFFIX} or '
                f'{self.picture.stem}.npy'
            )
        rgb = read_rgb(self.picture)
        depth = read_depth(self.depth)
        _same_aspect(rgb, depth, self.depth)
        size_hw = (rgb.shape[0], rgb.shape[1])
        camera = None
        if self.intrinsics is not None:
            if self.size_hw is not None and size_hw != self.size_hw:
                raise DataError(
                    f'{self.picture}: {size_hw[1]}x{size_hw[0]} pixels, the intrinsics belong to '
                    f'{self.size_hw[1]}x{self.size_hw[0]}'
                )
            camera = Camera(size_hw, *self.intrinsics)
        return Sample(self.name, rgb, depth, camera)


@dataclass
class _RenderedFrame(_Frame):
    """`<frame>.jpg`, `<frame>.depth.png`, `<frame>.json` of the synthesis module."""

    name: str
    stem: Path

    def read(self) -> Sample:
        sidecar = self.stem.with_name(self.stem.name + '.json')
        try:
            values = json.loads(_read_bytes(sidecar))
            size_hw = (int(values['height']), int(values['width']))
            fx, fy, cx, cy = (float(values[key]) for key in ('fx', 'fy', 'cx', 'cy'))
            camera = Camera(size_hw, fx, fy, cx, cy)
        except CameraError as error:
            raise DataError(f'{sidecar}: {error}') from error
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f'{sidecar}: {error!r}; expected JSON with fx, fy, cx, cy, width, height'
            ) from error
        picture = self.stem.with_name(self.stem.name + '.jpg')
        rgb = read_rgb(picture)
        if rgb.shape[:2] != size_hw:
            raise DataError(
                f'{picture}: {rgb.shape[1]}x{rgb.shape[0]} pixels, {sidecar.name} says '
                f'{size_hw[1]}x{size_hw[0]}'
            )
        depth_path = self.stem.with_name(self.stem.name + '.depth.png')
        depth = read_depth(depth_path)
        _same_aspect(rgb, depth, depth_path)
        return Sample(self.name, rgb, depth, camera)


class _MotorcycleFrame(_Frame):
    """Middlebury 2014 Motorcycle, left view, from the scikit-image wheel."""

    name = 'motorcycle'
    # calibration of the copy in scikit-image (its docstring): Z = baseline * focal / (disparity +
    # doffs)
    focal_px, cx_px, cy_px = 994.978, 311.193, 254.877
    baseline_m, doffs_px = 0.193001, 31.086

    def read(self) -> Sample:
        try:
            from skimage import data as pictures
        except ImportError as error:
            raise DataError(
                f'motorcycle: needs scikit-image, which does not import here ({error}); '
                'run: pip install scikit-image'
            ) from error
        try:
            library: Any = pictures  # its functions have no types
            left, _, disparity = library.stereo_motorcycle()
        except Exception as error:  # older versions download; offline they raise their own types
            raise DataError(
                f'motorcycle: scikit-image cannot deliver its pictures: {error}; scikit-image '
                '0.26 has them in the wheel'
            ) from error
        known = np.isfinite(disparity)
        depth = np.full(disparity.shape, np.nan, np.float32)
        depth[known] = self.baseline_m * self.focal_px / (disparity[known] + self.doffs_px)
        rgb: NDArray[np.uint8] = np.ascontiguousarray(left[..., :3], np.uint8)
        camera = Camera(
            (rgb.shape[0], rgb.shape[1]), self.focal_px, self.focal_px, self.cx_px, self.cy_px
        )
        return Sample(self.name, rgb, depth, camera)


@dataclass
class _AloeFrame(_Frame):
    """Middlebury 2006 Aloe as in OpenCV's samples: disparity without calibration."""

    name: str
    folder: Path

    def read(self) -> Sample:
        rgb = read_rgb(self.folder / 'aloeL.jpg')
        path = self.folder / 'aloeGT.png'
        data = _read_bytes(path)
        raw = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
        if raw is None or raw.ndim != 2 or raw.dtype != np.uint8:
            raise DataError(f'{path}: expected an 8-bit one-channel disparity PNG')
        disparity = np.asarray(raw, np.float32)
        known = disparity > 0
        if not known.any():
            raise DataError(f'{path}: no pixel of known disparity')
        depth = np.full(disparity.shape, np.nan, np.float32)
        depth[known] = np.median(disparity[known]) / disparity[known]  # unitless, median 1
        _same_aspect(rgb, depth, path)
        return Sample(self.name, rgb, depth, None, metric=False)


def folder_reader(
    folder: Path,
    *,
    intrinsics: tuple[float, float, float, float] | None = None,
    size_hw: tuple[int, int] | None = None,
    kind: str = 'folder',
    name: str | None = None,
    note: str = '',
) -> Reader:
    """Frames `X.jpg|jpeg|png` with `X_depth_mm.png`, `X.npy` or `X_depth.npy` in one folder.

    Args:
        folder: where the files are.
        intrinsics: fx, fy, cx, cy of every picture, pixels; None when not known.
        size_hw: the size the intrinsics belong to; None = each picture's own.
        kind: reader kind for the report.
        name: data set name; the folder's name when None.
        note: about the truth, for the report.

    Returns:
        The reader; a picture without depth is skipped and named when reached.

    Raises:
        DataError: not a folder, or no picture in it.
    """
    pictures = [
        path
        for path in sorted(_listing(folder))
        if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.endswith(DEPTH_SUFFIX)
    ]
    frames: list[_Frame] = []
    for picture in pictures:
        candidates = (
            picture.with_name(picture.stem + DEPTH_SUFFIX),
            picture.with_suffix('.npy'),
            picture.with_name(picture.stem + '_depth.npy'),
        )
        depth = next((path for path in candidates if path.is_file()), None)
        frames.append(_PairFrame(picture.stem, picture, depth, intrinsics, size_hw))
    if not frames:
        raise DataError(
            f'{folder}: no picture ({", ".join(PICTURE_SUFFIXES)}) in it; expected pairs such as '
            f'a.jpg + a{DEPTH_SUFFIX}'
        )
    if not note:
        note = 'depth as stored; K given' if intrinsics else 'depth as stored; K not given'
    return Reader(name or folder.resolve().name, kind, note, frames)


def osd_reader(folder: Path) -> Reader:
    """Kinect table tops 640x480, floor and walls unknown.

    Object Segmentation Database, Richtsfeld et al. 2012.

    Raises:
        DataError: no picture in the folder.
    """
    return folder_reader(
        folder,
        intrinsics=(OSD_FOCAL_PX, OSD_FOCAL_PX, OSD_CX, OSD_CY),
        size_hw=(480, 640),
        kind='osd',
        name='osd',
        note='real Kinect frames of table tops, floor and walls unknown',
    )


def rendered_reader(path: Path) -> Reader:
    """Frames of the synthesis module: a root (its test split), a split, or a scene.

    Args:
        path: `<root>`, `<root>/<split>` or `<root>/<split>/<scene>`.

    Returns:
        The reader.

    Raises:
        DataError: no `*.depth.png` below the folder.
    """
    _listing(path)
    folder = path
    is_root = any((path / split).is_dir() for split in SPLITS)
    if is_root:
        folder = path / 'test'
        if not folder.is_dir():
            raise DataError(
                f'{path}: a rendered root without a test split; name the split to measure: '
                f'rendered:{path}/val'
            )
    stems = sorted(
        found.with_name(found.name[: -len('.depth.png')]) for found in folder.rglob('*.depth.png')
    )
    if not stems:
        raise DataError(
            f'{folder}: no *.depth.png below it; expected <scene>/<frame>.jpg, .depth.png and '
            '.json as '
            'depth-node synthesize writes them'
        )
    frames: list[_Frame] = [
        _RenderedFrame(stem.relative_to(folder).as_posix(), stem) for stem in stems
    ]
    resolved = folder.resolve()
    name = f'rendered/{resolved.name}'
    return Reader(name, 'rendered', 'rendered frames, exact depth', frames)


def motorcycle_reader() -> Reader:
    """Middlebury 2014 Motorcycle (Scharstein et al. 2014): one picture, metric, 2.2 to 4.8 m."""
    return Reader(
        'motorcycle',
        'motorcycle',
        'one real picture, metric depth from structured light',
        [_MotorcycleFrame()],
    )


def aloe_reader(folder: Path) -> Reader:
    """Middlebury 2006 Aloe from OpenCV's samples: the truth is a disparity without calibration.

    Raises:
        DataError: aloeL.jpg or aloeGT.png is missing.
    """
    missing = [name for name in ('aloeL.jpg', 'aloeGT.png') if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f'{folder}: no {" and no ".join(missing)}; Debian has them in opencv-doc, '
            'below /usr/share/doc/opencv-doc/examples/data'
        )
    return Reader(
        'aloe',
        'aloe',
        'one real picture, disparity of unknown scale and offset taken as inverse depth',
        [_AloeFrame('aloe', folder)],
        metric=False,
    )


def _listing(folder: Path) -> list[Path]:
    if not folder.is_dir():
        found = 'a file' if folder.exists() else 'nothing'
        raise DataError(f'{folder}: {found} there, expected a folder')
    return list(folder.iterdir())


KINDS: dict[str, str] = {
    'osd': 'osd:FOLDER  learnNN.jpg + learnNN_depth_mm.png, Kinect 640x480',
    'motorcycle': 'motorcycle  Middlebury picture inside scikit-image',
    'aloe': 'aloe:FOLDER  aloeL.jpg + aloeGT.png of opencv-doc, scale and shift unknown',
    'rendered': 'rendered:FOLDER  frames of depth-node synthesize (root, split or scene)',
    'folder': 'folder:FOLDER  X.jpg|png + X_depth_mm.png or X.npy, K by --k',
}


def open_reader(
    spec: str, *, intrinsics: tuple[float, float, float, float] | None = None
) -> Reader:
    """Open a data set from its command-line name.

    Args:
        spec: `KIND` or `KIND:PATH`, see KINDS.
        intrinsics: fx, fy, cx, cy for `folder`, pixels.

    Returns:
        The reader.

    Raises:
        DataError: unknown kind, missing or useless path.
    """
    kind, _, tail = spec.partition(':')
    if kind not in KINDS:
        raise DataError(
            f'data set {spec!r}: unknown kind {kind!r}; one of: ' + '; '.join(KINDS.values())
        )
    if kind == 'motorcycle':
        if tail:
            raise DataError(f'data set {spec!r}: motorcycle takes no path')
        return motorcycle_reader()
    if not tail:
        raise DataError(
            f'data set {spec!r}: the folder is missing; write {KINDS[kind].split("  ")[0]}'
        )
    path = Path(tail).expanduser()
    if kind == 'osd':
        return osd_reader(path)
    if kind == 'aloe':
        return aloe_reader(path)
    if kind == 'rendered':
        return rendered_reader(path)
    return folder_reader(path, intrinsics=intrinsics)
