"""`depth-node export`: a checkpoint, or a model of transformers, becomes ONNX and a card."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from depth_node.export.onnx import Parity
    from depth_node.model_card import ModelCard
    from depth_node.training.networks.base import DepthNetwork

HELP = 'turn a checkpoint or a Hugging Face model into an ONNX file with its card'

_EPILOG = """\
The picture goes in as the camera gives it (uint8 RGB, NHWC); normalisation is in the graph. The
file is compared with torch before it is kept, and the card gets reference statistics that every
backend must reproduce; it stands beside the file and inside it. What TensorRT would refuse is
said, with the remedy.

examples:
  depth-node export runs/small/best.ckpt --out models/small.onnx --range 0.2,10 --fp16
  depth-node export runs/small/best.ckpt --out models/any.onnx --dynamic --max-size 512x384
  depth-node export --hf models/Depth-Anything-V2-Metric-Indoor-Small-hf --licence Apache-2.0 \\
      --out models/dav2_indoor.onnx --camera 640x480 --fp16
  depth-node quantize models/small.yaml --data data/frames

--dynamic makes one file for all sizes between --min-size and --max-size, in steps of the network's
largest shrinking factor (32 for most; the command says it): the picture keeps its aspect, and is
shrunk only where it exceeds --max-size, which therefore bounds the work. An engine of TensorRT is
built for exactly these limits. Networks with fully connected layers are for one size alone.

--hf takes a folder as transformers saves it, or the id of a model on the hub; an id is looked for
in the local cache, and fetched only with --download. What larger numbers mean, the metric range,
mean, std and size are read from the model's own files, never guessed.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = _EPILOG
    parser.add_argument(
        'checkpoint', type=Path, nargs='?', help='best.ckpt or last.ckpt of a run'
    )
    parser.add_argument(
        '--out',
        type=Path,
        required=True,
        metavar='FILE.onnx',
        help='the card is written beside it, as FILE.yaml',
    )
    parser.add_argument('--name', help="the card's name (the file's)")
    parser.add_argument(
        '--licence', help='of the weights (Apache-2.0; must be given with --hf)'
    )
    parser.add_argument(
        '--range',
        type=_range,
        dest='range_m',
        metavar='NEAR,FAR',
        help='metric depths that the training data covered, metres '
        '(what the network can return at all)',
    )
    parser.add_argument(
        '--assumed-hfov',
        type=float,
        metavar='DEG',
        help='horizontal field of view assumed where the camera is not known '
        "(the canonical camera's)",
    )
    parser.add_argument(
        '--fp16',
        action='store_true',
        help='also FILE.fp16.onnx, typed inside: TensorRT from 11 on needs it to compute in fp16',
    )
    parser.add_argument(
        '--dynamic',
        action='store_true',
        help="height and width stay free, within limits and in the network's step",
    )
    parser.add_argument(
        '--min-size',
        type=_size,
        metavar='WxH',
        help='with --dynamic: the smallest input (half of that trained with)',
    )
    parser.add_argument(
        '--max-size',
        type=_size,
        metavar='WxH',
        help='with --dynamic: the largest input (twice that trained with)',
    )
    parser.add_argument('--note', help='a sentence for the provenance')
    group = parser.add_argument_group('models of Hugging Face transformers')
    group.add_argument('--hf', metavar='FOLDER|ID', help='a depth model, instead of a checkpoint')
    group.add_argument(
        '--download', action='store_true', help='fetch what the local cache lacks from the hub'
    )
    group.add_argument(
        '--camera',
        type=_size,
        default=(480, 640),
        metavar='WxH',
        help="the camera's pictures, from which the input size follows (640x480)",
    )
    group.add_argument(
        '--size',
        type=_size,
        metavar='WxH',
        help="the network's input (what its processor makes of the camera's pictures)",
    )
    group.add_argument(
        '--size-rule',
        choices=('processor', 'lower-bound'),
        default='processor',
        help='lower-bound: as the original code of MiDaS and Depth Anything sizes small pictures '
        '(processor)',
    )
    group.add_argument(
        '--kind', help="what the output means, only where the model's files do not say"
    )
    group.add_argument(
        '--head', metavar='NAME', help='of a model with several (ZoeDepth: nyu, kitti)'
    )


def run(args: argparse.Namespace) -> int:
    """Export; errors are raised for the command line to print."""
    from depth_node.cli import UsageError

    if args.out.suffix != '.onnx':
        raise UsageError(f'--out {args.out}: the name must end in .onnx')
    if (args.checkpoint is None) == (args.hf is None):
        raise UsageError('give either a checkpoint or --hf')
    if not args.dynamic and (args.min_size or args.max_size):
        raise UsageError('--min-size and --max-size go with --dynamic')
    if args.hf is not None:
        return _export_hf(args)
    args.licence = args.licence or 'Apache-2.0'
    from depth_node.training.checkpoints import network_of, read_checkpoint

    checkpoint = read_checkpoint(args.checkpoint)
    write_files(args, network_of(checkpoint), _provenance(args, checkpoint))
    return 0


def _export_hf(args: argparse.Namespace) -> int:
    from depth_node.cli import CommandError, UsageError
    from depth_node.export.hf import load
    from depth_node.export.onnx import ExportError

    if args.dynamic:
        raise UsageError(
            '--dynamic is for networks of this package: position embeddings of transformers are '
            'folded for one size; give --camera or --size'
        )
    if args.licence is None:
        raise UsageError("--licence: name the weights' licence, as the model's description says")
    try:
        network, provenance = load(
            args.hf,
            size_hw=args.size,
            camera_hw=args.camera,
            rule=args.size_rule,
            kind=args.kind,
            head=args.head,
            download=args.download,
        )
    except ExportError as error:
        raise CommandError(str(error)) from error
    provenance['export_command'] = portable(['depth-node', *sys.argv[1:]])
    if args.note:
        provenance['note'] = args.note
    print(
        f'{provenance["class"]}: input {network.size_hw[1]}x{network.size_hw[0]}, output '
        f'{network.output_kind} at {network.output_hw[1]}x{network.output_hw[0]}'
    )
    if 'meaning' in provenance:
        print(provenance['meaning'])
    write_files(args, network, provenance)
    return 0


def write_files(
    args: argparse.Namespace, network: DepthNetwork, provenance: dict[str, Any]
) -> ModelCard:
    """Write a network's files and card, and tell what was measured."""
    from depth_node.export.card import make_card, with_file
    from depth_node.export.dynamic import sizes_of
    from depth_node.export.lint import lint
    from depth_node.export.onnx import export_onnx, parity_batches

    sizes = None
    if args.dynamic:
        sizes = sizes_of(network.eval(), args.min_size, args.max_size)
        (low_h, low_w), (high_h, high_w) = sizes.min_hw, sizes.max_hw
        print(f'input {low_w}x{low_h} to {high_w}x{high_h} in steps of {sizes.step}')
    nominal_hw = network.size_hw if sizes is None else sizes.nominal_hw

    def show(path: Path, parity: Parity) -> None:
        print(
            f'{path}: {path.stat().st_size / 1e6:.1f} MB; ONNX Runtime equals torch to '
            f'{parity.max_abs:.1e}, {parity.max_rel:.1e} of the depth at most and '
            f'{parity.mean_rel:.1e} on average, on {parity.pictures} pictures'
            + ('' if parity.confidence_max is None
               else f'; confidence to {parity.confidence_max:.1e}')
        )
        for finding in lint(path, batches=parity_batches(nominal_hw)):
            print(f'{path}: {finding}', file=sys.stderr)

    parity = export_onnx(network, args.out, sizes=sizes)
    show(args.out, parity)
    card = make_card(
        args.out,
        network,
        name=args.name or args.out.stem,
        licence=args.licence,
        range_m=args.range_m,
        assumed_hfov_deg=args.assumed_hfov,
        provenance=provenance,
        sizes=sizes,
    )
    if args.fp16:
        half = args.out.with_name(f'{args.out.stem}.fp16.onnx')
        parity = export_onnx(network, half, precision='fp16', sizes=sizes)
        show(half, parity)
        card = with_file(card, 'fp16', half, {
            'method': 'network in half precision, normalisation and output in fp32',
            'parity_max_rel': float(f'{parity.max_rel:.3g}'),
            'parity_mean_rel': float(f'{parity.mean_rel:.3g}')})  # fmt: skip
    print(f'{card.save()}: written')
    return card


def _provenance(args: argparse.Namespace, checkpoint: dict[str, Any]) -> dict[str, Any]:
    provenance: dict[str, Any] = {
        'export_command': portable(['depth-node', *sys.argv[1:]]),
        'steps': int(checkpoint['global_step']),
    }
    if args.note:
        provenance['note'] = args.note
    manifest = args.checkpoint.parent / 'manifest.json'
    if manifest.is_file():
        provenance['training'] = summary(json.loads(manifest.read_text(encoding='utf-8')))
    else:
        print(f'{manifest}: not there, the card says nothing about the training', file=sys.stderr)
    return provenance


def summary(manifest: dict[str, Any]) -> dict[str, Any]:
    """Pick what a card should say about a run; the runs it started from are listed inside."""
    config = manifest['config']
    kept = {
        'command': portable(manifest.get('command') or []),
        'commit': manifest.get('commit'),
        'started': manifest.get('started'),
        'train_s': manifest.get('train_s'),
        'steps': manifest.get('steps'),
        'pictures_seen': manifest.get('pictures_seen'),
        'data': manifest['data'].get('train'),  # not in manifests of the first version
        'network': config['network'],
        'objective': config.get('objective'),
        'loss': config.get('loss'),  # manifests of the first version have this instead
        'optim': config['optim'],
        'batch_size': config['data']['batch_size'],
        'seed': config['run']['seed'],
        'validation': manifest.get('final'),
        'start': manifest['start']['kind'],
        'environment': manifest.get('environment'),
    }
    if 'run' in manifest['start']:
        kept['started_from'] = summary(manifest['start']['run'])
    elif 'exported' in manifest['start']:
        kept['started_from'] = manifest['start']['exported']
    return {key: value for key, value in kept.items() if value is not None}


def portable(words: list[str]) -> str:
    """Join a command line, cutting absolute paths to their last two parts."""
    short = []
    for word in words:
        path = Path(word)
        short.append('/'.join(path.parts[-2:]) if path.is_absolute() else word)
    return ' '.join(short)


def _size(text: str) -> tuple[int, int]:
    """Parse WIDTHxHEIGHT; returns (height, width)."""
    try:
        width, height = (int(part) for part in text.lower().split('x'))
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r}: expected WIDTHxHEIGHT in pixels') from None
    if min(width, height) < 8:
        raise argparse.ArgumentTypeError(f'{text!r}: expected 8 pixels and more')
    return height, width


def _range(text: str) -> tuple[float, float]:
    try:
        near, far = (float(part) for part in text.split(','))
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r}: expected NEAR,FAR in metres') from None
    if not 0 < near < far:
        raise argparse.ArgumentTypeError(f'{text!r}: expected 0 < NEAR < FAR')
    return near, far
