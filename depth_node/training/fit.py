"""One training run: data, task, trainer, logs, checkpoints and the manifest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import metadata
import json
import logging
import math
import os
from pathlib import Path
import platform
import shutil
import signal
import subprocess
import sys
from typing import Any
import warnings

import cv2
from depth_node.model_card import FileSpec, ModelCard, file_sha256
from depth_node.training.augment import Augmenter
from depth_node.training.checkpoints import network_of, read_checkpoint
from depth_node.training.config import TrainConfig
from depth_node.training.datasets import open_dataset
from depth_node.training.loading import FrameTensors, SeededSampler, collate_frames
from depth_node.training.networks import DepthNetwork, build_network, untrained
from depth_node.training.networks.card import input_spec, output_spec
from depth_node.training.tasks import DepthTask
import lightning
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping, ModelCheckpoint
from lightning.pytorch.callbacks.progress import TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
import numpy as np
from numpy.typing import NDArray
import torch
from torch.utils.data import DataLoader

BEST, LAST = 'best.ckpt', 'last.ckpt'
ERROR_FULL_SCALE = 0.5  # relative error painted as the end of its scale
ORIGIN_SUFFIX = '.origin.json'  # beside a checkpoint made of an exported file: which one


class RunError(RuntimeError):
    """A run cannot start; the text says what to do."""


def refuse_used(folder: Path) -> None:
    """Refuse to start where a run is already.

    Raises:
        RunError: one is there.
    """
    # the first of the processes that torchrun or Lightning started speaks for all
    if rank_zero_only.rank == 0 and (folder / LAST).is_file():
        raise RunError(
            f'{folder}: holds a run already; go on with --resume, choose another folder with '
            '--out, or delete it'
        )


def train(
    config: TrainConfig,
    *,
    max_time_s: float | None = None,
    resume: bool = False,
    init: Path | None = None,
    command: list[str] | None = None,
    progress_bar: bool = True,
) -> dict[str, Any]:
    """Train until the steps or the time are over, or until interrupted.

    Args:
        config: everything about the run.
        max_time_s: the schedule ends here if the steps take longer.
        resume: go on from the run folder's last checkpoint: weights, optimiser, step count.
        init: start from this checkpoint's averaged weights, with a fresh schedule.
        command: the command line, for the manifest.
        progress_bar: show progress on the terminal.

    Returns:
        The final manifest.

    Raises:
        RunError: nothing to resume, or the folder holds another run.
        CollapseError: the network does not learn.
    """
    run = config.run
    folder = Path(run.folder)
    last = folder / LAST
    first = rank_zero_only.rank == 0  # of the processes that torchrun or Lightning started
    if resume and not last.is_file():
        raise RunError(f'{last}: no checkpoint to resume; start without --resume')
    if not resume:
        refuse_used(folder)
    if resume:
        _check_same_run(last, config)
    if run.threads:
        torch.set_num_threads(run.threads)
    lightning.seed_everything(run.seed, verbose=False)
    data = FrameData(config)
    task = DepthTask(config.to_dict(), init=not (resume or init))
    task.time_limit_s = max_time_s
    if task.objective.starts_from_weights and init is None and not resume:
        raise RunError(
            f'objective {config.objective.name} is for a network that is trained already; start '
            'from its checkpoint: --init runs/small/best.ckpt'
        )
    if init is not None and not resume:
        for line in _start_from(task, init):
            if first:
                print(f'{init}: {line}', file=sys.stderr)
    manifest: dict[str, Any] = {}
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        manifest = _manifest(
            config, data, command, resume=resume, init=init, max_time_s=max_time_s
        )
        _write_json(folder / 'manifest.json', manifest)
    best = ModelCheckpoint(
        folder,
        filename='best',
        monitor=task.monitor,
        mode=task.objective.monitor_mode,
        save_top_k=1,
        enable_version_counter=False,
        auto_insert_metric_name=False,
    )
    callbacks: list[Callback] = [best, _SaveLast(last), _Panels(folder / 'panels')]
    if run.early_stop_validations:
        callbacks.append(
            EarlyStopping(
                task.monitor,
                mode=task.objective.monitor_mode,
                patience=run.early_stop_validations,
                check_finite=False,
            )
        )
    if progress_bar:
        callbacks.append(_Bar(refresh_rate=1 if sys.stderr.isatty() else 100))
    loggers: list[Logger] = [
        CSVLogger(folder, name='', version=_unused(folder, 'csv')),
        TensorBoardLogger(folder, name='', version='tensorboard'),
    ]
    # What it tells about GPUs and its defaults is no news to somebody who waits for a score.
    logging.getLogger('lightning').setLevel(logging.ERROR)
    logging.getLogger('lightning.pytorch').setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', module='lightning')
        trainer = _trainer(
            accelerator=run.accelerator,
            devices=run.devices,
            num_nodes=run.num_nodes,
            strategy=run.strategy,
            precision=run.precision,
            max_steps=run.max_steps,
            max_epochs=-1,
            val_check_interval=run.val_every_steps * run.accumulate,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            accumulate_grad_batches=run.accumulate,
            gradient_clip_val=config.optim.clip or None,
            use_distributed_sampler=False,
            logger=loggers,
            callbacks=callbacks,
            log_every_n_steps=min(run.log_every_steps, run.val_every_steps),
            enable_progress_bar=progress_bar,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        with _interruptible(trainer) as interrupted:
            trainer.fit(task, data, ckpt_path=str(last) if resume else None, weights_only=True)
            steps = trainer.global_step
            trainer.save_checkpoint(last)
        if not interrupted:
            # The end of the schedule is usually the best point, and rarely a validation step.
            scores = trainer.validate(task, data, verbose=False)[0]
            manifest['final'] = {k: round(float(v), 5) for k, v in scores.items()}
            if first:
                _keep_final(last, task, best, scores[task.monitor])
    manifest.update(
        finished=_now(),
        steps=steps,
        pictures_seen=steps * data.pictures_per_step,
        train_s=round(task.elapsed_s, 1),
        skipped_frames=task.skipped_frames,
        interrupted=bool(interrupted),
    )
    if first:
        _write_json(folder / 'manifest.json', manifest)
        for checkpoint in (folder / BEST, last):
            if checkpoint.is_file():
                checkpoint_card(checkpoint, task.judged, manifest).save()
    _leave_process_group()
    return manifest


def _leave_process_group() -> None:
    """End the connection of several processes.

    Lightning does so for NCCL only; gloo's threads that still run when the process ends abort it
    at times, and torchrun then reports a run that is complete as failed.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def checkpoint_card(
    checkpoint: Path, network: DepthNetwork, manifest: dict[str, Any]
) -> ModelCard:
    """Describe a checkpoint in the words of a model card, which stands beside it, not yet saved.

    It says what goes in and what comes out; `depth-node export` makes the file that runs on a
    robot, with its own card.
    """
    kept = ('command', 'commit', 'started', 'finished', 'steps', 'pictures_seen', 'data', 'start')
    return ModelCard(
        name=f'{checkpoint.parent.name}-{checkpoint.stem}',
        path=checkpoint.with_suffix('.yaml').absolute(),
        licence='not stated',
        input=input_spec(network),
        output=output_spec(network),
        precisions={'fp32': FileSpec(checkpoint.absolute(), file_sha256(checkpoint))},
        metrics={'validation': manifest['final']} if 'final' in manifest else {},
        provenance={key: manifest[key] for key in kept if manifest.get(key) is not None},
    )


def _unused(folder: Path, name: str) -> str:
    """Name a log folder that is not there yet: a resumed run must not overwrite the first log."""
    number = 1
    while (folder / (name if number == 1 else f'{name}-{number}')).exists():
        number += 1
    return name if number == 1 else f'{name}-{number}'


def _keep_final(last: Path, task: DepthTask, best: ModelCheckpoint, score: float) -> None:
    """Write into last.ckpt what the validation at the end found; if it is the best, copy it.

    That is what the objective fitted on the validation frames, and the best score.
    """
    better = _is_better(score, best.best_model_score, best.mode)
    path = last.with_name(BEST)
    if better:
        best.best_model_score = best.current_score = torch.tensor(score)
        best.best_model_path = best.kth_best_model_path = str(path)
        best.best_k_models = {str(path): best.best_model_score}
    checkpoint = read_checkpoint(last)
    checkpoint['state_dict'] = task.state_dict()
    task.on_save_checkpoint(checkpoint)
    checkpoint['callbacks'][best.state_key] = best.state_dict()
    partial = last.with_suffix('.partial')
    torch.save(checkpoint, partial)
    os.replace(partial, last)
    if better:
        shutil.copyfile(last, path)


def _is_better(score: float, best: torch.Tensor | None, mode: str) -> bool:
    if best is None or math.isnan(score):
        return best is None
    return score < float(best) if mode == 'min' else score > float(best)


def _trainer(**options: Any) -> lightning.Trainer:
    """Make Lightning's trainer.

    Raises:
        RunError: this machine has no such accelerator, or there is no such strategy.
    """
    try:
        return lightning.Trainer(**options)
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise RunError(
            f'run.accelerator {options["accelerator"]!r}, run.devices {options["devices"]}, '
            f'run.strategy {options["strategy"]!r}, run.precision {options["precision"]!r}: '
            f'{error}'
        ) from error


def _check_same_run(last: Path, config: TrainConfig) -> None:
    """Refuse to resume what is another run.

    Raises:
        RunError: names the first key that would not fit the checkpoint.
    """
    before = read_checkpoint(last)['hyper_parameters']['config']
    now = config.to_dict()
    for section, key in (
        ('network', 'name'),
        ('network', 'options'),
        ('objective', 'name'),
        ('optim', 'name'),
        ('optim', 'ema_decay'),
        ('optim', 'freeze_encoder_stages'),
    ):
        # Keys that are younger than the checkpoint had what is their default today.
        default = getattr(getattr(TrainConfig(), section), key)
        old, new = before[section].get(key, default), now[section][key]
        if key == 'ema_decay':
            old, new = bool(old), bool(new)
        if old != new:
            raise RunError(
                f'{last}: the run has {section}.{key} {old!r}, the configuration {new!r}; resume '
                'with the same one, or start another run from these weights: --init '
                f'{last} --out <another folder>'
            )


def _start_from(task: DepthTask, init: Path) -> list[str]:
    """Take the weights of another run, of the same network or an earlier stage of it.

    Returns:
        What differs in parts that a network may have or not (`DepthNetwork.optional_modules`,
        `growable_modules`).

    Raises:
        RunError: they do not fit; names the first difference.
    """
    checkpoint = read_checkpoint(init)
    theirs = checkpoint['hyper_parameters']['config']['network']
    ours = task.config.network
    if theirs['name'] != ours.name:
        raise RunError(
            f'{init}: weights of network {theirs["name"]}, but the configuration has network '
            f'{ours.name}; give a checkpoint of the same network'
        )
    start = network_of(checkpoint).state_dict()
    fresh = task.network.state_dict()
    optional = tuple(f'{name}.' for name in task.network.optional_modules)
    growable = tuple(f'{name}.' for name in task.network.growable_modules)
    new = [key for key in fresh if key not in start and key.startswith(optional + growable)]
    unused = [key for key in start if key not in fresh and key.startswith(optional)]
    start = {key: start.get(key, fresh.get(key)) for key in (*start, *new) if key not in unused}
    try:
        task.network.load_state_dict(start)
    except RuntimeError as error:
        first = [line.strip() for line in str(error).splitlines()[1:2]]
        raise RunError(
            f'{init}: weights of {ours.name} with options {theirs["options"]} do not fit options '
            f'{ours.options}: {"".join(first)[:300]}'
        ) from error
    if task.ema is not None:
        task.ema.network.load_state_dict(start)
    task.warm_start = True
    return [
        f'{text} {", ".join(keys[:3])}' + (f' and {len(keys) - 3} more' if keys[3:] else '')
        for text, keys in (('not in it, begin anew:', new), ('not used:', unused)) if keys
    ]  # fmt: skip


class FrameData(lightning.LightningDataModule):
    """The training and validation loaders of a run, for every process its share."""

    def __init__(self, config: TrainConfig) -> None:
        """Index both splits.

        Raises:
            DatasetError: the data folder is not usable.
            RunError: fewer frames than one batch.
        """
        super().__init__()
        data = config.data
        self.config = config
        # Meta tensors: the network is asked for its size only, and costs neither time nor memory.
        with torch.device('meta'):
            network = build_network(
                config.network.name,
                **{**config.network.options, **untrained(config.network.name)},
            )
        self.size_hw = network.size_hw
        root = Path(data.root)
        self.train_set = open_dataset(data.kind, root, data.train_split, **data.options)
        self.val_set = open_dataset(data.kind, root, data.val_split, **data.options)
        if network.canonical_focal_px is not None and not self.train_set.has_camera:
            raise RunError(
                f'network {config.network.name} predicts canonical depth and needs K, which data '
                f'set {data.kind} does not have; use another network or data set'
            )
        self.pictures_per_step = (
            data.batch_size * config.run.devices * config.run.num_nodes * config.run.accumulate
        )
        if len(self.train_set) < self.pictures_per_step:
            raise RunError(
                f'{root} ({data.train_split}): {len(self.train_set)} frames are fewer than one '
                f'step of {self.pictures_per_step}; get more, or lower data.batch_size'
            )

    def _share(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _batches_done(self) -> int:
        return self.trainer.global_step * self.config.run.accumulate if self.trainer else 0

    def train_dataloader(self) -> DataLoader[Any]:
        """Return this process's share of the shuffled training frames."""
        data = self.config.data
        rank, world = self._share()
        frames = FrameTensors(
            self.train_set,
            self.size_hw,
            augmenter=Augmenter(self.config.augment),
            max_broken=data.max_broken,
        )
        if data.workers:
            # Stops OpenCV's threads: a forked worker that stops those of its parent hangs.
            cv2.setNumThreads(1)
        return DataLoader(
            frames,
            batch_size=data.batch_size,
            sampler=SeededSampler(
                len(frames),
                self.config.run.seed,
                data.batch_size,
                rank=rank,
                world=world,
                accumulate=self.config.run.accumulate,
                batches_done=self._batches_done,
            ),
            num_workers=data.workers,
            drop_last=True,
            persistent_workers=data.workers > 0,
            prefetch_factor=4 if data.workers else None,
            worker_init_fn=_one_thread,
            collate_fn=collate_frames,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Return this process's share of the validation frames."""
        data = self.config.data
        rank, world = self._share()
        frames = FrameTensors(
            self.val_set, self.size_hw, limit=data.val_frames, max_broken=data.max_broken
        )
        return DataLoader(
            frames,
            batch_size=min(8, data.batch_size),
            sampler=range(rank, len(frames), world),
            num_workers=0,
            collate_fn=collate_frames,
        )


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    # Ctrl-C goes to the whole process group: the run stops its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _interruptible(trainer: lightning.Trainer) -> Iterator[list[int]]:
    """Turn the first SIGINT or SIGTERM into a clean stop; a second SIGINT kills as usual."""
    caught: list[int] = []

    def stop(number: int, frame: object) -> None:
        caught.append(number)
        trainer.should_stop = True
        print('\nstopping after this step, saving a checkpoint (again to kill)', file=sys.stderr)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, stop)
    except ValueError:  # not the main thread: nobody can press Ctrl-C here
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Bar(TQDMProgressBar):
    """The progress bar, without the logger's version, and out of the way of errors."""

    def get_metrics(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop('v_num', None)
        return metrics

    def on_exception(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        exception: BaseException,
    ) -> None:
        print(file=sys.stderr)  # the error begins on a line of its own


class _SaveLast(Checkpoint):
    """Write last.ckpt after every validation, atomically: a kill never leaves half a file.

    The trainer calls those that keep checkpoints after all others and in their order: what early
    stopping and the best checkpoint remember of a validation is in the file of that validation.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        if trainer.state.fn != 'fit':
            return
        partial = self._path.with_suffix('.partial')
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            os.replace(partial, self._path)


class _Panels(Callback):
    """Write a picture of inputs, truth and prediction after every validation."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        if not trainer.is_global_zero or not pl_module.panel:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        sheet = panel_sheet(pl_module.panel)
        cv2.imwrite(str(self._folder / f'{trainer.global_step:06d}.png'), sheet)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(
                    'val/panel', sheet[..., ::-1].copy(), trainer.global_step, dataformats='HWC'
                )


def panel_sheet(items: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> NDArray[np.uint8]:
    """Lay out rows of picture, true depth, predicted depth and relative error, with captions.

    Colours of both depths span the truth's range (the prediction's, where there is no truth);
    the error's go from 0 (dark) to 50 % (light).

    Args:
        items: rgb (3, H, W) uint8; depths (1, H, W) metres, 0 = unknown.

    Returns:
        A BGR picture.
    """
    rows = []
    for rgb, true, pred in items:
        truth, guess = true[0].float().cpu().numpy(), pred[0].float().cpu().numpy()
        known = truth > 0
        shown_range = truth[known] if known.any() else guess
        near, far = np.percentile(shown_range.clip(1e-3), [1, 99])
        row = [cv2.cvtColor(rgb.permute(1, 2, 0).cpu().numpy(), cv2.COLOR_RGB2BGR)]
        for depth, shown in ((truth, known), (guess, guess > 0)):
            share = (1 / np.maximum(depth, 1e-3) - 1 / far) / max(1 / near - 1 / far, 1e-6)
            colour = cv2.applyColorMap(
                (share.clip(0, 1) * 255).astype(np.uint8), cv2.COLORMAP_TURBO
            )
            colour[~shown] = 0
            row.append(colour)
        error = np.abs(guess - truth) / np.where(known, truth, 1)
        colour = cv2.applyColorMap(
            (error / ERROR_FULL_SCALE * 255).clip(0, 255).astype(np.uint8), cv2.COLORMAP_INFERNO
        )
        colour[~known] = 0
        row.append(colour)
        rows.append(np.hstack(row))
    return np.vstack([_captions(rows[0].shape[1]), *rows])


def _captions(width: int) -> NDArray[np.uint8]:
    """Name the four columns of a panel."""
    strip = np.full((18, width, 3), 32, np.uint8)
    names = ('picture', 'truth', 'prediction', f'error 0-{ERROR_FULL_SCALE:.0%}')
    for column, name in enumerate(names):
        at = (column * width // len(names) + 4, 13)
        cv2.putText(strip, name, at, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1,
                    cv2.LINE_AA)  # fmt: skip
    return strip


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec='seconds')


def _write_json(path: Path, value: dict[str, Any]) -> None:
    partial = path.with_suffix('.partial')
    partial.write_text(json.dumps(value, indent=1, default=str) + '\n')
    os.replace(partial, path)


def _git(*arguments: str) -> str | None:
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ['git', '-C', str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _manifest(
    config: TrainConfig,
    data: FrameData,
    command: list[str] | None,
    *,
    resume: bool,
    init: Path | None,
    max_time_s: float | None,
) -> dict[str, Any]:
    root = Path(config.data.root)
    folder = Path(config.run.folder)
    meta: dict[str, Any] = {}
    if (root / 'meta.json').is_file():
        meta = json.loads((root / 'meta.json').read_text())
        meta.pop('attribution', None)
    start: dict[str, Any] = {'kind': 'init' if init else 'resume' if resume else 'new'}
    if init and init.with_suffix(ORIGIN_SUFFIX).is_file():
        start['exported'] = json.loads(init.with_suffix(ORIGIN_SUFFIX).read_text())
    elif init or resume:
        before = (init.parent if init else folder) / 'manifest.json'
        if before.is_file():
            start['run'] = json.loads(before.read_text())
    versions = {}
    for name in ('torch', 'lightning', 'numpy', 'opencv-python-headless'):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = 'not from a package'
    return {
        'started': _now(),
        'command': command,
        'commit': _git('rev-parse', 'HEAD'),
        'uncommitted_changes': bool(_git('status', '--porcelain', '--', '.')),
        'config': config.to_dict(),
        'max_time_s': max_time_s,
        'data': {
            'train': data.train_set.fingerprint(),
            'val': data.val_set.fingerprint(),
            'truth': data.train_set.note,
            'meta': meta,
        },
        'start': start,
        'environment': {
            'python': platform.python_version(),
            'machine': platform.machine(),
            'cpus': os.cpu_count(),
            'threads': torch.get_num_threads(),
            **versions,
        },
    }
