"""The bundled network: EfficientNet-Lite (0 unless told otherwise) and a light decoder.

Predicts log canonical depth at half resolution with four values a cell, which a pixel shuffle
lays out at full resolution (Shi et al. 2016, arXiv:1609.05158): object borders keep the pixel
grid of the image for almost no time. Canonical depth (Yin et al. 2023, Metric3D,
arXiv:2307.10984, section 3.1): metric depth = canonical depth * f / f_canonical.

With `blocks` the decoder's coarse levels think longer: residual blocks that begin as the identity,
so that a trained network without them can be trained on with them.

With `confidence` a second head tells how wrong depth is at each pixel, trained afterwards on the
finished network.
"""

from __future__ import annotations

from collections.abc import Sequence
import math

from depth_node.training.geometry import without_autocast
from depth_node.training.networks.base import DepthNetwork, checked_range, checked_size
from depth_node.training.networks.confidence import ConfidenceHead
from depth_node.training.networks.encoders import build_encoder
import torch
from torch import nn
from torch.nn import functional

# Per level from /32 to /2. Cost falls by four a level, so the fine levels are narrow.
DECODER_CHANNELS = (128, 96, 64, 48, 32)
ENCODERS = ('efficientnet_lite0', 'efficientnet_lite1', 'efficientnet_lite2')
START_DEPTH_M = 2.0  # what an untrained head returns: the middle of an indoor scene, in log


def _conv_block(c_in: int, c_out: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(inplace=True),
    )


class _Merge(nn.Module):
    """One level up: the coarser features, upsampled, plus this level's lateral, filtered."""

    def __init__(self, c_coarse: int, c_skip: int, c_out: int) -> None:
        super().__init__()
        self.reduce = _conv_block(c_coarse, c_out, 1)  # before upsampling: a quarter of the work
        self.lateral = _conv_block(c_skip, c_out, 1)  # raw pyramid std is 3 to 8: BN is needed
        self.mix = _conv_block(c_out, c_out, 3)

    def forward(self, coarse: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        coarse = functional.interpolate(
            self.reduce(coarse), scale_factor=2.0, mode='bilinear', align_corners=False
        )
        return self.mix(coarse + self.lateral(skip))


class _Block(nn.Module):
    """A residual block that sees far: ConvNeXt's (Liu et al. 2022, arXiv:2201.03545, figure 4).

    ReLU instead of GELU, for INT8. Without norms: its inputs have passed one, and the last layer
    starts at zero, so the block as the identity (Zhang et al. 2019, arXiv:1901.09321).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.look = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.widen = nn.Conv2d(channels, 4 * channels, 1)
        self.back = nn.Conv2d(4 * channels, channels, 1)
        nn.init.kaiming_normal_(self.widen.weight, nonlinearity='relu')
        nn.init.zeros_(self.back.weight)
        for layer in (self.look, self.widen, self.back):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.back(self.widen(self.look(x)).relu())


class SmallDepthNet(DepthNetwork):
    """EfficientNet-Lite pyramid, five-level decoder, pixel-shuffle head."""

    output_kind = 'canonical_depth'
    optional_modules = ('confidence_head',)
    growable_modules = ('blocks',)

    def __init__(
        self,
        *,
        size_hw: tuple[int, int] = (192, 256),
        encoder: str = 'efficientnet_lite0',
        pretrained: bool = True,
        encoder_weights: str | None = None,
        canonical_focal_px: float = 256.0,
        depth_range_m: tuple[float, float] = (0.1, 40.0),
        blocks: Sequence[int] = (),
        confidence: bool = False,
    ) -> None:
        """Build the network.

        Args:
            size_hw: training and export size, both divisible by 32.
            encoder: one of ENCODERS; 1 and 2 are slower and know more.
            pretrained: start the encoder from ImageNet weights.
            encoder_weights: a weights file for the encoder, instead of the package's.
            canonical_focal_px: focal length at `size_hw` for which the output is metric.
            depth_range_m: the output is clamped to this.
            blocks: how many residual blocks follow each level of the decoder, from /32 on; the
                levels that are not named have none.
            confidence: add the confidence head. Depth is then frozen, weights and norms: the head
                learns the errors of the network that is used, which must not move meanwhile.

        Raises:
            ValueError: a side is not divisible by 32, the range is empty, an unknown encoder,
                a weights file of another, or blocks for more levels than there are.
            FileNotFoundError: the weights are not there.
        """
        super().__init__()
        if encoder not in ENCODERS:
            raise ValueError(f'encoder {encoder!r} of network small: expected one of {ENCODERS}')
        self.size_hw = checked_size(size_hw, 32)
        self.output_hw = self.size_hw
        self.canonical_focal_px = float(canonical_focal_px)
        self.depth_range_m = checked_range(depth_range_m)
        self.encoder = build_encoder(encoder, pretrained=pretrained, weights=encoder_weights)
        self.mean, self.std = self.encoder.mean, self.encoder.std
        levels = list(reversed(self.encoder.channels))
        widths = DECODER_CHANNELS
        self.neck = nn.Sequential(
            _conv_block(levels[0], widths[0], 1), _conv_block(widths[0], widths[0], 3)
        )
        # What kind of place it is (a table at 0.5 m, a room at 4 m) is a property of the picture.
        self.context = nn.Sequential(nn.Conv2d(widths[0], widths[0], 1), nn.ReLU(inplace=True))
        self.merges = nn.ModuleList(
            _Merge(widths[i], levels[i + 1], widths[i + 1]) for i in range(len(levels) - 1)
        )
        counts = (*blocks, *(0 for _ in widths[len(blocks):]))
        if len(counts) > len(widths) or any(count < 0 for count in counts):
            raise ValueError(
                f'blocks {tuple(blocks)} of network small: expected up to {len(widths)} counts, '
                'for the levels from /32 to /2'
            )
        self.blocks = nn.ModuleList(
            nn.Sequential(*(_Block(width) for _ in range(count)))
            for width, count in zip(widths, counts, strict=True)
        )
        self.head = nn.Conv2d(widths[-1], 4, 3, padding=1)
        # All four values of a cell start equal, else the shuffle begins as a checkerboard.
        nn.init.normal_(self.head.weight[:1], std=0.01)
        with torch.no_grad():
            self.head.weight[1:] = self.head.weight[:1]
        nn.init.constant_(self.head.bias, math.log(START_DEPTH_M))
        self.has_confidence = confidence
        if confidence:
            self.requires_grad_(False)
        self.confidence_head = ConfidenceHead(widths[1:]) if confidence else None
        self.train(self.training)  # Lightning keeps the modes that it finds

    def train(self, mode: bool = True) -> SmallDepthNet:
        """Switch modes; depth beside a confidence head stays in evaluation mode."""
        super().train(mode)
        if self.confidence_head is not None:
            for name, module in self.named_children():
                if name != 'confidence_head':
                    module.eval()
        return self

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """See `DepthNetwork.parameter_groups`; `blocks` are a group of their own."""
        blocks = [parameter for parameter in self.blocks.parameters() if parameter.requires_grad]
        groups = super().parameter_groups()
        if blocks:
            known = {id(parameter) for parameter in blocks}
            groups['decoder'] = [p for p in groups['decoder'] if id(p) not in known]
            groups['blocks'] = blocks
        return groups

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """See `DepthNetwork.forward`."""
        return self._depth(self._maps(batch)[-1])

    def predict(self, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See `DepthNetwork.predict`."""
        maps = self._maps(batch)
        depth = self._depth(maps[-1])
        if self.confidence_head is None:
            return (depth,)
        return depth, self.confidence_head.confidence(self.confidence_head(maps))

    def outputs(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `DepthNetwork.outputs`; with `confidence` also `log_spread`, (N, 1, H/2, W/2)."""
        if self.confidence_head is None:
            return super().outputs(batch)
        with torch.no_grad():
            maps = self._maps(batch)
            depth = self._depth(maps[-1])
        return {'prediction': depth, 'log_spread': self.confidence_head(maps)}

    def _maps(self, batch: torch.Tensor) -> list[torch.Tensor]:
        """Compute the decoder's maps, the last of half the picture's size."""
        pyramid = self.encoder(batch)
        features: torch.Tensor = self.neck(pyramid[-1])
        height, width = features.shape[-2:]
        features = features + self.context(functional.avg_pool2d(features, (height, width)))
        features = self.blocks[0](features)
        maps = []
        for merge, skip, blocks in zip(
            self.merges, reversed(pyramid[:-1]), self.blocks[1:], strict=True
        ):
            features = blocks(merge(features, skip))
            maps.append(features)
        return maps

    @without_autocast  # in bfloat16 log depth has steps of 0.8 %, in which borders drown
    def _depth(self, features: torch.Tensor) -> torch.Tensor:
        log_depth = functional.pixel_shuffle(self.head(features.float()), 2)
        near, far = self.depth_range_m
        return log_depth.clamp(math.log(near), math.log(far)).exp()
