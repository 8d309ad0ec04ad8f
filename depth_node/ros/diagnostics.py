"""What /diagnostics says, from the state of the node.

`checks` is a pure function of a `NodeState`; `to_message` makes the message of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
import math

from builtin_interfaces.msg import Time
from depth_node.ros.statistics import Snapshot
from depth_node.scale import Scale
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

OK, WARN, ERROR = 0, 1, 2
# Skips that are no fault of the input.
HARMLESS = ('no_subscriber', 'inactive', 'waiting_for_camera_info', 'shutdown')
# Beyond this the camera's clock and the node's are not the same clock.
_CLOCK_GAP_MS = 10_000.0


@dataclass(frozen=True)
class Check:
    """One line of /diagnostics."""

    name: str
    level: int
    message: str
    values: dict[str, str] = field(default_factory=dict)


@dataclass
class CameraState:
    """What the checks look at of one camera."""

    name: str = ''  # '' for the one camera of a node whose parameter `cameras` names none
    snapshot: Snapshot = field(default_factory=Snapshot)
    skipped_before: Mapping[str, int] = field(default_factory=dict)  # at the last report
    received_before: int = 0
    lost_before: int = 0
    published_before: int = 0
    failed_before: int = 0
    last_skip: str = ''  # the newest skip in words
    image_topic: str = ''
    image_publishers: int = 0
    image_size: str = ''
    encoding: str = ''
    frame_id: str = ''
    silent: bool = False  # no image for longer than input.timeout_s
    advice: tuple[str, ...] = ()  # what to do about the silence
    camera_info_topic: str = ''
    camera_source: str = ''
    camera_problem: str = ''
    camera_message: str = ''
    mismatches: tuple[str, ...] = ()
    large_messages: str = ''  # what stands in their way, '' if nothing
    best_effort_readers: tuple[str, ...] = ()  # subscribers that such messages will not reach
    scale: dict[str, str] = field(default_factory=dict)
    mount: dict[str, str] = field(default_factory=dict)  # empty where nothing needs it
    valid_share: float = math.nan
    removed: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()  # why subscribed outputs were not made of the newest frame
    wanted: tuple[str, ...] = ()


@dataclass
class NodeState:
    """Everything that the checks look at."""

    lifecycle: str = 'unconfigured'
    failure: str = ''  # why configure failed, '' if it did not
    parameter_problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    model: dict[str, str] = field(default_factory=dict)  # name, backend, precision, ...
    refusals: tuple[tuple[str, str], ...] = ()
    use_sim_time: bool = False
    cameras: tuple[CameraState, ...] = ()


def checks(state: NodeState) -> list[Check]:
    """Return the lines, most fundamental first; those of a named camera begin with its name."""
    found = [_model(state), _parameters(state)]
    if state.lifecycle in ('inactive', 'active'):
        for camera in state.cameras:
            prefix = f'{camera.name}: ' if camera.name else ''
            found += [replace(check, name=prefix + check.name) for check in (
                _input(state, camera), _camera(camera), _qos(camera), _output(state, camera),
                _scale(state, camera), *_mount(camera))]
    return found


def _ms(value: float) -> str:
    return 'unknown' if math.isnan(value) else f'{value:.1f}'


def _hz(value: float) -> str:
    return 'unknown' if math.isnan(value) else f'{value:.2f}'


def _model(state: NodeState) -> Check:
    values = {'lifecycle': state.lifecycle, **state.model}
    for name, reason in state.refusals:  # a backend may refuse several precisions
        key = f'refused {name}'
        values[key] = f'{values[key]}; {reason}' if key in values else reason
    if state.failure:
        return Check('model', ERROR, state.failure, values)
    if state.lifecycle in ('unconfigured', 'finalized'):
        return Check('model', WARN, f'not loaded: the node is {state.lifecycle}', values)
    text = (f'{state.model.get("name", "")} by {state.model.get("backend", "")} '
            f'{state.model.get("precision", "")}')
    if state.lifecycle != 'active':
        return Check('model', WARN, f'{text}, but the node is {state.lifecycle}', values)
    return Check('model', OK, text, values)


def _parameters(state: NodeState) -> Check:
    values = {f'problem {index}': text for index, text in enumerate(state.parameter_problems, 1)}
    values.update({f'remark {index}': text for index, text in enumerate(state.warnings, 1)})
    if state.parameter_problems:
        return Check('parameters', ERROR, state.parameter_problems[0], values)
    if state.warnings:
        return Check('parameters', WARN, state.warnings[0], values)
    return Check('parameters', OK, 'all usable', values)


def _input(node: NodeState, state: CameraState) -> Check:
    now = state.snapshot
    values = {
        'topic': state.image_topic, 'publishers': str(state.image_publishers),
        'rate_hz': _hz(now.input_hz), 'received': str(now.received),
        'lost_in_transport': str(now.lost_in_transport),
        **{f'skipped {name}': str(count) for name, count in now.skipped.items()},
        'age_ms': _ms(now.input_age_ms), 'size': state.image_size, 'encoding': state.encoding,
        'frame_id': state.frame_id, 'clock_jumps': str(now.clock_jumps)}
    if state.last_skip:
        values['last_skip'] = state.last_skip
    values.update({f'advice {index}': text for index, text in enumerate(state.advice, 1)})
    if node.lifecycle != 'active':
        return Check('input', OK, f'the node is {node.lifecycle}', values)
    if state.silent:
        seconds = f'{now.since_image_s:.0f} s'
        return Check('input', ERROR, f'no image on {state.image_topic} for {seconds}', values)
    received = now.received - state.received_before
    skipped = {name: count - state.skipped_before.get(name, 0)
               for name, count in now.skipped.items() if name not in HARMLESS}
    skipped = {name: count for name, count in skipped.items() if count > 0}
    lost = now.lost_in_transport - state.lost_before
    if skipped:
        total = sum(skipped.values())
        text = ', '.join(f'{count} {name}' for name, count in skipped.items())
        level = ERROR if total >= received else WARN
        return Check('input', level, f'{total} of the last {received} images skipped: {text}',
                     values)
    if lost > 0:
        return Check('input', WARN, f'{lost} images lost before they arrived', values)
    if not math.isnan(now.input_age_ms) and abs(now.input_age_ms) > _CLOCK_GAP_MS:
        hint = ("is the camera's clock synchronised?" if node.use_sim_time
                else "is the camera's clock synchronised, or is this a bag or a simulator "
                     '(use_sim_time:=true)?')
        return Check('input', WARN, "the images' stamps are "
                     f"{now.input_age_ms / 1e3:.1f} s older than this node's clock: {hint}",
                     values)
    if state.frame_id and 'optical' not in state.frame_id:
        return Check('input', WARN, f'frame_id {state.frame_id!r} does not look like an optical '
                     'frame (z forward, x right; by convention its name ends in _optical_frame)',
                     values)
    return Check('input', OK, f'{_hz(now.input_hz)} Hz', values)


def _camera(state: CameraState) -> Check:
    values = {'topic': state.camera_info_topic, 'source': state.camera_source or 'none yet'}
    if state.camera_problem:
        values['problem'] = state.camera_problem
        level = WARN if state.camera_source in ('url', 'fov') else ERROR
        return Check('camera_info', level, f'{state.camera_problem}: {state.camera_message}',
                     values)
    if not state.camera_source:
        return Check('camera_info', OK, 'no frame yet', values)
    return Check('camera_info', OK, f'intrinsics from {state.camera_source}', values)


def _qos(state: CameraState) -> Check:
    values = {f'mismatch {index}': text for index, text in enumerate(state.mismatches, 1)}
    values['large_messages'] = state.large_messages or 'no obstacle known'
    if state.mismatches:
        return Check('qos', ERROR, state.mismatches[0], values)
    if state.large_messages and (
            state.snapshot.lost_in_transport > state.lost_before
            or (state.silent and state.image_publishers > 0)):
        return Check('qos', WARN, state.large_messages, values)
    if state.large_messages and state.best_effort_readers:
        return Check('qos', WARN, 'best-effort subscribers probably miss most large messages: '
                     f'{", ".join(state.best_effort_readers)}; subscribe reliably, or in both '
                     f'processes: {state.large_messages}', values)
    return Check('qos', OK, 'all endpoints match', values)


def _output(node: NodeState, state: CameraState) -> Check:
    now = state.snapshot
    values = {
        'rate_hz': _hz(now.output_hz), 'latency_p50_ms': _ms(now.latency_ms[0]),
        'latency_p99_ms': _ms(now.latency_ms[1]),
        **{f'stage {name} ms': _ms(value) for name, value in now.stage_ms.items()},
        'processed': str(now.processed), 'published': str(now.published),
        'failed': str(now.failed),
        'dropped_newer': str(now.dropped_newer), 'in_hand': str(now.in_hand),
        'valid_share': 'unknown' if math.isnan(state.valid_share) else f'{state.valid_share:.3f}',
        **{f'removed {name}': str(count) for name, count in state.removed.items()},
        'subscribed': ', '.join(state.wanted) or 'nothing'}
    values.update({f'note {index}': text for index, text in enumerate(state.notes, 1)})
    if node.lifecycle != 'active':
        return Check('output', OK, f'the node is {node.lifecycle}', values)
    failed = now.failed - state.failed_before
    if failed > 0:
        none = now.published == state.published_before
        return Check('output', ERROR if none else WARN, f'{failed} frames could not be published: '
                     f'{state.last_skip}', values)
    if not state.wanted:
        return Check('output', OK, 'idle: no output has a subscriber', values)
    if state.valid_share == 0:
        return Check('output', WARN, 'the newest frame holds no usable depth at all', values)
    if state.refused:
        return Check('output', WARN, '; '.join(state.refused), values)
    return Check('output', OK, f'{_hz(now.output_hz)} Hz, p50 {_ms(now.latency_ms[0])} ms, '
                 f'p99 {_ms(now.latency_ms[1])} ms', values)


def scale_facts(scale: Scale) -> dict[str, str]:
    """Return what /diagnostics lists about a scale."""
    facts = {'source': scale.source, 'state': scale.state, 'space': scale.space,
             'scale': f'{scale.scale:g}', 'shift': f'{scale.shift:g}'}
    if not math.isnan(scale.uncertainty):
        facts['uncertainty'] = f'{scale.uncertainty:.3f}'
    if scale.support:
        facts['support'] = str(scale.support)
    if not math.isnan(scale.age_s):
        facts['age_s'] = f'{scale.age_s:.2f}'
    if scale.note:
        facts['note'] = scale.note
    return facts


def _scale(node: NodeState, state: CameraState) -> Check:
    assumed = [note for note in state.notes if 'assumes' in note]
    facts = dict(state.scale)
    source, condition = facts.get('source', 'model'), facts.get('state', 'ok')
    problem = facts.get('problem', '')
    if condition != 'ok' and (node.lifecycle != 'active' or not state.wanted):
        return Check('scale', OK, f'source {source}, idle', facts)
    if condition != 'ok':
        reasons = '; '.join(dict.fromkeys(filter(None, (problem, facts.get('note', '')))))
        return Check('scale', WARN, f'source {source}, {condition}: {reasons}', facts)
    if problem:
        return Check('scale', WARN, f'source {source}: {problem}', facts)
    if assumed:
        return Check('scale', WARN, assumed[0], facts)
    return Check('scale', OK, f'source {source}', facts)


def _mount(state: CameraState) -> list[Check]:
    facts = state.mount
    if not facts:
        return []
    if facts.get('problem'):
        return [Check('mount', WARN, facts['problem'], facts)]
    return [Check('mount', OK, f'from {facts["source"]}', facts)]


def to_message(found: list[Check], node_name: str, hardware_id: str,
               stamp: Time) -> DiagnosticArray:
    """Return the DiagnosticArray; names are `<node>: <check>` as diagnostic_updater does."""
    message = DiagnosticArray()
    message.header.stamp = stamp
    for check in found:
        message.status.append(DiagnosticStatus(
            level=bytes([check.level]), name=f'{node_name}: {check.name}', message=check.message,
            hardware_id=hardware_id,
            values=[KeyValue(key=key, value=value) for key, value in check.values.items()]))
    return message
