"""Training tasks: what one step does, what validation measures, when to give up."""

from __future__ import annotations

from copy import deepcopy
import math
import time
from typing import Any

from depth_node.training.config import TrainConfig
from depth_node.training.losses import gradient_loss, log_l1_loss, silog_loss
from depth_node.training.networks import DepthNetwork, build_network
import lightning
import torch
from torch import nn

GUARD_LOG_STD = 0.02  # a constant picture has 0; a network that learns has 0.2 and more
GUARD_FALL = 0.9  # the loss near the guard must be below this share of the first steps'
GUARD_WINDOW = 25


class CollapseError(RuntimeError):
    """Training does not learn; going on would waste hours."""


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


def rate_share(progress: float, step: int, warmup_steps: int, final_share: float) -> float:
    """Share of the peak learning rate: linear warm-up times a half cosine.

    Args:
        progress: 0 at the start, 1 at the end of the run.
        step: optimiser steps done.
        warmup_steps: length of the rise.
        final_share: what is left at progress 1.

    Returns:
        The factor for every group's rate.
    """
    rise = min(1.0, (step + 1) / max(1, warmup_steps))
    fall = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))
    return rise * (final_share + (1 - final_share) * fall)


def depth_scores(
    pred: torch.Tensor, target: torch.Tensor, valid: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Per-picture scores, (N,) each, NaN for a picture without valid pixels.

    `abs_rel` and `delta1` as in Eigen 2014, arXiv:1406.2283, section 4.2; `abs_rel_median` after
    dividing out the median ratio. The full set is in `depth_node.evaluation.metrics`.
    """
    nan = torch.full((pred.shape[0],), math.nan)
    scores = {name: nan.clone() for name in ('abs_rel', 'delta1', 'abs_rel_median')}
    for index in range(pred.shape[0]):
        ok = valid[index]
        if not ok.any():
            continue
        ratio = pred[index][ok] / target[index][ok]
        scores['abs_rel'][index] = (ratio - 1).abs().mean()
        scores['delta1'][index] = (torch.maximum(ratio, 1 / ratio) < 1.25).float().mean()
        scores['abs_rel_median'][index] = (ratio / ratio.median() - 1).abs().mean()
    return scores


class DepthTask(lightning.LightningModule):
    """Supervised canonical depth on rendered or recorded frames."""

    def __init__(self, config: dict[str, Any], *, init: bool = True) -> None:
        """Build the network.

        Args:
            config: `TrainConfig.to_dict()`; plain, so that the checkpoint holds it.
            init: False skips loading ImageNet weights, for a checkpoint that brings its own.
        """
        super().__init__()
        from depth_node.training.config import config_from_dict

        self.save_hyperparameters({'config': config})
        self.config: TrainConfig = config_from_dict(config)
        options = dict(self.config.network.options)
        if not init:
            options['pretrained'] = False
        self.network = build_network(self.config.network.name, **options)
        self.network.to(memory_format=torch.channels_last)  # 3 to 7 times faster on CPUs
        self.ema = Ema(self.network, self.config.optim.ema_decay)
        self.time_limit_s: float | None = None
        self.warm_start = False
        self.elapsed_s = 0.0
        self._began_s = 0.0
        self._elapsed_before_s = 0.0
        self._early_losses: list[float] = []
        self._late_losses: list[float] = []
        self._scores: list[dict[str, torch.Tensor]] = []
        self.panel: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    # --- batches

    def _unpack(
        self, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the normalised batch, canonical depth and `valid`."""
        rgb = self.network.normalise(batch['rgb']).contiguous(memory_format=torch.channels_last)
        depth = batch['depth']
        to_canonical = self.network.canonical_focal_px / batch['focal_px']
        target = depth * to_canonical[:, None, None, None]
        near, far = self.network.depth_range_m
        valid = (depth > 0) & (depth < self.config.data.far_m) & (target > near) & (target < far)
        return rgb, target, valid

    def training_step(self, batch: dict[str, torch.Tensor], batch_index: int) -> torch.Tensor:
        """Compute the loss of one batch."""
        rgb, target, valid = self._unpack(batch)
        pred = self.network(rgb)
        weights = self.config.loss
        parts = {
            'log_l1': (weights.log_l1, log_l1_loss, {}),
            'silog': (weights.silog, silog_loss, {'mean_weight': weights.silog_mean_weight}),
            'gradient': (weights.gradient, gradient_loss, {'scales': weights.gradient_scales}),
        }
        loss = pred.sum() * 0.0
        for name, (weight, function, options) in parts.items():
            if weight > 0:
                value = function(pred, target, valid, **options)
                self.log(f'train/{name}', value.detach())
                loss = loss + weight * value
        self.log('train/loss', loss.detach(), prog_bar=True)
        self._guard(float(loss.detach()), pred.detach())
        return loss

    def _guard(self, loss: float, pred: torch.Tensor) -> None:
        step, at = self.global_step, self.config.run.guard_step
        if not math.isfinite(loss):
            raise CollapseError(
                f'loss is {loss} at step {step}; lower optim.decoder_lr '
                f'(now {self.config.optim.decoder_lr}) or optim.clip'
            )
        if step > at or at <= 0:
            return
        if step < GUARD_WINDOW:
            self._early_losses.append(loss)
        elif step > at - GUARD_WINDOW:
            self._late_losses.append(loss)
        if step != at:
            return
        spread = float(pred.log().flatten(1).std(1).mean())
        if spread < GUARD_LOG_STD:
            raise CollapseError(
                f'step {step}: the prediction is a constant picture (standard deviation of log '
                f'depth {spread:.4f}, expected > {GUARD_LOG_STD}); lower optim.decoder_lr (now '
                f"{self.config.optim.decoder_lr}), and keep a norm on the decoder's laterals"
            )
        if self.warm_start or not self._early_losses or not self._late_losses:
            return
        first = sum(self._early_losses) / len(self._early_losses)
        last = sum(self._late_losses) / len(self._late_losses)
        if last > GUARD_FALL * first:
            raise CollapseError(
                f'step {step}: the loss went from {first:.3f} to {last:.3f}, expected below '
                f'{GUARD_FALL:.0%} of the start; look at the data (contact_sheet.jpg '
                'of synthesize), or lower optim.decoder_lr'
            )

    # --- optimisation

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; rates are set at each step from the run's progress."""
        optim = self.config.optim
        groups = []
        for name, parameters in self.network.parameter_groups().items():
            peak = optim.encoder_lr if name == 'encoder' else optim.decoder_lr
            for decays in (True, False):
                chosen = [p for p in parameters if (p.ndim > 1) == decays]
                decay = optim.weight_decay if decays else 0.0
                groups.append({'params': chosen, 'lr': peak, 'peak': peak, 'weight_decay': decay})
        return torch.optim.AdamW(groups)

    def progress(self) -> float:
        """Share of the run that is done, by steps or by time, whichever is further."""
        share = self.global_step / self.config.run.max_steps
        if self.time_limit_s:
            spent = self.elapsed_s - self._elapsed_before_s
            share = max(share, spent / self.time_limit_s)
        return min(1.0, share)

    def on_fit_start(self) -> None:
        """Start the clock; what earlier sessions of a resumed run spent is kept apart."""
        self._began_s = time.monotonic()
        self._elapsed_before_s = self.elapsed_s

    def on_train_epoch_start(self) -> None:
        """Freeze the encoder's batch statistics: batches of 8 would spoil ImageNet's."""
        self._freeze_norms()

    def _freeze_norms(self) -> None:
        for module in self.network.encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        """Set the learning rates."""
        self._freeze_norms()  # validation put the whole module back into training mode
        self.elapsed_s = self._elapsed_before_s + time.monotonic() - self._began_s
        optim = self.config.optim
        share = rate_share(
            self.progress(), self.global_step, optim.warmup_steps, optim.final_share
        )
        for group in self.optimizers().param_groups:
            group['lr'] = group['peak'] * share
        self.log('train/lr_share', share)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_index: int) -> None:
        """Average the weights; stop when the time is up."""
        self.ema.update(self.network)
        if self.progress() >= 1.0:
            self.trainer.should_stop = True

    # --- validation, always on the averaged weights

    def on_validation_epoch_start(self) -> None:
        """Forget the last scores."""
        self._scores, self.panel = [], []

    def validation_step(self, batch: dict[str, torch.Tensor], batch_index: int) -> None:
        """Score one batch in canonical metres: ratios, hence scores, equal the metric ones."""
        rgb, target, valid = self._unpack(batch)
        pred = self.ema.network(rgb)
        self._scores.append(depth_scores(pred, target, valid))
        loss = log_l1_loss(pred, target, valid) + gradient_loss(pred, target, valid)
        self.log('val/loss', loss, batch_size=len(rgb))
        room = 6 - len(self.panel)
        chosen = range(0, len(rgb), max(1, len(rgb) // 2))
        for index in list(chosen)[:room]:
            depth = torch.where(valid[index], target[index], 0.0)
            self.panel.append((batch['rgb'][index], depth, pred[index]))

    def on_validation_epoch_end(self) -> None:
        """Log the means over pictures."""
        for name in self._scores[0] if self._scores else ():
            values = torch.cat([scores[name] for scores in self._scores])
            self.log(f'val/{name}', values.nanmean(), prog_bar=True)

    # --- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the averaged weights and the time spent."""
        checkpoint['ema'] = self.ema.network.state_dict()
        checkpoint['ema_updates'] = self.ema.updates
        checkpoint['elapsed_s'] = self.elapsed_s

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` added."""
        self.ema.network.load_state_dict(checkpoint['ema'])
        self.ema.updates = checkpoint['ema_updates']
        self.elapsed_s = checkpoint['elapsed_s']
        self.warm_start = True
