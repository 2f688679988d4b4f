"""GgufFile: the metadata and tensors of a GGUF file (version 3, little-endian), read in one pass.

The reader of the `gguf` package makes a memory map of every string, which takes 10 s for a vocabulary of 50,000 tokens,
and transformers opens the file four times. Dequantization is the package's own.
"""

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize
from numpy.typing import NDArray

from pipelines.errors import CheckpointError

STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class GgufFile:
    """`metadata` by key; `tensors` by name, each in row-major shape, dequantized to float32 by `tensor`."""

    def __init__(self, path: Path) -> None:
        self._data = path.read_bytes()
        magic, version, tensors, keys = struct.unpack_from("<4sIQQ", self._data)
        if magic != b"GGUF" or version != 3:
            raise CheckpointError(f"{path} is not a GGUF file of version 3")
        self._cursor = 24
        self.metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self._string()
            self.metadata[key] = self._value(self._scalar("I"))
        self.tensors = {self._string(): self._entry() for _ in range(tensors)}
        alignment: int = self.metadata.get("general.alignment", 32)
        self._start = math.ceil(self._cursor / alignment) * alignment

    def tensor(self, name: str) -> NDArray[np.float32]:
        shape, kind, offset = self.tensors[name]
        per_block, block_bytes = GGML_QUANT_SIZES[kind]
        size = math.prod(shape) // per_block * block_bytes
        raw = np.frombuffer(self._data, np.uint8, size, self._start + offset)
        if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            raw = raw.view(np.float32 if kind == GGMLQuantizationType.F32 else np.float16)
            return raw.reshape(shape).astype(np.float32)
        values: NDArray[np.float32] = dequantize(raw.reshape(shape[0], -1), kind)
        return values.reshape(shape)

    def _entry(self) -> tuple[tuple[int, ...], GGMLQuantizationType, int]:
        dimensions = self._scalar("I")
        shape = tuple(reversed([self._scalar("Q") for _ in range(dimensions)]))  # the file has the fastest one first
        return shape, GGMLQuantizationType(self._scalar("I")), self._scalar("Q")

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            of, length = self._scalar("I"), self._scalar("Q")
            return [self._value(of) for _ in range(length)]
        return self._scalar(SCALARS[kind])

    def _scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self._data, self._cursor)
        self._cursor += struct.calcsize(f"<{code}")
        return value

    def _string(self) -> str:
        length = self._scalar("Q")
        text = self._data[self._cursor : self._cursor + length].decode()
        self._cursor += length
        return text
