"""INT8 for CPUs: a QDQ graph that both ONNX Runtime and OpenVINO run as integers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import logging
from pathlib import Path
import tempfile
from typing import TYPE_CHECKING

from depth_node.export.onnx import IR_VERSION, ExportError
from depth_node.training.networks.card import INPUT_NAME
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

MIN_PICTURES = 8  # fewer do not cover the range of the activations
# Stem and first block: few channels of very different ranges. In eight bits they move depth by
# 4 %; with them in float it moves by 0.9 % (30 rendered frames). They are 3 % of the work.
FLOAT_FIRST_CONVS = 3


class _Reader:
    """Calibration pictures in the shape the quantiser asks for."""

    def __init__(self, pictures: Iterable[NDArray[np.uint8]]) -> None:
        self._pictures: Iterator[NDArray[np.uint8]] = iter(pictures)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        picture = next(self._pictures, None)
        return None if picture is None else {INPUT_NAME: picture[None]}


def quantize_onnx(
    source: Path,
    target: Path,
    pictures: list[NDArray[np.uint8]],
    *,
    float_nodes: tuple[str, ...] | None = None,
) -> None:
    """Write an INT8 copy of an exported network.

    Activations uint8, weights int8 per channel (u8s8): OpenVINO runs the symmetric s8s8 form
    wrongly. Everything after the last convolution stays float.

    Args:
        source: a file of `export_onnx`.
        target: the file to write.
        pictures: (H, W, 3) uint8 RGB at the network's size, like those the robot will see.
        float_nodes: names of nodes to leave in float; None leaves the first `FLOAT_FIRST_CONVS`
            convolutions and the last, whose output is log depth: eight bits over its range would
            be steps of 2 %.

    Raises:
        ValueError: too few pictures.
        ExportError: the quantiser did not write a QDQ graph.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quant_pre_process,
        quantize_static,
    )

    if len(pictures) < MIN_PICTURES:
        raise ValueError(
            f'{len(pictures)} calibration pictures, expected at least {MIN_PICTURES}; '
            'give a data folder with more frames'
        )
    logging.getLogger().setLevel(logging.WARNING)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / 'prepared.onnx'
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        model = onnx.load(str(prepared))
        if float_nodes is None:
            float_nodes = _sensitive_convs(model)
        quantize_static(
            str(prepared),
            str(target),
            _Reader(pictures),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            op_types_to_quantize=['Conv', 'Add', 'Resize', 'AveragePool', 'Relu', 'Clip'],
            nodes_to_exclude=list(float_nodes),
        )
    model = onnx.load(str(target))
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = 'depth_node', ''
    del model.metadata_props[:]
    if not any(node.op_type == 'QuantizeLinear' for node in model.graph.node):
        target.unlink()
        raise ExportError(
            f'{target.name}: no QuantizeLinear node; is {source.name} a float graph?'
        )
    onnx.checker.check_model(model)
    onnx.save(model, str(target))


def _sensitive_convs(model: onnx.ModelProto) -> tuple[str, ...]:
    names = [str(node.name) for node in model.graph.node if node.op_type == 'Conv']
    if len(names) <= FLOAT_FIRST_CONVS + 1:
        raise ExportError(f'the graph has {len(names)} convolutions: nothing to quantise')
    return (*names[:FLOAT_FIRST_CONVS], names[-1])
