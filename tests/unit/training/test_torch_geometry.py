"""Warping agrees with the closed forms of planes, and its gradients with differences."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip('torch')
from depth_node.training.geometry import (  # noqa: E402
    axis_angle_pose,
    axis_angle_rotation,
    back_project,
    euler_pose,
    euler_rotation,
    flow_warp,
    image_pyramid,
    inverse_warp,
    invert_pose,
    project,
    rigid_flow,
    sample,
    scale_intrinsics,
    transform,
)

HEIGHT, WIDTH = 18, 26
FX, FY, CX, CY = 21.0, 17.0, 11.7, 8.2


def intrinsics(count: int = 1, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    K = torch.tensor([[FX, 0, CX], [0, FY, CY], [0, 0, 1]], dtype=dtype)
    return K.repeat(count, 1, 1)


def ramp(height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    """Two channels, u and v: bilinear sampling of them is exact, and says where it looked."""
    v, u = np.mgrid[:height, :width].astype(np.float64)
    return torch.from_numpy(np.stack([u, v])[None])


def test_euler_is_a_turn_about_z_then_y_then_x():
    """A quarter turn about z takes x to y; one about x then takes that to z."""
    quarter = math.pi / 2
    rotation = euler_rotation(torch.tensor([quarter, 0.0, quarter], dtype=torch.float64))
    x_axis = torch.tensor([1.0, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(rotation @ x_axis, torch.tensor([0, 0, 1.0], dtype=torch.float64))
    y_turn = euler_rotation(torch.tensor([0, quarter, 0], dtype=torch.float64))
    torch.testing.assert_close(y_turn @ x_axis, torch.tensor([0, 0, -1.0], dtype=torch.float64))


@pytest.mark.parametrize('length', [0.0, 1e-9, 5e-3, 9.9e-3, 0.0101, 0.099, 0.101, 1.3, 3.1])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_rodrigues_is_the_matrix_exponential(length, dtype):
    axis = torch.tensor([0.48, -0.6, 0.64], dtype=torch.float64)
    w = axis * length
    cross = torch.tensor([[0, -w[2], w[1]], [w[2], 0, -w[0]], [-w[1], w[0], 0]])
    found = axis_angle_rotation(w.to(dtype)).double()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(
        found, torch.linalg.matrix_exp(cross.double()), atol=tolerance, rtol=0
    )


@pytest.mark.parametrize('make', [euler_pose, axis_angle_pose])
def test_pose_vectors_put_the_translation_first_and_are_differentiable_at_rest(make):
    vector = torch.tensor([[1.0, 2, 3, 0, 0, 0], [0.3, -1, 2, 0.2, -0.4, 0.1]]).double()
    pose = make(vector)
    torch.testing.assert_close(pose[0, :3, :3], torch.eye(3).double())
    torch.testing.assert_close(pose[:, :3, 3], vector[:, :3])
    assert pose[:, 3].tolist() == [[0, 0, 0, 1]] * 2
    product = pose @ invert_pose(pose)
    torch.testing.assert_close(product, torch.eye(4).double().repeat(2, 1, 1))
    assert torch.autograd.gradcheck(make, vector.requires_grad_())


def test_intrinsics_of_another_size_see_the_same_rays():
    """The edges of the picture, half a pixel outside of its centres, keep their directions."""
    K = intrinsics()
    small = scale_intrinsics(K, (HEIGHT, WIDTH), (9, 13))[0]
    for corner, small_corner in (((-0.5, -0.5), (-0.5, -0.5)), ((25.5, 17.5), (12.5, 8.5))):
        ray = torch.linalg.solve(K[0], torch.tensor([*corner, 1.0]).double())
        torch.testing.assert_close(
            torch.linalg.solve(small, torch.tensor([*small_corner, 1.0]).double()), ray
        )
    assert small[0, 2].item() == pytest.approx((CX + 0.5) / 2 - 0.5)


def test_pyramid_and_intrinsics_agree():
    """The mean u of a 2x2 block, seen through the small camera, is the block's direction."""
    K = intrinsics()
    level = image_pyramid(ramp(), 3)[2]
    assert level.shape[-2:] == (HEIGHT // 2 // 2, WIDTH // 2 // 2)
    level = image_pyramid(ramp(), 2)[1]
    small = scale_intrinsics(K, (HEIGHT, WIDTH), (HEIGHT // 2, WIDTH // 2))[0]
    u, v = level[0, :, 3, 5]
    torch.testing.assert_close((u - CX) / FX, (5 - small[0, 2]) / small[0, 0])
    torch.testing.assert_close((v - CY) / FY, (3 - small[1, 2]) / small[1, 1])


def test_back_projection_is_the_pinhole_and_projection_its_inverse():
    torch.manual_seed(0)
    depth = torch.rand(2, 1, HEIGHT, WIDTH).double() + 0.5
    points = back_project(depth, intrinsics(2))
    torch.testing.assert_close(points[:, 2:], depth)
    u, v = 7, 15
    expected = (u - CX) / FX * depth[1, 0, v, u]
    torch.testing.assert_close(points[1, 0, v, u], expected)
    pixels, front = project(points, intrinsics(2))
    torch.testing.assert_close(pixels, ramp().repeat(2, 1, 1, 1))
    assert front.all()


def test_identity_changes_nothing_and_sees_everything():
    torch.manual_seed(0)
    source = torch.rand(1, 3, HEIGHT, WIDTH)
    depth = torch.rand(1, 1, HEIGHT, WIDTH) + 0.1
    K = intrinsics(dtype=torch.float32)
    warped = inverse_warp(source, depth, torch.eye(4)[None], K)
    torch.testing.assert_close(warped.image, source, atol=1e-5, rtol=0)
    assert warped.valid.all()


def test_a_translated_plane_moves_by_focal_length_over_depth():
    """Fronto-parallel plane at Z: u' = u + fx tx / Z, v' = v + fy ty / Z; fx != fy, H != W."""
    depth = torch.full((1, 1, HEIGHT, WIDTH), 2.0).double()
    pose = torch.eye(4).double()[None]
    pose[0, 0, 3], pose[0, 1, 3] = 0.2, -0.3
    warped = inverse_warp(ramp(), depth, pose, intrinsics())
    du, dv = FX * 0.2 / 2, -FY * 0.3 / 2
    expected = ramp() + torch.tensor([du, dv]).double().view(1, 2, 1, 1)
    torch.testing.assert_close(warped.pixels, expected)
    inside = (expected[:, 0] <= WIDTH - 1) & (expected[:, 1] >= 0)
    assert torch.equal(warped.valid[:, 0], inside)
    assert inside.any()
    assert not inside.all()
    seen = warped.valid.expand(1, 2, HEIGHT, WIDTH)
    torch.testing.assert_close(warped.image[seen], expected[seen])
    flow, front = rigid_flow(depth, pose, intrinsics())
    torch.testing.assert_close(flow, expected - ramp())
    assert front.all()
    by_flow, by_flow_valid = flow_warp(ramp(), flow)
    torch.testing.assert_close(by_flow, warped.image)
    assert torch.equal(by_flow_valid, warped.valid)


def test_a_forward_motion_expands_about_the_principal_point():
    """Approaching by dz: u' - cx = (u - cx) Z / (Z - dz)."""
    depth = torch.full((1, 1, HEIGHT, WIDTH), 2.0).double()
    pose = torch.eye(4).double()[None]
    pose[0, 2, 3] = -0.5
    pixels = inverse_warp(ramp(), depth, pose, intrinsics()).pixels
    centre = torch.tensor([CX, CY]).double().view(1, 2, 1, 1)
    torch.testing.assert_close(pixels, centre + (ramp() - centre) * (2 / 1.5))


def test_a_rotation_is_the_homography_k_r_k_inverse_whatever_the_depth():
    torch.manual_seed(0)
    depth = torch.rand(1, 1, HEIGHT, WIDTH).double() + 1
    pose = euler_pose(torch.tensor([[0, 0, 0, 0.05, -0.08, 0.1]]).double())
    K = intrinsics()
    other = K.clone()
    other[0, 0, 0] = 30.0
    pixels = inverse_warp(ramp(), depth, pose, K, other).pixels
    homography = (other @ pose[:, :3, :3] @ torch.linalg.inv(K))[0].numpy()
    ones = np.ones((1, HEIGHT * WIDTH))
    p = homography @ np.concatenate([ramp().numpy().reshape(2, -1), ones])
    np.testing.assert_allclose(pixels.numpy().reshape(2, -1), p[:2] / p[2], atol=1e-9)


def test_a_slanted_plane_under_a_full_motion_is_its_homography():
    """K (R + t n^T / d) K^-1 for the plane n . X = d (Hartley & Zisserman 2004, eq. 13.2)."""
    K = intrinsics()
    n, d = np.array([0.2, -0.1, 1.0]), 3.0
    rays = np.linalg.inv(K[0].numpy()) @ np.concatenate(
        [ramp().numpy().reshape(2, -1), np.ones((1, HEIGHT * WIDTH))]
    )
    depth = torch.from_numpy((d / (n @ rays)).reshape(1, 1, HEIGHT, WIDTH))
    vector = torch.tensor([[0.2, -0.1, 0.3, 0.04, 0.06, -0.05]]).double()
    pose = axis_angle_pose(vector)
    pixels = inverse_warp(ramp(), depth, pose, K).pixels.numpy().reshape(2, -1)
    matrix = pose[0].numpy()
    homography = matrix[:3, :3] + np.outer(matrix[:3, 3], n) / d
    p = K[0].numpy() @ homography @ rays
    np.testing.assert_allclose(pixels, p[:2] / p[2], atol=1e-9)


def test_there_and_back_again():
    torch.manual_seed(1)
    pose = axis_angle_pose(torch.randn(2, 6).double() * 0.1)
    points = back_project(torch.rand(2, 1, 5, 7).double() + 1, intrinsics(2))
    torch.testing.assert_close(transform(transform(points, pose), invert_pose(pose)), points)


def test_points_behind_the_camera_are_not_valid_and_carry_no_gradient():
    depth = torch.full((1, 1, HEIGHT, WIDTH), 1.0, dtype=torch.float64)
    depth[..., :5] = 3.0
    depth.requires_grad_()
    pose = torch.eye(4).double()[None]
    pose[0, 2, 3] = -1.0  # the near pixels come to lie exactly in the camera's centre plane
    warped = inverse_warp(ramp(), depth, pose, intrinsics(), padding='border')
    assert not warped.valid[..., 5:].any()
    assert warped.valid[..., 10, 4].all()
    warped.image.sum().backward()
    assert torch.isfinite(depth.grad).all()
    assert (depth.grad[..., 5:] == 0).all()


@pytest.mark.parametrize('far', [1e12, -1e12])
def test_places_far_outside_are_empty_or_the_border(far):
    pixels = torch.full((1, 2, 1, 1), far).double()
    image = ramp() + 1
    zero, inside = sample(image, pixels)
    assert zero.abs().sum() == 0
    assert not inside.any()
    border, _ = sample(image, pixels, padding='border')
    expected = [WIDTH, HEIGHT] if far > 0 else [1, 1]
    assert border.flatten().tolist() == pytest.approx(expected)


def test_half_a_pixel_outside_is_half_of_the_border():
    value, inside = sample(torch.ones(1, 1, 4, 6), torch.tensor([-0.5, 2.0]).view(1, 2, 1, 1))
    assert value.item() == pytest.approx(0.5)
    assert not inside.any()


def test_gradients_of_the_warp_reach_depth_pose_and_picture():
    torch.manual_seed(0)
    source = torch.rand(1, 2, 5, 7).double().requires_grad_()
    depth = (torch.rand(1, 1, 5, 7).double() + 1.5).requires_grad_()
    vector = torch.tensor([[0.11, 0.07, 0.05, 0.02, 0.03, -0.04]]).double().requires_grad_()
    K = torch.tensor([[[6.3, 0, 3.1], [0, 5.2, 1.9], [0, 0, 1]]]).double()

    def warp(source: torch.Tensor, depth: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        return inverse_warp(source, depth, axis_angle_pose(vector), K).image

    assert torch.autograd.gradcheck(warp, (source, depth, vector))


def test_mixed_precision_does_not_touch_coordinates():
    """In bfloat16 coordinates above 256 are whole numbers at best."""
    depth = torch.full((1, 1, 2, 700), 2.0)
    K = torch.tensor([[[500.3, 0, 350.2], [0, 480.1, 1.0], [0, 0, 1]]])
    pose = euler_pose(torch.tensor([[0.1, 0, 0, 0.01, 0.02, 0]]))
    exact = inverse_warp(torch.rand(1, 1, 2, 700), depth, pose, K).pixels
    with torch.autocast('cpu', torch.bfloat16):
        pose = euler_pose(torch.tensor([[0.1, 0, 0, 0.01, 0.02, 0]]))
        mixed = inverse_warp(torch.rand(1, 1, 2, 700), depth, pose, K).pixels
    assert torch.equal(exact, mixed)


def test_trap_24_a_mirrored_scene_needs_a_mirrored_camera_and_motion():
    """cx -> W - 1 - cx and pose -> F pose F with F = diag(-1, 1, 1), else the warp differs."""
    torch.manual_seed(3)
    source = torch.rand(1, 3, HEIGHT, WIDTH).double()
    depth = torch.rand(1, 1, HEIGHT, WIDTH).double() + 1.5
    pose = axis_angle_pose(torch.tensor([[0.2, -0.1, 0.1, 0.03, 0.05, -0.02]]).double())
    K = intrinsics()
    K[:, 0, 2] = 4.0
    plain = inverse_warp(source, depth, pose, K)
    mirror = torch.diag(torch.tensor([-1.0, 1, 1, 1])).double()
    flipped_pose = mirror @ pose @ mirror
    flipped_K = K.clone()
    flipped_K[:, 0, 2] = WIDTH - 1 - 4.0
    flipped = inverse_warp(source.flip(-1), depth.flip(-1), flipped_pose, flipped_K)
    torch.testing.assert_close(flipped.image.flip(-1), plain.image)
    assert torch.equal(flipped.valid.flip(-1), plain.valid)
    for wrong_pose, wrong_K in ((pose, flipped_K), (flipped_pose, K)):
        wrong = inverse_warp(source.flip(-1), depth.flip(-1), wrong_pose, wrong_K)
        assert (wrong.pixels - flipped.pixels).abs().mean() > 0.1


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r'expected \(N, 1, H, W\) and \(N, 3, 3\)'):
        back_project(torch.ones(2, 3, 4, 5), intrinsics(2))
    with pytest.raises(ValueError, match="padding 'wrap'"):
        sample(ramp(), ramp(), padding='wrap')
