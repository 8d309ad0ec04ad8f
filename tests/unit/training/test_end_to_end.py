"""Every data set trains, and every preset takes a step on its own data set.

Small sizes here; `make sweep` runs the presets through the command line, from train to a card. The
export of every network is in ../export/test_every_network.py.
"""

from __future__ import annotations

from dataclasses import replace
import json
import math
from pathlib import Path

import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('lightning')
pytest.importorskip('tensorboard')
pytest.importorskip('h5py')
pytest.importorskip('scipy')
pytest.importorskip('rosbags')

from dataset_writers import write  # noqa: E402
from depth_node.training import systems  # noqa: E402
from depth_node.training.config import TrainConfig, config_from_dict  # noqa: E402
from depth_node.training.datasets import DATASETS, open_dataset  # noqa: E402
from depth_node.training.fit import train  # noqa: E402
from depth_node.training.loading import FrameTensors, collate_frames  # noqa: E402
from depth_node.training.networks import NETWORKS, untrained  # noqa: E402
from depth_node.training.tasks import DepthTask  # noqa: E402
from pretend_accelerator import There, accelerator  # noqa: E402

pytestmark = pytest.mark.filterwarnings('ignore::Warning:lightning', 'ignore::UserWarning')

PRESETS = sorted(path.stem for path in systems.presets_folder().glob('*.yaml'))
DOCS = Path(__file__).parents[3] / 'docs'
# Sizes at which a step takes a second, and which the layers allow.
TINY_HW = {
    'eigen14': (64, 80), 'eigen_fergus15': (64, 80), 'geonet': (64, 96), 'monodepth2': (64, 96),
    'fcrn': (64, 80), 'redweb': (64, 96), 'hourglass': (48, 64), 'diode_unet': (48, 64),
}  # fmt: skip
NO_VAL = ('nyu_mat', 'nyu_densedepth', 'make3d')  # as they are given out


def tiny(name: str) -> tuple[int, int]:
    return TINY_HW.get(name, (64, 96))


def shrunk(preset: str, folder: Path) -> TrainConfig:
    """Take a preset, write its own data set at a tiny size, and take few steps on it."""
    config = systems.preset(preset)
    name = config.network.name
    network = {**config.network.options, 'size_hw': list(tiny(name)), **untrained(name)}
    if 'output_rows' in network:  # the lower part of the map, counted at the paper's size
        network['output_rows'] = 8
    data = dict(config.data.options)
    truth = write(config.data.kind, folder / 'data', frames=8)
    val_split = config.data.val_split
    if 'split_file' in data:
        data['split_file'] = str(truth['lists']['train']).replace('train', '{split}')
    if 'previous' in data.get('views', ()):  # the written validation drive is too short for it
        val_split = config.data.train_split
    return replace(
        config,
        network=replace(config.network, options=network),
        data=replace(config.data, root=str(folder / 'data'), options=data, batch_size=2,
                     val_split=val_split, workers=0, val_frames=2, max_broken=0),
        run=replace(config.run, folder=str(folder / 'run'), max_steps=3, val_every_steps=3,
                    precision='32-true', guard_step=0, threads=1),
    )  # fmt: skip


@pytest.mark.parametrize('kind', DATASETS)
def test_loss_falls_on_a_small_copy_of_every_data_set(kind, tmp_path):
    write(kind, tmp_path / kind, frames=8)
    relative = {'redweb': 'affine', 'megadepth': 'affine', 'diw': 'pairs'}
    steps = 32
    if kind in relative:
        steps = 16
        network = {'name': 'redweb', 'options': {
            'size_hw': [32, 64], 'encoder': 'resnet18', 'widths': [16, 16, 16]}}
        objective = {'name': 'ordinal', 'options': {'mode': relative[kind]}}
    elif kind == 'sfm_triptych':
        steps = 12  # of a second each
        network = {'name': 'sfmlearner', 'options': {'size_hw': [32, 48]}}
        objective = {'name': 'self_supervised', 'options': {'method': 'monodepth2'}}
    else:
        network = {'name': 'diode_unet', 'options': {'size_hw': [32, 48], 'faithful': False}}
        objective = {'name': 'supervised', 'options': {'losses': {'log_l1': 1.0}}}
    config = config_from_dict({
        'network': network,
        'data': {'kind': kind, 'root': str(tmp_path / kind), 'batch_size': 2, 'workers': 0,
                 'val_split': 'test' if kind in NO_VAL else 'val', 'val_frames': 2,
                 'options': {'part': 'indoors'} if kind == 'diode' else {}},
        'augment': {'zoom': [1, 1], 'aspect': [1, 1], 'roll_deg': 0, 'mirror': 0, 'blur': 0,
                    'noise': 0, 'jpeg': 0, 'grey': 0, 'exposure': [1, 1], 'gamma': [1, 1],
                    'white_balance': 1, 'saturation': [1, 1]},
        'objective': objective,
        'optim': {'name': 'adam', 'lr': 5e-3, 'schedule': 'constant'},
        'run': {'folder': str(tmp_path / 'run'), 'max_steps': steps, 'val_every_steps': steps,
                'log_every_steps': 1, 'threads': 1},
    })  # fmt: skip
    manifest = train(config, progress_bar=False)
    assert manifest['steps'] == steps
    assert math.isfinite(manifest['final']['val/loss'])
    rows = (tmp_path / 'run/csv/metrics.csv').read_text().splitlines()
    column = rows[0].split(',').index('train/loss')
    losses = [float(row.split(',')[column]) for row in rows[1:] if row.split(',')[column]]
    few = steps // 4  # an epoch, or two or more, of most sets
    first, last = sum(losses[:few]), sum(losses[-few:])
    assert last < 0.8 * first, losses


@pytest.mark.parametrize('preset', PRESETS)
def test_a_preset_steps_on_its_own_data_set_and_nothing_stays_behind_on_the_cpu(preset, tmp_path):
    """Loss, optimiser, averaged weights and validation, on what stands for a GPU."""
    config = shrunk(preset, tmp_path)
    frames = FrameTensors(
        open_dataset(config.data.kind, tmp_path / 'data', config.data.train_split,
                     **config.data.options),
        tuple(config.network.options['size_hw']),
    )
    batch = collate_frames([frames[index] for index in range(2)])
    task = DepthTask(config.to_dict(), init=False)
    logged = {}
    task.log = lambda name, value, **kwargs: logged.update({name: float(value)})
    task.train()
    with accelerator() as device:
        task.to(device)
        batch = {key: value.to(device) for key, value in batch.items()}
        optimizer = task.configure_optimizers()
        rates = {group['peak'] for group in optimizer.param_groups}
        assert rates == {config.optim.group_lr.get(name, config.optim.lr)
                         for name in task.network.parameter_groups()}  # fmt: skip
        parameters = [p for group in optimizer.param_groups for p in group['params']]
        before = [p.detach().cpu().clone() for p in parameters]
        loss = task.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        assert isinstance(loss, There)
        assert math.isfinite(float(loss))
        assert all(isinstance(p, There) for p in task.parameters())
        moved = sum(not torch.equal(a, b.detach().cpu())
                    for a, b in zip(before, parameters, strict=True))
        assert moved > 0.5 * len(parameters)
        if task.ema is not None:
            task.ema.update(task.network)
        task.eval()
        task.on_validation_epoch_start()
        task.validation_step(batch, 0)
        assert f'val/{task.objective.monitor}' in logged
        assert len(task.panel) == 2


def test_what_stays_behind_is_found():
    with accelerator() as device:
        moved = torch.arange(6.0).view(2, 3).to(device)
        assert float((2 * moved).sum()) == 30
        assert moved.cpu().tolist() == [[0, 1, 2], [3, 4, 5]]
        assert (moved + torch.tensor(1.0)).device == device  # a number, as CUDA takes it
        with pytest.raises(RuntimeError, match='a tensor of the CPU'):
            moved + torch.ones(3)


def test_every_system_has_a_preset_and_every_preset_a_system():
    named = [name for system in systems.SYSTEMS for name in system.presets]
    assert sorted(named) == PRESETS
    used = {systems.preset(name).network.name for name in named}
    assert used == set(NETWORKS)


@pytest.mark.parametrize(
    'system', [s for s in systems.SYSTEMS if s.published_m], ids=lambda s: s.presets[0]
)
def test_parameter_counts_are_the_published_ones(system):
    network = systems.network_of_preset(systems.preset(system.presets[0]))
    assert systems.parameters_m(network) == pytest.approx(
        system.published_m, rel=system.tolerance
    )


def test_the_table_of_systems_is_up_to_date():
    assert (DOCS / 'systems.md').read_text() == systems.table(), (
        'run: python -m depth_node.training.systems > docs/systems.md'
    )


# Second stages start from the checkpoint of the first.
STAGES = {
    'eigen14_fine': 'eigen14_coarse', 'eigen14_kitti_fine': 'eigen14_kitti_coarse',
    'eigen_fergus15_scale3': 'eigen_fergus15_scale12', 'geonet_flow': 'geonet_rigid',
    'small_confidence': 'small', 'tiny': 'small',
}  # fmt: skip


def settings(config: TrainConfig) -> list[str]:
    """Return what `shrunk` changed as it is typed on the command line."""
    return [
        f'network.options={json.dumps(config.network.options)}',
        f'data.options={json.dumps(config.data.options)}',
        'data.batch_size=2', 'data.workers=1', 'data.val_frames=2', 'data.max_broken=0',
        'run.max_steps=3', 'run.val_every_steps=2', 'run.guard_step=0', 'run.threads=1',
        'run.precision=32-true', f'data.val_split={config.data.val_split}',
        'optim.lr=1e-4', 'optim.group_lr={}', 'optim.clip=1.0',  # two pictures bear no 0.1
    ]  # fmt: skip


@pytest.mark.sweep
@pytest.mark.parametrize('preset', PRESETS)
def test_from_a_preset_to_a_card_as_typed(preset, tmp_path, capsys):
    """Train (from its first stage on), resume, evaluate, export, run: all by the commands."""
    pytest.importorskip('onnxscript')
    from depth_node.backends import open_backend
    from depth_node.cli import main
    from depth_node.model_card import ModelCard

    config = shrunk(preset, tmp_path)
    data = str(tmp_path / 'data')
    runs = []
    for name in [STAGES[preset], preset] if preset in STAGES else [preset]:
        file = systems.presets_folder() / f'{name}.yaml'
        stage = settings(config)
        if name != preset:
            earlier = systems.preset(name).network.options
            stage += [f'network.options.{key}={json.dumps(earlier.get(key, False))}'
                      for key in ('stage', 'confidence') if key in config.network.options]
        command = ['train', '--config', str(file), '--data', data, '--no-progress',
                   '--out', str(tmp_path / name), *stage]  # fmt: skip
        first = ['--init', str(runs[-1] / 'last.ckpt')] if runs else []
        assert main([*command, *first]) == 0, capsys.readouterr().err
        assert main([*command, 'run.max_steps=5', '--resume']) == 0, capsys.readouterr().err
        runs.append(tmp_path / name)
    checkpoint = str(runs[-1] / 'best.ckpt')

    if config.data.kind != 'sfm_triptych':  # no depth to measure on
        options = ''.join(f',{key}={value}' for key, value in config.data.options.items()
                          if isinstance(value, str))  # fmt: skip
        code = main(['evaluate', '--checkpoint', checkpoint, '--data',
                     f'{config.data.kind}:{data},split={config.data.val_split}{options}'
                     ])  # fmt: skip
        assert code == 0, capsys.readouterr().err

    model = tmp_path / 'models' / 'x.onnx'
    assert main(['export', checkpoint, '--out', str(model)]) == 0, capsys.readouterr().err
    card = ModelCard.load(model)
    for backend in ('onnxruntime', 'openvino'):
        with open_backend(card, backend, 'fp32') as opened:  # passes the card's self-check
            assert opened.name == backend
