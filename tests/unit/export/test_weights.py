"""An exported file can be trained further: same outputs, and norms that measure."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
import shutil

import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('onnxscript')
pytest.importorskip('onnxruntime')

from dataset_writers import write  # noqa: E402
from depth_node.cli import main  # noqa: E402
from depth_node.export.onnx import ExportError, export_onnx  # noqa: E402
from depth_node.export.weights import load_onnx_weights  # noqa: E402
from depth_node.training.checkpoints import network_of, read_checkpoint  # noqa: E402
from depth_node.training.networks import build_network  # noqa: E402
from torch import nn  # noqa: E402

SIZE = (64, 96)


def lived_in(seed: int, **options) -> nn.Module:
    """Make a network whose norms hold something, as after training."""
    torch.manual_seed(seed)
    network = build_network('small', size_hw=SIZE, pretrained=False, **options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return network.eval()


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp('onnx') / 'x.onnx'
    network = lived_in(1)
    export_onnx(network, path)
    return path, network


def test_the_network_comes_back_and_its_norms_measure(exported):
    path, origin = exported
    pictures = torch.randint(0, 256, (4, 3, *SIZE), dtype=torch.uint8)
    network = lived_in(2)
    parity = load_onnx_weights(path, network, pictures)
    assert parity.max_rel < 1e-4
    batch = network.normalise(pictures)
    with torch.no_grad():
        expected = origin(batch)
        torch.testing.assert_close(network(batch), expected, rtol=1e-4, atol=1e-5)
        # In training a norm divides by the spread of the batch: that must be what it multiplies
        # by again, or the first step would see another network.
        network.train()
        torch.testing.assert_close(network(batch), expected, rtol=1e-2, atol=1e-3)


def test_the_weights_serve_another_size(exported):
    path, origin = exported
    smaller = build_network('small', size_hw=(32, 64), pretrained=False)
    pictures = torch.randint(0, 256, (4, 3, 32, 64), dtype=torch.uint8)
    parity = load_onnx_weights(path, smaller, pictures)
    assert parity.max_rel < 1e-4
    assert smaller.size_hw == (32, 64)
    with torch.no_grad():  # convolutions only: both compute the same at both sizes
        for size_hw in ((32, 64), SIZE):
            batch = origin.normalise(torch.randint(0, 256, (2, 3, *size_hw), dtype=torch.uint8))
            torch.testing.assert_close(smaller(batch), origin(batch), rtol=1e-4, atol=1e-5)


def test_another_network_is_refused(exported, tmp_path):
    path, _ = exported
    pictures = torch.zeros(1, 3, *SIZE, dtype=torch.uint8)
    other = build_network('diode_unet', size_hw=SIZE)
    with pytest.raises(ExportError, match=r'not there, expected .* same name and options'):
        load_onnx_weights(path, other, pictures)
    (tmp_path / 'broken.onnx').write_bytes(b'no graph at all')
    with pytest.raises(ExportError, match=r'broken\.onnx: not a readable ONNX file'):
        load_onnx_weights(tmp_path / 'broken.onnx', lived_in(3), pictures)


def test_blocks_come_back_and_grow_but_are_never_left_out(exported, tmp_path):
    pictures = torch.randint(0, 256, (4, 3, *SIZE), dtype=torch.uint8)
    path, plain = exported
    origin = lived_in(1, blocks=[1, 1])
    for name, parameter in origin.named_parameters():
        if name.startswith('blocks.'):
            nn.init.normal_(parameter, std=0.05)
    export_onnx(origin, tmp_path / 'grown.onnx')
    batch = origin.normalise(pictures)
    for file, source in ((path, plain), (tmp_path / 'grown.onnx', origin)):
        network = lived_in(2, blocks=[2, 1])  # one block more than the file has, or all of them
        assert load_onnx_weights(file, network, pictures).max_rel < 1e-4
        with torch.no_grad():
            torch.testing.assert_close(network(batch), source(batch), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert float((origin(batch) / plain(batch) - 1).abs().max()) > 1e-2
    with pytest.raises(ExportError, match=r'blocks\.1\.0\.\w+\.\w+, which the network lacks'):
        load_onnx_weights(tmp_path / 'grown.onnx', lived_in(2, blocks=[1]), pictures)


def test_a_run_starts_from_an_exported_file(exported, tmp_path, capsys):
    path, origin = exported
    pytest.importorskip('lightning')
    pytest.importorskip('tensorboard')
    write('rendered', tmp_path / 'frames')
    config = tmp_path / 'c.yaml'
    options = f'{{size_hw: {list(SIZE)}, pretrained: false}}'
    config.write_text(f'network: {{options: {options}}}')
    words = ['train', '--config', str(config), '--data', str(tmp_path / 'frames'),
             '--out', str(tmp_path / 'run'), '--init', str(path), '--no-progress',
             'optim.lr=1e-30', 'optim.weight_decay=0', 'run.max_steps=1', 'run.threads=1',
             'data.batch_size=4', 'data.workers=0']  # fmt: skip
    code = main(words)
    output = capsys.readouterr()
    assert code == 0, output.err
    assert 'weights taken, its norms measured on 4 pictures' in output.err
    manifest = json.loads((tmp_path / 'run/manifest.json').read_text())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert manifest['start'] == {'kind': 'init', 'exported': {'file': 'x.onnx', 'sha256': digest}}
    started = network_of(read_checkpoint(tmp_path / 'run/start.ckpt'))
    batch = origin.normalise(torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8))
    with torch.no_grad():
        torch.testing.assert_close(started(batch), origin(batch), rtol=1e-4, atol=1e-5)
    assert 'confidence' not in output.err
    # a second run is refused before it writes anything into the folder of the first
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / 'run').rglob('*')}
    assert main(words) == 1
    assert 'holds a run already' in capsys.readouterr().err
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / 'run').rglob('*')} == before


def test_confidence_of_a_file_that_is_not_taken_is_noticed(exported):
    from depth_node.cli.train import _has_confidence

    assert not _has_confidence(exported[0])  # it has no card
    assert _has_confidence(Path(__file__).parents[3] / 'models' / 'small.onnx')


def test_a_card_tells_from_which_file_and_training_its_run_began(exported, tmp_path):
    from depth_node.cli.export import summary
    from depth_node.cli.train import _origin
    from depth_node.export.card import make_card

    path, network = exported
    copied = tmp_path / 'y.onnx'
    shutil.copy(path, copied)
    make_card(copied, network, name='y', licence='none', range_m=None, assumed_hfov_deg=None,
              provenance={'training': {'steps': 7}}).save()
    origin = _origin(copied)
    assert origin == {'file': 'y.onnx', 'training': {'steps': 7},
                      'sha256': hashlib.sha256(copied.read_bytes()).hexdigest()}
    manifest = {'config': {'network': {'name': 'small'}, 'optim': {}, 'data': {'batch_size': 8},
                           'run': {'seed': 1}}, 'data': {},
                'start': {'kind': 'init', 'exported': origin}}  # fmt: skip
    assert summary(manifest)['started_from'] == origin
