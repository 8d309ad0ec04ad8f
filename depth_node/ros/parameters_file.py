"""Which nodes a ROS parameters file speaks of.  Needs no ROS."""

from __future__ import annotations

from collections.abc import Iterator
import re
from typing import Any

EVERY, VALUES = '/**', 'ros__parameters'


class ParametersFileError(ValueError):
    """Something else than ROS parameters."""


def sections(document: Any, namespace: str = '') -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the parameters of each node by its name, as ROS reads such files.

    A name may be written whole (/robot/mono_depth) or in levels (robot: mono_depth: ...).

    Raises:
        ParametersFileError: it is no mapping of nodes.
    """
    if not isinstance(document, dict):
        raise ParametersFileError('expected a mapping of nodes')
    for key, value in document.items():
        if key == VALUES and namespace:
            if value is not None and not isinstance(value, dict):
                raise ParametersFileError(f'{VALUES} of {namespace} is no mapping')
            if isinstance(value, dict):
                yield namespace, value
        elif isinstance(value, dict):
            yield from sections(value, f'{namespace}/{str(key).strip("/")}')
        elif value is not None:
            raise ParametersFileError(f'{key} is no mapping')


def counts_for(section: str, node: str) -> bool:
    """Tell whether a node takes the parameters of a section.

    Args:
        section: name of a node; * stands for one level, ** for any number of them.
        node: full name, such as /robot/mono_depth.
    """
    pattern = ''
    for level in section.strip('/').split('/'):
        pattern += '(/[^/]+)*' if level == '**' else '/' + re.escape(level).replace(r'\*', '[^/]+')
    return re.fullmatch(pattern, node) is not None
