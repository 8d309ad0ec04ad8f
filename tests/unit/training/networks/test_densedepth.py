"""DenseDepth: widths and sizes are the paper's, its output is far / depth, it learns."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip('torch')
from depth_node.training.networks import build_network  # noqa: E402
from depth_node.training.networks.densedepth import ENCODERS  # noqa: E402
from depth_node.training.networks.encoders import IMAGENET_MEAN, IMAGENET_STD  # noqa: E402
from depth_node.training.objectives import build_objective  # noqa: E402
from torch.nn import functional  # noqa: E402

TINY = {'size_hw': (64, 96), 'encoder': 'densenet121', 'half_width': True}


def on_meta(**options):
    with torch.device('meta'):
        return build_network('densedepth', **options)


def counts(network):
    trained = sum(p.numel() for p in network.parameters())
    statistics = sum(b.numel() for name, b in network.named_buffers() if 'running' in name)
    return trained / 1e6, (trained + statistics) / 1e6


@pytest.mark.parametrize(
    ('half_width', 'trained', 'with_statistics'), [(False, 42.66, 42.82), (True, 21.37, 21.52)]
)
def test_trap_16_parameters_of_both_widths(half_width, trained, with_statistics):
    """The paper prints 42.6 M. Keras counts the statistics of norms too: 42.8 and 21.5 M."""
    network = on_meta(half_width=half_width)
    assert counts(network) == pytest.approx((trained, with_statistics), abs=0.005)


def test_trap_16_channels_are_those_of_the_papers_table():
    for half_width, first in ((False, 1664), (True, 832)):
        network = on_meta(half_width=half_width)
        assert tuple(network.neck.weight.shape) == (first, 1664, 1, 1)
        skips = (256, 128, 64, 64)
        widths = [first >> i for i in range(5)]
        found = [tuple(up.conv_a.weight.shape[:2]) for up in network.ups]
        assert found == [(widths[i + 1], widths[i] + skip) for i, skip in enumerate(skips)]
        assert [up.conv_b.weight.shape[1] for up in network.ups] == widths[1:]
        assert network.head.weight.shape[1] == widths[-1]


@pytest.mark.parametrize('encoder', ENCODERS)
@pytest.mark.parametrize('size_hw', [(480, 640), (384, 1280)])
def test_output_is_half_the_size(encoder, size_hw):
    network = on_meta(size_hw=size_hw, encoder=encoder).eval()
    depth = network(torch.empty(1, 3, *size_hw, device='meta'))
    assert depth.shape == (1, 1, size_hw[0] // 2, size_hw[1] // 2)
    assert network.output_hw == tuple(depth.shape[-2:])


def test_trap_16_truth_is_clamped_before_it_is_inverted():
    network = on_meta()
    depth = torch.tensor([1e-9, 0.05, 0.1, 0.4, 2.5, 10.0, 40.0])
    expected = torch.tensor([100.0, 100.0, 100.0, 25.0, 4.0, 1.0, 1.0])
    torch.testing.assert_close(network.encode(depth), expected)
    far = on_meta(depth_range_m=(0.8, 80.0))
    torch.testing.assert_close(far.encode(torch.tensor([0.5, 20.0])), torch.tensor([100.0, 4.0]))


@pytest.fixture(scope='module')
def network():
    torch.manual_seed(0)
    return build_network('densedepth', **TINY)


def test_trap_16_output_is_decoded_and_the_raw_one_is_not_cut(network):
    batch = torch.rand(2, 3, 64, 96)
    network = copy.deepcopy(
        network
    ).train()  # untrained norms know their statistics in training only
    with torch.no_grad():
        for bias in (-30.0, 5.0, 300.0):
            network.head.bias.fill_(bias)
            outputs = network.outputs(batch)
            raw, depth = outputs['raw'], outputs['prediction']
            inside = (raw > 1) & (raw < 100)
            torch.testing.assert_close(network.encode(depth)[inside], raw[inside])
            torch.testing.assert_close(depth, (10 / raw.clamp(1, 100)))
            assert 0.1 <= depth.min() <= depth.max() <= 10
            assert inside.all() if bias == 5 else not inside.any()
        depth = network.eval()(batch)
        assert torch.equal(depth, network(batch))
    assert depth.shape == (2, 1, 32, 48)
    assert depth.dtype == torch.float32


def test_an_untrained_head_starts_at_two_metres():
    for far in (10.0, 80.0):
        network = build_network('densedepth', **TINY, depth_range_m=(far / 100, far)).train()
        with torch.no_grad():
            raw = network.outputs(torch.rand(2, 3, 64, 96))['raw']
        assert raw.mean() == pytest.approx(far / 2, abs=1.5)


def test_block_is_upsampling_skip_and_two_leaky_convolutions(network):
    up, state = network.ups[1], network.ups[1].state_dict()
    coarse, skip = torch.randn(1, 256, 3, 4), torch.randn(1, 128, 6, 8)
    with torch.inference_mode():
        found = up(coarse, skip)
    # Half-pixel bilinear: each new pixel is 3/4 of the nearest and 1/4 of the next, at each axis.
    padded = functional.pad(coarse, (1, 1, 1, 1), mode='replicate')
    rows = torch.stack((0.75 * padded[:, :, 1:-1] + 0.25 * padded[:, :, :-2],
                        0.75 * padded[:, :, 1:-1] + 0.25 * padded[:, :, 2:]), 3)  # fmt: skip
    rows = rows.flatten(2, 3)
    big = torch.stack((0.75 * rows[..., 1:-1] + 0.25 * rows[..., :-2],
                       0.75 * rows[..., 1:-1] + 0.25 * rows[..., 2:]), 4).flatten(3)  # fmt: skip
    features = torch.cat((big, skip), 1)
    for name in ('conv_a', 'conv_b'):
        features = functional.conv2d(
            features, state[f'{name}.weight'], state[f'{name}.bias'], padding=1
        )
        features = torch.where(features > 0, features, 0.2 * features)
    torch.testing.assert_close(found, features, rtol=1e-4, atol=1e-4)


def test_input_is_in_0_to_1_unless_told():
    assert (on_meta().mean, on_meta().std) == ((0.0,) * 3, (255.0,) * 3)
    network = on_meta(imagenet_input=True)
    assert (network.mean, network.std) == (IMAGENET_MEAN, IMAGENET_STD)


def learnable_batch(size_hw):
    """Brighter is farther; some pixels are unknown, some out of range."""
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand((2, 1, 2, 3), generator=generator)
    depth = 1 + 4 * functional.interpolate(coarse, size_hw, mode='bilinear')
    rgb = (depth * 40 + torch.rand((2, 3, *size_hw), generator=generator) * 10).to(torch.uint8)
    depth[:, :, 0, :5] = 0
    depth[:, :, 1, :5] = 30
    return {'rgb': rgb, 'depth': depth, 'K': torch.eye(3).expand(2, 3, 3)}


def test_it_learns_a_batch_and_every_parameter_takes_part(network):
    losses = {'ssim': {'weight': 1.0, 'data_range': 100.0}, 'edge_l1': 1.0, 'l1': 0.1}
    objective = build_objective('supervised', losses=losses, space='raw', target_resize='mean_inv')
    batch = learnable_batch((64, 96))
    network.train()
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-4, amsgrad=True)
    values = []
    for step in range(14):
        optimiser.zero_grad()
        parts = objective.losses(network, batch)
        parts['loss'].backward()
        if step == 0:
            assert set(parts) == {'loss', 'ssim', 'edge_l1', 'l1'}
            for name, parameter in network.named_parameters():
                assert parameter.grad.abs().sum() > 0, name
        optimiser.step()
        values.append(parts['loss'].item())
    assert values[-1] < 0.5 * values[0], values


def test_groups_hold_every_parameter_once():
    network = on_meta()
    groups = network.parameter_groups()
    assert sum(p.numel() for p in groups['encoder']) == 12_484_480
    assert sum(len(g) for g in groups.values()) == len(list(network.parameters()))


def test_weights_file_reaches_the_encoder(network, tmp_path):
    path = tmp_path / 'densenet121.pth'
    torch.save({**network.encoder.state_dict(), 'classifier.bias': torch.zeros(1000)}, path)
    other = build_network('densedepth', **TINY, encoder_weights=str(path))
    assert torch.equal(other.encoder.features.conv0.weight, network.encoder.features.conv0.weight)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            {'size_hw': (470, 640)},
            r'network size \(470, 640\): both sides must be divisible by 32',
        ),
        ({'size_hw': (0, 640)}, 'divisible by 32'),
        ({'size_hw': (480,)}, r'size_hw: found \(480,\)'),
        ({'encoder': 'resnet18'}, "encoder 'resnet18' of network densedepth: expected one of"),
        ({'depth_range_m': (0.0, 10.0)}, '0 < near < far'),
        ({'pretrained': True}, '`encoder_weights`'),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build_network('densedepth', **options)
