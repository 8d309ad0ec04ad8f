"""`depth-node models`: the model cards that are found, and a card for a bare ONNX file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depth_node.cli import CommandError, UsageError
from depth_node.cli._common import print_json, size_hw, table

if TYPE_CHECKING:
    from depth_node.backends import Tensors
    from depth_node.model_card import CheckSpec, ModelCard

HELP = 'list, show, verify and lint models; write cards; put resizing into the graph'

_EPILOG = """\
A card is a YAML file beside an ONNX file: what the network wants and what its output means. Cards
are looked for in $DEPTH_NODE_MODELS, ~/.local/share/depth_node/models and where the package is.

examples:
  depth-node models                          list them
  depth-node models show small
  depth-node models verify                   hashes, and a run on every backend that is here
  depth-node models lint net.onnx            what TensorRT would refuse, and what to do about it
  depth-node models add net.onnx --kind depth --range 0.2 10 --licence Apache-2.0
  depth-node models add dav2.onnx --kind rel_inv_depth --licence Apache-2.0 \\
      --mean 123.675 116.28 103.53 --std 58.395 57.12 57.375
  depth-node models fuse-resize small --size 640x480    for a GPU: it resizes, the CPU copies
"""
_FUSE_EPILOG = """\
Writes NAME-WxH.onnx (and .fp16, .int8, .int8_trt where the card has them) with NAME-WxH.yaml: a
model that takes the whole picture of a camera, so that the CPU resizes nothing on the way in. It
is for GPUs; a CPU runs it slower than the model it came from, which depth-node bench shows. Each
file is compared with the way through OpenCV on seeded pictures, and not kept where depth moves.
The measurements in the card are of the old graph and are left out.

With --upsample depth comes back at the picture's size too. That is for results that stay on the
GPU: the node's filters work on the map that they are given, and take longer on a larger one.

examples:
  depth-node models fuse-resize small --size 640x480
  depth-node models fuse-resize net.yaml --size 1280x720 --out ~/models/net-hd.onnx
  depth-node bench --model small-640x480.yaml --size 640x480 --backends tensorrt
"""
_ADD_EPILOG = """\
Names, sizes and types are read from the graph; what a graph cannot tell is asked for:
  --kind   depth            metres along the optical axis
           log_depth        their natural logarithm
           inv_depth        1 / metres
           canonical_depth  metres as a camera of --canonical-focal px would need them
           rel_depth, rel_inv_depth   without a scale: larger is farther, larger is nearer
  --mean, --std   of a float32 input, in 0..255 units (ImageNet: 123.675 116.28 103.53 and
                  58.395 57.12 57.375); a uint8 input normalises inside the graph
The network is run once on a seeded picture; the card keeps the statistics of its output, by which
every backend is checked when it opens.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = _EPILOG
    verbs = parser.add_subparsers(dest='action', metavar='ACTION')
    plain: dict[str, Any] = {'formatter_class': argparse.RawDescriptionHelpFormatter,
                             'allow_abbrev': False}
    listing = verbs.add_parser('list', help='what is found (without an ACTION too)', **plain)
    show = verbs.add_parser('show', help='print a card', **plain)
    show.add_argument('model', help='card name, card file or ONNX file')
    verify = verbs.add_parser(
        'verify', help='compare hashes and run the self-check on every backend', **plain)
    verify.add_argument('models', nargs='*', metavar='model', help='default: all')
    check = verbs.add_parser(
        'lint', help='say what a runtime would refuse in the graphs, and the remedy', **plain)
    check.add_argument('models', nargs='+', metavar='model',
                       help='card name, card file or ONNX file, with or without a card')
    check.add_argument('--target', choices=('tensorrt', 'cpu'),
                       help="whose rules (the file's: cpu for int8 of a card, else tensorrt)")
    add = verbs.add_parser('add', help='write a card for an ONNX file',
                           epilog=_ADD_EPILOG, **plain)
    add.add_argument('onnx', type=Path, help='the FP32 ONNX file')
    add.add_argument('--kind', required=True, help='what the output means, see below')
    add.add_argument('--licence', required=True, help='of the weights, SPDX name')
    add.add_argument('--name', help="of the model (the file's)")
    add.add_argument('--int8', type=Path, metavar='ONNX', help='a quantised file of the same')
    add.add_argument('--range', type=float, nargs=2, dest='range_m', metavar=('NEAR', 'FAR'),
                     help='metres; for the metric kinds')
    add.add_argument('--canonical-focal', type=float, metavar='PX', help='for canonical_depth')
    add.add_argument('--assumed-hfov', type=float, metavar='DEG',
                     help='field of view taken where the camera is unknown')
    add.add_argument('--output', metavar='NAME', help="depth's name, if there are several outputs")
    add.add_argument('--confidence', metavar='NAME', help='an output 0..1, larger is surer')
    add.add_argument('--sky', metavar='NAME', help='an output 0..1, the sky')
    add.add_argument('--colour', choices=('rgb', 'bgr'), default='rgb', help='channel order (rgb)')
    add.add_argument('--mean', type=float, nargs=3, metavar='X')
    add.add_argument('--std', type=float, nargs=3, metavar='X')
    add.add_argument('--resize', choices=('stretch', 'keep_aspect', 'pad'),
                     help='how pictures of another size are fitted (stretch; keep_aspect for '
                          'networks that take any size)')
    add.add_argument('--multiple-of', type=int, metavar='N',
                     help='for networks that take any size: sides in steps of N')
    add.add_argument('--min', type=int, nargs=2, metavar=('H', 'W'), dest='min_hw')
    add.add_argument('--max', type=int, nargs=2, metavar=('H', 'W'), dest='max_hw')
    add.add_argument('--force', action='store_true', help='replace a card that is there')
    fuse = verbs.add_parser('fuse-resize', help='put the resizing of pictures into the graph',
                            epilog=_FUSE_EPILOG, **plain)
    fuse.add_argument('model', help='card name, card file or ONNX file with a card')
    fuse.add_argument('--size', type=size_hw, required=True, metavar='WxH',
                      help="of the camera's pictures")
    fuse.add_argument('--upsample', action='store_true',
                      help="return depth at the pictures' size too")
    fuse.add_argument('--out', type=Path, metavar='FILE',
                      help='FP32 file to write (NAME-WxH.onnx in this folder)')
    fuse.add_argument('--name', help="of the new model (the file's)")
    fuse.add_argument('--force', action='store_true', help='replace files that are there')
    for sub in (parser, listing, show, verify, check, add, fuse):
        sub.add_argument('--json', action='store_true', default=argparse.SUPPRESS,
                         help='print JSON')


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    args.json = getattr(args, 'json', False)
    actions = {None: _list, 'list': _list, 'show': _show, 'verify': _verify, 'lint': _lint,
               'add': _add, 'fuse-resize': _fuse_resize}
    return actions[args.action](args)


def _list(args: argparse.Namespace) -> int:
    from depth_node.model_card import CardError, ModelCard, card_folders, list_cards

    found: list[dict[str, Any]] = []
    broken = 0
    for path in list_cards():
        try:
            card = ModelCard.load(path)
        except CardError as error:
            found.append({'name': path.stem, 'card': str(path), 'error': str(error)})
            broken += 1
            continue
        found.append({
            'name': card.name, 'card': str(path), 'licence': card.licence,
            'kind': card.output.kind, 'input_hw': card.input.size_hw,
            'precisions': list(card.precisions),
            'bytes': {key: spec.path.stat().st_size if spec.path.exists() else None
                      for key, spec in card.precisions.items()}})
    if args.json:
        print_json({'folders': [str(folder) for folder in card_folders()], 'models': found})
        return 1 if broken else 0
    if not found:
        print('no model card found; looked in:', *card_folders(), sep='\n  ')
        return 1
    rows: list[tuple[str, ...]] = [('name', 'kind', 'input', 'files', 'licence', 'card')]
    for row in found:
        if 'error' in row:
            rows.append((row['name'], 'not usable', '', '', '', row['error']))
            continue
        size = 'x'.join(map(str, reversed(row['input_hw']))) if row['input_hw'] else 'any'
        files = ', '.join(f'{key} {size_ / 1e6:.1f} MB' if size_ is not None else f'{key} MISSING'
                          for key, size_ in row['bytes'].items())
        rows.append((row['name'], row['kind'], size, files, row['licence'], row['card']))
    print(table(rows, right=False))
    return 1 if broken else 0


def _show(args: argparse.Namespace) -> int:
    from depth_node.model_card import ModelCard
    import yaml

    card = ModelCard.load(args.model)
    if args.json:
        print_json({'card': str(card.path), **card.to_dict()})
    else:
        print(f'# {card.path}')
        print(yaml.safe_dump(card.to_dict(), sort_keys=False, width=99, allow_unicode=True),
              end='')
    return 0


def _verify(args: argparse.Namespace) -> int:
    from depth_node.model_card import list_cards

    results = [verify_card(path) for path in (args.models or list_cards())]
    if not results:
        raise CommandError('no model card found (depth-node models lists the folders)')
    failed = sum(not result['ok'] for result in results)
    if args.json:
        print_json({'failed': failed, 'models': results})
        return 1 if failed else 0
    for result in results:
        print(f'{result["model"]}: {"ok" if result["ok"] else "NOT OK"}')
        for line in result['lines']:
            print(f'  {"ok    " if line["ok"] else "FAILED"}  {line["what"]}: {line["detail"]}')
    return 1 if failed else 0


def verify_card(name_or_path: str | Path) -> dict[str, Any]:
    """Hash a card's files and run its self-check on every backend that is installed.

    Returns:
        model, ok, and lines of what, ok, detail.
    """
    from dataclasses import replace

    from depth_node.backends import (
        AUTO_ORDER,
        BackendError,
        availability,
        open_backend,
        runnable,
        self_check,
    )
    from depth_node.model_card import CardError, ModelCard

    lines: list[dict[str, Any]] = []

    def note(what: str, ok: bool, detail: str) -> None:
        lines.append({'what': what, 'ok': ok, 'detail': detail})

    try:
        card = ModelCard.load(name_or_path)
    except CardError as error:
        note('card', False, str(error))
        return {'model': str(name_or_path), 'ok': False, 'lines': lines}
    sound = {}
    for precision in card.precisions:
        try:
            path = card.verify_file(precision)
            note(f'{precision} file', True, f'{path.name}, SHA-256 as in the card')
            sound[precision] = card.precisions[precision]
        except CardError as error:
            note(f'{precision} file', False, str(error))
    for name in AUTO_ORDER:
        if availability(name).version is None:
            continue
        for precision in runnable(replace(card, precisions=sound), name):
            what = f'{name} {precision}'
            try:
                with open_backend(card, name, precision) as backend:
                    note(what, True, self_check(backend).detail)
            except BackendError as error:
                note(what, False, str(error))
    return {'model': card.name, 'ok': all(line['ok'] for line in lines), 'lines': lines}


def _lint(args: argparse.Namespace) -> int:
    """Lint files; a card's are run too, so that the largest activation is known."""
    from depth_node.export.lint import lint

    results: list[dict[str, Any]] = []
    for model in args.models:
        for path, target, batches in _lint_files(model, args.target):
            try:
                found = lint(path, target=target, batches=batches)
            except ValueError as error:
                raise CommandError(str(error)) from error
            results.append({'file': str(path), 'target': target, 'findings': [
                {'severity': f.severity, 'rule': f.rule, 'node': f.node, 'text': f.text}
                for f in found]})
    failed = any(finding['severity'] == 'error'
                 for result in results for finding in result['findings'])
    if args.json:
        print_json({'failed': failed, 'files': results})
        return 1 if failed else 0
    for result in results:
        findings = result['findings']
        print(f'{result["file"]}: {f"{len(findings)} findings" if findings else "nothing found"} '
              f'for {result["target"]}')
        for finding in findings:
            print(f'  {finding["severity"]:7}  {finding["rule"]}: {finding["node"]}: '
                  f'{finding["text"]}')
    return 1 if failed else 0


def _lint_files(
    model: str, target: str | None
) -> list[tuple[Path, str, list[dict[str, Any]]]]:
    """Name the files of a card, or the one of a bare graph, with whose rules and with feeds."""
    from depth_node.backends import check_batch
    from depth_node.model_card import CardError, ModelCard

    path = Path(model).expanduser()
    try:
        card = ModelCard.load(model)
    except CardError:
        if path.suffix == '.onnx' and path.is_file():
            return [(path, target or 'tensorrt', [])]
        raise
    size_hw = card.input.size_hw or card.input.min_hw
    batches = [] if size_hw is None else [
        {card.input.name: check_batch(card.input, seed, size_hw).copy()} for seed in range(3)]
    files = {key: spec.path for key, spec in card.precisions.items()
             if path.suffix != '.onnx' or spec.path == path.absolute()}
    return [(file, target or ('cpu' if key == 'int8' else 'tensorrt'), batches)
            for key, file in files.items()]


def _add(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from depth_node.backends import (
        AUTO_ORDER,
        availability,
        open_backend,
        runnable,
        self_check,
        signature,
    )
    from depth_node.model_card import METRIC_KINDS, ModelCard, model_sha256

    onnx: Path = args.onnx
    for path in (onnx, args.int8):
        if path is not None and not path.is_file():
            raise CommandError(f'{path}: there is no such file')
    target = onnx.with_suffix('.yaml')
    if target.exists() and not args.force:
        raise CommandError(f'{target} is there already; --force replaces it')
    inputs, outputs = signature(onnx)
    files = {'fp32': {'file': onnx.name, 'sha256': model_sha256(onnx)}}
    if args.int8 is not None:
        if args.int8.resolve().parent != onnx.resolve().parent:
            raise UsageError(f'{args.int8} must lie in the folder of {onnx}')
        files['int8'] = {'file': args.int8.name, 'sha256': model_sha256(args.int8)}
    depth = _output_name(args, outputs)
    output: dict[str, Any] = {'name': depth, 'kind': args.kind,
                              'unit': 'm' if args.kind in METRIC_KINDS else 'none'}
    if args.kind in METRIC_KINDS:
        if args.range_m is None:
            raise UsageError(f'--kind {args.kind} is in metres: --range NEAR FAR is needed')
        output['range_m'] = list(args.range_m)
    for key, value in (('canonical_focal_px', args.canonical_focal),
                       ('assumed_hfov_deg', args.assumed_hfov),
                       ('confidence', args.confidence), ('sky', args.sky)):
        if value is not None:
            output[key] = value
    card = ModelCard.from_dict({
        'card_version': 1, 'name': args.name or onnx.stem, 'licence': args.licence,
        'files': files, 'input': _input_section(args, inputs), 'output': output,
        'provenance': {'command': 'depth-node models add'}, 'metrics': {}}, target.absolute())
    # the reference statistics come from one runtime and must be found by every other one
    names = [name for name in AUTO_ORDER[::-1] if availability(name).version is not None]
    if not names:
        raise CommandError('no backend is installed to run the network once; pip install '
                           "'.[cpu]' in the clone")
    with open_backend(card, names[0], 'fp32') as backend:
        card = replace(card, check=_reference(card, backend))
    verified: list[dict[str, Any]] = []
    for name in names:
        for precision in runnable(card, name):
            with open_backend(card, name, precision) as backend:
                verified.append({'backend': name, 'precision': precision,
                                 'detail': self_check(backend).detail})
    card.save()  # only now: a card that a backend refuses is not worth having
    if args.json:
        print_json({'card': str(card.path), 'reference': names[0], 'checks': verified})
    else:
        print(f'wrote {card.path}; reference statistics by {names[0]}')
        for row in verified:
            print(f'  {row["backend"]} {row["precision"]}: {row["detail"]}')
    return 0


def _reference(card: ModelCard, backend: Any) -> CheckSpec:
    """Run the seeded picture; return the statistics that the card will keep."""
    from depth_node.backends import check_batch
    from depth_node.model_card import CheckSpec, statistics_of

    size_hw = card.input.size_hw or card.input.min_hw
    if size_hw is None:
        raise CommandError('the card names no input size')
    outputs = backend.run(check_batch(card.input, 7, size_hw))
    mean, std, percentiles = statistics_of(outputs[card.output.name])
    sure = card.output.confidence
    return CheckSpec(7, size_hw, mean, std, percentiles,
                     {'fp32': 0.002, 'bf16': 0.03, 'fp16': 0.01, 'int8': 0.05},
                     None if sure is None else float(outputs[sure].mean()))


def _output_name(args: argparse.Namespace, outputs: Tensors) -> str:
    if args.output is not None:
        return str(args.output)
    rest = [name for name in outputs if name not in (args.confidence, args.sky)]
    if len(rest) != 1:
        raise UsageError(f'the graph has the outputs {", ".join(outputs)}: say by --output which '
                         'one is depth')
    return rest[0]


def _input_section(args: argparse.Namespace, inputs: Tensors) -> dict[str, Any]:
    """Describe the input as the graph has it, and as the options say."""
    if len(inputs) != 1:
        raise CommandError(f'the graph has the inputs {", ".join(inputs)}; networks with one '
                           'picture as input can be run')
    [(name, (kind, shape))] = inputs.items()
    if kind == 'uint8' and len(shape) == 4 and shape[3] == 3:
        section: dict[str, Any] = {'layout': 'uint8_nhwc'}
        sides = shape[1:3]
        if args.mean or args.std:
            raise UsageError('--mean and --std: the input is uint8, the graph normalises itself')
    elif kind == 'float32' and len(shape) == 4 and shape[1] in (3, None):
        section = {'layout': 'float32_nchw'}
        sides = shape[2:]
        if not args.mean or not args.std:
            raise UsageError('the input is float32: --mean and --std are needed (0..255 units; '
                             'networks of ImageNet: see --help)')
        section.update(mean=args.mean, std=args.std)
    else:
        shown = ['?' if side is None else side for side in shape]
        raise CommandError(f'input {name!r} is {kind} {shown}; uint8 (1, H, W, 3) or float32 '
                           '(1, 3, H, W) can be run')
    if shape[0] not in (1, None):
        raise CommandError(f'input {name!r} takes {shape[0]} pictures at once; export it for one')
    section.update(name=name, colour=args.colour)
    if None not in sides:
        if args.multiple_of or args.min_hw or args.max_hw:
            raise UsageError(f'the graph is for {sides[1]}x{sides[0]} px alone: no --multiple-of, '
                             '--min or --max')
        return {**section, 'size_hw': list(sides), 'resize': args.resize or 'stretch'}
    if not args.multiple_of or not args.min_hw or not args.max_hw:
        raise UsageError('the graph takes any size: --multiple-of N, --min H W and --max H W say '
                         'which sizes make sense')
    return {**section, 'multiple_of': args.multiple_of, 'min_hw': args.min_hw,
            'max_hw': args.max_hw, 'resize': args.resize or 'keep_aspect'}


def _fuse_resize(args: argparse.Namespace) -> int:
    """Write a model that resizes by itself, and say how close to the old one it is."""
    from depth_node.model_card import ModelCard

    try:
        from depth_node.export.fuse import FuseError, fuse_resize
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ModuleNotFoundError as error:
        raise CommandError(f'{error.name} is not installed; pip install onnx onnxruntime (or '
                           "'.[export]' in the clone)") from error
    card = ModelCard.load(args.model)
    height, width = args.size
    out: Path = args.out or Path(f'{args.name or f"{card.name}-{width}x{height}"}.onnx')
    there = [path for path in (out, out.with_suffix('.yaml')) if path.exists()]
    if there and not args.force:
        raise CommandError(f'{there[0]} is there already; --force replaces it')
    if out.resolve() in {spec.path.resolve() for spec in card.precisions.values()}:
        raise UsageError(f'{out}: is the model itself; choose another --out')
    options = (' --upsample' if args.upsample else '') + (
        f' --name {args.name}' if args.name else '')
    try:
        new, parity = fuse_resize(
            card, args.size, out, upsample=args.upsample, name=args.name,
            command=f'depth-node models fuse-resize {card.name} --size {width}x{height}{options}')
    except FuseError as error:
        raise CommandError(str(error)) from error
    if args.json:
        print_json({'card': str(new.path), 'files': {
            key: {'file': str(spec.path), 'mean_rel': parity[key].mean_rel,
                  'p99_rel': parity[key].p99_rel, 'holes': parity[key].holes}
            for key, spec in new.precisions.items()}})
        return 0
    print(f'wrote {new.path} for pictures of {width}x{height}; depth against resizing outside:')
    for key, spec in new.precisions.items():
        print(f'  {spec.path.name}: {100 * parity[key].mean_rel:.2g} % off on average, 99 % of '
              f'the pixels within {100 * parity[key].p99_rel:.2g} %')
    return 0
