"""One thread that serves several senders in turn, each with its newest item.  No ROS in here."""

from __future__ import annotations

from collections.abc import Callable
import threading
from typing import Generic, TypeVar

T = TypeVar('T')


class Mailboxes(Generic[T]):
    """A slot per sender, emptied in turn.  Not thread-safe.

    Round robin: after a sender's item every other sender with an item comes before that sender
    again.  So an item waits for at most one item of each other sender, however often they send.
    """

    def __init__(self, slots: int) -> None:
        """Start with empty slots.

        Args:
            slots: how many senders there are, 1 or more.
        """
        self._slots: list[list[T]] = [[] for _ in range(slots)]
        self._next = 0

    def __bool__(self) -> bool:
        return any(self._slots)

    def put(self, slot: int, item: T) -> T | None:
        """Leave an item; return the one of the same sender that it replaces, if any."""
        replaced = self._slots[slot]
        self._slots[slot] = [item]
        return replaced[0] if replaced else None

    def take(self) -> T:
        """Return the item whose turn it is.

        Raises:
            LookupError: all slots are empty.
        """
        count = len(self._slots)
        for slot in (*range(self._next, count), *range(self._next)):
            if self._slots[slot]:
                self._next = (slot + 1) % count
                return self._slots[slot].pop()
        raise LookupError('all mailboxes are empty')

    def clear(self) -> list[T]:
        """Empty all slots and return what was in them."""
        found = [item for slot in self._slots for item in slot]
        self._slots = [[] for _ in self._slots]
        return found


class NewestWorker(Generic[T]):
    """Mailboxes, and the thread that empties them.

    `put` never waits.  An item that is still in its slot when a newer one of the same sender
    comes is handed back to the caller, who counts it.
    """

    def __init__(self, work: Callable[[T], None], name: str, slots: int = 1) -> None:
        """Start the thread.

        Args:
            work: called in the thread for each item; must not raise.
            name: of the thread.
            slots: how many senders there are.
        """
        self._work = work
        self._changed = threading.Condition()
        self._boxes: Mailboxes[T] = Mailboxes(slots)
        self._busy = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: T, slot: int = 0) -> T | None:
        """Leave an item for the thread; return the one it replaces, if any."""
        with self._changed:
            replaced = self._boxes.put(slot, item)
            self._changed.notify_all()
        return replaced

    def drain(self, timeout_s: float) -> tuple[list[T], bool]:
        """Empty all slots and wait until the thread is idle.

        Returns:
            The items that were waiting, and whether the thread became idle in time.
        """
        with self._changed:
            waiting = self._boxes.clear()
            idle = self._changed.wait_for(lambda: not self._busy, timeout_s)
        return waiting, idle

    def close(self, timeout_s: float) -> bool:
        """End the thread after the item in work; return whether it ended in time."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._boxes or self._closed)
                if self._closed:
                    return
                item = self._boxes.take()
                self._busy = True
            try:
                self._work(item)
            finally:
                del item  # an image is large; do not keep it while waiting for the next
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()
