"""Tables, JSON, Markdown, pictures and the card's entry say what was measured."""

import csv
from dataclasses import replace
import json
import math

import cv2
from depth_node.evaluation import compare, report
from depth_node.evaluation.metrics import (
    BoundarySums,
    ErrorSums,
    NormalSums,
    OrdinalSums,
    sdr_sums,
)
from depth_node.evaluation.protocols import (
    PROTOCOLS,
    AlignedScore,
    DatasetResult,
    Example,
    FrameScore,
    PairScore,
    Protocol,
    joined,
)
from depth_node.evaluation.readers import Skipped
from depth_node.model_card import FileSpec, InputSpec, ModelCard, OutputSpec
import numpy as np
import pytest

TRUE = np.linspace(1.0, 4.0, 12 * 16).reshape(12, 16)


def example(name, factor):
    predicted = (factor * TRUE).astype(np.float32)
    predicted[0, 0] = np.inf
    true = TRUE.astype(np.float32).copy()
    true[5, 5] = np.nan
    return Example(name, factor - 1, np.full((12, 16, 3), 90, np.uint8), true, predicted)


def frame(name, factor, plane_factor=1.4):
    predicted = factor * TRUE
    score = AlignedScore(
        ErrorSums.of(predicted, TRUE),
        BoundarySums.of(predicted, TRUE),
        1.0,
        0.0,
        sdr_sums(predicted, TRUE, pairs=50),
    )
    return FrameScore(
        name,
        TRUE.size,
        TRUE.size - 20,
        {'none': score},
        ErrorSums.of(plane_factor * TRUE, TRUE),
        0.004,
    )


def result(name='osd', truth='metric'):
    return DatasetResult(
        name,
        'osd',
        'made in memory',
        truth,
        ('none',),
        (frame('a', 1.1), frame('b', 1.3)),
        (Skipped('c', 'c.png: broken'),),
        worst=(example('b', 1.3),),
        best=(example('a', 1.1),),
        size_hw=((12, 16),),
        notes=('field of view assumed',),
    )


def run(*results):
    return report.Run(
        'small',
        'small.onnx',
        'ab' * 32,
        'onnxruntime',
        'fp32',
        'off',
        'depth-node evaluate --model small',
        '2026-11-21',
        '0.1.0',
        Protocol(alignments=('none',)),
        results or (result(),),
    )


def test_rows_have_the_metrics_and_the_baseline():
    per_image, pooled = report.rows(run())
    assert (per_image['mode'], pooled['mode']) == ('per-image', 'pooled')
    assert per_image['abs_rel'] == pytest.approx(0.2)
    assert per_image['plane_abs_rel'] == pytest.approx(0.4)
    assert per_image['ratio_to_plane'] == pytest.approx(0.5)
    assert per_image['delta1'] == pytest.approx(0.5)
    assert per_image['rms'] < pooled['rms']
    assert per_image['coverage'] == pytest.approx(1 - 20 / TRUE.size)


def test_table_is_aligned_and_names_model_and_hash():
    lines = report.text_table(run()).splitlines()
    assert 'small fp32 (small.onnx, sha256 abababababab) on onnxruntime' in lines[0]
    assert lines[3].split()[:6] == ['osd', '2', 'per-image', 'none', '0.200', '0.500']
    # ratio of the means 0.2 / 0.4; median of 0.1 / 0.4 and 0.3 / 0.4; both below 1
    assert lines[3].split()[-6:] == ['0.400', '0.50', '0.50', '2', '89.6', '%']
    assert lines[1].index('alignment') == lines[3].index('none')


def test_json_is_strict_and_complete():
    empty = replace(
        result('aloe', truth='affine'),
        frames=(
            replace(
                frame('a', 1.1),
                known=0,
                predicted=0,
                aligned={
                    'none': AlignedScore(
                        ErrorSums(), BoundarySums(), math.nan, math.nan, OrdinalSums()
                    )
                },
            ),
        ),
    )
    text = json.dumps(report.to_json(run(result(), empty)), allow_nan=False)
    data = json.loads(text)
    assert data['sha256'] == 'ab' * 32
    assert data['protocol']['max_depth_m'] == 10.0
    osd, aloe = data['datasets']
    assert osd['frames_read'] == 2
    assert osd['skipped'] == [{'name': 'c', 'reason': 'c.png: broken'}]
    assert osd['frames'][1]['aligned']['none']['abs_rel'] == pytest.approx(0.3)
    assert osd['pipeline_ms_median'] == pytest.approx(4)
    assert 'rms' not in aloe['frames'][0]['aligned']['none']
    assert aloe['frames'][0]['coverage'] is None
    assert data['rows'][2]['abs_rel'] is None


def test_markdown_names_protocol_mode_hash_and_skips():
    text = report.markdown(run(), ['examples_osd.png'])
    for part in (
        'small fp32 (small.onnx, sha256 abababababab) on onnxruntime',
        'truth 0.001 to 10 m',
        '| osd | 2 | per-image | none | 0.200 | 0.500 |',
        'skipped c: c.png: broken',
        'field of view assumed',
        '2 frames read, 1 skipped',
        '![examples_osd.png](examples_osd.png)',
        '`depth-node evaluate --model small`',
    ):
        assert part in text, part
    assert 'negative scale' not in text


def test_markdown_says_when_near_and_far_are_exchanged():
    flipped = frame('a', 1.1)
    flipped = replace(flipped, aligned={'none': replace(flipped.aligned['none'], scale=-2.0)})
    text = report.markdown(run(replace(result(), frames=(flipped, frame('b', 1.3)))))
    assert 'none: negative scale (near and far exchanged) on 1 of 2 frames' in text


def test_every_report_names_protocol_crop_cap_mode_and_truth():
    """Trap 4: a number without them compares with nothing."""
    protocol = replace(PROTOCOLS['kitti_garg'], alignments=('none',))
    measured = replace(run(result('kitti/test')), protocol=protocol)
    for text in (report.markdown(measured), report.text_table(measured)):
        for part in ('kitti_garg', 'rows 0.4081:0.9919', '80 m', 'per-image', 'made in memory'):
            assert part in text, part
    data = report.to_json(measured)
    assert data['protocol']['name'] == 'kitti_garg'
    assert data['protocol']['resize_in'] == 'inv_depth'
    (row,) = data['rows']
    assert (row['protocol'], row['crop'], row['max_depth_m']) == ('kitti_garg', 'kitti_garg', 80)
    assert (row['mode'], row['truth']) == ('per-image', 'made in memory')
    entry = report.card_entry(measured, measured.results[0])
    assert 'protocol kitti_garg' in entry['protocol']
    assert 'crop kitti_garg' in entry['protocol']


def test_tables_of_pairs_normals_and_scales_stand_only_where_measured():
    plain = report.markdown(run())
    assert '## All metrics' in plain
    assert '## Order of pairs' in plain  # SDR is always measured
    for title in ('Normals', 'Median scaling'):
        assert f'## {title}' not in plain
    angled = frame('a', 1.1)
    normals = np.zeros((4, 5, 3))
    normals[..., 2] = -1
    score = replace(angled.aligned['none'], normals=NormalSums.of(normals, normals), scale=2.0)
    pairs = PairScore(np.array([0.2, -0.1, 0.0]), np.array([1, 1, 0], np.int8))
    angled = replace(angled, aligned={'median': score}, pairs=pairs)
    measured = run(replace(result(), frames=(angled,), alignments=('median',)))
    text = report.markdown(measured)
    assert '| normal_mean_deg |' in text
    assert '| osd | per-image | median | 2.0000 | 0.0000 |' in text
    assert 'WHDR 50.00 %' in report.text_table(measured)
    json.dumps(report.to_json(measured), allow_nan=False)


def test_a_set_of_pairs_alone_is_reported():
    pairs = PairScore(np.array([0.2]), np.array([1], np.int8))
    empty = AlignedScore(ErrorSums(), BoundarySums(), math.nan, math.nan, OrdinalSums())
    one = FrameScore('a', 0, 0, {'none': empty}, ErrorSums(), pairs=pairs)
    diw = replace(result('diw/test', truth='pairs'), frames=(one,), worst=(), best=())
    lines = report.text_table(run(diw)).splitlines()
    assert lines[3].split()[:5] == ['diw/test', '1', 'per-image', 'none', '-']
    assert 'diw/test per-image: WHDR 0.00 %' in lines
    assert 'order of labelled pairs' in report.markdown(run(diw))


def test_contact_sheet_paints_error_and_missing_predictions():
    page = report.contact_sheet(run(), result())
    assert page.dtype == np.uint8
    assert page.shape[1] >= 4 * 16
    strip = report._strip('worst 1', example('b', 1.3), result())[-12:]
    assert strip.shape == (12, 64, 3)
    picture, truth, predicted, error = (strip[:, 16 * i : 16 * (i + 1)] for i in range(4))
    assert (picture == 90).all()
    assert (truth[5, 5] == 0).all()  # unknown truth
    assert (predicted[0, 0] == 128).all()  # no prediction
    assert (error[0, 0] == 128).all()
    assert (error[5, 5] == 0).all()
    level = np.uint8(0.3 / 0.5 * 255)
    expected = cv2.applyColorMap(np.full((1, 1), level, np.uint8), cv2.COLORMAP_INFERNO)[0, 0]
    assert np.abs(error[3, 3].astype(int) - expected.astype(int)).max() <= 8


def test_write_makes_files_that_open(tmp_path):
    written = report.write(run(result('rendered/test')), tmp_path / 'deep' / 'out')
    assert [path.name for path in written] == [
        'examples_rendered_test.png',
        'results.json',
        'report.md',
        'frames.csv',
    ]
    assert cv2.imread(str(written[0])) is not None
    assert json.loads(written[1].read_text())['rows'][0]['dataset'] == 'rendered/test'
    assert 'examples_rendered_test.png' in written[2].read_text()


def scenes_result():
    """Two rooms and a table; their truth is 1 to 4 m."""
    frames = [replace(frame('r/0', 1.1), scene='room'), replace(frame('t/0', 1.5), scene='table'),
              replace(frame('r/1', 1.3), scene='room')]
    with_bands = []
    for one, factor in zip(frames, (1.1, 1.5, 1.3), strict=True):
        bands = ErrorSums.by_range(factor * TRUE, TRUE)
        score = replace(one.aligned['none'], bands=bands)
        with_bands.append(replace(one, aligned={'none': score}))
    return replace(result('rendered/test'), kind='rendered', frames=tuple(with_bands))


def test_kinds_of_scene_and_ranges_are_counted_and_scored():
    measured = run(scenes_result())
    data = json.loads(json.dumps(report.to_json(measured), allow_nan=False))
    scenes = data['datasets'][0]['scenes']
    assert list(scenes) == ['room', 'table']
    assert scenes['room']['frames'] == 2
    assert scenes['room']['aligned']['none']['abs_rel'] == pytest.approx(0.2)
    assert scenes['table']['aligned']['none']['ratio_median'] == pytest.approx(0.5 / 0.4)
    bands = {item['from_m']: item for item in data['datasets'][0]['ranges']['none']}
    assert bands[0.5]['pixels'] == 0
    assert bands[0.5]['abs_rel'] is None
    assert bands[1.0]['pixels'] == 3 * int((TRUE < 2).sum())
    assert bands[2.0]['abs_rel'] == pytest.approx(0.3)
    assert bands[4.0]['pixels'] == 3 * int((TRUE >= 4).sum())
    assert bands[8.0]['to_m'] is None
    for text in (report.markdown(measured), report.summary_markdown(measured)):
        assert '| room | 2 | 0.200 | 0.500 |' in text
        assert '| table | 1 | 0.500 | 0.000 |' in text
        share = 100 * float((TRUE < 2).mean())
        assert f'| 1 to 2 | {share:.1f} % | 0.300 | 0.333 |' in text
        assert '0.5 to 1' not in text
        assert '| t/0 | 0.500 | 0.400 | 1.250 |' in text
    entry = report.card_entry(measured, measured.results[0])
    assert entry['scenes'] == {'room': 2, 'table': 1}
    assert entry['none']['ratio_median'] == pytest.approx(0.75)
    assert entry['none']['frames_better'] == 2
    assert type(entry['none']['frames_better']) is int


def seen_at(name, factor, scene):
    one = frame(name, factor)
    aligned = {'none': one.aligned['none'],
               'median': replace(one.aligned['none'], scale=1 / factor)}
    return replace(one, scene=scene, aligned=aligned)


def test_distances_stand_beside_the_errors_for_all_and_for_each_kind_of_scene():
    far_and_near = replace(
        result('rendered/test'), kind='rendered', alignments=('none', 'median'),
        frames=(seen_at('r/0', 1.05, 'room'), seen_at('r/1', 0.81, 'room'),
                seen_at('t/0', 1.41, 'table')))
    measured = run(far_and_near, result())
    first, second = json.loads(json.dumps(report.to_json(measured), allow_nan=False))['datasets']
    assert first['distance'] == pytest.approx(
        {'frames': 3, 'median': 1.05, 'p05': 0.834, 'p95': 1.374, 'within_10': 1 / 3,
         'within_25': 2 / 3})
    assert first['scenes']['table']['distance']['median'] == pytest.approx(1.41)
    assert second['distance'] is None
    for text in (report.markdown(measured), report.summary_markdown(measured)):
        assert '| rendered/test | all | 3 | 1.05 | 0.83 | 1.37 | 33 % | 67 % |' in text
        assert '| rendered/test | table | 1 | 1.41 | 1.41 | 1.41 | 0 % | 0 % |' in text
        assert '| osd | all' not in text
    assert ('distance of rendered/test, predicted over true: 1.05 (median; frames 3, 90 % of them '
            '0.83 to 1.37); within 10 % in 33 %, within 25 % in 67 % of them'
            ) in report.text_table(measured)
    assert report.card_entry(measured, far_and_near)['distance'] == {
        'frames': 3, 'median': 1.05, 'p05': 0.834, 'p95': 1.374, 'within_10': 0.3333,
        'within_25': 0.6667}
    assert 'distance' not in report.card_entry(measured, result())


def test_every_frame_has_a_line_of_the_table(tmp_path):
    lines = list(csv.DictReader(report.frames_csv(run(scenes_result())).splitlines()))
    assert [line['frame'] for line in lines] == ['r/0', 't/0', 'r/1']
    assert lines[1]['scene'] == 'table'
    assert float(lines[1]['none_abs_rel']) == pytest.approx(0.5)
    assert float(lines[1]['none_ratio_to_plane']) == pytest.approx(1.25)
    assert float(lines[1]['plane_abs_rel']) == pytest.approx(0.4)
    assert 'none_abs_rel_baseline' not in lines[0]
    two = run(scenes_result(), replace(result('aloe'), alignments=('affine',), frames=(
        replace(frame('a', 1.1), aligned={'affine': frame('a', 1.1).aligned['none']}),)))
    last = list(csv.DictReader(report.frames_csv(two).splitlines()))[-1]
    assert (last['none_abs_rel'], float(last['affine_abs_rel'])) == ('', pytest.approx(0.1))


def test_joined_sets_are_listed_once():
    one = scenes_result()
    both = joined([one, replace(one, name='rendered/test-2')], 'rendered (2 sets)')
    measured = run(one, replace(one, name='rendered/test-2'), both)
    data = report.to_json(measured)
    assert data['datasets'][2]['parts'] == ['rendered/test', 'rendered/test-2']
    assert data['datasets'][2]['frames'] == []
    assert data['datasets'][2]['frames_read'] == 6
    assert data['rows'][-2]['abs_rel'] == pytest.approx(0.3)
    assert data['rows'][-1]['truth'] == 'rendered/test and rendered/test-2 together'
    text = report.summary_markdown(measured)
    assert text.count('## Kinds of scene') == 1
    assert '## Frames of' not in text
    assert '| room | 4 |' in text
    assert len(report.frames_csv(measured).splitlines()) == 1 + 6
    with pytest.raises(ValueError, match='measured alike'):
        joined([one, replace(one, truth='scale')], 'x')


def test_a_comparison_is_in_every_report():
    before = report.to_json(run(result()))
    better = replace(result(), frames=(frame('a', 1.05), frame('b', 1.45)))
    measured = run(better)
    measured = replace(measured, comparison=compare.compare(report.to_json(measured), before))
    assert ('osd none: AbsRel 0.250 instead of 0.200; better in 1, worse in 1 of 2 frames '
            '(by more than 0.5 %), median of their ratios 1.00') in report.text_table(measured)
    assert '| osd | none | 2 | 0.250 | 0.200 | 1 | 1 | 1.00 | a | b |' in report.markdown(measured)
    assert '| b | 0.450 | 0.400 | 1.125 | 0.300 |' in report.summary_markdown(measured)
    assert report.to_json(measured)['comparison']['datasets'][0]['better'] == 1
    lines = list(csv.DictReader(report.frames_csv(measured).splitlines()))
    assert [float(line['none_abs_rel_baseline']) for line in lines] == pytest.approx([0.1, 0.3])


def card(tmp_path, **metrics):
    return ModelCard(
        'small',
        tmp_path / 'small.yaml',
        'Apache-2.0',
        InputSpec('image', 'uint8_nhwc', size_hw=(12, 16)),
        OutputSpec('depth', 'depth', 'm', (0.1, 10.0)),
        {'fp32': FileSpec(tmp_path / 'small.onnx', 'ab' * 32)},
        metrics=metrics,
    )


def test_card_entry_survives_a_round_trip_and_keeps_others(tmp_path):
    old = card(
        tmp_path, int8={'osd': {'frames': 45}}, fp32={'motorcycle': {'frames': 1}}, words='x'
    )
    new = report.updated_card(old, run())
    assert old.metrics['fp32'] == {'motorcycle': {'frames': 1}}
    loaded = ModelCard.load(new.save(tmp_path / 'small.yaml'))
    assert loaded.metrics['int8'] == {'osd': {'frames': 45}}
    assert loaded.metrics['words'] == 'x'
    assert loaded.metrics['fp32']['motorcycle'] == {'frames': 1}
    entry = loaded.metrics['fp32']['osd']
    assert entry['none']['abs_rel'] == 0.2
    assert entry['none']['ratio_to_plane'] == 0.5
    assert entry['mode'] == 'per-image'
    assert entry['frames'] == 2
    assert entry['skipped'] == 1
    assert entry['date'] == '2026-11-21'
    assert entry['command'] == 'depth-node evaluate --model small'
    assert 'truth 0.001 to 10 m' in entry['protocol']
    assert 'filters off' in entry['protocol']


def test_card_entry_of_a_pooled_run_says_so(tmp_path):
    pooled = replace(run(), protocol=Protocol(alignments=('none',), modes=('pooled',)))
    assert report.updated_card(card(tmp_path), pooled).metrics['fp32']['osd']['mode'] == 'pooled'


def test_command_line_hides_the_folders_of_this_machine():
    words = ['--data', 'osd:../shared/osd', '--data', 'rendered:/home/me/data/frames/test']
    words += ['--model', '/opt/x/models/small.yaml', '--out', '/tmp']
    line = report.command_line(words)
    assert line == (
        'depth-node evaluate --data osd:../shared/osd --data rendered:.../frames/test '
        '--model .../models/small.yaml --out /tmp'
    )
