"""A checkpoint, and the ONNX file that it becomes, are measured alike by the same command."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('onnxscript')
pytest.importorskip('onnxruntime')

from depth_node.backends import BackendError  # noqa: E402
from depth_node.export.torch_backend import TorchBackend, card_of  # noqa: E402
from depth_node.filters import FilterSettings  # noqa: E402
from depth_node.model_card import file_sha256  # noqa: E402
from depth_node.pipeline import DepthPipeline  # noqa: E402
from depth_node.training.networks import build_network  # noqa: E402

SIZE_HW = (64, 96)
IMAGE_HW = (80, 110)


@pytest.fixture(scope='module')
def run_folder(tmp_path_factory):
    """A run's folder with a checkpoint of a network that answers pictures differently."""
    torch.set_num_threads(1)
    torch.manual_seed(5)
    options = {'size_hw': list(SIZE_HW), 'pretrained': False}
    network = build_network('small', **options)
    pictures = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (4, 3, *SIZE_HW), np.uint8)
    )
    network.train()
    with torch.no_grad():
        for _ in range(3):  # batch statistics
            network(network.normalise(pictures))
        network.head.weight.mul_(8)
    folder = tmp_path_factory.mktemp('runs') / 'tiny'
    folder.mkdir()
    weights = network.state_dict()
    torch.save(
        {
            'hyper_parameters': {'config': {'network': {'name': 'small', 'options': options}}},
            'state_dict': {f'network.{key}': value for key, value in weights.items()},
            'ema': weights,
            'global_step': 3,
        },
        folder / 'best.ckpt',
    )
    return folder


@pytest.fixture(scope='module')
def frames(tmp_path_factory):
    folder = tmp_path_factory.mktemp('frames')
    rng = np.random.default_rng(1)
    for name in ('a', 'b', 'c'):
        coarse = rng.integers(0, 256, (8, 11, 3), np.uint8)
        rgb = cv2.resize(coarse, IMAGE_HW[::-1], interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f'{name}.png'), rgb)
        np.save(folder / f'{name}.npy', rng.uniform(1.5, 3.0, IMAGE_HW).astype(np.float32))
    return folder


def network_of(run_folder):
    from depth_node.training import checkpoints

    return checkpoints.network_of(checkpoints.read_checkpoint(run_folder / 'best.ckpt'))


def test_checkpoint_and_its_onnx_give_the_same_scores(cli_here, run_folder, frames, tmp_path):
    exported = cli_here('export', run_folder / 'best.ckpt', '--out', tmp_path / 'tiny.onnx')
    assert exported.returncode == 0, exported.stderr
    call = ['evaluate', '--data', f'folder:{frames}', '--k', '90,95,54,41', '--json']
    trained = cli_here(
        *call,
        '--checkpoint',
        run_folder / 'best.ckpt',
        '--device',
        'cpu',
        '--threads',
        1,
        '--out',
        'report',
    )
    assert trained.returncode == 0, trained.stderr
    onnx = cli_here(*call, '--model', tmp_path / 'tiny.onnx', '--backend', 'onnxruntime')
    assert onnx.returncode == 0, onnx.stderr
    ours, theirs = json.loads(trained.stdout), json.loads(onnx.stdout)
    assert ours['backend'] == f'torch {torch.__version__}'
    assert ours['model'] == 'tiny/best'
    assert ours['file'] == 'best.ckpt'
    assert ours['sha256'] == file_sha256(run_folder / 'best.ckpt')
    assert '--checkpoint' in ours['command']
    assert ours['protocol'] == theirs['protocol']
    assert len(ours['rows']) == len(theirs['rows']) == 6
    for row, other in zip(ours['rows'], theirs['rows'], strict=True):
        assert row['frames'] == 3
        assert 0.01 < row['abs_rel'] < 10
        for key, value in row.items():
            if isinstance(value, float):
                assert value == pytest.approx(other[key], rel=2e-3, abs=2e-4), key
    assert (tmp_path / 'report' / 'report.md').is_file()
    spread = [frame['aligned']['median']['scale'] for frame in ours['datasets'][0]['frames']]
    assert np.ptp(spread) > 0  # the network does look at the pictures


def test_wrong_checkpoints_are_named(cli_here, run_folder, frames, tmp_path):
    (tmp_path / 'broken.ckpt').write_bytes((run_folder / 'best.ckpt').read_bytes()[:5000])
    for name, text in (('none.ckpt', 'no such checkpoint'), ('broken.ckpt', 'not a readable')):
        result = cli_here('evaluate', '--data', f'folder:{frames}', '--checkpoint', name)
        assert result.returncode == 1
        assert name in result.stderr
        assert text in result.stderr
    for more, text in (
        (['--update-card'], 'depth-node export first'),
        (['--precision', 'int8'], 'FP32'),
        (['--backend', 'openvino'], 'drop'),
    ):
        result = cli_here(
            'evaluate',
            '--data',
            f'folder:{frames}',
            '--checkpoint',
            run_folder / 'best.ckpt',
            *more,
        )
        assert result.returncode == 2
        assert text in result.stderr


def test_both_layouts_give_the_network_the_same_picture(run_folder):
    off = FilterSettings.off()
    rgb = np.random.default_rng(2).integers(0, 256, (*IMAGE_HW, 3), np.uint8)
    depths = []
    for layout in ('uint8_nhwc', 'float32_nchw'):
        network = network_of(run_folder)
        card = card_of(network, run_folder / 'best.ckpt', layout)
        assert card.input.layout == layout
        assert card.output.kind == 'canonical_depth'
        assert card.output.canonical_focal_px == network.canonical_focal_px
        with TorchBackend(network, card, device='cpu', threads=1) as backend:
            assert (backend.name, backend.precision, backend.device) == ('torch', 'fp32', 'CPU')
            depths.append(DepthPipeline(backend, filters=off).run(rgb).depth.copy())
    np.testing.assert_allclose(depths[0], depths[1], rtol=1e-4)
    with torch.inference_mode():
        small = cv2.resize(rgb, SIZE_HW[::-1], interpolation=cv2.INTER_AREA)
        batch = torch.from_numpy(small.transpose(2, 0, 1)[None].copy())
        direct = network.eval()(network.normalise(batch))[0, 0].numpy()
    # the pipeline's depth at a picture of the network's size, from the same map
    card = card_of(network, run_folder / 'best.ckpt')
    with TorchBackend(network, card, device='cpu', threads=1) as backend:
        outputs = backend.run(small[None])
    np.testing.assert_allclose(outputs['depth'][0, 0], direct, rtol=1e-5)
    assert np.ptp(direct) > 0.1 * direct.mean()


def test_what_torch_cannot_run_is_refused(run_folder):
    network = network_of(run_folder)
    with pytest.raises(ValueError, match='layout'):
        card_of(network, run_folder / 'best.ckpt', 'nchw')
    card = card_of(network, run_folder / 'best.ckpt')
    with pytest.raises(BackendError, match="device 'gpu'"):
        TorchBackend(network, card, device='gpu')
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match='use cpu'):
            TorchBackend(network, card, device='cuda')
    backend = TorchBackend(network, card, device='cpu', threads=1)
    with pytest.raises(BackendError, match=r'\(1, 64, 96, 3\)'):
        backend.run(np.zeros((1, 96, 64, 3), np.uint8))
    with pytest.raises(BackendError, match='uint8'):
        backend.run(np.zeros((1, 64, 96, 3), np.float32))
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match='closed'):
        backend.run(np.zeros((1, 64, 96, 3), np.uint8))
