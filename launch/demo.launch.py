"""See mono_depth work without a camera: a clip is played as one.

    ros2 launch depth_node demo.launch.py rviz:=true

Without RViz look at it by `ros2 topic hz /mono_depth/points`.  The package's own program
`depth-node demo` needs no ROS installation and writes what a subscriber receives.
"""

from pathlib import Path
import sys

from depth_node.ros.launch_arguments import ARGUMENTS, node_launch
from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
)
from launch.conditions import IfCondition
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

SHARE = Path(__file__).parents[1]
FRAME = 'camera_optical_frame'
# The clip's images are always published on /camera/image_raw and /camera/camera_info.
PASSED_ON = ('model', 'backend', 'precision', 'params_file', 'rviz', 'log_level',
             'fastdds_profile')


def play(context: LaunchContext) -> list[ExecuteProcess]:
    values = {name: default for name, (default, _) in ARGUMENTS.items()}
    values['fastdds_profile'] = LaunchConfiguration('fastdds_profile').perform(context)
    env = node_launch(values, SHARE, context.environment).env
    return [ExecuteProcess(
        cmd=[sys.executable, '-m', 'depth_node.ros.clip_player',
             LaunchConfiguration('clip').perform(context),
             '--rate', LaunchConfiguration('rate').perform(context), '--frame-id', FRAME],
        name='clip_player', additional_env=env, output='screen')]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([
        DeclareLaunchArgument('clip', default_value=str(SHARE / 'demo' / 'clip'), description=(
            'Folder with pictures and camera.yaml.')),
        DeclareLaunchArgument('rate', default_value='30.0', description='Images per second.'),
        *(DeclareLaunchArgument(name, default_value=ARGUMENTS[name][0],
                                description=ARGUMENTS[name][1]) for name in PASSED_ON),
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(str(SHARE / 'launch' / 'mono_depth.launch.py')),
            launch_arguments=[('fixed_frame', 'map'), *(
                (name, LaunchConfiguration(name)) for name in PASSED_ON)]),
        OpaqueFunction(function=play),
        # the camera looks along the map's x axis, 1.2 m above the floor
        Node(package='tf2_ros', executable='static_transform_publisher', name='demo_tf',
             arguments=['--frame-id', 'map', '--child-frame-id', FRAME, '--z', '1.2',
                        '--roll', '-1.5707963', '--yaw', '-1.5707963'],
             condition=IfCondition(LaunchConfiguration('rviz')), output='log')])
