"""The training configuration: one YAML file, every key checked."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from depth_node.training.augment import AugmentSettings
import yaml


class ConfigError(ValueError):
    """The configuration file cannot be used; the text names the key."""


@dataclass(frozen=True)
class NetworkConfig:
    """Which network, and the options of its class."""

    name: str = 'small'
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataConfig:
    """What to train on.

    Attributes:
        root: data folder, relative to the working directory.
        batch_size: pictures a step.
        workers: loader processes.
        val_frames: at most this many validation frames are scored each time.
        far_m: deeper pixels are unknown to training.
    """

    root: str = 'data/frames'
    batch_size: int = 8
    workers: int = 1
    val_frames: int = 200
    far_m: float = 40.0


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses' sum; zero leaves a loss out."""

    log_l1: float = 1.0
    silog: float = 0.5
    gradient: float = 0.5
    gradient_scales: int = 4
    silog_mean_weight: float = 0.15


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule.

    Attributes:
        encoder_lr: peak rate of the pretrained part.
        decoder_lr: peak rate of the new part.
        weight_decay: decoupled, of matrices only (not of norms and biases).
        clip: largest norm of the gradient.
        warmup_steps: linear rise at the start.
        final_share: last rate as a share of the peak; the fall is a half cosine.
        ema_decay: of the averaged weights that are validated and exported.
    """

    encoder_lr: float = 3e-4
    decoder_lr: float = 1e-3
    weight_decay: float = 0.01
    clip: float = 5.0
    warmup_steps: int = 100
    final_share: float = 0.01
    ema_decay: float = 0.998


@dataclass(frozen=True)
class RunConfig:
    """How long, how often, where.

    Attributes:
        folder: what a run writes.
        max_steps: end of the schedule; `--max-time` can end it earlier.
        val_every_steps: steps between validations, checkpoints and picture panels.
        guard_step: at this step the network must have left the constant picture behind.
        threads: CPU threads of torch; null leaves torch's choice.
        seed: of everything random.
    """

    folder: str = 'runs/small'
    max_steps: int = 20000
    val_every_steps: int = 500
    guard_step: int = 200
    threads: int | None = None
    seed: int = 1


@dataclass(frozen=True)
class TrainConfig:
    """The whole file."""

    network: NetworkConfig = NetworkConfig()
    data: DataConfig = DataConfig()
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as YAML and JSON take them."""
        return asdict(self)


def load_config(path: Path) -> TrainConfig:
    """Read and check a configuration file.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding='utf-8')) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(
            f'{path}: {error}; see config/train/small.yaml for an example'
        ) from error
    try:
        return config_from_dict(raw)
    except ValueError as error:
        raise ConfigError(f'{path}: {error}') from error


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
    for key, value in (
        ('data.batch_size', config.data.batch_size),
        ('data.val_frames', config.data.val_frames),
        ('run.max_steps', config.run.max_steps),
        ('run.val_every_steps', config.run.val_every_steps),
        ('optim.clip', config.optim.clip),
    ):
        if value <= 0:
            raise ValueError(f'{key}: found {value}, expected more than 0')
    if not 0 <= config.optim.ema_decay < 1:
        raise ValueError(f'optim.ema_decay: found {config.optim.ema_decay}, expected 0 to 1')
    return config


def _filled(section: Any, name: str, values: dict[str, Any]) -> Any:
    known = {item.name: getattr(section, item.name) for item in fields(section)}
    for key, value in values.items():
        if key not in known:
            raise ValueError(f'{name}.{key}: not known; expected one of {sorted(known)}')
        default = known[key]
        if default is None or value is None:
            continue
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            values = {**values, key: float(value)}
        elif not isinstance(value, type(default)) or isinstance(value, bool):
            raise ValueError(
                f'{name}.{key}: found {value!r}, expected {type(default).__name__}, like {default}'
            )
    return replace(section, **values)
