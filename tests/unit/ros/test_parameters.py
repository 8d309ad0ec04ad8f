"""The table of parameters and the files made from it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from depth_node.ros import parameters
from depth_node.ros.parameters import ParameterError, Parameters, specs
import pytest
import yaml


def flat(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found.update(flat(value, f'{prefix}{name}.'))
        else:
            found[prefix + name] = value
    return found


def test_the_committed_files_are_the_generated_ones(repository: Path) -> None:
    for path, text in parameters.generated_files(repository).items():
        assert path.read_text(encoding='utf-8') == text, (
            f'{path.name} is not what the table says; run: python -m depth_node.ros.parameters')


def test_yaml_holds_every_parameter_at_its_default_and_type() -> None:
    tree = yaml.safe_load(parameters.config_yaml())['/**']['ros__parameters']
    found = flat(tree)
    assert list(found) == list(specs())
    for name, spec in specs().items():
        value = tuple(found[name]) if isinstance(found[name], list) else found[name]
        assert value == spec.default
        assert type(value) is type(spec.default), name
    assert Parameters().changed(found) == Parameters()


def test_yaml_and_docs_stay_in_their_width() -> None:
    assert max(map(len, parameters.config_yaml().splitlines())) <= 99
    for name in specs():
        assert f'| `{name}` |' in parameters.docs_markdown()


def test_every_default_is_allowed_and_documented() -> None:
    for spec in specs().values():
        assert spec.coerce(spec.default) == spec.default
        assert spec.text.endswith('.'), spec.name
        assert spec.when in (parameters.LIVE, parameters.CONFIGURE, parameters.START)
        if spec.kind in ('int', 'float', 'ints'):
            assert spec.low is not None, f'{spec.name} has no range'
            assert spec.high is not None, f'{spec.name} has no range'


@pytest.mark.parametrize(('name', 'given', 'taken'), [
    ('filter.far_m', 10, 10.0), ('cloud.roi', [1, 2, 3, 4], (1, 2, 3, 4)),
    ('input.rectify', False, 'off'), ('cloud.stride', 64, 64), ('autostart', False, False)])
def test_values_that_are_taken(name: str, given: Any, taken: Any) -> None:
    value = Parameters().changed({name: given}).value(name)
    assert value == taken
    assert type(value) is type(taken)


@pytest.mark.parametrize(('changes', 'said'), [
    ({'filter.far_m': math.nan}, 'found nan'), ({'filter.far_m': math.inf}, 'found inf'),
    ({'filter.far_m': True}, 'expected a number'), ({'filter.far_m': None}, 'found nothing'),
    ({'cloud.stride': True}, 'a whole number'), ({'cloud.stride': 65}, '1 to 64 px'),
    ({'cloud.roi': [1, 2, 3, -1]}, 'found -1'), ({'cloud.roi': [1, 2, 3, 4.0]}, '4 whole'),
    ({'cloud.roi': 7}, '4 whole'), ({'cloud.roi': 'abcd'}, '4 whole'),
    ({'depth.encoding': 'mono8'}, 'one of: 32FC1, 16UC1'), ({'depth.encoding': 1}, 'a text'),
    ({'autostart': 'no'}, 'true or false'), ({'input.rectify': True}, None),
    ({'cloud.strid': 2}, "did you mean 'cloud.stride'?"), ({'xyz': 2}, 'there is no'),
    ({'filter.near_m': 3, 'filter.far_m': 3}, 'not below'),
    ({'depth.color_far_m': 0.3}, 'not below')])
def test_values_that_are_refused(changes: dict[str, Any], said: str | None) -> None:
    if said is None:  # a bare `on` in YAML: auto is what switches rectification on
        assert Parameters().changed(changes).input.rectify == 'auto'
        return
    with pytest.raises(ParameterError) as refusal:
        Parameters().changed(changes)
    assert said in str(refusal.value)
    assert next(iter(changes)) in str(refusal.value)


def test_a_change_leaves_the_rest_alone() -> None:
    before = Parameters().changed({'cloud.stride': 4, 'scale.scale': 2})
    after = before.changed({'cloud.rgb': False})
    assert (after.cloud.stride, after.cloud.rgb, after.scale.scale) == (4, False, 2.0)
    assert before.cloud.rgb
