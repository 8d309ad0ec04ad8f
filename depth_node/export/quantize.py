"""Files of fewer bits from an exported FP32 file: INT8 for CPUs, INT8 for TensorRT, and fp16.

The INT8 graphs say by pairs of QuantizeLinear and DequantizeLinear (QDQ) where integers are. CPUs
want uint8 activations with a zero point; TensorRT takes symmetric int8 alone, which OpenVINO runs
wrongly: a card names one file for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
import logging
from pathlib import Path
import tempfile
from typing import TYPE_CHECKING, Any, Final

from depth_node.export.lint import cast_first, lint, peak_activation
from depth_node.export.onnx import IR_VERSION, ExportError, check_peak
from depth_node.training.networks.card import INPUT_NAME
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from depth_node.model_card import InputSpec
    import onnx

MIN_PICTURES = 8  # fewer do not cover the range of the activations
# Stem and first block: few channels of very different ranges. In eight bits they move depth by
# 4 %; with them in float it moves by 0.9 % (30 rendered frames). They are 3 % of the work.
FLOAT_FIRST_CONVS = 3


@dataclass(frozen=True)
class Form:
    """How a runtime wants its INT8 graphs.

    Attributes:
        method: in words, for the card.
        signed: activations are int8 with zero point 0, instead of uint8 with any.
        operators: what is quantised.
    """

    method: str
    signed: bool
    operators: tuple[str, ...]


FORMS: Final = {
    'int8': Form(
        'onnxruntime static QDQ, u8s8 per channel, MinMax; stem, first block and head in float',
        False,
        ('Conv', 'Add', 'Resize', 'AveragePool', 'Relu', 'Clip'),
    ),
    # TensorRT fuses Conv with what follows, and moves Q past Resize and pooling itself: it needs
    # pairs before convolutions. With sums in INT8 as well the bundled network was off by twice
    # as much (1.2 % against 0.7 % of depth on three pictures).
    'int8_trt': Form(
        'onnxruntime static QDQ, symmetric s8s8 per channel, MinMax, bias in float; stem, first '
        'block and head in float',
        True,
        ('Conv',),
    ),
}


class _Reader:
    """Calibration feeds in the shape the quantiser asks for."""

    def __init__(self, feeds: Iterable[dict[str, NDArray[Any]]]) -> None:
        self._feeds: Iterator[dict[str, NDArray[Any]]] = iter(feeds)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._feeds, None)


def _feeds(
    pictures: Iterable[NDArray[np.uint8]], spec: InputSpec | None
) -> Iterator[dict[str, NDArray[Any]]]:
    """Turn pictures into what a graph takes."""
    if spec is None:
        yield from ({INPUT_NAME: picture[None]} for picture in pictures)
        return
    from depth_node.export.card import feeder

    feed = feeder(spec)
    yield from ({spec.name: feed(picture)} for picture in pictures)


def quantize_onnx(
    source: Path,
    target: Path,
    pictures: list[NDArray[np.uint8]],
    *,
    precision: str = 'int8',
    float_nodes: tuple[str, ...] | None = None,
    spec: InputSpec | None = None,
) -> None:
    """Write an INT8 copy of an exported network.

    Weights are int8 per channel. Everything after the last convolution stays float.

    Args:
        source: an FP32 file.
        target: the file to write.
        pictures: (H, W, 3) uint8 RGB at the network's size, like those the robot will see.
        precision: one of `FORMS`.
        float_nodes: names of nodes to leave in float; None leaves the first `FLOAT_FIRST_CONVS`
            convolutions and the last of the first output, which is log depth: eight bits over
            its range would be steps of 2 %.
        spec: the card's input; None is that of files of `export_onnx`.

    Raises:
        ValueError: too few pictures, or an unknown precision.
        ExportError: the quantiser did not write a QDQ graph, or (int8_trt) one that TensorRT
            would refuse.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quant_pre_process,
        quantize_static,
    )

    if precision not in FORMS:
        raise ValueError(f'precision {precision!r}, expected one of {", ".join(FORMS)}')
    if len(pictures) < MIN_PICTURES:
        raise ValueError(
            f'{len(pictures)} calibration pictures, expected at least {MIN_PICTURES}; '
            'give a data folder with more frames'
        )
    form = FORMS[precision]
    options: dict[str, Any] = {}
    if form.signed:
        options = {
            'ActivationSymmetric': True,
            'WeightSymmetric': True,
            'AddQDQPairToWeight': True,  # TensorRT wants float weights with a pair behind them
            'QuantizeBias': False,  # and reads no int32
            # A pair behind a convolution would part it from its activation.
            'OpTypesToExcludeOutputQuantization': list(form.operators),
        }
    logging.getLogger().setLevel(logging.WARNING)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / 'prepared.onnx'
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        model = onnx.load(str(prepared))
        if form.signed and cast_first(model):
            onnx.save(model, str(prepared))
        if float_nodes is None:
            float_nodes = _sensitive_convs(model)
        quantize_static(
            str(prepared),
            str(target),
            _Reader(_feeds(pictures, spec)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8 if form.signed else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            op_types_to_quantize=list(form.operators),
            nodes_to_exclude=list(float_nodes),
            extra_options=options,
        )
    try:
        _finish(target)
        if not any(n.op_type == 'QuantizeLinear' for n in onnx.load(str(target)).graph.node):
            raise ExportError(
                f'{target.name}: no QuantizeLinear node; is {source.name} a float graph?'
            )
        if form.signed:
            _require_tensorrt(target)
    except ExportError:
        target.unlink()
        raise


def halve_onnx(
    source: Path,
    target: Path,
    pictures: list[NDArray[np.uint8]],
    *,
    spec: InputSpec | None = None,
) -> None:
    """Write an fp16 copy of an exported network whose checkpoint is not at hand.

    Weights and activations are fp16 from the first convolution to the last; the picture is
    normalised and depth is made of the last map in fp32. Input and output are those of `source`.

    Args:
        source: an FP32 file.
        target: the file to write.
        pictures: (H, W, 3) uint8 RGB at the network's size, on which no activation may come near
            to the largest number of fp16.
        spec: the card's input; None is that of files of `export_onnx`.

    Raises:
        ExportError: no convolution, an activation too large, or a graph that TensorRT would
            refuse.
    """
    import onnx

    model = onnx.load(str(source))
    cast_first(model)
    if len(model.graph.output) > 1:
        _tails_last(model)
    convs = [index for index, node in enumerate(model.graph.node) if node.op_type == 'Conv']
    if not convs:
        raise ExportError(f'{source.name}: no convolution; export it as fp16 from its checkpoint')
    _halve_nodes(model, convs[0], convs[-1] + 1)
    target.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(target))
    try:
        _finish(target)
        check_peak(target, peak_activation(target, _feeds(pictures, spec)))
        _require_tensorrt(target)
    except ExportError:
        target.unlink()
        raise


# Inputs that are float32 by definition, whatever type the data have.
_ALWAYS_FLOAT: Final = {('Resize', 1), ('Resize', 2)}


def _halve_nodes(model: onnx.ModelProto, begin: int, end: int) -> None:
    """Make fp16 of what nodes [begin, end) compute; casts stand where the rest meets them."""
    from onnx import TensorProto, helper, numpy_helper, shape_inference

    graph = model.graph
    types = {
        info.name: info.type.tensor_type.elem_type
        for info in shape_inference.infer_shapes(model).graph.value_info
    }
    for info in (*graph.input, *graph.output):
        types[info.name] = info.type.tensor_type.elem_type
    constants = {item.name: item for item in graph.initializer}
    nodes = list(graph.node)
    inside = nodes[begin:end]
    made = {name for node in inside for name in node.output}

    def half(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
        values = numpy_helper.to_array(tensor)
        limits = np.finfo(np.float16)
        # masks and open ranges are written as the largest float32: they mean the largest there is
        return numpy_helper.from_array(
            np.clip(values, limits.min, limits.max).astype(np.float16), name
        )

    entering: dict[str, str] = {}
    casts: list[onnx.NodeProto] = []
    for node in inside:
        for index, name in enumerate(node.input):
            if not name or name in made or (node.op_type, index) in _ALWAYS_FLOAT:
                continue
            constant = constants.get(name)
            kind = constant.data_type if constant is not None else types.get(name)
            if kind != TensorProto.FLOAT:
                continue
            if name not in entering:
                entering[name] = f'{name}.fp16'
                if constant is not None:
                    graph.initializer.append(half(constant, entering[name]))
                else:
                    casts.append(helper.make_node(
                        'Cast', [name], [entering[name]], to=TensorProto.FLOAT16,
                        name=f'{name}.to_fp16'))  # fmt: skip
            node.input[index] = entering[name]
        for attribute in node.attribute:
            if attribute.type == attribute.GRAPH:
                raise ExportError(f'{node.name}: fp16 of a {node.op_type} is made from the '
                                  'checkpoint only: depth-node export')  # fmt: skip
            if node.op_type == 'Cast' and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
            if attribute.type == attribute.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(half(attribute.t, attribute.t.name))
    leaving: dict[str, str] = {}
    back: list[onnx.NodeProto] = []
    results = {output.name for output in graph.output}
    for node in inside:
        for index, name in enumerate(node.output):
            if types.get(name) != TensorProto.FLOAT:
                continue
            if name in results:  # the graph's output keeps its name and type
                leaving[name] = name
                node.output[index] = f'{name}.fp16'
                for other in inside:
                    other.input[:] = [f'{name}.fp16' if i == name else i for i in other.input]
                source = f'{name}.fp16'
            elif any(name in other.input for other in nodes[end:]):
                leaving[name] = f'{name}.fp32'
                source = name
            else:
                continue
            back.append(helper.make_node(
                'Cast', [source], [leaving[name]], to=TensorProto.FLOAT,
                name=f'{name}.to_fp32'))  # fmt: skip
    for node in nodes[end:]:
        node.input[:] = [leaving.get(name, name) for name in node.input]
    ordered = [*nodes[:begin], *casts, *inside, *back, *nodes[end:]]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(ordered)
    used = {name for node in ordered for name in node.input} | results
    for item in [item for item in graph.initializer if item.name not in used]:
        graph.initializer.remove(item)


def _finish(target: Path) -> None:
    """Drop what tools note about themselves, and check the graph."""
    import onnx

    model = onnx.load(str(target))
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = 'depth_node', ''
    del model.metadata_props[:]
    # onnxruntime adds its own domains to the list, used or not
    used = {node.domain or '' for node in model.graph.node}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    onnx.checker.check_model(model)
    onnx.save(model, str(target))


def _require_tensorrt(target: Path) -> None:
    errors = [found for found in lint(target) if found.severity == 'error']
    if errors:
        raise ExportError(
            f'{target.name}: TensorRT would refuse it: ' + '; '.join(map(str, errors))
        )


def _sensitive_convs(model: onnx.ModelProto) -> tuple[str, ...]:
    convs = [node for node in model.graph.node if node.op_type == 'Conv']
    names = [str(node.name) for node in convs]
    if len(names) <= FLOAT_FIRST_CONVS + 1:
        raise ExportError(f'the graph has {len(names)} convolutions: nothing to quantise')
    if len(model.graph.output) == 1:
        return (*names[:FLOAT_FIRST_CONVS], names[-1])
    # Steps of 2 % do no harm to the spread that a confidence is computed from.
    leading = {id(node) for node in _leading_to(model, {model.graph.output[0].name})}
    last = [name for name, node in zip(names, convs, strict=True) if id(node) in leading][-1]
    return (*names[:FLOAT_FIRST_CONVS], last)


def _leading_to(model: onnx.ModelProto, names: set[str]) -> list[onnx.NodeProto]:
    """Return the nodes from which some results are computed, in order."""
    needed, found = set(names), []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            found.append(node)
            needed.update(node.input)
    return found[::-1]


def _tails_last(model: onnx.ModelProto) -> None:
    """Put what every output computes after its last convolution behind all convolutions.

    With one output that is the order already; the tail of depth may stand before the last
    convolution of confidence.
    """
    nodes = list(model.graph.node)
    ends = {name for node in nodes if node.op_type == 'Conv' for name in node.output}
    first = _leading_to(model, ends)
    chosen = {id(node) for node in first}
    rest = [node for node in nodes if id(node) not in chosen]
    del model.graph.node[:]
    model.graph.node.extend([*first, *rest])
