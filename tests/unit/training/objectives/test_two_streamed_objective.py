"""The two-streamed objective: copies lie where their moves say, and the set loss compares them."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

torch = pytest.importorskip('torch')
from depth_node.training.losses.set_loss import set_loss  # noqa: E402
from depth_node.training.networks.base import DepthNetwork  # noqa: E402
from depth_node.training.objectives import build_objective  # noqa: E402
from depth_node.training.objectives.two_streamed import (  # noqa: E402
    Move,
    gradients_of,
    in_one_frame,
)
from torch.nn import functional  # noqa: E402

HEIGHT, WIDTH = 12, 20  # of pictures; maps have half of it


class Bright(DepthNetwork):
    """Log depth is the picture's brightness plus a bias a column; the gradients are a constant."""

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        self.size_hw, self.output_hw = (HEIGHT, WIDTH), (HEIGHT // 2, WIDTH // 2)
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.slope = torch.nn.Parameter(torch.zeros(2))
        self.bias = bias
        self.calls: list[torch.Tensor] = []

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.outputs(batch)['prediction']

    def outputs(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls.append(batch.detach())
        raw = functional.avg_pool2d(batch.mean(1, keepdim=True), 2) * self.scale
        raw = raw + self.bias * torch.arange(raw.shape[-1])
        gradients = self.slope.view(1, 2, 1, 1).expand(len(raw), 2, *raw.shape[-2:])
        return {
            'prediction': raw.exp(), 'raw': raw, 'depth_stream': raw, 'gradients': gradients
        }  # fmt: skip


def true_batch(seed: int = 0) -> dict[str, torch.Tensor]:
    """Pictures of 2x2 blocks whose brightness is exactly log depth / 255."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(60, 190, (2, 1, HEIGHT // 2, WIDTH // 2), generator=generator)
    rgb = blocks.repeat_interleave(2, -1).repeat_interleave(2, -2).expand(-1, 3, -1, -1)
    depth = (rgb[:, :1].float() / 255).exp()
    return {
        'rgb': rgb.to(torch.uint8).contiguous(), 'depth': depth.contiguous(),
        'K': torch.eye(3).expand(2, 3, 3),
    }  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    mirrored=st.booleans(), right=st.integers(-7, 7), down=st.integers(-5, 5),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_property_a_move_and_its_inverse_give_the_map_back(mirrored, right, down, seed):
    maps = torch.rand(2, 1, 6, 9, generator=torch.Generator().manual_seed(seed))
    move = Move(mirrored, right, down)
    there, inside = move.of_map(maps)
    for v in range(6):
        for u in range(9):
            at = (v + down, (8 - u if mirrored else u) + right)
            assert inside[v, u] == (0 <= at[0] < 6 and 0 <= at[1] < 9)
            if inside[v, u]:
                assert torch.equal(there[..., v, u], maps[..., at[0], at[1]])
    back, covered = move.inverse().of_map(there)
    assert torch.equal(back[..., covered], maps[..., covered])
    assert int(covered.sum()) == int(inside.sum())


@pytest.mark.parametrize(
    'move', [Move(), Move(True), Move(False, 2, -1), Move(True, -3, 2), Move(True, 1, 0)]
)
def test_pictures_move_as_their_maps_do(move):
    """Whole pixels of the map are two pixels of the picture: no blur, the same place."""
    picture = torch.rand(2, 3, HEIGHT, WIDTH)
    moved = move.of_picture(picture, (HEIGHT // 2, WIDTH // 2))
    wide = Move(move.mirrored, 2 * move.right, 2 * move.down)
    expected, inside = wide.of_map(picture)
    torch.testing.assert_close(moved[..., inside], expected[..., inside], atol=1e-5, rtol=0)


def test_set_loss_is_its_formula():
    torch.manual_seed(0)
    maps, valid = torch.randn(3, 4, 5, 6), torch.rand(3, 4, 5, 6) > 0.3
    per_picture = []
    for index in range(3):
        total = 0.0
        for i, j in combinations(range(4), 2):
            both = valid[index, i] & valid[index, j]
            total += float((maps[index, i] - maps[index, j])[both].square().mean())
        per_picture.append(2 / (4 * 3) * total)
    poisoned = torch.where(valid, maps, torch.nan).requires_grad_()
    loss = set_loss(poisoned, valid)
    assert loss.item() == pytest.approx(sum(per_picture) / 3, rel=1e-5)
    loss.backward()
    assert poisoned.grad.isfinite().all()
    assert (poisoned.grad[~valid] == 0).all()


def test_set_loss_has_the_gradient_of_its_formula():
    torch.manual_seed(1)
    maps = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    valid = torch.rand(2, 3, 3, 4) > 0.2
    assert torch.autograd.gradcheck(lambda m: set_loss(m, valid), maps)


def test_set_loss_of_agreeing_copies_and_of_nothing():
    same = torch.randn(2, 1, 5, 6).expand(2, 3, 5, 6).clone().requires_grad_()
    loss = set_loss(same, torch.ones(2, 3, 5, 6, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(same.grad, torch.zeros_like(same))
    # No pixel that two copies share: nothing to compare.
    alone = torch.zeros(2, 3, 5, 6, dtype=torch.bool)
    alone[:, 0, 0], alone[:, 1, 1], alone[:, 2, 2] = True, True, True
    loss = set_loss(same, alone)
    loss.backward()
    assert loss.item() == 0
    # A picture without overlap does not dilute the others.
    half = torch.ones(2, 3, 5, 6, dtype=torch.bool)
    half[1] = alone[1]
    different = torch.zeros(2, 3, 5, 6)
    different[:, 0] = 2.0
    assert set_loss(different, half).item() == pytest.approx(4 * 2 / 3)


def test_set_loss_refuses_what_broadcasts():
    maps = torch.zeros(2, 3, 4, 5)
    with pytest.raises(ValueError, match=r'maps \(2, 3, 4, 5\), valid \(2, 1, 4, 5\)'):
        set_loss(maps, torch.ones(2, 1, 4, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match='bool'):
        set_loss(maps, torch.ones(2, 3, 4, 5))
    with pytest.raises(ValueError, match='needs at least 2'):
        set_loss(maps[:, :1], torch.ones(2, 1, 4, 5, dtype=torch.bool))


def test_copies_come_back_to_one_frame():
    torch.manual_seed(0)
    maps = torch.rand(2, 1, 6, 10)
    moves = [Move(), Move(True, 2, -1), Move(False, -3, 1)]
    stacked, covered = in_one_frame(torch.cat([m.of_map(maps)[0] for m in moves]), moves)
    assert stacked.shape == covered.shape == (2, 3, 6, 10)
    assert torch.equal(stacked[covered], maps.expand(2, 3, 6, 10)[covered])
    assert covered[:, 0].all()
    assert set_loss(stacked, covered).item() == 0


def test_a_network_that_is_right_about_every_copy_costs_only_its_gradients():
    """Brightness is depth here, so that mirrored and shifted copies must come out right too."""
    goal = build_objective('two_streamed', copies=4, shift=0.3, colour=0.0)
    network, batch = Bright(), true_batch()
    losses = goal.losses(network, batch)
    assert losses['single'].item() == pytest.approx(0, abs=1e-9)
    assert losses['set'].item() == pytest.approx(0, abs=1e-9)
    assert 'fused' not in losses
    assert network.calls[0].shape == (4 * 2, 3, HEIGHT, WIDTH)
    assert losses['loss'].item() == pytest.approx(losses['gradients'].item(), abs=1e-8)


def test_a_bias_that_does_not_mirror_is_found_by_the_set_loss():
    """A slope over the columns, wrong by c: mirrored copies differ by (w - 1 - 2 u) c."""
    goal = build_objective('two_streamed', copies=2, shift=0.0, colour=0.0)
    batch = true_batch()
    goal.draw_moves = lambda map_hw, generator: [Move(), Move(True)]
    bias, width = 0.01, WIDTH // 2
    losses = goal.losses(Bright(bias), batch)
    u = torch.arange(width)
    assert losses['set'].item() == pytest.approx(
        float(((width - 1 - 2 * u) * bias).square().mean()), rel=1e-3
    )
    assert losses['single'].item() == pytest.approx(float((u * bias).square().mean()), rel=1e-3)


def test_gradient_stream_is_compared_with_the_truths_differences():
    goal = build_objective('two_streamed', copies=2, gradient_weight=3.0)
    goal.draw_moves = lambda map_hw, generator: [Move(), Move()]
    network, batch = Bright(), true_batch()
    network.slope.data = torch.tensor([0.1, -0.2])
    batch['depth'][0, 0, 4:8, 6:10] = 0  # cells (2..3, 3..4) of the first map
    known = batch['depth'][:, 0, ::2, ::2]
    logs = known.clamp(min=1e-3).log()
    per_picture = []
    for index in range(2):
        squares = []
        for v in range(HEIGHT // 2):
            for u in range(WIDTH // 2):
                for (dv, du), slope in (((0, 1), 0.1), ((1, 0), -0.2)):
                    at = (v + dv, u + du)
                    if at[0] < HEIGHT // 2 and at[1] < WIDTH // 2:
                        if known[index, v, u] > 0 and known[index][at] > 0:
                            step = float(logs[index][at] - logs[index, v, u])
                            squares.append((step - slope) ** 2)
        per_picture.append(sum(squares) / len(squares))
    assert goal.losses(network, batch)['gradients'].item() == pytest.approx(
        3.0 * sum(per_picture) / 2, rel=1e-4
    )


def test_trap_25_the_gradient_target_of_a_mirrored_copy_changes_sign():
    """In the copy's frame a slope to the right points left; its place moves by one."""
    maps = torch.rand(1, 1, 5, 8)
    valid = torch.ones(1, 1, 5, 8, dtype=torch.bool)
    valid[..., 2, 3] = False
    gradients, known = gradients_of(maps, valid)
    move = Move(True)
    mirrored, mirrored_known = gradients_of(move.of_map(maps)[0], move.of_map(valid)[0])
    torch.testing.assert_close(mirrored[:, 0, :, :-1], -gradients[:, 0, :, :-1].flip(-1))
    torch.testing.assert_close(mirrored[:, 1], gradients[:, 1].flip(-1))
    assert torch.equal(mirrored_known[:, 0, :, :-1], known[:, 0, :, :-1].flip(-1))
    assert not known[:, 0, :, -1].any()
    assert not known[:, 1, -1].any()
    assert int((~known[:, 0]).sum()) == 5 + 2


def test_the_set_is_drawn_by_the_batch():
    """The same batch gives the same copies, whatever torch's own generator; another, others."""
    goal = build_objective('two_streamed', copies=3)
    network = Bright()
    for seed in (0, 0, 1):
        torch.rand(7)
        goal.losses(network, true_batch(seed))
    first, again, other = network.calls
    assert torch.equal(first, again)
    assert not torch.equal(first[2:], other[2:])
    assert torch.equal(first[:2], network.normalise(true_batch(0)['rgb']))


def test_colour_changes_channels_within_its_limit():
    goal = build_objective('two_streamed', copies=2, shift=0.0, colour=0.2)
    goal.draw_moves = lambda map_hw, generator: [Move(), Move()]
    network, batch = Bright(), true_batch()
    goal.losses(network, batch)
    ratio = network.calls[0][2:] / network.calls[0][:2]
    gains = ratio.mean((2, 3))
    torch.testing.assert_close(ratio, gains[..., None, None].expand_as(ratio))
    assert 0.8 <= gains.min() < gains.max() <= 1.2
    assert gains.flatten().unique().numel() == 6


def test_moves_stay_within_the_shift_and_mirror_about_half():
    goal = build_objective('two_streamed', copies=400, shift=0.1)
    moves = goal.draw_moves((30, 50), torch.Generator().manual_seed(0))
    assert moves[0] == Move()
    rest = moves[1:]
    assert {m.right for m in rest} == set(range(-5, 6))
    assert {m.down for m in rest} == set(range(-3, 4))
    assert 0.4 < sum(m.mirrored for m in rest) / len(rest) < 0.6


def test_weights_of_zero_leave_only_the_single_loss():
    goal = build_objective('two_streamed', set_weight=0.0, gradient_weight=0.0)
    network, batch = Bright(0.02), true_batch()
    losses = goal.losses(network, batch)
    assert losses['loss'].item() == pytest.approx(losses['single'].item())
    losses['loss'].backward()
    assert network.scale.grad.abs() > 0


def test_a_batch_without_truth_still_compares_the_set():
    goal = build_objective('two_streamed')
    network, batch = Bright(0.02), true_batch()
    batch['depth'][:] = 0
    losses = goal.losses(network, batch)
    assert losses['single'].item() == losses['gradients'].item() == 0
    assert losses['loss'].item() == pytest.approx(losses['set'].item())
    losses['loss'].backward()
    assert network.scale.grad.isfinite()


def test_another_network_is_refused_by_name():
    class Plain(Bright):
        def outputs(self, batch):
            return {'prediction': super().outputs(batch)['prediction']}

    with pytest.raises(ValueError, match='Plain has no depth_stream and gradients'):
        build_objective('two_streamed').losses(Plain(), true_batch())


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'copies': 1}, 'copies 1'),
        ({'set_weight': -1.0}, 'set_weight -1.0'),
        ({'shift': 0.5}, 'shift 0.5'),
        ({'colour': 1.0}, 'colour 1.0'),
        ({'target_resize': 'upsample'}, "target_resize 'upsample'"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build_objective('two_streamed', **options)
