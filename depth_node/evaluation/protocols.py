"""How a model is measured on a data set: one way for every number in a card or report.

The prediction is what `DepthPipeline` gives to a robot. It is brought to the truth's size, aligned
as the protocol says, clamped to its range and compared on the pixels of known depth inside the
range. A predicted NaN or Inf counts as no prediction: it is left out of the errors and shows in
the coverage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
import heapq
import math
from time import perf_counter
from typing import Any
from typing import Protocol as TypingProtocol

import cv2
from depth_node.camera import Camera
from depth_node.evaluation.metrics import (
    ALIGNMENTS,
    METRES_NEEDED,
    METRIC_NAMES,
    BoundarySums,
    ErrorSums,
    FloatImage,
    plane_baseline,
    usable,
)
from depth_node.evaluation.readers import DataError, Reader, Sample, Skipped
import numpy as np
from numpy.typing import NDArray

MODES = ('per-image', 'pooled')
NEEDS_METRIC = ('none', 'median')
SHEET_WIDTH_PX = 240


class Predictor(TypingProtocol):
    """What is measured: `DepthPipeline`, or anything that runs like it."""

    def run(self, rgb: NDArray[np.uint8], camera: Camera | None, stamp: float = 0.0) -> Any:
        """Return a frame: `.depth` (H, W) float32, metres, not finite where unknown; `.notes`."""


@dataclass(frozen=True)
class Protocol:
    """The rules of one measurement.

    Attributes:
        alignments: of 'none', 'median', 'affine', in the order of the report.
        modes: of 'per-image' (mean of the frames' values) and 'pooled' (one value over all
            pixels).
        min_depth: metres; truth below is not judged, predictions are clamped to it.
        max_depth: metres; truth above is not judged, predictions are clamped to it.
        examples: frames kept per end (worst, best) for the picture page.
    """

    alignments: tuple[str, ...] = ('none', 'median', 'affine')
    modes: tuple[str, ...] = MODES
    min_depth: float = 1e-3
    max_depth: float = 10.0
    examples: int = 3

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
        if not 0 < self.min_depth < self.max_depth < math.inf:
            raise ValueError(
                f'range {self.min_depth} to {self.max_depth} m: 0 < min < max < Inf is expected'
            )

    def describe(self, metric: bool = True) -> str:
        """One line for reports and cards."""
        unit = ' m' if metric else ' (truth scaled to median 1)'
        return (
            f'truth {self.min_depth:g} to {self.max_depth:g}{unit}, prediction at the size of the '
            'truth (bilinear), '
            'clamped to that range, NaN and Inf left out'
        )


@dataclass(frozen=True)
class AlignedScore:
    """Errors of one frame under one alignment."""

    errors: ErrorSums
    boundary: BoundarySums
    scale: float
    shift: float


@dataclass(frozen=True)
class FrameScore:
    """Everything measured on one frame.

    Attributes:
        name: the frame's name.
        known: pixels of known depth inside the protocol's range.
        predicted: those of them that have a usable prediction.
        aligned: by alignment name.
        plane: errors of the best plane fitted to the truth, on all known pixels.
        seconds: wall time of the pipeline's run.
    """

    name: str
    known: int
    predicted: int
    aligned: dict[str, AlignedScore]
    plane: ErrorSums
    seconds: float = math.nan

    @property
    def coverage(self) -> float:
        """Share of the known pixels that have a prediction; NaN when nothing is known."""
        return self.predicted / self.known if self.known else math.nan


@dataclass(frozen=True)
class Example:
    """Small pictures of one frame for the page."""

    name: str
    abs_rel: float
    rgb: NDArray[np.uint8]
    true_depth: NDArray[np.float32]
    predicted: NDArray[np.float32]


@dataclass(frozen=True)
class DatasetResult:
    """A data set's scores; `summary` makes the numbers of the table."""

    name: str
    kind: str
    note: str
    metric: bool
    alignments: tuple[str, ...]
    frames: tuple[FrameScore, ...]
    skipped: tuple[Skipped, ...]
    worst: tuple[Example, ...] = ()
    best: tuple[Example, ...] = ()
    size_hw: tuple[tuple[int, int], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def coverage(self) -> float:
        """Share of all known pixels that have a prediction."""
        known = sum(frame.known for frame in self.frames)
        return sum(frame.predicted for frame in self.frames) / known if known else math.nan

    def summary(self, alignment: str, mode: str) -> dict[str, float | None]:
        """Metrics of the whole set under one alignment and mode; None where not defined.

        Keys: METRIC_NAMES, 'boundary_f1', 'plane_abs_rel', 'plane_delta1', 'plane_rms',
            'ratio_to_plane'
        (AbsRel over the plane's AbsRel; below 1 beats the plane), 'frames' (that have a usable
        pixel).
        """
        scored = [frame for frame in self.frames if frame.aligned[alignment].errors.count]
        if mode == 'pooled':
            errors = ErrorSums()
            plane = ErrorSums()
            boundary = BoundarySums()
            for frame in scored:
                errors += frame.aligned[alignment].errors
                plane += frame.plane
                boundary += frame.aligned[alignment].boundary
            values = errors.values()
            plane_values = plane.values()
            f1 = boundary.f1
        elif mode == 'per-image':
            values = _mean([frame.aligned[alignment].errors.values() for frame in scored])
            plane_values = _mean([frame.plane.values() for frame in scored])
            f1 = _mean([{'f1': frame.aligned[alignment].boundary.f1} for frame in scored]).get(
                'f1', math.nan
            )
        else:
            raise ValueError(f'mode {mode!r}, expected one of {", ".join(MODES)}')
        result: dict[str, float | None] = {'frames': len(scored)}
        for name in METRIC_NAMES:
            hidden = not self.metric and name in METRES_NEEDED
            result[name] = None if hidden else _number(values.get(name, math.nan))
        result['boundary_f1'] = _number(f1)
        result['plane_abs_rel'] = _number(plane_values.get('abs_rel', math.nan))
        result['plane_delta1'] = _number(plane_values.get('delta1', math.nan))
        result['plane_rms'] = _number(plane_values.get('rms', math.nan)) if self.metric else None
        own, plane_rel = result['abs_rel'], result['plane_abs_rel']
        result['ratio_to_plane'] = (
            own / plane_rel
            if own is not None and plane_rel is not None and plane_rel > 1e-9
            else None
        )
        return result


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean per key over the rows where it is finite."""
    result = {}
    for key in rows[0] if rows else ():
        finite = [row[key] for row in rows if math.isfinite(row[key])]
        result[key] = math.fsum(finite) / len(finite) if finite else math.nan
    return result


def resize_depth(depth: FloatImage, size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Bring a prediction to the truth's size.

    Bilinear where the four neighbours are finite, the nearest pixel elsewhere, so that an invalid
    pixel neither vanishes nor spreads.

    Args:
        depth: (H, W), metres.
        size_hw: the truth's size.

    Returns:
        (size_hw) float32.
    """
    source = np.ascontiguousarray(depth, np.float32)
    if source.shape == tuple(size_hw):
        return source
    size_wh = (size_hw[1], size_hw[0])
    with np.errstate(invalid='ignore'):
        smooth = np.asarray(
            cv2.resize(source, size_wh, interpolation=cv2.INTER_LINEAR), np.float32
        )
    nearest = np.asarray(cv2.resize(source, size_wh, interpolation=cv2.INTER_NEAREST), np.float32)
    return np.where(np.isfinite(smooth), smooth, nearest)


def score_frame(
    predicted: FloatImage, sample: Sample, protocol: Protocol, alignments: Sequence[str]
) -> tuple[FrameScore, dict[str, NDArray[np.float64]]]:
    """Measure one prediction.

    Args:
        predicted: depth as the pipeline gave it.
        sample: the frame with its truth.
        protocol: range and rules.
        alignments: those that apply to this data set.

    Returns:
        The scores, and the aligned depth images by alignment.
    """
    true = sample.true_depth
    at_truth = resize_depth(predicted, (true.shape[0], true.shape[1]))
    valid = np.isfinite(true) & (true >= protocol.min_depth) & (true <= protocol.max_depth)
    scores = {}
    images = {}
    for name in alignments:
        aligned = ALIGNMENTS[name](
            at_truth, true, valid, min_depth=protocol.min_depth, max_depth=protocol.max_depth
        )
        images[name] = aligned.depth
        scores[name] = AlignedScore(
            ErrorSums.of(aligned.depth, true, valid),
            BoundarySums.of(aligned.depth, true, valid),
            aligned.scale,
            aligned.shift,
        )
    plane = plane_baseline(true, valid, min_depth=protocol.min_depth, max_depth=protocol.max_depth)
    score = FrameScore(
        sample.name,
        known=int(valid.sum()),
        predicted=int(usable(at_truth, true, valid).sum()),
        aligned=scores,
        plane=ErrorSums.of(plane.depth, true, valid),
    )
    return score, images


def evaluate(
    predictor: Predictor,
    reader: Reader,
    protocol: Protocol,
    *,
    metric_model: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> DatasetResult:
    """Run a model over a data set.

    Args:
        predictor: the pipeline.
        reader: the data set.
        protocol: range, alignments, modes.
        metric_model: False when the network's output has no scale and shift of its own; then, as
            for a data set without calibration, only 'affine' applies.
        progress: called as (done, total) after every frame, skipped ones included.

    Returns:
        The result.

    Raises:
        DataError: no frame could be read, or none of the protocol's alignments applies.
    """
    may_be_metric = metric_model and reader.metric
    alignments = tuple(
        name for name in protocol.alignments if may_be_metric or name not in NEEDS_METRIC
    )
    if not alignments:
        cause = (
            'the data set has no calibration'
            if not reader.metric
            else "the model's output is relative"
        )
        raise DataError(
            f'{reader.name}: {cause}, so only affine alignment means anything; add affine to '
            '--align'
        )

    frames: list[FrameScore] = []
    sizes: set[tuple[int, int]] = set()
    notes: set[str] = set()
    worst: list[tuple[float, int, Example]] = []
    best: list[tuple[float, int, Example]] = []
    for sample in reader:
        started = perf_counter()
        frame = predictor.run(sample.rgb, sample.camera)
        seconds = perf_counter() - started
        notes.update(frame.notes)
        score, images = score_frame(frame.depth, sample, protocol, alignments)
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
            f'{reader.name}: none of {len(reader)} frames could be read; the first: {first.reason}'
        )
    worst_names = [item[2].name for item in worst]
    return DatasetResult(
        reader.name,
        reader.kind,
        reader.note,
        reader.metric,
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
