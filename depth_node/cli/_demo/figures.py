"""What a recording says: rates, counters, times, the error against the true depth, and checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import math
from typing import TYPE_CHECKING, Any

from depth_node.cli._demo.recording import Recording, Row, cloud_of, depth_of
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from depth_node.cli._demo.clip import Clip
    from depth_node.model_card import ModelCard

# The first frames fill caches and buffers; the times of a robot are those after them.
WARM_UP_S = 1.0
_NS = 1e-9
# float32 points of 640x480 against float64: rounding stays far below this.
_POINT_TOLERANCE_M = 1e-3


@dataclass(frozen=True)
class Check:
    """One thing that must be so: `ok` is None where it could not be looked at."""

    name: str
    ok: bool | None
    detail: str


@dataclass(frozen=True)
class Target:
    """One figure that is wanted; it depends on the machine, so it decides nothing."""

    name: str
    value: float
    limit: float
    unit: str

    @property
    def met(self) -> bool | None:
        """True where the value is within the limit, None where it is not known."""
        return None if math.isnan(self.value) else self.value <= self.limit


def rate_hz(times_ns: Sequence[int]) -> float:
    """Return the mean rate of events; NaN for fewer than two."""
    if len(times_ns) < 2 or times_ns[-1] <= times_ns[0]:
        return math.nan
    return (len(times_ns) - 1) / ((times_ns[-1] - times_ns[0]) * _NS)


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Return p50, p99 and the largest of some values; NaN for none."""
    if not values:
        return {'p50': math.nan, 'p99': math.nan, 'max': math.nan}
    p50, p99 = np.percentile(values, (50, 99))
    return {'p50': float(p50), 'p99': float(p99), 'max': float(max(values))}


def in_hand(status: Row) -> int:
    """Return received images that were neither processed nor given up yet."""
    return int(status['received'] - status['processed'] - status['dropped_newer']
               - sum(status['skipped_counts']))


def counters(recording: Recording, sent: Sequence[int]) -> dict[str, Any]:
    """Follow the images from the camera to the subscriber, between two calm moments.

    A status whose frame was the newest image (none in hand) stands for everything up to its
    stamp.  Between the first and the last of these, what the player sent, what the node counted
    and what the subscriber got must agree image by image.

    Args:
        recording: what was received.
        sent: the player's stamps, ascending.

    Returns:
        Counts by name; empty where there are no two such moments (no ~/status, for example).
    """
    calm = [row for row in recording.rows['status'] if in_hand(row) == 0]
    if len(calm) < 2:
        return {}
    first, last = calm[0], calm[-1]

    def delta(name: str) -> int:
        return int(last[name] - first[name])

    def between(stamps: Sequence[int]) -> int:
        return sum(first['stamp_ns'] < stamp <= last['stamp_ns'] for stamp in stamps)

    before = dict(zip(first['skipped_reasons'], first['skipped_counts'], strict=True))
    skipped = {name: int(count - before.get(name, 0)) for name, count in
               zip(last['skipped_reasons'], last['skipped_counts'], strict=True)}
    return {
        'sent': between(sent), 'received': delta('received'),
        'lost_in_transport': delta('lost_in_transport'), 'processed': delta('processed'),
        'dropped_newer': delta('dropped_newer'),
        'skipped': {name: count for name, count in skipped.items() if count},
        'published': delta('published'),
        'subscriber_got': between([row['stamp_ns'] for row in recording.rows['depth']]),
        'seconds': (last['stamp_ns'] - first['stamp_ns']) * _NS,
    }


def times(recording: Recording) -> dict[str, Any]:
    """Return the node's own times per frame [ms], and the rates that a subscriber sees."""
    rows, depth = recording.rows['status'], recording.rows['depth']
    calm_ns = depth[0]['monotonic_ns'] + WARM_UP_S / _NS if depth else 0.0
    result: dict[str, Any] = {
        name: rate_hz([row['monotonic_ns'] for row in recording.rows[key]
                       if row['monotonic_ns'] >= calm_ns])
        for name, key in (('image_hz', 'image'), ('depth_hz', 'depth'), ('points_hz', 'points'))}
    begin = rows[0]['stamp_ns'] * _NS + WARM_UP_S if rows else math.inf
    warm = [row for row in rows if row['stamp_ns'] * _NS >= begin] or rows
    stages = [dict(zip(row['stage_names'], row['stage_ms'], strict=True)) for row in warm]
    names = list(dict.fromkeys(name for stage in stages for name in stage))
    result['frames'] = len(warm)
    result['latency_ms'] = quantiles([row['latency_ms'] for row in warm])
    result['without_network_ms'] = quantiles([
        row['latency_ms'] - stage.get('network', 0.0)
        for row, stage in zip(warm, stages, strict=True)])
    result['stages_ms'] = {
        name: quantiles([stage[name] for stage in stages if name in stage]) for name in names}
    result['stages_ms']['waiting'] = quantiles([
        row['latency_ms'] - sum(stage.values())
        for row, stage in zip(warm, stages, strict=True)])
    # the player stamps an image when it publishes it, by this machine's clock
    result['stamp_to_subscriber_ms'] = quantiles([
        1e-6 * (row['wall_ns'] - row['stamp_ns']) for row in depth
        if row['stamp_ns'] * _NS >= (begin if rows else 0.0)])
    return result


def depth_error(recording: Recording, clip: Clip, frame_of: Mapping[int, int],
                stated_abs_rel: float | None) -> dict[str, Any]:
    """Measure the kept depth images against the clip's true depth, pixel by pixel.

    Args:
        recording: what was received.
        clip: with true depth.
        frame_of: stamp -> frame of the clip.
        stated_abs_rel: the model card's error, None if it states none.

    Returns:
        Metrics over all kept frames, pooled; empty where there is no frame with a truth.
    """
    from depth_node.evaluation.metrics import ErrorSums, plane_baseline

    sums, plane, known, frames = ErrorSums(), ErrorSums(), 0, 0
    errors: list[NDArray[np.float32]] = []
    relative: list[NDArray[np.float32]] = []
    for row in recording.kept('depth') if clip.true_depths else ():
        index = frame_of.get(row['stamp_ns'])
        if index is None:
            continue
        true = clip.true_depth(index)
        step = clip.camera.size_hw[0] // true.shape[0]
        predicted = depth_of(recording.message(row))[::step, ::step]
        if predicted.shape != true.shape:
            continue  # a check of its own finds images of the wrong size
        frames += 1
        known += int(np.count_nonzero(np.isfinite(true)))
        sums = sums + ErrorSums.of(predicted, true)
        plane = plane + ErrorSums.of(plane_baseline(true).depth, true)
        both = np.isfinite(predicted) & np.isfinite(true)
        difference = np.abs(predicted[both] - true[both])
        errors.append(difference)
        relative.append(difference / true[both])
    if not sums.count:
        return {}
    all_relative = np.concatenate(relative)
    result = {
        'frames': frames, 'pixels': sums.count, 'share_with_depth': sums.count / known,
        'abs_rel': sums.abs_rel, 'delta1': sums.delta1, 'rms_m': sums.rms,
        'median_abs_error_m': float(np.median(np.concatenate(errors))),
        'median_rel_error': float(np.median(all_relative)),
        'plane_abs_rel': plane.abs_rel,
    }
    if stated_abs_rel is not None:
        result['share_within_stated'] = float(np.mean(all_relative <= stated_abs_rel))
    return result


def cloud_figures(recording: Recording) -> dict[str, Any]:
    """Compare the kept clouds with the depth images seen through their CameraInfo.

    Returns:
        `compared` clouds, their largest distance from the back-projected depth image, and how
        many pixels have a point without depth or the other way round.
    """
    depths = {row['stamp_ns']: row for row in recording.kept('depth')}
    infos = {row['stamp_ns']: row for row in recording.rows['depth_camera_info']}
    compared, disagreeing, worst = 0, 0, 0.0
    for row in recording.kept('points'):
        stamp = row['stamp_ns']
        if stamp not in depths or stamp not in infos:
            continue
        points, _ = cloud_of(recording.message(row))
        depth = depth_of(recording.message(depths[stamp]))
        info = infos[stamp]
        if points.shape[:2] == depth.shape == (info['height'], info['width']):
            compared += 1
            there = ~np.isnan(points).any(axis=-1)
            disagreeing += int(np.count_nonzero(there != np.isfinite(depth)))
            fx, fy, cx, cy = (info['p'][index] for index in (0, 5, 2, 6))
            v, u = np.nonzero(there & np.isfinite(depth))
            z = depth[v, u].astype(np.float64)
            expected = np.stack([(u - cx) / fx * z, (v - cy) / fy * z, z], axis=-1)
            if len(z):
                worst = max(worst, float(np.abs(points[v, u] - expected).max()))
    return {'compared': compared, 'points_without_depth_or_back': disagreeing,
            'worst_distance_m': worst}


def stated_error(card: ModelCard, precision: str) -> tuple[float, str] | None:
    """Return the absolute relative error that a card states for rendered frames, and where."""
    for section in dict.fromkeys((precision, 'fp32')):
        sets = card.metrics.get(section)
        if not isinstance(sets, dict):
            continue
        for name, entry in sets.items():
            plain = entry.get('none') if isinstance(entry, dict) else None
            if name.startswith('rendered') and isinstance(plain, dict) and 'abs_rel' in plain:
                return float(plain['abs_rel']), f'{section}.{name}'
    return None


def checks(recording: Recording, *, frame_of: Mapping[int, int], frame_id: str, with_cloud: bool,
           counted: Mapping[str, Any], clouds: Mapping[str, Any], error: Mapping[str, Any],
           stated: tuple[float, str] | None, torch_loaded: bool | None,
           exit_codes: Mapping[str, int], whole_cloud: bool = True) -> list[Check]:
    """Return everything that must be so whatever the machine.

    Args:
        recording: what was received.
        frame_of: stamp of an image that was sent -> frame of the clip.
        frame_id: of the camera.
        with_cloud: whether there was a subscriber for the cloud.
        counted: of `counters`.
        clouds: of `cloud_figures`.
        error: of `depth_error`.
        stated: of `stated_error`.
        torch_loaded: whether the node's process holds PyTorch, None if not known.
        exit_codes: of the processes.
        whole_cloud: False where parameters ask for another cloud than one point per pixel.
    """
    depth, info = recording.rows['depth'], recording.rows['depth_camera_info']
    points = recording.rows['points']
    found = [Check('depth arrives', len(depth) > 0, f'{len(depth)} depth images')]

    def all_of(name: str, rows: Sequence[Row], faults: Sequence[bool], what: str) -> None:
        wrong = sum(faults)
        found.append(Check(name, wrong == 0 if rows else None,
                           f'{len(rows) - wrong} of {len(rows)} {what}' if rows
                           else f'no {what}'))

    info_of = {row['stamp_ns']: row for row in info}
    depth_of_stamp = {row['stamp_ns']: row for row in depth}
    outputs = [*depth, *info, *points]
    all_of("stamps are the image's", outputs,
           [row['stamp_ns'] not in frame_of for row in outputs], 'messages')
    all_of("frame_id is the image's", outputs, [row['frame_id'] != frame_id for row in outputs],
           f'messages carry {frame_id!r}')
    paired = [(row, info_of[row['stamp_ns']]) for row in depth if row['stamp_ns'] in info_of]
    all_of('CameraInfo has the size of the depth image', [row for row, _ in paired],
           [(a['height'], a['width']) != (b['height'], b['width']) for a, b in paired], 'pairs')
    all_of('CameraInfo is rectified: D = 0, K = P', info, [_not_rectified(row) for row in info],
           'CameraInfo')
    metres = [row for row in depth if row['encoding'] == '32FC1']
    all_of('known depths are positive', metres, [row['not_positive'] > 0 for row in metres],
           'depth images')
    if with_cloud:
        all_of('no Inf in the cloud', points, [row['infinite'] > 0 for row in points], 'clouds')
        all_of('no point at the origin', points, [row['at_origin'] > 0 for row in points],
               'clouds')
        all_of('all points are in front of the camera', points,
               [row['not_in_front'] > 0 for row in points], 'clouds')
    if with_cloud and whole_cloud:
        both = [(row, depth_of_stamp[row['stamp_ns']]) for row in points
                if row['stamp_ns'] in depth_of_stamp]
        all_of('clouds are organised like the depth image', [row for row, _ in both],
               [(a['height'], a['width']) != (b['height'], b['width']) for a, b in both],
               'clouds')
        compared = clouds.get('compared', 0)
        found.append(Check(
            'points are the depth image seen through CameraInfo',
            None if not compared else clouds['worst_distance_m'] <= _POINT_TOLERANCE_M
            and clouds['points_without_depth_or_back'] == 0,
            f'{compared} clouds, largest distance {1e3 * clouds.get("worst_distance_m", 0):.4f} '
            f'mm, {clouds.get("points_without_depth_or_back", 0)} pixels with only one of both'))
    found += _counter_checks(recording, counted)
    if stated is None:
        found.append(Check('points lie within the error that the card states', None,
                           'the card states none for rendered frames'))
    elif error:
        share = error['share_within_stated']
        found.append(Check('at least half of the points lie within the error that the card states',
                           share >= 0.5, f'{share:.1%} within {stated[0]:.1%} ({stated[1]})'))
    found.append(Check("no PyTorch in the node's process",
                       None if torch_loaded is None else not torch_loaded,
                       'its loaded libraries' if torch_loaded is not None else 'no /proc here'))
    failed = {name: code for name, code in exit_codes.items() if code}
    found.append(Check('all processes end cleanly', not failed,
                       ', '.join(f'{name} with {code}' for name, code in failed.items())
                       or f'{len(exit_codes)} processes'))
    return found


def _not_rectified(info: Row) -> bool:
    k, p = info['k'], info['p']
    return any(info['d']) or (k[0], k[4], k[2], k[5]) != (p[0], p[5], p[2], p[6]) or any(
        (p[3], p[7], p[11]))


def _counter_checks(recording: Recording, counted: Mapping[str, Any]) -> list[Check]:
    rows = recording.rows['status']
    if not rows:
        reason = 'no ~/status: the message DepthStatus is not built here'
        return [Check('counters add up', None, reason),
                Check('no image is lost without a name', None, reason)]
    wrong = sum(not 0 <= in_hand(row) <= 2 for row in rows)
    result = [Check('counters add up', wrong == 0,
                    f'received = processed + dropped + skipped + in hand in {len(rows) - wrong} '
                    f'of {len(rows)} statuses')]
    if not counted:
        reason = 'the node was never without a waiting image'
        return [*result, Check('no image is lost without a name', None, reason)]
    named = counted['received'] + counted['lost_in_transport']
    result.append(Check(
        'no image is lost without a name', counted['sent'] == named,
        f'{counted["sent"]} sent, {counted["received"]} received, '
        f'{counted["lost_in_transport"]} counted as lost on the way'))
    return result


def targets(measured: Mapping[str, Any], counted: Mapping[str, Any], rss_mb: float,
            first_depth_s: float) -> list[Target]:
    """Return the figures that the project aims at, for a machine with two cores."""
    # Publishers keep the newest message only, so a subscriber that is kept waiting misses some.
    missed = counted['published'] - counted['subscriber_got'] if counted else math.nan
    return [
        Target('published depth images that the subscriber missed', missed, 0.0, ''),
        Target('latency, p50', measured['latency_ms']['p50'], 25.0, 'ms'),
        Target('all but the network, p50', measured['without_network_ms']['p50'], 8.0, 'ms'),
        Target('memory of the node', rss_mb, 350.0, 'MB'),
        Target('start to first depth', first_depth_s, 5.0, 's'),
    ]
