"""Two reports are compared frame by frame, and only where both saw the same truth."""

from copy import deepcopy
import json
import math

from depth_node.evaluation import compare
from depth_node.evaluation.readers import DataError
import numpy as np
import pytest

RULES = {'min_depth_m': 0.001, 'max_depth_m': 10.0, 'crop': 'none', 'flip': 'none'}


def report(model='new', **datasets):
    """Make a report of AbsRel per frame: {dataset: {frame: {alignment: error}}}."""
    return {
        'model': model, 'precision': 'int8', 'file': f'{model}.onnx', 'sha256': 'cd' * 32,
        'backend': 'openvino 1', 'protocol': dict(RULES),
        'datasets': [
            {'name': name, 'frames': [
                {'name': frame, 'known_pixels': 100 + i, 'plane_abs_rel': 0.2 + 0.01 * i,
                 'aligned': {key: {'abs_rel': value} for key, value in errors.items()}}
                for i, (frame, errors) in enumerate(frames.items())]}
            for name, frames in datasets.items()],
    }  # fmt: skip


BEFORE = report('old', osd={'a': {'none': 0.4, 'affine': 0.2}, 'b': {'none': 0.1, 'affine': 0.1},
                            'c': {'none': 0.3, 'affine': 0.3}})
AFTER = report('new', osd={'a': {'none': 0.1, 'affine': 0.1}, 'b': {'none': 0.2, 'affine': 0.1},
                           'c': {'none': 0.15, 'affine': 0.15}})


def test_gains_and_losses_are_those_of_the_frames():
    found = compare.compare(AFTER, BEFORE)
    assert found.baseline == 'old int8 (old.onnx, sha256 cdcdcdcdcdcd) on openvino 1'
    assert found.left_out == ()
    metric, affine = found.changes
    assert (metric.dataset, metric.alignment, metric.names) == ('osd', 'none', ('a', 'b', 'c'))
    assert (metric.better, metric.worse) == (2, 1)
    assert metric.median_ratio == pytest.approx(np.median([0.1 / 0.4, 0.2 / 0.1, 0.15 / 0.3]))
    assert metric.extremes() == ('a', 'b')
    assert (affine.better, affine.worse) == (2, 0)
    data = json.loads(json.dumps(compare.to_json(found), allow_nan=False))
    assert data['datasets'][0]['abs_rel'] == pytest.approx(0.15)
    assert data['datasets'][0]['baseline_abs_rel'] == pytest.approx(0.8 / 3)
    assert data['datasets'][0]['abs_rel_of_frames']['b'] == [0.1, 0.2]


def test_a_difference_in_the_last_digits_is_none():
    before = np.array([0.1, 0.1, 0.1, 0.1, 0.0])
    change = compare.Change('x', 'none', tuple('abcde'), before,
                            np.array([0.1003, 0.0997, 0.0994, 0.1, 0.0]))
    assert (change.better, change.worse) == (1, 0)
    assert change.extremes() == ('c', '-')


def test_only_frames_with_the_same_truth_are_compared():
    other = deepcopy(BEFORE)
    other['datasets'][0]['frames'][0]['plane_abs_rel'] = 0.21  # another picture of that name
    other['datasets'][0]['frames'][1]['known_pixels'] = 5
    found = compare.compare(AFTER, other)
    assert found.changes[0].names == ('c',)
    assert found.left_out == ('osd: 2 of 3 frames have another truth in the baseline',)
    del other['datasets'][0]['frames'][2]
    with pytest.raises(DataError, match='share no frame: osd: 1 of 3 frames are not in the'):
        compare.compare(AFTER, other)


def test_what_the_baseline_lacks_is_named():
    more = report('new', osd={'a': {'none': 0.1, 'median': 0.1}}, aloe={'a': {'affine': 1.0}})
    found = compare.compare(more, BEFORE)
    assert [change.alignment for change in found.changes] == ['none']
    assert found.left_out == ('osd: no frame has alignment median in the baseline',
                              'aloe: not in the baseline')


def test_a_joined_set_is_compared_by_its_parts():
    def joined(first, second):
        made = report(x={'a': {'none': first}}, y={'a': {'none': second}})
        return {**made, 'datasets': [
            *made['datasets'], {'name': 'both', 'parts': ['x', 'y'], 'frames': []}]}

    found = compare.compare(joined(0.1, 0.3), joined(0.2, 0.2)).changes[-1]
    assert (found.dataset, found.names) == ('both', ('x: a', 'y: a'))
    assert (found.better, found.worse) == (1, 1)


def test_other_rules_are_refused():
    changed = deepcopy(BEFORE)
    changed['protocol']['max_depth_m'] = 80.0
    with pytest.raises(DataError, match=r'max_depth_m 80.0, this run with 10.0'):
        compare.compare(AFTER, changed)
    del changed['protocol']['max_depth_m']  # of a version that had no choice
    assert compare.compare(AFTER, changed).changes


def test_frames_without_an_error_are_left_out():
    empty = deepcopy(AFTER)
    empty['datasets'][0]['frames'][0]['aligned']['none']['abs_rel'] = None
    assert compare.compare(empty, BEFORE).changes[0].names == ('b', 'c')
    perfect = compare.Change('x', 'none', ('a',), np.zeros(1), np.ones(1))
    assert math.isnan(perfect.median_ratio)
    found = compare.to_json(compare.Comparison('b', (perfect,)))
    assert found['datasets'][0]['median_ratio'] is None


@pytest.mark.parametrize(('content', 'words'), [
    ('nothing', 'not readable as JSON'), ('[1]', 'no report'), ('{"rows": []}', 'no report'),
])  # fmt: skip
def test_files_that_are_no_report_are_refused(tmp_path, content, words):
    path = tmp_path / 'x.json'
    path.write_text(content)
    with pytest.raises(DataError, match=words):
        compare.read_report(path)
    with pytest.raises(DataError, match='not readable'):
        compare.read_report(tmp_path / 'none.json')


@pytest.mark.parametrize('broken', [{'datasets': [{}]}, {'datasets': [3], 'protocol': {}},
                                    {'datasets': [{'name': 'osd', 'frames': [{}]}],
                                     'protocol': {}}])
def test_a_report_of_another_shape_is_refused(broken):
    with pytest.raises(DataError, match='not a report of depth-node evaluate'):
        compare.compare(AFTER, broken)
