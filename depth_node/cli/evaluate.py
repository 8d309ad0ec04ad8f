"""`depth-node evaluate`: measure a model on frames with true depth."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
import math
from pathlib import Path
import sys
from typing import TYPE_CHECKING, Any, Final

from depth_node.cli import UsageError, package_version
from depth_node.cli._common import (
    add_model_arguments,
    one_of_each,
    open_model,
    positive_float,
    positive_int,
    print_json,
)

if TYPE_CHECKING:
    from depth_node.evaluation.protocols import DatasetResult, Protocol
    from depth_node.evaluation.readers import Reader
    from depth_node.model_card import ModelCard
    from depth_node.pipeline import DepthPipeline

HELP = 'measure a model on frames with true depth, beside a trivial baseline'

_EPILOG: Final = """\
data sets:
  osd:FOLDER        learnNN.jpg + learnNN_depth_mm.png, Kinect 640x480
  motorcycle        a Middlebury picture that comes with scikit-image
  aloe:FOLDER       aloeL.jpg + aloeGT.png of Debian's opencv-doc; affine alignment only
  rendered:FOLDER   frames of depth-node synthesize: a root (its test split), a split or a scene
  folder:FOLDER     X.jpg|png + X_depth_mm.png (uint16 mm) or X.npy (float m); K by --k

The model runs in the same pipeline as on the robot. The baseline is the best plane in inverse
depth, fitted to the truth of each frame: a ratio below 1 beats it.

examples:
  depth-node evaluate --data osd:osd_learn --data motorcycle --out report
  depth-node evaluate --data rendered:frames --precision int8 --align none --json
  depth-node evaluate --data folder:mine --k 525,525,319.5,239.5
"""
_ALIGNMENTS: Final = ('none', 'median', 'affine')
_MODES: Final = ('per-image', 'pooled')
_MIN_DEPTH: Final = 1e-3
_MAX_DEPTH: Final = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = _EPILOG
    parser.add_argument('--data', action='append', required=True, metavar='KIND[:FOLDER]',
                        help='data set, see below; may be given several times')
    add_model_arguments(parser)
    rules = parser.add_argument_group('protocol')
    rules.add_argument('--align', type=one_of_each(_ALIGNMENTS), default=_ALIGNMENTS,
                       metavar='LIST', help='of none (metric), median, affine (all three)')
    rules.add_argument('--mode', type=one_of_each(_MODES), default=_MODES, metavar='LIST',
                       help='of per-image (mean of the frames), pooled (all pixels) (both)')
    rules.add_argument('--min-depth', type=positive_float, default=_MIN_DEPTH, metavar='M',
                       help='nearer truth is not judged, predictions are clamped (0.001)')
    rules.add_argument('--max-depth', type=positive_float, default=_MAX_DEPTH, metavar='M',
                       help='farther truth is not judged, predictions are clamped (10)')
    rules.add_argument('--filters', action='store_true',
                       help="keep the product's filters (range clip, flying pixels); without it "
                            'every pixel that the network gives is measured')
    rules.add_argument('--k', type=_intrinsics, metavar='FX,FY,CX,CY',
                       help='intrinsics of folder: data sets, pixels')
    rules.add_argument('--limit', type=positive_int, metavar='N',
                       help='at most N frames of each data set, evenly spread')
    output = parser.add_argument_group('output')
    output.add_argument('--out', type=Path, metavar='DIR',
                        help='write results.json, report.md and a page of pictures per data set')
    output.add_argument('--examples', type=positive_int, default=3, metavar='N',
                        help='worst and best frames on such a page (3 of each)')
    output.add_argument('--update-card', action='store_true',
                        help="write the numbers into the model's card, under "
                             'metrics.<precision>.<data set>')
    output.add_argument('--json', action='store_true', help='print JSON instead of the table')


def run(args: argparse.Namespace) -> int:
    """Measure, print, write; 0 when every data set was measured, 1 otherwise."""
    import datetime

    from depth_node.evaluation import report
    from depth_node.evaluation.protocols import Protocol
    from depth_node.evaluation.readers import DataError
    from depth_node.filters import FilterSettings
    from depth_node.pipeline import DepthPipeline

    if args.update_card and (args.limit is not None or args.filters):
        raise UsageError('--update-card records whole data sets without filters; '
                         'drop --limit and --filters')
    if not args.min_depth < args.max_depth:
        raise UsageError(f'--min-depth {args.min_depth:g} is not below --max-depth '
                         f'{args.max_depth:g}')
    protocol = Protocol(
        alignments=args.align, modes=args.mode, min_depth=args.min_depth,
        max_depth=args.max_depth, examples=args.examples if args.out is not None else 0)
    readers = _open_readers(args)
    filters = FilterSettings() if args.filters else FilterSettings(
        near_m=0.0, far_m=math.inf, flying_pixel_angle_deg=0.0)

    results: list[DatasetResult] = []
    failures: list[str] = []
    card, backend = open_model(args)
    with backend:
        pipeline = DepthPipeline(backend, filters=filters)
        for reader in readers:
            try:
                results.append(_measure(pipeline, reader, protocol, card))
            except DataError as error:
                failures.append(str(error))
        # bf16 is the FP32 file, computed in less
        spec = card.precisions.get(backend.precision) or card.precisions['fp32']
        measured = report.Run(
            model=card.name,
            file=spec.path.name,
            sha256=spec.sha256,
            backend=f'{backend.name} {backend.version}',
            precision=backend.precision,
            filters='range clip and flying pixels as in the product' if args.filters else 'off',
            command=report.command_line(_options(args)),
            date=datetime.date.today().isoformat(),
            version=package_version(),
            protocol=protocol,
            results=tuple(results),
        )

    if args.json:
        print_json(report.to_json(measured))
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
        print(f'wrote {report.updated_card(card, measured).save()}', file=sys.stderr)
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
        raise UsageError('--k is for folder: data sets; the others bring their own intrinsics')
    return readers


def _measure(
    pipeline: DepthPipeline, reader: Reader, protocol: Protocol, card: ModelCard
) -> DatasetResult:
    from depth_node.evaluation.protocols import evaluate

    with _bar(reader) as bar:
        def advance(done: int, total: int) -> None:
            if bar is not None:
                bar.update(done - bar.n)

        return evaluate(
            pipeline, reader, protocol, metric_model=card.output.metric, progress=advance)


def _bar(reader: Reader) -> Any:
    """Return a progress bar on stderr that counts skipped frames too; None without tqdm."""
    try:
        from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]
    except ModuleNotFoundError:  # a robot without python3-tqdm
        return nullcontext()
    # disable=None: only on a terminal
    return tqdm(total=len(reader), desc=reader.name, unit='frame', disable=None, leave=False)


def _options(args: argparse.Namespace) -> list[str]:
    """Return the options that make this measurement as they would be typed, without defaults."""
    words = ['--model', str(args.model)]
    for spec in args.data:
        words += ['--data', spec]
    for option, value, default in (
        ('--align', ','.join(args.align), ','.join(_ALIGNMENTS)),
        ('--mode', ','.join(args.mode), ','.join(_MODES)),
        ('--backend', args.backend, 'auto'),
        ('--precision', args.precision, 'auto'),
        ('--k', args.k and ','.join(f'{value:g}' for value in args.k), None),
        ('--min-depth', args.min_depth, _MIN_DEPTH),
        ('--max-depth', args.max_depth, _MAX_DEPTH),
        ('--limit', args.limit, None),
    ):
        if value != default:
            words += [option, str(value)]
    return [*words, '--filters'] if args.filters else words


def _intrinsics(text: str) -> tuple[float, float, float, float]:
    try:
        fx, fy, cx, cy = (float(part) for part in text.split(','))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'{text!r}: four numbers FX,FY,CX,CY in pixels are expected') from None
    return fx, fy, cx, cy
