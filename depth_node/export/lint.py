"""What a TensorRT parser will refuse in a graph, said before a build, with the remedy.

Where it is installed, TensorRT-RTX parses for real without a GPU; this needs the onnx package
alone, and knows the older TensorRT of a Jetson too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

FP16_LARGEST = 65504.0
# The pictures that are tried are few: half of the range is kept in reserve.
FP16_PEAK = FP16_LARGEST / 2
OLDEST_OPSET = 17  # what TensorRT 8.5 and 8.6 (JetPack 5 and 6.0) read at most
TARGETS = ('tensorrt', 'cpu')

# The operators that TensorRT 8.5 and later import, as far as networks on pictures have them
# (support matrix of onnx-tensorrt; custom layers and those with data-dependent sizes left out).
SUPPORTED = frozenset(
    """
    Abs Acos Add And ArgMax ArgMin Asin Atan AveragePool BatchNormalization Cast Ceil Celu Clip
    Concat Constant ConstantOfShape Conv ConvTranspose Cos CumSum DepthToSpace DequantizeLinear Div
    Dropout Einsum Elu Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gemm
    GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GridSample HardSigmoid HardSwish
    Identity InstanceNormalization IsNaN LRN LayerNormalization LeakyRelu Less LessOrEqual Log
    LogSoftmax MatMul Max MaxPool Mean Min Mul Neg Not Or PRelu Pad Pow QuantizeLinear Range
    Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
    ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize Round ScatterElements ScatterND Selu
    Shape Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt
    Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Unsqueeze Where Xor
    """.split()
)
# Present in standard ONNX only from opset 18 on, or functions that the checker expands.
SUPPORTED_NEWER = frozenset({'Gelu', 'GroupNormalization', 'Mish'})
# Both operands must have one type; a strongly typed build does not cast.
_ONE_TYPE = frozenset(
    """
    Add Sub Mul Div Conv ConvTranspose MatMul Gemm Concat Max Min Sum Mean Equal Greater Less
    GreaterOrEqual LessOrEqual PRelu BatchNormalization InstanceNormalization
    LayerNormalization
    """.split()
)


@dataclass(frozen=True)
class Finding:
    """Something that will go wrong.

    Attributes:
        rule: short name: opset, domain, operator, antialias, cubic, uint8, types, qdq, peak.
        severity: `error` (refused, or wrong results) or `warning` (by some versions).
        node: the node's name, or the graph's part.
        text: what was found, and what to do.
    """

    rule: str
    severity: str
    node: str
    text: str

    def __str__(self) -> str:
        return f'{self.severity}: {self.rule}: {self.node}: {self.text}'


@dataclass(frozen=True)
class Peak:
    """The largest activation of a graph; infinite or NaN where a node overflowed."""

    value: float
    node: str
    operator: str

    def __str__(self) -> str:
        return f'the largest activation is {self.value:.4g}, by {self.operator} {self.node}'


def lint(
    path: Path,
    *,
    target: str = 'tensorrt',
    batches: Iterable[dict[str, NDArray[Any]]] = (),
) -> tuple[Finding, ...]:
    """Look for what a runtime will refuse or get wrong.

    Args:
        path: an ONNX file.
        target: `tensorrt`, or `cpu` (ONNX Runtime and OpenVINO), which take more.
        batches: feeds of the graph; with some, the largest activation is looked for.

    Raises:
        ValueError: an unknown target, or a file that is not an ONNX graph.
    """
    import onnx

    if target not in TARGETS:
        raise ValueError(f'target {target!r}, expected one of {", ".join(TARGETS)}')
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and the checker's errors have no common base
        first = (str(error).strip().splitlines() or ['no message'])[0]
        raise ValueError(f'{path}: not a valid ONNX graph: {first}') from error
    types = _types(model)
    findings = [*_types_agree(model, types)]
    if target == 'tensorrt':
        findings += [
            *_opset(model), *_operators(model), *_resizes(model), *_bytes_in(model, types),
            *_symmetric(model),
        ]  # fmt: skip
    batches = list(batches)
    if batches:
        findings += _peak(model, peak_activation(path, batches))
    return tuple(findings)


def _opset(model: onnx.ModelProto) -> list[Finding]:
    version = next((o.version for o in model.opset_import if o.domain in ('', 'ai.onnx')), 0)
    if version <= OLDEST_OPSET:
        return []
    return [Finding(
        'opset', 'warning', 'graph',
        f'opset {version}: TensorRT 8.5 and 8.6 (JetPack 5 and 6.0) read {OLDEST_OPSET} at most, '
        f'10 and later read it; export again with opset_version={OLDEST_OPSET} '
        '(depth-node export does)')]  # fmt: skip


def _operators(model: onnx.ModelProto) -> list[Finding]:
    found: dict[tuple[str, str], list[str]] = {}
    for node in model.graph.node:
        found.setdefault((node.domain, node.op_type), []).append(_name(node))
    findings = []
    for (domain, operator), names in found.items():
        more = f' and {len(names) - 1} more' if len(names) > 1 else ''
        if domain not in ('', 'ai.onnx'):
            findings.append(Finding(
                'domain', 'error', names[0] + more,
                f'operator {domain}.{operator} is not of standard ONNX; export without custom '
                'operators (of com.microsoft: before optimising with ONNX Runtime)'))  # fmt: skip
        elif operator in SUPPORTED_NEWER:
            findings.append(Finding(
                'operator', 'warning', names[0] + more,
                f'{operator} is read by TensorRT 10 and later only; export with opset '
                f'{OLDEST_OPSET}, which writes it as basic operators'))  # fmt: skip
        elif operator not in SUPPORTED:
            findings.append(Finding(
                'operator', 'error', names[0] + more,
                f'TensorRT does not import {operator}; rewrite that layer with basic operators '
                'of fixed sizes, or run the network by ONNX Runtime'))  # fmt: skip
    return findings


def _resizes(model: onnx.ModelProto) -> list[Finding]:
    findings = []
    for node in model.graph.node:
        if node.op_type != 'Resize':
            continue
        attributes = {a.name: a for a in node.attribute}
        if 'antialias' in attributes and attributes['antialias'].i:
            findings.append(Finding(
                'antialias', 'error', _name(node),
                'TensorRT has no Resize with antialias; interpolate with antialias=False in the '
                'network, and shrink pictures before it'))  # fmt: skip
        if 'mode' in attributes and attributes['mode'].s == b'cubic':
            findings.append(Finding(
                'cubic', 'warning', _name(node),
                'TensorRT before 8.6 has no cubic Resize; where the sizes are fixed, export with '
                'constant folding (position embeddings), or interpolate linearly'))  # fmt: skip
    return findings


def _bytes_in(model: onnx.ModelProto, types: dict[str, int]) -> list[Finding]:
    import onnx

    findings = []
    for node in model.graph.node:
        if node.op_type in ('Cast', 'DequantizeLinear'):
            continue
        if any(types.get(name) == onnx.TensorProto.UINT8 for name in node.input) and (
            node.op_type != 'QuantizeLinear'
        ):
            findings.append(Finding(
                'uint8', 'error', _name(node),
                f'{node.op_type} takes uint8: TensorRT can only cast it; put Cast before it '
                '(export again: depth-node export writes Cast first; depth-node quantize '
                'mends it in the files that it writes)'))  # fmt: skip
    return findings


def _symmetric(model: onnx.ModelProto) -> list[Finding]:
    from onnx import TensorProto, numpy_helper

    constants = _constants(model)
    remedy = '; quantise for TensorRT: depth-node quantize --precisions int8_trt'
    findings: dict[str, tuple[list[str], str]] = {}

    def note(kind: str, node: onnx.NodeProto, text: str) -> None:
        findings.setdefault(kind, ([], text))[0].append(_name(node))

    for node in model.graph.node:
        if node.op_type not in ('QuantizeLinear', 'DequantizeLinear'):
            continue
        data = constants.get(node.input[0])
        if data is not None and data.data_type == TensorProto.INT32:
            note('bias', node, 'a bias is quantised to int32, which TensorRT does not read')
            continue
        scale = constants.get(node.input[1])
        if scale is not None and scale.data_type == TensorProto.FLOAT16:
            note('scale', node, 'its scale is fp16: graph optimisation of ONNX Runtime 1.31 '
                                'computes such graphs wrongly; use float32 scales')  # fmt: skip
        zero = constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if len(node.input) > 2 and node.input[2] and zero is None:
            note('computed', node, 'its zero point is computed at run time, TensorRT needs a '
                                   'constant 0')  # fmt: skip
        elif zero is None and node.op_type == 'QuantizeLinear':
            note('missing', node, 'it has no zero point, which means uint8; TensorRT takes int8 '
                                  'with zero point 0')  # fmt: skip
        elif zero is not None and zero.data_type == TensorProto.UINT8:
            note('uint8', node, 'it quantises to uint8, TensorRT takes int8 with zero point 0')
        elif zero is not None and numpy_helper.to_array(zero).astype(np.float32).any():
            note('zero', node, 'its zero point is not 0, TensorRT takes symmetric int8 only')
    return [
        Finding(
            'qdq', 'error', names[0] + (f' and {len(names) - 1} more' if len(names) > 1 else ''),
            text + remedy,
        )
        for names, text in findings.values()
    ]  # fmt: skip


def _types_agree(model: onnx.ModelProto, types: dict[str, int]) -> list[Finding]:
    from onnx import TensorProto

    findings = []
    for node in model.graph.node:
        if node.op_type not in _ONE_TYPE:
            continue
        kinds = {types[name] for name in node.input if name in types}
        if len(kinds) > 1:
            names = ' and '.join(sorted(TensorProto.DataType.Name(kind) for kind in kinds))
            findings.append(Finding(
                'types', 'error', _name(node),
                f'{node.op_type} takes {names}; put a Cast before one of them'))  # fmt: skip
    return findings


def _peak(model: onnx.ModelProto, peak: Peak) -> list[Finding]:
    from onnx import TensorProto

    if peak.value <= FP16_PEAK:
        return []
    half = any(item.data_type == TensorProto.FLOAT16 for item in model.graph.initializer)
    return [Finding(
        'peak', 'error' if half else 'warning', peak.node,
        f'{peak}; fp16 holds 65504, and half of that is kept in reserve; run this network in '
        'fp32 or bf16 (on TensorRT 8.5 and 8.6: keep that layer in fp32)')]  # fmt: skip


def peak_activation(path: Path, batches: Iterable[dict[str, NDArray[Any]]]) -> Peak:
    """Find the largest absolute value that any node computes on some batches.

    Every floating-point result gets a maximum and a minimum beside it, so that only numbers come
    back; the graph is run as it is written. Where some results are fp16 only those are looked at:
    what stays in fp32 cannot overflow fp16.

    Args:
        path: an ONNX file of opset 17 or less, or later.
        batches: feeds of the graph.

    Raises:
        ValueError: no batches.
    """
    import onnx
    from onnx import TensorProto, helper, shape_inference
    import onnxruntime

    model = shape_inference.infer_shapes(onnx.load(str(path)))
    types = _types(model)
    floating, limit = {TensorProto.FLOAT, TensorProto.FLOAT16}, np.inf
    results = {types.get(name) for node in model.graph.node for name in node.output}
    if TensorProto.FLOAT16 in results:
        floating, limit = {TensorProto.FLOAT16}, FP16_LARGEST
    watched = []
    for node in list(model.graph.node):
        for name in node.output:
            if not name or types.get(name) not in floating:
                continue
            for operator in ('ReduceMax', 'ReduceMin'):
                extreme = f'{name}::{operator}'
                single = f'{extreme}::fp32'
                model.graph.node.append(
                    helper.make_node(operator, [name], [extreme], keepdims=0, name=extreme)
                )
                model.graph.node.append(
                    helper.make_node('Cast', [extreme], [single], to=TensorProto.FLOAT)
                )
                model.graph.output.append(
                    helper.make_tensor_value_info(single, TensorProto.FLOAT, [])
                )
                watched.append((single, _name(node), node.op_type))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=['CPUExecutionProvider']
    )
    peak: Peak | None = None
    for batch in batches:
        values = session.run([name for name, _, _ in watched], batch)
        for (_, node_name, operator), value in zip(watched, values, strict=True):
            size = abs(float(value))
            # The first node that overflowed, not those after it. ONNX Runtime may keep a sum in
            # fp32 between two nodes of fp16: then it is no infinity yet.
            if not (np.isfinite(size) and size <= limit):
                return Peak(size, node_name, operator)
            if peak is None or size > peak.value:
                peak = Peak(size, node_name, operator)
    if peak is None:
        raise ValueError(f'{path}: no batch to run, or no floating-point node')
    return peak


def cast_first(model: onnx.ModelProto) -> bool:
    """Turn uint8 -> Transpose -> Cast into uint8 -> Cast -> Transpose; tells whether it did.

    The two commute exactly. Files that depth-node exported before it knew TensorRT need it.
    """
    from onnx import TensorProto

    graph = model.graph
    pictures = {i.name for i in graph.input if i.type.tensor_type.elem_type == TensorProto.UINT8}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    for transpose in graph.node:
        if transpose.op_type != 'Transpose' or transpose.input[0] not in pictures:
            continue
        after = users.get(transpose.output[0], [])
        if len(after) != 1 or after[0].op_type != 'Cast':
            continue
        cast = after[0]
        middle = transpose.output[0]
        stale = [info for info in graph.value_info if info.name == middle]
        for info in stale:
            graph.value_info.remove(info)
        # The nodes trade what they do and keep their places: the order stays topological.
        first, second = list(transpose.attribute), list(cast.attribute)
        transpose.op_type, cast.op_type = 'Cast', 'Transpose'
        transpose.name, cast.name = cast.name, transpose.name
        del transpose.attribute[:], cast.attribute[:]
        transpose.attribute.extend(second)
        cast.attribute.extend(first)
        return True
    return False


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Name the element type of every tensor that can be told."""
    from onnx import shape_inference

    try:
        graph = shape_inference.infer_shapes(model).graph
    except Exception:  # what cannot be inferred is found by the other rules
        graph = model.graph
    types = {item.name: item.data_type for item in graph.initializer}
    for info in (*graph.input, *graph.value_info, *graph.output):
        types.setdefault(info.name, info.type.tensor_type.elem_type)
    return {name: kind for name, kind in types.items() if kind}


def _constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    found = {item.name: item for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == 'Constant':
            for attribute in node.attribute:
                if attribute.name == 'value':
                    found[node.output[0]] = attribute.t
    return found


def _name(node: onnx.NodeProto) -> str:
    return str(node.name or (node.output[0] if node.output else node.op_type))
