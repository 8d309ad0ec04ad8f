"""`depth-node evaluate` as a process, with a network in closed form: its error is known."""

from __future__ import annotations

import json

import cv2
from depth_node.model_card import ModelCard
import numpy as np
import pytest

SIZE_HW = (24, 40)  # of the tiny network: no resize between picture and depth
FACTOR = 1.25


def picture(seed):
    generator = np.random.default_rng(seed)
    coarse = generator.integers(20, 235, (6, 10, 3), np.uint8)
    return cv2.resize(coarse, SIZE_HW[::-1], interpolation=cv2.INTER_CUBIC)


def predicted(rgb):
    """What the tiny network computes (tests/unit/conftest.py): 0.5 to about 10.7 m."""
    return 0.02 * (rgb.astype(np.float64) @ [1, 2, 3]) / 3 + 0.5


def ramp(_):
    """A smooth picture, without jumps for a filter to find: 3.3 to 4.9 m from left to right."""
    grey = np.broadcast_to(np.linspace(70, 110, 40).astype(np.uint8), (24, 40))
    return np.repeat(grey[..., None], 3, axis=2)


def write_rendered(root, count=3, scene='room_0', suffix='.jpg', make=None):
    """Write frames whose truth is the network's own answer divided by FACTOR."""
    folder = root / 'test' / scene
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        rgb = (make or picture)(i)
        cv2.imwrite(str(folder / f'{i:04d}.jpg'), rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])
        seen = cv2.imread(str(folder / f'{i:04d}.jpg'))[..., ::-1]  # as the reader sees it
        true_mm = np.rint(1000 * predicted(seen) / FACTOR).astype(np.uint16)
        true_mm[:3, :5] = 0
        cv2.imwrite(str(folder / f'{i:04d}.depth.png'), true_mm)
        camera = {'fx': 30.0, 'fy': 31.0, 'cx': 19.0, 'cy': 12.5, 'width': 40, 'height': 24}
        (folder / f'{i:04d}.json').write_text(json.dumps(camera))
    return root


@pytest.mark.parametrize('option', ['--out', '--summary'])
def test_a_folder_that_cannot_be_is_said_before_anything_is_measured(
    cli, tiny_card, tmp_path, option
):
    tiny_card()
    write_rendered(tmp_path / 'frames')
    (tmp_path / 'file').write_text('kept')
    place = 'file' if option == '--out' else 'file/report.md'
    result = cli('evaluate', '--model', 'tiny', '--data', 'rendered:frames', '--backend',
                 'onnxruntime', option, place)
    assert result.returncode == 1
    assert f'{option}: file cannot be a folder' in result.stderr
    assert 'rendered/test' not in result.stdout
    assert (tmp_path / 'file').read_text() == 'kept'


def test_measures_the_real_pipeline_and_writes_everything(cli, tiny_card, tmp_path):
    tiny_card()
    write_rendered(tmp_path / 'frames')
    result = cli('evaluate', '--model', 'tiny', '--data', 'rendered:frames', '--backend',
                 'onnxruntime', '--max-depth', '20', '--out', 'report')
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if line.startswith('rendered')]
    assert [row[:4] for row in rows] == [
        ['rendered/test', '3', mode, align]
        for mode in ('per-image', 'pooled') for align in ('none', 'median', 'affine')]
    assert float(rows[0][4]) == pytest.approx(FACTOR - 1, abs=0.001)
    assert float(rows[1][4]) == pytest.approx(0, abs=0.001)
    assert float(rows[2][4]) == pytest.approx(0, abs=0.001)
    assert rows[0][-2:] == ['100.0', '%']
    data = json.loads((tmp_path / 'report' / 'results.json').read_text())
    assert data['precision'] == 'fp32'
    assert data['backend'].startswith('onnxruntime ')
    assert data['sha256'] == ModelCard.load(tmp_path / 'tiny.yaml').precisions['fp32'].sha256
    assert data['rows'][0]['plane_abs_rel'] > 0.05
    assert data['rows'][0]['ratio_to_plane'] == pytest.approx(
        data['rows'][0]['abs_rel'] / data['rows'][0]['plane_abs_rel'])
    assert data['command'] == (
        'depth-node evaluate --model tiny --data rendered:frames --backend onnxruntime '
        '--max-depth 20.0')
    text = (tmp_path / 'report' / 'report.md').read_text()
    assert data['sha256'][:12] in text
    assert 'truth 0.001 to 20 m' in text
    page = cv2.imread(str(tmp_path / 'report' / 'examples_rendered_test.png'))
    assert page is not None
    assert page.shape[1] >= 4 * 40


def test_json_goes_to_stdout_alone(cli, tiny_card, tmp_path):
    tiny_card()
    write_rendered(tmp_path / 'frames', 1)
    result = cli('evaluate', '--model', 'tiny', '--data', 'rendered:frames', '--align', 'median',
                 '--mode', 'pooled', '--json', '--max-depth', '20')
    assert result.returncode == 0, result.stderr
    (row,) = json.loads(result.stdout)['rows']
    assert (row['mode'], row['alignment'], row['frames']) == ('pooled', 'median', 1)


def test_a_folder_of_png_and_npy_with_k(cli_here, tiny_card, tmp_path):
    tiny_card()
    (tmp_path / 'mine').mkdir()
    rgb = picture(7)
    cv2.imwrite(str(tmp_path / 'mine/a.png'), rgb[..., ::-1])
    np.save(tmp_path / 'mine/a.npy', predicted(rgb) / FACTOR)
    result = cli_here('evaluate', '--model', 'tiny', '--data', 'folder:mine', '--k',
                      '30,31,19,12', '--json', '--max-depth', '20')
    assert result.returncode == 0, result.stderr
    row = json.loads(result.stdout)['rows'][0]
    assert row['abs_rel'] == pytest.approx(FACTOR - 1, rel=1e-5)
    assert row['rms'] == pytest.approx(
        np.sqrt(np.mean((predicted(rgb) * (1 - 1 / FACTOR)) ** 2)), rel=1e-5)


def test_update_card_keeps_the_card_usable(cli_here, tiny_card, tmp_path):
    tiny_card()
    write_rendered(tmp_path / 'frames')
    call = ['evaluate', '--model', 'tiny', '--data', 'rendered:frames', '--max-depth', '20',
            '--update-card']
    result = cli_here(*call)
    assert result.returncode == 0, result.stderr
    card = ModelCard.load(tmp_path / 'tiny.yaml')
    entry = card.metrics['fp32']['rendered/test']
    assert entry['none']['abs_rel'] == pytest.approx(FACTOR - 1, abs=0.001)
    assert entry['frames'] == 3
    assert entry['command'].startswith('depth-node evaluate --model tiny --data rendered:frames')
    assert len(entry['date']) == len('2026-11-21')
    assert card.check is not None
    assert cli_here(*call).returncode == 0  # the written card still passes its self-check


def test_filters_are_off_unless_asked_for(cli_here, tiny_card, tmp_path):
    tiny_card(changes={'output': {'range_m': [0.2, 4.0]}})
    write_rendered(tmp_path / 'frames', 1, make=ramp)
    call = ['evaluate', '--model', 'tiny', '--data', 'rendered:frames', '--max-depth', '20',
            '--json']
    coverage = [json.loads(cli_here(*call, *more).stdout)['datasets'][0]['coverage']
                for more in ([], ['--filters'])]
    assert coverage[0] == 1
    assert 0.3 < coverage[1] < 0.6  # beyond 4 m the product gives +Inf


def test_a_broken_frame_is_named_and_the_others_measured(cli_here, tiny_card, tmp_path):
    tiny_card()
    write_rendered(tmp_path / 'frames')
    (tmp_path / 'frames/test/room_0/0001.jpg').write_bytes(b'nothing')
    result = cli_here('evaluate', '--model', 'tiny', '--data', 'rendered:frames')
    assert result.returncode == 0
    assert 'skipped room_0/0001' in result.stderr
    assert '0001.jpg: not a readable picture' in result.stderr
    assert result.stdout.splitlines()[3].split()[1] == '2'


def test_one_useless_data_set_fails_the_call_after_the_others(cli_here, tiny_card, tmp_path):
    tiny_card()
    write_rendered(tmp_path / 'frames', 1)
    (tmp_path / 'bad').mkdir()
    (tmp_path / 'bad/a.jpg').write_bytes(b'nothing')
    np.save(tmp_path / 'bad/a.npy', np.full((24, 40), 2.0))
    before = (tmp_path / 'tiny.yaml').read_bytes()
    result = cli_here('evaluate', '--model', 'tiny', '--data', 'folder:bad', '--data',
                      'rendered:frames', '--update-card')
    assert result.returncode == 1
    assert 'bad: none of 1 frames could be measured' in result.stderr
    assert 'rendered/test' in result.stdout
    assert 'the card was not changed' in result.stderr
    assert (tmp_path / 'tiny.yaml').read_bytes() == before


def test_same_data_set_twice_keeps_two_names(cli_here, tiny_card, tmp_path):
    tiny_card()
    write_rendered(tmp_path / 'a', 1)
    write_rendered(tmp_path / 'b', 2)
    result = cli_here('evaluate', '--model', 'tiny', '--data', 'rendered:a', '--data',
                      'rendered:b', '--json')
    names = [item['name'] for item in json.loads(result.stdout)['datasets']]
    assert names == ['rendered/test', 'rendered/test-2', 'rendered (2 sets)']


def test_folders_of_different_recipes_are_given_apart_and_together(cli_here, tiny_card, tmp_path):
    tiny_card()
    write_rendered(tmp_path / 'a', 2, 'room-000009')
    write_rendered(tmp_path / 'b', 1, 'table-000022')
    (tmp_path / 'a/meta.json').write_text('[]')
    (tmp_path / 'b/meta.json').write_text('{"recipe": 2, "generator": {"renderer": "raycast"}}')
    write_rendered(tmp_path / 'b', 2, 'room-000034')
    result = cli_here('evaluate', '--model', 'tiny', '--data', 'rendered:a', '--data',
                      'rendered:b', '--json', '--max-depth', '20')
    data = json.loads(result.stdout)
    counts = [{scene: item['frames'] for scene, item in found['scenes'].items()}
              for found in data['datasets']]
    assert counts == [{'room': 2}, {'room': 2, 'table': 1}, {'room': 4, 'table': 1}]
    assert data['datasets'][0]['note'].endswith('test split of rendered a')
    assert data['datasets'][1]['note'].endswith('test split of rendered b, recipe 2, raycast')
    assert data['rows'][-1]['frames'] == 5
    ranges = data['datasets'][2]['ranges']['none']
    assert sum(item['pixels'] for item in ranges) == 5 * (24 * 40 - 3 * 5)
    for item in ranges:
        if item['pixels']:
            assert item['abs_rel'] == pytest.approx(FACTOR - 1, abs=0.003)


def test_a_baseline_is_another_model_or_an_earlier_report(cli_here, tiny_card, tmp_path):
    tiny_card()
    tiny_card('worse', gain=0.04, offset=1.0)  # twice the depth: AbsRel 2 * 1.25 - 1
    write_rendered(tmp_path / 'frames', 2)
    call = ['evaluate', '--model', 'tiny', '--data', 'rendered:frames', '--max-depth', '50',
            '--align', 'none', '--backend', 'onnxruntime']
    first = cli_here(*call, '--baseline', 'worse', '--summary', 'kept/small.md')
    assert first.returncode == 0, first.stderr
    assert ('rendered/test none: AbsRel 0.250 instead of 1.500; better in 2, worse in 0 of 2 '
            'frames (by more than 0.5 %), median of their ratios 0.17') in first.stdout
    text = (tmp_path / 'kept/small.md').read_text()
    assert '| rendered/test | none | 2 | 0.250 | 1.500 | 2 | 0 | 0.17 |' in text
    assert '--baseline worse' in text
    assert cli_here(*call[:1], '--model', 'worse', *call[3:], '--out', 'old').returncode == 0
    second = cli_here(*call, '--baseline', 'old/results.json', '--json')
    data = json.loads(second.stdout)['comparison']
    assert data['baseline'].startswith('worse fp32 (worse.onnx')
    assert data['datasets'][0]['better'] == 2
    assert data['datasets'][0]['median_ratio'] == pytest.approx(0.25 / 1.5, abs=1e-3)


def test_an_unusable_baseline_is_refused(cli_here, tiny_card, tmp_path):
    tiny_card()
    write_rendered(tmp_path / 'frames', 1)
    call = ['evaluate', '--model', 'tiny', '--data', 'rendered:frames', '--baseline']
    for name, words in (('none.json', 'none.json: not readable'), ('nothing', 'nothing')):
        result = cli_here(*call, name)
        assert result.returncode == 1
        assert words in result.stderr
        assert 'rendered/test' not in result.stdout  # before anything was measured
    assert cli_here(*call[:-1], '--out', 'old', '--max-depth', '20').returncode == 0
    result = cli_here(*call, 'old/results.json')
    assert result.returncode == 1
    assert 'max_depth_m 20.0, this run with 10.0' in result.stderr


@pytest.mark.parametrize(('options', 'status', 'text'), [
    (['--data', 'nyu:x'], 1, "unknown kind 'nyu'"),
    (['--data', 'rendered:nowhere'], 1, 'nowhere/test: no such folder'),
    ([], 2, '--data'),
    (['--data', 'rendered:frames', '--align', 'scale'], 2, 'none,median,affine'),
    (['--data', 'rendered:frames', '--mode', 'mean'], 2, 'per-image,pooled'),
    (['--data', 'rendered:frames', '--k', '1,2'], 2, 'FX,FY,CX,CY'),
    (['--data', 'rendered:frames', '--k', '1,2,3,4'], 2, '--k is for folder'),
    (['--data', 'rendered:frames', '--min-depth', '12'], 2, 'not below --max-depth'),
    (['--data', 'rendered:frames', '--protocol', 'nyu'], 2, 'nyu_eigen'),
    (['--data', 'rendered:frames', '--protocol', 'nyu_eigen', '--min-depth', '12'], 2,
     '--min-depth 12 is not below --max-depth 10'),
    (['--data', 'rendered:frames', '--protocol', 'nyu_eigen'], 1, 'this is 24x40'),
    (['--data', 'rendered:frames', '--crop', 'garg'], 2, 'kitti_garg'),
    (['--data', 'rendered:frames', '--flip', 'yes'], 2, 'ramp'),
    (['--data', 'rendered:frames', '--scale', '0'], 2, 'above 0'),
    (['--data', 'rendered:frames', '--checkpoint', 'none.ckpt'], 2, 'drop --model'),
    (['--data', 'rendered:frames', '--update-card', '--limit', '1'], 2, 'drop --limit'),
    (['--data', 'rendered:frames', '--model', 'nothing'], 1, 'nothing'),
    (['--data', 'rendered:frames', '--backend', 'cuda'], 1, "backend 'cuda'"),
])
def test_wrong_usage_is_explained(cli_here, tiny_card, tmp_path, options, status, text):
    tiny_card()
    write_rendered(tmp_path / 'frames', 1)
    result = cli_here('evaluate', *(options if '--model' in options else
                                    ['--model', 'tiny', *options]))
    assert result.returncode == status
    assert text in result.stderr
    assert 'Traceback' not in result.stderr


def test_a_named_protocol_sets_the_rules_and_options_change_them(cli_here, tiny_card, tmp_path):
    tiny_card()
    write_rendered(tmp_path / 'frames', 1)
    call = ['evaluate', '--model', 'tiny', '--data', 'rendered:frames', '--json']
    data = json.loads(cli_here(*call, '--protocol', 'kitti_garg').stdout)
    assert [(row['mode'], row['alignment']) for row in data['rows']] == [
        ('per-image', 'none'), ('per-image', 'median')]
    assert data['protocol']['name'] == 'kitti_garg'
    assert data['protocol']['max_depth_m'] == 80
    assert data['command'].endswith('--protocol kitti_garg')
    # Garg's rows and columns of a 24x40 picture: 9:23, 1:38
    assert data['datasets'][0]['frames'][0]['known_pixels'] == (23 - 9) * (38 - 1)
    data = json.loads(cli_here(*call, '--protocol', 'kitti_garg', '--crop', 'none', '--mode',
                               'pooled', '--max-depth', '80').stdout)
    assert data['protocol']['name'] == 'kitti_garg (changed: modes, crop)'
    assert data['rows'][0]['crop'] == 'none'
    assert {row['mode'] for row in data['rows']} == {'pooled'}


def test_flip_and_resizing_reach_the_pipeline(cli_here, tiny_card, tmp_path):
    """The tiny network looks at single pixels, so a mirrored picture changes nothing."""
    tiny_card(size_hw=(12, 20))
    write_rendered(tmp_path / 'frames', 2)
    call = ['evaluate', '--model', 'tiny', '--data', 'rendered:frames', '--json', '--align',
            'none', '--mode', 'pooled', '--max-depth', '20', '--backend', 'onnxruntime']
    found = {}
    for name, more in (('plain', []), ('flip', ['--flip', 'mean']),
                       ('inverse', ['--resize-in', 'inv_depth'])):
        data = json.loads(cli_here(*call, *more).stdout)
        found[name] = data['rows'][0]['abs_rel']
    assert found['flip'] == pytest.approx(found['plain'], rel=1e-3)
    # harmonic means of neighbours are smaller than arithmetic ones, and all is too far here
    assert found['inverse'] < found['plain'] - 1e-5


def test_a_given_scale_makes_a_prediction_metric(cli_here, tiny_card, tmp_path):
    tiny_card(changes={'output': {'kind': 'rel_depth', 'unit': 'none', 'range_m': None}})
    write_rendered(tmp_path / 'frames', 2)
    call = ['evaluate', '--model', 'tiny', '--data', 'rendered:frames', '--json',
            '--max-depth', '20']
    rows = json.loads(cli_here(*call).stdout)['rows']
    assert {row['alignment'] for row in rows} == {'median', 'affine_depth'}
    scaled = json.loads(cli_here(*call, '--scale', 1 / FACTOR).stdout)
    row = scaled['rows'][0]
    assert row['alignment'] == 'none'
    assert row['abs_rel'] == pytest.approx(0, abs=0.001)
    assert '--scale 0.8' in scaled['command']


def test_median_scaling_of_a_disparity_network_on_request(cli_here, tiny_card, tmp_path):
    tiny_card(changes={'output': {'kind': 'rel_inv_depth', 'unit': 'none', 'range_m': None}})
    write_rendered(tmp_path / 'frames', 2)
    result = cli_here('evaluate', '--model', 'tiny', '--data', 'rendered:frames', '--json',
                      '--align', 'median')
    rows = json.loads(result.stdout)['rows']
    assert {row['alignment'] for row in rows} == {'median'}
    assert rows[0]['scale_std'] is not None


def test_the_help_knows_all_protocols(cli_here):
    from depth_node.cli import evaluate as verb
    from depth_node.evaluation import metrics, protocols
    assert set(verb._PROTOCOLS) == set(protocols.PROTOCOLS)
    assert verb._CROPS == protocols.CROPS
    assert set(verb._SPACES) == set(protocols.SPACES)
    assert verb._FLIPS == protocols.FLIPS
    assert verb._ALIGNMENTS == tuple(metrics.ALIGNMENTS)
    assert verb._MODES == protocols.MODES


def test_a_relative_network_is_measured_affine_only(cli_here, tiny_card, tmp_path):
    tiny_card(changes={'output': {'kind': 'rel_inv_depth', 'unit': 'none', 'range_m': None}})
    write_rendered(tmp_path / 'frames', 1)
    result = cli_here('evaluate', '--model', 'tiny', '--data', 'rendered:frames', '--json')
    assert result.returncode == 0, result.stderr
    assert {row['alignment'] for row in json.loads(result.stdout)['rows']} == {'affine'}
    alone = cli_here('evaluate', '--model', 'tiny', '--data', 'rendered:frames', '--align', 'none')
    assert alone.returncode == 1
    assert 'add affine to --align' in alone.stderr
