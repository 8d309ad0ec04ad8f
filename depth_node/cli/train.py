"""`depth-node train`: train a depth network."""

from __future__ import annotations

import argparse
import difflib
import json
import os
from pathlib import Path
import sys
from typing import TYPE_CHECKING, Any

from depth_node.cli import CommandError

if TYPE_CHECKING:
    from depth_node.training.config import TrainConfig

HELP = 'train a depth network'
NORM_PICTURES = 32  # by which the norms of an exported file are measured
INTERMIXED = True  # settings stand before, between and behind the options
EXAMPLE = """\
A configuration in config/train/ is one system of the literature with its paper's settings
(docs/systems.md). Any key of it can be set on the command line as SECTION.KEY=VALUE, anywhere
among the options; a key that does not exist is an error that lists those that do. A preset trains
on another data set by data.kind=KIND data.options={}; depth-node data check lists the kinds.

examples:
  depth-node train --config config/train/small.yaml --data data/frames --max-time 00:50:00
  depth-node train --config config/train/fcrn.yaml --data data/nyu run.max_steps=30
  depth-node train --config config/train/small.yaml --data data/frames --resume
  depth-node train --config config/train/eigen14_fine.yaml --init runs/eigen14_coarse/best.ckpt
  depth-node train --config config/train/small.yaml data.kind=bag --data lab.mcap --out runs/lab
  several processes:  depth-node train --config ... run.devices=2 run.strategy=ddp
  several machines:   torchrun --nnodes 2 ... -m depth_node.cli train --config ... run.num_nodes=2

The run folder gets best.ckpt and last.ckpt, manifest.json (configuration, commit, data, machine),
csv/ and tensorboard/ logs, and panels/ (picture, truth, prediction, error: dark is 0, light is
50 % and more). A folder that holds a run is not overwritten.
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
    parser.add_argument(
        'settings',
        nargs='*',
        metavar='SECTION.KEY=VALUE',
        help='single keys, instead of those in the file',
    )
    parser.add_argument('--config', type=Path, required=True, help='YAML file (config/train/*)')
    parser.add_argument('--data', type=Path, help='data folder or file, instead of data.root')
    parser.add_argument('--out', type=Path, help='run folder, instead of run.folder')
    parser.add_argument(
        '--max-time',
        type=_seconds,
        metavar='HH:MM:SS',
        help='end, with the learning rate decayed, after this time',
    )
    parser.add_argument('--max-steps', type=int, metavar='N', help='instead of run.max_steps')
    parser.add_argument('--threads', type=int, metavar='N', help='CPU threads of torch')
    start = parser.add_mutually_exclusive_group()
    start.add_argument('--resume', action='store_true', help='go on from last.ckpt of the run')
    start.add_argument(
        '--init',
        type=Path,
        metavar='FILE',
        help='start from these weights, with a fresh schedule: a checkpoint, or an ONNX file that '
        'depth-node export wrote of the same network (models/small.onnx)',
    )
    parser.add_argument('--no-progress', action='store_true', help='no progress bar')


def _require_config(path: Path) -> None:
    if path.is_file():
        return
    presets = sorted(str(item) for item in path.parent.glob('*.yaml'))
    close = difflib.get_close_matches(str(path), presets, 1)
    hint = f'did you mean {close[0]}?' if close else (
        f'in that folder are {", ".join(presets)}' if presets
        else 'the presets are in config/train/ of the clone')
    raise CommandError(f'{path}: no such configuration; {hint}')


def run(args: argparse.Namespace) -> int:
    """Train; 0 when the run ended, 130 when it was interrupted."""
    from depth_node.training.config import load_config
    from depth_node.training.fit import refuse_used, train

    _require_config(args.config)
    settings = list(args.settings)
    for key, value in (
        ('data.root', args.data),
        ('run.folder', args.out),
        ('run.max_steps', args.max_steps),
        ('run.threads', args.threads),
    ):
        if value is not None:
            plain = value if isinstance(value, int) else str(value)
            settings.append(f'{key}={json.dumps(plain)}')
    config = load_config(args.config, settings)
    init = args.init
    if init is not None and init.suffix == '.onnx':
        refuse_used(Path(config.run.folder))  # before start.ckpt is written there
        init = _checkpoint_of_onnx(init, config)
    manifest = train(
        config,
        max_time_s=args.max_time,
        resume=args.resume,
        init=init,
        command=['depth-node', *sys.argv[1:]],
        progress_bar=not args.no_progress,
    )
    final = manifest.get('final', {})
    scores = ', '.join(  # not a number: the data set has no truth for this score
        f'{name.partition("/")[2]} {value:.4f}' for name, value in final.items() if value == value
    )
    outcome = scores or (
        'interrupted, --resume goes on' if manifest['interrupted'] else 'no score'
    )
    broken = manifest.get('skipped_frames')
    if broken:
        outcome += f'; {broken} unreadable frames were replaced by others'
    print(
        f'{manifest["steps"]} of {config.run.max_steps} steps in {manifest["train_s"]:.0f} s; '
        f'{outcome}; {config.run.folder}'
    )
    return 130 if manifest['interrupted'] else 0


def _checkpoint_of_onnx(path: Path, config: TrainConfig) -> Path:
    """Write the weights of an exported file into the run folder as a checkpoint."""
    from depth_node.export.weights import load_onnx_weights
    from depth_node.training.fit import ORIGIN_SUFFIX, FrameData
    from depth_node.training.loading import FrameTensors, collate_frames
    from depth_node.training.networks import build_network, untrained
    import torch

    name = config.network.name
    network = build_network(name, **{**config.network.options, **untrained(name)})
    frames = FrameTensors(FrameData(config).train_set, network.size_hw, limit=NORM_PICTURES)
    pictures = collate_frames([frames[index] for index in range(len(frames))])['rgb']
    parity = load_onnx_weights(path, network, pictures)
    print(
        f'{path}: weights taken, its norms measured on {len(pictures)} pictures; equal to '
        f'{parity.max_rel:.1e} of the depth',
        file=sys.stderr,
    )
    if not network.has_confidence and _has_confidence(path):
        print(
            f'{path}: its confidence is not taken; for one of the new weights: '
            'config/train/small_confidence.yaml afterwards',
            file=sys.stderr,
        )
    checkpoint = Path(config.run.folder) / 'start.ckpt'
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    weights = {f'network.{key}': value for key, value in network.state_dict().items()}
    partial = checkpoint.with_suffix(f'.{os.getpid()}')  # every process of a run comes by here
    torch.save({'hyper_parameters': {'config': config.to_dict()}, 'state_dict': weights}, partial)
    os.replace(partial, checkpoint)
    partial.write_text(json.dumps(_origin(path), indent=1))
    os.replace(partial, checkpoint.with_suffix(ORIGIN_SUFFIX))
    return checkpoint


def _has_confidence(path: Path) -> bool:
    from depth_node.model_card import CardError, ModelCard

    try:
        return ModelCard.load(path).output.confidence is not None
    except CardError:
        return False


def _origin(path: Path) -> dict[str, Any]:
    """Say which exported file a run starts from, and what its card tells about its training."""
    from depth_node.model_card import CardError, ModelCard, file_sha256

    origin: dict[str, Any] = {'file': path.name, 'sha256': file_sha256(path)}
    try:
        training = ModelCard.load(path).provenance.get('training')
    except CardError:  # no card, or one that does not fit: the hash must do
        training = None
    return origin if training is None else {**origin, 'training': training}
