"""TensorRT engines from ONNX files: one builder for TensorRT 8.5 to 11 and TensorRT-RTX.

What a version can do is asked of the module (`hasattr`), never of its version number. Two routes
follow from that:

- typed: `NetworkDefinitionCreationFlag.STRONGLY_TYPED` exists (10, 11, RTX). The types in the
  ONNX file are the precision; FP16 needs an FP16 file.
- flags: it does not exist (8.5, 8.6). The FP32 file is built with `BuilderFlag.FP16`, a
  symmetric QDQ file with `BuilderFlag.INT8` as well. `mixed` goes this way in 10 too, which
  still has these flags for networks that are not strongly typed; 11 and RTX have not.

`build_in_child` builds in a process of its own: whatever happens to that, this one goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import contextvars
from dataclasses import dataclass
import hashlib
import importlib
import json
import os
from pathlib import Path
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any, Final, NamedTuple
import warnings

from depth_node.backends import BackendError
from depth_node.backends._onnx_wire import NotOnnxError, cast_before_transpose, nodes
from depth_node.model_card import InputSpec, ModelCard, file_sha256

__all__ = [
    'BUILDER_REVISION',
    'DEFAULT_MEMORY_MIB',
    'MODULES',
    'PRECISIONS',
    'BuildError',
    'BuildRequest',
    'Profile',
    'build_in_child',
    'build_plan',
    'card_file',
    'is_typed',
    'profile_of',
    'watching',
]

PRECISIONS: Final = ('fp32', 'fp16', 'mixed', 'int8')
"""What a plan may be built in. mixed, on the flags route alone (8 and 10), is FP16 with the
layers in FP32 that overflow first."""

MODULES: Final = ('tensorrt', 'tensorrt_rtx')

# Scratch memory that a layer may use. TensorRT's own limit is the whole device, which on a Jetson
# is the memory of all other programs too.
DEFAULT_MEMORY_MIB: Final = 1024

BUILDER_REVISION: Final = 1
"""Part of the cache's key: raised when this file builds other plans from the same request."""

Progress = Callable[[str, float], None]

_watcher: contextvars.ContextVar[Progress | None] = contextvars.ContextVar(
    'watcher', default=None)

_HEARTBEAT_S = 1.0  # a bar that shows the time moves although TensorRT is silent
_REPORT_EVERY_S = 0.1
_LOG_LINES = 4


class BuildError(BackendError):
    """TensorRT does not build a plan.

    Attributes:
        reason: what was found.
        node: name of the ONNX node that it is about, '' where none is.
        op: the node's operator.
        remedy: what to do, '' where nothing better is known than to read the reason.
    """

    def __init__(self, reason: str, *, node: str = '', op: str = '', remedy: str = '') -> None:
        self.reason, self.node, self.op, self.remedy = reason, node, op, remedy
        place = f'node {node or "without a name"} ({op}): ' if op or node else ''
        super().__init__(f'{place}{reason}' + (f'; {remedy}' if remedy else ''))


class Profile(NamedTuple):
    """Input sizes of a network that takes several: smallest, the one to be fast at, largest."""

    min_hw: tuple[int, int]
    opt_hw: tuple[int, int]
    max_hw: tuple[int, int]


@dataclass(frozen=True)
class BuildRequest:
    """What to build.

    Attributes:
        onnx: the file.
        precision: one of `PRECISIONS`; must be that of the file on the typed route.
        profile: for a graph with free height and width; None for a fixed one.
        memory_mib: scratch memory that the engine may use, MiB.
        target_sm: 86 for compute capability 8.6; only TensorRT-RTX builds for another GPU than
            the one here, and without one. None: the GPU that is here.
        timing_cache: file in which measured kernel times are kept; makes the next build shorter.
        optimization_level: 0 (quick build) to 5 (fast engine); None: TensorRT's own, 3.
    """

    onnx: Path
    precision: str = 'fp32'
    profile: Profile | None = None
    memory_mib: int = DEFAULT_MEMORY_MIB
    target_sm: int | None = None
    timing_cache: Path | None = None
    optimization_level: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.precision not in PRECISIONS:
            raise BuildError(f'precision {self.precision!r}: known are {", ".join(PRECISIONS)}')
        if self.memory_mib < 1:
            raise BuildError(f'memory_mib {self.memory_mib}: 1 or more is expected')
        level = self.optimization_level
        if level is not None and not 0 <= level <= 5:
            raise BuildError(f'optimization_level {level}: 0 to 5 is expected')
        if self.profile is not None:
            low, best, high = self.profile
            for axis in (0, 1):
                if not 0 < low[axis] <= best[axis] <= high[axis]:
                    raise BuildError(f'profile {low}, {best}, {high}: sizes of min <= opt <= max '
                                     'are expected')

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads, with absolute paths."""
        return {
            'onnx': str(self.onnx.absolute()), 'precision': self.precision,
            'profile': self.profile, 'memory_mib': self.memory_mib, 'target_sm': self.target_sm,
            'timing_cache': str(self.timing_cache.absolute()) if self.timing_cache else None,
            'optimization_level': self.optimization_level}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> BuildRequest:
        """Read what `to_json` wrote."""
        raw = dict(raw, onnx=Path(raw['onnx']))
        if raw['profile'] is not None:
            raw['profile'] = Profile(*((size[0], size[1]) for size in raw['profile']))
        if raw['timing_cache'] is not None:
            raw['timing_cache'] = Path(raw['timing_cache'])
        return cls(**raw)


def profile_of(spec: InputSpec, opt_hw: tuple[int, int] | None = None) -> Profile | None:
    """Return the profile of a card's input: its limits, and the size to be fast at.

    Args:
        spec: the card's input.
        opt_hw: the size of the camera's pictures as the network gets them; None: the middle of
            the limits.

    Returns:
        None for a network of a fixed size.

    Raises:
        BuildError: the card has no limits.
    """
    if spec.size_hw is not None:
        return None
    if spec.min_hw is None or spec.max_hw is None:
        raise BuildError('the card names no min_hw and max_hw; TensorRT needs limits of the size')
    if opt_hw is None:
        step = spec.multiple_of or 1
        opt_hw = (
            (spec.min_hw[0] + spec.max_hw[0]) // 2 // step * step,
            (spec.min_hw[1] + spec.max_hw[1]) // 2 // step * step)
    return Profile(spec.min_hw, opt_hw, spec.max_hw)


def is_typed(trt: Any, precision: str = 'fp32') -> bool:
    """Tell whether a TensorRT module takes a precision from the types in the ONNX file.

    It does where it can, but for `mixed`, which is told by flags as long as they are there.
    """
    if not hasattr(trt.NetworkDefinitionCreationFlag, 'STRONGLY_TYPED'):
        return False
    flags = all(hasattr(trt.BuilderFlag, name) for name in ('FP16', 'OBEY_PRECISION_CONSTRAINTS'))
    return not (precision == 'mixed' and flags)


def card_file(card: ModelCard, precision: str, *, typed: bool) -> Path:
    """Return the ONNX file that a precision is built from, after comparing its hash.

    Args:
        card: the model.
        precision: one of `PRECISIONS`.
        typed: what `is_typed` says of the TensorRT at hand and this precision.

    Raises:
        BuildError: the card has no such file.
        CardError: the file is missing or is not the one that the card describes.
    """
    if precision not in PRECISIONS:
        raise BuildError(f'precision {precision!r}: known are {", ".join(PRECISIONS)}')
    if precision == 'mixed' and typed:
        raise BuildError('mixed is for TensorRT 8 and 10: here the types in the file are the '
                         'precision', remedy='use fp16 or fp32')
    name = 'int8_trt' if precision == 'int8' else precision if typed else 'fp32'
    if name not in card.precisions:
        verb = 'quantize' if precision == 'int8' else 'export'
        raise BuildError(f'model {card.name!r} has no {name} file, from which TensorRT would '
                         f'build {precision}', remedy=f'write one with: depth-node {verb}')
    return card.verify_file(name)


def build_plan(trt: Any, request: BuildRequest, progress: Progress | None = None) -> bytes:
    """Build a plan in this process.

    Args:
        trt: the imported module `tensorrt` or `tensorrt_rtx`.
        request: what to build.
        progress: receives what is being done and the share that is done, 0 to 1. What it raises
            ends the build and is passed on.

    Returns:
        The serialised engine.

    Raises:
        BuildError: the file cannot be read, TensorRT cannot run the graph, or the build failed.
    """
    tell = progress or (lambda phase, share: None)
    tell('reading the graph', 0.0)
    try:
        original = request.onnx.read_bytes()
        model = cast_before_transpose(original)
    except OSError as error:
        raise BuildError(f'{request.onnx}: {error.strerror or error}') from error
    except NotOnnxError as error:
        raise BuildError(f'{request.onnx}: not an ONNX file: {error}',
                         remedy='export or download it again') from error
    log = _log_of(trt)
    if hasattr(trt, 'init_libnvinfer_plugins'):
        trt.init_libnvinfer_plugins(log, '')
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # a null pointer from the library; the log has the reason
        raise _failure('TensorRT cannot start', log.errors) from error
    typed = is_typed(trt, request.precision)
    flags = 0
    for name in ('EXPLICIT_BATCH', 'STRONGLY_TYPED') if typed else ('EXPLICIT_BATCH',):
        if hasattr(trt.NetworkDefinitionCreationFlag, name):
            flags |= 1 << int(getattr(trt.NetworkDefinitionCreationFlag, name))
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, log)
    # the path lets the parser find weights that lie in files beside the model
    if not parser.parse(model, str(request.onnx)):
        raise _parser_error(parser, model, log.errors)
    if network.num_outputs == 0:
        raise BuildError(f'{request.onnx}: the graph has no output', remedy='export it again')
    _check_precision(trt, network, request, typed)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.memory_mib << 20)
    if request.optimization_level is not None and hasattr(config, 'builder_optimization_level'):
        config.builder_optimization_level = request.optimization_level
    _add_profile(builder, network, config, request)
    _set_target(trt, config, request)
    if not typed:
        _set_flags(trt, network, config, request)
    with warnings.catch_warnings():
        # the timing cache's calls exist and do nothing in TensorRT-RTX, and say so
        warnings.simplefilter('ignore', DeprecationWarning)
        timing = _load_timing_cache(config, request.timing_cache)
    tell('building', 0.0)
    monitor = None
    if hasattr(trt, 'IProgressMonitor') and hasattr(config, 'progress_monitor'):
        monitor = _monitor_of(trt, tell)
        config.progress_monitor = monitor
    serialised = builder.build_serialized_network(network, config)
    if monitor is not None and monitor.raised is not None:
        raise monitor.raised
    if serialised is None:
        raise _failure('TensorRT did not build an engine', log.errors)
    plan = bytes(serialised)
    if timing is not None and request.timing_cache is not None:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', DeprecationWarning)
            _save_timing_cache(config, request.timing_cache)
    tell('built', 1.0)
    return plan


@contextlib.contextmanager
def watching(progress: Progress) -> Iterator[None]:
    """Let a callable see the progress of every `build_in_child` that is called meanwhile.

    For those who open a backend, which builds where it must, and want to show a bar.
    """
    token = _watcher.set(progress)
    try:
        yield
    finally:
        _watcher.reset(token)


def build_in_child(
    request: BuildRequest,
    out: Path,
    progress: Progress | None = None,
    module: str = 'tensorrt',
    *,
    timeout_s: float | None = None,
) -> None:
    """Build a plan in a process of its own.

    A crash of TensorRT, a lack of memory or a signal ends that process alone; of two processes
    the kernel's out-of-memory killer takes that one. If this process dies, that one ends as well.

    Args:
        request: what to build.
        out: where the plan goes; it appears there whole or not at all.
        progress: receives what is being done and the share that is done, 0 to 1, at least once a
            second. What it raises ends the build and is passed on.
        module: one of `MODULES`.
        timeout_s: ends a build that takes longer, seconds.

    Raises:
        BuildError: as `build_plan`, and where the process ended otherwise.
    """
    if module not in MODULES:
        raise BuildError(f'module {module!r}: known are {", ".join(MODULES)}')
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=out.parent.absolute(), prefix=f'.{out.name}.', suffix='.part')
        os.close(handle)
    except OSError as error:
        raise BuildError(f'{out}: cannot be written: {error.strerror or error}') from error
    temporary = Path(name)
    hearers = [hear for hear in (progress, _watcher.get()) if hear is not None]

    def tell(phase: str, share: float) -> None:
        for hear in hearers:
            hear(phase, share)

    try:
        verdict = _run_child(request, temporary, tell, module, timeout_s)
        try:
            if (temporary.stat().st_size != verdict['bytes']
                    or file_sha256(temporary) != verdict['sha256']):
                raise BuildError(f'{out}: what lies on the disk is not what was written',
                                 remedy='check the disk')
            os.replace(temporary, out)
        except OSError as error:
            raise BuildError(f'{out}: cannot be written: {error.strerror or error}') from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


# --- the parts of a build


def _log_of(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        """Keeps errors; TensorRT's returned values say only that there was one."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(str(message))

    return Log()


def _monitor_of(trt: Any, tell: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Turns nested phases of known lengths into one share that only grows."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.raised: BaseException | None = None
            self._lock = threading.Lock()  # TensorRT reports from several threads
            self._open: dict[str, list[Any]] = {}  # phase: [parent, steps, done]
            self._share = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._open[phase_name] = [parent_phase, max(1, num_steps), 0]
                self._tell(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                if phase_name in self._open:
                    self._open[phase_name][2] = step + 1
                    self._tell(phase_name)
                return self.raised is None  # False ends the build

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._open.pop(phase_name, None)

        def _tell(self, phase: str) -> None:
            share, name = 0.0, phase
            while name in self._open:
                parent, steps, done = self._open[name]
                share = min(1.0, (done + share) / steps) if done < steps else 1.0
                if parent is None:
                    self._share = max(self._share, share)
                name = parent
            if self.raised is None:
                try:
                    tell(phase, self._share)
                except BaseException as error:  # C++ cannot pass it on; `build_plan` does
                    self.raised = error

    return Monitor()


def _check_precision(trt: Any, network: Any, request: BuildRequest, typed: bool) -> None:
    """Refuse a file that does not compute in what was asked for."""
    half = quantised = False
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        quantised = quantised or layer.type == trt.LayerType.QUANTIZE
        half = half or any(layer.get_output(number).dtype == trt.DataType.HALF
                           for number in range(layer.num_outputs))
    found = 'int8' if quantised else 'fp16' if half else 'fp32'
    wanted = request.precision
    if wanted == 'int8' and not quantised:
        raise BuildError(f'int8 was asked for, but {request.onnx.name} has no QuantizeLinear',
                         remedy='make an INT8 file with: depth-node quantize')
    if typed and found != wanted:
        raise BuildError(
            f'{wanted} was asked for, but {request.onnx.name} is {found}: here the types in the '
            'file are the precision', remedy=f'give a file of that precision (depth-node export), '
                                             f'or ask for {found}')


def _add_profile(builder: Any, network: Any, config: Any, request: BuildRequest) -> None:
    profile = None
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        free = [axis for axis, side in enumerate(shape) if side < 0]
        if not free:
            continue
        pixels = [axis for axis in free if axis > 0]
        if len(shape) != 4 or len(pixels) not in (0, 2):
            raise BuildError(f'input {tensor.name!r} is {_shown(shape)}: only height and width of '
                             'a picture may be free', remedy='export it with fixed other sides')
        if request.profile is None and pixels:
            raise BuildError(
                f'input {tensor.name!r} is {_shown(shape)}, of any size',
                remedy='give the smallest, the usual and the largest size, as the card of a '
                       'dynamic network does (min_hw, max_hw)')
        if profile is None:
            profile = builder.create_optimization_profile()
        shapes = []
        for size_hw in request.profile or Profile((1, 1), (1, 1), (1, 1)):
            sides = [1 if side < 0 else side for side in shape]
            for axis, side in zip(pixels, size_hw, strict=False):
                sides[axis] = side
            shapes.append(tuple(sides))
        profile.set_shape(tensor.name, *shapes)
        if not pixels and request.profile is not None:
            raise _fixed(tensor.name, shape)
    if profile is None:
        if request.profile is not None and network.num_inputs:
            tensor = network.get_input(0)
            raise _fixed(tensor.name, tuple(tensor.shape))
        return
    if config.add_optimization_profile(profile) < 0:
        sizes = ', '.join(map(str, request.profile or ()))
        raise BuildError(f'TensorRT refuses the sizes {sizes}',
                         remedy='are they multiples of what the network needs?')


def _fixed(name: str, shape: tuple[int, ...]) -> BuildError:
    return BuildError(f'input {name!r} is {_shown(shape)}, of one size alone',
                      remedy='give no sizes, or export a dynamic network')


def _shown(shape: tuple[int, ...]) -> str:
    return '(' + ', '.join('?' if side < 0 else str(side) for side in shape) + ')'


def _set_target(trt: Any, config: Any, request: BuildRequest) -> None:
    if request.target_sm is None:
        return
    if not hasattr(config, 'set_compute_capability'):
        raise BuildError('TensorRT builds for the GPU that is here, not for '
                         f'SM{request.target_sm}', remedy='build on that machine')
    capability = getattr(trt.ComputeCapability, f'SM{request.target_sm}', None)
    if capability is None:
        known = [name for name in dir(trt.ComputeCapability) if re.fullmatch(r'SM\d+', name)]
        raise BuildError(f'SM{request.target_sm} is not known; known are {", ".join(known)}')
    config.num_compute_capabilities = 1
    if not config.set_compute_capability(capability, 0):
        raise BuildError(f'SM{request.target_sm} is refused by this TensorRT')


def _set_flags(trt: Any, network: Any, config: Any, request: BuildRequest) -> None:
    """Tell TensorRT the precision where the file does not."""
    if request.precision == 'fp32':
        return
    config.set_flag(trt.BuilderFlag.FP16)
    if request.precision == 'int8':
        config.set_flag(trt.BuilderFlag.INT8)
    if request.precision == 'mixed':
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
        _pin_risky_layers(trt, network)


def _pin_risky_layers(trt: Any, network: Any) -> None:
    """Keep in FP32 what leaves the range or the steps of FP16 first.

    Sums over many values, exponentials and roots (SOFTMAX, REDUCE, NORMALIZATION, UNARY), and
    everything from the last convolution on, where the depth itself is computed.
    """
    kinds = {getattr(trt.LayerType, name) for name in
             ('SOFTMAX', 'REDUCE', 'NORMALIZATION', 'UNARY') if hasattr(trt.LayerType, name)}
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    convolutions = [index for index, layer in enumerate(layers)
                    if layer.type in (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION)]
    head = convolutions[-1] if convolutions else len(layers)
    for index, layer in enumerate(layers):
        if layer.type == trt.LayerType.CONSTANT or not (layer.type in kinds or index >= head):
            continue
        outputs = range(layer.num_outputs)
        # shapes and indices are whole numbers and stay so
        if all(layer.get_output(number).dtype == trt.DataType.FLOAT for number in outputs):
            layer.precision = trt.DataType.FLOAT
            for number in outputs:
                layer.set_output_type(number, trt.DataType.FLOAT)


def _load_timing_cache(config: Any, path: Path | None) -> Any:
    """Hand TensorRT its old measurements; those of another version or GPU it refuses."""
    if path is None:
        return None
    try:
        known = path.read_bytes()
    except OSError:
        known = b''
    for data in (known, b'') if known else (b'',):
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    return None


def _save_timing_cache(config: Any, path: Path) -> None:
    """Keep the measurements; without them the next build is slower, nothing worse."""
    cache = config.get_timing_cache()
    serialised = cache.serialize() if cache is not None else None
    data = bytes(serialised) if serialised is not None else b''
    if not data:
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.', suffix='.part')
        try:
            with os.fdopen(handle, 'wb') as stream:
                stream.write(data)
            os.replace(name, path)
        except OSError:
            Path(name).unlink(missing_ok=True)


# --- what went wrong, and what to do

# What TensorRT writes, and the way out of it; the first that fits. Texts of TensorRT-RTX 1.7's
# parser, which is NVIDIA's onnx-tensorrt as in TensorRT 11.
_REMEDIES: Final = (
    (r'[Aa]ntialias', 'TensorRT resizes without antialias: export with antialias=False'),
    (r'zero point|shiftIsAllZeros',
     'TensorRT takes symmetric INT8 alone (zero point 0); this is a file for CPUs: quantise for '
     'TensorRT with depth-node quantize'),
    (r'input has type Int32 but must have type FP8',
     'the bias is quantised; TensorRT wants it in float: quantise for TensorRT with depth-node '
     'quantize'),
    (r'type UInt8', 'TensorRT takes uint8 in Cast alone: export with the cast to float first'),
    (r'must have same input types|types of Float and Half|Half and Float',
     'the file mixes FP16 and FP32 without Cast: export the FP16 file with depth-node export, or '
     'build the FP32 file'),
    (r'no optimization profile', 'give the smallest, the usual and the largest size'),
    (r'[Cc]annot compile for sm|fp8', 'this GPU does not know the type; use fp16 or int8'),
    (r'STRING|Failed to convert ONNX', 'TensorRT knows no such type; export without it'),
    (r'opset|Unsupported ONNX version', 'export with opset 17, which TensorRT 8.5 and later read'),
    (r'[Oo]ut of memory|OutOfMemory|insufficient memory|Error Code 2: OutOfMemory',
     'end other programs, or lower the memory limit'),
    (r'[Cc]ould not find any implementation|Error Code 10',
     'raise the memory limit, or use another precision'),
    (r'cudaError 35|error: 35|insufficient for CUDA runtime|no CUDA-capable device|error: 100',
     'there is no NVIDIA driver here, or one that is too old for this TensorRT: see depth-node '
     'doctor'),
    (r'Plugin not found|plugin|not found in plugin registry|UNSUPPORTED_NODE',
     'TensorRT has no such operator: export the network without it, or run it on another '
     'backend (onnxruntime-cuda)'),
)


def _remedy(text: str) -> str:
    return next((remedy for pattern, remedy in _REMEDIES if re.search(pattern, text)), '')


def _failure(what: str, errors: list[str]) -> BuildError:
    text = '; '.join(_plain(line) for line in errors[-_LOG_LINES:]) or 'without a reason'
    return BuildError(f'{what}: {text}', remedy=_remedy(text))


def _parser_error(parser: Any, model: bytes, logged: list[str]) -> BuildError:
    """Name the node and its operator; the parsers of TensorRT 8 tell its place alone."""
    found = [parser.get_error(index) for index in range(parser.num_errors)]
    if not found:
        return _failure('TensorRT cannot read the graph', logged)
    listed = nodes(model)
    error = next((item for item in found if item.node() >= 0), found[0])
    place = error.node()
    # a node inside a subgraph (If, Loop) counts on its own
    node = listed[place] if 0 <= place < len(listed) else None
    name = error.node_name() if hasattr(error, 'node_name') else node.name if node else ''
    op = error.node_operator() if hasattr(error, 'node_operator') else node.op if node else ''
    code = str(error.code()).rpartition('.')[2]
    reason = _plain(str(error.desc()))
    if reason in ('', 'false'):  # an assertion that says nothing
        reason = 'TensorRT cannot run this operator'
    more = f' (and {len(found) - 1} more errors)' if len(found) > 1 else ''
    texts = ' '.join(str(item.desc()) for item in found)
    return BuildError(f'{reason}{more}', node=str(name), op=str(op),
                      remedy=_remedy(texts) or _remedy(code))


def _plain(text: str) -> str:
    """Drop places in TensorRT's source and what follows from the absence of a GPU."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines
               if not line.startswith(('Invalid Node - ', '[checkMacros', '---'))]
    line = ' '.join(telling or lines)
    line = re.sub(r'\bAssertion failed: ', '', line)
    line = re.sub(r'\s*\bIn \w+ at \S+:\d+', '', line)
    return line[:400]


# --- the child


class _Verdict(NamedTuple):
    """What the child said last."""

    done: dict[str, Any] | None
    error: dict[str, str] | None


def _run_child(
    request: BuildRequest, out: Path, progress: Progress, module: str, timeout_s: float | None,
) -> dict[str, Any]:
    reader, writer = os.pipe()
    environment = dict(os.environ, PYTHONSAFEPATH='1', PYTHONPATH=os.pathsep.join(
        os.path.abspath(entry) for entry in sys.path if entry))
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, reader)
        output = stack.enter_context(tempfile.TemporaryFile())
        try:
            child = subprocess.Popen(
                [sys.executable, '-c',
                 'from depth_node.backends.tensorrt_build import _child; _child()',
                 str(writer), str(out), module],
                stdin=subprocess.PIPE, stdout=output, stderr=output, pass_fds=(writer,),
                start_new_session=True,  # Ctrl-C is for this process, which then ends the child
                env=environment)
        except OSError as error:
            raise BuildError('the builder process cannot be started: '
                             f'{error.strerror or error}') from error
        finally:
            os.close(writer)
        stack.callback(_end, child)
        assert child.stdin is not None
        # It stays open: the child ends when it is closed, also by the death of this process.
        with contextlib.suppress(BrokenPipeError):  # its exit status will say why
            child.stdin.write(json.dumps(request.to_json()).encode() + b'\n')
            child.stdin.flush()
        verdict = _listen(reader, progress, deadline)
        if verdict.done is not None:
            return verdict.done
        if verdict.error is not None:
            raise BuildError(**verdict.error)
        raise _fallen(child.wait(), output, request)


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a child that still runs, and take its exit status."""
    if child.poll() is None:
        child.kill()
    child.wait()
    if child.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()


def _listen(reader: int, progress: Progress, deadline: float | None) -> _Verdict:
    """Pass on progress until the child says what came of it, or says nothing more."""
    last = ('starting', 0.0)
    for line in _lines(reader):
        if deadline is not None and time.monotonic() > deadline:
            raise BuildError('the build took too long',
                             remedy='allow more time, or lower the optimization level')
        if line:
            message = json.loads(line)
            if 'done' in message:
                return _Verdict(message['done'], None)
            if 'error' in message:
                return _Verdict(None, message['error'])
            last = (message['phase'], message['share'])
        progress(*last)
    return _Verdict(None, None)


def _lines(reader: int) -> Iterator[bytes]:
    """Yield lines as they come, and an empty one each second without."""
    waiting = b''
    while True:
        if not select.select([reader], [], [], _HEARTBEAT_S)[0]:
            yield b''
            continue
        data = os.read(reader, 1 << 16)
        if not data:
            return
        *whole, waiting = (waiting + data).split(b'\n')
        yield from whole


def _fallen(status: int, output: Any, request: BuildRequest) -> BuildError:
    """Explain an end without a word."""
    output.seek(max(0, output.seek(0, os.SEEK_END) - 4096))
    tail = [line.strip() for line in output.read().decode('utf-8', 'replace').splitlines()]
    said = '; '.join([line for line in tail if line][-_LOG_LINES:])
    said = f'; it said: {said[-600:]}' if said else ''
    if status == -signal.SIGKILL:
        return BuildError(
            f'the builder process was killed, by the kernel if memory ran out{said}',
            remedy='end other programs, add swap, or lower the memory limit, which was '
                   f'{request.memory_mib} MiB')
    if status < 0:
        name = signal.Signals(-status).name if -status in set(signal.Signals) else f'{-status}'
        return BuildError(f'the builder process crashed ({name}) on {request.onnx.name}{said}',
                          remedy='try another precision, or another TensorRT')
    return BuildError(f'the builder process ended with status {status}{said}',
                      remedy=_remedy(said))


def _child() -> None:
    """Build what standard input says; the arguments are a pipe, the file to write, the module."""
    pipe, out, module = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    request = BuildRequest.from_json(json.loads(sys.stdin.buffer.readline()))
    threading.Thread(target=_end_with_parent, args=(out,), daemon=True).start()
    with contextlib.suppress(OSError):  # Linux: take this process first when memory runs out
        Path('/proc/self/oom_score_adj').write_text('1000')
    next_report = 0.0

    def send(**message: Any) -> None:
        data = json.dumps(message).encode() + b'\n'
        while data:
            data = data[os.write(pipe, data):]

    def tell(phase: str, share: float) -> None:
        nonlocal next_report
        if time.monotonic() >= next_report:
            next_report = time.monotonic() + _REPORT_EVERY_S
            send(phase=phase, share=share)

    try:
        plan = build_plan(_imported(module), request, tell)
        _write(out, plan)
        send(done={'bytes': len(plan), 'sha256': hashlib.sha256(plan).hexdigest()})
    except BuildError as error:
        send(error={'reason': error.reason, 'node': error.node, 'op': error.op,
                    'remedy': error.remedy})
    # Without Python's and TensorRT's own ends: without a usable driver the latter crash.
    os._exit(0)


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BuildError(f'{module} cannot be imported: {error}',
                         remedy='see depth-node doctor') from error


def _write(out: Path, plan: bytes) -> None:
    try:
        with out.open('wb') as stream:
            stream.write(plan)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise BuildError(f'{out.parent}: the engine cannot be written: '
                         f'{error.strerror or error}',
                         remedy=f'{len(plan) / 1e6:.0f} MB are needed') from error


def _end_with_parent(out: Path) -> None:
    """Wait until the other end of standard input is closed: nobody waits for this process."""
    while os.read(0, 1024):
        pass
    out.unlink(missing_ok=True)
    os._exit(1)
