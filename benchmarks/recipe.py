"""Measure what each ingredient of the bundled model's recipe gives: docs/results/recipe.{json,md}.

Every variant trains the first stage (config/train/small_coarse.yaml) for the same number of steps
on the same frames with one change, and is measured on rendered scenes that were held out and on
real frames that no variant was trained on. The whole recipe runs with several seeds: differences
within their spread say nothing.

    python benchmarks/recipe.py --data data/frames --also data/rays2 \
        --eval rendered:data/frames --eval osd:data/osd_learn --eval motorcycle

It takes one core per job and goes on where it was stopped; runs are kept in --folder.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
import hashlib
import json
import os
from pathlib import Path
import shlex
import shutil
import statistics
import subprocess
import sys
from typing import Any

from tqdm import tqdm

CLONE = Path(__file__).resolve().parents[1]

PRESET = CLONE / 'config' / 'train' / 'small_coarse.yaml'
WHOLE = 'the whole recipe'
TONE = ('augment.exposure=[1.0,1.0]', 'augment.gamma=[1.0,1.0]', 'augment.white_balance=1.0',
        'augment.saturation=[1.0,1.0]', 'augment.grey=0', 'augment.blur=0', 'augment.noise=0',
        'augment.jpeg=0', 'augment.uneven=0')  # fmt: skip
VARIANTS: dict[str, tuple[str, ...]] = {
    WHOLE: (),
    'without the affine-invariant loss': ('objective.options.losses.affine_invariant.weight=0',),
    'without the gradient loss': ('objective.options.losses.gradient=0',),
    'metric loss alone': (
        'objective.options.losses={log_l1: 1.0}',
    ),
    'no change of light, colour and sharpness': TONE,
    'no crop, stretch or roll': (
        'augment.zoom=[1.0,1.0]', 'augment.aspect=[1.0,1.0]', 'augment.roll_deg=0',
    ),
    'all of the encoder trained': ('optim.freeze_encoder_stages=0',),
    'encoder from random weights': (
        'network.options.pretrained=false', 'optim.freeze_encoder_stages=0',
        'optim.freeze_encoder_norms=false', 'optim.group_lr={encoder: 1.5e-3}',
    ),
    'without averaged weights': ('optim.ema_decay=0',),
}  # fmt: skip


def slug(name: str, seed: int) -> str:
    """Return the folder of a variant."""
    return f'{"".join(c if c.isalnum() else "-" for c in name)}-seed{seed}'


def call(log: Path, *words: object) -> None:
    """Run a verb of the command line, its output into a log.

    Raises:
        RuntimeError: it failed; names the log.
    """
    command = [sys.executable, '-m', 'depth_node.cli', *map(str, words)]
    path = os.pathsep.join(filter(None, [str(CLONE), os.environ.get('PYTHONPATH', '')]))
    environment = {**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'}
    with log.open('a') as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    if done.returncode:
        raise RuntimeError(f'{" ".join(command)}: ended with {done.returncode}, see {log}')


def is_trained(run: Path) -> bool:
    """Tell whether a run went to its end."""
    try:
        return 'final' in json.loads((run / 'manifest.json').read_text())
    except (OSError, ValueError):
        return False


def measure(options: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """Train and evaluate one variant, unless that was done with the same words."""
    settings = [f'run.max_steps={options.steps}', f'run.seed={seed}', 'data.val_frames=32',
                f'run.val_every_steps={options.steps}', 'optim.final_share=0.01',
                *VARIANTS[name]]  # fmt: skip
    if options.also:
        settings.append('data.options={also: [' + ', '.join(map(str, options.also)) + ']}')
    train = ['--config', PRESET, '--data', options.data, *settings]
    data = [word for item in options.eval for word in ('--data', item)]
    evaluate = [*data, '--limit', options.limit, '--mode', 'per-image', '--examples', 1]
    words = json.dumps([list(map(str, train)), list(map(str, evaluate))])
    folder = options.folder / (
        f'{slug(name, seed)}-{options.steps}-{hashlib.sha256(words.encode()).hexdigest()[:8]}')
    report = folder / 'report' / 'results.json'
    if not report.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        run, log = folder / 'run', folder / 'log.txt'
        if not is_trained(run):
            shutil.rmtree(run, ignore_errors=True)
            call(log, 'train', *train, '--out', run, '--threads', 1, '--no-progress')
        call(log, 'evaluate', '--checkpoint', run / 'last.ckpt', *evaluate, '--out',
             folder / 'report')  # fmt: skip
    rows = json.loads(report.read_text())['rows']
    return {
        'variant': name, 'seed': seed, 'options': list(VARIANTS[name]),
        'scores': {f'{row["dataset"]} {row["alignment"]}': row['abs_rel'] for row in rows
                   if row.get('abs_rel') is not None},
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """Lay out the scores as Markdown."""
    runs = result['runs']
    whole = [run['scores'] for run in runs if run['variant'] == WHOLE]
    keys = [key for key in whole[0] if all(key in run['scores'] for run in runs)]
    mean = {key: statistics.mean(scores[key] for scores in whole) for key in keys}
    lines = [
        '# What each ingredient of the recipe gives', '',
        f'AbsRel after {result["steps"]} steps of 16 pictures of 96x128, one core each, no '
        f'alignment unless said; {result["frames"]}. The first line is the mean of '
        f'{len(whole)} seeds, the second how far apart they are; the others are one run each, '
        'with the change against the first line.', '',
        '| recipe | ' + ' | '.join(keys) + ' |', '|---' * (len(keys) + 1) + '|',
        f'| {WHOLE} | ' + ' | '.join(f'{mean[key]:.3f}' for key in keys) + ' |',
    ]  # fmt: skip
    if len(whole) > 1:
        spread = [max(s[key] for s in whole) - min(s[key] for s in whole) for key in keys]
        lines.append('| (largest difference of two seeds) | ' + ' | '.join(
            f'{value:.3f}' for value in spread) + ' |')  # fmt: skip
    for run in runs:
        if run['variant'] != WHOLE:
            cells = [f'{run["scores"][key]:.3f} ({run["scores"][key] / mean[key] - 1:+.0%})'
                     for key in keys]  # fmt: skip
            lines.append(f'| {run["variant"]} | ' + ' | '.join(cells) + ' |')
    lines += ['', f'`{result["command"]}`']
    return '\n'.join(lines) + '\n'


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog='variants: ' + '; '.join(VARIANTS)
    )
    parser.add_argument('--data', required=True, help='folder of rendered frames to train on')
    parser.add_argument('--also', action='append', default=[], help='another one; repeatable')
    parser.add_argument('--eval', action='append', required=True, metavar='KIND[:FOLDER]',
                        help='as --data of depth-node evaluate; repeatable')  # fmt: skip
    parser.add_argument('--steps', type=int, default=600, help='of 16 pictures (600)')
    parser.add_argument('--limit', type=int, default=60, help='frames of each data set (60)')
    parser.add_argument('--seeds', type=int, default=2, help='of the whole recipe (2)')
    parser.add_argument('--only', action='append', choices=sorted(VARIANTS), metavar='VARIANT',
                        help='beside the whole recipe; repeatable (all)')  # fmt: skip
    parser.add_argument('--jobs', type=int, default=2, help='at the same time (2)')
    parser.add_argument('--folder', type=Path, default=Path('runs/recipe'), help='of the runs')
    parser.add_argument('--out', type=Path, default=CLONE / 'docs' / 'results')
    return parser.parse_args()


def main() -> int:
    """Run what is missing, write the results."""
    options = parse()
    work = [(WHOLE, seed + 1) for seed in range(options.seeds)]
    work += [(name, 1) for name in options.only or VARIANTS if name != WHOLE]
    with ThreadPoolExecutor(options.jobs) as pool:
        jobs = [pool.submit(measure, options, *item) for item in work]
        try:
            runs = [job.result() for job in tqdm(jobs, unit='run', disable=None)]
        except (KeyboardInterrupt, RuntimeError) as error:
            pool.shutdown(wait=False, cancel_futures=True)
            print(f'\n{error or "stopped; run the same command to go on"}', file=sys.stderr)
            return 1
    shown = [f'{len(list(Path(folder).glob("train/*/*.depth.png")))} training frames of '
             f'{Path(folder).name}' for folder in (options.data, *options.also)]  # fmt: skip
    result = {
        'steps': options.steps, 'limit': options.limit, 'frames': ', '.join(shown),
        'command': 'python benchmarks/recipe.py ' + ' '.join(
            word for key, values in (
                ('--data', [f'data/{Path(options.data).name}']),
                ('--also', [f'data/{Path(folder).name}' for folder in options.also]),
                ('--eval', [item if ':' not in item else
                            f'{item.split(":")[0]}:data/{Path(item.split(":")[1]).name}'
                            for item in options.eval]),
                ('--steps', [str(options.steps)]), ('--limit', [str(options.limit)]),
                ('--seeds', [str(options.seeds)]),
                ('--only', [shlex.quote(name) for name in options.only or ()]),
            ) for value in values for word in (key, value)),
        'runs': runs,
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / 'recipe.json').write_text(json.dumps(result, indent=2) + '\n')
    text = table(result)
    (options.out / 'recipe.md').write_text(text)
    print(text)
    return 0


if __name__ == '__main__':
    sys.exit(main())
