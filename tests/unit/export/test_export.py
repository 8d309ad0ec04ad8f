"""From a checkpoint to files: the same depth in torch, ONNX Runtime and OpenVINO."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch')
onnx = pytest.importorskip('onnx')
ort = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

from depth_node.export import onnx as export_module  # noqa: E402
from depth_node.export.card import make_card, with_file  # noqa: E402
from depth_node.export.onnx import (  # noqa: E402
    ExportError,
    ImageToDepth,
    export_onnx,
    parity_pictures,
)
from depth_node.export.quantize import quantize_onnx  # noqa: E402
from depth_node.model_card import CardError, ModelCard  # noqa: E402
from depth_node.training.networks import build_network  # noqa: E402

SIZE_HW = (64, 96)


@pytest.fixture(scope='module')
def network():
    torch.manual_seed(3)
    torch.set_num_threads(1)
    made = build_network('small', size_hw=SIZE_HW, pretrained=False)
    # An untrained network answers every picture alike: give it statistics and a lively head.
    made.train()
    with torch.no_grad():
        for seed in range(3):
            pictures = torch.from_numpy(parity_pictures(SIZE_HW)).permute(0, 3, 1, 2)
            made(made.normalise(pictures.roll(seed * 7, -1)))
        made.head.weight.mul_(8)
    return made.eval()


@pytest.fixture(scope='module')
def exported(network, tmp_path_factory) -> tuple[Path, float]:
    path = tmp_path_factory.mktemp('export') / 'tiny.onnx'
    return path, export_onnx(network, path).max_rel


@pytest.fixture(scope='module')
def quantised(exported, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('int8') / 'tiny.int8.onnx'
    quantize_onnx(exported[0], path, list(parity_pictures(SIZE_HW, 6)[:-1]) * 2)
    return path


def depth_of(path: Path, picture: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return session.run(['depth'], {'image': picture[None]})[0]


def test_file_has_the_contract(exported):
    model = onnx.load(exported[0])
    assert model.ir_version == 8
    assert [(o.domain, o.version) for o in model.opset_import] == [('', 17)]
    (image,), (depth,) = model.graph.input, model.graph.output
    assert (image.name, image.type.tensor_type.elem_type) == ('image', onnx.TensorProto.UINT8)
    assert [d.dim_value for d in image.type.tensor_type.shape.dim] == [1, 64, 96, 3]
    assert (depth.name, depth.type.tensor_type.elem_type) == ('depth', onnx.TensorProto.FLOAT)
    assert [d.dim_value for d in depth.type.tensor_type.shape.dim] == [1, 1, 64, 96]
    assert not any(t.data_location for t in model.graph.initializer)  # weights are inside


def test_file_says_nothing_about_the_machine_that_made_it(exported):
    data = exported[0].read_bytes()
    for word in (b'site-packages', b'.py', b'Traceback', str(Path.home()).encode() + b'/'):
        assert word not in data, word


def test_padding_is_inside_the_convolutions(exported):
    operators = {node.op_type for node in onnx.load(exported[0]).graph.node}
    assert 'Pad' not in operators
    assert 'Shape' not in operators


def test_onnx_runtime_equals_torch(network, exported):
    assert exported[1] < 1e-4
    picture = np.random.default_rng(8).integers(0, 256, (*SIZE_HW, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = ImageToDepth(network)(torch.from_numpy(picture[None])).numpy()
    found = depth_of(exported[0], picture)
    assert expected.std() / expected.mean() > 0.01  # a constant would prove nothing
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_disagreement_is_an_error_and_leaves_no_file(make_tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, 'PARITY_TOLERANCE_REL', 0.0)
    path = tmp_path / 'bad.onnx'
    with pytest.raises(ExportError, match='differs from torch'):
        export_onnx(make_tiny(), path)
    assert not path.exists()


def test_quantised_file_is_smaller_and_close(exported, quantised):
    assert quantised.stat().st_size < 0.45 * exported[0].stat().st_size
    model = onnx.load(quantised)
    operators = [node.op_type for node in model.graph.node]
    assert operators.count('QuantizeLinear') > 40
    picture = parity_pictures(SIZE_HW)[1]
    found, expected = depth_of(quantised, picture), depth_of(exported[0], picture)
    assert 0 < np.mean(np.abs(found - expected) / expected) < 0.05


def test_quantised_file_runs_in_openvino_like_in_onnx_runtime(quantised):
    openvino = pytest.importorskip('openvino')
    picture = parity_pictures(SIZE_HW)[1]
    settings = {'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': 1}
    compiled = openvino.Core().compile_model(str(quantised), 'CPU', settings)
    found = compiled({'image': picture[None]})['depth']
    expected = depth_of(quantised, picture)
    assert np.mean(np.abs(found - expected) / expected) < 0.02


def test_too_few_calibration_pictures_are_refused(exported, tmp_path):
    with pytest.raises(ValueError, match='3 calibration pictures, expected at least 8'):
        quantize_onnx(exported[0], tmp_path / 'x.onnx', list(parity_pictures(SIZE_HW)[:3]))


def card_of(exported, network) -> ModelCard:
    return make_card(exported[0], network, name='tiny', licence='Apache-2.0', range_m=(0.2, 8.0),
                     assumed_hfov_deg=None, provenance={'made': 'by a test'})  # fmt: skip


def test_card_can_be_read_back_and_its_check_passes(exported, quantised, network):
    from depth_node.backends import open_backend, self_check

    card = with_file(card_of(exported, network), 'int8', quantised, {'frames': 10})
    read = ModelCard.load(card.save())
    assert read.output.canonical_focal_px == 256.0
    # a 96 px wide picture of a 256 px camera: 2 atan(48 / 256)
    assert read.output.assumed_hfov_deg == pytest.approx(21.2, abs=0.05)
    assert read.provenance['int8'] == {'frames': 10}
    for precision in ('fp32', 'int8'):
        assert read.verify_file(precision).is_file()
        with open_backend(read, 'onnxruntime', precision, threads=1) as backend:
            result = self_check(backend)
            assert result.ok, result.detail


def test_card_of_another_file_is_noticed(exported, network, tmp_path):
    path = tmp_path / 'tiny.onnx'
    path.write_bytes(exported[0].read_bytes() + b' ')
    card = make_card(exported[0], network, name='tiny', licence='Apache-2.0', range_m=(0.2, 8.0),
                     assumed_hfov_deg=60.0, provenance={})  # fmt: skip
    text = json.dumps(card.to_dict())
    assert str(exported[0].parent) not in text  # a card must not name its maker's folders
    moved = ModelCard.from_dict(card.to_dict(), path.with_suffix('.yaml'))
    with pytest.raises(CardError, match='SHA-256'):
        moved.verify_file('fp32')


def test_a_broken_int8_file_gets_no_card(exported, network, tmp_path):
    other = onnx.load(exported[0])
    bias = next(item for item in other.graph.initializer if item.name.endswith('head.bias'))
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 1, bias.name))
    onnx.save(other, tmp_path / 'other.onnx')
    with pytest.raises(ExportError, match='off by'):
        with_file(card_of(exported, network), 'int8', tmp_path / 'other.onnx', {})


def test_run_whose_manifest_does_not_name_its_training_split_can_be_exported():
    from depth_node.cli.export import summary

    manifest = {'config': {'network': {'name': 'small'}, 'objective': {}, 'optim': {},
                           'data': {'batch_size': 8}, 'run': {'seed': 1}},
                'data': {'frames': {}}, 'start': {'kind': 'scratch'}, 'steps': 7}  # fmt: skip
    assert 'data' not in summary(manifest)
    manifest['data']['train'] = {'frames': 3}
    assert summary(manifest)['data'] == {'frames': 3}
    assert summary(manifest)['steps'] == 7
