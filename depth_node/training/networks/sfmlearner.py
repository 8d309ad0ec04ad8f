"""SfMLearner (Zhou et al. 2017, arXiv:1704.07813): DispNet and a pose and explainability network.

As the authors released it: no batch norm; inverse depth = 10 sigmoid + 0.01 at four sizes; the
pose is six numbers a source, translation then Euler angles, the mean over a coarse map times
0.01. Where a side does not halve evenly (416 becomes 13, then 7 and 4) the upsampled map is cut to
the size of its counterpart; the release resizes it, which shifts it against the picture.
"""

from __future__ import annotations

from depth_node.training.geometry import euler_pose
from depth_node.training.networks.base import checked_size
from depth_node.training.networks.self_supervised import (
    SCALES,
    SelfSupervisedNetwork,
    check_sources,
)
import torch
from torch import nn
from torch.nn import functional

# Channels and kernels of the pairs of convolutions going down, and of the way up.
DOWN = ((32, 7), (64, 5), (128, 3), (256, 3), (512, 3), (512, 3), (512, 3))
UP = (512, 512, 256, 128, 64, 32, 16)
POSE_CHANNELS = ((16, 7), (32, 5), (64, 3), (128, 3), (256, 3))
# From a sixteenth of the picture to all of it.
MASK_CHANNELS = ((256, 3), (128, 3), (64, 3), (32, 5), (16, 7))
POSE_SCALE = 0.01
INV_DEPTH_OFFSET = 0.01


def conv(
    c_in: int, c_out: int, kernel: int, stride: int = 1, *, batch_norm: bool = False
) -> nn.Sequential:
    """Convolution that keeps the size, or halves it rounding up, then ReLU."""
    layers: list[nn.Module] = [
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=not batch_norm)
    ]
    if batch_norm:
        layers.append(nn.BatchNorm2d(c_out))
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


def up_conv(c_in: int, c_out: int, kernel: int = 3, *, batch_norm: bool = False) -> nn.Sequential:
    """Transposed convolution that doubles the size, then ReLU."""
    layers: list[nn.Module] = [
        nn.ConvTranspose2d(
            c_in, c_out, kernel, 2, kernel // 2, output_padding=1, bias=not batch_norm
        )
    ]
    if batch_norm:
        layers.append(nn.BatchNorm2d(c_out))
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


def start_weights(module: nn.Module) -> None:
    """Draw convolutions from Glorot's uniform distribution, biases at 0, as the release does."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class DispNet(nn.Module):
    """Seven levels down, seven up; inverse depth at the last four."""

    def __init__(self, *, inv_depth_scale: float = 10.0, batch_norm: bool = False) -> None:
        """Build the layers.

        Args:
            inv_depth_scale: the largest inverse depth.
            batch_norm: after every convolution (GeoNet's VGG variant has it).
        """
        super().__init__()
        self.inv_depth_scale = float(inv_depth_scale)
        self.down = nn.ModuleList()
        c_in = 3
        for c_out, kernel in DOWN:
            self.down.append(
                nn.Sequential(
                    conv(c_in, c_out, kernel, 2, batch_norm=batch_norm),
                    conv(c_out, c_out, kernel, batch_norm=batch_norm),
                )
            )
            c_in = c_out
        skips = (*(channels for channels, _ in DOWN[-2::-1]), 0)
        self.up, self.merge, self.heads = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, (c_out, skip) in enumerate(zip(UP, skips, strict=True)):
            coarser = 1 if level > len(UP) - SCALES else 0  # the upsampled inverse depth
            self.up.append(up_conv(c_in, c_out, batch_norm=batch_norm))
            self.merge.append(conv(c_out + skip + coarser, c_out, 3, batch_norm=batch_norm))
            if level >= len(UP) - SCALES:
                self.heads.append(nn.Conv2d(c_out, 1, 3, padding=1))
            c_in = c_out
        start_weights(self)

    def forward(self, batch: torch.Tensor) -> list[torch.Tensor]:
        """Return inverse depth (N, 1, h, w) at SCALES sizes, finest first."""
        skips = [batch]
        for block in self.down:
            skips.append(block(skips[-1]))
        features = skips.pop()
        maps: list[torch.Tensor] = []
        first_head = len(UP) - SCALES
        for level, (up, merge) in enumerate(zip(self.up, self.merge, strict=True)):
            skip = skips.pop()
            height, width = skip.shape[-2:]
            parts = [up(features)[..., :height, :width]]
            if skips:  # the picture itself is no skip
                parts.append(skip)
            if maps:
                parts.append(
                    functional.interpolate(
                        maps[0], size=(height, width), mode='bilinear', align_corners=False
                    )
                )
            features = merge(torch.cat(parts, 1))
            if level >= first_head:
                head = self.heads[level - first_head](features).float()
                maps.insert(0, self.inv_depth_scale * head.sigmoid() + INV_DEPTH_OFFSET)
        return maps


class PoseNet(nn.Module):
    """Six numbers for each source, and, if wanted, how well each of its pixels is explained."""

    def __init__(
        self, *, sources: int = 2, explainability: bool = False, batch_norm: bool = False
    ) -> None:
        """Build the layers.

        Args:
            sources: pictures beside the target.
            explainability: predict the masks.
            batch_norm: after every convolution but the last (GeoNet).
        """
        super().__init__()
        self.sources = sources
        layers = []
        c_in = 3 * (sources + 1)
        for c_out, kernel in POSE_CHANNELS:
            layers.append(conv(c_in, c_out, kernel, 2, batch_norm=batch_norm))
            c_in = c_out
        self.shared = nn.Sequential(*layers)
        self.head = nn.Sequential(
            conv(256, 256, 3, 2, batch_norm=batch_norm),
            conv(256, 256, 3, 2, batch_norm=batch_norm),
            nn.Conv2d(256, 6 * sources, 1),
        )
        self.mask_up, self.mask_heads = nn.ModuleList(), nn.ModuleList()
        if explainability:
            for level, (c_out, kernel) in enumerate(MASK_CHANNELS):
                self.mask_up.append(up_conv(c_in, c_out, kernel))
                if level:
                    self.mask_heads.append(
                        nn.Conv2d(c_out, 2 * sources, kernel, padding=kernel // 2)
                    )
                c_in = c_out
        start_weights(self)

    def vectors(self, target: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
        """Return (N, S, 6) for a target (N, 3, H, W) and sources (N, S, 3, H, W)."""
        return self._vectors(self._trunk(target, sources))

    def vectors_and_masks(
        self, target: torch.Tensor, sources: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return `vectors`, and logits (N, S, 2, h, w) of not explained and explained.

        The masks are at SCALES sizes, finest first.
        """
        features = self._trunk(target, sources)
        masks: list[torch.Tensor] = []
        hidden = features
        height, width = target.shape[-2:]
        for level, up in enumerate(self.mask_up):
            shrink = 2 ** (len(MASK_CHANNELS) - 1 - level)
            hidden = up(hidden)[..., : -(-height // shrink), : -(-width // shrink)]
            if level:
                logits = self.mask_heads[level - 1](hidden)
                masks.insert(0, logits.unflatten(1, (self.sources, 2)).float())
        return self._vectors(features), masks

    def _trunk(self, target: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
        check_sources(sources, self.sources)
        return self.shared(torch.cat([target, sources.flatten(1, 2)], 1))

    def _vectors(self, features: torch.Tensor) -> torch.Tensor:
        mean = self.head(features).float().mean((2, 3))
        return POSE_SCALE * mean.unflatten(1, (self.sources, 6))


class DispAndPose(SelfSupervisedNetwork):
    """One network for depth and one for motion, of which neither needs the other's.

    Attributes:
        disp_net: a picture to inverse depth at SCALES sizes.
        pose_net: target and sources to their motions.
    """

    disp_net: nn.Module
    pose_net: PoseNet

    def inv_depths(self, batch: torch.Tensor) -> list[torch.Tensor]:
        """See `SelfSupervisedNetwork.inv_depths`."""
        maps: list[torch.Tensor] = self.disp_net(batch)
        return maps

    def pose(
        self,
        target: torch.Tensor,
        sources: torch.Tensor,
        *,
        inv_depth: torch.Tensor | None = None,
        K: torch.Tensor | None = None,
        source_K: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `SelfSupervisedNetwork.pose`."""
        return euler_pose(self.pose_net.vectors(target, sources))


class SfMLearner(DispAndPose):
    """DispNet, and PoseExpNet."""

    mean = (127.5, 127.5, 127.5)
    std = (127.5, 127.5, 127.5)
    depth_range_m = (1 / 10.01, 1 / INV_DEPTH_OFFSET)

    def __init__(
        self,
        *,
        size_hw: tuple[int, int] = (128, 416),
        sources: int = 2,
        explainability: bool = False,
        pretrained: bool = False,
    ) -> None:
        """Build the networks.

        Args:
            size_hw: training and export size; both sides divisible by 8.
            sources: views of each frame: 2 for triptychs.
            explainability: predict the masks. The authors' best released model does without.
            pretrained: must be False.

        Raises:
            ValueError: an impossible size, no sources, or `pretrained`.
        """
        super().__init__()
        self.size_hw = self.output_hw = checked_size(size_hw, 8, least=32, paper='128x416')
        refuse_pretrained(pretrained)
        if sources < 1:
            raise ValueError(f'sources {sources}: expected at least 1')
        self.disp_net = DispNet()
        self.pose_net = PoseNet(sources=sources, explainability=explainability)
        self.explainability = explainability

    def pose_and_explainability(
        self, target: torch.Tensor, sources: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return `pose`, and the masks' logits (N, S, 2, h, w), finest first; none without."""
        vectors, masks = self.pose_net.vectors_and_masks(target, sources)
        return euler_pose(vectors), masks


def refuse_pretrained(pretrained: bool) -> None:
    """Refuse ImageNet weights for layers that have none.

    Raises:
        ValueError: `pretrained` is set.
    """
    if pretrained:
        raise ValueError(
            'pretrained: nobody trained the layers of DispNet on ImageNet; set pretrained: false'
        )
