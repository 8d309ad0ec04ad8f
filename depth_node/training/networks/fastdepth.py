"""FastDepth: MobileNet v1 and a depthwise decoder with skips that are added.

Source: Wofk et al. (2019), arXiv:1903.03273, section III and figure 2: "NNConv5", five times a
depthwise 5x5 and a 1x1, then each pixel four times. Skips are added after the second, third and
fourth. The network before pruning, of which the paper counts the convolutions: 3.93 M weights.
"""

from __future__ import annotations

from itertools import pairwise

from depth_node.training.networks.base import DepthNetwork, checked_range, checked_size
from depth_node.training.networks.encoders import build_encoder
import torch
from torch import nn
from torch.nn import functional

UP_CHANNELS = (512, 256, 128, 64, 32)
KERNEL = 5
# After which steps of the decoder which of the encoder's maps is added.
SKIPS = {1: 2, 2: 1, 3: 0}
START_DEPTH_M = 2.0  # where an untrained head is centred: below 0 the paper's ReLU has no gradient


def _filtered(c_in: int, c_out: int, kernel: int, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(inplace=True),
    )


class FastDepth(DepthNetwork):
    """Depth [m] at the input's size.

    The paper ends in a norm and a ReLU; here `forward` clamps to `depth_range_m`, which includes
    the ReLU, and `raw` is before it, so that a pixel that falls below 0 is pulled back.
    """

    def __init__(
        self,
        *,
        size_hw: tuple[int, int] = (224, 224),
        depth_range_m: tuple[float, float] = (0.1, 10.0),
        pretrained: bool = False,
        encoder_weights: str | None = None,
    ) -> None:
        """Build the network.

        Args:
            size_hw: training and export size, both divisible by 32.
            depth_range_m: the output is clamped to this.
            pretrained: not to be had without a file: give `encoder_weights`.
            encoder_weights: a weights file of MobileNet v1.

        Raises:
            ValueError: an option has an impossible value, or the weights file is of another
                encoder.
            FileNotFoundError: no such weights file.
        """
        super().__init__()
        self.size_hw = checked_size(size_hw, 32)
        self.output_hw = self.size_hw
        self.depth_range_m = checked_range(depth_range_m)
        self.encoder = build_encoder(
            'mobilenet_v1', pretrained=pretrained, weights=encoder_weights
        )
        self.mean, self.std = (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)
        widths = (self.encoder.channels[-1], *UP_CHANNELS)
        self.ups = nn.ModuleList(
            nn.Sequential(_filtered(c_in, c_in, KERNEL, groups=c_in), _filtered(c_in, c_out, 1))
            for c_in, c_out in pairwise(widths)
        )
        self.head = nn.Sequential(nn.Conv2d(UP_CHANNELS[-1], 1, 1, bias=False), nn.BatchNorm2d(1))
        for part in (self.ups, self.head):
            for layer in part.modules():
                if isinstance(layer, nn.Conv2d):
                    # As in the authors' code: as if every output saw every channel.
                    fan_out = layer.kernel_size[0] ** 2 * layer.out_channels
                    nn.init.normal_(layer.weight, std=(2 / fan_out) ** 0.5)
        nn.init.constant_(self.head[1].bias, START_DEPTH_M)

    def _raw(self, batch: torch.Tensor) -> torch.Tensor:
        pyramid = self.encoder(batch)
        features = pyramid[-1]
        for index, up in enumerate(self.ups):
            features = up(features)
            size = (features.shape[-2] * 2, features.shape[-1] * 2)
            features = functional.interpolate(features, size=size, mode='nearest')
            if index in SKIPS:
                features = features + pyramid[SKIPS[index]]
        return self.head(features).float()

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """See `DepthNetwork.forward`."""
        return self._raw(batch).clamp(*self.depth_range_m)

    def outputs(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `DepthNetwork.outputs`; `raw` is depth [m] before the ReLU."""
        raw = self._raw(batch)
        return {'prediction': raw.clamp(*self.depth_range_m), 'raw': raw}
