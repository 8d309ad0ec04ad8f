"""`depth-node doctor` and `depth-node bench` as processes."""

from __future__ import annotations

import json
import subprocess
import sys

from depth_node.backends import cuda
import pytest

pytest.importorskip('onnxruntime')


def checks_of(result):
    return {(c['section'], c['name']): c for c in json.loads(result.stdout)['checks']}


def test_doctor_finds_what_is_here(cli, tiny_card):
    tiny_card()
    result = cli('doctor', '--json')
    assert result.returncode == 0, result.stdout
    checks = checks_of(result)
    assert checks['backends', 'onnxruntime']['status'] == 'ok'
    assert checks['models', 'tiny']['status'] == 'ok'
    assert '% off' in checks['models', 'tiny']['found']
    text = cli('doctor')
    assert text.returncode == 0
    assert 'this machine can turn pictures into depth' in text.stdout


def test_doctor_says_why_each_gpu_route_is_closed_here(cli, tiny_card):
    if not cuda.why_not():
        pytest.skip('this machine has a GPU')
    tiny_card()
    checks = checks_of(cli('doctor', '--json'))
    assert checks['backends', 'tensorrt']['found'].startswith(cuda.why_not())
    for name in ('onnxruntime-tensorrt', 'onnxruntime-cuda'):
        assert checks['backends', name]['status'] == 'note'
        assert checks['backends', name]['found']
    assert checks['GPU', 'CUDA']['found'] == cuda.why_not()
    assert checks['backends', 'auto']['found'].startswith('tries ')


def test_doctor_names_a_bad_model(cli, tiny_card):
    tiny_card()
    tiny_card('liar', changes={'check': {'mean': 9.0}})
    checks = checks_of(cli('doctor', '--json'))
    assert checks['models', 'liar']['status'] == 'note'
    assert 'self-check failed' in checks['models', 'liar']['found']
    assert checks['models', 'tiny']['status'] == 'ok'


def test_doctor_without_backends_fails_and_tells_the_cure(environment, tmp_path):
    code = ('import sys; sys.modules.update(dict.fromkeys(["openvino", "onnxruntime"])); '
            'from depth_node.cli import main; sys.exit(main(["doctor"]))')
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                            env=environment, cwd=tmp_path, timeout=60)
    assert result.returncode == 1
    assert 'FAIL  any' in result.stdout
    assert "pip install '.[cpu]' in the clone" in result.stdout


def test_doctor_sees_the_fast_dds_profile(cli, tiny_card, tmp_path):
    pytest.importorskip('rclpy')
    tiny_card()
    profile = tmp_path / 'profile.xml'
    profile.write_text('<dds/>')
    fast = {'RMW_IMPLEMENTATION': 'rmw_fastrtps_cpp'}
    name = ('large messages', 'Fast DDS profile')
    with_it = checks_of(cli('doctor', '--json', FASTDDS_DEFAULT_PROFILES_FILE=str(profile),
                            **fast))
    assert with_it[name]['status'] == 'ok'
    wrong = checks_of(cli('doctor', '--json', FASTDDS_DEFAULT_PROFILES_FILE='/no/such', **fast))
    assert wrong[name]['status'] == 'note'
    assert '/no/such' in wrong[name]['found']


def test_bench_measures_every_stage_of_every_backend(cli, tiny_card):
    tiny_card(int8_gain=0.0201)
    result = cli('bench', '--model', 'tiny', '--rounds', 2, '--iterations', 3, '--size', '80x48',
                 '--distorted', '--json')
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document['size_hw'] == [48, 80]
    pairs = {(r['backend'], r['precision']) for r in document['results']}
    assert {('onnxruntime', 'fp32'), ('onnxruntime', 'int8')} <= pairs
    for row in document['results']:
        assert row['network_ms']['n'] == 6
        assert 0 < row['network_ms']['min'] <= row['network_ms']['p50'] <= row['network_ms']['p99']
        stages = row['pipeline_ms']
        assert stages['total']['n'] == 6
        assert stages['rectify']['p50'] > 0
        assert stages['total']['min'] > stages['network']['min']
        assert row['start']['wall_s'] > row['start']['open_s'] > 0
        assert 20 < row['start']['rss_mb'] < 350


def test_bench_for_people(cli, tiny_card):
    tiny_card()
    result = cli('bench', '--model', 'tiny', '--backends', 'onnxruntime', '--rounds', 1,
                 '--iterations', 2, '--no-start')
    assert result.returncode == 0, result.stderr
    assert 'onnxruntime fp32' in result.stdout
    assert 'all but network' in result.stdout


def test_bench_without_anything_to_measure(cli, tiny_card):
    tiny_card()
    result = cli('bench', '--model', 'tiny', '--precisions', 'int8')
    assert result.returncode == 1
    assert 'no int8 file' in result.stderr


def test_benchmark_script_keeps_the_figures(repository, environment, tiny_card, tmp_path):
    tiny_card()
    result = subprocess.run(
        [sys.executable, str(repository / 'benchmarks' / 'backends.py'), '--name', 'here',
         '--out', 'results', '--', '--model', 'tiny', '--rounds', '1', '--iterations', '2',
         '--no-start'],
        capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    assert result.returncode == 0, result.stderr
    document = json.loads((tmp_path / 'results' / 'backends-here.json').read_text())
    assert document['model'] == 'tiny'
    assert document['results'][0]['backend'] in result.stdout
