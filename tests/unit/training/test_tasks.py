"""A step learns, the guard stops what does not, the schedule ends where it should."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('lightning')

from depth_node.training.config import (  # noqa: E402
    OPTIMISERS,
    SCHEDULES,
    ConfigError,
    OptimConfig,
    config_from_dict,
    load_config,
)
from depth_node.training.networks import build_network  # noqa: E402
from depth_node.training.objectives.base import depth_scores, truth  # noqa: E402
from depth_node.training.tasks import (  # noqa: E402
    CollapseError,
    DepthTask,
    Ema,
    TaskError,
    rate_share,
)


def task(optim: dict | None = None, **run) -> DepthTask:
    torch.manual_seed(1)
    config = config_from_dict({
        'network': {'name': 'small', 'options': {'size_hw': [64, 96], 'pretrained': False}},
        'optim': optim or {},
        'run': run,
    })  # fmt: skip
    made = DepthTask(config.to_dict())
    made.log = lambda *args, **kwargs: None  # no trainer here
    return made


def batch(focal_px: float = 256.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    ramp = torch.linspace(4.0, 1.0, 64).view(1, 1, 64, 1).expand(2, 1, 64, 96)
    rgb = (ramp * 50 + 20 * torch.rand(2, 3, 64, 96, generator=generator)).to(torch.uint8)
    # fx != fy: their geometric mean is the focal length that counts
    K = torch.tensor([[2 * focal_px, 0, 47.5], [0, focal_px / 2, 31.5], [0, 0, 1]])
    return {'rgb': rgb, 'depth': ramp.clone(), 'K': K.expand(2, 3, 3),
            'skipped': torch.tensor([0, 0])}  # fmt: skip


def test_a_few_steps_on_one_batch_make_the_loss_fall():
    made = task(guard_step=0)
    made.train()
    optimizer = torch.optim.AdamW(made.network.parameters(), 2e-3)
    losses = []
    for _ in range(12):
        loss = made.training_step(batch(), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert made.network(made.network.normalise(batch()['rgb'])).log().std() > 0.1


def test_target_is_canonical_depth():
    """The same picture from twice the focal length: canonical depth is half the metric one."""
    network = task().network
    near, valid = truth(network, batch(256.0))
    far, _ = truth(network, batch(512.0))
    torch.testing.assert_close(near, batch()['depth'])
    torch.testing.assert_close(far, near / 2)
    assert valid.all()


def test_unknown_and_too_far_depth_is_not_valid():
    data = batch()
    data['depth'][0, 0, 0, :3] = torch.tensor([0.0, 45.0, 3.0])
    valid = truth(task().network, data)[1]
    assert valid[0, 0, 0, :3].tolist() == [False, False, True]


class Constant(torch.nn.Module):
    """A network that has collapsed."""

    def normalise(self, rgb):
        return rgb.float()

    def forward(self, x):
        return torch.full((2, 1, 8, 8), 2.0)


class Varied(Constant):
    def forward(self, x):
        return torch.rand(2, 1, 8, 8) + 1


def test_the_guard_names_a_constant_picture():
    made = task(guard_step=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DepthTask, 'global_step', 1, raising=False)
        patch.setattr(made, 'network', Constant())
        with pytest.raises(CollapseError, match='constant picture'):
            made._guard(1.0, batch())
        with pytest.raises(CollapseError, match='loss is nan'):
            made._guard(math.nan, batch())


def test_the_guard_names_a_loss_that_does_not_fall():
    made = task(guard_step=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made, 'network', Varied())
        for step in range(60):
            patch.setattr(DepthTask, 'global_step', step, raising=False)
            made._guard(1.0, batch())
        patch.setattr(DepthTask, 'global_step', 60, raising=False)
        made._late_losses = [0.95]
        with pytest.raises(CollapseError, match=r'from 1\.000 to 0\.950'):
            made._guard(0.95, batch())
        made._late_losses = [0.5]
        made._guard(0.5, batch())  # a falling loss passes


def test_a_batch_without_what_the_objective_needs_is_refused():
    made = task()
    made.objective.needs = frozenset({'pairs'})
    with pytest.raises(TaskError, match=r'needs pairs.*rendered'):
        made.training_step(batch(), 0)


def test_a_truth_of_which_nothing_counts_is_refused():
    made = task()
    data = batch()
    data['depth'] += 100  # all beyond the 40 m of the network
    for _ in range(4):
        assert made.training_step(data, 0) == 0
    with pytest.raises(TaskError, match=r'outside of the 0\.1 to 40 m.*depth_range_m'):
        made.training_step(data, 0)
    made._empty_steps = 4
    pictures_only = {**batch(), 'depth': torch.zeros(2, 1, 64, 96),
                     'views': torch.zeros(2, 1, 3, 64, 96, dtype=torch.uint8)}  # fmt: skip
    with pytest.raises(TaskError, match='no pixel of the truth counted'):
        made.training_step(pictures_only, 0)  # views teach nothing to who does not use them
    made.training_step(batch(), 0)  # a picture that counts starts it anew
    assert made._empty_steps == 0


@pytest.mark.parametrize('name', OPTIMISERS)
def test_optimisers_have_the_rates_and_decays_of_the_file(name):
    made = task({'name': name, 'lr': 0.5, 'group_lr': {'encoder': 0.25}, 'weight_decay': 0.1})
    optimizer = made.configure_optimizers()
    assert type(optimizer).__name__.lower() == name
    seen = set()
    for group in optimizer.param_groups:
        in_encoder = any(group['params'][0] is p for p in made.network.encoder.parameters())
        assert group['lr'] == (0.25 if in_encoder else 0.5)
        matrices = group['params'][0].ndim > 1
        assert group['weight_decay'] == (0.1 if matrices else 0.0)
        seen.update(id(p) for p in group['params'])
    assert seen == {id(p) for p in made.network.parameters()}


def test_a_rate_for_a_group_that_is_not_there_names_those_that_are():
    with pytest.raises(TaskError, match=r"group_lr\.encodre: .*\['decoder', 'encoder'\]"):
        task({'group_lr': {'encodre': 0.1}}).configure_optimizers()


def test_stages_of_a_network_without_any_are_refused():
    config = config_from_dict({
        'network': {'name': 'diode_unet', 'options': {'size_hw': [32, 48]}},
        'optim': {'freeze_encoder_stages': 1},
    })  # fmt: skip
    with pytest.raises(TaskError, match='freeze_encoder_stages: network diode_unet has no encod'):
        DepthTask(config.to_dict())
    with pytest.raises(TaskError, match='9 frozen stages: EfficientNet-Lite0 has 5'):
        task({'freeze_encoder_stages': 9})


def test_rates_rise_then_fall_to_the_final_share():
    optim = OptimConfig(warmup_steps=100, final_share=0.01)
    assert rate_share(0.0, 0, optim) == pytest.approx(0.01)
    assert rate_share(0.0, 99, optim) == pytest.approx(1.0)
    assert rate_share(0.5, 500, optim) == pytest.approx(0.505)
    assert rate_share(1.0, 500, optim) == pytest.approx(0.01)
    assert rate_share(7.0, 500, optim) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ('optim', 'shares'),
    [
        ({'schedule': 'constant'}, {0.0: 1, 0.5: 1, 1.0: 1}),
        ({'schedule': 'poly', 'poly_power': 2.0}, {0.0: 1, 0.5: 0.25, 1.0: 0}),
        ({'schedule': 'steps', 'step_at': [0.4, 0.8], 'step_factor': 0.1},
         {0.39: 1, 0.4: 0.1, 0.8: 0.01}),
        ({'schedule': 'plateau'}, {0.5: 1}),
        ({'schedule': 'cosine', 'final_share': 0.0}, {0.5: 0.5}),
    ],
)  # fmt: skip
def test_schedules(optim, shares):
    settings = config_from_dict({'optim': optim}).optim
    assert settings.schedule in SCHEDULES
    for progress, share in shares.items():
        assert rate_share(progress, 10, settings) == pytest.approx(share)


def test_plateau_lowers_the_rate_after_its_patience():
    made = task({'schedule': 'plateau', 'plateau_patience': 1, 'plateau_factor': 0.5,
                 'plateau_min_share': 0.3})  # fmt: skip

    trainer = SimpleNamespace(callback_metrics={}, state=SimpleNamespace(fn='fit'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DepthTask, 'trainer', trainer, raising=False)
        shares = []
        for score in (0.5, 0.4, 0.4, 0.45, 0.39, 0.5, 0.5, 0.5, 0.5):
            trainer.callback_metrics = {'val/abs_rel': torch.tensor(score)}
            made.on_validation_epoch_end()
            shares.append(made._plateau_share)
    assert shares == [1, 1, 1, 0.5, 0.5, 0.5, 0.3, 0.3, 0.3]


def resumed(made: DepthTask, step: int, limit_s: float | None, **run) -> DepthTask:
    """Make the task that goes on from a checkpoint at this step."""
    checkpoint = {'hyper_parameters': {'config': made.config.to_dict()}, 'global_step': step}
    made.on_save_checkpoint(checkpoint)
    again = task({'ema_decay': 0.9}, **(run or {'max_steps': made.config.run.max_steps}))
    again.on_load_checkpoint(checkpoint)
    again.time_limit_s = limit_s
    again.on_fit_start()
    return again


def progress_at(made: DepthTask, step: int, spent_s: float = 0.0) -> float:
    made.elapsed_s = made._elapsed_before_s + spent_s
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DepthTask, 'trainer', SimpleNamespace(world_size=1), raising=False)
        patch.setattr(DepthTask, 'global_step', step)
        return made.progress()


def test_a_resumed_schedule_goes_on_where_it_was():
    made = task({'ema_decay': 0.9}, max_steps=20000)
    made.time_limit_s = 3600.0
    made._progress = progress_at(made, 3000, 1800.0)
    assert made._progress == pytest.approx(0.5)
    again = resumed(made, 3000, 1200.0)  # the rest in 20 minutes
    assert [progress_at(again, 3000 + 10 * i, 300.0 * i) for i in range(5)] == pytest.approx(
        [0.5, 0.625, 0.75, 0.875, 1.0])
    again._progress = 0.75
    third = resumed(again, 3100, None)  # the rest by steps
    assert progress_at(third, 3100) == pytest.approx(0.75)
    assert progress_at(third, 3100 + 16900 // 2) == pytest.approx(0.875)
    assert progress_at(third, 20000) == 1


def test_a_run_by_steps_is_resumed_to_the_very_same_rates():
    made = task({'ema_decay': 0.9}, max_steps=700)
    made._progress = progress_at(made, 299)
    again = resumed(made, 300, None)
    for step in (300, 333, 699):
        assert progress_at(again, step) == progress_at(made, step) == step / 700


@pytest.mark.parametrize(('progress', 'max_steps'), [(1.0, 700), (0.6, 1400)])
def test_what_was_over_or_is_longer_now_begins_a_schedule_anew(progress, max_steps):
    made = task({'ema_decay': 0.9}, max_steps=700)
    made._progress = progress
    again = resumed(made, 350, 100.0, max_steps=max_steps)
    assert progress_at(again, 350) == 350 / max_steps
    assert progress_at(again, 351, 90.0) == pytest.approx(0.9)


def test_averaged_weights_move_with_the_others():
    """A tensor on the meta device mixes with one on the CPU as little as one on a GPU does."""
    made = task({'ema_decay': 0.9})
    names = set(made.state_dict())
    made.to(torch.float64)
    assert made.ema.network.head.weight.dtype == torch.float64
    assert made.to('meta') is made
    for network in (made.network, made.judged):
        tensors = (*network.parameters(), *network.buffers())
        assert all(tensor.is_meta for tensor in tensors)
    made.ema.update(made.network)
    assert set(made.state_dict()) == names
    assert not any(name.startswith('ema') for name in names)


def test_scores_of_a_known_error():
    target = torch.full((2, 1, 4, 4), 2.0)
    pred = target * 1.2
    pred[1] *= 1.1
    valid = torch.ones_like(target, dtype=torch.bool)
    scores = depth_scores(pred, target, valid)
    torch.testing.assert_close(scores['abs_rel'], torch.tensor([0.2, 0.32]))
    torch.testing.assert_close(scores['delta1'], torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(scores['abs_rel_median'], torch.zeros(2), atol=1e-6, rtol=0)
    assert depth_scores(pred, target, ~valid)['abs_rel'].isnan().all()


@pytest.mark.parametrize('relative', [False, True])
def test_a_prediction_that_is_no_number_scores_worst_instead_of_dropping_out(relative):
    target = torch.full((2, 1, 4, 4), 2.0)
    pred = target.clone()
    pred[1, 0, 2, 2] = math.nan
    scores = depth_scores(pred, target, target > 0, relative=relative)
    assert scores['abs_rel'].tolist() == scores['abs_rel_median'].tolist() == [0.0, math.inf]
    assert scores['delta1'][0] == 1
    assert scores['delta1'][1] < 1


def test_ema_moves_by_its_decay_and_copies_counters():
    network = build_network('small', size_hw=(64, 96), pretrained=False)
    ema = Ema(network, 0.9)
    ema.updates = 1000  # past the start, where the decay is smaller
    before = ema.network.head.bias.clone()
    with torch.no_grad():
        network.head.bias += 1.0
        network.neck[0][1].num_batches_tracked += 5
    ema.update(network)
    torch.testing.assert_close(ema.network.head.bias, before + 0.1)
    assert ema.network.neck[0][1].num_batches_tracked == 5


@pytest.mark.parametrize(
    ('raw', 'text'),
    [
        ({'optm': {}}, 'optm: not known'),
        ({'optim': {'rate': 1}}, r'optim\.rate: not known'),
        ({'optim': {'lr': '1e-x'}}, r"optim\.lr: found '1e-x', expected float"),
        ({'optim': {'lr': -1}}, r'optim\.lr: found -1.0, expected more than 0'),
        ({'optim': {'betas': [0.9]}}, r'optim\.betas: .*expected 2 numbers'),
        ({'optim': {'schedule': 'cosin'}}, r"optim\.schedule: found 'cosin', expected one of"),
        ({'optim': {'step_at': [0.5, 0.2]}}, r'optim\.step_at: .*ascending'),
        ({'optim': {'group_lr': {'encoder': 'fast'}}}, r'optim\.group_lr\.encoder'),
        ({'run': {'precision': '16'}}, r"run\.precision: found '16', expected one of 32-true"),
        ({'run': {'threads': 0}}, r'run\.threads: found 0'),
        ({'run': {'accumulate': True}}, r'run\.accumulate: found True'),
        ({'data': {'batch_size': 'eight'}}, r"data\.batch_size: found 'eight', expected int"),
        ({'data': {'batch_size': 0}}, r'data\.batch_size: found 0'),
        ({'optim': {'ema_decay': 1.5}}, r'optim\.ema_decay'),
        ([], 'expected sections'),
    ],
)
def test_configuration_errors_name_the_key(raw, text):
    with pytest.raises(ValueError, match=text):
        config_from_dict(raw)


def test_configuration_survives_a_round_trip():
    config = config_from_dict({'optim': {'clip': 3}, 'augment': {'zoom': [1.0, 1.2]}})
    assert config.optim.clip == 3.0
    assert config.augment.zoom == (1.0, 1.2)
    assert config_from_dict(config.to_dict()) == config


def test_exponents_without_a_point_are_numbers():
    raw = {'optim': {'lr': '1e-4', 'group_lr': {'encoder': '3e-5'}},
           'objective': {'options': {'losses': {'berhu': '1e0'}}}}  # fmt: skip
    config = config_from_dict(raw)
    assert config.optim.lr == 1e-4
    assert config.optim.group_lr == {'encoder': 3e-5}
    assert config.objective.options == {'losses': {'berhu': 1.0}}


def test_settings_on_the_command_line_reach_into_options(tmp_path):
    file = tmp_path / 'x.yaml'
    file.write_text('objective: {options: {losses: {l1: 1.0}}}\nrun: {seed: 3}\n')
    config = load_config(file, [
        'run.max_steps=30', 'objective.options.losses.l1=0.5', 'optim.lr=1e-5',
        'network.options.size_hw=[64, 96]', 'data.root="/a folder/b=c"',
    ])  # fmt: skip
    assert (config.run.max_steps, config.run.seed) == (30, 3)
    assert config.objective.options['losses'] == {'l1': 0.5}
    assert config.optim.lr == 1e-5
    assert config.network.options == {'size_hw': [64, 96]}
    assert config.data.root == '/a folder/b=c'
    for wrong in ('max_steps=3', 'run.max_steps', 'run.=3'):
        with pytest.raises(ConfigError, match=r'expected section\.key=value'):
            load_config(file, [wrong])
    with pytest.raises(ConfigError, match=r'run\.max_step: not known.*max_steps'):
        load_config(file, ['run.max_step=3'])
