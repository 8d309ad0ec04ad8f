"""Camera motion by direct image alignment, differentiable in depth and pictures.

Wang et al. 2018, 'Learning Depth from Monocular Videos using Direct Methods' (DDVO),
arXiv:1712.00175, section 3.3: instead of learning a pose network, solve for the motion that makes
the target's inverse depth explain the source. Inverse-compositional Gauss-Newton (Baker &
Matthews 2004, 'Lucas-Kanade 20 Years On', section 3.2): the Jacobian is that of the target, which
does not move, so it is computed once a level.
"""

from __future__ import annotations

from dataclasses import dataclass

from depth_node.training.geometry import (
    NEAREST,
    axis_angle_pose,
    image_pyramid,
    invert_pose,
    pixel_grid,
    project,
    sample,
    scale_intrinsics,
    transform,
    without_autocast,
)
import torch
from torch.nn import functional

SMALLEST_SIDE = 6  # [px] a coarser level has too few pixels for six unknowns
DAMPING = 1e-6  # share of the mean curvature, for directions that the picture says nothing about


@dataclass(frozen=True)
class DirectVoSettings:
    """How long to search.

    Attributes:
        levels: of the pyramid, at most.
        iterations: at each level, at most.
        least_seen: stop where less than this share of the target's pixels is seen by the source.
    """

    levels: int = 5
    iterations: int = 10
    least_seen: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what would not search."""
        if self.levels < 1 or self.iterations < 1 or not 0 < self.least_seen <= 1:
            raise ValueError(
                f'{self}: expected at least one level and iteration, and 0 < least_seen <= 1'
            )


@without_autocast
def direct_pose(
    target: torch.Tensor,
    source: torch.Tensor,
    inv_depth: torch.Tensor,
    K_target: torch.Tensor,
    K_source: torch.Tensor | None = None,
    *,
    start: torch.Tensor | None = None,
    settings: DirectVoSettings | None = None,
) -> torch.Tensor:
    """Find the motion between two cameras from the target's inverse depth.

    At each level the search goes on until the error rises, or too little is seen; then the last
    motion that was better is kept, for each picture on its own. These decisions carry no
    gradient; every step does.

    Args:
        target: (N, C, H, W), any range of values.
        source: (N, C, H, W).
        inv_depth: (N, 1, H, W), the target's, positive.
        K_target: (N, 3, 3) of (H, W).
        K_source: (N, 3, 3); None where it is the same.
        start: (N, 4, 4), where the search begins; None: no motion.
        settings: how long to search.

    Returns:
        source_from_target (N, 4, 4), its translation in the unit of 1 / inv_depth.
    """
    settings = settings or DirectVoSettings()
    if target.shape != source.shape or inv_depth.shape[-2:] != target.shape[-2:]:
        raise ValueError(
            f'target {tuple(target.shape)}, source {tuple(source.shape)}, inv_depth '
            f'{tuple(inv_depth.shape)}: expected one size'
        )
    target, source, inv_depth = target.float(), source.float(), inv_depth.float()
    K_target = K_target.float()
    K_source = K_target if K_source is None else K_source.float()
    size_hw = (target.shape[-2], target.shape[-1])
    levels = settings.levels
    while levels > 1 and min(size_hw) >> (levels - 1) < SMALLEST_SIDE:
        levels -= 1
    pyramids = zip(
        *(image_pyramid(images, levels) for images in (target, source, inv_depth)), strict=True
    )
    pose = start.float() if start is not None else _no_motion(target)
    for level_target, level_source, level_inv in reversed(list(pyramids)):
        to_hw = (level_target.shape[-2], level_target.shape[-1])
        level = _Level(
            level_target,
            level_source,
            level_inv,
            scale_intrinsics(K_target, size_hw, to_hw),
            scale_intrinsics(K_source, size_hw, to_hw),
        )
        pose = level.search(pose, settings)
    return pose


class _Level:
    """One size of the pictures, and what stays the same while the motion changes."""

    def __init__(
        self,
        target: torch.Tensor,
        source: torch.Tensor,
        inv_depth: torch.Tensor,
        K_target: torch.Tensor,
        K_source: torch.Tensor,
    ) -> None:
        self.target, self.source, self.K_source = target, source, K_source
        rays = _rays(inv_depth, K_target)
        self.points = rays / inv_depth.clamp(min=NEAREST)
        # (N, C, H, W, 6): change of the target's colours with a small motion of its camera.
        dx, dy = _gradients(target)
        along_x, along_y = _ray_jacobian(rays, inv_depth)
        fx, fy = K_target[:, 0, 0], K_target[:, 1, 1]
        self.jacobian = (dx * fx.view(-1, 1, 1, 1))[..., None] * along_x[:, None] + (
            dy * fy.view(-1, 1, 1, 1)
        )[..., None] * along_y[:, None]

    def search(self, start: torch.Tensor, settings: DirectVoSettings) -> torch.Tensor:
        kept = candidate = start
        least: torch.Tensor | None = None
        active = torch.ones(start.shape[0], dtype=torch.bool, device=start.device)
        for iteration in range(settings.iterations + 1):
            residual, seen = self.residual(candidate)
            with torch.no_grad():
                weight = seen.to(residual.dtype)
                pixels = weight.flatten(1).sum(1)
                cost = (residual.square().mean(1, keepdim=True) * weight).flatten(1).sum(1)
                cost = cost / pixels.clamp(min=1)
                enough = seen.flatten(1).float().mean(1) >= settings.least_seen
                # The start of a level is the standard, not a step that could be refused.
                better = enough if least is None else enough & (cost < least)
                active = active & better
                least = cost if least is None else torch.where(active, cost, least)
            kept = torch.where(active[:, None, None], candidate, kept)
            if iteration == settings.iterations or not bool(active.any()):
                break
            step = self.step(residual, seen)
            # Pictures that have stopped do not move: no gradient of theirs passes here.
            step = torch.where(active[:, None], step, 0.0)
            candidate = kept @ invert_pose(axis_angle_pose(step))
        return kept

    def residual(self, pose: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Warped source less target, 0 where it is not seen, and where it is."""
        pixels, front = project(transform(self.points, pose), self.K_source)
        image, inside = sample(self.source, pixels)
        seen = inside & front
        return torch.where(seen, image - self.target, 0.0), seen

    def step(self, residual: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """Solve for the target's motion that explains the residual: (N, 6), tx ty tz rx ry rz."""
        jacobian = (self.jacobian * seen[..., None]).flatten(1, 3)  # (N, C H W, 6)
        # Sums over all pixels of products: in double, as their normal matrix squares the range.
        jacobian = jacobian.double()
        normal = jacobian.transpose(1, 2) @ jacobian
        damping = DAMPING * normal.diagonal(dim1=1, dim2=2).mean(1) + 1e-12
        eye = torch.eye(6, dtype=normal.dtype, device=normal.device)
        normal = normal + damping.detach()[:, None, None] * eye
        right = jacobian.transpose(1, 2) @ residual.flatten(1)[..., None].double()
        motion = torch.linalg.solve(normal, right)[..., 0].to(residual.dtype)
        return torch.cat([motion[:, 3:], motion[:, :3]], 1)


def _no_motion(like: torch.Tensor) -> torch.Tensor:
    eye = torch.eye(4, dtype=like.dtype, device=like.device)
    return eye.expand(like.shape[0], 4, 4)


def _rays(inv_depth: torch.Tensor, K: torch.Tensor) -> torch.Tensor:
    """Directions (x, y, 1) of all pixels, (N, 3, H, W)."""
    u, v = pixel_grid((inv_depth.shape[-2], inv_depth.shape[-1]), inv_depth)
    fx, fy, cx, cy = (K[:, i, j, None, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    x, y = (u - cx) / fx, (v - cy) / fy
    return torch.stack([x, y, torch.ones_like(x)], 1)


def _ray_jacobian(
    rays: torch.Tensor, inv_depth: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Derivatives of x and of y of a pixel's ray by (rx, ry, rz, tx, ty, tz): (N, H, W, 6) each.

    With rho = 1/Z: [-xy, 1 + x^2, -y, rho, 0, -rho x] and [-1 - y^2, xy, x, 0, rho, -rho y].
    """
    x, y, rho = rays[:, 0], rays[:, 1], inv_depth[:, 0]
    zero = torch.zeros_like(rho)
    along_x = torch.stack([-x * y, 1 + x * x, -y, rho, zero, -rho * x], -1)
    along_y = torch.stack([-1 - y * y, x * y, x, zero, rho, -rho * y], -1)
    return along_x, along_y


def _gradients(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Central differences; one-sided at the border, where they are half as large."""
    padded = functional.pad(images, (1, 1, 1, 1), mode='replicate')
    dx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    dy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    return dx, dy
