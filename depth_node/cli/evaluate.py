"""`depth-node evaluate`: measure a model on frames with true depth."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from dataclasses import replace
import os
from pathlib import Path
import sys
from typing import TYPE_CHECKING, Any, Final

from depth_node.cli import CommandError, UsageError, package_version
from depth_node.cli._common import (
    add_model_arguments,
    one_of_each,
    open_model,
    positive_float,
    positive_int,
    print_json,
)

if TYPE_CHECKING:
    from depth_node.backends import Backend
    from depth_node.evaluation.protocols import DatasetResult, Protocol
    from depth_node.evaluation.readers import Reader
    from depth_node.evaluation.report import Run
    from depth_node.model_card import ModelCard
    from depth_node.pipeline import DepthPipeline

HELP = 'measure a model on frames with true depth, beside a trivial baseline'

_EPILOG: Final = """\
data sets:
  osd:FOLDER        learnNN.jpg + learnNN_depth_mm.png, Kinect 640x480
  motorcycle        a Middlebury picture that comes with scikit-image
  aloe:FOLDER       aloeL.jpg + aloeGT.png of Debian's opencv-doc; affine alignment only
  rendered:FOLDER   frames of depth-node synthesize: a root (its test split), a split or a scene
  folder:FOLDER     X.jpg|png + X_depth_mm.png or X.npy (float m); all of it; K by --k
  KIND:FOLDER[,split=test][,OPTION=VALUE]
                    every data set with true depth or order: nyu_mat, nyu_densedepth, list,
                    kitti, diode, make3d, sunrgbd, megadepth, diw, redweb, hypersim, vkitti2, bag;
                    options are those of data.options in a training configuration; split=all
                    takes all

The model runs in the same pipeline as on the robot. The baseline is the best plane in inverse
depth, fitted to the truth of each frame: a ratio below 1 beats it. A protocol sets crop, range,
alignment, mode and resizing as published numbers were made; docs/evaluation.md says which.
Several rendered: folders are given apart and together, by kind of scene and by range.

examples:
  depth-node evaluate --data osd:osd_learn --data motorcycle --out report
  depth-node evaluate --data rendered:frames --precision int8 --align none --json
  depth-node evaluate --data rendered:rooms --data rendered:tables --data motorcycle \\
      --baseline old/results.json --summary docs/results/small.md
  depth-node evaluate --data folder:mine --k 525,525,319.5,239.5
  depth-node evaluate --checkpoint runs/x/best.ckpt --data nyu_mat:nyu --protocol nyu_eigen
"""
_ALIGNMENTS: Final = ('none', 'median', 'affine', 'affine_depth')
_MODES: Final = ('per-image', 'pooled')
# the evaluator's, repeated for --help, which must not load it; a test compares
_PROTOCOLS: Final = ('nyu_eigen', 'nyu_densedepth', 'nyu_fcrn', 'kitti_garg', 'kitti_eigen',
                     'kitti_kb', 'kitti_50m', 'make3d_c1', 'make3d_c2')
_CROPS: Final = ('none', 'nyu_eigen', 'nyu_densedepth', 'kitti_garg', 'kitti_eigen')
_SPACES: Final = ('depth', 'inv_depth')
_FLIPS: Final = ('none', 'mean', 'ramp')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = _EPILOG
    parser.add_argument('--data', action='append', required=True, metavar='KIND[:FOLDER]',
                        help='data set, see below; may be given several times')
    add_model_arguments(parser)
    trained = parser.add_argument_group('instead of a model')
    trained.add_argument('--checkpoint', type=Path, metavar='FILE.ckpt',
                         help='measure a checkpoint of depth-node train, in torch')
    trained.add_argument('--device', choices=('auto', 'cpu', 'cuda'), default='auto',
                         help='where torch runs it (auto: cuda where there is one)')
    parser.add_argument('--baseline', metavar='FILE.json|NAME|FILE',
                        help='compare frame by frame with the results.json of an earlier run, or '
                             'with another model (card name, card or ONNX file), which is then '
                             'measured too, with the same backend and precision')
    rules = parser.add_argument_group('protocol')
    rules.add_argument('--protocol', choices=_PROTOCOLS, metavar='NAME',
                       help='one of ' + ', '.join(_PROTOCOLS) + '; the options below change it')
    rules.add_argument('--align', type=one_of_each(_ALIGNMENTS), metavar='LIST',
                       help='of none (metric), median, affine (of inverse depth), affine_depth '
                            '(of depth) (the first three, as far as they apply)')
    rules.add_argument('--mode', type=one_of_each(_MODES), metavar='LIST',
                       help='of per-image (mean of the frames), pooled (all pixels) (both)')
    rules.add_argument('--min-depth', type=positive_float, metavar='M',
                       help='nearer truth is not judged, predictions are clamped (0.001)')
    rules.add_argument('--max-depth', type=positive_float, metavar='M',
                       help='farther truth is not judged, predictions are clamped (10)')
    rules.add_argument('--crop', choices=_CROPS, metavar='NAME',
                       help='part of the truth that is judged: ' + ', '.join(_CROPS) + ' (none)')
    rules.add_argument('--resize-in', choices=_SPACES,
                       help='what is interpolated on the way to the size of the truth (depth)')
    rules.add_argument('--flip', choices=_FLIPS,
                       help='average with the mirrored prediction of the mirrored picture; ramp '
                            "as Monodepth's post-processing (none)")
    rules.add_argument('--scale', type=positive_float, metavar='FACTOR',
                       help='multiply the prediction, say by 5.4 for Monodepth2 trained on KITTI '
                            'stereo with a baseline of 0.1; a relative network is then metric')
    rules.add_argument('--normals', action='store_true',
                       help='compare normals computed from both depths, where K is known')
    rules.add_argument('--wkdr-threshold', type=positive_float, metavar='SHARE',
                       help='ratio within which a pair is equal, 0.02 for 2 %% (where both kinds '
                            'of error are alike)')
    rules.add_argument('--filters', action='store_true',
                       help="keep the product's filters (range clip, flying pixels); without it "
                            'every pixel that the network gives is measured')
    rules.add_argument('--k', type=_intrinsics, metavar='FX,FY,CX,CY',
                       help='intrinsics of folder: data sets, pixels')
    rules.add_argument('--limit', type=positive_int, metavar='N',
                       help='at most N frames of each data set, evenly spread')
    output = parser.add_argument_group('output')
    output.add_argument('--out', type=Path, metavar='DIR',
                        help='write results.json, report.md, frames.csv and a page of pictures '
                             'per data set')
    output.add_argument('--summary', type=Path, metavar='FILE.md',
                        help='write a short report to keep')
    output.add_argument('--examples', type=positive_int, default=3, metavar='N',
                        help='worst and best frames on such a page (3 of each)')
    output.add_argument('--update-card', action='store_true',
                        help="write the numbers into the model's card, under "
                             'metrics.<precision>.<data set>')
    output.add_argument('--json', action='store_true', help='print JSON instead of the table')


def run(args: argparse.Namespace) -> int:
    """Measure, print, write; 0 when every data set was measured, 1 otherwise."""
    from depth_node.evaluation import compare, report
    from depth_node.evaluation.readers import DataError

    if args.update_card and (args.limit is not None or args.filters):
        raise UsageError('--update-card records whole data sets without filters; '
                         'drop --limit and --filters')
    if args.checkpoint is not None:
        _check_checkpoint_usage(args)
    _make_folders(args)
    protocol = _protocol(args)
    readers = _open_readers(args)
    earlier = _read_baseline(args.baseline)

    card, backend = open_model(args) if args.checkpoint is None else _open_checkpoint(args)
    measured, failures = _measure_all(args, card, backend, readers, protocol)
    if args.baseline is not None and measured.results:
        try:
            if earlier is None:
                other = argparse.Namespace(**{**vars(args), 'model': args.baseline})
                second, more = _measure_all(other, *open_model(other), readers,
                                            replace(protocol, examples=0))
                failures += [line for line in more if line not in failures]
                earlier = report.to_json(second)
            comparison = compare.compare(report.to_json(measured), earlier)
            measured = replace(measured, comparison=comparison)
        except DataError as error:
            failures.append(f'{args.baseline}: {error}')

    if args.json:
        print_json(report.to_json(measured))
    elif measured.results:
        print(report.text_table(measured))
    for result in measured.results:
        for note in result.notes:
            print(f'{result.name}: {note}', file=sys.stderr)
        for skipped in result.skipped:
            print(f'{result.name}: skipped {skipped.name}: {skipped.reason}', file=sys.stderr)
    if args.out is not None and measured.results:
        for path in report.write(measured, args.out):
            print(f'wrote {path}', file=sys.stderr)
    if args.summary is not None and measured.results:
        args.summary.write_text(report.summary_markdown(measured), encoding='utf-8')
        print(f'wrote {args.summary}', file=sys.stderr)
    for failure in failures:
        print(f'depth-node evaluate: {failure}', file=sys.stderr)
    if failures:
        if args.update_card:
            print('depth-node evaluate: the card was not changed', file=sys.stderr)
        return 1
    if args.update_card:
        print(f'wrote {report.updated_card(card, measured).save()}', file=sys.stderr)
    return 0


def _make_folders(args: argparse.Namespace) -> None:
    """Make the folders of the results, before anything is measured.

    Raises:
        CommandError: there cannot be such a folder.
    """
    for option, folder in (('--out', args.out), ('--summary', args.summary and
                                                 args.summary.parent)):
        if folder is None:
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CommandError(f'{option}: {folder} cannot be a folder ({error.strerror}); give '
                               'one that can be written') from error
        if not os.access(folder, os.W_OK):
            raise CommandError(f'{option}: {folder} cannot be written; give another folder')


def _read_baseline(name: str | None) -> dict[str, Any] | None:
    """Read the report that a baseline names; None where it names a model."""
    from depth_node.evaluation import compare
    from depth_node.model_card import ModelCard

    if name is None:
        return None
    if name.endswith('.json'):
        return compare.read_report(Path(name))
    ModelCard.load(name)  # before hours of measuring the other one
    return None


def _measure_all(
    args: argparse.Namespace, card: ModelCard, backend: Backend, readers: list[Reader],
    protocol: Protocol,
) -> tuple[Run, list[str]]:
    """Measure one model on all data sets; returns also what could not be measured."""
    import datetime

    from depth_node.evaluation import report
    from depth_node.evaluation.readers import DataError
    from depth_node.filters import FilterSettings
    from depth_node.pipeline import DepthPipeline
    from depth_node.scale import Scale

    filters = FilterSettings() if args.filters else FilterSettings.off()
    scale = None if args.scale is None else Scale('fixed', args.scale)
    # with a given scale the output is in metres, whatever the card says
    kind = card.output.kind if args.scale is None else 'depth'
    if args.align is None and args.protocol is None and kind == 'rel_depth':
        protocol = replace(protocol, alignments=('median', 'affine_depth'))
    results: list[DatasetResult] = []
    failures: list[str] = []
    with backend:
        pipeline = DepthPipeline(
            backend, scale=scale, filters=filters, resize_in=protocol.resize_in)
        for reader in readers:
            try:
                results.append(_measure(pipeline, reader, protocol, kind))
            except DataError as error:
                failures.append(str(error))
        # bf16 is the FP32 file, computed in less
        spec = card.precisions.get(backend.precision) or card.precisions['fp32']
        return report.Run(
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
            results=(*results, *_rendered_together(results)),
        ), failures


def _rendered_together(results: list[DatasetResult]) -> list[DatasetResult]:
    """Join rendered folders: one number over all recipes, beside that of each."""
    from depth_node.evaluation.protocols import joined

    rendered = [result for result in results if result.kind == 'rendered']
    return [joined(rendered, f'rendered ({len(rendered)} sets)')] if len(rendered) > 1 else []


def _protocol(args: argparse.Namespace) -> Protocol:
    """Return the named protocol with what the options change; the name then says so."""
    from depth_node.evaluation.protocols import PROTOCOLS, Protocol

    base = PROTOCOLS[args.protocol] if args.protocol else Protocol()
    given = {
        'alignments': args.align, 'modes': args.mode, 'min_depth': args.min_depth,
        'max_depth': args.max_depth, 'crop': args.crop, 'resize_in': args.resize_in,
        'flip': args.flip, 'wkdr_threshold': args.wkdr_threshold,
    }
    changes = {key: value for key, value in given.items()
               if value is not None and value != getattr(base, key)}
    name = base.name
    if args.protocol and changes:
        name += f' (changed: {", ".join(changes)})'
    near = changes.get('min_depth', base.min_depth)
    far = changes.get('max_depth', base.max_depth)
    if not near < far:
        raise UsageError(f'--min-depth {near:g} is not below --max-depth {far:g}')
    return replace(
        base, **changes, name=name, normals=args.normals,
        # asked for by name, median scaling is the user's decision
        median_for_relative=base.median_for_relative or 'median' in (args.align or ()),
        examples=args.examples if args.out is not None else 0)


def _check_checkpoint_usage(args: argparse.Namespace) -> None:
    if args.update_card:
        raise UsageError('--update-card: a checkpoint has no card; run depth-node export first')
    if args.model != 'small' or args.backend != 'auto' or args.precision not in ('auto', 'fp32'):
        raise UsageError('--checkpoint runs in torch in FP32; drop --model, --backend and '
                         '--precision, or export it first')


def _open_checkpoint(args: argparse.Namespace) -> tuple[ModelCard, Backend]:
    from depth_node.export.torch_backend import TorchBackend, card_of
    from depth_node.training.checkpoints import network_of, read_checkpoint

    network = network_of(read_checkpoint(args.checkpoint))
    card = card_of(network, args.checkpoint)
    return card, TorchBackend(network, card, device=args.device, threads=args.threads)


def _open_readers(args: argparse.Namespace) -> list[Reader]:
    from depth_node.cli._datasets import open_reader

    readers = []
    names: dict[str, int] = {}
    for spec in args.data:
        reader = open_reader(spec, intrinsics=args.k, protocol=args.protocol or 'default')
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
    pipeline: DepthPipeline, reader: Reader, protocol: Protocol, output_kind: str
) -> DatasetResult:
    from depth_node.evaluation.protocols import evaluate

    with _bar(reader) as bar:
        def advance(done: int, total: int) -> None:
            if bar is not None:
                bar.update(done - bar.n)

        return evaluate(pipeline, reader, protocol, output_kind=output_kind, progress=advance)


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
    if args.checkpoint is None:
        words = ['--model', str(args.model)]
    else:
        words = ['--checkpoint', str(args.checkpoint)]
    for spec in args.data:
        words += ['--data', spec]
    words += ['--baseline', args.baseline] if args.baseline is not None else []
    for option, value, default in (
        ('--protocol', args.protocol, None),
        ('--align', args.align and ','.join(args.align), None),
        ('--mode', args.mode and ','.join(args.mode), None),
        ('--backend', args.backend, 'auto'),
        ('--precision', args.precision, 'auto'),
        ('--device', args.device, 'auto'),
        ('--k', args.k and ','.join(f'{value:g}' for value in args.k), None),
        ('--min-depth', args.min_depth, None),
        ('--max-depth', args.max_depth, None),
        ('--crop', args.crop, None),
        ('--resize-in', args.resize_in, None),
        ('--flip', args.flip, None),
        ('--scale', args.scale, None),
        ('--wkdr-threshold', args.wkdr_threshold, None),
        ('--limit', args.limit, None),
    ):
        if value != default:
            words += [option, str(value)]
    words += ['--normals'] if args.normals else []
    return [*words, '--filters'] if args.filters else words


def _intrinsics(text: str) -> tuple[float, float, float, float]:
    try:
        fx, fy, cx, cy = (float(part) for part in text.split(','))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'{text!r}: four numbers FX,FY,CX,CY in pixels are expected') from None
    return fx, fy, cx, cy
