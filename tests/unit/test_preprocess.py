"""The way into the network and back: sizes, values, geometry."""

import cv2
from depth_node.camera import Camera
from depth_node.model_card import InputSpec
from depth_node.preprocess import ResizePlan, network_size
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

FIXED = InputSpec('image', 'uint8_nhwc', size_hw=(96, 128))
PADDED = InputSpec('image', 'uint8_nhwc', size_hw=(96, 128), resize='pad')
DYNAMIC = InputSpec('image', 'uint8_nhwc', multiple_of=32, min_hw=(64, 64), max_hw=(256, 320),
                    resize='keep_aspect')


def ramp(size_hw) -> np.ndarray:
    """Return a map that is affine in continuous image coordinates, so resizing keeps it."""
    v, u = np.mgrid[0:size_hw[0], 0:size_hw[1]]
    return (((u + 0.5) / size_hw[1]) * 2 + ((v + 0.5) / size_hw[0]) * 3 + 1).astype(np.float32)


def test_stretch_fills_the_network_with_the_whole_picture():
    plan = ResizePlan(FIXED, (480, 848))
    picture = np.repeat((ramp((480, 848)) * 40).astype(np.uint8)[..., None], 3, 2)
    batch = plan.to_input(picture)
    assert (batch.shape, batch.dtype) == ((1, 96, 128, 3), np.uint8)
    np.testing.assert_allclose(batch[0, ..., 1], ramp((96, 128)) * 40, atol=1.5)


@pytest.mark.parametrize('spec', [FIXED, PADDED, DYNAMIC])
@pytest.mark.parametrize('size_hw', [(480, 640), (480, 848), (120, 97), (96, 128)])
def test_a_map_affine_in_the_picture_comes_back_to_its_pixels(spec, size_hw):
    plan = ResizePlan(spec, size_hw)
    v0, u0, height, width = plan.window
    network_map = np.full(plan.network_hw, np.nan, np.float32)
    network_map[v0:v0 + height, u0:u0 + width] = ramp((height, width))
    back = plan.back(network_map)
    assert back.shape == size_hw
    edge = max(2, -(-size_hw[0] // height), -(-size_hw[1] // width))
    inner = (slice(edge, -edge), slice(edge, -edge))  # bilinear repeats the border
    np.testing.assert_allclose(back[inner], ramp(size_hw)[inner], atol=2e-3)


def test_half_resolution_map_comes_back_through_padding():
    plan = ResizePlan(PADDED, (100, 200))
    v0, _, height, _ = plan.window
    assert (v0, height) == (16, 64)
    fine = np.full((96, 128), 9.0, np.float32)
    fine[v0:v0 + height] = ramp((height, 128))
    coarse = fine.reshape(48, 2, 64, 2).mean((1, 3))
    np.testing.assert_allclose(plan.back(coarse)[8:-8, 8:-8], ramp((100, 200))[8:-8, 8:-8],
                               atol=0.02)


def test_padding_is_grey_and_centred():
    plan = ResizePlan(PADDED, (100, 200))
    batch = plan.to_input(np.zeros((100, 200, 3), np.uint8))
    assert plan.picture.shape == (64, 128, 3)
    assert not plan.picture.any()
    assert (batch[0, :16] == 127).all()
    assert (batch[0, 16:80] == 0).all()
    assert (batch[0, 80:] == 127).all()


def test_normalised_layout_matches_the_formula():
    spec = InputSpec('x', 'float32_nchw', colour='bgr', mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 8.0),
                     size_hw=(40, 48))
    rgb = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    batch = ResizePlan(spec, (40, 48)).to_input(rgb)
    expected = (rgb[..., ::-1] - np.array([1.0, 2.0, 3.0])) / np.array([2.0, 4.0, 8.0])
    np.testing.assert_allclose(batch[0], expected.transpose(2, 0, 1), rtol=1e-6)


def test_shrinking_averages_instead_of_skipping():
    checker = np.indices((960, 1280)).sum(0) % 2 * 255
    rgb = np.repeat(checker.astype(np.uint8)[..., None], 3, 2)
    batch = ResizePlan(FIXED, (960, 1280)).to_input(rgb)
    assert np.abs(batch.astype(int) - 127).max() <= 2


@pytest.mark.parametrize(('size_hw', 'blocks'), [
    ((240, 320), (2, 2)),  # to 120x160, then to 96x128
    ((480, 640), (5, 5)),  # nothing is left to do
    ((288, 256), (3, 2)),
    ((320, 424), (2, 2)),  # 160 rows are 1.67 times what is needed
    ((328, 434), None),  # 164 rows are too many
    ((480, 635), None),  # a width that has no block of a fitting size
    ((190, 254), None),  # less than two pixels for one
    ((96, 300), None),
    ((48, 64), None)])
def test_blocks_are_whole_and_leave_little_to_do(size_hw, blocks):
    assert ResizePlan(FIXED, size_hw).blocks == blocks


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 6), width=st.integers(1, 6), seed=st.integers(0, 999),
       pad=st.booleans())
def test_blocks_then_bilinear_by_hand(height, width, seed, pad):
    """Means of blocks by numpy, then each pixel from its four neighbours."""
    spec = PADDED if pad else FIXED
    rest = np.random.default_rng(seed).integers(96, 160, 2) * (1, 4 / 3)
    size_hw = int(rest[0]) * height, int(rest[1]) * width
    plan = ResizePlan(spec, size_hw)
    rgb = np.random.default_rng(seed).integers(0, 256, (*size_hw, 3), np.uint8)
    v0, u0, rows, columns = plan.window
    got = plan.to_input(rgb)[0, v0:v0 + rows, u0:u0 + columns].astype(float)
    if plan.blocks is None:
        assert height == 1 or width == 1 or pad
        return
    (down, across), (low, narrow) = plan.blocks, (size_hw[0] // plan.blocks[0],
                                                  size_hw[1] // plan.blocks[1])
    means = rgb.reshape(low, down, narrow, across, 3).mean((1, 3))
    v = ((np.arange(rows) + 0.5) * low / rows - 0.5).clip(0, low - 1)
    u = ((np.arange(columns) + 0.5) * narrow / columns - 0.5).clip(0, narrow - 1)
    top, left = np.minimum(v.astype(int), low - 2), np.minimum(u.astype(int), narrow - 2)
    below, right = (v - top)[:, None, None], (u - left)[None, :, None]
    wanted = ((1 - below) * ((1 - right) * means[top][:, left] + right * means[top][:, left + 1])
              + below * ((1 - right) * means[top + 1][:, left]
                         + right * means[top + 1][:, left + 1]))
    np.testing.assert_allclose(got, wanted, atol=1.6)  # grey levels, rounded twice
    assert abs((got - wanted).mean()) < 0.25  # cv2 cuts off rather than rounds


def test_blocks_keep_what_averaging_at_once_keeps():
    """A picture of shapes, as cameras see them: within two grey levels, but for edges."""
    v, u = np.mgrid[0:480, 0:640]
    rgb = np.stack([
        127 + 100 * np.sin(u / 17 + v / 23), 255.0 * ((u // 37 + v // 29) % 2),
        127 + 60 * np.sin(np.hypot(u - 200, v - 150) / 9)], -1).astype(np.uint8)
    plan = ResizePlan(InputSpec('image', 'uint8_nhwc', size_hw=(192, 256)), (480, 640))
    assert plan.blocks == (2, 2)
    away = np.abs(plan.to_input(rgb)[0].astype(int)
                  - cv2.resize(rgb, (256, 192), interpolation=cv2.INTER_AREA))
    assert np.percentile(away[..., (0, 2)], 99) <= 2
    assert away[..., 1].mean() < 4


def test_nan_spreads_only_to_touching_pixels():
    plan = ResizePlan(FIXED, (192, 256))
    network_map = np.ones((96, 128), np.float32)
    network_map[50, 60] = np.nan
    bad = np.argwhere(np.isnan(plan.back(network_map)))
    assert len(bad)
    assert (bad.min(0) >= (98, 118)).all()
    assert (bad.max(0) <= (103, 123)).all()


def test_network_camera_follows_the_picture():
    plan = ResizePlan(PADDED, (100, 200))
    camera = plan.network_camera(Camera((100, 200), 150.0, 160.0, 99.5, 49.5))
    assert (camera.fx, camera.fy) == pytest.approx((96.0, 102.4))
    assert camera.size_hw == (64, 128)


@settings(max_examples=60)
@given(height=st.integers(16, 2000), width=st.integers(16, 2000))
def test_dynamic_size_is_legal_and_near_the_aspect(height, width):
    net_h, net_w = network_size(DYNAMIC, (height, width))
    assert net_h % 32 == 0
    assert net_w % 32 == 0
    assert 64 <= net_h <= 256
    assert 64 <= net_w <= 320
    if 0.8 < height / width < 1.25 and height > 200:
        assert abs(net_h / net_w - height / width) < 0.25


@settings(max_examples=60)
@given(height=st.integers(16, 2000), width=st.integers(16, 2000))
def test_both_sides_are_scaled_alike_wherever_the_limits_let_them(height, width):
    net_h, net_w = network_size(DYNAMIC, (height, width))
    largest = min(256 / height, 320 / width)
    smallest = max(64 / height, 64 / width)
    if smallest > largest:  # more than 1:5 or 4:1: no size of that aspect lies between
        assert 256 in (net_h, 4 * net_h)
        assert net_w in (64, 320)
        return
    share = min(max(1.0, smallest), largest)
    assert abs(net_h - height * share) <= 16 + 1e-6
    assert abs(net_w - width * share) <= 16 + 1e-6


@pytest.mark.parametrize(('size_hw', 'expected'), [
    ((480, 640), (256, 320)),  # 240x320, in steps of 32
    ((1080, 1920), (192, 320)),
    ((1920, 1080), (256, 128)),  # 256x144, half a step off
    ((96, 128), (96, 128)),  # not enlarged
    ((40, 80), (64, 128)),  # enlarged alike until the smallest side is 64
    ((2000, 30), (256, 64)),  # what cannot be helped
])
def test_dynamic_sizes_of_known_cameras(size_hw, expected):
    assert network_size(DYNAMIC, size_hw) == expected


@pytest.mark.parametrize('shape', [(480, 640), (480, 640, 4), (640, 480, 3)])
def test_other_images_are_refused(shape):
    with pytest.raises(ValueError, match='480, 640, 3'):
        ResizePlan(FIXED, (480, 640)).to_input(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(('network_hw', 'map_hw'), [
    ((228, 304), (128, 160)),  # FCRN
    ((228, 304), (55, 74)),  # Eigen 2014
    ((228, 304), (109, 147)),  # Eigen and Fergus 2015
    ((96, 128), (96, 64)),
    ((96, 128), (200, 130)),
])
@pytest.mark.parametrize('resize', ['stretch', 'pad'])
@pytest.mark.parametrize('size_hw', [(480, 640), (120, 300), (300, 120)])
def test_map_with_other_cells_than_squares_covers_the_input(network_hw, map_hw, resize, size_hw):
    spec = InputSpec('image', 'uint8_nhwc', size_hw=network_hw, resize=resize)
    plan = ResizePlan(spec, size_hw)
    # affine in the network input's continuous coordinates, edge to edge
    v, u = np.mgrid[0:map_hw[0], 0:map_hw[1]]
    network_map = (2 * (u + 0.5) / map_hw[1] + 3 * (v + 0.5) / map_hw[0] + 1).astype(np.float32)
    back = plan.back(network_map)
    v0, u0, height, width = plan.window
    v, u = np.mgrid[0:size_hw[0], 0:size_hw[1]]
    net_u = u0 + (u + 0.5) / size_hw[1] * width  # continuous position in the network's input
    net_v = v0 + (v + 0.5) / size_hw[0] * height
    expected = 2 * net_u / network_hw[1] + 3 * net_v / network_hw[0] + 1
    # bilinear repeats the outer half cell of a map
    cell_v = network_hw[0] / map_hw[0] * size_hw[0] / height
    cell_u = network_hw[1] / map_hw[1] * size_hw[1] / width
    dv, du = int(np.ceil(cell_v)) + 1, int(np.ceil(cell_u)) + 1
    np.testing.assert_allclose(back[dv:-dv, du:-du], expected[dv:-dv, du:-du], atol=2e-3)


@pytest.mark.parametrize('shape', [(0, 96), (1, 96, 128), (96,)])
def test_what_is_no_map_is_refused(shape):
    with pytest.raises(ValueError, match=r'expected \(h, w\)'):
        ResizePlan(FIXED, (480, 640)).back(np.zeros(shape, np.float32))
