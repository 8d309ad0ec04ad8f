"""Transitions, start, end, and what cannot be configured."""

from __future__ import annotations

from collections.abc import Callable
import itertools
import os
from pathlib import Path
import shutil
import signal
import time
from typing import Any

import numpy as np
import pytest
from rcl_interfaces.msg import ParameterType
from rcl_interfaces.srv import DescribeParameters
import ros_rig
from ros_rig import IMAGE_TOPIC, NETWORK_HW, Peer, values_of
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_srvs.srv import Trigger

PICTURE = np.full((*NETWORK_HW, 3), 60, np.uint8)


def test_transitions_and_what_each_state_publishes(peer: Peer) -> None:
    assert peer.state() == 'active'
    depths = peer.collect('~/depth/image', Image)
    send = peer.camera(peer.info())
    peer.send_until(send, lambda: peer.image(PICTURE), lambda: depths)

    assert peer.transition('deactivate')
    assert peer.state() == 'inactive'
    peer.spin(0.2)
    depths.clear()
    for _ in range(10):
        send(peer.image(PICTURE))
        peer.spin(0.03)
    assert not depths
    found = peer.diagnostics('input', lambda status: int(
        values_of(status).get('skipped inactive', '0')) >= 5)
    assert found.message == 'the node is inactive'

    assert peer.transition('activate')
    peer.send_until(send, lambda: peer.image(PICTURE), lambda: depths)

    assert peer.transition('deactivate')
    assert peer.transition('cleanup')
    assert peer.state() == 'unconfigured'
    peer.wait(lambda: not peer.node.count_publishers('/mono_depth/depth/image'),
              what='the outputs to go')
    assert not peer.transition('activate'), 'there is no way from unconfigured to active'
    found = peer.diagnostics('model', lambda status: 'unconfigured' in status.message)
    assert found.level == b'\x01'
    assert peer.transition('configure')
    assert peer.transition('activate')
    depths.clear()
    peer.send_until(send, lambda: peer.image(PICTURE), lambda: depths)


def test_reset_service(peer: Peer) -> None:
    reply = peer.call(Trigger, 'reset', Trigger.Request())
    assert reply.success
    depths = peer.collect('~/depth/image', Image)
    peer.send_until(peer.camera(peer.info()), lambda: peer.image(PICTURE), lambda: depths)


@pytest.mark.parametrize(('changes', 'together', 'reason'), [
    (dict(cloud__stride=0), False, 'out of range'),
    (dict(cloud__stride=2.5), False, 'Wrong parameter type'),
    (dict(cloud__roi=[1, 2, 3]), False, '4 whole numbers'),
    (dict(depth__encoding='mono8'), False, '32FC1, 16UC1'),
    (dict(depth__publish='yes'), False, 'Wrong parameter type'),
    (dict(filter__far_m=-1.0), False, 'out of range'),
    (dict(filter__far_m=-1), False, '0 to 1000 m'),
    (dict(filter__far_m=float('nan')), False, 'out of range'),
    (dict(filter__far_m='far'), False, "found 'far' (str), expected a number"),
    (dict(filter__near_m=2.0, filter__far_m=1.0), True, 'not below'),
    (dict(filter__near_m=5.0), False, 'expected near < far'),  # the card ends at 3 m
    (dict(depth__color_near_m=9.0), False, 'not below'),
    (dict(scale__source='lidar'), False, 'model, fixed'),
    (dict(model__name='other'), False, 'cleanup'),
    (dict(autostart=False), False, 'read-only'),
])
def test_bad_parameters_are_refused_with_a_reason(
        peer: Peer, changes: dict[str, Any], together: bool, reason: str) -> None:
    before = {name: peer.get(name.replace('__', '.')) for name in changes}
    answer = peer.set(together=together, **changes)
    assert reason in answer
    assert {name: peer.get(name.replace('__', '.')) for name in changes} == before


def test_whole_numbers_and_yaml_switches_are_taken(peer: Peer) -> None:
    assert peer.set(filter__far_m=2, input__fov_deg=60) == ''
    assert peer.get('filter.far_m') == 2
    assert peer.set(input__rectify=False) == ''  # what YAML makes of a bare `off`
    assert peer.set(input__rectify='on') != ''
    request = DescribeParameters.Request(names=['cloud.stride', 'depth.color_far_m'])
    stride, far = peer.call(DescribeParameters, 'describe_parameters', request).descriptors
    assert (stride.type, stride.integer_range[0].to_value) == (
        ParameterType.PARAMETER_INTEGER, 64)
    assert far.floating_point_range[0].from_value == 0.01
    assert 'ast colour' in far.description


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_node_with_zero(
        start: Callable[..., ros_rig.Process], number: int, own: Peer) -> None:
    process = start()
    process.wait_for_log('active: waiting')
    depths = own.collect('~/depth/image', Image)
    own.send_until(own.camera(own.info()), lambda: own.image(PICTURE), lambda: depths)
    began = time.monotonic()
    process.popen.send_signal(number)
    if number == signal.SIGINT:  # a terminal's Ctrl-C reaches a launched node twice
        time.sleep(0.02)
        process.popen.send_signal(number)
    assert process.popen.wait(20) == 0, process.log
    assert time.monotonic() - began < 10
    assert 'Traceback' not in process.log


@pytest.mark.parametrize(('given', 'reason'), [
    # a low robot: far away, with its margin, what is an obstacle ends below where it begins
    ({'scan.max_height_m': 0.25, 'mount.height_m': 0.2}, 'scan: '),
    ({'filter.mask_file': '/no/such/mask.png'}, 'filter.mask_file'),
    ({'filter.ignore': ['1,2,3']}, 'filter.ignore'),
])
def test_what_cannot_be_used_at_start_stops_configure_with_its_reason(
        start: Callable[..., ros_rig.Process], own: Peer, given: dict[str, Any],
        reason: str) -> None:
    process = start(**given)
    process.wait_for_log('not configured: ')
    said = next(line for line in process.log.splitlines() if 'not configured: ' in line)
    assert reason in said
    assert 'Traceback' not in process.log
    assert own.state() == 'unconfigured'


def test_shutdown_transition_is_final(
        start: Callable[..., ros_rig.Process], own: Peer) -> None:
    process = start()
    process.wait_for_log('active: waiting')
    assert own.transition('active_shutdown')
    assert own.state() == 'finalized'
    own.wait(lambda: not own.node.count_publishers('/own/depth/image'), what='the outputs to go')
    found = own.diagnostics('model', lambda status: 'finalized' in status.message)
    assert found.level == b'\x01'
    assert process.stop(signal.SIGTERM) == 0


def test_simulated_time_without_a_clock_stops_nothing(
        start: Callable[..., ros_rig.Process], own: Peer) -> None:
    process = start(use_sim_time=True)
    process.wait_for_log('active: waiting')
    depths = own.collect('~/depth/image', Image)
    own.send_until(own.camera(own.info()), lambda: own.image(PICTURE), lambda: depths)
    found = own.diagnostics('input', lambda status: values_of(status)['received'] != '0')
    assert values_of(found)['age_ms'] == 'unknown'  # nobody knows what time it is


def test_simulated_time_that_goes_back_is_survived(
        start: Callable[..., ros_rig.Process], own: Peer) -> None:
    from rosgraph_msgs.msg import Clock

    process = start(use_sim_time=True)
    process.wait_for_log('active: waiting')
    clock = own.publisher('/clock', Clock)
    depths = own.collect('~/depth/image', Image)
    camera = own.camera(own.info())

    def send(message: Any) -> None:
        clock.publish(Clock(clock=message.header.stamp))
        camera(message)

    for begin in (2000.0, 1000.0):  # the bag is played twice
        own._clock = begin
        depths.clear()
        own.send_until(send, lambda: own.image(PICTURE), lambda: len(depths) >= 3)
    found = own.diagnostics('input', lambda status: values_of(status)['clock_jumps'] == '1')
    assert abs(float(values_of(found)['age_ms'])) < 1000
    assert 'Traceback' not in process.log


def test_missing_card_is_named_and_can_be_repaired(
        start: Callable[..., ros_rig.Process], own: Peer) -> None:
    process = start(model__name='no_such_model')
    process.wait_for_log('not configured')
    assert "no model card named 'no_such_model'" in process.log
    found = process.log.partition('found: ')[2].partition(';')[0].split(', ')
    assert {'confident', 'slow', 'tiny'} <= set(found)
    assert 'ros2 lifecycle set /own configure' in process.log
    assert own.state() == 'unconfigured'
    status = own.diagnostics('model', lambda status: status.level == b'\x02')
    assert 'no_such_model' in status.message
    assert not own.transition('configure')

    assert own.set(model__name='tiny') == ''
    assert own.transition('configure')
    assert own.transition('activate')
    found = own.diagnostics('model', lambda status: status.level == b'\x00')
    assert values_of(found)['backend'] == 'onnxruntime'
    depths = own.collect('~/depth/image', Image)
    own.send_until(own.camera(own.info()), lambda: own.image(PICTURE), lambda: depths)


def _other_bytes(folder: Path) -> None:
    with open(folder / 'tiny.onnx', 'ab') as file:
        file.write(b'\0')


def _no_file(folder: Path) -> None:
    (folder / 'tiny.onnx').unlink()


def _another_kind(folder: Path) -> None:
    card = folder / 'tiny.yaml'
    card.write_text(card.read_text().replace('kind: depth', 'kind: distance'))


def _another_size(folder: Path) -> None:
    card = folder / 'tiny.yaml'
    card.write_text(card.read_text().replace('- 48', '- 56'))


def _no_yaml(folder: Path) -> None:
    (folder / 'tiny.yaml').write_text('card_version: [1')


@pytest.mark.parametrize(('damage', 'said'), [
    (_other_bytes, 'SHA-256'), (_no_file, 'cannot be read'), (_another_kind, "found 'distance'"),
    (_another_size, 'in the graph, the card says'), (_no_yaml, 'not a readable YAML')])
def test_a_card_that_lies_is_refused_and_can_be_repaired(
        peer: Peer, models: Path, tmp_path: Path, damage: Callable[[Path], None], said: str,
        shared_process: ros_rig.Process) -> None:
    for file in ('tiny.yaml', 'tiny.onnx'):
        shutil.copy(models / file, tmp_path)
    damage(tmp_path)
    assert peer.transition('deactivate')
    assert peer.transition('cleanup')
    assert peer.set(model__name=str(tmp_path / 'tiny.yaml')) == ''
    assert not peer.transition('configure')
    assert peer.state() == 'unconfigured'
    found = peer.diagnostics('model', lambda status: status.level == b'\x02')
    assert said in found.message
    assert found.message in shared_process.log
    for file in ('tiny.yaml', 'tiny.onnx'):
        shutil.copy(models / file, tmp_path)
    assert peer.transition('configure')
    assert peer.transition('activate')


def test_bad_values_at_start_leave_the_node_unconfigured_until_set(
        start: Callable[..., ros_rig.Process], own: Peer, tmp_path: Path) -> None:
    file = tmp_path / 'mine.yaml'
    file.write_text('/**:\n  ros__parameters:\n    cloud: {stride: 0}\n'
                    '    depth: {encodng: 16UC1}\n    filter: {far_m: 2}\n'
                    '    input: {rectify: off}\n')
    process = start('--params-file', str(file))
    process.wait_for_log('not configured')
    assert 'cloud.stride: found 0, expected 1 to 64 px' in process.log
    assert "no parameter 'depth.encodng'; did you mean 'depth.encoding'?" in process.log
    found = own.diagnostics('parameters', lambda status: status.level == b'\x02')
    assert 'cloud.stride' in found.message
    assert own.get('filter.far_m') == 2
    assert own.get('input.rectify') == 'off'
    assert not own.transition('configure')
    assert own.set(cloud__stride=2) == ''
    assert own.transition('configure')
    assert own.transition('activate')


def test_a_file_that_is_no_yaml_ends_the_start_with_a_reason(
        start: Callable[..., ros_rig.Process], tmp_path: Path) -> None:
    file = tmp_path / 'broken.yaml'
    file.write_text('/**:\n  ros__parameters: [')
    process = start('--params-file', str(file))
    assert process.popen.wait(30) == 2
    assert 'cannot start' in process.log
    assert str(file) in process.log


def test_silence_lists_the_image_topics_and_the_arguments(
        start: Callable[..., ros_rig.Process], own: Peer) -> None:
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import CompressedImage

    own.advertise('/front/image_raw', Image, qos_profile_sensor_data)
    own.advertise('/rear/image/compressed', CompressedImage, 1)
    process = start(input__timeout_s=2.0)
    process.wait_for_log('there is /rear/image/compressed')  # logged again as topics are found
    process.wait_for_log('there is /front/image_raw')
    log = process.log
    assert f'no image on {IMAGE_TOPIC} for 2 s' in log
    assert '/front/image_raw (raw, best effort, volatile)' in log
    assert 'image_topic:=/front/image_raw (launch)' in log
    assert '-r image:=/rear/image -p input.transport:=compressed (run)' in log
    assert '/own/depth/image' not in log.partition('no image on')[2]
    own.spin(3.0)
    said = [tuple(line for line in part.splitlines() if line.startswith('  '))
            for part in process.log.split('no image on')[1:]]
    assert all(before != after for before, after in itertools.pairwise(said)), 'said once'
    found = own.diagnostics('input', lambda status: status.level == b'\x02')
    assert 'no image on' in found.message
    assert any('/front/image_raw' in value for value in values_of(found).values())
    depths = own.collect('~/depth/image', Image)
    own.send_until(own.camera(own.info()), lambda: own.image(PICTURE), lambda: depths)
    process.wait_for_log('images arrive')
    own.forget()
    own.wait(lambda: 'no image on' in process.log.partition('images arrive')[2],
             what='a second silence')


def test_the_type_of_the_topic_is_named(
        start: Callable[..., ros_rig.Process], own: Peer) -> None:
    from sensor_msgs.msg import CompressedImage

    own.advertise(IMAGE_TOPIC, CompressedImage, 1)
    process = start(input__timeout_s=1.0)
    process.wait_for_log('set input.transport to compressed')


def test_qos_that_does_not_match_is_named(
        start: Callable[..., ros_rig.Process], own: Peer) -> None:
    from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy

    process = start('-p', f'qos_overrides.{IMAGE_TOPIC}.subscription.reliability:=reliable')
    process.wait_for_log('active: waiting')
    camera = own.advertise(
        IMAGE_TOPIC, Image, QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT))
    # the name of the node is discovered after its publisher
    found = own.diagnostics('qos', lambda status: (
        f'{IMAGE_TOPIC}: publisher /test_peer offers best effort' in status.message))
    assert found.level == b'\x02'
    process.wait_for_log('offers QoS that this node cannot receive (policy: reliability)')
    own.withdraw(camera)
    own.diagnostics('qos', lambda status: status.level == b'\x00')

    latched = own.node.create_subscription(
        Image, '/own/depth/image', print,
        QoSProfile(depth=1, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL))
    found = own.diagnostics('qos', lambda status: '/own/depth/image' in status.message)
    assert 'transient local' in found.message
    process.wait_for_log('asks for QoS that this node does not offer (policy: durability)')
    own.node.destroy_subscription(latched)


def test_best_effort_subscribers_of_large_messages_are_named(
        peer: Peer) -> None:
    import rclpy

    if 'fastrtps' not in rclpy.utilities.get_rmw_implementation_identifier():
        pytest.skip('only Fast DDS loses large best-effort messages by default')
    if os.environ.get('FASTDDS_DEFAULT_PROFILES_FILE'):
        pytest.skip('a Fast DDS profile is set: large messages pass')
    large = np.full((480, 640, 3), 60, np.uint8)
    infos = peer.collect('~/depth/camera_info', CameraInfo)
    send = peer.camera(peer.info((480, 640)))
    peer.send_until(send, lambda: peer.image(large), lambda: infos)
    peer.diagnostics('qos', lambda status: status.level == b'\x00')
    peer.collect('~/points', PointCloud2, reliable=False)
    found = peer.diagnostics('qos', lambda status: (
        '/test_peer on /mono_depth/points' in status.message))
    assert found.level == b'\x01'
    assert 'config/fastdds_large_messages.xml' in found.message


def test_a_frame_that_is_not_optical_is_remarked(peer: Peer) -> None:
    depths = peer.collect('~/depth/image', Image)
    send = peer.camera(peer.info())
    peer.send_until(send, lambda: peer.image(PICTURE, stamp=time.time(), frame='camera_link'),
                    lambda: depths)
    found = peer.diagnostics('input', lambda status: 'optical' in status.message)
    assert found.level == b'\x01'
    assert depths[-1].header.frame_id == 'camera_link'


def test_stamps_of_another_clock_are_remarked(peer: Peer) -> None:
    depths = peer.collect('~/depth/image', Image)
    peer.send_until(peer.camera(peer.info()), lambda: peer.image(PICTURE), lambda: depths)
    peer.diagnostics('input', lambda status: 'use_sim_time:=true' in status.message)


def test_start_is_quick_and_light(start: Callable[..., ros_rig.Process], own: Peer) -> None:
    depths = own.collect('~/depth/image', Image, wait=False)
    began = time.monotonic()
    process = start()
    process.wait_for_log('active: waiting')
    own.send_until(own.camera(own.info()), lambda: own.image(PICTURE), lambda: depths)
    first_depth_s = time.monotonic() - began
    maps = Path(f'/proc/{process.popen.pid}/maps').read_text()
    assert 'libtorch' not in maps
    status = Path(f'/proc/{process.popen.pid}/status').read_text()
    rss_mb = int(status.partition('VmRSS:')[2].split()[0]) / 1024
    print(f'first depth after {first_depth_s:.1f} s, {rss_mb:.0f} MB')
    assert first_depth_s < 8.0  # 5 s is the promise; the machine of a test may be busy
    assert rss_mb < 350
