"""fp16 files: typed inside, float32 outside, and refused where fp16 cannot hold the numbers."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip('torch')
onnx = pytest.importorskip('onnx')
ort = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

from depth_node.export import onnx as export_module  # noqa: E402
from depth_node.export.card import make_card, run_file, with_file  # noqa: E402
from depth_node.export.lint import lint, peak_activation  # noqa: E402
from depth_node.export.onnx import (  # noqa: E402
    ExportError,
    ImageToDepth,
    export_onnx,
    parity_batches,
    parity_pictures,
)
from depth_node.export.quantize import halve_onnx  # noqa: E402
from depth_node.model_card import ModelCard  # noqa: E402

SIZE_HW = (32, 48)
HALF = onnx.TensorProto.FLOAT16


@pytest.fixture(scope='module')
def from_network(make_tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp('fp16') / 'tiny.fp16.onnx'
    parity = export_onnx(make_tiny(), path, precision='fp16')
    return path, parity


@pytest.fixture(params=['network', 'graph'])
def half_file(request, from_network, tiny_fp32, tmp_path):
    """Both ways to fp16."""
    if request.param == 'network':
        return from_network[0]
    path = tmp_path / 'converted.onnx'
    halve_onnx(tiny_fp32, path, list(parity_pictures(SIZE_HW)))
    return path


def test_typed_inside_and_float32_outside(half_file):
    model = onnx.load(half_file)
    assert model.ir_version == 8
    assert [(o.domain, o.version) for o in model.opset_import] == [('', 17)]
    (image,), (depth,) = model.graph.input, model.graph.output
    assert (image.name, image.type.tensor_type.elem_type) == ('image', onnx.TensorProto.UINT8)
    assert (depth.name, depth.type.tensor_type.elem_type) == ('depth', onnx.TensorProto.FLOAT)
    first, *rest = model.graph.node
    assert (first.op_type, list(first.input)) == ('Cast', ['image'])
    constants = {item.name: item.data_type for item in model.graph.initializer}
    convs = [node for node in rest if node.op_type == 'Conv']
    assert len(convs) == 6
    assert {constants[name] for node in convs for name in node.input[1:]} == {HALF}
    assert sum(node.op_type == 'Cast' for node in model.graph.node) == 3  # in, to half, and back
    assert lint(half_file, batches=parity_batches(SIZE_HW)) == ()


def test_depth_is_that_of_fp32_to_a_few_parts_in_ten_thousand(half_file, make_tiny):
    network = make_tiny()
    picture = np.random.default_rng(8).integers(0, 256, (*SIZE_HW, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = ImageToDepth(network)(torch.from_numpy(picture[None])).numpy()[0, 0]
    found = run_file(half_file, picture)
    assert found.dtype == np.float32
    assert expected.std() / expected.mean() > 0.05  # a constant would prove nothing
    error = np.abs(found - expected) / expected
    assert 1e-6 < error.mean() < 0.002  # not fp32 by mistake, and close


def test_parity_is_against_fp32_and_the_network_stays_as_it_was(from_network, make_tiny, tmp_path):
    _path, parity = from_network
    assert 1e-6 < parity.mean_rel < 0.002
    network = make_tiny()
    export_onnx(network, tmp_path / 'again.onnx', precision='fp16')
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_plan_is_built_for_ampere_and_ada(half_file, tiny_fp32, rtx_plan):
    assert 0 < rtx_plan(half_file)
    assert 0 < rtx_plan(tiny_fp32)


def test_activation_beyond_fp16_is_refused_by_the_name_of_its_node(make_tiny, tmp_path):
    path = tmp_path / 'large.onnx'
    network = make_tiny(gain=1e5)  # in fp32 the gain cancels
    assert export_onnx(network, tmp_path / 'fp32.onnx').max_rel < 1e-4
    with pytest.raises(ExportError, match=r'the largest activation is .*, by (Mul|Conv) node_'):
        export_onnx(network, path, precision='fp16')
    assert not path.exists()
    with pytest.raises(ExportError, match='half of that is kept in reserve'):
        halve_onnx(tmp_path / 'fp32.onnx', path, list(parity_pictures(SIZE_HW)))
    assert not path.exists()


def test_peak_is_the_largest_value_of_any_node(tmp_path):
    from onnx import TensorProto, helper, numpy_helper

    values = np.array([3.0, -700.0, 20.0], np.float32)
    model = helper.make_model(helper.make_graph(
        [helper.make_node('Mul', ['x', 'x'], ['square'], name='squares'),
         helper.make_node('Neg', ['square'], ['negative'], name='turns'),
         helper.make_node('Add', ['negative', 'c'], ['y'], name='adds')],
        'peaks', [helper.make_tensor_value_info('x', TensorProto.FLOAT, [3])],
        [helper.make_tensor_value_info('y', TensorProto.FLOAT, [3])],
        [numpy_helper.from_array(np.float32(-5.0), 'c')]),
        opset_imports=[helper.make_opsetid('', 17)], ir_version=8)  # fmt: skip
    path = tmp_path / 'peaks.onnx'
    onnx.save(model, path)
    peak = peak_activation(path, [{'x': values / 10}, {'x': values}])
    assert (peak.node, peak.operator) == ('adds', 'Add')
    assert peak.value == 700.0**2 + 5
    assert any(f.rule == 'peak' and f.severity == 'warning'
               for f in lint(path, batches=[{'x': values}]))  # fmt: skip
    assert lint(path, batches=[{'x': values / 10}]) == ()
    overflow = peak_activation(path, [{'x': np.full(3, 1e30, np.float32)}])
    assert overflow.node == 'squares'  # the first, not those that inherit the infinity
    with pytest.raises(ValueError, match='no batch'):
        peak_activation(path, [])


def test_fp16_that_moves_depth_is_refused(make_tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, 'FP16_TOLERANCE_MEAN_REL', 1e-9)
    with pytest.raises(ExportError, match='moves the depth by'):
        export_onnx(make_tiny(), tmp_path / 'x.onnx', precision='fp16')
    assert not list(tmp_path.iterdir())


def test_what_is_too_large_for_one_file_says_so_before_the_export(
    make_tiny, tmp_path, monkeypatch
):
    monkeypatch.setattr(export_module, 'MAX_FILE_BYTES', 30_000)
    with pytest.raises(ExportError, match='choose a smaller network'):
        export_onnx(make_tiny(), tmp_path / 'x.onnx')
    assert not list(tmp_path.iterdir())
    export_onnx(make_tiny(), tmp_path / 'x.fp16.onnx', precision='fp16')  # half the size fits


def test_network_that_casts_between_its_layers_is_converted_as_a_graph(make_tiny, tmp_path):
    class Casting(type(make_tiny())):
        def forward(self, batch):
            return super().forward(batch.float())

    torch.manual_seed(3)
    network = Casting().eval()
    with pytest.raises(RuntimeError):  # torch does not run it in fp16
        network.half()(torch.zeros(1, 3, *SIZE_HW, dtype=torch.half))
    path = tmp_path / 'casting.onnx'
    assert 0 < export_onnx(network.float(), path, precision='fp16').mean_rel < 0.002
    assert HALF in {item.data_type for item in onnx.load(path).graph.initializer}
    assert lint(path, batches=parity_batches(SIZE_HW)) == ()


def test_unknown_precision(make_tiny, tmp_path):
    with pytest.raises(ValueError, match='expected fp32 or fp16'):
        export_onnx(make_tiny(), tmp_path / 'x.onnx', precision='half')


def test_card_names_the_fp16_file(half_file, make_tiny, tmp_path):
    export_onnx(make_tiny(), tmp_path / 'tiny.onnx')
    half = tmp_path / 'tiny.fp16.onnx'
    half.write_bytes(half_file.read_bytes())
    card = make_card(tmp_path / 'tiny.onnx', make_tiny(), name='tiny', licence='Apache-2.0',
                     range_m=None, assumed_hfov_deg=None, provenance={})  # fmt: skip
    card = with_file(card, 'fp16', half, {'made': 'by a test'})
    read = ModelCard.load(card.save())
    assert read.verify_file('fp16') == half
    assert read.check.tolerance['fp16'] == 0.01
    assert read.provenance['fp16'] == {'made': 'by a test'}
