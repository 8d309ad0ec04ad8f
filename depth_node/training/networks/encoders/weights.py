"""Weights files of users into encoders, with a reason where they do not fit.

Nothing in a file is run: pickles are read with torch's restricted reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from depth_node.training.networks.encoders.base import Encoder
import torch

TORCH_SUFFIXES = ('.pth', '.pt', '.tar', '.ckpt')
# What programs wrap a state dict in, and its names.
WRAPPERS = ('state_dict', 'model_state_dict', 'model')
PREFIXES = ('module.', 'network.', 'encoder.')
SHOWN = 3  # examples per kind of mismatch
COUNTER = 'num_batches_tracked'  # files from before PyTorch 0.4.1 lack it; it changes no output


def load_encoder_weights(encoder: Encoder, path: str | Path) -> None:
    """Load a weights file into an encoder.

    The classifier's weights are left out, and so are the prefixes that wrappers put before the
    names (`module.`, `network.`, `encoder.`: a whole network's file gives its encoder).

    Args:
        encoder: is changed, unless the file does not fit.
        path: a state dict, .pth or .pt (or .tar, .ckpt) of torch.save, or .safetensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, or is not of this encoder.
    """
    path = Path(path)
    expected = encoder.state_dict()
    found = {}
    for key, value in _without_prefixes(read_state_dict(path), expected).items():
        key = encoder.current_key(key)
        in_classifier = key.removeprefix('model.').startswith(encoder.classifier_keys)
        if key in expected or not in_classifier:
            found[key] = value
    missing = [key for key in expected if key not in found and not key.endswith(COUNTER)]
    unexpected = [key for key in found if key not in expected]
    misshaped = [
        f'{key} {tuple(found[key].shape)}, expected {tuple(value.shape)}'
        for key, value in expected.items()
        if key in found and found[key].shape != value.shape
    ]
    problems = [
        f'{len(keys)} {what}: {"; ".join(keys[:SHOWN])}{"; ..." if len(keys) > SHOWN else ""}'
        for what, keys in (
            ('missing', missing), ('unexpected', unexpected), ('of another shape', misshaped)
        )
        if keys
    ]  # fmt: skip
    if problems:
        raise ValueError(
            f'{path}: not {encoder.title} weights: {". ".join(problems)}. Expected the state dict '
            f'of {encoder.source}: name the encoder that the file was made for, or save it by '
            'torch.save(model.state_dict(), path)'
        )
    broken = [key for key, value in found.items() if not torch.isfinite(value).all()]
    if broken:
        raise ValueError(f'{path}: {broken[0]} has values that are not finite; get the file again')
    encoder.load_state_dict(found, strict=False)


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a weights file, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, or holds no tensors by name.
    """
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such weights file; check `encoder_weights`')
    if path.suffix == '.safetensors':
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise ValueError(f'{path}: needs the package safetensors; pip install it') from error
        read: Any = load_file
    elif path.suffix in TORCH_SUFFIXES:
        read = _torch_load
    else:
        raise ValueError(
            f'{path}: weights of type {path.suffix!r}; expected one of '
            f'{(*TORCH_SUFFIXES, ".safetensors")}'
        )
    try:
        content = read(path)
    except Exception as error:  # damaged pickles raise nearly anything
        raise ValueError(
            f'{path}: cannot be read as weights ({error}); expected tensors by name, as '
            'torch.save(model.state_dict(), path) writes them'
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise ValueError(f'{path}: holds {type(content).__name__}, expected tensors by name')
    state = {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, torch.Tensor)
    }
    if not state:
        raise ValueError(
            f'{path}: no tensors by name in it, but {sorted(map(str, content))[:SHOWN]}'
        )
    return state


def _torch_load(path: Path) -> Any:
    return torch.load(path, map_location='cpu', weights_only=True)


def _without_prefixes(
    state: dict[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Drop a prefix as long as names have one that the encoder's own do not begin with."""
    while True:
        for prefix in PREFIXES:
            named = [key for key in state if key.startswith(prefix)]
            if named and not any(key.startswith(prefix) for key in expected):
                state = {key[len(prefix) :]: state[key] for key in named}
                break
        else:
            return state
