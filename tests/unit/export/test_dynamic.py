"""One file for many sizes: the command, the card, every backend, and an engine from the card."""

from __future__ import annotations

import argparse

import numpy as np
import pytest

torch = pytest.importorskip('torch')
onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxscript')
pytest.importorskip('onnxruntime')

from depth_node.backends import BackendError, open_backend, self_check  # noqa: E402
from depth_node.backends.tensorrt_build import profile_of  # noqa: E402
from depth_node.camera import Camera  # noqa: E402
from depth_node.cli import main  # noqa: E402
from depth_node.export import onnx as export_module  # noqa: E402
from depth_node.export.dynamic import NotDynamicError, Sizes, loosen, sizes_of  # noqa: E402
from depth_node.export.lint import lint  # noqa: E402
from depth_node.export.onnx import (  # noqa: E402
    ExportError,
    ImageToDepth,
    export_onnx,
    parity_batches,
    parity_pictures,
)
from depth_node.filters import FilterSettings  # noqa: E402
from depth_node.model_card import ModelCard  # noqa: E402
from depth_node.pipeline import DepthPipeline  # noqa: E402
from depth_node.training.networks.base import DepthNetwork  # noqa: E402


class UNet(DepthNetwork):
    """Two levels, a global mean and a resize to a size: what makes graphs fixed."""

    output_kind = 'canonical_depth'
    canonical_focal_px = 40.0
    depth_range_m = (0.1, 40.0)

    def __init__(self, size_hw=(40, 56)):
        super().__init__()
        self.size_hw = self.output_hw = size_hw
        self.down = torch.nn.ModuleList([
            torch.nn.Conv2d(3, 16, 3, stride=2, padding=1),
            *(torch.nn.Conv2d(16, 16, 3, stride=2, padding=1) for _ in range(2))])  # fmt: skip
        self.head = torch.nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, batch):
        maps = batch
        levels = [maps := conv(maps).relu() for conv in self.down]
        maps = maps + torch.nn.functional.avg_pool2d(maps, maps.shape[-2:])
        for level in (levels[1], levels[0], batch):
            maps = torch.nn.functional.interpolate(
                maps, size=level.shape[-2:], mode='bilinear', align_corners=False)
        return self.head(maps).float().clamp(-2.0, 3.0).exp()


@pytest.fixture(scope='module')
def network():
    torch.manual_seed(5)
    made = UNet().eval()
    with torch.no_grad():
        made.head.weight.mul_(30)
    return made


@pytest.fixture(scope='module')
def card(network, tmp_path_factory) -> ModelCard:
    """Return what the command makes of a checkpoint of that network, in both precisions."""
    from depth_node.cli.export import write_files

    folder = tmp_path_factory.mktemp('dynamic')
    args = argparse.Namespace(
        out=folder / 'any.onnx', name=None, licence='Apache-2.0', range_m=None, assumed_hfov=None,
        fp16=True, dynamic=True, min_size=None, max_size=(72, 96))  # fmt: skip
    return ModelCard.load(write_files(args, network, {}).path)


def expected_of(network, picture):
    with torch.inference_mode():
        return ImageToDepth(network).eval()(torch.from_numpy(picture[None])).numpy()[0, 0]


def test_card_has_the_step_and_the_limits(card):
    spec = card.input
    assert (spec.size_hw, spec.multiple_of, spec.resize) == (None, 8, 'keep_aspect')
    assert (spec.min_hw, spec.max_hw) == ((16, 24), (72, 96))
    assert card.check.size_hw == (40, 56)
    assert list(card.precisions) == ['fp32', 'fp16']
    embedded = ModelCard.from_onnx_metadata(card.precisions['fp32'].path)
    assert embedded.input == spec


def test_graph_has_free_sizes_and_asks_for_none(card):
    for file in card.precisions.values():
        model = onnx.load(file.path)
        (image,), (depth,) = model.graph.input, model.graph.output
        sides = [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim]
        assert sides == [1, 'height', 'width', 3]
        sides = [d.dim_param or d.dim_value for d in depth.type.tensor_type.shape.dim]
        assert sides == [1, 1, 'height', 'width']
        operators = {node.op_type for node in model.graph.node}
        assert 'GlobalAveragePool' in operators
        assert not operators & {'Shape', 'AveragePool'}
        assert lint(file.path, batches=parity_batches((40, 56))) == ()


@pytest.mark.parametrize('name', ['onnxruntime', 'openvino'])
def test_backends_run_every_size_of_the_card(card, network, name):
    pytest.importorskip(name)
    with open_backend(card, name, 'fp32', threads=1) as backend:
        assert self_check(backend).ok
        for size_hw in ((16, 24), (40, 56), (72, 32), (24, 96)):
            picture = parity_pictures(size_hw)[2]
            expected = expected_of(network, picture)
            assert expected.std() / expected.mean() > 0.05
            found = backend.run(picture[None])['depth'][0, 0]
            np.testing.assert_allclose(found, expected, rtol=1e-4)
        with pytest.raises(BackendError, match='multiples of 8'):
            backend.run(np.zeros((1, 20, 24, 3), np.uint8))


def test_pipeline_takes_the_cameras_aspect_and_its_focal_length_there(card, network):
    """Canonical depth is for a focal length in pixels of the network, whatever its size is."""
    rgb = parity_pictures((96, 192))[0]
    camera = Camera((96, 192), 150.0, 155.0, 95.0, 47.0)
    with open_backend(card, 'onnxruntime', 'fp32', threads=1) as backend:
        open_filters = FilterSettings(near_m=0.0, far_m=1e6, flying_pixel_angle_deg=0.0)
        pipeline = DepthPipeline(backend, filters=open_filters)
        depth = pipeline.run(rgb, camera, 0.0).depth
    import cv2

    small = cv2.resize(rgb, (96, 48), interpolation=cv2.INTER_AREA)  # the largest, 72x96, bounds
    raw = expected_of(network, small)
    focal = (150.0 * 96 / 192 * 155.0 * 48 / 96) ** 0.5
    expected = cv2.resize(raw * focal / 40.0, (192, 96))
    np.testing.assert_allclose(depth, expected, rtol=1e-3)


def test_engine_is_built_from_the_cards_limits(card, rtx_plan):
    low, best, high = profile_of(card.input)
    assert (low, high) == ((16, 24), (72, 96))
    for precision in ('fp32', 'fp16'):
        assert rtx_plan(card.precisions[precision].path, (low, best, high)) > 0
    assert rtx_plan(card.precisions['fp32'].path) == 0  # without them TensorRT builds nothing


def test_half_precision_is_that_of_every_size(card, network):
    from depth_node.export.card import run_file

    for size_hw in ((16, 40), (64, 32)):
        picture = parity_pictures(size_hw)[1]
        error = np.abs(run_file(card.precisions['fp16'].path, picture)
                       / expected_of(network, picture) - 1)  # fmt: skip
        assert 1e-6 < error.mean() < 0.005


def test_limits_that_fit_no_size_are_refused(network):
    assert sizes_of(network) == Sizes(8, (40, 56), (16, 24), (80, 112))
    assert sizes_of(network, (64, 64)).nominal_hw == (64, 64)
    with pytest.raises(NotDynamicError, match='sides of 16 and more in steps of 8'):
        sizes_of(network, (36, 48))
    with pytest.raises(NotDynamicError, match='smallest size 8x16'):
        sizes_of(network, (16, 8))
    with pytest.raises(NotDynamicError, match='no size lies between'):
        sizes_of(network, (48, 48), (40, 96))


class Table(UNet):
    """Adds a learned picture, as networks with position embeddings do."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(1, 16, 5, 7))

    def forward(self, batch):
        maps = self.down[2](self.down[1](self.down[0](batch)))
        maps = maps + torch.nn.functional.interpolate(
            self.table, size=maps.shape[-2:], mode='bilinear', align_corners=False)
        return self.head(maps).exp()


def test_network_with_a_table_of_fixed_size_is_refused(tmp_path):
    """Each map grows as the picture does, and still the graph holds for one size."""
    network = Table().eval()
    path = tmp_path / 'table.onnx'
    with pytest.raises(ExportError, match='the graph does not run'):
        export_onnx(network, path, sizes=sizes_of(network))
    assert not path.exists()


def test_graph_that_is_not_torchs_at_another_size_is_removed(network, tmp_path, monkeypatch):
    def careless(model):
        loosen(model)
        for item in model.graph.initializer:
            if item.name.endswith('.factors'):
                item.CopyFrom(onnx.numpy_helper.from_array(
                    np.float32([1, 1, 2, 1.9]), item.name))  # fmt: skip

    monkeypatch.setattr(export_module, 'loosen', careless)
    path = tmp_path / 'x.onnx'
    with pytest.raises(ExportError, match=r'does not run|map of shape'):
        export_onnx(network, path, sizes=sizes_of(network))
    assert not path.exists()


def test_words_that_do_not_go_together(tmp_path, capsys):
    out = ['--out', str(tmp_path / 'x.onnx')]
    assert main(['export', 'run.ckpt', *out, '--max-size', '64x64']) == 2
    assert 'go with --dynamic' in capsys.readouterr().err
    assert main(['export', '--hf', 'a/b', '--licence', 'MIT', *out, '--dynamic']) == 2
    assert 'position embeddings' in capsys.readouterr().err


def test_int8_files_keep_the_sizes_free(card, network, tmp_path, rtx_plan):
    from depth_node.export.card import run_file
    from depth_node.export.quantize import quantize_onnx

    pictures = list(parity_pictures((40, 56), 5)[:-1]) * 2
    for precision in ('int8', 'int8_trt'):
        path = tmp_path / f'{precision}.onnx'
        quantize_onnx(card.precisions['fp32'].path, path, pictures, precision=precision,
                      float_nodes=(), spec=card.input)  # fmt: skip
        for size_hw in ((16, 40), (64, 32)):
            picture = parity_pictures(size_hw)[1]
            expected = expected_of(network, picture)
            found = run_file(path, picture, as_written=True, card=card)
            assert found.shape == expected.shape
            assert 0 < np.abs(found / expected - 1).mean() < 0.3  # every layer in 8 bits
    assert rtx_plan(tmp_path / 'int8_trt.onnx', profile_of(card.input)) > 0
