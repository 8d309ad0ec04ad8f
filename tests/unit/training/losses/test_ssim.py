"""Structural similarity against scikit-image, and its masked form against closed forms."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip('torch')
from depth_node.training.losses.ssim import ssim_loss, ssim_map  # noqa: E402
import numpy as np  # noqa: E402

SHAPE = (23, 31)


def pictures(seed: int = 0, span: float = 90.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.random(SHAPE) * span
    return x, x + rng.normal(size=SHAPE) * span / 10


def tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture)[None, None]


@pytest.mark.parametrize(('kind', 'window'), [('gaussian', 11), ('box', 7), ('box', 3)])
@pytest.mark.parametrize('padding', ['valid', 'reflect'])
def test_it_is_scikit_images(kind, window, padding):
    metrics = pytest.importorskip('skimage.metrics')
    x, y = pictures()
    options = {'gaussian_weights': True, 'sigma': 1.5} if kind == 'gaussian' else {}
    mean, oracle = metrics.structural_similarity(
        x, y, data_range=100.0, win_size=window, use_sample_covariance=False, full=True, **options
    )
    ours = ssim_map(
        tensor(x), tensor(y), window=window, kind=kind, c1=1.0, c2=9.0, padding=padding
    )[0, 0].numpy()
    half = window // 2
    inner = oracle[half:-half, half:-half]
    if padding == 'valid':
        assert ours.mean() == pytest.approx(mean, abs=1e-12)
    else:
        assert ours.shape == SHAPE  # the oracle pads otherwise: only the inside is comparable
        ours = ours[half:-half, half:-half]
    np.testing.assert_allclose(ours, inner, atol=1e-12)


def test_reflection_does_not_repeat_the_border():
    # 3 px box at the left border of 0 3 9: mean of 3 0 3, not of 0 0 3
    x = torch.tensor([0.0, 3.0, 9.0], dtype=torch.float64).expand(1, 1, 3, 3)
    y = torch.zeros_like(x)
    mean, square = 2.0, 6.0
    expected = 1.0 * 1.0 / ((mean**2 + 1.0) * (square - mean**2 + 1.0))
    values = ssim_map(x, y, window=3, kind='box', c1=1.0, c2=1.0)
    assert values[0, 0, 1, 0].item() == pytest.approx(expected)


def test_two_flat_maps_differ_by_their_means_only():
    x = torch.full((1, 1, *SHAPE), 4.0, dtype=torch.float64)
    valid = torch.ones_like(x, dtype=torch.bool)
    similarity = (2 * 4 * 5 + 1.0) / (16 + 25 + 1.0)
    loss = ssim_loss(x, x + 1.0, valid, data_range=100.0)
    assert loss.item() == pytest.approx((1 - similarity) / 2)


def test_trap_16_the_range_is_100_for_maps_of_10_m_over_depth():
    x, y = pictures()
    valid = torch.ones(1, 1, *SHAPE, dtype=torch.bool)
    expected = (1 - ssim_map(tensor(x), tensor(y), c1=1.0, c2=9.0, padding='valid').mean()) / 2
    assert ssim_loss(tensor(x), tensor(y), valid).item() == pytest.approx(expected.item())
    # the constants go with the square of the values: 1 m / depth maps have L = 10
    tenth = ssim_loss(tensor(x / 10), tensor(y / 10), valid, data_range=10.0)
    assert tenth.item() == pytest.approx(expected.item())
    # L = 256, a picture's width, hides what differs
    wide = ssim_loss(tensor(x / 10), tensor(y / 10), valid, data_range=256.0)
    assert wide.item() < 0.5 * tenth.item()


def test_unknown_pixels_leave_their_window_to_the_known_ones():
    # a window of 3 x 3 around the only whole place, two of its pixels unknown
    rng = np.random.default_rng(5)
    x, y = rng.random((2, 3, 3))
    known = np.ones((3, 3), bool)
    known[0, 1] = known[2, 0] = False
    mx, my = x[known].mean(), y[known].mean()
    vx, vy = x[known].var(), y[known].var()
    covariance = ((x[known] - mx) * (y[known] - my)).mean()
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mx * my + c1) * (2 * covariance + c2)
    similarity /= (mx**2 + my**2 + c1) * (vx + vy + c2)
    loss = ssim_loss(
        tensor(x), tensor(y), torch.from_numpy(known)[None, None],
        data_range=1.0, window=3, kind='box',
    )  # fmt: skip
    assert loss.item() == pytest.approx((1 - similarity) / 2)


@pytest.mark.parametrize('padding', ['valid', 'reflect'])
def test_only_windows_around_known_pixels_count(padding):
    x, y = (tensor(picture) for picture in pictures(6))
    valid = torch.zeros(1, 1, *SHAPE, dtype=torch.bool)
    valid[..., :12, :] = True
    y[..., 12:, :] = math.nan
    options = {'window': 3, 'kind': 'box', 'padding': padding}
    loss = ssim_loss(x, y, valid, **options)
    assert 0 < loss.item() < 1
    assert ssim_loss(x, torch.where(valid, x, y), valid, **options).item() < 1e-12


def test_half_pictures_lose_no_digits_to_mixed_precision():
    x, y = (tensor(picture).float() for picture in pictures(7, span=1.0))
    c = {'c1': 0.01**2, 'c2': 0.03**2}
    full = ssim_map(x, y, **c)
    with torch.autocast('cpu', torch.bfloat16):
        mixed = ssim_map(x, y, **c)
    torch.testing.assert_close(mixed, full)


def test_channels_are_compared_each_with_its_own():
    x, y = (tensor(picture) for picture in pictures(8))
    both = ssim_map(torch.cat((x, y), 1), torch.cat((y, y), 1), c1=1.0, c2=9.0)
    torch.testing.assert_close(both[:, :1], ssim_map(x, y, c1=1.0, c2=9.0))
    torch.testing.assert_close(both[:, 1:], torch.ones_like(x))


def test_wrong_calls_are_refused():
    x = torch.zeros(1, 1, 8, 9)
    c = {'c1': 1.0, 'c2': 1.0}
    with pytest.raises(ValueError, match='window of 11 px over a map of 8x9'):
        ssim_map(x, x, **c)
    with pytest.raises(ValueError, match='odd'):
        ssim_map(x, x, window=4, **c)
    with pytest.raises(ValueError, match="kind 'disc'"):
        ssim_map(x, x, window=3, kind='disc', **c)
    with pytest.raises(ValueError, match="padding 'zeros'"):
        ssim_map(x, x, window=3, padding='zeros', **c)
    with pytest.raises(ValueError, match=r'\(1, 1, 8, 8\)'):
        ssim_map(x, x[..., :8], window=3, **c)
