"""GeoNet (Yin & Shi 2018, arXiv:1803.02276): depth and motion, then what moves by itself.

Two stages of training: `stage: rigid` trains the depth and pose networks; `stage: flow` freezes
them and trains a network that adds to the flow of the camera's motion what moving objects and
mistakes need. Both stages have the same parameters, so that the second starts from the first
one's checkpoint. The depth that is exported is the first stage's.

The release pools down to a 64th of the picture in its own variant of ResNet-50; here it is
torchvision's, down to a 32nd, so that ImageNet weights fit. Decoder widths follow the Monodepth
decoder that the release is built on (recall, not read: depth-systems marks no table).
"""

from __future__ import annotations

from depth_node.training.networks.base import checked_size
from depth_node.training.networks.encoders import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Encoder,
    build_encoder,
)
from depth_node.training.networks.self_supervised import SCALES, build_wide_encoder
from depth_node.training.networks.sfmlearner import (
    INV_DEPTH_OFFSET,
    DispAndPose,
    DispNet,
    PoseNet,
    conv,
    start_weights,
)
import torch
from torch import nn
from torch.nn import functional

STAGES = ('rigid', 'flow')
ENCODERS = ('resnet50', 'vgg')
WIDTHS = (256, 128, 64, 32, 16)  # of the decoder, from a 16th of the picture to all of it
RESNET_SCALE, VGG_SCALE = 5.0, 10.0  # largest inverse depth
FLOW_SCALE = 0.1  # of the picture's sides
START_STD = 1e-3  # of the weights of the residual flow's heads
FLOW_INPUTS = 12  # target, source, source warped by depth and motion, that flow, its error


class _Pyramid(nn.Module):
    """Encoder features to maps of a few channels at SCALES sizes."""

    def __init__(self, channels: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.up, self.merge, self.heads = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        c_in = channels[-1]
        skips = (*channels[-2::-1], 0)
        for level, (c_out, skip) in enumerate(zip(WIDTHS, skips, strict=True)):
            coarser = outputs if level > len(WIDTHS) - SCALES else 0
            self.up.append(conv(c_in, c_out, 3, batch_norm=True))
            self.merge.append(conv(c_out + skip + coarser, c_out, 3, batch_norm=True))
            if level >= len(WIDTHS) - SCALES:
                self.heads.append(nn.Conv2d(c_out, outputs, 3, padding=1))
            c_in = c_out
        start_weights(self)

    def forward(self, features: list[torch.Tensor], *, sigmoid: bool) -> list[torch.Tensor]:
        """Return the heads' maps, through a sigmoid or as they are, finest first."""
        skips = list(features)
        hidden = skips.pop()
        maps: list[torch.Tensor] = []
        first_head = len(WIDTHS) - SCALES
        for level, (up, merge) in enumerate(zip(self.up, self.merge, strict=True)):
            height, width = hidden.shape[-2] * 2, hidden.shape[-1] * 2
            parts = [up(functional.interpolate(hidden, size=(height, width), mode='nearest'))]
            if skips:
                parts.append(skips.pop())
            if maps:
                parts.append(
                    functional.interpolate(
                        maps[0], size=(height, width), mode='bilinear', align_corners=False
                    )
                )
            hidden = merge(torch.cat(parts, 1))
            if level >= first_head:
                found = self.heads[level - first_head](hidden).float()
                maps.insert(0, found.sigmoid() if sigmoid else found)
        return maps


class _ResNetDisp(nn.Module):
    """ResNet-50 and decoder to inverse depth."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = _Pyramid(encoder.channels, 1)

    def forward(self, batch: torch.Tensor) -> list[torch.Tensor]:
        maps = self.decoder(self.encoder(batch), sigmoid=True)
        return [RESNET_SCALE * found + INV_DEPTH_OFFSET for found in maps]


class ResFlowNet(nn.Module):
    """What to add to the flow of the camera's motion."""

    def __init__(self, *, pretrained: bool = False, weights: str | None = None) -> None:
        """Build the layers; `pretrained` and `weights` as in `build_encoder`."""
        super().__init__()
        self.encoder = build_wide_encoder(
            'resnet50', FLOW_INPUTS, pretrained=pretrained, weights=weights
        )
        self.decoder = _Pyramid(self.encoder.channels, 2)
        # Begins as the flow of the camera's motion: a random one of many pixels is consistent
        # nowhere, and where nothing is consistent nothing is learned.
        for head in self.decoder.heads:
            nn.init.normal_(head.weight, std=START_STD)

    def forward(self, batch: torch.Tensor) -> list[torch.Tensor]:
        """Return flow (N, 2, h, w) at SCALES sizes, in pixels of each, finest first."""
        flows = []
        for found in self.decoder(self.encoder(batch), sigmoid=False):
            height, width = found.shape[-2:]
            sides = found.new_tensor([width, height]).view(1, 2, 1, 1)
            flows.append(FLOW_SCALE * sides * found)
        return flows


class GeoNet(DispAndPose):
    """Depth network, pose network with batch norm, and residual flow network."""

    def __init__(
        self,
        *,
        size_hw: tuple[int, int] = (128, 416),
        stage: str = 'rigid',
        encoder: str = 'resnet50',
        sources: int = 2,
        pretrained: bool = False,
        encoder_weights: str | None = None,
    ) -> None:
        """Build the networks.

        Args:
            size_hw: training and export size; both sides divisible by 32 (vgg: 8).
            stage: 'rigid' trains depth and pose; 'flow' the residual flow, with both frozen.
            encoder: 'resnet50', or 'vgg', the layers of SfMLearner's DispNet with batch norm.
            sources: views of each frame.
            pretrained: must be False without `encoder_weights`.
            encoder_weights: ImageNet weights of torchvision's ResNet-50, for the depth and the
                flow network.

        Raises:
            ValueError: an impossible size, stage or encoder, or weights that do not fit.
        """
        super().__init__()
        for name, value, known in (('stage', stage, STAGES), ('encoder', encoder, ENCODERS)):
            if value not in known:
                raise ValueError(f'{name} {value!r}: expected one of {", ".join(known)}')
        if sources < 1:
            raise ValueError(f'sources {sources}: expected at least 1')
        # The flow network is a ResNet in both.
        self.size_hw = self.output_hw = checked_size(size_hw, 32, least=64, paper='128x416')
        self.stage = stage
        if encoder == 'vgg':
            if encoder_weights is not None:
                raise ValueError('encoder_weights: there are none for encoder vgg')
            self.disp_net: nn.Module = DispNet(inv_depth_scale=VGG_SCALE, batch_norm=True)
            largest = VGG_SCALE + INV_DEPTH_OFFSET
        else:
            self.disp_net = _ResNetDisp(
                build_encoder(encoder, pretrained=pretrained, weights=encoder_weights)
            )
            largest = RESNET_SCALE + INV_DEPTH_OFFSET
        self.depth_range_m = (1 / largest, 1 / INV_DEPTH_OFFSET)
        self.mean, self.std = (127.5, 127.5, 127.5), (127.5, 127.5, 127.5)
        if encoder_weights is not None:
            self.mean, self.std = IMAGENET_MEAN, IMAGENET_STD
        self.pose_net = PoseNet(sources=sources, batch_norm=True)
        self.flow_net = ResFlowNet(pretrained=pretrained, weights=encoder_weights)
        frozen = (self.flow_net,) if stage == 'rigid' else (self.disp_net, self.pose_net)
        self.frozen = frozen
        for part in frozen:
            part.requires_grad_(False)

    @property
    def encoder(self) -> nn.Module | None:
        """The depth network's, where it is one of its own."""
        part = getattr(self.disp_net, 'encoder', None)
        return part if isinstance(part, nn.Module) else None

    def train(self, mode: bool = True) -> GeoNet:
        """Set the mode; frozen networks stay in evaluation mode (their batch statistics too)."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def residual_flows(
        self,
        target: torch.Tensor,
        source: torch.Tensor,
        warped: torch.Tensor,
        rigid_flow: torch.Tensor,
    ) -> list[torch.Tensor]:
        """Predict what to add to the flow of the camera's motion.

        Args:
            target: (N, 3, H, W), normalised.
            source: (N, 3, H, W).
            warped: (N, 3, H, W), the source by `rigid_flow`.
            rigid_flow: (N, 2, H, W), target to source [px].

        Returns:
            (N, 2, h, w) at four sizes, in pixels of each, finest first.
        """
        error = (warped - target).norm(dim=1, keepdim=True)
        return self.flow_net(torch.cat([target, source, warped, rigid_flow, error], 1))
