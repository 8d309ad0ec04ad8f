"""Runtimes that execute a model card's ONNX file, behind one protocol.

`open_backend` picks one: with `auto` the first of `AUTO_ORDER` that opens and reproduces the
card's reference statistics. A runtime that is not installed, cannot read the graph or computes
something else is refused with a reason, and the next one is tried.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple, Protocol, cast

from depth_node.model_card import InputSpec, ModelCard, check_input
from depth_node.postprocess import as_map
from depth_node.preprocess import ResizePlan
import numpy as np
from numpy.typing import NDArray

__all__ = [
    'AUTO_ORDER',
    'PRECISIONS',
    'Availability',
    'Backend',
    'BackendError',
    'CheckResult',
    'Refusal',
    'Tensors',
    'availability',
    'check_batch',
    'open_backend',
    'runnable',
    'self_check',
    'signature',
]

AUTO_ORDER: Final = (
    'tensorrt', 'onnxruntime-tensorrt', 'onnxruntime-cuda', 'openvino', 'onnxruntime')
"""The backends, in the order that `auto` tries them: fastest first."""

_MODULES: Final = {
    'tensorrt': 'depth_node.backends.tensorrt',
    'onnxruntime-tensorrt': 'depth_node.backends.onnxruntime',
    'onnxruntime-cuda': 'depth_node.backends.onnxruntime',
    'openvino': 'depth_node.backends.openvino',
    'onnxruntime': 'depth_node.backends.onnxruntime',
}

_ON_CPU: Final = ('openvino', 'onnxruntime')

PRECISIONS: Final = ('auto', 'fp32', 'fp16', 'mixed', 'bf16', 'int8')

# Used where a card names no tolerance for a precision: a share of the reference mean. Sound
# engines stay ten times below; the INT8 graph that OpenVINO got wrong was 12 % off.
_DEFAULT_TOLERANCE: Final = {'fp32': 0.002, 'fp16': 0.01, 'bf16': 0.03, 'int8': 0.05}
# Of a confidence, on either side of 0 to 1: rounding of a runtime in few bits.
_CONFIDENCE_EXCESS: Final = 0.01


Tensors = dict[str, tuple[str, list[int | None]]]
"""A graph's inputs or outputs: name to (numpy type name, shape with None for a free side)."""


class BackendError(RuntimeError):
    """A backend cannot be opened, or cannot run what it was given."""


class Refusal(NamedTuple):
    """Why a backend was passed over."""

    backend: str
    reason: str


class Availability(NamedTuple):
    """Whether a backend's runtime is here: its version, or the reason why not."""

    backend: str
    version: str | None
    reason: str


@dataclass(frozen=True)
class CheckResult:
    """What the self-check found."""

    ok: bool
    detail: str


class Backend(Protocol):
    """A network that is ready to run.

    Attributes:
        name: the backend's name, one of `AUTO_ORDER`.
        precision: what it computes in, one of `PRECISIONS` but auto.
        device: what it runs on, for people.
        version: the runtime's version.
        card: the model.
        threads: CPU threads it uses; 0 where that says nothing.
        refusals: the backends that `open_backend` passed over before this one.
    """

    name: str
    precision: str
    device: str
    version: str
    card: ModelCard
    threads: int
    refusals: tuple[Refusal, ...]

    def run(self, batch: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """Run the network once, without holding the GIL.

        Args:
            batch: what the card's layout says, (1, H, W, 3) uint8 or (1, 3, H, W) float32.

        Returns:
            The card's outputs by name. The next `run` may overwrite them.

        Raises:
            BackendError: another shape or type than the network takes, or the runtime failed.
        """
        ...

    def close(self) -> None:
        """Release everything; may be called twice."""
        ...

    def __enter__(self) -> Backend: ...

    def __exit__(self, *exc_info: object) -> None: ...


def availability(name: str) -> Availability:
    """Say whether a backend's runtime is installed and has its device; opens no model."""
    try:
        version, reason = _module(name).probe(name)
    except Exception as error:  # a broken installation fails in its own ways
        version, reason = None, _first_line(error)
    return Availability(name, version, reason)


def signature(model: Path) -> tuple[Tensors, Tensors]:
    """Ask an ONNX file for its inputs and outputs, by the first runtime that reads it.

    Raises:
        BackendError: none does; the message has every reason.
    """
    reasons = []
    # without the GPU, which reading does not need; ONNX Runtime first, as it keeps ONNX's names
    for name in [name for name in reversed(AUTO_ORDER) if name in _ON_CPU]:
        available = availability(name)
        if available.version is None:
            reasons.append(f'{name}: {available.reason}')
            continue
        try:
            return cast('tuple[Tensors, Tensors]', _module(name).signature(model))
        except Exception as error:  # the runtimes raise their own kinds
            reasons.append(f'{name}: {_first_line(error)}')
    raise BackendError(f'{model}: cannot be read as an ONNX graph; ' + '; '.join(reasons))


def open_backend(
    card: ModelCard,
    backend: str = 'auto',
    precision: str = 'auto',
    *,
    cache_dir: Path | None = None,
    threads: int | None = None,
    log: Callable[[str], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> Backend:
    """Open a card's network and check that it computes what the card says.

    Args:
        card: the model.
        backend: one of `AUTO_ORDER`, or auto: the first of them that passes.
        precision: one of `PRECISIONS`. auto is int8 on a CPU if the card has that file, fp16 on
            a GPU, and the next slower one should the self-check fail there: fp32, with mixed
            (FP16 with the risky layers in FP32) before it where TensorRT can be told so. bf16
            needs openvino, mixed TensorRT 8 or 10.
        cache_dir: where the runtime may keep compiled models; None: nowhere, but TensorRT and
            ONNX Runtime's TensorRT, whose engines take minutes to build, in the user's cache
            folder.
        threads: CPU threads; None: the physical cores it may use, at most 4.
        log: receives one line per refusal.
        tell: receives lines on work that takes minutes; None: `log` does.

    Returns:
        A backend; its `refusals` tell what was passed over.

    Raises:
        BackendError: none could be opened; the message has every reason.
        CardError: the card's file is missing or is not the one that the card describes.
    """
    if backend != 'auto' and backend not in _MODULES:
        raise BackendError(f'backend {backend!r}: known are auto, {", ".join(AUTO_ORDER)}')
    if precision not in PRECISIONS:
        raise BackendError(f'precision {precision!r}: known are {", ".join(PRECISIONS)}')
    if threads is not None and threads < 1:
        raise BackendError(f'threads {threads}: 1 or more is expected')
    if cache_dir is not None:
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BackendError(f'cache_dir {cache_dir}: {error.strerror or error}; choose a '
                               'folder that can be written, or none') from error
    refusals: list[Refusal] = []

    def refuse(name: str, reason: str) -> None:
        refusals.append(Refusal(name, reason))
        if log is not None:
            log(f'backend {name} is not used: {reason}')

    for name in AUTO_ORDER if backend == 'auto' else (backend,):
        available = availability(name)
        if available.version is None:
            refuse(name, available.reason)
            continue
        for candidate in _precisions(card, name, precision):
            try:
                model = _model_file(card, name, candidate, passing=backend == 'auto')
                opened = _open(name, card, model, candidate, cache_dir, threads,
                               tell or log or (lambda line: None))
            except BackendError as error:
                refuse(name, f'{candidate}: {error}')
                continue
            result = self_check(opened)
            if result.ok:
                opened.refusals = tuple(refusals)
                return opened
            opened.close()
            refuse(name, f'{candidate}: self-check failed: {result.detail}')
    raise BackendError(
        f'no backend runs model {card.name!r}: '
        + '; '.join(f'{name}: {reason}' for name, reason in refusals)
    )


def self_check(backend: Backend) -> CheckResult:
    """Run the card's reference picture and compare the statistics of what comes out.

    Without reference statistics in the card only shapes and finiteness are looked at.
    """
    card, spec = backend.card, backend.card.input
    check = card.check
    if check is not None:
        size_hw, seed = check.size_hw, check.seed
    else:
        fallback = spec.size_hw or spec.min_hw
        if fallback is None:
            return CheckResult(False, 'the card names no input size')
        size_hw, seed = fallback, 0
    try:
        outputs = backend.run(check_batch(spec, seed, size_hw))
    except BackendError as error:
        return CheckResult(False, str(error))
    for name in output_names(card):
        try:
            plane = as_map(outputs[name])
        except ValueError as error:
            return CheckResult(False, f'{name}: {error}')
        # a coarse map may have other cells than squares; a vector or a transposed map is a mistake
        aspect, wanted = plane.shape[1] / plane.shape[0], size_hw[1] / size_hw[0]
        if (aspect - 1) * (wanted - 1) < 0 or not 0.5 <= aspect / wanted <= 2:
            return CheckResult(False, f'{name} is {plane.shape[0]}x{plane.shape[1]} for an input '
                                      f'of {size_hw[0]}x{size_hw[1]}: the aspect differs')
        if name == card.output.name and not np.isfinite(plane).all():
            broken = plane.size - int(np.count_nonzero(np.isfinite(plane)))
            return CheckResult(False, f'{broken} of {plane.size} values of {name} are not finite '
                                      'on the reference picture')
        # written so that NaN fails
        if name == card.output.confidence and not (
                (plane >= -_CONFIDENCE_EXCESS) & (plane <= 1 + _CONFIDENCE_EXCESS)).all():
            return CheckResult(False, f'{name} goes from {plane.min():g} to {plane.max():g} on '
                                      'the reference picture, expected 0 to 1')
    if check is None:
        return CheckResult(True, 'shapes and finite values only: the card has no reference '
                                 'statistics')
    values = outputs[card.output.name].astype(np.float64)
    found = {'mean': float(values.mean()), 'std': float(values.std())}
    ranks = list(check.percentiles)
    for rank, value in zip(ranks, np.percentile(values, ranks), strict=True):
        found[f'p{rank}'] = float(value)
    expected = check.statistics()
    unit = abs(check.mean) or abs(check.std) or 1.0
    deviations = {name: abs(found[name] - expected[name]) / unit for name in expected}
    worst_name = max(deviations, key=deviations.__getitem__)
    worst = deviations[worst_name]
    confidence = card.output.confidence
    if confidence is not None and check.confidence_mean is not None:
        mean = float(outputs[confidence].astype(np.float64).mean())
        expected['confidence'], found['confidence'] = check.confidence_mean, mean
        deviations['confidence'] = abs(mean - check.confidence_mean)  # of its range, 1
        if deviations['confidence'] > worst:
            worst_name, worst = 'confidence', deviations['confidence']
    judged = 'fp16' if backend.precision == 'mixed' else backend.precision
    tolerance = check.tolerance.get(judged, _DEFAULT_TOLERANCE[judged])
    if judged == 'int8' and backend.name == 'tensorrt':  # a file of its own
        tolerance = check.tolerance.get('int8_trt', tolerance)
    detail = (f'{worst_name} is {found[worst_name]:.5g}, the card says '
              f'{expected[worst_name]:.5g}: {100 * worst:.2g} % off, {100 * tolerance:.2g} % is '
              f'allowed for {backend.precision}')
    return CheckResult(worst <= tolerance, detail)


def check_batch(spec: InputSpec, seed: int, size_hw: tuple[int, int]) -> NDArray[Any]:
    """Return the seeded reference picture as the network takes it."""
    fixed = replace(spec, size_hw=size_hw, multiple_of=None, resize='stretch')
    return ResizePlan(fixed, size_hw).to_input(check_input(seed, size_hw)[0])


def output_names(card: ModelCard) -> tuple[str, ...]:
    """Return the graph's outputs that the card uses, depth first."""
    names = (card.output.name, card.output.confidence, card.output.sky)
    return tuple(name for name in names if name is not None)


def runnable(card: ModelCard, name: str) -> tuple[str, ...]:
    """Return the precisions that a backend can be asked for, by the files that the card has."""
    fitting = {
        'tensorrt': {'fp32': 'fp32', 'fp16': 'fp16', 'int8': 'int8_trt'},
        'onnxruntime-tensorrt': {'fp32': 'fp32'},
        'onnxruntime-cuda': {'fp32': 'fp32', 'fp16': 'fp16'},
    }.get(name, {'fp32': 'fp32', 'int8': 'int8'})
    return tuple(precision for precision, key in fitting.items() if key in card.precisions)


def _precisions(card: ModelCard, name: str, precision: str) -> tuple[str, ...]:
    if precision != 'auto':
        return (precision,)
    if name == 'tensorrt':
        return cast('tuple[str, ...]', _module(name).precisions())
    if name == 'onnxruntime-tensorrt':
        return ('fp16', 'fp32')
    # an engine may get any of these wrong, such as int8 on a CPU without the right instructions
    fast = 'int8' if name in _ON_CPU else 'fp16'
    return (fast, 'fp32') if fast in card.precisions else ('fp32',)


def _model_file(card: ModelCard, name: str, precision: str, *, passing: bool) -> Path:
    """Return the verified file that a backend needs for a precision.

    With `passing` a card without one is a reason to pass over the backend, not over the card.
    """
    if name == 'tensorrt':
        return cast(Path, _module(name).model_file(card, precision))
    key = precision
    if precision in ('bf16', 'mixed') or (name, precision) == ('onnxruntime-tensorrt', 'fp16'):
        key = 'fp32'  # the runtime converts it, or says that it does not
    if passing and key not in card.precisions:
        raise BackendError(f'model {card.name!r} has no {key} file')
    return card.verify_file(key)


def _open(
    name: str, card: ModelCard, model: Path, precision: str, cache_dir: Path | None,
    threads: int | None, tell: Callable[[str], None],
) -> Backend:
    try:
        return cast(Backend, _module(name).open_model(
            name, card, model, precision, cache_dir=cache_dir, threads=threads, tell=tell))
    except BackendError:
        raise
    except Exception as error:  # the runtimes raise their own kinds for what they cannot read
        raise BackendError(f'cannot open {model.name}: {_first_line(error)}') from error


def _module(name: str) -> ModuleType:
    return importlib.import_module(_MODULES[name])


def _first_line(error: Exception) -> str:
    """Return the line that tells something; OpenVINO puts places in its source before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(('Exception from ', 'Check '))
               and not line.endswith(' failed with GeneralFailure:')]
    text = (telling or lines or ['no message'])[0]
    return f'{type(error).__name__}: {text[:300]}'
