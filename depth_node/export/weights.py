"""Back from an exported file to a network that can be trained further.

An ONNX file has its batch norms folded into the convolutions before them. They are unfolded so
that the network computes the same, and so that its norms measure what passes through them: a
norm that only adds would lose its scale in the first training step.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from depth_node.export.onnx import ExportError, ImageToDepth, Parity, check_parity
from depth_node.training.networks.card import INPUT_NAME
import numpy as np
from numpy.typing import NDArray
import torch
from torch import nn

if TYPE_CHECKING:
    from depth_node.training.networks.base import DepthNetwork

PREFIX = 'network.'  # of the parameters in a file of `export_onnx`


def load_onnx_weights(path: Path, network: DepthNetwork, pictures: torch.Tensor) -> Parity:
    """Fill a network with the weights of a file that `export_onnx` wrote from one like it.

    Args:
        path: the FP32 file.
        network: of the same kind and options but for the size, which may be another one where no
            weight depends on it; changed in place and left in evaluation mode.
        pictures: (N, 3, H, W) uint8 of the network's size, by which the norms are measured: some
            of those that it will be trained on. Optional and growable modules that the file
            lacks stay as they are.

    Returns:
        How far the filled network is from the file in ONNX Runtime, at the file's size.

    Raises:
        ExportError: the file is not one of this network, or the two disagree.
    """
    values, size_hw = _read(path)
    network.eval()
    batch = network.normalise(pictures)
    norm_of = _norms_after_convolutions(network, batch)
    filled: dict[str, torch.Tensor] = {}
    optional = tuple(f'{name}.' for name in network.optional_modules)
    growable = tuple(f'{name}.' for name in network.growable_modules)
    own = network.state_dict()
    for name in (full.removeprefix(PREFIX) for full in values):
        if name.startswith(growable) and name not in own:
            raise ExportError(
                f'{path}: has {name}, which the network lacks; give it the network.options of the '
                'file (provenance.training.network of its card)'
            )
    for name, value in own.items():
        if name.startswith(optional + growable) and PREFIX + name not in values:
            filled[name] = value
        elif name.startswith(optional + growable):
            filled[name] = _value(values, PREFIX + name, value, path)
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            continue
        for key, parameter in module.named_parameters(recurse=False):
            full = f'{name}.{key}' if name else key
            if full in filled:
                continue
            filled[full] = _value(values, PREFIX + full, parameter, path)
        if name in norm_of:
            norm = network.get_submodule(norm_of[name])
            assert isinstance(norm, nn.BatchNorm2d)
            bias = _value(values, f'{PREFIX}{name}.weight_bias', norm.bias, path)
            filled[f'{norm_of[name]}.bias'] = bias
            filled[f'{norm_of[name]}.weight'] = torch.ones_like(norm.weight)
            filled[f'{norm_of[name]}.running_mean'] = torch.zeros_like(norm.bias)
            filled[f'{norm_of[name]}.running_var'] = torch.full_like(norm.bias, 1 - norm.eps)
    kept = {name: value for name, value in own.items() if name not in filled}
    missing = [name for name, value in kept.items() if value.is_floating_point()]
    if missing:
        raise ExportError(
            f'{path}: {missing[0]} of the network stands behind no convolution of the file; '
            'start from a checkpoint instead'
        )
    network.load_state_dict({**kept, **filled})
    _measure_norms(network, batch, set(norm_of.values()))
    own_hw = network.size_hw
    network.size_hw = size_hw or own_hw
    try:
        return check_parity(ImageToDepth(network).eval(), path, there=True)
    finally:
        network.size_hw = own_hw


def _read(path: Path) -> tuple[dict[str, NDArray[np.float32]], tuple[int, int] | None]:
    """Return the weights of a file and the size of its pictures, None if that is not fixed."""
    import onnx
    from onnx import numpy_helper

    try:
        model = onnx.load(str(path))
    except Exception as error:  # protobuf's, of several kinds
        raise ExportError(f'{path}: not a readable ONNX file ({error})') from error
    weights = {
        item.name: numpy_helper.to_array(item)
        for item in model.graph.initializer
        if item.name.startswith(PREFIX)
    }
    shapes = [item.type.tensor_type.shape.dim for item in model.graph.input
              if item.name == INPUT_NAME]
    sides = [dim.dim_value for dim in shapes[0][1:3]] if shapes else []
    return weights, (sides[0], sides[1]) if len(sides) == 2 and all(sides) else None


def _value(
    values: dict[str, NDArray[np.float32]], name: str, like: torch.Tensor, path: Path
) -> torch.Tensor:
    found = values.get(name)
    if found is None or found.shape != tuple(like.shape):
        what = 'not there' if found is None else f'of shape {found.shape}'
        raise ExportError(
            f'{path}: {name} is {what}, expected {tuple(like.shape)}; is it the FP32 file of a '
            'network with the same name and options?'
        )
    return torch.from_numpy(found.copy())


def _norms_after_convolutions(network: DepthNetwork, batch: torch.Tensor) -> dict[str, str]:
    """Map the name of each convolution to that of the norm which takes its output."""
    made: dict[int, str] = {}
    alive: list[torch.Tensor] = []  # an id is unique only while its tensor lives
    norm_of: dict[str, str] = {}
    handles = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):

            def note(_: nn.Module, __: object, output: torch.Tensor, name: str = name) -> None:
                made[id(output)] = name
                alive.append(output)

            handles.append(module.register_forward_hook(note))
        elif isinstance(module, nn.BatchNorm2d):

            def match(
                _: nn.Module, inputs: tuple[torch.Tensor, ...], name: str = name
            ) -> None:
                if id(inputs[0]) in made:
                    norm_of[made[id(inputs[0])]] = name

            handles.append(module.register_forward_pre_hook(match))
    with torch.no_grad():
        network(batch[:1])
    for handle in handles:
        handle.remove()
    return norm_of


def _measure_norms(network: DepthNetwork, batch: torch.Tensor, names: set[str]) -> None:
    """Let every norm divide by the spread that it sees, and multiply by it again."""
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    handles = []
    for name in names:

        def note(_: nn.Module, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
            x = inputs[0].double()
            seen[name] = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)

        handles.append(network.get_submodule(name).register_forward_pre_hook(note))
    with torch.no_grad():
        network(batch)
        for handle in handles:
            handle.remove()
        for name, (mean, variance) in seen.items():
            norm = network.get_submodule(name)
            assert isinstance(norm, nn.BatchNorm2d)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            norm.weight.copy_((norm.running_var.double() + norm.eps).sqrt())
            norm.bias.add_(mean)
