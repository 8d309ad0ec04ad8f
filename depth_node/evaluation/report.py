"""What was measured: a table, JSON, Markdown, a page of pictures, an entry in the model's card."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import csv
from dataclasses import dataclass, replace
import io
import json
import math
from pathlib import Path
import re
import shlex
from typing import Any

import cv2
from depth_node.evaluation import compare
from depth_node.evaluation.confidence import NAMES as CONFIDENCE_NAMES
from depth_node.evaluation.metrics import METRES_NEEDED, METRIC_NAMES
from depth_node.evaluation.protocols import (
    NORMAL_NAMES,
    ORDINAL_NAMES,
    DatasetResult,
    Example,
    Protocol,
    describe_crop,
)
from depth_node.images import colorize
from depth_node.model_card import ModelCard
import numpy as np
from numpy.typing import NDArray

COLUMNS = (
    'data set',
    'frames',
    'mode',
    'alignment',
    'AbsRel',
    'delta1',
    'RMS [m]',
    'boundary F1',
    'plane AbsRel',
    'ratio',
    'median ratio',
    'better in',
    'coverage',
)
CARD_METRICS = (
    'abs_rel',
    'delta1',
    'rms',
    'rms_log',
    'silog',
    'boundary_f1',
    'plane_abs_rel',
    'ratio_to_plane',
    'ratio_median',
    'frames_better',
)
# Tables of the Markdown report: title, columns. What was not measured is left out.
SCENE_METRICS = ('abs_rel', 'delta1', 'boundary_f1', 'plane_abs_rel', 'ratio_median')
RANGE_METRICS = ('abs_rel', 'delta1', 'rms')
TABLES = (
    ('All metrics', (*(n for n in METRIC_NAMES if n != 'si_rmse'), 'boundary_f1')),
    ('Order of pairs', (*ORDINAL_NAMES, 'wkdr_threshold')),
    ('Normals', NORMAL_NAMES),
    ('Median scaling', ('scale_median', 'scale_std')),
)
ERROR_FULL_SCALE = 0.5  # relative error painted as the end of the error scale
PLANE_NOTE = (
    'plane: best plane in inverse depth, fitted to the truth of each frame; '
    "ratio: AbsRel over its AbsRel; median ratio: of the frames' own; "
    'better in: frames with a ratio below 1'
)
ALIGNMENT_NOTE = (
    'alignment none: metric, as the robot gets it; median: times median(truth) / '
    'median(prediction) per frame; affine: scale and shift of inverse depth per frame by '
    'least squares; affine_depth: the same of depth'
)
CONFIDENCE_NOTE = (
    'confidence claims that depth is within 10 % of the truth after the median of the picture; '
    'ece: expected calibration error in 10 bins; ause: area between the errors of the most '
    'confident pixels and those of the best, random: the same without knowledge; error_50: '
    'AbsRel after the median of the most confident 50 % of each frame'
)
DISTANCE_NOTE = (
    'predicted over true distance: median(prediction) / median(truth) of each frame; 1 is right, '
    'below 1 everything seems nearer than it is'
)
LISTED_FRAMES = 60  # a data set of at most so many frames is listed frame by frame in Markdown


@dataclass(frozen=True)
class Run:
    """What was measured, and with what.

    Attributes:
        model: the card's name.
        file: name of the ONNX file or checkpoint.
        sha256: its hash.
        backend: the backend's name.
        precision: the precision that ran.
        filters: what the pipeline removed before the comparison, in words.
        command: as typed.
        date: ISO date.
        version: of this package.
        protocol: the rules.
        results: one per data set.
        comparison: with an earlier report or another model, if there is one.
    """

    model: str
    file: str
    sha256: str
    backend: str
    precision: str
    filters: str
    command: str
    date: str
    version: str
    protocol: Protocol
    results: tuple[DatasetResult, ...]
    comparison: compare.Comparison | None = None

    def headline(self) -> str:
        """One line that names the model, its hash, backend and precision."""
        file = f'{self.file}, sha256 {self.sha256[:12]}'
        return f'{self.model} {self.precision} ({file}) on {self.backend}'


def rows(run: Run) -> list[dict[str, Any]]:
    """The table's rows: data set x mode x alignment, with all summary values under their keys.

    Each names its protocol, crop, cap and variant of the truth too: a row that is copied out of
    the report must say what it may be compared with.
    """
    found = []
    for result in run.results:
        for mode in run.protocol.modes:
            for alignment in result.alignments:
                row: dict[str, Any] = {
                    'dataset': result.name,
                    'protocol': run.protocol.name,
                    'mode': mode,
                    'alignment': alignment,
                    'crop': run.protocol.crop,
                    'max_depth_m': run.protocol.max_depth,
                    'truth': result.note,
                }
                row.update(result.summary(alignment, mode))
                row['coverage'] = result.coverage if math.isfinite(result.coverage) else None
                found.append(row)
    return found


def _cells(row: dict[str, Any]) -> list[str]:
    def number(key: str, digits: int = 3) -> str:
        value = row[key]
        return '-' if value is None else f'{value:.{digits}f}'

    return [
        row['dataset'],
        str(row['frames']),
        row['mode'],
        row['alignment'],
        number('abs_rel'),
        number('delta1'),
        number('rms'),
        number('boundary_f1'),
        number('plane_abs_rel'),
        number('ratio_to_plane', 2),
        number('ratio_median', 2),
        '-' if row['frames_better'] is None else str(row['frames_better']),
        '-' if row['coverage'] is None else f'{100 * row["coverage"]:.1f} %',
    ]


def text_table(run: Run) -> str:
    """The table for a terminal."""
    cells = [list(COLUMNS), *(_cells(row) for row in rows(run))]
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    left = {0, 2, 3}
    lines = [
        '  '.join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    lines.insert(1, '  '.join('-' * width for width in widths))
    lines += _ordinal_lines(run)
    lines += _distance_lines(run)
    lines += _confidence_lines(run)
    if run.comparison is not None:
        lines.append(f'compared with {run.comparison.baseline}')
        lines += [
            f'  {change.dataset} {change.alignment}: AbsRel {change.after.mean():.3f} instead of '
            f'{change.before.mean():.3f}; better in {change.better}, worse in {change.worse} of '
            f'{len(change.names)} frames (by more than {100 * compare.EQUAL_SHARE:g} %), median '
            f'of their ratios {change.median_ratio:.2f}'
            for change in run.comparison.changes
        ]
        lines += [f'  not compared: {words}' for words in run.comparison.left_out]
    lines += [
        f'data {result.name}: {result.note}; {run.protocol.describe(result.truth)}'
        for result in run.results
    ]
    return '\n'.join([run.headline(), *lines, PLANE_NOTE])


def _ordinal_lines(run: Run) -> list[str]:
    """One line per row that has labelled pairs: they do not fit into the table's columns."""
    found = []
    for row in rows(run):
        if row['whdr'] is not None or row['wkdr'] is not None:
            parts = [
                f'{name.upper()} {100 * row[name]:.2f} %'
                for name in ('whdr', 'wkdr', 'wkdr_eq', 'wkdr_ne')
                if row[name] is not None
            ]
            found.append(f'{row["dataset"]} {row["mode"]}: ' + ', '.join(parts))
    return list(dict.fromkeys(found))


def _distance_lines(run: Run) -> list[str]:
    """One line per data set on which metres can be judged."""
    return [
        f'distance of {result.name}, predicted over true: {ratio.median:.2f} (median; frames '
        f'{ratio.frames}, 90 % of them {ratio.p05:.2f} to {ratio.p95:.2f}); within 10 % in '
        f'{100 * ratio.within_10:.0f} %, within 25 % in {100 * ratio.within_25:.0f} % of them'
        for result in run.results if (ratio := result.distance) is not None
    ]


def _confidence_lines(run: Run) -> list[str]:
    """One line per data set on which a confidence was measured."""
    found = []
    for result in run.results:
        if result.confidence is not None:
            values = result.confidence.values()
            kept = ', '.join(
                f'{name.removeprefix("error_")} % {values[name]:.3f}'
                for name in CONFIDENCE_NAMES if name.startswith('error_')
            )
            found.append(
                f'{result.name} confidence: calibration error {values["ece"]:.3f} (claims '
                f'{values["mean"]:.3f}, right {values["right"]:.3f}); AUSE {values["ause"]:.4f} '
                f'(knowing nothing: {values["random"]:.4f}); AbsRel after the median of the most '
                f'confident {kept}'
            )
    return found


def to_json(run: Run) -> dict[str, Any]:
    """Everything measured, per frame too, ready for json.dump (no NaN: null where not defined)."""
    return {
        'model': run.model,
        'headline': run.headline(),
        'file': run.file,
        'sha256': run.sha256,
        'backend': run.backend,
        'precision': run.precision,
        'filters': run.filters,
        'command': run.command,
        'date': run.date,
        'version': run.version,
        'protocol': {
            'name': run.protocol.name,
            'alignments': list(run.protocol.alignments),
            'modes': list(run.protocol.modes),
            'min_depth_m': run.protocol.min_depth,
            'max_depth_m': run.protocol.max_depth,
            'crop': describe_crop(run.protocol.crop),
            'input_crop': run.protocol.input_crop,
            'truth_hw': None if run.protocol.truth_hw is None else list(run.protocol.truth_hw),
            'resize_in': run.protocol.resize_in,
            'flip': run.protocol.flip,
            'sdr_pairs': run.protocol.sdr_pairs,
            'wkdr_threshold': run.protocol.wkdr_threshold,
        },
        'rows': rows(run),
        'datasets': [_dataset_json(result, run.protocol) for result in run.results],
        'comparison': None if run.comparison is None else compare.to_json(run.comparison),
    }


def _dataset_json(result: DatasetResult, protocol: Protocol) -> dict[str, Any]:
    seconds = [frame.seconds for frame in result.frames if math.isfinite(frame.seconds)]
    return {
        'name': result.name,
        'kind': result.kind,
        'note': result.note,
        'metric': result.metric,
        'truth_known_up_to': result.truth,
        'protocol': protocol.describe(result.truth),
        'frames_read': len(result.frames),
        'skipped': [{'name': item.name, 'reason': item.reason} for item in result.skipped],
        'notes': list(result.notes),
        'image_sizes_hw': [list(size) for size in result.size_hw],
        'coverage': _finite(result.coverage),
        'confidence': None if result.confidence is None else {
            **{key: _finite(value) for key, value in result.confidence.values().items()},
            'bins': result.confidence.bins(),
        },
        'distance': None if result.distance is None else result.distance.values(),
        'pipeline_ms_median': _finite(1e3 * float(np.median(seconds))) if seconds else None,
        'scenes': {
            scene: {
                'frames': len(part.frames),
                'distance': None if part.distance is None else part.distance.values(),
                'aligned': {
                    name: _plain(part.summary(name, _one_mode(protocol)), SCENE_METRICS)
                    for name in result.alignments
                },
            }
            for scene, part in result.by_scene().items()
        },
        'ranges': {
            name: [
                {
                    'from_m': near,
                    'to_m': _finite(far),
                    'pixels': sums.count,
                    **{key: _finite(getattr(sums, key)) for key in RANGE_METRICS},
                }
                for near, far, sums in result.by_range(name)
            ]
            for name in result.alignments
        },
        'parts': list(result.parts),
        # those of a joined set are in its parts
        'frames': [] if result.parts else [
            {
                'name': frame.name,
                'scene': frame.scene,
                'known_pixels': frame.known,
                'coverage': _finite(frame.coverage),
                'plane_abs_rel': _finite(frame.plane.abs_rel),
                'aligned': {
                    name: {
                        **{
                            key: _finite(value)
                            for key, value in score.errors.values().items()
                            if result.metric or key not in METRES_NEEDED
                        },
                        'boundary_f1': _finite(score.boundary.f1),
                        'sdr': _finite(score.sdr.rate),
                        'ratio_to_plane': _finite(frame.ratio_to_plane(name)),
                        **(
                            {}
                            if score.normals is None
                            else {k: _finite(v) for k, v in score.normals.values().items()}
                        ),
                        'scale': _finite(score.scale),
                        'shift': _finite(score.shift),
                    }
                    for name, score in frame.aligned.items()
                },
            }
            for frame in result.frames
        ],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(summary: dict[str, float | None], names: Sequence[str]) -> dict[str, float | None]:
    return {name: summary[name] for name in names}


def _one_mode(protocol: Protocol) -> str:
    """Choose the mode of what is given in one mode only: per-image where it was measured."""
    return 'per-image' if 'per-image' in protocol.modes else protocol.modes[0]


def markdown(run: Run, sheets: Sequence[str] = ()) -> str:
    """The report.

    Args:
        run: what was measured.
        sheets: file names of the picture pages, relative to the report.

    Returns:
        Markdown text.
    """
    lines = [
        f'# Evaluation of {run.model}',
        '',
        f'- model: {run.headline()}',
        f'- filters: {run.filters}',
        f'- package version {run.version}, {run.date}',
        f'- command: `{run.command}`',
        '- per-image: mean of the values of the frames; pooled: one value over all pixels',
        f'- {PLANE_NOTE}',
        f'- protocol: {run.protocol.name}; crop {describe_crop(run.protocol.crop)}; range '
        f'{run.protocol.min_depth:g} to {run.protocol.max_depth:g} m',
        f'- {ALIGNMENT_NOTE}',
        '',
    ]
    table = rows(run)
    lines += _table(COLUMNS, [_cells(row) for row in table])
    for title, names in TABLES:
        measured = [row for row in table if any(row[name] is not None for name in names)]
        if not measured:
            continue
        lines += ['', f'## {title}', '']
        lines += _table(
            ('data set', 'mode', 'alignment', *names),
            [
                [row['dataset'], row['mode'], row['alignment']]
                + ['-' if row[name] is None else f'{row[name]:.4f}' for name in names]
                for row in measured
            ],
        )
    lines += _sections(run)
    lines += ['', '## Data', '']
    for result in run.results:
        lines.append(
            f'- **{result.name}**: {result.note}; {run.protocol.describe(result.truth)}; '
            f'{len(result.frames)} frames read, {len(result.skipped)} skipped'
        )
        lines += [f'  - {note}' for note in result.notes]
        lines += [f'  - skipped {item.name}: {item.reason}' for item in result.skipped]
        for alignment in result.alignments:
            flipped = sum(frame.aligned[alignment].scale < 0 for frame in result.frames)
            if flipped:
                lines.append(
                    f'  - {alignment}: negative scale (near and far exchanged) on '
                    f'{flipped} of {len(result.frames)} frames'
                )
    if sheets:
        lines += ['', '## Worst and best frames', '']
        lines += [f'![{name}]({name})' for name in sheets]
    return '\n'.join(lines) + '\n'


def summary_markdown(run: Run) -> str:
    """The short report: one mode, the tables of scenes, ranges, comparison and frames."""
    mode = _one_mode(run.protocol)
    shown = [
        [cell for name, cell in zip(COLUMNS, _cells(row), strict=True) if name != 'mode']
        for row in rows(run)
        if row['mode'] == mode
    ]
    lines = [
        f'# {run.model}, {run.precision}, measured',
        '',
        f'- {run.headline()}; filters {run.filters}; package version {run.version}, {run.date}',
        f'- `{run.command}`',
        f'- {"mean of the frames" if mode == "per-image" else "all pixels together"}; range '
        f'{run.protocol.min_depth:g} to {run.protocol.max_depth:g} m; crop '
        f'{describe_crop(run.protocol.crop)}',
        f'- {ALIGNMENT_NOTE}',
        f'- {PLANE_NOTE}',
        *(f'- {result.name}: {result.note}' for result in run.results if not result.parts),
        '',
        *_table([name for name in COLUMNS if name != 'mode'], shown),
        *_sections(run),
    ]
    return '\n'.join(lines) + '\n'


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return [
        '| ' + ' | '.join(head) + ' |',
        '|' + '---|' * len(head),
        *('| ' + ' | '.join(cells) + ' |' for cells in body),
    ]


def _three(value: float | None) -> str:
    return '-' if value is None or not math.isfinite(value) else f'{value:.3f}'


def _sections(run: Run) -> Iterator[str]:
    """Yield the lines that both reports share: scenes, ranges, comparison, single frames."""
    mode = _one_mode(run.protocol)
    # the parts of a joined set are in it already
    joined = {name for result in run.results for name in result.parts}
    whole = [result for result in run.results if result.name not in joined]
    ratios = [
        (result.name, scene, ratio)
        for result in run.results
        for scene, part in (('', result), *(() if result.name in joined
                                            else result.by_scene().items()))
        if (ratio := part.distance) is not None
    ]
    if ratios:
        yield from ('', '## Predicted over true distance', '', f'{DISTANCE_NOTE}.', '')
        yield from _table(
            ('data set', 'scene', 'frames', 'median', '5 %', '95 %', 'within 10 %', 'within 25 %'),
            [
                [name, scene or 'all', str(ratio.frames), f'{ratio.median:.2f}',
                 f'{ratio.p05:.2f}', f'{ratio.p95:.2f}', f'{100 * ratio.within_10:.0f} %',
                 f'{100 * ratio.within_25:.0f} %']
                for name, scene, ratio in ratios
            ],
        )
    for result in whole:
        scenes = result.by_scene()
        if scenes:
            yield from ('', f'## Kinds of scene in {result.name} ({mode})', '')
            yield from _table(
                ('scene', 'frames', *(f'{key}, {name}' for name in result.alignments
                                      for key in ('AbsRel', 'delta1')),
                 'boundary F1', 'plane AbsRel', 'median ratio, ' + result.alignments[-1]),
                [_scene_cells(scene, part, mode) for scene, part in scenes.items()],
            )
    for result in whole:
        bands = {name: result.by_range(name) for name in result.alignments}
        pixels = sum(sums.count for _, _, sums in bands[result.alignments[0]])
        if pixels:
            yield from ('', f'## By true depth in {result.name} (all pixels of a band)', '')
            yield from _table(
                ('true depth [m]', 'pixels', *(f'{key}, {name}' for name in result.alignments
                                               for key in ('AbsRel', 'delta1'))),
                [
                    [
                        f'{near:g} to {far:g}' if math.isfinite(far) else f'{near:g} and more',
                        f'{100 * first.count / pixels:.1f} %',
                        *(_three(value) for name in result.alignments
                          for value in (bands[name][i][2].abs_rel, bands[name][i][2].delta1)),
                    ]
                    for i, (near, far, first) in enumerate(bands[result.alignments[0]])
                    if first.count
                ],
            )
    sure = {result.name: result.confidence for result in whole if result.confidence is not None}
    if sure:
        yield from ('', '## Confidence', '', f'{CONFIDENCE_NOTE}.', '')
        yield from _table(
            ('data set', *CONFIDENCE_NAMES),
            [[name, *(_three(value) for value in score.values().values())]
             for name, score in sure.items()],
        )
    if run.comparison is not None:
        yield from _comparison_lines(run.comparison)
    for result in run.results:
        if len(result.frames) <= LISTED_FRAMES and not (result.parts or result.name in joined):
            yield from _frame_lines(run, result)


def _scene_cells(scene: str, part: DatasetResult, mode: str) -> list[str]:
    values = {name: part.summary(name, mode) for name in part.alignments}
    last = values[part.alignments[-1]]
    return [
        scene,
        str(len(part.frames)),
        *(_three(values[name][key]) for name in part.alignments for key in ('abs_rel', 'delta1')),
        _three(values[part.alignments[0]]['boundary_f1']),
        _three(last['plane_abs_rel']),
        _three(last['ratio_median']),
    ]


def _comparison_lines(comparison: compare.Comparison) -> Iterator[str]:
    yield from ('', f'## Compared with {comparison.baseline}', '')
    yield from _table(
        ('data set', 'alignment', 'frames', 'AbsRel', 'before', 'better in', 'worse in',
         'median of AbsRel / before', 'greatest gain', 'greatest loss'),
        [
            [
                change.dataset,
                change.alignment,
                str(len(change.names)),
                _three(float(change.after.mean())),
                _three(float(change.before.mean())),
                str(change.better),
                str(change.worse),
                f'{change.median_ratio:.2f}',
                *change.extremes(),
            ]
            for change in comparison.changes
        ],
    )
    yield ''
    yield (f'Better and worse: by more than {100 * compare.EQUAL_SHARE:g} % of the AbsRel before; '
           'compared are frames whose truth is the same.')
    if comparison.left_out:
        yield ''
        yield from (f'- not compared: {words}' for words in comparison.left_out)


def _frame_lines(run: Run, result: DatasetResult) -> Iterator[str]:
    before = {
        (change.alignment, name): float(error)
        for change in (run.comparison.changes if run.comparison else ())
        if change.dataset == result.name
        for name, error in zip(change.names, change.before, strict=True)
    }
    compared = [name for name in result.alignments if any(key[0] == name for key in before)]
    scored = [f for f in result.frames if f.aligned[result.alignments[0]].errors.count]
    if not scored:
        return
    yield from ('', f'## Frames of {result.name}', '')
    yield from _table(
        ('frame', *(f'AbsRel, {name}' for name in result.alignments), 'plane AbsRel',
         *(f'ratio, {name}' for name in result.alignments),
         *(f'AbsRel before, {name}' for name in compared)),
        [
            [
                frame.name,
                *(_three(frame.aligned[name].errors.abs_rel) for name in result.alignments),
                _three(frame.plane.abs_rel),
                *(_three(frame.ratio_to_plane(name)) for name in result.alignments),
                *(_three(before.get((name, frame.name))) for name in compared),
            ]
            for frame in scored
        ],
    )


def frames_csv(run: Run) -> str:
    """One line per frame: its errors under every alignment, the plane's, and the ratio.

    What is not defined is left empty.
    """
    alignments = list(dict.fromkeys(name for item in run.results for name in item.alignments))
    keys = ('abs_rel', 'delta1', 'boundary_f1', 'ratio_to_plane', 'scale', 'shift')
    before = {
        (change.dataset, change.alignment, name): float(error)
        for change in (run.comparison.changes if run.comparison else ())
        for name, error in zip(change.names, change.before, strict=True)
    }
    text = io.StringIO()
    table = csv.writer(text, lineterminator='\n')
    table.writerow(
        ['dataset', 'frame', 'scene', 'known_pixels', 'coverage', 'plane_abs_rel']
        + [f'{name}_{key}' for name in alignments for key in keys]
        + [f'{name}_abs_rel_baseline' for name in alignments if before]
    )
    for result in run.results:
        for frame in () if result.parts else result.frames:
            cells: list[Any] = [frame.coverage, frame.plane.abs_rel]
            for name in alignments:
                score = frame.aligned.get(name)
                cells += [math.nan] * len(keys) if score is None else [
                    score.errors.abs_rel, score.errors.delta1, score.boundary.f1,
                    frame.ratio_to_plane(name), score.scale, score.shift,
                ]  # fmt: skip
            cells += [
                before.get((result.name, name, frame.name), math.nan)
                for name in alignments if before
            ]
            table.writerow(
                [result.name, frame.name, frame.scene, frame.known]
                + [f'{cell:.6g}' if math.isfinite(cell) else '' for cell in cells]
            )
    return text.getvalue()


def contact_sheet(run: Run, result: DatasetResult) -> NDArray[np.uint8]:
    """Worst and best frames of a data set: picture, truth, prediction, relative error.

    Truth and prediction share one colour range per frame (turbo over inverse depth, 2nd to 98th
    percentile of the truth); the error scale is fixed, black 0 to yellow 50 %.

    Args:
        run: for the caption.
        result: the data set.

    Returns:
        (H, W, 3) bgr uint8.
    """
    tiles = [
        *((f'worst {i + 1}', example) for i, example in enumerate(result.worst)),
        *((f'best {i + 1}', example) for i, example in enumerate(result.best)),
    ]
    strips = [_strip(label, example, result) for label, example in tiles]
    width = max((strip.shape[1] for strip in strips), default=0)
    width = max(width, 4 * 240)
    caption = [
        f'{result.name}: {run.headline()}',
        f'{len(result.frames)} frames, {len(result.skipped)} skipped, coverage '
        f'{100 * result.coverage:.1f} %; '
        f'alignment of the pictures: {result.alignments[0]}; filters {run.filters}',
        f'{run.protocol.describe(result.truth)}',
    ]
    for mode in run.protocol.modes:
        parts = []
        for alignment in result.alignments:
            values = result.summary(alignment, mode)
            cells = [
                f'{key} {values[name]:.3f}'
                for key, name in (
                    ('AbsRel', 'abs_rel'),
                    ('d1', 'delta1'),
                    ('ratio', 'ratio_to_plane'),
                )
                if values[name] is not None
            ]
            parts.append(f'{alignment}: ' + ' '.join(cells))
        caption.append(f'{mode}  ' + '   '.join(parts))
    caption.append(
        'columns: picture, truth, prediction (grey: none), abs(d - d*) / d* from 0 (black) to 50 '
        '% (yellow)'
    )
    page = [_text_block(caption, width), *(_padded(strip, width) for strip in strips)]
    return np.concatenate(page, axis=0)


def _strip(label: str, example: Example, result: DatasetResult) -> NDArray[np.uint8]:
    true = example.true_depth
    predicted = example.predicted
    known = np.isfinite(true) & (true > 0)
    near, far = (
        (float(x) for x in np.percentile(true[known], [2, 98])) if known.any() else (0.5, 5.0)
    )
    far = max(far, near * 1.2)
    has = np.isfinite(predicted) & (predicted > 0)
    truth_bgr = colorize(np.where(known, true, np.nan).astype(np.float32), near, far)
    predicted_bgr = colorize(np.where(has, predicted, np.nan).astype(np.float32), near, far)
    predicted_bgr[~has] = 128
    both = known & has
    relative = np.zeros(true.shape, np.float32)
    relative[both] = np.abs(predicted[both] - true[both]) / true[both]
    level = np.clip(relative / ERROR_FULL_SCALE * 255, 0, 255).astype(np.uint8)
    error_bgr = np.asarray(cv2.applyColorMap(level, cv2.COLORMAP_INFERNO), np.uint8)
    error_bgr[known & ~has] = 128
    error_bgr[~known] = 0
    rgb = np.asarray(cv2.cvtColor(example.rgb, cv2.COLOR_RGB2BGR), np.uint8)
    pictures = np.concatenate([rgb, truth_bgr, predicted_bgr, error_bgr], axis=1)
    unit = ' m' if result.metric else ''
    colours = f'colours {near:.2f} to {far:.2f}{unit}'
    text = f'{label}: {example.name}  AbsRel {example.abs_rel:.3f}  {colours}'
    return np.concatenate([_text_block([text], pictures.shape[1]), pictures], axis=0)


def _text_block(lines: Sequence[str], width: int) -> NDArray[np.uint8]:
    """White text on black, wrapped at the width, 16 px a line."""
    per_line = max(20, (width - 12) // 7)
    wrapped: list[str] = []
    for line in lines:
        current = ''
        for word in line.split(' '):
            if current and len(current) + 1 + len(word) > per_line:
                wrapped.append(current)
                current = '   ' + word
            else:
                current = f'{current} {word}' if current else word
        wrapped.append(current)
    block = np.zeros((16 * len(wrapped) + 8, width, 3), np.uint8)
    for i, line in enumerate(wrapped):
        cv2.putText(
            block,
            line,
            (6, 16 * (i + 1)),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.4,
            (255, 255, 255),
            1,
            cv2.LINE_AA,
        )
    return block


def _padded(strip: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    if strip.shape[1] >= width:
        return strip
    return np.pad(strip, ((0, 0), (0, width - strip.shape[1]), (0, 0)))


def write(run: Run, folder: Path) -> list[Path]:
    """Write results.json, report.md, frames.csv and one picture page per data set.

    Args:
        run: what was measured.
        folder: made when missing.

    Returns:
        The files written.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    sheets = []
    for result in run.results:
        if not (result.worst or result.best):
            continue
        name = 'examples_' + re.sub(r'[^A-Za-z0-9_.-]+', '_', result.name) + '.png'
        ok, data = cv2.imencode('.png', contact_sheet(run, result))
        if not ok:
            raise OSError(f'{folder / name}: OpenCV could not encode the picture page')
        (folder / name).write_bytes(data.tobytes())
        sheets.append(name)
        written.append(folder / name)
    for name, text in (
        ('results.json', json.dumps(to_json(run), indent=1, allow_nan=False) + '\n'),
        ('report.md', markdown(run, sheets)),
        ('frames.csv', frames_csv(run)),
    ):
        (folder / name).write_text(text, encoding='utf-8')
        written.append(folder / name)
    return written


def card_entry(run: Run, result: DatasetResult, mode: str = 'per-image') -> dict[str, Any]:
    """One data set's card entry: rounded metrics per alignment, and how they were measured."""
    entry: dict[str, Any] = {
        'data': result.note,
        'frames': len(result.frames),
        'skipped': len(result.skipped),
        'coverage': _rounded(result.coverage),
        'mode': mode,
        'protocol': f'{run.protocol.describe(result.truth)}; filters {run.filters}',
        'backend': run.backend,
        'command': run.command,
        'date': run.date,
    }
    scenes = {scene: len(part.frames) for scene, part in result.by_scene().items()}
    if scenes:
        entry['scenes'] = scenes
    for alignment in result.alignments:
        summary = result.summary(alignment, mode)
        entry[alignment] = {
            key: _rounded(value) for key in CARD_METRICS if (value := summary[key]) is not None
        }
    if result.distance is not None:
        entry['distance'] = {
            key: _rounded(value) for key, value in result.distance.values().items()
        }
    if result.confidence is not None:
        entry['confidence'] = {
            key: _rounded(value) for key, value in result.confidence.values().items()
        }
    return entry


def _rounded(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else round(float(value), 4)


def updated_card(card: ModelCard, run: Run) -> ModelCard:
    """The card with this run under metrics.<precision>.<data set>; other entries stay.

    The per-image mode is recorded where it was measured, else the pooled one.

    Args:
        card: the measured model's card.
        run: what was measured.

    Returns:
        A new card, not yet saved.
    """
    mode = _one_mode(run.protocol)
    metrics = {
        key: dict(value) if isinstance(value, dict) else value
        for key, value in card.metrics.items()
    }
    section = metrics.get(run.precision)
    section = dict(section) if isinstance(section, dict) else {}
    for result in run.results:
        section[result.name] = card_entry(run, result, mode)
    metrics[run.precision] = section
    return replace(card, metrics=metrics)


def command_line(arguments: Sequence[str]) -> str:
    """The command for reports and cards, with absolute paths cut to their last two parts.

    A card is read on other machines, where the folders of this one mean nothing.
    """

    def shortened(argument: str) -> str:
        kind, colon, tail = argument.partition(':')
        prefix, path = (kind + colon, tail) if colon else ('', argument)
        if not path.startswith('/'):
            return argument
        parts = Path(path).parts
        return prefix + '.../' + '/'.join(parts[-2:]) if len(parts) > 3 else argument

    return shlex.join(['depth-node', 'evaluate', *(shortened(item) for item in arguments)])
