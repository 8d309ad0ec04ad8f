"""Camera and subscriber on another DDS implementation: Eclipse Cyclone DDS, without any ROS code.

Run by test_interop.py in a network namespace of its own.  Publishes images of one colour and
CameraInfo until depth, CameraInfo and points came back, and prints what it got as JSON.
"""

from dataclasses import dataclass
import json
import struct
import sys
import time

from cyclonedds.core import Policy, Qos
from cyclonedds.domain import DomainParticipant
from cyclonedds.idl import IdlStruct
from cyclonedds.idl.types import array, float64, int32, sequence, uint8, uint32
from cyclonedds.pub import DataWriter
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic
from cyclonedds.util import duration

HEIGHT, WIDTH, RED = 48, 64, 60


@dataclass
class Time(IdlStruct, typename='builtin_interfaces::msg::dds_::Time_'):
    sec: int32
    nanosec: uint32


@dataclass
class Header(IdlStruct, typename='std_msgs::msg::dds_::Header_'):
    stamp: Time
    frame_id: str


@dataclass
class Image(IdlStruct, typename='sensor_msgs::msg::dds_::Image_'):
    header: Header
    height: uint32
    width: uint32
    encoding: str
    is_bigendian: uint8
    step: uint32
    data: sequence[uint8]


@dataclass
class RegionOfInterest(IdlStruct, typename='sensor_msgs::msg::dds_::RegionOfInterest_'):
    x_offset: uint32
    y_offset: uint32
    height: uint32
    width: uint32
    do_rectify: bool


@dataclass
class CameraInfo(IdlStruct, typename='sensor_msgs::msg::dds_::CameraInfo_'):
    header: Header
    height: uint32
    width: uint32
    distortion_model: str
    d: sequence[float64]
    k: array[float64, 9]
    r: array[float64, 9]
    p: array[float64, 12]
    binning_x: uint32
    binning_y: uint32
    roi: RegionOfInterest


@dataclass
class PointField(IdlStruct, typename='sensor_msgs::msg::dds_::PointField_'):
    name: str
    offset: uint32
    datatype: uint8
    count: uint32


@dataclass
class PointCloud2(IdlStruct, typename='sensor_msgs::msg::dds_::PointCloud2_'):
    header: Header
    height: uint32
    width: uint32
    fields: sequence[PointField]
    is_bigendian: bool
    point_step: uint32
    row_step: uint32
    data: sequence[uint8]
    is_dense: bool


def main() -> int:
    """Exchange messages for up to the given number of seconds."""
    participant = DomainParticipant(int(sys.argv[1]))
    reliable = Qos(Policy.Reliability.Reliable(duration(seconds=1)), Policy.History.KeepLast(5))
    best_effort = Qos(Policy.Reliability.BestEffort, Policy.History.KeepLast(5))

    def writer(name: str, kind: type, qos: Qos) -> DataWriter:
        return DataWriter(participant, Topic(participant, f'rt/{name}', kind), qos)

    def reader(name: str, kind: type) -> DataReader:
        return DataReader(participant, Topic(participant, f'rt/{name}', kind), reliable)

    images = writer('cam/image_raw', Image, best_effort)
    infos = writer('cam/camera_info', CameraInfo, reliable)
    depths = reader('mono_depth/depth/image', Image)
    back = reader('mono_depth/depth/camera_info', CameraInfo)
    clouds = reader('mono_depth/points', PointCloud2)
    found: dict[str, object] = {}
    end = time.monotonic() + float(sys.argv[2])
    number = 0
    pixels = [RED, 10, 20] * (HEIGHT * WIDTH)
    while time.monotonic() < end and len(found) < 3:
        number += 1
        header = Header(Time(1000 + number, 5), 'cam_optical_frame')
        infos.write(CameraInfo(
            header, HEIGHT, WIDTH, 'plumb_bob', [0.0] * 5, [60.0, 0, 30, 0, 70.0, 26, 0, 0, 1],
            [1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0], [60.0, 0, 30, 0, 0, 70.0, 26, 0, 0, 0, 1.0, 0],
            0, 0, RegionOfInterest(0, 0, 0, 0, False)))
        images.write(Image(header, HEIGHT, WIDTH, 'rgb8', 0, 3 * WIDTH, pixels))
        time.sleep(0.1)
        for message in depths.take(10):
            values = struct.unpack(f'<{HEIGHT * WIDTH}f', bytes(message.data))
            found['depth'] = [message.encoding, message.height, message.width, min(values),
                              max(values), message.header.frame_id, message.header.stamp.nanosec]
        for message in back.take(10):
            found['info'] = [message.height, message.width, list(message.k), list(message.d)]
        for message in clouds.take(10):
            x, y, z, rgb = struct.unpack_from('<fffI', bytes(message.data), 16 * (10 * WIDTH + 20))
            found['cloud'] = [message.height, message.width, message.point_step,
                              [field.name for field in message.fields], x, y, z, rgb]
    print(json.dumps({'sent': number, **found}))
    return 0 if len(found) == 3 else 1


if __name__ == '__main__':
    sys.exit(main())
