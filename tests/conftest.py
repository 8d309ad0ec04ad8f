"""What all tests share: a DDS domain of their own, the markers, and the package under test."""

from __future__ import annotations

import fcntl
import importlib.util
import os
from pathlib import Path
import signal
import sys
import tempfile
import threading

import pytest

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent

# Helpers beside the tests are imported from this folder; `--import-mode=importlib` puts none on
# the path.
sys.path.insert(0, str(TESTS))
# `python -m pytest` in the root of the clone puts the source tree, which has no generated
# messages, before the built package. Who wants the tree names it in PYTHONPATH.
named = [p for p in os.environ.get('PYTHONPATH', '').split(os.pathsep) if p]
if ROOT not in [Path(p).resolve() for p in named]:
    sys.path[:] = [entry for entry in sys.path if Path(entry or '.').resolve() != ROOT]

# Files of a minute and more, begun first: what is short fills the ends of `make test`.
LONG = ('test_every_network.py', 'test_end_to_end.py', 'test_hf.py', 'test_fit.py',
        'test_packaging.py', 'test_processes.py', 'test_occupancy.py')

_domain_lock = None


def _claim_domain_id() -> int:
    """Find a DDS domain that no other test session of this machine uses.

    The domain of the environment is not taken: on a robot it is the robot's. Domains above 101
    would use ports that Linux hands out to others.
    """
    global _domain_lock
    for offset in range(31):
        domain = 71 + (os.getpid() + offset) % 31
        lock = open(Path(tempfile.gettempdir()) / f'depth_node_test_domain_{domain}.lock', 'w')
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            continue
        _domain_lock = lock  # held until this process ends
        return domain
    raise pytest.UsageError('the DDS domains 71 to 101 are all held by other test sessions')


def _found(module: str) -> bool:
    """Tell whether a module can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


def _has_nvidia_gpu() -> bool:
    """Tell whether a driver for an NVIDIA GPU or a Jetson is loaded."""
    return any(Path(p).exists() for p in ('/dev/nvidia0', '/dev/nvhost-gpu', '/dev/nvgpu'))


def pytest_configure(config: pytest.Config) -> None:
    """Set what the tests' child processes inherit."""
    # `python -m depth_node...` in the root of the clone shall find the package that Python finds
    # elsewhere, the installed one, and not the source tree, which has no generated messages.
    os.environ['PYTHONSAFEPATH'] = '1'
    os.environ['ROS_DOMAIN_ID'] = str(_claim_domain_id())
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'  # Iron and newer
    if os.environ.get('ROS_DISTRO') == 'humble':
        os.environ['ROS_LOCALHOST_ONLY'] = '1'
    # A shell that starts a job in the background has it ignore Ctrl-C, and all its children, too.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and (
            threading.current_thread() is threading.main_thread()):
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Two test processes with as many threads as cores each would slow each other down.
    os.environ.setdefault('OMP_NUM_THREADS', '1')


def pytest_report_header() -> str:
    """Say which package is tested."""
    spec = importlib.util.find_spec('depth_node')
    where = Path(spec.origin).parent if spec and spec.origin else 'not found'
    messages = 'with' if spec and _found('depth_node.msg') else 'without'
    return f'depth_node: {where}, {messages} messages; ROS_DOMAIN_ID {os.environ["ROS_DOMAIN_ID"]}'


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their folder, skip those whose precondition is not met, long files first."""
    names = {name: position for position, name in enumerate(LONG)}
    items.sort(key=lambda item: names.get(item.path.name, len(LONG)))
    skips = {
        'ros': None if _found('rclpy') else 'rclpy is not installed',
        'gpu': None if _has_nvidia_gpu() else 'no NVIDIA GPU',
        'synthesis': None if _found('bpy') else 'bpy is not installed (extra `synthesis`)',
    }
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ''
        if folder in skips:
            item.add_marker(getattr(pytest.mark, folder))
        for marker, reason in skips.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope='session', autouse=True)
def _one_torch_thread() -> None:
    """Keep PyTorch, where a test module has imported it, to one thread."""
    torch = sys.modules.get('torch')
    if torch is not None:
        torch.set_num_threads(1)


@pytest.fixture(scope='session')
def domain_id() -> int:
    """Give the DDS domain of this session."""
    return int(os.environ['ROS_DOMAIN_ID'])


@pytest.fixture(scope='session')
def repository() -> Path:
    """Give the root of the source tree; skip where the tests were copied away from it."""
    if not (ROOT / 'package.xml').is_file():
        pytest.skip(f'{ROOT} is not the source tree of depth_node')
    return ROOT
