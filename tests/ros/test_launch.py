"""The launch files, run for real where launch is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
import sys
from typing import Any

import pytest

pytest.importorskip(
    'launch_ros', reason='launch and launch_ros are not installed (there are no wheels of them): '
    'launch/*.launch.py were not run; test_launch_arguments.py tests what they pass on')
pytest.importorskip('ros2launch', reason='ros2launch is not installed: launch files were not run')

import ros_rig
from ros_rig import IMAGE_TOPIC, NETWORK_HW


@pytest.fixture
def launched(node_env: dict[str, str], tmp_path: Path) -> Iterator[Any]:
    """Give a function that launches a file of this package."""
    from ament_index_python.packages import PackageNotFoundError, get_package_share_directory

    try:
        get_package_share_directory('depth_node')
    except (LookupError, OSError, PackageNotFoundError):
        pytest.skip('the package is not installed in AMENT_PREFIX_PATH')
    started: list[ros_rig.Process] = []

    def run(file: str, *arguments: str) -> ros_rig.Process:
        command = [sys.executable, '-c', 'from ros2cli.cli import main; main()', 'launch',
                   'depth_node', file, *arguments]
        started.append(ros_rig.Process(command, tmp_path / f'{file}{len(started)}.log', node_env))
        return started[-1]

    yield run
    for process in started:
        process.stop(timeout_s=30.0)


def test_mono_depth_launch_starts_a_node_that_works(launched: Any, tmp_path: Path) -> None:
    import numpy as np
    from sensor_msgs.msg import Image

    parameters = tmp_path / 'p.yaml'
    parameters.write_text('/**:\n  ros__parameters:\n    backend: {name: onnxruntime}\n'
                          '    depth: {encoding: 16UC1}\n    input: {camera_info_wait_s: 0}\n')
    process = launched('mono_depth.launch.py', f'image_topic:={IMAGE_TOPIC}', 'model:=tiny',
                       f'params_file:={parameters}', 'namespace:=robot')
    process.wait_for_log('active: waiting for images on /cam/image_raw', 60)
    peer = ros_rig.Peer('/robot/mono_depth')
    try:
        depths = peer.collect('~/depth/image', Image)
        picture = np.full((*NETWORK_HW, 3), 60, np.uint8)
        peer.send_until(peer.camera(peer.info()), lambda: peer.image(picture), lambda: depths)
        assert depths[-1].encoding == '16UC1'
        assert peer.get('model.name') == 'tiny'
    finally:
        peer.close()
    assert process.stop(timeout_s=30.0) == 0
    assert 'process has finished cleanly' in process.log


def test_demo_launch_plays_the_clip_to_the_node(launched: Any, repository: Path) -> None:
    if not (repository / 'demo' / 'clip' / 'camera.yaml').is_file():
        pytest.skip('there is no demo/clip')
    process = launched('demo.launch.py', f'clip:={repository / "demo" / "clip"}', 'model:=tiny',
                       'backend:=onnxruntime', 'rate:=5.0')
    process.wait_for_log('active: waiting for images on /camera/image_raw', 60)
    process.wait_for_log('pictures of', 60)
    assert process.stop(timeout_s=30.0) == 0
    assert process.log.count('process has finished cleanly') == 2, process.log


def test_show_args_describes_every_argument(launched: Any) -> None:
    from depth_node.ros.launch_arguments import ARGUMENTS

    for file in ('mono_depth.launch.py', 'demo.launch.py'):
        process = launched(file, '--show-args')
        assert process.popen.wait(60) == 0, process.log
        assert "'model':" in process.log
    process = launched('mono_depth.launch.py', '--show-args')
    process.popen.wait(60)
    for name in ARGUMENTS:
        assert f"'{name}':" in process.log
