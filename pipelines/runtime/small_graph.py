"""Small ONNX graphs, written by the process that runs them: serving has no `onnx`.

They move and reduce tensors in device memory, which ONNX Runtime alone can reach.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_IR_VERSION, _OPSET = 8, 17
_ELEMENT_TYPES = {np.dtype(np.float32): 1, np.dtype(np.float16): 10, np.dtype(np.int64): 7, np.dtype(np.float64): 11}
_INT, _INTS = 2, 7  # AttributeProto.AttributeType


@dataclass(frozen=True)
class Node:
    """An operator of the ONNX domain, opset 17; `attributes` are ints or lists of ints."""

    operator: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    attributes: Mapping[str, int | Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Port:
    """An input or an output: a tensor with `axes` dimensions of any size."""

    name: str
    dtype: "np.dtype[Any]"
    axes: int


def small_graph(nodes: Sequence[Node], inputs: Sequence[Port], outputs: Sequence[Port]) -> bytes:
    """An ONNX model of these nodes. Field numbers are those of onnx.proto3."""
    graph = b"".join(_field(1, _node(one)) for one in nodes) + _text(2, "small")
    for number, ports in ((11, inputs), (12, outputs)):
        graph += b"".join(_field(number, _port(one)) for one in ports)
    return _number(1, _IR_VERSION) + _field(7, graph) + _field(8, _number(2, _OPSET))


def _node(node: Node) -> bytes:
    named = b"".join(_text(1, name) for name in node.inputs) + b"".join(_text(2, name) for name in node.outputs)
    attributes = b"".join(_field(5, _attribute(name, value)) for name, value in node.attributes.items())
    return named + _text(4, node.operator) + attributes


def _attribute(name: str, value: int | Sequence[int]) -> bytes:
    if isinstance(value, int):
        return _text(1, name) + _number(3, value) + _number(20, _INT)
    return _text(1, name) + b"".join(_number(8, one) for one in value) + _number(20, _INTS)


def _port(port: Port) -> bytes:
    """ValueInfoProto."""
    shape = b"".join(_field(1, _text(2, f"{port.name}.{axis}")) for axis in range(port.axes))
    return _text(1, port.name) + _field(2, _field(1, _number(1, _ELEMENT_TYPES[port.dtype]) + _field(2, shape)))


def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode())


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value % 2**64)  # of a negative number, its two's complement


def _varint(value: int) -> bytes:
    """Protocol Buffers' varint: seven bits a byte, the lowest first; the eighth bit marks a following byte."""
    some = bytearray()
    while value > 0x7F:
        some.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*some, value])
