"""What ONNX Runtime's TensorRT provider is told: sizes, precision, memory, place of engines."""

from __future__ import annotations

from pathlib import Path

from depth_node.backends import availability, cuda, open_backend
from depth_node.model_card import ModelCard
import numpy as np
import pytest

ort = pytest.importorskip('onnxruntime')


class Session:
    """ONNX Runtime's session on the CPU, which says that it runs on TensorRT."""

    asked = ()

    def __init__(self, path, options=None, providers=None):
        Session.asked = providers
        self._real = ort.capi.onnxruntime_inference_collection.InferenceSession(
            path, options, providers=['CPUExecutionProvider'])

    def get_providers(self):
        return [Session.asked[0][0]]

    def __getattr__(self, name):
        return getattr(self._real, name)


@pytest.fixture
def options(monkeypatch, tmp_path):
    """Return a function that opens a card by the provider; returns what it was told."""
    monkeypatch.setattr(ort, 'get_available_providers', lambda: [
        'TensorrtExecutionProvider', 'CUDAExecutionProvider', 'CPUExecutionProvider'])
    monkeypatch.setattr(cuda, 'why_not', lambda: '')
    monkeypatch.setattr(ort, 'InferenceSession', Session)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'home'))

    def told(card: ModelCard, precision='auto', cache_dir=None, lines=None):
        with open_backend(card, 'onnxruntime-tensorrt', precision, cache_dir=cache_dir,
                          tell=(lines if lines is not None else []).append) as backend:
            name, found = Session.asked[0]
            assert name == 'TensorrtExecutionProvider'
            assert Session.asked[1:] == ['CUDAExecutionProvider']
            hw = card.input.size_hw or (16, 32)
            batch = np.full((1, *hw, 3), 100, np.uint8)
            np.testing.assert_allclose(backend.run(batch)['depth'], 4.5, rtol=1e-5)
        assert all(isinstance(value, str) for value in found.values())
        return found
    return told


def test_fixed_network(options, tiny_card, tmp_path):
    found = options(tiny_card(), cache_dir=tmp_path / 'c')
    folder = Path(found['trt_engine_cache_path'])
    assert found == {
        'trt_fp16_enable': '1', 'trt_max_workspace_size': str(1024 << 20),
        'trt_engine_cache_enable': '1', 'trt_timing_cache_enable': '1',
        'trt_engine_cache_path': str(folder), 'trt_timing_cache_path': str(folder)}
    assert folder.parent == tmp_path / 'c' / 'onnxruntime-tensorrt'
    assert folder.stat().st_mode & 0o777 == 0o700


def test_dynamic_network_has_the_profile_of_the_card(options, tiny_card):
    card = tiny_card(dynamic=True)  # 16x16 to 80x80 in steps of 8
    found = options(card)
    assert {key: value for key, value in found.items() if 'profile' in key} == {
        'trt_profile_min_shapes': 'image:1x16x16x3',
        'trt_profile_opt_shapes': 'image:1x48x48x3',
        'trt_profile_max_shapes': 'image:1x80x80x3'}


def test_engines_of_other_weights_precisions_and_versions_are_apart(
    options, tiny_card, tmp_path, monkeypatch
):
    def folder(card, precision='fp16'):
        return Path(options(card, precision)['trt_engine_cache_path'])

    card = tiny_card()
    first = folder(card)
    assert first.parent == tmp_path / 'home' / 'depth_node' / 'onnxruntime-tensorrt'
    assert folder(card) == first
    assert card.precisions['fp32'].sha256[:32] in first.name
    assert folder(card, 'fp32') != first
    other = tiny_card('other', offset=0.500001)  # names and shapes are the same
    assert folder(other) != first
    monkeypatch.setattr(ort, '__version__', '9.9.9')
    assert folder(card) != first


def test_folder_that_cannot_be_made_costs_the_cache_alone(options, tiny_card, tmp_path):
    (tmp_path / 'c').mkdir()
    (tmp_path / 'c' / 'onnxruntime-tensorrt').write_text('a file where the folder should be')
    lines = []
    found = options(tiny_card(), cache_dir=tmp_path / 'c', lines=lines)
    assert not [key for key in found if 'cache' in key]
    assert any('built and not kept' in line for line in lines)


def test_other_routes_are_told_nothing(options, tiny_card):
    assert availability('onnxruntime-cuda').version == ort.__version__
    from depth_node.backends.onnxruntime import _providers

    card = tiny_card(dynamic=True)
    assert _providers('onnxruntime', card, 'fp32', None) == ['CPUExecutionProvider']
    assert _providers('onnxruntime-cuda', card, 'fp16', None) == ['CUDAExecutionProvider']
