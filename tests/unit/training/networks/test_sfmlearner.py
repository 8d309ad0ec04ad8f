"""SfMLearner: layer table, sizes, what trains, and that it learns a scene by heart."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

torch = pytest.importorskip('torch')
from depth_node.training.networks import build_network  # noqa: E402
from depth_node.training.networks.self_supervised import SCALES  # noqa: E402
from depth_node.training.objectives import build_objective  # noqa: E402

_SPEC = importlib.util.spec_from_file_location(
    'self_supervised_batch', Path(__file__).with_name('self_supervised_batch.py')
)
helper = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(helper)

SIZE = (48, 80)


def conv_weights(c_in: int, c_out: int, kernel: int) -> int:
    return c_out * (c_in * kernel * kernel + 1)


def test_full_size_shapes_and_parameter_counts():
    """Counted by hand from the reference's table (section 2.11), with its kernels and skips."""
    with torch.device('meta'):
        network = build_network('sfmlearner', explainability=True)
        batch = torch.empty(2, 3, 128, 416)
        maps = network.inv_depths(batch)
        _, masks = network.pose_and_explainability(batch, torch.empty(2, 2, 3, 128, 416))
        assert network(batch).shape == (2, 1, 128, 416)
    sizes = [(128, 416), (64, 208), (32, 104), (16, 52)]
    assert [tuple(m.shape) for m in maps] == [(2, 1, *size) for size in sizes]
    assert [tuple(m.shape) for m in masks] == [(2, 2, 2, *size) for size in sizes]
    down = [(3, 32, 7), (32, 64, 5), (64, 128, 3), (128, 256, 3), (256, 512, 3),
            (512, 512, 3), (512, 512, 3)]  # fmt: skip
    count = sum(conv_weights(a, b, k) + conv_weights(b, b, k) for a, b, k in down)
    up = [(512, 512, 512), (512, 512, 512), (512, 256, 256), (256, 128, 128),
          (128, 64, 64), (64, 32, 32), (32, 16, 0)]  # fmt: skip
    for level, (below, width, skip) in enumerate(up):
        coarser = 1 if level > 3 else 0
        count += conv_weights(below, width, 3) + conv_weights(width + skip + coarser, width, 3)
        count += conv_weights(width, 1, 3) if level >= 3 else 0
    assert sum(p.numel() for p in network.disp_net.parameters()) == count == 31_596_900
    pose = [(9, 16, 7), (16, 32, 5), (32, 64, 3), (64, 128, 3), (128, 256, 3), (256, 256, 3),
            (256, 256, 3), (256, 12, 1)]  # fmt: skip
    masked = [(256, 256, 3), (256, 128, 3), (128, 64, 3), (64, 32, 5), (32, 16, 7),
              (128, 4, 3), (64, 4, 3), (32, 4, 5), (16, 4, 7)]  # fmt: skip
    counts = [sum(conv_weights(*layer) for layer in part) for part in (pose, masked)]
    assert sum(p.numel() for p in network.pose_net.parameters()) == sum(counts)
    with torch.device('meta'):
        plain = build_network('sfmlearner')
    assert sum(p.numel() for p in plain.pose_net.parameters()) == counts[0] == 1_590_668


@pytest.fixture(scope='module')
def network():
    torch.manual_seed(0)
    return build_network('sfmlearner', size_hw=SIZE, explainability=True)


@pytest.fixture(scope='module')
def batch(tmp_path_factory):
    return helper.triptych_batch(tmp_path_factory.mktemp('triptychs'), SIZE, frames=1, seed=1)


def test_forward_is_positive_in_range_and_the_same_each_time(network, batch):
    network.eval()
    rgb = network.normalise(batch['rgb'])
    assert -1 <= rgb.min() < 0 < rgb.max() <= 1
    with torch.inference_mode():
        depth, again = network(rgb), network(rgb)
        outputs = network.outputs(rgb)
    assert depth.shape == (1, 1, *SIZE)
    assert depth.dtype == torch.float32
    assert torch.equal(depth, again)
    near, far = network.depth_range_m
    assert near - 1e-6 <= depth.min() <= depth.max() <= far
    assert network.output_kind == 'rel_depth'
    torch.testing.assert_close(outputs['prediction'], depth)
    torch.testing.assert_close(1 / outputs['inv_depth_0'], depth)
    assert set(outputs) == {'prediction', *(f'inv_depth_{s}' for s in range(SCALES))}


def test_gradient_reaches_every_parameter(network, batch):
    objective = build_objective('self_supervised', method='sfmlearner', explainability_weight=0.2)
    network.train().zero_grad()
    objective.losses(network, batch)['loss'].backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent
    network.zero_grad()
    groups = network.parameter_groups()
    assert set(groups) == {'decoder', 'pose'}
    together = [id(p) for group in groups.values() for p in group]
    assert sorted(together) == sorted(id(p) for p in network.parameters())


def test_the_pose_is_small_at_first_and_follows_the_head(network, batch):
    target = network.normalise(batch['rgb'])
    sources = network.normalise(batch['views'][0])[None]
    with torch.no_grad():
        pose = network.pose(target, sources)
        assert pose.shape == (1, 2, 4, 4)
        assert (pose - torch.eye(4)).abs().max() < 0.1
        head = network.pose_net.head[-1]
        kept = head.bias.clone()
        head.bias[6 + 2] += 50.0  # the second source's third number
        moved = network.pose(target, sources)
        head.bias.copy_(kept)
    difference = moved - pose
    assert difference[0, 1, 2, 3].item() == pytest.approx(0.5, abs=1e-5)
    difference[0, 1, 2, 3] = 0
    assert difference.abs().max() < 1e-6


def test_another_number_of_views_names_the_option(network, batch):
    target = network.normalise(batch['rgb'])
    with pytest.raises(ValueError, match=r'expected \(N, 2, 3, H, W\); the network option'):
        network.pose(target, target[:, None])


@pytest.mark.parametrize('size_hw', [(60, 80), (64, 100), (24, 64), (0, 64)])
def test_impossible_sizes_are_named(size_hw):
    with pytest.raises(ValueError, match='both sides must be divisible by 8'):
        build_network('sfmlearner', size_hw=size_hw)


def test_impossible_options_are_named():
    with pytest.raises(ValueError, match='nobody trained the layers of DispNet'):
        build_network('sfmlearner', pretrained=True)
    with pytest.raises(ValueError, match='sources 0'):
        build_network('sfmlearner', sources=0)


@pytest.mark.parametrize('size_hw', [(40, 72), (128, 416)])
def test_sides_that_do_not_halve_evenly_keep_their_maps_in_place(size_hw):
    with torch.device('meta'):
        network = build_network('sfmlearner', size_hw=size_hw)
        maps = network.inv_depths(torch.empty(1, 3, *size_hw))
    for scale, found in enumerate(maps):
        assert found.shape[-2:] == (size_hw[0] >> scale, size_hw[1] >> scale)


def test_it_learns_a_scene_by_heart(batch):
    torch.manual_seed(0)
    network = build_network('sfmlearner', size_hw=SIZE)
    objective = build_objective('self_supervised', method='sfmlearner')
    before = objective.scores(network.eval(), batch)['photometric'].item()
    curve = helper.overfit(network, objective, batch, steps=24, lr=2e-4)
    assert curve[-1] < 0.5 * curve[0]
    assert objective.scores(network.eval(), batch)['photometric'].item() < 0.7 * before
