"""Relative depth from web stereo (S10): ResNet-50 with multi-scale feature fusion.

Xian et al. 2018 (ReDWeb), section 4.1 and figure 4: the encoder's maps at /16, /8 and /4 join, one
after the other, what comes up from /32; each fusion doubles the size, and so does the output
module at the end. The inner layout of a residual block (ReLU, 3x3, norm, ReLU, 3x3, plus the
input) and of the output module is known from second-hand descriptions.
"""

from __future__ import annotations

from depth_node.training.networks.base import DepthNetwork, checked_size
from depth_node.training.networks.encoders import build_encoder
import torch
from torch import nn
from torch.nn import functional

LARGEST, SMALLEST = 1e4, 1e-6  # of the published inverse depth; half precision ends at 65504


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(),  # not in place: the input is added below
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + self.body(features)


def _transition(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out)
    )


def _doubled(features: torch.Tensor) -> torch.Tensor:
    height, width = features.shape[-2:]
    return functional.interpolate(
        features, size=(2 * height, 2 * width), mode='bilinear', align_corners=False
    )


class _Fusion(nn.Module):
    """Adds an encoder map to what comes from below, and doubles the size."""

    def __init__(self, c_below: int, c_skip: int, width: int) -> None:
        super().__init__()
        self.from_below = _transition(c_below, width)
        self.from_skip = nn.Sequential(_transition(c_skip, width), _Residual(width))
        self.mix = _Residual(width)

    def forward(self, below: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return _doubled(self.mix(self.from_below(below) + self.from_skip(skip)))


class ReDWebNet(DepthNetwork):
    """One value a pixel; `raw` is that value z, `prediction` softplus(z), larger = nearer.

    Ranking losses compare z; the affine-invariant loss compares what is published.
    """

    output_kind = 'rel_inv_depth'

    def __init__(
        self,
        *,
        size_hw: tuple[int, int] = (384, 384),
        encoder: str = 'resnet50',
        widths: tuple[int, int, int] = (256, 256, 256),
        pretrained: bool = False,
        encoder_weights: str | None = None,
    ) -> None:
        """Build the network.

        Args:
            size_hw: training and export size, both divisible by 32.
            encoder: a name that `build_encoder` knows.
            widths: channels of the fusions at /16, /8 and /4; 256 each in the paper.
            pretrained: start the encoder from ImageNet weights, where a package brings them.
            encoder_weights: a file with them.

        Raises:
            ValueError: an impossible size or width, or no weights are to be had.
        """
        super().__init__()
        if len(widths) != 3 or any(width < 1 for width in widths):
            raise ValueError(f'widths {widths}: expected three numbers above 0')
        self.size_hw = self.output_hw = checked_size(size_hw, 32)
        self.depth_range_m = (1 / LARGEST, 1 / SMALLEST)
        self.encoder = build_encoder(encoder, pretrained=pretrained, weights=encoder_weights)
        self.mean, self.std = self.encoder.mean, self.encoder.std
        _, quarter, eighth, sixteenth, last = self.encoder.channels
        below = (last, widths[0], widths[1])
        skips = (sixteenth, eighth, quarter)
        self.fusions = nn.ModuleList(
            _Fusion(*channels) for channels in zip(below, skips, widths, strict=True)
        )
        self.head = nn.Sequential(
            nn.Conv2d(widths[2], 128, 3, padding=1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(inplace=True),
            nn.Conv2d(128, 1, 3, padding=1),
        )

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """See `DepthNetwork.forward`."""
        return _published(self._z(batch))

    def outputs(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `DepthNetwork.outputs`; `raw` is z."""
        z = self._z(batch)
        return {'prediction': _published(z), 'raw': z}

    def encode(self, depth: torch.Tensor) -> torch.Tensor:
        """Return the z whose softplus is 1 / depth."""
        inverse = 1 / depth
        return inverse + (-(-inverse).expm1()).log()

    def _z(self, batch: torch.Tensor) -> torch.Tensor:
        _, *skips, last = self.encoder(batch)
        features = _doubled(last)
        for fusion, skip in zip(self.fusions, reversed(skips), strict=True):
            features = fusion(features, skip)
        return _doubled(self.head(features)).float()


def _published(z: torch.Tensor) -> torch.Tensor:
    return functional.softplus(z).clamp(SMALLEST, LARGEST)
