"""The hourglass: sizes, parameters, sign and range of what it publishes, and that it learns."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip('torch')
from depth_node.training.networks import build_network  # noqa: E402
from depth_node.training.networks.hourglass import Hourglass  # noqa: E402
from depth_node.training.objectives.ordinal import Ordinal  # noqa: E402
from torch import nn  # noqa: E402

KINDS = ['rel_depth', 'log_depth']


@pytest.mark.parametrize('size_hw', [(240, 320), (384, 512)])
def test_the_map_has_the_pictures_size(size_hw):
    with torch.device('meta'):
        network = Hourglass(size_hw=size_hw)
        out = network(torch.zeros(2, 3, *size_hw))
    assert out.shape == (2, 1, *size_hw)
    assert network.output_hw == network.size_hw == size_hw


def test_parameter_count():
    # Added up from the table: 1x1 and k x k convolutions with biases, norms without weights
    # except the first one's.
    def inception(c_in, c_out, reduced, kernels):
        quarter = c_out // 4
        branches = sum(
            c_in * reduced + reduced + reduced * quarter * k * k + quarter for k in kernels
        )
        return c_in * quarter + quarter + branches

    narrow, wide = (3, 5, 7), (3, 7, 11)
    expected = 3 * 49 * 128 + 128 + 2 * 128 + 64 * 9 + 1
    expected += 10 * inception(256, 256, 32, narrow) + 2 * inception(256, 256, 64, wide)
    expected += 4 * inception(128, 128, 32, narrow) + inception(128, 256, 32, narrow)
    expected += inception(256, 128, 32, narrow) + inception(128, 128, 64, wide)
    expected += inception(128, 128, 64, narrow) + inception(128, 64, 32, wide)
    expected += inception(128, 64, 64, wide)
    with torch.device('meta'):
        count = sum(p.numel() for p in Hourglass().parameters())
    assert count == expected == 5_357_153  # 5.3 million is what is quoted


def test_pooling_is_by_maximum_outside_and_by_mean_inside():
    with torch.device('meta'):
        pools = [
            type(m) for m in Hourglass().modules() if isinstance(m, (nn.MaxPool2d, nn.AvgPool2d))
        ]
    assert pools == [nn.MaxPool2d, nn.MaxPool2d, nn.AvgPool2d, nn.AvgPool2d]


@pytest.mark.parametrize('kind', KINDS)
def test_what_is_published_is_positive_and_rises_with_z(kind):
    network = Hourglass(size_hw=(16, 32), output_kind=kind)
    assert network.output_kind == 'rel_depth'
    z = torch.tensor([-200.0, -20, -5, -1, 0, 1, 5, 20, 2e5])
    published = network._published(z)
    near, far = network.depth_range_m
    assert (published > 0).all()
    assert (published.diff() >= 0).all()
    assert (published[2:7].diff() > 0).all()
    assert published.min().item() == pytest.approx(near)
    assert published.max().item() == pytest.approx(far)
    torch.testing.assert_close(network.encode(published[2:7]), z[2:7], rtol=1e-4, atol=1e-4)


def test_log_depth_is_the_logarithm_of_what_is_published():
    network = Hourglass(size_hw=(16, 32), output_kind='log_depth').eval()
    with torch.no_grad():
        outputs = network.outputs(torch.rand(1, 3, 16, 32))
    torch.testing.assert_close(outputs['prediction'].log(), outputs['raw'])
    assert network.encode(torch.tensor(math.e)).item() == pytest.approx(1.0)


def test_raw_keeps_its_gradient_where_the_published_value_is_clamped():
    network = Hourglass(size_hw=(16, 32))
    nn.init.constant_(network.head.bias, -300.0)
    outputs = network.outputs(torch.rand(1, 3, 16, 32))
    assert torch.autograd.grad(
        outputs['prediction'].sum(), network.head.bias, retain_graph=True
    )[0].item() == 0
    assert torch.autograd.grad(outputs['raw'].sum(), network.head.bias)[0].item() == 16 * 32


def test_gradients_reach_every_weight():
    torch.manual_seed(0)
    network = Hourglass(size_hw=(32, 48))
    network.outputs(torch.rand(2, 3, 32, 48))['raw'].square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        # A bias before a batch norm has a gradient of zero, as in the original.
        assert parameter.ndim == 1 or parameter.grad.abs().sum() > 0, name


def test_evaluation_is_deterministic_and_by_picture():
    torch.manual_seed(0)
    network = Hourglass(size_hw=(16, 32)).eval()
    batch = torch.rand(2, 3, 16, 32)
    with torch.no_grad():
        both, again, alone = network(batch), network(batch), network(batch[1:])
    assert torch.equal(both, again)
    torch.testing.assert_close(both[1:], alone)


def scene() -> dict[str, torch.Tensor]:
    """Two pictures, brighter with depth."""
    v, u = torch.meshgrid(torch.arange(16.0), torch.arange(32.0), indexing='ij')
    depth = torch.stack([1 + u / 8, 5 - v / 5 + u / 20])[:, None]
    rgb = (40 * depth).clamp(0, 255).to(torch.uint8).expand(2, 3, 16, 32)
    ordinal = torch.zeros(2, 1, 16, 32, dtype=torch.int8)
    return {'rgb': rgb, 'depth': depth, 'K': torch.eye(3).expand(2, 3, 3), 'ordinal': ordinal}


@pytest.mark.parametrize(('kind', 'mode'), [('log_depth', 'megadepth'), ('rel_depth', 'pairs')])
def test_it_learns_two_pictures(kind, mode):
    torch.manual_seed(0)
    network = build_network('hourglass', size_hw=(16, 32), output_kind=kind)
    batch = scene()
    if mode == 'pairs':
        generator = torch.Generator().manual_seed(0)
        uv = (torch.rand(2, 60, 4, generator=generator) * torch.tensor([32, 16, 32, 16])).floor()
        a, b = (uv[..., i + 1].long() * 32 + uv[..., i].long() for i in (0, 2))
        flat = batch['depth'].flatten(1)
        relation = (flat.gather(1, a) - flat.gather(1, b)).sign().to(torch.int8)
        batch |= {'pairs': uv, 'relation': relation, 'pair_valid': relation != 0}
    objective = Ordinal(mode=mode, pairs=300)
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(16):
        loss = objective.losses(network, batch)['loss']
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) / 3 < 0.5 * losses[0]
    score = objective.scores(network, batch)[objective.monitor]
    assert score.isfinite().all()


@pytest.mark.parametrize('size_hw', [(240, 321), (241, 320), (0, 320), (240,)])
def test_illegal_sizes_are_refused(size_hw):
    with pytest.raises(ValueError, match='divisible by 16'):
        Hourglass(size_hw=size_hw)


@pytest.mark.parametrize(
    ('options', 'reason'),
    [
        ({'output_kind': 'depth'}, "output_kind 'depth'"),
        ({'pretrained': True}, 'no ImageNet encoder'),
        ({'encoder_weights': 'a.pth'}, 'no ImageNet encoder'),
    ],
)
def test_impossible_options_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        Hourglass(**options)
