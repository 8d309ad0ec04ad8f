"""A step learns, the guard stops what does not, the schedule ends where it should."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('lightning')

from depth_node.training.config import config_from_dict  # noqa: E402
from depth_node.training.networks import build_network  # noqa: E402
from depth_node.training.tasks import (  # noqa: E402
    CollapseError,
    DepthTask,
    Ema,
    depth_scores,
    rate_share,
)


def task(**run) -> DepthTask:
    torch.manual_seed(1)
    config = config_from_dict({
        'network': {'name': 'small', 'options': {'size_hw': [64, 96], 'pretrained': False}},
        'run': run,
    })  # fmt: skip
    made = DepthTask(config.to_dict())
    made.log = lambda *args, **kwargs: None  # no trainer here
    return made


def batch(focal_px: float = 256.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    ramp = torch.linspace(4.0, 1.0, 64).view(1, 1, 64, 1).expand(2, 1, 64, 96)
    rgb = (ramp * 50 + 20 * torch.rand(2, 3, 64, 96, generator=generator)).to(torch.uint8)
    return {'rgb': rgb, 'depth': ramp.clone(), 'focal_px': torch.tensor([focal_px, focal_px])}


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
    made = task()
    _, near, valid = made._unpack(batch(256.0))
    _, far, _ = made._unpack(batch(512.0))
    assert torch.equal(near, batch()['depth'])
    torch.testing.assert_close(far, near / 2)
    assert valid.all()


def test_unknown_and_too_far_depth_is_not_valid():
    made = task()
    data = batch()
    data['depth'][0, 0, 0, :3] = torch.tensor([0.0, 45.0, 3.0])
    valid = made._unpack(data)[2]
    assert valid[0, 0, 0, :3].tolist() == [False, False, True]


def test_the_guard_names_a_constant_picture():
    made = task(guard_step=1)
    made._guard(1.0, torch.rand(2, 1, 8, 8) + 1)
    constant = torch.full((2, 1, 8, 8), 2.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DepthTask, 'global_step', 1, raising=False)
        with pytest.raises(CollapseError, match='constant picture'):
            made._guard(1.0, constant)
        with pytest.raises(CollapseError, match='loss is nan'):
            made._guard(math.nan, constant)


def test_the_guard_names_a_loss_that_does_not_fall():
    made = task(guard_step=60)
    varied = torch.rand(2, 1, 8, 8) + 1
    with pytest.MonkeyPatch.context() as patch:
        for step in range(60):
            patch.setattr(DepthTask, 'global_step', step, raising=False)
            made._guard(1.0, varied)
        patch.setattr(DepthTask, 'global_step', 60, raising=False)
        made._late_losses = [0.95]
        with pytest.raises(CollapseError, match=r'from 1\.000 to 0\.950'):
            made._guard(0.95, varied)
        made._late_losses = [0.5]
        made._guard(0.5, varied)  # a falling loss passes


def test_rates_rise_then_fall_to_the_final_share():
    assert rate_share(0.0, 0, 100, 0.01) == pytest.approx(0.01)
    assert rate_share(0.0, 99, 100, 0.01) == pytest.approx(1.0)
    assert rate_share(0.5, 500, 100, 0.0) == pytest.approx(0.5)
    assert rate_share(1.0, 500, 100, 0.01) == pytest.approx(0.01)
    assert rate_share(7.0, 500, 100, 0.01) == pytest.approx(0.01)


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
        ({'optim': {'lr': 1}}, r'optim\.lr: not known'),
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
