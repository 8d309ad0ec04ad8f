"""`depth-node calibrate` with a network whose depth is known: 0.02 (r + 2g + 3b) / 3 + 0.5 [m]."""

from __future__ import annotations

from collections.abc import Callable
import json
from pathlib import Path
import subprocess
import sys

import cv2
import dataset_writers
from depth_node.calibration import Result
from depth_node.ros import calibration_file
import numpy as np
import pytest
import yaml

HFOV_DEG = 60.0
HEIGHT, WIDTH = 480, 640
FOCAL = 0.5 * WIDTH / np.tan(np.radians(HFOV_DEG / 2))


def depth_of(rgb: tuple[int, int, int]) -> float:
    return 0.02 * (rgb[0] + 2 * rgb[1] + 3 * rgb[2]) / 3 + 0.5


def write(path: Path, rgb: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    return path


def wall(path: Path, grey: int) -> Path:
    return write(path, np.full((HEIGHT, WIDTH, 3), grey, np.uint8))


def scale_in(path: Path) -> dict:
    return yaml.safe_load(path.read_text())['/**']['ros__parameters']['scale']


def test_one_distance(tmp_path: Path, tiny_card: Callable, cli_here: Callable):
    tiny_card(size_hw=(24, 32))
    wall(tmp_path / 'wall.png', 100)
    result = cli_here('calibrate', 'wall.png', '--distance', 3.0, '--hfov', HFOV_DEG,
                      '--model', 'tiny', '--backend', 'onnxruntime', '--json')
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report['scale'] == pytest.approx(3.0 / depth_of((100, 100, 100)), rel=1e-3)
    assert 'fewer than 3' in report['notes'][0]
    assert scale_in(tmp_path / 'calibration.yaml') == {
        'source': 'fixed', 'scale': pytest.approx(report['scale'], abs=1e-5), 'shift': 0.0}
    picture = cv2.imread(str(tmp_path / 'calibration.jpg'))
    assert picture.shape == (26 + 360, 960, 3)


def test_a_distance_for_each_picture_gives_the_shift(
    tmp_path: Path, tiny_card: Callable, cli_here: Callable
):
    tiny_card(size_hw=(24, 32))
    names, distances = [], []
    for grey in (20, 60, 110, 200):
        names.append(wall(tmp_path / f'{grey}.png', grey).name)
        distances.append(0.8 * depth_of((grey,) * 3) + 0.3)
    result = cli_here('calibrate', *names, '--distance', *distances, '--hfov', HFOV_DEG,
                      '--model', 'tiny', '--backend', 'onnxruntime', '-o', 'lab/scale.yaml')
    assert result.returncode == 0, result.stderr
    found = scale_in(tmp_path / 'lab/scale.yaml')
    assert found['scale'] == pytest.approx(0.8, abs=0.01)
    assert found['shift'] == pytest.approx(0.3, abs=0.02)
    assert '200.png' in result.stdout
    wrong = cli_here('calibrate', *names, '--distance', 1, 2, '--hfov', HFOV_DEG,
                     '--model', 'tiny', '--backend', 'onnxruntime')
    assert (wrong.returncode, '2 values for 4 pictures' in wrong.stderr) == (2, True)


def test_chessboards_in_a_folder(tmp_path: Path, tiny_card: Callable, cli_here: Callable):
    """Blue and yellow squares with one depth to the network, but not one brightness."""
    tiny_card(size_hw=(24, 32))
    blue, yellow = (0, 0, 200), (200, 200, 0)
    assert depth_of(blue) == depth_of(yellow)
    side, folder = 44, tmp_path / 'photos'
    folder.mkdir()
    squares = np.indices((7, 9)).sum(axis=0) % 2
    tiles = np.kron(squares, np.ones((side, side), int))[..., None]
    for number, (top, left) in enumerate([(60, 80), (100, 140), (90, 100)]):
        rgb = np.full((HEIGHT, WIDTH, 3), yellow, np.uint8)
        rgb[top:top + tiles.shape[0], left:left + tiles.shape[1]] = np.where(tiles, blue, yellow)
        write(folder / f'{number}.png', rgb)
    wall(folder / '3.png', 90)
    result = cli_here('calibrate', folder, '--chessboard', '8x6', '--square', 0.03,
                      '--hfov', HFOV_DEG, '--model', 'tiny', '--backend', 'onnxruntime',
                      '--json')
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    true_m = FOCAL * 0.03 / side
    assert report['scale'] == pytest.approx(true_m / depth_of(blue), rel=0.01)
    assert [item['picture'] for item in report['samples']] == ['0.png', '1.png', '2.png']
    assert report['not_used'] == [{'picture': '3.png', 'reason': 'no chessboard was seen'}]


@pytest.mark.parametrize(('arguments', 'words'), [
    (['--distance', '1'], 'no INPUT'),
    (['x.png', '--chessboard', '9x6'], '--square'),
    (['x.png', '--tag', 'tag36h11'], '--tag-size'),
    (['x.png', '--tag', 'qr', '--tag-size', '0.1'], 'tag36h11'),
    (['x.png', '--distance', '1'], 'no such file'),
    (['wall.png', '--distance', '1', '--hfov', '60', '--out', 'scale.jpg'], '.yaml'),
    (['wall.png', '--distance', '1', '--hfov', '60', '--square', '0.1'], '--chessboard'),
    (['wall.png', '--distance', '1', '--hfov', '60', '--at', '-1', '4'], 'below 0'),
    (['wall.png', '--distance', '1', '--hfov', '60', '--at', '900', '4'], 'outside'),
    (['wall.png', '--chessboard', '2x6', '--square', '0.03', '--hfov', '60'], 'at least 3'),
    (['wall.png', '--distance', '1'], '--hfov'),
    (['wall.png', '--chessboard', '9x6', '--square', '0.03', '--hfov', '60'],
     'none of the 1 pictures'),
])
def test_what_is_missing_is_said(tmp_path: Path, tiny_card: Callable, cli_here: Callable,
                                 arguments: list[str], words: str):
    tiny_card(size_hw=(24, 32))
    wall(tmp_path / 'wall.png', 100)
    result = cli_here('calibrate', *arguments, '--model', 'tiny', '--backend', 'onnxruntime')
    assert result.returncode in (1, 2)
    assert words in result.stderr
    assert not (tmp_path / 'calibration.yaml').exists()


def test_one_bad_picture_does_not_end_the_others(
    tmp_path: Path, tiny_card: Callable, cli_here: Callable
):
    tiny_card(size_hw=(24, 32))
    folder = tmp_path / 'photos'
    folder.mkdir()
    (folder / 'broken.png').write_bytes(b'not a picture')
    wall(folder / 'wall.png', 100)
    result = cli_here('calibrate', folder, '--distance', 3.0, '--hfov', HFOV_DEG,
                      '--model', 'tiny', '--backend', 'onnxruntime', '--json')
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert [item['picture'] for item in report['samples']] == ['wall.png']
    assert [item['picture'] for item in report['not_used']] == ['broken.png']


def test_distance_to_a_pixel_of_a_distorted_picture(
    tmp_path: Path, tiny_card: Callable, cli_here: Callable
):
    """--at counts in the picture as it was taken; the ray is that of OpenCV's projection."""
    tiny_card(size_hw=(24, 32))
    wall(tmp_path / 'wall.png', 100)
    k, d = [400.0, 0, 330, 0, 430, 228, 0, 0, 1], [-0.28, 0.09, 0.001, -0.0005, 0.0]
    p = [350.0, 0, 310, 0, 0, 360, 250, 0, 0, 0, 1, 0]
    (tmp_path / 'camera.yaml').write_text(yaml.safe_dump({
        'image_width': WIDTH, 'image_height': HEIGHT, 'distortion_model': 'plumb_bob',
        'camera_matrix': {'data': k}, 'distortion_coefficients': {'data': d},
        'projection_matrix': {'data': p}}))
    ray = np.array([0.4, -0.25, 1.0])
    u, v = cv2.projectPoints(ray.reshape(1, 3), np.zeros(3), np.zeros(3),
                             np.reshape(k, (3, 3)), np.array(d))[0].ravel()
    result = cli_here('calibrate', 'wall.png', '--distance', 3.0, '--at', u, v, '--camera-yaml',
                      'camera.yaml', '--model', 'tiny', '--backend', 'onnxruntime', '--json')
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)['scale'] == pytest.approx(
        3.0 / np.linalg.norm(ray) / depth_of((100, 100, 100)), rel=1e-3)


def test_folder_that_cannot_be_written(tmp_path: Path, tiny_card: Callable, cli_here: Callable):
    tiny_card(size_hw=(24, 32))
    wall(tmp_path / 'wall.png', 100)
    (tmp_path / 'file').write_text('')
    result = cli_here('calibrate', 'wall.png', '--distance', 3.0, '--hfov', HFOV_DEG, '--model',
                      'tiny', '--backend', 'onnxruntime', '--out', 'file/scale.yaml')
    assert result.returncode == 1
    assert 'file' in result.stderr
    assert 'Traceback' not in result.stderr
    assert 'unexpected' not in result.stderr


RESULT = Result(1.25, -0.04, 0.03, (0.8, 2.0), (0.01, -0.02, 0.0), 0.2, ('a note',))
FOUND = {'source': 'fixed', 'scale': 1.25, 'shift': -0.04}


def test_words_say_what_was_seen():
    said = calibration_file.words(RESULT)
    assert 'scale 1.2500, shift -0.040 m, from 3 samples from 0.80 to 2.00 m' in said
    assert 'scatter by 3.0%' in said
    assert 'off by 20.0% before' in said
    sensor = calibration_file.words(Result(1.25, 0.0, 0.03, None, (0.0,) * 20, 0.2))
    assert '20 estimates of the sensor' in sensor
    assert ' m' not in sensor


def test_file_keeps_other_parameters_and_the_old_file(tmp_path: Path):
    path = tmp_path / 'robot.yaml'
    text = ('# ours\n/**:\n  ros__parameters:\n    model: {name: small}\n'
            '    scale: {source: model, when_stale: blank}\n')
    path.write_text(text)
    kept = calibration_file.save(path, RESULT, model='small')
    assert kept == tmp_path / 'robot.yaml.bak'
    assert kept.read_text() == text
    assert yaml.safe_load(path.read_text()) == {'/**': {'ros__parameters': {
        'model': {'name': 'small'}, 'scale': {**FOUND, 'when_stale': 'blank'}}}}
    assert 'model small' in path.read_text()
    assert '1.2500' in path.read_text()
    assert sorted(tmp_path.iterdir()) == [path, kept]
    other = tmp_path / 'cameras.yaml'
    assert calibration_file.save(other, RESULT, model='small', camera='front') is None
    assert yaml.safe_load(other.read_text())['/**']['ros__parameters']['front']['scale'] == FOUND


@pytest.mark.parametrize(('text', 'section'), [
    ('', '/**'), ('# nothing yet\n', '/**'), ('/**:\n', '/**'),
    ('/**:\n  ros__parameters:\n', '/**'),
    # what `ros2 param dump` writes, and how launch files name a node
    ('/mono_depth:\n  ros__parameters:\n    scale.source: model\n    scale.scale: 3.0\n',
     '/mono_depth'),
    ('mono_depth:\n  ros__parameters:\n    scale: {scale: 3.0}\n', 'mono_depth'),
    ('/**:\n  ros__parameters: {scale: {scale: 3.0}}\nmono_depth:\n  ros__parameters:\n'
     '    model.name: small\n', 'mono_depth'),
    ('nav2:\n  ros__parameters: {a: 1}\n', '/**'),
])
def test_file_is_written_where_the_node_reads_it(tmp_path: Path, text: str, section: str):
    """By rcl's own parser, which takes the node's name before /**."""
    path = tmp_path / 'robot.yaml'
    path.write_text(text)
    calibration_file.save(path, RESULT, model='small')
    written = yaml.safe_load(path.read_text())
    assert written[section]['ros__parameters']['scale'] == FOUND
    assert not any(key.startswith('scale.') for key in written[section]['ros__parameters'])
    if 'nav2' in text:
        assert written['nav2'] == {'ros__parameters': {'a': 1}}
    if 'ros__parameters: {scale' not in text and 'scale.source' not in text:
        return  # two are enough: each starts a process
    pytest.importorskip('rclpy')
    script = ('import sys, rclpy; from rclpy.node import Node\n'
              'rclpy.init(args=["x", "--ros-args", "--params-file", sys.argv[1]])\n'
              'n = Node("mono_depth", automatically_declare_parameters_from_overrides=True)\n'
              'print(n.get_parameter("scale.source").value, n.get_parameter("scale.scale").value,'
              ' n.get_parameter("scale.shift").value)\n')
    read = subprocess.run([sys.executable, '-c', script, str(path)], capture_output=True,
                          text=True, check=True, timeout=60).stdout.split()
    assert read == ['fixed', '1.25', '-0.04']


def test_file_of_two_nodes_of_that_name_is_left_alone(tmp_path: Path):
    path = tmp_path / 'robots.yaml'
    text = ('/a/mono_depth:\n  ros__parameters: {model.name: small}\n'
            'b:\n  mono_depth:\n    ros__parameters: {model.name: small}\n')
    path.write_text(text)
    with pytest.raises(calibration_file.CalibrationFileError, match='/a/mono_depth and /b/'):
        calibration_file.save(path, RESULT, model='small')
    assert path.read_text() == text
    calibration_file.save(path, RESULT, model='small', node='/b/mono_depth')
    written = yaml.safe_load(path.read_text())
    assert written['b']['mono_depth']['ros__parameters']['scale'] == FOUND
    assert written['/a/mono_depth'] == {'ros__parameters': {'model.name': 'small'}}


def test_file_behind_a_link_keeps_the_link(tmp_path: Path):
    source, link = tmp_path / 'source.yaml', tmp_path / 'link.yaml'
    source.write_text('/**:\n  ros__parameters: {model.name: small}\n')
    link.symlink_to(source)
    calibration_file.save(link, RESULT, model='small')
    assert link.is_symlink()
    assert 'scale' in source.read_text()


@pytest.mark.parametrize('text', [
    '- 1\n- 2\n', '[]', 'false', '/**: 3\n', 'a: [', '/**:\n  ros__parameters:\n    scale: 4\n',
    '/**:\n  ros__parameters: [1]\n', 'a: !!python/object:os.system {}\n', '[' * 600,
    b'\xff\xfe\x00'])
def test_file_of_something_else_is_left_alone(tmp_path: Path, text: str | bytes):
    path = tmp_path / 'other.yaml'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    before = path.read_bytes()
    with pytest.raises(calibration_file.CalibrationFileError, match=r'other\.yaml'):
        calibration_file.save(path, RESULT, model='small')
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [path]


def test_bag_brings_its_own_camera(tmp_path: Path, tiny_card: Callable, cli_here: Callable):
    pytest.importorskip('rosbags')
    tiny_card(size_hw=(24, 32))
    truth = dataset_writers.write('bag', tmp_path, rgb_format='rgb8')
    own = []
    for rgb in (truth['rgb'][0], truth['rgb'][-1]):
        middle = rgb[20:28, 28:36].reshape(-1, 3).astype(float)
        own.append(float(np.median(0.02 * middle @ [1, 2, 3] / 3 + 0.5)))
    result = cli_here('calibrate', truth['path'], '--distance', *(1.3 * depth for depth in own),
                      '--frames', 2, '--model', 'tiny', '--backend', 'onnxruntime', '--json')
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    stamps = [f'{truth["stamps"][i] / 1e9:.3f}' for i in (0, -1)]
    assert [item['picture'].split()[-1] for item in report['samples']] == stamps
    assert [item['predicted_m'] for item in report['samples']] == pytest.approx(own, rel=0.05)
    assert report['scale'] == pytest.approx(1.3, rel=0.05)
