"""Measure how many pictures a second the training of `small` takes in: docs/results/steps.json.

Forward, losses, backward, optimiser and averaging on frames of noise that are kept, so without
loading (benchmarks/loader.py measures that). One process with a thread per core is compared with
one process per core, at both sizes of the recipe, in float32 and in bfloat16 (run.precision of
32-true and bf16-mixed). Processes do not exchange gradients here.

    python benchmarks/steps.py
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from multiprocessing.synchronize import Barrier
import os
from pathlib import Path
import platform
import statistics
import sys
import time
from typing import Any

CLONE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CLONE))

PRESETS = {'96x128': 'small_coarse', '192x256': 'small'}
PRECISIONS = ('32-true', 'bf16-mixed')
WARMUP = 2


def rate(
    preset: str, batch: int, threads: int, half: bool, steps: int, ready: Barrier
) -> float:
    """Return this process's pictures a second."""
    from depth_node.training.config import load_config
    from depth_node.training.tasks import DepthTask
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = load_config(CLONE / 'config' / 'train' / f'{preset}.yaml')
    task = DepthTask(config.to_dict())
    height, width = task.network.size_hw
    focal_px = 0.8 * width
    frames = {
        'rgb': torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8),
        'depth': torch.rand(batch, 1, height, width) * 4 + 0.5,
        'K': torch.tensor(
            [[focal_px, 0, width / 2], [0, focal_px, height / 2], [0, 0, 1]]
        ).repeat(batch, 1, 1),
    }
    task.train()
    task._freeze_norms()
    optimiser = task.configure_optimizers()

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=half):
            loss = task.objective.losses(task.network, frames)['loss']
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.network.parameters(), config.optim.clip)
        optimiser.step()
        assert task.ema is not None
        task.ema.update(task.network)

    for _ in range(WARMUP):
        step()
    ready.wait()  # all processes are measured at the same time
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return batch * steps / (time.perf_counter() - start)


def _child(queue: Any, *arguments: Any) -> None:
    queue.put(rate(*arguments))


def together(processes: int, *arguments: Any) -> float:
    """Return the pictures a second of several processes at the same time."""
    context = multiprocessing.get_context('spawn')
    queue, ready = context.Queue(), context.Barrier(processes)
    children = [
        context.Process(target=_child, args=(queue, *arguments, ready)) for _ in range(processes)
    ]
    for child in children:
        child.start()
    total = sum(queue.get(timeout=600) for _ in children)
    for child in children:
        child.join()
    return total


def main() -> int:
    """Measure by turns, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--cores', type=int, default=os.cpu_count() or 1)
    parser.add_argument('--pictures', type=int, default=480, help='of 96x128, a measurement (480)')
    parser.add_argument('--rounds', type=int, default=3, help='every way so often, by turns (3)')
    parser.add_argument('--out', type=Path, default=CLONE / 'docs' / 'results' / 'steps.json')
    options = parser.parse_args()
    ways = [
        (size, batch, processes, half)
        for size in PRESETS
        for batch in (8, 16)
        for processes in sorted({1, options.cores})
        for half in (False, True)
    ]
    found: dict[tuple[str, int, int, bool], list[float]] = {way: [] for way in ways}
    for _ in range(options.rounds):
        for size, batch, processes, half in ways:
            pictures = options.pictures // (4 if size == '192x256' else 1)
            steps = max(1, pictures // (batch * processes))
            threads = options.cores // processes
            speed = together(processes, PRESETS[size], batch, threads, half, steps)
            found[size, batch, processes, half].append(speed)
            print(f'{size}, batch {batch}, {processes} process(es) of {threads} thread(s), '
                  f'{PRECISIONS[half]}: {speed:.1f} pictures/s', flush=True)
    result = {
        'machine': platform.machine(), 'cores': options.cores,
        'command': f'python benchmarks/steps.py --pictures {options.pictures} '
                   f'--rounds {options.rounds}',
        'ways': [
            {'size': size, 'batch': batch, 'processes': processes,
             'threads': options.cores // processes, 'precision': PRECISIONS[half],
             'pictures_per_s': round(statistics.median(speeds), 1),
             'rounds': [round(speed, 1) for speed in speeds]}
            for (size, batch, processes, half), speeds in found.items()
        ],
    }  # fmt: skip
    options.out.write_text(json.dumps(result, indent=2) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
