"""Every rule of the lint by a graph that breaks it, and by one that does not."""

from __future__ import annotations

import json

from depth_node.cli import main
import numpy as np
import pytest

onnx = pytest.importorskip('onnx')
ort = pytest.importorskip('onnxruntime')

from depth_node.export.lint import cast_first, lint  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402


def save(path, nodes, *, constants=None, source=(TensorProto.FLOAT, [1, 3, 8, 12]), opset=17,
         result=TensorProto.FLOAT, domains=()):  # fmt: skip
    """Write a graph from 'x' to 'y'."""
    made = [numpy_helper.from_array(np.asarray(value), name)
            for name, value in (constants or {}).items()]  # fmt: skip
    graph = helper.make_graph(
        nodes, 'g', [helper.make_tensor_value_info('x', *source)],
        [helper.make_tensor_value_info('y', result, list('nchw'))], made)  # fmt: skip
    imports = [helper.make_opsetid('', opset), *(helper.make_opsetid(d, 1) for d in domains)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


def rules(path, **options):
    return [(f.rule, f.severity, f.node) for f in lint(path, **options)]


def node(operator, inputs, outputs, **attributes):
    return helper.make_node(operator, inputs, outputs, name=f'the_{operator}', **attributes)


def test_a_plain_graph_is_clean(tmp_path):
    path = save(tmp_path / 'm.onnx', [node('Relu', ['x'], ['y'])])
    assert lint(path) == ()


def test_opset_of_old_jetsons(tmp_path):
    path = save(tmp_path / 'm.onnx', [node('Relu', ['x'], ['y'])], opset=18)
    assert rules(path) == [('opset', 'warning', 'graph')]
    assert 'opset_version=17' in lint(path)[0].text
    assert lint(path, target='cpu') == ()


def test_operators_that_tensorrt_lacks(tmp_path):
    path = save(tmp_path / 'm.onnx', [
        node('Unique', ['x'], ['y'])])  # fmt: skip
    assert rules(path) == [('operator', 'error', 'the_Unique')]
    custom = helper.make_node('Blur', ['x'], ['y'], name='blur', domain='my.own')
    path = save(tmp_path / 'c.onnx', [custom], domains=['my.own'])
    assert rules(path) == [('domain', 'error', 'blur')]
    assert lint(path, target='cpu') == ()


def test_many_of_one_kind_are_one_finding(tmp_path):
    nodes = [helper.make_node('Det', ['x'], [f'd{i}'], name=f'det{i}') for i in range(3)]
    path = save(tmp_path / 'm.onnx', [*nodes, node('Relu', ['x'], ['y'])])
    assert rules(path) == [('operator', 'error', 'det0 and 2 more')]


@pytest.mark.parametrize(
    ('attributes', 'opset', 'found'),
    [
        ({'mode': 'linear'}, 17, []),
        ({'mode': 'cubic'}, 17, [('cubic', 'warning', 'the_Resize')]),
        ({'mode': 'linear', 'antialias': 1}, 18,
         [('opset', 'warning', 'graph'), ('antialias', 'error', 'the_Resize')]),
    ],
)  # fmt: skip
def test_ways_to_resize(tmp_path, attributes, opset, found):
    path = save(
        tmp_path / 'm.onnx', [node('Resize', ['x', '', 'scales'], ['y'], **attributes)],
        constants={'scales': np.array([1, 1, 2, 2], np.float32)}, opset=opset)  # fmt: skip
    assert rules(path) == found


def transpose_first(path):
    return save(path, [
        node('Transpose', ['x'], ['turned'], perm=[0, 3, 1, 2]),
        node('Cast', ['turned'], ['real'], to=TensorProto.FLOAT),
        node('Sub', ['real', 'mean'], ['y'])],
        constants={'mean': np.full((1, 3, 1, 1), 7.0, np.float32)},
        source=(TensorProto.UINT8, [1, 8, 12, 3]))  # fmt: skip


def test_uint8_may_only_be_cast(tmp_path):
    path = transpose_first(tmp_path / 'm.onnx')
    assert rules(path) == [('uint8', 'error', 'the_Transpose')]
    assert 'put Cast before it' in lint(path)[0].text


def test_cast_first_mends_that_and_changes_no_value(tmp_path):
    path, mended = transpose_first(tmp_path / 'm.onnx'), tmp_path / 'mended.onnx'
    model = onnx.load(path)
    assert cast_first(model)
    assert not cast_first(model)
    onnx.save(model, mended)
    onnx.checker.check_model(model, full_check=True)
    assert lint(mended) == ()
    picture = np.random.default_rng(1).integers(0, 256, (1, 8, 12, 3), np.uint8)
    results = [
        ort.InferenceSession(str(p), providers=['CPUExecutionProvider']).run(None, {'x': picture})
        for p in (path, mended)
    ]
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert results[0][0].shape == (1, 3, 8, 12)


def test_two_types_in_one_node(tmp_path):
    path = save(tmp_path / 'm.onnx', [
        node('Cast', ['x'], ['half'], to=TensorProto.FLOAT16),
        node('Add', ['half', 'c'], ['y'])],
        constants={'c': np.float32(1)}, result=TensorProto.FLOAT16)  # fmt: skip
    assert ('types', 'error', 'the_Add') in rules(path)
    assert 'FLOAT and FLOAT16' in lint(path)[0].text


@pytest.mark.parametrize(
    ('zero', 'words'),
    [
        (np.int8(0), None),
        (np.int8(3), 'symmetric int8 only'),
        (np.uint8(0), 'quantises to uint8'),
        (None, 'which means uint8'),
    ],
)
def test_integers_must_be_symmetric(tmp_path, zero, words):
    more = ['zero'] if zero is not None else []
    constants = {'scale': np.float32(0.1), **({'zero': zero} if more else {})}
    path = save(tmp_path / 'm.onnx', [
        node('QuantizeLinear', ['x', 'scale', *more], ['q']),
        node('DequantizeLinear', ['q', 'scale', *more], ['y'])], constants=constants)  # fmt: skip
    found = [f for f in lint(path) if f.rule == 'qdq']
    if words is None:
        assert found == []
        return
    assert words in found[0].text
    assert 'depth-node quantize --precisions int8_trt' in found[0].text


def test_quantised_bias_is_named(tmp_path):
    path = save(tmp_path / 'm.onnx', [
        node('DequantizeLinear', ['bias', 'scale'], ['b']), node('Add', ['x', 'b'], ['y'])],
        constants={'bias': np.array([[[[3]], [[4]], [[5]]]], np.int32),
                   'scale': np.float32(0.1)})  # fmt: skip
    assert rules(path) == [('qdq', 'error', 'the_DequantizeLinear')]
    assert 'int32' in lint(path)[0].text


def test_wrong_arguments_and_files(tmp_path):
    path = save(tmp_path / 'm.onnx', [node('Relu', ['x'], ['y'])])
    with pytest.raises(ValueError, match='tensorrt, cpu'):
        lint(path, target='gpu')
    (tmp_path / 'bad.onnx').write_bytes(b'nothing of the kind')
    with pytest.raises(ValueError, match='not a valid ONNX graph'):
        lint(tmp_path / 'bad.onnx')
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match='not a valid ONNX graph'):
        lint(path)


def test_what_the_lint_refuses_the_parser_refuses(tmp_path):
    trt = pytest.importorskip(
        'tensorrt_rtx', reason='tensorrt-rtx-cu13 is not installed: no oracle for the lint')

    def parses(path):
        logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
        network = trt.Builder(logger).create_network(0)
        return trt.OnnxParser(network, logger).parse(path.read_bytes())

    scales = {'scales': np.array([1, 1, 2, 2], np.float32)}
    cases = {
        'fine': save(tmp_path / 'a.onnx', [node('Relu', ['x'], ['y'])]),
        'uint8': transpose_first(tmp_path / 'b.onnx'),
        'antialias': save(tmp_path / 'c.onnx', [node(
            'Resize', ['x', '', 'scales'], ['y'], mode='linear', antialias=1)],
            constants=scales, opset=18),
        'operator': save(tmp_path / 'd.onnx', [node('Unique', ['x'], ['y'])]),
        'types': save(tmp_path / 'e.onnx', [
            node('Cast', ['x'], ['half'], to=TensorProto.FLOAT16),
            node('Add', ['half', 'c'], ['y'])],
            constants={'c': np.full((1, 3, 8, 12), 2, np.float32)}, result=TensorProto.FLOAT16),
    }  # fmt: skip
    for name, path in cases.items():
        refused = any(f.severity == 'error' for f in lint(path))
        assert refused == (name != 'fine'), name
        assert parses(path) != refused, name


def test_command_names_findings_and_fails_on_errors(tmp_path, capsys):
    clean = save(tmp_path / 'clean.onnx', [node('Relu', ['x'], ['y'])])
    broken = transpose_first(tmp_path / 'broken.onnx')
    assert main(['models', 'lint', str(clean)]) == 0
    assert 'nothing found' in capsys.readouterr().out
    assert main(['models', 'lint', str(clean), str(broken)]) == 1
    assert 'put Cast before it' in capsys.readouterr().out
    assert main(['models', 'lint', str(broken), '--target', 'cpu', '--json']) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == {'failed': False, 'files': [
        {'file': str(broken), 'target': 'cpu', 'findings': []}]}  # fmt: skip


def test_command_lints_the_files_of_a_card_each_for_its_runtime(tiny_card, capsys):
    card = tiny_card(int8_gain=0.0201)
    assert main(['models', 'lint', str(card.path), '--json']) == 0
    files = json.loads(capsys.readouterr().out)['files']
    assert [(f['file'].split('/')[-1], f['target']) for f in files] == [
        ('tiny.onnx', 'tensorrt'), ('tiny.int8.onnx', 'cpu')]  # fmt: skip
