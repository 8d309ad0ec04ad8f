"""GeoNet: two stages of one state, and flow that is the camera's plus what else moves."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

torch = pytest.importorskip('torch')
from depth_node.training.geometry import image_pyramid  # noqa: E402
from depth_node.training.networks import build_network  # noqa: E402
from depth_node.training.networks.encoders import (  # noqa: E402
    IMAGENET_MEAN,
    IMAGENET_STD,
    build_encoder,
)
from depth_node.training.networks.self_supervised import SCALES  # noqa: E402
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
    return helper.triptych_batch(root, SIZE, frames=2, seed=0, truth=True)


@pytest.fixture(scope='module')
def flow_network():
    torch.manual_seed(0)
    return build_network('geonet', size_hw=SIZE, stage='flow')


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize('encoder', ['resnet50', 'vgg'])
def test_full_size_shapes_and_parameter_counts(encoder):
    with torch.device('meta'):
        network = build_network('geonet', encoder=encoder)
        batch = torch.empty(2, 3, 128, 416)
        maps = network.inv_depths(batch)
        flows = network.residual_flows(batch, batch, batch, torch.empty(2, 2, 128, 416))
    sizes = [(128, 416), (64, 208), (32, 104), (16, 52)]
    assert [tuple(m.shape) for m in maps] == [(2, 1, *size) for size in sizes]
    assert [tuple(f.shape) for f in flows] == [(2, 2, *size) for size in sizes]
    # SfMLearner's pose network; six norms of two numbers a channel instead of a bias.
    assert parameters(network.pose_net) == 1_590_668 + 16 + 32 + 64 + 128 + 256 * 3
    if encoder == 'vgg':  # SfMLearner's DispNet likewise
        pairs = 2 * (32 + 64 + 128 + 256 + 512 * 3)
        ups = 2 * (512 + 512 + 256 + 128 + 64 + 32 + 16)
        assert parameters(network.disp_net) == 31_596_900 + pairs + ups
        assert network.depth_range_m[0] == pytest.approx(1 / 10.01)
    else:  # torchvision's ResNet-50 has 25,557,032, 2,049,000 of them in the classifier
        assert parameters(network.encoder) == 25_557_032 - 2_049_000
        assert parameters(network.disp_net) == 32_524_132
        assert network.depth_range_m[0] == pytest.approx(1 / 5.01)


def test_the_stages_share_their_state_and_freeze_each_other():
    with torch.device('meta'):
        rigid, flow = build_network('geonet'), build_network('geonet', stage='flow')
    assert list(rigid.state_dict()) == list(flow.state_dict())
    assert set(rigid.parameter_groups()) == {'encoder', 'decoder', 'pose'}
    assert set(flow.parameter_groups()) == {'pose'}
    trained = {name.split('.')[0] for name, p in rigid.named_parameters() if p.requires_grad}
    assert trained == {'disp_net', 'pose_net'}
    trained = {name.split('.')[0] for name, p in flow.named_parameters() if p.requires_grad}
    assert trained == {'flow_net'}
    flow.train()
    assert flow.flow_net.training
    assert not any(m.training for part in (flow.disp_net, flow.pose_net) for m in part.modules())
    assert flow.eval().training is False


def test_forward_is_positive_and_the_same_each_time(flow_network, batch):
    flow_network.eval()
    rgb = flow_network.normalise(batch['rgb'])
    with torch.inference_mode():
        depth = flow_network(rgb)
        assert torch.equal(depth, flow_network(rgb))
    near, far = flow_network.depth_range_m
    assert depth.shape == (2, 1, *SIZE)
    assert near - 1e-6 <= depth.min() <= depth.max() <= far


def test_residual_flow_is_a_tenth_of_the_sides_of_each_size(flow_network):
    """A head that says 1 everywhere: 0.1 of the width to the right, 0.1 of the height down."""
    decoder = flow_network.flow_net.decoder
    kept = [(head.weight.clone(), head.bias.clone()) for head in decoder.heads]
    with torch.no_grad():
        for head in decoder.heads:
            head.weight.zero_()
            head.bias.fill_(1.0)
        image = torch.rand(1, 3, *SIZE)
        flow_network.eval()
        flows = flow_network.residual_flows(image, image, image, torch.zeros(1, 2, *SIZE))
        for head, (weight, bias) in zip(decoder.heads, kept, strict=True):
            head.weight.copy_(weight)
            head.bias.copy_(bias)
    for scale, flow in enumerate(flows):
        assert flow[0, 0].unique().tolist() == pytest.approx([9.6 / 2**scale])
        assert flow[0, 1].unique().tolist() == pytest.approx([6.4 / 2**scale])


def test_the_second_stage_trains_flow_alone(flow_network, batch):
    objective = build_objective('self_supervised', method='geonet_flow')
    flow_network.train().zero_grad()
    before = {
        name: value.clone()
        for name, value in flow_network.state_dict().items()
        if not name.startswith('flow_net')
    }
    parts = objective.losses(flow_network, batch)
    parts['loss'].backward()
    assert 0 < parts['consistent_share'] < 1
    for name, p in flow_network.named_parameters():
        assert (p.grad is not None and bool(p.grad.any())) == name.startswith('flow_net'), name
    for name, value in before.items():
        assert torch.equal(flow_network.state_dict()[name], value), name
    flow_network.zero_grad()


class _True(torch.nn.Module):
    """In a network's place: always the same answer."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, *_):
        return self.answer


def test_the_flow_of_true_depth_and_motion_explains_the_views(batch):
    """Three pixels more there and less back are consistent, but explain nothing.

    One more both ways is not consistent: the flow there and back is off by two pixels of the
    full picture in each direction. The rest are hidden pixels and sampling.
    """
    torch.manual_seed(0)
    network = build_network('geonet', size_hw=SIZE, stage='flow', encoder='vgg')
    depth = torch.cat([batch['depth'], batch['view_depth'].flatten(0, 1)])
    network.disp_net = _True(image_pyramid(1 / depth, SCALES))
    network.pose = lambda *_, **__: batch['view_from_frame']
    objective = build_objective('self_supervised', method='geonet_flow', normalise_inv_depth=False)
    sign = torch.cat([torch.ones(4), -torch.ones(4)]).view(8, 1, 1, 1)
    found = {}
    for name, shift in (('true', 0 * sign), ('wrong', 3 * sign), ('apart', 1 + 0 * sign)):
        flows = [(shift / 2**s).expand(8, 2, SIZE[0] >> s, SIZE[1] >> s) for s in range(SCALES)]
        network.flow_net = _True(flows)
        found[name] = {k: v.item() for k, v in objective.losses(network, batch).items()}
    assert found['true']['photometric'] < 0.2 * found['wrong']['photometric']
    assert all(parts['consistent_share'] > 0.6 for parts in found.values())
    off = sum(2 / 2**s for s in range(SCALES))
    difference = found['apart']['consistency'] - found['true']['consistency']
    assert difference == pytest.approx(off, rel=0.05)


def test_the_flow_network_sees_both_pictures_the_warp_its_flow_and_error(flow_network):
    class Seen(torch.nn.Module):
        def forward(self, batch):
            self.batch = batch

    torch.manual_seed(0)
    kept, flow_network.flow_net = flow_network.flow_net, Seen()
    target, source, warped = torch.rand(3, 2, 3, *SIZE)
    flow = torch.rand(2, 2, *SIZE)
    flow_network.residual_flows(target, source, warped, flow)
    found = flow_network.flow_net.batch
    flow_network.flow_net = kept
    error = ((warped - target) ** 2).sum(1, keepdim=True).sqrt()
    for part, expected in zip(
        found.split((3, 3, 3, 2, 1), 1), (target, source, warped, flow, error), strict=True
    ):
        torch.testing.assert_close(part, expected)


def test_gradient_reaches_every_parameter_of_the_first_stage(batch):
    torch.manual_seed(0)
    network = build_network('geonet', size_hw=SIZE).train()
    objective = build_objective('self_supervised', method='geonet_rigid', both_directions=False)
    objective.losses(network, batch)['loss'].backward()
    silent = [
        name
        for name, p in network.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert not silent
    assert all(p.grad is None for p in network.flow_net.parameters())


def test_imagenet_weights_reach_both_encoders_and_bring_their_normalisation(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / 'resnet50.pth'
    weights = build_encoder('resnet50').state_dict()
    torch.save(weights, path)
    network = build_network('geonet', size_hw=SIZE, encoder_weights=str(path))
    assert torch.equal(network.encoder.conv1.weight, weights['conv1.weight'])
    wide = network.flow_net.encoder.conv1.weight
    assert wide.shape == (64, 12, 7, 7)
    torch.testing.assert_close(wide.sum(1), weights['conv1.weight'].sum(1))
    assert (network.mean, network.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert build_network('geonet', size_hw=SIZE).std == (127.5, 127.5, 127.5)


def test_impossible_options_are_named():
    with torch.device('meta'):
        for options, message in (
            ({'stage': 'both'}, "stage 'both': expected one of rigid, flow"),
            ({'encoder': 'resnet18'}, "encoder 'resnet18': expected one of resnet50, vgg"),
            ({'size_hw': (128, 400)}, 'divisible by 32'),
            ({'size_hw': (32, 416)}, 'at least 64'),
            ({'sources': 0}, 'sources 0'),
            ({'pretrained': True}, 'encoder_weights'),
            ({'encoder': 'vgg', 'pretrained': True}, 'pretrained'),
            ({'encoder': 'vgg', 'encoder_weights': 'x.pth'}, 'there are none for encoder vgg'),
        ):
            with pytest.raises(ValueError, match=message):
                build_network('geonet', **options)


@pytest.mark.sweep
@pytest.mark.parametrize('stage', ['rigid', 'flow'])
def test_it_learns_a_scene_by_heart(stage, batch):
    torch.manual_seed(0)
    network = build_network('geonet', size_hw=SIZE, stage=stage)
    objective = build_objective('self_supervised', method=f'geonet_{stage}')
    curve = helper.overfit(network, objective, batch, steps=24, lr=1e-3)
    assert curve[-1] < 0.5 * curve[0]
