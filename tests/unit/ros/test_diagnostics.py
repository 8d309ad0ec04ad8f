"""What /diagnostics says about a state, as a pure function."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

pytest.importorskip('diagnostic_msgs')

from depth_node.ros.diagnostics import (
    ERROR,
    OK,
    WARN,
    CameraState,
    Check,
    NodeState,
    checks,
    to_message,
)
from depth_node.ros.statistics import Snapshot


def state(**changes: Any) -> NodeState:
    """Return a node that works, with changes."""
    usual: dict[str, Any] = dict(
        lifecycle='active', model={'name': 'small', 'backend': 'openvino', 'precision': 'int8'},
        snapshot=Snapshot(received=30, processed=30, published=30, input_hz=30.0, output_hz=30.0,
                          latency_ms=(10.0, 20.0), input_age_ms=3.0, since_image_s=0.01),
        image_topic='/camera/image_raw', image_publishers=1, frame_id='camera_optical_frame',
        camera_source='topic', valid_share=0.9, wanted=('~/points',))
    usual.update(changes)
    of_camera = {item.name for item in dataclasses.fields(CameraState)} & set(usual)
    camera = CameraState(**{name: usual.pop(name) for name in of_camera})
    return NodeState(**usual, cameras=(camera,))


def found(**changes: Any) -> dict[str, Check]:
    return {check.name: check for check in checks(state(**changes))}


def counters(**changes: Any) -> Snapshot:
    return dataclasses.replace(state().cameras[0].snapshot, **changes)


def test_all_is_well() -> None:
    assert [(check.name, check.level) for check in checks(state())] == [
        ('model', OK), ('parameters', OK), ('input', OK), ('camera_info', OK), ('qos', OK),
        ('output', OK), ('scale', OK)]
    assert found()['output'].values['latency_p99_ms'] == '20.0'


@pytest.mark.parametrize(('check', 'level', 'said', 'changes'), [
    ('model', ERROR, 'no card', dict(lifecycle='unconfigured', failure='no card')),
    ('model', WARN, 'unconfigured', dict(lifecycle='unconfigured')),
    ('model', WARN, 'inactive', dict(lifecycle='inactive')),
    ('parameters', ERROR, 'bad', dict(parameter_problems=('bad',), warnings=('odd',))),
    ('parameters', WARN, 'odd', dict(warnings=('odd',))),
    ('input', ERROR, 'no image on /camera/image_raw for 7 s',
     dict(silent=True, snapshot=counters(since_image_s=7.2))),
    ('input', ERROR, '3 of the last 3 images skipped: 3 bad_step',
     dict(snapshot=counters(skipped={'bad_step': 5}), skipped_before={'bad_step': 2},
          received_before=27)),
    ('input', WARN, '1 of the last 30 images skipped: 1 empty',
     dict(snapshot=counters(skipped={'empty': 1, 'no_subscriber': 9}))),
    ('input', OK, '30.00 Hz', dict(snapshot=counters(skipped={'no_subscriber': 9}))),
    ('input', OK, '30.00 Hz', dict(snapshot=counters(skipped={'empty': 4}),
                                   skipped_before={'empty': 4})),
    ('input', WARN, '2 images lost',
     dict(snapshot=counters(lost_in_transport=5), lost_before=3)),
    ('input', WARN, 'use_sim_time:=true', dict(snapshot=counters(input_age_ms=4e8))),
    ('input', WARN, 'synchronised?', dict(snapshot=counters(input_age_ms=-4e8),
                                          use_sim_time=True)),
    ('input', WARN, "'base_link'", dict(frame_id='base_link')),
    ('camera_info', ERROR, 'camera_info_size', dict(
        camera_problem='camera_info_size', camera_source='none', camera_message='x')),
    ('camera_info', WARN, 'camera_info_missing', dict(
        camera_problem='camera_info_missing', camera_source='fov', camera_message='x')),
    ('qos', ERROR, 'cannot match', dict(mismatches=('cannot match',))),
    ('qos', WARN, 'no profile', dict(large_messages='no profile', silent=True)),
    ('qos', WARN, 'no profile', dict(large_messages='no profile',
                                     snapshot=counters(lost_in_transport=5))),
    ('qos', WARN, 'miss most large messages: /nav on /points', dict(
        large_messages='no profile', best_effort_readers=('/nav on /points',))),
    ('qos', OK, 'match', dict(best_effort_readers=('/nav on /points',))),
    ('qos', OK, 'match', dict(large_messages='no profile')),
    ('output', OK, 'idle', dict(wanted=())),
    ('output', ERROR, '3 frames could not be published: internal_error: x', dict(
        snapshot=counters(processed=33, failed=4), failed_before=1, published_before=30,
        last_skip='internal_error: x')),
    ('output', WARN, '3 frames could not be published', dict(
        snapshot=counters(processed=33, failed=4), failed_before=1, published_before=29)),
    ('output', OK, '30.00 Hz', dict(snapshot=counters(failed=4), failed_before=4)),
    ('output', WARN, 'no usable depth', dict(valid_share=0.0)),
    ('output', WARN, 'no ~/scan: why', dict(refused=('no ~/scan: why',))),
    ('scale', WARN, 'assumes', dict(notes=('scale assumes 60 degrees',))),
    ('scale', WARN, 'source points, waiting: nobody publishes /scan; no estimate yet', dict(
        scale=dict(source='points', state='waiting', note='no estimate yet',
                   problem='nobody publishes /scan'))),
    ('scale', WARN, 'source points, held: silent', dict(
        scale=dict(source='points', state='held', note='silent', problem='silent'))),
    ('scale', OK, 'source points, idle', dict(
        scale=dict(source='points', state='waiting', problem='x'), wanted=())),
    ('scale', OK, 'source ground, idle', dict(
        scale=dict(source='ground', state='waiting'), lifecycle='inactive')),
    ('scale', WARN, 'source points: no transform', dict(
        scale=dict(source='points', state='ok', problem='no transform'))),
    ('scale', OK, 'source fixed', dict(scale=dict(source='fixed', state='ok'))),
    ('mount', WARN, 'TF is old', dict(mount=dict(source='parameters', problem='TF is old'))),
    ('mount', OK, 'from imu', dict(mount=dict(source='imu'))),
])
def test_each_trouble_is_named(check: str, level: int, said: str,
                               changes: dict[str, Any]) -> None:
    line = found(**changes)[check]
    assert line.level == level
    assert said in line.message


def test_numbers_that_are_not_known_are_called_unknown() -> None:
    values = found(snapshot=Snapshot(), valid_share=math.nan)['output'].values
    assert values['rate_hz'] == values['latency_p50_ms'] == values['valid_share'] == 'unknown'
    assert 'nan' not in ' '.join(values.values())


def test_message() -> None:
    from builtin_interfaces.msg import Time

    message = to_message(checks(state(refusals=(('tensorrt', 'not installed'),))), 'robot/mono',
                         'CPU', Time(sec=3))
    assert message.header.stamp.sec == 3
    assert message.status[0].name == 'robot/mono: model'
    assert message.status[0].level == b'\x00'
    assert message.status[0].hardware_id == 'CPU'
    assert {item.key: item.value for item in message.status[0].values}[
        'refused tensorrt'] == 'not installed'


def test_every_refused_precision_of_a_backend_is_named() -> None:
    refusals = (('tensorrt', 'fp16: self-check failed'), ('tensorrt', 'mixed: self-check failed'),
                ('openvino', 'not installed'))
    values = found(refusals=refusals)['model'].values
    assert values['refused tensorrt'] == 'fp16: self-check failed; mixed: self-check failed'
    assert values['refused openvino'] == 'not installed'
