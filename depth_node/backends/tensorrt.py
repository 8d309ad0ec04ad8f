"""TensorRT engines on an NVIDIA GPU: TensorRT 8.5 to 11 and TensorRT-RTX by one code.

The plan comes from the engine cache or is built by a child process. What is here and what is not
is asked of the module (`hasattr`), never of its version number. CUDA is reached by `cuda.py`, and
it is asked first: TensorRT's objects made without a usable driver crash at the exit of Python.
"""

from __future__ import annotations

from collections.abc import Callable
import contextlib
from dataclasses import dataclass
import importlib
import importlib.util
from pathlib import Path
import tempfile
import threading
import time
from types import ModuleType
from typing import Any, Final, NamedTuple

from depth_node.backends import BackendError, Tensors, cuda, output_names
from depth_node.backends._base import (
    OnnxBackend,
    require_float32,
    require_input,
    require_outputs,
)
from depth_node.backends.cuda import Cuda, CudaError, DeviceArray, HostBuffer, LentArray
from depth_node.backends.engine_cache import CacheError, EngineCache, EngineKey, engines_folder
from depth_node.backends.tensorrt_build import (
    MODULES,
    BuildRequest,
    build_in_child,
    card_file,
    is_typed,
    profile_of,
)
from depth_node.model_card import ModelCard
import numpy as np
from numpy.typing import NDArray

_SECONDS_PER_LINE: Final = 10.0  # of a build's progress
# What cudaMalloc gives, and what kernels may have been chosen for.
_ALIGNMENT: Final = 256

_NUMPY_NAMES: Final = {
    'FLOAT': 'float32', 'HALF': 'float16', 'UINT8': 'uint8', 'INT8': 'int8', 'INT32': 'int32',
    'INT64': 'int64', 'BOOL': 'bool'}

_INSTALL: Final = ("pip install tensorrt (from NVIDIA); on a Jetson it is JetPack's: sudo apt "
                   'install nvidia-jetpack, and a virtual environment needs '
                   '--system-site-packages')


def probe(name: str) -> tuple[str | None, str]:
    """Return TensorRT's version, or None and the reason why it cannot be used."""
    del name
    module = next((each for each in MODULES if importlib.util.find_spec(each) is not None), None)
    problem = cuda.why_not()
    if problem:
        return None, problem + ('' if module else '; TensorRT is not installed either')
    if module is None:
        return None, f'not installed; {_INSTALL}'
    try:
        trt = importlib.import_module(module)
    except ImportError as error:
        return None, f'{module} cannot be imported: {error}; {_INSTALL}'
    if not hasattr(trt.ICudaEngine, 'num_io_tensors'):
        return None, (f'{module} {trt.__version__} is too old: 8.5 is needed, which JetPack 5.1 '
                      'has')
    return _version(trt), ''


def precisions() -> tuple[str, ...]:
    """Return what `auto` tries, the fastest first: a step follows where the one before fails.

    INT8 is not among them: whether it is faster than FP16 depends on the GPU.
    """
    return ('fp16', 'fp32') if is_typed(_trt(), 'mixed') else ('fp16', 'mixed', 'fp32')


def model_file(card: ModelCard, precision: str) -> Path:
    """Return the file that a precision is built from, after comparing its hash.

    Raises:
        BackendError: the card has none, or TensorRT does not know the precision.
    """
    return card_file(card, precision, typed=is_typed(_trt(), precision))


def open_model(
    name: str, card: ModelCard, model: Path, precision: str, *, cache_dir: Path | None,
    threads: int | None, tell: Callable[[str], None],
) -> TensorRTBackend:
    """Load the engine from the cache, or build it, which takes minutes; `tell` gets lines."""
    del threads
    source = _Source(card, model, precision, engines_folder(cache_dir), tell)
    plan, from_cache = source.plan()
    try:
        return TensorRTBackend(name, card, plan, precision)
    except _PlanError as error:
        if not from_cache:
            raise
        # as after an update of the driver, which the key does not name
        tell(f'{name}: {error}; the engine is built anew')
        plan, _ = source.plan(anew=True)
        return TensorRTBackend(name, card, plan, precision)


class _PlanError(BackendError):
    """TensorRT does not take a plan."""


class _Source:
    """Where the plan of one file on this GPU comes from."""

    def __init__(
        self, card: ModelCard, model: Path, precision: str, folder: Path,
        tell: Callable[[str], None],
    ) -> None:
        trt = _trt()
        with Cuda.open() as gpu:
            gpu_name, (major, minor) = gpu.device_name(), gpu.compute_capability()
        self._module = trt.__name__
        version, sm = str(trt.__version__), 10 * major + minor
        self._cache = EngineCache(folder)
        self._request = BuildRequest(
            onnx=model, precision=precision, profile=profile_of(card.input),
            timing_cache=self._cache.timing_cache(trt.__name__, version, sm))
        sha256 = next(spec.sha256 for spec in card.precisions.values() if spec.path == model)
        self._key = EngineKey.of(
            self._request, sha256, module=trt.__name__, trt_version=version, gpu_name=gpu_name,
            sm=sm)
        self._model_name = card.name
        self._what = f'the {precision} engine of {card.name} for {gpu_name}'
        self._tell = tell

    def plan(self, *, anew: bool = False) -> tuple[bytes, bool]:
        """Return the plan and whether it was in the cache; `anew` builds it in any case."""
        try:
            found = self._cache.get_or_build(
                self._key, self._build, {'model': self._model_name}, force=anew,
                on_wait=lambda text: self._tell(f'tensorrt: {text}'),
                on_build=lambda text: self._tell(f'tensorrt: {text}'))
            if found.unkept:
                self._tell(f'tensorrt: {self._what} is not kept, the next start will build it '
                           f'again: {found.unkept}')
            if found.plan is not None:
                return found.plan, not found.reason
            problem = found.reason
        except CacheError as error:
            problem = str(error)
        self._tell(f'tensorrt: {problem}; {self._what} is built and not kept')
        with tempfile.TemporaryDirectory(prefix='depth_node_engine_') as place:
            path = Path(place) / 'plan'
            self._build(path)
            return path.read_bytes(), False

    def _build(self, out: Path) -> None:
        start = time.monotonic()
        self._tell(f'tensorrt: building {self._what}; this takes minutes')
        next_line = start + _SECONDS_PER_LINE

        def progress(phase: str, share: float) -> None:
            nonlocal next_line
            now = time.monotonic()
            if now >= next_line:
                next_line = now + _SECONDS_PER_LINE
                self._tell(f'tensorrt: building, {now - start:.0f} s, {100 * share:.0f} %: '
                           f'{phase}')

        build_in_child(self._request, out, progress, self._module)
        self._tell(f'tensorrt: built in {time.monotonic() - start:.0f} s')


@dataclass
class _Tensor:
    """An input or output of the engine, and where it lies.

    `host` is page-locked, and absent where nobody reads the tensor. `device` is the address of
    device memory, or of `host` itself where the GPU shares the memory.
    """

    name: str
    dtype: np.dtype[Any]
    is_input: bool
    wanted: bool
    capacity: int = 0
    nbytes: int = 0
    device: int = 0
    host: HostBuffer | None = None


class _Way(NamedTuple):
    """What one run does beside the network; a graph is of one way.

    Attributes:
        lent: address of a picture in GPU memory, 0 for one that is uploaded.
        in_place: the network reads it there; otherwise it is copied on the GPU.
        download: the outputs go to the host.
    """

    lent: int
    in_place: bool
    download: bool


class TensorRTBackend(OnnxBackend):
    """An engine with its context, a stream, and buffers for the largest input.

    The second run with an input shape records a CUDA graph of upload, network and download,
    which the following ones replay. Where that cannot be done the work is enqueued each time,
    and `graph_problem` says why.

    A picture may lie in GPU memory already (`run`), and results may stay there (`run_device`):
    whatever has `__cuda_array_interface__` is taken as it lies, after what its owner enqueued. A
    graph is kept as long as the pictures come at the same address.

    Attributes:
        graph_problem: why no graph is used; empty if nothing is in the way.
    """

    def __init__(
        self, name: str, card: ModelCard, plan: bytes, precision: str,
    ) -> None:
        """Load a plan.

        Raises:
            BackendError: the plan does not load here, or is not of the card's network.
        """
        trt = _trt()
        self._gpu = gpu = Cuda.open()
        major, minor = gpu.compute_capability()
        super().__init__(
            name, card, precision, threads=0, version=_version(trt),
            device=f'{gpu.device_name()} (SM {major}.{minor})')
        self.graph_problem = ''
        self._log = _log_of(trt)
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._stream = 0
        # a run in another thread ends before what it uses goes, at the exit of Python as well
        self._busy = threading.RLock()
        self._graph: int | None = None
        self._tensors: list[_Tensor] = []
        self._shape: tuple[int, ...] = ()
        self._runs = 0  # with this shape
        self._picture: NDArray[Any] | None = None
        self._outputs: dict[str, NDArray[np.float32]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._way: _Way | None = None  # of the last run
        self._generation = 0  # of what lies in the outputs
        self._lender_ready = 0  # event
        cuda.close_at_exit(self)
        try:
            self._load(trt, plan)
        except BaseException:
            self.close()
            raise

    def _load(self, trt: ModuleType, plan: bytes) -> None:
        if hasattr(trt, 'init_libnvinfer_plugins'):  # layers of a plan may be plugins
            trt.init_libnvinfer_plugins(self._log, '')
        try:
            self._runtime = trt.Runtime(self._log)
        except TypeError as error:  # a null pointer from the library
            raise self._failure('TensorRT cannot start') from error
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise _PlanError(str(self._failure('the engine does not load')))
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._failure('no memory for the engine')
        card, wanted = self.card, output_names(self.card)
        inputs: Tensors = {}
        shape: tuple[int, ...] = ()
        for index in range(self._engine.num_io_tensors):
            name = str(self._engine.get_tensor_name(index))
            is_input = self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            kind = _NUMPY_NAMES.get(str(self._engine.get_tensor_dtype(name).name), '')
            if not kind:
                raise BackendError(f'tensor {name!r} of the engine is '
                                   f'{self._engine.get_tensor_dtype(name)}')
            self._tensors.append(_Tensor(name, np.dtype(kind), is_input, name in wanted))
            if is_input:
                shape = tuple(map(int, self._engine.get_tensor_shape(name)))
                inputs[name] = (kind, [side if side >= 0 else None for side in shape])
            elif name in wanted:
                require_float32(name, np.dtype(kind))
        require_input(card, inputs)
        require_outputs(wanted, [each.name for each in self._tensors if not each.is_input])
        self._limits = shape, shape
        if min(shape) < 0:
            low, _, high = (tuple(map(int, each)) for each in
                            self._engine.get_tensor_profile_shape(card.input.name, 0))
            self._limits = low, high
        self._stream = self._gpu.stream_create()
        self._set_shape(self._limits[1])  # the buffers of the largest input do for all others

    def run(self, batch: Any) -> dict[str, NDArray[np.float32]]:
        """Run the network once; see `Backend.run`.

        Args:
            batch: an array, or a picture in the memory of this GPU, contiguous, of the same shape
                and type: a torch tensor, or anything with `__cuda_array_interface__`. What its
                owner enqueued on its stream (torch: the current one) comes before. When this
                returns it is not needed any more.
        """
        if not cuda.is_on_device(batch):
            return super().run(batch)
        self._run(self._borrowed(batch), download=True)
        return self._outputs

    def run_device(self, batch: Any) -> dict[str, DeviceArray]:
        """Run the network once and leave the outputs on the GPU.

        Args:
            batch: as for `run`.

        Returns:
            The card's outputs by name, complete; valid until the next run, or `close`.

        Raises:
            BackendError: as `run`.
        """
        source = self._borrowed(batch) if cuda.is_on_device(batch) else self._checked(batch)
        with self._busy:
            self._run(source, download=False)
            generation = self._generation
            return {
                each.name: DeviceArray(each.device, self._shapes[each.name], each.dtype,
                                       lambda: self._generation == generation)
                for each in self._tensors if not each.is_input and each.wanted}

    def _infer(self, batch: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        self._run(batch, download=True)
        return self._outputs

    def _borrowed(self, batch: Any) -> LentArray:
        """Describe a picture in GPU memory after holding it to the card."""
        picture = cuda.lent(batch)
        self._check(picture.shape, picture.dtype)
        return picture

    def _run(self, batch: NDArray[Any] | LentArray, *, download: bool) -> None:
        with self._busy:
            if self._context is None:  # closed by another thread since `run` looked
                raise BackendError(f'backend {self.name}: it is closed')
            if batch.shape != self._shape:
                self._set_shape(batch.shape)
            if isinstance(batch, LentArray):
                self._go(_Way(batch.address, batch.address % _ALIGNMENT == 0, download))
                self._wait_for(batch)
            else:
                self._go(_Way(0, False, download))
                assert self._picture is not None
                np.copyto(self._picture, batch)
            self._generation += 1
            self._execute()
            self._runs += 1

    def _go(self, way: _Way) -> None:
        """Prepare another way than that of the last run."""
        if way == self._way:
            return
        self._drop_graph()
        self._runs, self._way = 0, None
        if way.lent:
            self._gpu.require_own(way.lent)
        picture = next(each for each in self._tensors if each.is_input)
        address = way.lent if way.in_place else picture.device
        if not self._context.set_tensor_address(picture.name, address):
            raise self._failure('the engine does not take the buffer of the input')
        self._way = way

    def _wait_for(self, picture: LentArray) -> None:
        """Let the network wait for what writes its input; the host does not, if that is known."""
        if picture.stream is None:
            return
        if picture.stream < 0:
            self._gpu.synchronize()
            return
        if not self._lender_ready:
            self._lender_ready = self._gpu.event_create(timing=False)
        self._gpu.event_record(self._lender_ready, picture.stream)
        self._gpu.stream_wait(self._stream, self._lender_ready)

    def stop_graphs(self, reason: str) -> None:
        """Enqueue the work of each run from now on; the reason becomes `graph_problem`."""
        self._drop_graph()
        self.graph_problem = reason

    def gpu_memory(self) -> tuple[int, int]:
        """Return the GPU's (free, total) memory in bytes."""
        return self._gpu.memory()

    def gpu_times_ms(self, count: int) -> list[float]:
        """Repeat the last run; return the GPU's time of each, upload and download included."""
        if not self._open or not self._runs:
            raise BackendError(f'backend {self.name}: nothing was run that could be repeated')
        if self._way is not None and self._way.lent:
            raise BackendError(f'backend {self.name}: the last input was lent and may be gone; '
                               'run an array in host memory first')
        events = [self._gpu.event_create() for _ in range(2)]
        times = []
        try:
            for _ in range(count):
                self._gpu.event_record(events[0], self._stream)
                self._enqueue() if self._graph is None else self._gpu.launch(
                    self._graph, self._stream)
                self._gpu.event_record(events[1], self._stream)
                self._gpu.stream_synchronize(self._stream)
                times.append(self._gpu.elapsed_ms(*events))
        finally:
            for event in events:
                self._gpu.event_destroy(event)
        return times

    # --- running

    def _execute(self) -> None:
        # The first run of a shape makes TensorRT allocate, which no graph may do.
        if self._graph is None and self._runs > 0 and not self.graph_problem:
            try:
                self._graph = self._gpu.record(self._stream, self._enqueue)
            except BackendError as error:
                self._give_up_graphs(error)
        if self._graph is not None:
            try:
                self._gpu.launch(self._graph, self._stream)
                self._gpu.stream_synchronize(self._stream)
                return
            except CudaError as error:
                self._give_up_graphs(error)
        self._enqueue()
        self._gpu.stream_synchronize(self._stream)

    def _enqueue(self) -> None:
        gpu, stream, way = self._gpu, self._stream, self._way
        assert way is not None
        for each in self._tensors:
            if not each.is_input:
                continue
            if way.lent and not way.in_place:
                gpu.copy_on_device(each.device, way.lent, each.nbytes, stream)
            elif not way.lent and not gpu.integrated and each.host is not None:
                gpu.copy_to_device(each.device, each.host.address, each.nbytes, stream)
        if not self._context.execute_async_v3(stream):
            raise self._failure('the engine does not run')
        if way.download and not gpu.integrated:
            for each in self._tensors:
                if not each.is_input and each.host is not None:
                    gpu.copy_to_host(each.host.address, each.device, each.nbytes, stream)

    def _give_up_graphs(self, error: BackendError) -> None:
        if isinstance(error, CudaError) and error.sticky:
            raise error
        self.stop_graphs(str(error))

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._gpu.graph_destroy(self._graph)
            self._graph = None

    # --- shapes and buffers

    def _set_shape(self, shape: tuple[int, ...]) -> None:
        low, high = self._limits
        if not all(a <= side <= b for a, side, b in zip(low, shape, high, strict=True)):
            raise BackendError(f'input has shape {shape}, the engine takes {low} to {high}; the '
                               "card's min_hw and max_hw are its limits")
        self._drop_graph()
        self._shape, self._runs, self._outputs, self._picture = (), 0, {}, None
        self._way = None
        self._generation += 1
        name = self.card.input.name
        if not self._context.set_input_shape(name, shape):
            raise self._failure(f'the engine does not take an input of {shape}')
        shapes = {}
        for each in self._tensors:
            sides = tuple(map(int, self._context.get_tensor_shape(each.name)))
            if min(sides, default=0) < 0:
                raise BackendError(f'the size of output {each.name!r} depends on what is in the '
                                   'picture; it must follow from the input size')
            shapes[each.name] = sides
            self._reserve(each, int(np.prod(sides, dtype=np.int64)) * each.dtype.itemsize)
        self._shapes = shapes
        for each in self._tensors:
            if each.host is not None:
                array = each.host.array(shapes[each.name], each.dtype)
                if each.is_input:
                    self._picture = array
                else:
                    self._outputs[each.name] = array
        self._outputs = {key: self._outputs[key] for key in output_names(self.card)}
        self._shape = shape

    def _reserve(self, tensor: _Tensor, nbytes: int) -> None:
        """Give a tensor memory, unless what it has is enough."""
        gpu = self._gpu
        tensor.nbytes = nbytes
        if nbytes <= tensor.capacity:
            return
        if gpu.integrated:  # the GPU reads and writes the host's memory: nothing is copied
            tensor.host = gpu.host_alloc(nbytes, mapped=True)
            assert tensor.host.device_address is not None
            tensor.device = tensor.host.device_address
        else:
            gpu.free(tensor.device)
            tensor.capacity = 0
            tensor.device = gpu.malloc(nbytes)
            if tensor.is_input or tensor.wanted:
                tensor.host = gpu.host_alloc(nbytes)
        if not self._context.set_tensor_address(tensor.name, tensor.device):
            raise self._failure(f'the engine does not take the buffer of {tensor.name!r}')
        tensor.capacity = nbytes

    def _failure(self, what: str) -> BackendError:
        texts = self._log.take()
        return BackendError(f'{what}: ' + ('; '.join(texts[-3:]) or 'TensorRT gives no reason'))

    def _release(self) -> None:
        with self._busy:
            if self._stream:
                with contextlib.suppress(CudaError):
                    self._gpu.stream_synchronize(self._stream)
            self._drop_graph()
            self._outputs, self._picture = {}, None
            self._generation += 1
            # each must outlive the one before
            self._context = None
            self._engine = None
            self._runtime = None
            self._tensors = []
            self._gpu.close()

    def __del__(self) -> None:
        if getattr(self, '_open', False) and hasattr(self, '_gpu'):
            self.close()


def _trt() -> ModuleType:
    """Import TensorRT.

    Raises:
        BackendError: it is not here.
    """
    for module in MODULES:
        if importlib.util.find_spec(module) is not None:
            return importlib.import_module(module)
    raise BackendError(f'TensorRT is not installed; {_INSTALL}')


def _version(trt: ModuleType) -> str:
    return ('' if trt.__name__ == 'tensorrt' else 'RTX ') + str(trt.__version__)


def _log_of(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        """Keeps errors; what TensorRT returns says only that there was one."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self._errors[:] = [*self._errors[-9:], str(message).strip()[:300]]

        def take(self) -> list[str]:
            """Return the errors since the last time."""
            errors, self._errors = self._errors, []
            return errors

    return Log()
