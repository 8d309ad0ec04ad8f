"""The DIODE paper's U-Net, with its ceiling and without."""

from __future__ import annotations

import math
import warnings

import pytest

torch = pytest.importorskip('torch')
from depth_node.training.networks import build_network  # noqa: E402
from depth_node.training.networks.diode_unet import DiodeUNet  # noqa: E402
from depth_node.training.objectives import build_objective  # noqa: E402

SIZE = (32, 48)


def faithful(**options) -> DiodeUNet:
    with pytest.warns(UserWarning, match=r'tanh.*2\.72 m'):
        return DiodeUNet(faithful=True, size_hw=SIZE, **options)


def scene() -> dict[str, torch.Tensor]:
    """Two rooms of 1.5 to 6 m, brighter where farther, with a hole."""
    height, width = SIZE
    slope = torch.linspace(0, 1, height)[:, None] * torch.linspace(0.2, 1, width)
    depth = torch.stack([1.5 + 4.5 * slope, 6 - 3 * slope])[:, None]
    noise = 15 * torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(2))
    rgb = depth * 38 + noise
    depth[:, :, 10:20, 5:15] = 0
    return {'rgb': rgb.to(torch.uint8), 'depth': depth, 'K': torch.eye(3).expand(2, 3, 3)}


def train(network, losses, steps):
    batch = scene()
    goal = build_objective('supervised', losses=losses, space='raw')
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    values = []
    network.train()
    for _ in range(steps):
        optimiser.zero_grad()
        loss = goal.losses(network, batch)['loss']
        values.append(float(loss.detach()))
        loss.backward()
        optimiser.step()
    return values


def test_size_and_parameters_are_the_examples():
    with torch.device('meta'):
        network = DiodeUNet()
        depth = network(torch.empty(2, 3, 256, 256))
    assert depth.shape == (2, 1, 256, 256)
    # Counted by hand from the table's widths: kernels, biases, and two per normalised channel.
    widths, c_in, expected = (16, 32, 64, 128), 3, 0
    for width in widths:
        expected += 9 * (c_in * width + width * width) + 2 * width + 4 * width
        c_in = width
    expected += 9 * (128 * 256 + 256 * 256) + 2 * 256
    c_in = 256
    for width in reversed(widths):
        expected += 9 * ((c_in + width) * width + width * width) + 2 * width + 4 * width
        c_in = width
    expected += 16 + 1
    assert sum(p.numel() for p in network.parameters()) == expected == 1_964_545


def test_the_residual_is_the_first_convolutions_bare_output():
    torch.manual_seed(0)
    down = DiodeUNet(size_hw=SIZE).downs[0].eval()
    batch = torch.randn(1, 3, 8, 12)
    torch.nn.init.zeros_(down.conv2.weight)
    torch.nn.init.zeros_(down.conv2.bias)
    with torch.inference_mode():
        torch.testing.assert_close(down(batch), down.conv1(batch))


def test_only_the_faithful_network_warns():
    faithful()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        DiodeUNet(size_hw=SIZE)


@pytest.mark.parametrize('published', [True, False])
def test_trap_17_tanh_ceiling_and_the_fixed_head(published):
    """Trained on 1.5 to 6 m, one never passes e metres and the other does."""
    torch.manual_seed(0)
    network = faithful() if published else DiodeUNet(size_hw=SIZE)
    train(network, {'l1': 1.0}, 40)
    network.eval()
    batch = scene()
    with torch.inference_mode():
        depth = network(network.normalise(batch['rgb']))
    truth = batch['depth']
    far = truth > 4
    if published:
        assert depth.max() <= math.e * (1 + 1e-6)
        assert depth.min() >= 1 / math.e * (1 - 1e-6)
    else:
        assert depth[far].median() > 3.5
    # The truth beyond the ceiling still counts: it is an error, not a pixel left out.
    assert network.depth_range_m[1] > truth.max()


def test_trap_17_the_faithful_target_has_a_floor_and_the_fixed_one_none():
    depth = torch.tensor([0.05, 0.5, 1.0, 2.0, 40.0, 500.0])
    clipped = faithful().encode(depth)
    torch.testing.assert_close(
        clipped, torch.tensor([0.1, 0.1, 0.1, math.log(2), math.log(40), math.log(300)])
    )
    torch.testing.assert_close(DiodeUNet(size_hw=SIZE).encode(depth), depth.log())


def test_trap_17_unknown_pixels_are_not_learnt():
    """The masks: whatever a hole's value, the loss and its gradient are the same."""
    torch.manual_seed(0)
    network = DiodeUNet(size_hw=SIZE).eval()
    goal = build_objective(
        'supervised', losses={'ssim': {'weight': 1.7, 'window': 7, 'data_range': 5.0}, 'l1': 0.1},
        space='raw',
    )  # fmt: skip
    results = []
    for hole in (0.0, -1.0, 1e6):
        batch = scene()
        batch['depth'][batch['depth'] == 0] = hole
        network.zero_grad()
        loss = goal.losses(network, batch)['loss']
        loss.backward()
        results.append((loss.detach(), network.head.weight.grad.clone()))
    for loss, gradient in results[1:]:
        torch.testing.assert_close(loss, results[0][0])
        torch.testing.assert_close(gradient, results[0][1])


def test_gradient_reaches_every_parameter_and_the_network_learns():
    torch.manual_seed(0)
    network = DiodeUNet(size_hw=SIZE)
    losses = {
        'ssim': {'weight': 1.7, 'window': 7, 'data_range': 5.0}, 'l1': 0.1, 'edge_l1': 0.9
    }  # fmt: skip
    values = train(network, losses, 30)
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert values[-1] < 0.5 * values[0]


def test_the_faithful_network_learns_what_it_can_reach():
    torch.manual_seed(0)
    losses = {
        'ssim': {'weight': 1.7, 'window': 7, 'data_range': 256.0, 'k1': 1e-4, 'k2': 9e-4},
        'l1': 0.1,
        'keras_edge': 0.9,
    }
    values = train(faithful(), losses, 40)
    assert values[-1] < 0.5 * values[0]


def test_output_is_positive_repeatable_and_in_range():
    torch.manual_seed(0)
    network = DiodeUNet(size_hw=SIZE, depth_range_m=(0.5, 5.0)).eval()
    batch = torch.randn(1, 3, *SIZE) * 20
    with torch.inference_mode():
        depth = network(batch)
        assert torch.equal(depth, network(batch))
    assert depth.shape == (1, 1, *SIZE)
    assert depth.dtype == torch.float32
    assert 0.5 * (1 - 1e-6) <= depth.min() <= depth.max() <= 5.0 * (1 + 1e-6)


def test_dropout_is_an_option():
    torch.manual_seed(0)
    network = DiodeUNet(size_hw=SIZE, dropout=0.5)
    batch = torch.randn(1, 3, *SIZE)
    with torch.no_grad():
        network.train()
        assert not torch.equal(network(batch), network(batch))
        network.eval()
        assert torch.equal(network(batch), network(batch))


def test_impossible_options_are_named():
    for size_hw in [(250, 256), (256, 0), (256, 300)]:
        with pytest.raises(ValueError, match='divisible by 16'):
            build_network('diode_unet', size_hw=size_hw)
    with pytest.raises(ValueError, match='set pretrained: false'):
        build_network('diode_unet', pretrained=True)
    with pytest.raises(ValueError, match='0 < near < far'):
        build_network('diode_unet', depth_range_m=(2.0, 2.0))
