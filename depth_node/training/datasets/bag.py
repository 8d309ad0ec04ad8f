"""RGB-D bags from a robot: rosbag2 folders or files, MCAP or sqlite3, read without ROS.

The depth camera's image must be registered to the colour camera, pixel by pixel: the `aligned` or
`registered` topic of the driver, of the colour picture's size. A bag is read through once for the
times of its messages; that index is kept in the user's cache folder ($XDG_CACHE_HOME or ~/.cache,
depth_node/bags), and frames are then read from the bag itself, no copy is made. MCAP files need
their chunk index for this, which all recordings have but those that were cut off or made with the
`fastwrite` preset.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
import hashlib
import json
import os
from pathlib import Path
import struct
import tempfile
from typing import Any

import cv2
from depth_node.camera import Camera, CameraError, Rectifier
from depth_node.images import ImageError, decode_compressed, depth_from_16uc1, to_rgb, view
from depth_node.training.datasets.base import (
    SPLITS,
    AbsentSplitError,
    DatasetError,
    DepthDataset,
    check_split,
    clean_depth,
)
from depth_node.training.frame import Frame
import numpy as np
from numpy.typing import NDArray

_IMAGE, _COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
_INFO = 'sensor_msgs/msg/CameraInfo'
_STORAGES = ('.mcap', '.db3')
_DEPTH_ENCODINGS = ('16UC1', '32FC1', '64FC1')
_INDEX_VERSION = 1
_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
# compressed_depth_image_transport: which compression, then A and B of 32FC1's quantisation
_COMPRESSED_DEPTH_HEADER = struct.Struct('<iff')
_MCAP_MAGIC = b'\x89MCAP0\r\n'


@dataclass
class _Topic:
    """What the index keeps of a topic with images or CameraInfos.

    Attributes:
        kind: message type.
        format: encoding or compressed format of the first message.
        frame_id: of the first message.
        times: (log time in the bag, acquisition) of every message [ns].
        infos: different calibrations, as arguments of `Camera.from_calibration`.
        which: for each message its calibration in `infos`.
    """

    kind: str
    format: str = ''
    frame_id: str = ''
    times: list[tuple[int, int]] = field(default_factory=list)
    infos: list[dict[str, Any]] = field(default_factory=list)
    which: list[int] = field(default_factory=list)

    def stamps(self) -> NDArray[np.int64]:
        """Return acquisition times; the bag's where a driver leaves them out."""
        return np.array([stamp or log for log, stamp in self.times], np.int64)


@dataclass(frozen=True)
class _Item:
    """A colour picture with the depth of its moment, as positions in their topics."""

    bag: int
    image: int
    depth: int
    stamp_ns: int


class Bag(DepthDataset):
    """Frames of one or several RGB-D bags.

    Each bag is split by time: training first, then validation, the test last, with a gap between
    them, because pictures a blink apart are the same picture.
    """

    kind = 'bag'

    def __init__(
        self,
        root: Path,
        split: str,
        *,
        image_topic: str | None = None,
        depth_topic: str | None = None,
        camera_info_topic: str | None = None,
        camera_yaml: str | None = None,
        max_gap_s: float = 0.02,
        shares: Sequence[float] = (0.8, 0.1, 0.1),
        split_gap_s: float = 1.0,
        rectify: str = 'auto',
        depth_is_rectified: bool = False,
        same_frame_id: bool = True,
        max_depth_m: float | None = None,
    ) -> None:
        """Index a split.

        Args:
            root: a bag's folder, a .mcap or .db3 file, or a folder of such.
            split: train, val or test.
            image_topic: colour pictures, raw or compressed; None = the only one there is.
            depth_topic: their depth, 16UC1, 32FC1 or compressedDepth; None = the only one.
            camera_info_topic: None = `camera_info` beside the image topic, else the only one.
            camera_yaml: a camera_calibration file, instead of CameraInfo.
            max_gap_s: largest difference of the stamps of picture and depth.
            shares: of the bag's time for train, val and test.
            split_gap_s: left out before each change of the split.
            rectify: `auto`: undistort unless the topic's name begins with image_rect; or `on`,
                `off`.
            depth_is_rectified: the depth belongs to the undistorted picture already, as
                depth_image_proc's register makes it; otherwise it is undistorted along.
            same_frame_id: refuse depth in another frame than the picture's, because that is how
                unregistered depth looks.
            max_depth_m: deeper values are unknown; None = no limit.

        Raises:
            DatasetError: no bag, a damaged bag, no clear choice of topics, or no frame.
        """
        check_split(split)
        super().__init__(root, split)
        if rectify not in ('auto', 'on', 'off'):
            raise DatasetError(f'rectify {rectify!r}: expected one of auto, on, off')
        if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise DatasetError(
                f'shares {list(shares)}: expected three numbers for {", ".join(SPLITS)} that add '
                'up to 1'
            )
        self._rectify, self._depth_is_rectified = rectify, depth_is_rectified
        self._far = np.inf if max_depth_m is None else max_depth_m
        self._bags: list[OpenBag] = []
        self._topics: list[tuple[str, str, str | None]] = []  # image, depth, info of a bag
        self._items: list[_Item] = []
        self._calibration = _read_yaml(camera_yaml) if camera_yaml else None
        unpaired = 0
        for number, path in enumerate(find_bags(self.root)):
            bag = OpenBag(path)
            image = bag.choose(image_topic, 'image_topic', depth=False)
            depth = bag.choose(depth_topic, 'depth_topic', depth=True)
            info = None if camera_yaml else bag.choose_info(camera_info_topic, image)
            _check_frames(path, bag.topics[image], bag.topics[depth], image, depth, same_frame_id)
            stamps = bag.topics[image].stamps()
            pairs = pair_stamps(stamps, bag.topics[depth].stamps(), int(max_gap_s * 1e9))
            if not len(pairs):
                raise DatasetError(_nothing_pairs(bag, image, depth, max_gap_s))
            unpaired += len(stamps) - len(pairs)
            keep = in_split(stamps[pairs[:, 0]], split, shares, int(split_gap_s * 1e9))
            self._items += [_Item(number, int(i), int(d), int(stamps[i])) for i, d in pairs[keep]]
            self._bags.append(bag)
            self._topics.append((image, depth, info))
        if not self._items:
            raise AbsentSplitError(
                f'{root}: no frame in split {split} with shares {list(shares)} and split_gap_s '
                f'{split_gap_s:g}; record longer, lower the gap, or give this split a share'
            )
        image, depth, _ = self._topics[0]
        self.note = f'depth of {depth} for {image}, holes where the sensor has them'
        if unpaired:
            self.note += f'; {unpaired} pictures without depth within {max_gap_s:g} s'
        self._rectifiers: dict[Camera, Rectifier] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Travel to a loader's process without what can be made again."""
        return {**self.__dict__, '_rectifiers': {}}

    def __len__(self) -> int:
        """Count the frames."""
        return len(self._items)

    def name(self, index: int) -> str:
        """Name a frame: bag and stamp."""
        item = self._items[index]
        return f'{self._bags[item.bag].path.name} {item.stamp_ns / 1e9:.6f}'

    def files(self, index: int) -> tuple[Path, ...]:
        """List the files of the frame's bag."""
        return self._bags[self._items[index].bag].files

    def read(self, index: int) -> Frame:
        """Read a frame, undistorted."""
        item = self._items[index]
        bag = self._bags[item.bag]
        image_topic, depth_topic, info_topic = self._topics[item.bag]
        where = Path(f'{bag.path}: {depth_topic} at {item.stamp_ns / 1e9:.6f}')
        try:
            rgb = decode_rgb(bag.message(image_topic, item.image))
            depth = decode_depth(bag.message(depth_topic, item.depth))
            hw = rgb.shape[0], rgb.shape[1]
            if info_topic is not None:
                camera = bag.camera(info_topic, item.stamp_ns, hw)
            else:
                assert self._calibration is not None
                camera = self._calibration
                if camera.size_hw != hw:
                    raise CameraError(
                        'size', f'camera_yaml is for {camera.size_hw}, the picture is {hw}'
                    )
        except (ImageError, CameraError) as error:
            raise DatasetError(f'{bag.path}: {self.name(index)}: {error}') from error
        if depth.shape != rgb.shape[:2]:
            raise DatasetError(
                f'{where}: depth has size {depth.shape}, the picture {rgb.shape[:2]}: it is not '
                'registered to the colour camera; record the aligned depth (RealSense: '
                'align_depth.enable, Azure Kinect: depth_to_rgb, Orbbec: depth_registration), or '
                'run depth_image_proc register on the bag'
            )
        depth = np.asarray(depth, np.float32)
        if self._wants_rectifying(image_topic, camera):
            if camera.R != _IDENTITY and not self._depth_is_rectified:
                raise DatasetError(
                    f'{bag.path}: the CameraInfo of {image_topic} turns the picture (R is not the '
                    'identity), as of a stereo pair: record depth of the rectified camera and say '
                    'depth_is_rectified'
                )
            if camera not in self._rectifiers:
                self._rectifiers[camera] = Rectifier(camera)
            rectifier = self._rectifiers[camera]
            if not self._depth_is_rectified:
                depth = rectifier.nearest(depth)
            rgb = rectifier(rgb).copy()  # the rectifier uses its buffer again
        known = clean_depth(depth, where, (rgb.shape[0], rgb.shape[1]), far=self._far)
        return Frame(rgb=np.ascontiguousarray(rgb), depth=known, camera=camera.rectified())

    def _wants_rectifying(self, image_topic: str, camera: Camera) -> bool:
        if self._rectify == 'auto':
            base = _base_topic(image_topic).rsplit('/', 1)[-1]
            return camera.is_distorted and not base.startswith('image_rect')
        return camera.is_distorted and self._rectify == 'on'


class OpenBag:
    """A bag with its index; opens the file anew in every process.

    Attributes:
        path: folder or file.
        files: the storage files.
        topics: those with images and CameraInfos.
        listing: every topic: (type, messages).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = _storage_files(path)
        self._reader: Any = None
        self._typestore: Any = None
        self._process = 0
        kept = _load_index(self)
        if kept is None:
            try:
                kept = self._index()
            finally:
                self._close()
            _save_index(self, kept)
        self.listing: dict[str, tuple[str, int]] = {k: (*v,) for k, v in kept['listing'].items()}
        self.topics = {name: _Topic(**values) for name, values in kept['topics'].items()}

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open file behind."""
        return {**self.__dict__, '_reader': None, '_typestore': None, '_process': 0}

    def _open(self) -> Any:
        from rosbags.rosbag2 import Reader
        from rosbags.typesys import Stores, get_typestore

        if self._process != os.getpid():
            self._typestore = get_typestore(Stores.ROS2_HUMBLE)
            with _reading(self.path):
                reader = Reader(self.path)
                reader.open()
            self._reader, self._process = reader, os.getpid()
        return self._reader

    def _close(self) -> None:
        if self._process == os.getpid():
            self._reader.close()
        self._reader, self._process = None, 0

    def _index(self) -> dict[str, Any]:
        """Read the times and first facts of all images, and all calibrations."""
        reader = self._open()
        listing: dict[str, tuple[str, int]] = {}
        for connection in reader.connections:
            count = listing.get(connection.topic, ('', 0))[1] + connection.msgcount
            listing[connection.topic] = connection.msgtype, count
        wanted = [c for c in reader.connections if c.msgtype in (_IMAGE, _COMPRESSED, _INFO)]
        topics: dict[str, _Topic] = {}
        seen: dict[tuple[str, bytes], int] = {}
        if wanted:
            _check_chunk_index(self.files)
        with _reading(self.path):
            for connection, log_ns, raw in reader.messages(wanted) if wanted else ():
                topic = topics.setdefault(connection.topic, _Topic(connection.msgtype))
                topic.times.append((log_ns, _stamp_ns(raw)))
                if len(topic.times) == 1:
                    first = self._typestore.deserialize_cdr(raw, connection.msgtype)
                    topic.frame_id = first.header.frame_id
                    topic.format = getattr(first, 'encoding', getattr(first, 'format', ''))
                if connection.msgtype == _INFO:
                    key = connection.topic, bytes(raw[:4]) + bytes(raw[12:])  # but for the stamp
                    if key not in seen:
                        seen[key] = len(topic.infos)
                        message = self._typestore.deserialize_cdr(raw, _INFO)
                        topic.infos.append(_plain_calibration(message))
                    topic.which.append(seen[key])
        return {'listing': listing, 'topics': {name: asdict(t) for name, t in topics.items()}}

    def message(self, topic: str, position: int) -> Any:
        """Read one message.

        Raises:
            DatasetError: the bag is damaged, or is no longer the one that was indexed.
        """
        reader = self._open()
        kept = self.topics[topic]
        log_ns, stamp_ns = kept.times[position]
        connections = [
            c for c in reader.connections if c.topic == topic and c.msgtype == kept.kind
        ]
        with _reading(self.path):
            for _, _, raw in reader.messages(connections, start=log_ns, stop=log_ns + 1):
                if _stamp_ns(raw) == stamp_ns:
                    return self._typestore.deserialize_cdr(raw, kept.kind)
        raise DatasetError(
            f'{self.path}: {topic} at {stamp_ns / 1e9:.6f}: no longer there; the bag was changed '
            'while it was in use'
        )

    def camera(self, topic: str, stamp_ns: int, size_hw: tuple[int, int]) -> Camera:
        """Return the camera of the CameraInfo next in time.

        Raises:
            CameraError: it cannot be used for a picture of this size.
        """
        kept = self.topics[topic]
        nearest = int(np.abs(kept.stamps() - stamp_ns).argmin())
        return Camera.from_calibration(**kept.infos[kept.which[nearest]], image_size_hw=size_hw)

    def choose(self, wanted: str | None, option: str, *, depth: bool) -> str:
        """Return the topic of the option, or the only one that fits."""
        images = {n: t for n, t in self.topics.items() if t.kind != _INFO and t.times}
        what = 'depth image' if depth else 'colour image'
        if wanted is not None:
            if wanted not in images:
                raise DatasetError(
                    f'{self.path}: {option} {wanted}: no image messages on it; {self.describe()}'
                )
            return wanted
        fitting = [name for name, topic in images.items() if _is_depth(name, topic) == depth]
        if len(fitting) != 1:
            raise DatasetError(
                f'{self.path}: {len(fitting)} topics with {what}s, expected one; choose by '
                f'{option}; {self.describe()}'
            )
        return fitting[0]

    def choose_info(self, wanted: str | None, image: str) -> str:
        """Return the CameraInfo topic that belongs to an image topic."""
        infos = [name for name, topic in self.topics.items() if topic.kind == _INFO]
        sibling = _base_topic(image).rsplit('/', 1)[0] + '/camera_info'
        if wanted is None and sibling in infos:
            wanted = sibling
        elif wanted is None and len(infos) == 1:
            wanted = infos[0]
        if wanted in infos:
            for info in self.topics[wanted].infos:
                try:
                    Camera.from_calibration(**info)
                except CameraError as error:
                    raise DatasetError(
                        f'{self.path}: {wanted}: {error}; or give a calibration by camera_yaml'
                    ) from error
            return wanted
        found = (
            f'camera_info_topic {wanted}: no CameraInfo on it' if wanted is not None
            else f'{len(infos)} topics with CameraInfo, none of them {sibling}; choose by '
            'camera_info_topic, or give a calibration by camera_yaml'
        )  # fmt: skip
        raise DatasetError(f'{self.path}: {found}; {self.describe()}')

    def describe(self) -> str:
        """List all topics with types and counts."""
        parts = []
        for name, (kind, count) in sorted(self.listing.items()):
            form = self.topics[name].format if name in self.topics else ''
            parts.append(f'{name} ({kind}{f", {form}" if form else ""}, {count} messages)')
        return 'the bag has ' + (', '.join(parts) or 'no topics')


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what a damaged bag leads rosbags to into an error that names it."""
    try:
        yield
    except DatasetError:
        raise
    except Exception as error:  # rosbags, sqlite and the codecs each raise their own
        raise DatasetError(
            f'{path}: not a readable bag ({type(error).__name__}: {error}); if the recording was '
            'cut off, repair it: `ros2 bag reindex FOLDER`, or `mcap recover FILE -o FILE`'
        ) from error


def find_bags(root: Path) -> list[Path]:
    """List the bags at a path: itself, or those in it.

    Raises:
        DatasetError: there is none.
    """
    if root.is_file() or (root / 'metadata.yaml').is_file():
        return [root]
    if not root.is_dir():
        raise DatasetError(f'{root}: no such file or folder; expected a bag')
    inside = sorted(root.iterdir())
    bags = [p for p in inside if (p / 'metadata.yaml').is_file() or p.suffix in _STORAGES]
    if not bags:
        raise DatasetError(
            f'{root}: no bag: neither metadata.yaml nor .mcap nor .db3 files; if the recording '
            'was cut off, run `ros2 bag reindex`'
        )
    return bags


def _storage_files(path: Path) -> tuple[Path, ...]:
    if path.is_file():
        if path.suffix not in _STORAGES:
            raise DatasetError(f'{path}: expected a .mcap or .db3 file, or a folder of them')
        return (path,)
    packed = sorted(path.glob('*.zstd'))
    if packed:
        raise DatasetError(
            f'{packed[0]}: compressed as a whole, single messages cannot be reached; unpack it by '
            '`ros2 bag convert` with compression_mode none or message'
        )
    files = tuple(p for p in sorted(path.iterdir()) if p.suffix in _STORAGES)
    if not files:
        raise DatasetError(f'{path}: metadata.yaml, but no .mcap or .db3 file beside it')
    return files


def _check_chunk_index(files: Sequence[Path]) -> None:
    """Refuse MCAP files in which every read would search through everything.

    Source: the MCAP specification, records Footer and Chunk Index.
    """
    for path in files:
        if path.suffix != '.mcap':
            continue
        with _reading(path), open(path, 'rb') as file:
            footer_at = file.seek(-37, os.SEEK_END)
            footer = file.read(37)
            if footer[-8:] != _MCAP_MAGIC or footer[0] != 0x02:
                raise ValueError('no end mark')
            (at,) = struct.unpack('<Q', footer[9:17])
            found = False
            while 0 < at < footer_at and not found:
                file.seek(at)
                code, length = struct.unpack('<BQ', file.read(9))
                found = code == 0x08
                at += 9 + length
        if not found:
            raise DatasetError(
                f'{path}: no chunk index (recorded with the fastwrite preset?), every read would '
                'search through the whole file; rewrite it by `mcap sort` or `ros2 bag convert`'
            )


def _index_file(bag: OpenBag) -> Path:
    facts = [f'{_INDEX_VERSION} {bag.path.resolve()}']
    for path in bag.files:
        state = path.stat()
        facts.append(f'{path.name} {state.st_size} {state.st_mtime_ns}')
    name = hashlib.sha256('\n'.join(facts).encode()).hexdigest()[:24]
    root = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    return Path(root).expanduser() / 'depth_node' / 'bags' / f'{name}.json'


def _load_index(bag: OpenBag) -> dict[str, Any] | None:
    """Return the kept index; None where there is none or it is not usable."""
    try:
        kept = json.loads(_index_file(bag).read_text(encoding='utf-8'))
        return kept if set(kept) == {'listing', 'topics'} else None
    except (OSError, ValueError, TypeError):
        return None


def _save_index(bag: OpenBag, index: dict[str, Any]) -> None:
    """Keep the index; a folder that cannot be written to only costs time."""
    path = _index_file(bag)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            'w', dir=path.parent, suffix='.tmp', delete=False, encoding='utf-8'
        ) as file:
            json.dump(index, file)
        os.replace(file.name, path)
    except OSError:
        return


def _stamp_ns(raw: bytes) -> int:
    """Read the header's stamp, the first two fields of a serialised message."""
    order = '<' if raw[1] & 1 else '>'
    seconds, nanoseconds = struct.unpack_from(f'{order}iI', raw, 4)
    return int(seconds) * 10**9 + int(nanoseconds)


def _plain_calibration(message: Any) -> dict[str, Any]:
    roi = message.roi
    return {
        'width': int(message.width),
        'height': int(message.height),
        'distortion_model': str(message.distortion_model),
        **{key: [float(v) for v in getattr(message, key)] for key in 'dkrp'},
        'binning_x': int(message.binning_x),
        'binning_y': int(message.binning_y),
        'roi_xywh': [int(v) for v in (roi.x_offset, roi.y_offset, roi.width, roi.height)],
    }


def _read_yaml(path: str) -> Camera:
    try:
        return Camera.from_yaml(path)
    except CameraError as error:
        raise DatasetError(f'camera_yaml {error}') from error


def _base_topic(topic: str) -> str:
    """Return the topic without the part that names its transport."""
    head, _, tail = topic.rpartition('/')
    return head if tail in ('compressed', 'compressedDepth') else topic


def _is_depth(name: str, topic: _Topic) -> bool:
    if topic.kind == _COMPRESSED:
        source = topic.format.partition(';')[0].strip()
        return 'compressedDepth' in topic.format or source in _DEPTH_ENCODINGS
    return topic.format in _DEPTH_ENCODINGS or (topic.format == 'mono16' and 'depth' in name)


def _check_frames(
    path: Path, image: _Topic, depth: _Topic, image_name: str, depth_name: str, strict: bool
) -> None:
    if strict and image.frame_id != depth.frame_id:
        raise DatasetError(
            f'{path}: {depth_name} is in frame {depth.frame_id!r}, {image_name} in '
            f'{image.frame_id!r}: depth must be registered to the colour camera; choose the '
            'aligned depth by depth_topic, or say same_frame_id: false if it is registered and '
            'only its driver names another frame'
        )


def pair_stamps(
    first: NDArray[np.int64], second: NDArray[np.int64], max_gap_ns: int
) -> NDArray[np.intp]:
    """Pair times that are each other's nearest, in the order of the first.

    Args:
        first: (N,) ns, in any order.
        second: (M,) ns, in any order.
        max_gap_ns: largest difference of a pair.

    Returns:
        (P, 2) positions in `first` and `second`.
    """
    if not len(first) or not len(second):
        return np.empty((0, 2), np.intp)
    order = np.argsort(first, kind='stable')
    there = _nearest(first[order], second)
    back = _nearest(second, first[order])
    mutual = back[there] == np.arange(len(first))
    close = np.abs(second[there] - first[order]) <= max_gap_ns
    return np.column_stack((order, there))[mutual & close]


def _nearest(times: NDArray[np.int64], among: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return for each time the position of the nearest one; the earliest of equals."""
    order = np.argsort(among, kind='stable')
    ordered = among[order]
    after = np.searchsorted(ordered, times, side='left').clip(0, len(among) - 1)
    before = (after - 1).clip(0)
    earlier = np.abs(times - ordered[before]) <= np.abs(ordered[after] - times)
    chosen = np.where(earlier, before, after)
    # of equal times the first
    return order[np.searchsorted(ordered, ordered[chosen], side='left')]


def in_split(
    stamps: NDArray[np.int64], split: str, shares: Sequence[float], gap_ns: int
) -> NDArray[np.bool_]:
    """Say which times belong to a split: the bag's time cut by `shares`, in their order.

    Args:
        stamps: (N,) ns.
        split: train, val or test.
        shares: of the time between first and last.
        gap_ns: left out at the end of a split that another one follows.
    """
    begin, span = stamps.min(), float(stamps.max() - stamps.min())
    number = SPLITS.index(split)
    seconds = stamps - begin
    start, end = sum(shares[:number]) * span, sum(shares[: number + 1]) * span
    if shares[number] <= 0:
        return np.zeros(len(stamps), bool)
    if sum(shares[number + 1 :]) <= 1e-9:  # the last one goes to the very end
        return np.asarray(seconds >= start)
    return np.asarray((seconds >= start) & (seconds < end - gap_ns))


def _nothing_pairs(bag: OpenBag, image: str, depth: str, max_gap_s: float) -> str:
    first, second = bag.topics[image].stamps(), bag.topics[depth].stamps()
    gap = np.abs(second[_nearest(first, second)] - first).min() / 1e9
    return (
        f'{bag.path}: no stamp of {depth} is within max_gap_s {max_gap_s:g} s of one of {image}; '
        f'the smallest difference is {gap:.4g} s; raise max_gap_s if the camera stands still, or '
        'record both from one driver'
    )


def decode_rgb(message: Any) -> NDArray[np.uint8]:
    """Return the (H, W, 3) picture of an Image or CompressedImage."""
    if not hasattr(message, 'encoding'):
        return decode_compressed(message.data, message.format)
    return to_rgb(
        message.data,
        height=message.height,
        width=message.width,
        encoding=message.encoding,
        step=message.step,
        is_bigendian=bool(message.is_bigendian),
    )


def decode_depth(message: Any) -> NDArray[np.floating]:
    """Return the (H, W) metres of a depth Image or CompressedImage; NaN or 0 = unknown.

    Raises:
        ImageError: not depth, or damaged.
    """
    if not hasattr(message, 'encoding'):
        return _decode_compressed_depth(bytes(message.data), message.format)
    if message.encoding not in (*_DEPTH_ENCODINGS, 'mono16'):
        raise ImageError(
            'unknown_encoding',
            f'depth_topic with encoding {message.encoding!r}: expected 16UC1 (millimetres) or '
            '32FC1 (metres)',
        )
    image = view(
        message.data,
        height=message.height,
        width=message.width,
        encoding=message.encoding,
        step=message.step,
        is_bigendian=bool(message.is_bigendian),
    )
    if message.encoding in ('16UC1', 'mono16'):
        return depth_from_16uc1(image)
    return image.astype(np.float32)


def _decode_compressed_depth(data: bytes, format: str) -> NDArray[np.floating]:
    """Read compressedDepth, or 16UC1 sent as a PNG by the plain compressed transport.

    Source: compressed_depth_image_transport; 32FC1 travels as v = A / Z + B.
    """
    source = format.partition(';')[0].strip()
    if source not in ('16UC1', '32FC1') or 'rvl' in format.lower():
        raise ImageError(
            'unknown_format',
            f'depth_topic with format {format!r}: expected 16UC1 or 32FC1 as a PNG; record the '
            'raw depth topic',
        )
    scale, shift = 0.0, 0.0
    if 'compressedDepth' in format:
        if len(data) <= _COMPRESSED_DEPTH_HEADER.size:
            raise ImageError('short_data', f'compressed depth of {len(data)} bytes')
        _, scale, shift = _COMPRESSED_DEPTH_HEADER.unpack_from(data)
        data = data[_COMPRESSED_DEPTH_HEADER.size :]
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if values is None or values.dtype != np.uint16 or values.ndim != 2:
        raise ImageError(
            'corrupt_png', f'depth in format {format!r}: {len(data)} bytes are no 16-bit PNG'
        )
    if source == '16UC1':
        return depth_from_16uc1(np.asarray(values, np.uint16))
    with np.errstate(divide='ignore', invalid='ignore'):
        return np.where(values > 0, scale / (values.astype(np.float32) - shift), np.nan)


def recognise(path: Path) -> str | None:
    """Say why a path looks like a bag, or None."""
    if path.is_file():
        return f'rosbag2: {path.name}' if path.suffix in _STORAGES else None
    if not path.is_dir():
        return None
    files = sorted(p.name for p in path.iterdir() if p.suffix in _STORAGES)
    if files:
        return f'rosbag2: {files[0]}'
    inside = sorted(p.parent.name for p in path.glob('*/metadata.yaml'))
    bags = [n for n in inside if any(p.suffix in _STORAGES for p in (path / n).iterdir())]
    if len(bags) == 1:
        return f'rosbag2 folder: {bags[0]}'
    return f'{len(bags)} rosbag2 folders: {", ".join(bags[:3])}' if bags else None
