"""Networks of other tools: a bare ONNX gets a card, keeps its conventions, and gets fewer bits."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
cv2 = pytest.importorskip('cv2')

from depth_node.backends import open_backend  # noqa: E402
from depth_node.camera import Camera  # noqa: E402
from depth_node.cli import main  # noqa: E402
from depth_node.filters import FilterSettings  # noqa: E402
from depth_node.model_card import ModelCard  # noqa: E402
from depth_node.pipeline import DepthPipeline  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

SIZE_HW = (24, 40)
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
NORMALISED = ['--mean', *map(str, MEAN), '--std', *map(str, STD)]
UNFILTERED = FilterSettings(near_m=0.0, far_m=1e6, flying_pixel_angle_deg=0.0)


def write_bare(path: Path, *, sky: bool, shape=(1, 3, *SIZE_HW)) -> None:
    """Write a network of ImageNet's normalisation: red / 255 + 1, and blue above 128 is sky."""
    def pick(channel, gain, offset, name):
        """A 1x1 convolution that undoes the normalisation of one channel."""
        weights = np.zeros((1, 3, 1, 1), np.float32)
        weights[0, channel] = gain * STD[channel]
        bias = np.array([gain * MEAN[channel] + offset], np.float32)
        return [numpy_helper.from_array(weights, f'{name}.w'),
                numpy_helper.from_array(bias, f'{name}.b')]  # fmt: skip

    constants = [*pick(0, 1 / 255, 1.0, 'd'), *pick(2, 0.5, -64.0, 's')]
    nodes = [helper.make_node('Conv', ['pixel_values', 'd.w', 'd.b'], ['predicted_depth'])]
    outputs = ['predicted_depth']
    if sky:
        nodes += [helper.make_node('Conv', ['pixel_values', 's.w', 's.b'], ['logit']),
                  helper.make_node('Sigmoid', ['logit'], ['sky'])]  # fmt: skip
        outputs.append('sky')
    result = (1, 1, *shape[2:])
    onnx.save(helper.make_model(helper.make_graph(
        nodes, 'bare', [helper.make_tensor_value_info('pixel_values', TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, result) for name in outputs],
        constants if sky else constants[:2]),
        opset_imports=[helper.make_opsetid('', 17)], ir_version=8), path)  # fmt: skip


def picture_of(red: np.ndarray, blue: np.ndarray, size_hw) -> np.ndarray:
    """Blocks of colour that no resize by whole blocks changes."""
    rgb = np.zeros((*red.shape, 3), np.uint8)
    rgb[..., 0], rgb[..., 2] = red, blue
    return np.kron(rgb, np.ones((size_hw[0] // red.shape[0], size_hw[1] // red.shape[1], 1),
                                np.uint8))  # fmt: skip


def inner(blocks: np.ndarray, size_hw) -> np.ndarray:
    """Return where a picture of blocks is a block's middle, away from what bilinear mixes."""
    high, wide = size_hw[0] // blocks.shape[0], size_hw[1] // blocks.shape[1]
    middle = np.zeros(size_hw, bool)
    for v in range(blocks.shape[0]):
        for u in range(blocks.shape[1]):
            middle[v * high + high // 2, u * wide + wide // 2] = True
    return middle


def test_depth_anything_3_metric_is_its_output_times_focal_length_by_300(tmp_path, capsys):
    """metres = output * f / 300, f at the size that the network sees; sky above one half."""
    path = tmp_path / 'da3.onnx'
    write_bare(path, sky=True)
    assert main(['models', 'add', str(path), '--kind', 'canonical_depth', '--canonical-focal',
                 '300', '--range', '0.01', '1000', '--licence', 'Apache-2.0', '--output',
                 'predicted_depth', '--sky', 'sky', *NORMALISED]) == 0  # fmt: skip
    capsys.readouterr()
    rng = np.random.default_rng(3)
    with open_backend(ModelCard.load(path), 'onnxruntime', 'fp32', threads=1) as backend:
        pipeline = DepthPipeline(backend, filters=UNFILTERED)
        for scale, f in ((2, 41.0), (4, 700.0), (1, 33.3)):  # of the camera to the network
            size_hw = SIZE_HW[0] * scale, SIZE_HW[1] * scale
            camera = Camera(size_hw, f, 1.01 * f, size_hw[1] / 2 + 1, size_hw[0] / 2 - 2)
            red = rng.integers(0, 256, (3, 5))
            blue = np.where(rng.random((3, 5)) < 0.4, 250, 20)
            depth = pipeline.run(picture_of(red, blue, size_hw), camera, 0.0).depth
            middle = inner(red, size_hw)
            focal = (camera.fx + camera.fy) / 2 / scale  # as Depth Anything 3 takes it
            expected = np.where(blue > 128, np.inf, (red / 255 + 1) * focal / 300)
            np.testing.assert_allclose(depth[middle], expected.ravel(), rtol=1e-4)


def test_metric3d_is_its_output_times_focal_length_by_1000_of_the_padded_picture(
    tmp_path, capsys
):
    """Its pictures keep their aspect and are padded: f shrinks as the picture inside does."""
    path = tmp_path / 'metric3d.onnx'
    write_bare(path, sky=False)
    assert main(['models', 'add', str(path), '--kind', 'canonical_depth', '--canonical-focal',
                 '1000', '--range', '0.001', '300', '--licence', 'BSD-2-Clause', '--resize',
                 'pad', *NORMALISED]) == 0  # fmt: skip
    capsys.readouterr()
    rng = np.random.default_rng(4)
    with open_backend(ModelCard.load(path), 'onnxruntime', 'fp32', threads=1) as backend:
        pipeline = DepthPipeline(backend, filters=UNFILTERED)
        for size_hw, share in (((48, 64), 0.5), ((24, 96), 40 / 96), ((24, 40), 1.0)):
            camera = Camera(size_hw, 500.0, 505.0, size_hw[1] / 2, size_hw[0] / 2)
            red = np.full((2, 2), rng.integers(20, 256))
            picture = picture_of(red, np.zeros((2, 2)), size_hw)
            depth = pipeline.run(picture, camera, 0.0).depth
            focal = (camera.fx + camera.fy) / 2 * share
            middle = depth[4:-4, 4:-4]
            np.testing.assert_allclose(middle, (red[0, 0] / 255 + 1) * focal / 1000, rtol=1e-4)


@pytest.fixture
def frames(tmp_path) -> Path:
    """A data folder as of the training tests."""
    from depth_node.export.onnx import parity_pictures

    source = Path(__file__).parents[1] / 'training' / 'conftest.py'
    spec = importlib.util.spec_from_file_location('frames_writer', source)
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    rng = np.random.default_rng(4)
    root = tmp_path / 'frames'
    for split, count in (('train', 8), ('val', 2)):
        folder = root / split / f'room-{split}'
        for index in range(count):
            writer.write_frame(folder, f'{index:03d}', rng)
            picture = parity_pictures((writer.HEIGHT, writer.WIDTH), 4)[index % 3]
            cv2.imwrite(str(folder / f'{index:03d}.jpg'), picture)
        (folder / 'scene.json').write_text('{}')
    return root


def write_convolutions(path: Path, size_hw) -> None:
    """A network of float32 pictures as PyTorch exports them: six convolutions, a map of 1xhxw."""
    rng = np.random.default_rng(0)
    nodes, constants, last = [], [], 'pixel_values'
    for index, (c_in, c_out) in enumerate(((3, 8), (8, 8), (8, 8), (8, 8), (8, 8), (8, 1))):
        weights = rng.normal(size=(c_out, c_in, 3, 3)) * (2 / (9 * c_in)) ** 0.5
        constants += [numpy_helper.from_array(weights.astype(np.float32), f'w{index}'),
                      numpy_helper.from_array(np.full(c_out, 0.1, np.float32), f'b{index}')]
        nodes += [helper.make_node('Conv', [last, f'w{index}', f'b{index}'], [f'c{index}'],
                                   pads=[1, 1, 1, 1], name=f'conv{index}'),
                  helper.make_node('Relu', [f'c{index}'], [f'r{index}'])]  # fmt: skip
        last = f'r{index}'
    constants += [numpy_helper.from_array(np.float32(2.0), 'two'),
                  numpy_helper.from_array(np.array([1], np.int64), 'axis')]  # fmt: skip
    nodes += [helper.make_node('Add', [last, 'two'], ['sum']),
              helper.make_node('Squeeze', ['sum', 'axis'], ['predicted_depth'])]  # fmt: skip
    onnx.save(helper.make_model(helper.make_graph(
        nodes, 'net',
        [helper.make_tensor_value_info('pixel_values', TensorProto.FLOAT, [1, 3, *size_hw])],
        [helper.make_tensor_value_info('predicted_depth', TensorProto.FLOAT, [1, *size_hw])],
        constants), opset_imports=[helper.make_opsetid('', 17)], ir_version=8), path)  # fmt: skip


def test_bare_network_gets_files_of_fewer_bits_that_tensorrt_builds(
    tmp_path, frames, capsys, rtx_plan
):
    pytest.importorskip('torch')
    path = tmp_path / 'net.onnx'
    write_convolutions(path, (48, 64))
    assert main(['models', 'add', str(path), '--kind', 'depth', '--range', '0.1', '50',
                 '--licence', 'MIT', *NORMALISED]) == 0  # fmt: skip
    assert main(['quantize', str(path.with_suffix('.yaml')), '--data', str(frames), '--frames',
                 '8', '--precisions', 'fp16,int8,int8_trt']) == 0  # fmt: skip
    printed = capsys.readouterr().out
    card = ModelCard.load(path.with_suffix('.yaml'))
    assert list(card.precisions) == ['fp32', 'fp16', 'int8', 'int8_trt']
    assert 'AbsRel on 2 validation frames' in printed
    for precision in ('fp16', 'int8_trt'):
        file = card.verify_file(precision)
        made = card.provenance[precision]['abs_rel_change'][f'as written {precision}']
        assert abs(made) < 0.05
        assert rtx_plan(file) > 0
    (image,) = onnx.load(card.verify_file('fp16')).graph.input
    assert image.type.tensor_type.elem_type == TensorProto.FLOAT  # float32 outside
    assert TensorProto.FLOAT16 in {
        item.data_type for item in onnx.load(card.verify_file('fp16')).graph.initializer}
    assert main(['models', 'verify', str(path.with_suffix('.yaml'))]) == 0
