"""`depth-node bench`: how fast this machine runs a model, alone and within the pipeline."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
import platform
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from depth_node.cli import CommandError
from depth_node.cli._common import (
    one_of_each,
    positive_int,
    print_json,
    progress,
    size_hw,
    table,
)

if TYPE_CHECKING:
    from depth_node.backends import Backend
    from depth_node.model_card import ModelCard

HELP = 'how fast this machine runs a model: the network alone and every stage of the pipeline'

_EPILOG = """\
All backends and precisions take turns, round by round, so that a machine that slows down slows
them all alike. p50, p95 and p99 are milliseconds; "start" is a new process until its first result
(import, open, self-check), "RSS" its memory then. The pipeline works on a picture of --size with
known intrinsics and packs every depth image into an XYZRGB cloud; publishing is not in it
(depth-node demo measures that).

examples:
  depth-node bench
  depth-node bench --backends openvino --precisions int8,fp32 --size 1280x720 --distorted
  depth-node bench --json > bench.json
"""
_STAGES: Final = ('rectify', 'preprocess', 'network', 'postprocess', 'filter', 'cloud')
_BACKENDS: Final = (
    'tensorrt', 'onnxruntime-tensorrt', 'onnxruntime-cuda', 'openvino', 'onnxruntime')
_PRECISIONS: Final = ('fp32', 'fp16', 'mixed', 'bf16', 'int8')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = _EPILOG
    parser.add_argument('--model', default='small', metavar='NAME|FILE',
                        help='card name, card file or ONNX file with a card (small)')
    parser.add_argument('--backends', type=one_of_each(_BACKENDS), default=_BACKENDS,
                        metavar='LIST', help='default: all that are installed')
    parser.add_argument('--precisions', type=one_of_each(_PRECISIONS), metavar='LIST',
                        help='default: those that the card has files for')
    parser.add_argument('--threads', type=positive_int, metavar='N',
                        help='CPU threads (the physical cores, at most 4)')
    parser.add_argument('--size', type=size_hw, default=(480, 640), metavar='WxH',
                        help='of the picture (640x480)')
    parser.add_argument('--distorted', action='store_true',
                        help='give the camera a distortion, so that it has to be rectified')
    parser.add_argument('--rounds', type=positive_int, default=5, metavar='N', help='(5)')
    parser.add_argument('--iterations', type=positive_int, default=40, metavar='N',
                        help='runs per round (40)')
    parser.add_argument('--no-start', action='store_true',
                        help='leave out the start in a new process')
    parser.add_argument('--json', action='store_true', help='print JSON')


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    import cv2
    from depth_node.backends import BackendError, availability, open_backend
    from depth_node.model_card import CardError, ModelCard

    card = ModelCard.load(args.model)
    precisions = args.precisions or tuple(
        name for name in _PRECISIONS if name in card.precisions)
    opened: list[Backend] = []
    refused: list[dict[str, str]] = []
    try:
        for name in args.backends:
            found = availability(name)
            if found.version is None:
                refused.append({'backend': name, 'precision': '', 'reason': found.reason})
                continue
            for precision in precisions:
                try:
                    opened.append(open_backend(
                        card, name, precision, threads=args.threads,
                        tell=lambda line: print(line, file=sys.stderr)))
                except (BackendError, CardError) as error:
                    refused.append(
                        {'backend': name, 'precision': precision, 'reason': str(error)})
        if not opened:
            raise CommandError('nothing to measure: ' + '; '.join(
                f'{row["backend"]}: {row["reason"]}' for row in refused))
        load_before = os.getloadavg()
        results = [_identity(backend) for backend in opened]
        for result, times in zip(results, _network(opened, args), strict=True):
            result['network_ms'] = _summary(times)
        for result, stages in zip(results, _pipeline(opened, args), strict=True):
            result['pipeline_ms'] = {stage: _summary(times) for stage, times in stages.items()}
        if not args.no_start:
            for result, backend in zip(results, opened, strict=True):
                result['start'] = _start_in_new_process(card, backend)
    finally:
        for backend in opened:
            backend.close()
    document = {
        'model': card.name, 'size_hw': list(args.size), 'distorted': args.distorted,
        'rounds': args.rounds, 'iterations': args.iterations,
        'machine': {'cpu': cpu_name(), 'cpus': os.cpu_count(), 'system': platform.platform(),
                    'python': platform.python_version(), 'opencv': cv2.__version__,
                    'opencv_threads': cv2.getNumThreads(),
                    'load_before': load_before[0], 'load_after': os.getloadavg()[0]},
        'results': results, 'refused': refused}
    if args.json:
        print_json(document)
    else:
        _print(document)
    return 0


def _network(backends: list[Backend], args: argparse.Namespace) -> list[list[float]]:
    """Time the networks alone, taking turns; milliseconds."""
    from depth_node.backends import check_batch

    times: list[list[float]] = [[] for _ in backends]
    spec = backends[0].card.input
    size_hw = spec.size_hw or (backends[0].card.check.size_hw if backends[0].card.check
                               else spec.min_hw)
    if size_hw is None:
        raise CommandError('the card names no input size')
    batch = check_batch(spec, 1, size_hw)
    for turn in progress(range(args.rounds + 1), unit='round', name='network'):
        for backend, rows in zip(backends, times, strict=True):
            for _ in range(args.iterations):
                start = time.perf_counter()
                backend.run(batch)
                if turn:  # the first round warms up
                    rows.append(1e3 * (time.perf_counter() - start))
    return times


def _pipeline(
    backends: list[Backend], args: argparse.Namespace
) -> list[dict[str, list[float]]]:
    """Time every stage of the pipeline and the cloud, taking turns; milliseconds."""
    from depth_node.camera import Camera
    from depth_node.geometry import CloudPacker
    from depth_node.model_card import check_input
    from depth_node.pipeline import DepthPipeline

    height, width = args.size
    camera = Camera((height, width), 0.9 * width, 0.9 * width, (width - 1) / 2, (height - 1) / 2)
    if args.distorted:
        camera = Camera((height, width), camera.fx, camera.fy, camera.cx, camera.cy, 'plumb_bob',
                        (-0.2, 0.05, 0.001, -0.001, 0.0))
    rgb = check_input(2, (height, width))[0]
    pipelines = [DepthPipeline(backend) for backend in backends]
    packers: list[CloudPacker | None] = [None] * len(pipelines)
    times: list[dict[str, list[float]]] = [
        {stage: [] for stage in (*_STAGES, 'total', 'all_but_network')} for _ in pipelines]
    for turn in progress(range(args.rounds + 1), unit='round', name='pipeline'):
        for i, pipeline in enumerate(pipelines):
            for _ in range(args.iterations):
                start = time.perf_counter()
                frame = pipeline.run(rgb, camera)
                before_cloud = time.perf_counter()
                packer = packers[i]
                if packer is None:
                    assert frame.camera is not None  # a camera went in
                    packer = packers[i] = CloudPacker(frame.camera)
                packer.pack(frame.depth, frame.rgb)
                end = time.perf_counter()
                if turn:  # the first round warms up
                    for stage, value in frame.timings_ms.items():
                        times[i][stage].append(value)
                    times[i]['cloud'].append(1e3 * (end - before_cloud))
                    total_ms = 1e3 * (end - start)
                    times[i]['total'].append(total_ms)
                    times[i]['all_but_network'].append(total_ms - frame.timings_ms['network'])
    return times


def _start_in_new_process(card: ModelCard, backend: Backend) -> dict[str, Any]:
    """Measure a fresh process from its start to its first result, and its memory then."""
    code = ('import sys; from depth_node.cli.bench import start_up; '
            'start_up(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))')
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(
        part for part in (root, os.environ.get('PYTHONPATH')) if part)}
    start = time.perf_counter()
    result = subprocess.run(
        [sys.executable, '-c', code, str(card.path), backend.name, backend.precision,
         str(backend.threads or 1)], capture_output=True, text=True, env=environment)
    wall_s = time.perf_counter() - start
    if result.returncode:
        lines = result.stderr.strip().splitlines()
        return {'error': lines[-1] if lines else f'exit status {result.returncode}'}
    return {'wall_s': wall_s, **json.loads(result.stdout)}


def start_up(card_path: str, backend_name: str, precision: str, threads: int) -> None:
    """Open a model and run one picture through the pipeline; prints times and memory as JSON."""
    start = time.perf_counter()
    from depth_node.backends import open_backend
    from depth_node.camera import Camera
    from depth_node.model_card import ModelCard, check_input
    from depth_node.pipeline import DepthPipeline

    imported = time.perf_counter()
    card = ModelCard.load(card_path)
    with open_backend(card, backend_name, precision, threads=threads) as backend:
        opened = time.perf_counter()
        rgb = check_input(3, (480, 640))[0]
        DepthPipeline(backend).run(rgb, Camera.from_fov((480, 640), 60.0))
        first = time.perf_counter()
        print(json.dumps({'import_s': imported - start, 'open_s': opened - imported,
                          'first_s': first - opened, 'rss_mb': _rss_mb()}))


def _rss_mb() -> float | None:
    """Return this process's memory (Linux)."""
    try:
        pages = int(Path('/proc/self/statm').read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf('SC_PAGE_SIZE') / 1e6


def _summary(times: list[float]) -> dict[str, float]:
    import numpy as np

    p50, p95, p99 = np.percentile(times, (50, 95, 99)).tolist()
    return {'p50': p50, 'p95': p95, 'p99': p99, 'min': min(times), 'n': len(times)}


def _identity(backend: Backend) -> dict[str, Any]:
    return {'backend': backend.name, 'precision': backend.precision, 'device': backend.device,
            'version': backend.version, 'threads': backend.threads}


def cpu_name() -> str:
    """Return the name of the CPU or the board."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        for key in ('model name', 'Model'):  # x86; ARM boards
            for line in lines:
                if line.startswith(f'{key}\t'):
                    return line.split(':', 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _print(document: dict[str, Any]) -> None:
    machine = document['machine']
    height, width = document['size_hw']
    print(f'{document["model"]} on {machine["cpu"]}, {machine["cpus"]} CPUs; load '
          f'{machine["load_before"]:.1f} before, {machine["load_after"]:.1f} after')
    runs = document['rounds'] * document['iterations']
    print(f'\nnetwork alone, {runs} runs, ms')
    rows: list[tuple[str, ...]] = [
        ('', 'threads', 'p50', 'p95', 'p99', 'min', 'start s', 'RSS MB')]
    for result in document['results']:
        times, start = result['network_ms'], result.get('start', {})
        wall, rss = start.get('wall_s'), start.get('rss_mb')
        rows.append((
            f'{result["backend"]} {result["precision"]}', str(result['threads'] or '-'),
            *(f'{times[key]:.1f}' for key in ('p50', 'p95', 'p99', 'min')),
            '-' if wall is None else f'{wall:.2f}', '-' if rss is None else f'{rss:.0f}'))
    print(table(rows))
    print(f'\npipeline, {width}x{height}{" distorted" if document["distorted"] else ""}, depth '
          f'and XYZRGB cloud, {runs} runs, ms p50 (total also p99)')
    rows = [('', *_STAGES, 'total', 'p99', 'all but network')]
    for result in document['results']:
        stages = result['pipeline_ms']
        rows.append((
            f'{result["backend"]} {result["precision"]}',
            *(f'{stages[stage]["p50"]:.2f}' for stage in (*_STAGES, 'total')),
            f'{stages["total"]["p99"]:.2f}', f'{stages["all_but_network"]["p50"]:.2f}'))
    print(table(rows))
    for row in document['refused']:
        print(f'\nnot measured: {row["backend"]} {row["precision"]}: {row["reason"]}')
