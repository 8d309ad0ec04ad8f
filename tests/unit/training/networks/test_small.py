"""Blocks of network small: the identity at first, ConvNeXt's arithmetic, a group of their own."""

from __future__ import annotations

import pytest

torch = pytest.importorskip('torch')
from depth_node.training.networks import build_network  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

SIZE_HW = (64, 96)


def small(**options):
    torch.manual_seed(4)
    return build_network('small', size_hw=SIZE_HW, pretrained=False, **options).eval()


def randomise(network):
    """Give the last layers something to add, as training does."""
    for name, parameter in network.named_parameters():
        if name.startswith('blocks.') and '.back.' in name:
            nn.init.normal_(parameter, std=0.05)


def test_blocks_begin_as_the_identity_and_do_something_afterwards():
    plain, grown = small(), small(blocks=[2, 0, 1])
    left = grown.load_state_dict(plain.state_dict(), strict=False)
    assert not left.unexpected_keys
    assert {name.split('.')[1] for name in left.missing_keys} == {'0', '2'}
    picture = torch.randn(2, 3, *SIZE_HW)
    with torch.no_grad():
        assert torch.equal(grown(picture), plain(picture))
        randomise(grown)
        assert float((grown(picture) / plain(picture) - 1).abs().max()) > 1e-4


def test_a_block_is_a_wide_filter_and_two_layers_of_each_pixel():
    block = small(blocks=[0, 0, 0, 0, 1]).blocks[4][0]
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.1)
    x = torch.randn(2, 32, 9, 13)
    padded = functional.pad(x, (3, 3, 3, 3))
    seen = torch.zeros_like(x)
    for i in range(7):
        for j in range(7):
            window = padded[:, :, i : i + 9, j : j + 13]
            seen += block.look.weight[:, 0, i, j][None, :, None, None] * window
    pixels = (seen + block.look.bias[:, None, None]).permute(0, 2, 3, 1)
    wide = (pixels @ block.widen.weight[:, :, 0, 0].T + block.widen.bias).clamp(min=0)
    back = wide @ block.back.weight[:, :, 0, 0].T + block.back.bias
    with torch.no_grad():
        torch.testing.assert_close(block(x), x + back.permute(0, 3, 1, 2), rtol=1e-4, atol=1e-4)


def test_every_parameter_learns_in_one_group():
    network = small(blocks=[1, 1])
    groups = network.parameter_groups()
    assert list(groups) == ['encoder', 'decoder', 'blocks']
    ids = [id(parameter) for members in groups.values() for parameter in members]
    assert sorted(ids) == sorted(map(id, network.parameters()))
    assert {id(p) for p in groups['blocks']} == {id(p) for p in network.blocks.parameters()}
    assert list(small().parameter_groups()) == ['encoder', 'decoder']
    network(torch.randn(1, 3, *SIZE_HW)).sum().backward()
    first = network.blocks[0][0]
    assert float(first.back.weight.grad.abs().max()) > 0
    randomise(network)
    network(torch.randn(1, 3, *SIZE_HW)).sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in network.blocks.parameters())


@pytest.mark.parametrize('blocks', [[1, 1, 1, 1, 1, 1], [1, -1]])
def test_impossible_counts_are_named(blocks):
    with pytest.raises(ValueError, match=r'network small: expected up to 5 counts'):
        small(blocks=blocks)
