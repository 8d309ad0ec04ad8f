"""DenseDepth: DenseNet-169 and a plain bilinear decoder (system S5).

Source: Alhashim & Wonka (2018), arXiv:1812.11941, section 3.1 and table 1 of the appendix. The
network predicts far / depth, 1 at `far` (10 m) and 100 at a hundredth of it; losses are on that.
The truth is clamped before it is inverted: a hole of depth 0 would be infinite.

Upsampling: `tf.image.resize` of TensorFlow 2, which the authors' Keras code calls, aligns pixel
edges (half-pixel centres), as `align_corners=False` does here; their PyTorch port aligns corners,
and forgets the activation after each first convolution.
"""

from __future__ import annotations

from depth_node.training.networks.base import DepthNetwork, checked_range, checked_size
from depth_node.training.networks.encoders import build_encoder
import torch
from torch import nn
from torch.nn import functional

ENCODERS = ('densenet169', 'densenet121', 'resnet50')
LEAK = 0.2
START_DEPTH_M = 2.0  # where an untrained head starts; the authors' starts beyond the range, at 0


class _Up(nn.Module):
    """Twice the size, beside the encoder's features, two convolutions."""

    def __init__(self, c_coarse: int, c_skip: int, c_out: int) -> None:
        super().__init__()
        self.conv_a = nn.Conv2d(c_coarse + c_skip, c_out, 3, padding=1)
        self.conv_b = nn.Conv2d(c_out, c_out, 3, padding=1)

    def forward(self, coarse: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        size = (skip.shape[-2], skip.shape[-1])
        coarse = functional.interpolate(coarse, size=size, mode='bilinear', align_corners=False)
        features = torch.cat((coarse, skip), 1)
        for conv in (self.conv_a, self.conv_b):
            features = functional.leaky_relu(conv(features), LEAK)
        return features


class DenseDepth(DepthNetwork):
    """Encoder, four upsampling blocks with skips, one map of far / depth at half the size."""

    def __init__(
        self,
        *,
        size_hw: tuple[int, int] = (480, 640),
        encoder: str = 'densenet169',
        half_width: bool = False,
        imagenet_input: bool = False,
        depth_range_m: tuple[float, float] = (0.1, 10.0),
        pretrained: bool = False,
        encoder_weights: str | None = None,
    ) -> None:
        """Build the network.

        Args:
            size_hw: training and export size, both divisible by 32.
            encoder: one of ENCODERS.
            half_width: half the decoder's channels, the default of the authors' code; they say
                that the full width is not worth its cost.
            imagenet_input: normalise by ImageNet's mean and deviation; else RGB in 0..1, as the
                authors do even with ImageNet weights.
            depth_range_m: truth and output are clamped to this; the network predicts its far end
                divided by depth.
            pretrained: not to be had without a file: give `encoder_weights`.
            encoder_weights: a weights file of the encoder.

        Raises:
            ValueError: an option has an impossible value, or the weights file is of another
                encoder.
            FileNotFoundError: no such weights file.
        """
        super().__init__()
        if encoder not in ENCODERS:
            raise ValueError(
                f'encoder {encoder!r} of network densedepth: expected one of {ENCODERS}'
            )
        self.size_hw = checked_size(size_hw, 32)
        self.output_hw = (self.size_hw[0] // 2, self.size_hw[1] // 2)
        self.depth_range_m = checked_range(depth_range_m)
        self.encoder = build_encoder(encoder, pretrained=pretrained, weights=encoder_weights)
        if imagenet_input:
            self.mean, self.std = self.encoder.mean, self.encoder.std
        else:
            self.mean, self.std = (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)
        *skips, deepest = self.encoder.channels
        width = deepest // 2 if half_width else deepest
        self.neck = nn.Conv2d(deepest, width, 1)
        ups = []
        for level, c_skip in enumerate(reversed(skips)):
            ups.append(_Up(width >> level, c_skip, width >> (level + 1)))
        self.ups = nn.ModuleList(ups)
        self.head = nn.Conv2d(width >> len(skips), 1, 3, padding=1)
        for part in (self.neck, self.ups, self.head):
            for layer in part.modules():
                if isinstance(layer, nn.Conv2d):  # Keras' default
                    nn.init.xavier_uniform_(layer.weight)
                    nn.init.zeros_(layer.bias)
        nn.init.constant_(self.head.bias, self.depth_range_m[1] / START_DEPTH_M)

    def _raw(self, batch: torch.Tensor) -> torch.Tensor:
        *skips, deepest = self.encoder(batch)
        features = self.neck(deepest)
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            features = up(features, skip)
        return self.head(features).float()

    def _depth(self, raw: torch.Tensor) -> torch.Tensor:
        near, far = self.depth_range_m
        return (far / raw.clamp(min=1.0)).clamp(near, far)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """See `DepthNetwork.forward`."""
        return self._depth(self._raw(batch))

    def outputs(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `DepthNetwork.outputs`; `raw` is far / depth, not clamped."""
        raw = self._raw(batch)
        return {'prediction': self._depth(raw), 'raw': raw}

    def encode(self, depth: torch.Tensor) -> torch.Tensor:
        """Return far / depth, with depth clamped to the network's range: 1 to far / near."""
        near, far = self.depth_range_m
        return far / depth.clamp(near, far)
