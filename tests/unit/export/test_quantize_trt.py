"""INT8 that TensorRT reads: symmetric, no quantised bias, accurate, and told what it costs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch')
onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

from depth_node.cli import main, quantize  # noqa: E402
from depth_node.export.card import make_card, run_file, with_file  # noqa: E402
from depth_node.export.lint import lint  # noqa: E402
from depth_node.export.onnx import ExportError, parity_pictures  # noqa: E402
from depth_node.export.quantize import halve_onnx, quantize_onnx  # noqa: E402
from depth_node.model_card import CardError, ModelCard  # noqa: E402
from onnx import numpy_helper  # noqa: E402

SIZE_HW = (32, 48)


@pytest.fixture(scope='module')
def pictures():
    return list(parity_pictures(SIZE_HW, 5)[:-1]) * 2


@pytest.fixture(scope='module')
def files(tiny_fp32, pictures, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp('int8')
    made = {}
    for precision in ('int8', 'int8_trt'):
        made[precision] = folder / f'tiny.{precision}.onnx'
        quantize_onnx(tiny_fp32, made[precision], pictures, precision=precision)
    return made


def test_graph_is_what_tensorrt_takes(files):
    model = onnx.load(files['int8_trt'])
    assert [(o.domain, o.version) for o in model.opset_import] == [('', 17)]
    constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    pairs = [n for n in model.graph.node if n.op_type in ('QuantizeLinear', 'DequantizeLinear')]
    assert pairs
    for node in pairs:
        zero = constants[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
        assert constants[node.input[1]].dtype == np.float32
    makers = {o: n for n in model.graph.node for o in n.output}
    convs = [node for node in model.graph.node if node.op_type == 'Conv']
    quantised = [n for n in convs if makers[n.input[0]].op_type == 'DequantizeLinear']
    assert len(convs) == 6
    assert len(quantised) == 2  # the first three and the last stay in float
    for node in quantised:
        weights = makers[node.input[1]]
        assert weights.op_type == 'DequantizeLinear'
        assert len(constants[weights.input[1]]) == 16  # a scale per channel
        assert constants[node.input[2]].dtype == np.float32  # the bias is not quantised
    followers = {i: n.op_type for n in model.graph.node for i in n.input}
    assert all(followers[n.output[0]] == 'Relu' for n in quantised)  # nothing parts the two
    assert lint(files['int8_trt']) == ()


def test_depth_stays(files, tiny_fp32, pictures):
    expected = run_file(tiny_fp32, pictures[1])
    found = run_file(files['int8_trt'], pictures[1], as_written=True)
    assert expected.std() / expected.mean() > 0.05
    assert 0 < np.mean(np.abs(found - expected) / expected) < 0.02


def test_plan_is_built_for_ampere_and_ada(files, rtx_plan):
    assert rtx_plan(files['int8_trt']) > 0
    with pytest.raises(ValueError, match=r'DequantizeLinear|zero point|Type'):
        rtx_plan(files['int8'])  # the CPU's form: the check can fail


def test_lint_tells_the_forms_apart(files):
    assert {f.rule for f in lint(files['int8'])} == {'qdq'}
    assert lint(files['int8'], target='cpu') == ()


def test_old_files_with_a_uint8_transpose_are_mended(tiny_fp32, pictures, tmp_path):
    model = onnx.load(tiny_fp32)
    cast, transpose = model.graph.node[:2]
    assert (cast.op_type, transpose.op_type) == ('Cast', 'Transpose')
    attributes = list(cast.attribute), list(transpose.attribute)
    cast.op_type, transpose.op_type = 'Transpose', 'Cast'
    del cast.attribute[:], transpose.attribute[:], model.graph.value_info[:]
    cast.attribute.extend(attributes[1])
    transpose.attribute.extend(attributes[0])
    old = tmp_path / 'old.onnx'
    onnx.save(model, old)
    assert [f.rule for f in lint(old)] == ['uint8']
    quantize_onnx(old, tmp_path / 'int8.onnx', pictures, precision='int8_trt')
    halve_onnx(old, tmp_path / 'half.onnx', pictures)
    for name in ('int8.onnx', 'half.onnx'):
        assert lint(tmp_path / name) == ()
        np.testing.assert_allclose(
            run_file(tmp_path / name, pictures[0], as_written=True),
            run_file(tiny_fp32, pictures[0]), rtol=0.1)  # fmt: skip


def test_wrong_precision_and_a_graph_without_convolutions(tiny_fp32, pictures, tmp_path):
    with pytest.raises(ValueError, match='expected one of int8, int8_trt'):
        quantize_onnx(tiny_fp32, tmp_path / 'x.onnx', pictures, precision='int4')
    from onnx import TensorProto, helper

    model = helper.make_model(helper.make_graph(
        [helper.make_node('Cast', ['image'], ['depth'], to=TensorProto.FLOAT)], 'g',
        [helper.make_tensor_value_info('image', TensorProto.UINT8, [1, 32, 48, 3])],
        [helper.make_tensor_value_info('depth', TensorProto.FLOAT, [1, 32, 48, 3])]),
        opset_imports=[helper.make_opsetid('', 17)], ir_version=8)  # fmt: skip
    onnx.save(model, tmp_path / 'flat.onnx')
    with pytest.raises(ExportError, match='nothing to quantise'):
        quantize_onnx(tmp_path / 'flat.onnx', tmp_path / 'x.onnx', pictures, precision='int8_trt')
    with pytest.raises(ExportError, match='no convolution'):
        halve_onnx(tmp_path / 'flat.onnx', tmp_path / 'x.onnx', pictures)
    assert not (tmp_path / 'x.onnx').exists()


@pytest.fixture
def card(tiny_fp32, make_tiny, tmp_path) -> ModelCard:
    path = tmp_path / 'models' / 'tiny.onnx'
    path.parent.mkdir()
    path.write_bytes(tiny_fp32.read_bytes())
    made = make_card(path, make_tiny(), name='tiny', licence='Apache-2.0', range_m=(0.2, 8.0),
                     assumed_hfov_deg=None, provenance={})  # fmt: skip
    made.save()
    return made


def test_card_has_a_file_for_each_runtime(card, files):
    for precision, path in files.items():
        own = card.path.with_name(path.name)
        own.write_bytes(path.read_bytes())
        card = with_file(card, precision, own, {'form': precision})
    read = ModelCard.load(card.save())
    assert list(read.precisions) == ['fp32', 'int8', 'int8_trt']
    for precision in read.precisions:
        assert read.verify_file(precision).is_file()
        assert list(ModelCard.from_onnx_metadata(read.precisions[precision].path).precisions) == [
            precision]  # fmt: skip
    assert read.provenance['int8_trt'] == {'form': 'int8_trt'}


def test_cards_of_before_are_read_as_before():
    path = Path(__file__).parents[3] / 'models' / 'small.yaml'
    card = ModelCard.load(path)
    assert {'fp32', 'int8'} <= set(card.precisions)
    assert card.verify_file('int8').name == 'small.int8.onnx'
    raw = card.to_dict()
    raw['files']['int4'] = raw['files']['fp32']
    with pytest.raises(CardError, match='expected one of fp32, fp16, int8, int8_trt'):
        ModelCard.from_dict(raw, path)


def write_frames(root: Path, train: int = 8) -> None:
    """Write frames by the writer of the training tests, with pictures of every colour."""
    cv2 = pytest.importorskip('cv2')
    source = Path(__file__).parents[1] / 'training' / 'conftest.py'
    spec = importlib.util.spec_from_file_location('frames_writer', source)
    assert spec is not None
    assert spec.loader is not None
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    rng = np.random.default_rng(4)
    for split, count in (('train', train), ('val', 2)):
        for index in range(count):
            folder = root / split / f'room-{split}'
            writer.write_frame(folder, f'{index:03d}', rng)
            picture = parity_pictures((writer.HEIGHT, writer.WIDTH), 4)[index % 3]
            cv2.imwrite(str(folder / f'{index:03d}.jpg'), picture)
        (root / split / f'room-{split}' / 'scene.json').write_text('{}')


def kept(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize('error', [KeyboardInterrupt, ValueError])
def test_interrupted_command_leaves_file_and_card_as_they_were(
    card, tmp_path, capsys, monkeypatch, error
):
    write_frames(tmp_path / 'frames')
    words = ['quantize', str(card.path), '--data', str(tmp_path / 'frames'), '--frames', '8']
    assert main(words) == 0
    before = kept(card.path.parent)
    measure = quantize._measure

    def stopped(made, precisions, frames):
        if precisions != ('fp32',):
            raise error('stopped')
        return measure(made, precisions, frames)

    monkeypatch.setattr(quantize, '_measure', stopped)
    assert main([*words, '--frames', '9', '--precisions', 'int8,int8_trt']) != 0
    assert kept(card.path.parent) == before
    assert not list(card.path.parent.glob('.quantize-*'))
    assert main(['models', 'verify', str(card.path)]) == 0


def test_an_error_in_a_later_precision_keeps_what_was_done(card, tmp_path, monkeypatch, capsys):
    write_frames(tmp_path / 'frames')
    measure = quantize._measure

    def stopped(made, precisions, frames):
        if precisions == ('int8_trt',):
            raise ValueError('stopped')
        return measure(made, precisions, frames)

    monkeypatch.setattr(quantize, '_measure', stopped)
    assert main(['quantize', str(card.path), '--data', str(tmp_path / 'frames'), '--frames', '8',
                 '--precisions', 'int8,int8_trt']) == 1  # fmt: skip
    assert list(ModelCard.load(card.path).precisions) == ['fp32', 'int8']
    assert not list(card.path.parent.glob('*.int8_trt.onnx'))
    assert main(['models', 'verify', str(card.path)]) == 0


def test_counts_that_cannot_be_are_refused_before_any_file(card, tmp_path, capsys):
    write_frames(tmp_path / 'frames')
    before = kept(card.path.parent)
    words = ['quantize', str(card.path), '--data', str(tmp_path / 'frames'), '--precisions',
             'fp16,int8']  # fmt: skip
    assert main([*words, '--frames', '4']) == 2
    assert '--frames 4: at least 8' in capsys.readouterr().err
    for option in ('--frames', '--val-frames'):
        assert main([*words, option, '0']) == 2
    write_frames(tmp_path / 'few', train=5)
    words[3] = str(tmp_path / 'few')
    assert main(words) == 1
    assert '5 training frames, at least 8 calibrate' in capsys.readouterr().err
    assert kept(card.path.parent) == before


def test_command_measures_what_each_file_costs(card, tmp_path, capsys):
    write_frames(tmp_path / 'frames')
    words = ['quantize', str(card.path), '--data', str(tmp_path / 'frames'), '--frames', '8']
    assert main([*words, '--precisions', 'int8,int8_trt,fp16']) == 0
    printed = capsys.readouterr().out
    read = ModelCard.load(card.path)
    assert list(read.precisions) == ['fp32', 'fp16', 'int8', 'int8_trt']
    for precision, runtime in (('int8', 'onnxruntime'), ('int8_trt', 'as written'),
                               ('fp16', 'as written')):  # fmt: skip
        made = read.provenance[precision]
        name = f'{runtime} {precision}'
        scores, change = made['val_abs_rel'], made['abs_rel_change'][name]
        assert change == pytest.approx(
            scores[name] - scores['onnxruntime fp32'], abs=1e-4)  # fmt: skip
        assert f'{name} {scores[name]:.4f} ({change:+.4f})' in printed
        assert (made['val_frames'], made['calibration_frames']) == (2, 8)
        assert abs(change) < 0.05
    assert main(['models', 'verify', str(card.path)]) == 0
    assert main(['models', 'lint', str(card.path)]) == 0
    capsys.readouterr()
    assert main([*words, '--precisions', 'int8,fp16', '--out', 'x.onnx']) == 2
    assert 'names one file' in capsys.readouterr().err
