"""Mailboxes emptied in turn: no camera waits for more than one frame of each other one."""

from __future__ import annotations

import threading

from depth_node.ros.worker import Mailboxes, NewestWorker
from hypothesis import given
from hypothesis import strategies as st
import pytest


def test_one_sender_gets_the_newest_only() -> None:
    boxes: Mailboxes[str] = Mailboxes(1)
    assert not boxes
    assert boxes.put(0, 'a') is None
    assert boxes.put(0, 'b') == 'a'
    assert boxes
    assert boxes.take() == 'b'
    assert not boxes
    with pytest.raises(LookupError):
        boxes.take()


def test_senders_take_turns_however_often_they_send() -> None:
    boxes: Mailboxes[str] = Mailboxes(3)
    taken = []
    boxes.put(2, 'slow')
    for number in range(6):
        boxes.put(0, f'fast{number}')
        boxes.put(1, f'other{number}')
        taken.append(boxes.take())
    assert taken == ['fast0', 'other1', 'slow', 'fast3', 'other4', 'fast5']


def test_clearing_hands_back_what_waited() -> None:
    boxes: Mailboxes[int] = Mailboxes(3)
    boxes.put(2, 5)
    boxes.put(0, 7)
    assert sorted(boxes.clear()) == [5, 7]
    assert not boxes
    assert boxes.clear() == []
    boxes.put(1, 9)
    assert boxes.take() == 9


@given(st.integers(1, 5).flatmap(lambda slots: st.tuples(
    st.just(slots), st.lists(st.one_of(st.none(), st.integers(0, slots - 1)), max_size=80))))
def test_nobody_is_overtaken_twice_and_nothing_is_lost(
        case: tuple[int, list[int | None]]) -> None:
    slots, steps = case
    boxes: Mailboxes[tuple[int, int]] = Mailboxes(slots)
    waiting: dict[int, int] = {}  # sender -> its newest item
    overtaken: dict[int, list[int]] = {}  # sender -> who was served since it began to wait
    for number, step in enumerate(steps):
        if step is not None:
            replaced = boxes.put(step, (step, number))
            assert replaced == ((step, waiting[step]) if step in waiting else None)
            waiting[step] = number
            overtaken.setdefault(step, [])
        elif waiting:
            sender, item = boxes.take()
            assert waiting.pop(sender) == item, 'the newest of its sender'
            others = overtaken.pop(sender)
            assert len(set(others)) == len(others), f'{sender} was overtaken twice by one sender'
            for served in overtaken.values():
                served.append(sender)
        assert bool(boxes) == bool(waiting)


@pytest.mark.parametrize('service_ms', [17, 50, 95])
def test_a_slow_camera_loses_nothing_beside_a_fast_one(service_ms: int) -> None:
    """60 and 5 images per second, simulated: an image waits for two others at the most."""
    boxes: Mailboxes[tuple[int, float]] = Mailboxes(2)
    arrivals = sorted([(index * 1000 / 60, 0) for index in range(1200)]
                      + [(3 + index * 200.0, 1) for index in range(100)])
    served, dropped, longest_ms, now = [0, 0], [0, 0], 0.0, 0.0
    while arrivals or boxes:
        while arrivals and arrivals[0][0] <= now:
            at, sender = arrivals.pop(0)
            dropped[sender] += boxes.put(sender, (sender, at)) is not None
        if not boxes:
            now = arrivals[0][0]
            continue
        sender, at = boxes.take()
        now += service_ms
        served[sender] += 1
        if sender == 1:
            longest_ms = max(longest_ms, now - at)
    assert (served[1], dropped[1]) == (100, 0)
    assert longest_ms <= 3 * service_ms
    assert served[0] + dropped[0] == 1200
    # what the slow camera leaves goes to the fast one
    assert served[0] >= min(1200, int((20_000 - 100 * service_ms) / service_ms) - 1)


def test_the_thread_serves_senders_in_turn() -> None:
    begun, go, done = threading.Event(), threading.Event(), threading.Event()
    served: list[str] = []

    def work(item: str) -> None:
        begun.set()
        go.wait(5)
        served.append(item)
        if len(served) == 3:
            done.set()

    worker: NewestWorker[str] = NewestWorker(work, 'test', slots=2)
    assert worker.put('a0', 0) is None
    assert begun.wait(5), 'a0 is in work'
    assert worker.put('a1', 0) is None
    assert worker.put('b0', 1) is None
    assert worker.put('a2', 0) == 'a1'
    assert worker.put('b1', 1) == 'b0'
    go.set()
    assert done.wait(5)
    assert worker.drain(5) == ([], True)
    assert served == ['a0', 'b1', 'a2']
    assert worker.close(5)
    assert not worker._thread.is_alive()
