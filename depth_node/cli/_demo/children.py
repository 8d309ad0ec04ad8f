"""The demo's processes: started apart, watched, and ended whatever happens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import contextlib
import ctypes
import fcntl
import json
import os
from pathlib import Path
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

# Not those of the project's tests (71 to 101), nor 0, the one that robots are left at.
DOMAIN_IDS = range(40, 60)
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform.startswith('linux') else None


class ChildError(RuntimeError):
    """A process of the demo did not do what it is there for."""


def _die_with_parent() -> None:
    """Run in the child before exec: end when the demo is killed and cannot say goodbye."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Child:
    """One process; its output goes to a log file, stdout line by line to `events`, too.

    Attributes:
        name: for messages.
        log: the file with everything it printed.
        started_ns: `time.monotonic_ns` when it was started.
    """

    def __init__(self, name: str, arguments: Sequence[str], log: Path,
                 environment: Mapping[str, str]) -> None:
        """Start it in a session of its own, so that Ctrl-C reaches the demo alone."""
        self.name = name
        self.log = log
        self.events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._log = open(log, 'wb')
        self._lock = threading.Lock()
        self.started_ns = time.monotonic_ns()
        self._process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=dict(environment), start_new_session=True, preexec_fn=_die_with_parent)
        self._readers = [
            threading.Thread(target=self._read, args=(stream, is_out), daemon=True)
            for stream, is_out in ((self._process.stdout, True), (self._process.stderr, False))]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def _read(self, stream: Any, is_out: bool) -> None:
        for line in stream:
            with self._lock:
                self._log.write(line)
                self._log.flush()
            if is_out and line.startswith(b'{'):
                with contextlib.suppress(ValueError):
                    self.events.put(json.loads(line))

    def next_event(self, timeout_s: float) -> dict[str, Any] | None:
        """Return the next JSON object that it printed, None if none comes in time."""
        try:
            return self.events.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            return None

    def exit_code(self) -> int | None:
        """Return the exit code, None while it runs."""
        return self._process.poll()

    def check_alive(self) -> None:
        """Raise where the process has ended on its own.

        Raises:
            ChildError: with its exit code and where to read more.
        """
        code = self.exit_code()
        if code is not None:
            self._settle()
            raise ChildError(f'the {self.name} ended with code {code} while it was needed; '
                             f'its log: {self.log}')

    def end(self, patience_s: float = 5.0) -> int:
        """Ask it to end (SIGINT, then SIGTERM, then SIGKILL for its whole session).

        Returns:
            The exit code.
        """
        for signum, wait_s in ((signal.SIGINT, patience_s), (signal.SIGTERM, 2.0),
                               (signal.SIGKILL, 5.0)):
            if self._process.poll() is not None:
                break
            with contextlib.suppress(ProcessLookupError):
                if signum == signal.SIGKILL:
                    os.killpg(self._process.pid, signum)
                else:
                    self._process.send_signal(signum)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(wait_s)
        self._settle()
        return self._process.returncode

    def _settle(self) -> None:
        for reader in self._readers:
            reader.join(1.0)
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self._log.close()

    def tail(self, lines: int = 40) -> str:
        """Return the end of its log."""
        text = self.log.read_text(encoding='utf-8', errors='replace').splitlines()
        return '\n'.join(text[-lines:])


class Children:
    """All processes of a run; leaving the `with` block ends every one of them."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        """Remember where logs go and what the processes inherit."""
        self.folder = folder
        self.environment = environment
        self.all: list[Child] = []

    def start(self, name: str, module: str, arguments: Sequence[str]) -> Child:
        """Start `python -m module arguments`, with its log in `<name>.log`."""
        child = Child(name, [sys.executable, '-m', module, *arguments],
                      self.folder / f'{name}.log', self.environment)
        self.all.append(child)
        return child

    def check_alive(self) -> None:
        """Raise `ChildError` where one of them has ended."""
        for child in self.all:
            child.check_alive()

    def __enter__(self) -> Children:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End what still runs, the youngest first."""
        for child in reversed(self.all):
            child.end(patience_s=3.0)


class ProcessFigures:
    """What the kernel says about a process; empty where there is no /proc."""

    def __init__(self, pid: int) -> None:
        """Remember the process."""
        self._folder = Path('/proc') / str(pid)
        self.rss_mb: list[float] = []
        self.peak_rss_mb = float('nan')
        self.torch_loaded: bool | None = None
        self._cpu_s: list[tuple[float, float]] = []

    def sample(self) -> None:
        """Note memory and CPU time of this moment."""
        try:
            status = dict(line.split(':', 1) for line in
                          (self._folder / 'status').read_text().splitlines() if ':' in line)
            # the command's name, in parentheses, may hold spaces
            fields = (self._folder / 'stat').read_text().rpartition(')')[2].split()
        except OSError:
            return
        if 'VmRSS' not in status:
            return
        self.rss_mb.append(int(status['VmRSS'].split()[0]) / 1024)
        self.peak_rss_mb = int(status['VmHWM'].split()[0]) / 1024
        ticks = int(fields[11]) + int(fields[12])
        self._cpu_s.append((time.monotonic(), ticks / os.sysconf('SC_CLK_TCK')))

    def look_for_torch(self) -> None:
        """Note whether PyTorch's libraries are in the process."""
        try:
            maps = (self._folder / 'maps').read_text()
        except OSError:
            return
        self.torch_loaded = 'libtorch' in maps

    @property
    def cpu_share(self) -> float:
        """CPU time per time between the first and the last sample; 1 is one core."""
        if len(self._cpu_s) < 2:
            return float('nan')
        (t0, c0), (t1, c1) = self._cpu_s[0], self._cpu_s[-1]
        return (c1 - c0) / (t1 - t0) if t1 > t0 else float('nan')


@contextlib.contextmanager
def claimed_domain(wanted: int | None) -> Any:
    """Give a DDS domain in which no other demo of this machine runs.

    The domain of the environment is not taken: on a robot it is the robot's, with a camera on
    the demo's topics.

    Args:
        wanted: the user's choice, or None.

    Raises:
        ChildError: all are taken.
    """
    if wanted is not None:
        yield wanted
        return
    for domain in DOMAIN_IDS:
        path = Path(tempfile.gettempdir()) / f'depth_node_demo_domain_{domain}.lock'
        try:
            lock = open(path, 'a')
        except OSError:  # another user's
            continue
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            yield domain
            return
    raise ChildError(f'the DDS domains {DOMAIN_IDS[0]} to {DOMAIN_IDS[-1]} are all used by other '
                     'demos; name one with --domain-id')
