"""What the launch files pass to the node, without launch: arguments in, plain values out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
import os
from pathlib import Path
from typing import Any

IMAGE_TOPIC = '/camera/image_raw'
# name -> (default, description); '' means that the parameters file or the node's default decides
ARGUMENTS: dict[str, tuple[str, str]] = {
    'image_topic': (IMAGE_TOPIC, 'Camera image: sensor_msgs/Image, or CompressedImage where the '
                    'name ends in /compressed or transport is compressed.'),
    'camera_info_topic': ('', 'CameraInfo of that image; empty takes camera_info beside the '
                          'image topic, as camera drivers publish it.'),
    'transport': ('', 'raw or compressed; empty takes input.transport of the parameters.'),
    'model': ('', 'Name or path of a model card; empty takes model.name of the parameters.'),
    'backend': ('', 'Runtime of the network; empty takes backend.name of the parameters.'),
    'precision': ('', 'fp32, bf16, fp16, int8 or auto; empty takes backend.precision of the '
                  'parameters.'),
    'params_file': ('', 'YAML file with parameters; config/mono_depth.yaml has them all.'),
    'namespace': ('', 'Namespace of the node.'),
    'autostart': ('true', 'false leaves configure and activate to a lifecycle manager.'),
    'rviz': ('false', 'Start RViz with rviz/mono_depth.rviz.'),
    'fixed_frame': ('camera_optical_frame', 'Fixed frame of RViz: the frame_id of the images, or '
                    'any frame that TF connects with it.'),
    'use_sim_time': ('false', 'Take the time from /clock: for bags (ros2 bag play --clock) and '
                     'simulators.'),
    'log_level': ('info', 'debug, info, warn, error or fatal.'),
    'fastdds_profile': ('true', 'Let Fast DDS carry images and clouds without loss by '
                        'config/fastdds_large_messages.xml, unless the environment names a '
                        'profile already. The camera driver needs the same setting.'),
}
OUTPUTS = ('depth/image', 'depth/camera_info', 'depth/color', 'points', 'confidence', 'status')
PROFILE_VARIABLES = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')
# Fast DDS 2 there knows only the second name; Fast DDS 3 warns about it.
FAST_DDS_2 = ('humble', 'iron', 'jazzy')
LOG_LEVELS = ('debug', 'info', 'warn', 'error', 'fatal')


class ArgumentError(ValueError):
    """A launch argument that cannot be used."""


@dataclass(frozen=True)
class NodeLaunch:
    """What starts one mono_depth node.

    Attributes:
        parameters: parameter files and dictionaries, later ones win.
        remappings: (from, to) topic names.
        namespace: of the node.
        arguments: ROS arguments.
        env: environment variables to add.
        rviz: whether RViz is wanted.
        rviz_arguments, rviz_remappings: for it.
    """

    parameters: list[Any]
    remappings: list[tuple[str, str]]
    namespace: str
    arguments: list[str]
    env: dict[str, str]
    rviz: bool
    rviz_arguments: list[str] = field(default_factory=list)
    rviz_remappings: list[tuple[str, str]] = field(default_factory=list)


def camera_info_beside(image_topic: str) -> str:
    """Return the CameraInfo topic that belongs to an image topic by convention."""
    base = image_topic.removesuffix('/compressed')
    head, slash, _ = base.rpartition('/')
    return f'{head}{slash}camera_info'


def switch(values: Mapping[str, str], name: str) -> bool:
    """Return a true/false argument.

    Raises:
        ArgumentError: it is neither.
    """
    text = values[name].strip().lower()
    if text not in ('true', 'false', '1', '0'):
        raise ArgumentError(f'{name}:={values[name]}: expected true or false')
    return text in ('true', '1')


def node_launch(values: Mapping[str, str], share: Path,
                environment: Mapping[str, str] | None = None) -> NodeLaunch:
    """Turn launch arguments into what the node and RViz need.

    Args:
        values: every name of `ARGUMENTS`.
        share: the package's share directory, with config/ and rviz/.
        environment: of the launch process.

    Raises:
        ArgumentError: an argument that cannot be used.
    """
    environment = os.environ if environment is None else environment
    level = values['log_level'].lower()
    if level not in LOG_LEVELS:
        raise ArgumentError(f'log_level:={level}: expected one of {", ".join(LOG_LEVELS)}')
    image = values['image_topic']
    if not image:
        raise ArgumentError('image_topic is empty: name the camera topic')
    info = values['camera_info_topic'] or camera_info_beside(image)
    parameters: list[Any] = []
    if values['params_file']:
        file = Path(values['params_file']).expanduser()
        if not file.is_file():
            raise ArgumentError(f'params_file:={file}: no such file')
        parameters.append(str(file))
    given: dict[str, Any] = {
        'use_sim_time': switch(values, 'use_sim_time'), 'autostart': switch(values, 'autostart')}
    for argument, name in (('model', 'model.name'), ('backend', 'backend.name'),
                           ('precision', 'backend.precision'), ('transport', 'input.transport')):
        if values[argument]:
            given[name] = values[argument]
    parameters.append(given)
    env: dict[str, str] = {}
    if switch(values, 'fastdds_profile') and not any(
            environment.get(name) for name in PROFILE_VARIABLES):
        env[PROFILE_VARIABLES[environment.get('ROS_DISTRO') in FAST_DDS_2]] = str(
            share / 'config/fastdds_large_messages.xml')
    namespace = values['namespace'].strip('/')
    prefix = f'/{namespace}/mono_depth' if namespace else '/mono_depth'
    rviz_remappings = [('/camera/image_raw', image)]
    if namespace:
        rviz_remappings += [(f'/mono_depth/{name}', f'{prefix}/{name}') for name in OUTPUTS]
    return NodeLaunch(
        parameters=parameters, remappings=[('image', image), ('camera_info', info)],
        namespace=namespace, arguments=[
            '--ros-args', '--log-level', f'{prefix[1:].replace("/", ".")}:={level}'],
        env=env, rviz=switch(values, 'rviz'),
        rviz_arguments=['-d', str(share / 'rviz/mono_depth.rviz'), '-f', values['fixed_frame']],
        rviz_remappings=rviz_remappings)
