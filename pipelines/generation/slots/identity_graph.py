"""IdentityGraph: an ONNX graph that copies, for memory of a device that only ONNX Runtime reaches.

It is written here, byte by byte, because serving has no `onnx`; field numbers are those of onnx.proto3.
"""

from collections.abc import Sequence

import numpy as np

_IR_VERSION, _OPSET = 8, 17
_ELEMENT_TYPES = {np.dtype(np.float32): 1, np.dtype(np.float16): 10}


def identity_graph(names: Sequence[str], dtypes: Sequence["np.dtype[np.generic]"]) -> bytes:
    """A model whose output `NAME.copy` is its input NAME, for each of `names`: vectors of float32 or float16."""
    copies = [f"{name}.copy" for name in names]
    types = [_ELEMENT_TYPES[dtype] for dtype in dtypes]
    nodes = [_text(1, name) + _text(2, copy) + _text(4, "Identity") for name, copy in zip(names, copies, strict=True)]
    graph = b"".join(_field(1, node) for node in nodes) + _text(2, "copy")
    for number, port in ((11, names), (12, copies)):
        graph += b"".join(_field(number, _vector(name, kind)) for name, kind in zip(port, types, strict=True))
    return _number(1, _IR_VERSION) + _field(7, graph) + _field(8, _number(2, _OPSET))


def _vector(name: str, element_type: int) -> bytes:
    """ValueInfoProto of a tensor with one dimension, whose size only its memory tells."""
    shape = _field(1, _text(2, "n"))
    return _text(1, name) + _field(2, _field(1, _number(1, element_type) + _field(2, shape)))


def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode())


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    some = bytearray()
    while value > 0x7F:
        some.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*some, value])
