"""The U-Net of the DIODE paper of the seed documents, as it was and as it was meant.

The published system follows the depth-estimation example of Keras: a U-Net of 16 to 256
channels that predicts ln(depth) at the picture's size. What was found in it:

1. Ceiling. The head ends in tanh, so ln(depth) stays below 1 and no depth above e = 2.72 m can
   come out, whatever the training; with the targets' clip (next) all of 0 to 1.1 m is one value.
2. Floor. ln(depth) is clipped at 0.1 from below *after* the logarithm, which makes every target
   nearer than e^0.1 = 1.11 m that far away.
3. Lost masks. Unknown pixels are masked and then the target is resized and clipped, so that holes
   become small depths which are learnt like measured ones.
4. Idle shuffle. `on_epoch_end` shuffles an index that no batch is read through: each epoch sees
   the pictures in one order.
5. Losses. SSIM is told that values span 256, the picture's width, with k1 and k2 squared once more
   than meant: its constants have nothing to do with the range of log depth. And the `edge` term
   weighs the prediction's own roughness and never compares an edge with an edge.

`faithful: true` keeps 1 and 2 in the network, and config/train/diode_unet_paper.yaml keeps 5 in
the losses. Masks (3) and the order of pictures (4) belong to the data loader, where they are right
for every network: unknown pixels are never trained on. `faithful: false` has a linear head for
log depth, clamped only in `forward`, and its preset compares edges and scales SSIM to log depth.
"""

from __future__ import annotations

import math
import warnings

from depth_node.training.networks.base import DepthNetwork, checked_range, checked_size
from depth_node.training.networks.log_depth import (
    clamped_depth,
    middle_log_depth,
    open_depth,
    start_head,
)
import torch
from torch import nn
from torch.nn import functional

CHANNELS = (16, 32, 64, 128)  # per level, down; the same upwards
BOTTLENECK_CHANNELS = 256
LEAK = 0.2
LOWEST_FAITHFUL_LOG = 0.1  # the clip of flaw 2


def _conv(c_in: int, c_out: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=1)


def _act(maps: torch.Tensor) -> torch.Tensor:
    return functional.leaky_relu(maps, LEAK)


class _Down(nn.Module):
    """Two convolutions; the first one's bare output is added to the second's."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(c_in, c_out), nn.BatchNorm2d(c_out)
        self.conv2, self.norm2 = _conv(c_out, c_out), nn.BatchNorm2d(c_out)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        first = self.conv1(maps)
        return _act(self.norm2(self.conv2(_act(self.norm1(first))))) + first


class _Up(nn.Module):
    """Nearest pixel doubled, the skip concatenated, two convolutions."""

    def __init__(self, c_coarse: int, c_out: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(c_coarse + c_out, c_out), nn.BatchNorm2d(c_out)
        self.conv2, self.norm2 = _conv(c_out, c_out), nn.BatchNorm2d(c_out)

    def forward(self, coarse: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        size_hw = (int(skip.shape[-2]), int(skip.shape[-1]))
        maps = torch.cat([functional.interpolate(coarse, size=size_hw, mode='nearest'), skip], 1)
        return _act(self.norm2(self.conv2(_act(self.norm1(self.conv1(maps))))))


class DiodeUNet(DepthNetwork):
    """A U-Net with 1.96 M parameters; `raw` is log depth at the picture's size."""

    def __init__(
        self,
        *,
        size_hw: tuple[int, int] = (256, 256),
        faithful: bool = False,
        dropout: float = 0.0,
        depth_range_m: tuple[float, float] = (0.1, 300.0),
        pretrained: bool = False,
    ) -> None:
        """Build the network.

        Args:
            size_hw: training and export size, both divisible by 16.
            faithful: keep the published head, which cannot say more than 2.72 m; warns.
            dropout: share of channels dropped after every level, an option in the paper.
            depth_range_m: range of the truth that is trained on and scored; without `faithful`
                the output is clamped to it.
            pretrained: must be False: the encoder has no published weights.

        Raises:
            ValueError: an impossible size or range, or `pretrained`.
        """
        super().__init__()
        if pretrained:
            raise ValueError(
                'pretrained: nobody trained this encoder on ImageNet; set pretrained: false'
            )
        self.size_hw = self.output_hw = checked_size(size_hw, 16)
        self.depth_range_m = checked_range(depth_range_m)
        self.faithful = bool(faithful)
        self.dropout = nn.Dropout2d(dropout)
        pairs = zip((3, *CHANNELS[:-1]), CHANNELS, strict=True)
        self.downs = nn.ModuleList(_Down(c_in, c_out) for c_in, c_out in pairs)
        self.bottleneck1 = _conv(CHANNELS[-1], BOTTLENECK_CHANNELS)
        self.bottleneck2 = _conv(BOTTLENECK_CHANNELS, BOTTLENECK_CHANNELS)
        coarse = (BOTTLENECK_CHANNELS, *reversed(CHANNELS[1:]))
        self.ups = nn.ModuleList(
            _Up(c_in, c_out) for c_in, c_out in zip(coarse, reversed(CHANNELS), strict=True)
        )
        self.head = nn.Conv2d(CHANNELS[0], 1, 1)
        if self.faithful:
            warnings.warn(
                'diode_unet with faithful: true ends in tanh of log depth: it can return 0.37 to '
                '2.72 m (e^-1 to e^1) only, and everything farther comes out as 2.72 m; use '
                'faithful: false for depth that is to be used',
                stacklevel=2,
            )
        else:
            start_head(self.head, middle_log_depth(self.depth_range_m))

    def _log_depth(self, batch: torch.Tensor) -> torch.Tensor:
        maps, skips = batch, []
        for down in self.downs:
            skips.append(self.dropout(down(maps)))
            maps = functional.max_pool2d(skips[-1], 2)
        maps = _act(self.bottleneck2(_act(self.bottleneck1(maps))))
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            maps = self.dropout(up(maps, skip))
        raw = self.head(maps).float()
        return raw.tanh() if self.faithful else raw

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """See `DepthNetwork.forward`."""
        return clamped_depth(self._log_depth(batch), self.depth_range_m)

    def outputs(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return `raw`, log depth, and `prediction`, its depth without the clamp."""
        raw = self._log_depth(batch)
        return {'prediction': open_depth(raw), 'raw': raw}

    def encode(self, depth: torch.Tensor) -> torch.Tensor:
        """Return log depth; `faithful` clips it as published (flaw 2 of the module).

        The published clip of depth itself, [0.1, min(300, 99th percentile of the picture)], is
        here the fixed `depth_range_m`: percentiles belong to a data set, not to a network.
        """
        near, far = self.depth_range_m
        if self.faithful:
            return depth.clamp(near, far).log().clamp(LOWEST_FAITHFUL_LOG, math.log(far))
        return depth.log()
