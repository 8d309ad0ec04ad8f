"""`depth-node infer` as a process, on a network whose depth is known in closed form."""

from __future__ import annotations

import json

import numpy as np
import pytest

cv2 = pytest.importorskip('cv2')
pytest.importorskip('onnxruntime')

RGB = (90, 60, 30)
DEPTH_M = 2.5  # 0.02 * mean of (r, 2g, 3b) + 0.5; with red and blue swapped it would be 3.3


def wall(height=48, width=80, rgb=RGB):
    return np.full((height, width, 3), rgb[::-1], np.uint8)


def save(path, bgr):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), bgr)
    return path


def points_of(path):
    head, _, body = path.read_bytes().partition(b'end_header\n')
    count = int(next(line for line in head.decode().splitlines()
                     if line.startswith('element vertex')).split()[2])
    kind = np.dtype([('xyz', '<f4', 3), ('rgb', 'u1', 3)])
    assert len(body) == count * kind.itemsize
    return np.frombuffer(body, kind)


@pytest.fixture
def video(tmp_path):
    path = tmp_path / 'clip.avi'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'MJPG'), 12.0, (80, 48))
    assert writer.isOpened()
    for _ in range(9):
        writer.write(wall())
    writer.release()
    return path


def test_picture_gives_depth_colours_and_cloud(cli, tmp_path, tiny_card):
    tiny_card()
    save(tmp_path / 'wall.png', wall())
    result = cli('infer', 'wall.png', '--model', 'tiny', '--hfov', 90, '-o', 'out')
    assert result.returncode == 0, result.stderr
    assert 'wall.png: median 2.50 m, 100 %' in result.stdout
    out = tmp_path / 'out'
    assert sorted(p.name for p in out.iterdir()) == [
        'wall_cloud.ply', 'wall_color.png', 'wall_depth.npy', 'wall_depth.png']
    depth = np.load(out / 'wall_depth.npy')
    assert depth.shape == (48, 80)
    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth, DEPTH_M, rtol=1e-5)
    millimetres = cv2.imread(str(out / 'wall_depth.png'), cv2.IMREAD_UNCHANGED)
    assert millimetres.dtype == np.uint16
    assert (millimetres == 2500).all()
    assert cv2.imread(str(out / 'wall_color.png')).shape == (48, 80, 3)
    points = points_of(out / 'wall_cloud.ply')
    # a wall at Z = 2.5 m; with a field of view of 90 degrees f = width / 2 = 40 px
    assert len(points) == 48 * 80
    np.testing.assert_allclose(points['xyz'][:, 2], DEPTH_M, rtol=1e-5)
    assert points['xyz'][:, 0].max() == pytest.approx(DEPTH_M * 39.5 / 40, rel=1e-4)
    assert points['xyz'][:, 1].max() == pytest.approx(DEPTH_M * 23.5 / 40, rel=1e-4)
    assert (points['rgb'] == RGB).all()


def test_options_may_stand_between_the_inputs(cli_here, tmp_path, tiny_card):
    tiny_card()
    for name in ('a.png', 'b.png'):
        save(tmp_path / name, wall())
    result = cli_here('infer', 'a.png', '--model', 'tiny', '--hfov', '60', 'b.png', '-o', 'out',
                      '--write', 'npy')  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in (tmp_path / 'out').rglob('*.npy')) == [
        'a_depth.npy', 'b_depth.npy']


def test_real_picture(cli, tmp_path, tiny_card):
    data = pytest.importorskip('skimage.data')
    tiny_card()
    rgb = data.coffee()
    save(tmp_path / 'coffee.jpg', rgb[..., ::-1])
    result = cli('infer', 'coffee.jpg', '--model', 'tiny', '--hfov', 60, '--json')
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    (file,) = report['files']
    assert file['size_hw'] == [rgb.shape[0], rgb.shape[1]]
    depth = np.load(tmp_path / 'depth_out' / 'coffee_depth.npy')
    assert depth.shape == rgb.shape[:2]
    # brighter is farther for this network: the order of places survives JPEG, resizing and all
    light = cv2.blur(rgb.astype(np.float32) @ np.float32([1, 2, 3]) / 6, (41, 41))
    known = np.isfinite(depth)
    assert known.mean() == pytest.approx(file['valid_share'])
    assert np.corrcoef(light[known], depth[known])[0, 1] > 0.8


def test_folder_with_a_corrupt_file_does_the_others_and_fails(cli, tmp_path, tiny_card):
    tiny_card()
    save(tmp_path / 'in' / 'a.jpg', wall())
    whole = save(tmp_path / 'in' / 'b.jpg', wall()).read_bytes()
    (tmp_path / 'in' / 'b.jpg').write_bytes(whole[:len(whole) * 2 // 3])
    (tmp_path / 'in' / 'c.png').write_bytes(b'no picture')
    save(tmp_path / 'in' / 'd.bmp', wall())
    (tmp_path / 'in' / 'notes.txt').write_text('not a picture, and not meant as one')
    save(tmp_path / 'in' / 'sub' / 'e.png', wall())
    result = cli('infer', 'in', '--model', 'tiny', '--write', 'npy', '-o', 'out', '--json')
    assert result.returncode == 1
    report = json.loads(result.stdout)
    assert report['failed'] == 2
    errors = {f['input']: f['error'] for f in report['files'] if 'error' in f}
    assert sorted(errors) == ['in/b.jpg', 'in/c.png']
    assert 'cut off' in errors['in/b.jpg']
    assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == ['a_depth.npy', 'd_depth.npy']
    # the same for people: every failure by its name
    result = cli('infer', 'in', '--model', 'tiny', '--write', 'npy', '-o', 'out', '--recursive')
    assert result.returncode == 1
    assert 'in/b.jpg: JPEG of' in result.stderr
    assert '3 done, 2 failed' in result.stdout
    assert (tmp_path / 'out' / 'sub' / 'e_depth.npy').exists()


def test_same_stem_does_not_overwrite(cli_here, tmp_path, tiny_card):
    tiny_card()
    save(tmp_path / 'in' / 'a.png', wall())
    save(tmp_path / 'in' / 'a.bmp', wall(rgb=(40, 40, 40)))
    result = cli_here('infer', 'in', '--model', 'tiny', '--write', 'npy', '-o', 'out')
    assert result.returncode == 0, result.stderr
    means = {p.name: float(np.load(p).mean()) for p in (tmp_path / 'out').iterdir()}
    assert means == {'a_depth.npy': pytest.approx(2.1), 'a_png_depth.npy': pytest.approx(2.5)}


def test_resume_skips_what_is_done_and_does_what_is_not(cli_here, tmp_path, tiny_card):
    tiny_card()
    save(tmp_path / 'in' / 'a.png', wall())
    save(tmp_path / 'in' / 'b.png', wall())
    options = ('infer', 'in', '--model', 'tiny', '--write', 'png,npy', '-o', 'out', '--resume')
    assert cli_here(*options).returncode == 0
    out = tmp_path / 'out'
    before = (out / 'a_depth.npy').stat().st_mtime_ns
    (out / 'b_depth.npy').unlink()
    result = cli_here(*options)
    assert result.returncode == 0
    assert '1 done, 1 skipped' in result.stdout
    assert (out / 'a_depth.npy').stat().st_mtime_ns == before
    assert (out / 'b_depth.npy').exists()


def test_video_becomes_a_video(cli, tmp_path, tiny_card, video):
    tiny_card()
    result = cli('infer', video.name, '--model', 'tiny', '-o', 'out', '--json')
    assert result.returncode == 0, result.stderr
    (file,) = json.loads(result.stdout)['files']
    assert file['frames'] == 9
    assert file['median_m'] == pytest.approx(DEPTH_M, rel=0.03)
    (path,) = (tmp_path / 'out').iterdir()
    assert file['outputs'] == [f'out/{path.name}']
    capture = cv2.VideoCapture(str(path))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(12.0)
    sizes = []
    while True:
        done, frame = capture.read()
        if not done:
            break
        sizes.append(frame.shape)
    assert sizes == [(48, 160, 3)] * 9
    again = cli('infer', video.name, '--model', 'tiny', '-o', 'out', '--resume')
    assert '0 done, 1 skipped' in again.stdout


def test_single_frames_of_a_video(cli_here, tmp_path, tiny_card, video):
    tiny_card()
    result = cli_here('infer', video.name, '--model', 'tiny', '-o', 'out', '--write', 'png',
                 '--every', 4)
    assert result.returncode == 0, result.stderr
    names = sorted(p.name for p in (tmp_path / 'out' / 'clip').iterdir())
    assert names == [f'frame_{n:06d}_depth.png' for n in (0, 4, 8)]
    assert not list((tmp_path / 'out').glob('*side*'))


def test_damaged_video_is_named(cli_here, tmp_path, tiny_card):
    tiny_card()
    (tmp_path / 'x.mp4').write_bytes(b'not a video' * 50)
    result = cli_here('infer', 'x.mp4', '--model', 'tiny')
    assert result.returncode == 1
    assert 'x.mp4: ' in result.stderr
    assert 'video' in result.stderr
    assert 'Traceback' not in result.stderr


def test_video_that_breaks_off_is_named_and_its_beginning_kept(
        cli_here, tmp_path, tiny_card, video):
    tiny_card()
    whole = video.read_bytes()
    video.write_bytes(whole[:len(whole) * 8 // 10])  # the header alone takes two thirds
    result = cli_here('infer', video.name, '--model', 'tiny', '-o', 'out', '--json')
    assert result.returncode == 1
    (file,) = json.loads(result.stdout)['files']
    assert f'breaks off after {file["frames"]} of 9 frames' in file['error']
    assert 0 < file['frames'] < 9
    capture = cv2.VideoCapture(str(tmp_path / file['outputs'][0]))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == file['frames']


def test_folder_as_a_video(cli_here, tmp_path, tiny_card):
    tiny_card()
    for number in range(3):
        save(tmp_path / 'walk' / f'{number}.png', wall(48 + 10 * number, 80))
    result = cli_here('infer', 'walk', '--model', 'tiny', '--write', 'video', '--fps', 3,
                      '-o', 'out')
    assert result.returncode == 0, result.stderr
    (path,) = (tmp_path / 'out').iterdir()
    assert path.stem == 'walk_side'
    capture = cv2.VideoCapture(str(path))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(3.0)


CALIBRATION = """
image_width: 160
image_height: 96
distortion_model: plumb_bob
camera_matrix: {rows: 3, cols: 3, data: [120, 0, 79.5, 0, 110, 47.5, 0, 0, 1]}
distortion_coefficients: {rows: 1, cols: 5, data: [0, 0, 0, 0, 0]}
rectification_matrix: {rows: 3, cols: 3, data: [1, 0, 0, 0, 1, 0, 0, 0, 1]}
projection_matrix: {rows: 3, cols: 4, data: [120, 0, 79.5, 0, 0, 110, 47.5, 0, 0, 0, 1, 0]}
"""


def test_calibration_of_a_larger_picture_is_scaled(cli_here, tmp_path, tiny_card):
    tiny_card()
    (tmp_path / 'camera.yaml').write_text(CALIBRATION)
    save(tmp_path / 'wall.png', wall())  # half the calibrated size
    result = cli_here('infer', 'wall.png', '--model', 'tiny', '--camera-yaml', 'camera.yaml',
                 '--write', 'ply', '-o', 'out')
    assert result.returncode == 0, result.stderr
    assert 'note' not in result.stdout
    points = points_of(tmp_path / 'out' / 'wall_cloud.ply')['xyz']
    assert points[:, 0].max() == pytest.approx(DEPTH_M * 39.5 / 60, rel=1e-4)
    assert points[:, 1].max() == pytest.approx(DEPTH_M * 23.5 / 55, rel=1e-4)


def test_calibration_of_another_aspect_is_refused(cli_here, tmp_path, tiny_card):
    tiny_card()
    (tmp_path / 'camera.yaml').write_text(CALIBRATION)
    save(tmp_path / 'wall.png', wall(60, 80))
    result = cli_here('infer', 'wall.png', '--model', 'tiny', '--camera-yaml', 'camera.yaml')
    assert result.returncode == 1
    assert 'the picture is 80x60, the calibration is for 160x96' in result.stderr


def test_scale_multiplies_and_unknown_camera_is_noted(cli_here, tmp_path, tiny_card):
    tiny_card()
    save(tmp_path / 'wall.png', wall())
    result = cli_here('infer', 'wall.png', '--model', 'tiny', '--scale', 2, '--write', 'npy',
                 '-o', 'out')
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(np.load(tmp_path / 'out' / 'wall_depth.npy'), 2 * DEPTH_M,
                               rtol=1e-5)


def test_cloud_is_thinned_out_to_the_limit(cli_here, tmp_path, tiny_card):
    tiny_card()
    save(tmp_path / 'wall.png', wall())
    result = cli_here('infer', 'wall.png', '--model', 'tiny', '--write', 'ply',
                      '--max-points', 500, '-o', 'out')
    assert result.returncode == 0, result.stderr
    points = points_of(tmp_path / 'out' / 'wall_cloud.ply')
    assert len(points) == 16 * 27  # every third row and column
    assert np.ptp(points['xyz'][:, 2]) < 1e-4


@pytest.mark.parametrize(('arguments', 'status', 'text'), [
    (['nothere.png'], 1, 'nothere.png: there is no such file or folder'),
    (['empty'], 1, 'no picture or video in empty'),
    (['wall.png', '--model', 'nothing'], 1, "no model card named 'nothing'; found: small, tiny"),
    (['wall.png', '--model', 'tiny', '--backend', 'magic'], 1, "backend 'magic'"),
    (['wall.png', '--model', 'tiny', '--precision', 'int8'], 1, 'no int8 file'),
    (['wall.png', '--model', 'tiny', '--camera-yaml', 'none.yaml'], 1, 'none.yaml'),
    (['wall.png', '--model', 'tiny', '--hfov', '200'], 2, '--hfov 200'),
    (['wall.png', '--model', 'tiny', '--hfov', '-5'], 2, '--hfov'),
    (['wall.png', '--model', 'tiny', '--scale', 'nan'], 2, '--scale'),
    (['wall.png', '--model', 'tiny', '--write', 'jpeg'], 2, 'png,npy,color,ply,video'),
    (['wall.png', '--model', 'tiny', '--range', '3', '2'], 2, '--range 3 2'),
    (['wall.png', '--hfov', '60', '--camera-yaml', 'x'], 2, 'not allowed with'),
    (['empty', '-o', 'empty'], 2, 'is an input too'),
    ([], 2, 'INPUT'),
])
def test_mistakes_are_named(cli_here, tmp_path, tiny_card, arguments, status, text):
    tiny_card()
    save(tmp_path / 'wall.png', wall())
    (tmp_path / 'empty').mkdir()
    result = cli_here('infer', *arguments)
    assert result.returncode == status, result.stderr
    assert text in result.stderr
    assert 'Traceback' not in result.stderr
