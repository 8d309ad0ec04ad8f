"""One thread that always works on the newest item.  No ROS in here."""

from __future__ import annotations

from collections.abc import Callable
import threading
from typing import Generic, TypeVar

T = TypeVar('T')


class NewestWorker(Generic[T]):
    """A mailbox of one slot, and the thread that empties it.

    `put` never waits.  An item that is still in the slot when a newer one comes is handed back
    to the caller, who counts it.
    """

    def __init__(self, work: Callable[[T], None], name: str) -> None:
        """Start the thread.

        Args:
            work: called in the thread for each item; must not raise.
            name: of the thread.
        """
        self._work = work
        self._changed = threading.Condition()
        self._slot: list[T] = []
        self._busy = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: T) -> T | None:
        """Leave an item for the thread; return the one it replaces, if any."""
        with self._changed:
            replaced = self._slot[0] if self._slot else None
            self._slot = [item]
            self._changed.notify_all()
        return replaced

    def drain(self, timeout_s: float) -> tuple[T | None, bool]:
        """Empty the slot and wait until the thread is idle.

        Returns:
            The item that was waiting, if any, and whether the thread became idle in time.
        """
        with self._changed:
            waiting = self._slot.pop() if self._slot else None
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
                self._changed.wait_for(lambda: self._slot or self._closed)
                if self._closed:
                    return
                item = self._slot.pop()
                self._busy = True
            try:
                self._work(item)
            finally:
                del item  # an image is large; do not keep it while waiting for the next
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()
