"""Reads what `depth_node.ros.recorder` wrote, without ROS."""

from __future__ import annotations

from collections import defaultdict
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = dict[str, Any]

IMAGE, CAMERA_INFO, POINTS = (
    'sensor_msgs/msg/Image', 'sensor_msgs/msg/CameraInfo', 'sensor_msgs/msg/PointCloud2')
STATUS = 'depth_node/msg/DepthStatus'
TYPES = {'image': IMAGE, 'camera_info': CAMERA_INFO, 'depth': IMAGE,
         'depth_camera_info': CAMERA_INFO, 'points': POINTS, 'status': STATUS}


class Recording:
    """The messages of one run, by topic in the order of arrival.

    Attributes:
        rows: short topic name (`image`, `depth`, ...) -> one row per message.
        diagnostics: name of a check -> the rows of it.
    """

    def __init__(self, folder: Path) -> None:
        """Read the index.

        Args:
            folder: what the recorder got as `--out`.
        """
        from rosbags.typesys import Stores, get_typestore

        self.folder = folder
        self.rows: dict[str, list[Row]] = {key: [] for key in TYPES}
        self.diagnostics: dict[str, list[Row]] = defaultdict(list)
        self.typestore = get_typestore(Stores.ROS2_JAZZY)
        with open(folder / 'index.jsonl', encoding='utf-8') as lines:
            for line in lines:
                row = json.loads(line)
                if row['topic'] == 'diagnostics':
                    self.diagnostics[row['check']].append(row)
                else:
                    self.rows[row['topic']].append(row)

    def kept(self, key: str) -> list[Row]:
        """Return the rows of a topic whose messages were kept."""
        return [row for row in self.rows[key] if 'offset' in row]

    def payload(self, row: Row) -> bytes:
        """Return a kept message as it came over DDS."""
        with open(self.folder / f'{row["topic"]}.cdr', 'rb') as file:
            file.seek(row['offset'])
            return file.read(row['length'])

    def message(self, row: Row) -> Any:
        """Return a kept message of a standard type."""
        return self.typestore.deserialize_cdr(self.payload(row), TYPES[row['topic']])


def picture(message: Any) -> NDArray[np.uint8]:
    """Return the rgb picture of an image message."""
    from depth_node.images import to_rgb

    return to_rgb(message.data, height=message.height, width=message.width,
                  encoding=message.encoding, step=message.step,
                  is_bigendian=bool(message.is_bigendian))


def depth_of(message: Any) -> NDArray[np.float32]:
    """Return the depth of a 32FC1 or 16UC1 image message, metres, NaN unknown."""
    from depth_node.images import depth_from_16uc1

    shape = message.height, message.width
    if message.encoding == '16UC1':
        return depth_from_16uc1(np.frombuffer(message.data, np.uint16).reshape(shape))
    return np.frombuffer(message.data, np.float32).reshape(shape)


def cloud_of(message: Any) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None]:
    """Return the points (H, W, 3) of a cloud message, and their colours (H, W, 3) rgb if any."""
    words = np.frombuffer(message.data, np.float32).reshape(
        message.height, message.width, message.point_step // 4)
    offsets = {field.name: field.offset // 4 for field in message.fields}
    points = np.stack([words[..., offsets[axis]] for axis in 'xyz'], axis=-1)
    if 'rgb' not in offsets:
        return points, None
    packed = np.ascontiguousarray(words[..., offsets['rgb']]).view(np.uint32)
    colours = np.stack([(packed >> shift) & 255 for shift in (16, 8, 0)], axis=-1)
    return points, colours.astype(np.uint8)
