"""A network with two outputs: the same confidence in torch and in every file and runtime."""

from __future__ import annotations

from dataclasses import replace
import shutil

import cv2
import numpy as np
import pytest

torch = pytest.importorskip('torch')
F = torch.nn.functional
onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

from depth_node.backends import BackendError, open_backend, self_check  # noqa: E402
from depth_node.export.card import embed, file_runner, make_card, with_file  # noqa: E402
from depth_node.export.fuse import fuse_resize  # noqa: E402
from depth_node.export.lint import lint  # noqa: E402
from depth_node.export.onnx import (  # noqa: E402
    CONFIDENCE_TOLERANCE,
    ExportError,
    ImageToDepth,
    check_parity,
    export_onnx,
    parity_pictures,
)
from depth_node.export.quantize import halve_onnx, quantize_onnx  # noqa: E402
from depth_node.export.torch_backend import TorchBackend, card_of  # noqa: E402
from depth_node.export.weights import load_onnx_weights  # noqa: E402
from depth_node.model_card import CardError, ModelCard  # noqa: E402
from depth_node.pipeline import DepthPipeline  # noqa: E402
from depth_node.training.networks.confidence import MEANING, ConfidenceHead  # noqa: E402

SIZE_HW = (32, 48)


@pytest.fixture(scope='module')
def make(make_tiny):
    """Return a maker of the tiny network, with a head or without."""

    class Sure(type(make_tiny())):
        optional_modules = ('confidence_head',)

        def __init__(self, *, confidence=True, size_hw=SIZE_HW):
            super().__init__(size_hw=size_hw)
            self.has_confidence = confidence
            self.confidence_head = ConfidenceHead([16, 16, 16]) if confidence else None

        def predict(self, batch):
            if self.confidence_head is None:
                return (self(batch),)
            head = self.confidence_head
            maps = self.stem(batch).relu()
            # as in the network, behind the tail of depth
            levels = [F.avg_pool2d(maps, 4), F.avg_pool2d(maps, 2), maps]
            return self(batch), head.confidence(head(levels))

    def made(confidence=True, seed=3):
        torch.manual_seed(seed)
        network = Sure(confidence=confidence).eval()
        with torch.no_grad():
            network.head.weight.mul_(2)
            if confidence:
                network.confidence_head.coarse.weight.normal_(0, 0.6)
                network.confidence_head.fine.weight.normal_(0, 0.6)
                network.confidence_head.calibrate(1.3, 0.4)
        return network

    return made


@pytest.fixture(scope='module')
def files(make, tmp_path_factory):
    """Export, and write every file of fewer bits; return the card."""
    folder = tmp_path_factory.mktemp('sure')
    network = make()
    parity = export_onnx(network, folder / 'sure.onnx')
    assert 0 <= parity.confidence_max < 1e-5
    assert parity.max_rel < 1e-4
    card = make_card(folder / 'sure.onnx', network, name='sure', licence='none', range_m=None,
                     assumed_hfov_deg=None, provenance={})  # fmt: skip
    pictures = list(parity_pictures(SIZE_HW, 5)[:-1]) * 2
    for precision in ('int8', 'int8_trt', 'fp16'):
        path = folder / f'sure.{precision}.onnx'
        if precision == 'fp16':
            halve_onnx(folder / 'sure.onnx', path, pictures)
        else:
            quantize_onnx(folder / 'sure.onnx', path, pictures, precision=precision)
        card = with_file(card, precision, path, {})
    card.save()
    return card


def expected(network, picture):
    with torch.inference_mode():
        return [each.numpy()[0, 0] for each in ImageToDepth(network)(
            torch.from_numpy(picture[None]))]  # fmt: skip


def test_card_names_the_output_and_what_it_means(files):
    card = ModelCard.load(files.path)
    assert card.output.confidence == 'confidence'
    assert card.output.confidence_meaning == MEANING
    assert 0 < card.check.confidence_mean < 1
    assert card == replace(files, path=card.path)
    assert ModelCard.from_onnx_metadata(
        card.precisions['int8'].path).output == card.output  # fmt: skip


@pytest.mark.parametrize('name', ['onnxruntime', 'openvino'])
@pytest.mark.parametrize('precision', ['fp32', 'int8'])
def test_both_runtimes_give_torchs_confidence(make, files, name, precision):
    pytest.importorskip(name)
    network, picture = make(), parity_pictures(SIZE_HW)[1]
    depth, confidence = expected(network, picture)
    assert np.ptp(confidence) > 0.3, 'a constant would prove nothing'
    with open_backend(files, name, precision) as backend:
        found = backend.run(picture[None])
    assert list(found) == ['depth', 'confidence']
    error = np.abs(found['confidence'][0, 0] - confidence)
    share = np.abs(found['depth'][0, 0] / depth - 1)
    if precision == 'fp32':
        assert max(error.max(), share.max()) < 1e-4
    else:
        assert 1e-5 < error.mean() < 0.02
        assert 1e-5 < share.mean() < 0.05


@pytest.mark.parametrize('precision', ['int8_trt', 'fp16'])
def test_files_for_tensorrt_are_legal_and_close(make, files, precision):
    path = files.precisions[precision].path
    assert lint(path) == ()
    picture = parity_pictures(SIZE_HW)[1]
    depth, confidence = expected(make(), picture)
    allowed = {'int8_trt': 0.05, 'fp16': 0.002}[precision]
    for name, wanted in (('depth', depth), ('confidence', confidence)):
        found = file_runner(path, as_written=True, output=name)(picture)
        assert 1e-6 < np.abs(found - wanted).mean() < allowed * wanted.mean()


def test_last_convolution_of_depth_stays_in_float_and_tails_in_fp32(files):
    model = onnx.load(files.precisions['int8'].path)
    makers = {o: n for n in model.graph.node for o in n.output}
    convs = [node for node in model.graph.node if node.op_type == 'Conv']
    in_float = [n for n in convs if n.input[1] not in makers]
    assert (len(convs), len(in_float)) == (12, 4)  # the first three, and the last of depth
    half = onnx.shape_inference.infer_shapes(onnx.load(files.precisions['fp16'].path))
    types = {v.name: v.type.tensor_type.elem_type for v in half.graph.value_info}
    for operator in ('Exp', 'Clip', 'Sub'):
        kinds = {types.get(node.input[0], 1) for node in half.graph.node
                 if node.op_type == operator and node.input[0] in types}  # fmt: skip
        assert kinds <= {onnx.TensorProto.FLOAT}, operator
    convs = {types.get(n.output[0]) for n in half.graph.node if n.op_type == 'Conv'}
    assert convs == {onnx.TensorProto.FLOAT16}


def test_fp16_from_the_network_is_close_too(make, tmp_path):
    parity = export_onnx(make(), tmp_path / 'half.onnx', precision='fp16')
    assert 1e-6 < parity.confidence_max < CONFIDENCE_TOLERANCE['fp16']


def test_another_confidence_is_not_shipped(make, files, tmp_path):
    network = make()
    network.confidence_head.calibrate(1.3, 0.5)
    with pytest.raises(ExportError, match='confidence differs from torch by up to'):
        check_parity(ImageToDepth(network), files.precisions['fp32'].path)


def test_self_check_finds_a_confidence_of_another_mean_or_range(files, tmp_path):
    sound = files.check.confidence_mean
    liar = replace(files, check=replace(files.check, confidence_mean=sound + 0.01))
    copy = tmp_path / 'copy.onnx'
    shutil.copyfile(files.precisions['fp32'].path, copy)
    liar = replace(liar, precisions={'fp32': embed(liar, 'fp32', copy)})
    with pytest.raises(BackendError, match='confidence is'):
        open_backend(liar, 'onnxruntime', 'fp32')
    with open_backend(files, 'onnxruntime', 'fp32') as backend:
        assert self_check(backend).ok
        honest = backend.run
        backend.run = lambda batch: {k: v + (k == 'confidence') for k, v in honest(batch).items()}
        assert 'expected 0 to 1' in self_check(backend).detail
        backend.run = lambda batch: {
            k: v * (np.nan if k == 'confidence' else 1) for k, v in honest(batch).items()}
        assert not self_check(backend).ok


def test_torch_backend_and_pipeline_give_it_at_the_pictures_size(make, tmp_path):
    network, weights = make(), tmp_path / 'x.ckpt'
    weights.write_bytes(b'weights')
    for layout in ('uint8_nhwc', 'float32_nchw'):
        card = card_of(network, weights, layout)
        with TorchBackend(network, card, device='cpu', threads=1) as backend:
            picture = parity_pictures((75, 100))[1]
            frame = DepthPipeline(backend).run(picture)
            assert frame.confidence.shape == (75, 100)
            small = parity_pictures(SIZE_HW)[1]
            near = DepthPipeline(backend).run(small).confidence
            wanted = cv2.resize(expected(network, small)[1], SIZE_HW[::-1])
            np.testing.assert_allclose(near, wanted, atol=1e-4)


def test_resizing_in_the_graph_keeps_it(files, tmp_path):
    card = replace(files, precisions={'fp32': files.precisions['fp32']})
    fused, _ = fuse_resize(card, (60, 80), tmp_path / 'b.onnx')
    assert fused.check.confidence_mean == pytest.approx(card.check.confidence_mean, abs=0.05)
    assert fused.output.confidence_meaning == MEANING
    picture = parity_pictures((60, 80))[1]
    frames = []
    for each in (card, fused):
        with open_backend(each, 'onnxruntime', 'fp32') as backend:
            frames.append(DepthPipeline(backend).run(picture).confidence)
    np.testing.assert_allclose(frames[1], frames[0], atol=5e-3)


@pytest.fixture(scope='module')
def without(make, tmp_path_factory):
    path = tmp_path_factory.mktemp('without') / 'x.onnx'
    assert export_onnx(make(confidence=False), path).confidence_max is None
    return path


@pytest.mark.parametrize(('there', 'wanted'), [(True, True), (True, False), (False, True)])
def test_weights_of_a_file_fit_a_network_with_or_without_the_head(
        make, files, without, there, wanted):
    source, path = make(confidence=there), files.precisions['fp32'].path if there else without
    network = make(confidence=wanted, seed=9)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    pictures = torch.from_numpy(parity_pictures(SIZE_HW).transpose(0, 3, 1, 2).copy())
    assert load_onnx_weights(path, network, pictures).max_rel < 1e-4
    for name, value in network.state_dict().items():
        kept = name.startswith('confidence_head.') and not there
        torch.testing.assert_close(value, (before if kept else source.state_dict())[name])


def test_meaning_without_an_output_is_refused(files, tmp_path):
    raw = files.to_dict()
    del raw['output']['confidence']
    with pytest.raises(CardError, match=r'confidence_meaning goes with output\.confidence'):
        ModelCard.from_dict(raw, tmp_path / 'x.yaml')
    raw = files.to_dict()
    raw['check']['confidence_mean'] = 1.5
    with pytest.raises(CardError, match=r'confidence_mean: found 1.5'):
        ModelCard.from_dict(raw, tmp_path / 'x.yaml')
