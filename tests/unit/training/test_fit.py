"""Whole runs on a few pixels: what is written, resuming, interrupting."""

from __future__ import annotations

from dataclasses import replace
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('lightning')
pytest.importorskip('tensorboard')

from depth_node.model_card import ModelCard  # noqa: E402
from depth_node.training.checkpoints import (  # noqa: E402
    CheckpointError,
    network_of,
    read_checkpoint,
)
from depth_node.training.config import TrainConfig, config_from_dict  # noqa: E402
from depth_node.training.datasets import DatasetError  # noqa: E402
from depth_node.training.fit import FrameData, RunError, panel_sheet, train  # noqa: E402
from depth_node.training.tasks import DepthTask  # noqa: E402

pytestmark = pytest.mark.filterwarnings('ignore::Warning:lightning', 'ignore::UserWarning')


def tiny(root: Path, folder: Path, **run) -> TrainConfig:
    return config_from_dict({
        'network': {'name': 'small', 'options': {'size_hw': [32, 64], 'pretrained': False}},
        'data': {'root': str(root), 'batch_size': 4, 'workers': 0},
        'optim': {'ema_decay': 0.9, 'freeze_encoder_norms': True},
        'run': {'folder': str(folder), 'max_steps': 4, 'val_every_steps': 2, 'guard_step': 0,
                'threads': 1, **run},
    })  # fmt: skip


def test_workers_start_where_opencv_has_used_threads(frames_root, tmp_path):
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(2)
        cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (9, 9), 3)
        config = tiny(frames_root, tmp_path / 'run')
        config = replace(config, data=replace(config.data, workers=1))
        loader = FrameData(config).train_dataloader()
        assert cv2.getNumThreads() == 1  # else a worker may wait for ever for its parent's threads
        loader.timeout = 60
        assert next(iter(loader))['rgb'].shape == (4, 3, 32, 64)
    finally:
        cv2.setNumThreads(before)


def test_a_run_writes_its_files_and_resumes_its_step_count(frames_root, tmp_path):
    folder = tmp_path / 'run'
    config = tiny(frames_root, folder)
    manifest = train(config, progress_bar=False)
    assert manifest['steps'] == 4
    assert manifest['pictures_seen'] == 16
    assert manifest['data']['train']['frames'] == 8
    assert manifest['data']['val']['frames'] == 2
    assert 'rendered' in manifest['data']['truth']
    assert set(manifest['final']) >= {'val/abs_rel', 'val/delta1'}
    assert json.loads((folder / 'manifest.json').read_text())['config'] == json.loads(
        json.dumps(config.to_dict())
    )
    assert [p.name for p in sorted((folder / 'panels').iterdir())][:2] == [
        '000002.png',
        '000004.png',
    ]
    card = ModelCard.load(folder / 'best.yaml')
    assert card.verify_file('fp32') == folder / 'best.ckpt'
    assert card.output.kind == 'canonical_depth'
    assert card.metrics['validation'] == manifest['final']
    rows = (folder / 'csv/metrics.csv').read_text().splitlines()
    assert 'val/abs_rel' in rows[0]
    assert len(rows) >= 5
    first = read_checkpoint(folder / 'last.ckpt')
    assert first['global_step'] == 4

    with pytest.raises(RunError, match='--resume'):
        train(config, progress_bar=False)
    longer = replace(config, run=replace(config.run, max_steps=6))
    manifest = train(longer, resume=True, progress_bar=False)
    again = read_checkpoint(folder / 'last.ckpt')
    assert manifest['steps'] == again['global_step'] == 6
    assert again['ema_updates'] == 6
    moments = again['optimizer_states'][0]['state']
    assert all(entry['step'] == 6 for entry in moments.values())
    assert manifest['start']['run']['steps'] == 4


def test_init_takes_weights_and_starts_counting_anew(frames_root, tmp_path):
    train(tiny(frames_root, tmp_path / 'a', max_steps=2), progress_bar=False)
    start = network_of(read_checkpoint(tmp_path / 'a/last.ckpt')).state_dict()
    config = tiny(frames_root, tmp_path / 'b', max_steps=1)
    frozen = replace(config, optim=replace(config.optim, lr=1e-30, weight_decay=0.0))
    manifest = train(frozen, init=tmp_path / 'a/last.ckpt', progress_bar=False)
    assert manifest['steps'] == 1
    assert manifest['start']['kind'] == 'init'
    after = network_of(read_checkpoint(tmp_path / 'b/last.ckpt')).state_dict()
    assert torch.equal(after['head.weight'], start['head.weight'])
    name = 'encoder._bn0.running_mean'
    assert torch.equal(after[name], start[name])  # the encoder's statistics are frozen


def test_frozen_stages_stay_and_the_others_move(frames_root, tmp_path):
    config = tiny(frames_root, tmp_path / 'a', max_steps=1)
    train(config, progress_bar=False)
    start = network_of(read_checkpoint(tmp_path / 'a/last.ckpt')).state_dict()
    config = tiny(frames_root, tmp_path / 'b', max_steps=3)
    config = replace(config, optim=replace(config.optim, freeze_encoder_stages=2))
    train(config, init=tmp_path / 'a/last.ckpt', progress_bar=False)
    checkpoint = read_checkpoint(tmp_path / 'b/last.ckpt')
    for kept in (checkpoint['ema'], {
        key.removeprefix('network.'): value for key, value in checkpoint['state_dict'].items()
    }):  # fmt: skip
        assert set(kept) >= set(start)
        for key, value in start.items():
            part = key.split('.')
            fixed = part[0] == 'encoder' and (
                part[1] in ('_conv_stem', '_bn0')
                or int(part[2]) < 3  # the stem, one block to /2, two to /4
                or 'running' in key or 'num_batches' in key  # freeze_encoder_norms
            )  # fmt: skip
            assert torch.equal(kept[key], value) == fixed, key
    longer = replace(config, run=replace(config.run, max_steps=4))
    assert train(longer, resume=True, progress_bar=False)['steps'] == 4
    other = replace(longer, optim=replace(longer.optim, freeze_encoder_stages=0))
    with pytest.raises(RunError, match=r'the run has optim\.freeze_encoder_stages 2'):
        train(other, resume=True, progress_bar=False)


def test_what_does_not_belong_together_is_named(frames_root, tmp_path):
    config = tiny(frames_root, tmp_path / 'a', max_steps=1, val_every_steps=1)
    train(config, progress_bar=False)
    last = tmp_path / 'a/last.ckpt'
    larger = replace(config, network=replace(
        config.network, options={'size_hw': [64, 64], 'pretrained': False}))  # fmt: skip
    with pytest.raises(RunError, match=r'the run has network\.options .*\[32, 64\].*--init'):
        train(larger, resume=True, progress_bar=False)
    plain = replace(config, optim=replace(config.optim, ema_decay=0.0))
    with pytest.raises(RunError, match=r'the run has optim\.ema_decay True'):
        train(plain, resume=True, progress_bar=False)
    other = replace(
        tiny(frames_root, tmp_path / 'b'),
        network=replace(config.network, name='diode_unet', options={'size_hw': [32, 48]}),
    )
    with pytest.raises(RunError, match=r'weights of network small, .* network diode_unet'):
        train(other, init=last, progress_bar=False)


def test_a_network_grows_from_one_without_blocks_but_never_back(frames_root, tmp_path, capsys):
    config = tiny(frames_root, tmp_path / 'a', max_steps=1, val_every_steps=1)
    train(config, progress_bar=False)
    options = {**config.network.options, 'blocks': [1, 1]}
    larger = replace(
        tiny(frames_root, tmp_path / 'b', max_steps=1, val_every_steps=1),
        network=replace(config.network, options=options),
    )
    train(larger, init=tmp_path / 'a/last.ckpt', progress_bar=False)
    assert 'begin anew: blocks.0.0.look.weight' in capsys.readouterr().err
    again = replace(config, run=replace(config.run, folder=str(tmp_path / 'c')))
    with pytest.raises(RunError, match=r'last\.ckpt: weights .*blocks.* do not fit .*blocks\.0'):
        train(again, init=tmp_path / 'b/last.ckpt', progress_bar=False)


@pytest.mark.parametrize('key', [{'accelerator': 'gpuu'}, {'strategy': 'ddpp'}])
def test_a_machine_that_is_not_there_is_named(frames_root, tmp_path, key):
    with pytest.raises(RunError, match=next(iter(key.values()))):
        train(tiny(frames_root, tmp_path / 'run', **key), progress_bar=False)


def test_a_panel_names_its_columns():
    depth = torch.full((1, 32, 48), 2.0)
    rgb = torch.zeros(3, 32, 48, dtype=torch.uint8)
    sheet = panel_sheet([(rgb, depth, 1.5 * depth)] * 2)
    assert sheet.shape == (18 + 2 * 32, 4 * 48, 3)
    assert all(sheet[:18, 48 * i : 48 * (i + 1)].max() > 200 for i in range(4))
    light = cv2.applyColorMap(np.full((1, 1), 255, np.uint8), cv2.COLORMAP_INFERNO)[0, 0]
    assert (sheet[30, 180] == light).all()  # 50 % too far is the end of the scale


def test_early_stopping_ends_a_run_that_gets_no_better(frames_root, tmp_path, monkeypatch):
    config = tiny(frames_root, tmp_path / 'run', max_steps=50, val_every_steps=1,
                  early_stop_validations=2)  # fmt: skip
    still = replace(config, optim=replace(config.optim, lr=1e-30, weight_decay=0.0, ema_decay=0.0,
                                          warmup_steps=0))  # fmt: skip
    functional = torch.nn.functional
    batch_norm = functional.batch_norm
    # statistics would move, and the score with them; arguments 6 and 7 are momentum and eps
    monkeypatch.setattr(functional, 'batch_norm',
                        lambda *args: batch_norm(*args[:6], 0.0, args[7]))
    manifest = train(still, progress_bar=False)
    assert manifest['steps'] == 3  # the first validation is the best, and two are no better
    assert not manifest['interrupted']


def test_mixed_precision_and_accumulation_run(frames_root, tmp_path):
    config = tiny(frames_root, tmp_path / 'run', max_steps=3, precision='bf16-mixed', accumulate=3)
    config = replace(config, data=replace(config.data, batch_size=1))
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        step = DepthTask.training_step
        patch.setattr(DepthTask, 'training_step', lambda self, batch, index: seen.append(
            len(batch['rgb'])) or step(self, batch, index))
        manifest = train(config, progress_bar=False)
    # eight frames: an epoch is two steps of three
    assert (manifest['steps'], manifest['pictures_seen'], sum(seen)) == (3, 9, 9)
    checkpoint = read_checkpoint(tmp_path / 'run/last.ckpt')
    assert checkpoint['ema_updates'] == 3
    assert checkpoint['state_dict']['network.head.weight'].dtype == torch.float32


def best_of(checkpoint: dict) -> dict:
    (state,) = (value for key, value in checkpoint['callbacks'].items()
                if key.startswith('ModelCheckpoint'))
    return state


def test_last_checkpoint_of_a_validation_remembers_that_validation(frames_root, tmp_path):
    folder = tmp_path / 'run'
    config = tiny(frames_root, folder, max_steps=5, early_stop_validations=9)
    config = replace(config, optim=replace(config.optim, schedule='plateau'))
    states, rename = [], os.replace

    def kept(old, new):
        rename(old, new)
        if Path(new).name == 'last.ckpt':
            states.append(read_checkpoint(Path(new)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('depth_node.training.fit.os.replace', kept)
        manifest = train(config, progress_bar=False)
    assert [state['global_step'] for state in states] == [2, 4, 5]
    for number, state in enumerate(states[:2]):
        (stopping,) = (value for key, value in state['callbacks'].items()
                       if key.startswith('EarlyStopping'))
        best = float(best_of(state)['best_model_score'])
        assert float(stopping['best_score']) == pytest.approx(best)
        assert state['plateau'][1] == pytest.approx(best)
        assert number == 0 or best <= float(best_of(states[0])['best_model_score'])
    # and the one at the end the best of all three, with the file that it is about
    end = best_of(read_checkpoint(folder / 'last.ckpt'))
    of_the_end = manifest['final']['val/abs_rel']
    assert float(end['best_model_score']) == pytest.approx(
        min(of_the_end, float(best_of(states[1])['best_model_score'])), abs=1e-5)
    assert end['best_model_path'] == str(folder / 'best.ckpt')
    assert list(end['best_k_models']) == [str(folder / 'best.ckpt')]


def test_a_worse_score_after_resuming_a_finished_run_leaves_its_best(frames_root, tmp_path):
    folder = tmp_path / 'run'
    config = tiny(frames_root, folder, max_steps=3, val_every_steps=100)
    train(config, progress_bar=False)
    best = read_checkpoint(folder / 'best.ckpt')
    longer = replace(config, run=replace(config.run, max_steps=6, val_every_steps=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('depth_node.training.tasks.rate_share', lambda *_: 300.0)  # spoils them
        manifest = train(longer, resume=True, progress_bar=False)
    assert manifest['final']['val/abs_rel'] > float(best_of(best)['best_model_score'])
    assert read_checkpoint(folder / 'best.ckpt')['global_step'] == 3


def test_unreadable_frames_are_counted_in_log_and_manifest(frames_root, tmp_path):
    (frames_root / 'train/room-000001/001.jpg').write_bytes(b'')
    config = tiny(frames_root, tmp_path / 'a')
    with pytest.raises(DatasetError, match=r'001\.jpg'):
        train(config, progress_bar=False)
    config = tiny(frames_root, tmp_path / 'b')
    manifest = train(
        replace(config, data=replace(config.data, max_broken=1)), progress_bar=False
    )
    assert manifest['skipped_frames'] == 2  # two epochs
    assert 'train/skipped_frames' in (tmp_path / 'b/csv/metrics.csv').read_text()


def test_canonical_depth_needs_a_camera(frames_root, tmp_path, monkeypatch):
    monkeypatch.setattr('depth_node.training.datasets.rendered.Rendered.has_camera', False)
    with pytest.raises(RunError, match='needs K, which data set rendered does not have'):
        train(tiny(frames_root, tmp_path / 'run'), progress_bar=False)


def test_the_time_limit_ends_a_run(frames_root, tmp_path):
    config = tiny(frames_root, tmp_path / 'run', max_steps=100000)
    began = time.monotonic()
    manifest = train(config, max_time_s=1.0, progress_bar=False)
    assert time.monotonic() - began < 30
    assert 0 < manifest['steps'] < 1000
    assert not manifest['interrupted']


def test_nothing_to_resume_is_said(frames_root, tmp_path):
    with pytest.raises(RunError, match='no checkpoint to resume'):
        train(tiny(frames_root, tmp_path / 'none'), resume=True, progress_bar=False)


def test_fewer_frames_than_a_batch_are_refused(frames_root, tmp_path):
    config = tiny(frames_root, tmp_path / 'run')
    config = replace(config, data=replace(config.data, batch_size=9))
    with pytest.raises(RunError, match='8 frames are fewer than one step of 9'):
        train(config, progress_bar=False)


def test_useless_checkpoints_are_refused(tmp_path):
    path = tmp_path / 'x.ckpt'
    with pytest.raises(CheckpointError, match='no such checkpoint'):
        read_checkpoint(path)
    path.write_bytes(b'nothing')
    with pytest.raises(CheckpointError, match='not a readable checkpoint'):
        read_checkpoint(path)
    torch.save({'state_dict': {}}, path)
    with pytest.raises(CheckpointError, match='depth-node train'):
        read_checkpoint(path)


@pytest.mark.slow
def test_ctrl_c_saves_a_checkpoint_and_exits_with_130(frames_root, tmp_path):
    yaml = pytest.importorskip('yaml')
    folder = tmp_path / 'run'
    config = tiny(frames_root, folder, max_steps=100000).to_dict()
    del config['augment']
    (tmp_path / 'c.yaml').write_text(yaml.safe_dump(config))
    process = subprocess.Popen(
        [sys.executable, '-m', 'depth_node.cli', 'train', '--config', str(tmp_path / 'c.yaml'),
         '--no-progress'],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
    try:
        limit = time.monotonic() + 60
        while not (folder / 'last.ckpt').is_file():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < limit
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert 'saving a checkpoint' in err
    assert 'interrupted' in out
    assert read_checkpoint(folder / 'last.ckpt')['global_step'] > 0
    assert json.loads((folder / 'manifest.json').read_text())['interrupted'] is True
