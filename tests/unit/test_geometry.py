"""Points and cloud bytes against planes, projections and an independent byte reader."""

import struct

import cv2
from depth_node.camera import Camera, Rectifier
from depth_node.geometry import CloudLayout, CloudPacker, depth_to_points
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

CAMERA = Camera((240, 330), 251.0, 263.0, 171.3, 109.8)


def plane_depth(camera: Camera, normal, offset: float) -> np.ndarray:
    """Return the depth of the plane n . X = offset through every pixel, in float64."""
    v, u = np.mgrid[0:camera.size_hw[0], 0:camera.size_hw[1]]
    along = (normal[0] * (u - camera.cx) / camera.fx + normal[1] * (v - camera.cy) / camera.fy
             + normal[2])
    return offset / along


def test_point_projects_back_to_its_pixel():
    depth = np.full(CAMERA.size_hw, np.nan, np.float32)
    depth[100, 200] = 2.5  # row v=100, column u=200
    x, y, z = depth_to_points(depth, CAMERA)[100, 200]
    uv = CAMERA.fx * x / z + CAMERA.cx, CAMERA.fy * y / z + CAMERA.cy
    assert (*uv, z) == pytest.approx((200.0, 100.0, 2.5), abs=1e-3)


@pytest.mark.parametrize('model', ['plumb_bob', 'rational_polynomial', 'equidistant'])
def test_tilted_plane_through_a_distorted_camera(model):
    """Depth is known in the raw image; after rectification the points lie on the plane."""
    coefficients = {'plumb_bob': (-0.28, 0.09, 0.0011, -0.0007, -0.012),
                    'rational_polynomial': (0.41, -0.12, 0.0008, -0.0005, 0.011, 0.72, -0.03,
                                            0.009),
                    'equidistant': (-0.021, 0.006, -0.003, 0.0007)}[model]
    raw = Camera(CAMERA.size_hw, CAMERA.fx, CAMERA.fy, CAMERA.cx, CAMERA.cy, model, coefficients,
                 P=(230.0, 241.0, 168.0, 113.0))
    normal, offset = np.array([0.35, -0.42, 0.84]), 1.9
    v, u = np.mgrid[0:raw.size_hw[0], 0:raw.size_hw[1]].astype(np.float64)
    pixels = np.stack([u, v], -1).reshape(-1, 1, 2)
    if model == 'equidistant':
        flat = cv2.fisheye.undistortPoints(pixels, raw.K, np.array(coefficients))
    else:
        stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 200, 1e-12)
        flat = cv2.undistortPointsIter(pixels, raw.K, np.array(coefficients), np.eye(3),
                                       np.eye(3), stop)
    rays = flat.reshape(*raw.size_hw, 2)
    raw_depth = (offset / (rays @ normal[:2] + normal[2])).astype(np.float32)
    rectifier = Rectifier(raw)
    maps = cv2.fisheye if model == 'equidistant' else cv2
    map_u, map_v = maps.initUndistortRectifyMap(
        raw.K, np.array(raw.D), np.eye(3), rectifier.camera.K, raw.size_hw[::-1], cv2.CV_32FC1)
    depth = cv2.remap(raw_depth, map_u, map_v, cv2.INTER_LINEAR, borderValue=float('nan'))
    points = depth_to_points(depth, rectifier.camera)
    seen = np.isfinite(points).all(-1)
    if rectifier.valid is not None:
        seen &= cv2.erode(rectifier.valid.astype(np.uint8), np.ones((3, 3))).astype(bool)
    assert seen.mean() > 0.8
    away = np.abs(points[seen].astype(np.float64) @ normal - offset)
    assert away.max() < 1e-3


def test_invalid_depth_is_nan_and_never_inf_or_origin():
    depth = np.full(CAMERA.size_hw, 1.5, np.float32)
    depth[0, 0], depth[1, 1], depth[2, 2] = np.nan, np.inf, -np.inf
    packed = CloudPacker(CAMERA).pack(depth)
    xyz = packed.data.view(np.float32).reshape(packed.height, packed.width, 4)[..., :3]
    for index in range(3):
        assert np.isnan(xyz[index, index]).all()
    assert not np.isinf(xyz).any()
    assert np.isnan(xyz).any(-1).sum() == 3
    assert not packed.is_dense


def test_bytes_read_by_an_independent_reader():
    generator = np.random.default_rng(5)
    camera = Camera((7, 11), 9.0, 13.0, 4.2, 2.9)
    depth = generator.uniform(0.5, 4, (7, 11)).astype(np.float32)
    rgb = generator.integers(0, 256, (7, 11, 3), np.uint8)
    packed = CloudPacker(camera).pack(depth, rgb)
    assert (packed.height, packed.width, packed.is_dense) == (7, 11, True)
    data = packed.data.tobytes()
    assert len(data) == 7 * 11 * 16
    for v in range(7):
        for u in range(11):
            x, y, z, colour = struct.unpack_from('<fffI', data, (v * 11 + u) * 16)
            assert z == depth[v, u]
            assert x == pytest.approx((u - 4.2) / 9.0 * float(z), rel=1e-6)
            assert y == pytest.approx((v - 2.9) / 13.0 * float(z), rel=1e-6)
            assert (colour >> 16 & 255, colour >> 8 & 255, colour & 255) == tuple(rgb[v, u])
            assert colour >> 24 == 0


@settings(max_examples=40, deadline=None)
@given(stride=st.integers(1, 6), u0=st.integers(0, 20), v0=st.integers(0, 20),
       width=st.integers(1, 40), height=st.integers(1, 40), organised=st.booleans(),
       seed=st.integers(0, 99))
def test_strided_region_is_a_subset_of_the_whole_cloud(stride, u0, v0, width, height, organised,
                                                       seed):
    camera = Camera((24, 33), 30.0, 41.0, 15.7, 12.2)
    generator = np.random.default_rng(seed)
    depth = generator.uniform(0.5, 4, camera.size_hw).astype(np.float32)
    depth[generator.random(camera.size_hw) < 0.3] = np.nan
    whole = depth_to_points(depth, camera)
    packed = CloudPacker(camera, CloudLayout(stride, organised, (u0, v0, width, height))).pack(
        depth)
    expected = whole[v0:v0 + height:stride, u0:u0 + width:stride]
    got = packed.data.view(np.float32).reshape(packed.height, packed.width, 4)[..., :3]
    if organised:
        np.testing.assert_array_equal(got, expected)
    else:
        np.testing.assert_array_equal(got[0], expected[~np.isnan(expected[..., 2])])
        assert packed.is_dense


def test_empty_dense_cloud_has_no_points():
    packed = CloudPacker(CAMERA, CloudLayout(organised=False)).pack(
        np.full(CAMERA.size_hw, np.nan, np.float32))
    assert (packed.width, packed.data.size) == (0, 0)


def test_wrong_sizes_and_distorted_cameras_are_refused():
    with pytest.raises(ValueError, match='240, 330'):
        depth_to_points(np.ones((330, 240), np.float32), CAMERA)
    with pytest.raises(ValueError, match='rgb'):
        CloudPacker(CAMERA).pack(np.ones((240, 330), np.float32), np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(ValueError, match='rectified'):
        CloudPacker(Camera((9, 9), 5, 5, 4, 4, 'plumb_bob', (0.1, 0, 0, 0, 0)))
    with pytest.raises(ValueError, match='stride'):
        CloudLayout(stride=0)
    with pytest.raises(ValueError, match='region'):
        CloudLayout(roi=(0, 0, 0, 5))


def test_organised_cloud_of_a_tilted_plane_lies_on_it():
    normal, offset = np.array([-0.2, 0.5, 0.8]), 2.2
    depth = plane_depth(CAMERA, normal, offset).astype(np.float32)
    points = depth_to_points(depth, CAMERA).astype(np.float64)
    ahead = depth > 0
    assert np.abs(points[ahead] @ normal - offset).max() < 1e-3
