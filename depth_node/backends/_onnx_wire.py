"""Reads and mends ONNX files as bytes: a robot that builds engines has no `onnx` package.

Only what the TensorRT builder needs of the protobuf encoding (protobuf.dev, 'Encoding') and of
the field numbers in onnx.proto3. Weights are passed over, not decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MODEL_GRAPH: Final = 7
_GRAPH_NODE, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_VALUE_INFO = 1, 11, 12, 13
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OP = 1, 2, 3, 4
_UINT8: Final = 2  # TensorProto.DataType


class NotOnnxError(ValueError):
    """The bytes are not an ONNX model."""


class Node(NamedTuple):
    """A node of the graph."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class _Field(NamedTuple):
    """A field: its number and kind, where it starts with its tag, and what is in it."""

    number: int
    kind: int
    start: int
    body: memoryview
    end: int


def nodes(model: bytes) -> list[Node]:
    """List the graph's nodes in the order of the file, which is how TensorRT counts them.

    Raises:
        NotOnnxError: the bytes are not an ONNX model with a graph.
    """
    return [_node(field.body) for field in _fields(_graph(model).body)
            if field.number == _GRAPH_NODE]


def cast_before_transpose(model: bytes) -> bytes:
    """Turn `uint8 input -> Transpose -> Cast` into `uint8 input -> Cast -> Transpose`.

    Both give the same numbers, but TensorRT takes uint8 in Cast alone. Exporters write the first.

    Args:
        model: an ONNX file.

    Returns:
        The changed model; the same object where there is nothing to change.

    Raises:
        NotOnnxError: the bytes are not an ONNX model with a graph.
    """
    graph = _graph(model)
    fields = list(_fields(graph.body))
    pictures = {_text(field.body, 1) for field in fields
                if field.number == _GRAPH_INPUT and _element_type(field.body) == _UINT8}
    results = {_text(field.body, 1) for field in fields if field.number == _GRAPH_OUTPUT}
    where = {index: _node(field.body) for index, field in enumerate(fields)
             if field.number == _GRAPH_NODE}
    users: dict[str, list[int]] = {}
    for index, node in where.items():
        for name in node.inputs:
            users.setdefault(name, []).append(index)
    changed: dict[int, bytes] = {}
    stale: set[str] = set()  # what value_info says of them is no longer so
    for index, node in where.items():
        if node.op != 'Transpose' or len(node.inputs) != 1 or len(node.outputs) != 1:
            continue
        between = node.outputs[0]
        behind = users.get(between, [])
        if node.inputs[0] not in pictures or between in results or len(behind) != 1:
            continue
        cast = behind[0]
        if where[cast].op != 'Cast' or len(where[cast].outputs) != 1:
            continue
        changed[index] = _rewired(fields[cast].body, node.inputs[0], between)
        changed[cast] = _rewired(fields[index].body, between, where[cast].outputs[0])
        stale.add(between)
    if not changed:
        return model
    parts = []
    for index, field in enumerate(fields):
        if index in changed:
            parts.append(_message(_GRAPH_NODE, changed[index]))
        elif field.number != _GRAPH_VALUE_INFO or _text(field.body, 1) not in stale:
            parts.append(bytes(graph.body[field.start:field.end]))
    return (model[:graph.start] + _message(_MODEL_GRAPH, b''.join(parts)) + model[graph.end:])


def _graph(model: bytes) -> _Field:
    graphs = [field for field in _fields(memoryview(model))
              if field.number == _MODEL_GRAPH and field.kind == _BYTES]
    if len(graphs) != 1:
        raise NotOnnxError('it has no graph')
    return graphs[0]


def _node(body: memoryview) -> Node:
    inputs, outputs, op, name = [], [], '', ''
    for field in _fields(body):
        if field.number == _NODE_INPUT:
            inputs.append(_decoded(field.body))
        elif field.number == _NODE_OUTPUT:
            outputs.append(_decoded(field.body))
        elif field.number == _NODE_NAME:
            name = _decoded(field.body)
        elif field.number == _NODE_OP:
            op = _decoded(field.body)
    return Node(op, name, tuple(inputs), tuple(outputs))


def _rewired(body: memoryview, source: str, target: str) -> bytes:
    """Copy a node, with another input and another output."""
    kept = b''.join(bytes(body[field.start:field.end]) for field in _fields(body)
                    if field.number not in (_NODE_INPUT, _NODE_OUTPUT))
    return (_message(_NODE_INPUT, source.encode()) + _message(_NODE_OUTPUT, target.encode())
            + kept)


def _element_type(value_info: memoryview) -> int:
    """Return the type of a tensor's elements as a TensorProto.DataType; 0 for what is none."""
    for number in (2, 1):  # ValueInfoProto.type, TypeProto.tensor_type
        inner = [field.body for field in _fields(value_info) if field.number == number]
        if not inner:
            return 0
        value_info = inner[0]
    for field in _fields(value_info):
        if field.number == 1 and field.kind == _VARINT:  # TypeProto.Tensor.elem_type
            return _varint(field.body, 0)[0]
    return 0


def _text(body: memoryview, number: int) -> str:
    return next((_decoded(field.body) for field in _fields(body) if field.number == number), '')


def _decoded(body: memoryview) -> str:
    return bytes(body).decode('utf-8', 'replace')


def _fields(data: memoryview) -> Iterator[_Field]:
    position = 0
    while position < len(data):
        start = position
        tag, position = _varint(data, position)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            end = _varint(data, position)[1]
        elif kind == _FIXED64:
            end = position + 8
        elif kind == _FIXED32:
            end = position + 4
        elif kind == _BYTES:
            length, position = _varint(data, position)
            end = position + length
        else:
            raise NotOnnxError(f'no protobuf at byte {start}')
        if number == 0 or end > len(data):
            raise NotOnnxError(f'it is cut off or no protobuf at byte {start}')
        yield _Field(number, kind, start, data[position:end], end)
        position = end


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data) and shift < 64:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise NotOnnxError('it is cut off or no protobuf')


def _message(number: int, body: bytes) -> bytes:
    head = bytearray()
    for value in (number << 3 | _BYTES, len(body)):
        while value > 0x7F:
            head.append(value & 0x7F | 0x80)
            value >>= 7
        head.append(value)
    return bytes(head) + body
