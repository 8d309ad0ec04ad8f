"""The parameters file that a calibration writes; needs no ROS."""

from __future__ import annotations

from pathlib import Path
import shutil
from typing import Any

from depth_node.calibration import Result
from depth_node.ros.parameters import NODE_NAME
from depth_node.ros.parameters_file import EVERY, VALUES, ParametersFileError, sections
import yaml

_EXPECTED = ('holds something else than ROS parameters (/**: ros__parameters: ...); name another '
             'file')


class CalibrationFileError(ValueError):
    """A file that cannot take the calibration; the text says what to do."""


def words(result: Result) -> str:
    """Return what a calibration found, in one line."""
    shift = f', shift {result.shift:+.3f} m' if result.shift else ''
    count = len(result.residuals)
    if result.reach_m is None:
        source = f'{count} estimates of the sensor'
    else:
        near, far = result.reach_m
        place = f'at {near:.2f} m' if far < 1.02 * near else f'from {near:.2f} to {far:.2f} m'
        source = f'{count} sample{"s" if count > 1 else ""} {place}'
    return (f'scale {result.scale:.4f}{shift}, from {source}, which scatter by '
            f'{result.spread:.1%} now and were off by {result.before:.1%} before')


def parameters(result: Result) -> dict[str, Any]:
    """Return the parameters that put a calibration in force."""
    return {'source': 'fixed', 'scale': round(result.scale, 6), 'shift': round(result.shift, 6)}


def save(path: Path, result: Result, *, model: str, camera: str = '',
         node: str = NODE_NAME) -> Path | None:
    """Write the parameters into a file that `params_file:=` takes.

    A file that is there keeps its other parameters, but not its comments; a copy of it as it was
    stays beside it with the ending `.bak`.  Where the file names the node, the parameters go
    there, because a name counts for more than /**.

    Args:
        path: the YAML file; where it is a link, what it points to.
        result: what to write.
        model: name of the network that it was measured with, for people.
        camera: of a node with several cameras, else empty.
        node: name of the node, with or without its namespace.

    Returns:
        The copy of the file as it was, None where there was none.

    Raises:
        CalibrationFileError: the file is there and holds something else than parameters.
        OSError: it cannot be written.
    """
    path = path.resolve()
    document: Any = None
    there = path.exists()
    if there:
        try:
            document = yaml.safe_load(path.read_text(encoding='utf-8'))
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise CalibrationFileError(f'{path}: not YAML ({error}); name another file') from error
    if document is None:
        document = {}
    try:
        mine = {name: section for name, section in sections(document) if _matches(name, node)}
    except ParametersFileError as error:
        raise CalibrationFileError(f'{path}: {_EXPECTED}') from error
    if len(mine) > 1:
        raise CalibrationFileError(f'{path}: has parameters for {" and ".join(mine)}; which of '
                                   'them was calibrated is not known: name another file')
    if mine:
        target = next(iter(mine.values()))
    else:
        target = document
        for key in (EVERY, VALUES):
            if target.get(key) is None:
                target[key] = {}
            target = target[key]
    for name, value in parameters(result).items():
        full = f'{camera}.scale.{name}' if camera else f'scale.{name}'
        _remove(target, full)
        _put(target, full, value, path)
    notes = ''.join(f'# {line}\n' for line in (words(result), *result.notes))
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + '.part')
    kept = path.with_name(path.name + '.bak') if there else None
    try:
        new.write_text(f'# Metric scale of the model {model}, calibrated by depth_node:\n{notes}'
                       + yaml.safe_dump(document, sort_keys=False), encoding='utf-8')
        if kept is not None:
            shutil.copyfile(path, kept)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    return kept


def _matches(section: str, node: str) -> bool:
    """Tell whether a section names the node itself."""
    wanted = '/' + node.strip('/')
    return section == wanted or ('/' not in node.strip('/') and section.endswith(wanted))


def _remove(entry: Any, name: str) -> None:
    """Remove a parameter however it is written: a: {b: 1}, a.b: 1."""
    if not isinstance(entry, dict):
        return
    entry.pop(name, None)
    for key in [key for key in entry if isinstance(key, str) and name.startswith(f'{key}.')]:
        _remove(entry[key], name[len(key) + 1:])


def _put(entry: dict[str, Any], name: str, value: Any, path: Path) -> None:
    *groups, leaf = name.split('.')
    for group in groups:
        inner = entry.get(group)
        if inner is None:
            inner = entry[group] = {}
        if not isinstance(inner, dict):
            raise CalibrationFileError(f'{path}: {group} is {inner!r}, expected its parameters; '
                                       'name another file')
        entry = inner
    entry[leaf] = value
