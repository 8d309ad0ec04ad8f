"""scripts/chain.py with a stand-in for depth-node: order, going on, budgets, and its words."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / 'scripts' / 'chain.py'

# Called as a Python: `-c CODE`, `-m depth_node.cli VERB ...`. It notes its verbs and leaves what
# the next step looks for; files in its folder make it slow or fail.
STAND_IN = r"""#!{python}
import json, pathlib, signal, sys, time
here = pathlib.Path({here!r})
if sys.argv[1] == '-c':
    print('coffee.png')
    sys.exit(0)
verb, words = sys.argv[3], sys.argv[4:]
with (here / 'log').open('a') as log:
    log.write(json.dumps([verb, *words]) + '\n')
if (here / f'fail-{{verb}}').exists():
    sys.exit(3)
value = dict(zip(words, words[1:]))
out = pathlib.Path(value.get('--out', '.'))
if verb == 'synthesize' and not (here / 'empty').exists():
    calls = sum(1 for line in (here / 'log').open() if 'synthesize' in line)
    for split in ('train',) if calls == 1 else ('val', 'test'):
        scene = out / split / f'room-{{calls:06d}}'
        scene.mkdir(parents=True, exist_ok=True)
        for i in range(20):
            (scene / f'{{i:03d}}.depth.png').touch()
elif verb == 'train':
    out.mkdir(parents=True, exist_ok=True)
    interrupts = 0
    def stop(*_):
        global interrupts
        interrupts += 1
    signal.signal(signal.SIGINT, stop)
    (here / 'training').touch()
    while (here / 'slow').exists() and not interrupts:
        time.sleep(0.05)
    time.sleep(0.5 if interrupts else 0)
    (out / 'last.ckpt').touch()
    if interrupts:
        (here / 'interrupts').write_text(str(interrupts))
        sys.exit(130)
    (out / 'best.ckpt').touch()
elif verb == 'evaluate':
    out.mkdir(parents=True, exist_ok=True)
    (out / 'results.json').write_text(json.dumps(dict(headline='chain int8', comparison=dict(
        baseline='small int8', datasets=[dict(dataset='rendered/test', alignment='none',
        frames=20, abs_rel=0.5, baseline_abs_rel=0.25, better=3)]))))
"""


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location('chain_script', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules['chain_script'] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules['chain_script']


@pytest.fixture
def stand_in(tmp_path):
    python = tmp_path / 'python'
    python.write_text(STAND_IN.format(python=sys.executable, here=str(tmp_path)))
    python.chmod(0o755)
    (tmp_path / 'furniture').mkdir()
    (tmp_path / 'furniture/a.sh3f').touch()
    return tmp_path


def command(folder, *more):
    return [sys.executable, str(SCRIPT), '--folder', str(folder / 'chain'), '--python',
            str(folder / 'python'), '--bpy-python', str(folder / 'python'), '--furniture',
            str(folder / 'furniture'), *more]


def call(folder, *more):
    return subprocess.run(command(folder, *more), capture_output=True, text=True, timeout=60)


def calls(folder):
    """Return what was called since the last look."""
    log = folder / 'log'
    found = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    seen = folder / 'seen'
    before = int(seen.read_text()) if seen.exists() else 0
    seen.write_text(str(len(found)))
    return found[before:]


def verbs(folder):
    return [words[0] for words in calls(folder)]


def test_all_steps_in_order_and_only_once(stand_in):
    done = call(stand_in, '--render-minutes', '3', '--train-minutes', '2', '--synthesize=--seed 5')
    assert done.returncode == 0, done.stderr
    made = calls(stand_in)
    assert [words[0] for words in made] == [
        'synthesize', 'synthesize', 'train', 'train', 'export', 'quantize', 'evaluate', 'infer']
    minutes = [words[words.index('--minutes') + 1] for words in made[:2]]
    assert minutes == ['3', '1']  # a minute more, as there were no frames for val and test
    assert made[0][-2:] == ['--seed', '5']
    assert '20 frames, too few for val and test' in done.stdout
    assert [words[words.index('--config') + 1] for words in made[2:4]] == [
        'config/train/small_coarse.yaml', 'config/train/small.yaml']
    for words in made[2:4]:
        assert words[words.index('--max-time') + 1] == '00:01:00'  # half of the minutes each
        assert '--resume' not in words
    assert '--init' not in made[2]
    coarse = Path(made[2][made[2].index('--out') + 1]) / 'last.ckpt'
    assert Path(made[3][made[3].index('--init') + 1]) == coarse
    assert coarse.exists()
    assert Path(made[4][1]).parent == Path(made[3][made[3].index('--out') + 1])  # is exported
    assert made[6][made[6].index('--baseline') + 1] == 'small'
    text = (stand_in / 'chain/summary.md').read_text()
    assert 'Frames: 20 train, 20 val, 20 test.' in text
    assert '| 20 rendered/test | none | 0.500 | 0.250 | 3 of 20 |' in text
    assert text in done.stdout
    again = call(stand_in, '--render-minutes', '3', '--train-minutes', '2',
                 '--synthesize=--seed 5')
    assert again.returncode == 0
    assert verbs(stand_in) == []
    longer = call(stand_in, '--render-minutes', '3', '--train-minutes', '4',
                  '--synthesize=--seed 5')
    assert longer.returncode == 0
    made = calls(stand_in)
    assert [words[0] for words in made] == [
        'train', 'train', 'export', 'quantize', 'evaluate', 'infer']
    assert not any('--resume' in words for words in made[:2])  # another schedule is another run


def test_a_failed_step_is_named_and_tried_again(stand_in):
    (stand_in / 'fail-quantize').touch()
    failed = call(stand_in)
    assert failed.returncode == 1
    assert 'quantize' in failed.stderr
    assert 'ended with status 3' in failed.stderr
    assert 'Traceback' not in failed.stderr
    assert verbs(stand_in)[-1] == 'quantize'
    (stand_in / 'fail-quantize').unlink()
    assert call(stand_in).returncode == 0
    assert verbs(stand_in) == ['quantize', 'evaluate', 'infer']


def test_rendering_that_adds_nothing_ends(stand_in):
    (stand_in / 'empty').touch()
    failed = call(stand_in)
    assert failed.returncode == 1
    assert 'added nothing to 0 frames' in failed.stderr
    assert verbs(stand_in) == ['synthesize', 'synthesize']


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_goes_on_with_the_time_that_is_left(stand_in, number):
    (stand_in / 'slow').touch()
    running = subprocess.Popen(command(stand_in, '--train-minutes', '2'), stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 30
    while not (stand_in / 'training').exists() and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(1.5)
    running.send_signal(number)
    _, errors = running.communicate(timeout=30)
    assert running.returncode == 130
    assert 'run the same command to go on' in errors
    assert (stand_in / 'interrupts').read_text() == '1'
    (stand_in / 'slow').unlink()
    calls(stand_in)
    assert call(stand_in, '--train-minutes', '2').returncode == 0
    made = calls(stand_in)
    assert made[0][0] == 'train'
    assert '--resume' in made[0]
    clock = made[0][made[0].index('--max-time') + 1]
    assert '00:00:40' < clock < '00:01:00'


def chain_of(script, tmp_path, *words):
    made = script.Chain(script.parse(list(words)), tmp_path)
    made.folder.mkdir(exist_ok=True)
    return made


def test_what_is_missing_is_said_with_a_remedy(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, 'ROOT', tmp_path)
    monkeypatch.delenv('DEPTH_NODE_BPY_PYTHON', raising=False)
    monkeypatch.setattr(script, 'find_python', lambda versions: ('', False))
    monkeypatch.setattr(script.shutil, 'which', lambda name: None)
    monkeypatch.setattr(script, 'INSTALLED_FURNITURE', tmp_path / 'nowhere')
    chain = chain_of(script, tmp_path)
    with pytest.raises(script.ChainError, match=r'Python 3\.11 was not found.*apt install'):
        script.set_up_blender(chain)
    with pytest.raises(script.ChainError, match='apt install sweethome3d-furniture'):
        script.set_up_furniture(chain)
    monkeypatch.setattr(script, 'find_python', lambda versions: ('/usr/bin/python3.11', False))
    with pytest.raises(script.ChainError, match=r"no module 'venv'.*python3\.11-venv"):
        script.set_up_blender(chain)
    given = chain_of(script, tmp_path, '--bpy-python', 'x', '--python', sys.executable,
                     '--furniture', str(tmp_path))
    monkeypatch.setattr(script, 'missing_imports', lambda python, modules, load=True: (
        'ImportError: libSM.so.6: cannot open shared object file'))
    with pytest.raises(script.ChainError, match='apt install libsm6'):
        script.set_up_blender(given)
    with pytest.raises(script.ChainError, match='extras train, export and cpu'):
        script.set_up_training(given)
    with pytest.raises(script.ChainError, match=r'no \.sh3f archive'):
        script.set_up_furniture(given)


def test_an_interpreter_is_found_by_its_version(script, monkeypatch):
    monkeypatch.delenv('PYTHON', raising=False)
    here = f'{sys.version_info[0]}.{sys.version_info[1]}'
    found, _ = script.find_python((here,))
    asked = subprocess.run([found, '-c', 'import sys; print(sys.version_info[:2])'],
                           capture_output=True, text=True)
    assert asked.stdout.strip() == str(sys.version_info[:2])
    assert script.find_python(('2.5',)) == ('', False)
    assert script.missing_imports(found, ('sys',)) == ''
    for load in (True, False):
        assert script.missing_imports(found, ('sys', 'json'), load=load) == ''
        trouble = script.missing_imports(found, ('sys', 'no_such_thing'), load=load)
        assert 'no_such_thing' in trouble
    assert script.missing_imports('/no/such/python', ('sys',)) != ''


def test_make_hands_the_variables_over():
    told = subprocess.run(
        ['make', '-n', 'chain', 'CHAIN_TRAIN_MINUTES=3', 'CHAIN_SYNTHESIZE=--renderer raycast',
         'CHAIN_FOLDER=other', 'CHAIN_BASELINE=old.json', 'CHAIN_WORKERS=1'],
        cwd=REPOSITORY, capture_output=True, text=True,
        env={key: value for key, value in os.environ.items() if not key.startswith('MAKE')})
    words = ' '.join(told.stdout.split())
    for part in ("--train-minutes '3'", "--synthesize='--renderer raycast'", "--folder 'other'",
                 "--baseline 'old.json'", "--workers '1'"):
        assert part in words, words


@pytest.mark.parametrize('words', [['--train-minutes', '0'], ['--render-minutes', 'x']])
def test_useless_budgets_are_refused(script, words, capsys):
    with pytest.raises(SystemExit):
        script.parse(words)
    assert 'expected minutes above 0' in capsys.readouterr().err
