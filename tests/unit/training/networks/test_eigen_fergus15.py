"""Eigen & Fergus 2015: the paper's sizes, three tasks, two stages."""

from __future__ import annotations

import pytest

torch = pytest.importorskip('torch')
from depth_node.training.networks import build_network  # noqa: E402
from depth_node.training.networks.eigen_fergus15 import EigenFergus15  # noqa: E402
from depth_node.training.networks.encoders.vgg import VGG16  # noqa: E402
from depth_node.training.objectives import build_objective  # noqa: E402
from torch.nn import functional  # noqa: E402

ALL = ('depth', 'normals', 'labels')
TINY = {'size_hw': (60, 76), 'encoder': 'alexnet', 'num_classes': 4, 'dropout': 0.0}


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def scene(size_hw: tuple[int, int] = (60, 76)) -> dict[str, torch.Tensor]:
    """Left half: a wall ahead, label 1; right half: a floor, label 3; brightness tells depth."""
    height, width = size_hw
    depth = (2 + torch.linspace(0, 3, height))[:, None].expand(height, width).clone()
    depth = torch.stack([depth, depth.flip(0)])[:, None]
    rgb = (depth * 40).expand(-1, 3, -1, -1).clone()
    rgb[:, 0, :, width // 2 :] += 40
    normals = torch.zeros(2, 3, height, width)
    normals[:, 2, :, : width // 2] = -1
    normals[:, 1, :, width // 2 :] = -1
    labels = torch.ones(2, height, width, dtype=torch.int64)
    labels[:, :, width // 2 :] = 3
    depth[:, :, 4:9, 10:30] = 0
    normals[:, :, 20:26, 4:9] = 0
    labels[:, 30:33, 50:60] = -1
    K = torch.eye(3).expand(2, 3, 3)
    return {'rgb': rgb.to(torch.uint8), 'depth': depth, 'K': K, 'normals': normals,
            'labels': labels}  # fmt: skip


@pytest.mark.parametrize(
    ('encoder', 'features_hw', 'scale1'),
    [('alexnet', (256, 6, 8), 123_830_272), ('vgg16', (512, 7, 9), 216_586_688)],
)
def test_sizes_are_the_papers(encoder, features_hw, scale1):
    with torch.device('meta'):
        batch = torch.empty(2, 3, 228, 304)
        network = EigenFergus15(encoder=encoder, heads=ALL, num_classes=13, stage='scale3')
        assert network.scale1.convs(batch).shape == (2, *features_hw)
        assert network.scale1(batch).shape == (2, 64, 14, 19)
        outputs = network.outputs(batch)
        assert network(batch).shape == (2, 1, 109, 147)
        first = EigenFergus15(encoder=encoder, stage='scale12')
        assert first(batch).shape == (2, 1, *first.output_hw) == (2, 1, 55, 74)
    assert network.output_hw == (109, 147)
    assert outputs['raw'].shape == outputs['prediction'].shape == (2, 1, 109, 147)
    assert outputs['normals'].shape == (2, 3, 109, 147)
    assert outputs['labels'].shape == (2, 13, 109, 147)
    # No published figure; by the table: convolutions, 4096 features, 64 x 14 x 19 context.
    inputs = features_hw[0] * features_hw[1] * features_hw[2]
    full = (inputs + 1) * 4096 + 4097 * 64 * 14 * 19
    convs = {'alexnet': 3_747_200, 'vgg16': 14_714_688}[encoder]
    assert count(network.scale1) == full + convs == scale1


def test_first_vgg_block_is_the_one_without_padding():
    torch.manual_seed(0)
    convs = EigenFergus15(size_hw=(60, 76), encoder='vgg16').scale1.convs.eval()
    first, second = convs.vgg.features[0], convs.vgg.features[2]
    batch = torch.randn(1, 3, 60, 76)
    with torch.inference_mode():
        maps = functional.conv2d(batch, first.weight, first.bias).relu()
        maps = functional.conv2d(maps, second.weight, second.bias).relu()
        assert maps.shape[-2:] == (56, 72)
        torch.testing.assert_close(convs(batch), convs.vgg.features[4:](maps))


def test_forward_is_the_clamped_depth_of_outputs():
    torch.manual_seed(0)
    network = EigenFergus15(**TINY, heads=ALL, depth_range_m=(2.0, 2.6)).eval()
    batch = torch.randn(2, 3, 60, 76)
    with torch.inference_mode():
        network.scale2['depth'].conv5.weight.mul_(50)
        depth, outputs = network(batch), network.outputs(batch)
        assert torch.equal(depth, network(batch))
    assert outputs['prediction'].min() < 2.0
    assert outputs['prediction'].max() > 2.6
    torch.testing.assert_close(depth, outputs['raw'].exp().clamp(2.0, 2.6))
    torch.testing.assert_close(outputs['normals'].norm(dim=1), torch.ones(2, 13, 17))


@pytest.mark.parametrize(
    ('stage', 'names'),
    [
        ('scale12', ['scale1_conv', 'scale1_full', 'outer', 'inner']),
        ('scale3', ['outer', 'inner']),
    ],
)
def test_each_stage_trains_its_own_parameters_and_reaches_all_of_them(stage, names):
    torch.manual_seed(0)
    network = EigenFergus15(**TINY, heads=ALL, stage=stage).train()
    groups = network.parameter_groups()
    assert list(groups) == names
    listed = [id(p) for group in groups.values() for p in group]
    assert sorted(listed) == sorted(id(p) for p in network.parameters() if p.requires_grad)
    goal = build_objective('multi_task', weights=dict.fromkeys(ALL, 1.0))
    goal.losses(network, scene())['loss'].backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name


def test_outer_layers_are_the_first_and_the_last_of_a_scale():
    with torch.device('meta'):
        groups = EigenFergus15(encoder='alexnet', stage='scale3').parameter_groups()
    shapes = [tuple(p.shape) for p in groups['outer'] if p.ndim == 4]
    assert shapes == [(96, 3, 9, 9), (1, 64, 5, 5)]
    shapes = [tuple(p.shape) for p in groups['inner'] if p.ndim == 4]
    assert shapes == [(64, 97, 5, 5), (64, 64, 5, 5)]


@pytest.mark.parametrize('stage', ['scale12', 'scale3'])
def test_three_tasks_are_learnt_together(stage):
    torch.manual_seed(0)
    network = EigenFergus15(**TINY, heads=ALL, stage=stage)
    goal = build_objective('multi_task', weights=dict.fromkeys(ALL, 1.0))
    batch = scene()
    optimiser = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 1e-3)
    history = []
    network.train()
    for _ in range(25):
        optimiser.zero_grad()
        losses = goal.losses(network, batch)
        losses['loss'].backward()
        optimiser.step()
        history.append({name: float(value.detach()) for name, value in losses.items()})
    assert history[-1]['loss'] < 0.5 * history[0]['loss']
    for task in ALL:
        assert history[-1][task] < history[0][task], task


def test_the_second_stage_starts_from_the_first_and_leaves_it_alone():
    torch.manual_seed(0)
    first = EigenFergus15(**TINY, heads=ALL)
    second = EigenFergus15(**TINY, heads=ALL, stage='scale3').train()
    second.load_state_dict(first.state_dict())
    trained = [p for p in second.parameters() if p.requires_grad]
    goal = build_objective('multi_task', weights={'depth': 1.0})
    goal.losses(second, scene())['loss'].backward()
    torch.optim.SGD(trained, 0.1).step()
    changed = {
        name.split('.')[0]
        for name, value in second.state_dict().items()
        if not torch.equal(value, first.state_dict()[name])
    }
    assert changed == {'scale3'}


def test_dropout_is_off_in_frozen_scales_only():
    torch.manual_seed(0)
    options = {**TINY, 'dropout': 0.5}
    batch = torch.randn(1, 3, 60, 76)
    with torch.no_grad():
        frozen = EigenFergus15(**options, stage='scale3').train()
        assert torch.equal(frozen(batch), frozen(batch))
        trained = EigenFergus15(**options, stage='scale12').train()
        assert not torch.equal(trained(batch), trained(batch))


def test_vgg_weights_load_from_a_file(tmp_path):
    torch.manual_seed(0)
    encoder = VGG16()
    path = tmp_path / 'vgg16.pth'
    torch.save(encoder.state_dict(), path)
    network = build_network(
        'eigen_fergus15', size_hw=(60, 76), encoder='vgg16', pretrained=True,
        encoder_weights=str(path),
    )  # fmt: skip
    loaded = network.scale1.convs.vgg.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in encoder.state_dict().items())


def test_impossible_options_are_named():
    for size_hw in [(229, 304), (228, 301), (48, 304)]:
        with pytest.raises(ValueError, match='divisible by 4'):
            build_network('eigen_fergus15', size_hw=size_hw)
    for options, message in [
        ({'encoder': 'vgg19'}, "encoder 'vgg19': expected one of"),
        ({'stage': 'scale1'}, "stage 'scale1': expected one of"),
        ({'heads': ['depth', 'edges']}, "head 'edges': expected one of"),
        ({'heads': ['normals']}, 'expected depth, which forward returns'),
        ({'heads': ['depth', 'depth']}, 'each once'),
        ({'num_classes': 37}, r'num_classes 37: expected one of \(4, 13, 40\)'),
        ({'pretrained': True}, "torchvision's vgg16"),
    ]:
        with pytest.raises(ValueError, match=message):
            build_network('eigen_fergus15', **{'size_hw': (60, 76), **options})
