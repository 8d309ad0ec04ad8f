"""The entry point: help that teaches, exit codes, friendly errors."""

from __future__ import annotations

import os
from pathlib import Path
import signal
import subprocess
import sys
import time

from depth_node import cli as main_module
from depth_node.cli import CommandError, UsageError, doctor, main, package_version
import pytest


def test_help_names_every_verb_that_exists_and_teaches(cli):
    result = cli('--help')
    assert result.returncode == 0
    assert result.stderr == ''
    folder = Path(main_module.__file__).parent
    for verb in main_module.VERBS:
        listed = f'\n  {verb.name} ' in result.stdout
        assert listed == (folder / f'{verb.module}.py').exists()
    assert 'depth-node infer photo.jpg' in result.stdout


def test_every_verb_file_is_in_the_table():
    folder = Path(main_module.__file__).parent
    files = {path.stem for path in folder.glob('*.py') if not path.stem.startswith('_')}
    assert files <= {verb.module for verb in main_module.VERBS}


@pytest.mark.parametrize('verb', [
    verb.name for verb in main_module.VERBS
    if (Path(main_module.__file__).parent / f'{verb.module}.py').exists()])
def test_every_verb_has_help_with_an_example(verb, capsys):
    assert main([verb, '--help']) == 0
    assert f'depth-node {verb}' in capsys.readouterr().out.partition('example')[2]


def test_version_is_that_of_package_xml(cli):
    result = cli('--version')
    assert result.returncode == 0
    assert result.stdout == f'depth-node {package_version()}\n'
    assert package_version()[0].isdigit()


def test_nothing_is_usage(cli):
    result = cli()
    assert result.returncode == 2
    assert 'usage: depth-node' in result.stderr


def test_unknown_verb_suggests(cli):
    result = cli('infre')
    assert result.returncode == 2
    assert "did you mean 'infer'?" in result.stderr


def test_unknown_option_is_usage(cli):
    result = cli('infer', '--colour', 'x.jpg')
    assert result.returncode == 2
    assert '--colour' in result.stderr


def test_help_imports_nothing_heavy():
    code = ('import sys; from depth_node.cli import main; main(["--help"]); '
            'print({"numpy", "cv2", "torch", "openvino", "onnxruntime", "rclpy", "bpy"} '
            '& set(sys.modules))')
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True,
        env={**os.environ, 'PYTHONPATH': str(Path(main_module.__file__).parents[2])})
    assert result.stdout.splitlines()[-1] == 'set()'


def fake_verb(monkeypatch, run):
    """Let a verb do something else."""
    monkeypatch.setattr(doctor, 'run', run)


def raising(error):
    def run(args):
        raise error
    return run


@pytest.mark.parametrize(('error', 'status', 'text'), [
    (CommandError('it broke; mend it'), 1, 'depth-node doctor: it broke; mend it\n'),
    (UsageError('not so'), 2, 'depth-node doctor: not so\n(depth-node doctor --help)\n'),
    (FileNotFoundError(2, 'No such file', 'x.yaml'), 1, 'No such file'),
    (ValueError('odd'), 1, 'unexpected ValueError: odd; depth-node doctor --debug'),
    (ModuleNotFoundError("No module named 'torch'", name='torch'), 1,
     "needs the Python package 'torch', which is not installed; install it with: "
     "pip install '.[train]' in the clone"),
    (ModuleNotFoundError("No module named 'x.y'", name='x.y'), 1, 'pip install x'),
    (ModuleNotFoundError("No module named 'rclpy'", name='rclpy'), 1,
     'it needs ROS 2 (rclpy is not found): source /opt/ros/'),
    (ModuleNotFoundError("No module named 'depth_node.z'", name='depth_node.z'), 1,
     'unexpected ModuleNotFoundError'),
    (KeyboardInterrupt(), 130, 'interrupted'),
])
def test_errors_become_a_line_and_a_status(monkeypatch, capsys, error, status, text):
    fake_verb(monkeypatch, raising(error))
    assert main(['doctor']) == status
    captured = capsys.readouterr()
    assert text in captured.err
    assert 'Traceback' not in captured.err


@pytest.mark.parametrize('arguments', [['--debug', 'doctor'], ['doctor', '--debug']])
def test_debug_lets_the_error_through(monkeypatch, arguments):
    fake_verb(monkeypatch, raising(CommandError('it broke')))
    with pytest.raises(CommandError):
        main(arguments)


@pytest.mark.parametrize('status', [0, 1, 3])
def test_the_verbs_status_is_the_process_status(monkeypatch, status):
    fake_verb(monkeypatch, lambda args: status)
    assert main(['doctor']) == status


def test_a_verb_without_its_extra_names_it(environment, tmp_path):
    code = ('import sys; sys.modules.update(dict.fromkeys(sys.argv[2].split(","))); '
            'from depth_node.cli import main; sys.exit(main(sys.argv[3:]))')
    (tmp_path / 'x.yaml').write_text('{}')
    result = subprocess.run(
        [sys.executable, '-c', code, '-', 'torch,lightning', 'train', '--config', 'x.yaml'],
        capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60)
    assert result.returncode == 1
    assert "pip install '.[train]' in the clone" in result.stderr
    assert 'Traceback' not in result.stderr


def test_a_reader_that_leaves_is_no_error_message(environment, tmp_path, tiny_card):
    tiny_card()
    process = subprocess.Popen(
        [sys.executable, '-m', 'depth_node.cli', 'models', 'show', 'tiny'],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=tmp_path)
    process.stdout.close()
    stderr = process.stderr.read().decode()
    process.stderr.close()
    process.wait(60)
    assert 'Traceback' not in stderr


def test_ctrl_c_leaves_nothing_half_written(environment, tmp_path, tiny_card):
    cv2 = pytest.importorskip('cv2')
    import numpy as np
    tiny_card(size_hw=(96, 128), work=1)  # slow enough to be interrupted
    folder = tmp_path / 'in'
    folder.mkdir()
    for number in range(200):
        cv2.imwrite(str(folder / f'{number:03d}.png'), np.full((48, 64, 3), number, np.uint8))
    out = tmp_path / 'out'
    process = subprocess.Popen(
        [sys.executable, '-m', 'depth_node.cli', 'infer', 'in', '--model', 'tiny', '--threads',
         '1', '--write', 'png,npy,video', '-o', 'out'],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not list(out.glob('*_depth.npy')):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert 'interrupted' in stderr
    assert 'Traceback' not in stderr
    names = [path.name for path in out.iterdir()]
    assert 0 < len(names) < 400
    assert not [name for name in names if name.startswith('.') or 'part' in name]
    assert not [name for name in names if name.endswith('.mp4')]
    for path in out.glob('*.npy'):
        assert np.load(path).shape == (48, 64)
    for path in out.glob('*.png'):
        assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED).dtype == np.uint16
