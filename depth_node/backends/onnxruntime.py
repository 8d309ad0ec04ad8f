"""ONNX Runtime on the CPU, and on an NVIDIA GPU by its TensorRT or its CUDA provider."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from depth_node.backends import BackendError, Tensors, cuda, output_names
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
from depth_node.backends.cuda import Cuda
from depth_node.backends.engine_cache import default_cache_dir
from depth_node.backends.tensorrt_build import DEFAULT_MEMORY_MIB, profile_of
from depth_node.model_card import ModelCard
import numpy as np
from numpy.typing import NDArray


class _Route(NamedTuple):
    """What stands behind a backend's name."""

    provider: str
    precisions: tuple[str, ...]
    needs: str  # what is missing where the provider does not start


_ROUTES: Final = {
    'onnxruntime-tensorrt': _Route(
        'TensorrtExecutionProvider', ('fp32', 'fp16'),
        'libnvinfer of the TensorRT that this ONNX Runtime was built for, cuDNN or CUDA libraries '
        'are missing'),
    'onnxruntime-cuda': _Route(
        'CUDAExecutionProvider', ('fp32', 'fp16'), 'driver, cuDNN or CUDA libraries are missing'),
    'onnxruntime': _Route('CPUExecutionProvider', ('fp32', 'int8'), ''),
}


def probe(name: str) -> tuple[str | None, str]:
    """Return ONNX Runtime's version, or None and the reason why it cannot be used."""
    on_gpu = name != 'onnxruntime'
    extra = 'cuda' if on_gpu else 'cpu'
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        return None, f"not installed ({error.name}); pip install '.[{extra}]' in the clone"
    except ImportError as error:
        return None, f'cannot be imported: {error}'
    if on_gpu and _ROUTES[name].provider not in onnxruntime.get_available_providers():
        missing = 'CUDA' if name.endswith('-cuda') else 'TensorRT'
        return None, (f'onnxruntime {onnxruntime.__version__} is built without {missing}; '
                      "pip install '.[cuda]' in the clone on a machine with an NVIDIA GPU")
    problem = cuda.why_not() if on_gpu else ''
    if problem:
        return None, problem
    return str(onnxruntime.__version__), ''


def signature(model: Path) -> tuple[Tensors, Tensors]:
    """Return a graph's inputs and outputs."""
    import onnxruntime

    return _signature(onnxruntime.InferenceSession(
        str(model), providers=['CPUExecutionProvider']))


def open_model(
    name: str, card: ModelCard, model: Path, precision: str, *, cache_dir: Path | None,
    threads: int | None, tell: Callable[[str], None],
) -> OnnxRuntimeBackend:
    """Open a session; of its providers TensorRT alone keeps a cache."""
    folder = None
    if name == 'onnxruntime-tensorrt':
        import onnxruntime

        folder = _engines_of(
            card, model, precision, cache_dir, str(onnxruntime.__version__), tell)
        tell(f'{name}: opening {card.name}; the first time an engine is built, which takes '
             'minutes')
    return OnnxRuntimeBackend(name, card, model, precision, threads or default_threads(), folder)


@dataclass
class _Bound:
    """The buffers for one input shape.

    Attributes:
        binding: of the session to them.
        outputs: by name, the memory that it writes.
        batch: whose memory is bound as input.
    """

    binding: Any
    outputs: dict[str, NDArray[np.float32]]
    batch: NDArray[Any] | None = None


class OnnxRuntimeBackend(OnnxBackend):
    """A session whose input and outputs are bound to buffers that stay, for a few input sizes."""

    def __init__(
        self, name: str, card: ModelCard, model: Path, precision: str, threads: int,
        engines: Path | None = None,
    ) -> None:
        import onnxruntime

        route = _ROUTES[name]
        on_gpu = name != 'onnxruntime'
        if precision not in route.precisions:
            raise BackendError(f'precision {precision} is not for {name}; '
                               f'{", ".join(route.precisions)} are')
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; its warnings speak to the graph's author
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Spinning threads would busy both cores between the frames of a camera. Measured with
        # INT8 at 30 Hz on 2 cores: 117 % CPU and 5 ms per frame spinning, 28 % and 9 ms without.
        options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        self._session: Any = onnxruntime.InferenceSession(
            str(model), options, providers=_providers(name, card, precision, engines))
        chosen = self._session.get_providers()[0]
        if on_gpu and chosen != route.provider:
            raise BackendError(f'{route.provider} did not start ({route.needs}), ONNX Runtime '
                               f'fell back to the {"CPU" if chosen.startswith("CPU") else chosen}')
        super().__init__(
            name, card, precision, threads=0 if on_gpu else threads,
            device='CUDA:0' if on_gpu else 'CPU', version=str(onnxruntime.__version__))
        inputs, outputs = _signature(self._session)
        require_input(card, inputs)
        self._names = output_names(card)
        require_outputs(self._names, list(outputs))
        self._bound: dict[tuple[int, ...], _Bound] = {}  # the last used at the end
        self._gpu: Cuda | None = None  # for pictures in its memory

    def run(self, batch: Any) -> dict[str, NDArray[np.float32]]:
        """Run the network once; see `Backend.run`.

        Args:
            batch: an array; on a GPU also a contiguous picture in the memory of the first one,
                of the same shape and type: a torch tensor, or anything with
                `__cuda_array_interface__`. The host waits for what its owner enqueued.
        """
        if self.name == 'onnxruntime' or not cuda.is_on_device(batch):
            return super().run(batch)
        picture = cuda.lent(batch)
        self._check(picture.shape, picture.dtype)
        if self._gpu is None:
            self._gpu = Cuda.open()
        self._gpu.require_own(picture.address)
        if picture.stream is not None:
            # ONNX Runtime works on a stream of its own, which knows nothing of the owner's
            if picture.stream < 0:
                self._gpu.synchronize()
            else:
                self._gpu.stream_synchronize(picture.stream)
        try:
            bound = self._for(picture.shape)
            if bound is None:  # a first run tells the shapes of the outputs
                bound = self._first_of_its_shape(np.zeros(picture.shape, picture.dtype))
            bound.binding.bind_input(self.card.input.name, 'cuda', 0, picture.dtype,
                                     picture.shape, picture.address)
            bound.batch = None
            self._session.run_with_iobinding(bound.binding)
        except BackendError:
            raise
        except Exception as error:  # as in `_infer`
            raise BackendError(f'onnxruntime: {error}') from error
        return bound.outputs

    def _infer(self, batch: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        try:
            bound = self._for(batch.shape)
            if bound is None:
                return self._first_of_its_shape(batch).outputs
            if not same_buffer(batch, bound.batch):  # the pipeline's buffer is bound once
                self._bind_input(bound, batch)
            self._session.run_with_iobinding(bound.binding)
        except BackendError:
            raise
        except Exception as error:  # ONNX Runtime's errors have no common base but this
            raise BackendError(f'onnxruntime: {error}') from error
        return bound.outputs

    def _for(self, shape: tuple[int, ...]) -> _Bound | None:
        bound = self._bound.pop(shape, None)
        if bound is not None:
            self._bound[shape] = bound
        return bound

    def _first_of_its_shape(self, batch: NDArray[Any]) -> _Bound:
        """Run unbound to learn the shapes of the outputs, then bind buffers for the next runs."""
        results = self._session.run(list(self._names), {self.card.input.name: batch})
        outputs: dict[str, NDArray[np.float32]] = {}
        for name, values in zip(self._names, results, strict=True):
            require_float32(name, getattr(values, 'dtype', type(values).__name__))
            outputs[name] = np.array(values, order='C')
        bound = _Bound(self._session.io_binding(), outputs)
        for name, values in outputs.items():
            bound.binding.bind_output(
                name, 'cpu', 0, np.float32, values.shape, values.ctypes.data)
        self._bind_input(bound, batch)
        while len(self._bound) >= SHAPES_KEPT:
            del self._bound[next(iter(self._bound))]
        self._bound[batch.shape] = bound
        return bound

    def _bind_input(self, bound: _Bound, batch: NDArray[Any]) -> None:
        bound.binding.bind_input(
            self.card.input.name, 'cpu', 0, batch.dtype, batch.shape, batch.ctypes.data)
        bound.batch = batch

    def _release(self) -> None:
        self._bound.clear()
        self._session = None
        if self._gpu is not None:
            self._gpu.close()


def _providers(
    name: str, card: ModelCard, precision: str, folder: Path | None
) -> list[Any]:
    """Return the providers to ask for, with their options.

    Args:
        name: of the backend.
        card: the model.
        precision: fp32 or fp16.
        folder: where TensorRT's provider keeps engines; None: nowhere.
    """
    if name != 'onnxruntime-tensorrt':
        return [_ROUTES[name].provider]
    options = {
        'trt_fp16_enable': '1' if precision == 'fp16' else '0',
        'trt_max_workspace_size': str(DEFAULT_MEMORY_MIB << 20)}
    profile = profile_of(card.input)
    if profile is not None:  # without one an engine is built anew for each size that comes
        for limit, size_hw in zip(('min', 'opt', 'max'), profile, strict=True):
            sides = 'x'.join(map(str, batch_shape(card.input.layout, size_hw)))
            options[f'trt_profile_{limit}_shapes'] = f'{card.input.name}:{sides}'
    if folder is not None:
        options.update(trt_engine_cache_enable='1', trt_timing_cache_enable='1',
                       trt_engine_cache_path=str(folder), trt_timing_cache_path=str(folder))
    # what TensorRT does not know runs on the GPU as well
    return [(_ROUTES[name].provider, options), _ROUTES['onnxruntime-cuda'].provider]


def _engines_of(
    card: ModelCard, model: Path, precision: str, cache_dir: Path | None, version: str,
    tell: Callable[[str], None],
) -> Path | None:
    """Make the folder for the engines of one file by TensorRT's provider.

    The provider finds an engine by the graph's names and not by its weights: each file gets a
    folder of its own, so that a network that was trained further does not meet its old engine.
    """
    sha256 = next(spec.sha256 for spec in card.precisions.values() if spec.path == model)
    folder = ((cache_dir or default_cache_dir()) / 'onnxruntime-tensorrt'
              / f'{sha256[:32]}-{precision}-{version}')
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        tell(f'onnxruntime-tensorrt: {folder}: {error.strerror or error}; the engine is built '
             'and not kept')
        return None
    return folder


def _signature(session: Any) -> tuple[Tensors, Tensors]:
    inputs, outputs = (
        {node.name: (_numpy_name(node.type),
                     [side if isinstance(side, int) else None for side in node.shape])
         for node in nodes}
        for nodes in (session.get_inputs(), session.get_outputs()))
    return inputs, outputs


def _numpy_name(kind: str) -> str:
    """Turn 'tensor(float)' into 'float32'."""
    inner = kind.removeprefix('tensor(').removesuffix(')')
    return {'float': 'float32', 'double': 'float64'}.get(inner, inner)
