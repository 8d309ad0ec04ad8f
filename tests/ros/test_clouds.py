"""Fields and cuts of ~/points, ~/scan and the nearest obstacle, over real DDS."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from ros_rig import (
    CX,
    CY,
    FX,
    FY,
    NETWORK_HW,
    Peer,
    points_of,
    red_to_depth,
    stamp_of,
    values_of,
)
from sensor_msgs.msg import LaserScan, PointCloud2

HEIGHT, WIDTH = NETWORK_HW
CAMERA_M = 0.35  # above the floor
LEVEL = {b'\x00': 'ok', b'\x01': 'warn', b'\x02': 'error'}


def picture_of(red: Any) -> Any:
    """Return a picture whose red is given, and so its depth."""
    rgb = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    rgb[..., 0] = red
    rgb[..., 1], rgb[..., 2] = 90, 30
    return rgb


def floor_and_wall() -> Any:
    """Return red of a level camera's view of a floor CAMERA_M below it and a wall 2 m ahead."""
    v = np.arange(HEIGHT)[:, None] + np.zeros((1, WIDTH))
    with np.errstate(divide='ignore'):
        depth = np.minimum(np.where(v > CY, CAMERA_M * FY / (v - CY), np.inf), 2.0)
    return np.rint((depth - 1) * 100).astype(np.uint8)


@pytest.fixture
def steady(peer: Peer) -> Peer:
    """Give the node without any filter that changes depth."""
    assert peer.set(together=True, filter__flying_pixel_angle_deg=0.0,
                    filter__flying_pixel_jump=0.0, filter__temporal='off') == ''
    return peer


def cloud_with(peer: Peer, clouds: list[Any], send: Any, picture: Any, names: str) -> Any:
    return peer.send_until(
        send, lambda: peer.image(picture),
        lambda: next((item for item in reversed(clouds)
                      if ' '.join(field.name for field in item.fields) == names), None))


def test_fields_of_the_cloud(steady: Peer) -> None:
    peer = steady
    clouds = peer.collect('~/points', PointCloud2)
    send = peer.camera(peer.info())
    picture = picture_of(100)
    assert peer.set(cloud__rgb=False, cloud__intensity=True, cloud__confidence=True) == ''
    cloud = cloud_with(peer, clouds, send, picture, 'x y z intensity')
    assert (cloud.point_step, [field.offset for field in cloud.fields]) == (16, [0, 4, 8, 12])
    assert points_of(cloud)['intensity'] == pytest.approx(
        0.299 * 100 + 0.587 * 90 + 0.114 * 30, abs=1)
    note = values_of(peer.diagnostics('output', lambda status: any(
        'confidence' in value for value in values_of(status).values())))
    assert 'the network has no such output' in str(note)

    assert peer.transition('deactivate')
    assert peer.transition('cleanup')
    assert peer.set(model__name='confident', cloud__rgb=True) == ''
    assert peer.transition('configure')
    assert peer.transition('activate')
    clouds.clear()
    cloud = cloud_with(peer, clouds, send, picture, 'x y z rgb intensity confidence')
    assert (cloud.point_step, cloud.row_step) == (24, 24 * WIDTH)
    points = points_of(cloud)
    assert points['confidence'] == pytest.approx(90 / 255, abs=1e-5)
    assert points['z'] == pytest.approx(2.0)
    packed = np.ascontiguousarray(points['rgb']).view(np.uint32)
    assert (packed == (100 << 16 | 90 << 8 | 30)).all()


def test_floor_and_heights_need_to_know_how_the_camera_hangs(steady: Peer) -> None:
    peer = steady
    clouds = peer.collect('~/points', PointCloud2)
    send = peer.camera(peer.info())
    picture = picture_of(floor_and_wall())
    assert peer.set(cloud__organised=False, cloud__remove_ground=True,
                    cloud__max_height_m=1.0) == ''
    peer.send_until(send, lambda: peer.image(picture),
                    lambda: any(item.height == 1 for item in clouds))
    assert next(item.width for item in clouds if item.height == 1) == HEIGHT * WIDTH
    found = peer.diagnostics('output', lambda status: 'note 1' in values_of(status))
    for word in ('height band', 'ground removal', 'mount.height_m'):
        assert word in values_of(found)['note 1']

    assert peer.set(mount__height_m=CAMERA_M) == ''
    cloud = peer.send_until(
        send, lambda: peer.image(picture),
        lambda: next((item for item in reversed(clouds) if item.width < HEIGHT * WIDTH), None))
    points = points_of(cloud)[0]
    height = CAMERA_M - points['y']
    assert cloud.is_dense
    assert height.min() > 0.05
    assert height.max() <= 1.0
    assert points['z'] == pytest.approx(2.0, abs=0.011)
    # a level camera: the wall's rows between the margin and 1 m
    v, _ = np.mgrid[:HEIGHT, :WIDTH]
    wall = (CAMERA_M - (v - CY) / FY * 2.0 > 0.11) & (CAMERA_M - (v - CY) / FY * 2.0 < 0.99)
    assert 0.95 * wall.sum() <= cloud.width <= 1.1 * wall.sum()
    values = values_of(peer.diagnostics(
        'output', lambda status: 'removed cloud_ground' in values_of(status)))
    assert int(values['removed cloud_ground']) > 0
    assert not any(key.startswith('note') for key in values)


def test_contradictions_are_refused_with_the_reason(steady: Peer) -> None:
    peer = steady
    for changes, words in (
            ({'cloud__voxel_m': 0.1}, ('cloud.organised false',)),
            ({'cloud__far_points': True}, ('needs cloud.far_m', 'found 0 m')),
            ({'cloud__far_points': True, 'cloud__far_m': 3.5}, ('3.5 m', 'end at 3 m')),
            ({'cloud__min_height_m': 1.0}, ('not below cloud.max_height_m',)),
            ({'cloud__voxel_m': 1e-5, 'cloud__organised': False}, ('at least 0.001',)),
            ({'scan__min_height_m': 1.5}, ('not below scan.max_height_m 1 m',)),
            ({'scan__range_min_m': 8.0}, ('not below scan.range_max_m',))):
        reason = peer.set(together=True, **changes)
        for word in words:
            assert word in reason, (changes, reason)
    assert peer.get('cloud.voxel_m') == 0.0


def test_voxels_and_far_points(steady: Peer) -> None:
    peer = steady
    clouds = peer.collect('~/points', PointCloud2)
    send = peer.camera(peer.info())
    red = np.full((HEIGHT, WIDTH), 100)
    red[:, 40:] = 250  # 3.5 m: beyond the card's 3 m
    picture = picture_of(red)
    assert peer.set(together=True, cloud__organised=False, cloud__voxel_m=0.2) == ''
    cloud = peer.send_until(
        send, lambda: peer.image(picture),
        lambda: next((item for item in reversed(clouds) if item.width < 400), None))
    assert cloud.height == 1
    points = points_of(cloud)[0]
    assert points['z'] == pytest.approx(2.0, abs=1e-5)
    cells = {(math.floor(x / 0.2), math.floor(y / 0.2)) for x, y in zip(
        points['x'], points['y'], strict=True)}
    assert len(cells) == cloud.width

    assert peer.set(together=True, cloud__organised=True, cloud__voxel_m=0.0, cloud__far_m=2.5,
                    cloud__far_points=True) == ''
    cloud = peer.send_until(
        send, lambda: peer.image(picture),
        lambda: next((item for item in reversed(clouds)
                      if item.height == HEIGHT and item.is_dense), None))
    points = points_of(cloud)
    assert points['z'][:, :38] == pytest.approx(2.0)
    assert points['z'][:, 42:] == pytest.approx(2.5)
    u = np.arange(42, WIDTH)
    assert points['x'][5, 42:] == pytest.approx((u - CX) / FX * 2.5, abs=1e-5)


@pytest.mark.parametrize('reliable', [True, False], ids=['reliable', 'best_effort'])
def test_scan_of_a_wall(steady: Peer, reliable: bool) -> None:
    peer = steady
    scans = peer.collect('~/scan', LaserScan, reliable=reliable)
    send = peer.camera(peer.info())
    picture = picture_of(floor_and_wall())
    for _ in range(5):
        send(peer.image(picture))
        peer.spin(0.05)
    found = peer.diagnostics('output', lambda status: 'no ~/scan' in status.message)
    assert LEVEL[found.level] == 'warn'
    assert 'mount.height_m' in found.message
    assert not scans, 'no scan rather than a wrong one'

    assert peer.set(mount__height_m=CAMERA_M, scan__range_max_m=5.0,
                    scan__angle_increment_deg=0.5) == ''
    last: list[Any] = []

    def make() -> Any:
        last[:] = [peer.image(picture)]
        return last[0]

    scan = peer.send_until(send, make, lambda: scans and scans[-1])
    assert scan.header.frame_id == 'cam_level'
    assert 0 < stamp_of(scan) <= stamp_of(last[0])
    assert (scan.range_min, scan.range_max) == pytest.approx((0.2, 5.0))
    assert scan.angle_increment == pytest.approx(math.radians(0.5))
    assert scan.angle_min == pytest.approx(-math.atan((WIDTH - 1 - CX) / FX), abs=1e-6)
    assert scan.angle_max == pytest.approx(math.atan(CX / FX), abs=math.radians(0.25) + 1e-6)
    bearings = scan.angle_min + scan.angle_increment * np.arange(len(scan.ranges))
    assert bearings[-1] == pytest.approx(scan.angle_max, abs=1e-5)
    ranges = np.array(scan.ranges)
    assert ranges[1:-1] == pytest.approx(2.0 / np.cos(bearings[1:-1]), rel=0.02)
    quiet = peer.diagnostics('output', lambda status: 'no ~/scan' not in status.message)
    assert 'scan' in [key.split()[1] for key in values_of(quiet) if key.startswith('stage')]
    assert 'cloud' not in [key.split()[1] for key in values_of(quiet) if key.startswith('stage')]

    # free beyond the range of the scan, and a frame of the user's
    assert peer.set(scan__range_max_m=1.5, scan__frame='camera_link') == ''
    scan = peer.send_until(
        send, make, lambda: next((item for item in reversed(scans) if item.range_max < 2), None))
    assert scan.header.frame_id == 'camera_link'
    assert np.isposinf(scan.ranges).all()


def test_scan_is_made_for_nobody_and_can_be_switched_off(steady: Peer) -> None:
    peer = steady
    assert peer.set(mount__height_m=CAMERA_M, scan__publish=False) == ''
    scans = peer.collect('~/scan', LaserScan)
    send = peer.camera(peer.info())
    for _ in range(5):
        send(peer.image(picture_of(100)))
        peer.spin(0.03)
    assert values_of(peer.diagnostics('output'))['processed'] == '0'
    assert peer.set(scan__publish=True) == ''
    peer.send_until(send, lambda: peer.image(picture_of(100)), lambda: scans)


def test_nearest_obstacle_in_the_status(steady: Peer) -> None:
    status_type = pytest.importorskip('depth_node.msg').DepthStatus
    peer = steady
    states = peer.collect('~/status', status_type)
    send = peer.camera(peer.info())
    red = floor_and_wall()
    red[20:32, 10:20] = 30  # a thing at 1.3 m
    picture = picture_of(red)
    state = peer.send_until(
        send, lambda: peer.image(picture),
        lambda: states and states[-1].camera_source == 'topic' and states[-1])
    assert state.obstacle_basis == 'depth'
    # the floor at the lower edge of the picture is nearer than the thing
    assert state.obstacle_distance_m == pytest.approx(
        CAMERA_M * FY / (HEIGHT - 3 - CY), abs=0.006)
    assert state.obstacle_distance_m < red_to_depth(30)
    assert math.isnan(state.obstacle_height_m)
    assert 'obstacle' in state.stage_names

    assert peer.set(mount__height_m=CAMERA_M) == ''
    state = peer.send_until(
        send, lambda: peer.image(picture),
        lambda: next((item for item in reversed(states) if item.obstacle_basis == 'floor'), None))
    left, right = ((CX - u) / FX for u in (10, 19))
    assert right - 0.02 <= math.tan(state.obstacle_bearing_rad) <= left + 0.02
    assert state.obstacle_distance_m == pytest.approx(
        1.3 / math.cos(state.obstacle_bearing_rad), rel=1e-3)
    rows = [CAMERA_M - (v - CY) / FY * 1.3 for v in (31, 20)]
    assert rows[0] - 0.01 <= state.obstacle_height_m <= rows[1] + 0.01
