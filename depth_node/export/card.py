"""The card of an exported network: what the file is, where it came from, how to check it.

It stands beside the files as YAML, and inside each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depth_node.export.onnx import ExportError
from depth_node.model_card import (
    METADATA_KEY,
    PRECISIONS,
    CheckSpec,
    FileSpec,
    InputSpec,
    ModelCard,
    check_input,
    file_sha256,
    statistics_of,
)
from depth_node.postprocess import as_map
from depth_node.preprocess import ResizePlan
from depth_node.training.networks.card import (
    CONFIDENCE_NAME,
    INPUT_NAME,
    OUTPUT_NAME,
    input_spec,
    output_spec,
)
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from depth_node.export.dynamic import Sizes
    from depth_node.training.networks.base import DepthNetwork

CHECK_SEED = 7
# Shares of the reference mean. Runtimes of one precision differ by a tenth of these.
TOLERANCE = {'fp32': 0.002, 'fp16': 0.01, 'bf16': 0.03, 'int8': 0.05, 'int8_trt': 0.05}
# A graph whose statistics are this far off is broken, not rounded.
LARGEST_DEVIATION = {'fp16': 0.02, 'int8': 0.1, 'int8_trt': 0.1}


def make_card(
    onnx_file: Path,
    network: DepthNetwork,
    *,
    name: str,
    licence: str,
    range_m: tuple[float, float] | None,
    assumed_hfov_deg: float | None,
    provenance: dict[str, Any],
    sizes: Sizes | None = None,
) -> ModelCard:
    """Describe a file of `export_onnx` inside it; the card beside it is not yet saved.

    Args:
        onnx_file: the FP32 file.
        network: what was exported.
        name: the card's name.
        licence: SPDX identifier of the weights.
        range_m: metric depths that training covered; None means what the network can return.
        assumed_hfov_deg: field of view taken for a camera without calibration; None means that
            of the canonical camera.
        provenance: plain values.
        sizes: of a dynamic graph.
    """
    check_hw, inputs = network.size_hw, input_spec(network)
    if sizes is not None:
        check_hw = sizes.nominal_hw
        inputs = replace(
            inputs, size_hw=None, multiple_of=sizes.step, min_hw=sizes.min_hw,
            max_hw=sizes.max_hw, resize='keep_aspect',
        )  # fmt: skip
    picture = check_input(CHECK_SEED, check_hw)[0]
    mean, std, percentiles = statistics_of(run_file(onnx_file, picture))
    sure = None
    if network.has_confidence:
        sure = round(float(run_file(onnx_file, picture, output=CONFIDENCE_NAME).mean()), 6)
    card = ModelCard(
        name=name,
        path=onnx_file.with_suffix('.yaml').absolute(),
        licence=licence,
        input=inputs,
        output=output_spec(network, range_m=range_m, assumed_hfov_deg=assumed_hfov_deg),
        precisions={'fp32': FileSpec(onnx_file.absolute(), file_sha256(onnx_file))},
        check=CheckSpec(
            seed=CHECK_SEED,
            size_hw=check_hw,
            mean=round(mean, 6),
            std=round(std, 6),
            percentiles={rank: round(value, 6) for rank, value in percentiles.items()},
            tolerance=dict(TOLERANCE),
            confidence_mean=sure,
        ),
        provenance=provenance,
    )
    return replace(card, precisions={'fp32': embed(card, 'fp32', onnx_file)})


def with_file(
    card: ModelCard, precision: str, onnx_file: Path, provenance: dict[str, Any]
) -> ModelCard:
    """Add a file of fewer bits to a card, with a tolerance from what it really deviates.

    The reference picture is no photograph, so INT8 may be further off there than on real ones;
    the tolerance is 1.5 times the deviation seen, at least that of `TOLERANCE`.

    Args:
        card: of the FP32 file.
        precision: fp16, int8 or int8_trt.
        onnx_file: the file; the card is put into it.
        provenance: how it was made, plain values.

    Raises:
        ExportError: the file is off by more than `LARGEST_DEVIATION` on the reference picture, or
            the card has no reference statistics.
    """
    if card.check is None:
        raise ExportError(f'{card.path}: no reference statistics; export the model again')
    picture = check_input(card.check.seed, card.check.size_hw)[0]
    as_written = precision == 'int8_trt'
    values = run_file(onnx_file, picture, as_written=as_written, card=card)
    mean, std, percentiles = statistics_of(values)
    found = {'mean': mean, 'std': std, **{f'p{k}': v for k, v in percentiles.items()}}
    expected = card.check.statistics()
    deviation = max(abs(found[k] - expected[k]) for k in expected) / abs(card.check.mean)
    if card.check.confidence_mean is not None:
        sure = run_file(
            onnx_file, picture, as_written=as_written, card=card, output=card.output.confidence)
        deviation = max(deviation, abs(float(sure.mean()) - card.check.confidence_mean))
    largest = LARGEST_DEVIATION[precision]
    if not deviation <= largest:
        raise ExportError(
            f'{onnx_file.name}: statistics on the reference picture are off by {deviation:.1%}, '
            f'expected <= {largest:.0%}; '
            + ('use fp32 or bf16 for this network' if precision == 'fp16'
               else 'calibrate with more or other pictures')
        )  # fmt: skip
    tolerance = {
        **card.check.tolerance,
        precision: max(TOLERANCE[precision], round(1.5 * deviation, 3)),
    }
    card = replace(
        card,
        check=replace(card.check, tolerance=tolerance),
        provenance={**card.provenance, precision: provenance},
    )
    files = {**card.precisions, precision: embed(card, precision, onnx_file)}
    order = [key for key in PRECISIONS if key in files]
    return replace(card, precisions={key: files[key] for key in order})


def embed(card: ModelCard, precision: str, onnx_file: Path) -> FileSpec:
    """Put a card into an ONNX file's metadata; returns the file with its new hash."""
    import onnx

    model = onnx.load(str(onnx_file), load_external_data=False)
    kept = [entry for entry in model.metadata_props if entry.key != METADATA_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    model.metadata_props.add(key=METADATA_KEY, value=card.embedded_text(precision))
    temporary = onnx_file.with_name(f'.{onnx_file.name}.part')
    try:
        onnx.save(model, str(temporary))
        temporary.replace(onnx_file)
    finally:
        temporary.unlink(missing_ok=True)
    return FileSpec(onnx_file.absolute(), file_sha256(onnx_file))


def feeder(spec: InputSpec) -> Callable[[NDArray[np.uint8]], NDArray[Any]]:
    """Return a function that turns an (H, W, 3) uint8 RGB picture into a graph's input."""
    plans: dict[tuple[int, int], ResizePlan] = {}

    def feed(picture: NDArray[np.uint8]) -> NDArray[Any]:
        size_hw = (picture.shape[0], picture.shape[1])
        if size_hw not in plans:
            plans[size_hw] = ResizePlan(spec, size_hw)
        return plans[size_hw].to_input(picture).copy()  # the plan's buffer is used again

    return feed


def file_runner(
    onnx_file: Path, *, as_written: bool = False, card: ModelCard | None = None,
    output: str | None = None,
) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Open a file by ONNX Runtime; the function takes (H, W, 3) uint8, returns (h, w).

    Args:
        onnx_file: the file.
        as_written: without graph optimisation, which fuses the quantised form of TensorRT in its
            own way.
        card: names its input and output; None is for files of `export_onnx`.
        output: the output to return, where it is not depth.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        str(onnx_file), options, providers=['CPUExecutionProvider']
    )
    name, result = (INPUT_NAME, OUTPUT_NAME) if card is None else (
        card.input.name, card.output.name)  # fmt: skip
    result = output or result
    feed = (lambda picture: picture[None]) if card is None else feeder(card.input)

    def run(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        (depth,) = session.run([result], {name: feed(picture)})
        return as_map(np.asarray(depth, np.float32))

    return run


def run_file(
    onnx_file: Path,
    picture: NDArray[np.uint8],
    *,
    as_written: bool = False,
    card: ModelCard | None = None,
    output: str | None = None,
) -> NDArray[np.float32]:
    """Run one picture through a file; see `file_runner`."""
    return file_runner(onnx_file, as_written=as_written, card=card, output=output)(picture)
