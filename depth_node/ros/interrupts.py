"""Signals that end a ROS program without cutting its cleanup off."""

from __future__ import annotations

import signal


class Interrupts:
    """SIGINT while starting ends the process at once; later it only ends the executor's spin.

    A terminal's Ctrl-C reaches a launched node twice.  rclpy's own handler shuts the context down
    at the first one and then calls this one, which must not raise in the middle of the cleanup.
    Python's own finalisation would bring the deadly default back, except for ignored signals.
    """

    def __init__(self) -> None:
        self.starting = True
        signal.signal(signal.SIGINT, self._on_signal)

    def ignore(self) -> None:
        """From here on signals are too late to matter."""
        self.starting = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)

    def _on_signal(self, *_: object) -> None:
        if self.starting:
            self.starting = False
            raise KeyboardInterrupt
