"""The ReDWeb network: sizes, parameters, range of what it publishes, and that it learns."""

from __future__ import annotations

import pytest

torch = pytest.importorskip('torch')
from depth_node.training.networks import build_network  # noqa: E402
from depth_node.training.networks.encoders import build_encoder  # noqa: E402
from depth_node.training.networks.redweb import ReDWebNet  # noqa: E402
from depth_node.training.objectives.ordinal import Ordinal  # noqa: E402

SMALL = {'size_hw': (32, 64), 'encoder': 'resnet18', 'widths': (24, 20, 16)}


def test_the_map_has_the_pictures_size():
    with torch.device('meta'):
        network = ReDWebNet()
        assert network.output_hw == network.size_hw == (384, 384)
        assert network(torch.zeros(1, 3, 384, 384)).shape == (1, 1, 384, 384)
        wide = ReDWebNet(size_hw=(192, 256))
        assert wide(torch.zeros(1, 3, 192, 256)).shape == (1, 1, 192, 256)


def test_parameter_count():
    # No count is published. ResNet-50 without classifier has 23.5 million.
    with torch.device('meta'):
        encoder = sum(p.numel() for p in build_encoder('resnet50').parameters())
        count = sum(p.numel() for p in ReDWebNet().parameters())
    residual = 2 * 9 * 256 * 256 + 256 + 2 * 256  # two 3x3, one bias, one norm
    transitions = sum(9 * c * 256 + 2 * 256 for c in (2048, 1024, 256, 512, 256, 256))
    head = 9 * 256 * 128 + 2 * 128 + 9 * 128 + 1
    assert encoder == 23_508_032
    assert count == encoder + transitions + 6 * residual + head == 40_916_929


def test_what_is_published_is_positive_and_rises_with_z():
    network = ReDWebNet(**SMALL).eval()
    assert network.output_kind == 'rel_inv_depth'
    with torch.no_grad():
        outputs = network.outputs(torch.randn(1, 3, 32, 64))
        for bias in (-300.0, 300.0, 1e6):
            network.head[-1].bias.fill_(bias)
            published = network(torch.randn(1, 3, 32, 64))
            near, far = network.depth_range_m
            assert (published > 0).all()
            assert (1 / published >= near * 0.999).all()
            assert (1 / published <= far * 1.001).all()
    order = outputs['raw'].flatten().argsort()
    assert (outputs['prediction'].flatten()[order].diff() >= 0).all()
    depth = 1 / outputs['prediction']
    torch.testing.assert_close(network.encode(depth), outputs['raw'], rtol=1e-4, atol=1e-4)


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    network = ReDWebNet(**SMALL)
    network.outputs(torch.rand(2, 3, 32, 64))['raw'].square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_rates_can_be_given_to_encoder_and_decoder():
    groups = ReDWebNet(**SMALL).parameter_groups()
    assert sorted(groups) == ['decoder', 'encoder']


def test_evaluation_is_deterministic_and_by_picture():
    torch.manual_seed(0)
    network = ReDWebNet(**SMALL).eval()
    batch = torch.rand(2, 3, 32, 64)
    with torch.no_grad():
        both, again, alone = network(batch), network(batch), network(batch[1:])
    assert torch.equal(both, again)
    torch.testing.assert_close(both[1:], alone)


@pytest.mark.parametrize('mode', ['online', 'affine'])
def test_it_learns_two_pictures(mode):
    torch.manual_seed(0)
    network = build_network('redweb', **SMALL)
    v, u = torch.meshgrid(torch.arange(32.0), torch.arange(64.0), indexing='ij')
    near = torch.stack([0.1 + u / 80, 0.9 - v / 50 + u / 200])[:, None]
    rgb = (255 * (1 - near)).clamp(0, 255).to(torch.uint8).expand(2, 3, 32, 64)
    batch = {
        'rgb': rgb, 'depth': torch.zeros_like(near), 'K': torch.eye(3).expand(2, 3, 3),
        'rel_inv_depth': near,
    }  # fmt: skip
    objective = Ordinal(mode=mode, pairs=1000)
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(16):
        loss = objective.losses(network, batch)['loss']
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) / 3 < 0.5 * losses[0]
    assert objective.scores(network, batch)[objective.monitor].isfinite().all()


@pytest.mark.parametrize('size_hw', [(384, 380), (16, 384), (384,)])
def test_illegal_sizes_are_refused(size_hw):
    with pytest.raises(ValueError, match='divisible by 32'):
        ReDWebNet(size_hw=size_hw)


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match='widths'):
        ReDWebNet(widths=(256, 256))
    with pytest.raises(ValueError, match='encoder_weights'):
        ReDWebNet(pretrained=True)
