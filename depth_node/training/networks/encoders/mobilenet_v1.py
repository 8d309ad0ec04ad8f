"""MobileNet v1 as a five-level pyramid.

Source: Howard et al. (2017), arXiv:1704.04861, table 1, width 1.0. Parameter names (`model.N.M`)
and the ReLU6 are those of the ImageNet network that FastDepth starts from (arXiv:1903.03273).
"""

from __future__ import annotations

from depth_node.training.networks.encoders.base import Encoder, init_convolutions
import torch
from torch import nn

STEM_CHANNELS = 32
# Channels out and stride of the separable blocks.
BLOCKS = (
    (64, 1),
    (128, 2), (128, 1),
    (256, 2), (256, 1),
    (512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1),
    (1024, 2), (1024, 1),
)  # fmt: skip


def _separable(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_in, 3, stride, 1, groups=c_in, bias=False),
        nn.BatchNorm2d(c_in),
        nn.ReLU6(inplace=True),
        nn.Conv2d(c_in, c_out, 1, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU6(inplace=True),
    )


class MobileNetV1(Encoder):
    """Features after the last block of each size."""

    channels = (64, 128, 256, 512, 1024)
    title = 'MobileNet v1'
    source = "FastDepth's ImageNet MobileNet"
    classifier_keys = ('fc.',)

    def __init__(self) -> None:
        """Build the encoder, with random weights."""
        super().__init__()
        parts = [
            nn.Sequential(
                nn.Conv2d(3, STEM_CHANNELS, 3, 2, 1, bias=False),
                nn.BatchNorm2d(STEM_CHANNELS),
                nn.ReLU6(inplace=True),
            )
        ]
        c_in = STEM_CHANNELS
        self.level_ends: list[int] = []
        for index, (c_out, stride) in enumerate(BLOCKS, start=1):
            if stride == 2:
                self.level_ends.append(index - 1)
            parts.append(_separable(c_in, c_out, stride))
            c_in = c_out
        self.level_ends.append(len(BLOCKS))
        self.model = nn.Sequential(*parts)
        init_convolutions(self)

    def forward(self, batch: torch.Tensor) -> list[torch.Tensor]:
        """Compute the five maps, finest first."""
        pyramid = []
        features = batch
        for index, part in enumerate(self.model):
            features = part(features)
            if index in self.level_ends:
                pyramid.append(features)
        return pyramid
