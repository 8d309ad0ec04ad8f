"""Calibration and sparsification of a confidence, against counts by hand and closed forms."""

from __future__ import annotations

from depth_node.evaluation.confidence import LOG_WITHIN, NAMES, ConfidenceScore
from depth_node.evaluation.protocols import Protocol, evaluate, predict
from depth_node.evaluation.readers import Sample
import numpy as np
import pytest

SIZE_HW = (40, 56)


def laplace_frame(seed, size_hw=SIZE_HW, scale=1.7):
    """A picture whose log error is Laplace of a width that differs from pixel to pixel."""
    rng = np.random.default_rng(seed)
    true = rng.uniform(0.5, 5.0, size_hw)
    spread = np.exp(rng.uniform(-4.0, -0.5, size_hw))
    predicted = scale * true * np.exp(rng.laplace(0, 1, size_hw) * spread)
    return predicted, true, spread


def test_a_true_claim_is_calibrated_and_a_false_one_is_off_by_what_it_adds():
    predicted, true, spread = laplace_frame(1, (400, 560))
    confidence = 1 - np.exp(-LOG_WITHIN / spread)
    values = ConfidenceScore.of(confidence, predicted, true).values()
    assert values['ece'] < 0.01
    assert values['mean'] == pytest.approx(values['right'], abs=0.01)
    boasts = ConfidenceScore.of(0.6 + 0.4 * confidence, predicted, true).values()
    assert boasts['ece'] == pytest.approx(0.6 * (1 - confidence).mean(), abs=0.01)
    assert boasts['ause'] == pytest.approx(values['ause'], rel=1e-6)  # the order is the same


def test_sums_are_those_of_four_pixels_by_hand():
    true = np.array([[1.0, 1.0, 1.0, 1.0, 1.0]])
    predicted = np.array([[2.0, 2.0, 2.1, 2.6, np.nan]])
    confidence = np.array([[0.95, 0.93, 0.42, 0.25, 0.9]])
    values = ConfidenceScore.of(confidence, predicted, true).values()
    middle = np.sqrt(2.0 * 2.1)  # the median of the logs: between the middle two
    error = np.abs(np.array([2.0, 2.0, 2.1, 2.6]) / middle - 1)
    assert values['right'] == 0.75
    assert values['mean'] == pytest.approx(np.mean([0.95, 0.93, 0.42, 0.25]))
    gaps = abs(0.95 + 0.93 - 2), abs(0.42 - 1), abs(0.25 - 0)
    assert values['ece'] == pytest.approx(sum(gaps) / 4)
    assert values['error_50'] == pytest.approx(error[:2].mean())
    assert values['error_75'] == pytest.approx(error[:3].mean())
    assert values['error_100'] == pytest.approx(error.mean())


def test_ause_is_zero_for_the_errors_themselves_and_that_of_chance_for_none():
    predicted, true, _ = laplace_frame(2)
    r = np.log(predicted / true)
    error = np.abs(np.expm1(r - np.median(r)))
    best = ConfidenceScore.of(1 / (1 + error), predicted, true).values()
    assert best['ause'] == pytest.approx(0, abs=1e-12)
    assert best['random'] > 0.05
    rng = np.random.default_rng(3)
    frames = [laplace_frame(seed) for seed in range(20)]
    chance = sum((ConfidenceScore.of(rng.random(SIZE_HW), p, t) for p, t, _ in frames),
                 ConfidenceScore()).values()
    assert chance['ause'] == pytest.approx(chance['random'], rel=0.15)
    worst = ConfidenceScore.of(error / (1 + error), predicted, true).values()
    assert worst['ause'] > 1.2 * worst['random']


def test_scale_and_unknown_pixels_do_not_count():
    predicted, true, spread = laplace_frame(4)
    confidence = 1 - np.exp(-LOG_WITHIN / spread)
    plain = ConfidenceScore.of(confidence, predicted, true).values()
    for name, value in ConfidenceScore.of(confidence, 3 * predicted, true).values().items():
        assert value == pytest.approx(plain[name], rel=1e-9), name
    wrong = predicted.copy()
    wrong[:, :9] *= 40
    known = true.copy()
    known[:, :9] = np.nan
    cut = ConfidenceScore.of(confidence[:, 9:], predicted[:, 9:], true[:, 9:])
    seen = ConfidenceScore.of(confidence, wrong, known)
    assert seen.count.tolist() == cut.count.tolist()
    assert seen.values() == pytest.approx(cut.values())
    assert ConfidenceScore.of(confidence, wrong, true, np.isfinite(known)).values() == (
        pytest.approx(cut.values()))  # fmt: skip


def test_frames_add_up_pixels_for_calibration_and_means_for_errors():
    one, two = (laplace_frame(seed, hw) for seed, hw in ((5, (30, 41)), (6, (11, 17))))
    scores = [ConfidenceScore.of(1 - s, p, t) for p, t, s in (one, two)]
    both = scores[0] + scores[1]
    assert both.frames == 2
    assert both.count.sum() == 30 * 41 + 11 * 17
    a, b = (score.values() for score in scores)
    assert both.values()['error_75'] == pytest.approx((a['error_75'] + b['error_75']) / 2)
    weighted = (30 * 41 * a['right'] + 11 * 17 * b['right']) / (30 * 41 + 11 * 17)
    assert both.values()['right'] == pytest.approx(weighted)
    bins = both.bins()
    assert sum(row['share'] for row in bins) == pytest.approx(1)
    for number, row in enumerate(bins):
        if row['share']:
            assert number / 10 <= row['confidence'] <= (number + 1) / 10


def test_nothing_known_gives_no_numbers_and_other_sizes_are_refused():
    empty = ConfidenceScore.of(np.ones((3, 4)), np.full((3, 4), np.nan), np.ones((3, 4)))
    assert empty.frames == 0
    assert np.isnan(list(empty.values().values())).all()
    assert tuple(empty.values()) == NAMES
    with pytest.raises(ValueError, match=r'confidence is \(3, 5\), depth \(3, 4\)'):
        ConfidenceScore.of(np.ones((3, 5)), np.ones((3, 4)), np.ones((3, 4)))


class _Frame:
    def __init__(self, depth, confidence):
        self.depth, self.confidence, self.notes = depth, confidence, ()


class _Predictor:
    """Gives depth twice too large, and half of the picture's rows as confidence."""

    def __init__(self, depth, confidence):
        self._frame = _Frame(depth.astype(np.float32), confidence)

    def run(self, rgb, camera, stamp=0.0):
        return self._frame


class _Reader:
    name, kind, note = 'made', 'made', 'in memory'

    def __init__(self, sample, truth):
        self._sample, self.truth, self.skipped = sample, truth, []
        self.metric = truth == 'metric'

    def __len__(self):
        return 1

    def __iter__(self):
        yield self._sample


@pytest.mark.parametrize(('truth', 'kind', 'judged'), [
    ('metric', 'canonical_depth', True), ('scale', 'depth', True), ('affine', 'depth', False),
    ('metric', 'rel_inv_depth', False)])  # fmt: skip
def test_it_is_judged_where_the_truth_is_known_up_to_scale(truth, kind, judged):
    predicted, true, spread = laplace_frame(7)
    rgb = np.zeros((*SIZE_HW, 3), np.uint8)
    confidence = (1 - spread).astype(np.float32)
    sample = Sample('a', rgb, true.astype(np.float32), None)
    protocol = Protocol(alignments=('none', 'median', 'affine'), examples=0)
    result = evaluate(_Predictor(predicted, confidence), _Reader(sample, truth), protocol,
                      output_kind=kind)  # fmt: skip
    if not judged:
        assert result.confidence is None
        return
    wanted = ConfidenceScore.of(confidence, predicted.astype(np.float32), true).values()
    assert result.confidence.values() == pytest.approx(wanted, rel=1e-5)


def test_confidence_follows_the_input_crop_and_is_none_for_two_pictures():
    size_hw = (360, 1240)
    depth = np.ones((352, 1216), np.float32)
    confidence = np.linspace(0, 1, depth.size, dtype=np.float32).reshape(depth.shape)
    sample = Sample('a', np.zeros((*size_hw, 3), np.uint8), np.ones(size_hw, np.float32), None)
    seen, sure, _ = predict(_Predictor(depth, confidence), sample, Protocol(input_crop='kb'))
    assert np.isnan(sure[:8]).all()
    assert np.array_equal(sure[8:, 12:12 + 1216], confidence)
    assert np.array_equal(np.isnan(seen), np.isnan(sure))
    rgb = np.zeros((352, 1216, 3), np.uint8)
    square = Sample('a', rgb, np.ones((352, 1216), np.float32), None)
    assert predict(_Predictor(depth, confidence), square, Protocol(flip='mean'))[1] is None


def test_report_card_and_table_say_it(tmp_path):
    from depth_node.evaluation import report
    from depth_node.model_card import FileSpec, InputSpec, ModelCard, OutputSpec

    predicted, true, spread = laplace_frame(8)
    sample = Sample('a', np.zeros((*SIZE_HW, 3), np.uint8), true.astype(np.float32), None)
    protocol = Protocol(alignments=('median',), modes=('per-image',), examples=0)

    def measured(confidence):
        result = evaluate(_Predictor(predicted, confidence), _Reader(sample, 'metric'), protocol)
        return report.Run('m', 'm.onnx', 'a' * 64, 'ort', 'fp32', 'off', 'cmd', '2026-01-01',
                          '0', protocol, (result,))  # fmt: skip

    run = measured((1 - spread).astype(np.float32))
    values = run.results[0].confidence.values()
    card = ModelCard(
        'm', tmp_path / 'm.yaml', 'none', InputSpec('image', 'uint8_nhwc', size_hw=SIZE_HW),
        OutputSpec('depth', 'depth', range_m=(0.1, 9.0), confidence='confidence'),
        {'fp32': FileSpec(tmp_path / 'm.onnx', 'a' * 64)})  # fmt: skip
    entry = report.updated_card(card, run).metrics['fp32']['made']['confidence']
    assert entry == {name: round(values[name], 4) for name in NAMES}
    plain = report.to_json(run)['datasets'][0]['confidence']
    assert plain['ause'] == values['ause']
    assert len(plain['bins']) == 10
    assert f'calibration error {values["ece"]:.3f}' in report.text_table(run)
    page = report.markdown(run)
    assert '## Confidence' in page
    assert ' | '.join(f'{values[name]:.3f}' for name in NAMES) in page
    without = measured(None)
    assert 'onfidence' not in report.markdown(without) + report.text_table(without)
    assert 'confidence' not in report.updated_card(card, without).metrics['fp32']['made']
