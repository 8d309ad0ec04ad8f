"""The verbs train, export and quantize, one after the other, as a user types them."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('lightning')
pytest.importorskip('tensorboard')
pytest.importorskip('onnxscript')
pytest.importorskip('onnxruntime')
yaml = pytest.importorskip('yaml')

from depth_node.cli import main  # noqa: E402
from depth_node.cli.train import _seconds  # noqa: E402
from depth_node.model_card import ModelCard  # noqa: E402

pytestmark = pytest.mark.filterwarnings('ignore::Warning:lightning', 'ignore::UserWarning')


def test_from_frames_to_a_card(frames_root, tmp_path, capsys):
    config = {
        'network': {'name': 'small', 'options': {'size_hw': [32, 64], 'pretrained': False}},
        'data': {'batch_size': 4, 'workers': 0},
        'run': {'val_every_steps': 10, 'guard_step': 0, 'threads': 1},
    }
    (tmp_path / 'c.yaml').write_text(yaml.safe_dump(config))
    run = tmp_path / 'run'
    data = str(frames_root)
    assert main(['train', '--config', str(tmp_path / 'c.yaml'), '--data', data, '--out', str(run),
                 '--max-steps', '1', '--no-progress']) == 0  # fmt: skip
    assert '1 of 1 steps' in capsys.readouterr().out

    model = tmp_path / 'models' / 'tiny.onnx'
    assert main(['export', str(run / 'best.ckpt'), '--out', str(model), '--range', '0.3,6',
                 '--assumed-hfov', '70', '--note', 'a test']) == 0  # fmt: skip
    assert 'equals torch' in capsys.readouterr().out
    card = ModelCard.load(model)
    assert card.name == 'tiny'
    assert card.output.range_m == (0.3, 6.0)
    assert card.output.assumed_hfov_deg == 70.0
    assert card.provenance['training']['data']['frames'] == 8
    assert card.provenance['training']['pictures_seen'] == 4
    assert str(tmp_path) not in json.dumps(card.to_dict())

    assert main(['quantize', str(model), '--data', data, '--frames', '8']) == 0
    assert 'AbsRel' in capsys.readouterr().out
    card = ModelCard.load(model)
    assert card.verify_file('int8').name == 'tiny.int8.onnx'
    scores = card.provenance['int8']['val_abs_rel']
    assert scores['onnxruntime int8'] == pytest.approx(scores['onnxruntime fp32'], abs=0.05)


@pytest.mark.parametrize(
    ('words', 'text'),
    [
        (['train', '--config', 'none.yaml'], 'none.yaml'),
        (['export', 'none.ckpt', '--out', 'x.onnx'], 'no such checkpoint'),
        (['export', 'none.ckpt', '--out', 'x.pt'], 'must end in .onnx'),
        (['quantize', 'none.yaml', '--data', 'x'], 'no such model card'),
    ],
)
def test_what_is_missing_is_named_without_a_traceback(words, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) != 0
    error = capsys.readouterr().err
    assert text in error
    assert 'Traceback' not in error
    assert not list(tmp_path.iterdir())


def test_settings_stand_before_between_and_behind_the_options(monkeypatch, tmp_path, capsys):
    from depth_node.training import fit

    (tmp_path / 'c.yaml').write_text('run: {seed: 1}')
    seen = []
    monkeypatch.setattr(fit, 'train', lambda config, **how: seen.append((config, how)) or {
        'steps': 3, 'train_s': 0.0, 'interrupted': False})  # fmt: skip
    words = ['run.seed=5', '--config', str(tmp_path / 'c.yaml'), 'data.kind=bag', '--data',
             'a.mcap', 'run.max_steps=7', 'optim.lr=1e-4', '--resume',
             'data.batch_size=2']  # fmt: skip
    assert main(['train', *words]) == 0
    (config, how), = seen
    assert (config.run.seed, config.run.max_steps, config.optim.lr) == (5, 7, 1e-4)
    assert (config.data.kind, config.data.root, config.data.batch_size) == ('bag', 'a.mcap', 2)
    assert how['resume'] is True
    assert main(['train', *words, '--dta', 'x']) == 2
    assert 'unrecognized arguments: --dta' in capsys.readouterr().err


def test_a_misspelt_preset_is_suggested(tmp_path, capsys):
    for name in ('fcrn', 'small'):
        (tmp_path / f'{name}.yaml').touch()
    assert main(['train', '--config', str(tmp_path / 'smal.yaml')]) == 1
    assert f'did you mean {tmp_path / "small.yaml"}?' in capsys.readouterr().err
    assert main(['train', '--config', str(tmp_path / 'none' / 'x')]) == 1
    assert 'the presets are in config/train/ of the clone' in capsys.readouterr().err


def test_an_unreadable_frame_is_named_without_the_loaders_traceback(frames_root, tmp_path, capsys):
    root = frames_root
    for picture in (root / 'train').rglob('*.jpg'):
        picture.write_bytes(b'no picture')
    config = {
        'network': {'name': 'small', 'options': {'size_hw': [32, 64], 'pretrained': False}},
        'data': {'batch_size': 4, 'workers': 1, 'root': str(root)},
        'run': {'max_steps': 1, 'val_every_steps': 1, 'threads': 1, 'folder': str(tmp_path / 'r')},
    }
    (tmp_path / 'c.yaml').write_text(yaml.safe_dump(config))
    assert main(['train', '--config', str(tmp_path / 'c.yaml'), '--no-progress']) == 1
    error = capsys.readouterr().err
    message = next(line for line in error.splitlines() if 'depth-node train: ' in line)
    assert message.partition('depth-node train: ')[2].startswith(str(root / 'train'))
    assert 'not a readable picture (10 bytes)' in message
    assert 'Traceback' not in error


def test_times_are_hours_minutes_seconds():
    import argparse

    assert _seconds('01:02:03') == 3723.0
    for wrong in ('50', 'a:b:c', '00:00:00'):
        with pytest.raises(argparse.ArgumentTypeError):
            _seconds(wrong)
