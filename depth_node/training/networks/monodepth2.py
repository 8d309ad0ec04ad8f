"""Monodepth2 (Godard et al. 2019, arXiv:1806.01260): the sane defaults of the family.

ResNet-18 and a light decoder to inverse depth; a second ResNet-18 over both pictures for the
motion, its rotation as axis times angle. The network for stereo pairs has no pose network: the
baseline is known, and with it depth is metric.

The release looks at pictures in the order of time and inverts the motion to the previous one;
here the target always comes first, as a batch does not say which view came before.
"""

from __future__ import annotations

from depth_node.training.geometry import axis_angle_pose
from depth_node.training.networks.base import checked_range, checked_size
from depth_node.training.networks.encoders import build_encoder
from depth_node.training.networks.self_supervised import (
    SCALES,
    SelfSupervisedNetwork,
    build_wide_encoder,
)
import torch
from torch import nn
from torch.nn import functional

ENCODERS = ('resnet18', 'resnet34', 'resnet50')
WIDTHS = (256, 128, 64, 32, 16)  # of the decoder, from a 16th of the picture to all of it
POSE_WIDTH = 256
POSE_SCALE = 0.01


def _conv3(c_in: int, c_out: int) -> nn.Conv2d:
    """3x3 with a mirrored border: zeros there would bend the depth at the picture's edge."""
    return nn.Conv2d(c_in, c_out, 3, padding=1, padding_mode='reflect')


class _Decoder(nn.Module):
    """Five times: filter, double by repeating, join the encoder's map, filter."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.up, self.merge, self.heads = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        c_in = channels[-1]
        for level, (c_out, skip) in enumerate(zip(WIDTHS, (*channels[-2::-1], 0), strict=True)):
            self.up.append(nn.Sequential(_conv3(c_in, c_out), nn.ELU(inplace=True)))
            self.merge.append(nn.Sequential(_conv3(c_out + skip, c_out), nn.ELU(inplace=True)))
            if level >= len(WIDTHS) - SCALES:
                self.heads.append(_conv3(c_out, 1))
            c_in = c_out

    def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return sigmoids (N, 1, h, w) at SCALES sizes, finest first."""
        skips = list(features)
        hidden = skips.pop()
        maps: list[torch.Tensor] = []
        first_head = len(WIDTHS) - SCALES
        for level, (up, merge) in enumerate(zip(self.up, self.merge, strict=True)):
            hidden = up(hidden)
            size = (hidden.shape[-2] * 2, hidden.shape[-1] * 2)
            parts = [functional.interpolate(hidden, size=size, mode='nearest')]
            if skips:
                parts.append(skips.pop())
            hidden = merge(torch.cat(parts, 1))
            if level >= first_head:
                maps.insert(0, self.heads[level - first_head](hidden).float().sigmoid())
        return maps


class _PairPoseNet(nn.Module):
    """Two pictures to six numbers."""

    def __init__(self, *, pretrained: bool, weights: str | None) -> None:
        super().__init__()
        self.encoder = build_wide_encoder('resnet18', 6, pretrained=pretrained, weights=weights)
        self.head = nn.Sequential(
            nn.Conv2d(self.encoder.channels[-1], POSE_WIDTH, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(POSE_WIDTH, POSE_WIDTH, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(POSE_WIDTH, POSE_WIDTH, 3, padding=1),
            nn.ReLU(inplace=True),
            # The release has room for a second motion here that nothing uses.
            nn.Conv2d(POSE_WIDTH, 6, 1),
        )

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Return (N, 6), translation first."""
        features = self.encoder(torch.cat([first, second], 1))[-1]
        return POSE_SCALE * self.head(features).float().mean((2, 3))


class Monodepth2(SelfSupervisedNetwork):
    """Depth network, and pose network for video."""

    mean = (114.75, 114.75, 114.75)  # 0.45 of 255, as released
    std = (57.375, 57.375, 57.375)

    def __init__(
        self,
        *,
        size_hw: tuple[int, int] = (192, 640),
        encoder: str = 'resnet18',
        depth_range_m: tuple[float, float] = (0.1, 100.0),
        stereo: bool = False,
        pretrained: bool = False,
        encoder_weights: str | None = None,
        pose_encoder_weights: str | None = None,
    ) -> None:
        """Build the networks.

        Args:
            size_hw: training and export size; both sides divisible by 32.
            encoder: 'resnet18', 'resnet34' or 'resnet50'.
            depth_range_m: nearest and farthest depth; metres for `stereo`.
            stereo: there is no pose network, the views' poses are known, and depth is metric.
            pretrained: must be False without `encoder_weights`.
            encoder_weights: ImageNet weights of torchvision's network of that name.
            pose_encoder_weights: those of its ResNet-18, for the pose network; None takes
                `encoder_weights` where that is a ResNet-18 too.

        Raises:
            ValueError: an impossible size, encoder or range, or weights that do not fit.
        """
        super().__init__()
        self.size_hw = self.output_hw = checked_size(size_hw, 32, least=64, paper='192x640')
        if encoder not in ENCODERS:
            raise ValueError(f'encoder {encoder!r}: expected one of {", ".join(ENCODERS)}')
        self.depth_range_m = checked_range(depth_range_m)
        self.stereo = stereo
        self.output_kind = 'depth' if stereo else 'rel_depth'
        self.encoder = build_encoder(encoder, pretrained=pretrained, weights=encoder_weights)
        self.decoder = _Decoder(self.encoder.channels)
        if not stereo:
            pose_weights = pose_encoder_weights
            if pose_weights is None and encoder == 'resnet18':
                pose_weights = encoder_weights
            self.pose_net = _PairPoseNet(pretrained=False, weights=pose_weights)

    def inv_depths(self, batch: torch.Tensor) -> list[torch.Tensor]:
        """See `SelfSupervisedNetwork.inv_depths`: the sigmoid spans 1/far to 1/near."""
        near, far = self.depth_range_m
        return [
            1 / far + (1 / near - 1 / far) * found
            for found in self.decoder(self.encoder(batch))
        ]

    def pose(
        self,
        target: torch.Tensor,
        sources: torch.Tensor,
        *,
        inv_depth: torch.Tensor | None = None,
        K: torch.Tensor | None = None,
        source_K: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `SelfSupervisedNetwork.pose`.

        Raises:
            ValueError: the network was built for stereo.
        """
        if self.stereo:
            raise ValueError(
                'a network with `stereo: true` has no pose network; set the objective option '
                'pose: given, and use a data set that gives the pose of its views'
            )
        count = sources.shape[1]
        vectors = self.pose_net(target.repeat_interleave(count, 0), sources.flatten(0, 1))
        return axis_angle_pose(vectors).unflatten(0, (-1, count))
