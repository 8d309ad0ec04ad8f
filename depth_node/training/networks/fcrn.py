"""FCRN: a ResNet-50 and up-projections (system S4).

Source: Laina et al. (2016), arXiv:1606.00373, sections 3.1 and 3.2. An up-convolution is an
unpooling (each value at the top left of a 2x2 cell of zeros) and a 5x5 convolution. Three quarters
of that convolution's products are with zeros; the fast form does the others only: four small
convolutions on the small map, one for each position in the cell.

Kernel K of the 5x5, by what of it meets values:

    position in the cell     taps          rows x columns, padding
    even row, even column    K[0::2, 0::2]    3x3          all around
    odd row, even column     K[1::2, 0::2]    2x3          below and at the sides
    even row, odd column     K[0::2, 1::2]    3x2          right, above and below
    odd row, odd column      K[1::2, 1::2]    2x2          below and right

The authors' released network pads above and left where this pads below and right, which is another
operator (its result is shifted by a pixel of the small map on odd rows and columns). It is what
their weights are trained for, so `authors_padding` gives it.
"""

from __future__ import annotations

from itertools import pairwise

from depth_node.training.networks.base import DepthNetwork, checked_range, checked_size
from depth_node.training.networks.encoders import build_encoder
import torch
from torch import nn
from torch.nn import functional

UP_BLOCKS = (
    'up_convolution',
    'up_projection',
    'fast_up_convolution',
    'fast_up_projection',
)
ENCODER_STYLES = ('caffe', 'torchvision')
NECK_CHANNELS = 1024
UP_CHANNELS = (512, 256, 128, 64)
NORM_EPS = 1e-4
START_DEPTH_M = 2.0  # where an untrained head starts: below 0 the paper's ReLU has no gradient
MIN_SIDE = 64

# In the order in which pixel_shuffle lays channels out: row, then column of the cell.
_CELL = ((0, 0), (0, 1), (1, 0), (1, 1))


def split_kernel(kernel: torch.Tensor) -> list[torch.Tensor]:
    """Split the last two axes, 5x5, into the kernels for the positions of a 2x2 cell.

    Returns:
        Kernels of 3x3, 3x2, 2x3 and 2x2 taps, for (row, column) = (0, 0), (0, 1), (1, 0), (1, 1).
    """
    return [kernel[..., row::2, column::2] for row, column in _CELL]


def unpool(features: torch.Tensor) -> torch.Tensor:
    """Double both sides: (N, C, H, W) -> (N, C, 2H, 2W), values top left, zeros elsewhere."""
    cells = functional.pad(features.unsqueeze(2), (0, 0, 0, 0, 0, 3))
    return functional.pixel_shuffle(cells.flatten(1, 2), 2)


class UnpoolConv(nn.Conv2d):
    """Unpooling and a 5x5 convolution, as the definition says it."""

    def __init__(self, c_in: int, c_out: int) -> None:
        """Set up like `nn.Conv2d`."""
        super().__init__(c_in, c_out, 5, padding=2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, c_out, 2H, 2W)."""
        return super().forward(unpool(features))


class FastUnpoolConv(nn.Module):
    """The same without products with zeros.

    A state dict of `UnpoolConv` loads: its kernel is split. Each of the four convolutions has a
    bias of its own, as the released network's have; split from one, they are equal.
    """

    def __init__(self, c_in: int, c_out: int, *, authors_padding: bool = False) -> None:
        """Set up the four convolutions.

        Args:
            c_in: channels in.
            c_out: channels out.
            authors_padding: pad above and left, like the released network.
        """
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(c_in, c_out, (3 - row, 3 - column)) for row, column in _CELL
        )
        # left, right, above, below
        self._pads = [
            (1, 1 - column, 1, 1 - row) if authors_padding else (1 - column, 1, 1 - row, 1)
            for row, column in _CELL
        ]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, c_out, 2H, 2W)."""
        parts = [
            conv(functional.pad(features, pads))
            for conv, pads in zip(self.convs, self._pads, strict=True)
        ]
        return functional.pixel_shuffle(torch.stack(parts, 2).flatten(1, 2), 2)

    def _load_from_state_dict(
        self, state_dict: dict[str, torch.Tensor], prefix: str, *rest: object
    ) -> None:
        kernel = state_dict.pop(f'{prefix}weight', None)
        bias = state_dict.pop(f'{prefix}bias', None)
        if kernel is not None and bias is not None:
            for index, part in enumerate(split_kernel(kernel)):
                state_dict[f'{prefix}convs.{index}.weight'] = part
                state_dict[f'{prefix}convs.{index}.bias'] = bias
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _unpool_conv(c_in: int, c_out: int, fast: bool, authors_padding: bool) -> nn.Module:
    if fast:
        return FastUnpoolConv(c_in, c_out, authors_padding=authors_padding)
    return UnpoolConv(c_in, c_out)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=NORM_EPS)


class UpConvolution(nn.Module):
    """Unpooling, 5x5 convolution, norm (as in the released network), ReLU."""

    def __init__(
        self, c_in: int, c_out: int, *, fast: bool = True, authors_padding: bool = False
    ) -> None:
        """Set up the block; `authors_padding` is for the fast form."""
        super().__init__()
        self.conv = _unpool_conv(c_in, c_out, fast, authors_padding)
        self.norm = _norm(c_out)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, c_out, 2H, 2W)."""
        return functional.relu(self.norm(self.conv(features)))


class UpProjection(nn.Module):
    """An up-convolution with a further 3x3, and a second one beside it as the shortcut."""

    def __init__(
        self, c_in: int, c_out: int, *, fast: bool = True, authors_padding: bool = False
    ) -> None:
        """Set up the block; `authors_padding` is for the fast form."""
        super().__init__()
        self.conv1 = _unpool_conv(c_in, c_out, fast, authors_padding)
        self.norm1 = _norm(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.norm2 = _norm(c_out)
        self.projection = _unpool_conv(c_in, c_out, fast, authors_padding)
        self.projection_norm = _norm(c_out)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, c_out, 2H, 2W)."""
        hidden = functional.relu(self.norm1(self.conv1(features)))
        hidden = self.norm2(self.conv2(hidden))
        return functional.relu(hidden + self.projection_norm(self.projection(features)))


class FCRN(DepthNetwork):
    """ResNet-50, four up-blocks, one map of depth [m] at a bit more than half the size.

    The paper ends in a ReLU; here `forward` clamps to `depth_range_m`, which includes it, and
    `raw` is before it, so that a pixel that falls below 0 is pulled back.
    """

    def __init__(
        self,
        *,
        size_hw: tuple[int, int] = (228, 304),
        up_block: str = 'fast_up_projection',
        authors_padding: bool = False,
        encoder_style: str = 'caffe',
        dropout: float = 0.5,
        depth_range_m: tuple[float, float] = (0.1, 10.0),
        pretrained: bool = False,
        encoder_weights: str | None = None,
    ) -> None:
        """Build the network.

        Args:
            size_hw: training and export size; any, odd ones too (the paper's Make3D has 173x230).
            up_block: one of UP_BLOCKS; fast and plain give the same map.
            authors_padding: the released network's operator instead, see the module.
            encoder_style: `caffe`, the paper's: stride in the first 1x1 of a stage, pool without
                padding, RGB in 0..255 as it is. `torchvision`: its stride, pool and
                normalisation; take this one with its weights.
            dropout: probability, before the last convolution (the rate is not in the paper).
            depth_range_m: the output is clamped to this.
            pretrained: not to be had without a file: give `encoder_weights`.
            encoder_weights: a weights file of ResNet-50.

        Raises:
            ValueError: an option has an impossible value, or the weights file is of another
                encoder.
            FileNotFoundError: no such weights file.
        """
        super().__init__()
        if up_block not in UP_BLOCKS:
            raise ValueError(f'up_block {up_block!r}: expected one of {UP_BLOCKS}')
        if encoder_style not in ENCODER_STYLES:
            raise ValueError(f'encoder_style {encoder_style!r}: expected one of {ENCODER_STYLES}')
        if not 0 <= dropout < 1:
            raise ValueError(f'dropout {dropout}: expected a probability, 0 to below 1')
        fast = up_block.startswith('fast_')
        if authors_padding and not fast:
            raise ValueError(
                f'authors_padding: {up_block} has no such padding; use fast_{up_block}'
            )
        self.size_hw = checked_size(size_hw, 1, least=MIN_SIDE)
        self.output_hw = _output_hw(self.size_hw, encoder_style)
        self.depth_range_m = checked_range(depth_range_m)
        caffe = encoder_style == 'caffe'
        self.encoder = build_encoder(
            'resnet50',
            pretrained=pretrained,
            weights=encoder_weights,
            stride_in_1x1=caffe,
            ceil_pool=caffe,
        )
        if caffe:
            self.mean, self.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        else:
            self.mean, self.std = self.encoder.mean, self.encoder.std
        self.neck = nn.Sequential(
            nn.Conv2d(self.encoder.channels[-1], NECK_CHANNELS, 1), _norm(NECK_CHANNELS)
        )
        block = UpProjection if up_block.endswith('projection') else UpConvolution
        widths = (NECK_CHANNELS, *UP_CHANNELS)
        self.ups = nn.Sequential(
            *(
                block(c_in, c_out, fast=fast, authors_padding=authors_padding)
                for c_in, c_out in pairwise(widths)
            )
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Conv2d(UP_CHANNELS[-1], 1, 3, padding=1)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.constant_(self.head.bias, START_DEPTH_M)

    def _raw(self, batch: torch.Tensor) -> torch.Tensor:
        features = self.neck(self.encoder(batch)[-1])
        return self.head(self.dropout(self.ups(features))).float()

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """See `DepthNetwork.forward`."""
        return self._raw(batch).clamp(*self.depth_range_m)

    def outputs(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `DepthNetwork.outputs`; `raw` is depth [m] before the ReLU."""
        raw = self._raw(batch)
        return {'prediction': raw.clamp(*self.depth_range_m), 'raw': raw}


def _output_hw(size_hw: tuple[int, int], encoder_style: str) -> tuple[int, int]:
    """Follow the sizes through the encoder: odd ones round up, in Caffe's pool down."""
    sides = []
    for side in size_hw:
        side = (side + 1) // 2
        side = side // 2 if encoder_style == 'caffe' else (side + 1) // 2
        for _ in range(3):
            side = (side + 1) // 2
        sides.append(side * 16)
    return sides[0], sides[1]
