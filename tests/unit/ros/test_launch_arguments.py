"""Launch arguments, without launch."""

from __future__ import annotations

from pathlib import Path

from depth_node.ros.launch_arguments import (
    ARGUMENTS,
    ArgumentError,
    camera_info_beside,
    node_launch,
)
from depth_node.ros.parameters import specs
import pytest

DEFAULTS = {name: default for name, (default, _) in ARGUMENTS.items()}
SHARE = Path('/share')
PROFILE = '/share/config/fastdds_large_messages.xml'


@pytest.mark.parametrize(('image', 'info'), [
    ('/camera/image_raw', '/camera/camera_info'), ('/a/b/image_rect', '/a/b/camera_info'),
    ('/cam/image_raw/compressed', '/cam/camera_info'), ('image', 'camera_info'),
    ('/image', '/camera_info')])
def test_camera_info_lies_beside_the_image(image: str, info: str) -> None:
    assert camera_info_beside(image) == info


def test_defaults_leave_the_model_to_the_parameters() -> None:
    wanted = node_launch(DEFAULTS, SHARE, {})
    assert wanted.parameters == []
    assert not wanted.use_sim_time
    assert wanted.remappings == [('image', '/camera/image_raw'),
                                 ('camera_info', '/camera/camera_info')]
    assert not wanted.rviz
    assert wanted.arguments == ['--ros-args', '--log-level', 'mono_depth:=info']


def test_arguments_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / 'mine.yaml'
    file.write_text('{}')
    wanted = node_launch(
        {**DEFAULTS, 'params_file': str(file), 'model': 'large', 'backend': 'openvino',
         'precision': 'fp32', 'transport': 'compressed', 'use_sim_time': 'True',
         'camera_info_topic': '/elsewhere', 'namespace': '/robot/front/', 'log_level': 'DEBUG',
         'rviz': 'true', 'image_topic': '/x/image', 'scale_source': 'points',
         'points_topic': '/lidar', 'mount_frame': 'base_footprint'}, SHARE, {})
    assert wanted.parameters[0] == str(file)
    assert wanted.parameters[1] == {
        'use_sim_time': True, 'model.name': 'large',
        'backend.name': 'openvino', 'backend.precision': 'fp32', 'input.transport': 'compressed',
        'scale.source': 'points', 'scale.points_topic': '/lidar', 'mount.frame': 'base_footprint'}
    assert set(wanted.parameters[1]) - {'use_sim_time'} <= set(specs())
    assert ('camera_info', '/elsewhere') in wanted.remappings
    assert wanted.namespace == 'robot/front'
    assert wanted.arguments[-1] == 'robot.front.mono_depth:=debug'
    assert wanted.rviz_arguments == ['-d', '/share/rviz/mono_depth.rviz', '-f',
                                     'camera_optical_frame']
    assert ('/mono_depth/points', '/robot/front/mono_depth/points') in wanted.rviz_remappings
    assert ('/camera/image_raw', '/x/image') in wanted.rviz_remappings


def test_what_is_not_given_is_the_files(tmp_path: Path) -> None:
    file = tmp_path / 'mine.yaml'
    file.write_text('/mono_depth: {ros__parameters: {autostart: false, use_sim_time: true}}')
    wanted = node_launch({**DEFAULTS, 'params_file': str(file)}, SHARE, {})
    assert wanted.parameters == [str(file)]
    assert wanted.use_sim_time  # for RViz
    wanted = node_launch({**DEFAULTS, 'params_file': str(file), 'use_sim_time': 'false',
                          'autostart': 'true'}, SHARE, {})
    assert wanted.parameters == [str(file), {'use_sim_time': False, 'autostart': True}]
    assert not wanted.use_sim_time


@pytest.mark.parametrize(('text', 'namespace', 'cameras'), [
    ('/mono_depth: {ros__parameters: {cameras: [front, left]}}\n'
     '/recorder: {ros__parameters: {cameras: [a, b, c]}}', '', 'front,left'),
    ('/recorder: {}\n/**: {ros__parameters: {cameras: [front, left]}}', '', 'front,left'),
    ('robot1: {mono_depth: {ros__parameters: {cameras: [front, left]}}}\n'
     'robot2: {mono_depth: {ros__parameters: {cameras: [rear]}}}', 'robot1', 'front,left'),
    ('/robot1/mono_depth: {ros__parameters: {cameras: [rear]}}', 'robot2', ''),
    ('/**/mono_depth: {ros__parameters: {cameras: [rear]}}', 'a/b', 'rear'),
    ('/*/mono_depth: {ros__parameters: {cameras: [rear]}}', 'a/b', ''),
    ('/**: {ros__parameters: {cameras: [a]}}\n/mono_depth: {ros__parameters: {cameras: [b]}}',
     '', 'b'),
])
def test_cameras_are_those_of_this_node(
        tmp_path: Path, text: str, namespace: str, cameras: str) -> None:
    file = tmp_path / 'robot.yaml'
    file.write_text(text)
    assert remappings(params_file=str(file), namespace=namespace) == remappings(cameras=cameras)


def remappings(**changes: str) -> dict[str, str]:
    return dict(node_launch({**DEFAULTS, **changes}, SHARE, {}).remappings)


def test_several_cameras_get_their_topics() -> None:
    assert remappings(cameras='front, left') == {
        'front/image': '/front/image_raw', 'front/camera_info': '/front/camera_info',
        'left/image': '/left/image_raw', 'left/camera_info': '/left/camera_info'}
    assert remappings(cameras='front,left', image_topic='/cam_{camera}/rgb/image_rect',
                      camera_info_topic='/infos/{camera}') == {
        'front/image': '/cam_front/rgb/image_rect', 'front/camera_info': '/infos/front',
        'left/image': '/cam_left/rgb/image_rect', 'left/camera_info': '/infos/left'}
    assert remappings(cameras='front,left', image_topic='/a/image_raw,/b/image_raw') == {
        'front/image': '/a/image_raw', 'front/camera_info': '/a/camera_info',
        'left/image': '/b/image_raw', 'left/camera_info': '/b/camera_info'}
    wanted = node_launch({**DEFAULTS, 'cameras': 'front', 'namespace': 'robot'}, SHARE, {})
    assert wanted.parameters[-1]['cameras'] == ['front']
    assert ('/camera/image_raw', '/front/image_raw') in wanted.rviz_remappings
    assert ('/mono_depth/points', '/robot/mono_depth/front/points') in wanted.rviz_remappings
    assert 'cameras' in specs()


def test_cameras_of_the_parameters_file_get_their_topics(repository: Path, tmp_path: Path) -> None:
    example = str(repository / 'config' / 'several_cameras.yaml')
    assert remappings(params_file=example) == remappings(cameras='front,left')
    assert list(remappings(params_file=example, cameras='rear')) == [
        'rear/image', 'rear/camera_info']
    for text in ('a: [', '[1, 2]', '{a: {ros__parameters: {cameras: 3}}}', '', '{a: null}',
                 "{a: {ros__parameters: {cameras: ['']}}}"):
        file = tmp_path / 'p.yaml'
        file.write_text(text)
        assert remappings(params_file=str(file)) == remappings(), text


@pytest.mark.parametrize(('environment', 'env'), [
    ({}, {'FASTDDS_DEFAULT_PROFILES_FILE': PROFILE}),
    ({'ROS_DISTRO': 'kilted'}, {'FASTDDS_DEFAULT_PROFILES_FILE': PROFILE}),
    ({'ROS_DISTRO': 'humble'}, {'FASTRTPS_DEFAULT_PROFILES_FILE': PROFILE}),
    ({'FASTDDS_DEFAULT_PROFILES_FILE': '/mine.xml'}, {}),
    ({'FASTRTPS_DEFAULT_PROFILES_FILE': '/mine.xml'}, {})])
def test_the_profile_is_set_unless_the_user_has_one(
        environment: dict[str, str], env: dict[str, str]) -> None:
    assert node_launch(DEFAULTS, SHARE, environment).env == env
    assert node_launch({**DEFAULTS, 'fastdds_profile': 'false'}, SHARE, environment).env == {}


@pytest.mark.parametrize(('changes', 'said'), [
    (dict(rviz='maybe'), 'rviz:=maybe'), (dict(log_level='loud'), 'log_level:=loud'),
    (dict(params_file='/no/such.yaml'), '/no/such.yaml'), (dict(image_topic=''), 'image_topic'),
    (dict(image_topic='/a,/b'), 'the name of one topic'),
    (dict(image_topic='/{camera}/image'), 'the name of one topic'),
    (dict(cameras='front,left', image_topic='/a/image'), 'for each of front, left'),
    (dict(cameras='front,left', image_topic='/{cam}/a,/b'), 'for each of front, left'),
    (dict(cameras='a,b', camera_info_topic='/a/info'), 'camera_info_topic:=/a/info'),
    (dict(cameras='front,scale'), "cameras: found 'scale'"),
    (dict(cameras='front,front'), 'each name once')])
def test_bad_arguments_are_refused(changes: dict[str, str], said: str) -> None:
    with pytest.raises(ArgumentError) as refusal:
        node_launch({**DEFAULTS, **changes}, SHARE, {})
    assert said in str(refusal.value)


def test_files_that_the_launch_files_name_exist(repository: Path) -> None:
    wanted = node_launch(DEFAULTS, repository, {})
    assert Path(wanted.rviz_arguments[1]).is_file()
    for path in wanted.env.values():
        assert Path(path).is_file()
