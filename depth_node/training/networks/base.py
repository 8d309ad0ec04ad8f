"""What every trainable depth network offers to tasks and to the exporter."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import nn


class DepthNetwork(nn.Module):
    """A network from a normalised batch to depth.

    Attributes:
        size_hw: the size it is trained at, which the exported graph is fixed to.
        mean: per channel, subtracted from RGB in 0..255.
        std: per channel, divides what is left.
        canonical_focal_px: the focal length [px, at `size_hw`] for which the output is metric.
        depth_range_m: smallest and largest canonical depth the network can return.
    """

    size_hw: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    canonical_focal_px: float
    depth_range_m: tuple[float, float]

    @abstractmethod
    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Predict canonical depth.

        Args:
            batch: (N, 3, H, W) float32, normalised by `mean` and `std`.

        Returns:
            (N, 1, H, W) float32, metres for a camera of `canonical_focal_px`, always positive.
        """

    @abstractmethod
    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Split the parameters into `encoder` (pretrained) and `decoder` (new)."""

    def normalise(self, rgb: torch.Tensor) -> torch.Tensor:
        """Turn RGB in 0..255, (N, 3, H, W), any dtype, into what `forward` takes."""
        mean = torch.tensor(self.mean, device=rgb.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=rgb.device).view(1, 3, 1, 1)
        return (rgb.float() - mean) / std
