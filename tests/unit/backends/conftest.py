"""A libcudart on host memory, compiled once per session from tests/data/fake_cudart.c."""

from __future__ import annotations

from collections.abc import Iterator
import ctypes
import gc
from pathlib import Path
import shutil
import subprocess

import pytest

SOURCE = Path(__file__).resolve().parents[2] / 'data' / 'fake_cudart.c'
KINDS = ('device', 'pinned', 'stream', 'event', 'graph', 'exec')


class FakeCudart:
    """What the tests ask and tell the fake library."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.lib = ctypes.CDLL(self.path)
        self.lib.fakeDevice.argtypes = [ctypes.c_int] * 5 + [ctypes.c_size_t]
        self.lib.fakeMove.argtypes = [ctypes.c_void_p, ctypes.c_int]
        self.lib.fakeDepth.argtypes = [
            ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int,
            ctypes.c_float, ctypes.c_float]

    def reset(self) -> None:
        """Forget every handle and setting."""
        self.lib.fakeReset()

    def device(self, *, count: int = 1, error: int = 0, driver: int = 13000,
               integrated: bool = False, capture: bool = True, memory: int = 1 << 30) -> None:
        """Set what the GPU and its driver are like."""
        self.lib.fakeDevice(count, error, driver, integrated, capture, memory)

    def fail_at(self, call: int, code: int) -> None:
        """Let the n-th call from now return an error; 0: none."""
        self.lib.fakeFailAt(call, code)

    def calls(self) -> int:
        """Return the calls since `fail_at`."""
        return self.lib.fakeCalls()

    def last_error(self) -> int:
        """Return the error that the next check of another library would find."""
        return self.lib.fakeLastError()

    def live(self) -> dict[str, int]:
        """Return the handles that are alive, without the kinds that have none."""
        gc.collect()
        counts = {name: self.lib.fakeLive(kind) for kind, name in enumerate(KINDS)}
        return {name: count for name, count in counts.items() if count}

    def bad_frees(self) -> int:
        """Return how often something was freed that was not alive."""
        return self.lib.fakeBadFrees()


@pytest.fixture(scope='module', autouse=True)
def _small_heap() -> None:
    """Keep `gc.collect`, which tests of this folder call by the hundred, off what is there now.

    The libraries that a whole session has imported take it half a second.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope='session')
def fake_library(tmp_path_factory: pytest.TempPathFactory) -> FakeCudart:
    """Compile the fake library."""
    compiler = shutil.which('gcc') or shutil.which('cc')
    if compiler is None:
        pytest.skip('no C compiler')
    target = tmp_path_factory.mktemp('cuda') / 'libcudart.so.13'
    subprocess.run([compiler, '-Wall', '-Wextra', '-Werror', '-O1', '-shared', '-fPIC',
                    '-o', str(target), str(SOURCE)], check=True)
    return FakeCudart(target)


@pytest.fixture
def fake(fake_library: FakeCudart, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCudart]:
    """Give the fake library, as new, as the only CUDA runtime that is found."""
    from depth_node.backends import cuda

    gc.collect()
    fake_library.reset()
    monkeypatch.setattr(cuda, '_libraries', lambda: iter([fake_library.path]))
    yield fake_library
    gc.collect()
    assert fake_library.bad_frees() == 0
    fake_library.reset()
