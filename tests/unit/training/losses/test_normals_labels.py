"""Losses of surface normals and of labels against closed forms."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip('torch')
from depth_node.training.losses.labels import cross_entropy_loss  # noqa: E402
from depth_node.training.losses.normals import normals_loss  # noqa: E402


def normals(seed: int, shape: tuple[int, int, int] = (2, 5, 7)) -> torch.Tensor:
    """Unit vectors towards the camera."""
    count, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, 3, height, width, generator=generator, dtype=torch.float64)
    vectors[:, 2] = -vectors[:, 2].abs() - 0.1
    return vectors / vectors.norm(dim=1, keepdim=True)


def some_valid(shape: tuple[int, int, int] = (2, 5, 7)) -> torch.Tensor:
    count, height, width = shape
    return torch.rand(count, 1, height, width, generator=torch.Generator().manual_seed(9)) > 0.3


def test_the_loss_is_one_less_the_mean_cosine_whatever_the_length():
    target, valid = normals(0), some_valid()
    other = normals(1)
    cosine = (target * other).sum(1, keepdim=True)
    each = [(1 - cosine[i][valid[i]]).mean().item() for i in range(2)]
    loss = normals_loss(17.0 * other, 0.3 * target, valid)
    assert loss.item() == pytest.approx(sum(each) / 2, abs=1e-6)


def test_angles_of_0_60_and_180_degrees():
    target = torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64).view(1, 3, 1, 1)
    valid = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    for angle, expected in ((0, 0.0), (60, 0.5), (180, 2.0)):
        radians = math.radians(angle)
        turned = torch.tensor([math.sin(radians), 0.0, -math.cos(radians)], dtype=torch.float64)
        loss = normals_loss(turned.view(1, 3, 1, 1), target, valid)
        assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_normals_gradient_matches_finite_differences_and_turns_only():
    target, valid = normals(2, (1, 3, 4)), some_valid((1, 3, 4))
    pred = (2 * normals(3, (1, 3, 4))).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda p: normals_loss(p, target, valid), (pred,))
    (gradient,) = torch.autograd.grad(normals_loss(pred, target, valid), pred)
    along = (gradient * pred).sum(1)
    torch.testing.assert_close(along, torch.zeros_like(along), atol=1e-6, rtol=0)


def test_normals_where_nothing_is_known_or_all_fits():
    target, valid = normals(4), some_valid()
    hollow = torch.where(valid, target, torch.nan)
    pred = target.clone().requires_grad_(True)
    fit = normals_loss(pred, hollow, valid)
    (gradient,) = torch.autograd.grad(fit, pred)
    assert fit.item() == pytest.approx(0.0, abs=1e-6)
    assert torch.isfinite(gradient).all()
    empty = normals_loss(pred, hollow, torch.zeros_like(valid))
    (gradient,) = torch.autograd.grad(empty, pred)
    assert empty.item() == 0.0
    assert (gradient == 0).all()


def test_a_zero_vector_has_a_finite_gradient():
    target, valid = normals(5, (1, 2, 3)), torch.ones(1, 1, 2, 3, dtype=torch.bool)
    pred = torch.zeros_like(target).requires_grad_(True)
    (gradient,) = torch.autograd.grad(normals_loss(pred, target, valid), pred)
    assert torch.isfinite(gradient).all()


def plane_normals(depth: torch.Tensor, fx: float, fy: float, cx: float, cy: float) -> torch.Tensor:
    """Normals (1, 3, H, W) of a surface from its points' differences, towards the camera."""
    v, u = torch.meshgrid(
        torch.arange(depth.shape[-2], dtype=torch.float64),
        torch.arange(depth.shape[-1], dtype=torch.float64),
        indexing='ij',
    )
    points = torch.stack(((u - cx) / fx, (v - cy) / fy, torch.ones_like(u))) * depth
    (down, across) = torch.gradient(points, dim=(1, 2))
    vectors = torch.linalg.cross(down, across, dim=0)
    return (vectors / vectors.norm(dim=0))[None]


def test_trap_25_normals_flip_their_x_on_a_mirror():
    height, width = 12, 17
    fx, fy, cx, cy = 20.0, 25.0, 6.0, 5.0
    v, u = torch.meshgrid(
        torch.arange(height, dtype=torch.float64),
        torch.arange(width, dtype=torch.float64),
        indexing='ij',
    )
    # the plane n . p = -2 with n = (0.6, 0.16, -0.784)
    n = torch.tensor([0.6, 0.16, -math.sqrt(1 - 0.6**2 - 0.16**2)], dtype=torch.float64)
    depth = -2.0 / (n[0] * (u - cx) / fx + n[1] * (v - cy) / fy + n[2])
    truth = plane_normals(depth, fx, fy, cx, cy)
    torch.testing.assert_close(truth, n.view(1, 3, 1, 1).expand_as(truth), atol=1e-6, rtol=0)
    mirrored = plane_normals(depth.flip(-1), fx, fy, width - 1 - cx, cy)
    valid = torch.ones(1, 1, height, width, dtype=torch.bool)
    negated = truth.flip(-1) * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64).view(1, 3, 1, 1)
    assert normals_loss(negated, mirrored, valid).item() == pytest.approx(0.0, abs=1e-6)
    forgotten = normals_loss(truth.flip(-1), mirrored, valid)
    assert forgotten.item() == pytest.approx(2 * 0.6**2, abs=1e-6)


def test_wrong_normals_are_refused():
    target, valid = normals(6), some_valid()
    with pytest.raises(ValueError, match=r'\(2, 2, 5, 7\)'):
        normals_loss(target[:, :2], target, valid)
    with pytest.raises(ValueError, match=r'\(2, 3, 5, 6\)'):
        normals_loss(target, target[..., :6], valid)
    with pytest.raises(ValueError, match='bool'):
        normals_loss(target, target, valid.float())


def test_cross_entropy_is_the_mean_log_share_of_the_true_class():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]], dtype=torch.float64)
    grid = logits.T.reshape(1, 3, 1, 2).expand(1, 3, 2, 2)
    labels = torch.tensor([[[0, 2], [-1, 1]]])
    shares = logits.softmax(1)
    expected = -(shares[0, 0].log() + shares[1, 2].log() + shares[1, 1].log()) / 3
    assert cross_entropy_loss(grid, labels).item() == pytest.approx(expected.item())


def test_pictures_count_equally_for_labels_too():
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, 4, (2, 3, 5), generator=generator)
    labels[1, 1:] = -1
    each = [cross_entropy_loss(logits[i : i + 1], labels[i : i + 1]).item() for i in range(2)]
    assert cross_entropy_loss(logits, labels).item() == pytest.approx(sum(each) / 2)
    labels[1] = -1
    assert cross_entropy_loss(logits, labels).item() == pytest.approx(each[0])


def test_unknown_labels_carry_no_gradient_and_no_poison():
    generator = torch.Generator().manual_seed(8)
    logits = torch.randn(1, 4, 3, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, 4, (1, 3, 5), generator=generator)
    labels[0, 0, 0] = -1
    unknown = (labels < 0)[:, None].expand_as(logits)
    logits = torch.where(unknown, torch.nan, logits).requires_grad_(True)
    (gradient,) = torch.autograd.grad(cross_entropy_loss(logits, labels), logits)
    assert torch.isfinite(gradient).all()
    assert (gradient[unknown] == 0).all()
    empty = cross_entropy_loss(logits, torch.full_like(labels, -1))
    (gradient,) = torch.autograd.grad(empty, logits)
    assert empty.item() == 0.0
    assert (gradient == 0).all()


def test_a_certain_and_right_answer_costs_nothing():
    labels = torch.tensor([[[0, 2, 1]]])
    logits = 60.0 * torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2).double()
    logits.requires_grad_(True)
    value = cross_entropy_loss(logits, labels)
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.item() < 1e-12
    assert torch.isfinite(gradient).all()


def test_wrong_labels_are_refused():
    logits = torch.zeros(1, 4, 2, 3)
    with pytest.raises(ValueError, match='from 0 to 4, but the network has 4 classes'):
        cross_entropy_loss(logits, torch.tensor([[[0, 1, 2], [3, 4, 0]]]))
    with pytest.raises(ValueError, match='from -2'):
        cross_entropy_loss(logits, torch.full((1, 2, 3), -2))
    with pytest.raises(ValueError, match=r'\(1, 3, 2\)'):
        cross_entropy_loss(logits, torch.zeros(1, 3, 2, dtype=torch.int64))
