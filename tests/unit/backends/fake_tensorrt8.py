"""A `tensorrt` as 8.6 has it, as far as the builder uses it: it records, and fails as told.

test_tensorrt_api.py compares the names with those of the real bindings. Told by `BEHAVIOUR`, in a
child process by the environment variable FAKE_TRT.
"""

from __future__ import annotations

import enum
import os
from pathlib import Path
import signal
import sys
import time

__version__ = '8.6.1'
BEHAVIOUR = os.environ.get('FAKE_TRT', '')
PLAN = bytes(range(256)) * 8192  # 2 MiB


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH = 0


class BuilderFlag(enum.IntEnum):
    FP16 = 0
    INT8 = 1
    OBEY_PRECISION_CONSTRAINTS = 10


class MemoryPoolType(enum.IntEnum):
    WORKSPACE = 0


class DataType(enum.IntEnum):
    FLOAT = 0
    HALF = 1
    INT32 = 3
    UINT8 = 5


class LayerType(enum.IntEnum):
    CONVOLUTION = 0
    ACTIVATION = 2
    SOFTMAX = 6
    DECONVOLUTION = 7
    ELEMENTWISE = 9
    UNARY = 11
    REDUCE = 14
    CONSTANT = 19
    SHAPE = 24
    QUANTIZE = 33
    NORMALIZATION = 46


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2


class ITensor:
    def __init__(self, name='t', shape=(1, 3, 8, 16), dtype=DataType.FLOAT):
        self.name, self.shape, self.dtype = name, shape, dtype


class ILayer:
    def __init__(self, kind, dtype=DataType.FLOAT):
        self.type, self.num_outputs, self.precision = kind, 1, None
        self.output, self.output_types = ITensor(dtype=dtype), []

    def get_output(self, number):
        return self.output

    def set_output_type(self, number, dtype):
        self.output_types.append(dtype)


class INetworkDefinition:
    def __init__(self, flags):
        self.flags = flags
        self.layers = [ILayer(LayerType.CONVOLUTION)]
        self.inputs = [ITensor('image')]
        self.num_outputs = 1

    num_layers = property(lambda self: len(self.layers))
    num_inputs = property(lambda self: len(self.inputs))

    def get_layer(self, index):
        return self.layers[index]

    def get_input(self, index):
        return self.inputs[index]


class ParserError:
    def __init__(self, node, desc):
        self._node, self._desc = node, desc

    def node(self):
        return self._node

    def desc(self):
        return self._desc

    def code(self):
        return 'ErrorCode.UNSUPPORTED_NODE'


class ITimingCache:
    def __init__(self, data):
        self.data = data

    def serialize(self):
        return b'measured after ' + self.data


class IOptimizationProfile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, low, best, high):
        self.shapes[name] = (low, best, high)


class IBuilderConfig:
    builder_optimization_level = 3

    def __init__(self):
        self.flags, self.pools, self.profiles, self.cache = [], {}, [], None

    def set_flag(self, flag):
        self.flags.append(flag)

    def set_memory_pool_limit(self, pool, nbytes):
        self.pools[pool] = nbytes

    def add_optimization_profile(self, profile):
        self.profiles.append(profile)
        return len(self.profiles) - 1 if BEHAVIOUR != 'no profile' else -1

    def create_timing_cache(self, data):
        return ITimingCache(data)

    def set_timing_cache(self, cache, ignore_mismatch):
        assert ignore_mismatch is False
        if cache.data.startswith(b'foreign'):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self):
        return self.cache


class Builder:
    made = None  # the last one

    def __init__(self, log):
        self.log = log
        if BEHAVIOUR == 'null':
            log.log(ILogger.Severity.WARNING, 'not the reason')
            log.log(ILogger.Severity.ERROR, 'CUDA initialization failure with error: 35')
            raise TypeError('pybind11::init(): factory function returned nullptr')
        Builder.made = self

    def create_network(self, flags):
        self.network = INetworkDefinition(flags)
        return self.network

    def create_builder_config(self):
        self.config = IBuilderConfig()
        return self.config

    def create_optimization_profile(self):
        return IOptimizationProfile()

    def build_serialized_network(self, network, config):
        how, _, argument = BEHAVIOUR.partition(' ')
        if how == 'kill':
            os.kill(os.getpid(), getattr(signal, argument))
        if how == 'exit':
            print('the last words', file=sys.stderr, flush=True)
            os._exit(int(argument))
        if how == 'raise':
            raise MemoryError('no more')
        if how == 'sleep':
            Path(argument).write_text(str(os.getpid()))
            time.sleep(300)
        if how == 'refuse':
            self.log.log(ILogger.Severity.ERROR, argument)
            return None
        return memoryview(PLAN)


class OnnxParser:
    layers = None
    inputs = None
    errors = ()

    def __init__(self, network, log):
        self.network = network

    def parse(self, model, path):
        self.network.layers = self.layers or self.network.layers
        self.network.inputs = self.inputs or self.network.inputs
        return not self.errors

    num_errors = property(lambda self: len(self.errors))

    def get_error(self, index):
        return self.errors[index]
