"""The semi-supervised stereo and LiDAR network: sizes, weights, skips, training, export."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

torch = pytest.importorskip('torch')
from depth_node.training.datasets import open_dataset  # noqa: E402
from depth_node.training.loading import FrameTensors, collate_frames  # noqa: E402
from depth_node.training.networks import build_network  # noqa: E402
from depth_node.training.networks.semi_supervised import (  # noqa: E402
    SemiSupervisedNet,
    beside,
)
from depth_node.training.objectives import build_objective  # noqa: E402
from depth_node.training.objectives.base import as_depth  # noqa: E402

SIZE_HW = (32, 61)
WRITER = Path(__file__).parents[1] / 'datasets' / 'write_kitti.py'


@pytest.fixture(scope='module')
def network() -> SemiSupervisedNet:
    torch.manual_seed(0)
    return build_network('semi_supervised', size_hw=SIZE_HW)


def pictures(count: int = 2, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 3, *SIZE_HW)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(
    ('size_hw', 'output_hw'),
    [((187, 621), (94, 311)), ((188, 621), (94, 311)), ((192, 640), (96, 320))],
)
def test_it_returns_half_the_size_of_any_picture(size_hw, output_hw):
    with torch.device('meta'):
        network = build_network('semi_supervised', size_hw=size_hw)
        result = network(torch.zeros(1, 3, *size_hw))
    assert result.shape == (1, 1, *output_hw)
    assert network.output_hw == output_hw


def test_parameters_are_those_of_the_released_layers():
    resnet50 = 25_557_032 - (2048 * 1000 + 1000)  # torchvision's, less the classifier
    neck = 2048 * 1024 + 2 * 1024
    ups, widths = 0, (512, 256, 128, 64)
    for c_in, c in zip((1024, 512 + 1024, 256 + 512, 128 + 256), widths, strict=True):
        fast_up_convolution = (9 + 6 + 6 + 4) * c_in * c + 4 * c
        ups += 2 * fast_up_convolution + 9 * c * c + 3 * 2 * c
    head = 9 * 64 + 1
    released = resnet50 + neck + ups + head
    # ours has a bias before the norm of the neck and of each block's 3x3 too
    ours = released + 1024 + sum(widths)
    with torch.device('meta'):
        network = build_network('semi_supervised')
    assert sum(p.numel() for p in network.parameters()) == ours == 80_775_873


def test_skips_are_padded_below_and_right():
    generator = torch.Generator().manual_seed(1)
    features = torch.rand(2, 3, 6, 10, generator=generator)
    skip = torch.rand(2, 4, 5, 8, generator=generator)
    joined = beside(features, skip)
    assert joined.shape == (2, 7, 6, 10)
    assert (joined[:, :3] == features).all()
    assert (joined[:, 3:, :5, :8] == skip).all()
    assert (joined[:, 3:, 5:] == 0).all()
    assert (joined[:, 3:, :, 8:] == 0).all()


def test_a_picture_in_gives_positive_inverse_depth_the_same_each_time(network):
    network.eval()
    batch = network.normalise(pictures())
    with torch.no_grad():
        first, second = network(batch), network(batch)
    assert first.dtype == torch.float32
    assert first.shape == (2, 1, 16, 31)
    assert (first > 0).all()
    assert (first == second).all()
    depth = as_depth(first, network.output_kind)
    near, far = network.depth_range_m
    assert depth.min() >= near * 0.999
    assert depth.max() <= far * 1.001


def test_it_starts_at_10_m_and_is_clamped_in_forward_only(network):
    network.eval()
    batch = network.normalise(pictures())
    bias = network.head.bias
    with torch.no_grad():
        start = network.outputs(batch)['raw']
        kept = bias.clone()
        bias.fill_(-1000.0)
        outputs = network.outputs(batch)
        bias.copy_(kept)
    torch.testing.assert_close(start.mean(), torch.tensor(0.1), rtol=0.2, atol=0)
    assert (outputs['raw'] < 0).all()
    assert (outputs['prediction'] == 1 / network.depth_range_m[1]).all()
    assert network.encode(torch.tensor(4.0)) == 0.25


def stereo_walls() -> dict[str, torch.Tensor]:
    """Two walls of their own brightness, 4 and 8 columns of disparity, with sparse LiDAR."""
    generator = torch.Generator().manual_seed(3)
    height, width = SIZE_HW
    fx, baseline_m, shifts = 50.0, 0.6, (4, 8)
    scene = torch.rand(2, 3, height, width + 8, generator=generator) * 60
    scene += torch.tensor([40.0, 180.0]).view(2, 1, 1, 1)
    scene = scene.to(torch.uint8)
    views = [part[..., shift : shift + width] for part, shift in zip(scene, shifts, strict=True)]
    depth = torch.tensor([fx * baseline_m / shift for shift in shifts]).view(2, 1, 1, 1)
    depth = depth.expand(2, 1, height, width).clone()
    depth[torch.rand(depth.shape, generator=generator) > 0.05] = 0.0
    K = torch.tensor([[fx, 0, 30.0], [0, 60.0, 15.0], [0, 0, 1]]).expand(2, 3, 3)
    pose = torch.eye(4).repeat(2, 1, 1, 1)
    pose[..., 0, 3] = -baseline_m
    return {
        'rgb': scene[..., :width],
        'views': torch.stack(views)[:, None],
        'depth': depth,
        'view_depth': depth.flip(-1)[:, None],
        'K': K,
        'view_K': K[:, None],
        'view_from_frame': pose,
    }


def test_it_learns_a_batch_and_every_weight_takes_part(network):
    torch.manual_seed(1)
    network.train()
    objective = build_objective('semi_supervised')
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3, fused=True)
    batch = stereo_walls()
    losses = []
    for step in range(8):
        optimiser.zero_grad()
        parts = objective.losses(network, batch)
        parts['loss'].backward()
        if step == 0:
            idle = [
                name
                for name, p in network.named_parameters()
                if p.grad is None or not torch.isfinite(p.grad).all() or not p.grad.any()
            ]
            assert idle == []
        optimiser.step()
        losses.append(parts['loss'].item())
    assert losses[-1] < 0.5 * losses[0]


def test_it_trains_on_kitti_with_the_right_eye(network, tmp_path):
    spec = importlib.util.spec_from_file_location('write_kitti', WRITER)
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    writer.write(tmp_path, frames=2, size_hw=(60, 100))
    dataset = open_dataset('kitti', tmp_path, 'train', views=('right',))
    frames = FrameTensors(dataset, SIZE_HW)
    batch = collate_frames([frames[0], frames[1]])
    network.train()
    objective = build_objective('semi_supervised')
    assert objective.needs <= set(batch)
    with torch.no_grad():
        parts = objective.losses(network, batch)
        scores = objective.scores(network.eval(), batch)
    assert all(torch.isfinite(value) for value in parts.values())
    assert min(parts[name] for name in ('lidar', 'photometric', 'smooth')) > 0
    assert torch.isfinite(scores['abs_rel']).all()


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match=r'network size \(31, 64\): both .* at least 32'):
        build_network('semi_supervised', size_hw=(31, 64))
    with pytest.raises(ValueError, match=r'depth range \(5.0, 5.0\)'):
        build_network('semi_supervised', depth_range_m=(5.0, 5.0))
    with pytest.raises(ValueError, match='encoder_weights'):
        build_network('semi_supervised', pretrained=True)
