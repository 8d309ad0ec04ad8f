"""Every network of the project as TensorRT gets it: lint, fp16, the real parser and builder."""

from __future__ import annotations

import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('onnxscript')
pytest.importorskip('onnxruntime')

from depth_node.export.lint import lint  # noqa: E402
from depth_node.export.onnx import export_onnx, parity_batches, parity_pictures  # noqa: E402
from depth_node.training.networks import NETWORKS, build_network, untrained  # noqa: E402

# Sizes that the layers allow, and at which an export takes some seconds.
TINY_HW = {
    'eigen14': (64, 80), 'eigen_fergus15': (64, 80), 'fcrn': (64, 80), 'hourglass': (48, 64),
    'diode_unet': (48, 64),
}  # fmt: skip


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
    network.eval()


@pytest.fixture(scope='module')
def networks():
    made = {}

    def network(name):
        if name not in made:
            made.clear()  # one at a time: some are large
            torch.manual_seed(3)
            made[name] = build_network(
                name, size_hw=TINY_HW.get(name, (64, 96)), **untrained(name))
            if name == 'densedepth':
                with_statistics(made[name])
        return made[name]

    return network


@pytest.fixture(scope='module')
def exported(networks, tmp_path_factory):
    made = {}

    def path(name, precision):
        if (name, precision) not in made:
            made[name, precision] = tmp_path_factory.mktemp(name) / f'{name}.{precision}.onnx'
            export_onnx(networks(name), made[name, precision], precision=precision)
        return made[name, precision]

    return path


@pytest.mark.sweep
@pytest.mark.parametrize('precision', ['fp32', 'fp16'])
@pytest.mark.parametrize('name', NETWORKS)
def test_lint_finds_nothing(exported, networks, name, precision):
    path = exported(name, precision)
    assert lint(path, batches=parity_batches(networks(name).size_hw)) == ()


@pytest.mark.sweep
@pytest.mark.parametrize('precision', ['fp32', 'fp16'])
@pytest.mark.parametrize('name', NETWORKS)
def test_plan_is_built_for_ampere_and_ada(exported, name, precision, rtx_plan):
    assert rtx_plan(exported(name, precision)) > 0
