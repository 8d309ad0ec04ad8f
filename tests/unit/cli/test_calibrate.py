"""`depth-node calibrate` with a network whose depth is known: 0.02 (r + 2g + 3b) / 3 + 0.5 [m]."""

from __future__ import annotations

from collections.abc import Callable
import json
from pathlib import Path

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
    assert report['not_used'] == [{'picture': '3.png', 'reason': 'no chessboard seen'}]


@pytest.mark.parametrize(('arguments', 'words'), [
    (['--distance', '1'], 'no INPUT'),
    (['x.png', '--chessboard', '9x6'], '--square'),
    (['x.png', '--tag', 'tag36h11'], '--tag-size'),
    (['x.png', '--tag', 'qr', '--tag-size', '0.1'], 'tag36h11'),
    (['x.png', '--distance', '1'], 'no such file'),
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


RESULT = Result(1.25, -0.04, 0.03, (0.8, 2.0), (0.01, -0.02, 0.0), 0.2, ('a note',))


def test_file_keeps_other_parameters_and_the_old_file(tmp_path: Path):
    path = tmp_path / 'robot.yaml'
    text = ('# ours\n/**:\n  ros__parameters:\n    model: {name: small}\n'
            '    scale: {source: model, when_stale: blank}\n')
    path.write_text(text)
    kept = calibration_file.save(path, RESULT)
    assert kept == tmp_path / 'robot.yaml.bak'
    assert kept.read_text() == text
    assert yaml.safe_load(path.read_text()) == {'/**': {'ros__parameters': {
        'model': {'name': 'small'},
        'scale': {'source': 'fixed', 'when_stale': 'blank', 'scale': 1.25, 'shift': -0.04}}}}
    assert '1.2500' in path.read_text()
    other = tmp_path / 'cameras.yaml'
    assert calibration_file.save(other, RESULT, camera='front') is None
    assert yaml.safe_load(other.read_text())['/**']['ros__parameters']['front']['scale'][
        'scale'] == 1.25


@pytest.mark.parametrize('text', ['- 1\n- 2\n', '/**: 3\n', 'a: [', '/**:\n  ros__parameters:\n'
                                  '    scale: 4\n'])
def test_file_of_something_else_is_left_alone(tmp_path: Path, text: str):
    path = tmp_path / 'other.yaml'
    path.write_text(text)
    with pytest.raises(calibration_file.CalibrationFileError, match=r'other\.yaml'):
        calibration_file.save(path, RESULT)
    assert path.read_text() == text
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
