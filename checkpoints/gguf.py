"""GGUF files (version 3, little-endian): their metadata, tensors and special tokens.

GgufFile reads a file in one pass. The reader of the `gguf` package makes a memory map for every string, which takes
10 s for a vocabulary of 50,000 tokens, and transformers opens the file four times. The package dequantizes.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from gguf import GGMLQuantizationType
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize
from numpy.typing import NDArray

from pipelines.errors import CheckpointError

STRING, ARRAY = 8, 9
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
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
        shape = tuple(reversed([self._scalar("Q") for _ in range(dimensions)]))  # the file lists the fastest axis first
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


def metadata(path: Path) -> dict[str, Any]:
    """The metadata of a GGUF file. Raises CheckpointError where it is not one, or ends too early."""
    try:
        return GgufFile(path).metadata
    except (struct.error, UnicodeDecodeError, KeyError, ValueError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{path} is not a whole GGUF file ({error})") from error


@dataclass(frozen=True)
class GgufTokens:
    """The special tokens that a GGUF file names: ids and strings by role (`bos`, `eos`, `unk`, `pad`).

    `begins`: a text begins with `bos`. transformers reads these tokens wrong: it takes `bos` for `eos`, and adds `bos`
    whether the file wants it or not.
    """

    ids: dict[str, int]
    strings: dict[str, str]
    begins: bool
    chat_template: str | None

    @classmethod
    def read(cls, path: Path) -> Self:
        fields = metadata(path)
        named = {role: fields.get(f"tokenizer.ggml.{name}_token_id") for role, name in _ROLES.items()}
        ids = {role: int(token) for role, token in named.items() if token is not None}
        strings = {role: str(fields["tokenizer.ggml.tokens"][token]) for role, token in ids.items()}
        sentencepiece = fields.get("tokenizer.ggml.model") == "llama"  # begins texts with bos by default
        begins = bool(fields.get("tokenizer.ggml.add_bos_token", sentencepiece))
        return cls(ids, strings, begins, fields.get("tokenizer.chat_template"))

    def correct_tokenizer(self, tokenizer: Any) -> None:
        """Set the special tokens of a transformers tokenizer that was read from the file."""
        for role, token in self.strings.items():
            setattr(tokenizer, f"{role}_token", token)
        tokenizer.chat_template = tokenizer.chat_template or self.chat_template
        if hasattr(tokenizer, "add_bos_token"):
            tokenizer.add_bos_token = self.begins
            tokenizer.update_post_processor()
        if hasattr(tokenizer, "vocab_file"):
            tokenizer.vocab_file = None  # `save_pretrained` would copy the GGUF file as tokenizer.model

    def correct_model(self, model: Any) -> None:
        """Set the special token ids of a transformers model that was read from the file."""
        for role, token in self.ids.items():
            if role != "unk":
                setattr(model.config, f"{role}_token_id", token)
                setattr(model.generation_config, f"{role}_token_id", token)
