"""Eigen 2014: the paper's sizes and parameters, and both stages learn."""

from __future__ import annotations

import pytest

torch = pytest.importorskip('torch')
from depth_node.training.networks import build_network  # noqa: E402
from depth_node.training.networks.eigen14 import CoarseConvs, Eigen14  # noqa: E402
from depth_node.training.objectives import build_objective  # noqa: E402

TINY = {'size_hw': (60, 76), 'dropout': 0.0}  # maps of 13x17
LOSSES = {'scale_invariant': {'weight': 1.0, 'of_logs': True, 'drop_extremes': True}}


def count(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def scene(size_hw: tuple[int, int] = (60, 76)) -> dict[str, torch.Tensor]:
    """Two pictures that are brighter where they are farther, with a hole."""
    generator = torch.Generator().manual_seed(1)
    height, width = size_hw
    slope = torch.linspace(0, 1, height)[:, None] * torch.linspace(0.3, 1, width)
    depth = torch.stack([1.5 + 3 * slope, 4.5 - 2 * slope])[:, None]
    rgb = depth * 45 + 20 * torch.rand(2, 3, height, width, generator=generator)
    depth[:, :, 5:9, 8:20] = 0
    return {'rgb': rgb.to(torch.uint8), 'depth': depth, 'K': torch.eye(3).expand(2, 3, 3)}


def objective():
    return build_objective('supervised', losses=LOSSES, space='raw')


def train(network, steps: int, rate: float) -> tuple[float, float]:
    """Loss before and after, in evaluation mode."""
    batch, goal = scene(network.size_hw), objective()

    def loss_now() -> float:
        network.eval()
        with torch.no_grad():
            return float(goal.losses(network, batch)['loss'])

    before = loss_now()
    optimiser = torch.optim.Adam(
        [p for group in network.parameter_groups().values() for p in group], rate
    )
    network.train()
    for _ in range(steps):
        optimiser.zero_grad()
        goal.losses(network, batch)['loss'].backward()
        optimiser.step()
    return before, loss_now()


def test_nyu_sizes_and_parameters_are_the_papers():
    with torch.device('meta'):
        network = Eigen14(stage='fine')
        depth = network(torch.empty(2, 3, 228, 304))
        features = network.coarse.convs(torch.empty(1, 3, 228, 304))
    assert features.shape == (1, 256, 6, 8)
    assert depth.shape == (2, 1, 55, 74)
    assert network.output_hw == (55, 74)
    # depth-systems: fc6 50.3M, fc7 16.7M, coarse convolutions 3.7M, fine 0.12M, about 71M.
    coarse = network.coarse
    found = [count(coarse.full6), count(coarse.full7), count(coarse.convs), count(network.fine)]
    assert found == [50_335_744, 16_674_790, 3_747_200, 119_437]
    assert count(network) == sum(found) == 70_877_171


def test_kitti_predicts_the_lower_27_of_41_rows():
    with torch.device('meta'):
        network = Eigen14(size_hw=(172, 576), output_rows=27, stage='fine')
        coarse = network.coarse(torch.empty(1, 3, 172, 576))
        features = network.coarse.convs(torch.empty(1, 3, 172, 576))
        depth = network(torch.empty(1, 3, 172, 576))
    assert features.shape == (1, 256, 4, 17)
    assert coarse.shape == (1, 1, 27, 142)
    assert network.fine_px == 116  # 4 * 27 + 8 of the 172 rows
    assert depth.shape == (1, 1, 41, 142)
    assert network.output_hw == (41, 142)
    assert count(network.coarse.full7) == 15_707_898


@pytest.mark.parametrize('stage', ['coarse', 'fine'])
def test_rows_above_the_predicted_ones_repeat_the_first(stage):
    torch.manual_seed(0)
    network = Eigen14(**TINY, output_rows=8, stage=stage).eval()
    with torch.inference_mode():
        depth = network(torch.randn(1, 3, 60, 76))
    assert depth.shape == (1, 1, 13, 17)
    assert torch.equal(depth[:, :, :5], depth[:, :, 5:6].expand(-1, -1, 5, -1))
    assert depth[:, :, 5:].std() > 0


def test_the_fine_network_sees_the_rows_it_predicts():
    """Above its crop, only the coarse network looks: with that silenced, nothing changes."""
    torch.manual_seed(0)
    network = Eigen14(**TINY, output_rows=8, stage='fine').eval()
    torch.nn.init.zeros_(network.coarse.full7.weight)
    batch = torch.randn(1, 3, 60, 76)
    changed = batch.clone()
    changed[:, :, : 60 - 40] += 1.0  # 4 * 8 + 8 rows remain
    with torch.inference_mode():
        assert torch.equal(network(batch), network(changed))
        changed[:, :, 60 - 40] += 1.0
        assert not torch.equal(network(batch), network(changed))


def test_raw_is_log_depth_and_forward_clamps_it():
    torch.manual_seed(0)
    network = Eigen14(**TINY, depth_range_m=(0.5, 10.0)).eval()
    network.coarse.full7.bias.data[0] = 7.0
    network.coarse.full7.bias.data[1] = -7.0
    batch = torch.randn(1, 3, 60, 76)
    outputs = network.outputs(batch)
    torch.testing.assert_close(outputs['prediction'], outputs['raw'].exp())
    depth = network(batch).flatten()
    assert depth[:2].tolist() == pytest.approx([10.0, 0.5])
    torch.testing.assert_close(depth[2:], outputs['prediction'].flatten()[2:])
    far = torch.tensor([3.0])
    torch.testing.assert_close(network.encode(far), far.log())
    # Beyond the range the loss still pulls: the prediction of `outputs` keeps its gradient.
    outputs['prediction'].flatten()[0].backward()
    assert network.coarse.full7.bias.grad[0] > 0


@pytest.mark.parametrize(
    ('stage', 'names'),
    [('coarse', ['coarse_conv', 'coarse_full']), ('fine', ['fine_outer', 'fine_middle'])],
)
def test_each_stage_trains_its_own_parameters_and_reaches_all_of_them(stage, names):
    torch.manual_seed(0)
    network = Eigen14(**TINY, stage=stage).train()
    groups = network.parameter_groups()
    assert list(groups) == names
    grouped = {id(p) for group in groups.values() for p in group}
    assert grouped == {id(p) for p in network.parameters() if p.requires_grad}
    objective().losses(network, scene())['loss'].backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name


def test_the_middle_of_three_fine_layers_has_its_own_rate():
    with torch.device('meta'):
        groups = Eigen14(stage='fine').parameter_groups()
    assert [tuple(p.shape) for p in groups['fine_middle']] == [(64, 64, 5, 5), (64,)]
    assert len(groups['fine_outer']) == 4


@pytest.mark.parametrize(('stage', 'rate'), [('coarse', 1e-3), ('fine', 3e-3)])
def test_each_stage_learns_a_batch(stage, rate):
    torch.manual_seed(0)
    before, after = train(Eigen14(**TINY, stage=stage), 30, rate)
    assert after < 0.5 * before


def test_the_second_stage_starts_from_the_first_and_leaves_it_alone():
    torch.manual_seed(0)
    first = Eigen14(**TINY, stage='coarse')
    second = Eigen14(**TINY, stage='fine')
    second.load_state_dict(first.state_dict())
    train(second, 2, 1e-2)
    for name, value in second.coarse.state_dict().items():
        assert torch.equal(value, first.coarse.state_dict()[name]), name


def test_dropout_is_off_in_the_frozen_network_and_on_in_the_trained_one():
    torch.manual_seed(0)
    batch = torch.randn(1, 3, 60, 76)
    frozen = Eigen14(size_hw=(60, 76), stage='fine').train()
    with torch.no_grad():
        assert torch.equal(frozen(batch), frozen(batch))
        trained = Eigen14(size_hw=(60, 76), stage='coarse').train()
        assert not torch.equal(trained(batch), trained(batch))
        trained.eval()
        assert torch.equal(trained(batch), trained(batch))


def test_pretrained_convolutions_load_from_a_file(tmp_path):
    torch.manual_seed(0)
    convs = CoarseConvs()
    path = tmp_path / 'coarse.pth'
    torch.save(convs.state_dict(), path)
    network = build_network(
        'eigen14', size_hw=(60, 76), pretrained=True, encoder_weights=str(path)
    )
    for name, value in network.coarse.convs.state_dict().items():
        assert torch.equal(value, convs.state_dict()[name]), name
    torch.save({'conv1.weight': torch.zeros(64, 3, 11, 11)}, path)
    with pytest.raises(ValueError, match=r'coarse\.pth: not weights of the AlexNet of Eigen'):
        build_network('eigen14', size_hw=(60, 76), encoder_weights=str(path))


def test_impossible_options_are_named():
    for size_hw in [(230, 304), (228, 302), (52, 304), (0, 0)]:
        with pytest.raises(ValueError, match=f'network size \\({size_hw[0]}.*divisible by 4'):
            build_network('eigen14', size_hw=size_hw)
    with pytest.raises(ValueError, match='output_rows 14: expected 1 to 13'):
        build_network('eigen14', size_hw=(60, 76), output_rows=14)
    with pytest.raises(ValueError, match="stage 'both': expected one of"):
        build_network('eigen14', stage='both')
    with pytest.raises(ValueError, match='set encoder_weights'):
        build_network('eigen14', size_hw=(60, 76), pretrained=True)
    with pytest.raises(ValueError, match='0 < near < far'):
        build_network('eigen14', size_hw=(60, 76), depth_range_m=(3.0, 1.0))
