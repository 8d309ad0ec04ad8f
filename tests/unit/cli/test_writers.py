"""Written files, read back by something else."""

from __future__ import annotations

import os
import struct

import cv2
from depth_node.cli import _writers
import numpy as np
import pytest


def read_ply(path):
    """Read a binary PLY as its specification says; independent of the writer."""
    head, _, body = path.read_bytes().partition(b'end_header\n')
    lines = head.decode('ascii').splitlines()
    assert lines[:2] == ['ply', 'format binary_little_endian 1.0']
    count = int(next(line.split()[2] for line in lines if line.startswith('element vertex')))
    properties = [line.split()[1:] for line in lines if line.startswith('property')]
    layout = '<' + ''.join({'float': 'f', 'uchar': 'B'}[kind] for kind, _ in properties)
    assert len(body) == count * struct.calcsize(layout)
    return [name for _, name in properties], list(struct.iter_unpack(layout, body))


def test_ply_holds_the_finite_points_with_their_colours(tmp_path):
    points = np.array([[[1, 2, 3], [np.nan, 0, 1]], [[4, 5, 6], [0, 0, np.inf]],
                       [[-1, -2, 0.5], [7, 8, 9]]], np.float32)
    rgb = np.arange(18, dtype=np.uint8).reshape(3, 2, 3)
    assert _writers.write_ply(tmp_path / 'a.ply', points, rgb) == 4
    names, rows = read_ply(tmp_path / 'a.ply')
    assert names == ['x', 'y', 'z', 'red', 'green', 'blue']
    assert rows == [(1, 2, 3, 0, 1, 2), (4, 5, 6, 6, 7, 8), (-1, -2, 0.5, 12, 13, 14),
                    (7, 8, 9, 15, 16, 17)]


def test_ply_without_colours_and_without_points(tmp_path):
    points = np.full((2, 2, 4), np.nan, np.float32)
    assert _writers.write_ply(tmp_path / 'a.ply', points) == 0
    assert read_ply(tmp_path / 'a.ply') == (['x', 'y', 'z'], [])
    points[0, 1] = (1, 2, 3, 99)  # the packer's points have a fourth column
    assert _writers.write_ply(tmp_path / 'a.ply', points) == 1
    assert read_ply(tmp_path / 'a.ply')[1] == [(1, 2, 3)]


def test_ply_refuses_colours_of_another_size(tmp_path):
    with pytest.raises(ValueError, match='colours'):
        _writers.write_ply(tmp_path / 'a.ply', np.zeros((2, 3, 3), np.float32),
                           np.zeros((3, 2, 3), np.uint8))
    assert not list(tmp_path.iterdir())


def test_depth_png_is_millimetres_in_16_bit(tmp_path):
    depth = np.array([[1.2346, np.nan, np.inf, 0.5]], np.float32)
    _writers.write_depth_png(tmp_path / 'd.png', depth)
    values = cv2.imread(str(tmp_path / 'd.png'), cv2.IMREAD_UNCHANGED)
    assert values.dtype == np.uint16
    assert values.tolist() == [[1235, 0, 0, 500]]


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / 'a.txt'
    _writers.write_text(path, 'old')

    def fails():
        with _writers.atomic_path(path) as temporary:
            temporary.write_text('half of the n')
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        fails()
    assert path.read_text() == 'old'
    assert [p.name for p in tmp_path.iterdir()] == ['a.txt']


def test_files_get_the_users_usual_permissions(tmp_path):
    old = os.umask(0o027)
    try:
        _writers.write_text(tmp_path / 'a.txt', 'x')
    finally:
        os.umask(old)
    assert (tmp_path / 'a.txt').stat().st_mode & 0o777 == 0o640


def test_picture_that_cannot_be_written_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match=r'a\.nonsense'):
        _writers.write_image(tmp_path / 'a.nonsense', np.zeros((2, 2, 3), np.uint8))


def frames_of(path):
    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        done, frame = capture.read()
        if not done:
            return frames, capture.get(cv2.CAP_PROP_FPS)
        frames.append(frame)


def test_video_comes_back_frame_by_frame(tmp_path):
    levels = [20, 120, 220]
    with _writers.VideoFile(tmp_path / 'sub' / 'v.mp4', 10.0) as video:
        for level in levels:
            assert not video.path.exists()
            video.add(np.full((49, 65, 3), level, np.uint8))  # odd sides: one is cut off
        # another shape is fitted, with bars
        video.add(np.full((24, 65, 3), 200, np.uint8))
    frames, fps = frames_of(video.path)
    assert fps == pytest.approx(10.0)
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 4
    for frame, level in zip(frames, levels, strict=False):
        assert abs(float(frame.mean()) - level) < 4
    assert frames[3][24].mean() > 190
    assert frames[3][2].mean() < 10
    assert [p.name for p in video.path.parent.iterdir()] == [video.path.name]


def test_interrupted_or_empty_video_leaves_nothing(tmp_path):
    def interrupted():
        with _writers.VideoFile(tmp_path / 'v.mp4', 10.0) as video:
            video.add(np.zeros((48, 64, 3), np.uint8))
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with _writers.VideoFile(tmp_path / 'w.mp4', 10.0):
        pass
    assert not list(tmp_path.iterdir())


def test_video_into_a_folder_that_cannot_be(tmp_path):
    (tmp_path / 'file').write_text('x')
    with pytest.raises(OSError, match='file'), \
            _writers.VideoFile(tmp_path / 'file' / 'v.mp4', 10.0) as video:
        video.add(np.zeros((48, 64, 3), np.uint8))


def test_side_by_side_is_bgr():
    rgb = np.zeros((2, 3, 3), np.uint8)
    rgb[..., 0] = 9
    both = _writers.side_by_side(rgb, np.full((2, 3, 3), 7, np.uint8))
    assert both.shape == (2, 6, 3)
    assert both[0, 0].tolist() == [0, 0, 9]
    assert both[0, 5].tolist() == [7, 7, 7]
