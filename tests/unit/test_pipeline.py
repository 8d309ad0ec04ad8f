"""The pipeline as a whole, with a backend whose answer is known in closed form."""

import math

import cv2
from depth_node.camera import Camera, CameraError, Rectifier
from depth_node.filters import FilterSettings
from depth_node.geometry import depth_to_points
from depth_node.ground import GroundEstimator, GroundSettings, Mount
from depth_node.model_card import InputSpec, ModelCard, OutputSpec
from depth_node.pipeline import STAGES, DepthPipeline
from depth_node.scale import Scale
import numpy as np
import pytest

INPUT = InputSpec('image', 'uint8_nhwc', size_hw=(96, 128))
OUTPUT = OutputSpec('depth', 'depth', 'm', (0.3, 8.0))
NO_FLYING = FilterSettings(flying_pixel_angle_deg=0.0, flying_pixel_jump=0.0)


class KnownBackend:
    """A backend that returns the map it was given, or one computed from the batch."""

    name, precision, device = 'known', 'fp32', 'test'

    def __init__(self, answer, output=OUTPUT, inputs=INPUT, tmp='.'):
        self.card = ModelCard('known', tmp, 'none', inputs, output, {})
        self.answer = answer

    def run(self, batch):
        self.batch = batch.copy()
        answer = self.answer(batch) if callable(self.answer) else self.answer
        return answer if isinstance(answer, dict) else {'depth': answer[None, None]}

    def close(self):
        pass


def picture(size_hw, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size_hw, 3), np.uint8)


def plane_inverse(camera, normal, offset):
    v, u = np.mgrid[0:camera.size_hw[0], 0:camera.size_hw[1]]
    return (normal[0] * (u - camera.cx) / camera.fx + normal[1] * (v - camera.cy) / camera.fy
            + normal[2]) / offset


def test_a_plane_seen_through_a_distorted_camera_gives_points_on_the_plane():
    """The network reads the plane's inverse depth from the picture: exact up to 8 bit."""
    raw = Camera((480, 640), 502.0, 526.0, 341.0, 219.0, 'plumb_bob',
                 (-0.28, 0.09, 0.0011, -0.0007, -0.012), P=(460.0, 482.0, 336.0, 226.0))
    normal, offset = np.array([0.25, -0.3, 0.92]), 1.4
    flat = raw.rectified()
    # what the rectified picture must be, and the raw picture that rectifies to it
    inverse = plane_inverse(flat, normal, offset)
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-12)
    v, u = np.mgrid[0:480, 0:640].astype(np.float64)
    rays = cv2.undistortPointsIter(np.stack([u, v], -1).reshape(-1, 1, 2), raw.K,
                                   np.array(raw.D), np.eye(3), np.eye(3), stop)
    rays = rays.reshape(480, 640, 2)
    raw_inverse = (rays @ normal[:2] + normal[2]) / offset
    shown = np.clip(np.rint(raw_inverse * 200), 0, 255).astype(np.uint8)
    backend = KnownBackend(
        lambda batch: batch[0, ..., 1].astype(np.float32) / 200,
        OutputSpec('depth', 'inv_depth', 'm', (0.1, 50.0)),
        InputSpec('image', 'uint8_nhwc', size_hw=(480, 640)))
    pipeline = DepthPipeline(backend, filters=NO_FLYING)
    frame = pipeline.run(np.repeat(shown[..., None], 3, 2), raw)
    assert frame.camera == flat
    points = depth_to_points(frame.depth, frame.camera).astype(np.float64)
    inside = np.isfinite(points).all(-1) & (inverse > 0.15) & (inverse < 1.2)
    inside &= Rectifier(raw).valid if Rectifier(raw).valid is not None else True
    inside[:2], inside[-2:], inside[:, :2], inside[:, -2:] = False, False, False, False
    assert inside.mean() > 0.9
    # one grey level of the picture is 1/200 of inverse depth: the points may be off by that
    away = np.abs(points @ normal - offset)[inside]
    level = (1.2 / 200) * (1 / inverse[inside]) * offset
    assert (away <= level).all()
    assert np.median(away) < 0.004


def test_frame_holds_depth_of_the_image_size_and_all_stages():
    pipeline = DepthPipeline(KnownBackend(np.full((96, 128), 2.0, np.float32)))
    rgb = picture((240, 330))
    frame = pipeline.run(rgb, Camera((240, 330), 200.0, 210.0, 160.0, 120.0), stamp=12.5)
    assert frame.depth.shape == (240, 330)
    assert (frame.depth == 2.0).all()
    assert set(frame.timings_ms) == set(STAGES)
    assert all(value >= 0 for value in frame.timings_ms.values())
    assert (frame.stamp, frame.valid_share, frame.removed, frame.notes) == (12.5, 1.0, {}, ())
    assert frame.rgb is rgb


def test_every_lost_pixel_is_counted_once():
    answer = np.full((96, 128), 2.0, np.float32)
    answer[:, 64:] = 5.0                      # a step: flying pixels
    answer[:8] = 0.1                          # too near
    answer[-8:] = 20.0                        # too far
    answer[40:44, 10:14] = np.nan             # the network's own
    answer[50, 20] = -1.0
    pipeline = DepthPipeline(KnownBackend(answer))
    frame = pipeline.run(picture((192, 256)), Camera((192, 256), 200.0, 200.0, 127.5, 95.5))
    assert set(frame.removed) == {'network', 'flying_pixels', 'too_near', 'too_far'}
    lost = frame.depth.size - np.isfinite(frame.depth).sum()
    assert sum(frame.removed.values()) == lost
    assert frame.valid_share == pytest.approx(1 - lost / frame.depth.size)
    assert np.isneginf(frame.depth[2, 20])
    assert np.isposinf(frame.depth[-2, 20])
    assert np.isnan(frame.depth[84, 24])


@pytest.mark.parametrize('angle_deg', [0.0, 4.0])
def test_holes_of_the_network_are_counted_as_wide_as_they_come_back(angle_deg):
    answer = np.full((96, 128), 2.0, np.float32)
    answer[40:44, 10:14] = np.nan
    pipeline = DepthPipeline(KnownBackend(answer),
                             filters=FilterSettings(
                                 flying_pixel_angle_deg=angle_deg, flying_pixel_jump=0.0))
    frame = pipeline.run(picture((480, 640)))
    assert frame.removed == {'network': int(np.isnan(frame.depth).sum())}
    assert frame.removed['network'] > 16 * 25  # 4x4 cells of 5x5 pixels, and their rim


def test_no_pixel_between_two_surfaces_survives_the_way_back():
    answer = np.full((96, 128), 1.0, np.float32)
    answer[:, 64:] = 3.0
    camera = Camera((480, 640), 500.0, 500.0, 319.5, 239.5)
    frame = DepthPipeline(KnownBackend(answer)).run(picture((480, 640)), camera)
    assert set(np.unique(frame.depth[np.isfinite(frame.depth)])) == {1.0, 3.0}
    assert frame.valid_share > 0.96
    loose = DepthPipeline(KnownBackend(answer), filters=NO_FLYING)
    mixed = loose.run(picture((480, 640)), camera).depth
    assert ((mixed > 1.0) & (mixed < 3.0)).any()


def test_canonical_depth_uses_the_rectified_focal_length_or_says_what_it_assumed():
    spec = OutputSpec('depth', 'canonical_depth', 'm', (0.1, 50.0), canonical_focal_px=100.0,
                      assumed_hfov_deg=70.0)
    pipeline = DepthPipeline(KnownBackend(np.full((96, 128), 2.0, np.float32), spec))
    camera = Camera((480, 640), 500.0, 500.0, 319.5, 239.5, 'plumb_bob', (-0.1, 0, 0, 0, 0),
                    P=(450.0, 460.0, 320.0, 240.0))
    frame = pipeline.run(picture((480, 640)), camera)
    focal = math.sqrt(450.0 * 128 / 640 * 460.0 * 96 / 480)
    assert np.nanmedian(frame.depth) == pytest.approx(2.0 * focal / 100.0)
    assert frame.notes == ()
    blind = pipeline.run(picture((480, 640)))
    assumed = 64 / math.tan(math.radians(35))
    # square pixels: 4:3 image on a 4:3 network, fx = fy
    assert np.nanmedian(blind.depth) == pytest.approx(2.0 * assumed / 100.0)
    assert blind.camera is None
    assert '70 degrees' in blind.notes[0]


def test_fixed_scale_applies_before_the_range():
    pipeline = DepthPipeline(KnownBackend(np.full((96, 128), 3.0, np.float32)))
    assert (pipeline.run(picture((96, 128))).depth == 3.0).all()
    pipeline.update(scale=Scale('fixed', 2.0, 0.5), filters=FilterSettings(far_m=6.0))
    frame = pipeline.run(picture((96, 128)))
    assert np.isposinf(frame.depth).all()
    assert frame.scale.scale == 2.0


def test_rectify_off_takes_the_image_as_rectified():
    camera = Camera((96, 128), 100.0, 100.0, 64.0, 48.0, 'plumb_bob', (-0.3, 0.1, 0, 0, 0),
                    P=(90.0, 91.0, 63.0, 47.0))
    rgb = picture((96, 128))
    backend = KnownBackend(np.full((96, 128), 2.0, np.float32))
    frame = DepthPipeline(backend, rectify='off').run(rgb, camera)
    assert frame.rgb is rgb
    assert frame.camera == Camera((96, 128), 90.0, 91.0, 63.0, 47.0)
    np.testing.assert_array_equal(backend.batch[0], rgb)
    rectified = DepthPipeline(backend).run(rgb, camera)
    assert rectified.timings_ms['rectify'] > 0
    np.testing.assert_array_equal(rectified.rgb, Rectifier(camera)(rgb))


def test_rim_outside_of_the_raw_image_has_no_depth():
    camera = Camera((96, 128), 60.0, 60.0, 64.0, 48.0, 'plumb_bob', (-0.3, 0.1, 0, 0, 0),
                    P=(20.0, 20.0, 64.0, 48.0))
    frame = DepthPipeline(KnownBackend(np.full((96, 128), 2.0, np.float32))).run(
        picture((96, 128)), camera)
    assert np.isnan(frame.depth[0, 0])
    assert frame.removed['outside_image'] == np.isnan(frame.depth).sum()


def test_size_and_camera_may_change_at_any_frame():
    pipeline = DepthPipeline(KnownBackend(np.full((96, 128), 2.0, np.float32)))
    for size_hw in ((480, 640), (120, 97), (480, 640), (96, 128)):
        camera = Camera(size_hw, 90.0, 95.0, 48.0, 60.0, 'plumb_bob', (-0.1, 0, 0, 0, 0))
        frame = pipeline.run(picture(size_hw), camera)
        assert frame.depth.shape == frame.rgb.shape[:2] == frame.camera.size_hw == size_hw
    pipeline.reset()
    assert pipeline.run(picture((50, 60))).depth.shape == (50, 60)


def test_confidence_and_sky_come_back_at_image_size():
    sky = np.zeros((96, 128), np.float32)
    sky[:48] = 1.0
    answer = {'depth': np.full((1, 1, 96, 128), 2.0, np.float32), 'sky': sky[None, None],
              'sure': np.full((1, 1, 96, 128), 0.25, np.float32)}
    output = OutputSpec('depth', 'depth', 'm', (0.3, 8.0), confidence='sure', sky='sky')
    frame = DepthPipeline(KnownBackend(answer, output)).run(picture((192, 256)))
    assert (frame.confidence == 0.25).all()
    assert np.isposinf(frame.depth[:90]).all()
    assert (frame.depth[100:] == 2.0).all()
    assert sum(frame.removed.values()) == np.isposinf(frame.depth).sum()  # each pixel once


@pytest.mark.parametrize('bad', [
    np.zeros((96, 128), np.uint8), np.zeros((96, 128, 4), np.uint8),
    np.zeros((96, 128, 3), np.float32), np.zeros((0, 128, 3), np.uint8)])
def test_other_images_are_refused(bad):
    with pytest.raises(ValueError, match='uint8'):
        DepthPipeline(KnownBackend(np.ones((96, 128), np.float32))).run(bad)


def test_camera_of_another_size_is_refused():
    pipeline = DepthPipeline(KnownBackend(np.ones((96, 128), np.float32)))
    with pytest.raises(ValueError, match=r'96, 128'):
        pipeline.run(picture((96, 128)), Camera((128, 96), 50.0, 50.0, 48.0, 64.0))
    with pytest.raises(CameraError):
        Camera((96, 128), 0.0, 50.0, 48.0, 64.0)


def test_unknown_rectify_mode_is_refused():
    with pytest.raises(ValueError, match='auto, off'):
        DepthPipeline(KnownBackend(np.ones((96, 128), np.float32)), rectify='on')


def test_inverse_depth_is_what_is_interpolated_where_asked_for():
    v, u = np.mgrid[0:96, 0:128]
    coarse = (1 / (0.2 + 0.004 * u + 0.002 * v)).astype(np.float32)
    off = FilterSettings.off()
    found = {}
    for space in ('depth', 'inv_depth'):
        pipeline = DepthPipeline(KnownBackend(coarse), filters=off, resize_in=space)
        found[space] = pipeline.run(picture((288, 384))).depth.astype(np.float64)
    fine_v, fine_u = (np.mgrid[0:288, 0:384] + 0.5) / 3 - 0.5
    expected = 0.2 + 0.004 * fine_u + 0.002 * fine_v  # linear: inverse depth comes back exactly
    inner = (slice(3, -3), slice(3, -3))
    np.testing.assert_allclose(1 / found['inv_depth'][inner], expected[inner], rtol=1e-5)
    assert np.abs(found['depth'] * expected - 1)[inner].max() > 1e-5
    with pytest.raises(ValueError, match='depth, inv_depth'):
        DepthPipeline(KnownBackend(coarse), resize_in='disparity')


def test_a_map_of_other_cells_than_squares_goes_through_with_filters_on():
    step = np.full((40, 72), 2.0, np.float32)  # of a 96x128 input: cells of 2.4 x 1.8 pixels
    step[:, 36:] = 5.0
    frame = DepthPipeline(KnownBackend(step)).run(
        picture((192, 256)), Camera((192, 256), 200.0, 190.0, 127.5, 95.5))
    assert frame.depth.shape == (192, 256)
    assert frame.removed.keys() == {'flying_pixels'}
    assert (frame.depth[:, :110] == 2.0).all()
    assert (frame.depth[:, 146:] == 5.0).all()


def test_holes_of_all_causes_are_shared_out_without_a_pixel_too_many():
    answer = np.full((96, 128), 2.0, np.float32)
    answer[40:44, 10:14] = np.nan
    answer[:, 90:] = 5.0
    answer[60:62, 30:33] = 2.1  # an island of 6 pixels: 150 of the image
    chain = FilterSettings(speckle_px=151, speckle_jump=0.03)
    pipeline = DepthPipeline(KnownBackend(answer), filters=chain)
    camera = Camera((480, 640), 500.0, 500.0, 319.5, 239.5)
    frame = pipeline.run(picture((480, 640)), camera)
    assert frame.removed.keys() == {'network', 'flying_pixels', 'speckle'}
    assert sum(frame.removed.values()) == np.isnan(frame.depth).sum()
    assert np.isnan(frame.depth[303:307, 155:160]).all()
    pipeline.update(filters=FilterSettings(speckle_px=150, speckle_jump=0.03))
    assert pipeline.run(picture((480, 640)), camera).removed.keys() == {'network',
                                                                        'flying_pixels'}


def steps(backend):
    """Make a backend answer 2 m, 2.04 m, 2 m, ... : within the gate."""
    values = iter(2.0 + 0.04 * (number % 2) for number in range(99))
    backend.answer = lambda batch: np.full((96, 128), next(values), np.float32)
    return backend


def test_depth_is_steadied_over_frames_with_growing_stamps_only():
    rgb = picture((96, 128))
    pipeline = DepthPipeline(steps(KnownBackend(None)))
    values = [float(pipeline.run(rgb, stamp=1 + 0.1 * number).depth[5, 7]) for number in range(3)]
    assert values == pytest.approx([2.0, 2.02, 6.04 / 3], rel=1e-5)
    pipeline.reset()
    assert pipeline.run(rgb, stamp=1.3).depth[5, 7] == np.float32(2.04)
    without = DepthPipeline(steps(KnownBackend(None)))
    assert [float(without.run(rgb).depth[5, 7]) for _ in range(3)] == pytest.approx(
        [2.0, 2.04, 2.0])


def test_a_moving_picture_or_another_scale_is_followed_at_once():
    pipeline = DepthPipeline(steps(KnownBackend(None)))
    for number in range(4):
        frame = pipeline.run(picture((96, 128), seed=number), stamp=1 + 0.1 * number)
        assert frame.depth[5, 7] == np.float32(2.0 + 0.04 * (number % 2))
    pipeline.update(scale=Scale('fixed', 1.01))
    assert pipeline.run(picture((96, 128), seed=3), stamp=1.4).depth[5, 7] == pytest.approx(2.02)
    pipeline.update(scale=Scale('fixed', 1.02))
    frame = pipeline.run(picture((96, 128), seed=3), stamp=1.5)
    assert frame.depth[5, 7] == pytest.approx(2.04 * 1.02)


def test_what_the_masks_say_stands_in_the_notes(tmp_path):
    cv2.imwrite(str(tmp_path / 'mask.png'), np.zeros((48, 64), np.uint8))
    pipeline = DepthPipeline(
        KnownBackend(np.full((96, 128), 2.0, np.float32)),
        filters=FilterSettings(mask_file=str(tmp_path / 'mask.png'), roi=(10, 0, 50, 40)))
    frame = pipeline.run(picture((96, 128)))
    assert 'mask.png is 64x48, the image 128x96' in frame.notes[0]
    assert frame.removed == {'outside_roi': 96 * 128 - 40 * 50}
    assert pipeline.filters.roi == (10, 0, 50, 40)


@pytest.mark.parametrize('bars', [1.0, 3.0, np.nan])
@pytest.mark.parametrize('cells', [1, 2])
def test_what_the_network_makes_of_padding_is_neither_measured_nor_filtered(bars, cells):
    """A floor 0.5 m below and a wall; the network gives 0.8 of it, and junk in the bars."""
    camera = Camera((180, 420), 300.0, 320.0, 214.0, 85.0)
    mount = Mount.from_angles(0.5, 10.0)
    inputs = InputSpec('image', 'uint8_nhwc', size_hw=(256, 256), resize='pad')
    rows, columns = round(180 * 256 / 420), 256
    v0 = (256 - rows) // 2
    seen = camera.scaled((rows, columns))
    v, u = np.mgrid[0:rows, 0:columns]
    fall = -((u - seen.cx) / seen.fx * mount.up[0] + (v - seen.cy) / seen.fy * mount.up[1]
             + mount.up[2])
    truth = np.minimum(3.0, 0.5 / np.maximum(fall, 1e-3))
    answer = np.full((256, 256), bars, np.float32)
    answer[v0:v0 + rows] = truth / 1.25
    answer = answer[::cells, ::cells]
    ground = GroundEstimator(GroundSettings(views=1))
    ground.set_mount(mount)
    pipeline = DepthPipeline(
        KnownBackend(answer, OutputSpec('depth', 'depth', 'm', (0.1, 50.0)), inputs), scale=ground)
    frame = pipeline.run(picture(camera.size_hw), camera, stamp=1.0)
    assert frame.scale.state == 'ok', frame.scale.note
    assert frame.scale.scale == pytest.approx(1.25, rel=0.01 * cells)
    if cells == 1:  # else the map's cells at the rim lie half in the bars
        assert frame.removed == {}
        away = np.abs(frame.depth / cv2.resize(truth, (420, 180)) - 1)
        assert away.max() < 0.02
