"""ResNet-18, 34 and 50 as five-level pyramids.

Source: He et al. (2016), arXiv:1512.03385, table 1. Parameter names are torchvision's, so its
files load. torchvision strides in the 3x3 of a bottleneck ("v1.5") and pads the pool on all sides;
the paper's own Caffe networks, on which FCRN is built, stride in the first 1x1 and pool without
padding, rounding up. Weights of one kind load into the other without complaint and give other
features: the options must be those of the file's origin.
"""

from __future__ import annotations

from depth_node.training.networks.encoders.base import Encoder, init_convolutions
import torch
from torch import nn

# Blocks per stage.
STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
WIDTHS = (64, 128, 256, 512)


class _Basic(nn.Module):
    """Two 3x3; the block of ResNet-18 and 34."""

    expansion = 1

    def __init__(self, c_in: int, width: int, stride: int, stride_in_1x1: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(c_in, width, stride)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        kept = batch if self.downsample is None else self.downsample(batch)
        hidden = self.relu(self.bn1(self.conv1(batch)))
        return self.relu(self.bn2(self.conv2(hidden)) + kept)


class _Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up; the block of ResNet-50."""

    expansion = 4

    def __init__(self, c_in: int, width: int, stride: int, stride_in_1x1: bool) -> None:
        super().__init__()
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(c_in, width, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, second, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(c_in, width * self.expansion, stride)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        kept = batch if self.downsample is None else self.downsample(batch)
        hidden = self.relu(self.bn1(self.conv1(batch)))
        hidden = self.relu(self.bn2(self.conv2(hidden)))
        return self.relu(self.bn3(self.conv3(hidden)) + kept)


def _shortcut(c_in: int, c_out: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and c_in == c_out:
        return None
    return nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))


class ResNet(Encoder):
    """Features after the first convolution's ReLU and after each of the four stages."""

    classifier_keys = ('fc.',)

    def __init__(
        self, *, depth: int = 50, stride_in_1x1: bool = False, ceil_pool: bool = False
    ) -> None:
        """Build the encoder, with random weights.

        Args:
            depth: 18, 34 or 50.
            stride_in_1x1: a bottleneck strides in its first 1x1 (the paper, Caffe); else in its
                3x3 (torchvision).
            ceil_pool: the pool has no padding and rounds its size up (Caffe); else a border of
                one (torchvision).

        Raises:
            ValueError: an unknown depth, or `stride_in_1x1` where blocks have no 1x1.
        """
        super().__init__()
        if depth not in STAGES:
            raise ValueError(f'ResNet depth {depth!r}: expected one of {sorted(STAGES)}')
        block = _Bottleneck if depth >= 50 else _Basic
        if stride_in_1x1 and block is _Basic:
            raise ValueError(
                f'stride_in_1x1: ResNet-{depth} has no 1x1 convolution to stride in; use resnet50'
            )
        self.title, self.source = f'ResNet-{depth}', f"torchvision's resnet{depth}"
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=0 if ceil_pool else 1, ceil_mode=ceil_pool)
        c_in = 64
        for index, (width, repeats) in enumerate(zip(WIDTHS, STAGES[depth], strict=True)):
            blocks = []
            for position in range(repeats):
                stride = 2 if index and not position else 1
                blocks.append(block(c_in, width, stride, stride_in_1x1))
                c_in = width * block.expansion
            setattr(self, f'layer{index + 1}', nn.Sequential(*blocks))
        self.channels = (64, *(width * block.expansion for width in WIDTHS))
        init_convolutions(self)

    def forward(self, batch: torch.Tensor) -> list[torch.Tensor]:
        """Compute the five maps, finest first."""
        pyramid = [self.relu(self.bn1(self.conv1(batch)))]
        features = self.maxpool(pyramid[0])
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = stage(features)
            pyramid.append(features)
        return pyramid
