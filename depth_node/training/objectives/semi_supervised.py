"""Sparse LiDAR depth and a rectified stereo partner: the semi-supervised objective.

Source: Kuznietsov, Stueckler, Leibe 2017, arXiv:1702.02706: lambda_t L_S + gamma L_U + L_R, each
over both pictures of the pair. The sizes of the weights and the course of lambda_t are unverified
(depth-systems, section 8), and so is the size at which the terms are computed: here at the
input's, to which the prediction is brought.
"""

from __future__ import annotations

from depth_node.training.geometry import pixel_grid, sample
from depth_node.training.losses.masked import forward_differences, picture_mean
from depth_node.training.losses.pixel import berhu_loss
from depth_node.training.losses.smoothness import edge_aware_smoothness
from depth_node.training.losses.ssim import weighted_window
from depth_node.training.networks.base import DepthNetwork
from depth_node.training.objectives.base import Batch, Objective, resize_like, truth
import torch

# A rectified pair: no rotation, no shift but along the rows, one focal length, one row for a
# point. KITTI's colour pair has a shift of 0.5 % of the baseline across.
MOST_ROTATION = 2e-3  # of an element of the matrix, about rad
MOST_SHIFT_SHARE = 0.02
MOST_FOCAL_SHARE = 1e-3
MOST_ROW_PX = 0.5


class SemiSupervised(Objective):
    """LiDAR where there is some, photometric consistency of a stereo pair everywhere."""

    needs = frozenset({'views', 'view_K', 'view_from_frame', 'view_depth'})
    learns_from = frozenset({'depth', 'views'})
    steps: torch.Tensor

    def __init__(
        self,
        *,
        lidar_weight: float = 1.0,
        lidar_weight_final: float = 0.0,
        lidar_decay_steps: int = 0,
        photometric_weight: float = 10.0,
        smooth_weight: float = 1.0,
        berhu_share: float = 0.2,
        blur_sigma_px: float = 1.0,
        edge_eta: float = 1.0 / 255,
        separate_axes: bool = False,
        view: int = 0,
    ) -> None:
        """Choose the weights.

        Args:
            lidar_weight: lambda_0, the weight of the LiDAR term at the start.
            lidar_weight_final: what it decays to.
            lidar_decay_steps: after so many batches the weight has covered 63 % of its way,
                exponentially; 0 = it stays. The paper lowers it over training; how is unverified.
            photometric_weight: gamma, for colours in 0..1; unverified.
            smooth_weight: of the edge-aware smoothness.
            berhu_share: threshold of the LiDAR term's reverse Huber norm, as a share of the
                largest error.
            blur_sigma_px: both pictures are blurred before they are compared; 0 = they are not.
            edge_eta: how much a step of one grey level of 255 relaxes the smoothness.
            separate_axes: add the absolute steps along both axes. The paper takes the absolute
                value of their sum, in which a step to the right and one upwards cancel.
            view: which of the frame's views is the stereo partner.

        Raises:
            ValueError: a weight, a share or a length is negative.
        """
        super().__init__()
        numbers = {
            'lidar_weight': lidar_weight,
            'lidar_weight_final': lidar_weight_final,
            'lidar_decay_steps': lidar_decay_steps,
            'photometric_weight': photometric_weight,
            'smooth_weight': smooth_weight,
            'berhu_share': berhu_share,
            'blur_sigma_px': blur_sigma_px,
            'edge_eta': edge_eta,
            'view': view,
        }
        for name, value in numbers.items():
            if value < 0:
                raise ValueError(f'{name} {value}: expected a number >= 0')
        self.lidar_weights = (float(lidar_weight), float(lidar_weight_final))
        self.lidar_decay_steps = lidar_decay_steps
        self.photometric_weight, self.smooth_weight = photometric_weight, smooth_weight
        self.berhu_share, self.blur_sigma_px = berhu_share, blur_sigma_px
        self.edge_eta, self.separate_axes, self.view = edge_eta, separate_axes, view
        # A buffer, so that a resumed run goes on where the weight was.
        self.register_buffer('steps', torch.zeros((), dtype=torch.int64))

    def lidar_weight(self) -> torch.Tensor:
        """Return lambda_t, a scalar, for the next batch."""
        first, last = self.lidar_weights
        if not self.lidar_decay_steps:
            return torch.full((), first, device=self.steps.device)
        return last + (first - last) * torch.exp(-self.steps.float() / self.lidar_decay_steps)

    def losses(self, network: DepthNetwork, batch: Batch) -> dict[str, torch.Tensor]:
        """See `Objective.losses`."""
        partner = stereo_partner(batch, self.view)
        eyes = (batch, partner)
        rgb = torch.cat([eye['rgb'] for eye in eyes])
        inv_depth = _inverse_depth(network, rgb)
        colours = rgb.float() / 255
        left, right = self._blurred(colours).chunk(2)
        K, partner_K = batch['K'], partner['K']
        left_inv_depth, right_inv_depth = inv_depth.chunk(2)
        seen = [
            stereo_warp(right, left_inv_depth, K, partner_K, partner['offset_m']),
            stereo_warp(left, right_inv_depth, partner_K, K, -partner['offset_m']),
        ]
        warped, inside = (torch.cat(parts) for parts in zip(*seen, strict=True))
        misfit = (warped - torch.cat((left, right))).abs().mean(1, keepdim=True)
        photometric = picture_mean(misfit, inside)
        roughness = edge_aware_smoothness if self.separate_axes else inner_product_smoothness
        smooth = roughness(inv_depth, colours * (255 * self.edge_eta))
        truths = [truth(network, eye) for eye in eyes]
        target, valid = (torch.cat(parts) for parts in zip(*truths, strict=True))
        far = network.depth_range_m[1]
        lidar = berhu_loss(open_depth(inv_depth, far), target, valid, share=self.berhu_share)
        weight = self.lidar_weight()
        # All three are means over the pictures of both eyes.
        loss = weight * lidar + self.photometric_weight * photometric + self.smooth_weight * smooth
        if self.training and torch.is_grad_enabled():
            self.steps += 1
        return {
            'loss': loss,
            'lidar': lidar.detach(),
            'photometric': photometric.detach(),
            'smooth': smooth.detach(),
            'lidar_weight': weight,
        }

    def _blurred(self, colours: torch.Tensor) -> torch.Tensor:
        if not self.blur_sigma_px:
            return colours
        half = max(1, round(3 * self.blur_sigma_px))
        at = torch.arange(-half, half + 1, dtype=colours.dtype, device=colours.device)
        weights = torch.exp(-(at**2) / (2 * self.blur_sigma_px**2))
        return weighted_window(colours, weights=weights / weights.sum(), padding='reflect')


def stereo_partner(batch: Batch, view: int = 0) -> Batch:
    """Take a frame's second eye out of a batch, and check that the pair is rectified.

    Args:
        batch: with `views`, `view_K`, `view_from_frame`, `view_depth`.
        view: which of the views.

    Returns:
        `rgb`, `depth`, `K` of the partner, and `offset_m` (N,): the x by which points move from
        the frame's optical frame into the partner's, -baseline for a partner to the right.

    Raises:
        ValueError: there is no such view, its pose is not known, or the pair is not rectified.
    """
    count = batch['views'].shape[1]
    if view >= count:
        raise ValueError(f'view {view}: the frames have {count} views; choose a smaller one')
    pose, K, view_K = batch['view_from_frame'][:, view], batch['K'], batch['view_K'][:, view]
    offset_m = pose[:, 0, 3]
    rotation = (pose[:, :3, :3] - torch.eye(3, device=pose.device)).abs().amax()
    across = pose[:, 1:3, 3].abs().amax(1) / offset_m.abs()
    focal = ((view_K[:, 0, 0] / K[:, 0, 0]).log()).abs().amax()
    rows = (view_K[:, 1, 2] - K[:, 1, 2]).abs().amax()
    if not (
        rotation <= MOST_ROTATION
        and across.amax() <= MOST_SHIFT_SHARE
        and focal <= MOST_FOCAL_SHARE
        and rows <= MOST_ROW_PX
    ):
        raise ValueError(
            f'view {view} is no rectified stereo partner: rotation up to {float(rotation):.2g} '
            f'(expected <= {MOST_ROTATION}), shift across the baseline up to '
            f'{float(across.amax()):.2g} of it (<= {MOST_SHIFT_SHARE}), focal lengths '
            f'{float(focal):.2g} apart (<= {MOST_FOCAL_SHARE}), rows {float(rows):.2g} px apart '
            f'(<= {MOST_ROW_PX}); set data.options.views: [right] and augment.roll_deg: 0'
        )
    return {
        'rgb': batch['views'][:, view],
        'depth': batch['view_depth'][:, view],
        'K': view_K,
        'offset_m': offset_m,
    }


def stereo_warp(
    source: torch.Tensor,
    inv_depth: torch.Tensor,
    K: torch.Tensor,
    source_K: torch.Tensor,
    offset_m: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Show one picture of a rectified pair as the other camera would see it.

    Column u is looked up at u + cx_source - cx + fx * offset * inverse depth, in its row: for a
    source to the right, whose offset is -baseline, f b / Z to the left.

    Args:
        source: (N, C, H, W).
        inv_depth: (N, 1, H, W), the target's [1/m].
        K: (N, 3, 3) of the target.
        source_K: (N, 3, 3).
        offset_m: (N,), x of the target's origin in the source's frame.

    Returns:
        (N, C, H, W), and where it lies inside of the source, (N, 1, H, W) bool.
    """
    fx, shift = K[:, 0, 0], source_K[:, 0, 2] - K[:, 0, 2]
    u, v = pixel_grid((inv_depth.shape[-2], inv_depth.shape[-1]), inv_depth)
    moved = (fx * offset_m)[:, None, None] * inv_depth[:, 0] + shift[:, None, None]
    pixels = torch.stack((u + moved, v.expand_as(moved)), 1)
    return sample(source, pixels, padding='border')


def inner_product_smoothness(inv_depth: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Mean of |phi(dI/du) d/du rho + phi(dI/dv) d/dv rho|, phi(g) = exp(-|g|).

    Forward differences; |g| is the mean over the channels. Unlike `edge_aware_smoothness` one
    absolute value around both axes.

    Args:
        inv_depth: (N, 1, H, W).
        image: (N, C, H, W).
    """
    terms = []
    for axis, other in ((-1, -2), (-2, -1)):
        edges = forward_differences(image, axis).abs().mean(1, keepdim=True)
        steps = torch.exp(-edges) * forward_differences(inv_depth, axis)
        terms.append(steps.narrow(other, 0, steps.shape[other] - 1))
    return (terms[0] + terms[1]).abs().mean()


def open_depth(inv_depth: torch.Tensor, far_m: float) -> torch.Tensor:
    """Turn inverse depth into metres, with a gradient also where it is 0 or negative.

    Beyond `far_m` the tangent goes on: a clamp would leave LiDAR pixels there without gradient
    for good, and 1 / rho changes its sign at 0.
    """
    least = 1 / far_m
    return 1 / inv_depth.clamp(min=least) + (least - inv_depth).clamp(min=0) * far_m**2


def _inverse_depth(network: DepthNetwork, rgb: torch.Tensor) -> torch.Tensor:
    """Predict inverse depth [1/m] of pictures, at their size, before any clamp."""
    outputs = network.outputs(network.normalise(rgb).contiguous(memory_format=torch.channels_last))
    if network.output_kind == 'inv_depth':
        inv_depth = outputs.get('raw', outputs['prediction']).float()
    elif network.output_kind == 'depth':
        inv_depth = 1 / outputs['prediction'].float()
    else:
        raise ValueError(
            f'objective semi_supervised: the network returns {network.output_kind}, expected '
            'inv_depth or depth; use network semi_supervised, for example'
        )
    return resize_like(inv_depth, rgb)
