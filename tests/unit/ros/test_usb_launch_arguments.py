"""Arguments of usb_camera.launch.py, without launch."""

from __future__ import annotations

import math
from pathlib import Path

from depth_node.ground import Mount
from depth_node.ros.launch_arguments import ArgumentError
from depth_node.ros.usb_launch_arguments import USB_ARGUMENTS, USB_FRAME, usb_launch
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

DEFAULTS = {name: default for name, (default, _) in USB_ARGUMENTS.items()}


@pytest.mark.parametrize(('pitch', 'yaw'), [(0, 0), (25, 0), (-10, 30), (40, -120)])
def test_transform_is_that_of_a_camera_so_mounted(pitch: float, yaw: float):
    wanted = usb_launch({**DEFAULTS, 'pitch_deg': str(pitch), 'yaw_deg': str(yaw), 'z': '0.4',
                         'x': '0.2'}).transform
    given = dict(zip(wanted[::2], wanted[1::2], strict=True))
    assert given['--child-frame-id'] == USB_FRAME
    assert [float(given[key]) for key in ('--x', '--y', '--z')] == [0.2, 0.0, 0.4]
    turn = Rotation.from_euler('xyz', [float(given[f'--{name}'])
                                       for name in ('roll', 'pitch', 'yaw')]).as_matrix()
    # the optical axis points where the angles say, and the picture's right side lies level
    down, left = math.radians(pitch), math.radians(yaw)
    np.testing.assert_allclose(turn[:, 2], [math.cos(down) * math.cos(left),
                                            math.cos(down) * math.sin(left), -math.sin(down)],
                               atol=1e-6)
    assert turn[2, 0] == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(turn.T @ [0, 0, 1], Mount.from_angles(0.4, pitch).up, atol=1e-6)


def test_parameters_of_the_camera():
    wanted = usb_launch({**DEFAULTS, 'camera_info_url': '/home/me/camera.yaml',
                         'framerate': '15'}).parameters
    assert wanted['camera_info_url'] == 'file:///home/me/camera.yaml'
    assert wanted['framerate'] == 15.0
    assert type(wanted['framerate']) is float
    assert (wanted['image_width'], wanted['image_height']) == (640, 480)
    assert wanted['frame_id'] == USB_FRAME
    with pytest.raises(ArgumentError, match='z:=high: expected a number'):
        usb_launch({**DEFAULTS, 'z': 'high'})


@pytest.mark.parametrize(('name', 'value'), [
    ('framerate', 'nan'), ('z', 'inf'), ('image_width', '0'), ('image_height', '480.5')])
def test_numbers_that_no_camera_takes(name: str, value: str):
    with pytest.raises(ArgumentError, match=f'{name}:={value}: expected a'):
        usb_launch({**DEFAULTS, name: value})


@pytest.mark.parametrize(('given', 'url'), [
    ('', ''), ('package://robot/camera.yaml', 'package://robot/camera.yaml'),
    ('~/camera.yaml', f'file://{Path.home()}/camera.yaml'),
    ('camera.yaml', f'file://{Path.cwd()}/camera.yaml')])
def test_calibration_becomes_a_url(given: str, url: str):
    wanted = usb_launch({**DEFAULTS, 'camera_info_url': given}).parameters
    assert wanted['camera_info_url'] == url
