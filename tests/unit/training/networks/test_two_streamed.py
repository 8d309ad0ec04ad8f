"""Li 2017: two streams of one size, fused by a block or by optimisation."""

from __future__ import annotations

from depth_node.training.fusion import fuse_depth_and_gradients, fusion_energy
import numpy as np
import pytest

torch = pytest.importorskip('torch')
from depth_node.training.networks import build_network  # noqa: E402
from depth_node.training.networks.encoders.vgg import VGG16  # noqa: E402
from depth_node.training.networks.two_streamed import TwoStreamed  # noqa: E402
from depth_node.training.objectives import build_objective  # noqa: E402

TINY = {'size_hw': (36, 48), 'units': 32, 'dropout': 0.0}  # maps of 13x19


def scene(size_hw: tuple[int, int] = (36, 48)) -> dict[str, torch.Tensor]:
    """Two pictures, brighter where farther, with a border in depth and a hole."""
    height, width = size_hw
    depth = (2 + torch.linspace(0, 2, height))[:, None].expand(height, width).clone()
    depth = torch.stack([depth, depth.flip(0)])[:, None]
    depth[:, :, :, width // 2 :] *= 1.4
    rgb = (depth * 40).expand(-1, 3, -1, -1).to(torch.uint8)
    depth[:, :, 4:9, 10:20] = 0
    return {'rgb': rgb, 'depth': depth, 'K': torch.eye(3).expand(2, 3, 3)}


def test_size_is_the_papers_and_both_streams_are_of_one_make():
    with torch.device('meta'):
        network = TwoStreamed()
        batch = torch.empty(2, 3, 232, 310)
        outputs = network.outputs(batch)
        assert network(batch).shape == (2, 1, 111, 150)
    assert network.output_hw == (111, 150)
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        'prediction': (2, 1, 111, 150),
        'raw': (2, 1, 111, 150),
        'depth_stream': (2, 1, 111, 150),
        'gradients': (2, 2, 111, 150),
    }
    parts = (*network.encoder, network.depth_stream, network.gradient_stream, network.block)
    parameters = [sum(p.numel() for p in part.parameters()) for part in parts]
    # The paper's figure is not known; VGG-16's convolutions are 14.7 M.
    assert parameters == [14_714_688, 14_714_688, 51_738_945, 51_740_546, 108_929]


def test_without_fusion_forward_is_the_depth_stream():
    torch.manual_seed(0)
    network = TwoStreamed(**TINY, fusion='none').eval()
    batch = torch.randn(2, 3, 36, 48)
    with torch.inference_mode():
        outputs = network.outputs(batch)
        torch.testing.assert_close(network(batch), outputs['depth_stream'].exp())
    assert torch.equal(outputs['raw'], outputs['depth_stream'])
    assert outputs['gradients'].shape == (2, 2, 13, 19)


def test_the_block_hears_the_gradient_stream():
    torch.manual_seed(0)
    network = TwoStreamed(**TINY).eval()
    batch = torch.randn(1, 3, 36, 48)
    with torch.inference_mode():
        before = network.outputs(batch)
        network.gradient_stream.head.bias += torch.tensor([1.0, -1.0])
        after = network.outputs(batch)
        torch.testing.assert_close(after['depth_stream'], before['depth_stream'])
        assert not torch.allclose(after['raw'], before['raw'])
        torch.testing.assert_close(network(batch), after['raw'].exp().clamp(0.5, 10))


def test_the_solver_takes_what_the_streams_return():
    """The optimised map is closer to agreement than either stream; all are log depth."""
    torch.manual_seed(0)
    network = TwoStreamed(**TINY, fusion='none').eval()
    with torch.inference_mode():
        outputs = network.outputs(network.normalise(scene()['rgb']))
    depth = outputs['depth_stream'][0, 0].double().numpy()
    gx, gy = outputs['gradients'][0].double().numpy()
    fused = fuse_depth_and_gradients(depth, gx, gy, iterations=100)
    assert fused.shape == network.output_hw
    assert np.isfinite(np.exp(fused)).all()
    assert fusion_energy(fused, depth, gx, gy) < 0.999 * fusion_energy(depth, depth, gx, gy)


@pytest.mark.parametrize('fusion', ['end_to_end', 'none'])
def test_gradient_reaches_every_parameter(fusion):
    torch.manual_seed(0)
    network = TwoStreamed(**TINY, fusion=fusion).train()
    build_objective('two_streamed', copies=2).losses(network, scene())['loss'].backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    groups = network.parameter_groups()
    assert {id(p) for p in groups['encoder']} == {id(p) for p in network.encoder.parameters()}
    listed = [id(p) for group in groups.values() for p in group]
    assert sorted(listed) == sorted(id(p) for p in network.parameters())


@pytest.mark.parametrize(
    ('fusion', 'frozen_trunks'),
    [('end_to_end', True), pytest.param('none', False, marks=pytest.mark.sweep)],
)
def test_a_batch_is_learnt_by_both_streams(fusion, frozen_trunks):
    """Quickly with the two VGG-16 standing still, slowly with all of it."""
    torch.manual_seed(0)
    network = TwoStreamed(**TINY, fusion=fusion).train()
    network.encoder.requires_grad_(not frozen_trunks)
    goal = build_objective('two_streamed', copies=2, gradient_weight=10.0)
    batch = {name: value[:1] for name, value in scene().items()}
    optimiser = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 3e-4)
    history = []
    for _ in range(15):
        optimiser.zero_grad()
        losses = goal.losses(network, batch)
        losses['loss'].backward()
        optimiser.step()
        history.append({name: float(value.detach()) for name, value in losses.items()})
    assert history[-1]['loss'] < 0.5 * history[0]['loss']
    assert history[-1]['single'] < 0.5 * history[0]['single']
    assert history[-1]['gradients'] < history[0]['gradients']


def test_output_is_in_range_and_repeatable():
    torch.manual_seed(0)
    network = TwoStreamed(**{**TINY, 'dropout': 0.5}, depth_range_m=(2.0, 2.5))
    batch = 100 * torch.randn(1, 3, 36, 48)
    with torch.no_grad():
        assert not torch.equal(network.train()(batch), network(batch))
        depth = network.eval()(batch)
        assert torch.equal(depth, network(batch))
    assert depth.dtype == torch.float32
    assert 2.0 * (1 - 1e-6) <= depth.min() <= depth.max() <= 2.5 * (1 + 1e-6)


def test_weights_load_into_both_streams(tmp_path):
    torch.manual_seed(0)
    encoder = VGG16()
    path = tmp_path / 'vgg16.pth'
    torch.save(encoder.state_dict(), path)
    network = build_network('two_streamed', **TINY, pretrained=True, encoder_weights=str(path))
    for trunk in network.encoder:
        loaded = trunk.state_dict()
        for name, value in encoder.state_dict().items():
            assert torch.equal(value, loaded[name]), name


def test_impossible_options_are_named():
    with pytest.raises(ValueError, match=r'network size \(31, 310\).*at least 32'):
        build_network('two_streamed', size_hw=(31, 310))
    with pytest.raises(ValueError, match="fusion 'late': expected one of"):
        build_network('two_streamed', **TINY, fusion='late')
    with pytest.raises(ValueError, match='encoder_weights'):
        build_network('two_streamed', **TINY, pretrained=True)
    with pytest.raises(ValueError, match='0 < near < far'):
        build_network('two_streamed', **TINY, depth_range_m=(0.0, 2.0))
