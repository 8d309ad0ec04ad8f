"""Measure how long a training step waits for its data: docs/results/loader.json.

The real step of the bundled network (config/train/small.yaml: 192x256, batches of 8) runs with 0,
1 and 2 loader processes, and once on a batch that is kept, which shows what loading costs the step
beyond the waiting: on a machine of few cores the loader takes time from the network.

    python benchmarks/loader.py --data data/frames

Without --data, frames of noise with a depth of their own are written to a temporary folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
import json
import logging
import os
from pathlib import Path
import platform
import statistics
import sys
import tempfile
import time
from typing import Any
import warnings

import cv2
import numpy as np
from numpy.typing import NDArray

CLONE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CLONE))

from depth_node.training.augment import Augmenter  # noqa: E402
from depth_node.training.config import TrainConfig, load_config  # noqa: E402
from depth_node.training.fit import FrameData  # noqa: E402
from depth_node.training.loading import tensors  # noqa: E402
from depth_node.training.tasks import DepthTask  # noqa: E402
import lightning  # noqa: E402
import torch  # noqa: E402

TARGET_SHARE = 0.05
FRAMES, FRAME_SIZE_HW = 400, (192, 256)  # as `depth-node synthesize` renders them


class TimedLoader:
    """A loader that notes when each batch was asked for and when it came."""

    def __init__(self, loader: Any, *, keep_first: bool) -> None:
        self.loader, self.keep_first = loader, keep_first
        self.asked_s: list[float] = []
        self.came_s: list[float] = []

    def __iter__(self) -> Iterator[Any]:
        begin = time.perf_counter()  # an epoch's start counts: the workers have nothing ready
        source = iter(self.loader)
        if self.keep_first:
            kept = next(source)
            while True:
                self.asked_s.append(time.perf_counter())
                self.came_s.append(time.perf_counter())
                yield kept
        while True:
            batch = next(source, None)
            if batch is None:
                return
            self.asked_s.append(begin)
            self.came_s.append(time.perf_counter())
            yield batch
            begin = time.perf_counter()

    def summary(self, warmup: int) -> dict[str, float]:
        """Return what the steps after the first `warmup` took."""
        asked, came = np.array(self.asked_s), np.array(self.came_s)
        steps = np.diff(asked)[warmup:]
        waits = (came - asked)[:-1][warmup:]
        return {
            'steps': len(steps),
            'step_mean_ms': round(1e3 * float(steps.mean()), 2),
            'step_p50_ms': round(1e3 * float(np.median(steps)), 2),
            'wait_ms': round(1e3 * float(waits.mean()), 3),
            'wait_max_ms': round(1e3 * float(waits.max()), 2),
            # of the median step: one that the machine held up must not hide the waiting
            'wait_share': round(float(waits.mean() / np.median(steps)), 5),
        }


class TimedData(FrameData):
    """The data of a training run, timed."""

    def __init__(self, config: TrainConfig, *, keep_first: bool) -> None:
        super().__init__(config)
        self.keep_first = keep_first
        self.timed: TimedLoader | None = None

    def train_dataloader(self) -> Any:
        """Return the run's loader, timed."""
        self.timed = TimedLoader(super().train_dataloader(), keep_first=self.keep_first)
        return self.timed


def write_frames(root: Path) -> None:
    """Write rendered-format frames: blurred noise, as hard to decode as a picture."""
    rng = np.random.default_rng(0)
    height, width = FRAME_SIZE_HW
    info = {'width': width, 'height': height, 'fx': 190.3, 'fy': 190.3,
            'cx': (width - 1) / 2, 'cy': (height - 1) / 2, 'kind': 'room'}  # fmt: skip

    def clouds(channels: int) -> NDArray[np.float32]:
        total = np.zeros((height, width, channels), np.float32)
        for cell in (64, 16, 4):
            small = rng.random((height // cell + 1, width // cell + 1, channels), np.float32)
            large = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
            total += large.reshape(total.shape) * cell
        return total / total.max()

    for index in range(FRAMES + 8):
        split = 'train' if index < FRAMES else 'val'
        folder = root / split / f'room-{index // 5:06d}'
        folder.mkdir(parents=True, exist_ok=True)
        depth = 1 + 4 * clouds(1)[..., 0].clip(0, 1)
        rgb = (255 * clouds(3).clip(0, 1)).astype(np.uint8)
        name = f'{index % 5:03d}'
        cv2.imwrite(str(folder / f'{name}.jpg'), rgb)
        cv2.imwrite(str(folder / f'{name}.depth.png'), np.rint(1e3 * depth).astype(np.uint16))
        (folder / f'{name}.json').write_text(json.dumps(info), encoding='utf-8')


def configure(root: Path, workers: int, threads: int, steps: int) -> TrainConfig:
    return load_config(CLONE / 'config' / 'train' / 'small.yaml', [
        f'data.root={root}', f'data.workers={workers}', f'run.threads={threads}',
        f'run.max_steps={steps}', 'run.guard_step=0', 'network.options.pretrained=false',
        'data.val_frames=8',
    ])  # fmt: skip


def measure(config: TrainConfig, folder: Path, warmup: int, *, keep_first: bool) -> dict[str, Any]:
    """Train for the configured steps with the loop of `depth-node train`."""
    lightning.seed_everything(config.run.seed, verbose=False)
    data = TimedData(config, keep_first=keep_first)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', module='lightning')
        trainer = lightning.Trainer(
            accelerator='cpu', devices=1, max_steps=config.run.max_steps, max_epochs=-1,
            limit_val_batches=0, num_sanity_val_steps=0, logger=False,
            gradient_clip_val=config.optim.clip, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(DepthTask(config.to_dict()), data)
    assert data.timed is not None
    row = {'workers': config.data.workers, **data.timed.summary(warmup)}
    row['pictures_per_s'] = round(1e3 * config.data.batch_size / row['step_p50_ms'], 2)
    return row


def cost_per_picture(config: TrainConfig) -> dict[str, float]:
    """Take the processor time of the stages that make one picture, in one thread: medians."""
    data = FrameData(config)
    augmenter = Augmenter(config.augment)
    times: dict[str, list[float]] = {'read_ms': [], 'augment_ms': [], 'tensors_ms': []}
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    for index in range(min(100, len(data.train_set))):
        rng = np.random.default_rng(index)
        marks = [time.thread_time()]
        frame = data.train_set.read(index)
        marks.append(time.thread_time())
        frame = augmenter(frame, data.size_hw, rng)
        marks.append(time.thread_time())
        tensors(frame)
        marks.append(time.thread_time())
        for key, spent in zip(times, np.diff(marks), strict=True):
            times[key].append(1e3 * float(spent))
    cv2.setNumThreads(before)
    return {key: round(statistics.median(values[1:]), 3) for key, values in times.items()}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data', type=Path, help='folder that depth-node synthesize wrote')
    parser.add_argument('--out', type=Path, default=CLONE / 'docs' / 'results' / 'loader.json')
    parser.add_argument('--steps', type=int, default=80, help='measured steps of each row (80)')
    parser.add_argument('--warmup', type=int, default=8, help='steps before them (8)')
    parser.add_argument('--workers', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--threads', type=int, default=2, help='of torch (2)')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in ('lightning.pytorch', 'lightning.fabric', 'lightning.pytorch.utilities.rank_zero'):
        logging.getLogger(name).setLevel(logging.ERROR)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        root = args.data
        if root is None:
            root = Path(scratch) / 'frames'
            write_frames(root)
        steps = args.warmup + args.steps + 1
        costs = cost_per_picture(configure(root, 0, args.threads, steps))
        print('one picture: ' + ', '.join(f'{k[:-3]} {v:.2f} ms' for k, v in costs.items()))
        print(f'{"loader processes":<20}{"step ms":>10}{"waiting ms":>12}{"share":>9}'
              f'{"pictures/s":>12}')  # fmt: skip
        rows = []
        for workers, keep_first in ((0, True), *((n, False) for n in args.workers)):
            config = configure(root, workers, args.threads, steps)
            row = measure(config, Path(scratch), args.warmup, keep_first=keep_first)
            if keep_first:
                row = {**row, 'workers': None}
            rows.append(row)
            name = 'a kept batch' if keep_first else str(workers)
            print(f'{name:<20}{row["step_p50_ms"]:>10.1f}{row["wait_ms"]:>12.2f}'
                  f'{row["wait_share"]:>9.2%}{row["pictures_per_s"]:>12.2f}',
                  flush=True)  # fmt: skip
        default = load_config(CLONE / 'config' / 'train' / 'small.yaml').data.workers
        document = {
            'config': 'config/train/small.yaml',
            'data': 'generated' if args.data is None else 'rendered frames',
            'frames': len(FrameData(config).train_set),
            'batch_size': config.data.batch_size,
            'threads': args.threads,
            'default_workers': default,
            'target_wait_share': TARGET_SHARE,
            'one_picture': costs,
            'rows': rows,
            'machine': {
                'processor': platform.processor() or platform.machine(),
                'cpus': os.cpu_count(),
                'python': platform.python_version(),
                'torch': torch.__version__,
                'opencv': cv2.__version__,
                'load_before': round(load_before, 2),
                'load_after': round(os.getloadavg()[0], 2),
            },
        }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(document, indent=2) + '\n', encoding='utf-8')
    print(args.out)
    shares = {row['workers']: row['wait_share'] for row in rows}
    if shares.get(default, 0) > TARGET_SHARE:
        print(f'with {default} processes a step waits {shares[default]:.1%} of its time, more '
              f'than {TARGET_SHARE:.0%}')  # fmt: skip
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
