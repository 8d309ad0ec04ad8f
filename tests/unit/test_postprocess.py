"""What each output kind means, and the metric correction after it."""

import math

from depth_node.camera import Camera
from depth_node.model_card import OutputSpec
from depth_node.postprocess import as_map, to_depth
from depth_node.scale import Scale
from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

RAW = np.array([[0.25, 1.0, 2.0], [4.0, 0.5, 8.0]], np.float32)


@pytest.mark.parametrize(('kind', 'expected'), [
    ('depth', RAW), ('log_depth', np.exp(RAW.astype(np.float64))), ('inv_depth', 1 / RAW),
    ('rel_depth', RAW), ('rel_inv_depth', 1 / RAW)])
def test_kinds(kind, expected):
    unit = 'none' if kind.startswith('rel') else 'm'
    depth = to_depth(RAW, OutputSpec('d', kind, unit, (0.1, 10)))
    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth, expected, rtol=1e-6)


def test_canonical_depth_scales_with_the_focal_length_at_network_size():
    spec = OutputSpec('d', 'canonical_depth', 'm', (0.1, 10), canonical_focal_px=250.0)
    camera = Camera((480, 640), 500.0, 720.0, 320.0, 240.0).scaled((192, 320))
    focal = math.sqrt((500.0 * 320 / 640) * (720.0 * 192 / 480))
    np.testing.assert_allclose(to_depth(RAW, spec, camera), RAW * focal / 250.0, rtol=1e-6)
    with pytest.raises(ValueError, match='camera'):
        to_depth(RAW, spec, None)


def test_unusable_values_become_nan():
    raw = np.array([[np.nan, np.inf, -np.inf], [0.0, -1.0, 2.0]], np.float32)
    depth = to_depth(raw, OutputSpec('d', 'depth'))
    assert np.isnan(depth).tolist() == [[True] * 3, [True, True, False]]
    inverse = to_depth(raw, OutputSpec('d', 'inv_depth'))
    assert np.isnan(inverse).tolist() == [[True] * 3, [True, True, False]]


def test_the_input_is_left_alone():
    raw = RAW.copy()
    to_depth(raw, OutputSpec('d', 'depth'))[:] = 7
    np.testing.assert_array_equal(raw, RAW)


@pytest.mark.parametrize('shape', [(2, 3), (1, 2, 3), (1, 1, 2, 3)])
def test_output_shapes(shape):
    np.testing.assert_array_equal(as_map(RAW.reshape(shape)), RAW)


@pytest.mark.parametrize('shape', [(6,), (2, 3, 1), (2, 1, 1, 3)])
def test_other_output_shapes_are_refused(shape):
    with pytest.raises(ValueError, match='shape'):
        as_map(RAW.reshape(shape))


@given(scale=st.floats(0.01, 100), shift=st.floats(-5, 5))
def test_fixed_scale_is_affine_and_never_leaves_depth_behind_the_camera(scale, shift):
    depth = RAW.copy()
    Scale('fixed', scale, shift).apply(depth)
    expected = RAW.astype(np.float64) * scale + shift
    clear = np.abs(expected) > 1e-4
    keeps = clear & (expected > 0)
    np.testing.assert_allclose(depth[keeps], expected[keeps], rtol=1e-4, atol=1e-4)
    assert np.isnan(depth[clear & (expected < 0)]).all()


@pytest.mark.parametrize('values', [
    {'source': 'fixed', 'scale': 0.0}, {'source': 'fixed', 'scale': -1.0},
    {'source': 'fixed', 'scale': math.nan}, {'source': 'fixed', 'shift': math.inf},
    {'source': 'model', 'scale': 2.0}, {'source': 'tape'}])
def test_meaningless_corrections_are_refused(values):
    with pytest.raises(ValueError, match='scale'):
        Scale(**values)


def test_values_of_relative_networks_that_are_not_positive_are_kept_when_asked_for():
    raw = np.array([[np.nan, np.inf, 0.0], [-0.5, 2.0, -np.inf]], np.float32)
    inverse = to_depth(raw, OutputSpec('d', 'rel_inv_depth', 'none'), keep_signed=True)
    np.testing.assert_array_equal(inverse, [[np.nan, np.nan, np.inf], [-2.0, 0.5, np.nan]])
    depth = to_depth(raw, OutputSpec('d', 'rel_depth', 'none'), keep_signed=True)
    np.testing.assert_array_equal(depth, [[np.nan, np.nan, 0.0], [-0.5, 2.0, np.nan]])
    metric = to_depth(raw, OutputSpec('d', 'inv_depth'), keep_signed=True)
    np.testing.assert_array_equal(metric, [[np.nan] * 3, [np.nan, 0.5, np.nan]])
