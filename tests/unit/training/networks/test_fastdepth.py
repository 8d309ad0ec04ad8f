"""FastDepth: the paper's count, sizes and skips; it learns."""

from __future__ import annotations

import pytest

torch = pytest.importorskip('torch')
from depth_node.training.networks import build_network  # noqa: E402
from depth_node.training.objectives import build_objective  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402


def test_parameters_are_the_papers():
    """It counts the convolutions, 3.93 M; the norms, folded for inference, have 28 k more."""
    with torch.device('meta'):
        network = build_network('fastdepth')
    convs = sum(m.weight.numel() for m in network.modules() if isinstance(m, nn.Conv2d))
    assert round(convs / 1e6, 2) == 3.93
    assert sum(p.numel() for p in network.parameters()) == 3_960_930
    groups = network.parameter_groups()
    assert sum(p.numel() for p in groups['encoder']) == 3_206_976
    assert sum(len(g) for g in groups.values()) == len(list(network.parameters()))


def test_multiplications_are_the_papers():
    """0.74 G of multiply-accumulates; the 0.37 G that is often quoted is the pruned network's."""
    with torch.device('meta'):
        network = build_network('fastdepth').eval()
    total = 0

    def count(layer, inputs, output):
        nonlocal total
        total += layer.weight[0].numel() * output.numel()

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    network(torch.empty(1, 3, 224, 224, device='meta'))
    assert round(total / 1e9, 2) == 0.74


@pytest.mark.parametrize('size_hw', [(224, 224), (192, 256)])
def test_output_has_the_inputs_size(size_hw):
    with torch.device('meta'):
        network = build_network('fastdepth', size_hw=size_hw).eval()
    depth = network(torch.empty(2, 3, *size_hw, device='meta'))
    assert depth.shape == (2, 1, *size_hw)
    assert network.output_hw == size_hw


@pytest.fixture(scope='module')
def network():
    torch.manual_seed(0)
    return build_network('fastdepth', size_hw=(64, 96))


def test_decoder_is_five_steps_with_three_skips(network):
    network.eval()
    batch = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        pyramid = network.encoder(batch)
        features = pyramid[4]
        for index, skip in enumerate((None, pyramid[2], pyramid[1], pyramid[0], None)):
            depthwise, pointwise = network.ups[index]
            assert depthwise[0].weight.shape[1:] == (1, 5, 5)
            features = pointwise(depthwise(features))
            features = features.repeat_interleave(2, 2).repeat_interleave(2, 3)
            features = features if skip is None else features + skip
        expected = network.head(features)
        assert pyramid[4].shape[1:] == (1024, 2, 3)
        torch.testing.assert_close(network.outputs(batch)['raw'], expected)


def test_output_is_positive_and_the_raw_one_is_not_cut(network):
    network.eval()
    batch = torch.rand(2, 3, 64, 96)
    bias = network.head[1].bias.clone()
    with torch.inference_mode():
        for shift in (-50.0, 50.0):
            network.head[1].bias.copy_(bias + shift)
            outputs = network.outputs(batch)
            assert torch.equal(outputs['prediction'], outputs['raw'].clamp(0.1, 10.0))
            assert (outputs['raw'] * shift > 0).all()
        network.head[1].bias.copy_(bias)
        depth = network(batch)
        assert torch.equal(depth, network(batch))
    assert depth.shape == (2, 1, 64, 96)
    assert depth.dtype == torch.float32
    assert (network.mean, network.std) == ((0.0,) * 3, (255.0,) * 3)


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
    objective = build_objective('supervised', losses={'l1': 1.0}, space='raw')
    batch = learnable_batch((64, 96))
    network.train()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    values = []
    for step in range(14):
        optimiser.zero_grad()
        loss = objective.losses(network, batch)['loss']
        loss.backward()
        if step == 0:
            for name, parameter in network.named_parameters():
                assert parameter.grad.abs().sum() > 0, name
        optimiser.step()
        values.append(loss.item())
    assert values[-1] < 0.5 * values[0], values


def test_weights_file_reaches_the_encoder(network, tmp_path):
    """As the authors' ImageNet training saves it."""
    path = tmp_path / 'model_best.pth.tar'
    state = {f'module.{k}': v for k, v in network.encoder.state_dict().items()}
    torch.save({'epoch': 90, 'state_dict': {**state, 'module.fc.bias': torch.zeros(1000)}}, path)
    other = build_network('fastdepth', encoder_weights=str(path))
    for key, value in network.encoder.state_dict().items():
        assert torch.equal(other.encoder.state_dict()[key], value), key


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            {'size_hw': (228, 304)},
            r'network size \(228, 304\): both sides must be divisible by 32',
        ),
        ({'size_hw': (224,)}, r'size_hw: found \(224,\)'),
        ({'depth_range_m': (10.0, 10.0)}, '0 < near < far'),
        ({'pretrained': True}, '`encoder_weights`'),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build_network('fastdepth', **options)
