"""Counters that add up, and rates and latencies over a sliding window.  No ROS in here."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
import math
import threading
import time


@dataclass
class Snapshot:
    """The counters and figures of one moment.

    `received == processed + dropped_newer + sum(skipped.values()) + in_hand` always holds.

    Attributes:
        received: images that reached the callback.
        processed: images that went through the network.
        published: processed images of which at least one output was published.
        failed: processed images of which an error kept the outputs back.
        dropped_newer: images replaced by a newer one before the worker took them.
        lost_in_transport: images that the middleware lost or overwrote before the callback.
        skipped: images not processed, by reason.
        in_hand: images that wait or are being processed.
        clock_jumps: how often time went backwards.
        input_hz: rate of images over the window, NaN without two of them.
        output_hz: rate of published frames over the window.
        latency_ms: (p50, p99) callback entry to last publish returned, NaN without a frame.
        stage_ms: median per stage.
        input_age_ms: median age of the images on arrival.
        since_image_s: time since the last image, or since activation; Inf while inactive.
    """

    received: int = 0
    processed: int = 0
    published: int = 0
    failed: int = 0
    dropped_newer: int = 0
    lost_in_transport: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    in_hand: int = 0
    clock_jumps: int = 0
    input_hz: float = math.nan
    output_hz: float = math.nan
    latency_ms: tuple[float, float] = (math.nan, math.nan)
    stage_ms: dict[str, float] = field(default_factory=dict)
    input_age_ms: float = math.nan
    since_image_s: float = math.inf


def percentile(values: list[float], share: float) -> float:
    """Return the value at `share` (0..1) by the nearest-rank rule; NaN for an empty list."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


class Statistics:
    """Thread-safe.  `lock` may be held around several calls that must be seen as one."""

    WINDOW_S = 10.0
    MAX_SAMPLES = 2000

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.reset()

    def reset(self) -> None:
        """Start again at zero, as activation does."""
        with self.lock:
            self._count: Counter[str] = Counter()
            self._skipped: Counter[str] = Counter()
            self._received_at: deque[float] = deque(maxlen=self.MAX_SAMPLES)
            self._frames: deque[tuple[float, float, dict[str, float]]] = deque(
                maxlen=self.MAX_SAMPLES)
            self._ages: deque[tuple[float, float]] = deque(maxlen=self.MAX_SAMPLES)
            self._started = time.perf_counter()

    def received(self, now: float) -> None:
        """Count one image at the callback; `now` from `time.perf_counter`."""
        with self.lock:
            self._count['received'] += 1
            self._received_at.append(now)

    def skipped(self, reason: str) -> None:
        """Count one image that will not be processed."""
        with self.lock:
            self._skipped[reason] += 1

    def dropped_newer(self) -> None:
        """Count one image that a newer one replaced."""
        with self.lock:
            self._count['dropped_newer'] += 1

    def lost_in_transport(self, count: int) -> None:
        """Count images that never reached the callback."""
        with self.lock:
            self._count['lost_in_transport'] += count

    def clock_jumped(self) -> None:
        """Count one step of time backwards."""
        with self.lock:
            self._count['clock_jumps'] += 1

    def processed(self) -> None:
        """Count one image that went through the network."""
        with self.lock:
            self._count['processed'] += 1

    def published(self) -> None:
        """Count one frame of which something was published."""
        with self.lock:
            self._count['published'] += 1

    def failed(self) -> None:
        """Count one processed image of which an error kept the outputs back."""
        with self.lock:
            self._count['failed'] += 1

    def frame_done(self, now: float, latency_ms: float, age_ms: float,
                   stage_ms: dict[str, float]) -> None:
        """Take the times of one published frame."""
        with self.lock:
            self._frames.append((now, latency_ms, stage_ms))
            self._ages.append((now, age_ms))

    def counters(self) -> Snapshot:
        """Return the counters alone; cheap enough for every frame."""
        with self.lock:
            count = self._count
            skipped = {name: self._skipped[name] for name in sorted(self._skipped)}
            done = count['processed'] + count['dropped_newer'] + sum(skipped.values())
            return Snapshot(
                received=count['received'], processed=count['processed'],
                published=count['published'], failed=count['failed'],
                dropped_newer=count['dropped_newer'],
                lost_in_transport=count['lost_in_transport'], skipped=skipped,
                in_hand=count['received'] - done, clock_jumps=count['clock_jumps'])

    def snapshot(self) -> Snapshot:
        """Return counters, rates and latencies."""
        now = time.perf_counter()
        oldest = now - self.WINDOW_S
        with self.lock:
            result = self.counters()
            arrivals = [at for at in self._received_at if at >= oldest]
            frames = [frame for frame in self._frames if frame[0] >= oldest]
            ages = [age for at, age in self._ages if at >= oldest and not math.isnan(age)]
            last = self._received_at[-1] if self._received_at else self._started
        result.input_hz = _rate(arrivals)
        result.output_hz = _rate([frame[0] for frame in frames])
        latencies = [frame[1] for frame in frames]
        result.latency_ms = percentile(latencies, 0.5), percentile(latencies, 0.99)
        names = dict.fromkeys(name for frame in frames for name in frame[2])
        result.stage_ms = {name: percentile([f[2][name] for f in frames if name in f[2]], 0.5)
                           for name in names}
        result.input_age_ms = percentile(ages, 0.5)
        result.since_image_s = now - last
        return result


def _rate(times: list[float]) -> float:
    if len(times) < 2 or times[-1] <= times[0]:
        return math.nan
    return (len(times) - 1) / (times[-1] - times[0])
