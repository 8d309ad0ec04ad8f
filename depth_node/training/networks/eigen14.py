"""Eigen, Puhrsch, Fergus 2014 (arXiv:1406.2283): a coarse map of the whole, refined locally.

Two stages of training: `stage: coarse` alone, then `stage: fine` with the coarse network frozen.
Both have the same parameters, so that the second starts from the first one's checkpoint.

The paper's figure gives ratios of sizes and no paddings; here no padding in the first layer of
each network, 2 in the 5x5 ones, and a stride of 2 in coarse 5, which gives the paper's 55x74 and
6x8 exactly. For KITTI, 172x576, coarse 2 becomes 10x35 where the paper prints 9x35 (the full
layers see 4x17 either way). A reimplementation says 141 columns for the output; the arithmetic
gives the paper's 142.
"""

from __future__ import annotations

from pathlib import Path

from depth_node.training.networks.base import DepthNetwork, checked_range
from depth_node.training.networks.encoders import IMAGENET_MEAN, IMAGENET_STD
from depth_node.training.networks.encoders.weights import read_state_dict
from depth_node.training.networks.log_depth import (
    checked_choice,
    clamped_depth,
    middle_log_depth,
    open_depth,
    start_head,
    start_weights,
)
import torch
from torch import nn
from torch.nn import functional

STAGES = ('coarse', 'fine')
# One cell of the output is four pixels; the kernels without padding take eight more.
CELL_PX, BORDER_PX = 4, 8
SMALLEST_PX = 56  # below, nothing is left after coarse 5


def quarter_size(size_hw: tuple[int, int]) -> tuple[int, int]:
    """Return the size of the maps at a quarter of the picture.

    Raises:
        ValueError: a side is too small, or not four pixels a cell and eight of border.
    """
    if any(side < SMALLEST_PX or (side - BORDER_PX) % CELL_PX for side in size_hw):
        raise ValueError(
            f'network size {tuple(size_hw)}: both sides must be divisible by {CELL_PX} and at '
            f'least {SMALLEST_PX}; the paper has 228x304 and 172x576'
        )
    return (size_hw[0] - BORDER_PX) // CELL_PX, (size_hw[1] - BORDER_PX) // CELL_PX


class CoarseConvs(nn.Module):
    """Coarse 1 to 5, an AlexNet without groups: 228x304 becomes 256 channels of 6x8."""

    def __init__(self) -> None:
        """Build the layers."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 11, stride=4)
        self.conv2 = nn.Conv2d(96, 256, 5, padding=2)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1)
        self.conv5 = nn.Conv2d(384, 256, 3, stride=2)
        start_weights(self)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Return (N, 256, h, w), h and w as `size_after` says."""
        maps = functional.max_pool2d(self.conv1(batch).relu(), 2)
        maps = functional.max_pool2d(self.conv2(maps).relu(), 2)
        maps = self.conv4(self.conv3(maps).relu()).relu()
        return self.conv5(maps).relu()

    def load_pretrained(self, path: str | Path) -> None:
        """Load a state dict of this class.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it cannot be read, or is of other layers.
        """
        state = read_state_dict(Path(path))
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f'{path}: not weights of the AlexNet of Eigen et al.; expected a state dict of '
                f'CoarseConvs, {", ".join(self.state_dict())}: {error}'
            ) from error

    @staticmethod
    def size_after(size_hw: tuple[int, int]) -> tuple[int, int]:
        """Return the size of the maps for a picture's size."""
        height, width = ((((side - 11) // 4 + 1) // 4 - 3) // 2 + 1 for side in size_hw)
        return height, width


class _Coarse(nn.Module):
    """The whole picture to a log-depth map through two full layers."""

    def __init__(
        self, size_hw: tuple[int, int], map_hw: tuple[int, int], dropout: float, start: float
    ) -> None:
        super().__init__()
        self.map_hw = map_hw
        self.convs = CoarseConvs()
        height, width = CoarseConvs.size_after(size_hw)
        self.full6 = nn.Linear(256 * height * width, 4096)
        self.full7 = nn.Linear(4096, map_hw[0] * map_hw[1])
        self.dropout = dropout
        start_weights(self.full6)
        start_head(self.full7, start)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        hidden = self.full6(self.convs(batch).flatten(1)).relu()
        hidden = functional.dropout(hidden, self.dropout, self.training)
        return self.full7(hidden).unflatten(1, (1, *self.map_hw))


class _Fine(nn.Module):
    """The picture's edges, with the coarse map as one more channel, to a log-depth map."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 63, 9, stride=2)
        self.conv3 = nn.Conv2d(64, 64, 5, padding=2)
        self.conv4 = nn.Conv2d(64, 1, 5, padding=2)
        start_weights(self)
        start_head(self.conv4, start)

    def forward(self, batch: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        edges = functional.max_pool2d(self.conv1(batch).relu(), 2)
        maps = torch.cat([edges, coarse], 1)
        return self.conv4(self.conv3(maps).relu())


class Eigen14(DepthNetwork):
    """Coarse network, 55x74 log depth for 228x304, and the fine one that refines it.

    Values of `raw` are log depth. The map is laid out over the whole picture. The paper's KITTI
    network predicts its lower part only (27 of 41 rows, where the laser reaches): `output_rows`.
    The fine network sees the rows it predicts, and the map repeats its first predicted row up
    to the top, so that it covers the picture like every other network's.
    """

    def __init__(
        self,
        *,
        size_hw: tuple[int, int] = (228, 304),
        stage: str = 'coarse',
        output_rows: int | None = None,
        dropout: float = 0.5,
        depth_range_m: tuple[float, float] = (0.5, 10.0),
        pretrained: bool = False,
        encoder_weights: str | None = None,
    ) -> None:
        """Build the network.

        Args:
            size_hw: training and export size; both sides divisible by 4.
            stage: 'coarse' trains and predicts by the coarse network; 'fine' predicts by both
                and trains the fine one.
            output_rows: rows of the map that are predicted, from the bottom; None = all. 27 at
                172x576.
            dropout: share of the 4096 features that are dropped in training (0.5 as in AlexNet;
                the paper does not say).
            depth_range_m: the output is clamped to this.
            pretrained: must be False without `encoder_weights`.
            encoder_weights: file with a state dict of `CoarseConvs` (conv1.weight, ...).

        Raises:
            ValueError: an impossible size, stage, range, or weights that do not fit.
        """
        super().__init__()
        size_hw = (int(size_hw[0]), int(size_hw[1]))
        rows, columns = quarter_size(size_hw)
        self.stage = checked_choice('stage', stage, STAGES)
        predicted = rows if output_rows is None else output_rows
        if not 0 < predicted <= rows:
            raise ValueError(f'output_rows {output_rows}: expected 1 to {rows} at {size_hw}')
        if pretrained and encoder_weights is None:
            raise ValueError(
                'pretrained: the authors trained these layers on ImageNet themselves and no '
                'public AlexNet has their widths (96, 256, 384, 384, 256, no groups); set '
                'encoder_weights to a file with a state dict of CoarseConvs, or pretrained: false'
            )
        self.depth_range_m = checked_range(depth_range_m)
        self.size_hw, self.output_hw = size_hw, (rows, columns)
        self.mean, self.std = IMAGENET_MEAN, IMAGENET_STD  # the paper names no normalisation
        self.repeated_rows = rows - predicted
        self.fine_px = CELL_PX * predicted + BORDER_PX  # height of what the fine network sees
        start = middle_log_depth(self.depth_range_m)
        self.coarse = _Coarse(size_hw, (predicted, columns), dropout, start)
        self.fine = _Fine(start)
        if encoder_weights is not None:
            self.coarse.convs.load_pretrained(encoder_weights)
        self._frozen().requires_grad_(False)

    def _frozen(self) -> nn.Module:
        return self.fine if self.stage == 'coarse' else self.coarse

    def train(self, mode: bool = True) -> Eigen14:
        """Set the mode; the frozen network stays in evaluation mode (no dropout)."""
        super().train(mode)
        self._frozen().eval()
        return self

    def _log_depth(self, batch: torch.Tensor) -> torch.Tensor:
        raw = self.coarse(batch)
        if self.stage == 'fine':
            raw = self.fine(batch[:, :, -self.fine_px :], raw)
        return functional.pad(raw, (0, 0, self.repeated_rows, 0), mode='replicate')

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """See `DepthNetwork.forward`."""
        return clamped_depth(self._log_depth(batch), self.depth_range_m)

    def outputs(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return `raw`, log depth, and `prediction`, its depth without the clamp."""
        raw = self._log_depth(batch).float()
        return {'prediction': open_depth(raw), 'raw': raw}

    def encode(self, depth: torch.Tensor) -> torch.Tensor:
        """See `DepthNetwork.encode`."""
        return depth.log()

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Name the paper's four rates: coarse_conv, coarse_full, fine_outer, fine_middle."""
        if self.stage == 'coarse':
            return {
                'coarse_conv': list(self.coarse.convs.parameters()),
                'coarse_full': [*self.coarse.full6.parameters(), *self.coarse.full7.parameters()],
            }
        return {
            'fine_outer': [*self.fine.conv1.parameters(), *self.fine.conv4.parameters()],
            'fine_middle': list(self.fine.conv3.parameters()),
        }
