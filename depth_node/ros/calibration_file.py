"""The parameters file that a calibration writes; needs no ROS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from depth_node.calibration import Result
import yaml


class CalibrationFileError(ValueError):
    """A file that cannot take the calibration; the text says what to do."""


def words(result: Result) -> str:
    """Return what a calibration found, in one line."""
    shift = f', shift {result.shift:+.3f} m' if result.shift else ''
    near, far = result.reach_m
    place = f'at {near:.2f} m' if far < 1.02 * near else f'from {near:.2f} to {far:.2f} m'
    return (f'scale {result.scale:.4f}{shift}, +-{result.uncertainty:.1%} {place}, from '
            f'{len(result.residuals)} samples (error before: {result.before:.1%})')


def parameters(result: Result) -> dict[str, Any]:
    """Return the parameters that put a calibration in force."""
    return {'source': 'fixed', 'scale': round(result.scale, 6), 'shift': round(result.shift, 6)}


def save(path: Path, result: Result, *, camera: str = '') -> Path | None:
    """Write the parameters into a file that `params_file:=` takes.

    A file that is there keeps its other parameters, but not its comments; the file as it was stays
    beside it with the ending `.bak`.

    Args:
        path: the YAML file.
        result: what to write.
        camera: of a node with several cameras, else empty.

    Returns:
        The copy of the file as it was, None where there was none.

    Raises:
        CalibrationFileError: the file is there and holds something else than parameters.
    """
    document: Any = {}
    kept = None
    if path.is_file():
        text = path.read_text(encoding='utf-8')
        try:
            document = yaml.safe_load(text) or {}
        except yaml.YAMLError as error:
            raise CalibrationFileError(f'{path}: not YAML ({error}); name another file') from error
        kept = path.with_name(path.name + '.bak')
    entry = document
    for key in ('/**', 'ros__parameters', *([camera] if camera else []), 'scale'):
        if not isinstance(entry, dict):
            raise CalibrationFileError(
                f'{path}: holds something else than ROS parameters (/**: ros__parameters: ...); '
                'name another file')
        entry = entry.setdefault(key, {})
    if not isinstance(entry, dict):
        raise CalibrationFileError(f'{path}: scale is {entry!r}, expected its parameters')
    entry.update(parameters(result))
    notes = ''.join(f'# {line}\n' for line in (words(result), *result.notes))
    new = path.with_name(path.name + '.part')
    path.parent.mkdir(parents=True, exist_ok=True)
    new.write_text(f'# Metric scale, calibrated by depth_node: {notes[2:]}'
                   + yaml.safe_dump(document, sort_keys=False), encoding='utf-8')
    if kept is not None:
        path.replace(kept)
    new.replace(path)
    return kept
