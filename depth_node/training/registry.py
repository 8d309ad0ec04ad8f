"""Names in configurations to classes and functions, imported when one is asked for."""

from __future__ import annotations

from collections.abc import Mapping
import importlib
import inspect
from typing import Any


def resolve(table: Mapping[str, str], name: str, what: str) -> Any:
    """Return what a name stands for.

    Args:
        table: name to 'module:attribute'.
        name: as in the configuration.
        what: what the table lists, for the message.

    Raises:
        ValueError: the name is not in the table.
    """
    if name not in table:
        raise ValueError(f'{what} {name!r} is not known; expected one of {sorted(table)}')
    module, attribute = table[name].split(':')
    return getattr(importlib.import_module(module), attribute)


def check_options(target: Any, options: Mapping[str, Any], what: str) -> None:
    """Refuse options that a class or function does not take by keyword.

    Raises:
        ValueError: naming the unknown option and the known ones.
    """
    known = sorted(
        name
        for name, item in inspect.signature(target).parameters.items()
        if item.kind is inspect.Parameter.KEYWORD_ONLY
    )
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f'{what}: option {unknown[0]!r} is not known; expected some of {known or "none"}'
        )
