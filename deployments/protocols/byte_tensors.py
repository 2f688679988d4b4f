"""BYTES tensors of the Open Inference Protocol: texts in JSON, or each as 4 bytes of length and UTF-8."""

import math
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from deployments.config import MAX_INPUTS
from pipelines.errors import InvalidInputError, Path
from pipelines.misfit import require, shown
from pipelines.schema import Body

MAX_NAME_CHARACTERS = 256
_LENGTH = struct.Struct("<I")

Name = Annotated[str, Meta(max_length=MAX_NAME_CHARACTERS)]
Size = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Column = Annotated[list[str | Annotated[list[str], Meta(min_length=1, max_length=1)]], Meta(max_length=MAX_INPUTS)]


class TensorParameters(msgspec.Struct, frozen=True):
    """`binary_data_size`: so many bytes behind the JSON are this tensor. Others are MLServer's, and say nothing new."""

    binary_data_size: Size | None = None


class ByteTensor(Body, frozen=True):
    """A named column of texts, as `data` or behind the JSON. Shapes are [n] and [n, 1]."""

    name: Name
    shape: Annotated[list[Size], Meta(min_length=1, max_length=2)]
    datatype: Literal["BYTES"]
    parameters: TensorParameters | None = None
    data: Column | None = None

    def __post_init__(self) -> None:
        require(self.shape[1:] in ([], [1]), ("shape",), self.shape, "[n] or [n, 1]")
        require(self.shape[0] <= MAX_INPUTS, ("shape", 0), self.shape[0], f"at most {MAX_INPUTS}")
        if self.data is not None and self._size is not None:
            raise InvalidInputError("has data and binary_data_size; allowed: one of them", ())
        if self.data is None and self._size is None:
            raise InvalidInputError("has neither data nor binary_data_size; allowed: one of them", ())

    def read(self, binary: memoryview, path: Path) -> tuple[list[str], memoryview]:
        """The texts, and what this tensor leaves of the `binary` data behind the JSON; `path` is for the errors."""
        if self._size is None:
            texts = [one if isinstance(one, str) else one[0] for one in self.data or ()]
        else:
            allowed = f"up to the {len(binary)} bytes that follow"
            require(self._size <= len(binary), (*path, "parameters", "binary_data_size"), self._size, allowed)
            texts, binary = _unpacked(binary[: self._size], self.shape[0], path), binary[self._size :]
        if len(texts) != self.shape[0]:
            found = f"{len(texts)} elements" + (" or more" if self._size and len(texts) > self.shape[0] else "")
            raise InvalidInputError(f"has {found}; allowed: {self.shape[0]}, as its shape says", path)
        return texts, binary

    @property
    def _size(self) -> int | None:
        return None if self.parameters is None else self.parameters.binary_data_size


def packed(texts: Sequence[bytes]) -> bytes:
    """The binary form of a BYTES tensor."""
    return b"".join(_LENGTH.pack(len(text)) + text for text in texts)


def split(body: bytes, header: str | None, name: str) -> tuple[bytes, memoryview]:
    """The JSON of a body, and the binary data behind it; the `header` called `name` says how long the JSON is."""
    if header is None:
        return body, memoryview(b"")
    if not (header.isascii() and header.isdigit() and int(header[:12]) <= len(body)):
        raise InvalidInputError(f"{name} is {shown(header)}; allowed: up to the {len(body)} bytes of the body")
    return body[: int(header)], memoryview(body)[int(header) :]


def _unpacked(data: memoryview, count: int, path: Path) -> list[str]:
    """The texts; no more than one above `count`, which is one too many."""
    texts: list[str] = []
    position = 0
    while position < len(data) and len(texts) <= count:
        start = position + _LENGTH.size
        end: Any = start + _LENGTH.unpack_from(data, position)[0] if start <= len(data) else math.inf
        if end > len(data):
            raise InvalidInputError("ends inside an element; allowed: 4 bytes of length, then as many bytes", path)
        position = int(end)
        try:
            texts.append(bytes(data[start:position]).decode())
        except UnicodeDecodeError:
            raise InvalidInputError("is not UTF-8; allowed: texts in UTF-8", (*path, len(texts))) from None
    return texts
