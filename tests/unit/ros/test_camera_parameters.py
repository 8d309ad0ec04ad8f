"""Parameters of single cameras: what they replace, what is refused, and with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from depth_node.ros.camera_parameters import ParameterSet, camera_specs, check_names
from depth_node.ros.parameters import CAMERA_GROUPS, START, ParameterError, Parameters, specs
import pytest
import yaml


def two(**changes: Any) -> ParameterSet:
    """Return the parameters of the cameras front and left; `__` for a dot."""
    return ParameterSet().changed({'cameras': ['front', 'left']}).changed(
        {name.replace('__', '.'): value for name, value in changes.items()})


def test_one_camera_without_a_name_has_the_shared_ones() -> None:
    plain = ParameterSet()
    assert plain.specs == specs()
    assert plain.of('') == Parameters()
    assert plain.changed({'filter.far_m': 3}).of('').filter.far_m == 3.0


def test_what_a_camera_has_for_itself_is_used_by_it_alone() -> None:
    both = two(filter__far_m=5, front__filter__far_m=2, left__cloud__stride=4)
    assert both.of('front').filter.far_m == 2.0
    assert both.of('left').filter.far_m == 5.0
    assert (both.of('front').cloud.stride, both.of('left').cloud.stride) == (1, 4)
    assert both.shared.filter.far_m == 5.0
    # the shared value may change later, and counts where a camera has none
    later = both.changed({'filter.far_m': 7})
    assert (later.of('front').filter.far_m, later.of('left').filter.far_m) == (2.0, 7.0)
    assert both.of('left').filter.far_m == 5.0, 'the set before is unchanged'
    assert later.value('front.filter.far_m') == 2.0
    assert later.value('left.filter.far_m') == 7.0
    assert later.value('filter.far_m') == 7.0
    assert later.value('cameras') == ('front', 'left')


def test_every_parameter_about_a_camera_exists_for_each() -> None:
    names = set(camera_specs(('front', 'left')))
    for group in ('input', 'depth', 'cloud', 'filter', 'scale', 'mount'):
        assert group in CAMERA_GROUPS
    for name, spec in specs().items():
        wide = name.rpartition('.')[0] in ('', 'model', 'backend', 'diagnostics')
        assert (f'front.{name}' in names) != wide
        assert (f'left.{name}' in names) != wide
        assert wide or spec.when != START
    assert {name.partition('.')[0] for name in names} == {'front', 'left'}
    spec = two().specs['left.filter.far_m']
    assert spec.name == 'left.filter.far_m'
    assert 'filter.far_m counts' in spec.text


@pytest.mark.parametrize('names', [('front',), ('front', 'left', 'rear_2', 'Top')])
def test_names_that_are_taken(names: tuple[str, ...]) -> None:
    check_names(names)
    assert ParameterSet().changed({'cameras': names}).shared.cameras == names


@pytest.mark.parametrize(('names', 'said'), [
    (['front', ''], "found ''"), (['2nd'], "'2nd'"), (['front cam'], 'letters, digits'),
    (['a/b'], "'a/b'"), (['a.b'], "'a.b'"), (['a__b'], 'single underscores'), (['größe'], 'gr'),
    (['front', 'left', 'front'], 'each name once'), (['depth'], "'depth'"), (['scale'], 'begin'),
    (['model'], 'begin'), (['cameras'], 'begin'), (['use_sim_time'], 'begin'),
    (['qos_overrides'], 'begin'), (['front\n'], 'letters, digits')])
def test_names_that_are_refused(names: list[str], said: str) -> None:
    with pytest.raises(ParameterError) as refusal:
        ParameterSet().changed({'cameras': names})
    assert str(refusal.value).startswith('cameras: found ')
    assert said in str(refusal.value)
    assert refusal.value.names == ('cameras',)


@pytest.mark.parametrize(('changes', 'said'), [
    ({'front.cloud.stride': 0}, 'front.cloud.stride: found 0, expected 1 to 64 px'),
    ({'front.depth.encoding': 'mono8'}, 'front.depth.encoding: found'),
    ({'fornt.filter.far_m': 2}, "'fornt.filter.far_m', because `cameras` has front, left only; "
     "did you mean 'front.filter.far_m'?"),
    ({'rear.filter.far_m': 2}, 'has front, left only'),
    ({'front.filter.farm': 2}, "did you mean 'front.filter.far_m'?"),
    ({'front.model.name': 'small'}, "there is no parameter 'front.model.name'"),
    ({'front.filter.far_m': None}, 'cannot be taken back while the node runs; set it to the '
     'value of filter.far_m, 5.0')])
def test_values_that_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ParameterError) as refusal:
        two(filter__far_m=5).changed(changes)
    assert said in str(refusal.value)


def test_a_camera_that_does_not_exist_because_none_is_named() -> None:
    with pytest.raises(ParameterError, match='because `cameras` names no camera'):
        ParameterSet().changed({'front.filter.far_m': 2})


def test_contradictions_name_the_camera_and_its_own_parameters() -> None:
    with pytest.raises(ParameterError) as refusal:
        two(filter__far_m=5, left__filter__near_m=6)
    assert str(refusal.value).startswith('camera left: filter.near_m 6 m is not below')
    assert refusal.value.names == ('left.filter.near_m',)
    with pytest.raises(ParameterError) as refusal:  # a change of the shared one does it, too
        two(filter__far_m=5, left__filter__near_m=4).changed({'filter.far_m': 3})
    assert 'camera left' in str(refusal.value)
    both = two(left__filter__near_m=6, left__filter__far_m=8, filter__far_m=5)
    assert (both.of('left').filter.near_m, both.of('left').filter.far_m) == (6.0, 8.0)


def test_the_example_is_usable(repository: Path) -> None:
    tree = yaml.safe_load((repository / 'config' / 'several_cameras.yaml').read_text())
    given: dict[str, Any] = {}

    def walk(node: dict[str, Any], prefix: str) -> None:
        for name, value in node.items():
            if isinstance(value, dict):
                walk(value, f'{prefix}{name}.')
            else:
                given[prefix + name] = value

    walk(tree['/**']['ros__parameters'], '')
    cameras = {'cameras': given.pop('cameras')}
    both = ParameterSet().changed(cameras).changed(given)
    assert (both.of('front').scale.source, both.of('left').scale.source) == ('ground', 'fixed')
    assert (both.of('front').filter.far_m, both.of('left').filter.far_m) == (4.0, 6.0)
    assert both.of('front').mount.height_m > 0, 'scale.source ground needs it'
