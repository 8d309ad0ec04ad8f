#!/usr/bin/env python3
"""Write the bundled model's figures from its card into README.md and docs/training.md.

    python scripts/doc_figures.py

What stands between the marks is replaced; a test compares it with the card, so that no text keeps
the figures of an earlier model. The card gets its figures by depth-node evaluate --update-card.
"""

from __future__ import annotations

import argparse
from pathlib import Path
import sys
from typing import Any

import yaml

CLONE = Path(__file__).resolve().parents[1]
DOCUMENTS = (CLONE / 'README.md', CLONE / 'docs' / 'training.md')
BEGIN = '<!-- figures of models/small.yaml: scripts/doc_figures.py writes them -->'
END = '<!-- end of figures -->'
LABELS = {
    'osd': 'real table tops (Kinect)',
    'motorcycle': 'real: Motorcycle (Middlebury 2014)',
    'aloe': 'real: Aloe (Middlebury 2006), no metres',
}


class FiguresError(ValueError):
    """The card or a document is not as expected."""


def figures(card: dict[str, Any], precision: str) -> str:
    """Return the table of a card: one line per data set, the mean over its frames.

    Args:
        card: as YAML has it.
        precision: whose figures.

    Raises:
        FiguresError: the card has none.
    """
    found = card.get('metrics', {}).get(precision)
    if not found:
        raise FiguresError(f'the card has no metrics of {precision}; run depth-node evaluate '
                           f'--precision {precision} --update-card')
    lines = [
        '| frames | AbsRel | delta1 | boundary F1 | AbsRel, median-scaled | AbsRel, affine '
        '| best plane | affine over plane, median |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for name, entry in found.items():
        affine = entry.get('affine', {})
        first = entry.get('none', affine)
        metric = entry.get('none', {})
        cells = [
            metric.get('abs_rel'), metric.get('delta1'), first.get('boundary_f1'),
            entry.get('median', {}).get('abs_rel'), affine.get('abs_rel'),
            first.get('plane_abs_rel'),
        ]  # fmt: skip
        ratio = affine.get('ratio_median')
        lines.append(
            f'| {entry["frames"]} {label(name, entry)} | '
            + ' | '.join('' if cell is None else f'{cell:.3f}' for cell in cells)
            + f' | {"" if ratio is None else f"{ratio:.2f}"} |')
    return '\n'.join(lines)


def label(name: str, entry: dict[str, Any]) -> str:
    """Name a data set for readers."""
    if name in LABELS or not name.startswith('rendered'):
        return LABELS.get(name, name)
    note = str(entry.get('data', ''))
    if note.endswith(' together'):
        return 'rendered, unseen scenes: all of these'
    source = note.rpartition(' split of rendered ')[2] if ' split of rendered ' in note else ''
    return 'rendered, unseen scenes' + (f': {source}' if source else '')


def with_figures(text: str, table: str) -> str:
    """Return a document with the table between its marks.

    Raises:
        FiguresError: the marks are not there once each, in their order.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in tail:
        raise FiguresError(f'expected one line {BEGIN!r}, and one line {END!r} after it')
    return f'{head}{BEGIN}\n{table}\n{END}{tail}'


def main(arguments: list[str]) -> int:
    """Rewrite the documents; with --check say only which are out of date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--card', type=Path, default=CLONE / 'models' / 'small.yaml')
    parser.add_argument('--precision', default='int8', help='(int8, which a CPU runs)')
    parser.add_argument('--check', action='store_true', help='change nothing; 1 if it would')
    parser.add_argument('documents', nargs='*', type=Path, default=DOCUMENTS)
    args = parser.parse_args(arguments)
    status = 0
    try:
        card = yaml.safe_load(args.card.read_text(encoding='utf-8'))
        table = figures(card, args.precision)
        for path in args.documents:
            before = path.read_text(encoding='utf-8')
            try:
                after = with_figures(before, table)
            except FiguresError as error:
                raise FiguresError(f'{path}: {error}') from error
            if after == before:
                continue
            if args.check:
                print(f'{path}: its figures are not those of {args.card}; run '
                      'python scripts/doc_figures.py', file=sys.stderr)
                status = 1
            else:
                path.write_text(after, encoding='utf-8')
                print(f'{path}: figures of {args.card} written')
    except (FiguresError, OSError, yaml.YAMLError) as error:
        print(f'doc_figures: {error}', file=sys.stderr)
        return 1
    return status


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
