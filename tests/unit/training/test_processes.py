"""Two processes over gloo train as one process with their batches together does."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
import subprocess
import sys

import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('lightning')
pytest.importorskip('tensorboard')

# Batch norms would see other batches in two processes than in one, so this network has none.
SCRIPT = """
import json, sys
from pathlib import Path
import torch
from depth_node.training.config import config_from_dict
from depth_node.training.fit import train
from depth_node.training.networks import NETWORKS, DepthNetwork

class Plain(DepthNetwork):
    depth_range_m = (0.1, 40.0)
    def __init__(self, *, size_hw):
        super().__init__()
        self.size_hw = self.output_hw = tuple(size_hw)
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ELU(),
            torch.nn.Conv2d(8, 1, 3, padding=1))
    def forward(self, batch):
        return torch.nn.functional.softplus(self.body(batch)) + 0.2

if __name__ == '__main__':
    sys.modules['plain'] = sys.modules['__main__']
    NETWORKS['plain'] = 'plain:Plain'
    config = config_from_dict(json.loads(Path(sys.argv[1]).read_text()))
    train(config, resume='--resume' in sys.argv, progress_bar=False)
"""


def train(root: Path, tmp_path: Path, name: str, *extra: str, prefix: tuple[str, ...] = (),
        devices: int = 1, batch_size: int = 4, max_steps: int = 4) -> list[dict[str, float]]:
    config = {
        'network': {'name': 'plain', 'options': {'size_hw': [32, 48]}},
        'data': {'root': str(root), 'batch_size': batch_size, 'workers': 0},
        'objective': {'options': {'losses': {'silog': 1.0, 'log_l1': 1.0}}},
        'optim': {'name': 'sgd', 'lr': 0.05, 'clip': 1.0, 'schedule': 'constant'},
        'run': {'folder': str(tmp_path / name), 'max_steps': max_steps, 'val_every_steps': 2,
                'log_every_steps': 1, 'accelerator': 'cpu', 'devices': devices,
                'strategy': 'ddp' if devices > 1 else 'auto', 'threads': 1},
    }  # fmt: skip
    (tmp_path / 'script.py').write_text(SCRIPT)
    (tmp_path / f'{name}.json').write_text(json.dumps(config))
    environment = {
        key: value for key, value in os.environ.items()
        if key not in ('LOCAL_RANK', 'RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')
    }  # fmt: skip
    command = prefix or (sys.executable,)
    done = subprocess.run(
        [*command, str(tmp_path / 'script.py'), str(tmp_path / f'{name}.json'), *extra],
        env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    log = max((tmp_path / name).glob('csv*/metrics.csv'))
    with log.open() as file:
        rows = list(csv.DictReader(file))
    return [{key: float(value) for key, value in row.items() if value} for row in rows]


def curve(rows: list[dict[str, float]], key: str) -> list[float]:
    return [row[key] for row in rows if key in row]


@pytest.fixture(scope='module')
def alone(kept_frames_root, tmp_path_factory):
    """Train in one process; give its folder and its log."""
    folder = tmp_path_factory.mktemp('alone')
    return folder / 'one', train(kept_frames_root, folder, 'one', batch_size=4)


def test_two_processes_have_the_loss_curve_of_one(alone, kept_frames_root, tmp_path):
    folder, one = alone
    two = train(kept_frames_root, tmp_path, 'two', batch_size=2, devices=2)
    scores = curve(one, 'val/abs_rel')
    assert len(scores) == 3  # two validations, and one of the end
    assert scores[0] != scores[1]
    assert curve(two, 'val/abs_rel') == pytest.approx(scores, rel=1e-4)
    assert curve(two, 'val/loss') == pytest.approx(curve(one, 'val/loss'), rel=1e-4)
    manifest = json.loads((tmp_path / 'two' / 'manifest.json').read_text())
    assert manifest['pictures_seen'] == 16
    weights = [
        torch.load(run / 'last.ckpt', weights_only=True)['state_dict']
        for run in (folder, tmp_path / 'two')
    ]
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-4, atol=1e-6)


def test_torchrun_starts_and_resumes_a_run(alone, kept_frames_root, tmp_path):
    torchrun = (sys.executable, '-m', 'torch.distributed.run', '--standalone',
                '--nproc-per-node', '2')  # fmt: skip
    train(kept_frames_root, tmp_path, 'run', prefix=torchrun, batch_size=2, devices=2, max_steps=3)
    longer = train(
        kept_frames_root, tmp_path, 'run', '--resume', prefix=torchrun, batch_size=2, devices=2
    )
    manifest = json.loads((tmp_path / 'run' / 'manifest.json').read_text())
    assert manifest['steps'] == 4
    assert manifest['start']['kind'] == 'resume'
    assert (tmp_path / 'run/csv/metrics.csv').is_file()  # the first session's log is kept
    _, straight = alone
    assert curve(longer, 'val/abs_rel')[-1] == pytest.approx(
        curve(straight, 'val/abs_rel')[-1], rel=1e-4
    )
