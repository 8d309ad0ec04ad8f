"""The card of an exported network: what the file is, where it came from, how to check it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depth_node.export.onnx import ExportError
from depth_node.model_card import (
    CheckSpec,
    FileSpec,
    ModelCard,
    check_input,
    file_sha256,
    statistics_of,
)
from depth_node.training.networks.card import INPUT_NAME, OUTPUT_NAME, input_spec, output_spec
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from depth_node.training.networks.base import DepthNetwork

CHECK_SEED = 7
# Shares of the reference mean. Runtimes of one precision differ by a tenth of these.
TOLERANCE = {'fp32': 0.002, 'fp16': 0.01, 'bf16': 0.03, 'int8': 0.05}
# An INT8 graph whose statistics are this far off is broken, not rounded.
LARGEST_INT8_DEVIATION = 0.1


def make_card(
    onnx_file: Path,
    network: DepthNetwork,
    *,
    name: str,
    licence: str,
    range_m: tuple[float, float] | None,
    assumed_hfov_deg: float | None,
    provenance: dict[str, Any],
) -> ModelCard:
    """Describe a file of `export_onnx`; the card stands beside it, not yet saved.

    Args:
        onnx_file: the FP32 file.
        network: what was exported.
        name: the card's name.
        licence: SPDX identifier of the weights.
        range_m: metric depths that training covered; None means what the network can return.
        assumed_hfov_deg: field of view taken for a camera without calibration; None means that
            of the canonical camera.
        provenance: plain values.
    """
    values = run_file(onnx_file, check_input(CHECK_SEED, network.size_hw)[0])
    mean, std, percentiles = statistics_of(values)
    return ModelCard(
        name=name,
        path=onnx_file.with_suffix('.yaml').absolute(),
        licence=licence,
        input=input_spec(network),
        output=output_spec(network, range_m=range_m, assumed_hfov_deg=assumed_hfov_deg),
        precisions={'fp32': FileSpec(onnx_file.absolute(), file_sha256(onnx_file))},
        check=CheckSpec(
            seed=CHECK_SEED,
            size_hw=network.size_hw,
            mean=round(mean, 6),
            std=round(std, 6),
            percentiles={rank: round(value, 6) for rank, value in percentiles.items()},
            tolerance=dict(TOLERANCE),
        ),
        provenance=provenance,
    )


def with_int8(card: ModelCard, int8_file: Path, provenance: dict[str, Any]) -> ModelCard:
    """Add an INT8 file to a card, with a tolerance from what it really deviates.

    The reference picture is no photograph, so INT8 may be further off there than on real ones;
    the tolerance is 1.5 times the deviation seen, at least that of `TOLERANCE`.

    Raises:
        ExportError: the INT8 file is off by more than `LARGEST_INT8_DEVIATION` on the reference
            picture, or the card has no reference statistics.
    """
    if card.check is None:
        raise ExportError(f'{card.path}: no reference statistics; export the model again')
    values = run_file(int8_file, check_input(card.check.seed, card.check.size_hw)[0])
    mean, std, percentiles = statistics_of(values)
    found = {'mean': mean, 'std': std, **{f'p{k}': v for k, v in percentiles.items()}}
    expected = card.check.statistics()
    deviation = max(abs(found[k] - expected[k]) for k in expected) / abs(card.check.mean)
    if deviation > LARGEST_INT8_DEVIATION:
        raise ExportError(
            f'{int8_file.name}: statistics on the reference picture are off by {deviation:.1%}, '
            f'expected <= {LARGEST_INT8_DEVIATION:.0%}; calibrate with more or other pictures'
        )
    tolerance = {**card.check.tolerance, 'int8': max(TOLERANCE['int8'], round(1.5 * deviation, 3))}
    files = {**card.precisions, 'int8': FileSpec(int8_file.absolute(), file_sha256(int8_file))}
    return replace(
        card,
        precisions=files,
        check=replace(card.check, tolerance=tolerance),
        provenance={**card.provenance, 'int8': provenance},
    )


def run_file(onnx_file: Path, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Run one (H, W, 3) picture through a file by ONNX Runtime; returns (H, W)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx_file), providers=['CPUExecutionProvider'])
    (depth,) = session.run([OUTPUT_NAME], {INPUT_NAME: picture[None]})
    return np.asarray(depth, np.float32)[0, 0]
