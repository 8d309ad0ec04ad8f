"""Names of nodes in ROS parameters files."""

from __future__ import annotations

from depth_node.ros.parameters_file import ParametersFileError, counts_for, sections
import pytest


def test_sections_in_levels_and_with_whole_names() -> None:
    document = {
        '/**': {'ros__parameters': {'a': 1}},
        'robot': {'mono_depth': {'ros__parameters': {'b': {'c': 2}}},
                  'empty': {'ros__parameters': None}, 'nothing': None},
        '/x/y': {'ros__parameters': {'d': 3}}}
    assert list(sections(document)) == [
        ('/**', {'a': 1}), ('/robot/mono_depth', {'b': {'c': 2}}), ('/x/y', {'d': 3})]


@pytest.mark.parametrize('document', [
    [], 'text', {'a': 1}, {'a': {'b': 2}}, {'/n': {'ros__parameters': [1]}}])
def test_something_else_is_refused(document: object) -> None:
    with pytest.raises(ParametersFileError):
        list(sections(document))


@pytest.mark.parametrize(('section', 'node', 'counts'), [
    ('/mono_depth', '/mono_depth', True), ('mono_depth', '/mono_depth', True),
    ('/mono_depth', '/robot/mono_depth', False), ('/**', '/robot/mono_depth', True),
    ('/**/mono_depth', '/mono_depth', True), ('/**/mono_depth', '/a/b/mono_depth', True),
    ('/*/mono_depth', '/a/mono_depth', True), ('/*/mono_depth', '/a/b/mono_depth', False),
    ('/*', '/mono_depth', True), ('/robot/*', '/robot/mono_depth', True),
    ('/mono.depth', '/mono_depth', False), ('/**/depth', '/mono_depth', False)])
def test_which_sections_count_for_a_node(section: str, node: str, counts: bool) -> None:
    assert counts_for(section, node) is counts
