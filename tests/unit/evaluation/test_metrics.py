"""Metrics against closed forms and against plain loops over pixels."""

import math

from depth_node.evaluation import metrics
import numpy as np
import pytest

SIZE_HW = (12, 17)


def random_pair(seed=0, holes=True):
    rng = np.random.default_rng(seed)
    true = rng.uniform(0.4, 6.0, SIZE_HW).astype(np.float32)
    predicted = (true * np.exp(rng.normal(0.05, 0.3, SIZE_HW))).astype(np.float32)
    valid = rng.random(SIZE_HW) < 0.8
    if holes:
        true[2, 3] = np.nan
        true[4, 1] = 0.0
        predicted[5, 6] = np.inf
        predicted[7, 2] = np.nan
        predicted[8, 16] = -1.0
        predicted[9, 0] = -np.inf
        valid[2, 3] = valid[4, 1] = valid[5, 6] = valid[7, 2] = valid[8, 16] = True
    return predicted, true, valid


def by_loops(predicted, true, valid):
    """The formulas of Eigen et al. 2014 written out pixel by pixel."""
    pairs = []
    for v in range(true.shape[0]):
        for u in range(true.shape[1]):
            d, t = float(predicted[v, u]), float(true[v, u])
            if valid[v, u] and math.isfinite(d) and math.isfinite(t) and d > 0 and t > 0:
                pairs.append((d, t))
    n = len(pairs)
    log_errors = [math.log(t) - math.log(d) for d, t in pairs]
    alpha = sum(log_errors) / n
    found = {
        'abs_rel': sum(abs(d - t) / t for d, t in pairs) / n,
        'sq_rel': sum((d - t) ** 2 / t for d, t in pairs) / n,
        'log10': sum(abs(math.log10(d) - math.log10(t)) for d, t in pairs) / n,
        'rms': math.sqrt(sum((d - t) ** 2 for d, t in pairs) / n),
        'rms_log': math.sqrt(sum(e * e for e in log_errors) / n),
        # the pairwise form of the scale-invariant error, Eigen et al. eq. 2
        'sc_inv': math.sqrt(
            sum((a - b) ** 2 for a in log_errors for b in log_errors) / (2 * n * n)
        ),
        'silog': 100 * math.sqrt(sum(e * e for e in log_errors) / n - alpha**2),
    }
    for power in (1, 2, 3):
        inside = sum(max(d / t, t / d) < 1.25**power for d, t in pairs)
        found[f'delta{power}'] = inside / n
    return found


def test_all_metrics_agree_with_plain_loops():
    predicted, true, valid = random_pair()
    found = metrics.compute(predicted, true, valid)
    expected = by_loops(predicted, true, valid)
    assert set(found) == set(expected) == set(metrics.METRIC_NAMES)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9), name


@pytest.mark.parametrize(
    'name', ['abs_rel', 'sq_rel', 'log10', 'rms', 'rms_log', 'sc_inv', 'silog']
)
def test_functions_give_their_own_metric(name):
    predicted, true, valid = random_pair(1)
    value = getattr(metrics, name)(predicted, true, valid)
    assert value == pytest.approx(by_loops(predicted, true, valid)[name], rel=1e-9)


@pytest.mark.parametrize('power', [1, 2, 3])
def test_delta_function(power):
    predicted, true, valid = random_pair(2)
    expected = by_loops(predicted, true, valid)[f'delta{power}']
    assert 0 < expected < 1
    assert metrics.delta(predicted, true, valid, power=power) == pytest.approx(expected)
    with pytest.raises(ValueError, match='power 1, 2 and 3'):
        metrics.delta(predicted, true, valid, power=4)


def test_perfect_prediction():
    _, true, valid = random_pair(holes=False)
    found = metrics.compute(true, true, valid)
    for name in ('abs_rel', 'sq_rel', 'log10', 'rms', 'rms_log', 'sc_inv', 'silog'):
        assert found[name] == 0, name
    assert found['delta1'] == found['delta2'] == found['delta3'] == 1


def test_known_offset():
    true = np.full(SIZE_HW, 2.0)
    true[:, ::2] = 4.0  # 9 of 17 columns
    found = metrics.compute(true + 0.5, true)
    near, far = 8 / 17, 9 / 17
    assert found['abs_rel'] == pytest.approx(near * 0.25 + far * 0.125)
    assert found['sq_rel'] == pytest.approx(near * 0.125 + far * 0.0625)
    assert found['rms'] == pytest.approx(0.5)
    assert found['delta1'] == pytest.approx(far)  # 2.5 / 2 is not below 1.25
    assert found['delta2'] == 1


def test_known_factor_is_no_scale_invariant_error():
    _, true, _ = random_pair(holes=False)
    found = metrics.compute(3.0 * true.astype(np.float64), true)
    assert found['sc_inv'] == pytest.approx(0, abs=1e-12)
    assert found['rms_log'] == pytest.approx(math.log(3))
    assert found['log10'] == pytest.approx(math.log10(3))
    assert found['abs_rel'] == pytest.approx(2)
    assert found['delta3'] == 0


def test_division_is_by_the_truth():
    assert metrics.abs_rel(np.array([[1.0]]), np.array([[4.0]])) == pytest.approx(0.75)
    assert metrics.abs_rel(np.array([[4.0]]), np.array([[1.0]])) == pytest.approx(3.0)


def test_pooled_sums_equal_one_large_image():
    a, b = random_pair(3), random_pair(4)
    both = [np.concatenate(pair, axis=0) for pair in zip(a, b, strict=True)]
    pooled = metrics.ErrorSums.of(*a) + metrics.ErrorSums.of(*b)
    for name, value in metrics.compute(*both).items():
        assert pooled.values()[name] == pytest.approx(value, rel=1e-12), name
    assert sum([pooled], metrics.ErrorSums()) == pooled


def test_mean_of_frames_rms_is_not_above_the_pooled_one():
    a, b = random_pair(3), random_pair(4)
    a[0][:] *= 2  # frames of different quality, equally many pixels not needed for the inequality
    sums = [metrics.ErrorSums.of(a[0], a[1]), metrics.ErrorSums.of(b[0], b[1])]
    pooled = sums[0] + sums[1]
    weighted = sum(s.rms * s.count for s in sums) / pooled.count
    assert weighted < pooled.rms


@pytest.mark.parametrize('case', ['nothing valid', 'no truth', 'no prediction', 'no pixels'])
def test_empty_selection_is_nan_not_zero(case):
    predicted, true = np.full(SIZE_HW, 2.0), np.full(SIZE_HW, 3.0)
    valid = np.ones(SIZE_HW, bool)
    if case == 'nothing valid':
        valid[:] = False
    elif case == 'no truth':
        true[:] = np.nan
    elif case == 'no prediction':
        predicted[:] = np.inf
    else:
        predicted, true, valid = (np.zeros((0, 5)) for _ in range(3))
    found = metrics.compute(predicted, true, valid)
    assert all(math.isnan(value) for value in found.values())
    assert math.isnan(metrics.boundary_f1(predicted, true, valid))
    for align in metrics.ALIGNMENTS.values():
        aligned = align(predicted, true, valid)
        assert aligned.depth.shape == true.shape
        assert math.isnan(metrics.abs_rel(aligned.depth, true, valid))


def test_sizes_must_agree():
    with pytest.raises(ValueError, match=r'\(17, 12\).*\(12, 17\).*resize'):
        metrics.compute(np.ones((17, 12)), np.ones(SIZE_HW))
    with pytest.raises(ValueError, match='valid'):
        metrics.compute(np.ones(SIZE_HW), np.ones(SIZE_HW), np.ones((3, 3), bool))


def step_image(column, near=1.0, far=2.0):
    depth = np.full((8, 20), far)
    depth[:, :column] = near
    return depth


def test_boundary_f1_of_identical_map_is_one():
    assert metrics.boundary_f1(step_image(9), step_image(9)) == 1
    assert metrics.boundary_f1(step_image(9).T, step_image(9).T) == 1
    assert metrics.boundary_f1(7 * step_image(9), step_image(9)) == 1  # scale does not matter


def test_boundary_f1_of_shifted_or_reversed_step_is_zero():
    assert metrics.boundary_f1(step_image(10), step_image(9)) == 0
    assert metrics.boundary_f1(step_image(9, 2.0, 1.0), step_image(9)) == 0
    assert metrics.boundary_f1(np.ones((8, 20)), step_image(9)) == 0
    assert math.isnan(metrics.boundary_f1(np.ones((8, 20)), np.ones((8, 20))))


def test_boundary_f1_of_a_weak_step_counts_only_low_thresholds():
    # predicted ratio 1.12 passes 5.0, 7.2, 9.4, 11.7 %; the truth passes all ten
    weak = step_image(9, 1.0, 1.12)
    thresholds = np.linspace(0.05, 0.25, 10)
    expected = thresholds[thresholds < 0.12].sum() / thresholds.sum()
    assert metrics.boundary_f1(weak, step_image(9)) == pytest.approx(expected)


def boundary_by_loops(predicted, true, valid):
    good = valid & np.isfinite(predicted) & np.isfinite(true) & (predicted > 0) & (true > 0)
    total = weights = 0.0
    for t in np.linspace(0.05, 0.25, 10):
        hits = in_predicted = in_true = 0
        for v in range(true.shape[0]):
            for u in range(true.shape[1]):
                for dv, du in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                    a, b = v + dv, u + du
                    if not (0 <= a < true.shape[0] and 0 <= b < true.shape[1]):
                        continue
                    if not (good[v, u] and good[a, b]):
                        continue
                    p = float(predicted[a, b]) / float(predicted[v, u]) > 1 + t
                    g = float(true[a, b]) / float(true[v, u]) > 1 + t
                    hits, in_predicted, in_true = hits + (p and g), in_predicted + p, in_true + g
        precision, recall = hits / in_predicted, hits / in_true
        total += t * 2 * precision * recall / (precision + recall)
        weights += t
    return total / weights


def test_boundary_f1_agrees_with_plain_loops():
    predicted, true, valid = random_pair(5)
    expected = boundary_by_loops(predicted, true, valid)
    assert 0.2 < expected < 0.95
    assert metrics.boundary_f1(predicted, true, valid) == pytest.approx(expected, rel=1e-9)


def test_boundary_sums_pool():
    a, b = random_pair(6), random_pair(7)
    first, second = metrics.BoundarySums.of(*a), metrics.BoundarySums.of(*b)
    pooled = first + second
    for name in ('hits', 'predicted', 'true'):
        counts = np.add(getattr(first, name), getattr(second, name))
        assert getattr(pooled, name) == tuple(counts)
    assert min(first.f1, second.f1) < pooled.f1 < max(first.f1, second.f1)


def test_median_alignment_recovers_a_scale():
    _, true, valid = random_pair(8, holes=False)
    aligned = metrics.align_median(0.37 * true, true, valid)
    assert aligned.scale == pytest.approx(1 / 0.37, rel=1e-5)
    assert metrics.abs_rel(aligned.depth, true) == pytest.approx(0, abs=1e-6)


def test_median_alignment_uses_valid_pixels_only():
    true = np.full(SIZE_HW, 2.0)
    predicted = np.full(SIZE_HW, 1.0)
    valid = np.ones(SIZE_HW, bool)
    predicted[:10], valid[:10] = 50.0, False
    assert metrics.align_median(predicted, true, valid).scale == pytest.approx(2)


def test_affine_alignment_recovers_scale_and_shift_of_inverse_depth():
    _, true, valid = random_pair(9, holes=False)
    predicted = 1 / ((1 / true.astype(np.float64) + 0.21) / 0.7)  # 1/true = 0.7 / predicted - 0.21
    predicted[3, 3] = np.nan
    aligned = metrics.align_affine(predicted, true, valid)
    assert aligned.space == 'inv_depth'
    assert (aligned.scale, aligned.shift) == pytest.approx((0.7, -0.21), rel=1e-6)
    assert np.isnan(aligned.depth[3, 3])
    assert metrics.abs_rel(aligned.depth, true) == pytest.approx(0, abs=1e-6)


def test_affine_alignment_is_the_least_squares_solution():
    predicted, true, valid = random_pair(10)
    good = metrics.usable(predicted, true, valid)
    design = np.stack([1 / predicted[good].astype(float), np.ones(good.sum())], axis=1)
    scale, shift = np.linalg.lstsq(design, 1 / true[good].astype(float), rcond=None)[0]
    aligned = metrics.align_affine(predicted, true, valid)
    assert (aligned.scale, aligned.shift) == pytest.approx((scale, shift), rel=1e-9)


def test_affine_alignment_clamps_what_would_lie_behind_the_camera():
    true = np.array([[1.0, 2.0, 4.0, 8.0, 5.0]])
    predicted = np.array([[1.0, 2.0, 4.0, 8.0, 1e6]])
    valid = np.array([[True, True, True, True, False]])
    shifted = 1 / (1 / predicted + 0.3)
    aligned = metrics.align_affine(shifted, true, valid, max_depth=10.0)
    assert aligned.depth[0, :4] == pytest.approx(true[0, :4])
    assert aligned.depth[0, 4] == 10.0  # 1e-6 1/m: a million metres


def test_affine_alignment_of_a_constant_is_the_mean_inverse_depth():
    true = np.array([[1.0, 2.0, 4.0]])
    aligned = metrics.align_affine(np.full((1, 3), 7.0), true)
    assert aligned.scale == 0
    assert aligned.depth == pytest.approx(np.full((1, 3), 3 / 1.75))


def test_no_alignment_clamps_and_keeps_invalid_pixels():
    predicted = np.array([[0.0001, 3.0, 99.0, np.nan, np.inf]])
    aligned = metrics.align_none(predicted, np.ones((1, 5)), min_depth=0.01, max_depth=10.0)
    assert aligned.depth[0, :3] == pytest.approx([0.01, 3.0, 10.0])
    assert np.isnan(aligned.depth[0, 3])
    assert np.isinf(aligned.depth[0, 4])


def test_plane_fit_of_a_true_plane_is_exact():
    v, u = np.mgrid[0:30, 0:47]
    true = 1 / (0.004 * u - 0.002 * v + 0.3)
    true[5:9, 10:30] = np.nan
    plane = metrics.plane_baseline(true)
    assert (plane.a, plane.b, plane.c) == pytest.approx((0.004, -0.002, 0.3), rel=1e-9)
    assert metrics.abs_rel(plane.depth, true) == pytest.approx(0, abs=1e-12)
    assert plane.depth[6, 20] == pytest.approx(1 / (0.004 * 20 - 0.002 * 6 + 0.3))


def test_plane_fit_is_least_squares_in_inverse_depth_over_valid_pixels():
    _, true, valid = random_pair(11)
    plane = metrics.plane_baseline(true, valid)
    good = metrics.usable(true, true, valid)
    v, u = np.nonzero(good)
    design = np.stack([u, v, np.ones(u.size)], axis=1).astype(float)
    expected = np.linalg.lstsq(design, 1 / true[good].astype(float), rcond=None)[0]
    assert (plane.a, plane.b, plane.c) == pytest.approx(tuple(expected), rel=1e-8)


def test_plane_fit_clamps_and_survives_too_few_pixels():
    true = np.full((6, 9), np.nan)
    true[2, 3] = 2.0
    plane = metrics.plane_baseline(true, max_depth=10.0)
    assert plane.depth[2, 3] == pytest.approx(2)
    assert ((plane.depth > 0) & (plane.depth <= 10)).all()
    steep = 1 / np.maximum(np.linspace(2.0, 0.05, 9), 0.05)[None].repeat(6, 0)
    steep[:, 6:] = np.nan  # the plane goes on to 0.05 1/m = 20 m and is capped
    assert metrics.plane_baseline(steep, max_depth=4.0).depth.max() == pytest.approx(4)
    assert np.isnan(metrics.plane_baseline(np.full((3, 4), np.nan)).depth).all()


def test_without_a_cap_what_would_lie_behind_the_camera_is_as_far_as_the_truth():
    # inverse depth falls along u and the right part is flat: the fitted plane crosses zero there
    true = np.where(np.arange(20) < 8, 1 / (1.0 - 0.12 * np.arange(20)), 20.0)[None].repeat(5, 0)
    plane = metrics.plane_baseline(true)
    assert plane.a * 19 + plane.c < 0
    assert plane.depth.max() == pytest.approx(20)
    assert metrics.abs_rel(plane.depth, true) < 10
    predicted = 1 / (1 / true + 0.3)
    predicted[2, 19] = 1e9  # fits to -0.3 1/m
    valid = np.ones(true.shape, bool)
    valid[2, 19] = False
    aligned = metrics.align_affine(predicted, true, valid)
    assert aligned.shift == pytest.approx(-0.3)
    assert aligned.depth[2, 19] == pytest.approx(20)
