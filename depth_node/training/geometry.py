"""Camera motion and warping in torch: poses, back-projection, projection, sampling, flow.

Optical frames (x right, y down, z forward). Pixel (u, v) = (column, row), whole numbers at pixel
centres, so that a picture resized by s has cx' = (cx + 0.5) s - 0.5. K belongs to the size of the
map it comes with. A pose `b_from_a` (N, 4, 4) moves points from camera a's frame into camera b's.

All of it runs in the precision of its inputs, never in half: a half-precision pixel coordinate
above 1024 is off by half a pixel. Mixed precision is switched off inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import functools
from typing import ParamSpec, TypeVar

import torch
from torch.nn import functional

NEAREST = 1e-6  # points with smaller Z, in units of the depth, count as behind the camera
PADDINGS = ('zeros', 'border')

_P = ParamSpec('_P')
_T = TypeVar('_T')


def without_autocast(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Run a function of tensors outside of mixed precision."""

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        first = next(a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor))
        device = first.device.type
        # Of the meta device, for shapes only, autocast does not know.
        if first.is_meta or not torch.is_autocast_enabled(device):
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return wrapped


@dataclass(frozen=True)
class Warped:
    """A source picture as the target camera would see it.

    Attributes:
        image: (N, C, H, W).
        valid: (N, 1, H, W) bool, seen by the source: in front of it and inside its picture.
        pixels: (N, 2, H, W), where each target pixel lies in the source [px].
    """

    image: torch.Tensor
    valid: torch.Tensor
    pixels: torch.Tensor


@without_autocast
def euler_rotation(angles: torch.Tensor) -> torch.Tensor:
    """Rotate about z, then y, then x: R = Rx Ry Rz, as SfMLearner (arXiv:1704.07813) does.

    Args:
        angles: (..., 3), about x, y, z [rad].

    Returns:
        (..., 3, 3).
    """
    (cx, cy, cz), (sx, sy, sz) = angles.cos().unbind(-1), angles.sin().unbind(-1)
    zero, one = torch.zeros_like(cx), torch.ones_like(cx)
    about_x = _matrix([[one, zero, zero], [zero, cx, -sx], [zero, sx, cx]])
    about_y = _matrix([[cy, zero, sy], [zero, one, zero], [-sy, zero, cy]])
    about_z = _matrix([[cz, -sz, zero], [sz, cz, zero], [zero, zero, one]])
    return about_x @ about_y @ about_z


@without_autocast
def axis_angle_rotation(vector: torch.Tensor) -> torch.Tensor:
    """Rodrigues' formula, smooth at no rotation.

    R = I + sin(t)/t [w]x + (1 - cos(t))/t^2 [w]x^2 with t = |w|.

    Args:
        vector: (..., 3), axis times angle [rad].

    Returns:
        (..., 3, 3).
    """
    square = vector.square().sum(-1)[..., None, None]
    # Below this both series are exact to the last digit; above, the quotients are.
    small = square < (1e-4 if vector.dtype == torch.float64 else 1e-2)
    safe = torch.where(small, torch.ones_like(square), square)
    angle = safe.sqrt()
    first = torch.where(
        small, 1 - square / 6 * (1 - square / 20 * (1 - square / 42)), angle.sin() / angle
    )
    second = torch.where(
        small,
        0.5 - square / 24 * (1 - square / 30 * (1 - square / 56)),
        (1 - angle.cos()) / safe,
    )
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    cross = _matrix([[zero, -z, y], [z, zero, -x], [-y, x, zero]])
    eye = torch.eye(3, dtype=vector.dtype, device=vector.device)
    return eye + first * cross + second * (cross @ cross)


def make_pose(rotation: torch.Tensor, translation: torch.Tensor) -> torch.Tensor:
    """Join (..., 3, 3) and (..., 3) to (..., 4, 4)."""
    top = torch.cat([rotation, translation[..., None]], -1)
    bottom = torch.zeros_like(top[..., :1, :])
    bottom[..., 3] = 1
    return torch.cat([top, bottom], -2)


def euler_pose(vector: torch.Tensor) -> torch.Tensor:
    """Turn (..., 6), tx ty tz then rx ry rz [rad], into (..., 4, 4); see `euler_rotation`."""
    return make_pose(euler_rotation(vector[..., 3:]), vector[..., :3])


def axis_angle_pose(vector: torch.Tensor) -> torch.Tensor:
    """Turn (..., 6), tx ty tz then axis times angle, into (..., 4, 4)."""
    return make_pose(axis_angle_rotation(vector[..., 3:]), vector[..., :3])


@without_autocast
def invert_pose(pose: torch.Tensor) -> torch.Tensor:
    """Invert rigid motions (..., 4, 4)."""
    rotation = pose[..., :3, :3].transpose(-1, -2)
    return make_pose(rotation, -(rotation @ pose[..., :3, 3:])[..., 0])


@without_autocast
def scale_intrinsics(
    K: torch.Tensor, from_hw: tuple[int, int], to_hw: tuple[int, int]
) -> torch.Tensor:
    """Bring (..., 3, 3) intrinsics from one picture size to another.

    Pixel edges are aligned: cx' = (cx + 0.5) s - 0.5.
    """
    sy, sx = to_hw[0] / from_hw[0], to_hw[1] / from_hw[1]
    resize = K.new_tensor([[sx, 0, 0.5 * sx - 0.5], [0, sy, 0.5 * sy - 0.5], [0, 0, 1]])
    return resize @ K


def pixel_grid(size_hw: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
    """Coordinates (u, v) of every pixel, (2, H, W)."""
    v, u = torch.meshgrid(
        torch.arange(size_hw[0], dtype=like.dtype, device=like.device),
        torch.arange(size_hw[1], dtype=like.dtype, device=like.device),
        indexing='ij',
    )
    return torch.stack([u, v])


@without_autocast
def back_project(depth: torch.Tensor, K: torch.Tensor) -> torch.Tensor:
    """Return the point that each pixel sees.

    Args:
        depth: (N, 1, H, W), Z along the optical axis.
        K: (N, 3, 3) of that size.

    Returns:
        (N, 3, H, W) in the camera's frame, in the unit of the depth.
    """
    if depth.ndim != 4 or depth.shape[1] != 1 or K.shape != (depth.shape[0], 3, 3):
        raise ValueError(
            f'depth {tuple(depth.shape)}, K {tuple(K.shape)}: expected (N, 1, H, W) and (N, 3, 3)'
        )
    u, v = pixel_grid((depth.shape[-2], depth.shape[-1]), depth)
    fx, fy, cx, cy = (K[:, i, j, None, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    rays = torch.stack([(u - cx) / fx, (v - cy) / fy, torch.ones_like(cx) + 0 * u], 1)
    return rays * depth


@without_autocast
def project(points: torch.Tensor, K: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where points are seen.

    Args:
        points: (N, 3, H, W) in the camera's frame.
        K: (N, 3, 3).

    Returns:
        Pixels (N, 2, H, W), and whether the point lies in front of the camera (N, 1, H, W), bool.
        The pixels of those behind it are (0, 0), without gradient.
    """
    z = points[:, 2:]
    front = z > NEAREST
    ray = torch.where(front, points[:, :2], 0.0) / torch.where(front, z, 1.0)
    focal = torch.stack([K[:, 0, 0], K[:, 1, 1]], 1)[..., None, None]
    centre = torch.stack([K[:, 0, 2], K[:, 1, 2]], 1)[..., None, None]
    return torch.where(front, ray * focal + centre, 0.0), front


@without_autocast
def transform(points: torch.Tensor, pose: torch.Tensor) -> torch.Tensor:
    """Move points (N, 3, H, W) by poses (N, 4, 4)."""
    moved = pose[:, :3, :3] @ points.flatten(2) + pose[:, :3, 3:]
    return moved.view_as(points)


@without_autocast
def sample(
    image: torch.Tensor, pixels: torch.Tensor, *, padding: str = 'zeros'
) -> tuple[torch.Tensor, torch.Tensor]:
    """Look a picture up between its pixels, bilinear (Jaderberg 2015, arXiv:1506.02025).

    Args:
        image: (N, C, H, W).
        pixels: (N, 2, h, w), (u, v) in `image`.
        padding: what lies outside: 'zeros', or the nearest pixel of the 'border'.

    Returns:
        (N, C, h, w), and whether the place lies inside of the picture, between the centres of its
        outermost pixels: (N, 1, h, w) bool.
    """
    if padding not in PADDINGS:
        raise ValueError(f'padding {padding!r}: expected one of {PADDINGS}')
    height, width = image.shape[-2:]
    u, v = pixels.unbind(1)
    # Rounding in K (R K^-1 p) must not put the border of an unmoved picture outside.
    slack = 1e-3
    inside = (u >= -slack) & (u <= width - 1 + slack) & (v >= -slack) & (v <= height - 1 + slack)
    # Far away nothing changes any more, but whole numbers would overflow.
    u, v = u.clamp(-width, 2 * width), v.clamp(-height, 2 * height)
    grid = torch.stack([(2 * u + 1) / width - 1, (2 * v + 1) / height - 1], -1)
    looked_up = functional.grid_sample(
        image, grid.to(image.dtype), mode='bilinear', padding_mode=padding, align_corners=False
    )
    return looked_up, inside[:, None]


def inverse_warp(
    source: torch.Tensor,
    depth: torch.Tensor,
    source_from_target: torch.Tensor,
    K_target: torch.Tensor,
    K_source: torch.Tensor | None = None,
    *,
    padding: str = 'zeros',
) -> Warped:
    """Show a source picture as the target camera would see it.

    Pixel p of the target is looked up at K_s T D(p) K_t^-1 p in the source (Zhou 2017,
    SfMLearner, arXiv:1704.07813, eq. 2).

    Args:
        source: (N, C, h, w).
        depth: (N, 1, H, W), the target's.
        source_from_target: (N, 4, 4).
        K_target: (N, 3, 3) of (H, W).
        K_source: (N, 3, 3) of (h, w); None where it is the same.
        padding: see `sample`.
    """
    points = transform(back_project(depth, K_target), source_from_target)
    pixels, front = project(points, K_target if K_source is None else K_source)
    image, inside = sample(source, pixels, padding=padding)
    return Warped(image, inside & front, pixels)


def rigid_flow(
    depth: torch.Tensor,
    source_from_target: torch.Tensor,
    K_target: torch.Tensor,
    K_source: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flow that the camera's motion alone causes (GeoNet, arXiv:1803.02276, eq. 1).

    Returns:
        (N, 2, H, W), where a target pixel lies in the source less where it lies in the target
        [px], and whether its point is in front of the source camera, (N, 1, H, W) bool.
    """
    points = transform(back_project(depth, K_target), source_from_target)
    pixels, front = project(points, K_target if K_source is None else K_source)
    grid = pixel_grid((depth.shape[-2], depth.shape[-1]), depth)
    return torch.where(front, pixels - grid, 0.0), front


def flow_warp(
    source: torch.Tensor, flow: torch.Tensor, *, padding: str = 'zeros'
) -> tuple[torch.Tensor, torch.Tensor]:
    """Show a source map as the target sees it, by flow (N, 2, H, W) from target to source [px]."""
    grid = pixel_grid((flow.shape[-2], flow.shape[-1]), flow)
    return sample(source, grid + flow, padding=padding)


def image_pyramid(images: torch.Tensor, levels: int) -> list[torch.Tensor]:
    """Halve (N, C, H, W) again and again by area, sides rounded down; the first is `images`."""
    pyramid = [images]
    for _ in range(levels - 1):
        height, width = pyramid[-1].shape[-2:]
        pyramid.append(
            functional.interpolate(pyramid[-1], size=(height // 2, width // 2), mode='area')
        )
    return pyramid


def _matrix(rows: list[list[torch.Tensor]]) -> torch.Tensor:
    return torch.stack([torch.stack(row, -1) for row in rows], -2)
