"""FCRN: the fast up-blocks are the plain ones, sizes and counts are the paper's, it learns."""

from __future__ import annotations

import pytest

torch = pytest.importorskip('torch')
from depth_node.training.networks import build_network  # noqa: E402
from depth_node.training.networks.encoders import IMAGENET_MEAN, build_encoder  # noqa: E402
from depth_node.training.networks.fcrn import (  # noqa: E402
    UP_BLOCKS,
    FastUnpoolConv,
    UnpoolConv,
    UpConvolution,
    UpProjection,
    split_kernel,
    unpool,
)
from depth_node.training.objectives import build_objective  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402


def on_meta(**options):
    with torch.device('meta'):
        return build_network('fcrn', **options)


def test_unpooling_puts_values_top_left():
    features = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    result = unpool(features)
    assert torch.equal(result[..., ::2, ::2], features)
    assert result.count_nonzero() == features.numel()
    stamp = torch.zeros(3, 1, 2, 2, dtype=torch.float64)
    stamp[:, :, 0, 0] = 1
    expected = functional.conv_transpose2d(features, stamp, stride=2, groups=3)
    assert torch.equal(result, expected)


def test_kernel_splits_into_25_taps():
    kernel = torch.arange(25.0).view(1, 1, 5, 5)
    parts = split_kernel(kernel)
    assert [tuple(part.shape[2:]) for part in parts] == [(3, 3), (3, 2), (2, 3), (2, 2)]
    assert sorted(torch.cat([part.flatten() for part in parts]).tolist()) == list(range(25))


@pytest.mark.parametrize('size_hw', [(1, 1), (4, 7), (8, 10)])
def test_trap_13_fast_up_convolution_is_the_plain_one(size_hw):
    """In float64: only the order of the sums differs."""
    torch.manual_seed(0)
    plain = UnpoolConv(6, 5).double()
    fast = FastUnpoolConv(6, 5).double()
    fast.load_state_dict(plain.state_dict())
    features = torch.randn(2, 6, *size_hw, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(fast(features), plain(features), rtol=0, atol=1e-14)


def test_trap_13_the_released_padding_is_another_operator():
    """It sees the pixel above and left where the paper's sees the one below and right."""
    torch.manual_seed(0)
    plain = UnpoolConv(6, 5).double()
    released = FastUnpoolConv(6, 5, authors_padding=True).double()
    released.load_state_dict(plain.state_dict())
    features = torch.randn(2, 6, 4, 7, dtype=torch.float64)
    with torch.inference_mode():
        found, expected = released(features), plain(features)
    assert found.shape == expected.shape
    torch.testing.assert_close(found[..., ::2, ::2], expected[..., ::2, ::2])
    assert (found - expected).abs().max() > 0.1
    torch.testing.assert_close(found[..., 3::2, ::2], expected[..., 1:-1:2, ::2])
    torch.testing.assert_close(found[..., ::2, 3::2], expected[..., ::2, 1:-1:2])
    torch.testing.assert_close(found[..., 3::2, 3::2], expected[..., 1:-1:2, 1:-1:2])


@pytest.mark.parametrize('block', [UpConvolution, UpProjection])
@pytest.mark.parametrize('training', [False, True])
def test_trap_13_fast_blocks_are_the_plain_ones(block, training):
    torch.manual_seed(1)
    plain, fast = (block(6, 4, fast=fast).double().train(training) for fast in (False, True))
    for part in plain.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
    fast.load_state_dict(plain.state_dict())
    features = torch.randn(2, 6, 3, 5, dtype=torch.float64, requires_grad=True)
    found, expected = fast(features), plain(features)
    assert found.shape == (2, 4, 6, 10)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(
        torch.autograd.grad(found.square().sum(), features)[0],
        torch.autograd.grad(expected.square().sum(), features)[0], rtol=0, atol=1e-11)  # fmt: skip


def test_up_projection_is_two_branches_and_a_relu():
    torch.manual_seed(2)
    block = UpProjection(3, 2, fast=False).double().eval()
    state, features = block.state_dict(), torch.randn(1, 3, 3, 5, dtype=torch.float64)
    root = (1 + 1e-4) ** 0.5  # an untrained norm divides by this: the released eps
    big = torch.zeros(1, 3, 6, 10, dtype=torch.float64)
    big[..., ::2, ::2] = features
    first = functional.conv2d(big, state['conv1.weight'], state['conv1.bias'], padding=2) / root
    weight, bias = state['conv2.weight'], state['conv2.bias']
    first = functional.conv2d(first.clamp(min=0), weight, bias, padding=1) / root
    weight, bias = state['projection.weight'], state['projection.bias']
    second = functional.conv2d(big, weight, bias, padding=2) / root
    with torch.inference_mode():
        torch.testing.assert_close(block(features), (first + second).clamp(min=0))


# Computed in depth-systems 2.3; the paper prints 63.6 and 43.1 million.
@pytest.mark.parametrize(
    ('up_block', 'millions'), [('up_projection', 63.57), ('fast_up_projection', 63.57),
                               ('up_convolution', 43.02), ('fast_up_convolution', 43.02)],
)  # fmt: skip
def test_parameters_and_size_are_the_papers(up_block, millions):
    network = on_meta(up_block=up_block).eval()
    count = sum(p.numel() for p in network.parameters())
    assert round(count / 1e6, 2) == millions
    assert network(torch.empty(1, 3, 228, 304, device='meta')).shape == (1, 1, 128, 160)
    assert network.output_hw == (128, 160)


@pytest.mark.parametrize('style', ['caffe', 'torchvision'])
@pytest.mark.parametrize('size_hw', [(228, 304), (173, 230), (240, 320), (65, 66), (115, 71)])
def test_stated_size_is_the_maps_at_any_input_size(style, size_hw):
    network = on_meta(size_hw=size_hw, encoder_style=style).eval()
    depth = network(torch.empty(1, 3, *size_hw, device='meta'))
    assert tuple(depth.shape[-2:]) == network.output_hw


def test_trap_14_stages_have_the_papers_sizes_and_strides():
    """57x76, 29x38, 15x19, 8x10; the first 1x1 of a stage and its projection stride."""
    encoder = on_meta().encoder
    pyramid = encoder(torch.empty(1, 3, 228, 304, device='meta'))
    assert [tuple(level.shape[-2:]) for level in pyramid] == [
        (114, 152), (57, 76), (29, 38), (15, 19), (8, 10)]  # fmt: skip
    for stage in (encoder.layer2, encoder.layer3, encoder.layer4):
        first = stage[0]
        strides = [c.stride[0] for c in (first.conv1, first.conv2, first.conv3)]
        assert strides == [2, 1, 1]
        assert first.downsample[0].stride == (2, 2)
    assert on_meta(encoder_style='torchvision').encoder.layer2[0].conv2.stride == (2, 2)


def test_trap_14_input_is_rgb_in_0_to_255():
    rgb = torch.randint(0, 256, (1, 3, 4, 5), dtype=torch.uint8)
    assert torch.equal(build_network('fcrn').normalise(rgb), rgb.float())
    assert on_meta(encoder_style='torchvision').mean == IMAGENET_MEAN


@pytest.fixture(scope='module')
def network():
    torch.manual_seed(0)
    return build_network('fcrn', size_hw=(64, 96), up_block='fast_up_convolution', dropout=0.0)


def test_trap_14_output_is_positive_and_the_raw_one_is_not_cut(network):
    batch = torch.rand(2, 3, 64, 96) * 255
    network.eval()
    with torch.inference_mode():
        bias = network.head.bias.clone()
        for shift in (-20.0, 20.0):
            network.head.bias.copy_(bias + shift)
            outputs = network.outputs(batch)
            assert torch.equal(outputs['prediction'], outputs['raw'].clamp(0.1, 10.0))
            assert (outputs['raw'] * shift > 0).all()
        network.head.bias.copy_(bias)
        depth = network(batch)
        assert torch.equal(depth, network(batch))
    assert depth.shape == (2, 1, *network.output_hw)
    assert depth.dtype == torch.float32
    assert 0.1 <= depth.min() <= depth.max() <= 10


def test_only_dropout_is_random(network):
    """The paper has it before the last convolution; it stops outside of training."""
    other = build_network('fcrn', size_hw=(64, 64), dropout=0.9).train()
    other.ups, other.neck = nn.Identity(), nn.Identity()
    other.encoder = nn.Identity()
    with torch.no_grad():
        features = torch.randn(1, 64, 8, 8)
        first, second = other._raw([features]), other._raw([features])
        assert not torch.equal(first, second)
        assert torch.equal(other.eval()._raw([features]), other._raw([features]))


def learnable_batch(size_hw):
    """Brighter is farther."""
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand((2, 1, 2, 3), generator=generator)
    depth = 1 + 4 * functional.interpolate(coarse, size_hw, mode='bilinear')
    rgb = (depth * 40 + torch.rand((2, 3, *size_hw), generator=generator) * 10).to(torch.uint8)
    holes = torch.rand((2, 1, *size_hw), generator=generator) < 0.1
    K = torch.eye(3).expand(2, 3, 3)
    return {'rgb': rgb, 'depth': depth.masked_fill(holes, 0), 'K': K}


def test_it_learns_a_batch_and_every_parameter_takes_part(network):
    objective = build_objective('supervised', losses={'berhu': 1.0}, space='raw')
    batch = learnable_batch((64, 96))
    network.train()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    values = []
    for step in range(10):
        optimiser.zero_grad()
        loss = objective.losses(network, batch)['loss']
        loss.backward()
        if step == 0:
            still = [n for n, p in network.named_parameters()
                     if p.grad is None or not p.grad.abs().sum() > 0]  # fmt: skip
            # A bias before a norm changes nothing: its gradient is a rounding error.
            assert all(name.endswith('bias') for name in still), still
        optimiser.step()
        values.append(loss.item())
    assert values[-1] < 0.5 * values[0], values


def test_an_untrained_head_starts_at_two_metres():
    network = build_network('fcrn', size_hw=(64, 96)).train()
    with torch.no_grad():
        raw = network.outputs(torch.rand(2, 3, 64, 96) * 255)['raw']
    assert raw.mean() == pytest.approx(2, abs=0.5)
    assert raw.min() > 0


def test_groups_hold_every_parameter_once():
    groups = on_meta().parameter_groups()
    assert sorted(groups) == ['decoder', 'encoder']
    assert sum(p.numel() for p in groups['encoder']) == 23_508_032


def test_weights_file_reaches_the_encoder(tmp_path):
    torch.manual_seed(3)
    encoder = build_encoder('resnet50')
    path = tmp_path / 'resnet50.pth'
    torch.save({**encoder.state_dict(), 'fc.bias': torch.zeros(1000)}, path)
    network = build_network('fcrn', encoder_style='torchvision', encoder_weights=str(path))
    assert torch.equal(network.encoder.layer4[2].conv3.weight, encoder.layer4[2].conv3.weight)


def test_a_plain_networks_weights_load_into_the_fast_one():
    plain = on_meta(up_block='up_projection').state_dict()
    fast = on_meta(up_block='fast_up_projection')
    fast.load_state_dict(plain, assign=True)
    assert 'ups.0.conv1.weight' in plain
    assert 'ups.0.conv1.convs.0.weight' in fast.state_dict()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'size_hw': (48, 304)}, r'network size \(48, 304\): both .* at least 64'),
        ({'size_hw': (228,)}, r'size_hw: found \(228,\)'),
        ({'up_block': 'deconvolution'}, "up_block 'deconvolution': expected one of"),
        ({'encoder_style': 'keras'}, "encoder_style 'keras': expected one of"),
        ({'depth_range_m': (5.0, 1.0)}, '0 < near < far'),
        ({'dropout': 1.0}, 'dropout 1.0: expected'),
        ({'up_block': 'up_projection', 'authors_padding': True}, 'use fast_up_projection'),
        ({'pretrained': True}, '`encoder_weights`'),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build_network('fcrn', **options)
    assert len(UP_BLOCKS) == 4
