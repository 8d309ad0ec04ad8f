"""What the programs that use our depth demand, applied to what the real node sends them.

Each rule restates what a consumer does with a message, by its source: navigation2 @a3a9704
(ObservationBuffer, collision monitor), moveit2 @8fcb5d2 (octomap updaters), image_pipeline
@30b982a (depth_image_proc), depthimage_to_laserscan branch ros2, rtabmap_ros @aec4f91, rviz
(DepthCloud, PointCloud2).  QoS is checked by the rule of rclpy, against what the publisher offers.
"""

from __future__ import annotations

import array
from collections.abc import Callable
import copy
import dataclasses
from dataclasses import dataclass
import struct
from typing import Any

import numpy as np
import pytest
from rclpy.qos import (
    QoSCompatibility,
    QoSProfile,
    QoSReliabilityPolicy,
    qos_check_compatible,
    qos_profile_sensor_data,
    qos_profile_system_default,
)
import ros_rig
from ros_rig import CX, CY, FX, FY, NETWORK_HW, Peer
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

DEPTH, INFO, POINTS = '~/depth/image', '~/depth/camera_info', '~/points'
COLOUR = '~/image_rect'
RELIABLE = QoSProfile(depth=10, reliability=QoSReliabilityPolicy.RELIABLE)
NAV2_SENSOR_DATA = QoSProfile(depth=50, reliability=QoSReliabilityPolicy.BEST_EFFORT)
NEAR_M, FAR_M = 1.3, 3.0


@dataclass(frozen=True)
class Sent:
    """What belongs to one stamp."""

    depth: Image
    info: CameraInfo
    points: PointCloud2
    colour: Image


def scene() -> np.ndarray:
    """Red from 0 to 255: 1.0 to 3.55 m, so that some is too near and some beyond range."""
    height, width = NETWORK_HW
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[..., 0] = np.linspace(0, 255, width).astype(np.uint8)
    rgb[..., 1] = np.linspace(0, 200, height).astype(np.uint8)[:, None]
    return rgb


def true_depth() -> np.ndarray:
    """REP 117 depth of the scene."""
    depth = ros_rig.red_to_depth(scene()[..., 0]).astype(np.float64)
    depth[depth < NEAR_M] = -np.inf
    depth[depth > FAR_M] = np.inf
    return depth


def cloud_points(cloud: PointCloud2, contiguous: bool = False) -> list[tuple[float, ...]]:
    """Read x, y, z as PointCloud2ConstIterator<float> does: offset, step, own endianness."""
    fields = {field.name: field for field in cloud.fields}
    assert all(fields[name].datatype == 7 and fields[name].count == 1 for name in 'xyz')
    assert not cloud.is_bigendian
    if contiguous:  # MoveIt reads iterator[0..2] from x on
        assert fields['y'].offset == fields['x'].offset + 4
        assert fields['z'].offset == fields['x'].offset + 8
    assert cloud.row_step == cloud.point_step * cloud.width
    data = bytes(cloud.data)
    assert len(data) == cloud.row_step * cloud.height
    offsets = [fields[name].offset for name in 'xyz']
    return [tuple(struct.unpack_from('<f', data, start + offset)[0] for offset in offsets)
            for start in range(0, len(data), cloud.point_step)]


# --- the rules


def nav2_observation_buffer(sent: Sent) -> None:
    """Points go to a frame with z up, and those within the height band stay."""
    tilt = 0.2  # looks down
    kept = 0
    for x, y, z in cloud_points(sent.points):
        up = -y * np.cos(tilt) - z * np.sin(tilt) + 1.0  # the camera is 1 m up
        if 0.1 <= up <= 1.8:  # NaN compares false, Inf would not
            kept += 1
        assert not np.isinf((x, y, z)).any()
    depth = true_depth()
    v, _ = np.mgrid[0:NETWORK_HW[0], 0:NETWORK_HW[1]]
    with np.errstate(invalid='ignore'):
        up = -(v - CY) / FY * depth * np.cos(tilt) - depth * np.sin(tilt) + 1.0
        wanted = np.isfinite(depth) & (up >= 0.1) & (up <= 1.8)
    step = 1 if sent.points.height * sent.points.width > 1000 else 2
    expected = np.count_nonzero(wanted[::step, ::step])
    assert kept == pytest.approx(expected, abs=3)
    assert kept > 100


def nav2_collision_monitor(sent: Sent) -> None:
    """Ranges below min_range are dropped before the transform; NaN must not pass the band."""
    inside = [point for point in cloud_points(sent.points)
              if not np.linalg.norm(point) < 0.3 and -2.0 <= -point[1] <= 2.0]
    assert inside
    assert np.isfinite(inside).all()


def moveit_cloud(sent: Sent) -> None:
    """Only NaN is left out; every other point becomes an occupied cell."""
    points = cloud_points(sent.points, contiguous=True)
    occupied = [point for point in points if not np.isnan(point).any()]
    assert occupied
    assert np.isfinite(occupied).all()
    assert max(z for _, _, z in occupied) <= FAR_M + 1e-4
    assert not any(point == (0.0, 0.0, 0.0) for point in occupied)


def moveit_depth(sent: Sent) -> None:
    assert sent.depth.encoding in ('16UC1', '32FC1')
    assert not sent.depth.is_bigendian
    size = {'16UC1': 2, '32FC1': 4}[sent.depth.encoding]
    assert sent.depth.step == size * sent.depth.width, 'rows are handed to OpenGL without gaps'
    k = sent.info.k
    assert (k[0], k[2], k[4], k[5]) == (FX, CX, FY, CY)


def depth_image_proc(sent: Sent) -> None:
    """Back-projection by P; zero is invalid in millimetres, but a point in metres."""
    assert sent.depth.encoding in ('16UC1', '32FC1')
    p = sent.info.p
    raw = ros_rig.depth_of(sent.depth)
    if sent.depth.encoding == '32FC1':
        assert not (raw == 0.0).any(), 'would become a point at the origin'
        z = np.where(np.isfinite(raw), raw, np.nan).astype(np.float64)
    else:
        z = np.where(raw != 0, raw * 0.001, np.nan)
    depth = true_depth()
    np.testing.assert_array_equal(np.isfinite(z), np.isfinite(depth))
    known = np.isfinite(z)
    v, u = np.nonzero(known)
    x = (u - p[2]) * z[known] / p[0]
    y = (v - p[6]) * z[known] / p[5]
    np.testing.assert_allclose(x, (u - CX) / FX * depth[known], atol=2e-3)
    np.testing.assert_allclose(y, (v - CY) / FY * depth[known], atol=2e-3)


def depthimage_to_laserscan(sent: Sent) -> None:
    assert sent.depth.encoding in ('16UC1', '32FC1')
    middle = sent.info.p[6]
    assert 10 / 2 <= middle
    assert 10 / 2 <= sent.depth.height - middle, 'scan_height 10 must fit around cy'


def rtabmap(sent: Sent) -> None:
    assert sent.depth.encoding in ('16UC1', '32FC1')
    assert sent.info.p[0] > 0
    assert sent.info.p[5] > 0
    assert sent.info.header.stamp == sent.depth.header.stamp == sent.colour.header.stamp
    assert (sent.info.width, sent.info.height) == (sent.depth.width, sent.depth.height)
    coloured(sent)


def coloured(sent: Sent) -> None:
    """depth_image_proc xyzrgb and rtabmap: a picture of the same size, its encoding known."""
    picture = sent.colour
    assert picture.encoding in ('rgb8', 'bgr8', 'mono8')
    assert (picture.width, picture.height) == (sent.depth.width, sent.depth.height)
    np.testing.assert_array_equal(
        np.frombuffer(picture.data, np.uint8).reshape(*NETWORK_HW, 3), scene())


def rviz(sent: Sent) -> None:
    """DepthCloud refuses a size that differs; PointCloud2 takes colours from rgb or rgba."""
    info, depth = sent.info, sent.depth
    binning = max(1, info.binning_x), max(1, info.binning_y)
    roi = info.roi
    assert (roi.width or info.width) // binning[0] == depth.width
    assert (roi.height or info.height) // binning[1] == depth.height
    assert min(info.p[0], info.p[5]) > 0
    for field in sent.points.fields:
        if field.name in ('rgb', 'rgba'):
            assert field.datatype in (5, 6, 7)


def all_of_them(sent: Sent) -> None:
    """REP 118 and CameraInfo.msg: one stamp, one frame, D = 0, K = P."""
    headers = [sent.depth.header, sent.info.header, sent.points.header]
    assert len({(h.stamp.sec, h.stamp.nanosec, h.frame_id) for h in headers}) == 1
    assert headers[0].frame_id == ros_rig.FRAME
    assert not any(sent.info.d)
    k, p = np.array(sent.info.k).reshape(3, 3), np.array(sent.info.p).reshape(3, 4)
    np.testing.assert_array_equal(k, p[:, :3])
    assert not p[:, 3].any()
    dense = not np.isnan(cloud_points(sent.points)).any()
    assert sent.points.is_dense == dense


@dataclass(frozen=True)
class Reader:
    """A consumer: what it subscribes to, how, and what it demands."""

    topics: dict[str, QoSProfile]
    rule: Callable[[Sent], None]


CAMERA = (DEPTH, INFO)
READERS = {
    'Nav2 obstacle and voxel layer, STVL': Reader({POINTS: NAV2_SENSOR_DATA},
                                                  nav2_observation_buffer),
    'Nav2 collision monitor': Reader({POINTS: qos_profile_sensor_data}, nav2_collision_monitor),
    'MoveIt point cloud updater': Reader({POINTS: qos_profile_sensor_data}, moveit_cloud),
    'MoveIt depth image updater': Reader(dict.fromkeys(CAMERA, qos_profile_sensor_data),
                                         moveit_depth),
    'depth_image_proc xyz': Reader(dict.fromkeys(CAMERA, qos_profile_system_default),
                                   depth_image_proc),
    'depth_image_proc xyzrgb': Reader(dict.fromkeys((*CAMERA, COLOUR), RELIABLE), coloured),
    'depthimage_to_laserscan': Reader(dict.fromkeys(CAMERA, qos_profile_system_default),
                                      depthimage_to_laserscan),
    'rtabmap': Reader(dict.fromkeys((*CAMERA, COLOUR), RELIABLE), rtabmap),
    'RViz reliable': Reader({DEPTH: RELIABLE, INFO: RELIABLE, POINTS: RELIABLE}, rviz),
    'RViz best effort': Reader(dict.fromkeys((*CAMERA, POINTS), qos_profile_sensor_data), rviz),
    'every reader': Reader({}, all_of_them),
}
SETTINGS: dict[str, dict[str, Any]] = {
    'defaults': {},
    '16UC1': {'depth__encoding': '16UC1'},
    'list of points without colour': {'cloud__organised': False, 'cloud__rgb': False},
    'every second pixel': {'cloud__stride': 2},
}


def receive(peer: Peer) -> Sent:
    """Return depth, CameraInfo and points of one stamp."""
    boxes = {topic: peer.collect(topic, kind) for topic, kind in (
        (DEPTH, Image), (INFO, CameraInfo), (POINTS, PointCloud2), (COLOUR, Image))}
    send = peer.camera(peer.info())

    def complete() -> Any:
        found = [{ros_rig.stamp_of(message): message for message in box}
                 for box in boxes.values()]
        both = set.intersection(*(set(messages) for messages in found))
        return both and [messages[max(both)] for messages in found]

    return Sent(*peer.send_until(send, lambda: peer.image(scene()), complete))


@pytest.mark.parametrize('name', SETTINGS)
def test_every_consumer_accepts(peer: Peer, name: str) -> None:
    assert peer.set(filter__near_m=NEAR_M, filter__far_m=FAR_M, **SETTINGS[name]) == ''
    sent = receive(peer)
    for reader_name, reader in READERS.items():
        try:
            reader.rule(sent)
        except AssertionError as error:
            raise AssertionError(f'{reader_name}: {error}') from error


@pytest.mark.parametrize('name', [name for name, reader in READERS.items() if reader.topics])
def test_qos_of_every_consumer_matches(peer: Peer, name: str) -> None:
    for topic, wanted in READERS[name].topics.items():
        full = topic.replace('~', '/mono_depth')
        kind = {INFO: CameraInfo, POINTS: PointCloud2}.get(topic, Image)
        mine = peer.node.create_subscription(kind, full, lambda _: None, wanted)
        try:
            offer = peer.wait(lambda full=full: peer.node.get_publishers_info_by_topic(full),
                              what=f'the publisher of {full}')[0].qos_profile
            # as the middleware has it: what the profile leaves open is decided there
            request = next(item.qos_profile for item in peer.wait(
                lambda full=full: peer.node.get_subscriptions_info_by_topic(full),
                what='the own subscription') if item.node_name == peer.node.get_name())
            verdict, reason = qos_check_compatible(offer, request)
            assert verdict == QoSCompatibility.OK, f'{topic}: {reason}'
            peer.wait(lambda mine=mine: mine.handle.get_publisher_count(), what=f'{full} matched')
        finally:
            peer.node.destroy_subscription(mine)


def with_points(sent: Sent, change: Callable[[np.ndarray], None]) -> Sent:
    """Return a copy whose points are changed: (n, 3) float32, written back in place."""
    points = copy.deepcopy(sent.points)
    raw = np.frombuffer(points.data, np.uint8).reshape(-1, points.point_step).copy()
    xyz = raw[:, :12].copy().view(np.float32)
    change(xyz)
    raw[:, :12] = xyz.view(np.uint8)
    points.data = array.array('B', raw.tobytes())
    return dataclasses.replace(sent, points=points)


def with_depth(sent: Sent, change: Callable[[np.ndarray], None]) -> Sent:
    depth = copy.deepcopy(sent.depth)
    values = np.frombuffer(depth.data, np.float32).copy()
    change(values)
    depth.data = array.array('B', values.tobytes())
    return dataclasses.replace(sent, depth=depth)


def put(value: float, where: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], None]:
    def change(values: np.ndarray) -> None:
        values[where(values)] = value
    return change


def swap_y_and_z(xyz: np.ndarray) -> None:
    xyz[:, 1:] = xyz[:, :0:-1].copy()


def attributes(sent: Sent, part: str, **changes: Any) -> Sent:
    """Return a copy with attributes of one message replaced; `a__b` reaches inside."""
    message = copy.deepcopy(getattr(sent, part))
    for name, value in changes.items():
        *path, leaf = name.split('__')
        inner = message
        for step in path:
            inner = getattr(inner, step)
        setattr(inner, leaf, value)
    return dataclasses.replace(sent, **{part: message})


def fields_as_peers_send_them(sent: Sent) -> Sent:
    """y, z, x, as one of the peers has them."""
    changed = attributes(sent, 'points')
    for field in changed.points.fields:
        field.offset = {'y': 0, 'z': 4, 'x': 8}.get(field.name, field.offset)
    return changed


def beyond_scan_height(sent: Sent) -> Sent:
    return attributes(sent, 'info', p=[FX, 0.0, CX, 0.0, 0.0, FY, 3.0, 0.0, 0.0, 0.0, 1.0, 0.0])


OFF = [FX + 5, 0.0, CX, 0.0, FY, CY, 0.0, 0.0, 1.0]
OFF_P = [FX + 5, 0.0, CX, 0.0, 0.0, FY, CY, 0.0, 0.0, 0.0, 1.0, 0.0]
# what a node could do wrong -> the readers that must notice
MISTAKES: dict[str, tuple[Callable[[Sent], Sent], tuple[Callable[[Sent], None], ...]]] = {
    'Inf in the cloud': (lambda sent: with_points(sent, put(np.inf, np.isnan)),
                         (nav2_observation_buffer, moveit_cloud)),
    'the origin for what is unknown': (lambda sent: with_points(sent, put(0.0, np.isnan)),
                                       (moveit_cloud, all_of_them)),
    'a wall at the limit for what is beyond': (
        lambda sent: with_points(sent, put(9.0, np.isnan)), (moveit_cloud,)),
    'y and z exchanged': (lambda sent: with_points(sent, swap_y_and_z),
                          (nav2_observation_buffer,)),
    'Inf for the collision monitor': (
        lambda sent: with_points(sent, put(-np.inf, lambda xyz: np.s_[:, 2])),
        (nav2_collision_monitor,)),
    'fields out of order': (fields_as_peers_send_them, (moveit_cloud,)),
    'dense, though it is not': (lambda sent: attributes(sent, 'points', is_dense=True),
                                (all_of_them,)),
    'the time of sending': (lambda sent: attributes(sent, 'points', header__stamp__sec=7),
                            (all_of_them,)),
    'the time of sending, of the picture': (
        lambda sent: attributes(sent, 'colour', header__stamp__sec=7), (rtabmap,)),
    'the frame of the body': (lambda sent: attributes(sent, 'depth',
                                                      header__frame_id='camera_link'),
                              (all_of_them,)),
    'depth for people': (lambda sent: attributes(sent, 'depth', encoding='mono8'),
                         (moveit_depth, depth_image_proc, depthimage_to_laserscan, rtabmap)),
    'rows with gaps': (lambda sent: attributes(sent, 'depth', step=sent.depth.step + 4),
                       (moveit_depth,)),
    'zero metres for what is unknown': (
        lambda sent: with_depth(sent, put(0.0, lambda depth: ~np.isfinite(depth))),
        (depth_image_proc,)),
    'another scale': (lambda sent: with_depth(sent, lambda depth: np.multiply(
        depth, 1.01, out=depth)), (depth_image_proc,)),
    'K of another size': (lambda sent: attributes(sent, 'info', k=OFF),
                          (moveit_depth, all_of_them)),
    'P of another size': (lambda sent: attributes(sent, 'info', p=OFF_P),
                          (depth_image_proc, all_of_them)),
    'distortion of what is rectified': (lambda sent: attributes(sent, 'info', d=[0.1] * 5),
                                        (all_of_them,)),
    'size of the calibration': (lambda sent: attributes(sent, 'info', width=640, height=480),
                                (rviz, rtabmap)),
    'binning said again': (lambda sent: attributes(sent, 'info', binning_x=2, binning_y=2),
                           (rviz,)),
    'a centre that scan_height does not fit around': (beyond_scan_height,
                                                      (depthimage_to_laserscan,)),
    'a picture of another size': (lambda sent: attributes(sent, 'colour', width=32),
                                  (rtabmap, coloured)),
    'a picture of unknown encoding': (lambda sent: attributes(sent, 'colour', encoding='8UC3'),
                                      (rtabmap, coloured)),
}


def refuses(reader: Callable[[Sent], None], sent: Sent) -> bool:
    try:
        reader(sent)
    except AssertionError:
        return True
    return False


def test_the_rules_notice_mistakes(peer: Peer) -> None:
    """What the node sent, with one thing wrong at a time."""
    assert peer.set(filter__near_m=NEAR_M, filter__far_m=FAR_M) == ''
    sent = receive(peer)
    for name, (mistake, readers) in MISTAKES.items():
        wrong = mistake(sent)
        for reader in readers:
            reader(sent)
            assert refuses(reader, wrong), f'{reader.__name__} does not notice: {name}'
    assert {reader for _, readers in MISTAKES.values() for reader in readers} == {
        reader.rule for reader in READERS.values()}, 'each rule has failed'
