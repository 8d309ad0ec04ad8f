"""One node process for many tests: it goes back to its defaults between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip('rclpy')
pytest.importorskip('onnx')

import ros_rig
from ros_rig import DEFAULTS


@pytest.fixture(scope='session')
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder of tiny models: tiny, confident, fragile, busy and slow."""
    folder = tmp_path_factory.mktemp('models')
    ros_rig.write_tiny_model(folder)
    ros_rig.write_tiny_model(folder, 'confident', confidence=True)
    ros_rig.write_tiny_model(folder, 'fragile', fragile=True)
    ros_rig.write_tiny_model(folder, 'busy', work=600)
    ros_rig.write_tiny_model(folder, 'slow', work=900)
    return folder


@pytest.fixture(scope='session')
def node_env(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Give the environment of a node under test."""
    return {'DEPTH_NODE_MODELS': str(models),
            'XDG_CACHE_HOME': str(tmp_path_factory.mktemp('cache'))}


@pytest.fixture(scope='session')
def shared_process(node_env: dict[str, str],
                   tmp_path_factory: pytest.TempPathFactory) -> Iterator[ros_rig.Process]:
    """Give one running node for the whole session."""
    log = tmp_path_factory.mktemp('node') / 'node.log'
    command = ros_rig.node_command({**DEFAULTS, 'autostart': False})
    process = ros_rig.Process(command, log, node_env)
    yield process
    assert process.stop() == 0, process.log
    assert 'Traceback' not in process.log


@pytest.fixture(scope='session')
def _session_peer(shared_process: ros_rig.Process) -> Iterator[ros_rig.Peer]:
    """Give one DDS participant for the whole session: discovery takes up to 3 s."""
    made = ros_rig.Peer()
    yield made
    made.close()


@pytest.fixture
def peer(shared_process: ros_rig.Process, _session_peer: ros_rig.Peer) -> Iterator[ros_rig.Peer]:
    """Give the other end of a freshly configured and active node."""
    assert shared_process.popen.poll() is None, shared_process.log
    made = _session_peer
    to_unconfigured(made)
    restore_defaults(made)
    assert made.transition('configure'), shared_process.log
    assert made.transition('activate')
    yield made
    made.forget()


@pytest.fixture
def start(node_env: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., ros_rig.Process]]:
    """Give a function that starts a node of the test's own, under a name of its own."""
    started: list[ros_rig.Process] = []

    def run(*extra: str, env: dict[str, str] | None = None,
            **parameters: object) -> ros_rig.Process:
        values = {**DEFAULTS, **{key.replace('__', '.'): value
                                 for key, value in parameters.items()}}
        started.append(ros_rig.Process(
            ros_rig.node_command(values, '-r', '__node:=own', *extra),
            tmp_path / f'own{len(started)}.log', {**node_env, **(env or {})}))
        return started[-1]

    yield run
    for process in started:
        process.stop()


@pytest.fixture
def own(_session_peer: ros_rig.Peer) -> Iterator[ros_rig.Peer]:
    """Give the other end of the node that `start` starts."""
    before, _session_peer.under_test = _session_peer.under_test, '/own'
    yield _session_peer
    _session_peer.forget()
    _session_peer.under_test = before


def to_unconfigured(peer: ros_rig.Peer) -> None:
    """Bring the node to the state unconfigured, whatever a test left."""
    state = peer.state()
    if state == 'active':
        assert peer.transition('deactivate')
    if state in ('active', 'inactive'):
        assert peer.transition('cleanup')


def restore_defaults(peer: ros_rig.Peer) -> None:
    """Set every parameter that may change back to the value that these tests start from."""
    from depth_node.ros.parameters import START, specs

    values = {name.replace('.', '__'): DEFAULTS.get(name, spec.default)
              for name, spec in specs().items() if spec.when != START}
    reason = peer.set(together=True, **{
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()})
    assert reason == ''
