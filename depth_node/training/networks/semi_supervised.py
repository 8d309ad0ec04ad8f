"""Semi-supervised stereo and LiDAR network (system S11): ResNet-50, up-projections, long skips.

Source: Kuznietsov, Stueckler, Leibe (2017), arXiv:1702.02706, section 3.2, and sizes, skips and
the head's unit as in the authors' released inference code (depth-systems, section 2.10). The
encoder's maps at /16, /8 and /4 are put beside the outputs of the first three up-projections.

Sides that 32 does not divide round up on the way down, so an up-projection's output can be larger
than the map of its size: that map is padded with zeros below and right, where both grids begin at
the same corner, and the final map is cut to half of the input there. Without the cut (the released
code makes 96x320 of 188x621) the map would be stretched against its picture.
"""

from __future__ import annotations

from depth_node.training.networks.base import DepthNetwork, checked_range, checked_size
from depth_node.training.networks.encoders import build_encoder
from depth_node.training.networks.fcrn import UpProjection
import torch
from torch import nn
from torch.nn import functional

NECK_CHANNELS = 1024
UP_CHANNELS = (512, 256, 128, 64)
NORM_EPS = 1e-8  # of the decoder, as released; the encoder keeps the one of its weights
MIN_SIDE = 32
# Focal length of KITTI's pictures at 621 columns, times the baseline: the head returns disparity
# [px] there, numbers around 10, where inverse depth would be around 0.05.
FOCAL_BASELINE_PX_M = 359.7176 * 0.54
START_DEPTH_M = 10.0  # where an untrained head starts


class SemiSupervisedNet(DepthNetwork):
    """ResNet-50, four fast up-projections with long skips, inverse depth at half the size.

    `raw` is inverse depth [1/m] before the clamp, and can be negative.
    """

    output_kind = 'inv_depth'

    def __init__(
        self,
        *,
        size_hw: tuple[int, int] = (187, 621),
        stride_in_1x1: bool = False,
        depth_range_m: tuple[float, float] = (1.0, 100.0),
        pretrained: bool = False,
        encoder_weights: str | None = None,
    ) -> None:
        """Build the network.

        Args:
            size_hw: training and export size; any, odd ones too (187x621 is half of KITTI's).
            stride_in_1x1: a stage strides in its first 1x1 as in the authors' network; False is
                torchvision's, for its weights.
            depth_range_m: the output of `forward` is clamped to its inverse.
            pretrained: not to be had without a file: give `encoder_weights`.
            encoder_weights: a weights file of ResNet-50.

        Raises:
            ValueError: a side is too small, the range is empty, or the weights file is of another
                encoder.
            FileNotFoundError: no such weights file.
        """
        super().__init__()
        self.size_hw = checked_size(size_hw, 1, least=MIN_SIDE)
        self.output_hw = ((self.size_hw[0] + 1) // 2, (self.size_hw[1] + 1) // 2)
        self.depth_range_m = checked_range(depth_range_m)
        self.encoder = build_encoder(
            'resnet50',
            pretrained=pretrained,
            weights=encoder_weights,
            stride_in_1x1=stride_in_1x1,
        )
        # The released code feeds 0..255 as it is; ours takes what torchvision's weights want.
        self.mean, self.std = self.encoder.mean, self.encoder.std
        levels = self.encoder.channels
        self.neck = nn.Sequential(
            nn.Conv2d(levels[-1], NECK_CHANNELS, 1), nn.BatchNorm2d(NECK_CHANNELS)
        )
        first, second, third, fourth = UP_CHANNELS
        self.ups = nn.ModuleList(
            (
                UpProjection(NECK_CHANNELS, first),
                UpProjection(first + levels[3], second),
                UpProjection(second + levels[2], third),
                UpProjection(third + levels[1], fourth),
            )
        )
        for part in (*self.neck.modules(), *self.ups.modules()):
            if isinstance(part, nn.BatchNorm2d):
                part.eps = NORM_EPS
        self.head = nn.Conv2d(fourth, 1, 3, padding=1)
        nn.init.normal_(self.head.weight, std=0.01)
        assert self.head.bias is not None
        nn.init.constant_(self.head.bias, FOCAL_BASELINE_PX_M / START_DEPTH_M)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """See `DepthNetwork.forward`."""
        return self._clamped(self._raw(batch))

    def outputs(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `DepthNetwork.outputs`."""
        raw = self._raw(batch)
        return {'prediction': self._clamped(raw), 'raw': raw}

    def encode(self, depth: torch.Tensor) -> torch.Tensor:
        """See `DepthNetwork.encode`."""
        return 1 / depth

    def _raw(self, batch: torch.Tensor) -> torch.Tensor:
        pyramid = self.encoder(batch)
        features = self.neck(pyramid[-1])
        for up, skip in zip(self.ups, (pyramid[3], pyramid[2], pyramid[1], None), strict=True):
            features = up(features)
            if skip is not None:
                features = beside(features, skip)
        height, width = (batch.shape[-2] + 1) // 2, (batch.shape[-1] + 1) // 2
        disparity_px: torch.Tensor = self.head(features)[..., :height, :width]
        return disparity_px.float() / FOCAL_BASELINE_PX_M

    def _clamped(self, raw: torch.Tensor) -> torch.Tensor:
        near, far = self.depth_range_m
        return raw.clamp(1 / far, 1 / near)


def beside(features: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
    """Join two maps by channels, the second padded with zeros below and right to the first."""
    below, right = (features.shape[axis] - skip.shape[axis] for axis in (-2, -1))
    return torch.cat((features, functional.pad(skip, (0, right, 0, below))), 1)
