"""Scans and nearest obstacles against rays traced through floors, boxes and walls."""

import math

from depth_node.camera import Camera
from depth_node.ground import Mount
from depth_node.obstacles import (
    BandSettings,
    NearestObstacle,
    ScanError,
    ScanMaker,
    ScanSettings,
    level_axes,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest

CAMERA = Camera((120, 166), 121.0, 133.0, 84.3, 56.8)
HEIGHT_M = 0.6
TILTS = [(0.0, 0.0), (14.0, 4.0), (-6.0, -7.0), (9.0, 90.0), (3.0, -90.0), (5.0, 180.0)]


def camera_to_level(pitch_deg: float, roll_deg: float) -> np.ndarray:
    """Return the rotation from the optical frame to x forward, y left, z up (REP 103)."""
    p, r = math.radians(pitch_deg), math.radians(roll_deg)
    about_y = np.array([[math.cos(p), 0, math.sin(p)], [0, 1, 0], [-math.sin(p), 0, math.cos(p)]])
    about_x = np.array([[1, 0, 0], [0, math.cos(r), -math.sin(r)], [0, math.sin(r), math.cos(r)]])
    body_from_optical = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    return about_y @ about_x @ body_from_optical


def trace(camera: Camera, turn: np.ndarray, boxes, floor: float | None = -HEIGHT_M) -> np.ndarray:
    """Return the depth of a floor and of boxes ((x0, y0, z0), (x1, y1, z1)), +Inf beyond.

    Coordinates are those of the level frame at the camera.
    """
    v, u = np.mgrid[0:camera.size_hw[0], 0:camera.size_hw[1]].astype(np.float64)
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy,
                     np.ones_like(u)], -1) @ turn.T
    depth = np.full(camera.size_hw, np.inf)
    with np.errstate(divide='ignore', invalid='ignore'):
        if floor is not None:
            hit = floor / rays[..., 2]
            depth = np.where(hit > 0, np.minimum(depth, hit), depth)
        for low, high in boxes:
            ends = np.stack([np.array(low) / rays, np.array(high) / rays])
            enter, leave = ends.min(0).max(-1), ends.max(0).min(-1)
            depth = np.where((enter > 0) & (enter < leave), np.minimum(depth, enter), depth)
    return depth.astype(np.float32)


def range_to_box(bearing: float, low, high) -> float:
    """Return the horizontal distance to a box along a bearing, Inf where it misses."""
    with np.errstate(divide='ignore'):
        ray = np.array([math.cos(bearing), math.sin(bearing)])
        ends = np.stack([np.array(low[:2]) / ray, np.array(high[:2]) / ray])
    enter, leave = ends.min(0).max(), ends.max(0).min()
    return float(enter) if 0 < enter < leave else math.inf


@pytest.mark.parametrize(('pitch', 'roll'), [*TILTS, (30.0, -20.0)])
def test_axes_are_those_of_the_turned_camera(pitch, roll):
    axes = level_axes(Mount.from_angles(1.0, pitch, roll))
    np.testing.assert_allclose(axes, camera_to_level(pitch, roll), atol=1e-12)


@pytest.mark.parametrize(('pitch', 'roll'), TILTS)
def test_box_on_a_floor_is_where_it_is_and_all_else_is_free(pitch, roll):
    box = (1.3, -0.25, -HEIGHT_M), (1.6, 0.45, 0.4)
    low = (0.8, 0.3, -HEIGHT_M), (0.9, 0.6, -HEIGHT_M + 0.04)  # a threshold below the band
    lamp = (3.0, -1.3, 0.45), (3.2, -0.7, 0.7)  # above it
    wall = (6.0, -50.0, -5.0), (6.5, 50.0, 5.0)  # beyond range_max
    depth = trace(CAMERA, camera_to_level(pitch, roll), [box, low, lamp, wall])
    maker = ScanMaker(CAMERA, ScanSettings(range_max_m=4.0))
    scan = maker.scan(depth, Mount.from_angles(HEIGHT_M, pitch, roll))
    assert scan.note == ''
    bearings = scan.angle_min + scan.angle_increment * np.arange(len(scan.ranges))
    assert scan.angle_max == pytest.approx(bearings[-1])
    edge = scan.angle_increment / 2 + 1.5 / min(CAMERA.fx, CAMERA.fy)  # bin, and pixels beside it
    checked = 0
    for bearing, found in zip(bearings, scan.ranges, strict=True):
        nearby = [range_to_box(bearing + off, *box) for off in np.linspace(-edge, edge, 9)]
        if all(map(math.isfinite, nearby)):
            assert min(nearby) - 1e-3 <= found <= max(nearby) + 1e-3, math.degrees(bearing)
            checked += 1
        elif not any(map(math.isfinite, nearby)) and (
                not pitch or min(bearing - bearings[0], bearings[-1] - bearing) > 0.04):
            # at the outermost bearings of a tilted camera no ray stays level
            assert found == math.inf, math.degrees(bearing)
    assert checked > 50


def test_angles_are_those_of_the_lens_whatever_the_tilt():
    maker = ScanMaker(CAMERA, ScanSettings(range_max_m=3.0))
    depth = np.full(CAMERA.size_hw, np.inf, np.float32)
    found = [maker.scan(depth, Mount.from_angles(HEIGHT_M, pitch, roll))
             for pitch, roll in ((0, 0), (3, 1), (-4, 2), (12, -9))]
    left, right = math.atan(84.3 / 121), -math.atan((165 - 84.3) / 121)
    for scan in found:
        assert scan.angle_min == pytest.approx(right)
        assert abs(scan.angle_max - left) <= scan.angle_increment / 2 + 1e-9
        assert len(scan.ranges) == len(found[0].ranges)
    side = maker.scan(depth, Mount.from_angles(HEIGHT_M, 0, 90))
    # the right side is down, and the bottom of the picture looks to the left
    assert side.angle_min == pytest.approx(-math.atan(56.8 / 133))


def laserscan_of_a_level_camera(depth, camera, range_min, range_max):
    """Return angles and ranges as depthimage_to_laserscan defines them, written as loops."""
    height, width = depth.shape
    angle_max = math.atan2(camera.cx, camera.fx)
    angle_min = -math.atan2(width - 1 - camera.cx, camera.fx)
    nearest = {}
    for u in range(width):
        for v in range(height):
            z = float(depth[v, u])
            if math.isfinite(z):
                away = math.hypot((u - camera.cx) * z / camera.fx, z)
                if range_min <= away <= range_max:
                    nearest[u] = min(away, nearest.get(u, math.inf))
    return angle_min, angle_max, nearest


@pytest.mark.parametrize('seed', range(3))
def test_level_camera_gives_what_depthimage_to_laserscan_gives(seed):
    generator = np.random.default_rng(seed)
    camera = Camera((23, 57), *generator.uniform(30, 60, 2), 25 + 7 * generator.random(), 11.3)
    depth = generator.uniform(0.3, 6, camera.size_hw).astype(np.float32)
    depth[generator.random(camera.size_hw) < 0.4] = np.nan
    depth[:, ::9] = np.nan
    wanted = ScanSettings(min_height_m=-100, max_height_m=100, margin_per_m=0, range_min_m=0.0,
                          range_max_m=4.0, angle_increment_deg=0, min_rows=1)
    scan = ScanMaker(camera, wanted).scan(depth, Mount.from_angles(1.0, 0.0))
    angle_min, angle_max, nearest = laserscan_of_a_level_camera(depth, camera, 0.0, 4.0)
    assert len(scan.ranges) == 57
    assert (scan.angle_min, scan.angle_max) == pytest.approx((angle_min, angle_max))
    bearings = angle_min + scan.angle_increment * np.arange(57)
    half = scan.angle_increment / 2
    bins: dict[int, list[float]] = {}
    for u in range(57):  # the bins that the pixel reaches into
        left, right = (math.atan2(camera.cx - (u + off), camera.fx) for off in (-0.5, 0.5))
        touched = np.flatnonzero(
            (bearings + half > right - 1e-6) & (bearings - half < left + 1e-6))
        if u in nearest:
            assert np.nanmin(scan.ranges[touched]) <= nearest[u] * (1 + 1e-5), 'overlooked'
        for index in touched:
            bins.setdefault(int(index), []).append(nearest.get(u, math.inf))
    for index, found in enumerate(scan.ranges):
        if math.isfinite(found):
            assert any(math.isclose(found, near, rel_tol=1e-5) for near in bins[index])
    assert np.isfinite(scan.ranges).mean() > 0.7

    # on a smooth surface both say the same at every pixel
    wall = trace(camera, camera_to_level(0, 0), [((1.0, -9, -9), (1.1, 9, 9))], None)
    wall *= np.linspace(1, 1.5, 57, dtype=np.float32)
    _, _, nearest = laserscan_of_a_level_camera(wall, camera, 0.0, 4.0)
    scan = ScanMaker(camera, wanted).scan(wall, Mount.from_angles(1.0, 0.0))
    for u, near in nearest.items():
        index = int(np.argmin(np.abs(bearings - math.atan2(camera.cx - u, camera.fx))))
        assert scan.ranges[index] == pytest.approx(near, rel=0.03), u


@pytest.mark.parametrize('increment', [0.0, 0.1, 0.25, 3.0])
@pytest.mark.parametrize('roll', [0.0, 90.0])
def test_no_column_is_overlooked(increment, roll):
    camera = Camera((31, 43), 14.0, 17.0, 20.6, 15.3)  # 114 degrees wide
    maker = ScanMaker(camera, ScanSettings(range_max_m=3.0, angle_increment_deg=increment))
    mount = Mount.from_angles(HEIGHT_M, 0.0, roll)
    for line in range(31 if roll else 43):
        depth = np.full(camera.size_hw, np.inf, np.float32)
        depth[(line, slice(None)) if roll else (slice(None), line)] = 1.1
        found = maker.scan(depth, mount).ranges
        tangent = (line - 15.3) / 17 if roll else (20.6 - line) / 14
        assert found.min() == pytest.approx(1.1 * math.hypot(1, tangent), rel=1e-5), line
        # and it is seen nowhere else
        step = math.radians(increment) or 0.05
        bearings = (maker.scan(depth, mount).angle_min
                    + maker.scan(depth, mount).angle_increment * np.arange(len(found)))
        away = np.abs(bearings[np.isfinite(found)] - math.atan(tangent))
        assert away.max() <= step + 0.6 / 14


@pytest.mark.parametrize(('pitch', 'roll'), [(0.0, 0.0), (25.0, 0.0), (-20.0, 15.0),
                                             (20.0, 90.0), (8.0, -170.0)])
def test_no_pixel_in_the_band_is_overlooked(pitch, roll):
    camera = Camera((31, 43), 24.0, 19.0, 20.6, 15.3)
    maker = ScanMaker(camera, ScanSettings(
        range_max_m=3.0, angle_increment_deg=5.0, min_rows=1, margin_per_m=0.0))
    mount, turn = Mount.from_angles(HEIGHT_M, pitch, roll), camera_to_level(pitch, roll)
    nothing = maker.scan(np.full(camera.size_hw, np.nan, np.float32), mount)
    checked = 0
    for v in range(31):
        for u in range(43):
            ahead, left, up = turn @ [(u - 20.6) / 24, (v - 15.3) / 19, 1.0]
            depth = 1.0 / math.hypot(ahead, left)  # 1 m away horizontally
            bearing, height = math.atan2(left, ahead), HEIGHT_M + depth * up
            if not (0.11 < height < 0.99
                    and nothing.angle_min < bearing < nothing.angle_max):
                continue
            image = np.full(camera.size_hw, np.nan, np.float32)
            image[v, u] = depth
            found = maker.scan(image, mount).ranges
            assert np.nanmin(found) == pytest.approx(1.0, rel=1e-5), (v, u)
            checked += 1
    assert checked > 200


def test_floor_that_seems_to_rise_needs_the_margin():
    """The camera looks one degree lower than its mount says: the far floor stands 9 cm high."""
    depth = trace(CAMERA, camera_to_level(10.5, 0.0), [])
    mount = Mount.from_angles(HEIGHT_M, 9.5)
    for margin, lawful in ((0.02, np.isposinf), (0.0, np.isfinite)):
        wanted = ScanSettings(min_height_m=0.03, range_max_m=5.0, margin_per_m=margin)
        assert lawful(ScanMaker(CAMERA, wanted).scan(depth, mount).ranges).mean() > 0.9, margin
        found = NearestObstacle(CAMERA, wanted).find(depth, mount)
        assert math.isinf(found.distance_m) == (margin > 0)


def test_unknown_is_not_free_and_not_an_obstacle():
    depth = np.full(CAMERA.size_hw, np.nan, np.float32)
    maker = ScanMaker(CAMERA, ScanSettings(range_max_m=3.0))
    mount = Mount.from_angles(HEIGHT_M, 0.0)
    assert np.isnan(maker.scan(depth, mount).ranges).all()
    free = np.full(CAMERA.size_hw, np.inf, np.float32)
    assert np.isposinf(maker.scan(free, mount).ranges).all()
    free[:, :83] = np.nan  # the left half
    found = maker.scan(free, mount).ranges
    half = len(found) // 2
    assert np.isposinf(found[:half - 4]).all()
    assert np.isnan(found[half + 4:]).all()
    # more than half of the rays that reach range_max unknown: not free, though the floor is seen
    floor = trace(CAMERA, camera_to_level(0, 0), [])
    assert np.isposinf(maker.scan(floor, mount).ranges).all()
    far = floor.copy()
    far[np.isinf(floor) | (floor > 2)] = np.nan
    assert np.isnan(maker.scan(far, mount).ranges).all()
    # and the other way round: what stays is seen, most of what passes through the band is not
    narrow = ScanMaker(CAMERA, ScanSettings(range_max_m=3.0, max_height_m=0.602))
    assert np.isposinf(narrow.scan(floor, mount).ranges).all()
    floor[np.isfinite(floor) & (floor < 2.9)] = np.nan
    assert np.isnan(narrow.scan(floor, mount).ranges).all()


def test_a_band_that_leaves_the_view_before_range_max_is_never_free():
    """A camera that looks down sees 1 m far at most."""
    turn = camera_to_level(50.0, 0.0)
    depth = trace(CAMERA, turn, [])
    mount = Mount.from_angles(HEIGHT_M, 50.0)
    scan = ScanMaker(CAMERA, ScanSettings(range_max_m=4.0)).scan(depth, mount)
    assert np.isnan(scan.ranges).all()
    assert 'scan.range_max_m' in scan.note
    near = ScanMaker(CAMERA, ScanSettings(range_max_m=0.7)).scan(depth, mount)
    assert np.isposinf(near.ranges).mean() > 0.9
    assert near.note == ''
    box = (0.7, -0.5, -HEIGHT_M), (0.9, 0.5, -HEIGHT_M + 0.3)
    scan = ScanMaker(CAMERA, ScanSettings(range_max_m=4.0)).scan(trace(CAMERA, turn, [box]), mount)
    assert scan.ranges[len(scan.ranges) // 2] == pytest.approx(0.7, abs=0.01)


def test_low_steps_and_hanging_bars_are_obstacles():
    mount = Mount.from_angles(HEIGHT_M, 0.0)
    maker = ScanMaker(CAMERA, ScanSettings(range_max_m=3.0))
    step = (1.5, -5, -HEIGHT_M), (1.6, 5, -HEIGHT_M + 0.25)
    bar = (1.5, -5, 0.2), (1.6, 5, 0.35)
    for thing in (step, bar):
        scan = maker.scan(trace(CAMERA, camera_to_level(0, 0), [thing]), mount)
        assert scan.ranges[len(scan.ranges) // 2] == pytest.approx(1.5, abs=0.01), thing
    above = (1.5, -5, 0.45), (1.6, 5, 0.6)
    scan = maker.scan(trace(CAMERA, camera_to_level(0, 0), [above]), mount)
    assert np.isposinf(scan.ranges).all()


def test_what_stops_a_ray_before_the_band_leaves_it_unknown():
    # above the band: a shelf hides everything below it
    shelf = (0.9, -5, -0.45), (1.4, 5, -0.1)
    depth = trace(CAMERA, camera_to_level(0, 0), [shelf], floor=-1.5)
    scan = ScanMaker(CAMERA, ScanSettings(range_max_m=4.0)).scan(
        depth, Mount.from_angles(1.5, 0.0))
    assert np.isnan(scan.ranges).all()
    # below it: a kerb hides everything behind it from a camera close to the floor
    kerb = (0.3, -5, -0.1), (0.5, 5, 0.13)
    depth = trace(CAMERA, camera_to_level(-2, 0), [kerb], floor=-0.1)
    above = ScanSettings(min_height_m=0.3, max_height_m=1.0, range_max_m=1.2, margin_per_m=0)
    mount = Mount.from_angles(0.1, -2.0)
    assert np.isnan(ScanMaker(CAMERA, above).scan(depth, mount).ranges).all()
    free = trace(CAMERA, camera_to_level(-2, 0), [], floor=-0.1)
    assert np.isposinf(ScanMaker(CAMERA, above).scan(free, mount).ranges).all()
    # the floor under a band that begins higher than the camera says nothing about it
    high = ScanSettings(min_height_m=0.3, max_height_m=1.0, range_max_m=3.0, margin_per_m=0)
    free = trace(CAMERA, camera_to_level(0, 0), [], floor=-0.1)
    mount = Mount.from_angles(0.1, 0.0)
    assert np.isposinf(ScanMaker(CAMERA, high).scan(free, mount).ranges).all()
    free[np.arange(120) < CAMERA.cy - 0.22 * CAMERA.fy] = np.nan  # rays that rise faster
    assert np.isnan(ScanMaker(CAMERA, high).scan(free, mount).ranges).all()


def test_rays_that_leave_through_the_top_of_the_band_are_free_and_do_not_stay():
    ceiling = (-9, -9, 0.7), (9, 9, 0.9)
    wanted = ScanSettings(range_max_m=3.0)
    depth = trace(CAMERA, camera_to_level(-15, 0), [ceiling])
    scan = ScanMaker(CAMERA, wanted).scan(depth, Mount.from_angles(HEIGHT_M, -15.0))
    assert np.isposinf(scan.ranges[5:-5]).all()
    depth = trace(CAMERA, camera_to_level(-40, 0), [ceiling])
    scan = ScanMaker(CAMERA, wanted).scan(depth, Mount.from_angles(HEIGHT_M, -40.0))
    assert np.isnan(scan.ranges).all()
    assert 'scan.range_max_m' in scan.note


def test_depths_that_cannot_be_are_unknown_to_the_scan():
    depth = np.full(CAMERA.size_hw, -1.5, np.float32)
    depth[::2] = 0.0
    scan = ScanMaker(CAMERA, ScanSettings(range_max_m=3.0)).scan(
        depth, Mount.from_angles(HEIGHT_M, 0.0))
    assert np.isnan(scan.ranges).all()


def test_what_lies_behind_a_camera_that_looks_down_is_not_ahead():
    camera = Camera((120, 166), 60.0, 50.0, 84.3, 56.8)  # sees 50 degrees down from its axis
    turn = camera_to_level(60.0, 0.0)
    behind = (-0.35, -0.4, -HEIGHT_M), (-0.1, 0.4, -HEIGHT_M + 0.3)
    depth = trace(camera, turn, [behind])
    assert (depth < trace(camera, turn, [])).sum() > 100, 'the box is in view'
    scan = ScanMaker(camera, ScanSettings(range_min_m=0.05, range_max_m=2.0)).scan(
        depth, Mount.from_angles(HEIGHT_M, 60.0))
    assert not np.isfinite(scan.ranges).any()
    assert not np.isneginf(scan.ranges).any()


def test_too_close_is_minus_infinity():
    mount = Mount.from_angles(HEIGHT_M, 0.0)
    depth = np.full(CAMERA.size_hw, 2.0, np.float32)
    depth[:, 120:] = -np.inf
    depth[:, :40] = 0.3
    scan = ScanMaker(CAMERA, ScanSettings(range_min_m=0.5, range_max_m=3.0)).scan(depth, mount)
    bearings = scan.angle_min + scan.angle_increment * np.arange(len(scan.ranges))
    column = CAMERA.cx - np.tan(bearings) * CAMERA.fx
    assert np.isneginf(scan.ranges[column > 122]).all()
    assert np.isneginf(scan.ranges[column < 38]).all()
    assert np.isfinite(scan.ranges[(column > 42) & (column < 118)]).all()
    # a single such pixel is nothing
    depth[:] = 2.0
    depth[60, 80] = -np.inf
    scan = ScanMaker(CAMERA, ScanSettings(range_max_m=3.0)).scan(depth, mount)
    assert np.isfinite(scan.ranges).all()


def test_floor_nearer_than_the_depth_image_begins_is_not_too_close():
    turn = camera_to_level(45.0, 0.0)
    depth = trace(CAMERA, turn, [])
    depth[depth < 0.7] = -np.inf
    mount = Mount.from_angles(HEIGHT_M, 45.0)
    assert np.isneginf(depth).mean() > 0.2
    knows = ScanSettings(range_max_m=0.8, near_m=0.7)
    assert not np.isneginf(ScanMaker(CAMERA, knows).scan(depth, mount).ranges).any()
    assert NearestObstacle(CAMERA, knows).find(depth, mount).distance_m != -math.inf
    assert np.isneginf(ScanMaker(CAMERA, ScanSettings(range_max_m=0.8)).scan(
        depth, mount).ranges).any()


def test_a_single_pixel_is_no_obstacle_and_two_rows_are():
    mount = Mount.from_angles(HEIGHT_M, 0.0)
    depth = np.full(CAMERA.size_hw, np.inf, np.float32)
    depth[50, 70] = 1.0
    maker = ScanMaker(CAMERA, ScanSettings(range_max_m=3.0))
    assert np.isposinf(maker.scan(depth, mount).ranges).all()
    every = ScanMaker(CAMERA, ScanSettings(range_max_m=3.0, min_rows=1)).scan(depth, mount)
    assert np.isfinite(every.ranges).sum() >= 1
    depth[51, 70] = 1.2
    found = maker.scan(depth, mount).ranges
    assert found[np.isfinite(found)] == pytest.approx(
        1.2 * math.hypot(1, (70 - CAMERA.cx) / CAMERA.fx), rel=1e-5)


def test_tables_follow_the_mount():
    box = (1.3, -0.2, -HEIGHT_M), (1.6, 0.3, 0.4)
    maker = ScanMaker(CAMERA, ScanSettings(range_max_m=3.0))
    for pitch, height in ((0, 0.6), (0.05, 0.601), (6, 0.6), (6, 0.9)):
        mount = Mount.from_angles(height, pitch)
        depth = trace(CAMERA, camera_to_level(pitch, 0), [box], floor=-height)
        fresh = ScanMaker(CAMERA, maker.settings).scan(depth, mount).ranges
        found = maker.scan(depth, mount).ranges
        same = np.isclose(found, fresh, rtol=2e-3) | (found == fresh)
        assert same.mean() > 0.98, (pitch, height)


@pytest.mark.parametrize(('mount', 'said'), [
    (None, 'mount.height_m'), (Mount.from_angles(math.nan, 10.0), 'mount.height_m'),
    (Mount.from_angles(0.6, 80.0), 'down'), (Mount.from_angles(0.6, -89.0), 'up'),
    (Mount.from_angles(30.0, 0.0), 'sees nothing between 0.1 and 1 m')])
def test_no_scan_without_a_usable_mount(mount, said):
    maker = ScanMaker(CAMERA)
    for _ in range(2):
        with pytest.raises(ScanError, match=said):
            maker.scan(np.ones(CAMERA.size_hw, np.float32), mount)
    # and the next one works
    assert len(maker.scan(np.ones(CAMERA.size_hw, np.float32),
                          Mount.from_angles(0.6, 0)).ranges) > 10


def test_settings_that_mean_nothing_are_refused():
    for changes, said in (({'min_height_m': 1, 'max_height_m': 1}, 'heights'),
                          ({'min_height_m': math.nan}, 'heights'), ({'near_m': -1}, 'near'),
                          ({'margin_per_m': -0.1}, 'margin'), ({'range_min_m': 9}, 'ranges'),
                          ({'range_max_m': math.inf}, 'ranges'), ({'min_rows': 0}, 'rows'),
                          ({'angle_increment_deg': -1}, 'increment'),
                          ({'margin_per_m': 0.2}, 'the margin lifts')):
        with pytest.raises(ValueError, match=said):
            ScanSettings(**changes)
    with pytest.raises(ValueError, match='120, 166'):
        ScanMaker(CAMERA).scan(np.ones((166, 120), np.float32), Mount.from_angles(1, 0))
    with pytest.raises(ValueError, match='120, 166'):
        NearestObstacle(CAMERA).find(np.ones((166, 120), np.float32), None)
    with pytest.raises(ValueError, match='rectified'):
        ScanMaker(Camera((9, 9), 5, 5, 4, 4, 'plumb_bob', (0.1, 0, 0, 0, 0)))


# --- nearest obstacle


@pytest.mark.parametrize(('pitch', 'roll'), TILTS)
def test_nearest_obstacle_is_the_near_box_and_not_the_floor(pitch, roll):
    near = (1.2, 0.1, -HEIGHT_M), (1.5, 0.3, 0.1)
    far = (2.0, -0.5, -HEIGHT_M), (2.5, -0.2, 0.5)
    depth = trace(CAMERA, camera_to_level(pitch, roll), [near, far])
    found = NearestObstacle(CAMERA).find(depth, Mount.from_angles(HEIGHT_M, pitch, roll))
    assert found.basis == 'floor'
    # the face x = 1.2 between y = 0.1 and 0.3: its nearest point and the square of pixels there
    assert 1.2 <= found.distance_m < 1.25
    assert math.atan2(0.1, 1.2) - 0.02 < found.bearing_rad < math.atan2(0.3, 1.2) + 0.02
    assert found.distance_m * math.cos(found.bearing_rad) == pytest.approx(1.2, abs=1e-3)
    assert 0.1 <= found.height_m <= HEIGHT_M + 0.1


def test_what_is_above_the_band_is_not_the_nearest_obstacle():
    board = (0.9, -5, 0.0), (1.0, 5, 0.1)  # 0.6 to 0.7 m above the floor
    box = (1.4, -0.3, -HEIGHT_M), (1.6, 0.3, -0.2)
    depth = trace(CAMERA, camera_to_level(0, 0), [board, box])
    mount = Mount.from_angles(HEIGHT_M, 0.0)
    assert NearestObstacle(CAMERA).find(depth, mount).distance_m < 0.95
    low = BandSettings(max_height_m=0.55)
    assert NearestObstacle(CAMERA, low).find(depth, mount).distance_m == pytest.approx(
        1.4, abs=0.02)


@pytest.mark.parametrize('mount', [None, Mount.from_angles(HEIGHT_M, 0.0)])
def test_flying_pixels_are_no_nearest_obstacle(mount):
    generator = np.random.default_rng(3)
    depth = trace(CAMERA, np.array(camera_to_level(0, 0)), [
        ((2.0, -5, -HEIGHT_M), (2.2, 5, 3.0))])
    depth[60:, :] = np.nan
    clean = NearestObstacle(CAMERA).find(depth, mount)
    assert clean.distance_m == pytest.approx(2.0, abs=0.02)
    flying = depth.copy()
    v, u = generator.integers(0, 60, 60), generator.integers(0, 166, 60)
    flying[v, u] = generator.uniform(0.4, 1.5, 60)
    found = NearestObstacle(CAMERA).find(flying, mount)
    assert found.distance_m == pytest.approx(2.0, abs=0.02)
    flying[20:23, 100:103] = 0.8
    assert NearestObstacle(CAMERA).find(flying, mount).distance_m < 0.9


def test_the_middle_of_nine_may_be_the_wrong_pixel():
    depth = np.full(CAMERA.size_hw, 2.0, np.float32)
    depth[50:53, 60:63] = 1.0
    depth[51, 61] = 0.3
    for mount in (None, Mount.from_angles(HEIGHT_M, 0.0)):
        found = NearestObstacle(CAMERA).find(depth, mount)
        assert 1.0 <= found.distance_m <= 1.03
        assert math.tan(found.bearing_rad) == pytest.approx((CAMERA.cx - 61) / CAMERA.fx, abs=0.01)


def test_nearest_obstacle_follows_the_mount():
    finder = NearestObstacle(CAMERA)
    wall = (2.0, -5, -HEIGHT_M), (2.1, 5, 2.0)
    for pitch in (0.0, 20.0, 0.0):
        depth = trace(CAMERA, camera_to_level(pitch, 0), [wall])
        found = finder.find(depth, Mount.from_angles(HEIGHT_M, pitch))
        assert found.distance_m == pytest.approx(2.0, abs=0.02)


def test_without_a_mount_the_nearest_depth_counts_the_floor_too():
    depth = trace(CAMERA, camera_to_level(20, 0), [])
    found = NearestObstacle(CAMERA).find(depth, None)
    assert found.basis == 'depth'
    assert found.distance_m == pytest.approx(float(np.nanmin(depth)), rel=0.05)
    assert math.isnan(found.height_m)
    depth = np.full(CAMERA.size_hw, 4.0, np.float32)
    depth[30:33, 20:23] = 1.5
    found = NearestObstacle(CAMERA).find(depth, None)
    assert found.distance_m == 1.5
    assert found.bearing_rad == pytest.approx(math.atan((CAMERA.cx - 21) / CAMERA.fx), abs=0.02)


@pytest.mark.parametrize('mount', [None, Mount.from_angles(HEIGHT_M, 0.0)])
def test_depths_that_cannot_be_are_no_obstacle(mount):
    depth = np.full(CAMERA.size_hw, 2.0, np.float32)
    depth[50:60, 50:60], depth[60:70, 50:60] = -1.0, 0.0
    assert NearestObstacle(CAMERA).find(depth, mount).distance_m == pytest.approx(2.0, abs=0.02)


def test_nothing_too_close_and_unknown():
    finder, mount = NearestObstacle(CAMERA), Mount.from_angles(HEIGHT_M, 0)
    free = np.full(CAMERA.size_hw, np.inf, np.float32)
    for given_mount in (None, mount):
        found = finder.find(free, given_mount)
        assert (found.distance_m, math.isnan(found.bearing_rad)) == (math.inf, True)
        assert math.isnan(finder.find(free * np.nan, given_mount).distance_m)
        close = free.copy()
        close[50:60, 50:60] = -np.inf
        found = finder.find(close, given_mount)
        assert found.distance_m == -math.inf
        assert found.bearing_rad > 0  # left
        assert math.isnan(found.height_m)
    floor = trace(CAMERA, camera_to_level(0, 0), [])
    assert finder.find(floor, mount).distance_m == math.inf


def test_camera_that_looks_straight_down_has_distances_and_no_bearing():
    depth = np.full(CAMERA.size_hw, HEIGHT_M, np.float32)
    depth[20:30, 100:110] = 0.3
    found = NearestObstacle(CAMERA).find(depth, Mount.from_angles(HEIGHT_M, 90.0))
    assert found.height_m == pytest.approx(0.3, abs=1e-5)
    assert math.isnan(found.bearing_rad)
    assert 0.05 < found.distance_m < 0.15


def test_large_images_are_looked_at_coarsely():
    camera = Camera((480, 640), 525.0, 530.0, 318.0, 241.0)
    depth = np.full(camera.size_hw, 3.0, np.float32)
    depth[200:206, 300:306] = 1.0
    assert NearestObstacle(camera).find(depth, None).distance_m == 1.0
    depth[200:206, 300:306] = 3.0
    depth[200:204, 300:304] = 1.0  # two by two pixels of the coarse grid
    assert NearestObstacle(camera).find(depth, None).distance_m == 3.0


# --- anything at all


NUMBERS = st.one_of(
    st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -1.0, 1e-30, 1e30, 3e38, 2.0]),
    st.floats(-10, 10, width=32))


@pytest.mark.filterwarnings('error::RuntimeWarning')  # numpy's
@settings(max_examples=120, deadline=None)
@given(depth=hnp.arrays(np.float32, (9, 13), elements=NUMBERS, fill=NUMBERS),
       pitch=st.floats(-90, 90), roll=st.floats(-180, 180), height=st.floats(0.01, 5),
       rows=st.integers(1, 3), increment=st.sampled_from([0.0, 0.3, 5.0]))
def test_any_depth_gives_a_lawful_scan_and_obstacle(depth, pitch, roll, height, rows, increment):
    camera = Camera((9, 13), 7.0, 9.0, 5.6, 4.3)
    mount = Mount.from_angles(height, pitch, roll)
    wanted = ScanSettings(range_max_m=3.0, min_rows=rows, angle_increment_deg=increment)
    before = depth.copy()
    try:
        scan = ScanMaker(camera, wanted).scan(depth, mount)
    except ScanError:
        scan = None
    if scan is not None:
        known = scan.ranges[np.isfinite(scan.ranges)]
        assert ((known >= 0.2) & (known <= 3.0)).all()
        assert scan.ranges.dtype == np.float32
        assert scan.angle_increment > 0
    for given_mount in (None, mount):
        found = NearestObstacle(camera, BandSettings()).find(depth, given_mount)
        assert found.basis in ('floor', 'depth')
        if math.isfinite(found.distance_m) and given_mount is not None:
            assert found.distance_m >= 0
    np.testing.assert_array_equal(depth, before)
