"""Training tasks: what one step does, what validation measures, when to give up."""

from __future__ import annotations

from copy import deepcopy
import math
import time
from typing import Any

from depth_node.training.config import OptimConfig, TrainConfig, config_from_dict
from depth_node.training.networks import DepthNetwork, build_network, untrained
from depth_node.training.networks.encoders import Encoder
from depth_node.training.objectives import build_objective
from depth_node.training.objectives.base import prediction_and_truth
import lightning
import torch
from torch import nn

GUARD_LOG_STD = 0.02  # a constant picture has 0; a network that learns has 0.2 and more
GUARD_FALL = 0.9  # the loss near the guard must be below this share of the first steps'
GUARD_WINDOW = 25
PANEL_ROWS = 6
EMPTY_STEPS = 5


class CollapseError(RuntimeError):
    """Training does not learn; going on would waste hours."""


class TaskError(ValueError):
    """Network, objective and data set do not fit together; the text says what is missing."""


class Ema:
    """Running average of a network's weights, for validation and export.

    The decay grows from 0.1 with the number of updates, so that a short run is averaged over its
    own length only.
    """

    def __init__(self, network: DepthNetwork, decay: float) -> None:
        """Copy the network."""
        self.network: DepthNetwork = deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, source: DepthNetwork) -> None:
        """Move the average towards `source`; whole-number buffers are copied."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        new = source.state_dict()
        for name, mean in self.network.state_dict().items():
            if mean.is_floating_point():
                mean.lerp_(new[name], 1 - decay)
            else:
                mean.copy_(new[name])


def rate_share(progress: float, step: int, optim: OptimConfig) -> float:
    """Share of the peak learning rate, except for what `plateau` took.

    Args:
        progress: 0 at the start, 1 at the end of the run.
        step: optimiser steps done.
        optim: the schedule.

    Returns:
        The factor for every group's rate.
    """
    progress = min(1.0, max(0.0, progress))
    rise = min(1.0, (step + 1) / max(1, optim.warmup_steps))
    if optim.schedule == 'cosine':
        fall = optim.final_share + (1 - optim.final_share) * 0.5 * (
            1 + math.cos(math.pi * progress)
        )
    elif optim.schedule == 'poly':
        fall = (1 - progress) ** optim.poly_power
    elif optim.schedule == 'steps':
        fall = optim.step_factor ** sum(progress >= share for share in optim.step_at)
    else:
        fall = 1.0
    return rise * fall


class DepthTask(lightning.LightningModule):
    """Trains one network for one objective."""

    def __init__(self, config: dict[str, Any], *, init: bool = True) -> None:
        """Build the network and what it is trained for.

        Args:
            config: `TrainConfig.to_dict()`; plain, so that the checkpoint holds it.
            init: False skips loading ImageNet weights, for a checkpoint that brings its own.
        """
        super().__init__()
        self.save_hyperparameters({'config': config})
        self.config: TrainConfig = config_from_dict(config)
        options = dict(self.config.network.options)
        if not init:
            options.update(untrained(self.config.network.name))
        self.network = build_network(self.config.network.name, **options)
        self.network.to(memory_format=torch.channels_last)  # 3 to 7 times faster on CPUs
        self.objective = build_objective(
            self.config.objective.name, **self.config.objective.options
        )
        self.objective.check(self.network)
        decay = self.config.optim.ema_decay
        self.ema = Ema(self.network, decay) if decay else None
        self._freeze_stages()
        self.time_limit_s: float | None = None
        self.warm_start = False
        self.elapsed_s = 0.0
        self.skipped_frames = 0
        self.panel: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._began_s = 0.0
        self._elapsed_before_s = 0.0
        self._early_losses: list[float] = []
        self._late_losses: list[float] = []
        self._progress = 0.0
        self._resumed_at = (0.0, 0)  # progress and steps of the sessions before this one
        self._averaged_at = 0
        self._empty_steps = 0
        self._plateau_share = 1.0
        self._plateau_best = math.inf
        self._plateau_waited = 0

    def _apply(self, fn: Any, recurse: bool = True) -> DepthTask:
        """Move and convert the averaged weights with the others; they are no submodule."""
        super()._apply(fn, recurse)
        if self.ema is not None:
            self.ema.network._apply(fn, recurse)
        return self

    @property
    def judged(self) -> DepthNetwork:
        """The network that is validated and exported: averaged weights where they are kept."""
        return self.network if self.ema is None else self.ema.network

    @property
    def monitor(self) -> str:
        """Name of the score that chooses the best checkpoint."""
        return f'val/{self.objective.monitor}'

    # --- training

    def training_step(self, batch: dict[str, torch.Tensor], batch_index: int) -> torch.Tensor:
        """Compute the loss of one batch."""
        self._require(batch)
        self._refuse_empty(batch)
        parts = self.objective.losses(self.network, batch)
        loss = parts['loss']
        size = len(batch['rgb'])
        for name, value in parts.items():
            if name != 'loss':
                self.log(f'train/{name}', value.detach(), batch_size=size)
        self.log('train/loss', loss.detach(), prog_bar=True, batch_size=size)
        self.skipped_frames += int(batch['skipped'].sum())
        if self.skipped_frames:
            self.log('train/skipped_frames', float(self.skipped_frames), prog_bar=True,
                     batch_size=size)  # fmt: skip
        self._guard(float(loss.detach()), batch)
        return loss

    def _refuse_empty(self, batch: dict[str, torch.Tensor]) -> None:
        """Stop a run whose losses are zero because nothing of the truth counts."""
        taught = self.objective.can_teach(self.network, batch)
        self._empty_steps = 0 if taught else self._empty_steps + 1
        if self._empty_steps >= EMPTY_STEPS:
            near, far = self.network.depth_range_m
            raise TaskError(
                f'no pixel of the truth counted in {EMPTY_STEPS} steps: all depth is unknown, or '
                f'outside of the {near:g} to {far:g} m that network {self.config.network.name} '
                'can return; look at the ranges with: depth-node data check '
                f'{self.config.data.root}, and set network.options.depth_range_m'
            )

    def _require(self, batch: dict[str, torch.Tensor]) -> None:
        missing = sorted(self.objective.needs - set(batch))
        if missing:
            raise TaskError(
                f'objective {self.config.objective.name} needs {", ".join(missing)}, which data '
                f'set {self.config.data.kind} does not give with these data.options; it gives '
                f'{", ".join(sorted(batch))}'
            )

    def _guard(self, loss: float, batch: dict[str, torch.Tensor]) -> None:
        step, at = self.global_step, self.config.run.guard_step
        if not math.isfinite(loss):
            optim = self.config.optim
            raise CollapseError(
                f'loss is {loss} at step {step}; lower optim.lr (now {optim.lr}), '
                f'optim.group_lr (now {optim.group_lr}) or optim.clip (now {optim.clip}; 0 = off)'
            )
        if step > at or at <= 0:
            return
        if step < GUARD_WINDOW:
            self._early_losses.append(loss)
        elif step > at - GUARD_WINDOW:
            self._late_losses.append(loss)
        if step != at:
            return
        with torch.no_grad():
            pred = self.network(self.network.normalise(batch['rgb']))
        spread = float(pred.clamp(min=1e-6).log().flatten(1).std(1).mean())
        if spread < GUARD_LOG_STD:
            raise CollapseError(
                f'step {step}: the prediction is a constant picture (standard deviation of log '
                f'depth {spread:.4f}, expected > {GUARD_LOG_STD}); lower optim.lr (now '
                f"{self.config.optim.lr}), and keep a norm on the decoder's laterals"
            )
        if self.warm_start or not self._early_losses or not self._late_losses:
            return
        first = sum(self._early_losses) / len(self._early_losses)
        last = sum(self._late_losses) / len(self._late_losses)
        if last > GUARD_FALL * first:
            raise CollapseError(
                f'step {step}: the loss went from {first:.3f} to {last:.3f}, expected below '
                f'{GUARD_FALL:.0%} of the start; look at the data with: depth-node data check '
                f'{self.config.data.root} --sheet sheet.jpg, or lower optim.lr'
            )

    # --- optimisation

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make the optimiser; rates are set at each step from the run's progress.

        Raises:
            TaskError: `optim.group_lr` names a group that the network does not have.
        """
        optim = self.config.optim
        named = self.network.parameter_groups()
        unknown = sorted(set(optim.group_lr) - set(named))
        if unknown:
            raise TaskError(
                f'optim.group_lr.{unknown[0]}: network {self.config.network.name} has the '
                f'groups {sorted(named)}'
            )
        groups: list[dict[str, Any]] = []
        for name, parameters in named.items():
            peak = float(optim.group_lr.get(name, optim.lr))
            for decays in (True, False):
                chosen = [p for p in parameters if (p.ndim > 1) == decays]
                decay = optim.weight_decay if decays else 0.0
                if chosen:
                    groups.append(
                        {'params': chosen, 'lr': peak, 'peak': peak, 'weight_decay': decay}
                    )
        if optim.name == 'sgd':
            return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum)
        if optim.name == 'rmsprop':
            return torch.optim.RMSprop(
                groups, lr=optim.lr, momentum=optim.momentum, eps=optim.eps
            )
        family = torch.optim.AdamW if optim.name == 'adamw' else torch.optim.Adam
        return family(
            groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, amsgrad=optim.amsgrad
        )

    def progress(self) -> float:
        """Share of the run that is done, by steps or by time, whichever is further.

        A resumed run goes on from the share that it had, and does the rest in its own time.
        """
        before, step = self._resumed_at
        share = self.global_step / self.config.run.max_steps
        rest = 0.0
        if before > step / self.config.run.max_steps:  # its clock was further than its steps
            rest = (self.global_step - step) / max(1, self.config.run.max_steps - step)
        if self.time_limit_s:
            spent = self.elapsed_s - self._elapsed_before_s
            rest = max(rest, spent / self.time_limit_s)
        share = max(share, before + (1 - before) * rest)
        if self.time_limit_s and self.trainer.world_size > 1:
            # one clock: else the processes' rates would differ
            share = self.trainer.strategy.broadcast(share)
        return min(1.0, share)

    def on_fit_start(self) -> None:
        """Start the clock; what earlier sessions of a resumed run spent is kept apart."""
        self._began_s = time.monotonic()
        self._elapsed_before_s = self.elapsed_s

    def on_train_start(self) -> None:
        """Note where a resumed run begins."""
        self._averaged_at = self.global_step

    def _freeze_stages(self) -> None:
        """Fix the encoder's first stages, and let fixed norms be part of the convolutions.

        Not in the averaged copy, which is validated and exported as it always is.

        Raises:
            TaskError: the network has no encoder, or one that cannot.
        """
        stages = self.config.optim.freeze_encoder_stages
        encoder = getattr(self.network, 'encoder', None)
        if isinstance(encoder, Encoder):
            encoder.fold_fixed_norms()
            try:
                encoder.freeze_stages(stages)
            except ValueError as error:
                raise TaskError(f'optim.freeze_encoder_stages: {error}') from error
        elif stages:
            raise TaskError(
                f'optim.freeze_encoder_stages: network {self.config.network.name} has no encoder '
                'with stages; set 0'
            )

    def _freeze_norms(self) -> None:
        encoder = getattr(self.network, 'encoder', None)
        if self.config.optim.freeze_encoder_norms and encoder is not None:
            for module in encoder.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        """Set the learning rates."""
        self._freeze_norms()  # validation put the whole module back into training mode
        self.elapsed_s = self._elapsed_before_s + time.monotonic() - self._began_s
        self._progress = self.progress()
        share = rate_share(self._progress, self.global_step, self.config.optim)
        share *= self._plateau_share
        optimiser = self.optimizers()
        assert not isinstance(optimiser, list)
        for group in optimiser.param_groups:
            group['lr'] = group['peak'] * share
        self.log('train/lr_share', share)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_index: int) -> None:
        """Average the weights; stop when the time is up."""
        if self.ema is not None and self.global_step != self._averaged_at:  # not while it collects
            self.ema.update(self.network)
            self._averaged_at = self.global_step
        stop = self._progress >= 1.0 or self.trainer.should_stop
        if self.trainer.world_size > 1:  # all stop at the same step, or the others wait for ever
            stop = self.trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop:
            self.trainer.should_stop = True

    # --- validation

    def on_validation_epoch_start(self) -> None:
        """Forget the last pictures."""
        self.panel = []
        self.objective.begin_validation()

    def validation_step(self, batch: dict[str, torch.Tensor], batch_index: int) -> None:
        """Score one batch; means are over pictures that have a truth."""
        self._require(batch)
        network = self.judged
        for name, values in self.objective.scores(network, batch).items():
            known = ~values.isnan()
            mean = values[known].mean() if known.any() else values.new_zeros(())
            self.log(
                f'val/{name}', mean, prog_bar=True, on_epoch=True,
                batch_size=int(known.sum()), sync_dist=True,
            )  # fmt: skip
        loss = self.objective.losses(network, batch)['loss']
        size = len(batch['rgb'])
        self.log('val/loss', loss, on_epoch=True, batch_size=size, sync_dist=True)
        room = PANEL_ROWS - len(self.panel)
        if room > 0:
            pred, target, valid = prediction_and_truth(network, batch)
            for index in list(range(0, size, max(1, size // 2)))[:room]:
                depth = torch.where(valid[index], target[index], 0.0)
                self.panel.append((batch['rgb'][index], depth, pred[index]))

    def on_validation_epoch_end(self) -> None:
        """Let the objective fit what it fits, and lower the rates, before a checkpoint is kept."""
        networks = (self.network, self.judged)
        for name, value in self.objective.end_validation(networks, self._over_processes).items():
            self.log(f'val/{name}', value)
        self._look_at_plateau()

    def _over_processes(self, counts: torch.Tensor) -> torch.Tensor:
        if self.trainer.world_size == 1:
            return counts
        summed = self.trainer.strategy.reduce(counts.to(self.device), reduce_op='sum')
        assert isinstance(summed, torch.Tensor)
        return summed

    def _look_at_plateau(self) -> None:
        """Lower the rates when the score stays where it is."""
        optim = self.config.optim
        score = self.trainer.callback_metrics.get(self.monitor)
        if optim.schedule != 'plateau' or score is None or self.trainer.state.fn != 'fit':
            return
        value = float(score) * (1 if self.objective.monitor_mode == 'min' else -1)
        if value < self._plateau_best:
            self._plateau_best, self._plateau_waited = value, 0
            return
        self._plateau_waited += 1
        if self._plateau_waited > optim.plateau_patience:
            lower = self._plateau_share * optim.plateau_factor
            self._plateau_share = max(optim.plateau_min_share, lower)
            self._plateau_waited = 0

    # --- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the averaged weights, the time spent, the progress and the plateau's memory."""
        if self.ema is not None:
            checkpoint['ema'] = self.ema.network.state_dict()
            checkpoint['ema_updates'] = self.ema.updates
        checkpoint['elapsed_s'] = self.elapsed_s
        checkpoint['skipped_frames'] = self.skipped_frames
        checkpoint['progress'] = self._progress
        checkpoint['plateau'] = [self._plateau_share, self._plateau_best, self._plateau_waited]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` added."""
        if self.ema is not None:
            self.ema.network.load_state_dict(checkpoint['ema'])
            self.ema.updates = checkpoint['ema_updates']
        self.elapsed_s = checkpoint['elapsed_s']
        self.skipped_frames = checkpoint['skipped_frames']
        self._progress = checkpoint.get('progress', 0.0)
        before = checkpoint['hyper_parameters']['config']['run']['max_steps']
        # what was over, or has another number of steps now, begins a schedule of its own
        if self._progress < 1 and before == self.config.run.max_steps:
            self._resumed_at = self._progress, checkpoint['global_step']
        self._plateau_share, self._plateau_best, self._plateau_waited = checkpoint['plateau']
        self.warm_start = True
