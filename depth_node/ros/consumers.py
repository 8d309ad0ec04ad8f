"""Configurations of the programs that use our depth; needs no ROS.

`config/` holds them for a camera of 640x480 and 60 degrees; `depth-node connect` prints them for
another camera, node or robot.  After a change here write the files again with

    python -m depth_node.ros.consumers
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import math
from pathlib import Path
import sys

from depth_node.camera import Camera
from depth_node.ros.parameters import write_generated


@dataclass(frozen=True)
class Robot:
    """What the configurations depend on.

    Attributes:
        camera: of the depth image (its size and field of view).
        node: full name of the depth node; for one of several cameras its name follows.
        base_frame: TF frame of the robot, z up.
        near_m: depths below are not trusted.
        far_m: obstacles beyond are left to the next look.
        min_height_m: lower points are taken for the floor.
        max_height_m: the robot passes below higher points.
    """

    camera: Camera
    node: str = '/mono_depth'
    base_frame: str = 'base_link'
    near_m: float = 0.3
    far_m: float = 4.0
    min_height_m: float = 0.1
    max_height_m: float = 1.5

    def __post_init__(self) -> None:
        """Refuse ranges that hold nothing."""
        if not 0 < self.near_m < self.far_m:
            raise ValueError(f'near {self.near_m} m, far {self.far_m} m: expected 0 < near < far')
        if not self.min_height_m < self.max_height_m:
            raise ValueError(f'heights {self.min_height_m} to {self.max_height_m} m: expected the '
                             'first to be the lower')
        if not self.node.startswith('/') or self.node.endswith('/'):
            raise ValueError(f'node {self.node!r}: expected a full name, such as /mono_depth')

    def fov_rad(self) -> tuple[float, float]:
        """Return the full horizontal and vertical angles of a frustum that is all seen.

        A frustum that clears obstacles must not be wider than the view: with an off-centre
        principal point it is twice the smaller side.
        """
        height, width = self.camera.size_hw
        camera = self.camera.rectified()
        half_u = min(camera.cx + 0.5, width - 0.5 - camera.cx) / camera.fx
        half_v = min(camera.cy + 0.5, height - 0.5 - camera.cy) / camera.fy
        return 2 * math.atan(half_u), 2 * math.atan(half_v)


@dataclass(frozen=True)
class Consumer:
    """A program that uses our depth.

    Attributes:
        name: of the configuration, and of its file in config/.
        words: what it is.
        text: makes the file.
    """

    name: str
    words: str
    text: Callable[[Robot], str]


def _m(value: float) -> str:
    """Write a double: nodes in C++ refuse a whole number where they declared a real one."""
    return repr(round(float(value), 4))


def _costmap(layer: str, body: str) -> str:
    return f"""\
local_costmap:
  local_costmap:
    ros__parameters:
      plugins: ["{layer}", "inflation_layer"]
{body}"""


def _voxel_layer(robot: Robot) -> str:
    voxels = min(16, max(1, math.ceil(robot.max_height_m / 0.1)))
    return f"""\
# Nav2: obstacles of {robot.node}/points in a voxel layer. Merge it into the parameters of Nav2:
# add the layer to your plugins. Heights count above z = 0 of the costmap's frame, where the floor
# must be; TF must connect it with the frame of the points.
# mono_depth_mark: points from {robot.min_height_m:g} to {robot.max_height_m:g} m are obstacles.
# mono_depth_clear: rays to all points clear what they pass, the floor's too. Nav2 drops a source's
# points by height before it clears: with one source for both, no ray to the floor would clear.
# Where nothing is seen, nothing clears; cloud.far_points of the node gives rays to out of range.
""" + _costmap('voxel_layer', f"""\
      voxel_layer:
        plugin: "nav2_costmap_2d::VoxelLayer"
        enabled: true
        publish_voxel_map: false
        origin_z: 0.0
        z_resolution: {_m(max(0.05, robot.max_height_m / voxels))}
        z_voxels: {voxels}
        max_obstacle_height: {_m(robot.max_height_m)}
        mark_threshold: 0
        combination_method: 1
        observation_sources: mono_depth_mark mono_depth_clear
        mono_depth_mark:
          topic: {robot.node}/points
          data_type: "PointCloud2"
          marking: true
          clearing: false
          min_obstacle_height: {_m(robot.min_height_m)}
          max_obstacle_height: {_m(robot.max_height_m)}
          obstacle_min_range: {_m(robot.near_m)}
          obstacle_max_range: {_m(robot.far_m)}
        mono_depth_clear:
          topic: {robot.node}/points
          data_type: "PointCloud2"
          marking: false
          clearing: true
          min_obstacle_height: -1.0
          max_obstacle_height: 10.0
          raytrace_min_range: 0.0
          raytrace_max_range: {_m(robot.far_m + 0.5)}
""")


def _scan_layer(robot: Robot) -> str:
    return f"""\
# Nav2: obstacles of {robot.node}/scan in an obstacle layer, for planners without clouds. The node
# needs to know how its camera hangs: mount.frame (TF), or mount.height_m and mount.pitch_deg.
# Free beams are Inf, which clears with inf_is_valid.
""" + _costmap('obstacle_layer', f"""\
      obstacle_layer:
        plugin: "nav2_costmap_2d::ObstacleLayer"
        enabled: true
        observation_sources: mono_depth
        mono_depth:
          topic: {robot.node}/scan
          data_type: "LaserScan"
          inf_is_valid: true
          marking: true
          clearing: true
          min_obstacle_height: -0.5
          max_obstacle_height: {_m(robot.max_height_m)}
          obstacle_min_range: {_m(robot.near_m)}
          obstacle_max_range: {_m(robot.far_m)}
          raytrace_min_range: 0.0
          raytrace_max_range: {_m(robot.far_m + 0.5)}
""")


def _stvl(robot: Robot) -> str:
    horizontal, vertical = robot.fov_rad()
    height, width = robot.camera.size_hw
    degrees = f'{math.degrees(horizontal):.1f} x {math.degrees(vertical):.1f}'
    return f"""\
# Nav2: obstacles of {robot.node}/points in a spatio-temporal voxel layer. It clears by the
# camera's frustum: the angles below belong to a camera of {width}x{height} with {degrees} degrees;
# `depth-node connect nav2_stvl --camera-yaml camera.yaml` writes them for yours.
""" + _costmap('stvl_layer', f"""\
      stvl_layer:
        plugin: "spatio_temporal_voxel_layer/SpatioTemporalVoxelLayer"
        enabled: true
        voxel_decay: 10.0
        decay_model: 0
        voxel_size: 0.05
        track_unknown_space: true
        mark_threshold: 0
        update_footprint_enabled: true
        combination_method: 1
        transform_tolerance: 0.2
        mapping_mode: false
        publish_voxel_map: false
        observation_sources: mono_depth_mark mono_depth_clear
        mono_depth_mark:
          data_type: PointCloud2
          topic: {robot.node}/points
          marking: true
          clearing: false
          obstacle_range: {_m(robot.far_m)}
          min_obstacle_height: {_m(robot.min_height_m)}
          max_obstacle_height: {_m(robot.max_height_m)}
          expected_update_rate: 0.0
          observation_persistence: 0.0
          inf_is_valid: false
          filter: "voxel"
          voxel_min_points: 3
          clear_after_reading: true
        mono_depth_clear:
          data_type: PointCloud2
          topic: {robot.node}/points
          marking: false
          clearing: true
          min_z: {_m(robot.near_m)}
          max_z: {_m(robot.far_m)}
          horizontal_fov_angle: {_m(horizontal)}
          vertical_fov_angle: {_m(vertical)}
          vertical_fov_padding: 0.0
          decay_acceleration: 5.0
          model_type: 0
          clear_after_reading: true
""")


def _collision_monitor(robot: Robot) -> str:
    return f"""\
# Nav2: {robot.node}/points stop the robot in the collision monitor. source_timeout stops it too
# when no points come: keep it above a few periods of the camera. The polygon is an example. It
# counts points: min_points belongs to cloud.stride 1 (divide it by the square of your stride).
# For Jazzy and newer. Humble wants points as [0.5, 0.3, 0.5, -0.3, 0.0, -0.3, 0.0, 0.3], and
# max_points (one less) in place of min_points.
collision_monitor:
  ros__parameters:
    base_frame_id: "{robot.base_frame}"
    odom_frame_id: "odom"
    cmd_vel_in_topic: "cmd_vel_smoothed"
    cmd_vel_out_topic: "cmd_vel"
    state_topic: "collision_monitor_state"
    transform_tolerance: 0.2
    source_timeout: 1.0
    base_shift_correction: true
    stop_pub_timeout: 2.0
    polygons: ["stop"]
    stop:
      type: "polygon"
      points: "[[0.5, 0.3], [0.5, -0.3], [0.0, -0.3], [0.0, 0.3]]"
      action_type: "stop"
      min_points: 20
      visualize: true
      polygon_pub_topic: "polygon_stop"
      enabled: true
    observation_sources: ["mono_depth"]
    mono_depth:
      type: "pointcloud"
      topic: "{robot.node}/points"
      min_height: {_m(robot.min_height_m)}
      max_height: {_m(robot.max_height_m)}
      min_range: {_m(robot.near_m)}
      source_timeout: 1.0
      enabled: true
"""


def _moveit_cloud(robot: Robot) -> str:
    return f"""\
# MoveIt 2: {robot.node}/points in the planning scene's octomap (sensors_3d.yaml). Keep all of
# these parameters: MoveIt stops reading at the first that is missing.
sensors:
  - mono_depth_cloud
mono_depth_cloud:
  sensor_plugin: occupancy_map_monitor/PointCloudOctomapUpdater
  point_cloud_topic: {robot.node}/points
  max_range: {_m(robot.far_m)}
  point_subsample: 2
  padding_offset: 0.05
  padding_scale: 1.0
  max_update_rate: 5.0
  filtered_cloud_topic: mono_depth_filtered
"""


def _moveit_depth(robot: Robot) -> str:
    return f"""\
# MoveIt 2: {robot.node}/depth/image in the planning scene's octomap (sensors_3d.yaml); needs
# OpenGL for the mesh filter. MoveIt stops reading at the first parameter that is missing: keep
# all of them.
sensors:
  - mono_depth_image
mono_depth_image:
  sensor_plugin: occupancy_map_monitor/DepthImageOctomapUpdater
  image_topic: {robot.node}/depth/image
  queue_size: 5
  near_clipping_plane_distance: {_m(robot.near_m)}
  far_clipping_plane_distance: {_m(robot.far_m)}
  shadow_threshold: 0.04
  padding_scale: 1.0
  padding_offset: 0.05
  max_update_rate: 5.0
  skip_vertical_pixels: 4
  skip_horizontal_pixels: 6
  filtered_cloud_topic: mono_depth_filtered
  ns: mono_depth
"""


def _depthimage_to_laserscan(robot: Robot) -> str:
    return f"""\
# depthimage_to_laserscan: one row of {robot.node}/depth/image as a scan, of a camera that looks
# level. Remap: depth:={robot.node}/depth/image depth_camera_info:={robot.node}/depth/camera_info
# output_frame is the camera's body frame (x forward, z up), not the optical one. For a camera that
# looks down use the node's own {robot.node}/scan.
depthimage_to_laserscan:
  ros__parameters:
    scan_time: 0.033
    range_min: {_m(robot.near_m)}
    range_max: {_m(robot.far_m)}
    scan_height: 10
    output_frame: "camera_link"
"""


def _rtabmap(robot: Robot) -> str:
    return f"""\
# rtabmap: RGB-D SLAM with {robot.node}. Remap, for rtabmap and rgbd_odometry alike:
#   rgb/image:={robot.node}/image_rect rgb/camera_info:={robot.node}/depth/camera_info
#   depth/image:={robot.node}/depth/image
# The three carry the same stamp, so they are matched exactly. rtabmap cannot absorb a scale that
# drifts: use scale.source points, ground or fixed.
/**:
  ros__parameters:
    frame_id: "{robot.base_frame}"
    subscribe_depth: true
    approx_sync: false
    Grid/RangeMin: "{_m(robot.near_m)}"
    Grid/RangeMax: "{_m(robot.far_m)}"
    Kp/MaxDepth: "{_m(robot.far_m)}"
    Vis/MaxDepth: "{_m(robot.far_m)}"
"""


CONSUMERS = {consumer.name: consumer for consumer in (
    Consumer('nav2_voxel_layer', 'Nav2 costmap, voxel layer from the cloud', _voxel_layer),
    Consumer('nav2_stvl', 'Nav2 costmap, spatio-temporal voxel layer from the cloud', _stvl),
    Consumer('nav2_scan', 'Nav2 costmap, obstacle layer from ~/scan', _scan_layer),
    Consumer('nav2_collision_monitor', 'Nav2 collision monitor from the cloud',
             _collision_monitor),
    Consumer('moveit_cloud', 'MoveIt 2 octomap from the cloud (sensors_3d.yaml)', _moveit_cloud),
    Consumer('moveit_depth', 'MoveIt 2 octomap from the depth image (sensors_3d.yaml)',
             _moveit_depth),
    Consumer('depthimage_to_laserscan', 'a scan made of the depth image',
             _depthimage_to_laserscan),
    Consumer('rtabmap', 'RGB-D SLAM', _rtabmap),
)}


def default_robot() -> Robot:
    """Return the robot that the files in config/ are made for."""
    return Robot(Camera.from_fov((480, 640), 60.0))


def generated_files(root: Path) -> dict[Path, str]:
    """Return the files of all consumers, by path below the repository root."""
    robot = default_robot()
    return {root / 'config' / f'{name}.yaml': consumer.text(robot)
            for name, consumer in CONSUMERS.items()}


if __name__ == '__main__':
    sys.exit(write_generated(generated_files))
