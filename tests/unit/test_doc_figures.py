"""scripts/doc_figures.py: documents have the figures of the card, not of an earlier one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import yaml

SCRIPT = Path(__file__).resolve().parents[2] / 'scripts' / 'doc_figures.py'
CARD = {'metrics': {'int8': {
    'rendered (2 sets)': {
        'data': 'rendered/test and rendered/test-2 together', 'frames': 410,
        'none': {'abs_rel': 0.1234, 'delta1': 0.8766, 'boundary_f1': 0.05, 'plane_abs_rel': 0.3},
        'median': {'abs_rel': 0.1},
        'affine': {'abs_rel': 0.09, 'plane_abs_rel': 0.3, 'ratio_median': 0.412},
        'distance': {'frames': 410, 'median': 1.049, 'p05': 0.7, 'p95': 1.5},
    },
    'motorcycle': {'frames': 1, 'none': {'abs_rel': 0.2}, 'affine': {},
                   'distance': {'frames': 1, 'median': 0.74, 'p05': 0.74, 'p95': 0.74}},
    'aloe': {'frames': 1, 'affine': {'abs_rel': 0.32, 'boundary_f1': 0.0, 'plane_abs_rel': 0.24}},
}}}  # fmt: skip


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location('doc_figures', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_documents_have_the_figures_of_the_card(script, capsys):
    assert script.main(['--check']) == 0, capsys.readouterr().err


def test_a_line_has_what_was_measured_and_nothing_else(script):
    lines = script.figures(CARD, 'int8').splitlines()
    assert lines[2] == (
        '| 410 rendered, unseen scenes: all of these '
        '| 0.123 | 0.877 | 1.05 (0.70 to 1.50) | 0.050 | 0.100 | 0.090 | 0.300 | 0.41 |')
    assert lines[3] == (
        '| 1 real: Motorcycle (Middlebury 2014) | 0.200 |  | 0.74 |  |  |  |  |  |')
    assert lines[4] == (
        '| 1 real: Aloe (Middlebury 2006), no metres |  |  |  | 0.000 |  | 0.320 | 0.240 |  |')
    assert {line.count('|') for line in lines} == {10}
    note = 'rendered, exact; test split of rendered rays, recipe 2, raycast'
    assert script.label('rendered/test-2', {'data': note}) == (
        'rendered, unseen scenes: rays, recipe 2, raycast')
    assert script.label('rendered/test', {}) == 'rendered, unseen scenes'
    assert script.label('nyu_mat/test', {}) == 'nyu_mat/test'
    with pytest.raises(script.FiguresError, match='no metrics of fp32'):
        script.figures(CARD, 'fp32')


def test_only_what_is_between_the_marks_changes(script, tmp_path, capsys):
    other = {'metrics': {'int8': {'aloe': {'frames': 7, 'affine': {'abs_rel': 0.5}}}}}
    for name, card in (('a', CARD), ('b-2', other)):
        (tmp_path / f'{name}.yaml').write_text(yaml.safe_dump(card, sort_keys=False))
    document = tmp_path / 'x.md'
    a, b = script.BEGIN.format('a'), script.BEGIN.format('b-2')
    document.write_text(f'before\n{a}\nold\n{script.END}\nbetween\n{b}\n{script.END}\nafter\n')
    call = ['--models', str(tmp_path), str(document)]
    assert script.main([*call, '--check']) == 1
    assert 'old' in document.read_text()
    assert script.main(call) == 0
    text = document.read_text()
    assert text == (f'before\n{a}\n{script.figures(CARD, "int8")}\n{script.END}\nbetween\n'
                    f'{b}\n{script.figures(other, "int8")}\n{script.END}\nafter\n')
    assert script.main([*call, '--check']) == 0


@pytest.mark.parametrize('text', [
    'nothing', '{end}\n{begin}\n', '{begin}\n', '{begin}\n{begin}\n{end}\n',
    '{begin}\n{end}\n{end}\n',
])
def test_marks_that_are_no_pairs_are_refused(script, tmp_path, capsys, text):
    (tmp_path / 'a.yaml').write_text(yaml.safe_dump(CARD))
    document = tmp_path / 'x.md'
    document.write_text(text.format(begin=script.BEGIN.format('a'), end=script.END))
    before = document.read_text()
    assert script.main(['--models', str(tmp_path), str(document)]) == 1
    assert 'x.md: ' in capsys.readouterr().err
    assert document.read_text() == before


def test_a_mark_of_a_card_that_is_not_there_is_named(script, tmp_path, capsys):
    document = tmp_path / 'x.md'
    document.write_text(f'{script.BEGIN.format("gone")}\n{script.END}\n')
    assert script.main(['--models', str(tmp_path), str(document)]) == 1
    assert 'gone.yaml' in capsys.readouterr().err
