"""What usb_camera.launch.py passes to usb_cam and to TF, without launch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
import math
from pathlib import Path
from typing import Any

from depth_node.ros.launch_arguments import ArgumentError

# name -> (default, description), beside those of mono_depth.launch.py
USB_ARGUMENTS: dict[str, tuple[str, str]] = {
    'video_device': ('/dev/video0', 'The camera.'),
    'image_width': ('640', 'Width of its pictures.'),
    'image_height': ('480', 'Height of its pictures.'),
    'framerate': ('30.0', 'Pictures per second.'),
    'pixel_format': ('mjpeg2rgb', 'How the camera sends them: mjpeg2rgb, yuyv2rgb, ...'),
    'camera_info_url': ('', 'Calibration made by camera_calibration, such as '
                        'file:///home/me/camera.yaml; without one there are no points.'),
    'base_frame': ('base_link', 'Frame of the robot that the camera is fixed to.'),
    'x': ('0.0', 'Camera in front of the origin of base_frame, metres.'),
    'y': ('0.0', 'Camera to the left of it, metres.'),
    'z': ('0.3', 'Camera above it, metres.'),
    'pitch_deg': ('0.0', 'Positive looks down.'),
    'yaw_deg': ('0.0', 'Positive looks to the left.'),
}
USB_FRAME = 'camera_optical_frame'


@dataclass(frozen=True)
class UsbLaunch:
    """What starts a USB camera beside mono_depth.

    Attributes:
        parameters: of usb_cam.
        transform: arguments of tf2_ros' static_transform_publisher.
    """

    parameters: dict[str, Any]
    transform: list[str]


def usb_launch(values: Mapping[str, str]) -> UsbLaunch:
    """Turn launch arguments into what usb_cam and the transform of its camera need.

    Args:
        values: every name of `USB_ARGUMENTS`.

    Raises:
        ArgumentError: an argument that cannot be used.
    """
    numbers: dict[str, float] = {}
    for name in ('image_width', 'image_height', 'framerate', 'x', 'y', 'z', 'pitch_deg',
                 'yaw_deg'):
        try:
            numbers[name] = float(values[name])
        except ValueError:
            numbers[name] = math.nan
        if not math.isfinite(numbers[name]):
            raise ArgumentError(f'{name}:={values[name]}: expected a number')
    for name in ('image_width', 'image_height'):
        if numbers[name] < 1 or numbers[name] % 1:
            raise ArgumentError(f'{name}:={values[name]}: expected a whole number above 0')
    url = values['camera_info_url']
    if url and '://' not in url:  # usb_cam takes URLs alone
        url = f'file://{Path(url).expanduser().absolute()}'
    # optical frame: x right, y down, z forward; turned about base_frame's fixed axes x, then z
    roll = -math.radians(90 + numbers['pitch_deg'])
    yaw = math.radians(numbers['yaw_deg'] - 90)
    return UsbLaunch(
        parameters={
            'video_device': values['video_device'], 'framerate': numbers['framerate'],
            'image_width': int(numbers['image_width']),
            'image_height': int(numbers['image_height']),
            'pixel_format': values['pixel_format'], 'frame_id': USB_FRAME,
            'camera_name': 'camera', 'camera_info_url': url},
        transform=[
            '--frame-id', values['base_frame'], '--child-frame-id', USB_FRAME,
            '--x', str(numbers['x']), '--y', str(numbers['y']), '--z', str(numbers['z']),
            '--roll', f'{roll:.7f}', '--pitch', '0', '--yaw', f'{yaw:.7f}'])
