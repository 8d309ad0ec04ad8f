"""Names in configurations to classes and functions, imported when one is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import importlib
import inspect
from numbers import Integral, Real
from os import PathLike
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints


class OptionError(ValueError):
    """A name or an option in a configuration cannot be used; the text says which are known."""


def resolve(table: Mapping[str, str], name: str, what: str) -> Any:
    """Return what a name stands for.

    Args:
        table: name to 'module:attribute'.
        name: as in the configuration.
        what: what the table lists, for the message.

    Raises:
        OptionError: the name is not in the table.
    """
    if name not in table:
        raise OptionError(f'{what} {name!r} is not known; expected one of {sorted(table)}')
    module, attribute = table[name].split(':')
    return getattr(importlib.import_module(module), attribute)


def check_options(target: Any, options: Mapping[str, Any], what: str) -> None:
    """Refuse options that a class or function does not take by keyword, or not of this type.

    Raises:
        OptionError: naming the unknown option and the known ones, or what was expected.
    """
    known = sorted(
        name
        for name, item in inspect.signature(target).parameters.items()
        if item.kind is inspect.Parameter.KEYWORD_ONLY
    )
    unknown = sorted(set(options) - set(known))
    if unknown:
        expected = f'expected some of {known}' if known else 'it takes none'
        raise OptionError(f'{what}: option {unknown[0]!r} is not known; {expected}')
    try:
        hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except NameError:  # a type that is imported for type checkers only
        return
    for name, value in options.items():
        if name in hints and not _fits(value, hints[name]):
            raise OptionError(f'{what}: {name}: found {value!r}, expected {_words(hints[name])}')


def construct(target: Any, what: str, /, *args: Any, **options: Any) -> Any:
    """Call a class with options from a configuration, its complaints as those of a user's file.

    Raises:
        OptionError: an option is unknown, or the class refuses its value.
    """
    check_options(target, options, what)
    try:
        return target(*args, **options)
    except ValueError as error:
        if type(error) is not ValueError:  # one that is made for users already
            raise
        raise OptionError(f'{what}: {error}') from error


def _fits(value: Any, hint: Any) -> bool:
    """Tell whether a value from YAML can be of a type; True for types that YAML has not."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in inner)
    if hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint in (int, float):
        number = Integral if hint is int else Real
        return isinstance(value, number) and not isinstance(value, bool)
    if hint is str:
        return isinstance(value, (str, PathLike))
    if origin in (tuple, list, Sequence):
        if value is None or isinstance(value, (str, bool, Real, Mapping)):
            return False
        if origin is tuple and Ellipsis not in inner:
            return len(value) == len(inner) and all(map(_fits, value, inner))
        return all(_fits(item, inner[0]) for item in value) if inner else True
    return True


def _words(hint: Any) -> str:
    """Name a type for people who write YAML."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return ' or '.join(_words(part) for part in inner)
    if origin in (tuple, list, Sequence) and inner:
        if origin is tuple and Ellipsis not in inner:
            return f'[{", ".join(_words(part) for part in inner)}]'
        return f'[{_words(inner[0])}, ...]'
    names = {bool: 'true or false', int: 'a whole number', float: 'a number', str: 'text',
             type(None): 'null'}  # fmt: skip
    return names.get(hint, getattr(hint, '__name__', str(hint)))
