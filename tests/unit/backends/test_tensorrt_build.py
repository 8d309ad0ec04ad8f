"""The builder: for real with TensorRT-RTX on the CPU, TensorRT 8's route with a recording fake."""

from __future__ import annotations

import copy
import importlib
import importlib.util
from pathlib import Path
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

from depth_node.backends import tensorrt_build
from depth_node.backends._onnx_wire import NotOnnxError, cast_before_transpose, nodes
from depth_node.backends.tensorrt_build import (
    BuildError,
    BuildRequest,
    Profile,
    build_in_child,
    build_plan,
    card_file,
    is_typed,
    profile_of,
)
from depth_node.model_card import InputSpec, ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

onnx = pytest.importorskip('onnx')
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

FAKE = Path(__file__).with_name('fake_tensorrt8.py')
FLOAT, UINT8 = TensorProto.FLOAT, TensorProto.UINT8
PICTURE = ('image', UINT8, [1, 8, 16, 3])
REAL = ('x', FLOAT, [1, 3, 8, 16])


@pytest.fixture(scope='session')
def rtx():
    return pytest.importorskip(
        'tensorrt_rtx', reason="tensorrt_rtx is not installed: pip install '.[rtx]' (95 MB)")


@pytest.fixture
def fake(monkeypatch):
    spec = importlib.util.spec_from_file_location('fake_tensorrt8', FAKE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def constant(name, value, dtype=np.float32):
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def graph(nodes_, inputs, *, outputs=(('y', FLOAT, None),), constants=(), opset=17, domains=()):
    made = helper.make_graph(
        nodes_, 'g', [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info(*each) for each in outputs], list(constants))
    return helper.make_model(made, ir_version=8, opset_imports=[
        helper.make_opsetid('', opset), *(helper.make_opsetid(each, 1) for each in domains)])


def node(op, inputs, output='y', **attributes):
    return helper.make_node(op, inputs, [output], name=f'the_{op}', **attributes)


@pytest.fixture
def file_of(tmp_path):
    def write(model) -> Path:
        path = tmp_path / 'net.onnx'
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        return path
    return write


def small(repository) -> Path:
    return repository / 'models' / 'small.onnx'


def camera_network(size=('h', 'w'), half=False):
    """uint8 picture -> float -> NCHW -> convolution, of any size."""
    kind = np.float16 if half else np.float32
    steps = [node('Cast', ['image'], 'real', to=FLOAT), node('Transpose', ['real'], 'x',
                                                             perm=[0, 3, 1, 2])]
    last = 'x'
    if half:
        steps.append(helper.make_node('Cast', ['x'], ['h'], to=TensorProto.FLOAT16))
        last = 'h'
    steps.append(node('Conv', [last, 'w'], 'c' if half else 'y', pads=[1, 1, 1, 1]))
    if half:
        steps.append(helper.make_node('Cast', ['c'], ['y'], to=FLOAT))
    return graph(steps, [('image', UINT8, [1, *size, 3])],
                 constants=[constant('w', np.ones((4, 3, 3, 3)), kind)])


# --- TensorRT-RTX, for real


@pytest.mark.parametrize('sm', [86, 89])
def test_bundled_model_builds(rtx, repository, sm):
    seen = []
    request = BuildRequest(small(repository), target_sm=sm)
    plan = build_plan(rtx, request, lambda *step: seen.append(step))
    # the weights are in it, whatever else the compiler adds
    assert len(plan) > 0.9 * small(repository).stat().st_size
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert seen[0] == ('reading the graph', 0.0)
    assert seen[-1] == ('built', 1.0)
    assert len({share for share in shares if 0 < share < 1}) > 10  # it moves
    assert 'Building engine' in {phase for phase, _ in seen}


def test_plans_for_different_gpus_differ(rtx, file_of):
    path = file_of(camera_network((8, 16)))
    assert (build_plan(rtx, BuildRequest(path, target_sm=75))
            != build_plan(rtx, BuildRequest(path, target_sm=120)))


def test_dynamic_network_needs_and_takes_a_profile(rtx, file_of):
    path = file_of(camera_network())
    profile = Profile((16, 32), (48, 64), (96, 128))
    assert build_plan(rtx, BuildRequest(path, profile=profile, target_sm=86))
    with pytest.raises(BuildError, match=r"'image' is \(1, \?, \?, 3\), of any size") as caught:
        build_plan(rtx, BuildRequest(path, target_sm=86))
    assert 'min_hw' in caught.value.remedy


def test_fixed_network_takes_no_profile(rtx, file_of):
    request = BuildRequest(file_of(camera_network((8, 16))), target_sm=86,
                           profile=Profile((8, 16), (8, 16), (8, 16)))
    with pytest.raises(BuildError, match=r'\(1, 8, 16, 3\), of one size alone'):
        build_plan(rtx, request)


def test_free_channels_are_refused(rtx, file_of):
    model = graph([node('Relu', ['x'])], [('x', FLOAT, [1, 'c', 'h', 'w'])])
    with pytest.raises(BuildError, match='only height and width'):
        build_plan(rtx, BuildRequest(file_of(model), target_sm=86))


def test_free_batch_becomes_one(rtx, file_of):
    model = graph([node('Relu', ['x'])], [('x', FLOAT, ['n', 3, 8, 16])])
    assert build_plan(rtx, BuildRequest(file_of(model), target_sm=86))


def test_weights_beside_the_file_are_found(rtx, tmp_path):
    model = camera_network((8, 16))
    path = tmp_path / 'net.onnx'
    onnx.save(model, str(path), save_as_external_data=True, location='net.data',
              size_threshold=0)
    assert (tmp_path / 'net.data').stat().st_size == 4 * 3 * 9 * 4
    assert build_plan(rtx, BuildRequest(path, target_sm=86))
    (tmp_path / 'net.data').unlink()
    with pytest.raises(BuildError):
        build_plan(rtx, BuildRequest(path, target_sm=86))


def quantised(zero_point):
    return graph(
        [node('QuantizeLinear', ['x', 's', 'z'], 'q'),
         node('DequantizeLinear', ['q', 's', 'z'])], [REAL],
        constants=[constant('s', 0.1), constant('z', *zero_point)])


@pytest.mark.parametrize(('model', 'name', 'op', 'reason', 'remedy'), [
    (graph([node('Unique', ['x'])], [REAL]), 'the_Unique', 'Unique',
     'cannot run this operator', 'another backend'),
    (graph([node('NonZero', ['x'])], [REAL], outputs=[('y', TensorProto.INT64, None)]),
     'the_NonZero', 'NonZero', 'plugin', 'no such operator'),
    (graph([node('Foo', ['x'], domain='my')], [REAL], domains=['my']), 'the_Foo', 'Foo',
     'Plugin not found', 'no such operator'),
    (graph([node('Resize', ['x', '', '', 'n'], mode='linear', antialias=1)], [REAL], opset=18,
           constants=[constant('n', [1, 3, 4, 8], np.int64)]), 'the_Resize', 'Resize',
     'Antialiasing is not supported', 'antialias=False'),
    (graph([node('Cast', ['x'], 'h', to=TensorProto.FLOAT16), node('Add', ['x', 'h'])], [REAL]),
     'the_Add', 'Add', 'types Float and Half', 'mixes FP16 and FP32'),
    (quantised((128, np.uint8)), 'the_QuantizeLinear', 'QuantizeLinear', 'zero point',
     'symmetric INT8'),
    (quantised((5, np.int8)), 'the_QuantizeLinear', 'QuantizeLinear', 'zero point',
     'symmetric INT8'),
    (graph([node('DequantizeLinear', ['b', 's', 'z'], 'c'), node('Conv', ['x', 'w', 'c'])],
           [REAL], constants=[
               constant('b', [1, 1], np.int32), constant('s', 0.1),
               constant('z', 0, np.int32), constant('w', np.ones((2, 3, 3, 3)))]),
     'the_DequantizeLinear', 'DequantizeLinear', 'Int32', 'bias is quantised'),
    (graph([node('Transpose', ['image'], 't', perm=[0, 3, 1, 2]), node('Identity', ['t'])],
           [PICTURE], outputs=[('y', UINT8, None)]), 'the_Transpose', 'Transpose', 'UInt8',
     'Cast alone'),
    (graph([node('StringNormalizer', ['x'])], [('x', TensorProto.STRING, [1])],
           outputs=[('y', TensorProto.STRING, None)]), 'the_StringNormalizer',
     'StringNormalizer', '', 'no such type'),
], ids=lambda value: value if isinstance(value, str) and value.startswith('the_') else '')
def test_parser_errors_name_the_node_and_the_way_out(
    rtx, file_of, model, name, op, reason, remedy
):
    with pytest.raises(BuildError) as caught:
        build_plan(rtx, BuildRequest(file_of(model), target_sm=86))
    error = caught.value
    assert (error.node, error.op) == (name, op)
    assert reason in error.reason
    assert remedy in error.remedy
    assert f'node {name} ({op}): ' in str(error)
    for noise in ('.cpp', 'checkMacros', 'cudaError', '\n'):
        assert noise not in str(error)


def test_precision_is_that_of_the_file(rtx, file_of):
    fp16, fp32 = camera_network((8, 16), half=True), camera_network((8, 16))
    int8 = quantised((0, np.int8))
    for model, wanted in ((fp16, 'fp16'), (fp32, 'fp32'), (int8, 'int8')):
        path = file_of(model)
        assert build_plan(rtx, BuildRequest(path, precision=wanted, target_sm=86))
        for other in {'fp16', 'fp32', 'int8', 'mixed'} - {wanted}:
            with pytest.raises(BuildError, match=f'{other} was asked for'):
                build_plan(rtx, BuildRequest(path, precision=other, target_sm=86))


def test_symmetric_int8_by_onnx_runtime_builds(rtx, file_of, tmp_path):
    """The options without which TensorRT's parser refuses; see the reference on quantisation."""
    ort = pytest.importorskip('onnxruntime.quantization')
    source = file_of(camera_network((8, 16)))

    class Reader(ort.CalibrationDataReader):
        pictures = iter(np.random.default_rng(0).integers(0, 256, (4, 1, 8, 16, 3), np.uint8))

        def get_next(self):
            picture = next(self.pictures, None)
            return None if picture is None else {'image': picture}

    path = tmp_path / 'int8.onnx'
    ort.quantize_static(
        str(source), str(path), Reader(), quant_format=ort.QuantFormat.QDQ, per_channel=True,
        activation_type=ort.QuantType.QInt8, weight_type=ort.QuantType.QInt8,
        op_types_to_quantize=['Conv'], extra_options={
            'ActivationSymmetric': True, 'WeightSymmetric': True, 'AddQDQPairToWeight': True,
            'QuantizeBias': False})
    assert build_plan(rtx, BuildRequest(path, precision='int8', target_sm=86))


def test_file_for_cpus_is_refused_with_the_remedy(rtx, repository):
    path = repository / 'models' / 'small.int8.onnx'
    with pytest.raises(BuildError, match='depth-node quantize'):
        build_plan(rtx, BuildRequest(path, precision='int8', target_sm=86))


def test_unknown_target_lists_the_known(rtx, repository):
    with pytest.raises(BuildError, match=r'SM87 is not known; known are .*SM86'):
        build_plan(rtx, BuildRequest(small(repository), target_sm=87))


def test_progress_that_raises_ends_the_build(rtx, repository):
    class EnoughError(Exception):
        pass

    calls = []

    def progress(phase, share):
        calls.append(phase)
        if phase == 'Building engine':
            raise EnoughError

    with pytest.raises(EnoughError):
        build_plan(rtx, BuildRequest(small(repository), target_sm=86), progress)
    assert calls[-1] == 'Building engine'


def test_timing_cache_that_does_nothing_is_no_error(rtx, file_of, tmp_path):
    """TensorRT-RTX has the calls and ignores them."""
    path = tmp_path / 'times' / 'cache'
    request = BuildRequest(file_of(camera_network((8, 16))), target_sm=86, timing_cache=path)
    for _ in range(2):
        assert build_plan(rtx, request)


@pytest.mark.parametrize('data', [b'', b'hello', b'\x00' * 64, b'version https://git-lfs'])
def test_what_is_no_onnx_is_named(rtx, file_of, data):
    with pytest.raises(BuildError, match=r'net\.onnx: not an ONNX file'):
        build_plan(rtx, BuildRequest(file_of(data), target_sm=86))


def test_missing_file_is_named(fake, tmp_path):
    with pytest.raises(BuildError, match=r'gone\.onnx: No such file'):
        build_plan(fake, BuildRequest(tmp_path / 'gone.onnx'))


# --- the graph as bytes


def transpose_first(model):
    """The graph as exporters write it that do not know TensorRT: a Transpose of uint8."""
    graph_ = onnx.load_from_string(model)
    cast, transpose = graph_.graph.node[:2]
    assert (cast.op_type, transpose.op_type) == ('Cast', 'Transpose')
    transpose.input[0], cast.input[0] = cast.input[0], transpose.output[0] + '_bytes'
    cast.output[0], transpose.output[0] = transpose.output[0], cast.input[0]
    first = [copy.deepcopy(transpose), copy.deepcopy(cast)]
    for place, one in enumerate(first):
        graph_.graph.node[place].CopyFrom(one)
    del graph_.graph.value_info[:]
    return graph_.SerializeToString()


def test_cast_comes_first_and_nothing_else_changes(repository):
    ort = pytest.importorskip('onnxruntime')
    model = transpose_first(small(repository).read_bytes())
    assert [each.op for each in nodes(model)[:2]] == ['Transpose', 'Cast'], 'nothing to test'
    changed = cast_before_transpose(model)
    before, after = nodes(model), nodes(changed)
    assert [each.op for each in after[:2]] == ['Cast', 'Transpose']
    assert after[2:] == before[2:]
    onnx.checker.check_model(onnx.load_from_string(changed), full_check=True)
    picture = np.random.default_rng(3).integers(0, 256, (1, 192, 256, 3), np.uint8)
    results = [ort.InferenceSession(each, providers=['CPUExecutionProvider']).run(
        None, {'image': picture})[0] for each in (model, changed)]
    np.testing.assert_array_equal(*results)
    assert cast_before_transpose(changed) is changed


@pytest.mark.parametrize('model', [
    # the transposed picture is used twice, is an output, or is not uint8
    graph([node('Transpose', ['image'], 't', perm=[0, 3, 1, 2]), node('Cast', ['t'], to=FLOAT),
           helper.make_node('Cast', ['t'], ['z'], to=FLOAT)], [PICTURE]),
    graph([node('Transpose', ['image'], 't', perm=[0, 3, 1, 2]), node('Cast', ['t'], to=FLOAT)],
          [PICTURE], outputs=[('y', FLOAT, None), ('t', UINT8, None)]),
    graph([node('Transpose', ['image'], 't', perm=[0, 3, 1, 2]), node('Cast', ['t'], to=FLOAT)],
          [('image', TensorProto.INT8, [1, 8, 16, 3])]),
])
def test_other_graphs_stay_as_they_are(model):
    data = model.SerializeToString()
    assert cast_before_transpose(data) is data


@pytest.fixture(scope='module')
def tiny_bytes():
    return graph([node('Transpose', ['image'], 't', perm=[0, 3, 1, 2]),
                  node('Cast', ['t'], to=FLOAT)], [PICTURE]).SerializeToString()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_hostile_bytes_are_refused_or_read(tiny_bytes, data):
    mutated = bytearray(tiny_bytes)
    for _ in range(data.draw(st.integers(0, 4))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(mutated[:data.draw(st.integers(0, len(mutated)))])
    for read in (nodes, cast_before_transpose):
        try:
            read(cut)
        except NotOnnxError:
            pass


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_read(data):
    try:
        nodes(data)
    except NotOnnxError:
        pass


# --- requests


@pytest.mark.parametrize(('changes', 'message'), [
    ({'precision': 'fp8'}, 'known are fp32, fp16, mixed, int8'),
    ({'memory_mib': 0}, '1 or more'),
    ({'optimization_level': 6}, '0 to 5'),
    ({'profile': Profile((16, 64), (32, 32), (64, 96))}, 'min <= opt <= max'),
    ({'profile': Profile((0, 16), (32, 32), (64, 96))}, 'min <= opt <= max'),
    ({'profile': Profile((16, 16), (80, 32), (64, 96))}, 'min <= opt <= max'),
])
def test_senseless_requests_are_refused(changes, message):
    with pytest.raises(BuildError, match=message):
        BuildRequest(Path('x.onnx'), **changes)


def test_request_survives_the_way_to_the_child(tmp_path):
    request = BuildRequest(
        tmp_path / 'x.onnx', 'mixed', Profile((16, 32), (48, 64), (96, 128)), 77, 86,
        tmp_path / 'times', 5)
    assert BuildRequest.from_json(request.to_json()) == request
    import json
    assert BuildRequest.from_json(json.loads(json.dumps(request.to_json()))) == request


def test_profile_comes_from_the_card():
    spec = InputSpec('image', 'uint8_nhwc', multiple_of=14, min_hw=(112, 140), max_hw=(518, 700))
    assert profile_of(spec) == Profile((112, 140), (308, 420), (518, 700))
    assert profile_of(spec, (266, 350)) == Profile((112, 140), (266, 350), (518, 700))
    assert profile_of(InputSpec('image', 'uint8_nhwc', size_hw=(192, 256))) is None


def test_file_of_a_card_follows_the_route(tiny_card):
    card = tiny_card()
    fp32 = card.precisions['fp32'].path
    for typed in (False, True):
        assert card_file(card, 'fp32', typed=typed) == fp32
    assert card_file(card, 'fp16', typed=False) == fp32
    assert card_file(card, 'mixed', typed=False) == fp32
    for precision, typed, message in (
            ('fp16', True, 'no fp16 file.*depth-node export'),
            ('mixed', True, 'mixed is for TensorRT 8'),
            ('int8', True, 'no int8_trt file.*depth-node quantize'),
            ('int8', False, 'no int8_trt file'), ('fp8', True, 'known are')):
        with pytest.raises(BuildError, match=message):
            card_file(card, precision, typed=typed)
    assert isinstance(card, ModelCard)


# --- TensorRT 8's route


@pytest.fixture
def tiny_file(file_of):
    return file_of(camera_network((8, 16)))


def flags_of(config):
    return [flag.name for flag in config.flags]


@pytest.mark.parametrize(('precision', 'flags'), [
    ('fp32', []), ('fp16', ['FP16']), ('int8', ['FP16', 'INT8']),
    ('mixed', ['FP16', 'OBEY_PRECISION_CONSTRAINTS'])])
def test_flags_tell_tensorrt_8_the_precision(fake, tiny_file, precision, flags):
    assert not is_typed(fake)
    if precision == 'int8':
        fake.OnnxParser.layers = [fake.ILayer(fake.LayerType.QUANTIZE)]
    seen = []
    request = BuildRequest(tiny_file, precision, memory_mib=256, optimization_level=4)
    assert build_plan(fake, request, lambda *step: seen.append(step)) == fake.PLAN
    builder = fake.Builder.made
    assert builder.network.flags == 1 << fake.NetworkDefinitionCreationFlag.EXPLICIT_BATCH
    assert flags_of(builder.config) == flags
    assert builder.config.pools == {fake.MemoryPoolType.WORKSPACE: 256 << 20}
    assert builder.config.builder_optimization_level == 4
    assert [phase for phase, _ in seen] == ['reading the graph', 'building', 'built']


def test_int8_without_quantisers_is_refused_on_both_routes(fake, tiny_file):
    with pytest.raises(BuildError, match='no QuantizeLinear'):
        build_plan(fake, BuildRequest(tiny_file, 'int8'))


def test_mixed_pins_what_overflows_and_the_head(fake, tiny_file):
    kinds = fake.LayerType
    wanted = [  # kind, type of what it gives, pinned?
        (kinds.CONVOLUTION, fake.DataType.FLOAT, False),
        (kinds.SHAPE, fake.DataType.INT32, False),
        (kinds.SOFTMAX, fake.DataType.FLOAT, True),
        (kinds.REDUCE, fake.DataType.FLOAT, True),
        (kinds.REDUCE, fake.DataType.INT32, False),
        (kinds.ELEMENTWISE, fake.DataType.FLOAT, False),
        (kinds.UNARY, fake.DataType.FLOAT, True),
        (kinds.DECONVOLUTION, fake.DataType.FLOAT, True),
        (kinds.CONSTANT, fake.DataType.FLOAT, False),
        (kinds.ELEMENTWISE, fake.DataType.FLOAT, True),
    ]
    layers = fake.OnnxParser.layers = [fake.ILayer(kind, dtype) for kind, dtype, _ in wanted]
    build_plan(fake, BuildRequest(tiny_file, 'mixed'))
    assert [layer.precision == fake.DataType.FLOAT for layer in layers] == [
        pinned for *_, pinned in wanted]
    assert [layer.output_types == [fake.DataType.FLOAT] for layer in layers] == [
        pinned for *_, pinned in wanted]


@pytest.mark.parametrize(('shape', 'expected'), [
    ((1, -1, -1, 3), [(1, 16, 32, 3), (1, 48, 64, 3), (1, 96, 128, 3)]),
    ((-1, 3, -1, -1), [(1, 3, 16, 32), (1, 3, 48, 64), (1, 3, 96, 128)])])
def test_profile_has_the_layout_of_the_input(fake, tiny_file, shape, expected):
    fake.OnnxParser.inputs = [fake.ITensor('image', shape)]
    build_plan(fake, BuildRequest(
        tiny_file, profile=Profile((16, 32), (48, 64), (96, 128))))
    [profile] = fake.Builder.made.config.profiles
    assert profile.shapes == {'image': tuple(expected)}


def test_refused_profile_is_an_error(fake, tiny_file):
    fake.BEHAVIOUR = 'no profile'
    fake.OnnxParser.inputs = [fake.ITensor('image', (1, -1, -1, 3))]
    with pytest.raises(BuildError, match=r'refuses the sizes \(16, 32\), \(48, 64\)'):
        build_plan(fake, BuildRequest(
            tiny_file, profile=Profile((16, 32), (48, 64), (96, 128))))


def test_tensorrt_8_names_the_node_by_its_place(fake, tiny_file):
    """Its errors have no name and no operator: they are read from the file."""
    fake.OnnxParser.errors = [fake.ParserError(1, 'Assertion failed: something about plugin')]
    with pytest.raises(BuildError) as caught:
        build_plan(fake, BuildRequest(tiny_file))
    assert (caught.value.node, caught.value.op) == ('the_Transpose', 'Transpose')
    fake.OnnxParser.errors = [fake.ParserError(99, 'false'), fake.ParserError(-1, 'x')]
    with pytest.raises(BuildError, match=r'cannot run this operator \(and 1 more errors\)'):
        build_plan(fake, BuildRequest(tiny_file))


@pytest.mark.parametrize(('behaviour', 'message'), [
    ('null', 'TensorRT cannot start: CUDA initialization failure with error: 35; there is no '
             'NVIDIA driver here'),
    ('refuse 10: Could not find any implementation for node x', 'raise the memory limit'),
    ('refuse 2: [virtualMemoryBuffer.cpp::resizePhysical::155] OutOfMemory', 'end other'),
    ('refuse ', 'did not build an engine: without a reason'),
])
def test_what_tensorrt_says_is_passed_on_with_the_way_out(fake, tiny_file, behaviour, message):
    fake.BEHAVIOUR = behaviour
    with pytest.raises(BuildError, match=message):
        build_plan(fake, BuildRequest(tiny_file))


def test_only_rtx_builds_for_a_gpu_elsewhere(fake, tiny_file):
    with pytest.raises(BuildError, match='builds for the GPU that is here, not for SM86'):
        build_plan(fake, BuildRequest(tiny_file, target_sm=86))


def test_timing_cache_is_used_kept_and_of_another_version_replaced(fake, tiny_file, tmp_path):
    path = tmp_path / 'times' / 'cache'
    request = BuildRequest(tiny_file, timing_cache=path)
    build_plan(fake, request)
    assert path.read_bytes() == b'measured after '
    build_plan(fake, request)
    assert path.read_bytes() == b'measured after measured after '
    path.write_bytes(b'foreign')
    build_plan(fake, request)
    assert path.read_bytes() == b'measured after '
    assert [each.name for each in path.parent.iterdir()] == ['cache']


# --- the child process


@pytest.fixture
def child(tmp_path, monkeypatch, tiny_file):
    """Return a function that builds with the fake as `tensorrt`, in a child that behaves so."""
    modules = tmp_path / 'modules'
    modules.mkdir()
    shutil.copy(FAKE, modules / 'tensorrt.py')
    monkeypatch.syspath_prepend(str(modules))
    out = tmp_path / 'out' / 'x.engine'

    def build(behaviour='', **options):
        monkeypatch.setenv('FAKE_TRT', behaviour)
        build_in_child(BuildRequest(tiny_file, memory_mib=99), out, **options)
        return out
    build.out = out
    build.modules = modules
    return build


def test_child_writes_the_plan_and_tells_progress(child, fake):
    seen = []
    out = child(progress=lambda *step: seen.append(step))
    assert out.read_bytes() == fake.PLAN
    assert [each.name for each in out.parent.iterdir()] == ['x.engine']
    told = [step for step in seen if step != ('starting', 0.0)]  # said while the child is slow
    assert told[0] == ('reading the graph', 0.0)


@pytest.mark.parametrize(('behaviour', 'messages'), [
    ('kill SIGKILL', ['was killed', 'lower the memory limit, which was 99 MiB']),
    ('kill SIGSEGV', [r'crashed \(SIGSEGV\) on net.onnx', 'another precision']),
    ('kill SIGABRT', [r'crashed \(SIGABRT\)']),
    ('exit 3', ['ended with status 3; it said: the last words']),
    ('raise', ['status 1', 'MemoryError: no more']),
    ('refuse too bad', ['did not build an engine: too bad']),
])
def test_whatever_ends_the_child_is_an_error_here(child, behaviour, messages):
    child()
    before = child.out.read_bytes()
    for message in messages:
        with pytest.raises(BuildError, match=message):
            child(behaviour)
    assert child.out.read_bytes() == before
    assert [each.name for each in child.out.parent.iterdir()] == ['x.engine']


def test_errors_keep_their_parts_on_the_way(child, tmp_path):
    (child.modules / 'tensorrt.py').write_text(
        FAKE.read_text() + "\nOnnxParser.errors = [ParserError(2, 'zero point')]\n")
    with pytest.raises(BuildError) as caught:
        child()
    assert (caught.value.node, caught.value.op) == ('the_Conv', 'Conv')
    assert 'symmetric INT8' in caught.value.remedy
    assert caught.value.reason == 'zero point'


def test_module_that_does_not_import_is_named(child):
    (child.modules / 'tensorrt.py').write_text("raise ImportError('libnvinfer.so.10: gone')")
    with pytest.raises(BuildError, match=r'tensorrt cannot be imported: libnvinfer\.so\.10'):
        child()
    with pytest.raises(BuildError, match='known are tensorrt, tensorrt_rtx'):
        child(module='os')


def alive(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, 'in vain'
        time.sleep(0.02)


def test_a_bar_moves_while_tensorrt_is_silent_and_ctrl_c_ends_the_child(
    child, tmp_path, monkeypatch
):
    monkeypatch.setattr(tensorrt_build, '_HEARTBEAT_S', 0.02)
    note, calls = tmp_path / 'pid', []

    def progress(phase, share):
        calls.append(phase)
        if note.exists() and note.read_text() and len(calls) > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        child(f'sleep {note}', progress=progress)
    assert len(calls) > 20
    assert not alive(int(note.read_text()))
    assert list(child.out.parent.iterdir()) == []


def test_a_build_that_takes_too_long_is_ended(child, tmp_path, monkeypatch):
    monkeypatch.setattr(tensorrt_build, '_HEARTBEAT_S', 0.02)
    note = tmp_path / 'pid'
    with pytest.raises(BuildError, match='took too long'):
        child(f'sleep {note}', timeout_s=3.0)
    assert not note.exists() or not alive(int(note.read_text()))
    assert list(child.out.parent.iterdir()) == []


def test_kill_9_of_the_program_ends_the_child_and_leaves_nothing(child, tiny_file, tmp_path):
    note = tmp_path / 'pid'
    code = (
        'import os, sys; from pathlib import Path; '
        f'sys.path[:0] = {sys.path!r}; os.environ["FAKE_TRT"] = "sleep {note}"; '
        'from depth_node.backends.tensorrt_build import BuildRequest, build_in_child; '
        f'build_in_child(BuildRequest(Path({str(tiny_file)!r})), Path({str(child.out)!r}))')
    program = subprocess.Popen([sys.executable, '-c', code])
    try:
        wait_for(lambda: note.exists() and note.read_text())
        pid = int(note.read_text())
        assert alive(pid)
        assert [each.suffix for each in child.out.parent.iterdir()] == ['.part']
    finally:
        program.send_signal(signal.SIGKILL)
        program.wait()
    wait_for(lambda: not alive(pid))
    assert list(child.out.parent.iterdir()) == []


def test_full_disk_is_named_and_leaves_nothing(child):
    """A limit of the file size stands for a full disk: the write fails in its middle."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(BuildError, match='cannot be written: File too large; 2 MB are needed'):
            child()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(child.out.parent.iterdir()) == []


def test_folder_that_cannot_be_written_is_named(child, tmp_path):
    (tmp_path / 'out').write_text('a file, not a folder')
    with pytest.raises(BuildError, match=r'x\.engine: cannot be written'):
        child()


def test_two_builds_at_once_do_not_meet(child, tiny_file, tmp_path, fake):
    outs = [tmp_path / 'out' / f'{number}.engine' for number in range(2)]
    threads = [threading.Thread(target=build_in_child, args=(BuildRequest(tiny_file), out))
               for out in outs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [out.read_bytes() == fake.PLAN for out in outs] == [True, True]


def test_rtx_builds_the_bundled_model_in_a_child(rtx, repository, tmp_path):
    out, seen = tmp_path / 'small.engine', []
    build_in_child(BuildRequest(small(repository), target_sm=86), out,
                   lambda *step: seen.append(step), 'tensorrt_rtx')
    assert out.stat().st_size > 0.9 * small(repository).stat().st_size
    assert [each.name for each in tmp_path.iterdir()] == ['small.engine']
    assert seen
