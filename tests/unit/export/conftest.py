"""A network of a few layers that exports in a second, and TensorRT-RTX where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip('torch', reason='torch is not installed: no export tests')
torch.set_num_threads(1)

from depth_node.training.networks.base import DepthNetwork  # noqa: E402

SIZE_HW = (32, 48)


class TinyNetwork(DepthNetwork):
    """Six convolutions with a residual sum; log canonical depth, as the bundled network."""

    mean = (123.675, 116.28, 103.53)
    std = (58.395, 57.12, 57.375)
    output_kind = 'canonical_depth'
    canonical_focal_px = 40.0
    depth_range_m = (0.1, 40.0)

    def __init__(self, *, size_hw: tuple[int, int] = SIZE_HW, gain: float = 1.0) -> None:
        super().__init__()
        self.size_hw = self.output_hw = size_hw
        self.gain = gain
        self.stem = torch.nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.body = torch.nn.ModuleList(
            torch.nn.Conv2d(16, 16, 3, padding=1) for _ in range(4)
        )
        self.head = torch.nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        maps = self.stem(batch).relu()
        for conv in self.body:
            maps = maps + conv(maps * self.gain).relu() / self.gain
        maps = torch.nn.functional.interpolate(maps, size=self.size_hw, mode='bilinear')
        return self.head(maps).float().clamp(-2.0, 3.0).exp()


@pytest.fixture(scope='session')
def make_tiny() -> Callable[..., TinyNetwork]:
    """Return a maker of networks whose depth differs from place to place."""

    def make(seed: int = 3, **options: object) -> TinyNetwork:
        torch.manual_seed(seed)
        made = TinyNetwork(**options).eval()
        with torch.no_grad():
            made.head.weight.mul_(6)
        return made

    return make


@pytest.fixture(scope='session')
def tiny_fp32(make_tiny, tmp_path_factory) -> Path:
    """Return an exported FP32 file; not to be changed."""
    pytest.importorskip('onnxscript')
    from depth_node.export.onnx import export_onnx

    path = tmp_path_factory.mktemp('tiny') / 'tiny.onnx'
    export_onnx(make_tiny(), path)
    return path


@pytest.fixture(scope='session')
def rtx_plan() -> Callable[..., int]:
    """Return a function that parses a file, builds it for Ampere and Ada, and tells its size.

    One plan for both: it is refused where one of them cannot run it (test_every_network.py).
    TensorRT-RTX needs no GPU for that. What its parser refuses is a ValueError.
    """
    reason = "tensorrt-rtx-cu13 is not installed: NVIDIA's parser and builder are not run"
    trt = pytest.importorskip('tensorrt_rtx', reason=reason)

    def build(path: Path, profile=None, targets: tuple[str, ...] = ('SM86', 'SM89')) -> int:
        logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
        builder = trt.Builder(logger)
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, logger)
        if not parser.parse(path.read_bytes()):
            raise ValueError('; '.join(
                parser.get_error(i).desc() for i in range(parser.num_errors)))
        config = builder.create_builder_config()
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, target), index)
        if profile is not None:
            sizes = builder.create_optimization_profile()
            sizes.set_shape('image', *((1, height, width, 3) for height, width in profile))
            config.add_optimization_profile(sizes)
        plan = builder.build_serialized_network(network, config)
        return 0 if plan is None else plan.nbytes

    return build
