"""The hourglass of depth in the wild (S8), and of MegaDepth (S9).

Chen et al. 2016, arXiv:1604.03901, figure 4 and table 1: a 7x7 convolution, four nested levels of
inception modules that each halve and double the size again, and a 3x3 convolution to one value a
pixel, at the input's size. Li & Snavely 2018, arXiv:1804.00607, train the same network to return
log depth.
"""

from __future__ import annotations

import math

from depth_node.training.networks.base import DepthNetwork, checked_size
import torch
from torch import nn
from torch.nn import functional

OUTPUT_KINDS = ('rel_depth', 'log_depth')
LARGEST_LOG = 10.0  # of published depth, either way: within the range of half precision
SMALLEST_DEPTH = 1e-6

# Kernels of an inception module's branches, each behind a 1x1 reduction; a 1x1 branch is beside.
NARROW, WIDE = (3, 5, 7), (3, 7, 11)


def _conv(c_in: int, c_out: int, kernel: int, *, affine: bool = False) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2),
        nn.BatchNorm2d(c_out, affine=affine),
        nn.ReLU(inplace=True),
    )


class Inception(nn.Module):
    """A quarter of the channels by a 1x1 convolution, the others by larger kernels."""

    def __init__(self, c_in: int, c_out: int, reduced: int, kernels: tuple[int, ...]) -> None:
        """Make four branches of c_out / 4 channels, three of them behind `reduced` channels."""
        super().__init__()
        quarter = c_out // 4
        self.branches = nn.ModuleList([_conv(c_in, quarter, 1)])
        for kernel in kernels:
            self.branches.append(
                nn.Sequential(_conv(c_in, reduced, 1), _conv(reduced, quarter, kernel))
            )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (N, c_out, H, W)."""
        return torch.cat([branch(features) for branch in self.branches], 1)


class Level(nn.Module):
    """One fold of the hourglass: through half the size and back, plus a way around."""

    def __init__(self, pool: nn.Module, inner: nn.Module, skip: nn.Module) -> None:
        """Take what runs at half the size, and what runs at full size beside it."""
        super().__init__()
        self.pool, self.inner, self.skip = pool, inner, skip

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the sum of both ways, at the size of `features`."""
        height, width = features.shape[-2:]
        low = self.inner(self.pool(features))
        return functional.interpolate(low, size=(height, width), mode='nearest') + self.skip(
            features
        )


def _folds() -> Level:
    """Nest the four levels, from the smallest size outwards."""

    def wide_256() -> Inception:
        return Inception(256, 256, 64, WIDE)

    def narrow_256() -> Inception:
        return Inception(256, 256, 32, NARROW)

    def narrow_128() -> Inception:
        return Inception(128, 128, 32, NARROW)

    sixteenth = Level(
        nn.AvgPool2d(2),
        nn.Sequential(narrow_256(), narrow_256(), narrow_256()),
        nn.Sequential(narrow_256(), narrow_256()),
    )
    eighth = Level(
        nn.AvgPool2d(2),
        nn.Sequential(narrow_256(), narrow_256(), sixteenth, narrow_256(), wide_256()),
        nn.Sequential(narrow_256(), wide_256()),
    )
    quarter = Level(
        nn.MaxPool2d(2),
        nn.Sequential(
            narrow_128(),
            Inception(128, 256, 32, NARROW),
            eighth,
            narrow_256(),
            Inception(256, 128, 32, NARROW),
        ),
        nn.Sequential(narrow_128(), Inception(128, 128, 64, WIDE)),
    )
    return Level(
        nn.MaxPool2d(2),
        nn.Sequential(
            narrow_128(),
            narrow_128(),
            quarter,
            Inception(128, 128, 64, NARROW),
            Inception(128, 64, 32, WIDE),
        ),
        Inception(128, 64, 64, WIDE),
    )


class Hourglass(DepthNetwork):
    """One value a pixel; `raw` is that value z, `prediction` a positive depth that grows with z.

    Trained on rankings z is depth up to any rising function, and softplus(z) is published, which
    keeps z's shape where it is positive. Trained on MegaDepth z is log depth up to a constant,
    and exp(z) is published. Both are of kind `rel_depth`. Losses on `raw` keep their gradient
    where the published value is clamped.
    """

    output_kind = 'rel_depth'

    def __init__(
        self,
        *,
        size_hw: tuple[int, int] = (240, 320),
        output_kind: str = 'rel_depth',
        pretrained: bool = False,
        encoder_weights: str | None = None,
    ) -> None:
        """Build the network.

        Args:
            size_hw: training and export size, both divisible by 16; 240 x 320 in depth in the
                wild, 384 x 512 in MegaDepth.
            output_kind: what z is: 'rel_depth' (rankings) or 'log_depth' (MegaDepth).
            pretrained: must be False, there is no encoder.
            encoder_weights: must be None.

        Raises:
            ValueError: an impossible size, an unknown kind, or weights are asked for.
        """
        super().__init__()
        if output_kind not in OUTPUT_KINDS:
            raise ValueError(
                f'output_kind {output_kind!r}: expected one of {", ".join(OUTPUT_KINDS)}'
            )
        if pretrained or encoder_weights is not None:
            raise ValueError(
                'the hourglass has no ImageNet encoder: leave pretrained and encoder_weights '
                'out; to start from an earlier run give: --init runs/.../best.ckpt'
            )
        self.size_hw = self.output_hw = checked_size(size_hw, 16)
        self.log_output = output_kind == 'log_depth'
        smallest = math.exp(-LARGEST_LOG) if self.log_output else SMALLEST_DEPTH
        self.depth_range_m = (smallest, math.exp(LARGEST_LOG))
        self.stem = _conv(3, 128, 7, affine=True)
        self.folds = _folds()
        self.head = nn.Conv2d(64, 1, 3, padding=1)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """See `DepthNetwork.forward`."""
        return self._published(self._z(batch))

    def outputs(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `DepthNetwork.outputs`; `raw` is z."""
        z = self._z(batch)
        return {'prediction': self._published(z), 'raw': z}

    def encode(self, depth: torch.Tensor) -> torch.Tensor:
        """Invert `prediction` as a function of `raw`."""
        if self.log_output:
            return depth.log()
        return depth + (-(-depth).expm1()).log()  # inverse of softplus

    def _z(self, batch: torch.Tensor) -> torch.Tensor:
        return self.head(self.folds(self.stem(batch))).float()

    def _published(self, z: torch.Tensor) -> torch.Tensor:
        if self.log_output:
            return z.clamp(-LARGEST_LOG, LARGEST_LOG).exp()
        near, far = self.depth_range_m
        return functional.softplus(z).clamp(near, far)
