"""Small ONNX graphs, and parts of graphs, written by the process that runs them: serving has no `onnx`.

Small graphs move and reduce tensors in device memory, which ONNX Runtime alone can reach.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines.runtime.protobuf import float32, integer, message, text

_IR_VERSION, _OPSET = 8, 17
_ELEMENT_TYPES = {np.dtype(np.float32): 1, np.dtype(np.float16): 10, np.dtype(np.int64): 7, np.dtype(np.float64): 11}
_FLOAT, _INT, _INTS = 1, 2, 7  # AttributeProto.AttributeType


@dataclass(frozen=True)
class Node:
    """An operator, of the ONNX domain unless `domain` names another; `attributes` are floats, ints or lists of ints."""

    operator: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    attributes: Mapping[str, float | Sequence[int]] = field(default_factory=dict)
    domain: str = ""

    def proto(self) -> bytes:
        """NodeProto."""
        named = b"".join(text(1, name) for name in self.inputs) + b"".join(text(2, name) for name in self.outputs)
        attributes = b"".join(message(5, _attribute(name, value)) for name, value in self.attributes.items())
        return named + text(4, self.operator) + attributes + (text(7, self.domain) if self.domain else b"")


@dataclass(frozen=True)
class Port:
    """An input or an output: a tensor with `axes` dimensions of any size."""

    name: str
    dtype: "np.dtype[Any]"
    axes: int

    def proto(self) -> bytes:
        """ValueInfoProto."""
        shape = b"".join(message(1, text(2, f"{self.name}.{axis}")) for axis in range(self.axes))
        tensor = integer(1, _ELEMENT_TYPES[self.dtype]) + message(2, shape)
        return text(1, self.name) + message(2, message(1, tensor))


def small_graph(nodes: Sequence[Node], inputs: Sequence[Port], outputs: Sequence[Port]) -> bytes:
    """An ONNX model of these nodes, opset 17."""
    graph = b"".join(message(1, one.proto()) for one in nodes) + text(2, "small")
    for number, ports in ((11, inputs), (12, outputs)):
        graph += b"".join(message(number, port.proto()) for port in ports)
    return integer(1, _IR_VERSION) + message(7, graph) + message(8, integer(2, _OPSET))


def vector(name: str, values: Sequence[int]) -> bytes:
    """TensorProto of int64 (n,)."""
    content = np.asarray(values, "<i8")
    return (
        integer(1, len(content))
        + integer(2, _ELEMENT_TYPES[content.dtype])
        + text(8, name)
        + message(9, content.tobytes())
    )


def _attribute(name: str, value: float | Sequence[int]) -> bytes:
    if isinstance(value, float):
        return text(1, name) + float32(2, value) + integer(20, _FLOAT)
    if isinstance(value, int):
        return text(1, name) + integer(3, value) + integer(20, _INT)
    return text(1, name) + b"".join(integer(8, one) for one in value) + integer(20, _INTS)
