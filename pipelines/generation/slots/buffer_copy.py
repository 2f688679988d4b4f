"""BufferCopy: copies KV cache slots in device memory, which ONNX Runtime alone can reach, with an ONNX graph."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnxruntime

from pipelines.runtime.session import InferenceSession, SessionConfig

_IR_VERSION, _OPSET = 8, 17
_ELEMENT_TYPES = {np.dtype(np.float32): 1, np.dtype(np.float16): 10}
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_Parts = dict[str, int]
"""Where a slot's part of each buffer begins, by the buffer's name."""


class BufferCopy:
    """`buffers`, by name, have slots as their first dimension. It copies whole slots, which costs little on a GPU."""

    def __init__(self, buffers: Mapping[str, "onnxruntime.OrtValue"], config: SessionConfig) -> None:
        self._buffers = buffers
        self._dtypes = {name: np.dtype(_DTYPES[buffer.data_type()]) for name, buffer in buffers.items()}
        graph = identity_graph(tuple(buffers), tuple(self._dtypes.values()))
        self._session = InferenceSession(graph, config)

    def __call__(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """As SlotModel.copy: a source that is also a target is first copied to memory of its own."""
        kept = {slot: self._spare() for slot in set(sources) & set(targets)}
        spared = {slot: {name: value.data_ptr() for name, value in spare.items()} for slot, spare in kept.items()}
        for slot, spare in spared.items():
            self._copy(self._parts(slot), spare)
        for source, target in zip(sources, targets, strict=True):
            self._copy(spared.get(source) or self._parts(source), self._parts(target))

    def save(self, slot: int) -> "dict[str, onnxruntime.OrtValue]":
        """A slot's part of every buffer, in memory of its own on the device."""
        saved = self._spare()
        self._copy(self._parts(slot), {name: value.data_ptr() for name, value in saved.items()})
        return saved

    def restore(self, slot: int, saved: "dict[str, onnxruntime.OrtValue]") -> None:
        """Put what `save` returned into a slot."""
        self._copy({name: value.data_ptr() for name, value in saved.items()}, self._parts(slot))

    def _parts(self, slot: int) -> _Parts:
        return {
            name: buffer.data_ptr() + slot * self._size(name) * self._dtypes[name].itemsize
            for name, buffer in self._buffers.items()
        }

    def _size(self, name: str) -> int:
        """How many elements a slot has in a buffer."""
        return int(np.prod(self._buffers[name].shape()[1:]))

    def _spare(self) -> "dict[str, onnxruntime.OrtValue]":
        """New device memory for the content of one slot."""
        import onnxruntime

        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        return {name: make([self._size(name)], self._dtypes[name], self._session.memory, 0) for name in self._buffers}

    def _copy(self, source: _Parts, target: _Parts) -> None:
        binding, memory = self._session.binding(), self._session.memory
        for name, dtype in self._dtypes.items():
            shape = (self._size(name),)
            binding.bind_input(name, memory, 0, dtype, shape, source[name])
            binding.bind_output(f"{name}.copy", memory, 0, dtype, shape, target[name])
        self._session.run_bound(binding)


def identity_graph(names: Sequence[str], dtypes: Sequence["np.dtype[np.generic]"]) -> bytes:
    """An ONNX model whose output `NAME.copy` is its input NAME, for each of `names`: vectors of float32 or float16.

    It is encoded here because serving has no `onnx`; field numbers are those of onnx.proto3.
    """
    copies = [f"{name}.copy" for name in names]
    types = [_ELEMENT_TYPES[dtype] for dtype in dtypes]
    nodes = [_text(1, name) + _text(2, copy) + _text(4, "Identity") for name, copy in zip(names, copies, strict=True)]
    graph = b"".join(_field(1, node) for node in nodes) + _text(2, "copy")
    for number, port in ((11, names), (12, copies)):
        graph += b"".join(_field(number, _vector(name, kind)) for name, kind in zip(port, types, strict=True))
    return _number(1, _IR_VERSION) + _field(7, graph) + _field(8, _number(2, _OPSET))


def _vector(name: str, element_type: int) -> bytes:
    """ValueInfoProto of a tensor with one dimension of any size."""
    shape = _field(1, _text(2, "n"))
    return _text(1, name) + _field(2, _field(1, _number(1, element_type) + _field(2, shape)))


def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode())


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    """Protocol Buffers' varint: seven bits a byte, the lowest first; the eighth bit marks a following byte."""
    some = bytearray()
    while value > 0x7F:
        some.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*some, value])
