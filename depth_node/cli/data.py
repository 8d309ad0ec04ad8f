"""`depth-node data`: what a data set is, and what in it is broken."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass, field
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
import zipfile

from depth_node.cli import CommandError, UsageError
from depth_node.cli._common import data_options, positive_int, print_json, progress, table

if TYPE_CHECKING:
    from depth_node.cli._sheet import Tile
    from depth_node.training.datasets import DepthDataset
    from depth_node.training.frame import Frame
    import numpy as np
    from numpy.typing import NDArray

HELP = 'recognise a data set, count it, measure its depth, and name what is broken'

_EPILOG: Final = """\
examples:
  depth-node data check data/nyu                     reads every frame; exit status 1 if one fails
  depth-node data check nyu_data.zip --sample 200 --sheet nyu.jpg
  depth-node data check lists --kind list --option depth_scale=256 --split val
  depth-node data check my_folder --option k=[525,525,319.5,239.5] --json
"""
_CHECK_EPILOG: Final = """\
What the folder or file is, its content tells; --kind says it where that leaves a choice. Options
are those of `data.options` in a training configuration, their values YAML. Own frames are called
X.jpg or X.png, with X_depth_mm.png (16 bit, millimetres), X_depth.png (millimetres, or --option
unit=m, cm, mm, kitti) or X.npy (float, metres) beside them; in one folder, or in train and val.

kinds: rendered, folder, nyu_mat, nyu_densedepth, list, kitti, diode, make3d, sunrgbd, megadepth,
       diw, redweb, hypersim, vkitti2, sfm_triptych, bag

examples:
  depth-node data check data/nyu
  depth-node data check nyu_data.zip --sample 200 --sheet nyu.jpg
  depth-node data check lists --kind list --option depth_scale=256 --split val
"""
_SHOWN_BROKEN: Final = 20
_SHEET_FRAMES: Final = 12
_PERCENTILES: Final = (1, 50, 99)
# Depth is counted in bins of equal ratio, 0.46 % wide, so that any number of frames fits.
_DECADES: Final = (-4, 5)
_BINS_A_DECADE: Final = 500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = _EPILOG
    verbs = parser.add_subparsers(dest='action', metavar='ACTION', required=True)
    check = verbs.add_parser(
        'check', help='read a data set and report', epilog=_CHECK_EPILOG, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    check.add_argument('path', type=Path, metavar='PATH', help='folder, zip, list, .mat or bag')
    check.add_argument('--kind', metavar='NAME',
                       help='what it is, of those below (what its content tells)')
    check.add_argument('--split', choices=('train', 'val', 'test'), help='this one alone (all)')
    check.add_argument('--option', action='append', default=[], metavar='KEY=VALUE',
                       help='of the data set; may be given several times')
    check.add_argument('--sample', type=positive_int, metavar='N',
                       help='read N frames of each split, evenly spread (all)')
    check.add_argument('--sheet', type=Path, metavar='FILE.jpg',
                       help=f'write {_SHEET_FRAMES} pictures beside their depth in colours')
    check.add_argument('--json', action='store_true', help='print JSON, every broken frame in it')
    check.add_argument('--debug', action='store_true', default=argparse.SUPPRESS,
                       help='show the traceback of an error')


def run(args: argparse.Namespace) -> int:
    """Run the verb; there is one action so far."""
    return _check(args)


@dataclass
class SplitReport:
    """What was found in a split.

    Attributes:
        split: its name.
        frames: how many there are.
        metric: their depth is in metres.
        read: how many were read, broken ones included.
        broken: name and reason of those that could not be.
        sizes: (height, width) of the pictures.
        bins: known depth, counted by `_DECADES`.
        known: pixels of known truth.
        pixels: pixels of all.
        hfov_deg: angle of view of every frame that has a camera.
        extras: frames that have something beyond picture and depth.
        tiles: frames for the sheet.
    """

    split: str
    frames: int
    metric: bool
    read: int = 0
    broken: list[tuple[str, str]] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    bins: NDArray[np.int64] | None = None
    known: int = 0
    pixels: int = 0
    hfov_deg: list[float] = field(default_factory=list)
    extras: Counter[str] = field(default_factory=Counter)
    tiles: list[Tile] = field(default_factory=list)

    def add(self, frame: Frame) -> None:
        """Count a frame."""
        import numpy as np

        self.sizes[frame.size_hw] += 1
        self.pixels += frame.depth.size
        known = frame.depth[frame.depth > 0]
        if known.size:
            first, last = _DECADES
            place = (np.log10(known, dtype=np.float64) - first) * _BINS_A_DECADE
            count = (last - first) * _BINS_A_DECADE
            found = np.bincount(place.astype(int).clip(0, count - 1), minlength=count)
            self.bins = found if self.bins is None else self.bins + found
            self.known += known.size
        elif frame.rel_inv_depth is not None:
            self.known += int(np.isfinite(frame.rel_inv_depth).sum())
        if frame.camera is not None:
            self.hfov_deg.append(frame.camera.hfov_deg)
        for name in ('rel_inv_depth', 'normals', 'labels', 'ordinal', 'sky', 'pairs'):
            if getattr(frame, name) is not None:
                self.extras[name] += 1
        for view in frame.views:
            self.extras[f'{view.kind} view'] += 1

    def percentile(self, share: float) -> float:
        """Return the depth below which a share of the known pixels lies; NaN without any."""
        import numpy as np

        if self.bins is None:
            return math.nan
        total = self.bins.cumsum()
        index = int(np.searchsorted(total, share * total[-1]))
        return float(10 ** (_DECADES[0] + (index + 0.5) / _BINS_A_DECADE))

    def to_json(self) -> dict[str, Any]:
        """Return what was found, for a script."""
        return {
            'split': self.split, 'frames': self.frames, 'read': self.read,
            'broken': [{'frame': name, 'reason': reason} for name, reason in self.broken],
            'sizes_hw': [{'size_hw': size, 'frames': n} for size, n in self.sizes.most_common()],
            'depth_percentiles': {str(p): self.percentile(p / 100) for p in _PERCENTILES},
            'unknown_share': 1 - self.known / self.pixels if self.pixels else math.nan,
            'frames_with_camera': len(self.hfov_deg),
            'hfov_deg': [min(self.hfov_deg), max(self.hfov_deg)] if self.hfov_deg else None,
            'extras': dict(self.extras)}

    def row(self) -> tuple[str, ...]:
        """Return a row of the table."""
        good = self.read - len(self.broken)
        sizes = [f'{width}x{height}' for (height, width), _ in self.sizes.most_common()]
        size = sizes[0] if sizes else '-'
        if len(sizes) > 1:
            size += f' and {len(sizes) - 1} more'
        depth = '-'
        if self.bins is not None:
            depth = ' / '.join(f'{self.percentile(p / 100):.3g}' for p in _PERCENTILES)
        unknown = f'{100 * (1 - self.known / self.pixels):.1f} %' if self.pixels else '-'
        camera = 'unknown' if good else '-'
        if self.hfov_deg:
            angles = dict.fromkeys((f'{min(self.hfov_deg):.1f}', f'{max(self.hfov_deg):.1f}'))
            camera = f'{" to ".join(angles)} deg'
            if len(self.hfov_deg) < good:
                camera += f' in {len(self.hfov_deg)} of {good}'
        return (self.split, str(self.frames), str(self.read), str(len(self.broken)), size, depth,
                unknown, camera)


def _check(args: argparse.Namespace) -> int:
    if not args.path.exists():
        raise CommandError(f'{args.path}: no such file or folder')
    options = data_options(args.option)
    if args.sheet is not None and args.sheet.suffix.lower() not in ('.jpg', '.jpeg', '.png'):
        raise UsageError(f'--sheet {args.sheet}: a name ending in .jpg or .png is expected')
    kind, reason = _kind(args)
    datasets, failures, absent = _open(kind, args, options)
    reports = [_read(dataset, args, len(datasets)) for dataset in datasets]
    broken = sum(len(report.broken) for report in reports)
    notes = [*dict.fromkeys(dataset.note for dataset in datasets if dataset.note),
             *_shared_frames(datasets)]
    if args.sheet is not None:
        from depth_node.cli._sheet import write_sheet
        tiles = [tile for report in reports for tile in report.tiles]
        if not tiles:
            raise CommandError('no frame could be read, so there is nothing for --sheet')
        write_sheet(args.sheet, tiles, _range(reports), _unit(reports))
    if args.json:
        print_json({
            'path': str(args.path), 'kind': kind, 'recognised_by': reason, 'notes': notes,
            'metric': all(dataset.metric for dataset in datasets), 'absent': absent,
            'failures': failures,
            'broken': broken, 'splits': [report.to_json() for report in reports],
            'sheet': None if args.sheet is None else str(args.sheet)})
    else:
        _print(args, kind, reason, notes, reports, failures, absent)
    return 1 if broken or failures else 0


def _kind(args: argparse.Namespace) -> tuple[str, str]:
    """Return what the path is and why: as told, or the one kind that recognises it."""
    from depth_node.training.datasets import DATASETS

    if args.kind is not None:
        if args.kind not in DATASETS:
            raise UsageError(f'--kind {args.kind}: one of {", ".join(DATASETS)} is expected')
        return args.kind, '--kind'
    found = recognised(args.path)
    if len(found) == 1:
        return found[0]
    if found:
        choice = ''.join(f'\n  --kind {kind:<16}{reason}' for kind, reason in found)
        raise UsageError(f'{args.path} can be read in {len(found)} ways, choose:{choice}')
    children = sorted(args.path.iterdir())[:100] if args.path.is_dir() else []
    if args.path.is_dir() and not children:
        raise CommandError(f'{args.path}: an empty folder')
    for file in (args.path, *children):
        if file.suffix == '.zip' and not zipfile.is_zipfile(file):
            raise CommandError(f'{file}: not a readable zip ({file.stat().st_size} bytes); it is '
                               'cut off or something else: fetch it again')
    hint = ''
    for child in children:
        inner = recognised(child)
        if inner:
            hint = f'; {child} looks like {inner[0][0]} ({inner[0][1]})'
            break
    raise CommandError(f'{args.path}: not recognised as a data set{hint}; name what it is by '
                       f'--kind, one of {", ".join(DATASETS)}.\n'
                       'Own frames are called X.jpg or X.png, with X_depth_mm.png (16 bit, '
                       'millimetres), X_depth.png or X.npy (float, metres) beside them')


def recognised(path: Path) -> list[tuple[str, str]]:
    """List the kinds of data sets that a path looks like, with their reasons.

    A kind whose module has no function `recognise` is never among them.
    """
    import importlib

    from depth_node.training.datasets import DATASETS

    found = []
    for kind, target in DATASETS.items():
        module = importlib.import_module(target.partition(':')[0])
        recognise = getattr(module, 'recognise', None)
        reason = recognise(path) if recognise is not None else None
        if reason is not None:
            found.append((kind, reason))
    return found


def _open(
    kind: str, args: argparse.Namespace, options: dict[str, Any]
) -> tuple[list[DepthDataset], list[str], list[str]]:
    """Index the splits; return those that are there, why some cannot be, and why some are not."""
    from depth_node.training.datasets import DatasetError, open_dataset
    from depth_node.training.datasets.base import SPLITS, AbsentSplitError

    datasets: list[DepthDataset] = []
    failures: list[str] = []
    absent: list[str] = []
    for split in SPLITS if args.split is None else (args.split,):
        try:
            datasets.append(open_dataset(kind, args.path, split, **options))
        except AbsentSplitError as error:
            absent.append(str(error))
        except DatasetError as error:
            failures.append(str(error))
        except (TypeError, ValueError) as error:  # options that the data set refuses
            raise UsageError(str(error)) from error
    if not datasets:
        raise CommandError('\n'.join(dict.fromkeys(failures or absent)))
    return datasets, list(dict.fromkeys(failures)), absent


def _read(dataset: DepthDataset, args: argparse.Namespace, splits: int) -> SplitReport:
    """Read the frames of a split, or some."""
    from depth_node.cli._sheet import Tile
    from depth_node.training.datasets import DatasetError

    report = SplitReport(dataset.split, len(dataset), dataset.metric)
    indices = _spread(len(dataset), args.sample)
    for_sheet: set[int] = set()
    if args.sheet is not None:
        for_sheet = {indices[i] for i in _spread(len(indices), -(-_SHEET_FRAMES // splits))}
    for index in progress(indices, unit='frame', total=len(indices),
                          name=f'{dataset.kind} {dataset.split}'):
        report.read += 1
        try:
            frame = dataset.read(index)
        except (DatasetError, OSError) as error:
            report.broken.append((dataset.name(index), str(error)))
            continue
        report.add(frame)
        if index in for_sheet:
            name = dataset.name(index).removeprefix(f'{dataset.split}/')
            report.tiles.append(Tile.of(f'{dataset.split}/{name}', frame))
    return report


def _spread(count: int, wanted: int | None) -> list[int]:
    """Choose some of 0 .. count - 1, evenly, the ends among them."""
    if wanted is None or wanted >= count:
        return list(range(count))
    if wanted == 1:
        return [count // 2]
    return [round(i * (count - 1) / (wanted - 1)) for i in range(wanted)]


def _shared_frames(datasets: list[DepthDataset]) -> list[str]:
    """Tell which splits have frames in common; so it is where val is asked to be test."""
    names = [{dataset.name(index) for index in range(len(dataset))} for dataset in datasets]
    return [
        f'{datasets[i].split} and {datasets[j].split} have {len(names[i] & names[j])} frames in '
        'common'
        for i in range(len(names)) for j in range(i) if names[i] & names[j]]


def _unit(reports: list[SplitReport]) -> str:
    return 'm' if all(report.metric for report in reports) else 'own unit'


def _range(reports: list[SplitReport]) -> tuple[float, float] | None:
    """Return the depth that the sheet's colours span; None without depth."""
    lows = [report.percentile(0.01) for report in reports if report.bins is not None]
    highs = [report.percentile(0.99) for report in reports if report.bins is not None]
    return (min(lows) / 1.01, max(highs) * 1.01) if lows else None


def _print(
    args: argparse.Namespace, kind: str, reason: str, notes: list[str],
    reports: list[SplitReport], failures: list[str], absent: list[str],
) -> None:
    print(f'{args.path}: {kind} ({reason})')
    for note in notes:
        print(f'  {note}')
    head = ('split', 'frames', 'read', 'broken', 'size', f'depth 1 / 50 / 99 % [{_unit(reports)}]',
            'unknown', 'angle of view')
    print(table([head, *(report.row() for report in reports)]))
    for report in reports:
        if report.extras:
            print(f'{report.split}, beyond picture and depth: '
                  + ', '.join(f'{name} in {n}' for name, n in sorted(report.extras.items())))
    for text in absent:
        print(f'no such split  {text}')
    for failure in failures:
        print(f'FAILED  {failure}')
    broken = [(report.split, *item) for report in reports for item in report.broken]
    for split, name, text in broken[:_SHOWN_BROKEN]:
        print(f'BROKEN  {split} {name}: {text}')
    if len(broken) > _SHOWN_BROKEN:
        print(f'        and {len(broken) - _SHOWN_BROKEN} more; --json lists all')
    if args.sheet is not None:
        print(f'wrote {args.sheet}')
    if not broken and not failures:
        print('nothing is broken' + (
            '' if all(report.read == report.frames for report in reports)
            else ' among the frames that were read'))
