"""VGG-16, without and with batch norm, as a five-level pyramid.

Source: Simonyan & Zisserman (2015), arXiv:1409.1556, table 1, configuration D. Parameter names are
torchvision's `features.N`.
"""

from __future__ import annotations

from depth_node.training.networks.encoders.base import Encoder, init_convolutions
import torch
from torch import nn

# Convolutions and their channels, per level; a 2x2 max pool ends each.
LEVELS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


class VGG16(Encoder):
    """Features after each of the five pools."""

    channels = tuple(width for _, width in LEVELS)
    classifier_keys = ('classifier.',)

    def __init__(self, *, batch_norm: bool = False) -> None:
        """Build the encoder, with random weights.

        Args:
            batch_norm: a norm after each convolution; the numbers in the names differ then.
        """
        super().__init__()
        self.title = 'VGG-16 with batch norm' if batch_norm else 'VGG-16'
        self.source = "torchvision's vgg16_bn" if batch_norm else "torchvision's vgg16"
        parts: list[nn.Module] = []
        c_in = 3
        for repeats, width in LEVELS:
            for _ in range(repeats):
                parts.append(nn.Conv2d(c_in, width, 3, padding=1))
                if batch_norm:
                    parts.append(nn.BatchNorm2d(width))
                parts.append(nn.ReLU(inplace=True))
                c_in = width
            parts.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*parts)
        init_convolutions(self)

    def forward(self, batch: torch.Tensor) -> list[torch.Tensor]:
        """Compute the five maps, finest first."""
        pyramid = []
        features = batch
        for part in self.features:
            features = part(features)
            if isinstance(part, nn.MaxPool2d):
                pyramid.append(features)
        return pyramid
