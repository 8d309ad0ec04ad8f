"""DenseNet-121 and 169 as five-level pyramids.

Source: Huang et al. (2017), arXiv:1608.06993, table 1. Parameter names are torchvision's; files of
its first release (`norm.1` for `norm1`) load too.
"""

from __future__ import annotations

from collections import OrderedDict
import re

from depth_node.training.networks.encoders.base import Encoder, init_convolutions
import torch
from torch import nn

# Layers per block.
BLOCKS = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32)}
GROWTH = 32
BOTTLENECK = 4  # the 1x1 of a layer has this many times GROWTH channels
STEM_CHANNELS = 64

_OLD_KEY = re.compile(r'(denselayer\d+\.(?:norm|conv))\.([12]\.)')


class _Layer(nn.Module):
    """Norm, ReLU, 1x1, norm, ReLU, 3x3: GROWTH new channels."""

    def __init__(self, c_in: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, BOTTLENECK * GROWTH, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(BOTTLENECK * GROWTH)
        self.conv2 = nn.Conv2d(BOTTLENECK * GROWTH, GROWTH, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden = self.conv1(self.relu(self.norm1(features)))
        return self.conv2(self.relu(self.norm2(hidden)))


class _Block(nn.ModuleDict):
    """Layers, each of which sees the results of all before it."""

    def __init__(self, c_in: int, layers: int) -> None:
        super().__init__({f'denselayer{i + 1}': _Layer(c_in + i * GROWTH) for i in range(layers)})

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        for layer in self.values():
            features = torch.cat((features, layer(features)), 1)
        return features


def _transition(c_in: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(c_in),
            relu=nn.ReLU(inplace=True),
            conv=nn.Conv2d(c_in, c_in // 2, 1, bias=False),
            pool=nn.AvgPool2d(2, 2),
        )
    )


class DenseNet(Encoder):
    """Features before each pool or block, as DenseDepth and BTS take them.

    After the first ReLU (/2), after the max pool (/4), after the first and second transition (/8,
    /16), and after the last block's norm and ReLU (/32).
    """

    classifier_keys = ('classifier.',)

    def __init__(self, *, depth: int = 169) -> None:
        """Build the encoder, with random weights.

        Args:
            depth: 121 or 169.

        Raises:
            ValueError: an unknown depth.
        """
        super().__init__()
        if depth not in BLOCKS:
            raise ValueError(f'DenseNet depth {depth!r}: expected one of {sorted(BLOCKS)}')
        self.title, self.source = f'DenseNet-{depth}', f"torchvision's densenet{depth}"
        parts: OrderedDict[str, nn.Module] = OrderedDict(
            conv0=nn.Conv2d(3, STEM_CHANNELS, 7, 2, 3, bias=False),
            norm0=nn.BatchNorm2d(STEM_CHANNELS),
            relu0=nn.ReLU(inplace=True),
            pool0=nn.MaxPool2d(3, 2, 1),
        )
        channels = STEM_CHANNELS
        levels = [STEM_CHANNELS, STEM_CHANNELS]
        for index, layers in enumerate(BLOCKS[depth], start=1):
            parts[f'denseblock{index}'] = _Block(channels, layers)
            channels += layers * GROWTH
            if index < len(BLOCKS[depth]):
                parts[f'transition{index}'] = _transition(channels)
                channels //= 2
                levels.append(channels)
        parts['norm5'] = nn.BatchNorm2d(channels)
        self.features = nn.Sequential(parts)
        self.channels = (*levels[:4], channels)
        init_convolutions(self)

    def current_key(self, key: str) -> str:
        """Turn `norm.1` into `norm1`."""
        return _OLD_KEY.sub(r'\1\2', key)

    def forward(self, batch: torch.Tensor) -> list[torch.Tensor]:
        """Compute the five maps, finest first."""
        pyramid = []
        features = batch
        for name, part in self.features.named_children():
            features = part(features)
            if name in ('relu0', 'pool0', 'transition1', 'transition2'):
                pyramid.append(features)
        return [*pyramid, torch.relu(features)]
