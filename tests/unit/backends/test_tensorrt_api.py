"""Every name of TensorRT that the builder and the runtime use, looked up in the real bindings.

NVIDIA's bindings alone, 1 MB each, are on PyPI; the libraries behind them are not and need no GPU
to be absent: a stub of a dozen functions that return null takes their place. What TensorRT then
computes is not tested here, only that what is called exists in 8.6.1, 10.3, 10.13 and 11.4.

`make test` fetches the wheels. DEPTH_NODE_TENSORRT_WHEELS may name a folder that has them.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
import zipfile

import depth_node
import pytest

PACKAGE = Path(depth_node.__file__).parent
CLONE = Path(__file__).resolve().parents[3]
# version: the number in the names of its libraries
VERSIONS = {'8.6.1': 8, '10.3.0': 10, '10.13.3.9': 10, '11.4.0.106': 11}
LIBRARIES = ('nvinfer', 'nvinfer_plugin', 'nvonnxparser', 'nvparsers')
STUB = """
#define NULL_OF(name) void *name(void) { return 0; }
NULL_OF(createInferBuilder_INTERNAL) NULL_OF(createInferRefitter_INTERNAL)
NULL_OF(createInferRuntime_INTERNAL) NULL_OF(createNvOnnxParser_INTERNAL)
NULL_OF(createNvOnnxParserRefitter_INTERNAL) NULL_OF(getBuilderPluginRegistry)
NULL_OF(getPluginRegistry) NULL_OF(getNvOnnxParserVersion) NULL_OF(initLibNvInferPlugins)
/* 8.6 alone: its parsers of Caffe and UFF, in C++ */
NULL_OF(_ZN11nvuffparser15createUffParserEv) NULL_OF(_ZN14nvcaffeparser117createCaffeParserEv)
NULL_OF(_ZN14nvcaffeparser123shutdownProtobufLibraryEv)
NULL_OF(_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi)
"""

# What a variable of that name holds in the sources, and what their methods return.
HOLDS = {
    'tensorrt_build.py': {
        'builder': 'Builder', 'network': 'INetworkDefinition', 'config': 'IBuilderConfig',
        'parser': 'OnnxParser', 'layer': 'ILayer', 'tensor': 'ITensor',
        'profile': 'IOptimizationProfile', 'cache': 'ITimingCache', 'error': 'ParserError',
        'item': 'ParserError'},
    'tensorrt.py': {
        'self._runtime': 'Runtime', 'self._engine': 'ICudaEngine',
        'self._context': 'IExecutionContext'},
}
RETURNS = {'get_layer': 'ILayer', 'get_input': 'ITensor', 'get_output': 'ITensor'}
# Variables of these names are Python's own errors outside of this function.
PARSER_ERRORS_IN = '_parser_error'

# What a version lacks, and why the builder does not get there with it.
TARGET = {  # `_set_target` asks for set_compute_capability first; TensorRT-RTX has them
    'ComputeCapability', 'IBuilderConfig.set_compute_capability',
    'IBuilderConfig.num_compute_capabilities'}
LACKS = {
    '8.6.1': TARGET | {
        'IProgressMonitor', 'IProgressMonitor.__init__',  # asked for
        'IBuilderConfig.progress_monitor',  # asked for
        'ParserError.node_name', 'ParserError.node_operator'},  # asked for
    '10.3.0': TARGET,
    '10.13.3.9': TARGET,
    '11.4.0.106': TARGET | {  # the flags route, where STRONGLY_TYPED is missing
        'BuilderFlag.FP16', 'BuilderFlag.INT8', 'BuilderFlag.OBEY_PRECISION_CONSTRAINTS',
        'ILayer.precision', 'ILayer.set_output_type'},
}

LIST_NAMES = """
import json, sys
import tensorrt_bindings as trt
owners = {name: getattr(trt, name) for name in dir(trt)}
print(json.dumps({
    'version': trt.__version__,
    'names': sorted(owners) + [f'{owner}.{name}' for owner, value in owners.items()
                               if isinstance(value, type) for name in dir(value)],
    'values': {f'{owner}.{name}': int(member) for owner, value in owners.items()
               for name, member in getattr(value, '__members__', {}).items()}}))
"""


class Bindings:
    """The bindings of one version, importable in a process of its own."""

    def __init__(self, version: str, wheel: Path, folder: Path) -> None:
        self.version = version
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        (folder / 'stub.c').write_text(STUB)
        for library in LIBRARIES:
            target = f'lib{library}.so.{VERSIONS[version]}'
            subprocess.run(['gcc', '-shared', '-fPIC', f'-Wl,-soname,{target}', '-o',
                            str(folder / target), str(folder / 'stub.c')], check=True)
        self._environment = {
            **os.environ, 'LD_LIBRARY_PATH': str(folder),
            'PYTHONPATH': os.pathsep.join([str(folder), str(PACKAGE.parent), *sys.path])}
        answer = json.loads(self.run(LIST_NAMES))
        assert answer['version'] == version
        self.names = set(answer['names'])
        self.values = answer['values']

    def run(self, code: str) -> str:
        result = subprocess.run([sys.executable, '-c', code], env=self._environment, text=True,
                                capture_output=True, timeout=60)
        assert result.returncode == 0, result.stderr
        return result.stdout


@pytest.fixture(scope='session', params=VERSIONS)
def bindings(request, tmp_path_factory) -> Bindings:
    named = os.environ.get('DEPTH_NODE_TENSORRT_WHEELS')
    folder = Path(named) if named else CLONE / '.venv-bindings'
    tag = f'cp{sys.version_info.major}{sys.version_info.minor}'
    wheels = sorted(folder.glob(f'tensorrt*_bindings-{request.param}-{tag}-*.whl'))
    if not wheels:
        pytest.skip(f'no bindings of TensorRT {request.param} for {tag} in {folder}; '
                    'scripts/setup.sh test fetches them, where the package index has them')
    if shutil.which('gcc') is None:
        pytest.skip('no gcc')
    return Bindings(request.param, wheels[0], tmp_path_factory.mktemp('bindings'))


def used_names(file: str) -> tuple[set[str], set[str]]:
    """Return the names that a source file uses as `Class.name`, and those it asks for."""
    tree = ast.parse((PACKAGE / 'backends' / file).read_text())
    used, asked = set(), set()
    for function in ast.walk(tree):
        if not isinstance(function, (ast.FunctionDef, ast.ClassDef)):
            continue
        holds = dict(HOLDS[file])
        if function.name != PARSER_ERRORS_IN:
            holds = {name: kind for name, kind in holds.items() if kind != 'ParserError'}
        for expression in ast.walk(function):
            if isinstance(expression, ast.Attribute):
                owner = owner_of(expression.value, holds)
                if owner is not None:
                    used.add(f'{owner}.{expression.attr}'.removeprefix('trt.'))
            elif (isinstance(expression, ast.Call) and isinstance(expression.func, ast.Name)
                  and expression.func.id in ('hasattr', 'getattr')
                  and isinstance(expression.args[1], ast.Constant)):
                owner = owner_of(expression.args[0], holds)
                if owner is not None:
                    asked.add(f'{owner}.{expression.args[1].value}'.removeprefix('trt.'))
    return used, asked


def owner_of(expression: ast.expr, holds: dict[str, str]) -> str | None:
    """Name the class that an expression is of: `trt`, `trt.X`, a known variable or result."""
    text = ast.unparse(expression)
    if text == 'trt' or (text.startswith('trt.') and isinstance(expression, ast.Attribute)):
        return text.removeprefix('trt.')
    if text in holds:
        return holds[text]
    if isinstance(expression, ast.Call) and isinstance(expression.func, ast.Attribute):
        return RETURNS.get(expression.func.attr)
    return None


def test_the_names_are_found_in_the_sources():
    used, asked = used_names('tensorrt_build.py')
    assert {'Builder.build_serialized_network', 'ILayer.get_output', 'ITensor.dtype',
            'BuilderFlag.FP16', 'LayerType.QUANTIZE', 'IOptimizationProfile.set_shape',
            'ParserError.desc', 'ITimingCache.serialize', 'ILogger.Severity.ERROR',
            'OnnxParser.parse', 'MemoryPoolType.WORKSPACE'} <= used
    assert {'IBuilderConfig.progress_monitor', 'ParserError.node_name',
            'NetworkDefinitionCreationFlag.STRONGLY_TYPED'} <= asked
    assert len(used) > 45


def test_builder_uses_what_exists(bindings):
    used, _ = used_names('tensorrt_build.py')
    deep = {'ILogger.Severity.ERROR', 'ILogger.Severity.INTERNAL_ERROR'}
    missing = used - deep - bindings.names
    assert missing == LACKS[bindings.version]
    bindings.run('import tensorrt_bindings as trt\n' + '\n'.join(
        f'trt.{name}' for name in deep))


def test_runtime_uses_what_exists(bindings):
    used, asked = used_names('tensorrt.py')
    assert {'IExecutionContext.execute_async_v3', 'Runtime.deserialize_cuda_engine',
            'ICudaEngine.num_io_tensors'} <= used
    missing = {name for name in used - asked - bindings.names
               if not name.startswith('ILogger.Severity.')}
    assert missing == set()


def test_names_that_the_builder_asks_for_one_by_one(bindings):
    for name in ('SOFTMAX', 'REDUCE', 'UNARY', 'NORMALIZATION'):  # `_pin_risky_layers`
        assert f'LayerType.{name}' in bindings.names
    flags = {name for name in ('EXPLICIT_BATCH', 'STRONGLY_TYPED')
             if f'NetworkDefinitionCreationFlag.{name}' in bindings.names}
    assert flags == {8: {'EXPLICIT_BATCH'}, 10: {'EXPLICIT_BATCH', 'STRONGLY_TYPED'},
                     11: {'STRONGLY_TYPED'}}[VERSIONS[bindings.version]]


def test_route_and_the_refusal_without_a_library(bindings, repository):
    """The real classes: a logger and a builder made from them, up to the null pointer."""
    result = json.loads(bindings.run(f"""
import json
from pathlib import Path
import tensorrt_bindings as trt
from depth_node.backends.tensorrt_build import BuildError, BuildRequest, build_plan, is_typed
try:
    build_plan(trt, BuildRequest(Path({str(repository / 'models' / 'small.onnx')!r})))
except BuildError as error:
    print(json.dumps([is_typed(trt), is_typed(trt, 'mixed'), str(error)]))
"""))
    major = VERSIONS[bindings.version]
    assert result == [major > 8, major > 10, 'TensorRT cannot start: without a reason']


@pytest.mark.parametrize('bindings', [v for v in VERSIONS if v != '8.6.1'], indirect=True)
def test_monitor_turns_phases_into_one_share(bindings):
    result = json.loads(bindings.run("""
import json
import tensorrt_bindings as trt
from depth_node.backends.tensorrt_build import _monitor_of
seen = []
monitor = _monitor_of(trt, lambda *step: seen.append(step))
assert isinstance(monitor, trt.IProgressMonitor)
monitor.phase_start('all', None, 2)
monitor.phase_start('first', 'all', 4)
assert monitor.step_complete('first', 0) is True
monitor.step_complete('first', 3)
monitor.phase_finish('first')
monitor.step_complete('all', 0)
monitor.phase_start('second', 'all', 0)
monitor.step_complete('unknown', 7)
monitor.step_complete('all', 1)
monitor.phase_finish('all')
print(json.dumps(seen))
"""))
    assert result == [['all', 0.0], ['first', 0.0], ['first', 0.125], ['first', 0.5],
                      ['all', 0.5], ['second', 0.5], ['all', 1.0]]


@pytest.mark.parametrize('bindings', ['8.6.1'], indirect=True)
def test_the_fake_is_like_8_6(bindings):
    """fake_tensorrt8.py stands for TensorRT 8 in the builder's tests: no name that it has not."""
    path = Path(__file__).with_name('fake_tensorrt8.py')
    spec = importlib.util.spec_from_file_location('fake_for_names', path)
    fake = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fake)
    own = {'INetworkDefinition': {'layers', 'inputs', 'flags'}, 'Builder': {'made'},
           'OnnxParser': {'layers', 'inputs', 'errors'}}
    for owner, value in vars(fake).items():
        if not isinstance(value, type) or value.__module__ != 'fake_for_names':
            continue
        assert owner in bindings.names
        for name in set(vars(value)) - own.get(owner, set()):
            if not name.startswith('_'):
                assert f'{owner}.{name}' in bindings.names
        for name, member in getattr(value, '__members__', {}).items():
            assert bindings.values[f'{owner}.{name}'] == int(member), f'{owner}.{name}'
