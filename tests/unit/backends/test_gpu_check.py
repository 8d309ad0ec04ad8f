"""scripts/gpu/check.sh and the doctor on a machine with a GPU, as far as stand-ins go."""

from __future__ import annotations

import json
import os
from pathlib import Path
import subprocess
import sys

from depth_node.backends import cuda
from depth_node.cli import doctor
import pytest

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

FAKE = Path(__file__).resolve().parents[2] / 'data' / 'fake_tensorrt'


@pytest.fixture
def check(repository, fake_library, tiny_card, tmp_path):
    """Return a function that runs the script on a tiny model, with or without a GPU."""
    def run(*, gpu=True, **settings):
        card = tiny_card()
        environment = {
            **os.environ, 'PYTHON': sys.executable, 'PYTHONPATH': str(FAKE),
            'FAKE_CUDART': fake_library.path, 'FAKE_TENSORRT': json.dumps(settings),
            'DEPTH_NODE_MODELS': str(tmp_path), 'XDG_DATA_HOME': str(tmp_path / 'nothing'),
            'XDG_CACHE_HOME': str(tmp_path / 'cache')}
        if gpu:  # the loader finds the stand-in before any real one
            environment['LD_LIBRARY_PATH'] = str(Path(fake_library.path).parent)
        return subprocess.run(
            [str(repository / 'scripts' / 'gpu' / 'check.sh'), '--model', str(card.path),
             '--frames', '30', '--out', str(tmp_path / 'results')],
            capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    return run


def test_check_builds_compares_times_and_keeps_the_figures(check, tmp_path):
    result = check()
    assert result.returncode == 0, result.stdout + result.stderr
    document = json.loads((tmp_path / 'results' / 'gpu-fake-orin.json').read_text())
    assert (document['gpu'], document['sm'], document['ok']) == ('Fake Orin', 87, True)
    rows = {row['precision']: row for row in document['results'] if row['backend'] == 'tensorrt'}
    assert list(rows) == ['fp16', 'mixed', 'fp32']
    for row in rows.values():
        assert row['max_rel'] < 1e-5
        assert row['graph_problem'] == ''
        assert row['gpu_memory_grown_bytes'] == 0
        for key in ('wall_ms', 'gpu_ms', 'wall_ms_without_graph', 'gpu_ms_without_graph'):
            assert row[key]['n'] == 30
            assert 0 < row[key]['min'] <= row[key]['p50'] <= row[key]['p99']
        assert row['lent']['max_rel'] == 0
        for key in ('wall_ms', 'results_stay_wall_ms'):
            assert row['lent'][key]['n'] == 30
        assert row['gpu_ms']['p50'] == 1.0  # what the stand-in takes for three works and an event
    refused = {(row['backend'], row['precision']): row['reason'] for row in document['refused']}
    assert 'no int8_trt file' in refused['tensorrt', 'int8']
    assert 'onnxruntime-cuda' in {name for name, _ in refused}


def test_check_fails_where_tensorrt_computes_something_else(check, tmp_path):
    result = check(errors={'fp16': 0.05, 'mixed': 0.05, 'fp32': 0.1})
    assert result.returncode == 1
    assert 'TensorRT ran in no precision' in result.stderr
    assert result.stdout.count('self-check failed') == 3
    document = json.loads((tmp_path / 'results' / 'gpu-fake-orin.json').read_text())
    assert (document['ok'], document['results']) == (False, [])


@pytest.mark.skipif(cuda.why_not() == '', reason='this machine has a GPU')
def test_check_without_a_gpu_says_why_it_does_nothing(check, tmp_path):
    result = check(gpu=False)
    assert result.returncode == 1
    assert f'check: {cuda.why_not()}' in result.stderr
    assert not (tmp_path / 'results').exists()


# --- doctor


def findings(part):
    return {check.name: check for check in part()}


@pytest.fixture
def gpu_here(fake, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(FAKE)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.delitem(sys.modules, 'tensorrt', raising=False)
    yield fake
    sys.modules.pop('tensorrt', None)


def test_doctor_describes_the_gpu(gpu_here):
    found = findings(doctor._gpu)
    assert found['CUDA'].status == 'ok'
    for part in ('Fake Orin', 'SM 8.7', '1.0 GiB', 'runtime 13.0', gpu_here.path):
        assert part in found['CUDA'].found
    assert found['tensorrt'].status == 'ok'
    assert '8.6.1: FP16 from the FP32 file' in found['tensorrt'].found
    routes = findings(doctor._backends)
    assert (routes['tensorrt'].status, routes['tensorrt'].found) == ('ok', '8.6.1')
    assert routes['auto'].found.startswith('tries tensorrt, then ')


def test_doctor_says_why_each_gpu_route_is_closed(gpu_here):
    gpu_here.device(driver=11040)
    found = findings(doctor._gpu)
    assert found['CUDA'].status == 'note'
    assert 'driver is too old' in found['CUDA'].found
    assert 'of no use without CUDA' in found['tensorrt'].found
    assert 'tensorrt' not in sys.modules, 'it may crash the doctor'
    routes = findings(doctor._backends)
    for name in ('tensorrt', 'onnxruntime-tensorrt', 'onnxruntime-cuda'):
        assert routes[name].status == 'note'
        assert routes[name].found
    assert 'driver is too old' in routes['tensorrt'].found
    assert routes['auto'].found.startswith('tries ')
    assert 'tensorrt' not in routes['auto'].found


def test_doctor_counts_the_engines_and_names_broken_ones(gpu_here, tmp_path):
    from depth_node.backends.engine_cache import engines_folder
    folder = engines_folder()
    folder.mkdir(parents=True)
    (folder / f'{"0" * 32}.engine').write_bytes(b'a plan without a sidecar')
    found = findings(doctor._gpu)['engines']
    assert found.status == 'note'
    assert '1 of 0 MB' in found.found
    assert '1 of them unusable' in found.found
    assert found.advice == 'depth-node engines prune'
