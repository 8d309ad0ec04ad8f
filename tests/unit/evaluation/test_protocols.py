"""The measurement loop with a pipeline double whose error is known."""

from dataclasses import dataclass, field
import math

from depth_node.camera import Camera
from depth_node.evaluation import protocols
from depth_node.evaluation.metrics import ErrorSums, abs_rel, plane_baseline
from depth_node.evaluation.protocols import Protocol, evaluate, resize_depth, score_frame
from depth_node.evaluation.readers import DataError, Reader, Sample
import numpy as np
import pytest

SIZE_HW = (24, 32)
CAMERA = Camera(SIZE_HW, 30.0, 31.0, 15.0, 11.0)


@dataclass
class Frame:
    depth: np.ndarray
    notes: tuple = ()


@dataclass
class MemoryFrame:
    """A frame of a reader, made in memory; broken where `sample` is None."""

    name: str
    sample: Sample | None

    def read(self):
        if self.sample is None:
            raise DataError(f'{self.name}.png: broken')
        return self.sample


@dataclass
class Double:
    """Predicts by a function of the truth that the picture's first value selects."""

    truths: list
    predict: object
    calls: list = field(default_factory=list)
    notes: tuple = ()

    def run(self, rgb, camera, stamp=0.0):
        self.calls.append((rgb.shape, camera, stamp))
        return Frame(self.predict(self.truths[int(rgb[0, 0, 0])]), self.notes)


def truth(seed, size_hw=SIZE_HW):
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0.5, 5.0, size_hw).astype(np.float32)
    depth[0, :4] = np.nan
    return depth


def data_set(truths, broken=0, metric=True):
    frames = []
    for i, true in enumerate(truths):
        rgb = np.full((*SIZE_HW, 3), i, np.uint8)
        frames.append(MemoryFrame(f'f{i}', Sample(f'f{i}', rgb, true, CAMERA, metric)))
    frames += [MemoryFrame(f'broken{i}', None) for i in range(broken)]
    return Reader('set', 'folder', 'made in memory', frames, metric)


def test_numbers_of_a_known_error():
    truths = [truth(0), truth(1)]
    double = Double(truths, lambda t: 1.1 * t)
    result = evaluate(double, data_set(truths), Protocol())
    row = result.summary('none', 'per-image')
    assert row['abs_rel'] == pytest.approx(0.1, rel=1e-5)
    assert row['delta1'] == 1
    assert row['frames'] == 2
    assert result.coverage == 1
    assert result.summary('median', 'pooled')['abs_rel'] == pytest.approx(0, abs=1e-6)
    assert result.summary('affine', 'pooled')['abs_rel'] == pytest.approx(0, abs=1e-6)
    assert row['ratio_to_plane'] == pytest.approx(0.1 / row['plane_abs_rel'], rel=1e-5)
    assert 0 < row['ratio_to_plane'] < 1
    assert double.calls[0] == ((*SIZE_HW, 3), CAMERA, 0.0)


def test_modes_differ_as_defined():
    small, large = truth(0), truth(1)
    small[2:] = np.nan  # 60 pixels against 764
    truths = [small, large]
    double = Double(truths, lambda t: t + (1.0 if t is small else 0.1))
    result = evaluate(double, data_set(truths), Protocol(alignments=('none',)))
    assert result.summary('none', 'per-image')['rms'] == pytest.approx(0.55, rel=1e-4)
    pooled = math.sqrt((60 * 1.0 + 764 * 0.01) / 824)
    assert result.summary('none', 'pooled')['rms'] == pytest.approx(pooled, rel=1e-4)
    both = np.concatenate([plane_baseline(t, max_depth=10.0).depth for t in truths])
    row = result.summary('none', 'pooled')
    assert row['plane_abs_rel'] == pytest.approx(abs_rel(both, np.concatenate(truths)))
    assert row['plane_abs_rel'] != result.summary('none', 'per-image')['plane_abs_rel']
    with pytest.raises(ValueError, match="mode 'mean'"):
        result.summary('none', 'mean')


def test_plane_baseline_of_a_planar_truth_has_no_ratio():
    v, u = np.mgrid[0 : SIZE_HW[0], 0 : SIZE_HW[1]]
    truths = [(1 / (0.2 + 0.01 * u + 0.005 * v)).astype(np.float64)]
    double = Double(truths, lambda t: 1.1 * t)
    row = evaluate(double, data_set(truths), Protocol()).summary('none', 'pooled')
    assert row['plane_abs_rel'] == pytest.approx(0, abs=1e-12)
    assert row['ratio_to_plane'] is None


def test_invalid_predictions_count_in_the_coverage_only():
    truths = [truth(0)]

    def predict(t):
        depth = t.copy()
        depth[5] = np.inf
        depth[6] = np.nan
        depth[7] = -np.inf
        return depth

    result = evaluate(Double(truths, predict), data_set(truths), Protocol())
    known = SIZE_HW[0] * SIZE_HW[1] - 4
    assert result.coverage == pytest.approx((known - 3 * 32) / known)
    assert result.summary('none', 'pooled')['abs_rel'] == 0
    assert result.frames[0].plane.count == known  # the baseline answers everywhere


def test_truth_outside_of_the_range_is_not_judged_and_predictions_are_clamped():
    true = np.full(SIZE_HW, 2.0, np.float32)
    true[:12] = 30.0
    truths = [true]
    result = evaluate(
        Double(truths, lambda t: np.full(SIZE_HW, 50.0)),
        data_set(truths),
        Protocol(alignments=('none',), max_depth=10.0),
    )
    assert result.frames[0].known == 12 * 32
    assert result.summary('none', 'pooled')['abs_rel'] == pytest.approx(4)  # 10 m for 2 m


def test_skipped_frames_are_counted_and_progress_reaches_the_end():
    truths = [truth(0), truth(1)]
    seen = []
    result = evaluate(
        Double(truths, lambda t: t),
        data_set(truths, broken=2),
        Protocol(),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert len(result.frames) == 2
    assert [item.name for item in result.skipped] == ['broken0', 'broken1']
    assert seen[0] == (1, 4)
    assert seen[-1] == (4, 4)


def test_nothing_readable_is_an_error_that_names_a_file():
    with pytest.raises(DataError, match=r'none of 3 frames.*broken0\.png'):
        evaluate(Double([], None), data_set([], broken=3), Protocol())


def test_frame_without_prediction_does_not_poison_the_mean():
    truths = [truth(0), truth(1)]
    double = Double(truths, lambda t: 1.1 * t if t is truths[0] else np.full(SIZE_HW, np.nan))
    row = evaluate(double, data_set(truths), Protocol()).summary('none', 'per-image')
    assert row['frames'] == 1
    assert row['abs_rel'] == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize(('metric_data', 'metric_model'), [(False, True), (True, False)])
def test_only_affine_where_there_are_no_metres(metric_data, metric_model):
    truths = [truth(0)]
    double = Double(truths, lambda t: 1 / (3 / t + 0.4))
    reader = data_set(truths, metric=metric_data)
    result = evaluate(double, reader, Protocol(), metric_model=metric_model)
    assert result.alignments == ('affine',)
    row = result.summary('affine', 'per-image')
    assert row['abs_rel'] == pytest.approx(0, abs=1e-5)
    assert (row['rms'] is None) == (not metric_data)
    assert (row['sq_rel'] is None) == (not metric_data)
    with pytest.raises(DataError, match='add affine to --align'):
        evaluate(double, reader, Protocol(alignments=('none',)), metric_model=metric_model)


def test_prediction_is_compared_at_the_size_of_the_truth():
    v, u = np.mgrid[0:48, 0:64]
    true = (2 + 0.01 * u + 0.02 * v).astype(np.float32)
    sample = Sample('a', np.zeros((24, 32, 3), np.uint8), true, CAMERA)
    coarse = true.reshape(24, 2, 32, 2).mean(axis=(1, 3))
    score, images = score_frame(coarse, sample, Protocol(), ('none',))
    assert images['none'].shape == (48, 64)
    assert score.known == score.predicted == 48 * 64
    assert score.aligned['none'].errors.rms < 0.006  # exact but for the border
    inner = np.abs(images['none'] - true)[1:-1, 1:-1]
    assert inner.max() < 1e-5


def test_resizing_keeps_the_area_of_invalid_pixels():
    depth = np.full((10, 15), 2.0, np.float32)
    depth[4, 7] = np.inf
    depth[8, 2] = np.nan
    large = resize_depth(depth, (20, 30))
    assert np.isinf(large).sum() == 4
    assert np.isnan(large).sum() == 4
    assert (large[np.isfinite(large)] == 2).all()
    assert resize_depth(depth, (10, 15)) is not None
    assert np.array_equal(resize_depth(depth, (10, 15)), depth, equal_nan=True)


def test_worst_and_best_frames_are_found_and_disjoint():
    truths = [truth(i) for i in range(7)]
    factors = [1.3, 1.0, 1.6, 1.1, 1.5, 1.2, 1.4]
    lookup = {id(t): f for t, f in zip(truths, factors, strict=True)}
    double = Double(truths, lambda t: lookup[id(t)] * t)
    result = evaluate(double, data_set(truths), Protocol(examples=2))
    assert [e.name for e in result.worst] == ['f2', 'f4']
    assert [e.name for e in result.best] == ['f1', 'f3']
    assert result.worst[0].abs_rel == pytest.approx(0.6, rel=1e-5)
    one = evaluate(double, data_set(truths[:1]), Protocol(examples=2))
    assert len(one.worst) == 1
    assert one.best == ()
    assert evaluate(double, data_set(truths), Protocol(examples=0)).worst == ()


def test_notes_of_the_pipeline_are_kept_once():
    truths = [truth(0), truth(1)]
    double = Double(truths, lambda t: t, notes=('field of view assumed',))
    assert evaluate(double, data_set(truths), Protocol()).notes == ('field of view assumed',)


@pytest.mark.parametrize(
    ('arguments', 'reason'),
    [
        ({'alignments': ('none', 'scale')}, 'alignment: found none,scale'),
        ({'alignments': ()}, 'alignment: found nothing'),
        ({'alignments': ('none', 'none')}, 'each once'),
        ({'modes': ('mean',)}, 'mode: found mean'),
        ({'min_depth': 0.0}, 'range 0.0 to 10.0'),
        ({'min_depth': 5.0, 'max_depth': 4.0}, '0 < min < max'),
        ({'max_depth': math.inf}, '0 < min < max'),
    ],
)
def test_impossible_protocols_are_refused(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        Protocol(**arguments)


def test_single_frame_summary_equals_its_sums():
    truths = [truth(3)]
    double = Double(truths, lambda t: 1.2 * t + 0.05)
    result = evaluate(double, data_set(truths), Protocol(alignments=('none',)))
    valid = np.isfinite(truths[0])
    expected = ErrorSums.of(1.2 * truths[0] + 0.05, truths[0], valid).values()
    for mode in protocols.MODES:
        row = result.summary('none', mode)
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-6), (mode, name)
