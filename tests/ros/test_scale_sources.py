"""Metric scale from other sensors, over real DDS: what a subscriber gets, and what is said."""

from __future__ import annotations

from collections.abc import Callable
import math
from typing import Any

import numpy as np
import pytest
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from ros_rig import (
    CX,
    CY,
    FRAME,
    FX,
    FY,
    IMAGE_TOPIC,
    INFO_TOPIC,
    NETWORK_HW,
    Peer,
    Process,
    depth_of,
    red_to_depth,
    values_of,
)
from sensor_msgs.msg import Image, Imu, LaserScan, PointCloud2, PointField, Range
from std_srvs.srv import Trigger

HEIGHT, WIDTH = NETWORK_HW
SCAN = '/scan'  # scale.points_topic by default
FACTOR = 0.8  # true depth = 0.8 x what the network says
# A sensor whose x axis is the camera's z axis (REP 103), seen from the camera.
FORWARD = (0.1, -0.05, 0.02, math.pi / 2, -math.pi / 2, 0.0)
OK, WARN, ERROR = b'\x00', b'\x01', b'\x02'


def picture() -> Any:
    """Return a picture whose red, and so its depth, has near and far places."""
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    rgb = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    rgb[..., 0] = 2 * u + v + 20 * np.sin(u / 6.0) * np.sin(v / 9.0)
    return rgb


PICTURE = picture()
NETWORK = red_to_depth(PICTURE[..., 0])  # what the tiny network says


def optical_points(factor: float = FACTOR, count: int = 400) -> Any:
    """Return true points on the picture's surfaces in the optical frame."""
    rng = np.random.default_rng(5)
    u, v = rng.integers(2, WIDTH - 2, count), rng.integers(2, HEIGHT - 2, count)
    z = factor * NETWORK[v, u]
    return np.stack([(u - CX) / FX * z, (v - CY) / FY * z, z], 1)


def to_forward(points: Any) -> Any:
    """Return optical points in the frame of the sensor at FORWARD, written out by hand."""
    right, down, ahead = (points - np.array(FORWARD[:3])).T
    return np.stack([ahead, -right, -down], 1)


def cloud(peer: Peer, points: Any, stamp: float, frame: str = FRAME) -> PointCloud2:
    points = np.asarray(points, np.float32)
    message = PointCloud2(
        height=1, width=len(points), point_step=12, row_step=12 * len(points), is_dense=True,
        fields=[PointField(name=axis, offset=4 * index, datatype=PointField.FLOAT32, count=1)
                for index, axis in enumerate('xyz')])
    message.data.frombytes(points.tobytes())
    return peer.stamped(message, stamp, frame)


class Rig:
    """A camera and a sensor on the same clock."""

    def __init__(self, peer: Peer, source: str = 'points', picture: Any = None,
                 **parameters: Any) -> None:
        self.peer = peer
        self.picture = PICTURE if picture is None else picture
        self.network = red_to_depth(self.picture[..., 0])
        self.depths = peer.collect('~/depth/image', Image)
        assert peer.set(scale__source=source, scale__smoothing_s=0.0, **parameters) == ''
        self.camera = peer.camera(peer.info())
        self.sensor: Callable[[float], None] = lambda stamp: None

    def use(self, kind: Any, make: Callable[[float], Any], topic: str = SCAN) -> Any:
        """Publish what `make` returns with every image; return the publisher."""
        publisher = self.peer.publisher(topic, kind)
        self.sensor = lambda stamp: publisher.publish(make(stamp))
        return publisher

    def silence(self) -> None:
        """Stop the sensor."""
        self.sensor = lambda stamp: None

    def image(self) -> Any:
        stamp = self.peer.next_stamp()
        self.sensor(stamp)
        return self.peer.image(self.picture, stamp=stamp)

    def factor(self) -> float:
        """Return by what the newest depth differs from what the network says; NaN for none."""
        if not self.depths:
            return math.nan
        ratio = depth_of(self.depths[-1]) / self.network
        ratio = ratio[np.isfinite(ratio)]
        if not ratio.size:
            return math.nan
        assert np.ptp(ratio) < 1e-3 * ratio[0]
        return float(ratio[0])

    def until(self, done: Callable[[], Any], what: str) -> Any:
        return self.peer.send_until(self.camera, self.image, done, what=what)

    def until_factor(self, factor: float, tolerance: float = 0.02) -> None:
        try:
            self.until(lambda: abs(self.factor() / factor - 1) < tolerance, f'factor {factor}')
        except AssertionError as error:
            state = self.peer.diagnostics('scale')
            raise AssertionError(
                f'{error}; it was {self.factor()}; {state.message}; {values_of(state)}') from None

    def check(self, wanted: Callable[[Any], bool], name: str = 'scale') -> Any:
        """Send images until a line of /diagnostics is as wanted."""
        from diagnostic_msgs.msg import DiagnosticArray

        arrays = self.peer.collect('/diagnostics', DiagnosticArray)
        full = f'{self.peer.under_test[1:]}: {name}'

        def found() -> Any:
            return next((status for array in arrays for status in array.status
                         if status.name == full and wanted(status)), None)
        try:
            return self.until(found, f'diagnostics {name}')
        except AssertionError as error:
            last = [status for status in arrays[-1].status if status.name == full]
            raise AssertionError(f'{error}; the last one was {last}') from None


def test_cloud_of_another_frame_scales_the_depth(peer: Peer) -> None:
    rig = Rig(peer, scale__extrinsic=list(FORWARD))
    rig.use(PointCloud2, lambda stamp: cloud(
        peer, to_forward(optical_points()), stamp, 'lidar'))
    rig.until_factor(FACTOR)
    found = rig.check(lambda status: status.level == OK)
    values = values_of(found)
    assert (values['source'], values['state'], values['topic'], values['type']) == (
        'points', 'ok', SCAN, 'PointCloud2')
    assert float(values['scale']) == pytest.approx(FACTOR, rel=0.02)
    assert float(values['uncertainty']) < 0.1
    assert int(values['support']) > 100
    assert values['sensor_frame'] == 'lidar'
    assert values['newest'] == '400 of 400 in front of the camera'


def test_laser_scan_scales_the_depth(peer: Peer) -> None:
    rig = Rig(peer, scale__extrinsic=list(FORWARD))
    count = 121
    # the scan's plane is 5 cm above the camera; where each beam ends, found by small steps
    beams = np.linspace(-0.5, 0.5, count)
    ranges = []
    for angle in beams:
        far = np.arange(0.3, 4.0, 0.002)
        z = FORWARD[2] + far * math.cos(angle)
        u = CX + FX * (FORWARD[0] - far * math.sin(angle)) / z
        v = CY + FY * FORWARD[1] / z
        inside = (u >= 0) & (u < WIDTH - 1) & (v >= 0)
        column, row = np.clip(u + 0.5, 0, WIDTH - 1).astype(int), (v + 0.5).astype(int)
        hit = inside & (z >= FACTOR * NETWORK[np.clip(row, 0, HEIGHT - 1), column])
        ranges.append(far[hit.argmax()] if hit.any() else math.inf)
    assert np.isfinite(ranges).sum() > 60
    rig.use(LaserScan, lambda stamp: peer.stamped(LaserScan(
        angle_min=-0.5, angle_max=0.5, angle_increment=1.0 / (count - 1), range_min=0.1,
        range_max=10.0, ranges=ranges), stamp, 'laser'))
    rig.until_factor(FACTOR)
    assert values_of(rig.check(lambda status: status.level == OK))['type'] == 'LaserScan'


def test_range_scales_the_depth(peer: Peer) -> None:
    rig = Rig(peer, scale__max_uncertainty=0.5, scale__extrinsic=[
        0.0, 0.0, 0.0, math.pi / 2, -math.pi / 2, 0.0])
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    inside = np.hypot((u - CX) / FX, (v - CY) / FY) < math.tan(0.15)
    nearest = float(np.quantile(NETWORK[inside], 0.005))
    rig.use(Range, lambda stamp: peer.stamped(Range(
        field_of_view=0.3, min_range=0.1, max_range=5.0, range=FACTOR * nearest), stamp, 'sonar'))
    rig.until_factor(FACTOR, 0.05)
    # one place of one picture: in force, but not exact
    status = rig.check(lambda status: values_of(status).get('state') == 'coarse')
    assert 'other parts of the scene' in status.message
    assert values_of(status)['type'] == 'Range'
    assert int(values_of(status)['support']) >= 3


def test_silent_source_is_held_then_dealt_with_as_asked(peer: Peer) -> None:
    rig = Rig(peer, scale__max_age_s=0.4)
    rig.use(PointCloud2, lambda stamp: cloud(peer, optical_points(), stamp))
    rig.until_factor(FACTOR)
    rig.silence()
    held = rig.check(lambda status: values_of(status)['state'] == 'held')
    assert held.level == WARN
    assert held.message.startswith('source points, held:')
    assert float(values_of(held)['age_s']) > 0.4
    assert rig.factor() == pytest.approx(FACTOR, rel=0.02)
    silent = rig.check(lambda status: 'nothing has arrived' in status.message)
    assert SCAN in silent.message

    assert peer.set(scale__when_stale='model') == ''
    rig.until_factor(1.0, 1e-5)
    assert peer.set(scale__when_stale='blank') == ''
    rig.until(lambda: np.isnan(depth_of(rig.depths[-1])).all(), 'blank depth')
    assert peer.set(scale__when_stale='hold') == ''
    rig.until_factor(FACTOR)

    # reset forgets what was held
    peer.call(Trigger, 'reset', Trigger.Request())
    rig.until_factor(1.0, 1e-5)
    assert rig.check(lambda status: values_of(status)['state'] == 'waiting').level == WARN


def test_frame_that_nobody_knows_is_named(peer: Peer) -> None:
    rig = Rig(peer)
    rig.use(PointCloud2, lambda stamp: cloud(peer, optical_points(), stamp, 'nowhere'))
    # where there is TF, it has some seconds to come before the parameter is asked for
    found = rig.check(lambda status: 'or set scale.extrinsic' in status.message)
    assert found.level == WARN
    assert "'nowhere'" in found.message
    assert rig.factor() == pytest.approx(1.0), "the network's own metres until then"
    assert peer.set(scale__extrinsic_from='parameter') == ''
    rig.check(lambda status: 'all zero' in status.message)
    # the sensor is where the camera is: a turn of nothing but 0.0001 m
    assert peer.set(scale__extrinsic=[0.0001, 0.0, 0.0, 0.0, 0.0, 0.0]) == ''
    rig.until_factor(FACTOR)


def test_cloud_that_lies_is_named_and_harmless(peer: Peer) -> None:
    rig = Rig(peer)

    def broken(stamp: float) -> PointCloud2:
        message = cloud(peer, optical_points(), stamp)
        message.width = 2**31
        return message

    rig.use(PointCloud2, broken)
    found = rig.check(lambda status: 'PointCloud2 has 4800 bytes' in status.message)
    assert found.level == WARN


def test_source_changes_while_running(peer: Peer) -> None:
    rig = Rig(peer)
    rig.use(PointCloud2, lambda stamp: cloud(peer, optical_points(), stamp))
    rig.until_factor(FACTOR)
    assert peer.set(scale__source='fixed', scale__scale=0.5) == ''
    rig.until_factor(0.5, 1e-5)
    # nobody listens to the sensor any more
    peer.wait(lambda: not peer.node.count_subscribers(SCAN), what='the subscription to go')
    assert 'topic' not in values_of(rig.check(lambda status: status.level == OK))
    assert peer.set(scale__source='model') == ''
    rig.until_factor(1.0, 1e-5)
    assert peer.set(scale__source='points') == ''
    rig.until_factor(FACTOR)
    refused = peer.set(scale__low=2.0, scale__high=1.0)
    assert refused
    assert peer.set(together=True, scale__low=0.9, scale__high=1.5) == ''
    found = rig.check(lambda status: 'scale.low' in values_of(status).get('note', ''))
    assert found.level == (OK if values_of(found)['state'] == 'ok' else WARN)


def test_topic_that_is_not_there_or_of_another_type(peer: Peer) -> None:
    rig = Rig(peer)
    other = peer.advertise('/front_lidar', PointCloud2, QoSProfile(depth=1))
    found = rig.check(lambda status: '/front_lidar (PointCloud2)' in status.message)
    assert found.level == WARN
    assert 'nobody publishes /scan (scale.points_topic)' in found.message
    wrong = peer.advertise(SCAN, Imu, QoSProfile(depth=1))
    found = rig.check(lambda status: 'carries Imu' in status.message)
    assert 'expected PointCloud2 or LaserScan or Range' in found.message
    peer.withdraw(wrong)
    peer.withdraw(other)
    # the right type comes at last
    rig.use(PointCloud2, lambda stamp: cloud(peer, optical_points(), stamp))
    rig.until_factor(FACTOR)


def test_changes_of_state_are_logged_once(peer: Peer, shared_process: Process) -> None:
    before = len(shared_process.log)
    rig = Rig(peer, scale__max_age_s=0.4)
    rig.use(PointCloud2, lambda stamp: cloud(peer, optical_points(), stamp))
    rig.until_factor(FACTOR)
    rig.silence()
    rig.check(lambda status: values_of(status)['state'] == 'held')
    for _ in range(20):
        rig.camera(rig.image())
        peer.spin(0.03)
    lines = [line for line in shared_process.log[before:].splitlines() if 'scale from' in line]
    states = [line.split('scale from ')[1].split(':')[0] for line in lines]
    assert states[0] == 'points is waiting'
    assert states[-2:] == ['points', 'points is held']
    assert len(states) == len(set(states)), 'each once'


PITCH = math.radians(30)
NETWORK_HEIGHT = 1.1  # of the camera above the floor that the network sees
# Bounds that tell a table top from a floor, so that one picture is enough.
KNOWN = {'scale__low': 0.6, 'scale__high': 1.2}


def floor_picture() -> Any:
    """Return what a camera over a floor, pitched down by PITCH, makes the network say."""
    v = np.arange(HEIGHT)
    steep = math.cos(PITCH) * (v - CY) / FY + math.sin(PITCH)
    depth = NETWORK_HEIGHT / np.maximum(steep, 0.05)
    rgb = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    rgb[..., 0] = np.clip(np.rint(100 * (depth - 1)), 0, 255)[:, None]
    return rgb


def test_floor_below_a_camera_of_known_height(peer: Peer) -> None:
    rig = Rig(peer, 'ground', floor_picture(), **KNOWN)
    # until an image has been processed, the line says just that
    found = rig.check(lambda status: 'mount.height_m' in status.message)
    assert found.level == WARN
    found = rig.check(lambda status: status.message.startswith(
        "the camera's height and tilt are not known"), 'mount')
    assert found.level == WARN
    assert rig.factor() == pytest.approx(1.0)
    assert peer.set(mount__height_m=FACTOR * NETWORK_HEIGHT, mount__pitch_deg=30.0) == ''
    rig.until_factor(FACTOR)
    assert values_of(rig.check(lambda status: status.level == OK))['source'] == 'ground'
    values = values_of(rig.check(lambda status: status.level == OK, 'mount'))
    assert (values['source'], values['height_m'], values['pitch_deg']) == (
        'parameters', '0.880', '30.0')


def test_floor_with_the_tilt_of_an_imu(peer: Peer) -> None:
    assert peer.transition('deactivate')
    assert peer.transition('cleanup')
    assert peer.set(mount__imu_topic='/imu') == ''
    assert peer.transition('configure')
    assert peer.transition('activate')
    rig = Rig(peer, 'ground', floor_picture(), mount__height_m=FACTOR * NETWORK_HEIGHT, **KNOWN)
    found = rig.check(
        lambda status: 'nobody publishes /imu (mount.imu_topic)' in status.message, 'mount')
    assert found.level == WARN

    def imu(stamp: float) -> Imu:
        message = peer.stamped(Imu(), stamp, 'imu_link')
        force = message.linear_acceleration  # of a body whose nose points down (REP 103, 145)
        force.x, force.z = -9.8 * math.sin(PITCH), 9.8 * math.cos(PITCH)
        return message

    rig.use(Imu, imu, '/imu')
    rig.until_factor(FACTOR)
    values = values_of(rig.check(lambda status: status.level == OK, 'mount'))
    assert (values['source'], values['pitch_deg'], values['roll_deg']) == ('imu', '30.0', '0.0')
    assert values['imu_axes'].startswith('assumed')


def test_scan_that_cannot_match_is_an_error_of_qos(
        own: Peer, start: Callable[..., Process]) -> None:
    start('-p', f'qos_overrides.{SCAN}.subscription.reliability:=reliable',
          scale__source='points', scale__points_type='LaserScan')
    own.advertise(SCAN, LaserScan, QoSProfile(
        depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT))
    found = own.diagnostics('qos', lambda status: SCAN in status.message)
    assert found.level == ERROR
    assert 'nothing arrives from it' in found.message


def test_each_camera_has_its_own_scale(own: Peer, start: Callable[..., Process]) -> None:
    start('-r', f'front/image:={IMAGE_TOPIC}', '-r', f'front/camera_info:={INFO_TOPIC}',
          '-r', 'left/image:=/left/image_raw', '-r', 'left/camera_info:=/left/camera_info',
          '-p', 'front.scale.source:=points', '-p', 'front.scale.points_topic:=front_lidar',
          '-p', 'left.scale.source:=points', '-p', 'left.scale.points_topic:=left_lidar',
          cameras=['front', 'left'])
    fronts = own.collect('~/front/depth/image', Image)
    lefts = own.collect('~/left/depth/image', Image)
    cameras = [own.camera(own.info()),
               own.camera(own.info(), image_topic='/left/image_raw',
                          info_topic='/left/camera_info')]
    lidars = [own.publisher(topic, PointCloud2) for topic in ('/front_lidar', '/left_lidar')]

    def send(stamp: float) -> None:
        for lidar, camera, factor in zip(lidars, cameras, (0.8, 1.2), strict=True):
            lidar.publish(cloud(own, optical_points(factor), stamp))
            camera(own.image(PICTURE, stamp=stamp))

    def factor(depths: list[Any]) -> float:
        return float(np.nanmedian(depth_of(depths[-1]) / NETWORK)) if depths else math.nan

    own.send_until(send, own.next_stamp, lambda: abs(factor(fronts) / 0.8 - 1) < 0.02
                   and abs(factor(lefts) / 1.2 - 1) < 0.02, what='0.8 and 1.2')


def test_place_of_the_sensor_by_tf(peer: Peer) -> None:
    tf2_ros = pytest.importorskip('tf2_ros')
    from geometry_msgs.msg import TransformStamped

    rig = Rig(peer)
    rig.use(PointCloud2, lambda stamp: cloud(peer, optical_points() - 3.0, stamp, 'tf_lidar'))
    rig.check(lambda status: "'tf_lidar'" in status.message)
    broadcaster = tf2_ros.StaticTransformBroadcaster(peer.node)
    message = TransformStamped()
    message.header.frame_id, message.child_frame_id = FRAME, 'tf_lidar'
    place = message.transform.translation
    place.x = place.y = place.z = 3.0
    message.transform.rotation.w = 1.0
    broadcaster.sendTransform(message)
    rig.until_factor(FACTOR)


def test_mount_by_tf(peer: Peer) -> None:
    tf2_ros = pytest.importorskip('tf2_ros')
    from geometry_msgs.msg import TransformStamped

    rig = Rig(peer, 'ground', floor_picture(), mount__frame='base_footprint', **KNOWN)
    broadcaster = tf2_ros.StaticTransformBroadcaster(peer.node)
    message = TransformStamped()
    message.header.frame_id, message.child_frame_id = 'base_footprint', FRAME
    message.transform.translation.z = FACTOR * NETWORK_HEIGHT
    # optical axes of a level camera, then its pitch about the robot's y axis
    level, pitch = np.array([-0.5, 0.5, -0.5, 0.5]), PITCH / 2
    c, s = math.cos(pitch), math.sin(pitch)
    x, y, z, w = level
    turn = message.transform.rotation
    turn.x, turn.y, turn.z, turn.w = c * x + s * z, c * y + s * w, c * z - s * x, c * w - s * y
    broadcaster.sendTransform(message)
    rig.until_factor(FACTOR)
    values = values_of(rig.check(lambda status: status.level == OK, 'mount'))
    assert (values['source'], values['height_m'], values['pitch_deg']) == ('tf', '0.880', '30.0')
