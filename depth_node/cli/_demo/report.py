"""The demo's table, for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
import math
from typing import Any

from depth_node.cli._demo.figures import Check, Target


def _number(value: float, digits: int = 1) -> str:
    return '-' if value is None or math.isnan(value) else f'{value:.{digits}f}'


def _amount(value: float, unit: str) -> str:
    return f'{_number(value, 2 if unit else 0)} {unit}'.rstrip()


def _line(name: str, text: str) -> str:
    return f'  {name:<34}{text}'


def table(result: Mapping[str, Any], checks: Sequence[Check], targets: Sequence[Target]) -> str:
    """Return the whole report as text."""
    run, times, counted = result['run'], result['times'], result['counters']
    lines = [
        f'depth-node demo: {run["model"]} by {run["backend"]} {run["precision"]} on '
        f'{run["device"]}, {run["seconds"]:.1f} s at {run["rate_hz"]:g} Hz, '
        f'{run["width"]}x{run["height"]}',
        '',
        'rates, after the first second',
        _line('images that the subscriber saw', f'{_number(times["image_hz"], 2)} Hz'),
        _line('depth images that it received', f'{_number(times["depth_hz"], 2)} Hz'),
    ]
    if run['cloud']:
        lines.append(_line('clouds that it received', f'{_number(times["points_hz"], 2)} Hz'))
    if counted:
        skipped = counted['skipped']
        reasons = ', '.join(f'{count} {name}' for name, count in skipped.items())
        lines += [
            '',
            f'images, over {counted["seconds"]:.1f} s',
            _line('sent by the player', str(counted['sent'])),
            _line('received by the node', f'{counted["received"]}   (lost on the way, counted: '
                                          f'{counted["lost_in_transport"]})'),
            _line('= processed', str(counted['processed'])),
            _line('+ dropped for a newer one', str(counted['dropped_newer'])),
            _line('+ skipped', f'{sum(skipped.values())}   ({reasons or "none"})'),
            _line('published', str(counted['published'])),
            _line('depth images at the subscriber', str(counted['subscriber_got'])),
        ]
    if times['frames']:
        lines += ['', f'times, ms, {times["frames"]} frames after the first second'
                  f'{"p50":>10}{"p99":>9}{"max":>9}']
        rows = [('callback entry to published', times['latency_ms']),
                ('  of it all but the network', times['without_network_ms'])]
        rows += [(f'  {name}', values) for name, values in times['stages_ms'].items()]
        rows.append(('stamp to subscriber', times['stamp_to_subscriber_ms']))
        lines += [f'  {name:<42}{_number(v["p50"], 2):>8}{_number(v["p99"], 2):>9}'
                  f'{_number(v["max"], 2):>9}' for name, v in rows]
    process = result['process']
    lines += [
        '', "the node's process",
        _line('start to first depth received', f'{_number(process["first_depth_s"], 2)} s'),
        _line('memory (RSS)', f'{_number(process["rss_mb"], 0)} MB, at most '
                              f'{_number(process["peak_rss_mb"], 0)} MB'),
        _line('processor', f'{_number(100 * process["cpu_share"], 0)} % of one core'),
    ]
    lines += _error_lines(result)
    lines += ['', 'targets (they depend on the machine and decide nothing)']
    known = {True: 'met', False: 'missed', None: 'unknown'}
    lines += [f'  {known[target.met]:<7} {target.name}: '
              f'{_amount(target.value, target.unit)}, at most {_amount(target.limit, target.unit)}'
              for target in targets]
    lines += ['', 'checks']
    words = {True: 'pass', False: 'FAIL', None: 'not checked'}
    lines += [f'  {words[check.ok]:<5} {check.name}: {check.detail}' for check in checks]
    if result['warnings']:
        lines += ['', 'warnings of the node'] + [f'  {text}' for text in result['warnings']]
    lines += ['', 'written', *(f'  {path}' for path in result['files'])]
    return '\n'.join(lines)


def _error_lines(result: Mapping[str, Any]) -> list[str]:
    error = result['error']
    if not error:
        return ['', 'error against the true depth: not measured (no frame with a true depth)']
    kind = ' of the rendered clip' if result['run']['rendered'] else ''
    lines = [
        '', f'error against the true depth{kind}, {error["frames"]} frames, '
            f'{error["pixels"]} pixels',
        _line('AbsRel (mean of |error| / depth)', f'{error["abs_rel"]:.3f}   (best plane fitted '
              f'to the truth: {error["plane_abs_rel"]:.3f})'),
        _line('delta1 (within 25 %)', f'{error["delta1"]:.3f}'),
        _line('median |error|', f'{100 * error["median_abs_error_m"]:.1f} cm, '
                                f'{error["median_rel_error"]:.1%} of the depth'),
        _line('RMS error', f'{error["rms_m"]:.3f} m'),
        _line('pixels with depth', f'{error["share_with_depth"]:.1%}'),
    ]
    if result['stated'] is not None:
        lines.append(_line("points within the card's error",
                           f'{error["share_within_stated"]:.1%} within '
                           f'{result["stated"]["abs_rel"]:.1%} ({result["stated"]["where"]})'))
    return lines


def to_json(result: Mapping[str, Any], checks: Sequence[Check],
            targets: Sequence[Target]) -> dict[str, Any]:
    """Return everything as JSON values; what is not known is null."""
    whole = {**result, 'checks': [asdict(check) for check in checks],
             'targets': [{**asdict(target), 'met': target.met} for target in targets],
             'ok': passed(checks)}
    cleaned: dict[str, Any] = _without_nan(whole)
    return cleaned


def passed(checks: Sequence[Check]) -> bool:
    """Return whether no check failed."""
    return all(check.ok is not False for check in checks)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
