"""What the backends have in common: batches checked against the card, closing, CPU threads."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Final

from depth_node.backends import BackendError, Refusal, Tensors
from depth_node.backends.cuda import is_on_device
from depth_node.model_card import ModelCard
import numpy as np
from numpy.typing import NDArray

MAX_DEFAULT_THREADS: Final = 4  # a robot's other processes need the rest
SHAPES_KEPT: Final = 4  # input sizes that stay prepared: cameras of a node may differ in aspect


class OnnxBackend:
    """Base of the backends: `run` checks, `_infer` computes."""

    def __init__(
        self, name: str, card: ModelCard, precision: str, *, device: str, version: str,
        threads: int,
    ) -> None:
        self.name = name
        self.card = card
        self.precision = precision
        self.device = device
        self.version = version
        self.threads = threads
        self.refusals: tuple[Refusal, ...] = ()
        self._dtype = np.dtype(np.uint8 if card.input.layout == 'uint8_nhwc' else np.float32)
        self._open = True

    def run(self, batch: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """Run the network once; see `Backend.run`."""
        if is_on_device(batch):
            raise BackendError(f'input is on the GPU, backend {self.name} takes arrays in host '
                               'memory: hand over tensor.cpu().numpy(), or use one on the GPU')
        return self._infer(self._checked(batch))

    def close(self) -> None:
        """Release the runtime's objects; may be called twice."""
        if self._open:
            self._open = False
            self._release()

    def __enter__(self) -> OnnxBackend:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _infer(self, batch: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        raise NotImplementedError

    def _release(self) -> None:
        raise NotImplementedError

    def _checked(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Return a batch as it is taken, after holding it to the card."""
        self._check(batch.shape, batch.dtype)
        return np.ascontiguousarray(batch)

    def _check(self, shape: tuple[int, ...], dtype: object) -> None:
        if not self._open:
            raise BackendError(f'backend {self.name}: it is closed')
        if dtype != self._dtype:
            raise BackendError(f'input is {dtype}, model {self.card.name!r} takes '
                               f'{self._dtype} ({self.card.input.layout})')
        self._check_shape(shape)

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        spec = self.card.input
        nhwc = spec.layout == 'uint8_nhwc'
        size_hw = (shape[1:3] if nhwc else shape[2:]) if len(shape) == 4 else (0, 0)
        expected_hw = spec.size_hw or size_hw
        if shape != batch_shape(spec.layout, expected_hw) or min(expected_hw) <= 0:
            wanted = batch_shape(spec.layout, spec.size_hw) if spec.size_hw else (
                '(1, H, W, 3)' if nhwc else '(1, 3, H, W)')
            raise BackendError(f'input has shape {shape}, model {self.card.name!r} takes {wanted}')
        step = spec.multiple_of
        if step is not None and (size_hw[0] % step or size_hw[1] % step):
            raise BackendError(f'input has shape {shape}, model {self.card.name!r} takes sides '
                               f'that are multiples of {step}')


def batch_shape(layout: str, size_hw: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return the shape of a batch of one picture."""
    height, width = size_hw
    return (1, height, width, 3) if layout == 'uint8_nhwc' else (1, 3, height, width)


def require_input(card: ModelCard, inputs: Tensors) -> None:
    """Compare the graph's inputs with the card.

    Args:
        card: the model.
        inputs: of the graph.

    Raises:
        BackendError: naming what differs.
    """
    spec = card.input
    if list(inputs) != [spec.name]:
        raise BackendError(f'the graph has the inputs {", ".join(inputs) or "none"}, the card '
                           f'says {spec.name!r} alone')
    kind, shape = inputs[spec.name]
    wanted = 'uint8' if spec.layout == 'uint8_nhwc' else 'float32'
    if kind != wanted:
        raise BackendError(f'input {spec.name!r} is {kind} in the graph, the card says '
                           f'{spec.layout}')
    sides = batch_shape(spec.layout, spec.size_hw or (-1, -1))
    fits = len(shape) == 4 and all(
        real is None or want in (real, -1) for real, want in zip(shape, sides, strict=True))
    if fits and spec.size_hw is None:  # free sides must be free in the graph as well
        fits = all(real is None for real, want in zip(shape, sides, strict=True)
                   if want == -1)
    if not fits:
        shown = ['?' if side is None else side for side in shape]
        wanted_shape = ['?' if side == -1 else side for side in sides]
        raise BackendError(f'input {spec.name!r} has shape {shown} in the graph, the card says '
                           f'{wanted_shape}')


def require_outputs(names: tuple[str, ...], available: list[str]) -> None:
    """Raise `BackendError` if the graph lacks an output that the card names."""
    for name in names:
        if name not in available:
            raise BackendError(f'the graph has no output {name!r}, which the card names; it has '
                               f'{", ".join(available)}')


def require_float32(name: str, kind: object) -> None:
    """Raise `BackendError` if an output's type is not float32."""
    if kind != np.dtype(np.float32):
        raise BackendError(f'output {name!r} is {kind}, float32 is expected')


def same_buffer(batch: NDArray[Any], bound: NDArray[Any] | None) -> bool:
    """Tell whether a batch (of the same shape and type) lies where the bound one does."""
    return bound is not None and (
        batch.__array_interface__['data'] == bound.__array_interface__['data'])


def default_threads() -> int:
    """Return the physical cores that this process may use, at most `MAX_DEFAULT_THREADS`.

    Hyper-threads share the units that a convolution keeps busy, and threads beyond a container's
    CPU quota make it wait: neither is counted.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, 'sched_getaffinity') else set(
        range(os.cpu_count() or 1))
    count = len({_core_of(cpu) for cpu in allowed})
    return max(1, min(count, _quota(), MAX_DEFAULT_THREADS))


def _core_of(cpu: int) -> str:
    """Name the physical core of a logical CPU (Linux; elsewhere each is its own)."""
    topology = Path(f'/sys/devices/system/cpu/cpu{cpu}/topology')
    try:
        return (topology / 'thread_siblings_list').read_text().strip()
    except OSError:
        return str(cpu)


def _quota(path: Path = Path('/sys/fs/cgroup/cpu.max')) -> int:
    """Return the whole CPUs of the control group's quota (cgroup v2)."""
    try:
        quota, period = path.read_text().split()[:2]
        return max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError, ZeroDivisionError):  # 'max', no cgroup, or another system
        return MAX_DEFAULT_THREADS
