#!/usr/bin/env python3
"""Print what pip must install for some extras of this package, one requirement a line.

pyproject.toml is the only place that names requirements. pip cannot install the dependencies of
a package without the package, so `make` asks this script.

Usage: scripts/requirements.py cpu demo
"""

from __future__ import annotations

from pathlib import Path
import re
import sys

try:
    import tomllib
except ImportError:  # Python 3.10: pip carries the same parser
    from pip._vendor import tomli as tomllib

PYPROJECT = Path(__file__).resolve().parent.parent / 'pyproject.toml'


def requirements(project: dict, extras: list[str]) -> list[str]:
    """List the requirements of the project and of some extras.

    Args:
        project: the [project] table.
        extras: names of extras; one that names this project's extras in turn is expanded.

    Returns:
        The requirements, sorted, each once.

    Raises:
        ValueError: there is no extra of that name.
    """
    own = re.compile(rf'{re.escape(project["name"])}\[([\w,\s-]+)\]', re.IGNORECASE)
    known = project['optional-dependencies']
    found = set(project['dependencies'])
    waiting, seen = list(extras), set()
    while waiting:
        extra = waiting.pop()
        if extra in seen:
            continue
        seen.add(extra)
        if extra not in known:
            raise ValueError(
                f'no extra {extra!r} in pyproject.toml; there are: {", ".join(known)}'
            )
        for requirement in known[extra]:
            match = own.fullmatch(requirement.strip())
            if match:
                waiting += [name.strip() for name in match.group(1).split(',')]
            else:
                found.add(requirement)
    return sorted(found, key=str.lower)


def main() -> int:
    """Print the requirements for the extras on the command line."""
    with PYPROJECT.open('rb') as file:
        project = tomllib.load(file)['project']
    try:
        print('\n'.join(requirements(project, sys.argv[1:])))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
