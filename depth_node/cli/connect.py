"""`depth-node connect`: configurations of Nav2, MoveIt and others for a camera and a robot."""

from __future__ import annotations

import argparse
from pathlib import Path
import re

from depth_node.cli import UsageError
from depth_node.cli._common import positive_float, table
from depth_node.cli._pictures import CameraChoice, add_camera_arguments

HELP = 'ready configurations of Nav2, MoveIt and others'

_EPILOG = """\
Without a name: the list. The files in config/ are the same, for a camera of 640x480 with 60
degrees.

examples:
  depth-node connect
  depth-node connect nav2_stvl --camera-yaml camera.yaml > stvl.yaml
  depth-node connect nav2_voxel_layer --node /mono_depth/front --far 6 --max-height 1.2
  depth-node connect moveit_cloud --far 1.5 --near 0.15 -o sensors_3d.yaml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = _EPILOG
    parser.add_argument('name', nargs='?', metavar='NAME', help='of the list')
    parser.add_argument('--node', default='/mono_depth', metavar='NAME',
                        help='full name of the depth node (/mono_depth); of one that serves '
                        'several cameras: /mono_depth/<camera>')
    parser.add_argument('--base', default='base_link', metavar='FRAME',
                        help='frame of the robot, z up (base_link)')
    parser.add_argument('--near', type=positive_float, default=0.3, metavar='M',
                        help='nearer depths are not trusted (0.3)')
    parser.add_argument('--far', type=positive_float, default=4.0, metavar='M',
                        help='farther obstacles are left for later (4)')
    parser.add_argument('--min-height', type=float, default=0.1, metavar='M',
                        help='lower points are the floor (0.1)')
    parser.add_argument('--max-height', type=float, default=1.5, metavar='M',
                        help='the robot passes below higher points (1.5)')
    parser.add_argument('--size', type=_size, default=(480, 640), metavar='WxH',
                        help='with --hfov: of the depth image (640x480)')
    parser.add_argument('-o', '--out', type=Path, metavar='FILE',
                        help='write there instead of printing')
    add_camera_arguments(parser)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r'(\d+)x(\d+)', text.lower())
    if match is None or 0 in (int(match[1]), int(match[2])):
        raise argparse.ArgumentTypeError(f'{text!r}: expected width x height, such as 640x480')
    return int(match[2]), int(match[1])


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    from depth_node.camera import Camera
    from depth_node.cli import _writers
    from depth_node.ros.consumers import CONSUMERS, Robot

    if args.name is None:
        print(table([('name', 'for'), *((name, consumer.words)
                                        for name, consumer in CONSUMERS.items())], right=False))
        return 0
    if args.name not in CONSUMERS:
        raise UsageError(f'{args.name!r}: expected one of {", ".join(CONSUMERS)}')
    if args.camera_yaml:
        camera = Camera.from_yaml(args.camera_yaml).rectified()
    else:
        camera = CameraChoice(args).of(args.size) or Camera.from_fov(args.size, 60.0)
    try:
        robot = Robot(camera, args.node, args.base, args.near, args.far, args.min_height,
                      args.max_height)
    except ValueError as error:
        raise UsageError(str(error)) from error
    text = CONSUMERS[args.name].text(robot)
    if args.out:
        print(_writers.write_text(args.out, text))
    else:
        print(text, end='')
    return 0
