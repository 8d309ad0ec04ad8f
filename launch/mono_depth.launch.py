"""Start mono_depth on a camera topic.

    ros2 launch depth_node mono_depth.launch.py image_topic:=/camera/image_raw

The node configures and activates itself; `--show-args` lists all arguments.
"""

from pathlib import Path

from depth_node.ros.launch_arguments import ARGUMENTS, node_launch
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

SHARE = Path(__file__).parents[1]


def start(context: LaunchContext) -> list[Node]:
    values = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    wanted = node_launch(values, SHARE, context.environment)
    nodes = [Node(
        package='depth_node', executable='mono_depth', name='mono_depth',
        namespace=wanted.namespace, parameters=wanted.parameters, remappings=wanted.remappings,
        arguments=wanted.arguments, additional_env=wanted.env, output='screen',
        emulate_tty=True)]
    if wanted.rviz:
        nodes.append(Node(
            package='rviz2', executable='rviz2', name='mono_depth_rviz',
            arguments=wanted.rviz_arguments, remappings=wanted.rviz_remappings,
            parameters=[{'use_sim_time': wanted.use_sim_time}],
            additional_env=wanted.env, output='log'))
    return nodes


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([
        *(DeclareLaunchArgument(name, default_value=default, description=text)
          for name, (default, text) in ARGUMENTS.items()),
        OpaqueFunction(function=start)])
