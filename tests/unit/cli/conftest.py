"""The command line as a process of its own."""

from __future__ import annotations

from collections.abc import Callable
import os
from pathlib import Path
import subprocess
import sys

import depth_node
from depth_node.cli import main
import pytest

ROOT = Path(depth_node.__file__).parents[1]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return an environment that finds no model cards but those under tmp_path."""
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get('PYTHONPATH')) if part)
    return {**os.environ, 'PYTHONPATH': path, 'DEPTH_NODE_MODELS': str(tmp_path),
            'XDG_DATA_HOME': str(tmp_path / 'nothing')}


@pytest.fixture
def cli(
    environment: dict[str, str], tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs `depth-node ARGS` in tmp_path."""
    def call(*args: object, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, '-m', 'depth_node.cli', *map(str, args)], capture_output=True,
            text=True, timeout=120, cwd=tmp_path, env={**environment, **changes})
    return call


@pytest.fixture
def cli_here(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return the same in this process, for tables of many short calls."""
    monkeypatch.chdir(tmp_path)
    for name in ('DEPTH_NODE_MODELS', 'XDG_DATA_HOME'):
        monkeypatch.setenv(name, environment[name])

    def call(*args: object) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        status = main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(list(args), status, out, err)
    return call
