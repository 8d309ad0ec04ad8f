"""What networks with a linear log-depth output share: from it to metres, and their options."""

from __future__ import annotations

from collections.abc import Sequence
import math

import torch
from torch import nn
from torch.nn import functional

# exp(30) is 1e13 m: no gradient of a sane value is cut, and none overflows.
LOG_LIMIT = 30.0


def open_depth(log_depth: torch.Tensor) -> torch.Tensor:
    """Turn log depth into metres, with a gradient also outside of the network's range.

    Losses take this one: where `clamped_depth` ends its gradient is zero, and a pixel that has
    once left the range would never come back.
    """
    return log_depth.float().clamp(-LOG_LIMIT, LOG_LIMIT).exp()


def clamped_depth(log_depth: torch.Tensor, depth_range_m: tuple[float, float]) -> torch.Tensor:
    """Turn log depth into metres within the network's range: what inference returns."""
    near, far = depth_range_m
    return log_depth.float().clamp(math.log(near), math.log(far)).exp()


def middle_log_depth(depth_range_m: tuple[float, float]) -> float:
    """Return where an untrained head starts: the middle of the range, in log."""
    return math.log(depth_range_m[0] * depth_range_m[1]) / 2


def checked_choice(name: str, value: str, choices: Sequence[str]) -> str:
    """Return an option that is one of a few words.

    Raises:
        ValueError: it is not.
    """
    if value not in choices:
        raise ValueError(f'{name} {value!r}: expected one of {tuple(choices)}')
    return value


def start_weights(module: nn.Module) -> None:
    """Draw convolutions and full layers for ReLU (He et al. 2015, arXiv:1502.01852, eq. 10)."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity='relu')
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def start_head(layer: nn.Conv2d | nn.Linear, value: float) -> None:
    """Let a last, linear layer begin near one value, whatever its input."""
    nn.init.normal_(layer.weight, std=0.01 / math.sqrt(layer.weight[0].numel() / 100 + 1))
    assert layer.bias is not None
    nn.init.constant_(layer.bias, value)


def resized(maps: torch.Tensor, size_hw: Sequence[int]) -> torch.Tensor:
    """Bring maps to a size, bilinear, pixel edges aligned."""
    return functional.interpolate(
        maps, size=(int(size_hw[0]), int(size_hw[1])), mode='bilinear', align_corners=False
    )
