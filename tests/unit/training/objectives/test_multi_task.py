"""The multi-task objective: each task's loss is its formula, unknown truth counts nowhere."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip('torch')
from depth_node.training.networks.base import DepthNetwork  # noqa: E402
from depth_node.training.objectives import build_objective  # noqa: E402
from depth_node.training.objectives.multi_task import normals_from_depth  # noqa: E402

HEIGHT, WIDTH = 5, 7
ALL = {'depth': 1.0, 'normals': 1.0, 'labels': 1.0}


class Fixed(DepthNetwork):
    """Returns the maps it holds, as parameters."""

    def __init__(self, maps: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.maps = torch.nn.ParameterDict(maps)
        self.size_hw = self.output_hw = (HEIGHT, WIDTH)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.maps['prediction']

    def outputs(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(self.maps.items())


@pytest.fixture
def network() -> Fixed:
    torch.manual_seed(3)
    normals = torch.randn(2, 3, HEIGHT, WIDTH)
    return Fixed(
        {
            'prediction': 1 + 4 * torch.rand(2, 1, HEIGHT, WIDTH),
            'normals': normals / normals.norm(dim=1, keepdim=True),
            'labels': torch.randn(2, 4, HEIGHT, WIDTH),
        }
    )


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    depth = 1 + 4 * torch.rand(2, 1, HEIGHT, WIDTH)
    depth[0, 0, 1:3, 2:4] = 0
    normals = torch.randn(2, 3, HEIGHT, WIDTH)
    normals = normals / normals.norm(dim=1, keepdim=True)
    normals[1, :, 0, :3] = 0
    labels = torch.randint(0, 4, (2, HEIGHT, WIDTH))
    labels[0, 4] = -1
    return {
        'rgb': torch.zeros(2, 3, HEIGHT, WIDTH, dtype=torch.uint8), 'depth': depth,
        'K': torch.eye(3).expand(2, 3, 3), 'normals': normals, 'labels': labels,
    }  # fmt: skip


def depth_by_hand(pred: np.ndarray, target: np.ndarray) -> float:
    """Eigen & Fergus 2015, eq. 1, pixel by pixel, for one picture."""
    d = {(v, u): math.log(pred[v, u]) - math.log(target[v, u])
         for v in range(HEIGHT) for u in range(WIDTH) if target[v, u] > 0}  # fmt: skip
    n = len(d)
    total = sum(x**2 for x in d.values()) / n - sum(d.values()) ** 2 / (2 * n**2)
    for v, u in d:
        for neighbour in ((v, u + 1), (v + 1, u)):
            if neighbour in d:
                total += (d[neighbour] - d[v, u]) ** 2 / n
    return total


def test_each_task_is_its_formula(network, batch):
    losses = build_objective('multi_task', weights=ALL).losses(network, batch)
    pred = network.maps['prediction'].detach().numpy()[:, 0]
    by_hand = np.mean([depth_by_hand(p, t) for p, t in zip(pred, batch['depth'][:, 0].numpy(),
                                                           strict=True)])  # fmt: skip
    assert losses['depth'].item() == pytest.approx(by_hand, rel=1e-5)

    cosines, entropies = [], []
    for index in range(2):
        found, wanted = network.maps['normals'][index].detach(), batch['normals'][index]
        logits, labels = network.maps['labels'][index].detach(), batch['labels'][index]
        pixels = [(v, u) for v in range(HEIGHT) for u in range(WIDTH)]
        cosines.append(np.mean([
            1 - float((found[:, v, u] * wanted[:, v, u]).sum())
            for v, u in pixels if wanted[:, v, u].any()]))  # fmt: skip
        entropies.append(np.mean([
            -math.log(float(logits[:, v, u].softmax(0)[labels[v, u]]))
            for v, u in pixels if labels[v, u] >= 0]))  # fmt: skip
    assert losses['normals'].item() == pytest.approx(np.mean(cosines), rel=1e-5)
    assert losses['labels'].item() == pytest.approx(np.mean(entropies), rel=1e-5)
    assert losses['loss'].item() == pytest.approx(
        by_hand + np.mean(cosines) + np.mean(entropies), rel=1e-5
    )


def test_weights_weigh_the_sum_and_zero_asks_for_no_truth(network, batch):
    goal = build_objective('multi_task', weights={'depth': 2.0, 'normals': 0.5, 'labels': 0})
    assert goal.needs == {'normals'}
    del batch['labels']
    losses = goal.losses(network, batch)
    expected = 2.0 * losses['depth'] + 0.5 * losses['normals']
    assert losses['loss'].item() == pytest.approx(expected.item())
    assert 'labels' not in losses


def test_eigen_lambda_of_one_forgives_a_wrong_scale(network, batch):
    batch['depth'] = network.maps['prediction'].detach() * 1.5
    forgiving = build_objective('multi_task', weights={'depth': 1.0}, eigen_lambda=1.0)
    strict = build_objective('multi_task', weights={'depth': 1.0}, eigen_lambda=0.0)
    assert forgiving.losses(network, batch)['loss'].item() == pytest.approx(0, abs=1e-6)
    assert strict.losses(network, batch)['loss'].item() == pytest.approx(
        math.log(1.5) ** 2, rel=1e-4
    )


def test_unknown_truth_has_no_say(network, batch):
    goal = build_objective('multi_task', weights=ALL)
    for name in ('depth', 'normals', 'labels'):
        batch[name][:] = {'depth': 0, 'normals': 0, 'labels': -1}[name]
    losses = goal.losses(network, batch)
    assert all(value.item() == 0 for value in losses.values())
    losses['loss'].backward()
    assert torch.equal(
        network.maps['prediction'].grad, torch.zeros_like(network.maps['prediction'])
    )
    scores = goal.scores(network, batch)
    assert all(value.isnan().all() for value in scores.values())


def test_truth_of_another_size_comes_by_the_nearest_pixel(network, batch):
    """Doubled truth gives the loss of the truth itself; a label between two labels never."""
    goal = build_objective('multi_task', weights=ALL)
    expected = goal.losses(network, batch)['loss']
    large = {
        name: value if name == 'K'
        else value.repeat_interleave(2, -1).repeat_interleave(2, -2)
        for name, value in batch.items()
    }  # fmt: skip
    torch.testing.assert_close(goal.losses(network, large)['loss'], expected)
    torch.testing.assert_close(
        goal.scores(network, large)['pixel_accuracy'],
        goal.scores(network, batch)['pixel_accuracy'],
    )


def test_scores_measure_angles_and_right_labels(network, batch):
    goal = build_objective('multi_task', weights=ALL)
    turned = batch['normals'].clone()
    # 30 degrees about z for normals in the picture's plane.
    flat = torch.zeros_like(turned)
    angle = torch.rand(2, HEIGHT, WIDTH) * 6
    flat[:, 0], flat[:, 1] = angle.cos(), angle.sin()
    turned[:, 0], turned[:, 1] = (angle + math.pi / 6).cos(), (angle + math.pi / 6).sin()
    turned[:, 2] = 0
    batch['normals'] = flat
    network.maps['normals'].data = turned
    labels = batch['labels']
    logits = torch.nn.functional.one_hot(labels.clamp(min=0), 4).permute(0, 3, 1, 2).float()
    logits[1, :, 0] = logits[1, :, 0].roll(1, 0)  # one of five rows of the second is wrong
    network.maps['labels'].data = logits
    scores = goal.scores(network, batch)
    assert scores['normals_deg'].tolist() == pytest.approx([30.0, 30.0], rel=1e-3)
    assert scores['pixel_accuracy'].tolist() == pytest.approx([1.0, 0.8])
    only_depth = build_objective('multi_task', weights={'depth': 1.0}).scores(network, batch)
    torch.testing.assert_close(only_depth['abs_rel'], scores['abs_rel'])
    assert 'normals_deg' not in only_depth


def test_trap_25_a_mirrored_picture_needs_mirrored_normals(network, batch):
    """Mirrored with its x negated the loss stays; without, it changes."""
    goal = build_objective('multi_task', weights={'normals': 1.0})
    expected = goal.losses(network, batch)['loss'].item()
    sign = torch.tensor([-1.0, 1.0, 1.0]).view(1, 3, 1, 1)
    network.maps['normals'].data = network.maps['normals'].data.flip(-1) * sign
    batch['normals'] = batch['normals'].flip(-1)
    assert goal.losses(network, batch)['loss'].item() != pytest.approx(expected, rel=1e-3)
    batch['normals'] = batch['normals'] * sign
    assert goal.losses(network, batch)['loss'].item() == pytest.approx(expected, rel=1e-5)


def plane_depth(normal: torch.Tensor, distance: float, K: torch.Tensor, size_hw) -> torch.Tensor:
    """Z where each pixel's ray meets n . p = -distance."""
    v, u = torch.meshgrid(torch.arange(size_hw[0]), torch.arange(size_hw[1]), indexing='ij')
    rays = torch.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], torch.ones(size_hw)])
    return -distance / (normal[:, None, None] * rays).sum(0)


def test_normals_of_planes_are_exact_and_face_the_camera():
    size_hw = (20, 30)
    K = torch.tensor([[40.0, 0, 13], [0, 55, 11], [0, 0, 1]])
    wanted = torch.nn.functional.normalize(
        torch.tensor([[0.0, 0, -1], [0.3, -0.2, -1], [-0.5, 0.1, -1]]), dim=1
    )
    depth = torch.stack([plane_depth(normal, 2.0, K, size_hw) for normal in wanted])[:, None]
    normals = normals_from_depth(depth, K.expand(3, 3, 3))
    known = normals.norm(dim=1) > 0.5
    assert known[:, 3:-3, 3:-3].all()
    assert not known[:, :3].any()
    assert not known[..., -3:].any()
    for index in range(3):
        found = normals[index][:, known[index]]
        torch.testing.assert_close(
            found, wanted[index][:, None].expand_as(found), atol=2e-5, rtol=0
        )


def test_normals_stop_at_holes_and_borders():
    depth = torch.full((1, 1, 20, 30), 2.0)
    depth[..., 15:] = 3.0
    depth[..., 10, 6] = 0
    normals = normals_from_depth(depth, torch.eye(3)[None] * torch.tensor([40.0, 50, 1]))
    known = normals[0].norm(dim=0) > 0.5
    expected = torch.zeros(20, 30, dtype=torch.bool)
    expected[3:-3, 3:-3] = True
    expected[:, 12:18] = False
    for v, u in [(10, 6), (10, 3), (10, 9), (7, 6), (13, 6)]:
        expected[v, u] = False
    assert torch.equal(known, expected)
    assert normals.isfinite().all()


def test_normals_can_come_from_the_depth_of_any_data_set(network, batch):
    goal = build_objective('multi_task', weights=ALL, normals='from_depth')
    assert goal.needs == {'labels'}
    del batch['normals']
    large = torch.linspace(2, 3, 28).expand(2, 1, 20, 28)
    batch['depth'] = large.contiguous()
    batch['K'] = torch.tensor([[30.0, 0, 13], [0, 30, 9], [0, 0, 1]]).expand(2, 3, 3)
    losses = goal.losses(network, batch)
    wanted = normals_from_depth(batch['depth'], batch['K'])[..., 2::4, 2::4]
    assert wanted.shape[-2:] == (HEIGHT, WIDTH)
    known = wanted.norm(dim=1) > 0.5
    cosine = (network.maps['normals'] * wanted).sum(1)
    assert known.sum() > 10
    assert losses['normals'].item() == pytest.approx(1 - cosine[known].mean().item(), rel=1e-4)
    assert goal.scores(network, batch)['normals_deg'].isfinite().all()


def test_missing_heads_and_truth_are_named(network, batch):
    goal = build_objective('multi_task', weights=ALL)
    del batch['normals']
    with pytest.raises(ValueError, match='data set has no normals; take weights'):
        goal.losses(network, batch)
    del network.maps['labels']
    with pytest.raises(ValueError, match=r'Fixed predicts no labels; add it to .*heads'):
        goal.losses(network, batch)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'weights': {'edges': 1.0}}, 'weights.edges: no task'),
        ({'weights': {'depth': -1.0}}, 'weights.depth: -1.0'),
        ({'weights': {'depth': True}}, 'weights.depth: True'),
        ({'weights': {'depth': 0.0}}, 'expected one of .* above 0'),
        ({'weights': {}}, 'above 0'),
        ({'weights': {'depth': 1}, 'normals': 'guessed'}, "normals 'guessed'"),
        ({'weights': {'depth': 1}, 'target_resize': 'upsample'}, "target_resize 'upsample'"),
        ({'weights': {'depth': 1}, 'lambda': 1}, "option 'lambda' is not known"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build_objective('multi_task', **options)


def test_normals_that_are_no_numbers_score_worst_instead_of_dropping_out(network, batch):
    network.maps['normals'].data[1, 0] = math.nan
    angles = build_objective('multi_task', weights=ALL).scores(network, batch)['normals_deg']
    assert angles[0] < 180
    assert angles[1] == math.inf
