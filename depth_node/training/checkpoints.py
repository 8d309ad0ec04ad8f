"""Reading checkpoints without running code from them."""

from __future__ import annotations

from pathlib import Path
import pickle
from typing import Any

from depth_node.training.networks import DepthNetwork, build_network, untrained
import torch


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the text names the file."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint of `depth-node train`.

    Raises:
        CheckpointError: missing, not a checkpoint, or one of another program.
    """
    if not path.is_file():
        raise CheckpointError(f'{path}: no such checkpoint; a run writes best.ckpt and last.ckpt')
    if path.suffix in ('.onnx', '.yaml'):
        raise CheckpointError(
            f'{path}: an exported network cannot be trained or exported again; give the best.ckpt '
            'of its run'
        )
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if isinstance(error, pickle.UnpicklingError):  # torch's text advises to run its code
            reason = 'no file of torch.save, or one that holds more than plain values'
        raise CheckpointError(f'{path}: not a readable checkpoint ({reason})') from error
    try:
        checkpoint['hyper_parameters']['config']['network']['name']
        checkpoint['state_dict']
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f'{path}: no configuration or weights in it ({error!r}); '
            'expected a file that `depth-node train` wrote'
        ) from error
    return dict(checkpoint)


def network_of(checkpoint: dict[str, Any]) -> DepthNetwork:
    """Build the network of a checkpoint, in evaluation mode.

    Its weights are the averaged ones where the run kept them.

    Raises:
        CheckpointError: the weights do not fit the network of its configuration.
    """
    settings = checkpoint['hyper_parameters']['config']['network']
    name = settings['name']
    network = build_network(name, **{**settings['options'], **untrained(name)})
    weights = checkpoint.get('ema')
    if weights is None:
        weights = {
            key.removeprefix('network.'): value
            for key, value in checkpoint['state_dict'].items()
            if key.startswith('network.')
        }
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f'the weights do not fit network {name} with options {settings["options"]}: {error}'
        ) from error
    return network.eval()
