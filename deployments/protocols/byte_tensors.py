"""BYTES tensors of the Open Inference Protocol: texts in JSON, or each as 4 bytes of length and UTF-8."""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.errors import InvalidInputError
from pipelines.schema import shown

_LENGTH = struct.Struct("<I")
_KEYS = ("name", "shape", "datatype", "parameters", "data")


@dataclass(frozen=True)
class ByteTensor:
    """A named column of texts."""

    name: str
    texts: list[str]

    @classmethod
    def read(cls, given: Any, where: str, binary: memoryview) -> tuple["ByteTensor", memoryview]:
        """A tensor from its JSON, and what it leaves of the `binary` data behind the JSON.

        Shapes are [n] and [n, 1]. Raises InvalidInputError that says `where`.
        """
        if not isinstance(given, Mapping):
            raise InvalidInputError(f"{where} is {shown(given)}; allowed: an object")
        for key in given:
            if key not in _KEYS:
                raise InvalidInputError(f"{where} has the key {shown(key)}; allowed: {', '.join(_KEYS)}")
        name, datatype = given.get("name"), given.get("datatype")
        if not isinstance(name, str):
            raise InvalidInputError(f"{where}.name is {shown(name)}; allowed: a string")
        if datatype != "BYTES":
            raise InvalidInputError(f"{where}.datatype is {shown(datatype)}; allowed: BYTES")
        count = _count(given.get("shape"), f"{where}.shape")
        parameters = given.get("parameters") or {}
        if not isinstance(parameters, Mapping):
            raise InvalidInputError(f"{where}.parameters is {shown(parameters)}; allowed: an object")
        size = parameters.get("binary_data_size")
        if size is None:
            texts = _flat(given.get("data"), f"{where}.data")
        elif "data" in given:
            raise InvalidInputError(f"{where} has data and binary_data_size; allowed: one of them")
        else:
            if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(binary):
                raise InvalidInputError(
                    f"{where}.parameters.binary_data_size is {shown(size)}; allowed: up to the {len(binary)} bytes "
                    "that follow"
                )
            texts = _unpacked(binary[:size], where)
            binary = binary[size:]
        if len(texts) != count:
            raise InvalidInputError(f"{where} has {len(texts)} elements; allowed: {count}, as its shape says")
        return cls(name, texts), binary


def packed(texts: Sequence[bytes]) -> bytes:
    """The binary form of a BYTES tensor."""
    return b"".join(_LENGTH.pack(len(text)) + text for text in texts)


def _unpacked(data: memoryview, where: str) -> list[str]:
    texts, position = [], 0
    while position < len(data):
        start = position + _LENGTH.size
        end = start + _LENGTH.unpack_from(data, position)[0] if start <= len(data) else math.inf
        if end > len(data):
            raise InvalidInputError(f"{where} ends inside an element; allowed: 4 bytes of length, then as many bytes")
        position = int(end)
        try:
            texts.append(bytes(data[start:position]).decode())
        except UnicodeDecodeError:
            raise InvalidInputError(f"{where}[{len(texts)}] is not UTF-8; allowed: texts in UTF-8") from None
    return texts


def _count(shape: Any, where: str) -> int:
    sizes = shape if isinstance(shape, list) else []
    fits = all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in sizes)
    if not fits or len(sizes) not in (1, 2) or sizes[1:] not in ([], [1]):
        raise InvalidInputError(f"{where} is {shown(shape)}; allowed: [n] or [n, 1]")
    return int(sizes[0])


def _flat(data: Any, where: str) -> list[str]:
    if not isinstance(data, list):
        raise InvalidInputError(f"{where} is {shown(data)}; allowed: a list of strings")
    flat = [one[0] if isinstance(one, list) and len(one) == 1 else one for one in data]
    for index, text in enumerate(flat):
        if not isinstance(text, str):
            raise InvalidInputError(f"{where}[{index}] is {shown(text)}; allowed: a string")
    return flat
