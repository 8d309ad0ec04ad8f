"""The ready configurations against the parameters that their readers declare.

Names and types were read in the readers' sources: navigation2 @a3a9704 (obstacle_layer.cpp,
voxel_layer.cpp, collision_monitor), spatio_temporal_voxel_layer @403d9ed, moveit2 @8fcb5d2 (both
octomap updaters), depthimage_to_laserscan branch ros2.  A node in C++ refuses a whole number for a
parameter that it declared as a real one, so types must be equal.
"""

from __future__ import annotations

import math
from pathlib import Path
import subprocess
import sys
from typing import Any

from depth_node.camera import Camera
from depth_node.evaluation.occupancy import GridSettings, OccupancyGrid
from depth_node.ros import consumers
from depth_node.ros.consumers import CONSUMERS, Robot
import numpy as np
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
ROBOT = Robot(Camera((360, 640), 500.0, 480.0, 300.0, 190.0), '/robot/mono_depth/front', 'base',
              0.25, 5.0, 0.08, 1.3)

OBSTACLE_LAYER = {
    'plugin': str, 'enabled': bool, 'footprint_clearing_enabled': bool,
    'min_obstacle_height': float, 'max_obstacle_height': float, 'combination_method': int,
    'observation_sources': str, 'tf_filter_tolerance': float}
OBSTACLE_SOURCE = {
    'topic': str, 'sensor_frame': str, 'observation_persistence': float,
    'expected_update_rate': float, 'data_type': str, 'min_obstacle_height': float,
    'max_obstacle_height': float, 'inf_is_valid': bool, 'marking': bool, 'clearing': bool,
    'transport_type': str, 'obstacle_max_range': float, 'obstacle_min_range': float,
    'raytrace_max_range': float, 'raytrace_min_range': float}
VOXEL_LAYER = OBSTACLE_LAYER | {
    'z_voxels': int, 'origin_z': float, 'z_resolution': float, 'unknown_threshold': int,
    'mark_threshold': int, 'publish_voxel_map': bool}
STVL_LAYER = {
    'plugin': str, 'observation_sources': str, 'transform_tolerance': float, 'enabled': bool,
    'publish_voxel_map': bool, 'voxel_size': float, 'combination_method': int,
    'mark_threshold': int, 'update_footprint_enabled': bool, 'track_unknown_space': bool,
    'decay_model': int, 'voxel_decay': float, 'mapping_mode': bool, 'map_save_duration': float}
STVL_SOURCE = {
    'topic': str, 'sensor_frame': str, 'observation_persistence': float,
    'expected_update_rate': float, 'data_type': str, 'min_obstacle_height': float,
    'max_obstacle_height': float, 'inf_is_valid': bool, 'marking': bool, 'clearing': bool,
    'obstacle_range': float, 'min_z': float, 'max_z': float, 'vertical_fov_angle': float,
    'vertical_fov_padding': float, 'horizontal_fov_angle': float, 'decay_acceleration': float,
    'filter': str, 'voxel_min_points': int, 'clear_after_reading': bool, 'enabled': bool,
    'model_type': int}
MONITOR = {
    'base_frame_id': str, 'odom_frame_id': str, 'cmd_vel_in_topic': str, 'cmd_vel_out_topic': str,
    'state_topic': str, 'transform_tolerance': float, 'source_timeout': float,
    'base_shift_correction': bool, 'stop_pub_timeout': float, 'polygons': list,
    'observation_sources': list}
POLYGON = {'type': str, 'points': str, 'action_type': str, 'min_points': int, 'visualize': bool,
           'polygon_pub_topic': str, 'enabled': bool}
MONITOR_SOURCE = {'type': str, 'topic': str, 'min_height': float, 'max_height': float,
                  'min_range': float, 'source_timeout': float, 'enabled': bool,
                  'use_global_height': bool, 'transport_type': str}
CLOUD_UPDATER = {
    'sensor_plugin': str, 'point_cloud_topic': str, 'max_range': float, 'padding_offset': float,
    'padding_scale': float, 'point_subsample': int, 'max_update_rate': float,
    'filtered_cloud_topic': str}
DEPTH_UPDATER = {
    'sensor_plugin': str, 'image_topic': str, 'queue_size': int,
    'near_clipping_plane_distance': float, 'far_clipping_plane_distance': float,
    'shadow_threshold': float, 'padding_scale': float, 'padding_offset': float,
    'max_update_rate': float, 'skip_vertical_pixels': int, 'skip_horizontal_pixels': int,
    'filtered_cloud_topic': str, 'ns': str}
TO_LASERSCAN = {'scan_time': float, 'range_min': float, 'range_max': float, 'scan_height': int,
                'output_frame': str}


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load(CONSUMERS[name].text(ROBOT))


def fits(found: dict[str, Any], known: dict[str, type], *, nested: tuple[str, ...] = ()) -> None:
    for name, value in found.items():
        if name not in nested:
            assert type(value) is known[name], f'{name}: {value!r}'


def layer(name: str, key: str) -> dict[str, Any]:
    found = load(name)['local_costmap']['local_costmap']['ros__parameters']
    assert key in found['plugins']
    return found[key]


def test_files_are_those_of_the_default_robot():
    for path, text in consumers.generated_files(ROOT).items():
        assert path.read_text() == text, f'{path}: run python -m depth_node.ros.consumers'


@pytest.mark.parametrize(('name', 'key', 'known', 'leaf'), [
    ('nav2_voxel_layer', 'voxel_layer', VOXEL_LAYER, 'points'),
    ('nav2_scan', 'obstacle_layer', OBSTACLE_LAYER, 'scan')])
def test_nav2_obstacle_layers(name: str, key: str, known: dict, leaf: str):
    found = layer(name, key)
    names = tuple(found['observation_sources'].split())
    fits(found, known, nested=names)
    sources = [found[source] for source in names]
    for source in sources:
        fits(source, OBSTACLE_SOURCE)
        assert source['topic'] == f'/robot/mono_depth/front/{leaf}'
        assert source['data_type'] == {'points': 'PointCloud2', 'scan': 'LaserScan'}[leaf]
        # a height of 0 to 0 m, the default, lets nothing pass
        assert source['min_obstacle_height'] < source['max_obstacle_height']
    marks = [source for source in sources if source['marking']]
    clears = [source for source in sources if source['clearing']]
    assert len(marks) == len(clears) == 1
    # a ray must clear from the camera to at least where an obstacle marks, or it stays for good
    assert clears[0]['raytrace_max_range'] >= marks[0]['obstacle_max_range'] == ROBOT.far_m
    assert clears[0]['raytrace_min_range'] == 0.0
    if key == 'voxel_layer':
        assert found['z_voxels'] <= 16
        assert found['z_voxels'] * found['z_resolution'] >= ROBOT.max_height_m - 1e-9
        assert (marks[0]['min_obstacle_height'], marks[0]['max_obstacle_height']) == (0.08, 1.3)
    else:  # the scan lies at the camera's height
        assert marks[0]['min_obstacle_height'] < 0 < marks[0]['max_obstacle_height']


def room(box: bool) -> tuple[np.ndarray, np.ndarray]:
    """What a level camera 0.3 m above an endless floor sees, and its place; a lower box at 2 m."""
    camera = Camera((90, 120), 100.0, 105.0, 60.0, 44.0)
    vv, uu = np.mgrid[0:90, 0:120]
    rays = np.stack([np.ones(uu.shape), -(uu - camera.cx) / camera.fx,
                     -(vv - camera.cy) / camera.fy], -1)  # x forward, y left, z up
    with np.errstate(divide='ignore'):
        reach = np.where(rays[..., 2] < 0, -0.3 / rays[..., 2], np.nan)
    face = rays * 2.0 + [0, 0, 0.3]
    if box:
        hit = (np.abs(face[..., 1]) < 0.2) & (face[..., 2] > 0) & (face[..., 2] < 0.27)
        reach[hit] = 2.0
    origin = np.array([0.0, 0.0, 0.3])
    points = (rays * reach[..., None] + origin).reshape(-1, 3)
    return points[points[:, 0] < 8], origin


def test_a_camera_near_the_floor_sees_obstacles_no_floor_and_forgets_what_left():
    found = yaml.safe_load(CONSUMERS['nav2_voxel_layer'].text(consumers.default_robot()))[
        'local_costmap']['local_costmap']['ros__parameters']['voxel_layer']
    mark, clear = found['mono_depth_mark'], found['mono_depth_clear']

    def drive(clear_low_m: float) -> list[np.ndarray]:
        grid = OccupancyGrid(GridSettings(
            (-0.5, -2.0), (6.0, 2.0), ray_stride=1, voxel_height_m=found['z_resolution'],
            height_band_m=(mark['min_obstacle_height'], mark['max_obstacle_height']),
            clear_band_m=(clear_low_m, clear['max_obstacle_height']),
            obstacle_range_m=mark['obstacle_max_range'],
            raytrace_range_m=clear['raytrace_max_range']))
        seen = []
        for box in (True, False):
            grid.add(*room(box))
            seen.append(grid.centres()[grid.occupied])
        return seen

    marked, after = drive(clear['min_obstacle_height'])
    assert len(marked) >= 8
    np.testing.assert_allclose(marked[:, 0], 2.0, atol=0.05)
    assert np.abs(marked[:, 1]).max() < 0.25
    assert not len(after)
    # with the marking source's band the box would stay: the floor is all that lies behind it
    assert len(drive(mark['min_obstacle_height'])[1])


def test_stvl_clears_no_more_than_the_camera_sees():
    found = layer('nav2_stvl', 'stvl_layer')
    sources = tuple(found['observation_sources'].split())
    fits(found, STVL_LAYER, nested=sources)
    for source in sources:
        fits(found[source], STVL_SOURCE)
        assert found[source]['topic'] == '/robot/mono_depth/front/points'
    clear = found['mono_depth_clear']
    camera, (height, width) = ROBOT.camera, ROBOT.camera.size_hw
    for u, v in ((-0.5, camera.cy), (width - 0.5, camera.cy)):
        seen = abs(math.atan2(u - camera.cx, camera.fx))
        assert clear['horizontal_fov_angle'] / 2 <= seen + 1e-4, (u, v)
    for v in (-0.5, height - 0.5):
        assert clear['vertical_fov_angle'] / 2 <= abs(math.atan2(v - camera.cy, camera.fy)) + 1e-4
    assert clear['horizontal_fov_angle'] / 2 == pytest.approx(math.atan(300.5 / 500), abs=1e-4)
    assert (clear['min_z'], clear['max_z']) == (0.25, 5.0)


def test_collision_monitor():
    found = load('nav2_collision_monitor')['collision_monitor']['ros__parameters']
    fits(found, MONITOR, nested=('stop', 'mono_depth'))
    fits(found['stop'], POLYGON)
    fits(found['mono_depth'], MONITOR_SOURCE)
    assert found['base_frame_id'] == 'base'
    assert [*found['polygons'], *found['observation_sources']] == ['stop', 'mono_depth']


@pytest.mark.parametrize(('name', 'known', 'topic'), [
    ('moveit_cloud', CLOUD_UPDATER, 'points'), ('moveit_depth', DEPTH_UPDATER, 'depth/image')])
def test_moveit_gets_every_parameter(name: str, known: dict, topic: str):
    found = load(name)
    for sensor in found['sensors']:
        fits(found[sensor], known)
        assert set(found[sensor]) == set(known), 'all are required'
        topics = {value for key, value in found[sensor].items() if key.endswith('_topic')}
        assert f'/robot/mono_depth/front/{topic}' in topics


def test_depthimage_to_laserscan_and_rtabmap():
    fits(load('depthimage_to_laserscan')['depthimage_to_laserscan']['ros__parameters'],
         TO_LASERSCAN)
    found = load('rtabmap')['/**']['ros__parameters']
    assert found['frame_id'] == 'base'
    assert all(isinstance(value, str) for key, value in found.items() if '/' in key)


def test_impossible_robots_are_refused():
    camera = ROBOT.camera
    for wrong in ({'near_m': 2.0, 'far_m': 1.0}, {'min_height_m': 2.0}, {'node': 'mono_depth'}):
        with pytest.raises(ValueError, match='expected'):
            Robot(camera, **wrong)


def test_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from depth_node.cli import main

    assert main(['connect']) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in CONSUMERS)
    assert main(['connect', 'nav2_stvl', '--hfov', '90', '--size', '800x600']) == 0
    text = capsys.readouterr().out
    clear = yaml.safe_load(text)['local_costmap']['local_costmap']['ros__parameters'][
        'stvl_layer']['mono_depth_clear']
    assert clear['horizontal_fov_angle'] == pytest.approx(math.pi / 2, abs=0.01)
    out = tmp_path / 'sensors_3d.yaml'
    assert main(['connect', 'moveit_cloud', '--far', '1.5', '-o', str(out)]) == 0
    assert yaml.safe_load(out.read_text())['mono_depth_cloud']['max_range'] == 1.5
    assert main(['connect', 'nav2']) == 2
    assert 'nav2_stvl' in capsys.readouterr().err
    assert main(['connect', 'nav2_stvl', '--far', '0.1']) == 2


def test_ros_reads_the_files(tmp_path: Path):
    """The parameter files of ros2 nodes, by rcl's own parser."""
    pytest.importorskip('rclpy')
    script = (
        'import sys, rclpy; from rclpy.node import Node\n'
        'rclpy.init(args=["x", "--ros-args", "--params-file", sys.argv[1]])\n'
        'n = Node(sys.argv[2], namespace=sys.argv[3] or None, '
        'automatically_declare_parameters_from_overrides=True)\n'
        'print(n.get_parameter(sys.argv[4]).value)\n')
    def value(name: str, node: str, namespace: str, parameter: str) -> str:
        path = tmp_path / f'{name}.yaml'
        path.write_text(CONSUMERS[name].text(ROBOT))
        return subprocess.run(
            [sys.executable, '-c', script, str(path), node, namespace, parameter],
            capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    assert value('nav2_stvl', 'local_costmap', '/local_costmap',
                 'stvl_layer.mono_depth_clear.max_z') == '5.0'
    assert value('nav2_collision_monitor', 'collision_monitor', '',
                 'mono_depth.topic') == '/robot/mono_depth/front/points'

