"""KITTI raw recordings, with annotated depth pictures or projected velodyne points as the truth.

Layout of the pictures: <root>/<date>/<drive>/image_02/data/<frame>.png (.jpg too; image_03 is the
right eye), velodyne_points/data/<frame>.bin, and <root>/<date>/calib_cam_to_cam.txt,
calib_velo_to_cam.txt; oxts/data/<frame>.txt and calib_imu_to_velo.txt where poses are asked for.
Layout of the annotated depth:
<depth_root>/train|val/<drive>/proj_depth/groundtruth/image_02/<frame>.png, uint16, metres times
256, 0 = unknown (depth-systems, section 3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
import re

from depth_node.camera import Camera, CameraError
from depth_node.training.datasets.base import (
    SPLITS,
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

TRUTHS = ('annotated', 'velodyne')
VIEWS = ('previous', 'next', 'right')
KB_SIZE_HW = (352, 1216)
_DEPTH_PNG_PER_M = 256.0
_EARTH_RADIUS_M = 6378137.0  # WGS 84, at the equator
_EYES = {'l': 'image_02', 'r': 'image_03'}
# "<date>/<drive> 69 l"; drives are named after their date.
_EIGEN_LINE = re.compile(r'(?:\S*/)?(\d{4}_\d\d_\d\d)(_drive_\d{4}\w*)\s+(\d+)\s+([lr])$')
# ".../<drive>/image_02/data/0000000069.png", a depth or right picture may follow.
_PATH_LINE = re.compile(
    r'(?:\S*/)?(\d{4}_\d\d_\d\d)(_drive_\d{4}\w*)/image_0([23])/data/(\d+)\.\w+(?:\s.*)?$'
)
# "<drive>_02 0000000069", of prepared triplets.
_TRIPLET_LINE = re.compile(r'(?:\S*/)?(\d{4}_\d\d_\d\d)(_drive_\d{4}\w*)_0([23])\s+(\d+)$')


@dataclass(frozen=True)
class Calibration:
    """What two calibration files of a date say.

    Attributes:
        size_hw: size of the rectified pictures, by eye ('l', 'r').
        projection: (3, 4) P_rect of an eye: rectified frame of camera 0 [m] to pixels.
        rect_from_velo: (4, 4) velodyne's frame to the rectified frame of camera 0 [m].
        velo_from_imu: (4, 4) inertial unit's frame to the velodyne's [m].
    """

    size_hw: dict[str, tuple[int, int]]
    projection: dict[str, NDArray[np.float64]]
    rect_from_velo: NDArray[np.float64] | None = None
    velo_from_imu: NDArray[np.float64] | None = None

    def camera(self, eye: str) -> Camera:
        """Return the intrinsics of an eye's rectified pictures."""
        P = self.projection[eye]
        return Camera(self.size_hw[eye], *(float(v) for v in (P[0, 0], P[1, 1], P[0, 2], P[1, 2])))

    def eye_from_rect(self, eye: str) -> NDArray[np.float64]:
        """Return the (4, 4) motion of points from camera 0's rectified frame into an eye's.

        P_rect = K [I | t], so t = K^-1 P[:, 3].
        """
        P = self.projection[eye]
        motion = np.eye(4)
        motion[:3, 3] = np.linalg.solve(P[:, :3], P[:, 3])
        return motion

    def right_from_left(self) -> NDArray[np.float64]:
        """Return the (4, 4) motion of points from the left eye's frame into the right eye's."""
        return self.eye_from_rect('r') @ np.linalg.inv(self.eye_from_rect('l'))

    def eye_from_imu(self, eye: str) -> NDArray[np.float64]:
        """Return the (4, 4) motion of points from the inertial unit's frame into an eye's."""
        assert self.rect_from_velo is not None
        assert self.velo_from_imu is not None
        return self.eye_from_rect(eye) @ self.rect_from_velo @ self.velo_from_imu


@dataclass(frozen=True)
class _Item:
    drive: Path
    frame: int
    eye: str
    truth: Path  # PNG of depth, or the velodyne's scan

    @property
    def name(self) -> str:
        return f'{self.drive.name} {self.frame:010d} {self.eye}'


class Kitti(DepthDataset):
    """Frames of KITTI raw drives.

    A list's frame without truth (45 of the 697 of the Eigen test split have no annotated depth)
    or without a neighbour that `views` asks for is left out and counted in `skipped`.

    Attributes:
        skipped: reason -> frames of the list that were left out.
    """

    kind = 'kitti'

    def __init__(
        self,
        root: Path,
        split: str,
        *,
        truth: str = 'annotated',
        depth_root: str | None = None,
        velodyne_depth: str = 'z',
        split_file: str | None = None,
        drives: Mapping[str, Sequence[str]] | None = None,
        views: Sequence[str] = (),
        step: int = 1,
        poses: str = 'none',
        crop: str = 'none',
    ) -> None:
        """Index a split.

        Args:
            root: the folder of the dates.
            split: train, val or test.
            truth: `annotated` depth pictures, or the frame's `velodyne` scan projected.
            depth_root: folder of the annotated depth; None = `root`.
            velodyne_depth: what a projected point's depth is: `z` of the camera, or `x`, forward
                of the velodyne (0.27 m behind the camera), as some published numbers use.
            split_file: a list of frames; `{split}` in it stands for the split. Lines are
                `date/drive frame l|r`, or begin with the picture's path, or `drive_02 frame`.
            drives: patterns of drive names for each split, instead of a list. Neither: the train
                and val folders of the annotated depth.
            views: which of `previous`, `next` and `right` come with each frame. With `right` a
                frame is always the left picture, whichever eye its list names.
            step: frames from a picture to its previous and next.
            poses: `none`: `view_from_frame` of previous and next is None; `oxts`: from the
                satellite and inertial record.
            crop: `none`, or `kb`: the bottom 352 rows and middle 1216 columns, for dense
                supervised training; K moves along.

        Raises:
            DatasetError: an option, the calibration, or no frame at all.
        """
        check_split(split)
        super().__init__(root, split)
        for option, value, known in (
            ('truth', truth, TRUTHS),
            ('velodyne_depth', velodyne_depth, ('z', 'x')),
            ('poses', poses, ('none', 'oxts')),
            ('crop', crop, ('none', 'kb')),
            *(('views', view, VIEWS) for view in views),
        ):
            if value not in known:
                raise DatasetError(f'{option} {value!r}: expected one of {", ".join(known)}')
        if step < 1:
            raise DatasetError(f'step {step}: expected 1 or more frames')
        if not self.root.is_dir():
            raise DatasetError(f'{root}: no such folder; expected the folder of the KITTI dates')
        self._truth, self._crop, self._step, self._poses = truth, crop, step, poses
        self._velodyne_depth, self._views = velodyne_depth, tuple(views)
        self._depth_root = Path(depth_root) if depth_root else self.root
        self.skipped: Counter[str] = Counter()
        if split_file is not None:
            wanted = read_list(Path(split_file.replace('{split}', split)))
        else:
            wanted = self._from_folders(drives)
        if 'right' in self._views:
            wanted = list(dict.fromkeys((*entry[:3], 'l') for entry in wanted))
        self._calibrations: dict[str, Calibration] = {}
        self._items = [item for entry in wanted if (item := self._item(*entry)) is not None]
        if not self._items:
            raise DatasetError(
                f'{root}: none of {len(wanted)} listed frames can be used: '
                + ', '.join(f'{reason} ({n})' for reason, n in self.skipped.items())
            )
        self.note = f'KITTI raw, {truth} depth' + (f' ({velodyne_depth})' * (truth == 'velodyne'))
        if self.skipped:
            self.note += '; left out: ' + ', '.join(f'{n} {r}' for r, n in self.skipped.items())

    def _from_folders(
        self, drives: Mapping[str, Sequence[str]] | None
    ) -> list[tuple[str, str, int, str]]:
        """List the frames of the drives of this split."""
        if drives is None:
            if self._truth != 'annotated' or self.split == 'test':
                raise AbsentSplitError(
                    f'{self.root}: split {self.split} with {self._truth} depth needs split_file '
                    'or drives; only annotated depth comes in folders train and val'
                )
            folder = self._depth_root / self.split
            pictures = sorted(folder.glob(f'*/{_ANNOTATED.format(eye=_EYES["l"])}/*.png'))
            if not pictures:
                raise AbsentSplitError(
                    f'{folder}: no <drive>/{_ANNOTATED.format(eye=_EYES["l"])}/*.png; unpack the '
                    'annotated depth there, or name its folder by depth_root'
                )
            return [(p.parents[3].name[:10], p.parents[3].name, _number(p), 'l') for p in pictures]
        unknown = sorted(set(drives) - set(SPLITS))
        patterns = drives.get(self.split, ())
        if unknown or not patterns:
            raise DatasetError(
                f'drives: {f"unknown split {unknown[0]!r}" if unknown else "none"} for the split '
                f'{self.split}; expected lists of drive names under {", ".join(SPLITS)}'
            )
        found = []
        for drive in sorted(self.root.glob('*/*_drive_*')):
            if any(fnmatch(drive.name, pattern) for pattern in patterns):
                pictures = sorted(drive.glob(f'{_EYES["l"]}/data/*.[pj][np]g'))
                found += [(drive.parent.name, drive.name, _number(p), 'l') for p in pictures]
        if not found:
            raise DatasetError(f'{self.root}: no picture in a drive named {" or ".join(patterns)}')
        return found

    def _item(self, date: str, drive: str, frame: int, eye: str) -> _Item | None:
        """Check what a frame needs; None, and counted, where its truth or a view is missing."""
        folder = self.root / date / drive
        if date not in self._calibrations:
            self._calibrations[date] = read_calibration(
                self.root / date,
                velodyne=self._truth == 'velodyne' or self._poses == 'oxts',
                imu=self._poses == 'oxts',
            )
        _picture(folder, eye, frame)
        truth = self._truth_path(folder, frame, eye)
        if truth is None:
            self.skipped[f'without {self._truth} depth'] += 1
            return None
        try:
            for view in self._views:
                _picture(folder, *self._view_of(view, frame, eye))
        except DatasetError:
            self.skipped[f'without the {view} picture'] += 1
            return None
        if self._poses == 'oxts':
            frames = {self._view_of(view, frame, eye)[1] for view in self._views} | {frame}
            if not all(_oxts(folder, number).is_file() for number in frames):
                self.skipped['without oxts'] += 1
                return None
        return _Item(folder, frame, eye, truth)

    def _view_of(self, view: str, frame: int, eye: str) -> tuple[str, int]:
        if view == 'right':
            return 'r', frame
        return eye, frame + (self._step if view == 'next' else -self._step)

    def _truth_path(self, folder: Path, frame: int, eye: str) -> Path | None:
        if self._truth == 'velodyne':
            candidates = [folder / 'velodyne_points' / 'data' / f'{frame:010d}.bin']
        else:
            inner = f'{folder.name}/{_ANNOTATED.format(eye=_EYES[eye])}/{frame:010d}.png'
            candidates = [self._depth_root / part / inner for part in ('train', 'val', '.')]
        return next((path for path in candidates if path.is_file()), None)

    def __len__(self) -> int:
        """Count the frames."""
        return len(self._items)

    def name(self, index: int) -> str:
        """Name a frame: drive, number, eye."""
        return self._items[index].name

    def files(self, index: int) -> tuple[Path, ...]:
        """List picture, truth and the pictures of the views."""
        item = self._items[index]
        views = [self._view_of(view, item.frame, item.eye) for view in self._views]
        frames = dict.fromkeys((item.frame, *(frame for _, frame in views)))
        return (
            _picture(item.drive, item.eye, item.frame),
            item.truth,
            *(_picture(item.drive, *view) for view in views),
            *(_oxts(item.drive, frame) for frame in frames if self._poses == 'oxts'),
        )

    def read(self, index: int) -> Frame:
        """Read a frame with its views."""
        item = self._items[index]
        calibration = self._calibrations[item.drive.parent.name]
        rgb, camera = self._read_picture(item.drive, item.eye, item.frame, calibration)
        depth = self._read_depth(item.truth, item.eye, calibration, rgb.shape[:2])
        views = []
        for kind in self._views:
            eye, frame = self._view_of(kind, item.frame, item.eye)
            view_rgb, view_camera = self._read_picture(item.drive, eye, frame, calibration)
            if view_rgb.shape != rgb.shape:
                raise DatasetError(
                    f'{_picture(item.drive, eye, frame)}: size {view_rgb.shape[:2]}, the picture '
                    f'of the frame has {rgb.shape[:2]}'
                )
            motion, view_depth = None, None
            if kind == 'right':
                motion = calibration.right_from_left()
                path = self._truth_path(item.drive, frame, eye)
                if path is not None:
                    view_depth = self._read_depth(path, eye, calibration, rgb.shape[:2])
            elif self._poses == 'oxts':
                eye_from_imu = calibration.eye_from_imu(eye)
                imu_from_imu = relative_pose(
                    read_oxts(_oxts(item.drive, item.frame)), read_oxts(_oxts(item.drive, frame))
                )
                motion = eye_from_imu @ imu_from_imu @ np.linalg.inv(eye_from_imu)
            views.append(
                View(
                    rgb=self._cut(view_rgb),
                    camera=self._cut_camera(view_camera),
                    view_from_frame=motion,
                    depth=None if view_depth is None else self._cut(view_depth),
                    kind=kind,
                )
            )
        return Frame(
            rgb=self._cut(rgb),
            depth=self._cut(depth),
            camera=self._cut_camera(camera),
            views=tuple(views),
        )

    def _read_picture(
        self, drive: Path, eye: str, frame: int, calibration: Calibration
    ) -> tuple[NDArray[np.uint8], Camera]:
        path = _picture(drive, eye, frame)
        rgb, camera = read_rgb(path), calibration.camera(eye)
        if rgb.shape[:2] != camera.size_hw:
            raise DatasetError(
                f'{path}: size {rgb.shape[:2]}, but calib_cam_to_cam.txt of {drive.parent.name} '
                f'is for {camera.size_hw}; use the "synced+rectified" pictures, not resized ones'
            )
        if self._crop == 'kb' and min(np.subtract(rgb.shape[:2], KB_SIZE_HW)) < 0:
            raise DatasetError(
                f'{path}: size {rgb.shape[:2]} is smaller than the KB crop {KB_SIZE_HW}; '
                'use crop none'
            )
        return rgb, camera

    def _read_depth(
        self, path: Path, eye: str, calibration: Calibration, size_hw: tuple[int, ...]
    ) -> NDArray[np.float32]:
        hw = size_hw[0], size_hw[1]
        if self._truth == 'annotated':
            depth = read_png(path).astype(np.float32) / np.float32(_DEPTH_PNG_PER_M)
            return clean_depth(depth, path, hw)
        assert calibration.rect_from_velo is not None
        depth = project_velodyne(
            read_scan(path),
            calibration.projection[eye],
            calibration.rect_from_velo,
            hw,
            depth=self._velodyne_depth,
        )
        return clean_depth(depth, path, hw)

    def _corner(self, size_hw: tuple[int, ...]) -> tuple[int, int]:
        return size_hw[0] - KB_SIZE_HW[0], (size_hw[1] - KB_SIZE_HW[1]) // 2

    def _cut(self, image: NDArray[np.generic]) -> NDArray:
        if self._crop == 'none':
            return image
        top, left = self._corner(image.shape)
        return np.ascontiguousarray(image[top:, left : left + KB_SIZE_HW[1]])

    def _cut_camera(self, camera: Camera) -> Camera:
        if self._crop == 'none':
            return camera
        top, left = self._corner(camera.size_hw)
        return camera.cropped(left, top, KB_SIZE_HW)


_ANNOTATED = 'proj_depth/groundtruth/{eye}'


def _number(path: Path) -> int:
    if not path.stem.isdigit():
        raise DatasetError(f'{path}: expected a name of digits, the number of the frame')
    return int(path.stem)


def _picture(drive: Path, eye: str, frame: int) -> Path:
    """Find a picture.

    Raises:
        DatasetError: neither .png nor .jpg.
    """
    path = drive / _EYES[eye] / 'data' / f'{frame:010d}.png'
    if path.is_file():
        return path
    other = path.with_suffix('.jpg')
    if other.is_file():
        return other
    raise DatasetError(f'{path}: no such picture (nor .jpg); download this drive or unlist it')


def _oxts(drive: Path, frame: int) -> Path:
    return drive / 'oxts' / 'data' / f'{frame:010d}.txt'


def read_list(path: Path) -> list[tuple[str, str, int, str]]:
    """Read a list of frames as (date, drive, frame, eye).

    Raises:
        DatasetError: the file is missing, empty, or has a line of another form.
    """
    entries = []
    text = read_bytes(path).decode('utf-8', errors='replace')
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line:
            continue
        if found := _EIGEN_LINE.match(line):
            date, rest, frame, eye = found.groups()
        elif found := _PATH_LINE.match(line):
            date, rest, camera, frame = found.groups()
            eye = 'lr'[camera == '3']
        elif found := _TRIPLET_LINE.match(line):
            date, rest, camera, frame = found.groups()
            eye = 'lr'[camera == '3']
        else:
            raise DatasetError(
                f'{path}, line {number}: {line[:120]!r}; expected "date/drive frame l|r", '
                'the path of a picture, or "drive_02 frame"'
            )
        entries.append((date, date + rest, int(frame), eye))
    if not entries:
        raise DatasetError(f'{path}: no frame in this list')
    return entries


def read_calibration(folder: Path, *, velodyne: bool, imu: bool = False) -> Calibration:
    """Read the calibration of a date.

    Args:
        folder: the date's.
        velodyne: read calib_velo_to_cam.txt as well.
        imu: read calib_imu_to_velo.txt as well.

    Raises:
        DatasetError: a file or an entry is missing or not numbers; names both.
    """
    path = folder / 'calib_cam_to_cam.txt'
    values = _read_calibration_file(path)
    size_hw, projection = {}, {}
    for eye, number in (('l', '02'), ('r', '03')):
        width, height = _entry(values, path, f'S_rect_{number}', 2)
        size_hw[eye] = (int(height), int(width))
        projection[eye] = _entry(values, path, f'P_rect_{number}', 12).reshape(3, 4)
    rect_from_velo = velo_from_imu = None
    if velodyne:
        rectify = np.eye(4)
        rectify[:3, :3] = _entry(values, path, 'R_rect_00', 9).reshape(3, 3)
        rect_from_velo = rectify @ _read_motion(folder / 'calib_velo_to_cam.txt')
    if imu:
        velo_from_imu = _read_motion(folder / 'calib_imu_to_velo.txt')
    calibration = Calibration(size_hw, projection, rect_from_velo, velo_from_imu)
    try:
        for eye in size_hw:
            calibration.camera(eye)
    except CameraError as error:
        raise DatasetError(f'{path}: {error}') from error
    return calibration


def _read_motion(path: Path) -> NDArray[np.float64]:
    values = _read_calibration_file(path)
    motion = np.eye(4)
    motion[:3, :3] = _entry(values, path, 'R', 9).reshape(3, 3)
    motion[:3, 3] = _entry(values, path, 'T', 3)
    return motion


def _read_calibration_file(path: Path) -> dict[str, str]:
    text = read_bytes(path).decode('utf-8', errors='replace')
    pairs = (line.split(':', 1) for line in text.splitlines() if ':' in line)
    return {key.strip(): value for key, value in pairs}


def _entry(values: Mapping[str, str], path: Path, key: str, count: int) -> NDArray[np.float64]:
    if key not in values:
        raise DatasetError(f'{path}: no entry {key!r}; use the calibration of the raw data')
    try:
        numbers = np.array([float(word) for word in values[key].split()])
    except ValueError:
        numbers = np.full(0, np.nan)
    if numbers.size != count or not np.isfinite(numbers).all():
        raise DatasetError(
            f'{path}: {key}: {values[key].strip()[:80]!r}, expected {count} finite numbers'
        )
    return numbers


def read_scan(path: Path) -> NDArray[np.float32]:
    """Read a velodyne scan as (N, 3) x forward, y left, z up [m].

    Raises:
        DatasetError: missing, or not whole points of four floats.
    """
    data = read_bytes(path)
    if not data or len(data) % 16:
        raise DatasetError(
            f'{path}: {len(data)} bytes, expected points of 16 bytes; the file is cut off'
        )
    return np.frombuffer(data, '<f4').reshape(-1, 4)[:, :3].astype(np.float32)


def project_velodyne(
    points: NDArray[np.floating],
    projection: NDArray[np.float64],
    rect_from_velo: NDArray[np.float64],
    size_hw: tuple[int, int],
    *,
    depth: str = 'z',
) -> NDArray[np.float32]:
    """Make a sparse depth image of a scan, as KITTI's depth evaluation does.

    The pixel is the rounded projection minus one, a convention of the evaluation's first program
    that all published numbers keep. Points behind the scanner's x = 0 plane or the camera are
    dropped; of several points in a pixel the nearest stays.

    Args:
        points: (N, 3) of the velodyne [m].
        projection: (3, 4) P_rect.
        rect_from_velo: (4, 4), R_rect_00 and the velodyne's pose.
        size_hw: of the picture.
        depth: `z` of the camera or `x` of the velodyne.

    Returns:
        (H, W) metres, 0 = unknown.
    """
    points = points[np.isfinite(points).all(axis=1) & (points[:, 0] >= 0)].astype(np.float64)
    homogeneous = np.column_stack((points, np.ones(len(points))))
    uvw = homogeneous @ (projection @ rect_from_velo).T
    ahead = uvw[:, 2] > 0
    uvw, points = uvw[ahead], points[ahead]
    with np.errstate(over='ignore'):
        uv = np.round(uvw[:, :2] / uvw[:, 2:]) - 1
    inside = ((uv >= 0) & (uv < (size_hw[1], size_hw[0]))).all(axis=1)
    value = (uvw[:, 2] if depth == 'z' else points[:, 0])[inside]
    column, row = uv[inside].astype(np.intp).T
    far_first = np.argsort(-value, kind='stable')  # the last assignment to a pixel wins
    image = np.zeros(size_hw, np.float32)
    image[row[far_first], column[far_first]] = value[far_first]
    return image


def read_oxts(path: Path) -> NDArray[np.float64]:
    """Read latitude, longitude [deg], altitude [m], roll, pitch and yaw [rad] of a frame.

    Raises:
        DatasetError: missing, or not at least six finite numbers.
    """
    text = read_bytes(path).decode('utf-8', errors='replace')
    try:
        numbers = np.array([float(word) for word in text.split()[:6]])
    except ValueError:
        numbers = np.zeros(0)
    if numbers.size != 6 or not np.isfinite(numbers).all():
        raise DatasetError(
            f'{path}: {text[:60]!r}, expected latitude, longitude, altitude, roll, pitch, yaw'
        )
    return numbers


def relative_pose(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (4, 4) motion of points from the first record's frame into the second's [m].

    The unit's frame is x forward, y left, z up; yaw 0 looks east. East and north are counted on
    a Mercator map that is true to scale at the first record.
    """
    scale = np.cos(np.radians(first[0]))
    poses = []
    for latitude, longitude, altitude, roll, pitch, yaw in (first, second):
        pose = np.eye(4)
        (cr, cp, cy), (sr, sp, sy) = np.cos((roll, pitch, yaw)), np.sin((roll, pitch, yaw))
        about_x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
        about_y = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
        about_z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
        pose[:3, :3] = about_z @ about_y @ about_x
        north = np.log(np.tan(np.radians(90 + latitude) / 2))
        pose[:3, 3] = (
            scale * _EARTH_RADIUS_M * np.radians(longitude),
            scale * _EARTH_RADIUS_M * north,
            altitude,
        )
        poses.append(pose)
    return np.asarray(np.linalg.inv(poses[1]) @ poses[0])


def recognise(path: Path) -> str | None:
    """Say why a folder looks like KITTI raw, or None."""
    found = next(path.glob('*/calib_cam_to_cam.txt'), None) if path.is_dir() else None
    if found is None:
        return None
    count = sum(1 for drive in found.parent.glob('*_drive_*') if drive.is_dir())
    return f'KITTI raw: {found.parent.name} has calib_cam_to_cam.txt and {count} drives'
