"""Traps between training and what runs a network: one meaning of a card's output on both sides.

The other traps of depth papers are tested beside their subjects, as test_trap_NN_...
"""

from __future__ import annotations

import math
from pathlib import Path

from depth_node.camera import Camera
from depth_node.filters import FilterSettings
from depth_node.model_card import OUTPUT_KINDS, InputSpec, ModelCard, OutputSpec
from depth_node.pipeline import DepthPipeline
from depth_node.postprocess import to_depth
from depth_node.preprocess import ResizePlan, network_size
import numpy as np
import pytest

torch = pytest.importorskip('torch')
from depth_node.training.networks import build_network  # noqa: E402
from depth_node.training.networks.base import DepthNetwork  # noqa: E402
from depth_node.training.networks.card import output_spec  # noqa: E402
from depth_node.training.objectives.base import as_depth, truth  # noqa: E402

NETWORK_HW = (96, 128)
NO_FILTERS = FilterSettings.off()


class Answer:
    """A backend that returns the maps it was given."""

    name, precision, device = 'answer', 'fp32', 'test'

    def __init__(self, output: OutputSpec, inputs: InputSpec, **maps: np.ndarray) -> None:
        self.card = ModelCard('answer', Path(), 'none', inputs, output, {})
        self.maps = {name: values[None, None] for name, values in maps.items()}

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        self.size_hw = batch.shape[1:3]
        return self.maps

    def close(self) -> None:
        pass


class Canonical(DepthNetwork):
    """Says of what it is; predicts nothing."""

    output_kind = 'canonical_depth'
    depth_range_m = (0.1, 200.0)

    def __init__(self, size_hw: tuple[int, int], canonical_focal_px: float) -> None:
        super().__init__()
        self.size_hw = self.output_hw = size_hw
        self.canonical_focal_px = canonical_focal_px

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


def raw_map(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.2, 3.0, NETWORK_HW).astype(np.float32)


@pytest.mark.parametrize('kind', [kind for kind in OUTPUT_KINDS if kind != 'canonical_depth'])
def test_trap_21_training_and_the_pipeline_turn_a_raw_output_into_depth_alike(kind):
    raw = raw_map()
    trained = as_depth(torch.from_numpy(raw), kind).numpy()
    np.testing.assert_allclose(to_depth(raw, OutputSpec('depth', kind)), trained, rtol=1e-6)


@pytest.mark.parametrize(
    ('kind', 'larger_is_farther'),
    [
        ('rel_inv_depth', False),  # Depth Anything V2, MiDaS, ReDWeb
        ('rel_depth', True),  # Depth Anything 3, depth in the wild
        ('inv_depth', False),
        ('depth', True),
        ('log_depth', True),
    ],
)
def test_trap_21_larger_means_nearer_or_farther_as_the_kind_says(kind, larger_is_farther):
    raw = np.sort(raw_map().ravel())[None]
    steps = np.diff(to_depth(raw, OutputSpec('depth', kind))[0])
    assert ((steps if larger_is_farther else -steps) >= 0).all()
    assert steps.any()


@pytest.mark.parametrize(
    ('name', 'options', 'kind'),
    [
        ('redweb', {'size_hw': [64, 96]}, 'rel_inv_depth'),
        ('hourglass', {'size_hw': [64, 96]}, 'rel_depth'),
        ('hourglass', {'size_hw': [64, 96], 'output_kind': 'log_depth'}, 'rel_depth'),
        ('sfmlearner', {'size_hw': [64, 96]}, 'rel_depth'),
        ('semi_supervised', {'size_hw': [64, 96]}, 'inv_depth'),
        ('densedepth', {'size_hw': [64, 96], 'encoder': 'densenet121'}, 'depth'),
    ],
)
def test_trap_21_cards_say_which_way_is_farther_and_whether_it_is_metres(name, options, kind):
    with torch.device('meta'):
        network = build_network(name, **options)
    spec = output_spec(network)
    assert spec.kind == kind
    assert spec.metric == (not kind.startswith('rel_'))
    assert (spec.unit, spec.range_m is None) == (('m', False) if spec.metric else ('none', True))


@pytest.mark.parametrize(
    ('inputs', 'size_hw', 'sees_hw'),
    [
        # twice as small, three times as small: fx and fy shrink by different shares
        (InputSpec('image', 'uint8_nhwc', size_hw=NETWORK_HW), (192, 384), NETWORK_HW),
        # padded: the picture is 64x128 of the input
        (
            InputSpec('image', 'uint8_nhwc', size_hw=NETWORK_HW, resize='pad'),
            (192, 384),
            (64, 128),
        ),
        # a size of the network's own choice
        (
            InputSpec('image', 'uint8_nhwc', multiple_of=32, min_hw=(32, 32), max_hw=NETWORK_HW,
                      resize='keep_aspect'),
            (192, 256),
            NETWORK_HW,
        ),
    ],
    ids=['stretched', 'padded', 'dynamic'],
)  # fmt: skip
def test_trap_22_the_canonical_focal_length_is_that_of_the_picture_the_network_sees(
    inputs, size_hw, sees_hw
):
    """Metres are output * focal / 300 with the focal length at the processed size (as DA3's)."""
    fx, fy = 310.0, 290.0
    camera = Camera(size_hw, fx, fy, size_hw[1] / 2 + 3, size_hw[0] / 2 - 2)
    output = OutputSpec('depth', 'canonical_depth', 'm', (0.1, 100.0), canonical_focal_px=300.0)
    backend = Answer(output, inputs, depth=np.full(NETWORK_HW, 2.0, np.float32))
    depth = DepthPipeline(backend, filters=NO_FILTERS).run(
        np.zeros((*size_hw, 3), np.uint8), camera
    ).depth
    assert backend.size_hw == NETWORK_HW
    seen_fx, seen_fy = fx * sees_hw[1] / size_hw[1], fy * sees_hw[0] / size_hw[0]
    np.testing.assert_allclose(depth, 2.0 * math.sqrt(seen_fx * seen_fy) / 300, rtol=1e-5)
    at_full_size = 2.0 * math.sqrt(fx * fy) / 300
    assert not np.isclose(depth, at_full_size, rtol=0.1).any()


def test_trap_22_what_is_trained_as_canonical_comes_back_in_metres():
    """The truth in a batch and the pipeline scale by one rule, in opposite directions."""
    size_hw = (240, 400)
    camera = Camera(size_hw, 350.0, 330.0, 201.0, 118.0)
    plan = ResizePlan(InputSpec('image', 'uint8_nhwc', size_hw=NETWORK_HW), size_hw)
    seen = plan.network_camera(camera)
    network = Canonical(NETWORK_HW, 300.0)
    metres = torch.from_numpy(raw_map(1))[None, None]
    batch = {'depth': metres, 'K': torch.from_numpy(seen.K.astype(np.float32))[None]}
    target, valid = truth(network, batch)
    assert bool(valid.all())
    assert not torch.allclose(target, metres, rtol=0.1)
    back = to_depth(target[0, 0].numpy(), output_spec(network), seen)
    np.testing.assert_allclose(back, metres[0, 0].numpy(), rtol=1e-5)


@pytest.mark.parametrize(('value', 'is_sky'), [(0.05, False), (0.3, False), (0.7, True)])
def test_trap_22_a_large_value_of_the_sky_output_is_sky(value, is_sky):
    """Not the other way around: then the ground would be gone and the sky have a depth."""
    output = OutputSpec('depth', 'depth', 'm', (0.1, 100.0), sky='sky')
    sky = np.zeros(NETWORK_HW, np.float32)
    sky[:40] = value
    backend = Answer(
        output, InputSpec('image', 'uint8_nhwc', size_hw=NETWORK_HW),
        depth=np.full(NETWORK_HW, 2.0, np.float32), sky=sky,
    )  # fmt: skip
    frame = DepthPipeline(backend, filters=NO_FILTERS).run(np.zeros((*NETWORK_HW, 3), np.uint8))
    assert (frame.depth[40:] == 2.0).all()
    assert (np.isposinf(frame.depth[:40]) if is_sky else frame.depth[:40] == 2.0).all()


@pytest.mark.parametrize(
    ('size_hw', 'expected'),
    [
        ((480, 640), (476, 644)),  # within the limits: its own size, in steps
        # Below the smallest size: enlarged until both sides reach it, as transformers does; the
        # authors' code would make 518x686 of this picture.
        ((240, 320), (392, 518)),
        # too wide for both limits: only this keeps no aspect
        ((240, 640), (392, 686)),
        ((600, 100), (518, 392)),
    ],
)
def test_trap_23_the_rule_for_pictures_smaller_than_the_network(size_hw, expected):
    spec = InputSpec(
        'image', 'float32_nchw', multiple_of=14, min_hw=(392, 392), max_hw=(518, 686),
        resize='keep_aspect',
    )  # fmt: skip
    assert network_size(spec, size_hw) == expected
    plan = ResizePlan(spec, size_hw)
    assert plan.window == (0, 0, *expected)  # no padding: the picture fills it
    # whatever the stretch, the focal lengths follow, so geometry stays right
    camera = plan.network_camera(Camera(size_hw, 200.0, 210.0, size_hw[1] / 2, size_hw[0] / 2))
    assert camera.fx == pytest.approx(200.0 * expected[1] / size_hw[1])
    assert camera.fy == pytest.approx(210.0 * expected[0] / size_hw[0])
