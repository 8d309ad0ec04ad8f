"""Points and cloud bytes against planes, projections and an independent byte reader."""

import math
import struct

import cv2
from depth_node.camera import Camera, Rectifier
from depth_node.geometry import (
    FIELDS,
    CloudLayout,
    CloudPacker,
    PackedCloud,
    VoxelThinner,
    depth_to_points,
)
from depth_node.ground import Mount
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
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


@pytest.mark.parametrize('organised', [True, False])
def test_region_beside_the_image_gives_an_empty_cloud(organised):
    layout = CloudLayout(roi=(400, 0, 5, 5), organised=organised)
    packed = CloudPacker(CAMERA, layout).pack(
        np.ones(CAMERA.size_hw, np.float32), np.zeros((*CAMERA.size_hw, 3), np.uint8))
    assert (packed.width, packed.data.size) == (0, 0)


@pytest.mark.parametrize('fields', [('rgb',), FIELDS])
def test_buffer_of_an_organised_cloud_holds_its_bytes(fields):
    packer = CloudPacker(CAMERA, CloudLayout(fields=fields))
    generator = np.random.default_rng(1)
    for _ in range(2):  # the second call writes to the same one
        packed = packer.pack(generator.uniform(0.5, 4, CAMERA.size_hw).astype(np.float32),
                             generator.integers(0, 256, (*CAMERA.size_hw, 3), np.uint8))
        assert packed.buffer is not None
        assert (packed.buffer.typecode, packed.buffer.tobytes()) == ('B', packed.data.tobytes())
    assert CloudPacker(CAMERA, CloudLayout(organised=False)).pack(
        np.ones(CAMERA.size_hw, np.float32)).buffer is None


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


# --- fields


def read_cloud(packed: PackedCloud) -> list[dict[str, float]]:
    """Read the bytes by what the cloud says about itself, one number at a time."""
    data, points = packed.data.tobytes(), []
    assert len(data) == packed.height * packed.width * packed.point_step
    for start in range(0, len(data), packed.point_step):
        point = dict(zip('xyz', struct.unpack_from('<fff', data, start), strict=True))
        for index, name in enumerate(packed.fields):
            kind = '<I' if name == 'rgb' else '<f'
            point[name] = struct.unpack_from(kind, data, start + 12 + 4 * index)[0]
        points.append(point)
    return points


@pytest.mark.parametrize('organised', [True, False])
@pytest.mark.parametrize('fields', [
    (), ('rgb',), ('intensity',), ('confidence',), ('rgb', 'confidence'),
    ('intensity', 'confidence'), ('rgb', 'intensity', 'confidence')])
def test_every_field_is_where_the_cloud_says(fields, organised):
    generator = np.random.default_rng(len(fields))
    camera = Camera((7, 11), 9.0, 13.0, 4.2, 2.9)
    depth = generator.uniform(0.5, 4, (7, 11)).astype(np.float32)
    depth[2, 3] = np.nan
    rgb = generator.integers(0, 256, (7, 11, 3), np.uint8)
    confidence = generator.random((7, 11), np.float32)
    layout = CloudLayout(stride=2, roi=(1, 0, 9, 7), fields=fields, organised=organised)
    packed = CloudPacker(camera, layout).pack(depth, rgb, confidence=confidence)
    assert packed.fields == fields
    assert packed.point_step == max(16, 12 + 4 * len(fields))
    pixels = [(v, u) for v in range(0, 7, 2) for u in range(1, 10, 2)
              if organised or (v, u) != (2, 3)]
    points = read_cloud(packed)
    assert len(points) == len(pixels)
    for (v, u), point in zip(pixels, points, strict=True):
        if (v, u) == (2, 3):
            assert math.isnan(point['x'])
        else:
            assert point['z'] == depth[v, u]
            assert point['x'] == pytest.approx((u - 4.2) / 9 * point['z'], rel=1e-6)
            assert point['y'] == pytest.approx((v - 2.9) / 13 * point['z'], rel=1e-6)
        red, green, blue = (int(part) for part in rgb[v, u])
        if 'rgb' in fields:
            assert point['rgb'] == red << 16 | green << 8 | blue
        if 'intensity' in fields:  # ITU-R BT.601
            assert point['intensity'] == pytest.approx(
                0.299 * red + 0.587 * green + 0.114 * blue, abs=1)
        if 'confidence' in fields:
            assert point['confidence'] == confidence[v, u]


def test_fields_that_nothing_was_given_for():
    depth = np.ones(CAMERA.size_hw, np.float32)
    packer = CloudPacker(CAMERA, CloudLayout(fields=FIELDS))
    generator = np.random.default_rng(0)
    packer.pack(depth, generator.integers(0, 256, (240, 330, 3), np.uint8), confidence=depth)
    last = read_cloud(packer.pack(depth))[77]
    assert (last['rgb'], last['intensity']) == (0, 0.0)
    assert math.isnan(last['confidence'])
    with pytest.raises(ValueError, match='confidence'):
        packer.pack(depth, confidence=np.ones((9, 9), np.float32))


# --- what is left out


FLOOR_M = 0.8


def turned(pitch_deg: float, roll_deg: float) -> np.ndarray:
    """Return the rotation from the optical frame to x forward, y left, z up (REP 103)."""
    p, r = math.radians(pitch_deg), math.radians(roll_deg)
    about_y = np.array([[math.cos(p), 0, math.sin(p)], [0, 1, 0], [-math.sin(p), 0, math.cos(p)]])
    about_x = np.array([[1, 0, 0], [0, math.cos(r), -math.sin(r)], [0, math.sin(r), math.cos(r)]])
    return about_y @ about_x @ np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])


def room(pitch_deg: float, roll_deg: float) -> np.ndarray:
    """Return the depth of a floor and of a wall 3 m ahead, seen by CAMERA."""
    turn = turned(pitch_deg, roll_deg)
    down, forward = -turn[2], turn[0]
    floor, wall = plane_depth(CAMERA, down, FLOOR_M), plane_depth(CAMERA, forward, 3.0)
    floor[floor <= 0] = np.inf
    wall[wall <= 0] = np.inf
    return np.minimum(floor, wall).astype(np.float32)


def level_points(packed: PackedCloud, pitch_deg: float, roll_deg: float) -> np.ndarray:
    """Return (height, width, 3) points forward, left and above the floor."""
    xyz = packed.data.view(np.float32).reshape(packed.height, packed.width, -1)[..., :3]
    return xyz.astype(np.float64) @ turned(pitch_deg, roll_deg).T + [0, 0, FLOOR_M]


POSES = [(0.0, 0.0), (25.0, 0.0), (12.0, 8.0), (-5.0, -15.0), (10.0, 90.0)]


@pytest.mark.parametrize(('pitch', 'roll'), POSES)
def test_height_band_keeps_what_is_in_it(pitch, roll):
    depth = room(pitch, roll)
    layout = CloudLayout(min_height_m=0.3, max_height_m=0.9)
    packed = CloudPacker(CAMERA, layout).pack(
        depth, mount=Mount.from_angles(FLOOR_M, pitch, roll))
    whole = level_points(CloudPacker(CAMERA).pack(depth), pitch, roll)
    kept = ~np.isnan(level_points(packed, pitch, roll)[..., 2])
    height = whole[..., 2]
    assert not kept[(height < 0.299) | (height > 0.901)].any()
    assert kept[(height > 0.301) & (height < 0.899)].all()
    assert kept.any()
    assert packed.removed == {'height': int(np.isfinite(depth).sum() - kept.sum())}
    assert packed.note == ''
    assert not packed.is_dense


@pytest.mark.parametrize(('pitch', 'roll'), POSES)
def test_ground_removal_takes_the_floor_and_leaves_the_wall(pitch, roll):
    depth = room(pitch, roll)
    mount = Mount.from_angles(FLOOR_M, pitch, roll)
    layout = CloudLayout(remove_ground=True, organised=False, ground_margin_m=0.05,
                         ground_margin_per_m=0.03)
    packed = CloudPacker(CAMERA, layout).pack(depth, mount=mount)
    whole = level_points(CloudPacker(CAMERA).pack(depth), pitch, roll).reshape(-1, 3)
    whole = whole[~np.isnan(whole[:, 0])]
    margin = 0.05 + 0.03 * np.hypot(whole[:, 0], whole[:, 1])
    expected = whole[whole[:, 2] >= margin]
    assert abs(packed.width - len(expected)) <= 0.002 * len(whole)
    kept = level_points(packed, pitch, roll)[0]
    # what remains is wall; the floor is gone up to the margin at the wall's foot
    np.testing.assert_allclose(kept[:, 0], 3.0, atol=1e-4)
    assert kept[:, 2].min() > 0.05 + 0.03 * 3.0 - 1e-4
    assert packed.removed['ground'] == len(whole) - packed.width


def test_ground_margin_grows_with_the_distance():
    """A mount that is wrong by one degree lifts the floor by 1.7 cm per metre."""
    depth = room(11.0, 0.0)
    wrong = Mount.from_angles(FLOOR_M, 10.0)
    depth[depth * np.cos(math.radians(11)) > 2.6] = np.nan  # not the wall
    known = np.isfinite(depth).sum()
    grown = CloudLayout(remove_ground=True, ground_margin_m=0.01, ground_margin_per_m=0.02)
    flat = CloudLayout(remove_ground=True, ground_margin_m=0.01, ground_margin_per_m=0.0)
    assert CloudPacker(CAMERA, grown).pack(depth, mount=wrong).removed == {'ground': known}
    assert CloudPacker(CAMERA, flat).pack(depth, mount=wrong).removed.get('ground', 0) < known / 2


def test_ground_margin_counts_horizontal_metres_however_steep_the_view():
    """A table top 0.2 m high, looked down at: removed where the margin has grown to 0.2 m."""
    turn = turned(60.0, 0.0)
    depth = plane_depth(CAMERA, -turn[2], FLOOR_M - 0.2)
    depth[depth <= 0] = np.nan
    layout = CloudLayout(remove_ground=True, ground_margin_m=0.05, ground_margin_per_m=0.4)
    packed = CloudPacker(CAMERA, layout).pack(
        depth.astype(np.float32), mount=Mount.from_angles(FLOOR_M, 60.0))
    kept = ~np.isnan(packed.data.view(np.float32).reshape(240, 330, 4)[..., 2])
    whole = level_points(CloudPacker(CAMERA).pack(depth.astype(np.float32)), 60.0, 0.0)
    away = np.hypot(whole[..., 0], whole[..., 1])
    assert kept[away < 0.374].all()
    assert not kept[away > 0.376].any()
    assert 0.1 < kept.mean() < 0.9


@pytest.mark.parametrize('mount', [None, Mount.from_angles(math.nan, 20.0)])
def test_without_a_mount_points_stay_and_the_cloud_says_so(mount):
    depth = room(20.0, 0.0)
    layout = CloudLayout(remove_ground=True, max_height_m=1.0)
    packed = CloudPacker(CAMERA, layout).pack(depth, mount=mount)
    plain = CloudPacker(CAMERA).pack(depth)
    np.testing.assert_array_equal(packed.data, plain.data)
    assert packed.removed == {}
    for word in ('height band and ground removal', 'mount.height_m'):
        assert word in packed.note
    assert plain.note == ''


def test_tables_follow_the_mount():
    depth = room(20.0, 0.0)
    packer = CloudPacker(CAMERA, CloudLayout(remove_ground=True))
    first = packer.pack(depth, mount=Mount.from_angles(FLOOR_M, 20.0)).removed['ground']
    assert packer.pack(depth, mount=Mount.from_angles(FLOOR_M, 50.0)).removed.get(
        'ground', 0) != first
    assert packer.pack(depth, mount=Mount.from_angles(FLOOR_M, 20.0)).removed['ground'] == first


@pytest.mark.parametrize('organised', [True, False])
def test_far_pixels_are_left_out_or_become_points_and_unknown_ones_never(organised):
    generator = np.random.default_rng(1)
    depth = generator.uniform(1, 5, CAMERA.size_hw).astype(np.float32)
    kinds = generator.integers(0, 5, CAMERA.size_hw)
    for kind, value in ((1, np.nan), (2, np.inf), (3, -np.inf)):
        depth[kinds == kind] = value
    near = np.isfinite(depth) & (depth <= 3.0)
    cut = CloudPacker(CAMERA, CloudLayout(organised=organised, far_m=3.0)).pack(depth)
    assert cut.removed == {'far': int((np.isfinite(depth) & ~near).sum())}
    cut = [point for point in read_cloud(cut) if not math.isnan(point['x'])]
    assert len(cut) == near.sum()
    assert max(point['z'] for point in cut) <= 3.0
    pulled = CloudPacker(CAMERA, CloudLayout(
        organised=organised, far_m=3.0, far_points=True)).pack(depth)
    assert pulled.removed == {}
    xyz = pulled.data.view(np.float32).reshape(-1, 4)[:, :3]
    xyz = xyz[~np.isnan(xyz[:, 0])]
    known = near | (depth > 3)
    assert len(xyz) == known.sum()
    v, u = np.nonzero(known)
    expected = np.where(near, depth, 3.0)[known]
    np.testing.assert_array_equal(xyz[:, 2], expected)
    np.testing.assert_allclose(xyz[:, 0], (u - CAMERA.cx) / CAMERA.fx * expected, rtol=1e-5,
                               atol=1e-6)
    np.testing.assert_allclose(xyz[:, 1], (v - CAMERA.cy) / CAMERA.fy * expected, rtol=1e-5,
                               atol=1e-6)


# --- voxels


def cells_of(points: np.ndarray, voxel_m: float) -> list[tuple[int, ...]]:
    scaled = points[:, :3].astype(np.float32) * np.float32(1 / voxel_m)
    return [tuple(int(part) for part in np.floor(row)) for row in scaled]


@pytest.mark.parametrize('voxel_m', [0.05, 0.4])
def test_one_mean_point_per_voxel(voxel_m):
    generator = np.random.default_rng(2)
    points = generator.normal(0, 0.5, (4000, 5)).astype(np.float32)
    thin = VoxelThinner(voxel_m)(points, averaged=[4])
    groups: dict[tuple[int, ...], list[np.ndarray]] = {}
    for cell, point in zip(cells_of(points, voxel_m), points, strict=True):
        groups.setdefault(cell, []).append(point)
    assert len(thin) == len(groups) < len(points)
    for point in thin:
        # the mean lies in the cell or, by rounding, on its border
        members = groups.get(cells_of(point[None], voxel_m)[0], [])
        assert any(np.allclose(np.mean(group, axis=0)[[0, 1, 2, 4]], point[[0, 1, 2, 4]],
                               atol=1e-5) and point[3] in [member[3] for member in group]
                   for group in (members, *groups.values()) if group)


@settings(max_examples=60, deadline=None)
@given(keys=hnp.arrays(np.int64, st.integers(0, 300), elements=st.integers(0, 2**62)),
       repeats=st.integers(1, 4))
def test_groups_are_those_of_a_sort(keys, repeats):
    keys = np.repeat(keys, repeats)
    np.random.default_rng(0).shuffle(keys)
    thinner = VoxelThinner(0.1)
    for part in (keys, keys[: len(keys) // 2]):  # the second meets a used table
        group, first = thinner._groups(part)
        _, expected = np.unique(part, return_inverse=True)
        assert len(first) == len(set(part.tolist()))
        pairs = set(zip(group.tolist(), expected.tolist(), strict=True))
        assert len(pairs) == len(first)
        np.testing.assert_array_equal(group[first], np.arange(len(first)))


def test_keys_that_meet_in_a_slot_are_kept_apart():
    thinner = VoxelThinner(0.1)
    keys = np.arange(200_000, dtype=np.int64) * 982_451_653
    group, first = thinner._groups(keys)
    slots = (keys.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> thinner._shift
    assert len(np.unique(slots)) < len(keys), 'no collision: the test shows nothing'
    assert len(first) == len(keys)
    assert len(np.unique(group)) == len(keys)


def test_voxel_cloud_of_a_depth_image():
    depth = room(15.0, 3.0)
    rgb = np.random.default_rng(4).integers(0, 256, (240, 330, 3), np.uint8)
    confidence = np.full(CAMERA.size_hw, 0.25, np.float32)
    layout = CloudLayout(organised=False, voxel_m=0.1, fields=FIELDS)
    packed = CloudPacker(CAMERA, layout).pack(depth, rgb, confidence=confidence)
    dense = CloudPacker(CAMERA, CloudLayout(organised=False)).pack(depth)
    whole = dense.data.view(np.float32).reshape(-1, 4)
    assert packed.width == len(set(cells_of(whole, 0.1)))
    assert packed.removed == {'voxel': dense.width - packed.width}
    assert (packed.height, packed.is_dense, packed.point_step) == (1, True, 24)
    colours = {int(r) << 16 | int(g) << 8 | int(b) for r, g, b in rgb.reshape(-1, 3)}
    level = level_points(packed, 15.0, 3.0)[0]
    # means of a plane lie on the plane, those of its edge within the voxel
    on_plane = np.minimum(np.abs(level[:, 2]), np.abs(level[:, 0] - 3.0))
    assert np.quantile(on_plane, 0.9) < 1e-4
    assert on_plane.max() < 0.1
    for point in read_cloud(packed):
        assert point['rgb'] in colours
        assert point['confidence'] == pytest.approx(0.25)


def test_voxels_of_all_the_reach_are_told_apart():
    steps = np.array([-2**20, -33, -1, 0, 1, 31, 32, 2**10, 2**20 - 1])
    cells = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3)
    points = (cells + 0.5).astype(np.float32)
    thin = VoxelThinner(1.0)(points)
    np.testing.assert_array_equal(np.unique(thin, axis=0), np.unique(points, axis=0))


def test_voxels_out_of_reach_are_left_out():
    points = np.array([[0, 0, 1, 0], [0, 0, 1.0004, 0], [3e9, 0, 1, 0], [0, -3e9, 1, 0]],
                      np.float32)
    thin = VoxelThinner(0.001)(points)
    np.testing.assert_allclose(thin, [[0, 0, 1.0002, 0]], rtol=1e-6)
    assert VoxelThinner(0.1)(points[:0]).shape == (0, 4)


@pytest.mark.filterwarnings('error::RuntimeWarning')  # numpy's
@settings(max_examples=80, deadline=None)
@given(data=st.data(), pitch=st.floats(-90, 90), roll=st.floats(-180, 180),
       organised=st.booleans(), far_points=st.booleans(), ground=st.booleans())
def test_any_depth_gives_a_lawful_cloud(data, pitch, roll, organised, far_points, ground):
    numbers = st.one_of(st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1e30, 3e38]),
                        st.floats(0.125, 10, width=32))
    depth = data.draw(hnp.arrays(np.float32, (6, 9), elements=numbers, fill=numbers))
    camera = Camera((6, 9), 7.0, 9.0, 4.6, 2.3)
    layout = CloudLayout(
        organised=organised, far_m=4.0, far_points=far_points, remove_ground=ground,
        voxel_m=0.0 if organised else 0.3, max_height_m=2.0, fields=FIELDS)
    packed = CloudPacker(camera, layout).pack(depth, mount=Mount.from_angles(1.0, pitch, roll))
    xyz = packed.data.view(np.float32).reshape(packed.height * packed.width, 6)[:, :3]
    assert not np.isinf(xyz).any()
    bad = np.isnan(xyz)
    assert (bad.any(1) == bad.all(1)).all()
    assert packed.is_dense == (not bad.any())
    assert (xyz[~bad.any(1), 2] <= np.float32(4.0)).all()
    if organised:
        assert (packed.height, packed.width) == (6, 9)
        assert np.isnan(xyz[np.isnan(depth).reshape(-1)]).all()
        assert np.isnan(xyz[np.isneginf(depth).reshape(-1)]).all()
        lost = np.isfinite(depth).sum() - (~bad.any(1)).sum()
        if not far_points:
            assert sum(packed.removed.values()) == lost


def test_layouts_that_mean_nothing_are_refused():
    for changes, said in (
            ({'fields': ('confidence', 'rgb')}, 'order'), ({'fields': ('red',)}, 'fields'),
            ({'fields': ('rgb', 'rgb')}, 'each once'), ({'far_m': 0}, 'far'),
            ({'far_m': math.nan}, 'far'), ({'far_points': True}, 'far_m'),
            ({'voxel_m': 0.1}, 'organised false'),
            ({'voxel_m': 1e-4, 'organised': False}, 'at least 0.001'),
            ({'voxel_m': math.inf, 'organised': False}, 'voxel'),
            ({'min_height_m': 1, 'max_height_m': 0}, 'min < max'),
            ({'ground_margin_m': -1}, 'margin'), ({'ground_margin_per_m': math.nan}, 'margin')):
        with pytest.raises(ValueError, match=said):
            CloudLayout(**changes)
