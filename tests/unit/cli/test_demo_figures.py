"""What the demo concludes from a recording, on recordings made up for the purpose."""

from __future__ import annotations

from collections.abc import Callable
import copy
import json
import math
from typing import Any

from depth_node.cli._demo import figures, outputs, report
from depth_node.cli._demo.children import ChildError, claimed_domain
from depth_node.cli._demo.recording import TYPES, Recording, cloud_of, depth_of
import numpy as np
import pytest

FRAME = 'cam_optical_frame'
STAMPS = [10**9 * second for second in range(1, 7)]


def status(stamp_ns: int, received: int, processed: int, *, dropped: int = 0, lost: int = 0,
           skipped: dict[str, int] | None = None, published: int | None = None) -> dict[str, Any]:
    skipped = skipped or {}
    return {'stamp_ns': stamp_ns, 'received': received, 'processed': processed,
            'dropped_newer': dropped, 'lost_in_transport': lost,
            'skipped_reasons': list(skipped), 'skipped_counts': list(skipped.values()),
            'published': processed if published is None else published,
            'latency_ms': 10.0, 'stage_names': ['network', 'cloud'], 'stage_ms': [6.0, 1.0]}


def recording(**rows: list[dict[str, Any]]) -> Recording:
    made = Recording.__new__(Recording)
    made.rows = {key: rows.get(key, []) for key in TYPES}
    made.diagnostics = {}
    return made


def good() -> Recording:
    """Return a recording in which everything is as it must be."""
    k = [100.0, 0, 31.5, 0, 110.0, 20.5, 0, 0, 1.0]
    p = [100.0, 0, 31.5, 0, 0, 110.0, 20.5, 0, 0, 0, 1.0, 0]
    common = [{'stamp_ns': stamp, 'monotonic_ns': stamp, 'wall_ns': stamp + 5_000_000,
               'frame_id': FRAME, 'height': 48, 'width': 64} for stamp in STAMPS]
    return recording(
        image=common,
        depth=[{**row, 'encoding': '32FC1', 'not_positive': 0} for row in common],
        depth_camera_info=[{**row, 'd': [0.0] * 5, 'k': k, 'p': p} for row in common],
        points=[{**row, 'infinite': 0, 'at_origin': 0, 'not_in_front': 0} for row in common],
        status=[status(stamp, number, number) for number, stamp in enumerate(STAMPS, 1)])


def verdicts(made: Recording, **changes: Any) -> dict[str, bool | None]:
    facts: dict[str, Any] = {
        'frame_of': {stamp: 0 for stamp in STAMPS}, 'frame_id': FRAME, 'with_cloud': True,
        'counted': figures.counters(made, STAMPS),
        'clouds': {'compared': 2, 'points_without_depth_or_back': 0, 'worst_distance_m': 1e-6},
        'error': {'share_within_stated': 0.6}, 'stated': (0.1, 'fp32.rendered/test'),
        'torch_loaded': False, 'exit_codes': {'node': 0}}
    return {check.name: check.ok for check in figures.checks(made, **{**facts, **changes})}


def test_good_recording_passes():
    found = verdicts(good())
    assert set(found.values()) == {True}
    assert len(found) >= 15


def change(key: str, **fields: Any) -> Callable[[Recording], None]:
    return lambda made: made.rows[key][2].update(fields)


@pytest.mark.parametrize(('spoil', 'name'), [
    (change('points', infinite=1), 'no Inf in the cloud'),
    (change('points', at_origin=1), 'no point at the origin'),
    (change('points', not_in_front=1), 'all points are in front of the camera'),
    (change('points', width=63), 'clouds are organised like the depth image'),
    (change('points', frame_id='cam'), "frame_id is the image's"),
    (change('depth', frame_id=''), "frame_id is the image's"),
    (change('points', stamp_ns=7), "stamps are the image's"),
    (change('depth', not_positive=1), 'known depths are positive'),
    (change('depth_camera_info', height=47), 'CameraInfo has the size of the depth image'),
    (change('depth_camera_info', d=[0.1, 0, 0, 0, 0]), 'CameraInfo is rectified: D = 0, K = P'),
    (change('depth_camera_info', p=[99.0, 0, 31.5, 0, 0, 110.0, 20.5, 0, 0, 0, 1.0, 0]),
     'CameraInfo is rectified: D = 0, K = P'),
    (change('status', received=9), 'counters add up'),
    (change('status', received=2), 'counters add up'),
])
def test_one_bad_message_among_good_ones_is_found(spoil: Callable[[Recording], None], name: str):
    made = good()
    for key in made.rows:
        made.rows[key] = copy.deepcopy(made.rows[key])
    spoil(made)
    failed = {check for check, ok in verdicts(made).items() if ok is False}
    assert name in failed
    assert failed <= {name, "stamps are the image's"}


@pytest.mark.parametrize(('changes', 'name'), [
    ({'torch_loaded': True}, "no PyTorch in the node's process"),
    ({'exit_codes': {'node': 0, 'player': -6}}, 'all processes end cleanly'),
    ({'error': {'share_within_stated': 0.4}},
     'at least half of the points lie within the error that the card states'),
    ({'clouds': {'compared': 2, 'points_without_depth_or_back': 0, 'worst_distance_m': 0.002}},
     'points are the depth image seen through CameraInfo'),
    ({'clouds': {'compared': 2, 'points_without_depth_or_back': 1, 'worst_distance_m': 0.0}},
     'points are the depth image seen through CameraInfo'),
])
def test_bad_fact_is_found(changes: dict[str, Any], name: str):
    assert {check for check, ok in verdicts(good(), **changes).items() if ok is False} == {name}


def test_thinned_cloud_is_not_compared_with_the_depth_image():
    made = good()
    made.rows['points'] = [{**row, 'width': 32, 'height': 24} for row in made.rows['points']]
    assert verdicts(made)['clouds are organised like the depth image'] is False
    found = verdicts(made, whole_cloud=False)
    assert set(found.values()) == {True}
    assert 'no Inf in the cloud' in found


def test_nothing_received_is_a_failure_and_not_a_pass():
    found = verdicts(recording(), exit_codes={})
    assert found['depth arrives'] is False
    assert found['no Inf in the cloud'] is None
    assert found['counters add up'] is None


def test_counters_follow_every_image():
    # 6 images a second apart; the 3rd is dropped, the 4th skipped, the 5th lost on the way
    made = recording(
        status=[status(STAMPS[0], 11, 10, dropped=1), status(STAMPS[1], 14, 11, dropped=2),
                status(STAMPS[5], 15, 12, dropped=2, lost=1, skipped={'short_data': 1})],
        depth=[{'stamp_ns': STAMPS[1]}, {'stamp_ns': STAMPS[5]}])
    counted = figures.counters(made, STAMPS)
    # the status in the middle has an image in hand, so it is no end
    assert counted == {
        'sent': 5, 'received': 4, 'lost_in_transport': 1, 'processed': 2, 'dropped_newer': 1,
        'skipped': {'short_data': 1}, 'published': 2, 'subscriber_got': 2, 'seconds': 5.0}
    made.rows['depth'].clear()
    assert verdicts(made, counted=counted)['no image is lost without a name'] is True
    silent = {**counted, 'lost_in_transport': 0}
    assert verdicts(made, counted=silent)['no image is lost without a name'] is False


def test_counters_need_two_calm_moments():
    made = recording(status=[status(STAMPS[0], 1, 1), status(STAMPS[1], 4, 2, dropped=1)])
    assert figures.counters(made, STAMPS) == {}


def test_times_leave_the_first_second_out():
    made = good()
    made.rows['status'][0]['latency_ms'] = 900.0  # the first frame warms everything up
    found = figures.times(made)
    assert found['frames'] == 5
    assert found['latency_ms'] == {'p50': 10.0, 'p99': 10.0, 'max': 10.0}
    assert found['without_network_ms']['p50'] == 4.0
    assert found['stages_ms']['waiting']['p50'] == 3.0
    assert found['depth_hz'] == pytest.approx(1.0)
    assert found['stamp_to_subscriber_ms']['p50'] == pytest.approx(5.0)


def test_rate_of_too_few_is_unknown():
    assert math.isnan(figures.rate_hz([5]))
    assert figures.rate_hz([0, 10**9, 2 * 10**9, 4 * 10**9]) == 0.75


def test_targets_are_met_or_missed():
    measured = {'latency_ms': {'p50': 25.0}, 'without_network_ms': {'p50': 8.1}}
    counted = {'published': 5, 'subscriber_got': 5}
    met = {target.name: target.met
           for target in figures.targets(measured, counted, 351.0, math.nan)}
    assert list(met.values()) == [True, True, False, False, None]


class Card:
    """The part of a model card that is asked."""

    def __init__(self, metrics: dict[str, Any]) -> None:
        self.metrics = metrics


def test_model_in_use_is_known_without_the_projects_message():
    from depth_node.cli.demo import _used

    made = recording()
    assert _used(made) == {}
    row = {'level': 0, 'message': '', 'values': {'name': 'small', 'backend': 'openvino'}}
    made.diagnostics = {'mono_depth: model': [row]}
    assert (_used(made)['model'], _used(made)['backend']) == ('small', 'openvino')
    made.rows['status'] = [{'model': 'other'}]
    assert _used(made) == {'model': 'other'}


def test_stated_error_is_that_of_the_precision_in_use():
    rendered = {'none': {'abs_rel': 0.1}, 'median': {'abs_rel': 0.05}}
    metrics = {'fp32': {'osd': {'none': {'abs_rel': 0.3}}, 'rendered/test': rendered},
               'int8': {'rendered/test': {'none': {'abs_rel': 0.12}}}}
    assert figures.stated_error(Card(metrics), 'int8') == (0.12, 'int8.rendered/test')
    assert figures.stated_error(Card(metrics), 'bf16') == (0.1, 'fp32.rendered/test')
    assert figures.stated_error(Card({'fp32': {'osd': {}}}), 'fp32') is None


def test_json_of_a_run_without_figures_is_json():
    document = report.to_json({'times': {'p50': math.nan}, 'x': (math.inf, 1.0)},
                              [figures.Check('a', None, '')], [])
    assert json.loads(json.dumps(document, allow_nan=False))['times'] == {'p50': None}
    assert document['ok'] is True
    assert document['x'] == [None, 1.0]


@pytest.mark.parametrize('seed', range(5))
def test_quaternion_turns_like_its_matrix(seed: int):
    rng = np.random.default_rng(seed)
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    rotation = q * np.sign(np.diag(r))
    rotation[:, 0] *= np.linalg.det(rotation)
    x, y, z, w = outputs.quaternion(rotation)
    axis, point = np.array([x, y, z]), rng.normal(size=3)
    turned = point + 2 * np.cross(axis, np.cross(axis, point) + w * point)
    assert turned == pytest.approx(rotation @ point)
    assert x * x + y * y + z * z + w * w == pytest.approx(1.0)


def test_spread_keeps_both_ends():
    rows = [{'n': n} for n in range(11)]
    assert [row['n'] for row in outputs.spread(rows, 3)] == [0, 5, 10]
    assert outputs.spread(rows[:2], 3) == rows[:2]


class Message:
    """An image or cloud as rosbags gives it."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


def test_depth_in_millimetres_is_read_as_metres():
    data = np.array([[1500, 0], [250, 65535]], np.uint16)
    depth = depth_of(Message(height=2, width=2, encoding='16UC1', data=data.view(np.uint8)))
    assert depth[0, 0] == 1.5
    assert np.isnan(depth[0, 1])


def test_cloud_with_gaps_between_its_fields_is_read():
    words = np.zeros((2, 3, 8), np.float32)  # PCL's 32 bytes per point
    words[..., 0], words[..., 1], words[..., 2] = 1.0, 2.0, 3.0
    words.view(np.uint32)[..., 4] = 0x00102030
    fields = [Message(name=name, offset=offset) for name, offset in
              (('x', 0), ('y', 4), ('z', 8), ('rgb', 16))]
    points, colours = cloud_of(Message(height=2, width=3, point_step=32, fields=fields,
                                       data=words.reshape(-1).view(np.uint8)))
    assert points.shape == (2, 3, 3)
    assert points[1, 2].tolist() == [1.0, 2.0, 3.0]
    assert colours is not None
    assert colours[1, 2].tolist() == [0x10, 0x20, 0x30]


def test_two_demos_do_not_share_a_domain():
    with claimed_domain(None) as first, claimed_domain(None) as second:
        assert first != second
        assert 0 not in (first, second)
    with claimed_domain(7) as chosen:
        assert chosen == 7


def test_no_domain_left_is_said(monkeypatch: pytest.MonkeyPatch):
    from depth_node.cli._demo import children

    # one below those that demos take: none that runs on this machine holds it
    monkeypatch.setattr(children, 'DOMAIN_IDS', range(39, 40))
    with claimed_domain(None), pytest.raises(ChildError, match='--domain-id'):
        claimed_domain(None).__enter__()
