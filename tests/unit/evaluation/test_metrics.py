"""Metrics against closed forms and against plain loops over pixels."""

import math

from depth_node.evaluation import metrics
import numpy as np
import pytest

SIZE_HW = (12, 17)


def compute(*images):
    return metrics.ErrorSums.of(*images).values()


def abs_rel(*images):
    return metrics.ErrorSums.of(*images).abs_rel


def boundary_f1(*images):
    return metrics.BoundarySums.of(*images).f1


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
        # MegaDepth's way to write it
        'si_rmse': math.sqrt(sum(e * e for e in log_errors) / n - (sum(log_errors) / n) ** 2),
        # what MiDaS prints, in percent
        'above1': sum(max(d / t, t / d) > 1.25 for d, t in pairs) / n,
    }
    for power in (1, 2, 3):
        inside = sum(max(d / t, t / d) < 1.25**power for d, t in pairs)
        found[f'delta{power}'] = inside / n
    return found


def test_all_metrics_agree_with_plain_loops():
    predicted, true, valid = random_pair()
    found = compute(predicted, true, valid)
    expected = by_loops(predicted, true, valid)
    assert set(found) == set(expected) == set(metrics.METRIC_NAMES)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9), name


def test_perfect_prediction():
    _, true, valid = random_pair(holes=False)
    found = compute(true, true, valid)
    for name in ('abs_rel', 'sq_rel', 'log10', 'rms', 'rms_log', 'sc_inv', 'silog'):
        assert found[name] == 0, name
    assert found['delta1'] == found['delta2'] == found['delta3'] == 1


def test_known_offset():
    true = np.full(SIZE_HW, 2.0)
    true[:, ::2] = 4.0  # 9 of 17 columns
    found = compute(true + 0.5, true)
    near, far = 8 / 17, 9 / 17
    assert found['abs_rel'] == pytest.approx(near * 0.25 + far * 0.125)
    assert found['sq_rel'] == pytest.approx(near * 0.125 + far * 0.0625)
    assert found['rms'] == pytest.approx(0.5)
    assert found['delta1'] == pytest.approx(far)  # 2.5 / 2 is not below 1.25
    assert found['delta2'] == 1


def test_known_factor_is_no_scale_invariant_error():
    _, true, _ = random_pair(holes=False)
    found = compute(3.0 * true.astype(np.float64), true)
    assert found['sc_inv'] == pytest.approx(0, abs=1e-12)
    assert found['rms_log'] == pytest.approx(math.log(3))
    assert found['log10'] == pytest.approx(math.log10(3))
    assert found['abs_rel'] == pytest.approx(2)
    assert found['delta3'] == 0


def test_trap_02_division_is_by_the_truth():
    """DenseDepth's released code swaps the two: its rel reads 0.1274 instead of 0.1234."""
    assert abs_rel(np.array([[1.0]]), np.array([[4.0]])) == pytest.approx(0.75)
    assert abs_rel(np.array([[4.0]]), np.array([[1.0]])) == pytest.approx(3.0)
    predicted, true, _ = random_pair(12, holes=False)
    right, swapped = compute(predicted, true), compute(true, predicted)
    for name in ('abs_rel', 'sq_rel'):
        assert abs(right[name] / swapped[name] - 1) > 0.05, name
    for name in set(metrics.METRIC_NAMES) - {'abs_rel', 'sq_rel'}:  # a swap cannot be seen there
        assert right[name] == pytest.approx(swapped[name], rel=1e-9), name


def test_pooled_sums_equal_one_large_image():
    a, b = random_pair(3), random_pair(4)
    both = [np.concatenate(pair, axis=0) for pair in zip(a, b, strict=True)]
    pooled = metrics.ErrorSums.of(*a) + metrics.ErrorSums.of(*b)
    for name, value in compute(*both).items():
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
    found = compute(predicted, true, valid)
    assert all(math.isnan(value) for value in found.values())
    assert math.isnan(boundary_f1(predicted, true, valid))
    for align in metrics.ALIGNMENTS.values():
        aligned = align(predicted, true, valid)
        assert aligned.depth.shape == true.shape
        assert math.isnan(abs_rel(aligned.depth, true, valid))


def test_sizes_must_agree():
    with pytest.raises(ValueError, match=r'\(17, 12\).*\(12, 17\).*resize'):
        compute(np.ones((17, 12)), np.ones(SIZE_HW))
    with pytest.raises(ValueError, match='valid'):
        compute(np.ones(SIZE_HW), np.ones(SIZE_HW), np.ones((3, 3), bool))


def step_image(column, near=1.0, far=2.0):
    depth = np.full((8, 20), far)
    depth[:, :column] = near
    return depth


def test_boundary_f1_of_identical_map_is_one():
    assert boundary_f1(step_image(9), step_image(9)) == 1
    assert boundary_f1(step_image(9).T, step_image(9).T) == 1
    assert boundary_f1(7 * step_image(9), step_image(9)) == 1  # scale does not matter


def test_boundary_f1_of_shifted_or_reversed_step_is_zero():
    assert boundary_f1(step_image(10), step_image(9)) == 0
    assert boundary_f1(step_image(9, 2.0, 1.0), step_image(9)) == 0
    assert boundary_f1(np.ones((8, 20)), step_image(9)) == 0
    assert math.isnan(boundary_f1(np.ones((8, 20)), np.ones((8, 20))))


def test_boundary_f1_of_a_weak_step_counts_only_low_thresholds():
    # predicted ratio 1.12 passes 5.0, 7.2, 9.4, 11.7 %; the truth passes all ten
    weak = step_image(9, 1.0, 1.12)
    thresholds = np.linspace(0.05, 0.25, 10)
    expected = thresholds[thresholds < 0.12].sum() / thresholds.sum()
    assert boundary_f1(weak, step_image(9)) == pytest.approx(expected)


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
    assert boundary_f1(predicted, true, valid) == pytest.approx(expected, rel=1e-9)


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
    assert abs_rel(aligned.depth, true) == pytest.approx(0, abs=1e-6)


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
    assert abs_rel(aligned.depth, true) == pytest.approx(0, abs=1e-6)


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
    assert abs_rel(plane.depth, true) == pytest.approx(0, abs=1e-12)
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
    assert abs_rel(plane.depth, true) < 10
    predicted = 1 / (1 / true + 0.3)
    predicted[2, 19] = 1e9  # fits to -0.3 1/m
    valid = np.ones(true.shape, bool)
    valid[2, 19] = False
    aligned = metrics.align_affine(predicted, true, valid)
    assert aligned.shift == pytest.approx(-0.3)
    assert aligned.depth[2, 19] == pytest.approx(20)


def test_affine_alignment_in_depth_recovers_scale_and_shift_of_depth():
    _, true, valid = random_pair(13, holes=False)
    predicted = (true.astype(np.float64) - 0.3) / 1.7 + 1.0  # true = 1.7 predicted - 1.4
    predicted[3, 3] = np.nan
    aligned = metrics.align_affine_depth(predicted, true, valid, max_depth=10.0)
    assert aligned.space == 'depth'
    assert (aligned.scale, aligned.shift) == pytest.approx((1.7, -1.4), rel=1e-6)
    assert abs_rel(aligned.depth, true) == pytest.approx(0, abs=1e-6)
    assert np.isnan(aligned.depth[3, 3])
    inverse = metrics.align_affine(predicted, true, valid, max_depth=10.0)
    assert abs_rel(inverse.depth, true) > 0.01  # the other space does not fit it


def test_affine_alignment_in_depth_is_least_squares_and_clamps():
    predicted, true, valid = random_pair(14)
    good = metrics.usable(predicted, true, valid)
    design = np.stack([predicted[good].astype(float), np.ones(good.sum())], axis=1)
    scale, shift = np.linalg.lstsq(design, true[good].astype(float), rcond=None)[0]
    aligned = metrics.align_affine_depth(predicted, true, valid)
    assert (aligned.scale, aligned.shift) == pytest.approx((scale, shift), rel=1e-6)
    assert np.nanmax(aligned.depth) <= true[good].max()
    constant = metrics.align_affine_depth(np.full((1, 3), 7.0), np.array([[1.0, 2.0, 6.0]]))
    assert constant.scale == 0
    assert constant.depth == pytest.approx(np.full((1, 3), 3.0))


# --- order of pairs


def random_pairs(seed, count=400):
    rng = np.random.default_rng(seed)
    relation = rng.integers(-1, 2, count).astype(np.int8)
    log_ratio = 0.08 * relation + rng.normal(0, 0.06, count)
    log_ratio[:7] = np.nan
    return log_ratio, relation


def test_wkdr_agrees_with_plain_loops():
    log_ratio, relation = random_pairs(0)
    threshold = 0.04
    wrong = {0: [], 1: []}
    for ratio, label in zip(np.exp(log_ratio), relation, strict=True):
        if math.isnan(ratio):
            found = None
        elif ratio > 1 + threshold:
            found = 1
        elif ratio < 1 / (1 + threshold):
            found = -1
        else:
            found = 0
        wrong[abs(int(label))].append(found != label)
    sums = metrics.OrdinalSums.of(log_ratio, relation, threshold)
    assert sums.rate == pytest.approx(np.mean(wrong[0] + wrong[1]))
    assert sums.rate_eq == pytest.approx(np.mean(wrong[0]))
    assert sums.rate_ne == pytest.approx(np.mean(wrong[1]))
    assert 0 < sums.rate_eq < 1
    assert 0 < sums.rate_ne < 1
    halves = [metrics.OrdinalSums.of(log_ratio[k::2], relation[k::2], threshold) for k in (0, 1)]
    assert halves[0] + halves[1] == sums
    assert math.isnan(metrics.OrdinalSums().rate)
    with pytest.raises(ValueError, match=r'\(400,\) ratios and \(3,\) relations'):
        metrics.OrdinalSums.of(log_ratio, relation[:3], threshold)


def test_whdr_has_no_class_of_equals():
    relation = np.array([1, 1, -1, -1, 1, -1, 0], np.int8)
    log_ratio = np.array([0.001, -0.5, -0.001, 0.2, 0.0, np.nan, 0.3])
    # right: 1st and 3rd, however small; a tie and a hole are wrong; equal pairs do not count
    assert metrics.whdr(log_ratio, relation) == pytest.approx(4 / 6)
    assert math.isnan(metrics.whdr(np.zeros(2), np.zeros(2, np.int8)))


@pytest.mark.parametrize('seed', range(4))
def test_wkdr_threshold_makes_both_errors_alike(seed):
    log_ratio, relation = random_pairs(seed, 150)
    threshold = metrics.equal_error_threshold(log_ratio, relation)
    assert 0 < threshold < 0.3

    def gap(candidate):
        sums = metrics.OrdinalSums.of(log_ratio, relation, candidate)
        return abs(sums.rate_eq - sums.rate_ne)

    everywhere = min(gap(candidate) for candidate in np.linspace(0, 0.4, 4001))
    assert gap(threshold) <= everywhere + 1e-12
    assert math.isnan(metrics.equal_error_threshold(log_ratio, np.ones(150, np.int8)))
    assert math.isnan(metrics.equal_error_threshold(log_ratio, np.zeros(150, np.int8)))


def test_pairs_are_looked_up_at_column_and_row():
    depth = np.arange(1.0, 13.0).reshape(3, 4)
    depth[2, 0] = np.nan
    depth[0, 3] = np.inf
    uv = np.array([[1, 2, 3, 0], [3, 1, 0, 0], [0, 2, 1, 1], [1.4, 0.6, 2.5, 1.5]], np.float32)
    found = metrics.pair_log_ratios(depth, uv)
    # (u 1, v 2) is 10 against an infinite one; (3, 1) is 8, (0, 0) is 1; rounded (1, 1), (3, 2)
    assert np.isnan(found[[0, 2]]).all()
    assert found[[1, 3]] == pytest.approx([math.log(8), math.log(6 / 12)])
    for wrong in (np.array([[4, 0, 0, 0]]), np.array([[0, 3, 0, 0]]), np.array([[-1, 0, 0, 0]])):
        with pytest.raises(ValueError, match='the image is'):
            metrics.pair_log_ratios(depth, wrong.astype(np.float32))
    with pytest.raises(ValueError, match='expected'):
        metrics.pair_log_ratios(depth, np.zeros((3, 2)))


def test_sdr_approaches_the_share_over_all_pairs():
    predicted, true, valid = random_pair(15)
    good = np.flatnonzero(metrics.usable(true, true, valid))
    d, t = predicted.ravel()[good].astype(float), true.ravel()[good].astype(float)

    def order(a, b):  # MegaDepth: +1 above 1.1, -1 below 1 / 1.1, else 0
        if not (math.isfinite(a) and math.isfinite(b) and a > 0 and b > 0):
            return None
        return 1 if a / b > 1.1 else -1 if a / b < 1 / 1.1 else 0

    pairs = [(i, j) for i in range(d.size) for j in range(d.size) if i != j]
    wrong = [(order(t[i], t[j]), order(d[i], d[j]) != order(t[i], t[j])) for i, j in pairs]
    sums = metrics.sdr_sums(predicted, true, valid, pairs=60_000)
    deviation = 4 * math.sqrt(0.25 / 60_000)
    assert sums.rate == pytest.approx(np.mean([w for _, w in wrong]), abs=deviation)
    unequal = [w for label, w in wrong if label]
    assert sums.rate_ne == pytest.approx(np.mean(unequal), abs=deviation)
    assert 0.05 < sums.rate < 0.6
    assert metrics.sdr_sums(true, true, valid, pairs=500).rate == 0
    assert metrics.sdr_sums(5 * true, true, valid, pairs=500).rate == 0
    assert metrics.sdr_sums(9 - true, true, valid, pairs=500).rate_ne == 1  # the order reversed
    assert metrics.sdr_sums(predicted, true, valid, pairs=500) == metrics.sdr_sums(
        predicted, true, valid, pairs=500
    )


def test_sdr_without_two_known_pixels_is_empty():
    true = np.full(SIZE_HW, np.nan)
    true[3, 4] = 2.0
    assert math.isnan(metrics.sdr_sums(np.ones(SIZE_HW), true, pairs=100).rate)
    assert metrics.sdr_sums(np.ones(SIZE_HW), np.ones(SIZE_HW), pairs=0) == metrics.OrdinalSums()
    with pytest.raises(ValueError, match='resize'):
        metrics.sdr_sums(np.ones((3, 3)), true, pairs=100)


# --- normals


def plane_depth(normal, offset, fx, fy, cx, cy, size_hw=(20, 31)):
    v, u = np.mgrid[0 : size_hw[0], 0 : size_hw[1]]
    return offset / (normal[0] * (u - cx) / fx + normal[1] * (v - cy) / fy + normal[2])


@pytest.mark.parametrize('direction', [(0, 0, 1), (0.3, -0.2, 0.9), (-0.5, 0.4, 0.6)])
def test_normals_of_a_plane_are_its_normal_towards_the_camera(direction):
    normal = np.array(direction) / np.linalg.norm(direction)
    lens = {'fx': 40.0, 'fy': 55.0, 'cx': 14.0, 'cy': 11.5}
    depth = plane_depth(normal, 2.0, **lens)
    depth[5, 6] = np.nan
    depth[9, 20] = -1.0
    found = metrics.normals_from_depth(depth, **lens)
    known = np.isfinite(found).all(axis=-1)
    expected = np.zeros(depth.shape, bool)
    expected[1:-1, 1:-1] = True
    for v, u in ((5, 6), (9, 20)):  # a hole takes itself and its four neighbours
        for dv, du in ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)):
            expected[v + dv, u + du] = False
    assert (known == expected).all()
    np.testing.assert_allclose(
        found[known], np.broadcast_to(-normal, found[known].shape), atol=1e-9
    )


def test_normals_point_at_the_camera_everywhere_on_a_sphere():
    fx, fy, cx, cy = 300.0, 310.0, 60.0, 50.0
    v, u = np.mgrid[0:100, 0:120]
    rays = np.stack([(u - cx) / fx, (v - cy) / fy, np.ones(u.shape)], axis=-1)
    centre, radius = np.array([0.05, -0.02, 3.0]), 2.0
    # nearest root of |z ray - centre| = radius
    a, b = (rays**2).sum(-1), (rays * centre).sum(-1)
    z = (b - np.sqrt(b**2 - a * (centre @ centre - radius**2))) / a
    expected = (z[..., None] * rays - centre) / radius
    sums = metrics.NormalSums.of(metrics.normals_from_depth(z, fx, fy, cx, cy), expected)
    assert sums.count == 98 * 118
    assert sums.values()['normal_mean_deg'] < 0.05


def test_normal_angles_agree_with_plain_loops_and_pool():
    rng = np.random.default_rng(3)
    true = rng.normal(size=(9, 14, 3))
    predicted = true / np.linalg.norm(true, axis=-1, keepdims=True) + rng.normal(
        0, 0.4, true.shape
    )
    predicted[2, 3] = np.nan
    true[4, 5] = 0
    valid = rng.random((9, 14)) < 0.9
    angles = []
    for v in range(9):
        for u in range(14):
            p, t = predicted[v, u], true[v, u]
            if valid[v, u] and np.isfinite(p).all() and t.any():
                cross = np.linalg.norm(np.cross(p, t))  # atan2 form, not the arc cosine
                angles.append(math.degrees(math.atan2(cross, float(p @ t))))
    found = metrics.NormalSums.of(predicted, true, valid).values()
    assert found['normal_mean_deg'] == pytest.approx(np.mean(angles), rel=1e-9)
    assert found['normal_median_deg'] == pytest.approx(np.median(angles), abs=0.8)
    for limit, name in ((11.25, '11'), (22.5, '22'), (30, '30')):
        share = np.mean(np.array(angles) < limit)
        assert 0.05 < share < 0.95
        assert found[f'normal_within_{name}'] == pytest.approx(share)
    halves = [metrics.NormalSums.of(predicted[k::2], true[k::2], valid[k::2]) for k in (0, 1)]
    pooled = (halves[0] + halves[1]).values()
    for name, value in found.items():
        assert pooled[name] == pytest.approx(value, rel=1e-12), name


def test_normal_median_is_exact_to_a_bin_and_empty_is_nan():
    degrees = np.linspace(0, 80, 1001)
    true = np.zeros((1, 1001, 3))
    true[..., 2] = -1
    radians = np.radians(degrees)
    predicted = np.stack([np.sin(radians), np.zeros(1001), -np.cos(radians)], axis=-1)[None]
    assert metrics.NormalSums.of(predicted, true).median_deg == pytest.approx(40, abs=0.05)
    assert all(math.isnan(value) for value in metrics.NormalSums().values().values())
    with pytest.raises(ValueError, match=r'expected \(H, W, 3\)'):
        metrics.NormalSums.of(predicted, true[:, :5])


def test_errors_by_range_are_those_of_the_pixels_in_each_band():
    rng = np.random.default_rng(5)
    true = np.exp(rng.uniform(np.log(0.1), np.log(20), (13, 17)))
    true[0, :4] = metrics.RANGE_BANDS_M[1:5]  # the lower end belongs to a band
    predicted = true * rng.uniform(0.7, 1.4, true.shape)
    predicted[3, 3], true[4, 4] = np.nan, np.nan
    valid = rng.random(true.shape) < 0.8
    bands = metrics.ErrorSums.by_range(predicted, true, valid)
    for i, sums in enumerate(bands):
        near, far = metrics.RANGE_BANDS_M[i : i + 2]
        expected = metrics.ErrorSums.of(predicted, true, valid & (true >= near) & (true < far))
        assert sums.count == expected.count > 0
        assert sums.abs_rel == pytest.approx(expected.abs_rel)
        assert sums.rms_log == pytest.approx(expected.rms_log)
    whole, pooled = metrics.ErrorSums.of(predicted, true, valid), sum(bands, metrics.ErrorSums())
    for name, value in whole.values().items():
        assert pooled.values()[name] == pytest.approx(value), name
