"""The models that come with the package: whole, sound on every CPU backend, right on the clip."""

from __future__ import annotations

from pathlib import Path

import cv2
from depth_node.backends import open_backend
from depth_node.cli._demo.clip import load_clip
from depth_node.model_card import ModelCard
from depth_node.pipeline import DepthPipeline
import numpy as np
import pytest

MODELS = Path(__file__).resolve().parents[2] / 'models'
NAMES = sorted(path.stem for path in MODELS.glob('*.yaml'))
WAYS = [(backend, precision) for backend in ('onnxruntime', 'openvino')
        for precision in ('fp32', 'int8')]


def test_they_are_small_and_for_weak_computers_tiny(repository):
    assert NAMES == ['small', 'tiny']
    assert sum(path.stat().st_size for path in MODELS.iterdir()) < 40e6


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize(('backend', 'precision'), WAYS)
def test_each_way_to_run_them_sees_the_depth_of_the_clip(repository, name, backend, precision):
    pytest.importorskip(backend)
    card = ModelCard.load(MODELS / f'{name}.yaml')
    card.verify_file(precision)
    clip = load_clip(repository / 'demo' / 'clip')
    errors = []
    with open_backend(card, backend, precision, threads=1) as network:  # passes its self-check
        pipeline = DepthPipeline(network)
        for index in range(0, len(clip.pictures), 12):
            rgb = cv2.cvtColor(cv2.imread(str(clip.pictures[index])), cv2.COLOR_BGR2RGB)
            depth = pipeline.run(rgb, clip.camera, index / 30).depth
            truth = clip.true_depth(index)
            skip = depth.shape[0] // truth.shape[0]
            depth = depth[::skip, ::skip]
            both = np.isfinite(depth) & np.isfinite(truth) & (truth > 0)
            assert both.mean() > 0.7  # filters leave out what is unsure, at borders mostly
            errors.append(np.abs(depth[both] / truth[both] - 1).mean())
    assert np.mean(errors) < 0.2  # metric, as it is: no scale was fitted


@pytest.mark.parametrize('name', NAMES)
def test_cards_tell_what_was_measured_on_real_and_on_held_out_frames(repository, name):
    metrics = ModelCard.load(MODELS / f'{name}.yaml').metrics
    assert set(metrics) == {'fp32', 'int8'}
    for found in metrics.values():
        assert {'osd', 'motorcycle', 'aloe'} < set(found)
        rendered = [entry['frames'] for key, entry in found.items() if key.startswith('rendered')]
        assert max(rendered) >= 400
