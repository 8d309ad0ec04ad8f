"""The quick backward pass of depthwise convolutions against PyTorch's own."""

from depth_node.training.networks.encoders.depthwise import depthwise_conv2d
import pytest
import torch
from torch.nn import functional

SHAPES = [(3, 1, 1), (5, 1, 2), (5, 2, 2), (5, 2, 3), (7, 1, 3), (7, 2, 0)]


def inputs(kernel: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(kernel)
    shapes = ((2, 6, 9, 14), (6, 1, kernel, kernel), (6,))
    return [torch.randn(shape, generator=draws, dtype=dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(('kernel', 'stride', 'padding'), SHAPES)
def test_output_and_gradients_are_those_of_conv2d(kernel, stride, padding, layout):
    given = inputs(kernel)
    expected = functional.conv2d(*given, stride, padding, groups=6)
    slope = torch.randn(expected.shape)
    of_expected = torch.autograd.grad(expected, given, slope)

    batch = given[0].contiguous(memory_format=layout)
    found = depthwise_conv2d(batch, *given[1:], stride, padding)
    of_found = torch.autograd.grad(found, given, slope)

    torch.testing.assert_close(found, expected)
    for name, mine, theirs in zip(('batch', 'weight', 'bias'), of_found, of_expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4, msg=f'gradient of {name}')


@pytest.mark.parametrize(('kernel', 'stride', 'padding'), SHAPES)
def test_gradients_of_bfloat16_are_within_its_rounding(kernel, stride, padding):
    exact = inputs(kernel, torch.float64)
    halves = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]
    with torch.no_grad():
        for tensor, half in zip(exact, halves, strict=True):
            tensor.copy_(half)
    expected = functional.conv2d(*exact, stride, padding, groups=6)
    slope = torch.randn(expected.shape).bfloat16()
    of_expected = torch.autograd.grad(expected, exact, slope.double())

    # The kernels stay in float32 outside, as under autocast.
    found = depthwise_conv2d(
        halves[0], halves[1].float(), halves[2].float(), stride, padding
    )
    of_found = torch.autograd.grad(found, halves, slope)

    assert found.dtype == torch.bfloat16
    for mine, theirs in zip((found, *of_found), (expected, *of_expected), strict=True):
        assert mine.dtype == torch.bfloat16
        spread = theirs.abs().max()  # sums of terms that cancel keep the error of their terms
        assert (mine.double() - theirs).abs().max() <= 2**-7 * spread


@pytest.mark.parametrize('wanted', range(3))
def test_a_single_gradient_is_that_of_conv2d(wanted):
    given = [tensor.detach() for tensor in inputs(5)]
    given[wanted].requires_grad_()
    expected = functional.conv2d(*given, 2, 2, groups=6)
    found = depthwise_conv2d(*given, 2, 2)
    of_expected, = torch.autograd.grad(expected.square().sum(), given[wanted])
    of_found, = torch.autograd.grad(found.square().sum(), given[wanted])
    torch.testing.assert_close(of_found, of_expected, rtol=1e-4, atol=1e-4)


def test_nothing_is_kept_where_no_gradient_is_wanted():
    given = [tensor.detach() for tensor in inputs(5)]
    assert depthwise_conv2d(*given, 1, 2).grad_fn is None
    wanting = inputs(5)
    with torch.no_grad():
        assert depthwise_conv2d(*wanting, 1, 2).grad_fn is None
