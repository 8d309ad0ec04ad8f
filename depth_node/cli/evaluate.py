"""`depth-node evaluate`: measure a model on frames with true depth."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from depth_node.evaluation.protocols import DatasetResult
    from depth_node.evaluation.readers import Reader
    from depth_node.model_card import ModelCard

HELP = 'measure a model on frames with true depth, beside a trivial baseline'

_EPILOG = """data sets:
  osd:FOLDER        learnNN.jpg + learnNN_depth_mm.png, Kinect 640x480
  motorcycle        a Middlebury picture that comes with scikit-image
  aloe:FOLDER       aloeL.jpg + aloeGT.png of Debian's opencv-doc; affine alignment only
  rendered:FOLDER   frames of depth-node synthesize: a root (its test split), a split or a scene
  folder:FOLDER     X.jpg|png + X_depth_mm.png (uint16 mm) or X.npy (float m); K by --k

examples:
  depth-node evaluate --model small --data osd:osd_learn --data motorcycle --out report
  depth-node evaluate --model small --data rendered:frames/test --precision int8 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument('--model', default='small', help='card name, card or ONNX file (small)')
    parser.add_argument(
        '--data', action='append', required=True, metavar='KIND[:FOLDER]',
        help='data set, see below; may be given several times')
    parser.add_argument(
        '--align', type=_names, default=('none', 'median', 'affine'), metavar='NAMES',
        help='comma list of none (metric), median, affine (default: all three)')
    parser.add_argument(
        '--mode', type=_names, default=('per-image', 'pooled'), metavar='NAMES',
        help='comma list of per-image (mean of frames) and pooled (all pixels; default: both)')
    parser.add_argument('--backend', default='auto', help='backend name (auto)')
    parser.add_argument('--precision', default='auto', help='fp32, bf16, int8 or auto (auto)')
    parser.add_argument('--threads', type=int, default=None, help='CPU threads of the backend')
    parser.add_argument(
        '--filters', action='store_true',
        help="keep the product's default filters (range clip, flying pixels); without it every "
             'pixel that the network gives is measured')
    parser.add_argument(
        '--k', type=_intrinsics, default=None, metavar='FX,FY,CX,CY',
        help='intrinsics of folder: data sets, pixels')
    parser.add_argument(
        '--min-depth', type=float, default=1e-3, metavar='M',
        help='metres: nearer truth is not judged, predictions are clamped (0.001)')
    parser.add_argument(
        '--max-depth', type=float, default=10.0, metavar='M',
        help='metres: farther truth is not judged, predictions are clamped (10)')
    parser.add_argument(
        '--limit', type=int, default=None, metavar='N',
        help='at most N frames of each data set, evenly spread')
    parser.add_argument(
        '--examples', type=int, default=3, metavar='N',
        help='worst and best frames on the picture page (3 each)')
    parser.add_argument(
        '--out', type=Path, default=None, metavar='DIR',
        help='write results.json, report.md and a picture page per data set')
    parser.add_argument(
        '--update-card', action='store_true',
        help="write the numbers into the model's card under metrics.<precision>.<data set>")
    parser.add_argument('--json', action='store_true', help='print JSON instead of the table')


def run(args: argparse.Namespace) -> int:
    """Measure, print, write; 0 when every data set was measured, 1 otherwise."""
    from depth_node.backends import BackendError
    from depth_node.evaluation.readers import DataError
    from depth_node.model_card import CardError

    try:
        return _evaluate(args)
    except (DataError, CardError, BackendError, OSError, ValueError) as error:
        print(f'depth-node evaluate: {error}', file=sys.stderr)
        return 1


def _evaluate(args: argparse.Namespace) -> int:
    import datetime
    import json

    from depth_node.backends import open_backend
    from depth_node.evaluation import report
    from depth_node.evaluation.protocols import Protocol
    from depth_node.evaluation.readers import DataError
    from depth_node.filters import FilterSettings
    from depth_node.model_card import ModelCard
    from depth_node.pipeline import DepthPipeline

    if args.update_card and (args.limit is not None or args.filters):
        raise ValueError(
            '--update-card records whole data sets without filters; drop --limit and --filters')
    protocol = Protocol(
        alignments=args.align, modes=args.mode, min_depth=args.min_depth,
        max_depth=args.max_depth, examples=max(0, args.examples))
    readers = _open_readers(args)
    card = ModelCard.load(args.model)
    filters = FilterSettings() if args.filters else FilterSettings(
        near_m=0.0, far_m=math.inf, flying_pixel_angle_deg=0.0)

    results: list[DatasetResult] = []
    failures: list[str] = []
    with open_backend(
            card, args.backend, args.precision, threads=args.threads,
            log=lambda line: print(line, file=sys.stderr)) as backend:
        pipeline = DepthPipeline(backend, filters=filters)
        for reader in readers:
            try:
                results.append(_measure(pipeline, reader, protocol, card))
            except DataError as error:
                failures.append(str(error))
        # bf16 is the FP32 file computed in less
        spec = card.precisions.get(backend.precision) or card.precisions['fp32']
        measured = report.Run(
            model=card.name,
            file=spec.path.name,
            sha256=spec.sha256,
            backend=backend.name,
            precision=backend.precision,
            filters='range clip and flying pixels as in the product' if args.filters else 'off',
            command=report.command_line(_options(args)),
            date=datetime.date.today().isoformat(),
            version=_version(),
            protocol=protocol,
            results=tuple(results),
        )

    if args.json:
        print(json.dumps(report.to_json(measured), indent=1, allow_nan=False))
    elif results:
        print(report.text_table(measured))
    for result in results:
        for note in result.notes:
            print(f'{result.name}: {note}', file=sys.stderr)
        for skipped in result.skipped:
            print(f'{result.name}: skipped {skipped.name}: {skipped.reason}', file=sys.stderr)
    if args.out is not None and results:
        for path in report.write(measured, args.out):
            print(f'wrote {path}', file=sys.stderr)
    for failure in failures:
        print(f'depth-node evaluate: {failure}', file=sys.stderr)
    if failures:
        if args.update_card:
            print('depth-node evaluate: the card was not changed', file=sys.stderr)
        return 1
    if args.update_card:
        path = report.updated_card(card, measured).save()
        print(f'wrote {path}', file=sys.stderr)
    return 0


def _open_readers(args: argparse.Namespace) -> list[Reader]:
    from depth_node.evaluation.readers import open_reader

    readers = []
    names: dict[str, int] = {}
    for spec in args.data:
        reader = open_reader(spec, intrinsics=args.k)
        if args.limit is not None:
            reader = reader.limited(args.limit)
        names[reader.name] = names.get(reader.name, 0) + 1
        if names[reader.name] > 1:
            reader.name += f'-{names[reader.name]}'
        readers.append(reader)
    if args.k is not None and not any(reader.kind == 'folder' for reader in readers):
        raise ValueError('--k belongs to folder: data sets; the others bring their own intrinsics')
    return readers


def _measure(pipeline, reader: Reader, protocol, card: ModelCard) -> DatasetResult:
    from depth_node.evaluation.protocols import evaluate
    from tqdm import tqdm

    # disable=None: no bar where nobody looks (stderr is a file or a pipe)
    with tqdm(total=len(reader), desc=reader.name, unit='frame', disable=None) as bar:
        return evaluate(
            pipeline, reader, protocol, metric_model=card.output.metric,
            progress=lambda done, total: bar.update(done - bar.n))


def _options(args: argparse.Namespace) -> list[str]:
    """The options that make this measurement, as they would be typed; defaults left out."""
    words = ['--model', str(args.model)]
    for spec in args.data:
        words += ['--data', spec]
    for option, value, default in (
        ('--align', ','.join(args.align), 'none,median,affine'),
        ('--mode', ','.join(args.mode), 'per-image,pooled'),
        ('--backend', args.backend, 'auto'),
        ('--precision', args.precision, 'auto'),
        ('--k', args.k and ','.join(f'{value:g}' for value in args.k), None),
        ('--min-depth', args.min_depth, 1e-3),
        ('--max-depth', args.max_depth, 10.0),
        ('--limit', args.limit, None),
    ):
        if value != default:
            words += [option, str(value)]
    return [*words, '--filters'] if args.filters else words


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version('depth-node')
    except metadata.PackageNotFoundError:
        return 'source tree'


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(',') if part.strip())


def _intrinsics(text: str) -> tuple[float, float, float, float]:
    try:
        fx, fy, cx, cy = (float(part) for part in text.split(','))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'found {text!r}, expected four numbers FX,FY,CX,CY in pixels') from None
    return fx, fy, cx, cy
