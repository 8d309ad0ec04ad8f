"""Measure whether one run on a batch of pictures beats as many runs on one picture each.

The node serves several cameras in turn (docs/topics.md).  This script says what it would gain by
running their pictures together: it sets the first dimension of the graph to the batch, checks that
each picture's output stays what it was, and lets both ways take turns, round by round, so that a
machine that slows down slows them alike.  The figures go to docs/results/batch-<name>.json.

    python benchmarks/batch.py --name robot
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
import json
from pathlib import Path
import platform
import statistics
import sys
import time
from typing import Any

from depth_node.model_card import ModelCard
import numpy as np
from numpy.typing import NDArray

RESULTS = Path(__file__).resolve().parents[1] / 'docs' / 'results'
Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def batched_graph(path: Path, count: int) -> bytes:
    """Return the ONNX file with room for `count` pictures."""
    import onnx

    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = count
    del model.graph.value_info[:]
    return bytes(model.SerializeToString())


def onnxruntime(graph: bytes, threads: int) -> Run:
    """Return a function that runs a graph in ONNX Runtime."""
    import onnxruntime as runtime

    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(graph, options, providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})[0]


def openvino(graph: bytes, threads: int) -> Run:
    """Return a function that runs a graph in OpenVINO, tuned for latency as the node has it."""
    import openvino as runtime

    model = runtime.Core().read_model(graph, b'')
    request = runtime.Core().compile_model(model, 'CPU', {
        'PERFORMANCE_HINT': 'LATENCY', 'INFERENCE_NUM_THREADS': threads,
        'INFERENCE_PRECISION_HINT': 'f32'}).create_infer_request()
    return lambda batch: request.infer([batch])[0]


RUNTIMES = {'onnxruntime': onnxruntime, 'openvino': openvino}


def measure(single: Run, batched: Run, pictures: NDArray[np.uint8], rounds: int,
            iterations: int) -> dict[str, Any]:
    """Return the milliseconds of both ways for all pictures, and the CPU's of all threads."""
    apart = np.concatenate([single(picture[None]).copy() for picture in pictures])
    together = batched(pictures).copy()
    difference = float(np.abs(apart - together).max() / np.abs(apart).mean())
    ways: dict[str, Callable[[], Any]] = {
        'in_turn': lambda: [single(picture[None]) for picture in pictures],
        'batched': lambda: batched(pictures)}
    ms: dict[str, list[float]] = {name: [] for name in ways}
    cpu_ms: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            for _ in range(iterations):
                started, cpu_started = time.perf_counter(), time.process_time()
                way()
                ms[name].append(1e3 * (time.perf_counter() - started))
                cpu_ms[name].append(1e3 * (time.process_time() - cpu_started))
    return {
        'ms': {name: {'p50': round(statistics.median(values), 2), 'min': round(min(values), 2)}
               for name, values in ms.items()},
        'cpu_ms': {name: round(statistics.median(values), 2) for name, values in cpu_ms.items()},
        'relative_difference': difference}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='small')
    parser.add_argument('--pictures', type=int, default=2, help='in a batch (2)')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--rounds', type=int, default=10)
    parser.add_argument('--iterations', type=int, default=20, help='of each way in a round (20)')
    parser.add_argument('--name', default=platform.machine(), help='of the machine, for the file')
    parser.add_argument('--out', type=Path, default=RESULTS, help='folder (docs/results)')
    args = parser.parse_args()
    card = ModelCard.load(args.model)
    if card.input.size_hw is None or card.input.layout != 'uint8_nhwc':
        print(f'{card.name}: only networks of a fixed size with uint8 input are measured here',
              file=sys.stderr)
        return 1
    pictures = np.random.default_rng(0).integers(
        0, 256, (args.pictures, *card.input.size_hw, 3), np.uint8)
    rows = []
    for precision in ('fp32', 'int8'):
        if precision not in card.precisions:
            continue
        path = card.verify_file(precision)
        for name, opened in RUNTIMES.items():
            row = measure(opened(path.read_bytes(), args.threads),
                          opened(batched_graph(path, args.pictures), args.threads),
                          pictures, args.rounds, args.iterations)
            rows.append({'backend': name, 'precision': precision, **row})
            parts = [f'{way.replace("_", " ")} p50 {row["ms"][way]["p50"]:7.2f} min '
                     f'{row["ms"][way]["min"]:7.2f} CPU {row["cpu_ms"][way]:7.2f} ms'
                     for way in ('in_turn', 'batched')]
            print(f'{name:<12}{precision:<6}{"   ".join(parts)}   differ by '
                  f'{row["relative_difference"]:.1e}')
    path = args.out / f'batch-{args.name}.json'
    args.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({
        'model': card.name, 'pictures': args.pictures, 'threads': args.threads,
        'rounds': args.rounds, 'iterations': args.iterations, 'results': rows}, indent=2) + '\n',
        encoding='utf-8')
    print(path)
    return 0


if __name__ == '__main__':
    sys.exit(main())
