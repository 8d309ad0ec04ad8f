"""Data sets with true depth, read one frame at a time.

Here are the sets that only measure; every data set that trains is read through an adapter of the
command line (the evaluator knows nothing of training). A frame that cannot be read is skipped,
counted and named in `skipped`; a data set without any frame is a `DataError`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import cv2
from depth_node.camera import Camera, CameraError
from depth_node.images import ImageError, depth_from_16uc1
import numpy as np
from numpy.typing import NDArray

PICTURE_SUFFIXES = ('.jpg', '.jpeg', '.png')
DEPTH_SUFFIX = '_depth_mm.png'
# The Kinect default of the data set.
OSD_HW, OSD_FOCAL_PX, OSD_CX, OSD_CY = (480, 640), 525.0, 319.5, 239.5
# A median outside of this is another unit: metres in a millimetre file read as 0.003 m,
# millimetres in a metre file as 2000 m.
PLAUSIBLE_MEDIAN_M = (0.05, 200.0)


# What the truth is known up to, and with it what can be measured:
# metric (metres), scale (depth in a unit of its own), affine (inverse depth up to scale and
# shift), pairs (no depth at all, only which of two pixels is farther).
TRUTHS = ('metric', 'scale', 'affine', 'pairs')


class DataError(ValueError):
    """A data set, or one file of it, that cannot be used; the text names the file."""


@dataclass(frozen=True)
class LabelledPairs:
    """Which of two pixels is farther, for pairs of one picture.

    Attributes:
        uv: (P, 4) u_a, v_a, u_b, v_b in pixels of the picture, whole at centres.
        relation: (P,) +1 a is farther, -1 a is nearer, 0 equal.
    """

    uv: NDArray[np.float32]
    relation: NDArray[np.int8]


@dataclass(frozen=True)
class Sample:
    """One frame with its truth.

    Attributes:
        name: unique inside the data set.
        rgb: (H, W, 3) uint8.
        true_depth: (H', W') float32, metres (unitless, median 1, where the reader's truth is not
            metric), NaN = unknown; may differ in size from `rgb` but shows the same view.
        camera: intrinsics of `rgb`, None when not known.
        normals: (H, W, 3) unit vectors in the optical frame, 0 or NaN = unknown; None where the
            data set has none.
        pairs: ordinal labels; None where the data set has none.
        scene: kind of scene (room, table, ...); empty where the data set does not say.
    """

    name: str
    rgb: NDArray[np.uint8]
    true_depth: NDArray[np.float32]
    camera: Camera | None
    normals: NDArray[np.float32] | None = None
    pairs: LabelledPairs | None = None
    scene: str = ''


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
        frames: to be read in this order.
        truth: one of TRUTHS.
        skipped: frames refused so far; reset when an iteration starts.
    """

    name: str
    kind: str
    note: str
    frames: Sequence[FrameSource]
    truth: str = 'metric'
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def metric(self) -> bool:
        """True where the truth is in metres."""
        return self.truth == 'metric'

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
            self.name, self.kind, self.note, [self.frames[i] for i in chosen], self.truth
        )


class FrameSource(Protocol):
    """One frame to be read."""

    @property
    def name(self) -> str:
        """Name it in its data set, for messages."""

    def read(self) -> Sample:
        """Read it.

        Raises:
            DataError: a file cannot be used; the text names it.
        """


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """Read a picture as (H, W, 3) uint8 RGB, as it is stored, as its truth is.

    Raises:
        DataError: missing or not a picture.
    """
    data = _read_bytes(path)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION  # of EXIF
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    if bgr is None:
        raise DataError(
            f'{path}: not a readable picture ({len(data)} bytes); replace or remove the file'
        )
    rgb: NDArray[np.uint8] = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
    return rgb


def read_depth(path: Path) -> NDArray[np.float32]:
    """Read a depth image: PNG of 16 bits, millimetres, 0 = unknown.

    Args:
        path: the file.

    Returns:
        (H, W) float32, metres, NaN = unknown.

    Raises:
        DataError: missing, broken, not a depth image, without any known pixel, or in another unit
            by its range.
    """
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
    _check_unit(path, depth)
    return depth


def _check_unit(path: Path, depth: NDArray[np.float32]) -> None:
    known = depth[np.isfinite(depth)]
    if known.size == 0:
        raise DataError(f'{path}: no pixel of known depth; remove the frame')
    median = float(np.median(known))
    low, high = PLAUSIBLE_MEDIAN_M
    if not low <= median <= high:
        raise DataError(
            f'{path}: median depth {median:.4g} m when read as uint16 millimetres, plausible is '
            f'{low} to {high:.0f} m; the file is in another unit: convert it'
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
class _OsdFrame:
    """`learnNN.jpg` with `learnNN_depth_mm.png`."""

    name: str
    picture: Path

    def read(self) -> Sample:
        depth_path = self.picture.with_name(self.picture.stem + DEPTH_SUFFIX)
        rgb = read_rgb(self.picture)
        depth = read_depth(depth_path)
        _same_aspect(rgb, depth, depth_path)
        size_hw = (rgb.shape[0], rgb.shape[1])
        if size_hw != OSD_HW:
            raise DataError(
                f'{self.picture}: {size_hw[1]}x{size_hw[0]} pixels, the intrinsics belong to '
                f'{OSD_HW[1]}x{OSD_HW[0]}'
            )
        camera = Camera(size_hw, OSD_FOCAL_PX, OSD_FOCAL_PX, OSD_CX, OSD_CY)
        return Sample(self.name, rgb, depth, camera)


class _MotorcycleFrame:
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
class _AloeFrame:
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
        return Sample(self.name, rgb, depth, None)


def osd_reader(folder: Path) -> Reader:
    """Kinect table tops 640x480, floor and walls unknown.

    Object Segmentation Database, Richtsfeld et al. 2012.

    Raises:
        DataError: no picture in the folder.
    """
    frames: list[FrameSource] = [
        _OsdFrame(path.stem, path)
        for path in sorted(_listing(folder))
        if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.endswith(DEPTH_SUFFIX)
    ]
    if not frames:
        raise DataError(
            f'{folder}: no picture ({", ".join(PICTURE_SUFFIXES)}) in it; expected pairs such as '
            f'a.jpg + a{DEPTH_SUFFIX}'
        )
    note = 'real Kinect frames of table tops, floor and walls unknown'
    return Reader('osd', 'osd', note, frames)


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
        truth='affine',
    )


def _listing(folder: Path) -> list[Path]:
    if not folder.is_dir():
        found = 'a file' if folder.exists() else 'nothing'
        raise DataError(f'{folder}: {found} there, expected a folder')
    return list(folder.iterdir())


KINDS = ('osd', 'motorcycle', 'aloe')


def open_own(kind: str, path: str) -> Reader:
    """Open one of this module's data sets.

    Args:
        kind: one of KINDS.
        path: the folder; empty for `motorcycle`.

    Returns:
        The reader.

    Raises:
        DataError: a missing or useless path.
    """
    if kind == 'motorcycle':
        if path:
            raise DataError(f'data set motorcycle:{path}: motorcycle takes no path')
        return motorcycle_reader()
    if not path:
        raise DataError(f'data set {kind!r}: the folder is missing; write {kind}:FOLDER')
    reader = {'osd': osd_reader, 'aloe': aloe_reader}[kind]
    return reader(Path(path).expanduser())
