"""Augmentation keeps the camera true: points of a plane stay on that plane."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip('cv2')

from depth_node.camera import Camera
from depth_node.training.augment import (
    Augmenter,
    AugmentSettings,
    Frame,
    fit,
    photometric,
    warp,
)

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


@pytest.mark.parametrize('name', ['blur', 'noise', 'jpeg', 'grey'])
def test_each_photometric_step_acts(name):
    off = {'exposure': [1, 1], 'gamma': [1, 1], 'white_balance': 1.0, 'saturation': [1, 1],
           'grey': 0, 'blur': 0, 'noise': 0, 'jpeg': 0}  # fmt: skip
    settings = AugmentSettings.from_dict({**off, name: 1.0})
    rgb = np.random.default_rng(1).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    out = photometric(rgb, settings, np.random.default_rng(0))
    assert out.shape == rgb.shape
    assert out.dtype == np.uint8
    assert not np.array_equal(out, rgb)
    assert abs(float(out.mean()) - float(rgb.mean())) < 12


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match=r'augment\.zom: not known'):
        AugmentSettings.from_dict({'zom': [1, 2]})
    with pytest.raises(ValueError, match=r'augment\.zoom: 0\.5 would leave the picture'):
        AugmentSettings.from_dict({'zoom': [0.5, 1]})
    with pytest.raises(ValueError, match='ascending'):
        AugmentSettings.from_dict({'gamma': [2.0, 1.0]})
