"""A stand-in for NVIDIA's `tensorrt`: the real builder module and runtime code run against it.

It reads the tiny networks of the tests (depth = gain * mean(1 r, 2 g, 3 b) + offset), keeps their
two numbers as its plan, and runs them by the kernel of the fake libcudart, asynchronously and on
what that library takes for the GPU's memory. The environment says what it is like, so that the
process that builds sees the same:

    FAKE_TENSORRT   JSON: version, typed, errors (relative, by precision), driver, extra_output,
                    half_output, no_context, build_fails
    FAKE_CUDART     path of the fake libcudart
"""

from __future__ import annotations

import ctypes
import enum
import json
import math
import os

_SETTINGS = {'version': '8.6.1', 'typed': False, 'errors': {}, 'driver': 1, 'extra_output': False,
             'half_output': False, 'no_context': False, 'build_fails': '',
             **json.loads(os.environ.get('FAKE_TENSORRT', '{}'))}
__version__ = _SETTINGS['version']
destroyed: list[str] = []  # in which order the objects went


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity, message):
        raise NotImplementedError


class DataType(enum.Enum):
    FLOAT, HALF, INT8, INT32, BOOL, UINT8 = range(6)


class LayerType(enum.Enum):
    CONVOLUTION, CONSTANT, CAST, QUANTIZE, DECONVOLUTION, OTHER = range(6)


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class BuilderFlag(enum.Enum):
    TF32 = 7
    if not _SETTINGS['typed'] or __version__.startswith('10.'):  # 11 has no flags of precision
        FP16, INT8, OBEY_PRECISION_CONSTRAINTS = range(3)


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH = 0
    if _SETTINGS['typed']:
        STRONGLY_TYPED = 1


# --- building


class _Tensor:
    def __init__(self, name, shape, dtype):
        self.name, self.shape, self.dtype = name, shape, dtype


class _Layer:
    num_outputs = 1
    precision = None

    def __init__(self, kind, dtype):
        self.type, self._output = kind, _Tensor('', (), dtype)

    def get_output(self, index):
        return self._output

    def set_output_type(self, index, dtype):
        self._output.dtype = dtype


class _Network:
    num_inputs = num_outputs = 1

    def __init__(self):
        self.layers, self.input, self.content = [], None, {}

    @property
    def num_layers(self):
        return len(self.layers)

    def get_layer(self, index):
        return self.layers[index]

    def get_input(self, index):
        return self.input


class OnnxParser:
    num_errors = 0

    def __init__(self, network, log):
        self._network = network

    def parse(self, model, path=None):
        import onnx
        from onnx import numpy_helper

        graph = onnx.load_from_string(model).graph
        values = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
        source = graph.input[0]
        sides = [side.dim_value if side.HasField('dim_value') else -1
                 for side in source.type.tensor_type.shape.dim]
        is_uint8 = source.type.tensor_type.elem_type == onnx.TensorProto.UINT8
        half = values['weights'].dtype == 'float16'
        network = self._network
        network.input = _Tensor(source.name, sides,
                                DataType.UINT8 if is_uint8 else DataType.FLOAT)
        kinds = {'Conv': LayerType.CONVOLUTION}
        network.layers = [_Layer(kinds.get(node.op_type, LayerType.OTHER),
                                 DataType.HALF if half else DataType.FLOAT)
                          for node in graph.node]
        network.content = {
            'input': source.name, 'output': graph.output[0].name, 'shape': sides,
            'uint8': is_uint8, 'gain': float(values['weights'].ravel()[2]),
            'offset': float(values['bias'][0]), 'half': half}
        return True


class _Profile:
    def set_shape(self, name, low, best, high):
        self.shapes = [list(low), list(best), list(high)]


class _TimingCache:
    def serialize(self):
        return b'kernel times'


class _Config:
    def __init__(self):
        self.flags, self.profile, self.timing = set(), None, None

    def set_memory_pool_limit(self, pool, nbytes):
        assert pool is MemoryPoolType.WORKSPACE
        assert nbytes > 0

    def set_flag(self, flag):
        self.flags.add(flag)

    def add_optimization_profile(self, profile):
        self.profile = profile
        return 0

    def create_timing_cache(self, data):
        return _TimingCache()

    def set_timing_cache(self, cache, ignore_mismatch):
        self.timing = cache
        return True

    def get_timing_cache(self):
        return self.timing


class Builder:
    def __init__(self, log):
        self._log = log

    def create_network(self, flags):
        network = _Network()
        network.typed = bool(flags & 2)
        return network

    def create_builder_config(self):
        return _Config()

    def create_optimization_profile(self):
        return _Profile()

    def build_serialized_network(self, network, config):
        if _SETTINGS['build_fails']:
            self._log.log(ILogger.Severity.ERROR, _SETTINGS['build_fails'])
            return None
        content = network.content
        precision = 'fp32'
        flags = {flag.name for flag in config.flags}
        if network.typed and flags:
            self._log.log(ILogger.Severity.ERROR, 'flags of precision in a strongly typed network')
            return None
        if content['half'] or 'FP16' in flags:
            pinned = 'OBEY_PRECISION_CONSTRAINTS' in flags
            precision = 'mixed' if pinned else 'fp16'
        profile = config.profile.shapes if config.profile else [content['shape']] * 3
        error = _SETTINGS['errors'].get(precision, 0.0)
        plan = {**content, 'gain': content['gain'] * (1 + error), 'profile': profile,
                'driver': _SETTINGS['driver'], 'precision': precision}
        return json.dumps(plan).encode()


# --- running


class Runtime:
    def __init__(self, log):
        self._log = log

    def deserialize_cuda_engine(self, plan):
        content = json.loads(plan)
        if content['driver'] != _SETTINGS['driver']:
            self._log.log(ILogger.Severity.ERROR, 'the plan was built with another driver')
            return None
        return ICudaEngine(content, self._log)

    def __del__(self):
        destroyed.append('runtime')


class ICudaEngine:
    def __init__(self, content, log):
        self._content, self._log = content, log
        self._names = [content['input'], content['output']]
        if _SETTINGS['extra_output']:
            self._names.append('features')

    @property
    def num_io_tensors(self):
        return len(self._names)

    def get_tensor_name(self, index):
        return self._names[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name == self._content['input'] else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        if name == self._content['input']:
            return DataType.UINT8 if self._content['uint8'] else DataType.FLOAT
        return DataType.HALF if _SETTINGS['half_output'] else DataType.FLOAT

    def get_tensor_shape(self, name):
        return self._shape(name, self._content['shape'])

    def get_tensor_profile_shape(self, name, profile):
        assert (name, profile) == (self._content['input'], 0)
        assert -1 in self._content['shape'], 'what TensorRT answers for a fixed size is not known'
        return self._content['profile']

    def create_execution_context(self):
        if _SETTINGS['no_context']:
            self._log.log(ILogger.Severity.ERROR, 'out of memory')
            return None
        return IExecutionContext(self, self._content, self._log)

    def _shape(self, name, input_shape):
        if name == self._content['input']:
            return tuple(input_shape)
        height_width = input_shape[1:3] if self._content['uint8'] else input_shape[2:]
        return (1, 1, *height_width)

    def __del__(self):
        destroyed.append('engine')


class IExecutionContext:
    def __init__(self, engine, content, log):
        self._engine, self._content, self._log = engine, content, log
        self._shape = tuple(content['shape'])
        self._addresses = {}
        self._ready = False  # what depends on the shape was allocated
        self._lib = ctypes.CDLL(os.environ['FAKE_CUDART'])
        self._lib.fakeDepth.argtypes = [
            ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int,
            ctypes.c_float, ctypes.c_float]
        self._lib.cudaStreamSynchronize.argtypes = [ctypes.c_void_p]

    def set_input_shape(self, name, shape):
        low, _, high = self._content['profile']
        if name != self._content['input'] or not all(
                a <= side <= b for a, side, b in zip(low, shape, high, strict=True)):
            self._log.log(ILogger.Severity.ERROR, f'{name}: {shape} is not in the profile')
            return False
        self._ready = self._ready and tuple(shape) == self._shape
        self._shape = tuple(shape)
        return True

    def get_tensor_shape(self, name):
        return self._engine._shape(name, self._shape)

    def set_tensor_address(self, name, address):
        assert isinstance(address, int)
        if address % 256:  # its kernels read as wide as cudaMalloc's alignment allows
            self._log.log(ILogger.Severity.ERROR, f'{name}: {address:#x} is not aligned')
            return False
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream_handle):
        if min(self._shape) < 0 or set(self._addresses) != set(self._engine._names):
            self._log.log(ILogger.Severity.ERROR, 'a shape or an address is missing')
            return False
        if not self._ready:  # allocates, which waits and therefore fails in a capture
            if self._lib.cudaStreamSynchronize(stream_handle):
                self._log.log(ILogger.Severity.ERROR, 'CUDA fails at the first run')
                return False
            self._ready = True
        nchw = not self._content['uint8']
        pixels = math.prod(self._shape) // 3
        for name in self._engine._names[1:]:
            code = self._lib.fakeDepth(
                stream_handle, self._addresses[name], self._addresses[self._content['input']],
                pixels, nchw, self._content['gain'], self._content['offset'])
            if code:
                self._log.log(ILogger.Severity.ERROR, f'Cask convolution failed with {code}')
                return False
        return True

    def __del__(self):
        destroyed.append('context')
