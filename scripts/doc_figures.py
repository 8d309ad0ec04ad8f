#!/usr/bin/env python3
"""Write the bundled models' figures from their cards into README.md and docs/training.md.

    python scripts/doc_figures.py

What stands between a mark that names a card and the next end mark is replaced; a test compares it
with the card, so that no text keeps the figures of an earlier model. A card gets its figures by
depth-node evaluate --update-card.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
import re
import sys
from typing import Any

import yaml

CLONE = Path(__file__).resolve().parents[1]
DOCUMENTS = (CLONE / 'README.md', CLONE / 'docs' / 'training.md')
BEGIN = '<!-- figures of models/{}.yaml: scripts/doc_figures.py writes them -->'
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
        '| frames | AbsRel | delta1 | predicted over true distance (90 % of the frames) '
        '| boundary F1 | AbsRel, median-scaled | AbsRel, affine | best plane '
        '| affine over plane, median |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    for name, entry in found.items():
        affine = entry.get('affine', {})
        first = entry.get('none', affine)
        metric = entry.get('none', {})
        cells = [
            _number(metric.get('abs_rel')), _number(metric.get('delta1')),
            _distance(entry.get('distance')), _number(first.get('boundary_f1')),
            _number(entry.get('median', {}).get('abs_rel')), _number(affine.get('abs_rel')),
            _number(first.get('plane_abs_rel')), _number(affine.get('ratio_median'), 2),
        ]  # fmt: skip
        lines.append(f'| {entry["frames"]} {label(name, entry)} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def _number(value: float | None, digits: int = 3) -> str:
    return '' if value is None else f'{value:.{digits}f}'


def _distance(ratio: dict[str, float] | None) -> str:
    """Return the median of the frames, and their range where there are several."""
    if ratio is None:
        return ''
    span = f' ({ratio["p05"]:.2f} to {ratio["p95"]:.2f})' if ratio['frames'] > 1 else ''
    return f'{ratio["median"]:.2f}{span}'


def label(name: str, entry: dict[str, Any]) -> str:
    """Name a data set for readers."""
    if name in LABELS or not name.startswith('rendered'):
        return LABELS.get(name, name)
    note = str(entry.get('data', ''))
    if note.endswith(' together'):
        return 'rendered, unseen scenes: all of these'
    source = note.rpartition(' split of rendered ')[2] if ' split of rendered ' in note else ''
    return 'rendered, unseen scenes' + (f': {source}' if source else '')


def with_figures(text: str, table_of: Callable[[str], str]) -> str:
    """Return a document with the table of the card that each begin mark names.

    Args:
        text: the document.
        table_of: gives the table of a card's name.

    Raises:
        FiguresError: no marks, or not one begin mark before every end mark.
    """
    begin = re.escape(BEGIN).replace(r'\{\}', r'([\w-]+)')
    block = re.compile(rf'^({begin})\n.*?^({re.escape(END)})$', re.MULTILINE | re.DOTALL)
    found = list(block.finditer(text))
    marks = len(re.findall(begin, text)), text.count(END)
    if not found or marks != (len(found), len(found)):
        raise FiguresError(
            f'{marks[0]} begin marks and {marks[1]} end marks, {len(found)} of them pairs; '
            f'expected lines {BEGIN.format("NAME")!r}, a line {END!r} after each')
    return block.sub(lambda pair: f'{pair[1]}\n{table_of(pair[2])}\n{pair[3]}', text)


def main(arguments: list[str]) -> int:
    """Rewrite the documents; with --check say only which are out of date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--models', type=Path, default=CLONE / 'models', metavar='DIR',
                        help='folder of the cards that the marks name (models)')
    parser.add_argument('--precision', default='int8', help='(int8, which a CPU runs)')
    parser.add_argument('--check', action='store_true', help='change nothing; 1 if it would')
    parser.add_argument('documents', nargs='*', type=Path, default=DOCUMENTS)
    args = parser.parse_args(arguments)
    status = 0

    def table_of(name: str) -> str:
        card = yaml.safe_load((args.models / f'{name}.yaml').read_text(encoding='utf-8'))
        return figures(card, args.precision)

    try:
        for path in args.documents:
            before = path.read_text(encoding='utf-8')
            try:
                after = with_figures(before, table_of)
            except FiguresError as error:
                raise FiguresError(f'{path}: {error}') from error
            if after == before:
                continue
            if args.check:
                print(f'{path}: its figures are not those of {args.models}; run '
                      'python scripts/doc_figures.py', file=sys.stderr)
                status = 1
            else:
                path.write_text(after, encoding='utf-8')
                print(f'{path}: figures of {args.models} written')
    except (FiguresError, OSError, yaml.YAMLError) as error:
        print(f'doc_figures: {error}', file=sys.stderr)
        return 1
    return status


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
