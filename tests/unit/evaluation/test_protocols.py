"""The measurement loop with a pipeline double whose error is known."""

from dataclasses import dataclass, field, replace
import math

from depth_node.camera import Camera
from depth_node.evaluation import protocols
from depth_node.evaluation.metrics import ErrorSums, plane_baseline
from depth_node.evaluation.protocols import (
    PROTOCOLS,
    Protocol,
    crop_window,
    evaluate,
    kb_window,
    resample_truth,
    resize_depth,
    score_frame,
)
from depth_node.evaluation.readers import DataError, LabelledPairs, Reader, Sample
from depth_node.filters import FilterSettings
from depth_node.model_card import InputSpec, ModelCard, OutputSpec
from depth_node.pipeline import DepthPipeline
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


def data_set(truths, broken=0, known='metric'):
    frames = []
    for i, true in enumerate(truths):
        rgb = np.full((*SIZE_HW, 3), i, np.uint8)
        frames.append(MemoryFrame(f'f{i}', Sample(f'f{i}', rgb, true, CAMERA)))
    frames += [MemoryFrame(f'broken{i}', None) for i in range(broken)]
    return Reader('set', 'folder', 'made in memory', frames, known)


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


def test_trap_03_modes_differ_as_defined():
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
    assert row['plane_abs_rel'] == pytest.approx(
        ErrorSums.of(both, np.concatenate(truths)).abs_rel
    )
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


@pytest.mark.parametrize(
    ('known', 'kind', 'wanted', 'expected'),
    [
        ('metric', 'depth', 'none,median,affine', 'none,median,affine'),
        ('metric', 'rel_inv_depth', 'none,median,affine', 'affine'),
        ('metric', 'rel_depth', 'none,median,affine_depth', 'median,affine_depth'),
        ('scale', 'canonical_depth', 'none,median,affine', 'median,affine'),
        ('scale', 'rel_inv_depth', 'none,affine,affine_depth', 'affine,affine_depth'),
        ('affine', 'depth', 'none,median,affine,affine_depth', 'affine'),
        ('pairs', 'rel_inv_depth', 'affine', 'none'),
    ],
)
def test_only_the_alignments_that_mean_something(known, kind, wanted, expected):
    truths = [truth(0)]
    double = Double(truths, lambda t: 1 / (3 / t + 0.4))
    reader = data_set(truths, known=known)
    protocol = Protocol(alignments=tuple(wanted.split(',')))
    result = evaluate(double, reader, protocol, output_kind=kind)
    assert result.alignments == tuple(expected.split(','))
    if 'affine' in result.alignments:
        row = result.summary('affine', 'per-image')
        assert row['abs_rel'] == pytest.approx(0, abs=1e-5)
        assert (row['rms'] is None) == (known != 'metric')
        assert (row['sq_rel'] is None) == (known != 'metric')


@pytest.mark.parametrize(
    ('known', 'kind', 'cause'),
    [
        ('metric', 'rel_inv_depth', "the model's output is rel_inv_depth"),
        ('scale', 'depth', 'a unit of its own'),
        ('affine', 'depth', 'up to scale and shift'),
    ],
)
def test_no_alignment_left_is_an_error_with_a_remedy(known, kind, cause):
    reader = data_set([truth(0)], known=known)
    with pytest.raises(DataError, match=f'set: .*{cause}.*add affine to --align'):
        evaluate(
            Double([truth(0)], lambda t: t),
            reader,
            Protocol(alignments=('none',)),
            output_kind=kind,
        )


def test_median_scaling_of_a_relative_network_where_the_protocol_says_so():
    """A self-supervised network: inverse depth without unknown shift, times an unknown scale."""
    truths = [truth(i) for i in range(3)]
    scales = {id(t): s for t, s in zip(truths, (2.0, 2.5, 4.0), strict=True)}
    double = Double(truths, lambda t: t / scales[id(t)])
    protocol = replace(PROTOCOLS['kitti_garg'], crop='none')
    result = evaluate(double, data_set(truths), protocol, output_kind='rel_inv_depth')
    assert result.alignments == ('median',)
    row = result.summary('median', 'per-image')
    assert row['abs_rel'] == pytest.approx(0, abs=1e-6)
    assert row['scale_median'] == pytest.approx(2.5, rel=1e-5)
    assert row['scale_std'] == pytest.approx(np.std([2 / 2.5, 1, 4 / 2.5]), rel=1e-5)
    metric = evaluate(Double(truths, lambda t: t), data_set(truths), protocol)
    assert metric.alignments == ('none', 'median')
    assert metric.summary('none', 'per-image')['scale_std'] is None


def test_distance_is_the_scale_of_each_frame_alone():
    truths = [truth(i) for i in range(4)]
    factors = {id(t): f for t, f in zip(truths, (0.7, 0.95, 1.05, 1.2), strict=True)}
    known = data_set(truths)
    shaped = Double(truths, lambda t: factors[id(t)] * t ** np.float32(1.001))  # and a bit warped
    distance = evaluate(shaped, known, Protocol()).distance
    assert distance.frames == 4
    assert distance.median == pytest.approx(1.0, rel=2e-3)
    assert distance.p05 == pytest.approx(0.7 + 0.15 * 0.25, rel=2e-3)  # linear between frames
    assert distance.p95 == pytest.approx(1.2 - 0.15 * 0.15, rel=2e-3)
    assert (distance.within_10, distance.within_25) == (0.5, 0.75)

    right = Double(truths, lambda t: t)
    assert evaluate(right, known, Protocol(alignments=('none',))).distance is None
    assert evaluate(right, data_set(truths, known='scale'), Protocol()).distance is None
    relative = replace(PROTOCOLS['kitti_garg'], crop='none')
    assert evaluate(right, known, relative, output_kind='rel_inv_depth').distance is None
    empty = [np.full(SIZE_HW, np.nan, np.float32)]
    assert evaluate(Double(empty, lambda t: t), data_set(empty), Protocol()).distance is None


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
        ({'crop': 'nyu'}, "crop: found 'nyu', expected one of none, nyu_eigen"),
        ({'input_crop': 'garg'}, 'input crop'),
        ({'flip': 'twice'}, 'flip'),
        ({'resize_in': 'disparity'}, 'resize_in'),
        ({'sdr_pairs': -1}, 'SDR pairs -1'),
        ({'wkdr_threshold': -0.1}, 'WKDR threshold -0.1'),
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


# --- crops


def test_trap_04_crops_of_nyu_are_the_published_ones():
    size = (480, 640)
    assert crop_window('nyu_eigen', size) == (45, 471, 41, 601)
    assert crop_window('nyu_densedepth', size) == (20, 460, 24, 616)  # 459 and 615 included
    assert crop_window('none', size) == (0, 480, 0, 640)  # FCRN
    top, bottom, left, right = crop_window('nyu_eigen', size)
    assert (bottom - top, right - left) == (426, 560)
    for name in ('nyu_eigen', 'nyu_densedepth'):
        with pytest.raises(DataError, match='defined for truth of 480x640, this is 240x320'):
            crop_window(name, (240, 320))
    with pytest.raises(ValueError, match="crop 'garg'"):
        crop_window('garg', size)


@pytest.mark.parametrize(
    ('crop', 'size_hw', 'expected'),
    [
        # the sizes of KITTI's pictures; rows and columns by hand, fractions cut off
        ('kitti_garg', (375, 1242), (153, 371, 44, 1197)),
        ('kitti_garg', (370, 1226), (151, 366, 44, 1181)),
        ('kitti_eigen', (375, 1242), (124, 342, 44, 1197)),
        ('kitti_eigen', (376, 1241), (124, 343, 44, 1196)),
    ],
)
def test_crops_of_kitti_are_shares_cut_to_whole_pixels(crop, size_hw, expected):
    assert crop_window(crop, size_hw) == expected


def big(size_hw, seed=0):
    return np.random.default_rng(seed).uniform(1.0, 9.0, size_hw).astype(np.float32)


def test_trap_04_four_protocols_on_one_frame_give_four_numbers():
    true = big((480, 640))
    predicted = true * np.linspace(1.0, 1.4, 640, dtype=np.float32)  # worse to the right
    predicted *= np.linspace(1.3, 1.0, 480, dtype=np.float32)[:, None]
    holes = true.copy()
    holes[:, :120] = np.nan  # raw truth: the Kinect did not see it
    rgb = np.zeros((480, 640, 3), np.uint8)
    found = {}
    for name, window, seen in (
        ('nyu_eigen', np.s_[45:471, 41:601], holes),
        ('nyu_densedepth', np.s_[20:460, 24:616], true),
        ('nyu_fcrn', np.s_[:, :], true),
    ):
        protocol = replace(PROTOCOLS[name], flip='none')
        score, _ = score_frame(predicted, Sample('a', rgb, seen, None), protocol, ('none',))
        d, t = np.clip(predicted[window], 1e-3, 10), seen[window]
        known = np.isfinite(t)
        expected = np.mean(np.abs(d[known] - t[known]) / t[known])
        assert score.known == known.sum()
        found[name] = score.aligned['none'].errors.abs_rel
        assert found[name] == pytest.approx(expected, rel=1e-5)
    filled = (
        score_frame(predicted, Sample('a', rgb, true, None), PROTOCOLS['nyu_eigen'], ('none',))[0]
        .aligned['none']
        .errors.abs_rel
    )
    values = [*found.values(), filled]
    assert all(abs(a - b) > 1e-3 for i, a in enumerate(values) for b in values[:i])


def test_named_protocols_have_the_published_ranges_and_ways_to_aggregate():
    caps = {name: protocol.max_depth for name, protocol in PROTOCOLS.items()}
    assert caps == {
        'nyu_eigen': 10,
        'nyu_densedepth': 10,
        'nyu_fcrn': 10,
        'kitti_garg': 80,
        'kitti_eigen': 80,
        'kitti_kb': 80,
        'kitti_50m': 50,
        'make3d_c1': 70,
        'make3d_c2': 1000,
    }
    pooled = {name for name, protocol in PROTOCOLS.items() if protocol.modes == ('pooled',)}
    assert pooled == {'nyu_densedepth', 'nyu_fcrn', 'make3d_c1', 'make3d_c2'}
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name
        assert protocol.min_depth == 1e-3
        assert f'protocol {name}' in protocol.describe()
        assert f'crop {protocol.crop}' in protocol.describe()


def test_a_crop_that_does_not_fit_skips_the_frame_and_says_why():
    truths = [truth(0)]
    with pytest.raises(DataError, match='defined for truth of 480x640, this is 24x32'):
        evaluate(Double(truths, lambda t: t), data_set(truths), PROTOCOLS['nyu_eigen'])
    large = Sample('large', np.full((480, 640, 3), 1, np.uint8), big((480, 640)), None)
    reader = data_set(truths)
    reader.frames = [*reader.frames, MemoryFrame('large', large)]
    double = Double([truths[0], large.true_depth], lambda t: t)
    result = evaluate(double, reader, PROTOCOLS['nyu_eigen'])
    assert [item.name for item in result.skipped] == ['f0']
    assert result.summary('none', 'per-image')['abs_rel'] == 0


def test_trap_12_kb_crop_shows_the_window_and_pastes_the_prediction_back():
    size_hw = (375, 1242)
    assert kb_window(size_hw) == (23, 13)
    assert kb_window((352, 1217)) == (0, 0)
    v, u = np.mgrid[0:375, 0:1242]
    true = (2 + 0.05 * v + 0.01 * u).astype(np.float32)
    rgb = np.zeros((*size_hw, 3), np.uint8)
    rgb[..., 0], rgb[..., 1] = v // 2, u // 8
    camera = Camera(size_hw, 721.5, 720.1, 609.6, 172.9)
    seen = []

    @dataclass
    class Window:
        def run(self, picture, lens, stamp=0.0):
            seen.append((picture.copy(), lens))
            top, left = 23, 13
            return Frame(true[top : top + 352, left : left + 1216] * 1.1)

    reader = Reader('kitti', 'kitti', '', [MemoryFrame('a', Sample('a', rgb, true, camera))])
    result = evaluate(Window(), reader, PROTOCOLS['kitti_kb'])
    ((picture, lens),) = seen
    np.testing.assert_array_equal(picture, rgb[23:375, 13:1229])
    assert lens == Camera((352, 1216), 721.5, 720.1, 609.6 - 13, 172.9 - 23)
    # Garg's crop lies inside of the window: every known pixel is judged
    assert result.coverage == 1
    assert result.frames[0].known == (371 - 153) * (1197 - 44)
    assert result.summary('none', 'per-image')['abs_rel'] == pytest.approx(0.1, rel=1e-5)
    whole = replace(PROTOCOLS['kitti_kb'], crop='none')
    assert evaluate(Window(), reader, whole).coverage == pytest.approx(352 * 1216 / (375 * 1242))
    # only where a protocol says so
    assert {n for n, p in PROTOCOLS.items() if p.input_crop == 'kb'} == {'kitti_kb'}
    with pytest.raises(DataError, match='352x1216 or more, this is 350x1242'):
        kb_window((350, 1242))
    with pytest.raises(DataError, match='this is 375x1215'):
        kb_window((375, 1215))


# --- resizing, flipping


def test_truth_is_resampled_by_the_nearest_measurement():
    coarse = np.arange(55 * 305, dtype=np.float32).reshape(55, 305)
    found = resample_truth(coarse, (460, 345))
    assert found.shape == (460, 345)
    for v in range(460):
        for u in range(0, 345, 7):
            assert found[v, u] == coarse[int((v + 0.5) * 55 / 460), int((u + 0.5) * 305 / 345)]
    holes = np.full((4, 6), 2.0, np.float32)
    holes[1, 2] = np.nan
    assert set(
        np.unique(resample_truth(holes, (11, 13))[~np.isnan(resample_truth(holes, (11, 13)))])
    ) == {2.0}


def test_make3d_is_measured_at_460x345_below_70_metres():
    true = np.random.default_rng(0).uniform(1, 81, (55, 305)).astype(np.float32)
    sample = Sample('a', np.zeros((120, 90, 3), np.uint8), true, None)
    v, u = np.mgrid[0:120, 0:90]
    predicted = (5 + 0.3 * u + 0.2 * v).astype(np.float32)
    at_truth = resample_truth(true, (460, 345))
    for name, cap, below in (('make3d_c1', 70, at_truth < 70), ('make3d_c2', 1000, at_truth < 99)):
        score, images = score_frame(predicted, sample, PROTOCOLS[name], ('none',))
        assert images['none'].shape == (460, 345)
        assert score.known == below.sum()
        # a prediction linear in continuous image coordinates, but for the repeated border
        vv, uu = np.mgrid[0:460, 0:345]
        linear = (
            5
            + 0.3 * np.clip((uu + 0.5) * 90 / 345 - 0.5, 0, 89)
            + 0.2 * np.clip((vv + 0.5) * 120 / 460 - 0.5, 0, 119)
        )
        expected = np.mean(np.abs(np.minimum(linear, cap) - at_truth)[below] / at_truth[below])
        assert score.aligned['none'].errors.abs_rel == pytest.approx(expected, rel=1e-4)


def test_resizing_in_inverse_depth_is_exact_for_a_plane():
    v, u = np.mgrid[0:48, 0:64]
    inverse = 0.1 + 0.004 * u + 0.002 * v
    coarse = (1 / inverse.reshape(24, 2, 32, 2).mean(axis=(1, 3))).astype(np.float32)
    inner = (slice(2, -2), slice(2, -2))
    found = resize_depth(coarse, (48, 64), 'inv_depth')
    np.testing.assert_allclose(found[inner], 1 / inverse[inner], rtol=1e-5)
    assert np.abs(resize_depth(coarse, (48, 64))[inner] * inverse[inner] - 1).max() > 1e-4
    coarse[4, 7], coarse[9, 9] = np.inf, np.nan
    found = resize_depth(coarse, (48, 64), 'inv_depth')
    assert np.isinf(found).sum() == 4
    assert np.isnan(found).sum() == 4


def test_the_protocol_chooses_the_space_of_resizing():
    v, u = np.mgrid[0:48, 0:64]
    true = (1 / (0.1 + 0.004 * u + 0.002 * v)).astype(np.float32)
    coarse = (1 / (1 / true.astype(float)).reshape(24, 2, 32, 2).mean(axis=(1, 3))).astype('f4')
    sample = Sample('a', np.zeros((24, 32, 3), np.uint8), true, None)
    errors = {}
    for space in protocols.SPACES:
        _, images = score_frame(coarse, sample, Protocol(resize_in=space), ('none',))
        errors[space] = np.abs(images['none'] / true - 1)[2:-2, 2:-2].max()
    assert errors['inv_depth'] < 1e-5 < 1e-4 < errors['depth']


@dataclass
class Sided:
    """Predicts 1 + column / 10 [m]; of a mirrored picture, half of that."""

    cameras: list = field(default_factory=list)
    buffer: np.ndarray = field(default_factory=lambda: np.empty(SIZE_HW, np.float32))

    def run(self, rgb, camera, stamp=0.0):
        self.cameras.append((rgb[0, :, 0].copy(), camera))
        is_mirrored = rgb[0, 0, 0] > rgb[0, -1, 0]
        self.buffer[:] = (1 + np.arange(SIZE_HW[1]) / 10) * (0.5 if is_mirrored else 1.0)
        return Frame(self.buffer)  # overwritten by the next run


@pytest.mark.parametrize('space', ['depth', 'inv_depth'])
def test_flip_averages_with_the_mirrored_picture(space):
    true = truth(0)
    rgb = np.zeros((*SIZE_HW, 3), np.uint8)
    rgb[..., 0] = np.arange(SIZE_HW[1])
    reader = Reader('s', 's', '', [MemoryFrame('a', Sample('a', rgb, true, CAMERA))])
    predictor = Sided()
    protocol = Protocol(flip='mean', resize_in=space, alignments=('none',))
    result = evaluate(predictor, reader, protocol)
    (row, camera), (mirrored_row, mirrored) = predictor.cameras
    assert (mirrored_row == row[::-1]).all()
    assert camera == CAMERA
    assert mirrored == replace(CAMERA, cx=31 - 15.0)
    there = 1 + np.arange(32) / 10
    back = 0.5 * there[::-1]
    mean = (there + back) / 2 if space == 'depth' else 2 / (1 / there + 1 / back)
    expected = ErrorSums.of(np.broadcast_to(mean, SIZE_HW), true).abs_rel
    assert result.summary('none', 'pooled')['abs_rel'] == pytest.approx(expected, rel=1e-5)
    assert f'mirrored picture in {space} (mean)' in protocol.describe()


def test_ramp_takes_either_side_from_the_prediction_that_saw_it():
    there = np.full((4, 101), 2.0)
    back = np.full((4, 101), 4.0)
    found = protocols.average_flipped(there, back, 'ramp', 'depth')
    across = np.arange(101) / 100
    for u in (0, 2, 5, 7, 10, 50, 92, 95, 98, 100):
        left = 1 - min(max(20 * (across[u] - 0.05), 0), 1)  # Monodepth's formula
        right = 1 - min(max(20 * (1 - across[u] - 0.05), 0), 1)
        expected = right * 2 + left * 4 + (1 - left - right) * 3
        assert found[1, u] == pytest.approx(expected), u
    assert found[0, 0] == 4
    assert found[0, -1] == 2


def test_flip_keeps_the_prediction_where_the_mirrored_one_has_none():
    there = np.array([[1.0, np.inf, np.nan, 2.0]])
    back = np.array([[3.0, 3.0, 3.0, np.nan]])
    found = protocols.average_flipped(there, back, 'mean', 'inv_depth')
    assert found[0, [0, 3]] == pytest.approx([1.5, 2.0])
    assert np.isinf(found[0, 1])
    assert np.isnan(found[0, 2])
    with pytest.raises(DataError, match='undistorted'):
        protocols.mirrored_camera(
            replace(CAMERA, distortion_model='plumb_bob', D=(-0.2, 0.0, 0.0, 0.0))
        )


# --- which way is far


class Network:
    """A backend that returns a given map under a card that says what it means."""

    name, precision = 'known', 'fp32'

    def __init__(self, answer, kind):
        metric = not kind.startswith('rel_')
        output = OutputSpec(
            'depth', kind, 'm' if metric else 'none', (0.1, 40.0) if metric else None
        )
        inputs = InputSpec('image', 'uint8_nhwc', size_hw=SIZE_HW)
        self.card = ModelCard('known', '.', 'none', inputs, output, {})
        self.answer = answer.astype(np.float32)

    def run(self, batch):
        return {'depth': self.answer[None, None]}


@pytest.mark.parametrize(
    ('kind', 'align', 'nearer_is_larger'),
    [
        ('rel_inv_depth', 'affine', True),  # Depth Anything V2, MiDaS
        ('rel_depth', 'affine_depth', False),  # Depth Anything 3
    ],
)
def test_trap_21_larger_is_nearer_or_farther_as_the_card_says(kind, align, nearer_is_larger):
    true = truth(5)
    true = np.where(np.isfinite(true), true, 3.0).astype(np.float32)
    raw = 0.3 / true + 0.02 if nearer_is_larger else 0.3 * true + 0.2
    off = FilterSettings.off()
    reader = data_set([true])
    scores = {}
    for card_kind in ('rel_inv_depth', 'rel_depth'):
        pipeline = DepthPipeline(Network(raw, card_kind), filters=off)
        # with the alignment that belongs to the true meaning, whatever the card says
        result = evaluate(pipeline, reader, Protocol(alignments=(align,)), output_kind=card_kind)
        scores[card_kind] = result
    right = scores.pop(kind)
    (wrong,) = scores.values()
    assert right.summary(align, 'pooled')['abs_rel'] == pytest.approx(0, abs=1e-4)
    assert right.summary(align, 'pooled')['sdr'] < 0.01
    assert right.frames[0].aligned[align].scale > 0
    assert wrong.frames[0].aligned[align].scale < 0  # the report names it
    assert wrong.summary(align, 'pooled')['abs_rel'] > 0.05


# --- pairs and normals


def pair_sample(name, uv, relation, true=None):
    true = np.full(SIZE_HW, np.nan, np.float32) if true is None else true
    pairs = LabelledPairs(np.array(uv, np.float32), np.array(relation, np.int8))
    return MemoryFrame(
        name, Sample(name, np.zeros((*SIZE_HW, 3), np.uint8), true, None, pairs=pairs)
    )


def test_whdr_counts_pairs_and_nothing_else():
    """Columns get farther to the right, rows count nothing."""
    ramp = np.broadcast_to(1 + np.arange(32) / 10, SIZE_HW).astype(np.float32)
    frames = [
        pair_sample('a', [[5, 2, 3, 20]], [1]),  # right
        pair_sample('b', [[5, 2, 7, 2]], [1]),  # wrong
        pair_sample('c', [[0, 9, 31, 1]], [-1]),  # right
        pair_sample('d', [[1, 1, 2, 2], [1, 1, 2, 2], [9, 9, 2, 2]], [1, 1, 1]),  # 2 of 3 wrong
    ]
    reader = Reader('diw', 'diw', '', frames, 'pairs')

    class Ramp:
        def run(self, rgb, camera, stamp=0.0):
            return Frame(ramp)

    result = evaluate(Ramp(), reader, Protocol(), output_kind='rel_inv_depth')
    assert result.alignments == ('none',)
    per_image, pooled = (result.summary('none', mode) for mode in protocols.MODES)
    assert per_image['whdr'] == pytest.approx((0 + 1 + 0 + 2 / 3) / 4)
    assert pooled['whdr'] == pytest.approx(3 / 6)
    assert per_image['frames'] == 4
    assert per_image['abs_rel'] is None
    assert per_image['wkdr'] is None  # no pair is labelled equal
    assert 'order of labelled pairs' in Protocol().describe('pairs')
    outside = Reader('diw', 'diw', '', [pair_sample('e', [[32, 0, 1, 1]], [1])], 'pairs')
    with pytest.raises(DataError, match=r'e: pairs reach to u = 32'):
        evaluate(Ramp(), outside, Protocol())


def test_wkdr_uses_one_threshold_for_the_whole_set():
    rng = np.random.default_rng(4)
    depth = rng.uniform(1, 3, SIZE_HW).astype(np.float32)
    uv, relation = rng.integers(0, 24, (120, 4)), rng.integers(-1, 2, 120)
    frames = [
        pair_sample('a', uv[:20], relation[:20], depth),
        pair_sample('b', uv[20:], relation[20:], depth),
    ]
    reader = Reader('nyu', 'nyu', '', frames)

    class Same:
        def run(self, rgb, camera, stamp=0.0):
            return Frame(depth)

    log_ratio = np.log(
        depth[uv[:, 1], uv[:, 0]].astype(float) / depth[uv[:, 3], uv[:, 2]].astype(float)
    )

    def wrong(threshold, chosen):
        limit = math.log(1 + threshold)
        found = np.where(log_ratio > limit, 1, np.where(log_ratio < -limit, -1, 0))
        return np.mean((found != relation)[chosen])

    fixed = evaluate(Same(), reader, Protocol(wkdr_threshold=0.3)).summary('none', 'pooled')
    everything = np.ones(120, bool)
    assert fixed['wkdr'] == pytest.approx(wrong(0.3, everything))
    assert fixed['wkdr_eq'] == pytest.approx(wrong(0.3, relation == 0))
    assert fixed['wkdr_ne'] == pytest.approx(wrong(0.3, relation != 0))
    assert fixed['wkdr_threshold'] == 0.3
    result = evaluate(Same(), reader, Protocol())
    pooled, per_image = result.summary('none', 'pooled'), result.summary('none', 'per-image')
    threshold = pooled['wkdr_threshold']
    assert threshold == per_image['wkdr_threshold']
    assert abs(pooled['wkdr_eq'] - pooled['wkdr_ne']) < 0.03
    first = np.arange(120) < 20
    assert per_image['wkdr'] == pytest.approx(
        (wrong(threshold, first) + wrong(threshold, ~first)) / 2
    )


def test_normals_of_a_tilted_prediction_differ_by_the_tilt():
    u = np.mgrid[0:24, 0:32][1]
    x = (u - CAMERA.cx) / CAMERA.fx

    def plane(degrees):  # turned about the vertical axis
        angle = math.radians(degrees)
        return (2.0 / (math.sin(angle) * x + math.cos(angle))).astype(np.float32)

    truths = [plane(5.0), plane(10.0)]
    double = Double(truths, lambda t: plane(25.0) if t is truths[0] else plane(50.0))
    result = evaluate(double, data_set(truths), Protocol(normals=True, alignments=('none',)))
    per_image, pooled = (result.summary('none', mode) for mode in protocols.MODES)
    assert per_image['normal_mean_deg'] == pytest.approx(30.0, abs=0.1)  # 20 and 40
    assert per_image['normal_median_deg'] == pytest.approx(30.0, abs=0.1)
    assert pooled['normal_within_22'] == pytest.approx(0.5, abs=0.01)
    assert pooled['normal_within_11'] == 0
    without = evaluate(double, data_set(truths), Protocol()).summary('none', 'pooled')
    assert without['normal_mean_deg'] is None


def test_normals_of_the_data_set_are_used_where_it_has_them():
    true = np.full(SIZE_HW, 2.0, np.float32)
    normals = np.zeros((*SIZE_HW, 3), np.float32)
    normals[:, :16] = (0, 0, -1)
    normals[:, 16:20] = (0, -math.sin(math.radians(60)), -math.cos(math.radians(60)))
    sample = Sample('a', np.zeros((*SIZE_HW, 3), np.uint8), true, CAMERA, normals)
    reader = Reader('s', 's', '', [MemoryFrame('a', sample)])
    row = evaluate(Double([true], lambda t: t), reader, Protocol()).summary('none', 'pooled')
    # a wall ahead everywhere; 15 columns right, 4 off by 60 degrees, the rest has no truth
    assert row['normal_mean_deg'] == pytest.approx(60 * 4 / 19, rel=1e-5)
    assert row['normal_within_11'] == pytest.approx(15 / 19)
    odd = replace(sample, normals=normals[:12])
    reader = Reader('s', 's', '', [MemoryFrame('a', odd)])
    with pytest.raises(DataError, match=r'normals of \(12, 32\)'):
        evaluate(Double([true], lambda t: t), reader, Protocol())
