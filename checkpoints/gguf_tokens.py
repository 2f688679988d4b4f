"""GgufTokens: the special tokens that a GGUF file names.

transformers takes the beginning of a text for its end, and adds a beginning whether the file wants it or not.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from checkpoints.gguf_file import GgufFile
from pipelines.errors import CheckpointError

_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def metadata(path: Path) -> dict[str, Any]:
    """The metadata of a GGUF file. Raises CheckpointError where it is not one, or ends too early."""
    try:
        return GgufFile(path).metadata
    except (struct.error, UnicodeDecodeError, KeyError, ValueError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{path} is not a whole GGUF file ({error})") from error


@dataclass(frozen=True)
class GgufTokens:
    """Ids and strings by role (`bos`, `eos`, `unk`, `pad`), and whether a text begins with `bos`."""

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
        sentencepiece = fields.get("tokenizer.ggml.model") == "llama"  # whose texts begin with bos unless it says not
        begins = bool(fields.get("tokenizer.ggml.add_bos_token", sentencepiece))
        return cls(ids, strings, begins, fields.get("tokenizer.chat_template"))

    def correct_tokenizer(self, tokenizer: Any) -> None:
        """Give a transformers tokenizer that was read from the file its special tokens."""
        for role, token in self.strings.items():
            setattr(tokenizer, f"{role}_token", token)
        tokenizer.chat_template = tokenizer.chat_template or self.chat_template
        if hasattr(tokenizer, "add_bos_token"):
            tokenizer.add_bos_token = self.begins
            tokenizer.update_post_processor()
        if hasattr(tokenizer, "vocab_file"):
            tokenizer.vocab_file = None  # the GGUF file, which `save_pretrained` would copy along as tokenizer.model

    def correct_model(self, model: Any) -> None:
        """Give a transformers model that was read from the file its special ids."""
        for role, token in self.ids.items():
            if role != "unk":
                setattr(model.config, f"{role}_token_id", token)
                setattr(model.generation_config, f"{role}_token_id", token)
