"""Camera: scaling, cropping, binning, rectification against closed forms and OpenCV."""

import math

import cv2
from depth_node.camera import Camera, CameraError, Rectifier
from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

PLUMB_BOB = (-0.28, 0.09, 0.0011, -0.0007, -0.012)
RATIONAL = (0.41, -0.12, 0.0008, -0.0005, 0.011, 0.72, -0.03, 0.009)
EQUIDISTANT = (-0.021, 0.006, -0.003, 0.0007)
LENSES = {'plumb_bob': PLUMB_BOB, 'rational_polynomial': RATIONAL, 'equidistant': EQUIDISTANT}


def lens(model: str, size_hw=(240, 330)) -> Camera:
    return Camera(size_hw, 251.0, 263.0, 171.3, 109.8, model, LENSES[model],
                  P=(230.0, 241.0, 168.0, 113.0))


def distort(camera: Camera, rays: np.ndarray) -> np.ndarray:
    """Project (N, 3) rays into the raw image with OpenCV: the oracle."""
    zero = np.zeros(3)
    if camera.distortion_model == 'equidistant':
        uv, _ = cv2.fisheye.projectPoints(rays[:, None], zero, zero, camera.K,
                                          np.array(camera.D))
    else:
        uv, _ = cv2.projectPoints(rays, zero, zero, camera.K, np.array(camera.D))
    return uv.reshape(-1, 2)


@given(sx=st.floats(0.2, 3), sy=st.floats(0.2, 3), u=st.floats(0, 600), v=st.floats(0, 400))
def test_resized_camera_sees_the_same_ray_at_the_resized_pixel(sx, sy, u, v):
    camera = Camera((401, 603), 500.0, 520.0, 310.0, 190.0)
    small = camera._resized(sx, sy, (max(1, round(401 * sy)), max(1, round(603 * sx))))
    # continuous image coordinates (pixel edges whole) scale exactly, centres are 0.5 off
    u_small, v_small = (u + 0.5) * sx - 0.5, (v + 0.5) * sy - 0.5
    assert (u_small - small.cx) / small.fx == pytest.approx((u - camera.cx) / camera.fx, abs=1e-9)
    assert (v_small - small.cy) / small.fy == pytest.approx((v - camera.cy) / camera.fy, abs=1e-9)


def test_scaling_moves_the_rectified_matrix_too():
    small = lens('plumb_bob').scaled((120, 165))
    assert small.P == pytest.approx((115.0, 120.5, (168.5) / 2 - 0.5, 113.5 / 2 - 0.5))
    assert small.D == PLUMB_BOB


def test_field_of_view_round_trip():
    camera = Camera.from_fov((480, 640), 66.0)
    assert camera.hfov_deg == pytest.approx(66.0)
    left, right = (np.array([-0.5, 639.5]) - camera.cx) / camera.fx
    assert math.degrees(math.atan(right) - math.atan(left)) == pytest.approx(66.0)


def test_binning_and_region_of_interest_belong_to_the_image():
    camera = Camera.from_calibration(
        width=1280, height=960, distortion_model='plumb_bob', d=[0, 0, 0, 0, 0],
        k=[1000, 0, 650, 0, 1010, 470, 0, 0, 1], p=[990, 0, 648, 0, 0, 1002, 468, 0, 0, 0, 1, 0],
        binning_x=2, binning_y=4, roi_xywh=(100, 40, 800, 600), image_size_hw=(150, 400))
    assert camera.size_hw == (150, 400)
    assert (camera.fx, camera.fy) == (500.0, 252.5)
    # the ray of full-resolution pixel (u, v) hits ((u - 100) + 0.5) / 2 - 0.5 in the small image
    for full, small, centre, focal, offset, factor in (
            (777.0, camera.cx, 650, 1000, 100, 2), (333.0, camera.cy, 470, 1010, 40, 4)):
        here = (full - offset + 0.5) / factor - 0.5
        assert (here - small) / (focal / factor) == pytest.approx((full - centre) / focal)
    assert camera.rectified().fx == 495.0
    assert camera.rectified().cy == pytest.approx((468 - 40 + 0.5) / 4 - 0.5)
    assert not camera.is_distorted


@pytest.mark.parametrize(('change', 'reason'), [
    ({'k': [0] * 9}, 'uncalibrated'),
    ({'k': [500, 0, math.nan, 0, 500, 240, 0, 0, 1]}, 'invalid'),
    ({'k': [math.inf, 0, 320, 0, 500, 240, 0, 0, 1]}, 'invalid'),
    ({'k': [-500, 0, 320, 0, 500, 240, 0, 0, 1]}, 'uncalibrated'),
    ({'k': [500.0]}, 'invalid'),
    ({'d': [math.nan]}, 'invalid'),
    ({'d': [0.1, 0.2], 'distortion_model': 'plumb_bob'}, 'distortion'),
    ({'d': [0.1] * 5, 'distortion_model': ''}, 'distortion'),
    ({'d': [0.1] * 5, 'distortion_model': 'omnidirectional'}, 'distortion'),
    ({'image_size_hw': (480, 848)}, 'size'),
    ({'image_size_hw': (240, 320)}, 'size'),
    ({'width': 640, 'height': 0}, 'size'),
    ({'binning_x': 2}, 'size'),
])
def test_unusable_calibrations_are_refused_with_a_reason(change, reason):
    good = {'width': 640, 'height': 480, 'distortion_model': 'plumb_bob', 'd': [0.0] * 5,
            'k': [500, 0, 320, 0, 510, 240, 0, 0, 1], 'image_size_hw': (480, 640)}
    Camera.from_calibration(**good)
    with pytest.raises(CameraError) as caught:
        Camera.from_calibration(**{**good, **change})
    assert caught.value.reason == reason


def test_size_error_names_both_sizes():
    with pytest.raises(CameraError, match=r'640x480.*848x480'):
        Camera.from_calibration(width=640, height=480, distortion_model='', d=[],
                                k=[500, 0, 320, 0, 510, 240, 0, 0, 1], image_size_hw=(480, 848))


@pytest.mark.parametrize('model', LENSES)
def test_rectified_pixels_show_the_rays_of_p(model):
    """A picture that stores its own raw coordinates tells where each rectified pixel came from."""
    camera = lens(model)
    height, width = camera.size_hw
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = np.arange(width)[None, :] * 0.7
    ramp[..., 1] = np.arange(height)[:, None]
    rectifier = Rectifier(camera)
    seen = rectifier(ramp)
    flat = rectifier.camera
    assert (flat.fx, flat.fy, flat.cx, flat.cy) == camera.P
    assert not flat.is_distorted
    pixels = np.array([(40, 30), (168, 113), (300, 200), (60, 190), (250, 45)], np.float64)
    rays = np.column_stack([(pixels[:, 0] - flat.cx) / flat.fx,
                            (pixels[:, 1] - flat.cy) / flat.fy, np.ones(len(pixels))])
    for (u, v), (raw_u, raw_v) in zip(pixels.astype(int), distort(camera, rays), strict=False):
        assert abs(raw_u - u) + abs(raw_v - v) > 0.2 or (u, v) == (168, 113)
        assert seen[v, u, 0] == pytest.approx(raw_u * 0.7, abs=1.2)
        assert seen[v, u, 1] == pytest.approx(raw_v, abs=1.2)


def test_rectifier_marks_pixels_outside_of_the_raw_image():
    wide = Camera((120, 160), 80.0, 80.0, 80.0, 60.0, 'plumb_bob', (-0.3, 0.1, 0, 0, 0),
                  P=(20.0, 20.0, 80.0, 60.0))
    rectifier = Rectifier(wide)
    assert rectifier.valid is not None
    assert not rectifier.valid[0, 0]
    assert rectifier.valid[60, 80]
    assert (rectifier(np.full((120, 160, 3), 200, np.uint8))[~rectifier.valid] < 200).all()


def test_rectified_depth_is_one_of_the_raw_values_there():
    camera = lens('plumb_bob')
    height, width = camera.size_hw
    v, u = np.mgrid[:height, :width].astype(np.float32)
    rectifier = Rectifier(camera)
    raw_u, raw_v = rectifier.nearest(u), rectifier.nearest(v)
    assert (raw_u == np.rint(raw_u)).all()
    flat = rectifier.camera
    pixels = np.array([(40, 30), (300, 200), (60, 190), (250, 45)])
    rays = np.column_stack([(pixels[:, 0] - flat.cx) / flat.fx,
                            (pixels[:, 1] - flat.cy) / flat.fy, np.ones(len(pixels))])
    for (column, row), (expected_u, expected_v) in zip(
            pixels, distort(camera, rays), strict=True):
        assert abs(expected_u - column) + abs(expected_v - row) > 0.2
        # half a pixel, and the maps' 1/32
        assert raw_u[row, column] == pytest.approx(expected_u, abs=0.54)
        assert raw_v[row, column] == pytest.approx(expected_v, abs=0.54)


def test_rectifier_refuses_another_size():
    with pytest.raises(ValueError, match=r'240, 330'):
        Rectifier(lens('plumb_bob'))(np.zeros((330, 240, 3), np.uint8))
    with pytest.raises(ValueError, match=r'240, 330'):
        Rectifier(lens('plumb_bob')).nearest(np.zeros((330, 240), np.float32))


def test_calibration_yaml(tmp_path):
    file = tmp_path / 'cam.yaml'
    file.write_text(
        'image_width: 640\nimage_height: 480\ncamera_name: a\n'
        'camera_matrix: {rows: 3, cols: 3, data: [500, 0, 320, 0, 510, 240, 0, 0, 1]}\n'
        'distortion_model: plumb_bob\n'
        'distortion_coefficients: {rows: 1, cols: 5, data: [0.1, 0.02, 0, 0, 0]}\n'
        'rectification_matrix: {rows: 3, cols: 3, data: [1, 0, 0, 0, 1, 0, 0, 0, 1]}\n'
        'projection_matrix: {rows: 3, cols: 4, '
        'data: [490, 0, 321, 0, 0, 505, 239, 0, 0, 0, 1, 0]}\n')
    camera = Camera.from_yaml(f'file://{file}')
    assert camera.is_distorted
    assert (camera.fy, camera.P) == (510.0, (490.0, 505.0, 321.0, 239.0))


@pytest.mark.parametrize('text', ['', 'a: 1', 'image_width: [', '- 1\n- 2',
                                  'image_width: 4\nimage_height: 3\ncamera_matrix: {data: x}'])
def test_broken_calibration_yaml_names_the_file(tmp_path, text):
    file = tmp_path / 'cam.yaml'
    file.write_text(text)
    with pytest.raises(CameraError, match=r'cam\.yaml'):
        Camera.from_yaml(file)


def test_a_picture_as_calibration_is_refused_in_one_line(tmp_path):
    file = tmp_path / 'cam.yaml'
    file.write_bytes(b'\xff\xd8\xff' + bytes(range(256)) * 400)
    with pytest.raises(CameraError, match=r'cam\.yaml: .*no text at all') as caught:
        Camera.from_yaml(file)
    assert len(str(caught.value)) < 300


def test_missing_calibration_yaml_names_the_file(tmp_path):
    with pytest.raises(CameraError, match='No such file'):
        Camera.from_yaml(tmp_path / 'nothing.yaml')
