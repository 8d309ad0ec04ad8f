"""What the launch files pass to the node, without launch: arguments in, plain values out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
import os
from pathlib import Path
from typing import Any

from depth_node.ros.camera_parameters import check_names
from depth_node.ros.parameters import NODE_NAME, ParameterError
from depth_node.ros.parameters_file import counts_for, sections
import yaml

IMAGE_TOPIC = '/camera/image_raw'
# name -> (default, description); '' means that the parameters file or the node's default decides
ARGUMENTS: dict[str, tuple[str, str]] = {
    'image_topic': (IMAGE_TOPIC, 'Camera image: sensor_msgs/Image, or CompressedImage where the '
                    'name ends in /compressed or transport is compressed. With cameras: a name '
                    'with {camera} in it (then the default is /{camera}/image_raw), or one name '
                    'for each camera, with commas.'),
    'camera_info_topic': ('', 'CameraInfo of that image; empty takes camera_info beside the '
                          'image topic, as camera drivers publish it. With cameras: as '
                          'image_topic.'),
    'cameras': ('', 'Names of several cameras for this node, with commas: front,left; empty takes '
                'cameras of params_file, without that one camera without a name.'),
    'transport': ('', 'raw or compressed; empty takes input.transport of the parameters.'),
    'model': ('', 'Name or path of a model card; empty takes model.name of the parameters.'),
    'backend': ('', 'Runtime of the network; empty takes backend.name of the parameters.'),
    'precision': ('', 'fp32, bf16, fp16, int8 or auto; empty takes backend.precision of the '
                  'parameters.'),
    'scale_source': ('', 'Where metres come from: model, fixed, points or ground; empty takes '
                     'scale.source of the parameters.'),
    'points_topic': ('', 'PointCloud2, LaserScan or Range for scale_source points; empty takes '
                     'scale.points_topic of the parameters.'),
    'mount_frame': ('', 'TF frame on the floor with its z axis up, such as base_footprint; empty '
                    'takes mount.frame of the parameters.'),
    'params_file': ('', 'YAML file with parameters; config/mono_depth.yaml has them all.'),
    'namespace': ('', 'Namespace of the node.'),
    'autostart': ('', 'false leaves configure and activate to a lifecycle manager; empty takes '
                  'autostart of the parameters, true by default.'),
    'rviz': ('false', 'Start RViz with rviz/mono_depth.rviz; of several cameras it shows the '
             'first.'),
    'fixed_frame': ('camera_optical_frame', 'Fixed frame of RViz: the frame_id of the images, or '
                    'any frame that TF connects with it.'),
    'use_sim_time': ('', 'true takes the time from /clock: for bags (ros2 bag play --clock) and '
                     'simulators; empty takes that of the parameters, false by default.'),
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


def profile_variable(environment: Mapping[str, str]) -> str:
    """Return the variable that names a profile to the Fast DDS of this distribution."""
    return PROFILE_VARIABLES[environment.get('ROS_DISTRO') in FAST_DDS_2]


def profile_given(environment: Mapping[str, str]) -> str:
    """Return the profile that Fast DDS will read, '' for none.

    Fast DDS 3 still reads the name that Fast DDS 2 knows.
    """
    own = environment.get(profile_variable(environment), '')
    return own or environment.get(PROFILE_VARIABLES[1], '')


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
        use_sim_time: for it, as the node's.
        rviz_arguments, rviz_remappings: for it.
    """

    parameters: list[Any]
    remappings: list[tuple[str, str]]
    namespace: str
    arguments: list[str]
    env: dict[str, str]
    rviz: bool
    use_sim_time: bool = False
    rviz_arguments: list[str] = field(default_factory=list)
    rviz_remappings: list[tuple[str, str]] = field(default_factory=list)


def camera_info_beside(image_topic: str) -> str:
    """Return the CameraInfo topic that belongs to an image topic by convention."""
    base = image_topic.removesuffix('/compressed')
    head, slash, _ = base.rpartition('/')
    return f'{head}{slash}camera_info'


def _topics(argument: str, text: str, cameras: tuple[str, ...]) -> list[str]:
    """Return the topic of each camera, one where none is named.

    Raises:
        ArgumentError: not as many topics as cameras.
    """
    if cameras and text == IMAGE_TOPIC:
        text = '/{camera}/image_raw'
    names = [name.strip() for name in text.split(',') if name.strip()]
    if '{camera}' in text and len(names) == 1:
        names = [names[0].replace('{camera}', camera) for camera in cameras]
    if len(names) != max(1, len(cameras)) or '{' in ''.join(names):
        wanted = (f'one topic for each of {", ".join(cameras)}, with commas, or one with '
                  '{camera} in it' if cameras else 'the name of one topic')
        raise ArgumentError(f'{argument}:={text}: expected {wanted}')
    return names


def _parameters_of_file(file: Path, node: str) -> dict[str, Any]:
    """Return what a parameters file says of a node, nothing for a file that is wrong.

    The node reads it again, and says what is wrong.  Of two sections that count for it, the later
    one wins, as in rcl.
    """
    found: dict[str, Any] = {}
    try:
        for name, values in sections(yaml.safe_load(file.read_text(encoding='utf-8'))):
            if counts_for(name, node):
                found.update(values)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return found


def _names(cameras: Any) -> tuple[str, ...]:
    """Return the names of cameras in a file, none where they are no list."""
    return tuple(str(name) for name in cameras if name) if isinstance(cameras, list) else ()


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
    namespace = values['namespace'].strip('/')
    full_name = f'/{namespace}/{NODE_NAME}' if namespace else f'/{NODE_NAME}'
    parameters: list[Any] = []
    of_file: dict[str, Any] = {}
    cameras = tuple(name.strip() for name in values['cameras'].split(',') if name.strip())
    if values['params_file']:
        file = Path(values['params_file']).expanduser()
        if not file.is_file():
            raise ArgumentError(f'params_file:={file}: no such file')
        parameters.append(str(file))
        of_file = _parameters_of_file(file, full_name)
        cameras = cameras or _names(of_file.get('cameras'))
    try:
        check_names(cameras or ('',))
    except ParameterError as error:
        raise ArgumentError(str(error)) from error
    images = _topics('image_topic', values['image_topic'], cameras)
    infos = [camera_info_beside(image) for image in images]
    if values['camera_info_topic']:
        infos = _topics('camera_info_topic', values['camera_info_topic'], cameras)
    remappings = []
    for camera, image, info in zip(cameras or ('',), images, infos, strict=True):
        below = f'{camera}/' if camera else ''
        remappings += [(f'{below}image', image), (f'{below}camera_info', info)]
    given: dict[str, Any] = {name: switch(values, name) for name in ('use_sim_time', 'autostart')
                             if values[name]}
    for argument, name in (('model', 'model.name'), ('backend', 'backend.name'),
                           ('precision', 'backend.precision'), ('transport', 'input.transport'),
                           ('scale_source', 'scale.source'),
                           ('points_topic', 'scale.points_topic'),
                           ('mount_frame', 'mount.frame')):
        if values[argument]:
            given[name] = values[argument]
    if cameras:
        given['cameras'] = list(cameras)
    if given:
        parameters.append(given)
    env: dict[str, str] = {}
    if switch(values, 'fastdds_profile') and not profile_given(environment):
        env[profile_variable(environment)] = str(share / 'config/fastdds_large_messages.xml')
    rviz_remappings = [('/camera/image_raw', images[0])]
    outputs = f'{full_name}/{cameras[0]}' if cameras else full_name
    if outputs != '/mono_depth':
        rviz_remappings += [(f'/mono_depth/{name}', f'{outputs}/{name}') for name in OUTPUTS]
    return NodeLaunch(
        parameters=parameters, remappings=remappings, namespace=namespace, arguments=[
            '--ros-args', '--log-level', f'{full_name[1:].replace("/", ".")}:={level}'],
        env=env, rviz=switch(values, 'rviz'),
        use_sim_time=bool(given.get('use_sim_time', of_file.get('use_sim_time', False))),
        rviz_arguments=['-d', str(share / 'rviz/mono_depth.rviz'), '-f', values['fixed_frame']],
        rviz_remappings=rviz_remappings)
