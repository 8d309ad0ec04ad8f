"""Two measurements of the same frames: which model is better, by how much, in how many frames.

Both are documents as `report.to_json` makes them, so that one may be a file of an earlier run. A
frame is compared only where both saw the same truth: the same name, the same number of judged
pixels and the same AbsRel of the best plane, which is a function of the truth alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
import json
import math
from pathlib import Path
from typing import Any

from depth_node.evaluation.readers import DataError
import numpy as np
from numpy.typing import NDArray

# Rules that have to agree; a report that lacks one was written before there was a choice.
_RULES = ('min_depth_m', 'max_depth_m', 'crop', 'input_crop', 'truth_hw', 'resize_in', 'flip')
# Errors that differ by less are equal: a network's runs differ in the last digits, and a frame
# that is better by so little is no better.
EQUAL_SHARE = 0.005
_SAME_PLANE = 1e-6  # relative difference of the planes' AbsRel from rounding alone


@dataclass(frozen=True)
class Change:
    """AbsRel of the same frames before and after.

    Attributes:
        dataset: name in the newer report.
        alignment: one of metrics.ALIGNMENTS.
        names: (N) of the frames.
        before: (N,) of the baseline.
        after: (N,) of the newer report.
    """

    dataset: str
    alignment: str
    names: tuple[str, ...]
    before: NDArray[np.float64]
    after: NDArray[np.float64]

    @property
    def better(self) -> int:
        """Frames whose error is smaller than the baseline's by more than EQUAL_SHARE of it."""
        return int((self.after < (1 - EQUAL_SHARE) * self.before).sum())

    @property
    def worse(self) -> int:
        """Frames whose error is larger by more than EQUAL_SHARE."""
        return int((self.after > (1 + EQUAL_SHARE) * self.before).sum())

    @property
    def median_ratio(self) -> float:
        """Median over the frames of error over the baseline's error; below 1 is better.

        NaN where no frame has an error that can be divided by.
        """
        some = self.before > 0
        return float(np.median(self.after[some] / self.before[some])) if some.any() else math.nan

    def extremes(self) -> tuple[str, str]:
        """Return the names of the frames with the greatest gain and loss; '-' where none has."""
        difference = self.after - self.before
        return (
            self.names[int(difference.argmin())] if self.better else '-',
            self.names[int(difference.argmax())] if self.worse else '-',
        )


@dataclass(frozen=True)
class Comparison:
    """All data sets of two reports.

    Attributes:
        baseline: what it is compared with, in one line.
        changes: per data set and alignment, in the order of the newer report.
        left_out: what could not be compared, in words.
    """

    baseline: str
    changes: tuple[Change, ...]
    left_out: tuple[str, ...] = ()


def headline(report: Mapping[str, Any]) -> str:
    """Name model, hash and backend of a report in one line."""
    file = f'{report.get("file", "?")}, sha256 {str(report.get("sha256", "?"))[:12]}'
    return (
        f'{report.get("model", "?")} {report.get("precision", "?")} ({file}) on '
        f'{report.get("backend", "?")}'
    )


def read_report(path: Path) -> dict[str, Any]:
    """Read a results.json of depth-node evaluate.

    Raises:
        DataError: it cannot be read, or is something else.
    """
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise DataError(f'{path}: not readable as JSON ({error})') from error
    if not isinstance(found, dict) or not isinstance(found.get('datasets'), list):
        raise DataError(
            f'{path}: no report; expected the results.json that depth-node evaluate --out writes'
        )
    return found


def compare(after: Mapping[str, Any], before: Mapping[str, Any]) -> Comparison:
    """Compare two reports frame by frame.

    Args:
        after: the newer report, of `report.to_json`.
        before: the baseline's.

    Returns:
        What changed; frames, data sets and alignments that only one of them has are named.

    Raises:
        DataError: the rules differ, a report is not what it should be, or they share no frame.
    """
    try:
        _check_rules(after['protocol'], before['protocol'])
        old = {item['name']: item for item in before['datasets']}
        changes: list[Change] = []
        left_out: list[str] = []
        for item in after['datasets']:
            if item['name'] not in old:
                left_out.append(f'{item["name"]}: not in the baseline')
                continue
            frames = _frames(after, item), _frames(before, old[item['name']])
            found, words = _changes(item['name'], *frames)
            changes += found
            left_out += words
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f'the baseline is not a report of depth-node evaluate: {error!r}'
        ) from error
    if not changes:
        reason = '; '.join(left_out) or 'both are empty'
        raise DataError(f'the baseline and this run share no frame: {reason}')
    return Comparison(headline(before), tuple(changes), tuple(left_out))


def _check_rules(after: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    for rule in _RULES:
        if rule in after and rule in before and after[rule] != before[rule]:
            raise DataError(
                f'the baseline was measured with {rule} {before[rule]}, this run with '
                f'{after[rule]}: their errors cannot be compared; measure both alike'
            )


def _frames(report: Mapping[str, Any], item: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return a data set's frames by name; those of its parts where it joins some."""
    if not item.get('parts'):
        return {frame['name']: frame for frame in item['frames']}
    return {
        f'{part["name"]}: {frame["name"]}': frame
        for part in report['datasets']
        if part['name'] in item['parts']
        for frame in part['frames']
    }


def _changes(
    dataset: str, after: dict[str, Mapping[str, Any]], before: dict[str, Mapping[str, Any]]
) -> tuple[list[Change], list[str]]:
    left_out = []
    shared = [name for name in after if name in before]
    if len(shared) < len(after):
        left_out.append(
            f'{dataset}: {len(after) - len(shared)} of {len(after)} frames are not in the baseline'
        )
    alike = [name for name in shared if _same_truth(after[name], before[name])]
    if len(alike) < len(shared):
        left_out.append(
            f'{dataset}: {len(shared) - len(alike)} of {len(shared)} frames have another truth in '
            'the baseline'
        )
    changes = []
    alignments = list(after[alike[0]]['aligned']) if alike else []
    for alignment in alignments:
        rows = [
            (name, old, new)
            for name in alike
            if (old := _abs_rel(before[name], alignment)) is not None
            and (new := _abs_rel(after[name], alignment)) is not None
        ]
        if not rows:
            left_out.append(f'{dataset}: no frame has alignment {alignment} in the baseline')
            continue
        names, old_errors, new_errors = zip(*rows, strict=True)
        changes.append(
            Change(dataset, alignment, names, np.array(old_errors), np.array(new_errors))
        )
    return changes, left_out


def _abs_rel(frame: Mapping[str, Any], alignment: str) -> float | None:
    value = frame['aligned'].get(alignment, {}).get('abs_rel')
    return None if value is None else float(value)


def _same_truth(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if one['known_pixels'] != other['known_pixels']:
        return False
    planes = one['plane_abs_rel'], other['plane_abs_rel']
    if None in planes:
        return planes == (None, None)
    return math.isclose(*planes, rel_tol=_SAME_PLANE, abs_tol=_SAME_PLANE)


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison for results.json, frame by frame too."""
    return {
        'baseline': comparison.baseline,
        'datasets': [
            {
                'dataset': change.dataset,
                'alignment': change.alignment,
                'frames': len(change.names),
                'abs_rel': float(change.after.mean()),
                'baseline_abs_rel': float(change.before.mean()),
                'median_ratio': ratio if math.isfinite(ratio := change.median_ratio) else None,
                'better': change.better,
                'worse': change.worse,
                'abs_rel_of_frames': {
                    name: [float(old), float(new)]
                    for name, old, new in zip(
                        change.names, change.before, change.after, strict=True
                    )
                },
            }
            for change in comparison.changes
        ],
        'left_out': list(comparison.left_out),
    }
