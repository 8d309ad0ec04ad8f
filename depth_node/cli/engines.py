"""`depth-node engines`: the TensorRT engines in the cache."""

from __future__ import annotations

import argparse
from pathlib import Path
import time
from typing import TYPE_CHECKING, Any

from depth_node.cli._common import positive_float, positive_int, print_json, table

if TYPE_CHECKING:
    from depth_node.backends.engine_cache import EngineCache, Entry

HELP = 'list, verify and prune built TensorRT engines'

_EPILOG = """\
An engine fits one ONNX file, one TensorRT, one GPU and one precision; it is used only if its
sidecar says so and its SHA-256 is what it was. Anything else is built anew when it is needed.

examples:
  depth-node engines                         list them
  depth-node engines verify                  read and hash every one; status 1 if one is broken
  depth-node engines prune                   remove what is broken or was left by killed programs
  depth-node engines prune --unused-days 90
  depth-node engines prune --all             every engine; they are built again when needed
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = _EPILOG
    actions = parser.add_subparsers(dest='action', metavar='ACTION')
    plain: dict[str, Any] = {'formatter_class': argparse.RawDescriptionHelpFormatter,
                             'allow_abbrev': False}
    listing = actions.add_parser('list', help='what is there (without an ACTION too)', **plain)
    verify = actions.add_parser('verify', help='read and hash every engine', **plain)
    prune = actions.add_parser('prune', help='remove broken engines and leftovers', **plain)
    prune.add_argument('--all', action='store_true', help='remove every engine')
    prune.add_argument('--unused-days', type=positive_float, metavar='N',
                       help='and those that were not used for N days')
    prune.add_argument('--limit-mb', type=positive_int, metavar='N',
                       help='and the longest unused ones beyond N MB')
    for sub in (parser, listing, verify, prune):
        sub.add_argument('--cache-dir', type=Path, metavar='DIR', default=argparse.SUPPRESS,
                         help="as the node's backend.cache_dir (~/.cache/depth_node)")
        sub.add_argument('--json', action='store_true', default=argparse.SUPPRESS,
                         help='print JSON')


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    from depth_node.backends.engine_cache import EngineCache, engines_folder

    as_json = getattr(args, 'json', False)
    cache = EngineCache(engines_folder(getattr(args, 'cache_dir', None)))
    if args.action == 'prune':
        return _prune(cache, args, as_json)
    entries = cache.verify() if args.action == 'verify' else cache.entries()
    if as_json:
        print_json({'folder': str(cache.folder), 'engines': [_row(entry) for entry in entries]})
    else:
        _print(cache, entries)
    return 1 if any(entry.problem for entry in entries) else 0


def _prune(cache: EngineCache, args: argparse.Namespace, as_json: bool) -> int:
    before = sum(entry.nbytes for entry in cache.entries())
    removed = cache.prune(everything=args.all, unused_days=args.unused_days,
                          limit_mb=args.limit_mb)
    freed = before - sum(entry.nbytes for entry in cache.entries())
    if as_json:
        print_json({'folder': str(cache.folder), 'removed': [str(path) for path in removed],
                    'freed_bytes': freed})
        return 0
    for path in removed:
        print(f'removed {path}')
    print(f'{cache.folder}: {len(removed)} removed, {freed / 1e6:.1f} MB of engines freed')
    return 0


def _row(entry: Entry) -> dict[str, Any]:
    from dataclasses import asdict

    return {'engine': str(entry.path), 'bytes': entry.nbytes, 'last_used': entry.last_used,
            'key': asdict(entry.key) if entry.key else None, 'info': entry.info,
            'problem': entry.problem or None}


def _print(cache: EngineCache, entries: list[Entry]) -> None:
    if not entries:
        print(f'{cache.folder}: no engines')
        return
    rows: list[tuple[str, ...]] = [('model', 'precision', 'GPU', 'built by', 'MB', 'last used',
                                    'state', 'engine')]
    for entry in entries:
        key = entry.key
        rows.append((
            str(entry.info.get('model', '?')), key.precision if key else '?',
            f'{key.gpu_name} (SM {key.sm // 10}.{key.sm % 10})' if key else '?',
            f'{key.module} {key.trt_version}' if key else '?', f'{entry.nbytes / 1e6:.1f}',
            time.strftime('%Y-%m-%d', time.localtime(entry.last_used)), entry.problem or 'ok',
            entry.path.name))
    print(f'{cache.folder}: {sum(entry.nbytes for entry in entries) / 1e6:.1f} MB')
    print(table(rows, right=False))
