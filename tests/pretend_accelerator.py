"""An accelerator for machines without one: it computes on the CPU and refuses to mix with it.

Tensors on `DEVICE` hold real numbers, gradients flow, optimisers step; an operation on one of them
and one of the CPU fails as it does with CUDA. So a training step can be run that would break on a
GPU because something stayed behind.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

# A name that torch knows, whose backward pass runs in the caller's thread, and nothing else.
DEVICE = torch.device('lazy:0')
_aten = torch.ops.aten
# What CUDA takes from both places: copies from one to the other, and indices of the CPU.
_MAY_MIX = (_aten._to_copy.default, _aten.copy_.default, _aten.index.Tensor)


@contextlib.contextmanager
def accelerator() -> Iterator[torch.device]:
    """Let tensors be moved to `DEVICE` and computed with there."""
    known = torch.is_autocast_enabled

    def enabled(device: str = 'cpu') -> bool:
        return device != DEVICE.type and known(device)

    with mock.patch.object(torch, 'is_autocast_enabled', enabled), _FromNumbers(), _Dispatch():
        yield DEVICE


class There(torch.Tensor):
    """A tensor that says it is on `DEVICE`.

    Attributes:
        here: its values.
    """

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> There:
        return torch.Tensor._make_wrapper_subclass(
            cls, here.size(), strides=here.stride(), storage_offset=here.storage_offset(),
            dtype=here.dtype, layout=here.layout, device=DEVICE)  # fmt: skip

    def __init__(self, here: torch.Tensor) -> None:
        self.here = here

    def __repr__(self) -> str:
        return f'There({self.here!r})'

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _FromNumbers(TorchFunctionMode):
    """Tensors made of numbers go past the dispatcher: make them here, then move them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get('device') is not None:
            return func(*args, **{**kwargs, 'device': None}).to(kwargs['device'])
        if func is torch.Tensor.new_tensor and isinstance(args[0], There):
            return torch.tensor(*args[1:], **{'dtype': args[0].dtype, **kwargs}).to(DEVICE)
        return func(*args, **kwargs)


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, There)]
    here = [tensor for tensor in tensors if not isinstance(tensor, There) and tensor.ndim]
    if there and here and func not in _MAY_MIX:
        raise RuntimeError(f'{func}: a tensor of the CPU, {tuple(here[0].shape)}, and one of the '
                           f'accelerator, {tuple(there[0].shape)}')
    if kwargs.get('device') is not None:
        moved = torch.device(kwargs['device']).type == DEVICE.type
        kwargs = {**kwargs, 'device': torch.device('cpu')}
    elif func is _aten.copy_.default:
        moved = isinstance(args[0], There)
    else:
        moved = bool(there)
    own = {id(tensor.here): tensor for tensor in there}

    def unwrapped(leaf: Any) -> Any:
        return leaf.here if isinstance(leaf, There) else leaf

    def wrapped(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if id(leaf) in own:  # computed in place
            return own[id(leaf)]
        return There(leaf) if moved else leaf

    args, kwargs = tree_map(unwrapped, (args, kwargs))
    return tree_map(wrapped, func(*args, **kwargs))
