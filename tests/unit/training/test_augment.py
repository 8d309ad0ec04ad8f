"""Augmentation keeps the camera true: points of a plane stay on that plane."""

from __future__ import annotations

from dataclasses import replace
import math

import numpy as np
import pytest

pytest.importorskip('cv2')

from depth_node.camera import Camera
from depth_node.training.augment import (
    Augmenter,
    AugmentSettings,
    fit,
    nearer,
    photometric,
    uneven_light,
    warp,
)
from depth_node.training.frame import Frame, Pairs, View

CAMERA = Camera((90, 130), 110.0, 95.0, 61.0, 47.5)  # H != W, fx != fy, off-centre
NORMAL, OFFSET = np.array([0.2, -0.5, 0.9]), 2.0  # the plane NORMAL . X = OFFSET


def plane_frame(camera: Camera = CAMERA) -> Frame:
    v, u = np.mgrid[: camera.size_hw[0], : camera.size_hw[1]].astype(np.float64)
    rays = np.stack(
        [(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones_like(u)], -1
    )
    depth = (OFFSET / (rays @ NORMAL)).astype(np.float32)
    # the picture holds the pixel's own ray, so that colours can be checked too
    rgb = np.stack([128 + 100 * rays[..., 0], 128 + 100 * rays[..., 1], np.full_like(u, 7)], -1)
    return Frame(np.clip(rgb, 0, 255).astype(np.uint8), depth, camera)


def points_of(frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    v, u = np.nonzero(frame.depth)
    z = frame.depth[v, u].astype(np.float64)
    camera = frame.camera
    points = np.stack([(u - camera.cx) / camera.fx * z, (v - camera.cy) / camera.fy * z, z], -1)
    return points, frame.rgb[v, u]


def residual(frame: Frame, normal: np.ndarray = NORMAL) -> float:
    """Largest distance of a point from the plane, as a share of its depth."""
    points, _ = points_of(frame)
    return float(np.max(np.abs(points @ normal - OFFSET) / points[:, 2]))


# Depth is taken from the nearest source pixel, at most 0.71 px away: that bounds the distance.
BOUND = 0.71 * (0.2 / 110 + 0.5 / 95)


def test_cropping_and_stretching_keep_the_plane():
    frame = warp(plane_frame(), (64, 96), crop=(20.3, 11.7, 80.0, 60.0))
    assert frame.camera.size_hw == frame.depth.shape == (64, 96)
    assert frame.camera.fx == pytest.approx(110 * 96 / 80)
    assert frame.camera.fy == pytest.approx(95 * 64 / 60)
    assert (frame.depth > 0).all()
    assert residual(frame) < BOUND


def test_a_crop_on_pixel_edges_is_exact():
    source = plane_frame()
    frame = warp(source, (60, 80), crop=(20.0, 11.0, 80.0, 60.0))
    np.testing.assert_array_equal(frame.depth, source.depth[11:71, 20:100])
    np.testing.assert_array_equal(frame.rgb, source.rgb[11:71, 20:100])
    assert frame.camera == source.camera.cropped(20, 11, (60, 80))


def test_fit_agrees_with_the_pipelines_camera():
    frame = fit(plane_frame(), (192, 256))
    expected = CAMERA.scaled((192, 256))
    for name in ('fx', 'fy', 'cx', 'cy'):
        assert getattr(frame.camera, name) == pytest.approx(getattr(expected, name))


def test_mirroring_mirrors_the_plane_and_the_principal_point():
    frame = warp(plane_frame(), (90, 130), mirror=True)
    assert frame.camera.cx == pytest.approx(130 - 1 - 61.0)
    assert residual(frame, NORMAL * [-1, 1, 1]) < 1e-5
    assert residual(frame) > 0.1


def test_turning_about_the_axis_turns_the_plane_and_keeps_depth():
    angle = math.radians(7)
    frame = warp(plane_frame(), (90, 130), roll_rad=angle)
    cosine, sine = math.cos(angle), math.sin(angle)
    turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    assert residual(frame, turn @ NORMAL) < BOUND
    assert residual(frame) > 2 * BOUND
    assert (frame.depth == 0).any()  # corners that the source does not show


def test_colour_and_depth_move_together():
    frame = warp(plane_frame(), (90, 130), crop=(10, 5, 100, 70), roll_rad=0.1)
    points, colours = points_of(frame)
    angle = -0.1
    x = (points[:, 0] * math.cos(angle) - points[:, 1] * math.sin(angle)) / points[:, 2]
    inside = np.abs(x) < 0.4
    expected = 128 + 100 * x
    assert np.abs(colours[:, 0] - expected)[inside].max() < 2.5


def test_every_random_draw_keeps_a_plane_through_the_source_points():
    settings = AugmentSettings(mirror=0.0, roll_deg=0.0)
    for seed in range(10):
        frame = Augmenter(settings)(plane_frame(), (64, 96), np.random.default_rng(seed))
        assert residual(frame) < BOUND


def test_the_same_seed_gives_the_same_picture_and_another_does_not():
    draw = Augmenter(AugmentSettings())
    first, again, other = (
        draw(plane_frame(), (64, 96), np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.rgb, again.rgb)
    np.testing.assert_array_equal(first.depth, again.depth)
    assert first.camera == again.camera
    assert not np.array_equal(first.rgb, other.rgb)


def test_photometry_without_strength_changes_nothing():
    off = AugmentSettings(exposure=(1, 1), gamma=(1, 1), white_balance=1.0, saturation=(1, 1),
                          grey=0, blur=0, noise=0, jpeg=0)  # fmt: skip
    rgb = plane_frame().rgb
    np.testing.assert_array_equal(photometric(rgb, off, np.random.default_rng(0)), rgb)


@pytest.mark.parametrize('name', ['blur', 'noise', 'jpeg', 'grey', 'uneven'])
def test_each_photometric_step_acts(name):
    off = {'exposure': [1, 1], 'gamma': [1, 1], 'white_balance': 1.0, 'saturation': [1, 1],
           'grey': 0, 'blur': 0, 'noise': 0, 'jpeg': 0}  # fmt: skip
    settings = AugmentSettings.from_dict({**off, name: 1.0})
    rgb = np.random.default_rng(1).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    out = photometric(rgb, settings, np.random.default_rng(0))
    assert out.shape == rgb.shape
    assert out.dtype == np.uint8
    assert not np.array_equal(out, rgb)
    assert abs(float(out.mean()) - float(rgb.mean())) < 20


class Drawn:
    """Stands for a generator: which of the three kinds act, at full strength."""

    def __init__(self, *acts: int, uniform: float = 0.0) -> None:
        self.acts, self._uniform = acts, uniform

    def random(self, count: int | None = None) -> np.ndarray | float:
        return 1.0 if count is None else np.array([1.0 - act for act in self.acts])

    def uniform(self, low: float, high: float) -> float:
        return self._uniform


def test_uneven_light_is_what_its_formula_says():
    dark = uneven_light((31, 61), 0.4, Drawn(1, 0, 0))
    assert dark[15, 30] == 1
    assert dark[[0, 0, -1, -1], [0, -1, 0, -1]] == pytest.approx([0.6] * 4)
    assert dark[15, 0] == pytest.approx(1 - 0.4 * 61**2 / (61**2 + 31**2))  # square of the radius
    side = uneven_light((31, 61), 0.4, Drawn(0, 1, 0, uniform=0.0))  # from the right
    assert side[:, -1] == pytest.approx(1 + 0.2 / np.sqrt(2), abs=1e-6)
    assert side[:, 0] == pytest.approx(1 - 0.2 / np.sqrt(2), abs=1e-6)
    stripes = uneven_light((31, 61), 0.4, Drawn(0, 0, 1, uniform=2.0))  # two turns, phase 2
    expected = 1 + 0.1 * np.sin(2 * np.pi * np.linspace(-1, 1, 31) + 2)
    assert stripes == pytest.approx(np.repeat(expected[:, None], 61, 1), abs=1e-5)


def test_uneven_light_stays_within_its_level():
    gains = np.array([uneven_light((48, 64), 0.4, np.random.default_rng(s)) for s in range(60)])
    assert gains.dtype == np.float32
    assert gains.min() > (1 - 0.4) * (1 - 0.2) * (1 - 0.1) - 1e-6
    assert gains.max() < (1 + 0.2) * (1 + 0.1) + 1e-6
    assert len(np.unique(gains.std((1, 2)).round(5))) > 40  # they differ


def test_uneven_light_of_no_strength_is_even():
    np.testing.assert_array_equal(uneven_light((5, 7), 0.0, np.random.default_rng(0)), 1)


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match=r'augment\.zom: not known'):
        AugmentSettings.from_dict({'zom': [1, 2]})
    with pytest.raises(ValueError, match=r'augment\.zoom: 0\.5 would leave the picture'):
        AugmentSettings.from_dict({'zoom': [0.5, 1]})
    with pytest.raises(ValueError, match='ascending'):
        AugmentSettings.from_dict({'gamma': [2.0, 1.0]})


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('mirror', 1.5), ('jpeg', -0.1), ('noise', float('nan')), ('roll_deg', -5.0),
        ('blur_px', -1.0), ('white_balance', 0.0), ('exposure', [0.0, 1.0]),
        ('aspect', [0.0, 1.0]), ('uneven', 2.0), ('uneven_level', 1.0),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_drawn_from_are_refused_before_training(name, value):
    with pytest.raises(ValueError, match=rf'augment\.{name}: '):
        AugmentSettings.from_dict({name: value})


# --- what else a frame knows moves with it

def depth_of_plane(camera: Camera, normal: np.ndarray, offset: float) -> np.ndarray:
    v, u = np.mgrid[: camera.size_hw[0], : camera.size_hw[1]].astype(np.float64)
    rays = np.stack(
        [(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones_like(u)], -1
    )
    return (offset / (rays @ normal)).astype(np.float32)


def full_frame() -> Frame:
    """The plane seen by two cameras that are turned against each other, with all that is known."""
    frame = plane_frame()
    angle = 0.05
    pose = np.eye(4)
    pose[:3, :3] = [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0],
                    [-math.sin(angle), 0, math.cos(angle)]]  # fmt: skip
    pose[:3, 3] = [-0.3, 0.05, 0.02]
    # n . X = o, X' = R X + t  =>  (R n) . X' = o + (R n) . t
    normal = pose[:3, :3] @ NORMAL
    other = Camera(CAMERA.size_hw, 100.0, 105.0, 70.0, 40.0)
    depth = depth_of_plane(other, normal, OFFSET + normal @ pose[:3, 3])
    rng = np.random.default_rng(8)
    uv = np.stack([rng.integers(0, 130, 200), rng.integers(0, 90, 200),
                   rng.integers(0, 130, 200), rng.integers(0, 90, 200)], -1)  # fmt: skip
    difference = frame.depth[uv[:, 1], uv[:, 0]] - frame.depth[uv[:, 3], uv[:, 2]]
    clear = np.abs(difference) > 0.1
    facing = -NORMAL / np.linalg.norm(NORMAL)
    return replace(
        frame,
        rel_inv_depth=1 / frame.depth,
        normals=np.broadcast_to(facing, (90, 130, 3)).astype(np.float32),
        labels=(frame.depth * 10).astype(np.int32),
        ordinal=np.where(frame.depth > 2, 2, 1).astype(np.int8),
        sky=frame.depth > 2.5,
        pairs=Pairs(uv[clear].astype(np.float32), np.sign(difference[clear]).astype(np.int8)),
        views=(View(frame.rgb, other, pose, depth, 'right'),),
    )


@pytest.mark.parametrize('mirror', [False, True])
@pytest.mark.parametrize('roll', [0.0, 0.09])
def test_trap_24_the_other_view_stays_where_it_was(mirror, roll):
    """A mirrored stereo pair has its second eye on the other side, with cx mirrored too."""
    frame = warp(full_frame(), (64, 96), crop=(15.0, 10.0, 100.0, 70.0), mirror=mirror,
                 roll_rad=roll)  # fmt: skip
    view = frame.views[0]
    assert (view.view_from_frame[0, 3] > 0) == mirror
    np.testing.assert_allclose(
        view.view_from_frame[:3, :3] @ view.view_from_frame[:3, :3].T, np.eye(3), atol=1e-9
    )
    points, _ = points_of(frame)
    moved = points @ view.view_from_frame[:3, :3].T + view.view_from_frame[:3, 3]
    u = moved[:, 0] / moved[:, 2] * view.camera.fx + view.camera.cx
    v = moved[:, 1] / moved[:, 2] * view.camera.fy + view.camera.cy
    column, row = np.rint(u).astype(int), np.rint(v).astype(int)
    seen = (column >= 0) & (column < 96) & (row >= 0) & (row < 64)
    assert seen.mean() > 0.5
    there = view.depth[row[seen], column[seen]]
    known = there > 0
    assert known.mean() > 0.9
    error = np.abs(there - moved[seen, 2])[known] / there[known]
    assert error.max() < 3 * BOUND  # two nearest pixels, and a third rounding


@pytest.mark.parametrize('mirror', [False, True])
def test_trap_25_normals_turn_and_mirror_with_the_picture(mirror):
    frame = warp(full_frame(), (90, 130), mirror=mirror, roll_rad=0.08)
    points, _ = points_of(frame)
    fitted = np.linalg.lstsq(points, np.ones(len(points)), rcond=None)[0]
    fitted /= -np.linalg.norm(fitted)  # towards the camera, as `full_frame` has it
    inside = frame.normals[frame.depth > 0]
    np.testing.assert_allclose(np.linalg.norm(inside, axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(inside.mean(0), fitted, atol=2e-3)
    assert (np.sign(inside[0, 0]) > 0) == (fitted[0] > 0)


def test_maps_move_together_and_say_what_is_outside():
    frame = warp(full_frame(), (60, 100), crop=(-10.0, 5.0, 90.0, 70.0), roll_rad=0.1)
    known = frame.depth > 0
    assert 0.3 < known.mean() < 1
    np.testing.assert_array_equal(frame.labels[known], (frame.depth[known] * 10).astype(int))
    np.testing.assert_array_equal(frame.ordinal[known], np.where(frame.depth[known] > 2, 2, 1))
    np.testing.assert_array_equal(frame.sky[known], frame.depth[known] > 2.5)
    np.testing.assert_allclose(frame.rel_inv_depth[known], 1 / frame.depth[known])
    assert (frame.labels[~known] == -1).all()
    assert (frame.ordinal[~known] == 0).all()
    assert not frame.sky[~known].any()
    assert np.isnan(frame.rel_inv_depth[~known]).all()
    assert (frame.normals[~known] == 0).all()


@pytest.mark.parametrize('mirror', [False, True])
def test_pairs_point_at_the_same_things(mirror):
    before = full_frame()
    frame = warp(before, (64, 96), crop=(15.0, 10.0, 100.0, 70.0), mirror=mirror, roll_rad=0.05)
    uv = np.rint(frame.pairs.uv).astype(int)
    assert 50 < len(uv) < len(before.pairs.uv)
    assert (uv >= 0).all()
    assert (uv[:, [0, 2]] < 96).all()
    assert (uv[:, [1, 3]] < 64).all()
    a, b = frame.depth[uv[:, 1], uv[:, 0]], frame.depth[uv[:, 3], uv[:, 2]]
    known = (a > 0) & (b > 0)
    np.testing.assert_array_equal(np.sign(a - b)[known], frame.pairs.relation[known])


def test_trap_24_zooming_with_a_fixed_camera_divides_depth():
    settings = AugmentSettings(
        zoom=(1.4, 1.4), aspect=(1.0, 1.0), roll_deg=0.0, mirror=0.0, scale_depth=True
    )
    plain = replace(settings, scale_depth=False)
    source = plane_frame()
    near = Augmenter(settings)(source, (64, 96), np.random.default_rng(3))
    told = Augmenter(plain)(source, (64, 96), np.random.default_rng(3))
    np.testing.assert_array_equal(near.rgb, told.rgb)
    np.testing.assert_allclose(near.depth * 1.4, told.depth, rtol=1e-6)
    whole = fit(source, (64, 96)).camera
    assert near.camera.fx == pytest.approx(whole.fx)
    assert near.camera.fy == pytest.approx(whole.fy)
    assert told.camera.fx == pytest.approx(1.4 * whole.fx)
    with pytest.raises(ValueError, match='scale_depth is for single pictures'):
        Augmenter(settings)(full_frame(), (64, 96), np.random.default_rng(3))


def test_trap_24_normals_follow_the_divided_depth():
    """The squeezed points lie on a plane again, of which the new normals are the normal."""
    source = plane_frame()
    facing = -NORMAL / np.linalg.norm(NORMAL)
    normals = np.broadcast_to(facing, (*source.depth.shape, 3)).astype(np.float32).copy()
    normals[:5] = 0  # unknown stays unknown
    near = nearer(replace(source, normals=normals), 1.4)
    points, _ = points_of(near)
    centred = points - points.mean(0)
    expected = np.linalg.svd(centred, full_matrices=False)[2][-1]
    expected *= -np.sign(expected[2])
    np.testing.assert_allclose(near.normals[5:] - expected, 0, atol=1e-5)
    assert abs(expected @ facing) < 0.999
    assert (near.normals[:5] == 0).all()
    assert near.normals.dtype == np.float32


def test_views_share_the_change_of_light():
    settings = AugmentSettings(zoom=(1.0, 1.0), aspect=(1.0, 1.0), roll_deg=0.0, mirror=0.0,
                               noise=1.0, blur=1.0, jpeg=1.0)  # fmt: skip
    source = full_frame()  # its view has the same picture
    drawn = Augmenter(settings)(source, (90, 130), np.random.default_rng(2))
    np.testing.assert_array_equal(drawn.rgb, drawn.views[0].rgb)
    assert not np.array_equal(drawn.rgb, source.rgb)


def test_channels_are_swapped_and_nothing_else():
    quiet = AugmentSettings(blur=0, noise=0, jpeg=0, grey=0, channel_swap=1.0, exposure=(1, 1),
                            gamma=(1, 1), white_balance=1.0, saturation=(1, 1))  # fmt: skip
    rgb = np.dstack([np.full((4, 5), value, np.uint8) for value in (10, 20, 30)])
    orders = {tuple(photometric(rgb, quiet, np.random.default_rng(seed))[0, 0])
              for seed in range(60)}  # fmt: skip
    assert len(orders) == 6
    assert all(sorted(order) == [10, 20, 30] for order in orders)


def test_a_frame_without_camera_stays_without():
    bare = replace(plane_frame(), camera=None)
    assert warp(bare, (64, 96), mirror=True, roll_rad=0.1).camera is None
