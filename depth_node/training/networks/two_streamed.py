"""Li, Klein & Yao 2017 (arXiv:1607.00730): one stream for depth, one for its gradients.

Two parallel networks of one make, each a VGG-16, full layers that see the whole picture, a block
that fuses skip maps of several scales, and a block that refines at half the picture's size; then
a block that fuses both maps, trained with the rest (`fusion: end_to_end`), or the optimisation
`depth_node.training.fusion` afterwards (`fusion: none`).

Unverified (depth-systems: the paper's text was not reachable): the widths of the full layers,
which skip maps, and the kernels. Sizes are the reported 232x310 to 111x150, which an 11x11 kernel
of stride 2 without padding gives: ours at the entrance of the refinement. Depth and gradients are
both of log depth, so that depth is positive and the two maps fit together.
"""

from __future__ import annotations

from depth_node.training.networks.base import DepthNetwork, checked_range, checked_size
from depth_node.training.networks.encoders import build_encoder
from depth_node.training.networks.log_depth import (
    checked_choice,
    clamped_depth,
    middle_log_depth,
    open_depth,
    resized,
    start_head,
    start_weights,
)
import torch
from torch import nn
from torch.nn import functional

FUSIONS = ('end_to_end', 'none')
WIDTH = 64
EDGE_KERNEL_PX = 11
SMALLEST_PX = 32  # VGG's five pools
SKIP_LEVELS = (1, 2, 3)  # of the encoder's maps: /4, /8, /16


class _Stream(nn.Module):
    """From a VGG-16 pyramid and the picture to a map at half size."""

    def __init__(
        self,
        encoder_channels: tuple[int, ...],
        size_hw: tuple[int, int],
        units: int,
        dropout: float,
        c_out: int,
        start: float,
    ) -> None:
        super().__init__()
        height, width = size_hw
        self.context_hw = (height // 16, width // 16)
        self.full1 = nn.Linear(encoder_channels[-1] * (height // 32) * (width // 32), units)
        self.full2 = nn.Linear(units, WIDTH * self.context_hw[0] * self.context_hw[1])
        self.dropout = dropout
        self.skips = nn.ModuleList(
            nn.Conv2d(encoder_channels[level], WIDTH, 3, padding=1) for level in SKIP_LEVELS
        )
        self.fuse = nn.Conv2d((len(SKIP_LEVELS) + 1) * WIDTH, WIDTH, 5, padding=2)
        self.edges = nn.Conv2d(3, WIDTH, EDGE_KERNEL_PX, stride=2)
        self.refine1 = nn.Conv2d(2 * WIDTH, WIDTH, 5, padding=2)
        self.refine2 = nn.Conv2d(WIDTH, WIDTH, 5, padding=2)
        self.head = nn.Conv2d(WIDTH, c_out, 5, padding=2)
        start_weights(self)
        start_head(self.head, start)

    def forward(self, batch: torch.Tensor, pyramid: list[torch.Tensor]) -> torch.Tensor:
        hidden = self.full1(pyramid[-1].flatten(1)).relu()
        hidden = functional.dropout(hidden, self.dropout, self.training)
        context = self.full2(hidden).relu().unflatten(1, (WIDTH, *self.context_hw))
        quarter_hw = pyramid[SKIP_LEVELS[0]].shape[-2:]
        levels = [context] + [
            skip(pyramid[level]).relu()
            for skip, level in zip(self.skips, SKIP_LEVELS, strict=True)
        ]
        fused = self.fuse(torch.cat([resized(maps, quarter_hw) for maps in levels], 1)).relu()
        edges = self.edges(batch).relu()
        maps = torch.cat([edges, resized(fused, edges.shape[-2:])], 1)
        return self.head(self.refine2(self.refine1(maps).relu()).relu()).float()


class _FusionBlock(nn.Module):
    """What the gradients change in the depth, by three convolutions over both maps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, 5, padding=2)
        self.conv2 = nn.Conv2d(WIDTH, WIDTH, 5, padding=2)
        self.conv3 = nn.Conv2d(WIDTH, 1, 5, padding=2)
        start_weights(self)
        start_head(self.conv3, 0.0)

    def forward(self, depth: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        maps = self.conv1(torch.cat([depth, gradients], 1)).relu()
        return depth + self.conv3(self.conv2(maps).relu()).float()


class TwoStreamed(DepthNetwork):
    """Depth stream, gradient stream, fusion; `raw` is log depth, 111x150 for 232x310."""

    def __init__(
        self,
        *,
        size_hw: tuple[int, int] = (232, 310),
        fusion: str = 'end_to_end',
        units: int = 1024,
        dropout: float = 0.5,
        depth_range_m: tuple[float, float] = (0.5, 10.0),
        pretrained: bool = False,
        encoder_weights: str | None = None,
    ) -> None:
        """Build the network.

        Args:
            size_hw: training and export size, at least 32 a side.
            fusion: 'end_to_end' predicts by the fusion block; 'none' by the depth stream alone,
                for fusion by optimisation.
            units: of the full layers between the two ends of a stream.
            dropout: share of these that are dropped in training.
            depth_range_m: the output is clamped to this.
            pretrained: must be False without `encoder_weights`.
            encoder_weights: torchvision's vgg16 weights, for both streams.

        Raises:
            ValueError: an impossible option, or weights that do not fit.
        """
        super().__init__()
        self.size_hw = checked_size(size_hw, 1, least=SMALLEST_PX, paper='232x310')
        self.fusion = checked_choice('fusion', fusion, FUSIONS)
        self.depth_range_m = checked_range(depth_range_m)
        height, width = self.size_hw
        self.output_hw = (
            (height - EDGE_KERNEL_PX) // 2 + 1,
            (width - EDGE_KERNEL_PX) // 2 + 1,
        )
        # Of the depth stream and of the gradient stream.
        self.encoder = nn.ModuleList(
            build_encoder('vgg16', pretrained=pretrained, weights=encoder_weights)
            for _ in range(2)
        )
        first = self.encoder[0]
        self.mean, self.std = first.mean, first.std
        start = middle_log_depth(self.depth_range_m)
        self.depth_stream = _Stream(first.channels, self.size_hw, units, dropout, 1, start)
        self.gradient_stream = _Stream(first.channels, self.size_hw, units, dropout, 2, 0.0)
        if fusion == 'end_to_end':
            self.block = _FusionBlock()

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """See `DepthNetwork.forward`; without fusion the gradients are not computed."""
        raw = self.depth_stream(batch, self.encoder[0](batch))
        if self.fusion == 'end_to_end':
            raw = self.block(raw, self.gradient_stream(batch, self.encoder[1](batch)))
        return clamped_depth(raw, self.depth_range_m)

    def outputs(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Predict by both streams.

        Returns:
            `raw`, log depth after fusion; `prediction`, its depth without the clamp;
            `depth_stream` (N, 1, h, w), log depth before fusion; `gradients` (N, 2, h, w), what
            log depth grows by to the right and down, per pixel of the map.
        """
        depth = self.depth_stream(batch, self.encoder[0](batch))
        gradients = self.gradient_stream(batch, self.encoder[1](batch))
        raw = self.block(depth, gradients) if self.fusion == 'end_to_end' else depth
        return {
            'prediction': open_depth(raw),
            'raw': raw,
            'depth_stream': depth,
            'gradients': gradients,
        }

    def encode(self, depth: torch.Tensor) -> torch.Tensor:
        """See `DepthNetwork.encode`."""
        return depth.log()
