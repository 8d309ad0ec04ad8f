"""Counters that add up, percentiles, and the worker that takes the newest."""

from __future__ import annotations

import math
import threading
import time

from depth_node.ros.statistics import Statistics, percentile
from depth_node.ros.worker import NewestWorker
import pytest


def test_percentiles_by_nearest_rank() -> None:
    values = [float(value) for value in range(1, 101)]
    assert percentile(values, 0.5) == 50
    assert percentile(values, 0.99) == 99
    assert percentile([3.0, 1.0], 0.5) == 1
    assert percentile([7.0], 0.99) == 7
    assert math.isnan(percentile([], 0.5))


def test_counters_add_up_at_every_moment() -> None:
    statistics = Statistics()
    for _ in range(7):
        statistics.received(time.perf_counter())
    assert statistics.counters().in_hand == 7
    statistics.processed()
    statistics.dropped_newer()
    statistics.skipped('bad_step')
    statistics.skipped('bad_step')
    statistics.skipped('inactive')
    now = statistics.counters()
    assert (now.received, now.processed, now.dropped_newer) == (7, 1, 1)
    assert now.skipped == {'bad_step': 2, 'inactive': 1}
    assert now.in_hand == 2
    statistics.failed()  # it was processed
    assert (statistics.counters().failed, statistics.counters().in_hand) == (1, 2)
    statistics.reset()
    assert statistics.counters().received == 0


def test_rates_and_latencies_of_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, 'perf_counter', lambda: clock[0])
    statistics = Statistics()
    assert math.isnan(statistics.snapshot().input_hz)
    for index in range(200):  # 20 s at 10 Hz, of which the window shows the last 10
        clock[0] = 100.0 + 0.1 * index
        statistics.received(clock[0])
        latency = 1000.0 if index < 50 else float(index % 10)
        statistics.frame_done(clock[0], latency, 5.0, {'network': latency / 2})
    clock[0] += 0.05
    now = statistics.snapshot()
    assert now.input_hz == pytest.approx(10.0)
    assert now.output_hz == pytest.approx(10.0)
    assert now.latency_ms == (4.0, 9.0)
    assert now.stage_ms == {'network': 2.0}
    assert now.input_age_ms == 5.0
    clock[0] += 3.0
    assert statistics.snapshot().since_image_s == pytest.approx(3.05)


def test_worker_takes_the_newest_and_hands_the_older_back() -> None:
    begun, go, done = threading.Event(), threading.Event(), []

    def work(item: int) -> None:
        begun.set()
        go.wait(5)
        done.append(item)

    worker = NewestWorker(work, 'test')
    assert worker.put(1) is None
    assert begun.wait(5)
    assert worker.put(2) is None
    assert worker.put(3) == 2
    assert worker.put(4) == 3
    waiting, idle = worker.drain(0.05)
    assert (waiting, idle) == ([4], False), 'the item in work is still going'
    assert worker.put(5) is None
    go.set()
    end = time.monotonic() + 5
    while done != [1, 5]:
        assert time.monotonic() < end
        time.sleep(0.001)
    assert worker.drain(1.0) == ([], True)
    assert worker.close(5)
