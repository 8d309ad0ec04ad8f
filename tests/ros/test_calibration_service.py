"""`~/calibrate_scale` over real DDS, and `depth-node calibrate --live` as a process."""

from __future__ import annotations

from collections.abc import Callable
import json
from pathlib import Path
import signal
import subprocess
import sys
import time
from typing import Any

from depth_node.ros.calibration_client import CalibrationClientError, ask
import numpy as np
import pytest
import ros_rig
from ros_rig import CX, CY, FX, FY, IMAGE_TOPIC, NETWORK_HW, Peer
from sensor_msgs.msg import Image, PointCloud2, PointField
from std_srvs.srv import Trigger
import yaml

PICTURE = np.full((*NETWORK_HW, 3), 60, np.uint8)  # red 60: 1.6 m
OWN_M = float(ros_rig.red_to_depth(60))
# a tape runs along the ray; the middle of the picture is not the principal point
RAY = float(np.hypot(np.hypot((31.5 - CX) / FX, (23.5 - CY) / FY), 1.0))


def calibrate(peer: Peer, send: Callable[[Any], None], rgb: np.ndarray = PICTURE) -> Any:
    """Call the service while the camera runs; return the response."""
    client = peer.node.create_client(Trigger, '/mono_depth/calibrate_scale')
    try:
        peer.wait(client.service_is_ready, what='the service')
        future = client.call_async(Trigger.Request())
        peer.send_until(send, lambda: peer.image(rgb), future.done)
        return future.result()
    finally:
        peer.node.destroy_client(client)


def test_distance_is_put_in_force_and_kept(peer: Peer, tmp_path: Path) -> None:
    file = tmp_path / 'scale.yaml'
    assert peer.set(calibration__distance_m=2.0, calibration__frames=5,
                    calibration__file=str(file)) == ''
    send = peer.camera(peer.info())
    answer = calibrate(peer, send)  # nobody subscribes to depth
    assert answer.success, answer.message
    assert str(file) in answer.message
    factor = 2.0 / RAY / OWN_M
    assert peer.get('scale.source') == 'fixed'
    assert peer.get('scale.scale') == pytest.approx(factor, rel=1e-4)
    assert yaml.safe_load(file.read_text())['/**']['ros__parameters']['scale'][
        'scale'] == pytest.approx(factor, rel=1e-4)
    depths = peer.collect('~/depth/image', Image)
    peer.send_until(send, lambda: peer.image(PICTURE), lambda: depths)
    np.testing.assert_allclose(ros_rig.depth_of(depths[-1]), 2.0 / RAY, rtol=1e-3)
    # once more, with a scale in force already: the same factor, not its square
    answer = calibrate(peer, send)
    assert answer.success, answer.message
    assert peer.get('scale.scale') == pytest.approx(factor, rel=1e-3)


def test_what_cannot_be_is_said_and_changes_nothing(peer: Peer) -> None:
    send = peer.camera(peer.info())
    answer = calibrate(peer, send)
    assert not answer.success
    assert 'calibration.distance_m is not set' in answer.message
    assert peer.set(calibration__method='sensor') == ''
    assert 'set it to points or ground' in calibrate(peer, send).message
    assert peer.set(calibration__method='chessboard', calibration__timeout_s=0.6) == ''
    answer = calibrate(peer, send)
    assert not answer.success
    assert 'no chessboard was seen' in answer.message
    assert peer.set(calibration__method='distance', calibration__distance_m=500.0,
                    calibration__frames=4) == ''
    answer = calibrate(peer, send)
    assert not answer.success
    assert 'in metres' in answer.message
    assert peer.get('scale.source') == 'model'
    assert peer.transition('deactivate')
    answer = peer.call(Trigger, 'calibrate_scale', Trigger.Request())
    assert not answer.success
    assert 'not active' in answer.message


def test_deactivation_answers_a_running_calibration(peer: Peer) -> None:
    assert peer.set(calibration__distance_m=2.0, calibration__timeout_s=60.0) == ''
    client = peer.node.create_client(Trigger, '/mono_depth/calibrate_scale')
    peer.wait(client.service_is_ready, what='the service')
    future = client.call_async(Trigger.Request())
    peer.spin(0.3)
    second = client.call_async(Trigger.Request())
    peer.wait(second.done, what='the second answer')
    assert 'running already' in second.result().message
    assert not future.done()
    assert peer.transition('deactivate')
    peer.wait(future.done, what='the answer of the calibration that was stopped')
    assert 'deactivated' in future.result().message
    peer.node.destroy_client(client)


def test_filters_and_scale_in_force_do_not_hide_the_reference(peer: Peer) -> None:
    """The range of the filters, a wrong scale and the mean over time concern what is published."""
    assert peer.set(calibration__distance_m=2.0, calibration__frames=3, scale__source='fixed',
                    scale__scale=40.0, filter__near_m=0.5, filter__far_m=3.0,
                    filter__temporal='ema', filter__ignore='[[0,0],[63,0],[63,47],[0,47]]') == ''
    send = peer.camera(peer.info())
    depths = peer.collect('~/depth/image', Image)
    answer = calibrate(peer, send)
    assert answer.success, answer.message
    assert peer.get('scale.scale') == pytest.approx(2.0 / RAY / OWN_M, rel=1e-4)
    assert depths
    assert not np.isfinite(ros_rig.depth_of(depths[0])).any(), 'what is published stays filtered'


def test_cleanup_in_the_middle_answers_and_the_node_lives_on(peer: Peer) -> None:
    assert peer.set(calibration__distance_m=2.0, calibration__timeout_s=60.0) == ''
    client = peer.node.create_client(Trigger, '/mono_depth/calibrate_scale')
    peer.wait(client.service_is_ready, what='the service')
    future = client.call_async(Trigger.Request())
    peer.spin(0.3)
    assert peer.transition('deactivate')
    assert peer.transition('cleanup')  # before the node has seen that the calibration is over
    peer.wait(future.done, what='the answer of the calibration that was stopped')
    assert not future.result().success
    peer.node.destroy_client(client)
    assert peer.transition('configure')
    assert peer.transition('activate')
    peer.wait(lambda: len([name for name, _ in peer.node.get_service_names_and_types_by_node(
        'mono_depth', '/') if name.endswith('calibrate_scale')]) == 1, what='one service')
    answer = calibrate(peer, peer.camera(peer.info()))
    assert answer.success, answer.message


def run_live(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, '-m', 'depth_node.cli', 'calibrate', *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_live_command_of_a_node_that_will_not(peer: Peer, tmp_path: Path) -> None:
    """Inactive, refusing, and interrupted by Ctrl-C while it waits: quick, and no traceback."""
    out = '-o', tmp_path / 'x.yaml'
    waiting = run_live('--live', 'mono_depth', '--distance', 2.0, *out)
    peer.wait(lambda: peer.get('calibration.distance_m') == 2.0, timeout_s=40.0,
             what='the request')
    peer.spin(1.0)
    waiting.send_signal(signal.SIGINT)
    began = time.monotonic()
    output, errors = waiting.communicate(timeout=10)
    assert (waiting.returncode, output) == (130, '')
    assert time.monotonic() - began < 5
    assert 'Traceback' not in errors
    with pytest.raises(CalibrationClientError, match=r'/mono_depth refuses: .*5000'):
        ask('/mono_depth', '', {'calibration.distance_m': 5000.0, 'calibration.frames': 7})
    assert peer.get('calibration.distance_m') == 2.0
    assert peer.get('calibration.frames') != 7, 'all or nothing'
    with pytest.raises(CalibrationClientError, match="no camera 'rear'; it has one without"):
        ask('/mono_depth', 'rear', {'calibration.distance_m': 2.0})
    assert peer.transition('deactivate')
    with pytest.raises(CalibrationClientError, match='not active'):
        ask('mono_depth', '', {'calibration.distance_m': 2.0})
    assert not list(tmp_path.iterdir())


def test_live_command_tells_of_a_node_that_ends(
    start: Callable[..., ros_rig.Process], own: Peer, tmp_path: Path
) -> None:
    process = start()
    own.wait(lambda: own.node.count_subscribers(IMAGE_TOPIC), what='the node')
    asking = run_live('--live', '/own', '--distance', 2.0, '-o', tmp_path / 'x.yaml')
    own.wait(lambda: own.get('calibration.distance_m') == 2.0, timeout_s=40.0,
             what='the request')
    own.spin(1.0)
    assert process.stop() == 0, process.log
    assert 'Traceback' not in process.log
    assert 'never awaited' not in process.log
    output, errors = asking.communicate(timeout=30)
    assert (asking.returncode, output) == (1, '')
    assert 'went away' in errors


def test_sensor_keeps_what_points_found(peer: Peer) -> None:
    """Points on the picture's surfaces, 1.3 times as far as the network says."""
    v, u = np.mgrid[:NETWORK_HW[0], :NETWORK_HW[1]]
    rgb = np.zeros((*NETWORK_HW, 3), np.uint8)
    rgb[..., 0] = 2 * u + v + 20 * np.sin(u / 6.0) * np.sin(v / 9.0)
    z = 1.3 * ros_rig.red_to_depth(rgb[..., 0])[1:-1:3, 1:-1:3]
    v, u = v[1:-1:3, 1:-1:3], u[1:-1:3, 1:-1:3]
    points = np.stack([(u - CX) / FX * z, (v - CY) / FY * z, z], -1).reshape(-1, 3)
    assert peer.set(scale__source='points', calibration__method='sensor',
                    calibration__frames=3) == ''
    camera = peer.camera(peer.info())
    sensor = peer.publisher('/scan', PointCloud2)

    def both(message: Any) -> None:
        cloud = PointCloud2(
            height=1, width=len(points), point_step=12, row_step=12 * len(points), is_dense=True,
            fields=[PointField(name=axis, offset=4 * index, datatype=PointField.FLOAT32, count=1)
                    for index, axis in enumerate('xyz')])
        cloud.data.frombytes(points.astype(np.float32).tobytes())
        cloud.header = message.header
        sensor.publish(cloud)
        camera(message)

    answer = calibrate(peer, both, rgb)
    assert answer.success, answer.message
    assert 'estimates of the sensor' in answer.message
    assert peer.get('scale.source') == 'fixed'
    assert peer.get('scale.scale') == pytest.approx(1.3, rel=0.02)


def test_each_of_two_cameras_has_its_own(
    start: Callable[..., ros_rig.Process], own: Peer, tmp_path: Path
) -> None:
    """Both at once; what is found goes to the camera, and beside the other's in one file."""
    cameras = 'front', 'left'
    start(*(part for name in cameras for part in (
        '-r', f'{name}/image:=/{name}/image_raw', '-r', f'{name}/camera_info:=/{name}/info')),
        cameras=list(cameras), calibration__frames=4)
    send = {name: own.camera(own.info(), image_topic=f'/{name}/image_raw',
                             info_topic=f'/{name}/info') for name in cameras}
    pictures = {name: np.full((*NETWORK_HW, 3), red, np.uint8)
                for name, red in (('front', 60), ('left', 110))}
    file = tmp_path / 'two.yaml'
    asking = {name: run_live('--live', '/own', '--camera', name, *more, '-o', file)
              for name, more in (('front', ('--distance', 2.0)),
                                 ('left', ('--distance', 3.0, '--at', 10, 30, '--json')))}
    end = time.monotonic() + 30
    while any(process.poll() is None for process in asking.values()):
        assert time.monotonic() < end
        for name in cameras:
            send[name](own.image(pictures[name]))
        own.spin(0.03)
    for name, process in asking.items():
        output, errors = process.communicate()
        assert process.returncode == 0, (name, output, errors)
        if name == 'left':
            assert json.loads(output)['file'] == str(file)
    ray = np.hypot(np.hypot((10 - CX) / FX, (30 - CY) / FY), 1.0)
    wanted = {'front': 2.0 / RAY / OWN_M, 'left': 3.0 / ray / float(ros_rig.red_to_depth(110))}
    written = yaml.safe_load(file.read_text())['/**']['ros__parameters']
    for name in cameras:
        assert own.get(f'{name}.scale.source') == 'fixed'
        assert own.get(f'{name}.scale.scale') == pytest.approx(wanted[name], rel=1e-4)
        assert written[name]['scale']['scale'] == pytest.approx(wanted[name], rel=1e-4)
    assert own.get('scale.source') == 'model', 'the shared one stays'
    with pytest.raises(CalibrationClientError, match=r'choose one \(--camera\): front, left'):
        ask('/own', '', {'calibration.distance_m': 2.0})
