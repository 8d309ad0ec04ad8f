"""What INT8 gains on a CPU, and what it costs: docs/results/int8.json.

    python benchmarks/int8.py --data data/frames/val

FP32 and INT8 of each backend run by turns within one process, round by round, so that a machine
that slows down slows both. A round's gain is the ratio of its two medians; the table has the
median of the rounds' gains and the quarter of them that is lowest and highest. Accuracy is
AbsRel of `depth-node evaluate` on the frames of --data, without alignment, averaged over images.
OpenVINO computes FP32 in FP32 here (INFERENCE_PRECISION_HINT f32), not in its default bf16.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
from pathlib import Path
import platform
import sys
import time

from depth_node.backends import AUTO_ORDER, Backend, availability, check_batch, open_backend
from depth_node.cli import main as depth_node
from depth_node.cli.bench import cpu_name
from depth_node.model_card import ModelCard
import numpy as np

RESULT = Path(__file__).resolve().parents[1] / 'docs' / 'results' / 'int8.json'
BACKENDS = ('onnxruntime', 'openvino')
PRECISIONS = ('fp32', 'int8')
LEAST_GAIN = 1.25
LARGEST_CHANGE = 0.01  # of AbsRel


def median_ms(backend: Backend, batch: np.ndarray, runs: int) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        backend.run(batch)
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def gains(card: ModelCard, name: str, rounds: int, runs: int, threads: int | None) -> dict:
    """Let both precisions of a backend take turns; whoever begins changes every round."""
    size_hw = card.input.size_hw or card.check.size_hw
    batch = check_batch(card.input, 7, size_hw).copy()
    with contextlib.ExitStack() as stack:
        backends = {
            precision: stack.enter_context(open_backend(card, name, precision, threads=threads))
            for precision in PRECISIONS
        }
        for backend in backends.values():
            median_ms(backend, batch, runs)  # warm caches and threads
        times: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
        for number in range(rounds):
            for precision in PRECISIONS[:: -1 if number % 2 else 1]:
                times[precision].append(median_ms(backends[precision], batch, runs))
        version = backends['fp32'].version
    ratio = np.array(times['fp32']) / np.array(times['int8'])
    low, middle, high = np.percentile(ratio, (25, 50, 75))
    return {
        'backend': name, 'version': version, 'rounds': rounds, 'runs_per_round': runs,
        **{f'{key}_ms': round(float(np.median(value)), 3) for key, value in times.items()},
        'gain': round(float(middle), 3), 'gain_quartiles': [round(float(low), 3),
                                                            round(float(high), 3)],
    }  # fmt: skip


def abs_rel(model: str, name: str, precision: str, data: str, limit: int | None) -> dict:
    """Return frames and AbsRel as `depth-node evaluate` finds them."""
    words = ['evaluate', '--model', model, '--backend', name, '--precision', precision,
             '--data', data, '--align', 'none', '--mode', 'per-image', '--json']  # fmt: skip
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = depth_node(words if limit is None else [*words, '--limit', str(limit)])
    if status:
        raise SystemExit(status)  # the command has said why
    (row,) = json.loads(printed.getvalue())['rows']
    return {'frames': row['frames'], 'abs_rel': row['abs_rel']}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='small', help='card with an INT8 file (small)')
    parser.add_argument('--data', required=True, metavar='FOLDER|KIND:FOLDER',
                        help='frames with true depth, see depth-node evaluate (kind: rendered)')
    parser.add_argument('--limit', type=int, metavar='N', help='at most N frames')
    parser.add_argument('--rounds', type=int, default=60, metavar='N', help='turns (60)')
    parser.add_argument('--runs', type=int, default=10, metavar='N', help='runs a turn (10)')
    parser.add_argument('--threads', type=int, metavar='N', help='(the physical cores, up to 4)')
    parser.add_argument('--out', type=Path, default=RESULT, help='(docs/results/int8.json)')
    args = parser.parse_args(arguments)

    card = ModelCard.load(args.model)
    missing = [p for p in PRECISIONS if p not in card.precisions]
    names = [name for name in BACKENDS if availability(name).version is not None]
    if missing or not names:
        lacking = (f'model {card.name} has no {missing[0]} file: depth-node quantize'
                   if missing else "no CPU backend is installed: pip install '.[cpu]'")
        print(f'benchmarks/int8.py: {lacking}', file=sys.stderr)
        return 1
    data = args.data if ':' in args.data else f'rendered:{args.data}'
    load_before = os.getloadavg()[0]
    rows = []
    for name in sorted(names, key=AUTO_ORDER.index):
        row = gains(card, name, args.rounds, args.runs, args.threads)
        found = {p: abs_rel(args.model, name, p, data, args.limit) for p in PRECISIONS}
        row.update({f'{p}_abs_rel': round(found[p]['abs_rel'], 5) for p in PRECISIONS})
        row['abs_rel_change'] = round(row['int8_abs_rel'] - row['fp32_abs_rel'], 5)
        row['frames'] = found['fp32']['frames']
        row['passed'] = (
            row['gain'] >= LEAST_GAIN and abs(row['abs_rel_change']) <= LARGEST_CHANGE)
        rows.append(row)
    document = {
        'model': card.name,
        'files': {p: {'sha256': card.precisions[p].sha256} for p in PRECISIONS},
        'expected': {'gain': LEAST_GAIN, 'abs_rel_change': LARGEST_CHANGE},
        'machine': {'cpu': cpu_name(), 'cpus': os.cpu_count(), 'system': platform.platform(),
                    'python': platform.python_version(), 'load_before': round(load_before, 2),
                    'load_after': round(os.getloadavg()[0], 2)},
        'results': rows,
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(document, indent=2) + '\n', encoding='utf-8')
    print(f'{"backend":<13}{"fp32 ms":>9}{"int8 ms":>9}{"gain":>7}  {"quartiles":<14}'
          f'{"AbsRel fp32":>12}{"int8":>9}{"change":>10}{"frames":>8}')
    for row in rows:
        low, high = row['gain_quartiles']
        print(f'{row["backend"]:<13}{row["fp32_ms"]:>9.2f}{row["int8_ms"]:>9.2f}'
              f'{row["gain"]:>7.2f}  {f"{low:.2f} to {high:.2f}":<14}'
              f'{row["fp32_abs_rel"]:>12.4f}{row["int8_abs_rel"]:>9.4f}'
              f'{row["abs_rel_change"]:>+10.4f}{row["frames"]:>8}')
    print(args.out)
    return 0 if all(row['passed'] for row in rows) else 1


if __name__ == '__main__':
    sys.exit(main())
