"""The training configuration: one frozen dataclass per YAML section, unknown keys refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
import re
from typing import Any

from depth_node.training.augment import AugmentSettings
import yaml

OPTIMISERS = ('adamw', 'adam', 'sgd', 'rmsprop')
SCHEDULES = ('cosine', 'constant', 'poly', 'steps', 'plateau')
PRECISIONS = ('32-true', '16-mixed', 'bf16-mixed')


class ConfigError(ValueError):
    """A configuration cannot be used; the text names the file and the key."""


@dataclass(frozen=True)
class NetworkConfig:
    """Which network, and the options of its class."""

    name: str = 'small'
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataConfig:
    """What to train on.

    Attributes:
        kind: of the data set, a name in `training.datasets.DATASETS`.
        root: data folder or file, relative to the working directory.
        options: of the data set's class, for both splits.
        train_split: its split to train on.
        val_split: its split to validate on.
        batch_size: pictures a step and process.
        workers: loader processes.
        val_frames: at most this many validation frames are scored each time.
        max_broken: frames that may be unreadable before training stops; each is replaced by
            the next one, and counted in the log.
    """

    kind: str = 'rendered'
    root: str = 'data/frames'
    options: dict[str, Any] = field(default_factory=dict)
    train_split: str = 'train'
    val_split: str = 'val'
    batch_size: int = 8
    workers: int = 1
    val_frames: int = 200
    max_broken: int = 0


@dataclass(frozen=True)
class ObjectiveConfig:
    """What to train for: a name in `training.objectives.OBJECTIVES` and its options."""

    name: str = 'supervised'
    options: dict[str, Any] = field(
        default_factory=lambda: {'losses': {'log_l1': 1.0, 'silog': 0.5, 'gradient': 0.5}}
    )


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser and its schedule.

    Attributes:
        name: adamw, adam, sgd or rmsprop.
        lr: peak rate.
        group_lr: peak rates of the network's named parameter groups, instead of `lr`.
        weight_decay: of matrices only (not of norms and biases).
        momentum: of sgd and rmsprop.
        betas: of adam and adamw.
        amsgrad: of adam and adamw.
        eps: of adam, adamw and rmsprop.
        clip: largest norm of the gradient; 0 = no clipping.
        schedule: cosine | constant | poly | steps | plateau.
        warmup_steps: linear rise at the start.
        final_share: last rate of `cosine` as a share of the peak.
        poly_power: rate = peak * (1 - progress)^power.
        step_at: shares of the run at which `steps` lowers the rate.
        step_factor: what it is multiplied by.
        plateau_patience: validations without a better score before `plateau` lowers the rate.
        plateau_factor: what it is multiplied by.
        plateau_min_share: `plateau` does not go below this share of the peak.
        ema_decay: of averaged weights that are validated and exported instead; 0 = off.
        freeze_encoder_norms: keep the encoder's batch statistics (small batches spoil them).
        freeze_encoder_stages: keep the encoder's layers up to this many of its maps (1: to /2, 2:
            to /4, ...), weights and statistics; their backward pass, the dearest one, falls away.
    """

    name: str = 'adamw'
    lr: float = 1e-3
    group_lr: dict[str, Any] = field(default_factory=dict)
    weight_decay: float = 0.01
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    amsgrad: bool = False
    eps: float = 1e-8
    clip: float = 5.0
    schedule: str = 'cosine'
    warmup_steps: int = 0
    final_share: float = 0.01
    poly_power: float = 0.9
    step_at: tuple[float, ...] = ()
    step_factor: float = 0.1
    plateau_patience: int = 5
    plateau_factor: float = 0.7
    plateau_min_share: float = 0.0
    ema_decay: float = 0.0
    freeze_encoder_norms: bool = False
    freeze_encoder_stages: int = 0


@dataclass(frozen=True)
class RunConfig:
    """How long, how often, where.

    Attributes:
        folder: what a run writes.
        max_steps: end of the schedule; `--max-time` can end it earlier.
        val_every_steps: steps between validations, checkpoints and picture panels.
        guard_step: at this step the network must have left the constant picture behind; 0 = off.
        precision: 32-true, 16-mixed (NVIDIA GPUs) or bf16-mixed.
        accelerator: Lightning's: auto, cpu, gpu.
        devices: processes, or GPUs, on this machine.
        num_nodes: machines.
        strategy: Lightning's: auto, ddp, fsdp.
        accumulate: batches whose gradients are added before a step.
        early_stop_validations: stop after so many validations without a better score; 0 = off.
        log_every_steps: steps between lines of the log.
        threads: CPU threads of torch; null leaves torch's choice.
        seed: of everything random.
    """

    folder: str = 'runs/small'
    max_steps: int = 20000
    val_every_steps: int = 500
    guard_step: int = 0
    precision: str = '32-true'
    accelerator: str = 'auto'
    devices: int = 1
    num_nodes: int = 1
    strategy: str = 'auto'
    accumulate: int = 1
    early_stop_validations: int = 0
    log_every_steps: int = 20
    threads: int | None = None
    seed: int = 1


@dataclass(frozen=True)
class TrainConfig:
    """The whole file."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as YAML and JSON take them."""
        plain = _plain(asdict(self))
        assert isinstance(plain, dict)
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read and check a configuration file.

    Args:
        path: the YAML file.
        overrides: single keys in the form `section.key=value`, the value in YAML; deeper keys
            reach into options: `objective.options.losses.berhu=1.0`.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding='utf-8')) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f'{path}: {error}; see config/train/small.yaml for an example'
        ) from error
    for override in overrides:
        raw = _overridden(raw, override)
    try:
        return config_from_dict(raw)
    except ValueError as error:
        raise ConfigError(f'{path}: {error}') from error


def _overridden(raw: Any, override: str) -> Any:
    """Set one key in parsed YAML, making the sections on the way."""
    name, equals, text = override.partition('=')
    keys = name.split('.')
    if not equals or len(keys) < 2 or not all(keys):
        raise ConfigError(f'{override!r}: expected section.key=value, like run.max_steps=30')
    try:
        value = _number_in_exponent_form(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ConfigError(f'{override!r}: {text!r} is not YAML ({error})') from error
    top = dict(raw) if isinstance(raw, dict) else {}
    section = top
    for key in keys[:-1]:
        inner = section.get(key)
        section[key] = dict(inner) if isinstance(inner, dict) else {}
        section = section[key]
    section[keys[-1]] = value
    return top


def _number_in_exponent_form(value: Any) -> Any:
    """Read 1e-4, which YAML 1.1 takes for text, as the number that people mean."""
    if isinstance(value, str) and re.fullmatch(r'[+-]?\d+(\.\d*)?[eE][+-]?\d+', value):
        return float(value)
    return value


def config_from_dict(raw: Any) -> TrainConfig:
    """Build the configuration from parsed YAML.

    Raises:
        ValueError: an unknown key, a wrong type or an impossible value.
    """
    config = TrainConfig()
    sections = {item.name: getattr(config, item.name) for item in fields(config)}
    if not isinstance(raw, dict):
        raise ValueError(f'found {type(raw).__name__}, expected sections {sorted(sections)}')
    for name, values in raw.items():
        if name not in sections:
            raise ValueError(f'{name}: not known; expected one of {sorted(sections)}')
        if not isinstance(values, dict):
            raise ValueError(f'{name}: found {values!r}, expected a mapping')
        if name == 'augment':
            sections[name] = AugmentSettings.from_dict(values)
        else:
            sections[name] = _filled(sections[name], name, values)
    config = TrainConfig(**sections)
    _check(config)
    return config


def _check(config: TrainConfig) -> None:
    for key, value in (
        ('data.batch_size', config.data.batch_size),
        ('data.val_frames', config.data.val_frames),
        ('run.max_steps', config.run.max_steps),
        ('run.val_every_steps', config.run.val_every_steps),
        ('run.devices', config.run.devices),
        ('run.num_nodes', config.run.num_nodes),
        ('run.accumulate', config.run.accumulate),
        ('run.log_every_steps', config.run.log_every_steps),
        ('optim.lr', config.optim.lr),
        *((f'optim.group_lr.{name}', rate) for name, rate in config.optim.group_lr.items()),
    ):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise ValueError(f'{key}: found {value!r}, expected more than 0')
    for key, value in (
        ('optim.clip', config.optim.clip),
        ('optim.warmup_steps', config.optim.warmup_steps),
        ('optim.weight_decay', config.optim.weight_decay),
        ('optim.freeze_encoder_stages', config.optim.freeze_encoder_stages),
        ('run.early_stop_validations', config.run.early_stop_validations),
        ('data.workers', config.data.workers),
        ('data.max_broken', config.data.max_broken),
    ):
        if not value >= 0:
            raise ValueError(f'{key}: found {value}, expected 0 or more')
    for key, choice, known in (
        ('optim.name', config.optim.name, OPTIMISERS),
        ('optim.schedule', config.optim.schedule, SCHEDULES),
        ('run.precision', config.run.precision, PRECISIONS),
    ):
        if choice not in known:
            raise ValueError(f'{key}: found {choice!r}, expected one of {", ".join(known)}')
    if not 0 <= config.optim.ema_decay < 1:
        raise ValueError(f'optim.ema_decay: found {config.optim.ema_decay}, expected 0 to 1')
    shares = config.optim.step_at
    if any(not 0 < share < 1 for share in shares) or list(shares) != sorted(shares):
        raise ValueError(f'optim.step_at: found {list(shares)}, expected ascending shares, 0 to 1')


def _filled(section: Any, name: str, values: dict[str, Any]) -> Any:
    known = {item.name: getattr(section, item.name) for item in fields(section)}
    found = {}
    for key, value in values.items():
        if key not in known:
            raise ValueError(f'{name}.{key}: not known; expected one of {sorted(known)}')
        default = known[key]
        if isinstance(default, tuple):
            if not isinstance(value, (list, tuple)) or any(
                isinstance(v, bool) or not isinstance(v, (int, float)) for v in value
            ):
                raise ValueError(f'{name}.{key}: found {value!r}, expected a list of numbers')
            if default and len(value) != len(default):
                raise ValueError(f'{name}.{key}: found {value!r}, expected {len(default)} numbers')
            value = tuple(float(v) for v in value)
        elif isinstance(default, float) and not isinstance(value, bool):
            value = _number_in_exponent_form(value)
            value = float(value) if isinstance(value, int) else value
        if default is not None and type(value) is not type(default):
            raise ValueError(
                f'{name}.{key}: found {value!r}, expected {type(default).__name__}, like '
                f'{default!r}'
            )
        if default is None and value is not None and (type(value) is not int or value < 1):
            raise ValueError(f'{name}.{key}: found {value!r}, expected a whole number or null')
        found[key] = _numbers(value) if isinstance(value, dict) else value
    return replace(section, **found)


def _numbers(value: Any) -> Any:
    """Read exponents in nested options as numbers."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return _number_in_exponent_form(value)
