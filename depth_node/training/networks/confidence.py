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
    """From the decoder's maps, the last of half the picture's size, to log b at the picture's.

    A narrow decoder of its own on all of them: a border is seen in the fine maps, a wall that is
    bent in the coarse ones. Without norms: its inputs have passed one, and measuring no
    statistics it can be trained beside a frozen network at any batch size. Four values a cell and
    a pixel shuffle, as depth.
    """

    def __init__(self, channels: Sequence[int], *, width: int = 16) -> None:
        """Make the layers.

        Args:
            channels: of the maps, from coarse to fine.
            width: channels in between.
        """
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(c_in, width, 1) for c_in in channels)
        self.mixes = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1) for _ in channels[:-1]
        )
        self.last = nn.Conv2d(width, 4, 1)
        for layer in (*self.laterals, *self.mixes):
            nn.init.kaiming_normal_(layer.weight, nonlinearity='relu')
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.last.weight[:1], std=0.01)
        with torch.no_grad():  # all four of a cell start equal, as in the head of depth
            self.last.weight[1:] = self.last.weight[:1]
        assert self.last.bias is not None
        nn.init.constant_(self.last.bias, math.log(START_SPREAD))
        self.slope: torch.Tensor
        self.offset: torch.Tensor
        self.register_buffer('slope', torch.ones(()))
        self.register_buffer('offset', torch.zeros(()))

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Predict s = log b, not calibrated.

        Args:
            maps: (N, channels[i], h, w), each of twice the size of the one before.

        Returns:
            (N, 1, 2h, 2w) float32 for the last one's h, w; within `LOG_SPREAD_LIMITS`.
        """
        x = self.laterals[0](maps[0]).relu()
        for mix, lateral, finer in zip(self.mixes, self.laterals[1:], maps[1:], strict=True):
            x = functional.interpolate(
                mix(x).relu(), scale_factor=2.0, mode='bilinear', align_corners=False
            )
            x = (x + lateral(finer)).relu()
        log_spread = functional.pixel_shuffle(self.last(x), 2)
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
