"""Check the GPU backends on this machine and keep the figures; see check.sh beside this file."""

from __future__ import annotations

import argparse
from collections.abc import Callable
import json
from pathlib import Path
import platform
import re
import subprocess
import sys
import tempfile
import time
from typing import Any

from depth_node.backends import (
    Backend,
    BackendError,
    availability,
    check_batch,
    open_backend,
    self_check,
    tensorrt,
)
from depth_node.backends.cuda import Cuda, CudaError
from depth_node.backends.tensorrt import TensorRTBackend
from depth_node.model_card import CardError, ModelCard
import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
PICTURES = 8
# Largest mean difference to ONNX Runtime's FP32, as a share of the mean output. FP32 is computed
# in TF32 where the GPU has it, with 10 bits of mantissa as FP16 has.
LIMITS = {'fp32': 0.002, 'fp16': 0.01, 'mixed': 0.01, 'int8': 0.05}
WARM_UP = 20


def main() -> int:
    """Check every route, print a table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--name', help="of the machine, for the file's name (the GPU's)")
    parser.add_argument('--model', default='small', help='card (small)')
    parser.add_argument('--frames', type=int, default=2000, help='timed runs each (2000)')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs' / 'results',
                        help='folder (docs/results)')
    args = parser.parse_args()
    try:
        card = ModelCard.load(args.model)
        document = describe()
    except (CardError, CudaError) as error:
        print(f'check: {error}', file=sys.stderr)
        return 1
    size_hw = card.check.size_hw if card.check else card.input.size_hw or card.input.min_hw
    if size_hw is None:
        print(f'check: {card.path} names no input size', file=sys.stderr)
        return 1
    batches = [check_batch(card.input, seed, size_hw).copy() for seed in range(PICTURES)]
    with open_backend(card, 'onnxruntime', 'fp32') as backend:
        truth = [backend.run(batch)[card.output.name].copy() for batch in batches]
    document.update(model=card.name, size_hw=list(size_hw), frames=args.frames,
                    reference='onnxruntime fp32 on the CPU', results=[], refused=[])
    with tempfile.TemporaryDirectory(prefix='depth_node_check_') as cache:
        for name, precision in routes():
            found = availability(name)
            if found.version is None:
                refused = found.reason
            else:
                try:
                    row = measure(card, name, precision, Path(cache), batches, truth, args.frames)
                    document['results'].append(row)
                    print_row(row)
                    continue
                except (BackendError, CardError) as error:
                    refused = str(error)
            document['refused'].append({'backend': name, 'precision': precision,
                                        'reason': refused})
            print(f'{name:<22}{precision:<7}refused: {refused}')
    wrong = [row for row in document['results'] if not row['ok']]
    document['ok'] = not wrong and any(
        row['backend'] == 'tensorrt' for row in document['results'])
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f'gpu-{args.name or slug(document["gpu"])}.json'
    path.write_text(json.dumps(document, indent=2) + '\n', encoding='utf-8')
    print(path)
    for row in wrong:
        print(f'check: {row["backend"]} {row["precision"]}: {row["problem"]}', file=sys.stderr)
    if not document['ok'] and not wrong:
        print('check: TensorRT ran in no precision', file=sys.stderr)
    return 0 if document['ok'] else 1


def routes() -> list[tuple[str, str]]:
    """List the backends on a GPU and the precisions to ask them for."""
    found = [('onnxruntime-cuda', 'fp32'), ('onnxruntime-cuda', 'fp16'),
             ('onnxruntime-tensorrt', 'fp32'), ('onnxruntime-tensorrt', 'fp16')]
    if availability('tensorrt').version is None:
        return [('tensorrt', 'fp32'), *found]
    names = dict.fromkeys((*tensorrt.precisions(), 'int8'))
    return [*(('tensorrt', precision) for precision in names), *found]


def describe() -> dict[str, Any]:
    """Describe the machine."""
    with Cuda.open() as gpu:
        major, minor = gpu.compute_capability()
        document = {
            'gpu': gpu.device_name(), 'sm': 10 * major + minor, 'integrated': gpu.integrated,
            'memory_mib': gpu.total_memory() >> 20, 'cuda_runtime': gpu.runtime_version,
            'cuda_driver': gpu.driver_version}
    jetson = Path('/etc/nv_tegra_release')
    commit = subprocess.run(['git', '-C', str(ROOT), 'rev-parse', 'HEAD'], capture_output=True,
                            text=True)
    return {
        'date': time.strftime('%Y-%m-%d'), 'commit': commit.stdout.strip() or 'unknown',
        'command': 'scripts/gpu/check.sh', **document,
        'jetson': jetson.read_text().splitlines()[0] if jetson.is_file() else '',
        'system': platform.platform(), 'python': platform.python_version()}


def measure(
    card: ModelCard, name: str, precision: str, cache: Path, batches: list[NDArray[Any]],
    truth: list[NDArray[np.float32]], frames: int,
) -> dict[str, Any]:
    """Open a backend twice, compare it with the reference, and time it."""
    def opened() -> Backend:
        return open_backend(card, name, precision, cache_dir=cache,
                            tell=lambda line: print(f'  {line}', flush=True))

    start = time.perf_counter()
    opened().close()
    first_open_s = time.perf_counter() - start
    start = time.perf_counter()
    with opened() as backend:
        row: dict[str, Any] = {
            'backend': name, 'precision': backend.precision, 'version': backend.version,
            'device': backend.device, 'first_open_s': round(first_open_s, 2),
            'second_open_s': round(time.perf_counter() - start, 3),
            'self_check': self_check(backend).detail,
            **parity([backend.run(batch)[card.output.name].copy() for batch in batches], truth)}
        memory = getattr(backend, 'gpu_memory', None)
        free_before = memory()[0] if memory else 0
        row['wall_ms'] = timed(lambda: backend.run(batches[0]), frames)
        if isinstance(backend, TensorRTBackend):
            row['gpu_memory_grown_bytes'] = free_before - backend.gpu_memory()[0]
            row['graph_problem'] = backend.graph_problem
            row['gpu_ms'] = summary(backend.gpu_times_ms(frames))
            row['lent'] = lent(backend, batches, frames)
            backend.stop_graphs('switched off to compare')
            row['wall_ms_without_graph'] = timed(lambda: backend.run(batches[0]), frames)
            row['gpu_ms_without_graph'] = summary(backend.gpu_times_ms(frames))
    limit = LIMITS[row['precision']]
    row['ok'] = row['mean_rel'] <= limit
    row['problem'] = '' if row['ok'] else (
        f'{row["mean_rel"]:.2%} off on average, {limit:.1%} is allowed')
    if row['ok'] and row.get('lent', {}).get('max_rel', 0.0) > limit:
        row['ok'] = False
        row['problem'] = (f'pictures in GPU memory: {row["lent"]["max_rel"]:.2%} off from those '
                          'in host memory')
    return row


class Lent:
    """A picture in GPU memory, as torch would hand it over; its stream has not written it yet."""

    def __init__(self, gpu: Cuda, batch: NDArray[Any]) -> None:
        self._gpu, self._batch, self._stream = gpu, batch, gpu.stream_create()
        self._staging = gpu.host_alloc(batch.nbytes)
        self._address = gpu.malloc(batch.nbytes)
        self.write(batch)

    def write(self, batch: NDArray[Any]) -> None:
        """Enqueue another picture."""
        self._staging.array(batch.shape, batch.dtype)[:] = batch
        self._gpu.copy_to_device(self._address, self._staging.address, batch.nbytes, self._stream)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {'shape': self._batch.shape, 'typestr': self._batch.dtype.str, 'strides': None,
                'data': (self._address, False), 'version': 3, 'stream': self._stream}


def lent(
    backend: TensorRTBackend, batches: list[NDArray[Any]], frames: int
) -> dict[str, Any]:
    """Compare pictures in GPU memory with the same in host memory, and time them."""
    name = backend.card.output.name
    truth = [backend.run(batch)[name].copy() for batch in batches]
    found = []
    with Cuda.open() as gpu:
        picture = Lent(gpu, batches[0])
        for batch in batches:
            picture.write(batch)
            found.append(backend.run(picture)[name].copy())
        row = {**parity(found, truth),
               'wall_ms': timed(lambda: backend.run(picture), frames),
               'results_stay_wall_ms': timed(lambda: backend.run_device(picture), frames)}
        backend.run(batches[0])  # the picture ends here
        return row


def parity(
    found: list[NDArray[np.float32]], truth: list[NDArray[np.float32]]
) -> dict[str, float]:
    """Compare outputs: the largest and the mean difference, as shares of the mean output."""
    unit = float(np.mean([np.abs(each).mean() for each in truth]))
    errors = [np.abs(a.astype(np.float64) - b) for a, b in zip(found, truth, strict=True)]
    return {'max_rel': max(float(each.max()) for each in errors) / unit,
            'mean_rel': float(np.mean([each.mean() for each in errors])) / unit}


def timed(work: Callable[[], object], count: int) -> dict[str, float]:
    """Time repeated runs by the wall clock."""
    for _ in range(WARM_UP):
        work()
    times = []
    for _ in range(count):
        start = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - start))
    return summary(times)


def summary(times_ms: list[float]) -> dict[str, float]:
    """Return quantiles [ms]."""
    values = np.asarray(times_ms)
    return {'n': len(times_ms), 'min': round(float(values.min()), 4),
            'p50': round(float(np.percentile(values, 50)), 4),
            'p99': round(float(np.percentile(values, 99)), 4)}


def print_row(row: dict[str, Any]) -> None:
    """Print a line of the table."""
    graph = row.get('wall_ms_without_graph')
    print(f'{row["backend"]:<22}{row["precision"]:<7}{row["mean_rel"]:8.3%} off   '
          f'p50 {row["wall_ms"]["p50"]:7.3f}  p99 {row["wall_ms"]["p99"]:7.3f} ms'
          + (f'   without graph p50 {graph["p50"]:7.3f} ms' if graph else '')
          + f'   first open {row["first_open_s"]:.1f} s')


def slug(text: str) -> str:
    """Turn a GPU's name into a part of a file name."""
    return re.sub(r'[^a-z0-9]+', '-', text.lower()).strip('-')


if __name__ == '__main__':
    sys.exit(main())
