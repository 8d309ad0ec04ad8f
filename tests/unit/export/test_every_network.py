"""Every network of the project as its users get it: equal to torch in both runtimes, at any size,
with a card that opens; and as TensorRT gets it: lint, the real parser and builder.

Here each network is exported once, small, and that graph is taken as it is and with free sizes;
`make sweep` exports every one in both precisions and at its own size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
import shutil

import numpy as np
import pytest

torch = pytest.importorskip('torch')
onnx = pytest.importorskip('onnx')
ort = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

from depth_node.backends import open_backend  # noqa: E402
from depth_node.export.card import make_card  # noqa: E402
from depth_node.export.dynamic import (  # noqa: E402
    NotDynamicError,
    Sizes,
    loosen,
    size_step,
    sizes_of,
)
from depth_node.export.lint import lint  # noqa: E402
from depth_node.export.onnx import (  # noqa: E402
    ImageToDepth,
    export_onnx,
    parity_batches,
    parity_pictures,
)
from depth_node.model_card import ModelCard  # noqa: E402
from depth_node.training.networks import NETWORKS, build_network, untrained  # noqa: E402

# The step of their sizes; the three others have fully connected layers.
STEPS = {
    'small': 32, 'fcrn': 32, 'densedepth': 32, 'diode_unet': 16, 'hourglass': 16, 'redweb': 32,
    'semi_supervised': 32, 'sfmlearner': 128, 'geonet': 32, 'ddvo': 128, 'monodepth2': 32,
    'fastdepth': 32,
}  # fmt: skip
FIXED = {'eigen14': (64, 80), 'eigen_fergus15': (64, 80), 'two_streamed': (64, 96)}
# Fewer layers or channels where a network has an option for it: the same kinds of layers.
SMALLER = {
    'densedepth': {'encoder': 'densenet121', 'half_width': True}, 'two_streamed': {'units': 64},
    'redweb': {'widths': (32, 32, 32)},
}  # fmt: skip
SIZES_IN_OPENVINO = ('small', 'fcrn', 'monodepth2', 'sfmlearner')  # of each kind of decoder


def with_statistics(network):
    """Let the norms know what flows through them: without, DenseNet grows beyond fp16."""
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    pictures = torch.from_numpy(parity_pictures(network.size_hw)).permute(0, 3, 1, 2)
    network.train()
    with torch.no_grad():
        network(network.normalise(pictures))
    for norm in norms:
        norm.momentum = 0.1
    return network.eval()


def lively(network):
    """Let the last layer say something about the picture.

    Before they are trained most networks answer every picture alike, and being equal to that
    proves nothing. Random weights also round worse than trained ones, hence the tolerance.
    """
    torch.manual_seed(4)
    network.parity_tolerance_rel = 1e-3
    pictures = network.eval().normalise(
        torch.from_numpy(parity_pictures(network.size_hw)).permute(0, 3, 1, 2))
    with torch.no_grad():
        seen = []
        kinds = (torch.nn.Conv2d, torch.nn.Linear)
        handles = [m.register_forward_hook(lambda m, _, out: seen.append((m, out)))
                   for m in network.modules() if isinstance(m, kinds)]  # fmt: skip
        network(pictures)
        for handle in handles:
            handle.remove()
        last, _ = seen[-1]
        last.weight.add_(torch.randn_like(last.weight) * 1e-3)
        handle = last.register_forward_hook(lambda m, _, out: seen.append((m, out)))
        network(pictures)
        handle.remove()
        last.weight.mul_(0.3 / seen[-1][1].std())
    return network


def depth_of(path: Path, picture: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    return session.run(['depth'], {'image': picture[None]})[0]


@dataclass
class Case:
    name: str
    network: torch.nn.Module
    static: Path
    dynamic: Path | None

    @property
    def step(self) -> int:
        return STEPS[self.name]

    @cached_property
    def card(self) -> ModelCard:
        """The card of its own size, saved and loaded."""
        make_card(self.static, self.network, name=self.name, licence='none', range_m=None,
                  assumed_hfov_deg=None, provenance={}).save()
        return ModelCard.load(self.static)

    def sizes(self) -> list[tuple[int, int]]:
        """Its own size, and two of another aspect where it has them; H != W in all."""
        if self.dynamic is None:
            return [self.network.size_hw]
        return [(a * self.step, b * self.step) for a, b in ((2, 3), (3, 2), (2, 5))]


# The depth network of ddvo is that of sfmlearner.
EXPORTED = [pytest.param(name, marks=[pytest.mark.sweep] if name == 'ddvo' else [])
            for name in NETWORKS]  # fmt: skip


@pytest.fixture(scope='module', params=EXPORTED)
def case(request, tmp_path_factory):
    """Export a network, and make a copy of the graph whose sizes are free."""
    name = request.param
    size_hw = FIXED.get(name) or (2 * STEPS[name], 3 * STEPS[name])
    torch.manual_seed(3)
    network = build_network(name, size_hw=size_hw, **untrained(name), **SMALLER.get(name, {}))
    network = lively(with_statistics(network) if name == 'densedepth' else network)
    folder = tmp_path_factory.mktemp(name)
    static, dynamic = folder / 'static.onnx', None
    export_onnx(network, static)
    if name not in FIXED:
        model = onnx.load(static)
        loosen(model)
        onnx.save(model, dynamic := folder / 'dynamic.onnx')
    yield Case(name, network, static, dynamic)
    shutil.rmtree(folder)  # some are large


def test_lint_finds_nothing(case):
    assert lint(case.dynamic or case.static) == ()
    if case.dynamic:
        operators = {node.op_type for node in onnx.load(case.dynamic).graph.node}
        assert not operators & {'Shape', 'Reshape'}  # nothing asks for a size at run time


def test_plan_of_one_size_is_built_for_ampere_and_ada(case, rtx_plan):
    assert rtx_plan(case.static) > 0


def test_plan_of_many_sizes_is_built_for_ampere_and_ada(case, rtx_plan):
    if case.dynamic is None:
        with pytest.raises(NotDynamicError, match='it has fully connected layers'):
            size_step(case.network)
        return
    step = case.step
    assert size_step(case.network) == step
    profile = (2 * step, 2 * step), (2 * step, 3 * step), (4 * step, 6 * step)
    assert rtx_plan(case.dynamic, profile) > 0


def test_map_is_torchs_at_every_size(case):
    openvino = pytest.importorskip('openvino')
    model, path = ImageToDepth(case.network).eval(), case.dynamic or case.static
    of_any_size = case.name in SIZES_IN_OPENVINO
    compiled = openvino.Core().compile_model(
        str(path if of_any_size else case.static), 'CPU',
        {'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': 1})
    for size_hw in case.sizes():
        picture = parity_pictures(size_hw)[2]
        with torch.inference_mode():
            expected = model(torch.from_numpy(picture[None])).numpy()
        assert expected.std() / expected.mean() > 5e-3, 'a constant would prove nothing'
        found = depth_of(path, picture)
        floor = 1e-4 * expected.mean()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=floor)
        if of_any_size or size_hw == case.network.size_hw:
            np.testing.assert_allclose(
                compiled({'image': picture[None]})['depth'], expected, rtol=1e-3, atol=floor)


@pytest.mark.parametrize('runtime', ['onnxruntime', 'openvino'])
def test_card_opens(case, runtime):
    """A backend opens where its depth of a made picture is what the card says."""
    pytest.importorskip(runtime)
    with open_backend(case.card, runtime, 'fp32') as backend:
        assert backend.name == runtime


def test_plan_for_two_is_refused_where_one_cannot_run_it(rtx_plan, tmp_path):
    """fp8 is there from Ada on: a plan for both generations is really made for both."""
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).normal(size=(16, 16, 3, 3)).astype(np.float32)

    def pair(name):
        return [helper.make_node('QuantizeLinear', [name, 'scale', 'zero'], [f'{name}.q']),
                helper.make_node('DequantizeLinear', [f'{name}.q', 'scale', 'zero'],
                                 [f'{name}.d'])]  # fmt: skip

    shape = [1, 16, 32, 48]
    model = helper.make_model(helper.make_graph(
        [*pair('x'), *pair('w'),
         helper.make_node('Conv', ['x.d', 'w.d'], ['y'], pads=[1, 1, 1, 1])], 'fp8',
        [helper.make_tensor_value_info('x', TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info('y', TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weights, 'w'), numpy_helper.from_array(np.float32(0.02), 'scale'),
         helper.make_tensor('zero', TensorProto.FLOAT8E4M3FN, [], [0.0])]),
        opset_imports=[helper.make_opsetid('', 19)], ir_version=9)  # fmt: skip
    path = tmp_path / 'fp8.onnx'
    onnx.save(model, path)
    assert rtx_plan(path, targets=('SM89',)) > 0
    assert rtx_plan(path) == 0


# --- make sweep: at the network's own size and options, both precisions, by the exporter's steps


@pytest.fixture(scope='module')
def full_networks():
    made = {}

    def network(name):
        if name not in made:
            made.clear()  # one at a time: some are large
            torch.manual_seed(3)
            made[name] = build_network(name, **untrained(name))
            if name == 'densedepth':
                with_statistics(made[name])
        return made[name]

    return network


@pytest.mark.sweep
@pytest.mark.parametrize('precision', ['fp32', 'fp16'])
@pytest.mark.parametrize('name', NETWORKS)
def test_full_size_passes_lint_and_builder(full_networks, name, precision, rtx_plan, tmp_path):
    network, path = full_networks(name), tmp_path / 'full.onnx'
    export_onnx(network, path, precision=precision)
    assert lint(path, batches=parity_batches(network.size_hw)) == ()
    assert rtx_plan(path) > 0


@pytest.mark.sweep
@pytest.mark.parametrize('precision', ['fp32', 'fp16'])
@pytest.mark.parametrize('name', STEPS)
def test_full_range_of_sizes_passes_lint_and_builder(
    full_networks, name, precision, rtx_plan, tmp_path
):
    network, path = full_networks(name), tmp_path / 'any.onnx'
    sizes: Sizes = sizes_of(network.eval())
    export_onnx(network, path, precision=precision, sizes=sizes)
    assert lint(path, batches=parity_batches(sizes.nominal_hw)) == ()
    assert rtx_plan(path, (sizes.min_hw, sizes.nominal_hw, sizes.max_hw)) > 0
