"""`~/calibrate_scale` over real DDS, and `depth-node calibrate --live` as a process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import ros_rig
from ros_rig import CX, CY, FX, FY, NETWORK_HW, Peer
from sensor_msgs.msg import Image
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


def test_live_command(peer: Peer, node_env: dict[str, str], tmp_path: Path) -> None:
    send = peer.camera(peer.info())
    process = subprocess.Popen(
        [sys.executable, '-m', 'depth_node.cli', 'calibrate', '--live', 'mono_depth',
         '--distance', '2.4', '--at', '10', '30', '-o', str(tmp_path / 'live.yaml')],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    peer.send_until(send, lambda: peer.image(PICTURE), lambda: process.poll() is not None,
                    timeout_s=40.0)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    ray = np.hypot(np.hypot((10 - CX) / FX, (30 - CY) / FY), 1.0)
    found = yaml.safe_load((tmp_path / 'live.yaml').read_text())['/**']['ros__parameters']
    assert found['scale']['scale'] == pytest.approx(2.4 / ray / OWN_M, rel=1e-3)
    assert 'live.yaml' in output
