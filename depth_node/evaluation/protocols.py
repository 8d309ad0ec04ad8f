"""How a model is measured on a data set: one way for every number in a card or report.

The prediction is what `DepthPipeline` gives to a robot. It is brought to the truth's size, aligned
as the protocol says, clamped to its range and compared on the pixels of known depth inside the
range and the crop. A predicted NaN or Inf counts as no prediction: it is left out of the errors
and shows in the coverage.

Published numbers belong to a crop, a cap, a way to aggregate and a variant of the truth;
`PROTOCOLS` has the usual ones by name. docs/evaluation.md says which rows they are comparable
with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
import heapq
from itertools import pairwise
import math
from time import perf_counter
from typing import Any
from typing import Protocol as TypingProtocol

import cv2
from depth_node.camera import Camera
from depth_node.evaluation.confidence import ConfidenceScore
from depth_node.evaluation.metrics import (
    ALIGNMENTS,
    METRES_NEEDED,
    METRIC_NAMES,
    RANGE_BANDS_M,
    BoundarySums,
    ErrorSums,
    FloatImage,
    NormalSums,
    OrdinalSums,
    equal_error_threshold,
    normals_from_depth,
    pair_log_ratios,
    plane_baseline,
    sdr_sums,
    usable,
    whdr,
)
from depth_node.evaluation.readers import DataError, Reader, Sample, Skipped
from depth_node.model_card import METRIC_KINDS
import numpy as np
from numpy.typing import NDArray

MODES = ('per-image', 'pooled')
FLIPS = ('none', 'mean', 'ramp')
SPACES = ('depth', 'inv_depth')
INPUT_CROPS = ('none', 'kb')
SHEET_WIDTH_PX = 240
PLANE_EXACT = 1e-9  # AbsRel of a plane that is the truth: nothing can be divided by it

# Rows and columns that count, half-open. NYU's belong to the full 480x640 picture: Eigen's as in
# BTS and what followed it; DenseDepth's is an array in its test archive, inclusive 20:459, 24:615
# (depth-systems: medium confidence). Garg's and Eigen's KITTI crops are shares of height and
# width, truncated to whole pixels.
_NYU_HW = (480, 640)
_NYU_CROPS = {'nyu_eigen': (45, 471, 41, 601), 'nyu_densedepth': (20, 460, 24, 616)}
_KITTI_CROPS = {
    'kitti_garg': (0.40810811, 0.99189189, 0.03594771, 0.96405229),
    'kitti_eigen': (0.3324324, 0.91351351, 0.03594771, 0.96405229),
}
CROPS = ('none', *_NYU_CROPS, *_KITTI_CROPS)
KB_HW = (352, 1216)  # the KITTI benchmark's: bottom rows, middle columns of the input
RAMP = 0.05  # share of the width that Monodepth takes from one of the two predictions alone


class Predictor(TypingProtocol):
    """What is measured: `DepthPipeline`, or anything that runs like it."""

    def run(self, rgb: NDArray[np.uint8], camera: Camera | None, stamp: float = 0.0) -> Any:
        """Return a frame: `.depth` (H, W) float32, metres, not finite where unknown; `.notes`."""


@dataclass(frozen=True)
class Protocol:
    """The rules of one measurement.

    Attributes:
        alignments: of ALIGNMENTS, in the order of the report.
        modes: of 'per-image' (mean of the frames' values) and 'pooled' (one value over all
            pixels).
        min_depth: metres; truth at or below is not judged, predictions are clamped to it.
        max_depth: metres; truth at or above is not judged, predictions are clamped to it.
        examples: frames kept per end (worst, best) for the picture page.
        name: for reports.
        crop: one of CROPS, the part of the truth that is judged.
        input_crop: 'kb' shows the network the KITTI benchmark's window only and pastes its
            prediction back into the full picture.
        truth_hw: the truth is resampled to this size (nearest) first; None leaves it.
        resize_in: what is interpolated to the truth's size, 'depth' or 'inv_depth'.
        flip: 'mean' averages with the mirrored prediction of the mirrored picture; 'ramp' too,
            but takes 5 % at either side from one of the two (Monodepth).
        median_for_relative: allow median scaling for every relative network: right for
            self-supervised ones, whose inverse depth has no unknown shift.
        normals: compare normals computed from both depths.
        sdr_pairs: random pairs per frame for SDR; 0 leaves it out.
        wkdr_threshold: ratio within which a predicted pair is equal (0.02 = 2 %); None takes the
            one where WKDR= and WKDR-unequal are closest.
    """

    alignments: tuple[str, ...] = ('none', 'median', 'affine')
    modes: tuple[str, ...] = MODES
    min_depth: float = 1e-3
    max_depth: float = 10.0
    examples: int = 3
    name: str = 'default'
    crop: str = 'none'
    input_crop: str = 'none'
    truth_hw: tuple[int, int] | None = None
    resize_in: str = 'depth'
    flip: str = 'none'
    median_for_relative: bool = False
    normals: bool = False
    sdr_pairs: int = 2000
    wkdr_threshold: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        for label, given, known in (
            ('alignment', self.alignments, tuple(ALIGNMENTS)),
            ('mode', self.modes, MODES),
        ):
            if not given or set(given) - set(known) or len(set(given)) != len(given):
                raise ValueError(
                    f'{label}: found {",".join(given) or "nothing"}, expected some of '
                    f'{",".join(known)}, each once'
                )
        for label, one, known in (
            ('crop', self.crop, CROPS),
            ('input crop', self.input_crop, INPUT_CROPS),
            ('resize_in', self.resize_in, SPACES),
            ('flip', self.flip, FLIPS),
        ):
            if one not in known:
                raise ValueError(f'{label}: found {one!r}, expected one of {", ".join(known)}')
        if not 0 < self.min_depth < self.max_depth < math.inf:
            raise ValueError(
                f'range {self.min_depth} to {self.max_depth} m: 0 < min < max < Inf is expected'
            )
        if self.sdr_pairs < 0 or (self.wkdr_threshold is not None and self.wkdr_threshold < 0):
            raise ValueError(
                f'SDR pairs {self.sdr_pairs}, WKDR threshold {self.wkdr_threshold}: neither may '
                'be negative'
            )

    def describe(self, truth: str = 'metric') -> str:
        """One line for reports and cards; `truth` is the data set's, of readers.TRUTHS."""
        if truth == 'pairs':
            return (
                f'protocol {self.name}: order of labelled pairs, looked up in the prediction at '
                'the size of the picture; a pair without prediction counts as wrong'
                + self._describe_input()
            )
        unit = ' m' if truth == 'metric' else ' (truth scaled to median 1)'
        at = (
            '' if self.truth_hw is None else f' resampled to {self.truth_hw[0]}x{self.truth_hw[1]}'
        )
        return (
            f'protocol {self.name}: truth {self.min_depth:g} to {self.max_depth:g}{unit}{at}, '
            f'crop {describe_crop(self.crop)}, '
            f'prediction at the size of the truth (bilinear in {self.resize_in}), '
            'clamped to that range, NaN and Inf left out' + self._describe_input()
        )

    def _describe_input(self) -> str:
        words = ''
        if self.input_crop == 'kb':
            words += f', network sees the bottom {KB_HW[0]} rows and middle {KB_HW[1]} columns'
        if self.flip != 'none':
            words += f', averaged with the mirrored picture in {self.resize_in} ({self.flip})'
        return words


PROTOCOLS = {
    'nyu_eigen': Protocol(
        name='nyu_eigen', alignments=('none',), modes=('per-image',), crop='nyu_eigen'
    ),
    'nyu_densedepth': Protocol(
        name='nyu_densedepth',
        alignments=('none',),
        modes=('pooled',),
        crop='nyu_densedepth',
        flip='mean',
    ),
    'nyu_fcrn': Protocol(name='nyu_fcrn', alignments=('none',), modes=('pooled',)),
    'kitti_garg': Protocol(
        name='kitti_garg',
        alignments=('none', 'median'),
        modes=('per-image',),
        max_depth=80.0,
        crop='kitti_garg',
        median_for_relative=True,
        resize_in='inv_depth',
    ),
    'kitti_eigen': Protocol(
        name='kitti_eigen',
        alignments=('none', 'median'),
        modes=('per-image',),
        max_depth=80.0,
        crop='kitti_eigen',
        median_for_relative=True,
        resize_in='inv_depth',
    ),
    'kitti_kb': Protocol(
        name='kitti_kb',
        alignments=('none',),
        modes=('per-image',),
        max_depth=80.0,
        crop='kitti_garg',
        input_crop='kb',
    ),
    'kitti_50m': Protocol(
        name='kitti_50m',
        alignments=('none', 'median'),
        modes=('per-image',),
        max_depth=50.0,
        crop='kitti_garg',
        median_for_relative=True,
        resize_in='inv_depth',
    ),
    'make3d_c1': Protocol(
        name='make3d_c1',
        alignments=('none',),
        modes=('pooled',),
        max_depth=70.0,
        truth_hw=(460, 345),
        median_for_relative=True,
    ),
    # all pixels: the range only keeps logarithms finite
    'make3d_c2': Protocol(
        name='make3d_c2',
        alignments=('none',),
        modes=('pooled',),
        max_depth=1000.0,
        truth_hw=(460, 345),
        median_for_relative=True,
    ),
}


def describe_crop(crop: str) -> str:
    """Name a crop with its bounds."""
    if crop in _NYU_CROPS:
        v0, v1, u0, u1 = _NYU_CROPS[crop]
        return f'{crop} (rows {v0}:{v1}, columns {u0}:{u1} of 480x640)'
    if crop in _KITTI_CROPS:
        top, bottom, left, right = _KITTI_CROPS[crop]
        return f'{crop} (rows {top:.4f}:{bottom:.4f}, columns {left:.4f}:{right:.4f} of the size)'
    return crop


def crop_window(crop: str, size_hw: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return (top, bottom, left, right) of a crop, half-open, for truth of `size_hw`.

    Raises:
        DataError: a crop that is defined for another size.
        ValueError: an unknown crop.
    """
    height, width = size_hw
    if crop == 'none':
        return 0, height, 0, width
    if crop in _NYU_CROPS:
        if size_hw != _NYU_HW:
            raise DataError(
                f'crop {crop} is defined for truth of 480x640, this is {height}x{width}; '
                'measure without crop, or give the truth at full size'
            )
        return _NYU_CROPS[crop]
    if crop in _KITTI_CROPS:
        top, bottom, left, right = _KITTI_CROPS[crop]
        return int(top * height), int(bottom * height), int(left * width), int(right * width)
    raise ValueError(f'crop {crop!r}, expected one of {", ".join(CROPS)}')


def kb_window(size_hw: tuple[int, int]) -> tuple[int, int]:
    """Return (top, left) of the KITTI benchmark's window in a picture.

    Raises:
        DataError: the picture is smaller than the window.
    """
    top, left = size_hw[0] - KB_HW[0], (size_hw[1] - KB_HW[1]) // 2
    if top < 0 or size_hw[1] < KB_HW[1]:
        raise DataError(
            f'the KB crop needs pictures of {KB_HW[0]}x{KB_HW[1]} or more, this is '
            f'{size_hw[0]}x{size_hw[1]}; use protocol kitti_garg'
        )
    return top, left


@dataclass(frozen=True)
class AlignedScore:
    """Errors of one frame under one alignment.

    `bands` has the errors apart for each of RANGE_BANDS_M; empty where the truth has no metres.
    """

    errors: ErrorSums
    boundary: BoundarySums
    scale: float
    shift: float
    sdr: OrdinalSums
    normals: NormalSums | None = None
    bands: tuple[ErrorSums, ...] = ()


@dataclass(frozen=True)
class PairScore:
    """What a prediction says about labelled pairs.

    Attributes:
        log_ratio: (P,) ln(d_a / d_b); NaN where there is no prediction.
        relation: (P,) the label.
    """

    log_ratio: NDArray[np.float64]
    relation: NDArray[np.int8]


@dataclass(frozen=True)
class FrameScore:
    """Everything measured on one frame.

    Attributes:
        name: the frame's name.
        known: pixels of known depth inside the protocol's range.
        predicted: those of them that have a usable prediction.
        aligned: by alignment name.
        plane: errors of the best plane fitted to the truth, on all known pixels.
        seconds: wall time of the pipeline's runs.
        pairs: None where the frame has no labelled pairs.
        scene: the kind of scene, empty where not known.
        confidence: what its confidence is worth; None where the network gives none, and where
            the truth has an unknown shift.
    """

    name: str
    known: int
    predicted: int
    aligned: dict[str, AlignedScore]
    plane: ErrorSums
    seconds: float = math.nan
    pairs: PairScore | None = None
    scene: str = ''
    confidence: ConfidenceScore | None = None

    @property
    def coverage(self) -> float:
        """Share of the known pixels that have a prediction; NaN when nothing is known."""
        return self.predicted / self.known if self.known else math.nan

    def ratio_to_plane(self, alignment: str) -> float:
        """AbsRel over that of the best plane; below 1 beats it. NaN where either is not known."""
        own, plane = self.aligned[alignment].errors.abs_rel, self.plane.abs_rel
        return own / plane if plane > PLANE_EXACT else math.nan


@dataclass(frozen=True)
class Example:
    """Small pictures of one frame for the page."""

    name: str
    abs_rel: float
    rgb: NDArray[np.uint8]
    true_depth: NDArray[np.float32]
    predicted: NDArray[np.float32]


@dataclass(frozen=True)
class DistanceRatio:
    """How far away everything seems: median(d) / median(d*) of each frame.

    The scale error alone, whatever the shape: 1 is right, 0.8 sees everything at 80 % of its
    distance.

    Attributes:
        frames: how many have one.
        median: of their ratios.
        p05: 5 % of the frames have less.
        p95: 5 % have more.
        within_10: share of the frames whose ratio is at most 1.1 and at least 1 / 1.1.
        within_25: the same with 1.25.
    """

    frames: int
    median: float
    p05: float
    p95: float
    within_10: float
    within_25: float

    @classmethod
    def of(cls, ratios: NDArray[np.float64]) -> DistanceRatio:
        """Summarise the ratios of frames, one or more, all positive."""
        low, middle, high = (float(value) for value in np.percentile(ratios, (5, 50, 95)))
        away = np.abs(np.log(ratios))
        return cls(len(ratios), middle, low, high, float((away <= np.log(1.1)).mean()),
                   float((away <= np.log(1.25)).mean()))

    def values(self) -> dict[str, float | int]:
        """All numbers by name."""
        return asdict(self)


ORDINAL_NAMES = ('sdr', 'sdr_eq', 'sdr_ne', 'whdr', 'wkdr', 'wkdr_eq', 'wkdr_ne')
NORMAL_NAMES = tuple(NormalSums().values())


@dataclass(frozen=True)
class DatasetResult:
    """A data set's scores; `summary` makes the numbers of the table.

    `truth` is the reader's, `wkdr_threshold` the protocol's; `parts` names the data sets that
    this one joins, if it does.
    """

    name: str
    kind: str
    note: str
    truth: str
    alignments: tuple[str, ...]
    frames: tuple[FrameScore, ...]
    skipped: tuple[Skipped, ...]
    worst: tuple[Example, ...] = ()
    best: tuple[Example, ...] = ()
    size_hw: tuple[tuple[int, int], ...] = ()
    notes: tuple[str, ...] = ()
    wkdr_threshold: float | None = None
    parts: tuple[str, ...] = ()

    @property
    def metric(self) -> bool:
        """True where the truth is in metres."""
        return self.truth == 'metric'

    @property
    def coverage(self) -> float:
        """Share of all known pixels that have a prediction."""
        known = sum(frame.known for frame in self.frames)
        return sum(frame.predicted for frame in self.frames) / known if known else math.nan

    @property
    def confidence(self) -> ConfidenceScore | None:
        """What the confidence is worth over all frames; None where it was not measured."""
        found = [frame.confidence for frame in self.frames if frame.confidence is not None]
        total = sum(found, ConfidenceScore())
        return total if total.frames else None

    @property
    def distance(self) -> DistanceRatio | None:
        """How far away everything seems; None where truth or prediction is not in metres.

        It is read from the factors of median alignment, so None without that one, too.
        """
        if not (self.metric and {'none', 'median'} <= set(self.alignments)):
            return None
        scored = [one for f in self.frames if (one := f.aligned['median']).errors.count]
        return DistanceRatio.of(1 / np.array([one.scale for one in scored])) if scored else None

    def by_scene(self) -> dict[str, DatasetResult]:
        """The same for each kind of scene, the most frequent first; empty where none is known."""
        counts = Counter(frame.scene for frame in self.frames if frame.scene)
        return {
            scene: replace(
                self, frames=tuple(frame for frame in self.frames if frame.scene == scene)
            )
            for scene, _ in counts.most_common()
        }

    def by_range(self, alignment: str) -> list[tuple[float, float, ErrorSums]]:
        """Errors per band of true depth over all pixels: from [m], to [m], sums; empty ones too.

        An empty list where the truth has no metres.
        """
        found = [bands for f in self.frames if (bands := f.aligned[alignment].bands)]
        return [
            (near, far, sum((bands[i] for bands in found), ErrorSums()))
            for i, (near, far) in enumerate(pairwise(RANGE_BANDS_M))
            if found
        ]

    @cached_property
    def equal_threshold(self) -> float:
        """The WKDR threshold in use; NaN when no pair is labelled equal, or none unequal."""
        found = [frame.pairs for frame in self.frames if frame.pairs is not None]
        relation = np.concatenate([np.zeros(0, np.int8), *(pairs.relation for pairs in found)])
        if not (relation == 0).any() or (relation == 0).all():
            return math.nan
        if self.wkdr_threshold is not None:
            return self.wkdr_threshold
        return equal_error_threshold(np.concatenate([p.log_ratio for p in found]), relation)

    def summary(self, alignment: str, mode: str) -> dict[str, float | None]:
        """Metrics of the whole set under one alignment and mode; None where not defined.

        Keys: METRIC_NAMES, 'boundary_f1', ORDINAL_NAMES, 'wkdr_threshold', NORMAL_NAMES,
        'scale_median' and 'scale_std' (of the frames' scales, the latter of scale over median
        scale; median alignment only), 'plane_abs_rel', 'plane_delta1', 'plane_rms',
        'ratio_to_plane' (AbsRel over the plane's AbsRel; below 1 beats the plane), 'ratio_median'
        (median of the frames' own ratios, whatever the mode), 'frames_better' (frames whose ratio
        is below 1), 'frames' (that have a usable pixel, or labelled pairs).
        """
        if mode not in MODES:
            raise ValueError(f'mode {mode!r}, expected one of {", ".join(MODES)}')
        scored = [frame for frame in self.frames if frame.aligned[alignment].errors.count]
        aligned = [frame.aligned[alignment] for frame in scored]
        labelled = [frame for frame in self.frames if frame.pairs is not None]
        if mode == 'pooled':
            errors = sum((one.errors for one in aligned), ErrorSums())
            plane = sum((frame.plane for frame in scored), ErrorSums())
            boundary = sum((one.boundary for one in aligned), BoundarySums())
            sdr = sum((one.sdr for one in aligned), OrdinalSums())
            normals = sum(
                (n for f in self.frames if (n := f.aligned[alignment].normals)), NormalSums()
            )
            values = {
                **errors.values(),
                'boundary_f1': boundary.f1,
                **_rates('sdr', sdr),
                **normals.values(),
                **self._pair_values([f.pairs for f in labelled if f.pairs]),
            }
            plane_values = plane.values()
        else:
            values = {}
            for rows in (
                [one.errors.values() for one in aligned],
                [{'boundary_f1': one.boundary.f1, **_rates('sdr', one.sdr)} for one in aligned],
                [n.values() for f in self.frames if (n := f.aligned[alignment].normals)],
                [self._pair_values([frame.pairs]) for frame in labelled if frame.pairs],
            ):
                values.update(_mean(rows))
            plane_values = _mean([frame.plane.values() for frame in scored])
        result: dict[str, float | None] = {
            'frames': sum(
                bool(frame.aligned[alignment].errors.count) or frame.pairs is not None
                for frame in self.frames
            )
        }
        for name in (*METRIC_NAMES, 'boundary_f1', *ORDINAL_NAMES, *NORMAL_NAMES):
            hidden = not self.metric and name in METRES_NEEDED
            result[name] = None if hidden else _number(values.get(name, math.nan))
        result['wkdr_threshold'] = _number(self.equal_threshold)
        result['scale_median'] = result['scale_std'] = None
        if alignment == 'median' and aligned:
            scales = np.array([one.scale for one in aligned])
            result['scale_median'] = _number(float(np.median(scales)))
            result['scale_std'] = _number(float(np.std(scales / np.median(scales))))
        result['plane_abs_rel'] = _number(plane_values.get('abs_rel', math.nan))
        result['plane_delta1'] = _number(plane_values.get('delta1', math.nan))
        result['plane_rms'] = _number(plane_values.get('rms', math.nan)) if self.metric else None
        own, plane_rel = result['abs_rel'], result['plane_abs_rel']
        result['ratio_to_plane'] = (
            own / plane_rel
            if own is not None and plane_rel is not None and plane_rel > PLANE_EXACT
            else None
        )
        ratios = [frame.ratio_to_plane(alignment) for frame in scored]
        ratios = [ratio for ratio in ratios if math.isfinite(ratio)]
        result['ratio_median'] = float(np.median(ratios)) if ratios else None
        result['frames_better'] = sum(ratio < 1 for ratio in ratios) if ratios else None
        return result

    def _pair_values(self, found: Sequence[PairScore]) -> dict[str, float]:
        """WHDR and, where pairs are labelled equal too, WKDR of the pairs taken together."""
        if not found:
            return {}
        log_ratio = np.concatenate([pairs.log_ratio for pairs in found])
        relation = np.concatenate([pairs.relation for pairs in found])
        values = {'whdr': whdr(log_ratio, relation)}
        if math.isfinite(self.equal_threshold):
            values.update(
                _rates('wkdr', OrdinalSums.of(log_ratio, relation, self.equal_threshold))
            )
        return values


def _rates(name: str, sums: OrdinalSums) -> dict[str, float]:
    return {name: sums.rate, f'{name}_eq': sums.rate_eq, f'{name}_ne': sums.rate_ne}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean per key over the rows where it is finite."""
    result = {}
    for key in rows[0] if rows else ():
        finite = [row[key] for row in rows if math.isfinite(row[key])]
        result[key] = math.fsum(finite) / len(finite) if finite else math.nan
    return result


def resize_depth(
    depth: FloatImage, size_hw: tuple[int, int], space: str = 'depth'
) -> NDArray[np.float32]:
    """Bring a prediction to the truth's size.

    Bilinear where the four neighbours are finite, the nearest pixel elsewhere, so that an invalid
    pixel neither vanishes nor spreads.

    Args:
        depth: (H, W), metres.
        size_hw: the truth's size.
        space: what is interpolated, 'depth' or 'inv_depth'.

    Returns:
        (size_hw) float32.
    """
    source = np.ascontiguousarray(depth, np.float32)
    if source.shape == tuple(size_hw):
        return source
    size_wh = (size_hw[1], size_hw[0])
    with np.errstate(invalid='ignore', divide='ignore'):
        linear: NDArray[np.float32] = source
        if space != 'depth':
            linear = np.asarray(np.where(np.isfinite(source), 1 / source, np.nan), np.float32)
        smooth = np.asarray(
            cv2.resize(linear, size_wh, interpolation=cv2.INTER_LINEAR), np.float32
        )
        if space != 'depth':
            smooth = np.reciprocal(smooth)
    nearest = np.asarray(cv2.resize(source, size_wh, interpolation=cv2.INTER_NEAREST), np.float32)
    return np.where(np.isfinite(smooth), smooth, nearest)


def resample_truth(true: FloatImage, size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Take the truth's pixel nearest to each pixel centre of another size; nothing is mixed."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for new, old in zip(size_hw, true.shape, strict=True)
    )
    found: NDArray[np.float32] = np.asarray(true, np.float32)[rows[:, None], columns]
    return found


def predict(
    predictor: Predictor, sample: Sample, protocol: Protocol
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None, tuple[str, ...]]:
    """Run the model on a frame as the protocol says: input crop, mirrored picture.

    Returns:
        (H, W) depth at the picture's size, NaN outside of an input crop; the confidence alike,
        None where the network gives none or two predictions are averaged, of which it knows
        nothing; the pipeline's notes.

    Raises:
        DataError: the picture is smaller than the input crop.
    """
    rgb, camera = sample.rgb, sample.camera
    size_hw = (rgb.shape[0], rgb.shape[1])
    top, left = 0, 0
    if protocol.input_crop == 'kb':
        top, left = kb_window(size_hw)
        rgb = np.ascontiguousarray(rgb[top:, left : left + KB_HW[1]])
        camera = None if camera is None else camera.cropped(left, top, KB_HW)
    frame = predictor.run(rgb, camera)
    depth, notes = frame.depth, tuple(frame.notes)
    confidence = getattr(frame, 'confidence', None)
    if protocol.flip != 'none':
        confidence = None
        depth = np.array(depth, np.float32)  # the pipeline's next run overwrites it
        mirrored = None if camera is None else mirrored_camera(camera)
        other = predictor.run(np.ascontiguousarray(rgb[:, ::-1]), mirrored).depth[:, ::-1]
        depth = average_flipped(depth, other, protocol.flip, protocol.resize_in)
    if protocol.input_crop == 'none':
        return np.asarray(depth, np.float32), confidence, notes
    full, sure = np.full((2, *size_hw), np.nan, np.float32)
    full[top:, left : left + KB_HW[1]] = depth
    if confidence is not None:
        sure[top:, left : left + KB_HW[1]] = confidence
    return full, None if confidence is None else sure, notes


def mirrored_camera(camera: Camera) -> Camera:
    """Return the camera of the mirrored picture: cx counts from the other side.

    Raises:
        DataError: the camera is distorted; its mirror image is none of the known lens models.
    """
    if camera.is_distorted:
        raise DataError('the mirrored picture needs an undistorted camera; rectify first')
    flat = camera.rectified()
    return replace(flat, cx=camera.size_hw[1] - 1 - flat.cx)


def average_flipped(
    depth: FloatImage, flipped_back: FloatImage, flip: str, space: str
) -> NDArray[np.float32]:
    """Average a prediction with that of the mirrored picture, already mirrored back.

    Args:
        depth: (H, W) prediction of the picture, metres.
        flipped_back: (H, W) prediction of the mirrored picture, mirrored back.
        flip: 'mean' (DenseDepth), or 'ramp' (Monodepth's post-processing: near a side, where
            stereo training leaves a shadow, the prediction that had it at the other side counts
            alone).
        space: what is averaged, 'depth' or 'inv_depth'.

    Returns:
        (H, W) float32; where only the first is finite and positive, or neither is, the first.
    """
    both = np.isfinite(depth) & np.isfinite(flipped_back) & (depth > 0) & (flipped_back > 0)
    a = np.where(both, depth, 1.0).astype(np.float64)
    b = np.where(both, flipped_back, 1.0).astype(np.float64)
    if space == 'inv_depth':
        a, b = 1 / a, 1 / b
    mean = 0.5 * (a + b)
    if flip == 'ramp':
        # as in Monodepth's code: 1 - clip(20 (l - 0.05), 0, 1), l from 0 to 1 across the picture
        across = np.linspace(0.0, 1.0, a.shape[1])
        near_left = 1.0 - np.clip((across - RAMP) / RAMP, 0.0, 1.0)
        near_right = near_left[::-1]
        mean = near_left * b + near_right * a + (1.0 - near_left - near_right) * mean
    if space == 'inv_depth':
        mean = 1 / mean
    return np.where(both, mean, depth).astype(np.float32)


def score_frame(
    predicted: FloatImage,
    sample: Sample,
    protocol: Protocol,
    alignments: Sequence[str],
    *,
    metric: bool = True,
    confidence: FloatImage | None = None,
) -> tuple[FrameScore, dict[str, NDArray[np.float64]]]:
    """Measure one prediction.

    Args:
        predicted: depth as `predict` gave it, at the picture's size.
        sample: the frame with its truth.
        protocol: range and rules.
        alignments: those that apply to this data set.
        metric: the truth is in metres, so that bands of it mean something.
        confidence: of the size of `predicted`, 0 to 1; None leaves it out.

    Returns:
        The scores, and the aligned depth images by alignment.

    Raises:
        DataError: the crop does not fit the truth, or a label lies outside of the picture.
    """
    true = sample.true_depth
    if protocol.truth_hw is not None:
        true = resample_truth(true, protocol.truth_hw)
    size_hw = (true.shape[0], true.shape[1])
    at_truth = resize_depth(predicted, size_hw, protocol.resize_in)
    top, bottom, left, right = crop_window(protocol.crop, size_hw)
    area = np.zeros(size_hw, bool)
    area[top:bottom, left:right] = True
    with np.errstate(invalid='ignore'):
        valid = area & (true > protocol.min_depth) & (true < protocol.max_depth)
    true_normals = _true_normals(sample, true, protocol)
    scores = {}
    images = {}
    for name in alignments:
        aligned = ALIGNMENTS[name](
            at_truth, true, valid, min_depth=protocol.min_depth, max_depth=protocol.max_depth
        )
        images[name] = aligned.depth
        normals = None
        if true_normals is not None and sample.camera is not None:
            own = _normals(aligned.depth, sample.camera)
            normals = NormalSums.of(own, true_normals, area)
        scores[name] = AlignedScore(
            ErrorSums.of(aligned.depth, true, valid),
            BoundarySums.of(aligned.depth, true, valid),
            aligned.scale,
            aligned.shift,
            sdr_sums(aligned.depth, true, valid, pairs=protocol.sdr_pairs),
            normals,
            ErrorSums.by_range(aligned.depth, true, valid) if metric else (),
        )
    plane = plane_baseline(true, valid, min_depth=protocol.min_depth, max_depth=protocol.max_depth)
    score = FrameScore(
        sample.name,
        known=int(valid.sum()),
        predicted=int(usable(at_truth, true, valid).sum()),
        aligned=scores,
        plane=ErrorSums.of(plane.depth, true, valid),
        pairs=_pair_score(predicted, sample),
        scene=sample.scene,
        confidence=None if confidence is None else _confidence_score(
            confidence, at_truth, true, valid),
    )
    return score, images


def _confidence_score(
    confidence: FloatImage, at_truth: FloatImage, true: FloatImage, valid: NDArray[np.bool_]
) -> ConfidenceScore:
    size_wh = (true.shape[1], true.shape[0])
    sure = cv2.resize(np.asarray(confidence, np.float32), size_wh, interpolation=cv2.INTER_LINEAR)
    return ConfidenceScore.of(np.asarray(sure), at_truth, true, valid)


def _true_normals(
    sample: Sample, true: FloatImage, protocol: Protocol
) -> NDArray[np.floating[Any]] | None:
    """Return the data set's normals, else those of the true depth where they are asked for."""
    if sample.camera is None:
        return None
    if sample.normals is not None:
        if sample.normals.shape[:2] != true.shape:
            raise DataError(
                f'{sample.name}: normals of {sample.normals.shape[:2]} for depth of {true.shape}; '
                'measure at the size of the normals'
            )
        return sample.normals
    return _normals(true, sample.camera) if protocol.normals else None


def _normals(depth: FloatImage, camera: Camera) -> NDArray[np.float64]:
    flat = camera.rectified().scaled((depth.shape[0], depth.shape[1]))
    return normals_from_depth(depth, flat.fx, flat.fy, flat.cx, flat.cy)


def _pair_score(predicted: FloatImage, sample: Sample) -> PairScore | None:
    if sample.pairs is None:
        return None
    size_hw = (sample.rgb.shape[0], sample.rgb.shape[1])
    try:
        ratios = pair_log_ratios(resize_depth(predicted, size_hw), sample.pairs.uv)
    except ValueError as error:
        raise DataError(f'{sample.name}: {error}') from error
    return PairScore(ratios, sample.pairs.relation)


def applicable(protocol: Protocol, truth: str, output_kind: str) -> tuple[tuple[str, ...], str]:
    """Choose the alignments of a protocol that mean something for this truth and network.

    Args:
        protocol: with the alignments that are wanted.
        truth: the data set's, of readers.TRUTHS.
        output_kind: the network's, of model_card.OUTPUT_KINDS.

    Returns:
        The alignments in the protocol's order, and, where there are none, the reason why.
    """
    if truth == 'pairs':  # order only: nothing to align
        return ('none',), ''
    metric_model = output_kind in METRIC_KINDS
    known_to_scale = truth in ('metric', 'scale')
    allowed = {
        'none': truth == 'metric' and metric_model,
        'median': known_to_scale
        and (metric_model or output_kind == 'rel_depth' or protocol.median_for_relative),
        'affine': True,
        'affine_depth': known_to_scale,
    }
    chosen = tuple(name for name in protocol.alignments if allowed[name])
    causes = {
        'metric': f"the model's output is {output_kind}, which has no metric scale",
        'scale': 'the truth is in a unit of its own',
        'affine': 'the truth is known up to scale and shift',
    }
    others = ' and '.join(name for name, works in allowed.items() if works)
    return chosen, f'{causes[truth]}; what means anything is {others}: add affine to --align'


def evaluate(
    predictor: Predictor,
    reader: Reader,
    protocol: Protocol,
    *,
    output_kind: str = 'depth',
    progress: Callable[[int, int], None] | None = None,
) -> DatasetResult:
    """Run a model over a data set.

    Args:
        predictor: the pipeline.
        reader: the data set.
        protocol: range, alignments, modes.
        output_kind: what the network's output means, of model_card.OUTPUT_KINDS; together with
            what the truth is known up to it decides which alignments apply.
        progress: called as (done, total) after every frame, skipped ones included.

    Returns:
        The result.

    Raises:
        DataError: no frame could be read, or none of the protocol's alignments applies.
    """
    alignments, reason = applicable(protocol, reader.truth, output_kind)
    if not alignments:
        raise DataError(f'{reader.name}: {reason}')

    # the claim is about depth up to scale: where a shift is unknown too it means nothing
    judges_confidence = reader.truth in ('metric', 'scale') and output_kind != 'rel_inv_depth'
    frames: list[FrameScore] = []
    sizes: set[tuple[int, int]] = set()
    notes: set[str] = set()
    worst: list[tuple[float, int, Example]] = []
    best: list[tuple[float, int, Example]] = []
    for sample in reader:
        started = perf_counter()
        try:
            depth, sure, said = predict(predictor, sample, protocol)
            if not judges_confidence:
                sure = None
            seconds = perf_counter() - started
            score, images = score_frame(
                depth, sample, protocol, alignments, metric=reader.metric, confidence=sure
            )
        except DataError as error:
            reader.skipped.append(Skipped(sample.name, str(error)))
            continue
        notes.update(said)
        frames.append(replace(score, seconds=seconds))
        sizes.add((sample.rgb.shape[0], sample.rgb.shape[1]))
        rank = score.aligned[alignments[0]].errors.abs_rel
        if protocol.examples and math.isfinite(rank):
            example = _example(sample, images[alignments[0]], rank)
            _keep(worst, rank, len(frames), example, protocol.examples)
            _keep(best, -rank, len(frames), example, protocol.examples)
        if progress is not None:
            progress(len(frames) + len(reader.skipped), len(reader))
    if progress is not None:
        progress(len(reader), len(reader))
    if not frames:
        first = reader.skipped[0] if reader.skipped else Skipped('none', 'the data set is empty')
        raise DataError(
            f'{reader.name}: none of {len(reader)} frames could be measured; the first: '
            f'{first.reason}'
        )
    worst_names = [item[2].name for item in worst]
    return DatasetResult(
        reader.name,
        reader.kind,
        reader.note,
        reader.truth,
        alignments,
        tuple(frames),
        tuple(reader.skipped),
        worst=tuple(item[2] for item in sorted(worst, key=lambda item: -item[0])),
        best=tuple(
            item[2]
            for item in sorted(best, key=lambda item: -item[0])
            if item[2].name not in worst_names
        ),
        size_hw=tuple(sorted(sizes)),
        notes=tuple(sorted(notes)),
        wkdr_threshold=protocol.wkdr_threshold,
    )


def joined(results: Sequence[DatasetResult], name: str) -> DatasetResult:
    """Take the frames of several data sets together, as one that names its parts.

    Args:
        results: of one protocol, kind and truth.
        name: of the whole.

    Returns:
        The result, without examples.

    Raises:
        ValueError: nothing to join, or data sets that were not measured alike.
    """
    alike = {(item.kind, item.truth, item.alignments, item.wkdr_threshold) for item in results}
    if len(alike) != 1:
        raise ValueError(
            f'{name}: {len(results)} data sets of {len(alike)} kinds, truths or sets of '
            'alignments; only data sets that were measured alike are joined'
        )
    return replace(
        results[0],
        name=name,
        note=f'{" and ".join(item.name for item in results)} together',
        frames=tuple(
            replace(frame, name=f'{item.name}: {frame.name}')
            for item in results
            for frame in item.frames
        ),
        skipped=tuple(skipped for item in results for skipped in item.skipped),
        worst=(),
        best=(),
        size_hw=tuple(sorted({size for item in results for size in item.size_hw})),
        notes=tuple(sorted({note for item in results for note in item.notes})),
        parts=tuple(item.name for item in results),
    )


def _keep(
    heap: list[tuple[float, int, Example]], rank: float, order: int, example: Example, count: int
) -> None:
    """Keep the `count` largest ranks."""
    heapq.heappush(heap, (rank, -order, example))
    if len(heap) > count:
        heapq.heappop(heap)


def _example(sample: Sample, predicted: FloatImage, rank: float) -> Example:
    width = min(SHEET_WIDTH_PX, sample.rgb.shape[1])
    height = max(1, round(sample.rgb.shape[0] * width / sample.rgb.shape[1]))

    def small(image: NDArray[Any], interpolation: int) -> NDArray[Any]:
        return np.asarray(cv2.resize(image, (width, height), interpolation=interpolation))

    return Example(
        sample.name,
        rank,
        small(sample.rgb, cv2.INTER_AREA),
        small(sample.true_depth, cv2.INTER_NEAREST),
        small(predicted.astype(np.float32), cv2.INTER_NEAREST),
    )
