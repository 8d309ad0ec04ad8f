"""True depth and motion explain the views, wrong ones do not, by every method."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

torch = pytest.importorskip('torch')
from depth_node.camera import Camera  # noqa: E402
from depth_node.training.augment import warp  # noqa: E402
from depth_node.training.frame import Frame, View  # noqa: E402
from depth_node.training.geometry import axis_angle_pose, image_pyramid  # noqa: E402
from depth_node.training.loading import collate_frames, tensors  # noqa: E402
from depth_node.training.networks import build_network  # noqa: E402
from depth_node.training.networks.self_supervised import (  # noqa: E402
    SCALES,
    SelfSupervisedNetwork,
)
from depth_node.training.objectives import build_objective  # noqa: E402

_SPEC = importlib.util.spec_from_file_location(
    'self_supervised_batch', Path(__file__).parents[1] / 'networks' / 'self_supervised_batch.py'
)
helper = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(helper)

SIZE = (64, 96)
METHODS = ('sfmlearner', 'geonet_rigid', 'ddvo', 'monodepth2')


class Oracle(SelfSupervisedNetwork):
    """Returns maps and motions that it was given; a picture is known by its first pixels."""

    size_hw = output_hw = SIZE

    def __init__(self, rgb, inv_depth, pose):
        super().__init__()
        self.keys = self.normalise(rgb)[:, :, :2].flatten(1)
        self.inv_depth = torch.nn.Parameter(inv_depth)
        self.motion = torch.nn.Parameter(pose)

    def inv_depths(self, batch):
        keys = batch[:, :, :2].flatten(1)
        index = torch.cdist(keys, self.keys).argmin(1)
        return image_pyramid(self.inv_depth[index], SCALES)

    def pose(self, target, sources, *, inv_depth=None, K=None, source_K=None):
        return self.motion


@pytest.fixture(scope='module')
def batch(tmp_path_factory):
    root = tmp_path_factory.mktemp('triptychs')
    return helper.triptych_batch(root, SIZE, frames=2, seed=3, truth=True)


def oracle(batch, *, depth_factor=1.0, depth_power=1.0, motion=None):
    rgb = torch.cat([batch['rgb'], batch['views'].flatten(0, 1)])
    depth = torch.cat([batch['depth'], batch['view_depth'].flatten(0, 1)])
    pose = batch['view_from_frame'].clone()
    if motion is not None:
        pose = pose @ motion
    return Oracle(rgb, 1 / (depth_factor * depth**depth_power), pose)


def photometric(network, batch, **options):
    objective = build_objective('self_supervised', **options)
    with torch.no_grad():
        parts = objective.losses(network, batch)
    return parts['photometric'].item(), objective.scores(network, batch)


@pytest.mark.parametrize('method', METHODS)
def test_the_truth_explains_the_views_and_what_is_wrong_does_not(method, batch):
    """Without normalisation, so that depth and motion stay in one unit."""
    options = {'method': method, 'normalise_inv_depth': False, 'out_of_view': 'ignore'}
    true, scores = photometric(oracle(batch), batch, **options)
    assert scores['photometric'].shape == (2,)
    assert scores['abs_rel'].max() < 1e-5
    turned = axis_angle_pose(torch.tensor([0, 0, 0, 0, 0.03, 0.0]))
    standing = oracle(batch)
    standing.motion.data = torch.eye(4).expand(2, 2, 4, 4).clone()
    for wrong in (
        oracle(batch, motion=turned),
        oracle(batch, depth_factor=2.0),
        oracle(batch, depth_power=0.2),
        standing,
    ):
        loss, wrong_scores = photometric(wrong, batch, **options)
        # With auto-masking the unwarped source bounds the loss from above.
        assert loss > (1.15 if method == 'monodepth2' else 1.3) * true
        assert (wrong_scores['photometric'] > 1.5 * scores['photometric']).all()


def test_the_truth_leaves_next_to_nothing(batch):
    """What remains of 0..1 is what JPEG and bilinear sampling lose, and hidden pixels."""
    loss, scores = photometric(
        oracle(batch), batch, method='monodepth2', pose='given', normalise_inv_depth=False
    )
    assert loss < 0.008
    assert scores['photometric'].max() < 0.008
    blind, _ = photometric(
        oracle(batch, depth_power=0.0, motion=axis_angle_pose(torch.full((6,), 0.05))),
        batch, method='monodepth2', auto_mask=False,
    )  # fmt: skip
    assert blind > 0.1


def test_gradient_points_from_a_wrong_depth_to_the_true_one(batch):
    """d loss / d ln depth: positive where depth is too large, negative where it is too small."""
    objective = build_objective(
        'self_supervised', method='monodepth2', pose='given', smoothness_weight=0.0
    )
    for factor, sign in ((1.15, 1), (0.87, -1)):
        network = oracle(batch, depth_factor=factor)
        objective.losses(network, batch)['loss'].backward()
        along_depth = -(network.inv_depth.grad * network.inv_depth).sum()
        assert along_depth.item() * sign > 1e-3


def test_given_and_network_poses_are_the_same_when_equal_and_mixed_fills_the_gaps(batch):
    network = oracle(batch)
    options = {'method': 'monodepth2'}
    by_network, _ = photometric(network, batch, **options)
    given, _ = photometric(network, batch, pose='given', **options)
    assert given == pytest.approx(by_network, rel=1e-5)
    gaps = {**batch, 'view_from_frame': batch['view_from_frame'].clone()}
    gaps['view_from_frame'][:, 0] = torch.nan
    mixed, _ = photometric(network, gaps, pose='mixed', **options)
    assert mixed == pytest.approx(given, rel=1e-5)
    network.motion.data[:, 1] = torch.eye(4)  # known anyway
    mixed, _ = photometric(network, gaps, pose='mixed', **options)
    assert mixed == pytest.approx(given, rel=1e-5)
    with pytest.raises(ValueError, match='does not know the pose of some views'):
        photometric(network, gaps, pose='given', **options)


@pytest.mark.parametrize('method', METHODS)
def test_trap_20_no_loss_can_be_lowered_by_shrinking_inverse_depth(method, batch):
    """The loss's slope along 'all farther away'; without the switch smoothness rewards it.

    In the older three the warp is measured by the mean as well, so motions keep their unit and
    nothing at all changes; Monodepth2 normalises for smoothness only.
    """
    slopes = {}
    for normalise in (True, False):
        network = oracle(batch)
        objective = build_objective(
            'self_supervised', method=method, normalise_inv_depth=normalise,
            photometric_weight=0.0 if method == 'monodepth2' else 1.0,
        )  # fmt: skip
        parts = objective.losses(network, batch)
        (grad,) = torch.autograd.grad(parts['loss'], network.inv_depth)
        per_picture = (grad * network.inv_depth).flatten(1).sum(1)
        slopes[normalise] = per_picture.abs().max().item() / parts['loss'].item()
    assert slopes[True] < 1e-4
    assert slopes[False] > 1e-2


def test_a_batch_is_the_mean_of_its_pictures(batch):
    """Every view is seen: what is not seen at all counts for nothing, nowhere."""

    def half(index):
        one = {key: value[index : index + 1] for key, value in batch.items()}
        network = oracle(one)
        return objective.losses(network, one)

    for method in METHODS:
        objective = build_objective('self_supervised', method=method, normalise_inv_depth=False)
        whole = objective.losses(oracle(batch), batch)
        first, second = half(0), half(1)
        for name in ('loss', 'photometric', 'smoothness'):
            expected = (first[name].item() + second[name].item()) / 2
            assert whole[name].item() == pytest.approx(expected, rel=1e-4)


def test_sources_and_scales_add_up_as_in_sfmlearner(batch):
    """With the sources equal and the camera standing, each scale costs twice the difference."""
    still = {**batch, 'views': batch['views'][:, :1].repeat(1, 2, 1, 1, 1)}
    network = Oracle(
        torch.cat([still['rgb'], still['views'].flatten(0, 1)]),
        torch.ones(6, 1, *SIZE), torch.eye(4).repeat(2, 2, 1, 1),
    )  # fmt: skip
    parts = build_objective('self_supervised', method='sfmlearner').losses(network, still)
    images = image_pyramid(still['rgb'].float(), SCALES)
    views = image_pyramid(still['views'][:, 0].float(), SCALES)
    expected = sum(
        2 * ((a - b) / 127.5).abs().mean().item() for a, b in zip(images, views, strict=True)
    )
    assert parts['photometric'].item() == pytest.approx(expected, rel=1e-3)
    assert parts['smoothness'].item() == pytest.approx(0.0, abs=1e-6)


def test_second_order_smoothness_is_divided_by_powers_of_two(batch):
    """inv_depth = u^2 / mean at all sizes: |xx| = 2 / mean, 8, 32 and 128 times as large."""
    u = torch.arange(float(SIZE[1])).expand(1, 1, *SIZE)
    maps = (u * u + 1).repeat(6, 1, 1, 1)
    rgb = torch.cat([batch['rgb'], batch['views'].flatten(0, 1)])
    network = Oracle(rgb, maps, batch['view_from_frame'])
    options = {'method': 'sfmlearner', 'normalise_inv_depth': False}
    parts = build_objective('self_supervised', **options).losses(network, batch)
    expected = sum(2 * 4**scale / 2**scale for scale in range(SCALES))
    assert parts['smoothness'].item() == pytest.approx(expected, rel=1e-4)


def test_explainability_weighs_the_error_and_is_held_up_by_its_own_term(batch):
    torch.manual_seed(0)
    network = build_network('sfmlearner', size_hw=SIZE, explainability=True)
    objective = build_objective('self_supervised', method='sfmlearner', explainability_weight=0.2)
    with torch.no_grad():
        for head in network.pose_net.mask_heads:
            head.weight.zero_()
            head.bias.zero_()  # every pixel half explained
        half = objective.losses(network, batch)
        for head in network.pose_net.mask_heads:
            head.bias[1::2] = 40.0  # wholly
        whole = objective.losses(network, batch)
        plain = build_objective('self_supervised', method='sfmlearner').losses(network, batch)
    assert half['photometric'].item() == pytest.approx(whole['photometric'].item() / 2, rel=1e-4)
    assert whole['photometric'].item() == pytest.approx(plain['photometric'].item(), rel=1e-4)
    log_2 = torch.log(torch.tensor(2.0)).item()
    assert half['explainability'].item() == pytest.approx(2 * SCALES * log_2, rel=1e-5)
    assert whole['explainability'].item() == pytest.approx(0.0, abs=1e-5)
    with pytest.raises(ValueError, match='predicts no masks'):
        objective.losses(oracle(batch), batch)


def test_scores_without_true_depth_are_photometric_alone(batch):
    blind = {**batch, 'depth': torch.zeros_like(batch['depth'])}
    objective = build_objective('self_supervised', method='ddvo')
    scores = objective.scores(oracle(batch), blind)
    assert objective.monitor == 'photometric'
    assert scores['photometric'].isfinite().all()
    assert scores['abs_rel'].isnan().all()
    assert build_objective('self_supervised', monitor='abs_rel').monitor == 'abs_rel'


def test_depth_scores_of_a_relative_network_are_median_scaled(batch):
    scores = build_objective('self_supervised').scores(oracle(batch, depth_factor=5.0), batch)
    assert scores['abs_rel'].max() < 1e-5


def test_mixed_precision_gives_the_same_loss(batch):
    """The oracle computes nothing in half; warps must not either."""
    for method in METHODS:
        objective = build_objective('self_supervised', method=method)
        exact = objective.losses(oracle(batch), batch)['loss'].item()
        with torch.autocast('cpu', torch.bfloat16):
            mixed = objective.losses(oracle(batch), batch)['loss'].item()
        assert mixed == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'method': 'monodepth'}, "method 'monodepth': expected one of sfmlearner"),
        ({'pose': 'known'}, "pose 'known': expected one of network"),
        ({'monitor': 'rmse'}, "monitor 'rmse'"),
        ({'smoothness_weight': -1.0}, 'smoothness_weight -1'),
        ({'ssim_weight': 2.0}, 'ssim_weight 2'),
        ({'out_of_view': 'wrap'}, "out_of_view 'wrap'"),
        ({'smoothness_order': 3}, 'smoothness_order 3'),
        ({'method': 'ddvo', 'auto_mask': True}, 'set minimum: true'),
        ({'both_directions': True}, 'excludes both_directions'),
        ({'method': 'geonet_flow', 'both_directions': False}, 'there and back'),
        ({'method': 'geonet_flow', 'monitor': 'abs_rel'}, 'leaves depth as it is'),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build_objective('self_supervised', **options)


def test_networks_that_do_not_fit_are_named(batch):
    with pytest.raises(ValueError, match='SmallDepthNet predicts no motion'):
        build_objective('self_supervised').losses(
            build_network('small', size_hw=SIZE, pretrained=False), batch
        )
    with pytest.raises(ValueError, match='Oracle trains no flow'):
        build_objective('self_supervised', method='geonet_flow').losses(oracle(batch), batch)


@pytest.mark.parametrize(
    'change',
    [
        {'mirror': True},
        {'crop': (9.0, 5.0, 80.0, 50.0)},
        {'mirror': True, 'crop': (3.5, 0.0, 88.0, 61.0), 'roll_rad': 0.06},
    ],
    ids=['mirrored', 'cropped', 'all'],
)
def test_trap_24_augmented_views_are_still_explained_by_their_depth_and_motion(change, batch):
    """Mirroring moves cx and swaps the sides of a motion; cropping and turning change K and pose.

    The moved truth leaves about what the truth left; the pose as it was before does not.
    """
    items, before = [], []
    for index in range(2):
        K = batch['K'][index].double().numpy()
        camera = Camera(SIZE, K[0, 0], K[1, 1], K[0, 2], K[1, 2])
        rgb = batch['rgb'][index].permute(1, 2, 0).numpy()
        views = tuple(
            View(
                batch['views'][index, at].permute(1, 2, 0).numpy(),
                camera,
                batch['view_from_frame'][index, at].double().numpy(),
                batch['view_depth'][index, at, 0].numpy(),
            )
            for at in range(2)
        )
        frame = Frame(rgb, batch['depth'][index, 0].numpy(), camera, views=views)
        items.append(tensors(warp(frame, SIZE, **change)))
        before.append(batch['view_from_frame'][index])
    changed = collate_frames(items)
    for name in ('depth', 'view_depth'):  # turned corners know no depth: any will do
        changed[name] = torch.where(changed[name] > 0, changed[name], 4.0)
    options = {'method': 'monodepth2', 'normalise_inv_depth': False}
    plain, _ = photometric(oracle(batch), batch, **options)
    moved, _ = photometric(oracle(changed), changed, **options)
    assert moved < 2 * plain
    if 'mirror' in change:
        stale = {**changed, 'view_from_frame': torch.stack(before)}
        wrong, _ = photometric(oracle(stale), stale, **options)
        assert wrong > 3 * moved
