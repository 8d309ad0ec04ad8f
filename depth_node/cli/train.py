"""`depth-node train`: train a depth network on rendered frames."""

from __future__ import annotations

import argparse
from pathlib import Path
import sys

HELP = 'train a depth network on rendered frames'
EXAMPLE = """example:
  depth-node train --config config/train/small.yaml --data data/frames --max-time 00:50:00
  depth-node train --config config/train/small.yaml --data data/frames --resume
Ctrl-C saves a checkpoint and ends; --resume goes on from it."""


def _seconds(text: str) -> float:
    parts = text.split(':')
    try:
        hours, minutes, seconds = (float(part) for part in parts)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r}: expected HH:MM:SS') from None
    total = hours * 3600 + minutes * 60 + seconds
    if total <= 0:
        raise argparse.ArgumentTypeError(f'{text!r}: expected more than zero')
    return total


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = EXAMPLE
    parser.add_argument('--config', type=Path, required=True, help='YAML file (config/train/*)')
    parser.add_argument('--data', type=Path, help='data folder, instead of the one in the file')
    parser.add_argument('--out', type=Path, help='run folder, instead of the one in the file')
    parser.add_argument(
        '--max-time',
        type=_seconds,
        metavar='HH:MM:SS',
        help='end, with the learning rate decayed, after this time',
    )
    parser.add_argument('--max-steps', type=int, help='instead of the number in the file')
    parser.add_argument('--threads', type=int, help='CPU threads of torch')
    start = parser.add_mutually_exclusive_group()
    start.add_argument('--resume', action='store_true', help='go on from last.ckpt of the run')
    start.add_argument(
        '--init',
        type=Path,
        metavar='CHECKPOINT',
        help='start from these weights, with a fresh schedule',
    )
    parser.add_argument('--no-progress', action='store_true', help='no progress bar')


def run(args: argparse.Namespace) -> int:
    """Train; 0 when the run ended, 130 when it was interrupted."""
    from dataclasses import replace

    from depth_node.training.config import load_config
    from depth_node.training.fit import train

    config = load_config(args.config)
    if args.data:
        config = replace(config, data=replace(config.data, root=str(args.data)))
    if args.out:
        config = replace(config, run=replace(config.run, folder=str(args.out)))
    if args.max_steps:
        config = replace(config, run=replace(config.run, max_steps=args.max_steps))
    if args.threads:
        config = replace(config, run=replace(config.run, threads=args.threads))
    manifest = train(
        config,
        max_time_s=args.max_time,
        resume=args.resume,
        init=args.init,
        command=['depth-node', *sys.argv[1:]],
        progress_bar=not args.no_progress,
    )
    final = manifest.get('final', {})
    scores = ', '.join(f'{name.partition("/")[2]} {value:.4f}' for name, value in final.items())
    print(
        f'{manifest["steps"]} steps in {manifest["train_s"]:.0f} s; {scores or "interrupted"}; '
        f'{config.run.folder}'
    )
    return 130 if manifest['interrupted'] else 0
