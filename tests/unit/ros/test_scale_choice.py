"""What reaches the estimators: measurements in the camera's frame, at the right time."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import math
import re
import sys
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip('rclpy')

from builtin_interfaces.msg import Time
from depth_node.ground import Mount
from depth_node.model_card import ModelCard
from depth_node.ros import scale_sources
from depth_node.ros.parameters import Parameters
from depth_node.ros.scale_sources import MOST_IN_FRONT, ScaleSource
from depth_node.ros.transforms import Transforms
from depth_node.scale import Scale
from geometry_msgs.msg import TransformStamped
import rclpy
from sensor_msgs.msg import LaserScan, PointCloud2, PointField, Range
from std_msgs.msg import Header
import tf_stand_in

CAMERA = 'cam_optical_frame'
HEADER = Header(frame_id=CAMERA, stamp=Time(sec=50))
# a sensor that looks forward beside the camera: its x axis is the camera's z axis (REP 103)
FORWARD = (0.1, -0.2, 0.3, math.pi / 2, -math.pi / 2, 0.0)


class Recorder:
    """Stands where an estimator stands."""

    def __init__(self, wanted: Any) -> None:
        self.settings = wanted
        self.calls: list[tuple[Any, ...]] = []
        self.resets = 0
        self.mount: Mount | None = None

    def add(self, points: Any, stamp: float) -> None:
        self.calls.append(('add', points, stamp))

    def add_ranges(self, *args: Any, **kwargs: Any) -> None:
        self.calls.append(('add_ranges', *args, kwargs))

    def update(self, wanted: Any) -> None:
        self.settings = wanted

    def set_mount(self, mount: Mount | None) -> None:
        self.mount = mount

    def reset(self) -> None:
        self.resets += 1
        self.calls.clear()


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScaleSource]:
    monkeypatch.setitem(sys.modules, 'tf2_ros', tf_stand_in.module())
    monkeypatch.setattr(scale_sources, 'PointsEstimator', Recorder)
    monkeypatch.setattr(scale_sources, 'GroundEstimator', Recorder)
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node('scales', context=context)
    transforms = Transforms(node)
    card = ModelCard.load('small')
    made = ScaleSource(node, transforms, wanted(), card, on_mismatch=lambda *_: None)
    yield made
    made.destroy()
    node.destroy_node()
    rclpy.shutdown(context=context)


def wanted(**changes: Any) -> Parameters:
    base = Parameters()
    return dataclasses.replace(base, scale=dataclasses.replace(
        base.scale, **{'source': 'points', **changes}))


def choose(source: ScaleSource, parameters: Parameters | None = None) -> Any:
    return source.choose(HEADER, parameters or wanted(), None)


def cloud(points: Any, frame: str = CAMERA, sec: int = 49) -> PointCloud2:
    points = np.asarray(points, np.float32)
    message = PointCloud2(
        header=Header(frame_id=frame, stamp=Time(sec=sec)), height=1, width=len(points),
        point_step=12, row_step=12 * len(points), fields=[
            PointField(name=axis, offset=4 * index, datatype=PointField.FLOAT32, count=1)
            for index, axis in enumerate('xyz')])
    message.data.frombytes(points.tobytes())
    return message


def listen(source: ScaleSource, *, starting: bool = False) -> Any:
    source._transforms.listen()
    if not starting:
        source._transforms._since -= 10
    return source._transforms._buffer


def transform(x: float, sec: int = 0, parent: str = CAMERA,
              child: str = 'lidar') -> TransformStamped:
    message = TransformStamped()
    message.header.frame_id, message.child_frame_id = parent, child
    message.header.stamp = Time(sec=sec)
    message.transform.translation.x = x
    message.transform.rotation.w = 1.0
    return message


def test_points_of_the_cameras_own_frame_need_no_transform(source: ScaleSource) -> None:
    estimator = choose(source)
    source._on_message(cloud([[1, 2, 3], [4, 5, 6]]))
    assert estimator.calls == []
    assert choose(source) is estimator
    [(_, points, stamp)] = estimator.calls
    assert (points.tolist(), stamp) == ([[1, 2, 3], [4, 5, 6]], 49.0)
    assert source.problem == ''
    choose(source)
    assert len(estimator.calls) == 1, 'each message counts once'


def test_extrinsic_is_the_sensors_pose_in_the_optical_frame(source: ScaleSource) -> None:
    parameters = wanted(extrinsic=FORWARD)
    estimator = choose(source, parameters)
    source._on_message(cloud([[2.0, 0.5, 0.25], [-1.0, 0, 0]], 'lidar'))
    choose(source, parameters)
    [(_, points, _)] = estimator.calls
    # 2 m forward, 0.5 m left, 0.25 m up; the other one is behind the camera
    assert points == pytest.approx(np.array([[0.1 - 0.5, -0.2 - 0.25, 0.3 + 2.0]]), abs=1e-6)


def test_tf_goes_before_the_parameter_which_goes_before_nothing(source: ScaleSource) -> None:
    parameters = wanted(extrinsic=(5.0, 0, 0, 0, 0, 0))
    estimator = choose(source, parameters)
    buffer = listen(source)
    source._on_message(cloud([[0, 0, 1]], 'lidar'))
    choose(source, parameters)
    buffer.set_transform_static(transform(7.0), '')
    for mode in ('auto', 'tf', 'parameter'):
        source._on_message(cloud([[0, 0, 1]], 'lidar'))
        choose(source, dataclasses.replace(parameters, scale=dataclasses.replace(
            parameters.scale, extrinsic_from=mode)))
    assert [points[0, 0] for _, points, _ in estimator.calls] == [5, 7, 7, 5]

    source._on_message(cloud([[0, 0, 1]], 'nose'))
    choose(source)
    assert "TF does not connect 'nose' with 'cam_optical_frame'" in source.problem
    assert 'or set scale.extrinsic' in source.problem
    source._on_message(cloud([[0, 0, 1]]))
    choose(source)
    assert source.problem == ''


def test_nothing_known_about_the_sensors_place(source: ScaleSource,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'tf2_ros', None)
    source._transforms.listen()
    for mode, said in (('auto', 'tf2_ros is not installed.*set scale.extrinsic'),
                       ('tf', 'tf2_ros is not installed'), ('parameter', 'is all zero')):
        choose(source, wanted(extrinsic_from=mode))
        source._on_message(cloud([[0, 0, 1]], 'lidar'))
        estimator = choose(source, wanted(extrinsic_from=mode))
        assert estimator.calls == []
        assert re.search(said, source.problem), source.problem
        assert source.facts()['problem'] == source.problem


def test_measurement_that_comes_before_its_transform_is_tried_again(source: ScaleSource) -> None:
    estimator = choose(source)
    buffer = listen(source)
    buffer.set_transform(transform(1.0, sec=48), '')
    source._on_message(cloud([[0, 0, 1]], 'lidar', sec=49))
    choose(source)
    assert 'not at the time' in source.problem
    buffer.set_transform(transform(2.0, sec=49), '')
    choose(source)
    [(_, points, stamp)] = estimator.calls
    assert (points[0, 0], stamp) == (2.0, 49.0)
    assert source.problem == ''


def test_parameter_does_not_stand_in_while_tf_begins(source: ScaleSource) -> None:
    parameters = wanted(extrinsic=FORWARD)
    estimator = choose(source, parameters)
    buffer = listen(source, starting=True)
    source._on_message(cloud([[0, 0, 1]], 'lidar'))
    choose(source, parameters)
    assert estimator.calls == []
    buffer.set_transform_static(transform(7.0), '')
    choose(source, parameters)
    assert [points[0, 0] for _, points, _ in estimator.calls] == [7]


def test_messages_that_tf_never_places_do_not_pile_up(source: ScaleSource) -> None:
    choose(source)
    listen(source, starting=True)
    for _ in range(100):
        source._on_message(cloud([[0, 0, 1]], 'nose'))
    choose(source)
    assert len(source._late) == scale_sources.MOST_LATE
    assert not source._waiting
    source._transforms._since -= 10
    choose(source)
    assert not source._late


def test_scan_counts_at_the_time_of_the_beams_that_the_camera_sees(source: ScaleSource) -> None:
    parameters = wanted(extrinsic=FORWARD)
    estimator = choose(source, parameters)
    # from the right side over the front to the back in 1 s
    count, first, last = 471, -1.7, 3.0
    source._on_message(LaserScan(
        header=Header(frame_id='laser', stamp=Time(sec=40)), angle_min=first,
        angle_increment=(last - first) / (count - 1), time_increment=1.0 / (count - 1),
        range_max=30.0, ranges=[2.0] * count))
    choose(source, parameters)
    [(_, points, stamp)] = estimator.calls
    assert stamp == pytest.approx(40 + (0 - first) / (last - first), abs=0.005)
    assert points[:, 1] == pytest.approx(np.full(len(points), -0.2))  # the scan's plane
    assert (points[:, 2] >= 0.05).all()
    assert np.hypot(points[:, 0] - 0.1, points[:, 2] - 0.3) == pytest.approx(
        np.full(len(points), 2.0), abs=1e-5)
    assert source.facts()['newest'] == f'{len(points)} of {count} in front of the camera'


def test_range_is_a_cone_from_where_the_sensor_is(source: ScaleSource) -> None:
    parameters = wanted(extrinsic=FORWARD)
    estimator = choose(source, parameters)
    source._on_message(Range(header=Header(frame_id='sonar', stamp=Time(sec=41)),
                             range=1.25, field_of_view=0.5, max_range=4.0))
    choose(source, parameters)
    [(_, distance, direction, half_angle, stamp, rest)] = estimator.calls
    assert (distance, half_angle, stamp) == (1.25, 0.25, 41.0)
    assert direction == pytest.approx(np.array([0, 0, 1]), abs=1e-9)
    assert rest['origin'] == pytest.approx(np.array([0.1, -0.2, 0.3]))


def test_points_behind_the_camera_are_a_problem_with_a_name(source: ScaleSource) -> None:
    estimator = choose(source)
    source._on_message(cloud([[0, 0, -1], [1, 0, 0.01]]))
    choose(source)
    assert estimator.calls == []
    assert 'none of the 2 points' in source.problem
    assert 'in front of the camera' in source.problem


def test_message_that_lies_is_named_and_forgotten_with_the_next_good_one(
        source: ScaleSource) -> None:
    choose(source)
    bad = cloud([[0, 0, 1]])
    bad.width = 7
    source._on_message(bad)
    assert source.problem.startswith('/scan: PointCloud2 has 12 bytes')
    source._on_message(cloud([[0, 0, 1]]))
    assert source.problem == ''
    source._on_message(cloud([[math.nan, 0, 1]]))
    assert 'measured nothing' in source.problem


def test_huge_cloud_is_thinned(source: ScaleSource) -> None:
    estimator = choose(source)
    source._on_message(cloud(np.random.default_rng(0).uniform(1, 5, (40_000, 3))))
    choose(source)
    [(_, points, _)] = estimator.calls
    assert len(points) == MOST_IN_FRONT


def test_no_work_while_nobody_wants_a_scale(source: ScaleSource,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    def read(_: Any) -> None:
        raise AssertionError('decoded for nobody')

    monkeypatch.setattr(scale_sources, 'cloud_points', read)
    source._on_message(cloud([[0, 0, 1]]))
    choose(source)
    source._wanted_at -= 2 * scale_sources.IDLE_S
    source._on_message(cloud([[0, 0, 1]]))
    assert not source._waiting


def test_other_sources_take_no_points(source: ScaleSource) -> None:
    estimator = choose(source)
    source._on_message(cloud([[0, 0, 1]]))
    assert choose(source, wanted(source='fixed', scale=2.0)) == Scale('fixed', 2.0)
    assert choose(source, wanted(source='model')) == Scale()
    assert source.facts() == {}
    assert choose(source) is estimator
    assert estimator.calls == [], 'what came before the change of source is forgotten'


def test_ground_gets_the_mount(source: ScaleSource) -> None:
    mount = Mount.from_angles(0.8, 10.0)
    parameters = wanted(source='ground')
    estimator = source.choose(HEADER, parameters, mount)
    assert estimator.mount == mount
    source.choose(HEADER, parameters, None)
    assert estimator.mount is None


def test_parameters_change_the_estimators_while_they_work(source: ScaleSource) -> None:
    estimator = choose(source)
    before, resets = estimator.settings, estimator.resets
    choose(source, wanted(max_uncertainty=0.033))
    assert estimator.settings != before
    assert dataclasses.replace(estimator.settings) == estimator.settings
    assert '0.033' in str(estimator.settings)
    assert estimator.resets == resets, 'a change of settings keeps the estimate'


def test_reset_forgets_everything(source: ScaleSource) -> None:
    estimator = choose(source)
    source._on_message(cloud([[0, 0, -1]]))
    choose(source)
    source._on_message(cloud([[0, 0, 1]]))
    resets = estimator.resets
    source.reset()
    assert estimator.resets == resets + 1
    choose(source)
    assert estimator.calls == []
    assert source.problem == ''


def test_watching_a_source_that_is_not_wanted_subscribes_to_nothing(source: ScaleSource) -> None:
    source.watch(wanted(source='model'), active=True)
    source.watch(wanted(), active=False)
    assert source.qos == {}
    assert source._transforms.missing == ''
    assert source._transforms._buffer is None
    source.watch(wanted(extrinsic_from='parameter'), active=True)
    assert source._transforms._buffer is None, 'nobody needs TF'
    source.watch(wanted(), active=True)
    assert source._transforms._buffer is not None
    choose(source)
    assert 'nobody publishes /scan (scale.points_topic)' in source.problem
    assert SimpleNamespace(**source.facts()).type == 'not known yet'


def test_the_nodes_own_points_are_neither_recommended_nor_taken(source: ScaleSource) -> None:
    topic = source._topic
    publisher = topic._node.create_publisher(PointCloud2, '/mono_depth/points', 10)
    topic._own = lambda: {'/mono_depth/points'}
    try:
        deadline = time.monotonic() + 10
        while not topic._node.count_publishers('/mono_depth/points'):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        source.watch(wanted(), active=True)
        choose(source)
        assert 'there is no topic of type' in source.problem
        assert 'is the driver running?' in source.problem
        topic.topic = '/mono_depth/points'
        source.watch(wanted(), active=True)
        assert 'the network would measure itself' in source.problem
        assert source.qos == {}
    finally:
        topic._node.destroy_publisher(publisher)
