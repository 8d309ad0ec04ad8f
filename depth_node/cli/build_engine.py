"""`depth-node build-engine`: build the TensorRT engine of a model before the node has to."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
import sys
import time
from typing import TYPE_CHECKING, Any

from depth_node.cli import CommandError, UsageError
from depth_node.cli._common import positive_int, print_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from depth_node.backends.tensorrt_build import Progress
    from depth_node.model_card import ModelCard

HELP = 'build the TensorRT engine of a model for this GPU'

_EPILOG = """\
The engine goes into the cache, where the node and the other verbs find it; without this verb the
node builds it when it starts for the first time, which takes minutes. It is then run on the card's
reference picture: fp16 that is wrong on this GPU is refused, and auto goes on.

With -o the plan goes into a file instead and is not run. TensorRT-RTX so builds without a GPU, for
the one that --target-sm names: whether a network can become an engine is known before the robot.

examples:
  depth-node build-engine small
  depth-node build-engine small --precision fp32 --json
  depth-node build-engine net.yaml --module tensorrt_rtx --target-sm 86 -o net.sm86.engine
"""
_PRECISIONS = ('auto', 'fp32', 'fp16', 'mixed', 'int8')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = _EPILOG
    parser.add_argument('model', help='card name, card file or ONNX file with a card')
    parser.add_argument('--precision', choices=_PRECISIONS, default='auto',
                        help='auto is fp16 where the self-check passes, else mixed (fp16 but '
                             'for risky layers; TensorRT 8 and 10), else fp32 (auto)')
    parser.add_argument('--cache-dir', type=Path, metavar='DIR',
                        help="as the node's backend.cache_dir (~/.cache/depth_node)")
    parser.add_argument('--json', action='store_true', help='print JSON')
    group = parser.add_argument_group('into a file')
    group.add_argument('-o', '--out', type=Path, metavar='FILE', help='the plan to write')
    group.add_argument('--module', choices=('tensorrt', 'tensorrt_rtx'),
                       help='what builds it (tensorrt if it is here)')
    group.add_argument('--target-sm', type=positive_int, metavar='NN',
                       help='compute capability of another GPU, 86 for 8.6; tensorrt_rtx only')
    group.add_argument('--size', type=positive_int, nargs=2, metavar=('H', 'W'),
                       help='of a network that takes any: the size to be fast at')
    group.add_argument('--memory-mib', type=positive_int, metavar='N',
                       help='scratch memory that the engine may use (1024)')
    group.add_argument('--optimization-level', type=int, choices=range(6), metavar='0..5',
                       help="5 builds longest and runs fastest (TensorRT's own: 3)")


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    from depth_node.model_card import ModelCard

    card = ModelCard.load(args.model)
    if args.out is not None:
        result = _into_file(args, card)
    else:
        for name in ('module', 'target_sm', 'size', 'memory_mib', 'optimization_level'):
            if getattr(args, name) is not None:
                raise UsageError(f'--{name.replace("_", "-")} goes with -o: the cache is for the '
                                 'engine that the node would build')
        result = _into_cache(args, card)
    if args.json:
        print_json(result)
    else:
        what = f'{result["precision"]} by {result["module"]} {result["version"]}'
        if result['self_check']:
            print(f'self-check: {result["self_check"]}')
        verb = 'built in' if result['built'] else 'was there; found in'
        print(f'{result["engine"]}: {result["bytes"] / 1e6:.1f} MB, {what}, {verb} '
              f'{result["seconds"]:.1f} s')
    return 0


def _into_cache(args: argparse.Namespace, card: ModelCard) -> dict[str, Any]:
    """Open the backend as the node does, which builds what is not there, and close it."""
    from depth_node.backends import open_backend, self_check
    from depth_node.backends.engine_cache import EngineCache, engines_folder
    from depth_node.backends.tensorrt_build import watching

    def tell(line: str) -> None:  # where there is no bar
        print(line, file=sys.stderr)

    built = False
    start = time.monotonic()
    with _bar() as progress:
        def seen(phase: str, share: float) -> None:
            nonlocal built
            built = True
            progress(phase, share)

        with watching(seen):
            backend = open_backend(card, 'tensorrt', args.precision, cache_dir=args.cache_dir,
                                   tell=None if sys.stderr.isatty() else tell)
    seconds = time.monotonic() - start
    for _, reason in backend.refusals:
        print(f'passed over: {reason}', file=sys.stderr)
    with backend:
        detail = self_check(backend).detail
    hashes = {spec.sha256 for spec in card.precisions.values()}
    for entry in EngineCache(engines_folder(args.cache_dir)).entries():  # the last used first
        key = entry.key
        if key is not None and key.precision == backend.precision and key.onnx_sha256 in hashes:
            return {
                'model': card.name, 'precision': backend.precision, 'module': key.module,
                'version': key.trt_version, 'gpu': key.gpu_name, 'sm': key.sm,
                'engine': str(entry.path), 'bytes': entry.nbytes, 'built': built,
                'seconds': round(seconds, 1), 'self_check': detail,
                'passed_over': [reason for _, reason in backend.refusals]}
    raise CommandError(f'the engine works, but {engines_folder(args.cache_dir)} does not keep it; '
                       'is there room, and may it be written?')


def _into_file(args: argparse.Namespace, card: ModelCard) -> dict[str, Any]:
    import importlib.util

    from depth_node.backends.tensorrt_build import (
        DEFAULT_MEMORY_MIB,
        BuildRequest,
        build_in_child,
        card_file,
        is_typed,
        profile_of,
    )

    if args.cache_dir is not None:
        raise UsageError('--cache-dir goes without -o')
    module = args.module
    if module is None:
        here = args.target_sm is None and importlib.util.find_spec('tensorrt') is not None
        module = 'tensorrt' if here else 'tensorrt_rtx'
    trt = importlib.import_module(module)
    precision = args.precision
    if precision == 'auto':
        precision = 'fp16' if not is_typed(trt) or 'fp16' in card.precisions else 'fp32'
    request = BuildRequest(
        onnx=card_file(card, precision, typed=is_typed(trt, precision)), precision=precision,
        profile=profile_of(card.input, tuple(args.size) if args.size else None),
        memory_mib=args.memory_mib or DEFAULT_MEMORY_MIB, target_sm=args.target_sm,
        optimization_level=args.optimization_level)
    start = time.monotonic()
    with _bar() as progress:
        build_in_child(request, args.out, progress, module)
    return {
        'model': card.name, 'precision': precision, 'module': module,
        'version': str(trt.__version__), 'gpu': None, 'sm': args.target_sm,
        'engine': str(args.out), 'bytes': args.out.stat().st_size, 'built': True,
        'seconds': round(time.monotonic() - start, 1), 'self_check': None, 'passed_over': []}


@contextlib.contextmanager
def _bar() -> Iterator[Progress]:
    """Give a progress callable that draws a bar on stderr; silent where that is no terminal."""
    try:
        from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]
    except ModuleNotFoundError:  # a robot without python3-tqdm
        yield lambda phase, share: None
        return
    with tqdm(total=100, disable=None, leave=False,
              bar_format='{percentage:3.0f} %|{bar}| {elapsed} {desc}') as bar:
        def progress(phase: str, share: float) -> None:
            bar.n = 100 * share
            bar.set_description_str(phase)  # draws it, with the time that goes on

        yield progress
