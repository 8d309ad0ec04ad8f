"""The demo's files: pictures, a video, a cloud and a bag, from what a subscriber received."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import functools
from pathlib import Path
import shutil
from typing import Any

import cv2
from depth_node.cli._demo.clip import Clip, shared_file
from depth_node.cli._demo.recording import (
    STATUS,
    TYPES,
    Recording,
    Row,
    cloud_of,
    depth_of,
    picture,
)
from depth_node.cli._writers import VideoFile, side_by_side, write_image, write_ply
from depth_node.images import colorize
import numpy as np
from numpy.typing import NDArray

PICTURES = 6
BAG_FRAMES = 30
_LEGEND_PX = 26
_TICKS_M = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.25, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 8, 12, 20, 40)
_BAG_NAME = 'bag'
_WORLD, _BODY = 'map', 'camera_link'
# From a body frame (x forward, y left, z up) to the optical one (z forward, x right), REP 103.
_BODY_FROM_OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


def spread(rows: Sequence[Row], count: int) -> list[Row]:
    """Return at most `count` rows, evenly spread, the first and the last among them."""
    if len(rows) <= count:
        return list(rows)
    return [rows[index] for index in np.linspace(0, len(rows) - 1, count).round().astype(int)]


@functools.lru_cache(maxsize=4)
def legend(width: int, near_m: float, far_m: float) -> NDArray[np.uint8]:
    """Return a strip (26, width, 3) bgr that says which colour means which depth."""
    strip: NDArray[np.uint8] = np.full((_LEGEND_PX, width, 3), 255, np.uint8)
    left, right = 8, width - 60
    # colours follow inverse depth, so even steps of colour are even steps of 1/Z
    inverse = np.linspace(1 / near_m, 1 / far_m, max(2, right - left))
    bar = colorize((1 / inverse).astype(np.float32)[None, :], near_m, far_m)
    strip[3:11, left:right] = bar
    end = -1
    for metres in _TICKS_M:
        share = (1 / near_m - 1 / metres) / (1 / near_m - 1 / far_m)
        if not 0 <= share <= 1:
            continue
        u = round(left + share * (right - left - 1))
        if u > end + 8:
            text = f'{metres:g} m'
            cv2.line(strip, (u, 3), (u, 13), (0, 0, 0), 1)
            cv2.putText(strip, text, (u, 23), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (0, 0, 0), 1,
                        cv2.LINE_AA)
            end = u + 6 * len(text)
    return strip


def _titled(bgr: NDArray[np.uint8], text: str) -> NDArray[np.uint8]:
    bgr = np.ascontiguousarray(bgr)
    for colour, thick in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(bgr, text, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, thick, cv2.LINE_AA)
    return bgr


class Frames:
    """The kept frames of which picture and depth both arrived, in order."""

    def __init__(self, recording: Recording) -> None:
        """Find the pairs."""
        self._recording = recording
        self._pictures = {row['stamp_ns']: row for row in recording.kept('image')}
        self.depths = [row for row in recording.kept('depth')
                       if row['stamp_ns'] in self._pictures]

    def read(self, depth_row: Row) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Return picture (rgb) and depth (m) of one of `depths`."""
        recording = self._recording
        return (picture(recording.message(self._pictures[depth_row['stamp_ns']])),
                depth_of(recording.message(depth_row)))


def write_pictures(frames: Frames, folder: Path, clip: Clip, frame_of: Mapping[int, int],
                   range_m: tuple[float, float]) -> list[Path]:
    """Write picture, received depth and true depth beside each other, some frames of the clip."""
    for old in folder.glob('frame_*.png'):
        old.unlink()
    written = []
    for number, row in enumerate(spread(frames.depths, PICTURES)):
        rgb, depth = frames.read(row)
        panels = _titled(side_by_side(rgb, colorize(depth, *range_m)), 'image')
        height, width = depth.shape
        panels[:, width:] = _titled(panels[:, width:], 'depth, as received')
        index = frame_of.get(row['stamp_ns'])
        if index is not None and clip.true_depths:
            true = cv2.resize(clip.true_depth(index), (width, height),
                              interpolation=cv2.INTER_NEAREST)
            painted = _titled(colorize(np.asarray(true, np.float32), *range_m), 'true depth')
            panels = np.concatenate([panels, painted], axis=1)
        canvas = np.concatenate([panels, legend(panels.shape[1], *range_m)], axis=0)
        written.append(write_image(folder / f'frame_{number}.png', canvas))
    return written


def write_video(frames: Frames, depths: Iterable[Row], path: Path, fps: float,
                range_m: tuple[float, float]) -> Path | None:
    """Write image and depth beside each other; None without a frame."""
    with VideoFile(path, fps) as video:
        for row in depths:
            rgb, depth = frames.read(row)
            pair = side_by_side(rgb, colorize(depth, *range_m))
            video.add(np.concatenate([pair, legend(pair.shape[1], *range_m)], axis=0))
    return video.path if video.frames else None


def write_cloud(recording: Recording, path: Path) -> tuple[Path, int] | None:
    """Write the middle one of the kept clouds as PLY; return the path and its points."""
    rows = recording.kept('points')
    if not rows:
        return None
    points, colours = cloud_of(recording.message(rows[len(rows) // 2]))
    return path, write_ply(path, points, colours)


# --- the bag


def _stamped(typestore: Any, stamp_ns: int, frame_id: str) -> Any:
    time_type = typestore.types['builtin_interfaces/msg/Time']
    header = typestore.types['std_msgs/msg/Header']
    return header(stamp=time_type(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9),
                  frame_id=frame_id)


def quaternion(rotation: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Return x, y, z, w of a (3, 3) rotation.

    Source: the eigenvector of Bar-Itzhack (2000), which has no special cases.
    """
    m = rotation
    symmetric = np.array([
        [m[0, 0] - m[1, 1] - m[2, 2], m[1, 0] + m[0, 1], m[2, 0] + m[0, 2], m[2, 1] - m[1, 2]],
        [m[1, 0] + m[0, 1], m[1, 1] - m[0, 0] - m[2, 2], m[2, 1] + m[1, 2], m[0, 2] - m[2, 0]],
        [m[2, 0] + m[0, 2], m[2, 1] + m[1, 2], m[2, 2] - m[0, 0] - m[1, 1], m[1, 0] - m[0, 1]],
        [m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], m.trace()]]) / 3
    x, y, z, w = np.linalg.eigh(symmetric)[1][:, -1]
    sign = 1.0 if w >= 0 else -1.0
    return float(sign * x), float(sign * y), float(sign * z), float(sign * w)


def _transform(typestore: Any, stamp_ns: int, parent: str, child: str,
               pose: NDArray[np.float64]) -> bytes:
    """Return a TFMessage with one transform, serialised; `pose` is (4, 4) child to parent."""
    types = typestore.types
    x, y, z, w = quaternion(pose[:3, :3])
    stamped = types['geometry_msgs/msg/TransformStamped'](
        header=_stamped(typestore, stamp_ns, parent), child_frame_id=child,
        transform=types['geometry_msgs/msg/Transform'](
            translation=types['geometry_msgs/msg/Vector3'](*(float(t) for t in pose[:3, 3])),
            rotation=types['geometry_msgs/msg/Quaternion'](x=x, y=y, z=z, w=w)))
    message = types['tf2_msgs/msg/TFMessage'](transforms=[stamped])
    return bytes(typestore.serialize_cdr(message, 'tf2_msgs/msg/TFMessage'))


def _body_pose(optical_to_world: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Return the pose of the body frame; a metre above the ground where the clip knows none."""
    pose = np.eye(4)
    if optical_to_world is None:
        pose[2, 3] = 1.0
        return pose
    pose[:3, :3] = optical_to_world[:3, :3] @ _BODY_FROM_OPTICAL.T
    pose[:3, 3] = optical_to_world[:3, 3]
    return pose


def _qos(*, latched: bool = False, reliable: bool = True) -> Any:
    from rosbags.interfaces import (
        Qos,
        QosDurability,
        QosHistory,
        QosLiveliness,
        QosReliability,
        QosTime,
    )

    never = QosTime(2147483647, 4294967295)
    return Qos(QosHistory.KEEP_LAST, 1 if latched else 5,
               QosReliability.RELIABLE if reliable else QosReliability.BEST_EFFORT,
               QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
               never, never, QosLiveliness.AUTOMATIC, never, False)


def remove_old_bag(folder: Path) -> None:
    """Remove a bag that an earlier demo wrote; nothing else.

    Raises:
        FileExistsError: the folder holds something else.
    """
    if not folder.exists():
        return
    strange = [path.name for path in folder.iterdir()
               if path.name != 'metadata.yaml' and path.suffix != '.mcap']
    if strange:
        raise FileExistsError(f'{folder}: holds {strange[0]}, which is not of a bag of this '
                              'program; name another folder by --out')
    shutil.rmtree(folder)


def write_bag(recording: Recording, folder: Path, clip: Clip, frame_of: Mapping[int, int],
              frame_id: str) -> Path:
    """Write an MCAP bag: messages as they came over DDS, and the frames that viewers need.

    At most `BAG_FRAMES` frames and the kept clouds go in, so that the bag stays of a size that
    one sends to others.

    Returns:
        The bag's folder, for `ros2 bag play`; the .mcap file lies in it.
    """
    from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
    from rosbags.typesys import get_types_from_msg

    typestore = recording.typestore
    bag = folder / _BAG_NAME
    remove_old_bag(bag)
    chosen = {row['stamp_ns'] for row in spread(recording.kept('depth'), BAG_FRAMES)}
    chosen |= {row['stamp_ns'] for row in recording.kept('points')}
    if recording.rows['status'] and STATUS not in typestore.types:
        definition = shared_file('msg/DepthStatus.msg', 'build the package again')
        typestore.register(get_types_from_msg(definition.read_text(encoding='utf-8'), STATUS))
    messages: list[tuple[int, str, str, bytes | Row]] = [
        (row['wall_ns'], row['name'], TYPES[key], row)
        for key in TYPES for row in recording.kept(key) if row['stamp_ns'] in chosen]
    if not messages:
        raise ValueError('no message to write into the bag')
    poses = clip.poses()
    tf = 'tf2_msgs/msg/TFMessage'
    begin = min(message[0] for message in messages)
    optical = np.eye(4)
    optical[:3, :3] = _BODY_FROM_OPTICAL
    if poses is None:
        messages.append((begin, '/tf_static', tf, _transform(
            typestore, begin, _WORLD, _BODY, _body_pose(None))))
    messages.append((begin, '/tf_static', tf, _transform(
        typestore, begin, _BODY, frame_id, optical)))
    for row in recording.kept('image') if poses is not None else ():
        index = frame_of.get(row['stamp_ns'])
        if row['stamp_ns'] in chosen and index is not None:
            messages.append((row['wall_ns'], '/tf', tf, _transform(
                typestore, row['stamp_ns'], _WORLD, _BODY, _body_pose(poses[index]))))
    # transforms first, so that a viewer knows the frame when the message comes
    messages.sort(key=lambda message: (message[0], not message[1].startswith('/tf')))

    writer = Writer(bag, version=9, storage_plugin=StoragePlugin.MCAP)
    writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
    with writer:
        connections: dict[str, Any] = {}
        for wall_ns, topic, kind, content in messages:
            if topic not in connections:
                connections[topic] = writer.add_connection(
                    topic, kind, typestore=typestore, offered_qos_profiles=[_qos(
                        latched=topic == '/tf_static', reliable=not topic.startswith('/camera'))])
            data = content if isinstance(content, bytes) else recording.payload(content)
            writer.write(connections[topic], wall_ns, data)
    return bag
