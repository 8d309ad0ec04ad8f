"""The CUDA runtime through ctypes: memory, one stream, graphs. Needs no package beside NumPy.

`Cuda.open` takes the first `libcudart` whose device answers; `why_not` says why there is none.
The functions used have had one binary interface since CUDA 11.4. Nothing here touches the GPU
before memory or a stream is asked for.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterable, Iterator
import ctypes
from functools import partial
import importlib.util
import os
from pathlib import Path
import sys
from typing import Any, Final, NamedTuple, Protocol
import weakref

from depth_node.backends import BackendError
import numpy as np
from numpy.typing import DTypeLike, NDArray

SONAMES: Final = ('libcudart.so.13', 'libcudart.so.12', 'libcudart.so.11.0')

# The oldest driver branch for a major version of the runtime (CUDA Toolkit release notes).
_OLDEST_DRIVER: Final = {11: '450', 12: '525', 13: '580'}

# values of driver_types.h, the same in CUDA 11 to 13
_OUT_OF_MEMORY: Final = 2
_INSUFFICIENT_DRIVER: Final = 35
_NO_DEVICE: Final = 100
_NOT_PERMITTED_IN_CAPTURE: Final = range(900, 909)
# After these no call of the process succeeds: illegal address, launch timeout, assert, hardware
# stack, illegal instruction, misaligned address, address space, program counter, launch failure;
# uncorrectable ECC and NVLink errors.
_STICKY: Final = frozenset({214, 220, 700, 702, 710, 714, 715, 716, 717, 718, 719})
_HOST_MAPPED: Final = 2
_STREAM_NON_BLOCKING: Final = 1
_CAPTURE_THREAD_LOCAL: Final = 1
_EVENT_DISABLE_TIMING: Final = 2
_HOST_TO_DEVICE, _DEVICE_TO_HOST, _DEVICE_TO_DEVICE = 1, 2, 3
_MEMORY_OF_DEVICE, _MEMORY_MANAGED = 2, 3
_ATTRIBUTE_INTEGRATED, _ATTRIBUTE_MAP_HOST = 18, 19
_ATTRIBUTE_MAJOR, _ATTRIBUTE_MINOR = 75, 76
# cudaDeviceProp has grown from 0.7 to 1 kB over the versions; its first 256 bytes are the name
_PROPERTIES_BYTES: Final = 8192
_NAME_BYTES: Final = 256
# cudaPointerAttributes, in its first 8 bytes: two int, kind of memory and device
_POINTER_BYTES: Final = 256

_P, _PP = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
_INT, _IP, _SIZE = ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.c_size_t
_SIZE_P, _UINT = ctypes.POINTER(ctypes.c_size_t), ctypes.c_uint
_CALLS: Final[dict[str, tuple[Any, ...]]] = {
    'cudaGetDeviceCount': (_IP,),
    'cudaDriverGetVersion': (_IP,),
    'cudaRuntimeGetVersion': (_IP,),
    'cudaDeviceGetAttribute': (_IP, _INT, _INT),
    'cudaGetDeviceProperties': (_P, _INT),
    'cudaMemGetInfo': (_SIZE_P, _SIZE_P),
    'cudaGetLastError': (),
    'cudaGetErrorName': (_INT,),
    'cudaGetErrorString': (_INT,),
    'cudaMalloc': (_PP, _SIZE),
    'cudaFree': (_P,),
    'cudaHostAlloc': (_PP, _SIZE, _UINT),
    'cudaHostGetDevicePointer': (_PP, _P, _UINT),
    'cudaFreeHost': (_P,),
    'cudaStreamCreateWithFlags': (_PP, _UINT),
    'cudaStreamDestroy': (_P,),
    'cudaStreamSynchronize': (_P,),
    'cudaStreamWaitEvent': (_P, _P, _UINT),
    'cudaDeviceSynchronize': (),
    'cudaPointerGetAttributes': (_P, _P),
    'cudaMemcpyAsync': (_P, _P, _SIZE, _INT, _P),
    'cudaEventCreate': (_PP,),
    'cudaEventCreateWithFlags': (_PP, _UINT),
    'cudaEventRecord': (_P, _P),
    'cudaEventElapsedTime': (ctypes.POINTER(ctypes.c_float), _P, _P),
    'cudaEventDestroy': (_P,),
}
_GRAPH_CALLS: Final[dict[str, tuple[Any, ...]]] = {
    'cudaStreamBeginCapture': (_P, _INT),
    'cudaStreamEndCapture': (_P, _PP),
    # not cudaGraphInstantiate: CUDA 12 gave that name other arguments
    'cudaGraphInstantiateWithFlags': (_PP, _P, ctypes.c_ulonglong),
    'cudaGraphLaunch': (_P, _P),
    'cudaGraphDestroy': (_P,),
    'cudaGraphExecDestroy': (_P,),
}


class CudaError(BackendError):
    """CUDA is not usable, or a call failed.

    Attributes:
        code: of cudaError_t; 0 where no call was made.
        name: of the code, such as cudaErrorMemoryAllocation.
    """

    def __init__(self, message: str, code: int = 0, name: str = '') -> None:
        super().__init__(message)
        self.code = code
        self.name = name

    @property
    def sticky(self) -> bool:
        """True where no later CUDA call of this process can succeed."""
        return self.code in _STICKY


class HostBuffer:
    """Page-locked host memory, freed when the last array on it is gone.

    Attributes:
        address: where the host finds it.
        device_address: where the GPU finds it, or None if it is not mapped.
        nbytes: its size.
    """

    def __init__(
        self, address: int, nbytes: int, device_address: int | None, free: Callable[[int], None]
    ) -> None:
        self.address = address
        self.nbytes = nbytes
        self.device_address = device_address
        finalizer = weakref.finalize(self, free, address)
        finalizer.atexit = False  # somebody may read an array to the end; the driver cleans up

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {'shape': (self.nbytes,), 'typestr': '|u1', 'data': (self.address, False),
                'version': 3}

    def array(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return an array on the first bytes; it keeps the memory alive."""
        kind = np.dtype(dtype)
        nbytes = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        if nbytes > self.nbytes:
            raise ValueError(f'{shape} of {kind} takes {nbytes} bytes, the buffer has '
                             f'{self.nbytes}')
        return np.asarray(self)[:nbytes].view(kind).reshape(shape)


class LentArray(NamedTuple):
    """An array in GPU memory that belongs to somebody else, such as a torch tensor.

    Attributes:
        address: of its first element, on the GPU.
        shape: its sides.
        dtype: of its elements.
        stream: handle of the stream that its owner writes it on; -1: not known; None: it is
            written, nothing has to be waited for.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stream: int | None


class DeviceArray:
    """A result in GPU memory, for whatever reads `__cuda_array_interface__` (torch, CuPy, Numba).

    It is complete: no stream has to be waited for. The memory is the backend's: the next run
    overwrites it and `close` frees it, after which asking for it is an error. Who keeps it for
    longer copies it (`torch.as_tensor(array, device='cuda').clone()`).

    Attributes:
        address: on the GPU.
        shape: its sides.
        dtype: of its elements.
    """

    def __init__(
        self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any],
        is_current: Callable[[], bool],
    ) -> None:
        self.address = address
        self.shape = shape
        self.dtype = dtype
        self._is_current = is_current

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if not self._is_current():
            raise BackendError('this result is gone: the backend ran again or was closed; copy '
                               'what has to last')
        return {'shape': self.shape, 'typestr': self.dtype.str, 'data': (self.address, False),
                'strides': None, 'stream': None, 'version': 3}


def is_on_device(batch: object) -> bool:
    """Tell whether something is an array in GPU memory (CUDA Array Interface)."""
    # asked of the type: torch's tensors have it as a property, which fails for those on the CPU
    if not hasattr(type(batch), '__cuda_array_interface__'):
        return False
    try:
        return hasattr(batch, '__cuda_array_interface__')
    except Exception:  # it is there, and says why it cannot be had: `lent` passes that on
        return True


def lent(batch: Any) -> LentArray:
    """Describe an array in GPU memory.

    Raises:
        BackendError: its owner does not lend it, or it does not lie in C order.
    """
    try:
        interface = batch.__cuda_array_interface__
    except Exception as error:  # torch refuses tensors that need a gradient, for example
        raise BackendError(f'input on the GPU cannot be used: {error}') from error
    dtype, shape = np.dtype(interface['typestr']), tuple(map(int, interface['shape']))
    strides = interface.get('strides')
    if strides is not None:
        expected: list[int] = []
        step = dtype.itemsize
        for side in reversed(shape):
            expected.insert(0, step)
            step *= side
        if any(side > 1 and found != wanted
               for side, found, wanted in zip(shape, strides, expected, strict=True)):
            raise BackendError(f'input on the GPU has strides {tuple(strides)}, {tuple(expected)} '
                               'are expected: hand over tensor.contiguous()')
    stream = interface.get('stream', -1)
    torch = sys.modules.get('torch')  # never imported here: who has no torch has no tensors of it
    if 'stream' not in interface and torch is not None and isinstance(batch, torch.Tensor):
        stream = int(torch.cuda.current_stream(batch.device).cuda_stream)
    return LentArray(int(interface['data'][0]), shape, dtype, stream)


class Cuda:
    """The runtime library and the first visible GPU, with everything allocated through it.

    `CUDA_VISIBLE_DEVICES` chooses the GPU. A handle is freed by its own method or by `close`,
    never twice; after an error that damages the process's context (`CudaError.sticky`) every
    call raises that error again.

    Attributes:
        library: the file that was loaded.
        runtime_version: of libcudart, such as '12.6'.
        driver_version: the newest runtime that the driver supports.
        integrated: True where GPU and CPU share the memory, as on a Jetson.
        graphs: whether the library can capture graphs.
    """

    def __init__(self, library: str) -> None:
        """Load a library and ask for a device; `open` is the way to get one."""
        self.library = library
        self._closed = False
        self._damage: CudaError | None = None
        # handle -> what frees it; freed in the reverse order of creation
        self._owned: dict[tuple[str, int], None] = {}
        self._lib = _load(library)
        self.graphs = _declare(self._lib, _GRAPH_CALLS) == ''
        self.driver_version = _version(self._integer('cudaDriverGetVersion'))
        self.runtime_version = _version(self._integer('cudaRuntimeGetVersion'))
        self._require_device()
        self.integrated = bool(self._attribute(_ATTRIBUTE_INTEGRATED)) and bool(
            self._attribute(_ATTRIBUTE_MAP_HOST))

    @classmethod
    def open(cls, libraries: Iterable[str] | None = None) -> Cuda:
        """Load the first library whose device answers.

        Args:
            libraries: names or paths of libcudart; None: the sonames of CUDA 13, 12 and 11,
                where the loader, NVIDIA's wheels and /usr/local/cuda keep them.

        Raises:
            CudaError: none; the message says what is missing and what to do.
        """
        problems: list[CudaError] = []
        for library in _libraries() if libraries is None else libraries:
            try:
                cuda = cls(library)
            except CudaError as error:
                problems.append(error)
                continue
            close_at_exit(cuda)
            return cuda
        answered = [problem for problem in problems if problem.code]
        if answered:  # an older library may be what an older driver wants: the last one counts
            raise answered[-1]
        broken = [str(problem) for problem in problems if 'No such file' not in str(problem)]
        raise CudaError(
            f'the CUDA runtime library is not here ({", ".join(SONAMES)}): install the CUDA '
            'toolkit, or pip install nvidia-cuda-runtime; on a Jetson: sudo apt install '
            'nvidia-jetpack. ' + ''.join(f'{text}. ' for text in broken) + _hardware())

    # --- the device

    def device_name(self) -> str:
        """Return the GPU's name."""
        properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        self._call('cudaGetDeviceProperties', properties, 0)
        return properties.raw[:_NAME_BYTES].split(b'\0')[0].decode('utf-8', 'replace')

    def compute_capability(self) -> tuple[int, int]:
        """Return (major, minor), such as (8, 7) of Orin."""
        return self._attribute(_ATTRIBUTE_MAJOR), self._attribute(_ATTRIBUTE_MINOR)

    def memory(self) -> tuple[int, int]:
        """Return the GPU's (free, total) memory in bytes; starts a context."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call('cudaMemGetInfo', ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def total_memory(self) -> int:
        """Return the GPU's memory in bytes; starts a context."""
        return self.memory()[1]

    # --- memory

    def malloc(self, nbytes: int) -> int:
        """Return the address of new device memory."""
        return self._create('cudaMalloc', 'cudaFree', nbytes, doing=f' of {_mib(nbytes)}')

    def free(self, address: int) -> None:
        """Free device memory; nothing happens if that was done."""
        self._destroy('cudaFree', address)

    def host_alloc(self, nbytes: int, *, mapped: bool = False) -> HostBuffer:
        """Return page-locked memory, with `mapped` at an address of the GPU as well."""
        address, seen = ctypes.c_void_p(), ctypes.c_void_p()
        self._call('cudaHostAlloc', ctypes.byref(address), nbytes, _HOST_MAPPED if mapped else 0,
                   doing=f' of {_mib(nbytes)}')
        assert address.value is not None
        try:
            if mapped:
                self._call('cudaHostGetDevicePointer', ctypes.byref(seen), address, 0)
        except CudaError:
            self._quietly('cudaFreeHost', address.value)
            raise
        return HostBuffer(address.value, nbytes, seen.value,
                          partial(self._quietly, 'cudaFreeHost'))

    def copy_to_device(self, device: int, host: int, nbytes: int, stream: int) -> None:
        """Enqueue a copy from (page-locked) host memory."""
        self._call('cudaMemcpyAsync', device, host, nbytes, _HOST_TO_DEVICE, stream)

    def copy_to_host(self, host: int, device: int, nbytes: int, stream: int) -> None:
        """Enqueue a copy into (page-locked) host memory."""
        self._call('cudaMemcpyAsync', host, device, nbytes, _DEVICE_TO_HOST, stream)

    def copy_on_device(self, to: int, source: int, nbytes: int, stream: int) -> None:
        """Enqueue a copy within device memory."""
        self._call('cudaMemcpyAsync', to, source, nbytes, _DEVICE_TO_DEVICE, stream)

    def require_own(self, address: int) -> None:
        """Refuse an address that is not in the memory of this GPU.

        Raises:
            BackendError: naming where it is.
        """
        attributes = (ctypes.c_int * (_POINTER_BYTES // ctypes.sizeof(ctypes.c_int)))()
        self._call('cudaPointerGetAttributes', attributes, address)
        kind, device = attributes[0], attributes[1]
        if kind not in (_MEMORY_OF_DEVICE, _MEMORY_MANAGED):
            raise BackendError('input has an address that is not in the memory of a GPU')
        if device != 0:
            raise BackendError(f'input is on GPU {device}, this backend on GPU 0: hand over '
                               "tensor.to('cuda:0')")

    # --- streams and events

    def stream_create(self) -> int:
        """Return a new stream that does not wait for the default stream."""
        return self._create('cudaStreamCreateWithFlags', 'cudaStreamDestroy',
                            _STREAM_NON_BLOCKING)

    def stream_synchronize(self, stream: int) -> None:
        """Wait for all that was enqueued, without the GIL; its errors come out here."""
        self._call('cudaStreamSynchronize', stream)

    def stream_destroy(self, stream: int) -> None:
        """Destroy a stream; nothing happens if that was done."""
        self._destroy('cudaStreamDestroy', stream)

    def stream_wait(self, stream: int, event: int) -> None:
        """Let what is enqueued from now on wait for an event of another stream."""
        self._call('cudaStreamWaitEvent', stream, event, 0)

    def synchronize(self) -> None:
        """Wait for all that was enqueued on the GPU by this process."""
        self._call('cudaDeviceSynchronize')

    def event_create(self, *, timing: bool = True) -> int:
        """Return a new event, which takes the time unless `timing` is off."""
        if timing:
            return self._create('cudaEventCreate', 'cudaEventDestroy')
        return self._create('cudaEventCreateWithFlags', 'cudaEventDestroy', _EVENT_DISABLE_TIMING)

    def event_record(self, event: int, stream: int) -> None:
        """Enqueue an event."""
        self._call('cudaEventRecord', event, stream)

    def elapsed_ms(self, start: int, end: int) -> float:
        """Return the GPU's time between two events of a stream that was waited for."""
        result = ctypes.c_float()
        self._call('cudaEventElapsedTime', ctypes.byref(result), start, end)
        return result.value

    def event_destroy(self, event: int) -> None:
        """Destroy an event; nothing happens if that was done."""
        self._destroy('cudaEventDestroy', event)

    # --- graphs

    def record(self, stream: int, work: Callable[[], None]) -> int:
        """Capture what `work` enqueues on the stream; return a graph ready to launch.

        The capture watches this thread only. Nothing is run.

        Raises:
            CudaError: the library has no graphs, or the work cannot be captured.
        """
        if not self.graphs:
            raise CudaError(f'{self.library} has no CUDA graphs: CUDA 11.4 or newer is needed')
        self._call('cudaStreamBeginCapture', stream, _CAPTURE_THREAD_LOCAL)
        graph = ctypes.c_void_p()
        try:
            work()
        except BaseException:
            self._lib.cudaStreamEndCapture(stream, ctypes.byref(graph))
            self._lib.cudaGetLastError()
            if graph.value is not None:
                self._quietly('cudaGraphDestroy', graph.value)
            raise
        self._call('cudaStreamEndCapture', stream, ctypes.byref(graph))
        try:
            return self._create('cudaGraphInstantiateWithFlags', 'cudaGraphExecDestroy', graph, 0)
        finally:
            self._quietly('cudaGraphDestroy', graph.value)

    def launch(self, graph: int, stream: int) -> None:
        """Enqueue a recorded graph."""
        self._call('cudaGraphLaunch', graph, stream)

    def graph_destroy(self, graph: int) -> None:
        """Destroy a recorded graph; nothing happens if that was done."""
        self._destroy('cudaGraphExecDestroy', graph)

    # --- the end

    def close(self) -> None:
        """Free everything but host memory that arrays still use; may be called twice."""
        if self._closed:
            return
        self._closed = True
        for function, handle in reversed(list(self._owned)):
            self._destroy(function, handle)

    def __enter__(self) -> Cuda:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, '_lib'):
            self.close()

    # --- calls

    def _call(self, function: str, *args: Any, doing: str = '') -> None:
        if self._closed:
            raise CudaError(f'{function}: CUDA was closed')
        if self._damage is not None:
            raise CudaError(str(self._damage), self._damage.code, self._damage.name)
        code = int(getattr(self._lib, function)(*args))
        if code:
            raise self._failure(code, function + doing)

    def _failure(self, code: int, doing: str) -> CudaError:
        self._lib.cudaGetLastError()  # or the next library's check in this process finds it
        name, text = _describe(self._lib, code)
        advice = ''
        if code == _OUT_OF_MEMORY:
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            if self._lib.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)) == 0:
                advice = f'; {_mib(free.value)} of {_mib(total.value)} are free'
            advice += ': close other programs on the GPU, or take a smaller input size'
        elif code in _STICKY:
            advice = ('; it was caused by this or an earlier call, and this process cannot use '
                      'the GPU any more: restart it')
        elif code in _NOT_PERMITTED_IN_CAPTURE:
            advice = '; the work cannot be captured into a graph'
        error = CudaError(f'{doing}: {text} ({name}, {code}){advice}', code, name)
        if error.sticky:
            self._damage = error
        return error

    def _create(self, function: str, free: str, *args: Any, doing: str = '') -> int:
        handle = ctypes.c_void_p()
        self._call(function, ctypes.byref(handle), *args, doing=doing)
        value = handle.value
        if value is None:  # a library that is not what its name says
            raise CudaError(f'{function}{doing}: {self.library} returned a null handle')
        self._owned[free, value] = None
        return value

    def _destroy(self, function: str, handle: int) -> None:
        if (function, handle) in self._owned:
            del self._owned[function, handle]
            self._quietly(function, handle)

    def _quietly(self, function: str, handle: int | None) -> None:
        """Free; an error that comes back is that of earlier work, whose wait reports it."""
        if getattr(self._lib, function)(handle):
            self._lib.cudaGetLastError()

    def _integer(self, function: str, *args: Any) -> int:
        value = ctypes.c_int()
        self._call(function, ctypes.byref(value), *args)
        return value.value

    def _attribute(self, which: int) -> int:
        return self._integer('cudaDeviceGetAttribute', which, 0)

    def _require_device(self) -> None:
        count = ctypes.c_int()
        code = int(self._lib.cudaGetDeviceCount(ctypes.byref(count)))
        if code == 0 and count.value > 0:
            return
        self._lib.cudaGetLastError()
        code = code or _NO_DEVICE
        name, text = _describe(self._lib, code)
        if code == _INSUFFICIENT_DRIVER and self.driver_version == '0.0':
            problem = f'no NVIDIA driver answers. {_hardware()}'
        elif code == _INSUFFICIENT_DRIVER:
            major = int(self.runtime_version.split('.')[0])
            problem = (
                f'the NVIDIA driver is too old: it supports CUDA {self.driver_version}, '
                f'{self.library} is CUDA {self.runtime_version}; update the driver'
                + (f' to {_OLDEST_DRIVER[major]} or newer' if major in _OLDEST_DRIVER else '')
                + ', or install the CUDA runtime of the older version')
        elif code == _NO_DEVICE:
            visible = os.environ.get('CUDA_VISIBLE_DEVICES')
            problem = ('the NVIDIA driver finds no GPU' + (
                f'; CUDA_VISIBLE_DEVICES is {visible!r}: unset it, or name a GPU of nvidia-smi -L'
                if visible is not None else
                '; look at nvidia-smi, and in a container give it the GPU (docker run --gpus '
                'all; on a Jetson --runtime nvidia)'))
        else:
            problem = (f'{text}; look at nvidia-smi and dmesg, and restart the machine after an '
                       'update of the driver')
        raise CudaError(f'{problem} ({name}, {code})', code, name)


class _Closable(Protocol):
    def close(self) -> None: ...


_at_exit: list[weakref.ref[_Closable]] = []


def close_at_exit(thing: _Closable) -> None:
    """Have something closed before the interpreter takes itself apart, the youngest first.

    Objects of CUDA and TensorRT that outlive that moment may crash the process.
    """
    _at_exit[:] = [ref for ref in _at_exit if ref() is not None]
    _at_exit.append(weakref.ref(thing))


@atexit.register
def _close_all() -> None:
    while _at_exit:
        thing = _at_exit.pop()()
        if thing is not None:
            thing.close()


def why_not() -> str:
    """Say why CUDA cannot be used here and what to do; empty if it can."""
    try:
        Cuda.open().close()
    except CudaError as error:
        return str(error)
    return ''


def _libraries() -> Iterator[str]:
    """Yield the names and paths under which libcudart may be, the newest version first."""
    folders = list(_folders())
    for soname in SONAMES:
        yield soname  # what is loaded already, or what the loader's configuration knows
        for folder in folders:
            if (folder / soname).is_file():
                yield str(folder / soname)


def _folders() -> Iterator[Path]:
    """Yield the folders of NVIDIA's wheels and of the toolkit."""
    spec = importlib.util.find_spec('nvidia')
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        yield from sorted(Path(place).glob('*/lib'))
    for place in ('/usr/local/cuda', *map(str, sorted(Path('/usr/local').glob('cuda-*')))):
        yield from (Path(place) / 'lib64', *sorted(Path(place).glob('targets/*/lib')))


def _load(library: str) -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL(library)
    except OSError as error:
        raise CudaError(f'{library}: {error}') from error
    missing = _declare(lib, _CALLS)
    if missing:
        raise CudaError(f'{library} has no {missing}: CUDA 11.4 or newer is needed')
    for function in ('cudaGetErrorName', 'cudaGetErrorString'):
        getattr(lib, function).restype = ctypes.c_char_p
    return lib


def _declare(lib: ctypes.CDLL, calls: dict[str, tuple[Any, ...]]) -> str:
    """Give functions their types; return the name of one that is missing, or nothing."""
    for function, arguments in calls.items():
        if not hasattr(lib, function):
            return function
        getattr(lib, function).argtypes = arguments
        getattr(lib, function).restype = ctypes.c_int
    return ''


def _describe(lib: ctypes.CDLL, code: int) -> tuple[str, str]:
    """Return an error's name and text."""
    name, text = (raw.decode('utf-8', 'replace') if raw else 'unknown CUDA error'
                  for raw in (lib.cudaGetErrorName(code), lib.cudaGetErrorString(code)))
    return name, text


def _hardware() -> str:
    """Say what stands in the way where no driver answers."""
    nodes = [node for node in ('/dev/nvidiactl', '/dev/nvhost-gpu', '/dev/nvgpu')
             if Path(node).exists()]
    if nodes:
        return (f'The kernel driver is loaded ({nodes[0]}) but its library libcuda.so.1 is not '
                'here; in a container: docker run --gpus all (on a Jetson --runtime nvidia)')
    if _nvidia_on_pci():
        return ('An NVIDIA GPU is in this machine but its driver is not loaded: install it '
                '(Ubuntu: sudo ubuntu-drivers install), restart, look at nvidia-smi')
    return 'There is no NVIDIA GPU on this machine, or this container does not see it'


def _nvidia_on_pci(devices: Path = Path('/sys/bus/pci/devices')) -> bool:
    """Tell whether a display controller of NVIDIA's is on the PCI bus (Linux)."""
    for device in devices.glob('*'):
        try:
            if ((device / 'vendor').read_text().strip() == '0x10de'
                    and (device / 'class').read_text().startswith('0x03')):
                return True
        except OSError:
            continue
    return False


def _version(number: int) -> str:
    """Turn 12060 into '12.6'."""
    return f'{number // 1000}.{number % 1000 // 10}'


def _mib(nbytes: int) -> str:
    return f'{nbytes / (1 << 20):.1f} MiB'
