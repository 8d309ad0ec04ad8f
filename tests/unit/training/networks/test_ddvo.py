"""DDVO: the motion is solved for, starts at a guess if wanted, and trains the depth."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

torch = pytest.importorskip('torch')
from depth_node.training.geometry import image_pyramid  # noqa: E402
from depth_node.training.networks import build_network  # noqa: E402
from depth_node.training.networks.self_supervised import SCALES  # noqa: E402
from depth_node.training.objectives import build_objective  # noqa: E402
from depth_node.training.objectives.base import depth_scores  # noqa: E402

_SPEC = importlib.util.spec_from_file_location(
    'self_supervised_batch', Path(__file__).with_name('self_supervised_batch.py')
)
helper = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(helper)

SIZE = (48, 80)


@pytest.fixture(scope='module')
def batch(tmp_path_factory):
    root = tmp_path_factory.mktemp('triptychs')
    return helper.triptych_batch(root, SIZE, frames=1, seed=1, truth=True)


@pytest.fixture(scope='module')
def network():
    torch.manual_seed(0)
    return build_network('ddvo', size_hw=SIZE, motion='both')


def test_full_size_shapes_and_parameter_counts():
    """SfMLearner's networks, without masks."""
    with torch.device('meta'):
        network = build_network('ddvo')
        assert network(torch.empty(2, 3, 128, 416)).shape == (2, 1, 128, 416)
    assert sum(p.numel() for p in network.disp_net.parameters()) == 31_596_900
    assert sum(p.numel() for p in network.pose_net.parameters()) == 1_590_668


def test_what_trains_depends_on_the_motion_but_the_state_does_not():
    with torch.device('meta'):
        direct, guessed = build_network('ddvo'), build_network('ddvo', motion='network')
    assert set(direct.parameter_groups()) == {'decoder'}
    assert set(guessed.parameter_groups()) == {'decoder', 'pose'}
    assert list(direct.state_dict()) == list(guessed.state_dict())


def test_forward_is_positive_and_the_same_each_time(network, batch):
    network.eval()
    rgb = network.normalise(batch['rgb'])
    torch.testing.assert_close(rgb, (batch['rgb'].float() - 127) / 127)
    with torch.inference_mode():
        depth = network(rgb)
        assert torch.equal(depth, network(rgb))
    near, far = network.depth_range_m
    assert near - 1e-6 <= depth.min() <= depth.max() <= far


def poses(network, batch, **changed):
    target = network.normalise(batch['rgb'])
    sources = network.normalise(batch['views'][0])[None]
    options = {
        'inv_depth': 1 / batch['depth'], 'K': batch['K'], 'source_K': batch['view_K'], **changed
    }  # fmt: skip
    with torch.no_grad():
        return network.pose(target, sources, **options)


def test_true_depth_gives_the_true_motion_of_each_source(network, batch):
    """Of rendered pictures with hidden parts, compressed: about a tenth of the motion."""
    true = batch['view_from_frame']
    network.motion = 'direct'
    found = poses(network, batch)
    for source in range(2):
        moved = (true[0, source] - torch.eye(4)).abs().max()
        assert (found[0, source] - true[0, source]).abs().max() < 0.15 * moved
    # The sources lie on either side: their motions are opposite, not swapped.
    assert (found[0, 0] - true[0, 1]).abs().max() > 0.5 * moved


def test_the_guess_is_only_where_the_search_starts(network, batch):
    network.motion = 'both'
    both = poses(network, batch)
    network.motion = 'network'
    guess = poses(network, batch)
    true = batch['view_from_frame']
    assert (both - true).abs().max() < 0.5 * (guess - true).abs().max()
    network.motion = 'both'


def test_solving_without_depth_names_what_is_missing(network, batch):
    network.motion = 'direct'
    with pytest.raises(ValueError, match='pass inv_depth and K'):
        poses(network, batch, inv_depth=None)
    network.motion = 'both'


def test_gradient_reaches_every_parameter(network, batch):
    objective = build_objective('self_supervised', method='ddvo')
    network.train().zero_grad()
    objective.losses(network, batch)['loss'].backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent
    assert all(p.grad.isfinite().all() for p in network.parameters())
    network.zero_grad()


def test_impossible_options_are_named():
    with pytest.raises(ValueError, match="motion 'solved': expected one of direct"):
        build_network('ddvo', motion='solved')
    with pytest.raises(ValueError, match='at least one level'):
        build_network('ddvo', levels=0)
    with pytest.raises(ValueError, match='divisible by 8'):
        build_network('ddvo', size_hw=(100, 416))
    with pytest.raises(ValueError, match='sources -1'):
        build_network('ddvo', sources=-1)


class Known(torch.nn.Module):
    """In DispNet's place: the true inverse depth of the target and its sources."""

    def __init__(self, batch):
        super().__init__()
        depth = torch.cat([batch['depth'], batch['view_depth'].flatten(0, 1)])
        self.maps = image_pyramid(1 / depth, SCALES)

    def forward(self, rgb):
        assert rgb.shape[0] == self.maps[0].shape[0]
        return self.maps


@pytest.mark.sweep
def test_it_learns_a_scene_by_heart(batch):
    """Solved for, the motion makes up for much of a wrong depth, so the loss starts low.

    At this size the truth itself costs 96 % of what the untrained network does (measured). So the
    loss must come down to the truth's, and the error of depth, which the network is never told,
    to less than half.
    """
    torch.manual_seed(0)
    network = build_network('ddvo', size_hw=SIZE, iterations=6)
    objective = build_objective('self_supervised', method='ddvo')
    learned = network.disp_net
    network.disp_net = Known(batch)
    with torch.no_grad():
        truth = objective.losses(network, batch)['loss'].item()
    network.disp_net = learned

    def error():
        with torch.no_grad():
            depth = network.eval()(network.normalise(batch['rgb']))
        return depth_scores(depth, batch['depth'], batch['depth'] > 0, relative=True)['abs_rel']

    before = error().item()
    curve = helper.overfit(network, objective, batch, steps=40, lr=1e-3)
    assert curve[0] > truth > curve[-1]
    assert error().item() < 0.5 * before
