"""Direct alignment finds known motions of a textured scene, and lets gradients through."""

from __future__ import annotations

import pytest

torch = pytest.importorskip('torch')
from depth_node.training.direct_vo import (  # noqa: E402
    DirectVoSettings,
    _Level,
    _ray_jacobian,
    _rays,
    direct_pose,
)
from depth_node.training.geometry import (  # noqa: E402
    axis_angle_pose,
    back_project,
    inverse_warp,
    invert_pose,
    project,
    scale_intrinsics,
    transform,
)
from torch.nn import functional  # noqa: E402

HEIGHT, WIDTH = 48, 80
K = torch.tensor([[[60.0, 0, 41.3], [0, 52.0, 22.6], [0, 0, 1]]])
# tx ty tz rx ry rz; the scene is 1 to 2.5 units away.
MOTION = torch.tensor([[0.06, -0.03, 0.05, 0.008, -0.015, 0.01]])


def texture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth noise, fine and coarse: bilinear sampling is nearly exact, and a pyramid has uses."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(1, 3, height, width)
    for cell in (5, 20):
        noise = torch.rand(1, 3, height // cell, width // cell, generator=generator)
        total += functional.interpolate(noise, size=(height, width), mode='bicubic') / 2
    return total.clamp(0, 1)


def scene(
    motion: torch.Tensor = MOTION, seed: int = 0, margin: int = 16
) -> dict[str, torch.Tensor]:
    """Make a target by warping the source: the true motion explains it exactly.

    The source is cut out of a picture with a margin, so that all of the target has a colour.
    """
    big = (HEIGHT + 2 * margin, WIDTH + 2 * margin)
    source = texture(*big, seed)
    K_big = K.clone()
    K_big[:, 0, 2] += margin
    K_big[:, 1, 2] += margin
    v = torch.linspace(0, 1, HEIGHT)[:, None]
    u = torch.linspace(0, 1, WIDTH)
    inv_depth = (0.4 + 0.4 * v + 0.2 * (6 * u).sin() * (4 * v).cos()).view(1, 1, HEIGHT, WIDTH)
    pose = axis_angle_pose(motion)
    target = inverse_warp(source, 1 / inv_depth, pose, K, K_big)
    assert target.valid.all()
    inner = source[..., margin:-margin, margin:-margin]
    return {'target': target.image, 'source': inner, 'inv_depth': inv_depth, 'pose': pose}


def test_jacobian_is_the_derivative_of_the_projection():
    inv_depth = torch.rand(1, 1, 4, 6).double() + 0.5
    camera = torch.tensor([[[7.0, 0, 2.7], [0, 6.0, 1.4], [0, 0, 1]]]).double()

    def rays_after(vector: torch.Tensor) -> torch.Tensor:
        """(1, 2, 4, 6) of x, y after a motion (rx, ry, rz, tx, ty, tz)."""
        pose = axis_angle_pose(torch.cat([vector[3:], vector[:3]])[None])
        unit = torch.eye(3).double()[None]
        return project(transform(back_project(1 / inv_depth, camera), pose), unit)[0]

    jacobian = torch.autograd.functional.jacobian(rays_after, torch.zeros(6).double())
    along_x, along_y = _ray_jacobian(_rays(inv_depth, camera), inv_depth)
    torch.testing.assert_close(along_x, jacobian[:, 0])
    torch.testing.assert_close(along_y, jacobian[:, 1])


def test_a_known_motion_is_recovered_from_rest():
    s = scene()
    found = direct_pose(s['target'], s['source'], s['inv_depth'], K)
    torch.testing.assert_close(found[0, :3, 3], MOTION[0, :3], atol=3e-3, rtol=0)
    torch.testing.assert_close(found, s['pose'], atol=3e-3, rtol=0)
    assert (torch.eye(4) - s['pose'][0]).abs().max() > 0.05  # what it would be without a search


def test_sources_of_another_camera_need_their_own_intrinsics():
    """A source whose columns are counted from 5 px further right, and K with them."""
    s = scene()
    other = K.clone()
    other[:, 0, 2] -= 5
    shifted = s['source'].roll(-5, dims=-1)
    shifted[..., -5:] = shifted[..., -6:-5]
    found = direct_pose(s['target'], shifted, s['inv_depth'], K, other)
    torch.testing.assert_close(found, s['pose'], atol=6e-3, rtol=0)
    wrong = direct_pose(s['target'], shifted, s['inv_depth'], K)
    assert (wrong - s['pose']).abs().max() > 0.03


def test_pictures_of_a_batch_do_not_disturb_each_other():
    """One of them stands still, one cannot be aligned at all."""
    a, b = scene(), scene(torch.tensor([[-0.05, 0.02, -0.04, 0.01, 0.01, -0.02]]), seed=3)
    targets = torch.cat([a['target'], a['source'], b['target'], a['target']])
    sources = torch.cat([a['source'], a['source'], b['source'], torch.zeros_like(a['source'])])
    inv_depth = a['inv_depth'].repeat(4, 1, 1, 1)
    together = direct_pose(targets, sources, inv_depth, K.repeat(4, 1, 1))
    assert torch.isfinite(together).all()
    for index in range(4):
        one = slice(index, index + 1)
        alone = direct_pose(targets[one], sources[one], inv_depth[one], K)
        torch.testing.assert_close(together[one], alone, atol=1e-4, rtol=0)
    torch.testing.assert_close(together[1], torch.eye(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(together[2:3], b['pose'], atol=4e-3, rtol=0)


def test_the_translation_has_the_unit_of_the_depth():
    s = scene()
    found = direct_pose(s['target'], s['source'], s['inv_depth'] / 7, K)
    torch.testing.assert_close(found[0, :3, 3] / 7, MOTION[0, :3], atol=3e-3, rtol=0)


def test_a_start_near_the_motion_is_kept_or_improved():
    s = scene()
    settings = DirectVoSettings(levels=1, iterations=3)
    near = s['pose'] @ axis_angle_pose(torch.full((1, 6), 2e-3))
    found = direct_pose(s['target'], s['source'], s['inv_depth'], K, start=near, settings=settings)
    assert (found - s['pose']).abs().max() < 0.5 * (near - s['pose']).abs().max()


def test_it_stops_when_less_than_half_is_seen():
    """Started with the camera turned away there is nothing to align: the start comes back."""
    s = scene()
    away = axis_angle_pose(torch.tensor([[0.0, 0, 0, 0, 1.0, 0]]))
    found = direct_pose(s['target'], s['source'], s['inv_depth'], K, start=away)
    torch.testing.assert_close(found, away)


def test_it_stops_when_the_error_rises():
    """A target of a tenth of the contrast asks for steps ten times too long: none is taken."""
    s = scene()
    faint = 0.5 + 0.1 * (s['target'] - 0.5)
    level = _Level(faint, s['source'], s['inv_depth'], K, K)
    rest = torch.eye(4)[None]
    residual, seen = level.residual(rest)
    step = rest @ invert_pose(axis_angle_pose(level.step(residual, seen)))
    after, after_seen = level.residual(step)
    assert after_seen.float().mean() > 0.5

    def cost(values, weight):
        return (values.square() * weight).sum() / weight.sum()

    assert cost(after, after_seen) > cost(residual, seen)
    settings = DirectVoSettings(levels=1)
    found = direct_pose(faint, s['source'], s['inv_depth'], K, settings=settings)
    assert torch.equal(found, rest)


def test_one_step_from_a_camera_that_is_turned_far():
    """The step belongs to the target's frame: on the other side it would point elsewhere."""
    turned = torch.tensor([[0.05, -0.03, 0.05, 0.0, 0.0, 0.6]])
    s = scene(turned, margin=42)
    near = s['pose'] @ axis_angle_pose(torch.tensor([[0.02, 0.01, 0, 0, 0, 0.0]]))
    settings = DirectVoSettings(levels=1, iterations=1)
    found = direct_pose(s['target'], s['source'], s['inv_depth'], K, start=near, settings=settings)
    error, before = (found - s['pose']).norm(), (near - s['pose']).norm()
    assert error < 0.3 * before


def test_a_large_motion_needs_the_pyramid():
    """Half of the pixels move by 13 px and more; both cameras follow the size of each level."""
    far = torch.tensor([[0.45, -0.25, 0.25, 0.05, -0.125, 0.05]])
    s = scene(far, seed=5, margin=70)
    found = direct_pose(s['target'], s['source'], s['inv_depth'], K, K)
    torch.testing.assert_close(found, s['pose'], atol=1e-3, rtol=0)
    one = DirectVoSettings(levels=1)
    stuck = direct_pose(s['target'], s['source'], s['inv_depth'], K, K, settings=one)
    assert (stuck - s['pose']).abs().max() > 0.05


def test_a_picture_without_texture_moves_nothing_and_gives_no_nan():
    flat = torch.full((1, 3, HEIGHT, WIDTH), 0.5)
    inv_depth = torch.full((1, 1, HEIGHT, WIDTH), 0.5, requires_grad=True)
    pose = direct_pose(flat, flat, inv_depth, K)
    torch.testing.assert_close(pose, torch.eye(4)[None])
    pose.sum().backward()
    assert torch.isfinite(inv_depth.grad).all()


def test_gradients_reach_inverse_depth_and_agree_with_differences():
    """Twice as deep, twice as far: d t / d ln(scale of the inverse depth) = -t."""
    s = scene()
    log_scale = torch.zeros((), requires_grad=True)
    inv_depth = (s['inv_depth'] * log_scale.exp()).requires_grad_()
    inv_depth.retain_grad()
    pose = direct_pose(s['target'], s['source'], inv_depth, K)
    (pose[0, :3, 3] * torch.tensor([1.0, -0.5, 1])).sum().backward()
    expected = -(pose[0, :3, 3] * torch.tensor([1.0, -0.5, 1])).sum().item()
    assert log_scale.grad.item() == pytest.approx(expected, rel=0.05)
    assert (inv_depth.grad != 0).float().mean() > 0.9


def test_levels_that_are_too_small_are_left_out():
    s = scene()
    small = functional.interpolate(s['target'], size=(12, 20), mode='area')
    inv_depth = functional.interpolate(s['inv_depth'], size=(12, 20), mode='area')
    other = functional.interpolate(s['source'], size=(12, 20), mode='area')
    found = direct_pose(small, other, inv_depth, scale_intrinsics(K, (48, 80), (12, 20)))
    torch.testing.assert_close(found, s['pose'], atol=0.03, rtol=0)


def test_the_inverse_motion_takes_the_source_back():
    """Aligning the other way round, with the same depth, gives about the inverse."""
    s = scene(MOTION * 0.3)
    there = direct_pose(s['target'], s['source'], s['inv_depth'], K)
    back = direct_pose(s['source'], s['target'], s['inv_depth'], K)
    torch.testing.assert_close(back, invert_pose(there), atol=8e-3, rtol=0)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match='expected one size'):
        direct_pose(torch.zeros(1, 3, 8, 9), torch.zeros(1, 3, 8, 8), torch.ones(1, 1, 8, 9), K)
    with pytest.raises(ValueError, match='at least one level'):
        DirectVoSettings(levels=0)
