"""Monodepth2: the paper's parameters, and a scene learned by heart, by video and by stereo."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

torch = pytest.importorskip('torch')
from depth_node.training.networks import build_network  # noqa: E402
from depth_node.training.networks.encoders import build_encoder  # noqa: E402
from depth_node.training.objectives import build_objective  # noqa: E402

_SPEC = importlib.util.spec_from_file_location(
    'self_supervised_batch', Path(__file__).with_name('self_supervised_batch.py')
)
helper = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(helper)

SIZE = (64, 96)


@pytest.fixture(scope='module')
def batch(tmp_path_factory):
    root = tmp_path_factory.mktemp('triptychs')
    return helper.triptych_batch(root, SIZE, frames=1, seed=1, truth=True)


@pytest.fixture(scope='module')
def network():
    torch.manual_seed(0)
    return build_network('monodepth2', size_hw=SIZE)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_full_size_shapes_and_parameter_counts():
    """14.84 million for depth are with ResNet-18's classifier, which takes no part."""
    with torch.device('meta'):
        network = build_network('monodepth2')
        batch = torch.empty(2, 3, 192, 640)
        maps = network.inv_depths(batch)
        assert network(batch).shape == (2, 1, 192, 640)
        assert network.pose(batch, torch.empty(2, 3, 3, 192, 640)).shape == (2, 3, 4, 4)
    sizes = [(192, 640), (96, 320), (48, 160), (24, 80)]
    assert [tuple(m.shape) for m in maps] == [(2, 1, *size) for size in sizes]
    classifier = 512 * 1000 + 1000
    assert parameters(network.encoder) == 11_176_512
    assert parameters(network.decoder) == 3_152_724
    depth = parameters(network.encoder) + parameters(network.decoder) + classifier
    assert round(depth / 1e6, 2) == 14.84
    head = 512 * 256 + 256 + 2 * (256 * 256 * 9 + 256) + 256 * 6 + 6
    assert parameters(network.pose_net) == 11_176_512 + 64 * 3 * 49 + head


def test_forward_is_positive_in_range_and_the_same_each_time(network, batch):
    network.eval()
    rgb = network.normalise(batch['rgb'])
    torch.testing.assert_close(rgb, (batch['rgb'] / 255 - 0.45) / 0.225)
    with torch.inference_mode():
        depth = network(rgb)
        assert torch.equal(depth, network(rgb))
        extreme = network(rgb * 1000)
    for found in (depth, extreme):
        assert 0.1 - 1e-6 <= found.min() <= found.max() <= 100.0 + 1e-3
    assert network.output_kind == 'rel_depth'
    stereo = build_network('monodepth2', size_hw=SIZE, stereo=True, depth_range_m=(0.5, 20))
    assert (stereo.output_kind, stereo.depth_range_m) == ('depth', (0.5, 20.0))
    assert not hasattr(stereo, 'pose_net')


def test_gradient_reaches_every_parameter(network, batch):
    objective = build_objective('self_supervised', method='monodepth2', auto_mask=False)
    network.train().zero_grad()
    objective.losses(network, batch)['loss'].backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent
    network.zero_grad()
    groups = network.parameter_groups()
    assert set(groups) == {'encoder', 'decoder', 'pose'}
    together = [id(p) for group in groups.values() for p in group]
    assert sorted(together) == sorted(id(p) for p in network.parameters())


def test_each_source_gets_its_own_motion(network, batch):
    network.eval()
    target = network.normalise(batch['rgb'])
    sources = network.normalise(batch['views'][0])[None]
    with torch.no_grad():
        both = network.pose(target, sources)
        swapped = network.pose(target, sources.flip(1))
        alone = network.pose(target, sources[:, :1])
    torch.testing.assert_close(both, swapped.flip(1))
    torch.testing.assert_close(both[:, :1], alone)
    assert not torch.equal(both[:, 0], both[:, 1])


def test_imagenet_weights_reach_both_encoders(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / 'resnet18.pth'
    weights = build_encoder('resnet18').state_dict()
    torch.save(weights, path)
    network = build_network('monodepth2', size_hw=SIZE, encoder_weights=str(path))
    assert torch.equal(network.encoder.conv1.weight, weights['conv1.weight'])
    # Two equal pictures give the first layer what one alone does.
    wide = network.pose_net.encoder.conv1.weight
    torch.testing.assert_close(wide[:, :3] + wide[:, 3:], weights['conv1.weight'])
    deep = network.pose_net.encoder.layer4[1].conv2.weight
    assert torch.equal(deep, weights['layer4.1.conv2.weight'])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'size_hw': (190, 640)}, 'divisible by 32'),
        ({'size_hw': (32, 640)}, 'at least 64'),
        ({'encoder': 'vgg16'}, "encoder 'vgg16': expected one of resnet18"),
        ({'depth_range_m': (1.0, 0.5)}, '0 < near < far'),
        ({'pretrained': True}, 'encoder_weights'),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build_network('monodepth2', **options)


def test_a_stereo_network_asks_for_given_poses(batch):
    with torch.device('meta'):
        network = build_network('monodepth2', size_hw=SIZE, stereo=True)
    with pytest.raises(ValueError, match='pose: given'):
        network.pose(torch.empty(1, 3, *SIZE), torch.empty(1, 1, 3, *SIZE))


def test_it_learns_a_scene_by_heart(batch):
    torch.manual_seed(0)
    network = build_network('monodepth2', size_hw=SIZE)
    objective = build_objective('self_supervised', method='monodepth2')
    curve = helper.overfit(network, objective, batch, steps=16, lr=2e-4)
    assert curve[-1] < 0.5 * curve[0]


@pytest.mark.sweep
def test_with_known_motion_depth_becomes_metric(batch):
    """The error of depth itself, in metres, which the network is never told, falls."""
    torch.manual_seed(0)
    network = build_network('monodepth2', size_hw=SIZE, stereo=True, depth_range_m=(0.5, 20.0))
    objective = build_objective(
        'self_supervised', method='monodepth2', pose='given', monitor='abs_rel'
    )

    def error():
        with torch.no_grad():
            depth = network(network.normalise(batch['rgb']))  # by this picture's statistics
        return (depth / batch['depth'] - 1).abs().mean().item()

    network.train()
    before = error()
    curve = helper.overfit(network, objective, batch, steps=60, lr=5e-4)
    assert curve[-1] < 0.5 * curve[0]
    assert error() < 0.5 * before
