"""Writes what a subscriber receives from camera and node to files: `depth-node demo` reads them.

    python -m depth_node.ros.recorder --out DIR

`DIR/index.jsonl` gets one line per message: topic, times, size, and what is checked of every
message on arrival.  `DIR/<topic>.cdr` gets the messages themselves, as they came over DDS, one
behind the other, of every n-th image and whatever was made of it; `offset` and `length` of the
index say where.  On stdout goes one JSON object per event: `ready`, `first_depth`, `progress` and
`done`.  The recorder ends on SIGINT, SIGTERM, or when its standard input is closed.
"""

from __future__ import annotations

import argparse
from array import array
from collections.abc import Callable, Sequence
import json
import os
from pathlib import Path
import signal
import sys
import threading
import time
from typing import IO, Any

from depth_node.ros.messages import DepthStatus
from diagnostic_msgs.msg import DiagnosticArray
import numpy as np
from numpy.typing import NDArray
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSHistoryPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

PROGRESS_PERIOD_S = 0.25


def reliable(depth: int) -> QoSProfile:
    """Return the QoS of a subscriber that wants everything."""
    return QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=depth,
                      reliability=QoSReliabilityPolicy.RELIABLE)


def best_effort(depth: int) -> QoSProfile:
    """Return the QoS that matches every camera."""
    return QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=depth,
                      reliability=QoSReliabilityPolicy.BEST_EFFORT)


def plain(value: Any) -> Any:
    """Return a message field as something that JSON knows."""
    if isinstance(value, (np.ndarray, array)):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


def describe_image(msg: Image) -> dict[str, Any]:
    """Return the facts of an image, and for depth how many values no consumer could use."""
    facts: dict[str, Any] = {'height': msg.height, 'width': msg.width, 'encoding': msg.encoding,
                             'step': msg.step}
    if msg.encoding == '32FC1' and msg.height * msg.width > 0:
        depth = np.frombuffer(msg.data, np.float32)
        known = np.isfinite(depth)
        facts['valid'] = int(np.count_nonzero(known))
        facts['not_positive'] = int(np.count_nonzero(known & (depth <= 0)))
    return facts


def describe_camera_info(msg: CameraInfo) -> dict[str, Any]:
    """Return the facts of a CameraInfo."""
    return {'height': msg.height, 'width': msg.width, 'd': plain(msg.d), 'k': plain(msg.k),
            'p': plain(msg.p)}


def describe_cloud(msg: PointCloud2) -> dict[str, Any]:
    """Return the facts of a cloud, and how many of its points break the contract."""
    facts: dict[str, Any] = {
        'height': msg.height, 'width': msg.width, 'point_step': msg.point_step,
        'fields': [field.name for field in msg.fields], 'is_dense': bool(msg.is_dense)}
    offsets = {field.name: field.offset for field in msg.fields}
    words = np.frombuffer(msg.data, np.float32).reshape(-1, msg.point_step // 4)
    axes: list[NDArray[np.float32]] = [words[:, offsets[name] // 4] for name in 'xyz']
    z = axes[2]
    facts['valid'] = int(np.count_nonzero(z == z))
    facts['infinite'] = int(sum(np.count_nonzero(np.isinf(axis)) for axis in axes))
    behind = z <= 0  # False for NaN; a point at the origin is among these
    facts['not_in_front'] = int(np.count_nonzero(behind))
    facts['at_origin'] = int(np.count_nonzero(
        behind & (axes[0] == 0) & (axes[1] == 0) & (z == 0))) if behind.any() else 0
    return facts


def describe_status(msg: Any) -> dict[str, Any]:
    """Return every field of a DepthStatus but its header."""
    return {name: plain(getattr(msg, name)) for name in msg.get_fields_and_field_types()
            if name != 'header'}


class Recorder(Node):
    """Subscribes to camera and node, and writes what comes."""

    def __init__(self, folder: Path, *, image_topic: str, camera_info_topic: str, node: str,
                 cloud: bool, keep_every: int, cloud_every: int,
                 events: Callable[[dict[str, Any]], None]) -> None:
        """Subscribe.

        Args:
            folder: where to write; exists.
            image_topic: the camera's image.
            camera_info_topic: its CameraInfo.
            node: full name of the node, the prefix of its topics.
            cloud: whether to subscribe to the cloud.
            keep_every: of every n-th image the messages themselves are kept.
            cloud_every: of every n-th kept image the cloud is kept.
            events: told what happens.
        """
        super().__init__('depth_node_recorder')
        self._events = events
        self._folder = folder
        self._keep_every, self._cloud_every = keep_every, cloud_every
        self._index: IO[str] = open(folder / 'index.jsonl', 'w', encoding='utf-8')
        self._files: dict[str, IO[bytes]] = {}
        self._counts: dict[str, int] = {}
        self._kept: set[int] = set()  # stamps of the images that are kept
        self._clouds = 0  # clouds of these
        self._told = 0.0
        latest, all_of_it = best_effort(5), reliable(10)
        self._listen('image', image_topic, Image, latest, describe_image)
        self._listen('camera_info', camera_info_topic, CameraInfo, latest, describe_camera_info)
        self._listen('depth', f'{node}/depth/image', Image, all_of_it, describe_image)
        self._listen('depth_camera_info', f'{node}/depth/camera_info', CameraInfo, all_of_it,
                     describe_camera_info)
        if cloud:
            self._listen('points', f'{node}/points', PointCloud2, all_of_it, describe_cloud)
        if DepthStatus is not None:
            self._listen('status', f'{node}/status', DepthStatus, all_of_it, describe_status)
        self.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)

    def _listen(self, key: str, topic: str, kind: Any, qos: QoSProfile,
                describe: Callable[[Any], dict[str, Any]]) -> None:
        def on_bytes(data: bytes) -> None:
            self._on_message(key, topic, kind, describe, data)

        self.create_subscription(kind, topic, on_bytes, qos, raw=True)

    def _on_message(self, key: str, topic: str, kind: Any,
                    describe: Callable[[Any], dict[str, Any]], data: bytes) -> None:
        row: dict[str, Any] = {'topic': key, 'name': topic, 'monotonic_ns': time.monotonic_ns(),
                               'wall_ns': time.time_ns()}
        msg = deserialize_message(data, kind)
        stamp = msg.header.stamp.sec * 10**9 + msg.header.stamp.nanosec
        row.update(stamp_ns=stamp, frame_id=msg.header.frame_id, **describe(msg))
        count = self._counts[key] = self._counts.get(key, 0) + 1
        if key == 'image' and (count - 1) % self._keep_every == 0:
            self._kept.add(stamp)
        if stamp in self._kept and self._is_due(key):
            row['offset'], row['length'] = self._keep(key, data)
        self._index.write(json.dumps(row) + '\n')
        if key == 'depth':
            if count == 1:
                self._events({'event': 'first_depth', 'monotonic_ns': row['monotonic_ns']})
            if row['monotonic_ns'] * 1e-9 - self._told > PROGRESS_PERIOD_S:
                self._told = row['monotonic_ns'] * 1e-9
                self._events({'event': 'progress', 'depth': count})

    def _is_due(self, key: str) -> bool:
        if key != 'points':
            return True
        self._clouds += 1
        return (self._clouds - 1) % self._cloud_every == 0

    def _keep(self, key: str, data: bytes) -> tuple[int, int]:
        file = self._files.get(key)
        if file is None:
            file = self._files[key] = open(self._folder / f'{key}.cdr', 'wb', buffering=0)
        offset = file.tell()
        file.write(data)
        return offset, len(data)

    def _on_diagnostics(self, msg: DiagnosticArray) -> None:
        for status in msg.status:
            self._index.write(json.dumps({
                'topic': 'diagnostics', 'monotonic_ns': time.monotonic_ns(), 'check': status.name,
                'level': status.level[0] if isinstance(status.level, bytes) else status.level,
                'message': status.message,
                'values': {item.key: item.value for item in status.values}}) + '\n')

    def close(self) -> dict[str, int]:
        """Finish the files; return how many messages came per topic."""
        for file in (self._index, *self._files.values()):
            file.close()
        return self._counts


def _end_with_stdin() -> None:
    """Ask the process to end when whoever started it is gone."""
    # not sys.stdin: its lock, held by a thread that reads, aborts the interpreter at its end
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main(arguments: Sequence[str] | None = None) -> int:
    """Record until told to stop."""
    parser = argparse.ArgumentParser(prog='python -m depth_node.ros.recorder',
                                     description=(__doc__ or '').split('\n', 1)[0])
    parser.add_argument('--out', type=Path, required=True, help='folder to write into')
    parser.add_argument('--image', default='/camera/image_raw', help='topic of the camera')
    parser.add_argument('--camera-info', default='/camera/camera_info', help='its CameraInfo')
    parser.add_argument('--node', default='/mono_depth', help='full name of the node')
    parser.add_argument('--no-cloud', action='store_true', help='do not ask for the cloud')
    parser.add_argument('--keep-every', type=int, default=1, metavar='N',
                        help='keep the messages of every N-th image (1)')
    parser.add_argument('--cloud-every', type=int, default=1, metavar='N',
                        help='keep the cloud of every N-th kept image (1)')
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)

    def tell(event: dict[str, Any]) -> None:
        print(json.dumps(event), flush=True)

    rclpy.init(args=[])
    node = Recorder(options.out, image_topic=options.image, camera_info_topic=options.camera_info,
                    node=options.node, cloud=not options.no_cloud, keep_every=options.keep_every,
                    cloud_every=options.cloud_every, events=tell)
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    tell({'event': 'ready'})
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        # A second Ctrl-C must not cut the files off.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        counts = node.close()
        node.destroy_node()
        rclpy.try_shutdown()
    tell({'event': 'done', **counts})
    return 0


if __name__ == '__main__':
    sys.exit(main())
