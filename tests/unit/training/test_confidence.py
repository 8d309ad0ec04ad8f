"""The confidence head: its loss, its calibration, and that depth stays as it is."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed: no training tests')

from depth_node.cli import main  # noqa: E402
from depth_node.training import confidence_calibration as calibration  # noqa: E402
from depth_node.training.checkpoints import network_of, read_checkpoint  # noqa: E402
from depth_node.training.config import config_from_dict  # noqa: E402
from depth_node.training.fit import RunError, train  # noqa: E402
from depth_node.training.losses.uncertainty import (  # noqa: E402
    laplace_nll,
    scale_free_residual,
)
from depth_node.training.networks import build_network  # noqa: E402
from depth_node.training.networks.confidence import (  # noqa: E402
    LOG_SPREAD_LIMITS,
    LOG_WITHIN,
    ConfidenceHead,
)
from depth_node.training.objectives import build_objective  # noqa: E402
from depth_node.training.registry import OptionError  # noqa: E402
from depth_node.training.systems import presets_folder  # noqa: E402

SIZE_HW = (64, 96)


def small(**options):
    torch.manual_seed(5)
    return build_network('small', size_hw=SIZE_HW, pretrained=False, **options)


def batch_of(seed, count=2):
    rng = torch.Generator().manual_seed(seed)
    rgb = torch.randint(0, 256, (count, 3, *SIZE_HW), generator=rng, dtype=torch.uint8)
    depth = 0.5 + 4 * torch.rand((count, 1, *SIZE_HW), generator=rng)
    depth[:, :, :5] = 0  # unknown
    K = torch.tensor([[200.0, 0, 47.5], [0, 230.0, 31.5], [0, 0, 1]]).expand(count, 3, 3)
    return {'rgb': rgb, 'depth': depth, 'K': K}


def test_residual_is_that_of_numpy_without_what_is_unknown():
    rng = np.random.default_rng(1)
    pred, target = rng.uniform(0.3, 9.0, (2, 3, 1, 7, 10))
    valid = rng.random((3, 1, 7, 10)) < 0.8
    valid[2] = False
    target[~valid] = np.nan
    found = scale_free_residual(*map(torch.from_numpy, (pred, target, valid))).numpy()
    for p, t, v, r in zip(pred, target, valid, found, strict=True):
        ratio = np.log(p[v]) - np.log(t[v])
        np.testing.assert_allclose(r[v], ratio - np.median(ratio) if v.any() else [], atol=1e-12)
        assert (r[~v] == 0).all()
    again = scale_free_residual(*map(torch.from_numpy, (7.3 * pred, target, valid))).numpy()
    np.testing.assert_allclose(again, found, atol=1e-12)


def test_loss_is_the_density_and_lowest_at_the_mean_error():
    rng = np.random.default_rng(2)
    residual, s = rng.normal(0, 0.3, (2, 1, 5, 8)), rng.normal(-2, 1, (2, 1, 5, 8))
    valid = rng.random((2, 1, 5, 8)) < 0.7
    b = np.exp(s)
    density = np.exp(-np.abs(residual) / b) / (2 * b)
    wanted = np.mean([-np.log(2 * density[i][valid[i]]).mean() for i in range(2)])
    found = laplace_nll(*map(torch.from_numpy, (residual, s, valid)))
    assert float(found) == pytest.approx(wanted, rel=1e-12)
    width = torch.tensor(np.log(np.abs(residual[0][valid[0]]).mean()), requires_grad=True)
    mask = torch.from_numpy(valid[:1])
    laplace_nll(torch.from_numpy(residual[:1]), width.expand(1, 1, 5, 8), mask).backward()
    assert float(width.grad) == pytest.approx(0, abs=1e-12)
    nothing = torch.zeros(1, 1, 5, 8, requires_grad=True)
    laplace_nll(torch.full((1, 1, 5, 8), torch.nan), nothing, torch.zeros(1, 1, 5, 8).bool()
                ).backward()
    assert float(nothing.grad.abs().sum()) == 0


@pytest.mark.parametrize(('slope', 'offset'), [(1.0, 0.0), (1.6, 0.9), (0.5, -1.3)])
def test_calibration_finds_the_true_width_of_synthetic_errors(slope, offset):
    rng = torch.Generator().manual_seed(3)
    s = -4 + 3.5 * torch.rand((4, 1, 150, 220), generator=rng)
    true_b = torch.exp(slope * s + offset)
    sign = torch.rand(s.shape, generator=rng) < 0.5
    residual = -true_b * torch.log(torch.rand(s.shape, generator=rng))
    residual = torch.where(sign, -residual, residual)
    valid = torch.rand(s.shape, generator=rng) < 0.9
    residual[~valid] = 50.0
    parts = [calibration.count(s[i : i + 2], residual[i : i + 2], valid[i : i + 2])
             for i in (0, 2)]  # fmt: skip
    found = calibration.fit(parts[0] + parts[1])
    assert found.pixels == int(valid.sum())
    assert found.slope == pytest.approx(slope, abs=0.04)
    assert found.offset == pytest.approx(offset, abs=0.12)
    assert found.error < 0.01
    right = residual[valid].abs() < LOG_WITHIN
    assert found.right == pytest.approx(float(right.float().mean()))
    head = ConfidenceHead([4, 4])
    head.calibrate(found.slope, found.offset)
    claimed = head.confidence(s)
    np.testing.assert_allclose(claimed, 1 - torch.exp(-LOG_WITHIN / true_b), atol=0.02)
    p = claimed[valid].double()
    log_loss = -torch.where(right, p.log(), (1 - p).log()).mean()
    assert found.log_loss == pytest.approx(float(log_loss), abs=2e-3)


def test_calibration_of_what_cannot_be_fitted_is_none():
    s, valid = torch.full((1, 1, 20, 30), -2.0), torch.ones(1, 1, 20, 30, dtype=torch.bool)
    for residual in (torch.zeros_like(s), torch.ones_like(s)):
        assert calibration.fit(calibration.count(s, residual, valid)) is None
    few = torch.zeros_like(valid)
    few[..., :3, :20] = True
    mixed = torch.arange(600).view(1, 1, 20, 30) / 600.0
    assert calibration.fit(calibration.count(s, mixed, few)) is None
    # one predicted width for all: the offset alone can be found
    constant = calibration.fit(calibration.count(s, mixed, valid))
    head = ConfidenceHead([4, 4])
    head.calibrate(constant.slope, constant.offset)
    assert float(head.confidence(s).mean()) == pytest.approx(constant.right, abs=0.01)


def test_confidence_keeps_to_its_bounds_and_falls_with_the_width():
    head = ConfidenceHead([6, 8])
    s = torch.linspace(*LOG_SPREAD_LIMITS, 50)
    found = head.confidence(s)
    assert (found[1:] < found[:-1] + 1e-7).all()
    assert 0 <= float(found.min()) < 0.003
    assert 0.999 < float(found.max()) <= 1
    at = head.confidence(torch.tensor(math.log(0.1)))
    assert float(at) == pytest.approx(1 - math.exp(-LOG_WITHIN / 0.1), rel=1e-5)
    with torch.no_grad():
        head.coarse.bias.fill_(99.0)
        found = head([torch.rand(2, 6, 3, 5), torch.rand(2, 8, 6, 10)])
    assert found.shape == (2, 1, 6, 10)
    assert (found == LOG_SPREAD_LIMITS[1]).all()


def test_depth_is_that_of_the_network_without_the_head_and_takes_no_gradient():
    plain, sure = small().eval(), small(confidence=True)
    left = sure.load_state_dict(plain.state_dict(), strict=False)
    assert all(name.startswith('confidence_head.') for name in left.missing_keys)
    sure.train()
    picture = torch.randn(2, 3, *SIZE_HW)
    with torch.no_grad():
        depth, confidence = sure.predict(picture)
        assert torch.equal(depth, plain(picture))  # norms of a training batch would change it
    assert confidence.shape == (2, 1, SIZE_HW[0] // 2, SIZE_HW[1] // 2)
    named = dict(sure.named_parameters())
    learns = {name for name, parameter in named.items() if parameter.requires_grad}
    assert learns == {name for name in named if name.startswith('confidence_head.')}
    [group] = sure.parameter_groups().values()
    assert len(group) == len(learns)
    build_objective('confidence').losses(sure, batch_of(1))['loss'].backward()
    assert all((p.grad is not None) == (name in learns) for name, p in named.items())
    assert len(plain.predict(picture)) == 1


def test_objective_and_option_belong_together():
    with pytest.raises(OptionError, match=r'network\.options\.confidence=true'):
        build_objective('confidence').check(small())
    with pytest.raises(OptionError, match='leave the option out to train depth'):
        build_objective('supervised', losses={'l1': 1.0}).check(small(confidence=True))


def test_validation_calibrates_both_networks_by_all_its_frames():
    objective, networks = build_objective('confidence'), [small(confidence=True) for _ in 'ab']
    for network in networks:
        torch.nn.init.normal_(network.confidence_head.fine.weight, std=0.1)
        network.eval()
    networks[1].load_state_dict(networks[0].state_dict())
    objective.begin_validation()
    batches = [batch_of(seed) for seed in (2, 3)]
    scores = [objective.scores(networks[1], batch)['nll'] for batch in batches]
    assert torch.cat(scores).isfinite().all()
    doubled = []
    logged = objective.end_validation(networks, lambda x: doubled.append(x) or 2 * x)
    known = sum(int((batch['depth'] > 0).sum()) for batch in batches)
    assert int(doubled[0][0].sum()) == known
    assert {'calibration', 'log_loss', 'right', 'slope', 'offset'} == set(logged)
    for network in networks:
        assert float(network.confidence_head.slope) == pytest.approx(logged['slope'])
        assert float(network.confidence_head.offset) == pytest.approx(logged['offset'])
    with torch.no_grad():
        claimed = [networks[0].predict(networks[0].normalise(batch['rgb']))[1]
                   for batch in batches]  # fmt: skip
    claimed = torch.cat([
        torch.nn.functional.interpolate(maps, SIZE_HW, mode='bilinear')[batch['depth'] > 0]
        for maps, batch in zip(claimed, batches, strict=True)])  # fmt: skip
    assert float(claimed.mean()) == pytest.approx(logged['right'], abs=0.02)


def config(root, folder, **changes):
    raw = {
        'network': {'name': 'small', 'options': {
            'size_hw': list(SIZE_HW), 'canonical_focal_px': 96.0, 'pretrained': False}},
        'data': {'root': str(root), 'batch_size': 2, 'workers': 0, 'val_frames': 2},
        'optim': {'lr': 1e-2, 'ema_decay': 0.9},
        'run': {'folder': str(folder), 'max_steps': 3, 'val_every_steps': 3, 'threads': 1},
    }  # fmt: skip
    for section, values in changes.items():
        raw.setdefault(section, {}).update(values)
    return config_from_dict(raw)


def test_second_stage_leaves_depth_bit_by_bit_and_ends_calibrated(frames_root, tmp_path, capsys):
    train(config(frames_root, tmp_path / 'depth'), progress_bar=False)
    first = tmp_path / 'depth' / 'last.ckpt'
    before = network_of(read_checkpoint(first)).state_dict()
    stage = {
        'objective': {'name': 'confidence', 'options': {}},
        'network': {'options': {'size_hw': list(SIZE_HW), 'canonical_focal_px': 96.0,
                                'pretrained': False, 'confidence': True}},
        'run': {'val_every_steps': 50},  # the validation at the end is the only one
    }  # fmt: skip
    with pytest.raises(RunError, match='--init'):
        train(config(frames_root, tmp_path / 'none', **stage), progress_bar=False)
    manifest = train(config(frames_root, tmp_path / 'sure', **stage), init=first,
                     progress_bar=False)  # fmt: skip
    assert 'begin anew: confidence_head.' in capsys.readouterr().err
    final = manifest['final']
    assert math.isfinite(final['val/nll'])
    assert final['val/calibration'] < 0.1
    for name in ('best.ckpt', 'last.ckpt'):
        checkpoint = read_checkpoint(tmp_path / 'sure' / name)
        after = network_of(checkpoint).state_dict()
        own = {key.removeprefix('network.'): value
               for key, value in checkpoint['state_dict'].items()}  # fmt: skip
        for weights in (after, own):
            assert all(torch.equal(weights[key], value) for key, value in before.items())
        assert float(after['confidence_head.slope']) != 1
        for value in ('slope', 'offset'):
            assert float(after[f'confidence_head.{value}']) == pytest.approx(
                final[f'val/{value}'], abs=1e-5)
        assert float(after['confidence_head.slope']) == float(own['confidence_head.slope'])
    fresh = ConfidenceHead([48, 32]).state_dict()
    assert not torch.equal(after['confidence_head.coarse.bias'], fresh['coarse.bias'])

    # on with depth from a network that has the head: it is left out, and said
    train(config(frames_root, tmp_path / 'again', run={'max_steps': 1}), init=(
        tmp_path / 'sure' / 'best.ckpt'), progress_bar=False)  # fmt: skip
    assert 'not used: confidence_head.' in capsys.readouterr().err
    assert not network_of(read_checkpoint(tmp_path / 'again' / 'last.ckpt')).has_confidence


def test_preset_asks_for_the_network_that_it_goes_on_with(frames_root, tmp_path, capsys):
    preset = presets_folder() / 'small_confidence.yaml'
    code = main(['train', '--config', str(preset), '--data', str(frames_root), '--out',
                 str(tmp_path / 'run'), '--no-progress', 'network.options.pretrained=false',
                 'data.batch_size=2'])  # fmt: skip
    assert code != 0
    assert '--init runs/small/best.ckpt' in capsys.readouterr().err
