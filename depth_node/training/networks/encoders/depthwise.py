"""Depthwise convolution whose backward pass is fast on CPUs, for kernels wider than three.

oneDNN, PyTorch's library on CPUs, has a quick way to the gradient of a depthwise kernel of up to
three columns, and a way many times as slow for wider ones; with bfloat16 the gradient of the
input at stride 2 is slow as well. Here the gradient of a wide kernel is computed three columns at
a time, and that of the input in float32 where bfloat16 is slow. The numbers are the same, to
rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

WIDE = 3  # columns of a kernel that oneDNN's quick way takes


def depthwise_conv2d(
    batch: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, stride: int, padding: int
) -> torch.Tensor:
    """Filter each channel by a kernel of its own.

    Args:
        batch: (N, C, H, W), float32 or bfloat16; channels last is fastest.
        weight: (C, 1, K, K), cast to the type of `batch`.
        bias: (C,), likewise.
        stride: of rows and columns.
        padding: zeros around the picture, on all sides.

    Returns:
        (N, C, H', W'), what `torch.nn.functional.conv2d` with C groups returns.
    """
    weight, bias = weight.to(batch.dtype), bias.to(batch.dtype)
    slow = batch.device.type == 'cpu' and (
        weight.shape[-1] > WIDE or (batch.dtype == torch.bfloat16 and stride > 1)
    )
    if slow and torch.is_grad_enabled() and (batch.requires_grad or weight.requires_grad):
        filtered: torch.Tensor = _Depthwise.apply(batch, weight, bias, stride, padding)
        return filtered
    return functional.conv2d(batch, weight, bias, stride, padding, groups=len(weight))


class _Depthwise(torch.autograd.Function):
    """`conv2d` of as many groups as channels, with a backward pass of its own."""

    @staticmethod
    def forward(
        context: Any, batch: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor,
        stride: int, padding: int,
    ) -> torch.Tensor:
        context.save_for_backward(batch, weight)
        context.stride, context.padding = stride, padding
        return functional.conv2d(batch, weight, bias, stride, padding, groups=len(weight))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, of_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        batch, weight = context.saved_tensors
        stride, padding = context.stride, context.padding
        of_output = of_output.contiguous(memory_format=torch.channels_last)
        of_batch = of_weight = of_bias = None
        if context.needs_input_grad[0]:
            given = [of_output, batch, weight]
            if batch.dtype == torch.bfloat16 and stride > 1:
                # of the batch only its shape counts here
                given = [of_output.float(), torch.empty_like(batch, dtype=torch.float32),
                         weight.float()]
            of_batch = _backward(given[0], given[1], given[2], stride, padding, 0).to(batch.dtype)
        if context.needs_input_grad[1]:
            of_weight = _of_kernel(of_output, batch, weight, stride, padding)
        if context.needs_input_grad[2]:
            of_bias = of_output.sum((0, 2, 3))
        return of_batch, of_weight, of_bias, None, None


def _of_kernel(
    of_output: torch.Tensor, batch: torch.Tensor, weight: torch.Tensor, stride: int, padding: int
) -> torch.Tensor:
    """Gradient of the kernels, WIDE of their columns at a time."""
    rows, columns = weight.shape[-2:]
    height = (of_output.shape[-2] - 1) * stride + rows
    reach = (of_output.shape[-1] - 1) * stride
    padded = functional.pad(batch, (padding,) * 4)[..., :height, :]
    parts = []
    for first in range(0, columns, WIDE):
        some = weight[..., first : first + WIDE]
        seen = padded[..., first : first + reach + some.shape[-1]]
        seen = seen.contiguous(memory_format=torch.channels_last)
        parts.append(_backward(of_output, seen, some, stride, 0, 1))
    return torch.cat(parts, -1)


def _backward(
    of_output: torch.Tensor, batch: torch.Tensor, weight: torch.Tensor, stride: int, padding: int,
    which: int,
) -> torch.Tensor:
    """One gradient of a depthwise convolution: of the batch (0) or the kernels (1)."""
    gradient: torch.Tensor = torch.ops.aten.convolution_backward(
        of_output, batch, weight, [len(weight)], [stride] * 2, [padding] * 2, [1, 1], False,
        [0, 0], len(weight), [which == 0, which == 1, False],
    )[which]
    return gradient
