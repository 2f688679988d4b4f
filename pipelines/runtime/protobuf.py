"""Protocol Buffers on the wire, as ONNX files have them: serving has no `onnx`. Numbers of fields: onnx.proto3."""

import struct
from collections.abc import Iterator

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # wire types


def text(number: int, value: str) -> bytes:
    return message(number, value.encode())


def message(number: int, content: bytes) -> bytes:
    """A field of bytes: a text, or a message inside another."""
    return head(number, len(content)) + content


def head(number: int, length: int) -> bytes:
    """What stands before `length` bytes of a field."""
    return _varint(number << 3 | LENGTH) + _varint(length)


def integer(number: int, value: int) -> bytes:
    return _varint(number << 3 | VARINT) + _varint(value % 2**64)  # of a negative number, its two's complement


def float32(number: int, value: float) -> bytes:
    return _varint(number << 3 | FIXED32) + struct.pack("<f", value)


def fields(content: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """The fields of a message in their order: the number, the whole field, and its bytes (none of numbers).

    Raises ValueError for what is no message.
    """
    at, end = 0, len(content)
    while at < end:
        start = at
        key, at = _read_varint(content, at)
        kind, length = key & 7, 0
        if kind == VARINT:
            _, at = _read_varint(content, at)
        elif kind == LENGTH:
            length, at = _read_varint(content, at)
        elif kind in (FIXED32, FIXED64):
            at += 4 if kind == FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind}")
        if at + length > end:
            raise ValueError("a field ends behind its message")
        yield key >> 3, content[start : at + length], content[at : at + length]
        at += length


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth bit marks a following byte."""
    some = bytearray()
    while value > 0x7F:
        some.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*some, value])


def _read_varint(content: memoryview, at: int) -> tuple[int, int]:
    """The number, and where it ends."""
    value = shift = 0
    while at < len(content) and shift < 64:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
    raise ValueError("a number without an end")
