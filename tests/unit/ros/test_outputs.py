"""What Outputs makes of a frame, and in which order, with a node that only remembers."""

from __future__ import annotations

import math
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip('rclpy')

from builtin_interfaces.msg import Time
from depth_node.camera import Camera
from depth_node.ground import Mount
from depth_node.obstacles import level_axes
from depth_node.pipeline import DepthFrame
from depth_node.ros import messages
from depth_node.ros.outputs import (
    DEPTH,
    POINTS,
    SCAN,
    STATUS,
    Outputs,
    level_frame_of,
    needs_camera,
)
from depth_node.ros.parameters import Parameters
from depth_node.scale import Scale
from ros_rig import points_of
from std_msgs.msg import Header

Rotation = pytest.importorskip('scipy.spatial.transform').Rotation

CAMERA = Camera((36, 50), 41.0, 47.0, 26.3, 16.4)
HEADER = Header(frame_id='front_optical_frame', stamp=Time(sec=7, nanosec=5))
MOUNT = Mount.from_angles(0.5, 10.0, 4.0)


class Publisher:
    def __init__(self, topic: str, sent: list[tuple[str, Any]]) -> None:
        self.topic, self.sent, self.readers = topic, sent, 0

    def publish(self, message: Any) -> None:
        self.sent.append((self.topic, message))

    def get_subscription_count(self) -> int:
        return self.readers


class Node:
    """Remembers what is created, sent and destroyed."""

    def __init__(self) -> None:
        self.made: dict[str, Publisher] = {}
        self.sent: list[tuple[str, Any]] = []
        self.destroyed: list[Any] = []

    def resolve_topic_name(self, name: str) -> str:
        return name.replace('~', '/node')

    def create_publisher(self, kind: Any, name: str, profile: Any, **_: Any) -> Publisher:
        del kind, profile
        self.made[name] = Publisher(name, self.sent)
        return self.made[name]

    def destroy_publisher(self, publisher: Any) -> None:
        self.destroyed.append(publisher)


def frame(**changes: Any) -> DepthFrame:
    generator = np.random.default_rng(3)
    usual: dict[str, Any] = dict(
        depth=generator.uniform(1, 3, CAMERA.size_hw).astype(np.float32),
        rgb=generator.integers(0, 256, (*CAMERA.size_hw, 3), np.uint8), camera=CAMERA,
        confidence=None, scale=Scale(), stamp=7.0)
    return DepthFrame(**{**usual, **changes})


@pytest.fixture
def node() -> Node:
    return Node()


def outputs_of(node: Node, **options: Any) -> Outputs:
    return Outputs(node, confidence=False,  # type: ignore[arg-type]
                   on_mismatch=lambda topic, event: None, **options)


@pytest.fixture
def broadcaster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a tf2_ros whose broadcaster sends to the same list as the publishers."""
    class TransformBroadcaster:
        def __init__(self, node: Node) -> None:
            self.pub_tf = node.create_publisher(None, '/tf', None)

        def sendTransform(self, transform: Any) -> None:  # noqa: N802  tf2's name
            self.pub_tf.publish(transform)

    module = ModuleType('tf2_ros')
    module.TransformBroadcaster = TransformBroadcaster  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, 'tf2_ros', module)


@pytest.mark.usefixtures('broadcaster')
def test_the_level_frame_is_on_tf_before_the_scan_that_stands_in_it(node: Node) -> None:
    outputs = outputs_of(node)
    stage_ms: dict[str, float] = {}
    count = outputs.publish(frame(), HEADER, frozenset({SCAN}), Parameters(), stage_ms, MOUNT)
    assert count == 1
    assert list(stage_ms) == ['scan', 'publish']
    (first, transform), (second, scan) = node.sent
    assert (first, second) == ('/tf', '~/scan')
    assert transform.header.frame_id == 'front_optical_frame'
    assert transform.child_frame_id == scan.header.frame_id == 'front_level'
    assert transform.header.stamp == scan.header.stamp == HEADER.stamp
    assert transform.transform.translation.x == transform.transform.translation.z == 0.0
    turn = transform.transform.rotation
    turned = Rotation.from_quat([turn.x, turn.y, turn.z, turn.w])
    # z of the level frame points up, y is level, x is ahead
    assert turned.apply([0, 0, 1]) == pytest.approx(MOUNT.up, abs=1e-9)
    assert turned.apply([0, 1, 0]) @ MOUNT.up == pytest.approx(0, abs=1e-9)
    assert turned.apply([0, 1, 0])[0] < 0
    assert turned.apply([1, 0, 0])[2] > 0.9
    assert outputs.notes == outputs.refused == ()
    outputs.destroy()
    assert node.made['/tf'] in node.destroyed


@pytest.mark.usefixtures('broadcaster')
@pytest.mark.parametrize(('changes', 'frame_id'), [
    ({'scan.publish_tf': False}, 'front_level'), ({'scan.frame': 'base_scan'}, 'base_scan')])
def test_the_level_frame_can_be_somebody_elses(node: Node, changes: dict[str, Any],
                                               frame_id: str) -> None:
    outputs_of(node).publish(frame(), HEADER, frozenset({SCAN}), Parameters().changed(changes),
                             {}, MOUNT)
    assert [(topic, message.header.frame_id) for topic, message in node.sent] == [
        ('~/scan', frame_id)]


def test_without_tf2_the_scan_comes_with_a_note(node: Node,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'tf2_ros', None)
    outputs = outputs_of(node)
    assert outputs.publish(frame(), HEADER, frozenset({SCAN}), Parameters(), {}, MOUNT) == 1
    for word in ('front_level', 'not on /tf', 'scan.frame'):
        assert word in outputs.notes[0]
    outputs.publish(frame(), HEADER, frozenset({DEPTH}), Parameters(), {}, MOUNT)
    assert outputs.notes == ()


@pytest.mark.parametrize(('mount', 'said'), [
    (None, 'mount.height_m'), (Mount.from_angles(1.0, 89.0), 'no direction is forward')])
def test_no_scan_without_a_usable_mount(node: Node, mount: Mount | None, said: str) -> None:
    outputs = outputs_of(node)
    count = outputs.publish(frame(), HEADER, frozenset({SCAN, DEPTH}), Parameters(), {}, mount)
    assert count == 1
    assert [topic for topic, _ in node.sent] == ['~/depth/image']
    assert said in outputs.refused[0]
    outputs.publish(frame(), HEADER, frozenset({DEPTH}), Parameters(), {}, mount)
    assert outputs.refused == ()


def test_only_what_is_wanted_is_made(node: Node) -> None:
    outputs = outputs_of(node)
    stage_ms: dict[str, float] = {}
    outputs.publish(frame(), HEADER, frozenset({DEPTH}), Parameters(), stage_ms, MOUNT)
    assert list(stage_ms) == ['publish']
    assert outputs.obstacle.basis == ''
    outputs.publish(frame(), HEADER, frozenset({STATUS}), Parameters(), stage_ms, MOUNT)
    assert outputs.obstacle.basis == 'floor'
    assert 'obstacle' in stage_ms
    outputs.publish(frame(), HEADER, frozenset({STATUS}), Parameters(), stage_ms, None)
    assert outputs.obstacle.basis == 'depth'
    outputs.publish(frame(camera=None), HEADER, frozenset({STATUS, SCAN, POINTS}), Parameters(),
                    {}, MOUNT)
    assert outputs.obstacle.basis == ''
    assert [topic for topic, _ in node.sent] == ['~/depth/image']
    assert needs_camera(frozenset({SCAN}))


def test_subscribers_decide_and_parameters_may_forbid(node: Node) -> None:
    outputs = outputs_of(node, camera='front')
    assert outputs.wanted(Parameters()) == frozenset()
    for name in ('~/front/scan', '~/front/points'):
        node.made[name].readers = 1
    assert outputs.wanted(Parameters()) == {SCAN, POINTS}
    assert outputs.wanted(Parameters().changed({'scan.publish': False})) == {POINTS}


def test_buffers_are_kept_until_a_parameter_asks_for_others(node: Node) -> None:
    outputs = outputs_of(node)
    everything, parameters = frozenset({POINTS, SCAN, STATUS}), Parameters()
    kept = []
    for _ in range(2):
        outputs.publish(frame(), HEADER, everything, parameters, {}, MOUNT)
        kept.append((outputs._packer, outputs._scan_maker, outputs._nearest))
    assert all(a is b for a, b in zip(*kept, strict=True))
    changed = parameters.changed({'cloud.stride': 2, 'scan.min_rows': 3})
    outputs.publish(frame(), HEADER, everything, changed, {}, MOUNT)
    now = outputs._packer, outputs._scan_maker, outputs._nearest
    assert all(a is not b for a, b in zip(kept[0], now, strict=True))


def test_what_the_cloud_leaves_out_is_counted_and_what_it_cannot_is_noted(node: Node) -> None:
    outputs, cut = outputs_of(node), Parameters().changed(
        {'cloud.far_m': 2.0, 'cloud.remove_ground': True, 'cloud.confidence': True})
    one = frame(removed={'network': 3})
    outputs.publish(one, HEADER, frozenset({POINTS}), cut, {}, MOUNT)
    assert one.removed['network'] == 3
    assert one.removed['cloud_far'] == int((one.depth > 2).sum())
    assert one.removed['cloud_ground'] > 0
    assert len(outputs.notes) == 1
    assert 'no such output' in outputs.notes[0]
    outputs.publish(frame(), HEADER, frozenset({POINTS}), cut, {}, None)
    assert any('ground removal' in note for note in outputs.notes)


@pytest.mark.parametrize('organised', [True, False])
def test_cloud_message_read_by_its_own_field_table(node: Node, organised: bool) -> None:
    depth = frame().depth.copy()
    depth[3, 4] = np.nan
    given = frame(depth=depth, confidence=np.random.default_rng(1).random(
        CAMERA.size_hw).astype(np.float32))
    outputs_of(node).publish(given, HEADER, frozenset({POINTS}), Parameters().changed(
        {'cloud.intensity': True, 'cloud.confidence': True, 'cloud.organised': organised}), {})
    cloud = node.sent[0][1]
    assert cloud.header == HEADER
    assert cloud.is_dense == (not organised)
    names = ['x', 'y', 'z', 'rgb', 'intensity', 'confidence']
    assert [field.name for field in cloud.fields] == names
    points = points_of(cloud).reshape(-1)
    points = points[~np.isnan(points['x'])]
    v, u = np.nonzero(~np.isnan(depth))
    assert len(points) == len(v) == CAMERA.size_hw[0] * CAMERA.size_hw[1] - 1
    z = depth[v, u]
    np.testing.assert_array_equal(points['z'], z)
    np.testing.assert_allclose(points['x'], (u - CAMERA.cx) / CAMERA.fx * z, atol=1e-5)
    np.testing.assert_allclose(points['y'], (v - CAMERA.cy) / CAMERA.fy * z, atol=1e-5)
    np.testing.assert_array_equal(points['confidence'], given.confidence[v, u])
    colours = np.ascontiguousarray(points['rgb']).view(np.uint32)
    np.testing.assert_array_equal(
        colours, (given.rgb[v, u].astype(np.uint32) << [16, 8, 0]).sum(-1))


@pytest.mark.parametrize('pitch', [-70.0, 0.0, 33.0, 70.0])
@pytest.mark.parametrize('roll', [-170.0, -90.0, 0.0, 45.0, 90.0, 180.0])
def test_pose_of_the_level_frame_for_every_tilt(pitch: float, roll: float) -> None:
    axes = level_axes(Mount.from_angles(1.0, pitch, roll))
    turn = messages.level_frame(HEADER, 'level', axes).transform.rotation
    numbers = [turn.x, turn.y, turn.z, turn.w]
    assert math.hypot(*numbers) == pytest.approx(1)
    np.testing.assert_allclose(Rotation.from_quat(numbers).as_matrix(), axes.T, atol=1e-9)


def test_name_of_the_level_frame() -> None:
    assert [level_frame_of(name) for name in ('cam_optical_frame', 'cam', '')] == [
        'cam_level', 'cam_level', 'camera_level']
