"""benchmarks/int8.py: the ratio of paired rounds, accuracy by the evaluator, a verdict."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('onnxruntime')
pytest.importorskip('openvino')

CLONE = Path(__file__).resolve().parents[3]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.setenv('DEPTH_NODE_MODELS', str(CLONE / 'models'))
    spec = importlib.util.spec_from_file_location('int8_bench', CLONE / 'benchmarks' / 'int8.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def frames(tmp_path) -> Path:
    pytest.importorskip('cv2')
    source = CLONE / 'tests' / 'unit' / 'training' / 'conftest.py'
    spec = importlib.util.spec_from_file_location('frames_writer', source)
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    folder = tmp_path / 'val' / 'room-1'
    rng = np.random.default_rng(4)
    for index in range(2):
        writer.write_frame(folder, f'{index:03d}', rng)
    (folder / 'scene.json').write_text('{}')
    return tmp_path / 'val'


def test_real_run_writes_what_it_prints(script, frames, tmp_path, capsys):
    out = tmp_path / 'results' / 'int8.json'
    status = script.main(['--data', str(frames), '--rounds', '3', '--runs', '1', '--threads', '1',
                          '--out', str(out)])  # fmt: skip
    printed = capsys.readouterr().out
    document = json.loads(out.read_text())
    assert {row['backend'] for row in document['results']} == {'onnxruntime', 'openvino'}
    for row in document['results']:
        assert row['frames'] == 2
        assert row['rounds'] == 3
        assert min(row['fp32_ms'], row['int8_ms'], row['gain']) > 0
        assert row['abs_rel_change'] == pytest.approx(
            row['int8_abs_rel'] - row['fp32_abs_rel'], abs=1e-5)  # fmt: skip
        assert row['fp32_abs_rel'] != row['int8_abs_rel']  # two files were measured
        assert f'{row["gain"]:.2f}' in printed
    assert document['machine']['cpu'] == script.cpu_name()
    assert status == (0 if all(row['passed'] for row in document['results']) else 1)


def test_gain_is_the_median_of_the_rounds_ratios(script, monkeypatch):
    """A machine that slows down between rounds changes both times and no ratio."""
    from depth_node.model_card import ModelCard

    times = {'fp32': iter([9.0, 4.0, 40.0, 8.0]), 'int8': iter([9.0, 2.0, 10.0, 4.0])}
    order = []

    def measured(backend, batch, runs):
        order.append(backend.precision)
        return next(times[backend.precision])

    monkeypatch.setattr(script, 'median_ms', measured)
    card = ModelCard.load(CLONE / 'models' / 'small.yaml')
    row = script.gains(card, 'onnxruntime', 3, 5, 1)
    assert row['gain'] == 2.0  # of 4/2, 40/10 and 8/4; the first pair warms up
    assert (row['fp32_ms'], row['int8_ms']) == (8.0, 4.0)
    assert order == ['fp32', 'int8', 'fp32', 'int8', 'int8', 'fp32', 'fp32', 'int8']


@pytest.mark.parametrize(
    ('gain', 'int8', 'status'), [(1.3, 0.295, 0), (1.2, 0.295, 1), (1.3, 0.32, 1)]
)
def test_verdict(script, monkeypatch, tmp_path, gain, int8, status):
    monkeypatch.setattr(script, 'gains', lambda card, name, *rest: {
        'backend': name, 'gain': gain, 'gain_quartiles': [1.0, 2.0], 'fp32_ms': 2.0,
        'int8_ms': 1.0})  # fmt: skip
    monkeypatch.setattr(script, 'abs_rel', lambda model, name, precision, *rest: {
        'frames': 5, 'abs_rel': int8 if precision == 'int8' else 0.3})  # fmt: skip
    assert script.main(['--data', 'x', '--out', str(tmp_path / 'r.json')]) == status


def test_model_without_an_int8_file(script, tiny_card, tmp_path, capsys):
    card = tiny_card()
    assert script.main(['--model', str(card.path), '--data', 'x', '--out', 'r.json']) == 1
    assert 'no int8 file: depth-node quantize' in capsys.readouterr().err
