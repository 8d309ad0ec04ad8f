"""Weights in files beside an ONNX file: their hash is part of the model's."""

from __future__ import annotations

import hashlib
import subprocess
import sys

from depth_node.backends import open_backend
from depth_node.cli import main
from depth_node.model_card import (
    CardError,
    FileSpec,
    ModelCard,
    external_files,
    file_sha256,
    model_sha256,
)
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

onnx = pytest.importorskip('onnx')
from onnx import TensorProto, helper, numpy_helper  # noqa: E402


@pytest.fixture
def split(tiny_card):
    """Return a card whose weights lie in net.weights beside tiny.onnx."""
    card = tiny_card()
    path = card.precisions['fp32'].path
    model = onnx.load(str(path))
    onnx.save(model, str(path), save_as_external_data=True, location='net.weights',
              size_threshold=0)
    card.precisions['fp32'] = FileSpec(path, model_sha256(path))
    card.save()
    return card


def damage(path, offset=5):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_a_file_of_its_own_has_its_own_hash(tiny_card):
    path = tiny_card().precisions['fp32'].path
    assert external_files(path) == []
    assert model_sha256(path) == file_sha256(path) == hashlib.sha256(
        path.read_bytes()).hexdigest()
    (path.parent / 'tiny.onnx.data').write_bytes(b'not of it')
    assert model_sha256(path) == file_sha256(path)


def test_hash_is_that_of_what_sha256sum_prints(split):
    path = split.verify_file('fp32')
    assert external_files(path) == [path.parent / 'net.weights']
    try:
        printed = subprocess.run(['sha256sum', 'tiny.onnx', 'net.weights'], cwd=path.parent,
                                 capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        pytest.skip('no sha256sum')
    assert split.precisions['fp32'].sha256 == hashlib.sha256(
        printed.rstrip('\n').encode()).hexdigest()


@pytest.mark.parametrize('backend', ['onnxruntime', 'openvino'])
def test_changed_weights_are_noticed(split, backend):
    pytest.importorskip(backend)
    with open_backend(split, backend, 'fp32') as opened:
        batch = np.full((1, 24, 40, 3), 100, np.uint8)
        np.testing.assert_allclose(opened.run(batch)['depth'], 4.5, rtol=1e-5)
    weights = split.path.parent / 'net.weights'
    damage(weights)
    with pytest.raises(CardError, match=r'tiny\.onnx, net\.weights: SHA-256 is .* was changed'):
        open_backend(split, backend, 'fp32')
    damage(weights)
    split.verify_file('fp32')
    weights.unlink()
    with pytest.raises(CardError, match=r'net\.weights: weights of .*, cannot be read: No such'):
        open_backend(split, backend, 'fp32')


def test_changed_names_of_the_weights_are_noticed(split):
    path = split.precisions['fp32'].path
    model = onnx.load(str(path), load_external_data=False)
    for constant in model.graph.initializer:
        for entry in constant.external_data:
            if entry.key == 'location':
                entry.value = 'other.weights'
    path.write_bytes(model.SerializeToString())
    (path.parent / 'net.weights').rename(path.parent / 'other.weights')
    with pytest.raises(CardError, match='was changed'):
        split.verify_file('fp32')


@pytest.mark.parametrize('location', ['../secret', '/etc/passwd', 'a/../../b', '', 'a\0b'])
def test_weights_elsewhere_are_refused(split, location):
    path = split.precisions['fp32'].path
    model = onnx.load(str(path), load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == 'location':
            entry.value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CardError, match='which is not beside it; save the model'):
        split.verify_file('fp32')


def beside(name, location):
    tensor = numpy_helper.from_array(np.ones(3, np.float32), name)
    tensor.ClearField('raw_data')
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key='offset', value='0')
    tensor.external_data.add(key='location', value=location)
    return tensor


def test_every_place_of_a_tensor_is_looked_at(tmp_path):
    inner = helper.make_graph(
        [helper.make_node('Constant', [], ['z'], value=beside('v', 'inner'))], 'g', [],
        [helper.make_tensor_value_info('z', TensorProto.FLOAT, [3])],
        [beside('k', 'sub/inner.constant')])
    nodes = [helper.make_node('If', ['c'], ['y'], then_branch=inner, else_branch=inner),
             helper.make_node('Constant', [], ['w'], value=beside('w', 'constant')),
             helper.make_node('Many', [], ['m'], domain='my', values=[
                 beside('a', 'first'), beside('b', 'second')])]
    graph = helper.make_graph(nodes, 'outer', [], [], [beside('i', 'initializer')])
    graph.sparse_initializer.append(onnx.SparseTensorProto(
        values=beside('s', 'sparse'), indices=beside('x', 'indices'), dims=[3]))
    model = helper.make_model(graph)
    model.functions.append(helper.make_function(
        'my', 'F', [], ['w'], [helper.make_node(
            'Constant', [], ['w'], value=beside('w', 'function'))],
        [helper.make_opsetid('', 17)]))
    path = tmp_path / 'net.onnx'
    path.write_bytes(model.SerializeToString())
    assert [str(each.relative_to(tmp_path)) for each in external_files(path)] == sorted([
        'constant', 'first', 'function', 'indices', 'initializer', 'inner', 'second', 'sparse',
        'sub/inner.constant'])


def test_add_hashes_them_and_reads_them(split, monkeypatch, capsys):
    monkeypatch.chdir(split.path.parent)
    (split.path.parent / 'tiny.yaml').unlink()
    assert main(['models', 'add', 'tiny.onnx', '--kind', 'depth', '--range', '0.2', '40',
                 '--licence', 'Apache-2.0']) == 0
    card = ModelCard.load('tiny.yaml')
    assert card.precisions['fp32'].sha256 == split.precisions['fp32'].sha256
    capsys.readouterr()
    damage(split.path.parent / 'net.weights', 9)
    assert main(['models', 'verify', 'tiny.yaml']) == 1
    assert 'net.weights: SHA-256 is' in capsys.readouterr().out


def test_fused_file_has_its_weights_inside(split, tmp_path):
    pytest.importorskip('onnxruntime')
    from depth_node.export.fuse import fuse_resize

    new, _ = fuse_resize(split, (48, 64), tmp_path / 'out' / 'new.onnx')
    assert external_files(new.verify_file('fp32')) == []


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_broken_files_are_no_crash(tmp_path_factory, data):
    model = helper.make_model(helper.make_graph(
        [], 'g', [], [], [beside('i', 'weights')])).SerializeToString()
    raw = bytearray(model)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[:data.draw(st.integers(0, len(raw)))]
    path = tmp_path_factory.getbasetemp() / 'broken.onnx'
    path.write_bytes(bytes(raw))
    try:
        found = external_files(path)
        model_sha256(path)
    except CardError:
        return
    assert all(path.parent in each.parents for each in found)


def test_needs_no_onnx_package(split):
    code = ('import sys; sys.modules["onnx"] = None; '
            'from depth_node.model_card import ModelCard; '
            f'print(ModelCard.load({str(split.path)!r}).verify_file("fp32").name)')
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.stdout.strip() == 'tiny.onnx', result.stderr
