"""scripts/average_weights.py: the mean of checkpoints, and what has none."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

torch = pytest.importorskip('torch')
from depth_node.training.checkpoints import network_of, read_checkpoint  # noqa: E402
from depth_node.training.networks import build_network  # noqa: E402

SCRIPT = Path(__file__).resolve().parents[3] / 'scripts' / 'average_weights.py'
OPTIONS = {'size_hw': [64, 96], 'pretrained': False}


@pytest.fixture(scope='module')
def script():
    spec = importlib.util.spec_from_file_location('average_weights', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(path, seed, *, ema=True, **options):
    torch.manual_seed(seed)
    network = build_network('small', **{**OPTIONS, **options})
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.normal_()
        else:
            value.fill_(seed)
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    torch.save({
        'state_dict': {f'network.{key}': 2 * value for key, value in weights.items()},
        **({'ema': weights} if ema else {}), 'epoch': seed, 'global_step': 10 * seed,
        'pytorch-lightning_version': '2', 'optimizer_states': [seed],
        'hyper_parameters': {'config': {'network': {
            'name': 'small', 'options': {**OPTIONS, **options}}}},
    }, path)
    return weights


def test_the_start_of_a_run_from_an_exported_file_stands_for_its_own_averages(script, tmp_path):
    start, last, out = (tmp_path / f'{name}.ckpt' for name in ('start', 'last', 'average'))
    write(start, 1)
    begun = read_checkpoint(start)
    torch.save({key: begun[key] for key in ('state_dict', 'hyper_parameters')}, start)
    averaged = write(last, 2)
    assert script.main([str(start), str(last), '--out', str(out)]) == 0
    found = network_of(read_checkpoint(out)).state_dict()
    for key, value in found.items():
        if value.is_floating_point():
            wanted = (begun['state_dict'][f'network.{key}'] + averaged[key]) / 2
            torch.testing.assert_close(value, wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize('ema', [True, False])
def test_mean_of_three(script, tmp_path, capsys, ema):
    paths = [tmp_path / f'{seed}.ckpt' for seed in (1, 2, 4)]
    weights = [write(path, seed, ema=ema) for path, seed in zip(paths, (1, 2, 4), strict=True)]
    out = tmp_path / 'new' / 'average.ckpt'
    assert script.main([*map(str, paths), '--out', str(out)]) == 0
    assert 'mean of 3' in capsys.readouterr().out
    checkpoint = read_checkpoint(out)
    assert (checkpoint['epoch'], checkpoint['global_step'], 'ema' in checkpoint) == (4, 40, ema)
    assert 'optimizer_states' not in checkpoint
    found = network_of(checkpoint).state_dict()
    for key, value in found.items():
        if value.is_floating_point():
            wanted = (1 if ema else 2) * sum(each[key].double() for each in weights) / 3
            torch.testing.assert_close(value.double(), wanted, atol=1e-6, rtol=1e-6)
        else:
            assert (value == (4 if ema else 8)).all()


def test_strangers_are_refused(script, tmp_path, capsys):
    one, wide, plain = (tmp_path / f'{name}.ckpt' for name in ('one', 'wide', 'plain'))
    write(one, 1)
    write(wide, 2, size_hw=[96, 64])
    write(plain, 3, ema=False)
    for other, words in ((wide, '96, 64'), (plain, 'ema_decay'), (tmp_path / 'no', 'no such')):
        assert script.main([str(other), str(one), '--out', str(tmp_path / 'out')]) == 1
        assert words in capsys.readouterr().err
        assert not (tmp_path / 'out').exists()
    with pytest.raises(SystemExit):
        script.main([str(one), '--out', str(tmp_path / 'out')])
