"""Corrections of depth, and what becomes of the estimates of single images."""

from __future__ import annotations

import math

from depth_node.camera import Camera
from depth_node.filters import FilterSettings
from depth_node.model_card import InputSpec, ModelCard, OutputSpec
from depth_node.pipeline import DepthPipeline
from depth_node.scale import Estimate, Scale, ScaleTracker, TrackSettings, affine_space
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
import numpy as np
import pytest


def one(scale: float, error: float = 0.02, **more) -> Estimate:
    return Estimate(np.array([math.log(scale)]), np.array([[error * error]]), **more)


def tracker(**settings) -> ScaleTracker:
    return ScaleTracker('points', TrackSettings(**settings))


# --- Scale

def test_a_shift_of_inverse_depth_makes_depth_of_values_that_were_none():
    # a relative network's inverse depth 2, 0.5, 0 and -0.25, as depth
    depth = np.array([[0.5, 2.0, np.inf, -4.0, np.nan, -1.0]], np.float32)
    Scale('points', 2.0, 1.0, 'inv_depth').apply(depth)
    np.testing.assert_allclose(depth[0, :4], [1 / 5, 1 / 2, 1.0, 2.0], rtol=1e-6)
    assert np.isnan(depth[0, 4:]).all()  # unknown; 2 * -1 + 1 < 0: behind the horizon


@pytest.mark.parametrize('space', ['depth', 'inv_depth'])
@pytest.mark.parametrize('shift', [0.0, 0.3, -0.3])
def test_correction_against_its_definition(space, shift):
    rng = np.random.default_rng(3)
    depth = np.exp(rng.uniform(-1, 2, (5, 9))).astype(np.float32)
    value = 1 / depth.astype(np.float64) if space == 'inv_depth' else depth.astype(np.float64)
    value = 1.7 * value + shift
    expected = np.where(value > 0, 1 / value if space == 'inv_depth' else value, np.nan)
    Scale('points', 1.7, shift, space).apply(depth)
    np.testing.assert_allclose(depth, expected, rtol=2e-5)


@given(arrays(np.float32, (3, 4), elements=st.floats(width=32)), st.floats(1e-3, 1e3),
       st.floats(-1e3, 1e3), st.sampled_from(['depth', 'inv_depth']))
def test_what_is_left_is_depth_or_nan(depth, scale, shift, space):
    Scale('points', scale, shift, space).apply(depth)
    assert (np.isnan(depth) | ((depth > 0) & (depth < np.inf))).all()


def test_without_a_usable_scale_there_is_no_depth():
    depth = np.ones((2, 3), np.float32)
    Scale('points', usable=False, state='waiting').apply(depth)
    assert np.isnan(depth).all()


def test_space_of_relative_networks():
    assert affine_space('rel_inv_depth') == affine_space('depth') == 'inv_depth'
    assert affine_space('rel_depth') == 'depth'


# --- Estimate

def test_uncertainty_of_scale_and_shift_is_that_of_depth():
    parameters = np.array([0.7, 0.2])
    covariance = np.array([[0.0009, -0.0004], [-0.0004, 0.0005]])
    for space in ('depth', 'inv_depth'):
        stated = Estimate(parameters, covariance, space, (0.3, 1.5)).uncertainty
        drawn = np.random.default_rng(0).multivariate_normal(parameters, covariance, 40000)
        value = drawn[:, :1] * [0.3, 1.5] + drawn[:, 1:]
        spread = np.log(value).std(axis=0)
        assert stated == pytest.approx(math.sqrt((spread**2).mean()), rel=0.05)
    assert Estimate(parameters, covariance, 'depth', (-1.0, 2.0)).uncertainty == math.inf
    assert one(3.0, 0.04).uncertainty == pytest.approx(0.04)


def test_distance_is_in_standard_deviations():
    assert one(1.0, 0.03).distance(one(math.exp(0.1), 0.04)) == pytest.approx(2.0)
    two = Estimate(np.array([1.0, 0.0]), np.diag([0.01, 0.04]), 'inv_depth', (1.0,))
    other = Estimate(np.array([1.3, -0.2]), np.diag([0.08, 0.12]), 'inv_depth', (1.0,))
    assert two.distance(other) == pytest.approx(math.sqrt(0.09 / 0.09 + 0.04 / 0.16))
    assert two.distance(one(1.0)) == math.inf


# --- ScaleTracker

def test_smoothing_weighs_by_information_and_age():
    track = tracker(smoothing_s=2.0)
    track.add(one(1.0, 0.02), 10.0)
    track.add(one(1.05, 0.04), 11.0)
    kept = math.exp(-0.5)
    old, new = kept / 0.02**2, 1 / 0.04**2
    found = track.scale(11.2)
    assert math.log(found.scale) == pytest.approx(new * math.log(1.05) / (old + new))
    # neighbouring images share their errors: the average is as uncertain as its parts
    assert found.uncertainty == pytest.approx(math.sqrt((1 + kept) / (old + new)))
    assert 0.02 < found.uncertainty < 0.04
    assert (found.state, found.source, found.space) == ('ok', 'points', 'depth')
    assert found.age_s == pytest.approx(0.2)


def test_scale_and_shift_are_smoothed_together():
    first = Estimate(np.array([0.8, 0.1]), np.array([[4e-4, -1e-4], [-1e-4, 2e-4]]), 'inv_depth',
                     (0.5, 1.0))
    second = Estimate(np.array([0.82, 0.11]), np.array([[2e-4, 5e-5], [5e-5, 9e-4]]), 'inv_depth',
                      (0.5, 1.0))
    track = tracker(smoothing_s=1.0, kind='rel_inv_depth')
    track.add(first, 0.0)
    track.add(second, 0.5)
    a = math.exp(-0.5) * np.linalg.inv(first.covariance)
    b = np.linalg.inv(second.covariance)
    expected = np.linalg.solve(a + b, a @ first.parameters + b @ second.parameters)
    found = track.scale(0.5)
    assert (found.scale, found.shift) == pytest.approx(tuple(expected))
    assert found.space == 'inv_depth'


def test_estimates_from_before_the_clock_was_set_back_do_not_count():
    track = tracker(max_age_s=3.0, smoothing_s=60.0)
    track.add(one(1.4), 1000.0)
    track.add(one(1.41), 5.0)
    found = track.scale(5.0)
    assert (found.state, found.age_s) == ('ok', 0.0)
    assert found.scale == pytest.approx(1.41)


def test_without_smoothing_the_newest_counts():
    track = tracker(smoothing_s=0.0)
    track.add(one(1.0), 0.0)
    track.add(one(1.03), 0.1)
    assert track.scale(0.1).scale == pytest.approx(1.03)


@pytest.mark.parametrize(('when_stale', 'scale', 'usable', 'state'), [
    ('hold', 1.4, True, 'held'), ('model', 1.0, True, 'waiting'),
    ('blank', 1.0, False, 'waiting')])
def test_stale_estimates(when_stale, scale, usable, state):
    track = tracker(when_stale=when_stale, max_age_s=3.0)
    before = track.scale(0.0)
    assert (before.scale, before.usable, before.state) == (1.0, when_stale != 'blank', 'waiting')
    track.add(one(1.4), 5.0)
    assert track.scale(8.0).state == 'ok'
    found = track.scale(8.1)
    assert found.scale == pytest.approx(scale)
    assert (found.usable, found.state) == (usable, state)
    assert found.age_s == pytest.approx(3.1)
    assert '3.1 s' in found.note
    # a source that says nothing usable is another matter than one that is silent
    track.refuse('fog')
    found = track.scale(8.2)
    assert found.state == 'refused'
    assert 'fog' in found.note
    assert found.usable == usable
    # a clock that went back is no fresh estimate either
    assert track.scale(-100.0).state == 'refused'
    track.add(one(1.4), 8.3)
    assert track.scale(8.3).state == 'ok'


def test_a_refused_measurement_does_not_take_a_fresh_scale_away():
    track = tracker()
    track.add(one(1.2), 0.0)
    track.refuse('too few')
    found = track.scale(1.0)
    assert (found.state, found.scale) == ('ok', pytest.approx(1.2))
    assert 'too few' in found.note


@pytest.mark.parametrize(('estimate', 'word'), [
    (one(0.1), 'scale.low'), (one(9.0), 'scale.high'), (one(1.0, 0.5), 'max_uncertainty'),
    (one(1.0, math.inf), 'cannot be told'), (one(1.0, math.nan), 'factor'),
    (Estimate(np.array([800.0]), np.array([[1e-4]])), 'scale.high'),
    (Estimate(np.array([math.nan]), np.array([[1e-4]])), 'factor'),
    (Estimate(np.array([-1.0, 3.0]), np.diag([1e-4, 1e-4]), 'inv_depth', (1.0,)), 'factor')])
def test_estimates_that_cannot_be_meant_are_refused(estimate, word):
    track = tracker(low=0.5, high=2.0, max_uncertainty=0.2)
    track.add(estimate, 0.0)
    assert word in track.problem
    found = track.scale(0.0)
    assert (found.state, found.scale) == ('refused', 1.0)
    assert track.problem in found.note


def test_bounds_do_not_apply_to_networks_without_a_unit():
    track = tracker(kind='rel_inv_depth')
    track.add(Estimate(np.array([0.001, 0.1]), np.diag([1e-10, 1e-6]), 'inv_depth', (500.0,)), 0)
    assert track.scale(0.0).state == 'ok'
    assert 'not metric' in tracker(kind='rel_inv_depth').scale(0.0).note
    assert 'not metric' not in tracker().scale(0.0).note


def test_a_contradiction_has_to_repeat_itself():
    track = tracker(smoothing_s=5.0)
    track.add(one(1.0), 0.0)
    track.add(one(1.5), 0.1)
    assert 'contradicts' in track.problem
    assert track.scale(0.1).scale == pytest.approx(1.0)
    track.add(one(1.0), 0.2)  # back again: the count starts anew
    for stamp in (0.3, 0.4):
        track.add(one(1.5), stamp)
        assert track.scale(stamp).scale == pytest.approx(1.0)
    track.add(one(1.5), 0.5)
    assert track.scale(0.5).scale == pytest.approx(1.5)
    assert track.problem == ''


def test_a_patient_tracker_waits_longer():
    track = ScaleTracker('ground', TrackSettings(max_age_s=10.0), patience_s=2.0)
    track.add(one(1.0), 0.0)
    for tenth in range(1, 21):
        track.add(one(1.6), tenth / 10)
        assert track.scale(tenth / 10).scale == pytest.approx(1.0)
    track.add(one(1.6), 2.11)
    assert track.scale(2.11).scale == pytest.approx(1.6)


def test_what_proves_nothing_only_confirms():
    track = tracker()
    flat = one(1.3, proven=False, note='a wall')
    track.add(flat, 0.0)
    assert track.scale(0.0).state == 'refused'
    assert track.problem == 'a wall'
    track.add(one(1.3), 0.1)
    track.add(flat, 0.2)
    assert track.problem == ''
    assert track.scale(0.2).age_s == pytest.approx(0.0)
    for stamp in (0.3, 0.4, 0.5, 0.6):
        track.add(one(1.9, proven=False), stamp)
    assert track.scale(0.6).scale == pytest.approx(1.3)


def test_a_first_estimate_may_need_confirmation():
    track = tracker(max_age_s=3.0)
    track.add(one(1.2), 0.0, confirmations=3)
    track.add(one(1.8), 0.1, confirmations=3)  # another one: begins from 1
    track.refuse('dust')  # says nothing about the factor
    track.add(one(1.8), 0.2, confirmations=3)
    assert track.scale(0.2).state == 'refused'
    assert '2' in track.problem
    track.add(one(1.81), 9.0, confirmations=3)  # too late to belong to them
    assert track.scale(9.0).state == 'refused'
    track.add(one(1.8), 9.1, confirmations=3)
    track.add(one(1.8), 9.2, confirmations=3)
    assert track.scale(9.2).scale == pytest.approx(1.8)


def test_reset_forgets():
    track = tracker()
    track.add(one(1.2), 0.0)
    track.reset()
    assert track.scale(0.0) == tracker().scale(0.0) or math.isnan(track.scale(0.0).age_s)
    assert track.scale(0.0).state == 'waiting'


@pytest.mark.parametrize('bad', [
    {'low': 0.0}, {'low': 2.0, 'high': 1.0}, {'max_uncertainty': 0.0}, {'smoothing_s': -1.0},
    {'max_age_s': 0.0}, {'when_stale': 'guess'}, {'low': math.nan}, {'local_error': 0.0}])
def test_settings_that_let_nothing_pass_are_refused(bad):
    with pytest.raises(ValueError, match='scale'):
        TrackSettings(**bad)


@given(st.lists(st.tuples(st.floats(), st.floats(), st.floats(), st.booleans()), max_size=12))
def test_no_sequence_of_estimates_makes_an_unusable_scale(sequence):
    track = tracker()
    for parameter, variance, stamp, proven in sequence:
        track.add(Estimate(np.array([parameter]), np.array([[variance]]), proven=proven), stamp)
        found = track.scale(stamp)  # raises where scale or shift cannot be used
        assert 0.3 < found.scale < 3.0


# --- the pipeline around it

class Answer:
    """A backend that returns one map."""

    name, precision, device = 'known', 'fp32', 'test'

    def __init__(self, raw: np.ndarray, kind: str) -> None:
        unit = 'none' if kind.startswith('rel') else 'm'
        self.card = ModelCard('known', '.', 'none',
                              InputSpec('image', 'uint8_nhwc', size_hw=raw.shape),
                              OutputSpec('depth', kind, unit, None if unit == 'none' else (0, 99)),
                              {})
        self.raw = raw

    def run(self, batch):
        return {'depth': self.raw[None, None]}

    def close(self):
        pass


@pytest.mark.parametrize('kind', ['rel_inv_depth', 'rel_depth'])
def test_values_below_zero_of_a_relative_network_are_far_or_near_and_not_unknown(kind):
    raw = np.tile(np.linspace(-0.5, 3.0, 48, dtype=np.float32), (32, 1))
    rgb = np.zeros((32, 48, 3), np.uint8)
    space = affine_space(kind)
    fixed = Scale('points', 0.5, 0.4, space)  # 0.15 .. 1.9
    frame = DepthPipeline(Answer(raw, kind), scale=fixed,
                          filters=FilterSettings(flying_pixel_angle_deg=0,
                                                 flying_pixel_jump=0)).run(rgb)
    value = 0.5 * raw + 0.4
    expected = 1 / value if space == 'inv_depth' else value
    inner = np.isfinite(frame.depth)
    assert inner.all()
    np.testing.assert_allclose(frame.depth[inner], expected[inner], rtol=1e-4)
    assert frame.notes == ()


def test_a_relative_network_without_a_scale_says_that_it_is_not_metric():
    raw = np.tile(np.linspace(-0.5, 3.0, 48, dtype=np.float32), (32, 1))
    rgb = np.zeros((32, 48, 3), np.uint8)
    frame = DepthPipeline(Answer(raw, 'rel_inv_depth')).run(rgb)
    assert 'not in metres' in frame.notes[0]
    assert np.isnan(frame.depth[:, :6]).all()  # without a shift there is nothing behind 0
    metric = DepthPipeline(Answer(np.abs(raw) + 1, 'depth')).run(
        rgb, Camera((32, 48), 40.0, 44.0, 23.5, 15.5))
    assert metric.notes == ()


def test_a_mean_of_two_good_fits_that_is_no_depth_leaves_the_newest_alone():
    """Each rises slowly over its own narrow part; one line through both parts falls."""
    def fit(parameters, at, error):
        rows = np.stack([at, np.ones(3)], 1)
        return Estimate(np.array(parameters), np.linalg.inv(rows.T @ rows) * error**2,
                        'inv_depth', at, 30)

    first = fit([0.22, 0.46], (0.60, 0.67, 0.73), 0.014)
    second = fit([0.29, 0.12], (1.24, 1.30, 1.37), 0.033)
    track = tracker(kind='rel_inv_depth', smoothing_s=10.0)
    assert track.add(first, 0.0)
    assert track.add(second, 0.05)
    found = track.scale(0.05)
    assert (found.scale, found.shift) == pytest.approx((0.29, 0.12))
    assert found.uncertainty == pytest.approx(second.uncertainty)
    for stamp in (0.1, 1.0, 1000.0):
        assert track.scale(stamp).usable
