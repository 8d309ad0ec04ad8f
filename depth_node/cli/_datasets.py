"""Data sets by name for `depth-node evaluate`: the evaluator's own, and all that train."""

from __future__ import annotations

from dataclasses import dataclass
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from depth_node.evaluation.readers import (
    KINDS,
    DataError,
    FrameSource,
    LabelledPairs,
    Reader,
    Sample,
    open_own,
)
import numpy as np
from numpy.typing import NDArray
import yaml

if TYPE_CHECKING:
    from depth_node.training.datasets import DepthDataset
    from depth_node.training.frame import Frame

_SPLITS: Final = ('train', 'val', 'test')
# What a protocol means by the truth of a data set that has several; an option given by the user
# wins, and the report has the data set's note in any case.
_OPTIONS_OF_PROTOCOLS: Final[dict[str, dict[str, dict[str, Any]]]] = {
    'nyu_eigen': {'nyu_mat': {'truth': 'raw'}},
    'nyu_densedepth': {'nyu_mat': {'truth': 'filled'}},
    'nyu_fcrn': {'nyu_mat': {'truth': 'filled'}},
    'make3d_c2': {'make3d': {'far_m': math.inf}},
    # as Monodepth2 and SfMLearner export theirs; of no effect on annotated depth
    'kitti_garg': {'kitti': {'velodyne_depth': 'x'}},
    'kitti_eigen': {'kitti': {'velodyne_depth': 'x'}},
    'kitti_50m': {'kitti': {'velodyne_depth': 'x'}},
}
# Frames that are read to learn what the truth of a data set without metres is.
_PROBED: Final = 200


@dataclass(frozen=True)
class DataSpec:
    """A data set as named on the command line: KIND[:PATH][,split=NAME][,OPTION=VALUE...]."""

    kind: str
    path: str
    split: str | None
    options: dict[str, Any]


def parse_spec(text: str) -> DataSpec:
    """Take a command-line name apart.

    Values are YAML scalars; commas in a value make a list of numbers or words: k=525,525,319,239.
    Commas before the first OPTION=VALUE belong to the path.

    Raises:
        DataError: an option twice, or a value that is no YAML.
    """
    kind, _, tail = text.partition(':')
    path: list[str] = []
    options: dict[str, list[str]] = {}
    last: list[str] | None = None
    for part in tail.split(',') if tail else []:
        name, equals, value = part.partition('=')
        if equals and name.isidentifier():
            if name in options:
                raise DataError(f'data set {text!r}: option {name} is given twice')
            last = options[name] = [value]
        elif last is None:
            path.append(part)
        else:
            last.append(part)
    values: dict[str, Any] = {}
    for name, parts in options.items():
        try:
            parsed = [yaml.safe_load(part) for part in parts]
        except yaml.YAMLError as error:
            raise DataError(f'data set {text!r}: option {name}: {error}') from error
        values[name] = parsed[0] if len(parsed) == 1 else parsed
    split = values.pop('split', None)
    return DataSpec(kind, ','.join(path), None if split is None else str(split), values)


def open_reader(
    text: str,
    *,
    intrinsics: tuple[float, float, float, float] | None = None,
    protocol: str = 'default',
) -> Reader:
    """Open a data set from its command-line name.

    Args:
        text: see `DataSpec`.
        intrinsics: fx, fy, cx, cy of `folder` data sets, pixels.
        protocol: a named protocol chooses the variant of the truth where the user did not.

    Returns:
        The reader.

    Raises:
        DataError: an unknown kind, option or split, a missing or useless path.
    """
    from depth_node.training.datasets import DATASETS

    spec = parse_spec(text)
    if spec.kind in KINDS:
        if spec.options or spec.split:
            raise DataError(f'data set {text!r}: {spec.kind} has no options')
        return open_own(spec.kind, spec.path)
    if spec.kind not in DATASETS:
        hint = ''
        if Path(text).expanduser().exists():  # a path alone
            from depth_node.cli.data import recognised
            hint = ''.join(f'; write {kind}:{text}' for kind, _ in recognised(Path(text)))
        raise DataError(
            f'data set {text!r}: unknown kind {spec.kind!r}{hint}; expected KIND:FOLDER, the kind '
            'one of: ' + ', '.join(sorted({*KINDS, *DATASETS}))
        )
    if not spec.path:
        raise DataError(f'data set {text!r}: the folder is missing; write {spec.kind}:FOLDER')
    options = {**_OPTIONS_OF_PROTOCOLS.get(protocol, {}).get(spec.kind, {}), **spec.options}
    if protocol.startswith('kitti_') and options.get('crop', 'none') != 'none':
        # its crops are shares of the whole picture, which a cropped one no longer has
        raise DataError(
            f'data set {text!r}: protocol {protocol} crops the whole picture itself (kitti_kb by '
            "the benchmark's window); drop the option crop"
        )
    if spec.kind == 'folder' and intrinsics is not None:
        options.setdefault('k', list(intrinsics))
    path, split, scene = Path(spec.path).expanduser(), spec.split, ''
    if spec.kind == 'rendered' and split is None:
        path, split, scene = _rendered_parts(path)
    if split is None:
        whole = spec.kind == 'folder' and not any((path / name).is_dir() for name in _SPLITS)
        split = 'all' if whole else 'test'
    datasets = _open_splits(spec.kind, path, split, options)
    frames: list[FrameSource] = [
        _DatasetFrame(dataset, index)
        for dataset in datasets
        for index in range(len(dataset))
        if dataset.name(index).startswith(scene)
    ]
    if scene and not frames:
        raise DataError(f'{path}: no frames of scene {scene.rstrip("/")} in its {split} split')
    first = datasets[0]
    truth = 'metric' if first.metric else _probe(text, frames)
    for frame in frames:
        assert isinstance(frame, _DatasetFrame)
        frame.truth = truth
    name = path.resolve().name if spec.kind == 'folder' else f'{spec.kind}/{scene or split}'
    note = first.note + f'; {split} split of {spec.kind} {path.resolve().name}'
    if spec.kind == 'rendered':
        note += _recipe(path)
    if options:
        note += ' with ' + ', '.join(f'{key} {value}' for key, value in options.items())
    return Reader(name.rstrip('/'), spec.kind, note, frames, truth)


def _open_splits(kind: str, path: Path, split: str, options: dict[str, Any]) -> list[DepthDataset]:
    """Open a split, or with 'all' every one that is there."""
    from depth_node.training.datasets import open_dataset
    from depth_node.training.datasets.base import AbsentSplitError

    if split != 'all':
        try:
            return [open_dataset(kind, path, split, **options)]
        except ValueError as error:  # DatasetError is one
            raise DataError(str(error)) from error
    found: list[DepthDataset] = []
    reason = ''
    for name in _SPLITS:
        try:
            found.append(open_dataset(kind, path, name, **options))
        except AbsentSplitError as error:
            reason = str(error)
        except ValueError as error:
            raise DataError(str(error)) from error
    if not found:
        raise DataError(reason)
    return found


def _recipe(path: Path) -> str:
    """Name the recipe and renderer of rendered frames; empty where they name none."""
    try:
        meta = json.loads((path / 'meta.json').read_text(encoding='utf-8'))
        recipe, renderer = meta.get('recipe'), meta.get('generator', {}).get('renderer')
    except (OSError, ValueError, AttributeError):
        return ''
    return (f', recipe {recipe}' if recipe else '') + (f', {renderer}' if renderer else '')


def _rendered_parts(path: Path) -> tuple[Path, str, str]:
    """Read root, root/split and root/split/scene; returns root, split and the scene with '/'."""
    if path.name in _SPLITS and not (path / 'test').is_dir():
        return path.parent, path.name, ''
    if path.parent.name in _SPLITS:
        return path.parent.parent, path.parent.name, f'{path.name}/'
    return path, 'test', ''


def _probe(text: str, frames: list[FrameSource]) -> str:
    """Find out what the truth of a data set without metres is, from its first useful frame."""
    reason = 'it is empty'
    for frame in frames[:_PROBED]:
        assert isinstance(frame, _DatasetFrame)
        try:
            found = frame.frame()
        except DataError as error:
            reason = str(error)
            continue
        if found.rel_inv_depth is not None:
            return 'affine'
        if (found.depth > 0).any():
            return 'scale'
        if found.pairs is not None:
            return 'pairs'
        reason = f'{frame.name}: no depth, inverse depth or labelled pairs'
    raise DataError(
        f'data set {text!r}: no truth in its first {min(len(frames), _PROBED)} frames; the last '
        f'reason: {reason}'
    )


@dataclass
class _DatasetFrame:
    """A frame of a data set that trains, as the evaluator reads it."""

    dataset: DepthDataset
    index: int
    truth: str = 'metric'

    @property
    def name(self) -> str:
        """Name it."""
        return self.dataset.name(self.index)

    def frame(self) -> Frame:
        """Read it, errors in the evaluator's words."""
        from depth_node.training.datasets import DatasetError

        try:
            return self.dataset.read(self.index)
        except DatasetError as error:
            raise DataError(str(error)) from error

    def read(self) -> Sample:
        """See `FrameSource.read`."""
        frame = self.frame()
        depth = _true_depth(frame, self.truth)
        if not (np.isfinite(depth).any() or frame.pairs is not None or frame.normals is not None):
            raise DataError(f'{self.name}: nothing to compare with: no known depth in this frame')
        pairs = frame.pairs
        return Sample(
            self.name,
            frame.rgb,
            depth,
            frame.camera,
            frame.normals,
            None if pairs is None else LabelledPairs(pairs.uv, pairs.relation),
            self.dataset.scene(self.index),
        )


def _true_depth(frame: Frame, truth: str) -> NDArray[np.float32]:
    """Bring a frame's truth to the evaluator's: NaN unknown, median 1 where not metric."""
    if truth == 'affine' and frame.rel_inv_depth is not None:
        known = np.isfinite(frame.rel_inv_depth) & (frame.rel_inv_depth > 0)
        depth = 1.0 / np.where(known, frame.rel_inv_depth, 1.0).astype(np.float64)
    else:
        known = np.isfinite(frame.depth) & (frame.depth > 0)
        depth = frame.depth.astype(np.float64)
    if truth != 'metric' and known.any():
        depth = depth / np.median(depth[known])
    result: NDArray[np.float32] = np.where(known, depth, np.nan).astype(np.float32)
    return result
