"""The fusion solver finds the minimum that its formula names."""

from __future__ import annotations

from depth_node.training import fusion
from depth_node.training.fusion import (
    forward_gradients,
    fuse_depth_and_gradients,
    fusion_energy,
)
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest


def surface(height: int = 24, width: int = 31) -> np.ndarray:
    """A tilted wall with a box before it: slopes and a sharp border."""
    v, u = np.mgrid[:height, :width].astype(float)
    depth = 3.0 + 0.02 * u - 0.01 * v
    depth[6:15, 9:20] -= 1.2
    return depth


def rms(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a - b) ** 2)))


def dense_minimum(depth, gx, gy, alpha, eps):
    """The same problem written out pixel by pixel, by Newton's method on dense matrices."""
    height, width = depth.shape
    rows, target, weight = [], [], []

    def add(entries, value, w):
        row = np.zeros(height * width)
        for (v, u), sign in entries:
            row[v * width + u] = sign
        rows.append(row)
        target.append(value)
        weight.append(w)

    for v in range(height):
        for u in range(width):
            add([((v, u), 1)], depth[v, u], 1.0)
            if u + 1 < width:
                add([((v, u + 1), 1), ((v, u), -1)], gx[v, u], alpha)
            if v + 1 < height:
                add([((v + 1, u), 1), ((v, u), -1)], gy[v, u], alpha)
    a, b, w = np.array(rows), np.array(target), np.array(weight)

    def energy(x):
        return float((w * np.sqrt((a @ x - b) ** 2 + eps)).sum())

    x = depth.ravel().copy()
    for _ in range(500):
        r = a @ x - b
        phi = np.sqrt(r**2 + eps)
        slope = a.T @ (w * r / phi)
        step = np.linalg.solve(a.T @ ((w * eps / phi**3)[:, None] * a), slope)
        length = 1.0
        while energy(x - length * step) > energy(x) and length > 1e-12:
            length /= 2
        x = x - length * step
        if np.abs(slope).max() < 1e-10:
            break
    assert np.abs(slope).max() < 1e-6
    return x.reshape(height, width), energy(x)


def test_a_tiny_grid_has_the_minimum_that_dense_newton_finds():
    rng = np.random.default_rng(3)
    depth = rng.uniform(1, 3, (4, 5))
    gx, gy = rng.normal(0, 0.5, (2, 4, 5))
    expected, least = dense_minimum(depth, gx, gy, alpha=2.5, eps=1e-3)
    fused = fuse_depth_and_gradients(
        depth, gx, gy, alpha=2.5, eps=1e-3, iterations=3000, tolerance=1e-10
    )
    np.testing.assert_allclose(fused, expected, atol=1e-4)
    energy = fusion_energy(fused, depth, gx, gy, alpha=2.5, eps=1e-3)
    assert energy == pytest.approx(least, rel=1e-9)


def test_two_pixels_have_the_closed_form():
    """By symmetry D = (s, -s) about the mean; alpha > 1 makes the gradient win when eps -> 0."""
    depth, step = np.array([[1.0, 2.0]]), np.array([[3.0, np.nan]])
    fused = fuse_depth_and_gradients(
        depth, step, np.full((1, 2), np.nan), alpha=10.0, eps=1e-10, iterations=500
    )
    np.testing.assert_allclose(fused, [[0.0, 3.0]], atol=1e-4)


def test_true_gradients_recover_the_surface_from_noisy_depth():
    rng = np.random.default_rng(0)
    truth = surface()
    noisy = truth + rng.normal(0, 0.2, truth.shape)
    fused = fuse_depth_and_gradients(noisy, *forward_gradients(truth))
    assert rms(fused, truth) < 0.1 * rms(noisy, truth)
    # What is left is the level, which only the noisy depths can tell: sigma * sqrt(pi / 2 n).
    assert abs(np.median(fused - truth)) < 4 * 0.2 * np.sqrt(np.pi / 2 / truth.size)
    np.testing.assert_allclose(np.diff(fused), np.diff(truth), atol=2e-3)


def test_exact_inputs_come_back():
    truth = surface()
    np.testing.assert_allclose(
        fuse_depth_and_gradients(truth, *forward_gradients(truth)), truth, atol=1e-9
    )


def test_a_wrong_gradient_loses_against_many_right_ones():
    """phi is robust: least squares would spread an outlier of 5 over its neighbourhood."""
    truth = surface()
    gx, gy = forward_gradients(truth)
    gx[10, 24] += 5.0
    fused = fuse_depth_and_gradients(truth, gx, gy, iterations=200)
    assert np.abs(fused - truth).max() < 0.02


def test_gradient_of_the_energy_is_zero_at_the_solution():
    rng = np.random.default_rng(5)
    truth = surface(9, 13)
    depth = truth + rng.normal(0, 0.1, truth.shape)
    gx, gy = (g + rng.normal(0, 0.02, g.shape) for g in forward_gradients(truth))
    depth[2:4, 5:8] = np.nan
    fused = fuse_depth_and_gradients(depth, gx, gy, iterations=5000, tolerance=1e-11)

    def energy_at(v, u, change):
        moved = fused.copy()
        moved[v, u] += change
        return fusion_energy(moved, depth, gx, gy)

    for v, u in [(0, 0), (3, 6), (8, 12), (5, 4), (7, 0)]:
        slope = (energy_at(v, u, 1e-6) - energy_at(v, u, -1e-6)) / 2e-6
        around = (energy_at(v, u, 0.05) - energy_at(v, u, 0.0)) / 0.05
        assert abs(slope) < 1e-3 * around


def test_each_reweighting_lowers_the_energy():
    rng = np.random.default_rng(6)
    depth = surface(12, 10) + rng.normal(0, 0.3, (12, 10))
    gx, gy = rng.normal(0, 0.2, (2, 12, 10))
    energies = [
        fusion_energy(
            fuse_depth_and_gradients(depth, gx, gy, iterations=n, tolerance=0.0), depth, gx, gy
        )
        for n in range(1, 12)
    ]
    assert (np.diff(energies) < 0).all()


def test_holes_follow_from_the_gradients():
    truth = surface()
    holed = truth.copy()
    holed[4:17, 7:22] = np.nan
    fused = fuse_depth_and_gradients(holed, *forward_gradients(truth))
    np.testing.assert_allclose(fused, truth, atol=1e-6)


def test_what_nothing_determines_stays_unknown():
    """An island without depth, cut off by unknown gradients, must not become a number."""
    truth = surface(8, 9)
    gx, gy = forward_gradients(truth)
    depth = truth.copy()
    depth[2:5, 3:6] = np.nan
    for v in range(2, 5):
        gx[v, 2] = gx[v, 5] = np.nan
    gy[1, 3:6] = gy[4, 3:6] = np.nan
    fused = fuse_depth_and_gradients(depth, gx, gy)
    island = np.zeros(truth.shape, bool)
    island[2:5, 3:6] = True
    assert np.isnan(fused[island]).all()
    np.testing.assert_allclose(fused[~island], truth[~island], atol=1e-6)


def test_valid_hides_depths_that_are_there():
    truth = surface()
    wrong = truth.copy()
    wrong[3:9, 3:9] = 99.0
    valid = np.ones(truth.shape, bool)
    valid[3:9, 3:9] = False
    fused = fuse_depth_and_gradients(wrong, *forward_gradients(truth), valid=valid)
    np.testing.assert_allclose(fused, truth, atol=1e-6)


def test_without_gradients_each_depth_stays():
    depth = np.random.default_rng(1).uniform(1, 5, (5, 7))
    unknown = np.full(depth.shape, np.nan)
    np.testing.assert_allclose(fuse_depth_and_gradients(depth, unknown, unknown), depth)
    zero = np.zeros(depth.shape)
    np.testing.assert_allclose(fuse_depth_and_gradients(depth, zero, zero, alpha=0.0), depth)


def test_a_solver_that_does_not_converge_says_so(monkeypatch):
    monkeypatch.setattr(fusion, 'CG_STEPS', 2)
    truth = surface()
    with pytest.raises(ArithmeticError, match='did not converge for 744 pixels in 2 steps'):
        fuse_depth_and_gradients(truth * 1.5, *forward_gradients(truth))


def test_type_of_the_depth_is_kept():
    truth = surface().astype(np.float32)
    assert fuse_depth_and_gradients(truth, *forward_gradients(truth)).dtype == np.float32


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
    alpha=st.floats(0.01, 100),
    shift=st.floats(-50, 50),
    holes=st.floats(0, 0.6),
)
def test_property_shift_moves_the_result_and_nothing_is_below_the_minimum(
    height, width, seed, alpha, shift, holes
):
    """D_est + c gives D + c, as far as the energy tells; no random change of D costs less."""
    rng = np.random.default_rng(seed)
    depth = rng.normal(3, 1, (height, width))
    gx, gy = rng.normal(0, 0.5, (2, height, width))
    depth[rng.random(depth.shape) < holes] = np.nan
    gx[rng.random(depth.shape) < holes / 2] = np.nan
    if np.isnan(depth).all():
        depth[0, 0] = 3.0
    options = {'alpha': alpha, 'eps': 1e-2}
    fused = fuse_depth_and_gradients(depth, gx, gy, iterations=500, **options)
    assert np.isfinite(fused[np.isfinite(depth)]).all()
    moved = fuse_depth_and_gradients(depth + shift, gx, gy, iterations=500, **options)
    np.testing.assert_array_equal(np.isnan(moved), np.isnan(fused))
    least = fusion_energy(fused, depth, gx, gy, **options)
    moved_energy = fusion_energy(moved - shift, depth, gx, gy, **options)
    assert moved_energy == pytest.approx(least, rel=1e-5)
    for scale in (1e-2, 1.0):
        other = fused + rng.normal(0, scale, fused.shape)
        assert fusion_energy(other, depth, gx, gy, **options) >= least * (1 - 1e-5)


def test_wrong_input_is_named():
    depth = surface(4, 5)
    gx, gy = forward_gradients(depth)
    with pytest.raises(ValueError, match=r'gx \(5, 4\).*expected one size'):
        fuse_depth_and_gradients(depth, gx.T, gy)
    with pytest.raises(ValueError, match='expected bool'):
        fuse_depth_and_gradients(depth, gx, gy, valid=np.ones(depth.shape))
    with pytest.raises(ValueError, match='eps 0'):
        fuse_depth_and_gradients(depth, gx, gy, eps=0.0)
    with pytest.raises(ValueError, match='alpha nan'):
        fuse_depth_and_gradients(depth, gx, gy, alpha=float('nan'))
    with pytest.raises(ValueError, match='iterations 0'):
        fuse_depth_and_gradients(depth, gx, gy, iterations=0)
    with pytest.raises(ValueError, match='no pixel has a known depth'):
        fuse_depth_and_gradients(np.full_like(depth, np.nan), gx, gy)
    with pytest.raises(ValueError, match='finite wherever'):
        fusion_energy(np.full_like(depth, np.nan), depth, gx, gy)
