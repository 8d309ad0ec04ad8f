"""The confidence output: a head that knows where a network's depth is wrong.

The confidence of a pixel is the probability that its depth is within 10 % of the truth once the
picture's own scale is right: |r| < ln 1.1 for the residual r = log d - log d* - its median over
the picture. So it tells what is wrong locally (borders, thin things, unclear parts); how wrong the
scale of the whole picture is has figures of its own.

The head predicts s = log b for a Laplace distribution of r (heteroscedastic uncertainty as in
Kendall & Gal 2017, arXiv:1703.04977, section 3; with Laplace's density as in Klodt & Vedaldi 2018,
"Supervising the new with the old"). After training, s' = slope * s + offset is fitted on frames
that were not trained on, and confidence = P(|r| < ln 1.1) = 1 - exp(-ln 1.1 / exp(s')).
"""

from __future__ import annotations

from collections.abc import Sequence
import math

import torch
from torch import nn
from torch.nn import functional

WITHIN = 0.1  # relative error that counts as right
LOG_WITHIN = math.log(1 + WITHIN)
START_SPREAD = 0.1  # b of an untrained head
# Of log b: errors of 0.05 % to 5000 %. Beyond, confidence is 1 or 0 to four digits and a gradient
# only a danger.
LOG_SPREAD_LIMITS = (-7.6, 4.0)
MEANING = (
    'probability that depth is within 10 % of the truth once the scale of the picture is right: '
    '|log d - log d* - median of that over the picture| < ln 1.1'
)


class ConfidenceHead(nn.Module):
    """From the decoder's maps to log b at the size of the last one, half of the picture's.

    A narrow decoder of its own on all but the last, and a linear reading of the last added: a
    wall that is bent is seen in the coarse maps, a border in the fine one, where every channel
    costs most (and a bilinear step of one channel as much as all else). Without norms: its inputs
    have passed one, and measuring no statistics it can be trained beside a frozen network at any
    batch size.
    """

    def __init__(self, channels: Sequence[int], *, width: int = 16) -> None:
        """Make the layers.

        Args:
            channels: of the maps, from coarse to fine, two and more.
            width: channels in between.
        """
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(c_in, width, 1) for c_in in channels[:-1])
        self.mixes = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1) for _ in channels[:-1]
        )
        self.coarse = nn.Conv2d(width, 4, 1)
        self.fine = nn.Conv2d(channels[-1], 1, 1)
        for layer in (*self.laterals, *self.mixes):
            nn.init.kaiming_normal_(layer.weight, nonlinearity='relu')
            nn.init.zeros_(layer.bias)
        for layer, start in ((self.coarse, math.log(START_SPREAD)), (self.fine, 0.0)):
            nn.init.normal_(layer.weight[:1], std=0.01)
            with torch.no_grad():  # the four values of a cell start equal, as in depth's head
                layer.weight[1:] = layer.weight[:1]
            assert layer.bias is not None
            nn.init.constant_(layer.bias, start)
        self.slope: torch.Tensor
        self.offset: torch.Tensor
        self.register_buffer('slope', torch.ones(()))
        self.register_buffer('offset', torch.zeros(()))

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Predict s = log b, not calibrated.

        Args:
            maps: (N, channels[i], h, w), each of twice the size of the one before.

        Returns:
            (N, 1, h, w) float32 for the last one's h, w; within `LOG_SPREAD_LIMITS`.
        """
        x = self.mixes[0](self.laterals[0](maps[0]).relu()).relu()
        for mix, lateral, finer in zip(
            self.mixes[1:], self.laterals[1:], maps[1:-1], strict=True
        ):
            x = mix((_doubled(x) + lateral(finer)).relu()).relu()
        log_spread = functional.pixel_shuffle(self.coarse(x), 2) + self.fine(maps[-1])
        return log_spread.float().clamp(*LOG_SPREAD_LIMITS)

    def confidence(self, log_spread: torch.Tensor) -> torch.Tensor:
        """Turn s into the calibrated confidence, of the same shape, 0 to 1."""
        calibrated = self.slope * log_spread + self.offset
        return 1 - torch.exp(-torch.exp(math.log(LOG_WITHIN) - calibrated))

    @torch.no_grad()
    def calibrate(self, slope: float, offset: float) -> None:
        """Store what a calibration found."""
        self.slope.fill_(slope)
        self.offset.fill_(offset)


def _doubled(maps: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(maps, scale_factor=2.0, mode='bilinear', align_corners=False)
