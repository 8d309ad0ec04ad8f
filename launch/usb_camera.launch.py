"""A USB camera, its depth and its place on the robot: what Nav2 needs for obstacles.

    ros2 launch depth_node usb_camera.launch.py camera_info_url:=/home/me/camera.yaml z:=0.4 \
        base_frame:=base_link

Needs the package usb_cam.  Depth is on /mono_depth; config/nav2_voxel_layer.yaml takes it from
there.  All arguments of mono_depth.launch.py but the topics work here too.
"""

from pathlib import Path

from depth_node.ros.launch_arguments import ARGUMENTS, node_launch
from depth_node.ros.usb_launch_arguments import USB_ARGUMENTS, usb_launch
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

SHARE = Path(__file__).parents[1]
IMAGE, INFO = '/camera/image_raw', '/camera/camera_info'
PASSED_ON = tuple(name for name in ARGUMENTS if name not in (
    'image_topic', 'camera_info_topic', 'transport', 'namespace', 'fixed_frame', 'use_sim_time',
    'cameras'))


def start(context: LaunchContext) -> list[Node]:
    wanted = usb_launch({name: LaunchConfiguration(name).perform(context)
                         for name in USB_ARGUMENTS})
    values = {name: default for name, (default, _) in ARGUMENTS.items()}
    values['fastdds_profile'] = LaunchConfiguration('fastdds_profile').perform(context)
    env = node_launch(values, SHARE, context.environment).env
    return [
        Node(package='usb_cam', executable='usb_cam_node_exe', name='camera', output='screen',
             parameters=[wanted.parameters], additional_env=env,
             remappings=[('image_raw', IMAGE), ('camera_info', INFO)]),
        Node(package='tf2_ros', executable='static_transform_publisher', name='camera_tf',
             arguments=wanted.transform, output='log')]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([
        *(DeclareLaunchArgument(name, default_value=default, description=text)
          for name, (default, text) in USB_ARGUMENTS.items()),
        *(DeclareLaunchArgument(name, default_value=ARGUMENTS[name][0],
                                description=ARGUMENTS[name][1]) for name in PASSED_ON),
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(str(SHARE / 'launch' / 'mono_depth.launch.py')),
            launch_arguments=[
                ('image_topic', IMAGE), ('camera_info_topic', INFO),
                ('fixed_frame', LaunchConfiguration('base_frame')),
                *((name, LaunchConfiguration(name)) for name in PASSED_ON)]),
        OpaqueFunction(function=start)])
