"""What every encoder offers to the networks that are built on it."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import nn

Triple = tuple[float, float, float]

# torchvision's ImageNet normalisation, for RGB in 0..255.
IMAGENET_MEAN: Triple = (123.675, 116.28, 103.53)
IMAGENET_STD: Triple = (58.395, 57.12, 57.375)


class Encoder(nn.Module):
    """(N, 3, H, W) -> features at /2, /4, /8, /16, /32.

    Attributes:
        channels: of the five maps, finest first.
        mean: per channel, what the published weights want subtracted from RGB in 0..255.
        std: per channel, what divides the rest.
        title: for messages.
        source: whose weights fit, for messages.
        classifier_keys: beginnings of the names in a weights file that belong to the classifier.
    """

    channels: tuple[int, ...]
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    title: str
    source: str
    classifier_keys: tuple[str, ...] = ()

    def current_key(self, key: str) -> str:
        """Turn the name of a weight in an older file into today's; others pass."""
        return key

    def fold_fixed_norms(self) -> None:
        """Compute norms in evaluation mode as part of the convolutions, where that is faster.

        Outputs and gradients stay what they are, to rounding, and so does the state dict.
        """

    def freeze_stages(self, count: int) -> None:
        """Keep the weights and statistics of the first maps' layers, and build no graph there.

        Args:
            count: maps of the pyramid, finest first, that stay as they are.

        Raises:
            ValueError: more than there are, or an encoder that cannot.
        """
        if count:
            raise ValueError(f'{self.title} cannot freeze stages; encoders of network small can')

    @abstractmethod
    def forward(self, batch: torch.Tensor) -> list[torch.Tensor]:
        """Compute the five maps, finest first."""


def init_convolutions(module: nn.Module) -> None:
    """Draw convolutions from He's normal, by their outputs (arXiv:1502.01852, section 2.2)."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode='fan_out', nonlinearity='relu')
            if part.bias is not None:
                nn.init.zeros_(part.bias)
