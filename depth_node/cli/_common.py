"""What several verbs share: choosing a model, progress bars, printing JSON."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
import contextlib
import json
import math
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from depth_node.backends import Backend
    from depth_node.model_card import ModelCard

Item = TypeVar('Item')
TERMINATED = 143  # 128 + SIGTERM, what shells expect


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which model is to run, and on what."""
    group = parser.add_argument_group('model')
    group.add_argument('--model', default='small', metavar='NAME|FILE',
                       help='card name, card file or ONNX file with a card (small)')
    group.add_argument('--backend', default='auto', metavar='NAME',
                       help='auto, tensorrt, onnxruntime-tensorrt, onnxruntime-cuda, openvino or '
                            'onnxruntime (auto: the first that works)')
    group.add_argument('--precision', default='auto', metavar='NAME',
                       help='auto, fp32, fp16, mixed, bf16 or int8 (auto: fp16 on a GPU, int8 on '
                            'a CPU if the model has it)')
    group.add_argument('--threads', type=positive_int, metavar='N',
                       help='CPU threads (the physical cores, at most 4)')


def open_model(args: argparse.Namespace) -> tuple[ModelCard, Backend]:
    """Open what `add_model_arguments` chose.

    A runtime that is here and fails is named on stderr; one that is merely not installed is the
    doctor's business.
    """
    from depth_node.backends import availability, open_backend
    from depth_node.model_card import ModelCard

    card = ModelCard.load(args.model)
    backend = open_backend(card, args.backend, args.precision, threads=args.threads,
                           tell=lambda line: print(line, file=sys.stderr))
    for name, reason in backend.refusals:
        if availability(name).version is not None:
            print(f'backend {name} is not used: {reason}', file=sys.stderr)
    return card, backend


@contextlib.contextmanager
def terminated_as_exit() -> Iterator[None]:
    """Make SIGTERM and SIGHUP leave by SystemExit(TERMINATED), so that child processes are ended.

    What a script starts with `&` gets no Ctrl-C: shells let it ignore SIGINT.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(*_: object) -> None:
        raise SystemExit(TERMINATED)

    before = {signum: signal.signal(signum, leave) for signum in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def describe(backend: Backend) -> dict[str, Any]:
    """Return what runs, for JSON."""
    return {'model': backend.card.name, 'backend': backend.name, 'precision': backend.precision,
            'device': backend.device, 'version': backend.version, 'threads': backend.threads,
            'passed_over': [{'backend': name, 'reason': reason}
                            for name, reason in backend.refusals]}


def progress(
    items: Iterable[Item], *, unit: str, total: int | None = None, name: str = ''
) -> Iterator[Item]:
    """Go through items with a bar on stderr; silent where stderr is no terminal."""
    try:
        from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]
    except ModuleNotFoundError:  # a robot without python3-tqdm
        yield from items
        return
    # disable=None: tqdm's way to say "only on a terminal"
    yield from tqdm(items, desc=name or None, total=total, unit=unit, disable=None, leave=False)


def print_json(document: Any) -> None:
    """Print a JSON document that every parser reads: NaN and Inf become null."""
    print(json.dumps(_finite(document), indent=2, allow_nan=False))


def positive_int(text: str) -> int:
    """Parse a whole number above zero, for argparse."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f'{text!r}: a whole number above 0 is expected')
    return value


def positive_float(text: str) -> float:
    """Parse a finite number above zero, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f'{text!r}: a number above 0 is expected')
    return value


def size_hw(text: str) -> tuple[int, int]:
    """Parse WIDTHxHEIGHT, for argparse; returns (height, width)."""
    try:
        width, height = (int(part) for part in text.lower().split('x'))
    except ValueError:
        width = height = 0
    if not (16 <= width <= 8192 and 16 <= height <= 8192):
        raise argparse.ArgumentTypeError(f'{text!r}: WIDTHxHEIGHT of 16 to 8192 is expected')
    return height, width


def one_of_each(allowed: tuple[str, ...]) -> Any:
    """Return an argparse type: a comma-separated list of some of `allowed`."""
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(part.strip() for part in text.split(',') if part.strip()))
        unknown = [name for name in names if name not in allowed]
        if unknown or not names:
            raise argparse.ArgumentTypeError(
                f'{", ".join(unknown) or text!r}: expected a list of {",".join(allowed)}')
        return names
    return parse


def data_options(words: list[str]) -> dict[str, Any]:
    """Read KEY=VALUE, the value in YAML, as options of a data set.

    Raises:
        UsageError: something else.
    """
    from depth_node.cli import UsageError
    import yaml

    options: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition('=')
        if not equals or not key.isidentifier():
            raise UsageError(f'--option {word}: KEY=VALUE is expected')
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f'--option {word}: the value is not YAML ({error})') from error
    return options


def table(rows: list[tuple[str, ...]], *, right: bool = True) -> str:
    """Set rows in columns; the first row is the head, the first column is left-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) if right else cell.ljust(width)
                  for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append('  '.join(cells).rstrip())
    return '\n'.join(lines)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
