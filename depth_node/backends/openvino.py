"""OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depth_node.backends import BackendError, Tensors, output_names
from depth_node.backends._base import (
    SHAPES_KEPT,
    OnnxBackend,
    batch_shape,
    default_threads,
    require_float32,
    require_input,
    require_outputs,
    same_buffer,
)
from depth_node.model_card import ModelCard
import numpy as np
from numpy.typing import NDArray

# OpenVINO's default on a CPU with bf16 instructions is bf16: it has to be told.
_HINTS = {'fp32': 'f32', 'int8': 'f32', 'bf16': 'bf16'}


def probe(name: str) -> tuple[str | None, str]:
    """Return OpenVINO's version, or None and the reason why it cannot be used."""
    try:
        import openvino
    except ModuleNotFoundError as error:
        return None, f"not installed ({error.name}); pip install '.[cpu]' in the clone"
    except ImportError as error:
        return None, f'cannot be imported: {error}'
    if not hasattr(openvino, 'Core'):
        return None, 'the installed openvino is older than 2023.1; pip install -U openvino'
    return str(openvino.__version__).split('-')[0], ''


def signature(model: Path) -> tuple[Tensors, Tensors]:
    """Return a graph's inputs and outputs."""
    import openvino

    return _signature(openvino.Core().read_model(str(model)), set())


def open_model(
    name: str, card: ModelCard, model: Path, precision: str, *, cache_dir: Path | None,
    threads: int | None, tell: Callable[[str], None],
) -> OpenVinoBackend:
    """Compile a model for the CPU."""
    del tell  # it takes a second
    return OpenVinoBackend(name, card, model, precision, cache_dir, threads or default_threads())


@dataclass
class _Compiled:
    """A model compiled for one input shape.

    Attributes:
        request: runs it.
        outputs: by name, the memory that it writes.
        tensor: the input that is bound.
        batch: whose memory that is.
    """

    request: Any
    outputs: dict[str, NDArray[np.float32]]
    tensor: Any = None
    batch: NDArray[Any] | None = None


class OpenVinoBackend(OnnxBackend):
    """A compiled model and one infer request for each input shape.

    Its buffers are OpenVINO's own; the batch is handed over and the outputs are handed out
    without a copy. A dynamic model is compiled anew for each new input size, because a shape that
    is known runs faster; the last few are kept.
    """

    def __init__(
        self, name: str, card: ModelCard, model: Path, precision: str, cache_dir: Path | None,
        threads: int,
    ) -> None:
        import openvino

        if precision not in _HINTS:
            raise BackendError(f'precision {precision} is not for OpenVINO on a CPU; '
                               f'{", ".join(_HINTS)} are')
        self._ov = openvino
        self._core: Any = openvino.Core()
        capabilities = self._core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES')
        if precision == 'bf16' and 'BF16' not in capabilities:
            raise BackendError('this CPU has no bf16 instructions; use fp32 or int8')
        super().__init__(
            name, card, precision, threads=threads,
            device=str(self._core.get_property('CPU', 'FULL_DEVICE_NAME')).strip(),
            version=str(openvino.__version__).split('-')[0])
        self._model = model
        self._config: dict[str, Any] = {
            'PERFORMANCE_HINT': 'LATENCY',
            'NUM_STREAMS': 1,
            'INFERENCE_NUM_THREADS': threads,
            'INFERENCE_PRECISION_HINT': _HINTS[precision],
            # two processes that pin their threads would pin them to the same cores
            'ENABLE_CPU_PINNING': False,
        }
        if cache_dir is not None:
            self._config['CACHE_DIR'] = str(cache_dir)
        self._compiled: dict[tuple[int, ...], _Compiled] = {}  # the last used at the end
        spec = card.input
        size_hw = spec.size_hw or (card.check.size_hw if card.check else spec.min_hw)
        if size_hw is None:
            raise BackendError('the card names no input size')
        self._for(batch_shape(spec.layout, size_hw))

    def _for(self, shape: tuple[int, ...]) -> _Compiled:
        found = self._compiled.pop(shape, None)
        if found is None:
            while len(self._compiled) >= SHAPES_KEPT:
                del self._compiled[next(iter(self._compiled))]
            found = self._compile(shape)
        self._compiled[shape] = found
        return found

    def _compile(self, shape: tuple[int, ...]) -> _Compiled:
        graph = self._core.read_model(str(self._model))
        names = output_names(self.card)
        inputs, outputs = _signature(graph, {self.card.input.name, *names})
        require_input(self.card, inputs)
        require_outputs(names, list(outputs))
        if graph.is_dynamic():
            graph.reshape({self.card.input.name: list(shape)})
        compiled = self._core.compile_model(graph, 'CPU', self._config)
        for name in names:
            port = compiled.output(name)
            require_float32(name, np.dtype(port.get_element_type().to_dtype()))
            if port.get_partial_shape().is_dynamic:
                raise BackendError(f'the size of output {name!r} depends on what is in the '
                                   'picture; it must follow from the input size')
        request = compiled.create_infer_request()
        return _Compiled(request, {name: request.get_tensor(name).data for name in names})

    def _infer(self, batch: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        try:
            compiled = self._for(batch.shape)
            if not same_buffer(batch, compiled.batch):  # the pipeline's buffer is bound once
                compiled.tensor = self._ov.Tensor(batch, shared_memory=True)
                compiled.request.set_input_tensor(compiled.tensor)
                compiled.batch = batch
            compiled.request.infer()
        except RuntimeError as error:  # BackendError is one too
            raise BackendError(f'openvino: {error}') from error
        return compiled.outputs

    def _release(self) -> None:
        self._compiled.clear()
        self._core = None


def _signature(graph: Any, wanted: set[str]) -> tuple[Tensors, Tensors]:
    """Describe the ports; of several names (older versions have aliases) take a wanted one."""
    inputs, outputs = (
        {min(port.get_names() & wanted, default=port.get_any_name()): (
            np.dtype(port.get_element_type().to_dtype()).name,
            [side.get_length() if side.is_static else None
             for side in port.get_partial_shape()])
         for port in ports}
        for ports in (graph.inputs, graph.outputs))
    return inputs, outputs
