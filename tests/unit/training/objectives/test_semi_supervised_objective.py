"""The stereo and LiDAR objective: terms against closed forms, on a pair of known disparity."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip('torch')
from depth_node.training.geometry import inverse_warp  # noqa: E402
from depth_node.training.losses.pixel import berhu_loss  # noqa: E402
from depth_node.training.networks.base import DepthNetwork  # noqa: E402
from depth_node.training.objectives import build_objective  # noqa: E402
from depth_node.training.objectives.semi_supervised import (  # noqa: E402
    SemiSupervised,
    inner_product_smoothness,
    open_depth,
    stereo_partner,
    stereo_warp,
)
import numpy as np  # noqa: E402

HEIGHT, WIDTH = 10, 24
FX, FY, BASELINE_M = 40.0, 55.0, 0.5
DISPARITY_PX = 4
INV_DEPTH = DISPARITY_PX / (FX * BASELINE_M)  # 0.2 1/m: 5 m


class Wall(DepthNetwork):
    """Returns one inverse depth, or a given map, whatever it sees."""

    depth_range_m = (0.5, 50.0)
    output_kind = 'inv_depth'
    mean, std = (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)

    def __init__(self, inv_depth: float | torch.Tensor) -> None:
        super().__init__()
        self.size_hw = self.output_hw = (HEIGHT, WIDTH)
        self.inv_depth = torch.nn.Parameter(torch.as_tensor(inv_depth))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.outputs(batch)['raw'].clamp(1 / 50, 1 / 0.5)

    def outputs(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        raw = self.inv_depth.expand(len(batch), 1, HEIGHT, WIDTH)
        return {'prediction': raw, 'raw': raw}


class Depths(Wall):
    output_kind = 'depth'


def intrinsics(cx: float, count: int = 2) -> torch.Tensor:
    K = torch.tensor([[FX, 0, cx], [0, FY, 5.0], [0, 0, 1]])
    return K.expand(count, 3, 3).clone()


def pose(x: float, count: int = 2) -> torch.Tensor:
    moved = torch.eye(4)
    moved[0, 3] = x
    return moved.expand(count, 4, 4).clone()


def stereo_batch(count: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """A textured wall 5 m away: the right picture is the left one moved by 4 columns."""
    generator = torch.Generator().manual_seed(seed)
    scene = torch.randint(
        0, 256, (count, 3, HEIGHT, WIDTH + DISPARITY_PX), generator=generator, dtype=torch.uint8
    )
    depth = torch.full((count, 1, HEIGHT, WIDTH), 1 / INV_DEPTH)
    depth[torch.rand(depth.shape, generator=generator) > 0.1] = 0.0
    return {
        'rgb': scene[..., :WIDTH],
        'views': scene[:, None, ..., DISPARITY_PX:],
        'depth': depth,
        'view_depth': depth.flip(-2)[:, None],
        'K': intrinsics(11.0, count),
        'view_K': intrinsics(11.0, count)[:, None],
        'view_from_frame': pose(-BASELINE_M, count)[:, None],
    }


def parts_of(objective: SemiSupervised, network: DepthNetwork, batch) -> dict[str, float]:
    return {name: value.item() for name, value in objective.losses(network, batch).items()}


@pytest.mark.parametrize('sign', [-1, 1])
def test_constant_disparity_moves_whole_columns(sign):
    generator = torch.Generator().manual_seed(1)
    source = torch.rand(2, 3, HEIGHT, WIDTH, generator=generator)
    inv_depth = torch.full((2, 1, HEIGHT, WIDTH), INV_DEPTH)
    offset = torch.full((2,), sign * BASELINE_M)
    warped, inside = stereo_warp(source, inv_depth, intrinsics(9.0), intrinsics(9.0), offset)
    # a source to the right sees the point further left: column u comes from u - 4
    expected = source.roll(-sign * DISPARITY_PX, -1)
    seen = torch.zeros(WIDTH, dtype=torch.bool)
    seen[DISPARITY_PX:] = True
    seen = seen if sign < 0 else seen.flip(0)
    torch.testing.assert_close(warped[..., seen], expected[..., seen], atol=1e-4, rtol=0)
    assert (inside == seen).all()


def test_other_principal_point_moves_by_the_difference():
    generator = torch.Generator().manual_seed(2)
    source = torch.rand(2, 1, HEIGHT, WIDTH, generator=generator)
    nothing = torch.zeros(2, 1, HEIGHT, WIDTH)
    warped, inside = stereo_warp(
        source, nothing, intrinsics(9.0), intrinsics(12.0), torch.full((2,), -BASELINE_M)
    )
    torch.testing.assert_close(warped[..., :-3], source[..., 3:], atol=1e-4, rtol=0)
    assert inside[..., : WIDTH - 3].all()
    assert not inside[..., WIDTH - 3 :].any()


def test_broken_disparity_takes_the_mean_of_two_columns():
    source = torch.arange(WIDTH).float().square().expand(2, 1, HEIGHT, WIDTH)
    inv_depth = torch.full((2, 1, HEIGHT, WIDTH), 2.5 / (FX * BASELINE_M))
    warped, _ = stereo_warp(
        source, inv_depth, intrinsics(9.0), intrinsics(9.0), torch.full((2,), -BASELINE_M)
    )
    u = torch.arange(3, WIDTH).float()
    expected = ((u - 3) ** 2 + (u - 2) ** 2) / 2
    torch.testing.assert_close(
        warped[..., 3:], expected.expand(2, 1, HEIGHT, -1), atol=1e-2, rtol=1e-4
    )


def test_a_horizontal_warp_is_the_general_one():
    generator = torch.Generator().manual_seed(3)
    source = torch.rand(2, 3, HEIGHT, WIDTH, generator=generator, dtype=torch.float64)
    inv_depth = 0.05 + 0.3 * torch.rand(
        2, 1, HEIGHT, WIDTH, generator=generator, dtype=torch.float64
    )
    K, source_K = intrinsics(9.0).double(), intrinsics(10.5).double()
    ours, inside = stereo_warp(source, inv_depth, K, source_K, torch.full((2,), -BASELINE_M))
    general = inverse_warp(
        source, 1 / inv_depth, pose(-BASELINE_M).double(), K, source_K, padding='border'
    )
    torch.testing.assert_close(ours, general.image)
    assert (inside == general.valid).all()


def test_the_true_wall_costs_nothing_and_others_do():
    batch = stereo_batch()
    # sharp: blurred, the columns at the border see other neighbours in the other picture
    objective = SemiSupervised(blur_sigma_px=0.0)
    right = parts_of(objective, Wall(INV_DEPTH), batch)
    assert right['photometric'] == pytest.approx(0.0, abs=1e-4)
    assert right['lidar'] == pytest.approx(0.0, abs=1e-5)
    assert right['smooth'] == pytest.approx(0.0, abs=1e-7)
    for share in (0.5, 0.75, 1.25, 1.5):
        wrong = parts_of(objective, Wall(share * INV_DEPTH), batch)
        assert wrong['photometric'] > 0.03
        assert wrong['lidar'] > 0.5


def test_both_pictures_count():
    batch = stereo_batch()
    wall = torch.full((4, 1, HEIGHT, WIDTH), INV_DEPTH)
    for half in (slice(0, 2), slice(2, 4)):
        bent = wall.clone()
        bent[half] *= 1.5
        parts = parts_of(SemiSupervised(), Wall(bent), batch)
        assert parts['photometric'] > 0.03
        assert parts['lidar'] > 0.5


def test_each_picture_is_warped_by_its_own_map():
    batch = stereo_batch()
    generator = torch.Generator().manual_seed(4)
    raw = 0.1 + 0.3 * torch.rand(4, 1, HEIGHT, WIDTH, generator=generator)
    left, right = batch['rgb'] / 255, batch['views'][:, 0] / 255
    K, offset = intrinsics(11.0), torch.full((2,), -BASELINE_M)
    misfits = []
    for picture, other, inv_depth, moved in (
        (left, right, raw[:2], offset),
        (right, left, raw[2:], -offset),
    ):
        warped, inside = stereo_warp(other, inv_depth, K, K, moved)
        difference = (warped - picture).abs().mean(1, keepdim=True)
        misfits += [difference[i][inside[i]].mean().item() for i in range(2)]
    parts = parts_of(SemiSupervised(blur_sigma_px=0.0), Wall(raw), batch)
    assert parts['photometric'] == pytest.approx(sum(misfits) / 4)


def test_a_mirrored_pair_costs_the_same():
    batch = stereo_batch()
    mirrored = {name: value.flip(-1) for name, value in batch.items() if value.shape[-1] == WIDTH}
    mirrored['K'] = intrinsics(WIDTH - 1 - 11.0)
    mirrored['view_K'] = mirrored['K'][:, None]
    mirrored['view_from_frame'] = pose(BASELINE_M)[:, None]  # the partner is now to the left
    for inv_depth in (INV_DEPTH, 0.6 * INV_DEPTH):
        parts = parts_of(SemiSupervised(), Wall(inv_depth), batch)
        same = parts_of(SemiSupervised(), Wall(inv_depth), mirrored)
        assert same == pytest.approx(parts, rel=1e-4, abs=1e-5)
    mirrored['view_from_frame'] = pose(-BASELINE_M)[:, None]
    assert parts_of(SemiSupervised(), Wall(INV_DEPTH), mirrored)['photometric'] > 0.03


@pytest.mark.parametrize('terms', ['lidar', 'photometric'])
def test_either_term_alone_finds_the_wall(terms):
    batch = stereo_batch()
    # a smooth picture: one whose likeness grows from afar
    u = torch.arange(WIDTH + DISPARITY_PX)
    scene = (127 + 120 * torch.sin(u * 0.25)).to(torch.uint8).expand(2, 3, HEIGHT, -1)
    batch['rgb'] = scene[..., :WIDTH]
    batch['views'] = scene[:, None, ..., DISPARITY_PX:]
    objective = SemiSupervised(
        lidar_weight=float(terms == 'lidar'),
        photometric_weight=float(terms == 'photometric'),
    )
    network = Wall(0.5 * INV_DEPTH)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    for step in range(80):
        optimiser.param_groups[0]['lr'] = 0.01 * 0.95**step
        optimiser.zero_grad()
        objective.losses(network, batch)['loss'].backward()
        optimiser.step()
    assert network.inv_depth.item() == pytest.approx(INV_DEPTH, rel=0.03)


def test_lidar_term_is_berhu_of_depth_over_both_pictures():
    batch = stereo_batch()
    generator = torch.Generator().manual_seed(5)
    raw = 0.1 + 0.3 * torch.rand(4, 1, HEIGHT, WIDTH, generator=generator)
    target = torch.cat((batch['depth'], batch['view_depth'][:, 0]))
    expected = berhu_loss(1 / raw, target, target > 0)
    assert parts_of(SemiSupervised(), Wall(raw), batch)['lidar'] == pytest.approx(float(expected))
    # the range of the network holds for the partner too
    batch['view_depth'][0, 0, 0, 0, 0] = 1000.0
    assert parts_of(SemiSupervised(), Wall(raw), batch)['lidar'] == pytest.approx(float(expected))


def test_no_lidar_leaves_the_other_terms():
    batch = stereo_batch()
    batch['depth'] = torch.zeros_like(batch['depth'])
    batch['view_depth'] = torch.zeros_like(batch['view_depth'])
    network = Wall(0.7 * INV_DEPTH)
    parts = SemiSupervised().losses(network, batch)
    parts['loss'].backward()
    assert parts['lidar'].item() == 0.0
    assert math.isfinite(network.inv_depth.grad)
    assert network.inv_depth.grad != 0


def test_the_loss_is_the_weighted_sum_of_its_parts():
    generator = torch.Generator().manual_seed(6)
    raw = 0.1 + 0.3 * torch.rand(4, 1, HEIGHT, WIDTH, generator=generator)
    objective = SemiSupervised(lidar_weight=0.3, photometric_weight=7.0, smooth_weight=11.0)
    parts = parts_of(objective, Wall(raw), stereo_batch())
    expected = 0.3 * parts['lidar'] + 7 * parts['photometric'] + 11 * parts['smooth']
    assert min(parts.values()) > 0
    assert parts['loss'] == pytest.approx(expected)


def test_both_pictures_are_blurred_by_a_gaussian():
    ndimage = pytest.importorskip('scipy.ndimage')
    batch = stereo_batch()
    blurred = SemiSupervised()._blurred(batch['rgb'].float()).numpy()
    oracle = ndimage.gaussian_filter(
        batch['rgb'].numpy().astype(np.float64), (0, 0, 1, 1), mode='mirror', truncate=3.0
    )
    np.testing.assert_allclose(blurred, oracle, rtol=1e-5)
    sharp = parts_of(SemiSupervised(blur_sigma_px=0.0), Wall(0.5 * INV_DEPTH), batch)
    soft = parts_of(SemiSupervised(), Wall(0.5 * INV_DEPTH), batch)
    assert soft['photometric'] < 0.7 * sharp['photometric']


def test_smoothness_is_the_weighted_inner_product():
    inv_depth = torch.tensor([[0.0, 0.3, 0.3], [0.1, 0.5, 0.0], [0.0, 0.0, 0.0]])[None, None]
    image = torch.zeros(1, 2, 3, 3)
    image[:, 0, :, 1:] = 2.0  # a step of 1 in the mean, between columns 0 and 1
    edge = math.exp(-1.0)
    expected = [0.3 * edge + 0.1, 0.0 + 0.2, 0.4 * edge - 0.1, -0.5 - 0.5]
    loss = inner_product_smoothness(inv_depth, image)
    assert loss.item() == pytest.approx(sum(abs(e) for e in expected) / 4)


def test_steps_along_both_axes_cancel_unless_they_are_separate():
    u, v = torch.arange(WIDTH), torch.arange(HEIGHT)[:, None]
    slope = (0.3 + 0.01 * (u - v)).expand(4, 1, HEIGHT, WIDTH)
    batch = stereo_batch()
    batch['rgb'] = torch.full_like(batch['rgb'], 9)
    batch['views'] = torch.full_like(batch['views'], 9)
    assert parts_of(SemiSupervised(), Wall(slope), batch)['smooth'] == pytest.approx(0, abs=1e-7)
    separate = parts_of(SemiSupervised(separate_axes=True), Wall(slope), batch)
    assert separate['smooth'] == pytest.approx(0.02, rel=1e-4)


def test_a_step_of_a_full_grey_range_relaxes_smoothness_to_1_over_e():
    batch = stereo_batch()
    step = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
    step[:, 8:] = 255
    batch['rgb'] = step.expand(2, 3, HEIGHT, WIDTH)
    batch['views'] = batch['rgb'][:, None]
    inv_depth = (0.2 + 0.1 * (step > 0)).expand(4, 1, HEIGHT, WIDTH)
    parts = parts_of(SemiSupervised(), Wall(inv_depth), batch)
    assert parts['smooth'] == pytest.approx(0.1 * math.exp(-1) / (WIDTH - 1), rel=1e-4)


def test_depth_goes_on_beyond_the_range_with_a_gradient():
    inv_depth = torch.tensor([0.5, 0.02, 0.01, 0.0, -1.0], dtype=torch.float64)
    inv_depth.requires_grad_(True)
    depth = open_depth(inv_depth, 50.0)
    expected = [2.0, 50.0, 50 + 0.01 * 2500, 100.0, 50 + 1.02 * 2500]
    assert depth.tolist() == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(depth.sum(), inv_depth)
    assert gradient[0].item() == pytest.approx(-4.0)
    assert gradient[2:].tolist() == pytest.approx([-2500.0] * 3)


def test_lidar_weight_decays_with_the_batches_of_training():
    objective = SemiSupervised(lidar_weight=2.0, lidar_weight_final=0.5, lidar_decay_steps=4)
    network, batch = Wall(0.3), stereo_batch()
    weights = [parts_of(objective, network, batch)['lidar_weight'] for _ in range(5)]
    assert weights == pytest.approx([0.5 + 1.5 * math.exp(-t / 4) for t in range(5)])
    objective.eval()
    objective.losses(network, batch)
    objective.train()
    with torch.no_grad():
        objective.losses(network, batch)
    assert int(objective.steps) == 5
    resumed = SemiSupervised(lidar_weight=2.0, lidar_weight_final=0.5, lidar_decay_steps=4)
    resumed.load_state_dict(objective.state_dict())
    assert resumed.lidar_weight().item() == pytest.approx(0.5 + 1.5 * math.exp(-5 / 4))
    constant = SemiSupervised(lidar_weight=2.0)
    assert {parts_of(constant, network, batch)['lidar_weight'] for _ in range(3)} == {2.0}


def _turned(batch):
    angle = 0.01
    batch['view_from_frame'][..., :2, :2] = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )


def _unknown(batch):
    batch['view_from_frame'][:] = torch.nan


def _video(batch):
    batch['view_from_frame'][..., 2, 3] = 0.8


def _other_focal(batch):
    batch['view_K'][..., 0, 0] *= 1.01


def _other_rows(batch):
    batch['view_K'][..., 1, 2] += 2


def _no_baseline(batch):
    batch['view_from_frame'][..., 0, 3] = 0.0


@pytest.mark.parametrize(
    'spoil', [_turned, _unknown, _video, _other_focal, _other_rows, _no_baseline]
)
def test_what_is_no_rectified_pair_is_refused(spoil):
    batch = stereo_batch()
    stereo_partner(batch)
    spoil(batch)
    with pytest.raises(ValueError, match=r'no rectified stereo partner.*roll_deg: 0'):
        SemiSupervised().losses(Wall(0.2), batch)


def test_another_view_can_be_the_partner():
    batch = stereo_batch()
    for name in ('views', 'view_K', 'view_from_frame', 'view_depth'):
        other = torch.zeros_like(batch[name])
        batch[name] = torch.cat((other, batch[name]), 1)
    parts = parts_of(SemiSupervised(view=1, blur_sigma_px=0.0), Wall(INV_DEPTH), batch)
    assert parts['photometric'] == pytest.approx(0.0, abs=1e-4)
    with pytest.raises(ValueError, match='the frames have 2 views'):
        SemiSupervised(view=2).losses(Wall(INV_DEPTH), batch)


def test_a_depth_network_trains_too_and_a_log_depth_one_is_refused():
    batch = stereo_batch()
    inverse = parts_of(SemiSupervised(), Wall(0.7 * INV_DEPTH), batch)
    depth = parts_of(SemiSupervised(), Depths(1 / (0.7 * INV_DEPTH)), batch)
    assert depth == pytest.approx(inverse, rel=1e-4)
    network = Wall(INV_DEPTH)
    network.output_kind = 'rel_inv_depth'
    with pytest.raises(ValueError, match='rel_inv_depth, expected inv_depth or depth'):
        SemiSupervised().losses(network, batch)


def test_options_are_checked():
    with pytest.raises(ValueError, match='photometric_weight -1'):
        build_objective('semi_supervised', photometric_weight=-1)
    with pytest.raises(ValueError, match="'gamma' is not known"):
        build_objective('semi_supervised', gamma=1.0)
