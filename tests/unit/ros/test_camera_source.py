"""Which intrinsics a frame gets."""

from __future__ import annotations

from dataclasses import replace

from depth_node.camera import Camera
from depth_node.ros.camera_source import Calibration, CameraSource
import pytest

SIZE = 48, 64
GOOD = Calibration(
    width=64, height=48, distortion_model='plumb_bob', d=(0.1, 0.0, 0.0, 0.0, 0.0),
    k=(60.0, 0, 30, 0, 70.0, 26, 0, 0, 1), r=(1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0),
    p=(55.0, 0, 31, 0, 0, 66.0, 23, 0, 0, 0, 1.0, 0))
FILE = Camera(SIZE, 50.0, 51.0, 32.0, 24.0)


def test_topic_goes_before_file_before_field_of_view() -> None:
    source = CameraSource(FILE)
    assert not source.has_info
    found = source.resolve(SIZE, 90.0)
    assert (found.camera, found.source, found.problem) == (FILE, 'url', 'camera_info_missing')
    source.take(GOOD)
    assert source.has_info
    found = source.resolve(SIZE, 90.0)
    assert (found.source, found.problem) == ('topic', '')
    assert found.camera is not None
    assert (found.camera.fx, found.camera.P) == (60.0, (55.0, 66.0, 31.0, 23.0))
    found = CameraSource().resolve(SIZE, 90.0)
    assert found.source == 'fov'
    assert found.camera is not None
    assert found.camera.fx == pytest.approx(32.0)
    assert CameraSource().resolve(SIZE, 0.0).source == 'none'


def test_images_that_are_rectified_already_have_the_projection_and_no_distortion() -> None:
    source = CameraSource(rectified_topic=True)
    source.take(GOOD)
    camera = source.resolve(SIZE, 0.0).camera
    assert camera is not None
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (55.0, 66.0, 31.0, 23.0)
    assert not camera.is_distorted


@pytest.mark.parametrize(('changes', 'problem'), [
    (dict(k=(0.0,) * 9), 'camera_info_uncalibrated'),
    (dict(k=(float('nan'), *GOOD.k[1:])), 'camera_info_invalid'),
    (dict(width=128, height=96), 'camera_info_size'),
    (dict(distortion_model='strange'), 'camera_info_distortion')])
def test_problems_keep_their_name_under_a_fallback(changes: dict, problem: str) -> None:
    source = CameraSource(FILE)
    source.take(replace(GOOD, **changes))
    found = source.resolve(SIZE, 0.0)
    assert (found.camera, found.source, found.problem) == (FILE, 'url', problem)
    bare = CameraSource()
    bare.take(replace(GOOD, **changes))
    assert bare.resolve(SIZE, 0.0).camera is None
    assert bare.resolve(SIZE, 0.0).problem == problem
    source.take(GOOD)
    assert source.resolve(SIZE, 0.0).source == 'topic'


def test_binning_and_region_are_honoured() -> None:
    source = CameraSource()
    source.take(replace(GOOD, width=128, height=96, binning_x=2, binning_y=2))
    camera = source.resolve(SIZE, 0.0).camera
    assert camera is not None
    assert (camera.fx, camera.cx) == (30.0, pytest.approx((30 + 0.5) / 2 - 0.5))
    source.take(replace(GOOD, width=128, height=96, roi_xywh=(10, 20, 64, 48)))
    camera = source.resolve(SIZE, 0.0).camera
    assert camera is not None
    assert (camera.fx, camera.cx, camera.cy) == (60.0, 20.0, 6.0)


def test_file_of_another_size_falls_through_to_the_field_of_view() -> None:
    source = CameraSource(FILE)
    found = source.resolve((30, 40), 60.0)
    assert (found.source, found.problem) == ('fov', 'camera_info_size')
    assert '64x48' in found.message
    assert source.resolve(SIZE, 60.0).source == 'url', 'the cache follows the size'
