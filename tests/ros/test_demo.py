"""`depth-node demo` as a process, on a clip whose depth the network gets right by construction.

The tiny network says depth = 1 + red / 100, and the pictures hold their own true depth in red,
their row in green and their column in blue.  Everything written is opened by readers that are
not the project's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import importlib.util
import json
import math
import os
from pathlib import Path
import signal
import subprocess
import sys
import time
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
import pytest
import yaml

pytest.importorskip('rosbags')

import ros_rig

HEIGHT, WIDTH, FRAMES = 96, 128, 8
FX, FY, CX, CY = 120.0, 140.0, 61.5, 52.5
RATE, SECONDS = 15, 3
# 1 cm steps of red, and the network sees half the size
TOLERANCE_M = 0.03
HAS_STATUS = importlib.util.find_spec('depth_node.msg') is not None


def true_depth(index: int) -> NDArray[np.float64]:
    u, v = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    return 1.2 + 0.010 * u + 0.002 * v + 0.01 * index


def picture(index: int) -> NDArray[np.uint8]:
    u, v = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    red = np.rint(100 * (true_depth(index) - 1))
    return np.stack([red, v, u], axis=-1).astype(np.uint8)


def matrix(rows: int, columns: int, data: list[float]) -> dict[str, Any]:
    return {'rows': rows, 'cols': columns, 'data': data}


def write_clip(folder: Path, *, truth_factor: float = 1.0) -> Path:
    folder.mkdir()
    for index in range(FRAMES):
        cv2.imwrite(str(folder / f'{index:03d}.png'), picture(index)[..., ::-1])
        millimetres = np.rint(1000 * truth_factor * true_depth(index)).astype(np.uint16)
        cv2.imwrite(str(folder / f'{index:03d}.depth.png'), millimetres[::2, ::2])
    (folder / 'camera.yaml').write_text(yaml.safe_dump({
        'image_width': WIDTH, 'image_height': HEIGHT, 'camera_name': 'test',
        'camera_matrix': matrix(3, 3, [FX, 0.0, CX, 0.0, FY, CY, 0.0, 0.0, 1.0]),
        'distortion_model': 'plumb_bob', 'distortion_coefficients': matrix(1, 5, [0.0] * 5),
        'rectification_matrix': matrix(3, 3, [1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0]),
        'projection_matrix': matrix(
            3, 4, [FX, 0.0, CX, 0.0, 0.0, FY, CY, 0.0, 0.0, 0.0, 1.0, 0.0])}))
    # the optical axis along the world's +y, a metre above the ground
    pose = [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, -1.0, 0.0, 1.0],
            [0.0, 0.0, 0.0, 1.0]]
    (folder / 'clip.json').write_text(json.dumps({'camera_to_world': [pose] * FRAMES}))
    return folder


@dataclass
class Demo:
    """A run of the demo, finished."""

    status: int
    out: Path
    result: dict[str, Any]
    error: str

    def check(self, name: str) -> bool | None:
        [found] = [check['ok'] for check in self.result['checks'] if name in check['name']]
        return found


def command(clip: Path, out: Path, models: Path, *more: str) -> list[str]:
    return [sys.executable, '-m', 'depth_node.cli', 'demo', '--clip', str(clip), '--out', str(out),
            '--model', str(models / 'tiny.yaml'), '--backend', 'onnxruntime', '--rate', str(RATE),
            '--param', 'backend.threads:=1',
            '--param', 'filter.flying_pixel_angle_deg:=0.0',
            '--param', 'filter.flying_pixel_jump:=0.0', '--param', 'filter.temporal:=off', *more]


def play(clip: Path, out: Path, models: Path, env: dict[str, str], *more: str) -> Demo:
    done = subprocess.run(
        [*command(clip, out, models, '--json', '--seconds', str(SECONDS)), *more],
        capture_output=True, text=True, timeout=150, env={**os.environ, **env})
    assert done.stdout, done.stderr
    return Demo(done.returncode, out, json.loads(done.stdout), done.stderr)


@pytest.fixture(scope='module')
def stated_models(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the tiny model with a card that states an error on rendered frames."""
    folder = tmp_path_factory.mktemp('stated')
    card = yaml.safe_load((models / 'tiny.yaml').read_text())
    card['metrics'] = {'fp32': {'rendered/test': {'none': {'abs_rel': 0.02}}}}
    (folder / 'tiny.onnx').write_bytes((models / 'tiny.onnx').read_bytes())
    (folder / 'tiny.yaml').write_text(yaml.safe_dump(card))
    return folder


@pytest.fixture(scope='module')
def demo(stated_models: Path, node_env: dict[str, str],
         tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder = tmp_path_factory.mktemp('demo')
    return play(write_clip(folder / 'clip'), folder / 'out', stated_models, node_env)


def test_all_checks_pass(demo: Demo):
    failed = [check for check in demo.result['checks'] if check['ok'] is False]
    assert not failed
    assert demo.status == 0, demo.error
    assert demo.result['ok'] is True
    for name in ('no Inf', 'origin', 'size of the depth image', 'seen through CameraInfo',
                 "frame_id is the image's", "stamps are the image's", 'the card states'):
        assert demo.check(name) is True, name


def test_node_has_nothing_to_complain_about(demo: Demo):
    assert not [text for text in demo.result['warnings'] if 'lost' not in text]


def test_error_is_that_of_the_rounding(demo: Demo):
    error = demo.result['error']
    assert error['frames'] >= SECONDS * RATE // 3
    assert error['pixels'] == error['frames'] * HEIGHT // 2 * WIDTH // 2
    assert error['abs_rel'] < 0.01
    assert error['delta1'] == 1.0
    assert error['median_abs_error_m'] < TOLERANCE_M
    assert error['share_with_depth'] == 1.0


@pytest.mark.skipif(not HAS_STATUS, reason='the message DepthStatus is not built')
def test_every_image_is_accounted_for(demo: Demo):
    counted, times = demo.result['counters'], demo.result['times']
    assert counted['sent'] > RATE
    assert counted['received'] == (counted['processed'] + counted['dropped_newer']
                                   + sum(counted['skipped'].values()))
    assert counted['sent'] == counted['received'] + counted['lost_in_transport']
    stages = times['stages_ms']
    assert {'decode', 'preprocess', 'network', 'cloud', 'publish', 'waiting'} <= set(stages)
    latency = times['latency_ms']
    assert 0 < stages['network']['p50'] < latency['p50'] <= latency['p99'] <= latency['max']
    assert times['without_network_ms']['p50'] < latency['p50']


def test_process_is_measured(demo: Demo):
    process = demo.result['process']
    assert 0 < process['first_depth_s'] < 60
    assert 30 < process['rss_mb'] <= process['peak_rss_mb'] < 2000
    assert process['torch_loaded'] is False
    assert process['exit_codes'] == {'player': 0, 'node': 0, 'recorder': 0}


def test_nothing_is_left_behind(demo: Demo):
    assert not list(demo.out.glob('.*'))
    logs = {path.name for path in (demo.out / 'log').iterdir()}
    assert logs == {'player.log', 'node.log', 'recorder.log'}
    written = {Path(name).name for name in demo.result['files']}
    assert written == {path.name for path in demo.out.iterdir()} - {'log'}


def test_pictures_show_image_depth_and_truth(demo: Demo):
    pictures = sorted(demo.out.glob('frame_*.png'))
    assert len(pictures) == 6
    for path in pictures:
        bgr = cv2.imread(str(path))
        assert bgr.shape[1] == 3 * WIDTH
        image, depth, true = (bgr[30:HEIGHT, k * WIDTH:(k + 1) * WIDTH] for k in range(3))
        assert np.array_equal(image[..., 0], np.tile(np.arange(WIDTH), (HEIGHT - 30, 1)))
        # colours of the received and of the true depth differ by no more than a step or two
        assert np.median(np.abs(depth.astype(int) - true)) <= 12
        assert depth.std() > 20


def test_video_opens(demo: Demo):
    [path] = demo.out.glob('side_by_side.*')
    video = cv2.VideoCapture(str(path))
    frames = []
    while True:
        there, bgr = video.read()
        if not there:
            break
        frames.append(bgr)
    assert len(frames) == demo.result['error']['frames']
    assert frames[0].shape[1] == 2 * WIDTH
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(RATE, rel=0.35)


def read_ply(path: Path) -> NDArray[Any]:
    """Read a binary little-endian PLY of vertices, by its header alone."""
    kinds = {'float': '<f4', 'double': '<f8', 'uchar': 'u1', 'int': '<i4'}
    data = path.read_bytes()
    head, _, body = data.partition(b'end_header\n')
    lines = [line.split() for line in head.decode('ascii').splitlines()]
    assert lines[0] == ['ply']
    assert lines[1] == ['format', 'binary_little_endian', '1.0']
    [count] = [int(line[2]) for line in lines if line[:2] == ['element', 'vertex']]
    fields = [(line[2], kinds[line[1]]) for line in lines if line[0] == 'property']
    vertices = np.frombuffer(body, fields)
    assert len(vertices) == count
    return vertices


def assert_true_points(xyz: NDArray[Any], rgb: NDArray[Any]) -> None:
    """The colour of a point names its pixel: it must project there, at the true depth."""
    x, y, z = xyz.astype(np.float64).T
    v, u = rgb[:, 1].astype(int), rgb[:, 2].astype(int)
    assert np.abs(FX * x / z + CX - u).max() < 1e-3
    assert np.abs(FY * y / z + CY - v).max() < 1e-3
    assert np.abs(z - (1 + rgb[:, 0] / 100)).max() < TOLERANCE_M
    frame = np.median(z - true_depth(0)[v, u]) / 0.01
    assert -1 < frame < FRAMES


def test_ply_holds_the_true_surface(demo: Demo):
    vertices = read_ply(demo.out / 'cloud.ply')
    assert len(vertices) == HEIGHT * WIDTH
    assert_true_points(np.stack([vertices[axis] for axis in 'xyz'], axis=-1),
                       np.stack([vertices[name] for name in ('red', 'green', 'blue')], axis=-1))


@pytest.fixture(scope='module')
def bag(demo: Demo) -> dict[str, list[Any]]:
    """Give the bag's messages by topic, read by Foxglove's own reader."""
    reader_module = pytest.importorskip('mcap.reader')
    decoder = pytest.importorskip('mcap_ros2.decoder')
    [path] = (demo.out / 'bag').glob('*.mcap')
    found: dict[str, list[Any]] = {}
    with path.open('rb') as stream:
        reader = reader_module.make_reader(stream, decoder_factories=[decoder.DecoderFactory()])
        for _, channel, _, message in reader.iter_decoded_messages():
            found.setdefault(channel.topic, []).append(message)
    return found


def stamp_of(message: Any) -> tuple[int, int]:
    return message.header.stamp.sec, message.header.stamp.nanosec


def test_bag_holds_what_viewers_need(demo: Demo, bag: dict[str, list[Any]]):
    expected = {'/camera/image_raw', '/camera/camera_info', '/mono_depth/depth/image',
                '/mono_depth/depth/camera_info', '/mono_depth/points', '/tf', '/tf_static'}
    assert set(bag) == expected | ({'/mono_depth/status'} if HAS_STATUS else set())
    images = {stamp_of(message): message for message in bag['/camera/image_raw']}
    infos = {stamp_of(message): message for message in bag['/mono_depth/depth/camera_info']}
    depths = bag['/mono_depth/depth/image']
    assert len(depths) >= SECONDS * RATE // 3
    for depth in depths:
        assert (depth.encoding, depth.height, depth.width) == ('32FC1', HEIGHT, WIDTH)
        metres = np.frombuffer(depth.data, '<f4').reshape(HEIGHT, WIDTH)
        rgb = np.frombuffer(images[stamp_of(depth)].data, np.uint8).reshape(HEIGHT, WIDTH, 3)
        assert np.abs(metres - (1 + rgb[..., 0] / 100)).max() < TOLERANCE_M
    for info in infos.values():
        assert list(info.k) == pytest.approx([FX, 0, CX, 0, FY, CY, 0, 0, 1])
        assert (info.height, info.width) == (HEIGHT, WIDTH)


def test_bag_holds_points_with_colour(bag: dict[str, list[Any]]):
    clouds = bag['/mono_depth/points']
    assert clouds
    for cloud in clouds:
        assert [(field.name, field.offset) for field in cloud.fields] == [
            ('x', 0), ('y', 4), ('z', 8), ('rgb', 12)]
        values = np.frombuffer(cloud.data, [('xyz', '<f4', 3), ('bgr0', 'u1', 4)])
        assert len(values) == HEIGHT * WIDTH
        assert_true_points(values['xyz'], values['bgr0'][:, 2::-1])


def test_bag_connects_the_cloud_with_the_world(bag: dict[str, list[Any]]):
    frames = {message.header.frame_id for message in bag['/mono_depth/points']}
    [mount] = [t for message in bag['/tf_static'] for t in message.transforms]
    moves = [t for message in bag['/tf'] for t in message.transforms]
    assert {mount.child_frame_id} == frames
    assert {(move.header.frame_id, move.child_frame_id) for move in moves} == {
        ('map', mount.header.frame_id)}
    # 2 m along the optical axis is 2 m along the world's y, a metre above the ground
    for move in moves:
        point = applied(move.transform, applied(mount.transform, np.array([0.0, 0.0, 2.0])))
        assert point == pytest.approx([0.0, 2.0, 1.0], abs=1e-9)


def applied(transform: Any, point: NDArray[np.float64]) -> NDArray[np.float64]:
    """Apply a geometry_msgs/Transform: p + 2 q x (q x p + w p) + t."""
    q, t = transform.rotation, transform.translation
    axis = np.array([q.x, q.y, q.z])
    turned = point + 2 * np.cross(axis, np.cross(axis, point) + q.w * point)
    return turned + np.array([t.x, t.y, t.z])


def test_bag_opens_as_a_rosbag2(demo: Demo):
    from rosbags.rosbag2 import Reader

    with Reader(demo.out / 'bag') as reader:
        latched = [connection for connection in reader.connections
                   if connection.topic == '/tf_static']
        assert latched[0].ext.offered_qos_profiles[0].durability.name == 'TRANSIENT_LOCAL'
        assert reader.message_count == sum(
            1 for _ in reader.messages()) > SECONDS * RATE // 3
    size = sum(path.stat().st_size for path in (demo.out / 'bag').iterdir())
    assert size < 20e6


@pytest.mark.skipif(not HAS_STATUS, reason='the message DepthStatus is not built')
def test_bag_explains_the_projects_own_message(bag: dict[str, list[Any]]):
    for status in bag['/mono_depth/status']:
        assert (status.model, status.backend, status.precision) == ('tiny', 'onnxruntime', 'fp32')
        assert len(status.stage_names) == len(status.stage_ms) >= 6
        assert status.latency_ms > 0


def test_summary_names_every_check(demo: Demo):
    text = (demo.out / 'summary.txt').read_text()
    for check in demo.result['checks']:
        assert check['name'] in text
    saved = json.loads((demo.out / 'summary.json').read_text())
    assert saved == demo.result


def test_wrong_depth_fails(stated_models: Path, node_env: dict[str, str], tmp_path: Path):
    # a second run into the same folder, without the cloud, on a truth that is 1.5 times as far
    clip = write_clip(tmp_path / 'clip', truth_factor=1.5)
    out = tmp_path / 'out'
    (out / 'bag').mkdir(parents=True)
    (out / 'bag' / 'old.mcap').write_bytes(b'of an earlier run')
    ended = subprocess.run(['sh', '-c', 'echo $$'], capture_output=True, text=True).stdout.strip()
    (out / f'.recording-{ended}-x').mkdir()  # what a killed demo leaves
    (out / f'.recording-{os.getpid()}-x').mkdir()  # of one that runs
    done = play(clip, out, stated_models, node_env, '--no-cloud')
    assert done.status == 1
    assert [check['name'] for check in done.result['checks'] if check['ok'] is False] == [
        'at least half of the points lie within the error that the card states']
    assert 'checks failed' in done.error
    assert done.result['error']['abs_rel'] == pytest.approx(1 / 3, abs=0.01)
    assert not (out / 'cloud.ply').exists()
    assert 'cloud' not in done.result['times']['stages_ms']
    assert not (out / 'bag' / 'old.mcap').exists()
    assert [path.name for path in out.glob('.*')] == [f'.recording-{os.getpid()}-x']


def test_someone_elses_folder_is_not_removed(stated_models: Path, tmp_path: Path,
                                             capsys: pytest.CaptureFixture[str]):
    from depth_node.cli import main

    precious = tmp_path / 'out' / 'bag' / 'thesis.tex'
    precious.parent.mkdir(parents=True)
    precious.write_text('years')
    clip = write_clip(tmp_path / 'clip')
    assert main(command(clip, tmp_path / 'out', stated_models)[3:]) == 1
    assert 'thesis.tex' in capsys.readouterr().err
    assert precious.read_text() == 'years'


def test_reason_is_shown_when_the_node_cannot_work(stated_models: Path, node_env: dict[str, str],
                                                   tmp_path: Path):
    begin = time.monotonic()
    clip = write_clip(tmp_path / 'clip')
    done = subprocess.run(
        command(clip, tmp_path / 'out', stated_models, '--precision', 'int8'), text=True,
        capture_output=True, timeout=90, env={**os.environ, **node_env})
    assert done.returncode == 1
    assert 'the node cannot be configured' in done.stderr
    assert 'int8' in done.stderr
    assert 'Traceback' not in done.stderr
    assert time.monotonic() - begin < 45
    assert not list((tmp_path / 'out').glob('.*'))


def children_of(pid: int) -> list[int]:
    path = Path(f'/proc/{pid}/task/{pid}/children')
    return [int(child) for child in path.read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def wait_until(happens: Callable[[], bool], within_s: float, what: str) -> None:
    end = time.monotonic() + within_s
    while not happens():
        assert time.monotonic() < end, what
        time.sleep(0.1)


@pytest.mark.skipif(not Path('/proc/self/task').is_dir(), reason='needs /proc of Linux')
@pytest.mark.parametrize(('signum', 'status'), [(signal.SIGINT, 130), (signal.SIGTERM, 143),
                                                (signal.SIGKILL, -9)])
def test_no_process_outlives_the_demo(signum: signal.Signals, status: int, stated_models: Path,
                                      node_env: dict[str, str], tmp_path: Path):
    clip = write_clip(tmp_path / 'clip')
    with subprocess.Popen(
            command(clip, tmp_path / 'out', stated_models, '--seconds', '60'),
            env={**os.environ, **node_env}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True) as process:
        try:
            wait_until(lambda: len(children_of(process.pid)) == 3, 60, 'three processes')
            children = children_of(process.pid)
            time.sleep(1.0)
            process.send_signal(signum)
            assert process.wait(30) == status
        finally:
            process.kill()
    wait_until(lambda: not any(map(is_running, children)), 20, 'the processes to end')
    if signum != signal.SIGKILL:
        assert not list((tmp_path / 'out').glob('.*'))


def test_missing_ros_is_said_at_once(monkeypatch: pytest.MonkeyPatch,
                                     capsys: pytest.CaptureFixture[str], tmp_path: Path):
    from depth_node.cli import main

    monkeypatch.setitem(sys.modules, 'rclpy', None)
    assert main(['demo', '--out', str(tmp_path / 'out')]) == 1
    error = capsys.readouterr().err
    assert 'make demo' in error
    assert 'source /opt/ros' in error
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(('arguments', 'reason'), [
    (['--domain-id', '200'], '0 to 101'), (['--seconds', '0'], 'above 0'),
    (['--rate', 'fast'], 'above 0')])
def test_bad_arguments(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]):
    from depth_node.cli import main

    assert main(['demo', *arguments]) == 2
    assert reason in capsys.readouterr().err


def test_clip_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from depth_node.cli import main

    assert main(['demo', '--clip', str(tmp_path), '--out', str(tmp_path / 'out')]) == 1
    assert 'no picture' in capsys.readouterr().err
    clip = write_clip(tmp_path / 'clip')
    (clip / '003.depth.png').unlink()
    assert main(['demo', '--clip', str(clip), '--out', str(tmp_path / 'out')]) == 1
    assert '003.depth.png' in capsys.readouterr().err


def test_tiny_network_is_as_described():
    assert ros_rig.red_to_depth(50) == pytest.approx(1.5)
    assert math.isclose(HEIGHT / WIDTH, ros_rig.NETWORK_HW[0] / ros_rig.NETWORK_HW[1])
