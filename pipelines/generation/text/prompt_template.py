"""PromptTemplate: an instruction around a text; only the template may contain special tokens."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipelines.errors import ArtifactError
from pipelines.runtime.tokenizer import Tokenizer

_FIELD = re.compile(r"\{(text|src_lang|tgt_lang)\}")
_SAMPLE = {"text": "A short text. 짧은 글.", "src_lang": "English", "tgt_lang": "French"}


@dataclass(frozen=True)
class _Segment:
    """Text of the template between special tokens, or one special token: then `special` is its id."""

    template: str
    special: int | None = None


class PromptTemplate:
    """Fills `{text}`, `{src_lang}` and `{tgt_lang}` and encodes the result.

    Special tokens of the template (`<|im_end|>`) are encoded as such. The same characters in a filled-in value are
    encoded as plain text: an input cannot end its message and begin another one. Raises ArtifactError for a template
    without `{text}`, and for a tokenizer that cannot do this.
    """

    def __init__(self, template: str, tokenizer: Tokenizer) -> None:
        self.fields = frozenset(_FIELD.findall(template))
        self._tokenizer = tokenizer
        self._segments = tuple(_segments(template, tokenizer))
        if "text" not in self.fields:
            raise ArtifactError("the prompt template has no {text}; export the model again")
        (joint,) = tokenizer.encode([_filled(template, _SAMPLE)], add_special_tokens=False)
        if self.encode(_SAMPLE) != joint.ids:
            raise ArtifactError("the tokenizer cannot keep special tokens out of texts: segments encode differently")
        for special in tokenizer.special_ids - {tokenizer.settings.unk_token_id}:
            if special in tokenizer.encode_literally(tokenizer.token(special)).ids:
                raise ArtifactError(f"the tokenizer cannot keep {tokenizer.token(special)!r} out of texts")

    def encode(self, values: Mapping[str, str], max_tokens: int | None = None) -> list[int]:
        """The prompt's ids; a text that makes it longer than `max_tokens` is cut at its end.

        An instruction that is longer by itself is not cut.
        """
        ids = self._encode(values)
        while max_tokens is not None and len(ids) > max_tokens and values["text"]:
            text = self._tokenizer.encode_literally(values["text"])
            kept = max(0, len(text.ids) - (len(ids) - max_tokens))
            end = text.offsets[kept][0] if kept < len(text.ids) else len(values["text"]) - 1
            values = {**values, "text": values["text"][: min(end, len(values["text"]) - 1)]}
            ids = self._encode(values)
        return ids

    def _encode(self, values: Mapping[str, str]) -> list[int]:
        ids: list[int] = []
        for segment in self._segments:
            if segment.special is not None:
                ids.append(segment.special)
            else:
                ids += self._tokenizer.encode_literally(_filled(segment.template, values)).ids
        return ids


def _segments(template: str, tokenizer: Tokenizer) -> Iterator[_Segment]:
    (encoding,) = tokenizer.encode([template], add_special_tokens=False)
    position = 0
    for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        if token_id in tokenizer.special_ids and template[start:end].strip() == tokenizer.token(token_id):
            if position < start:
                yield _Segment(template[position:start])
            yield _Segment(template[start:end], token_id)
            position = end
    if position < len(template):
        yield _Segment(template[position:])


def _filled(template: str, values: Mapping[str, str]) -> str:
    """The template with its fields filled in one pass: a field's name inside a value stays as it is."""
    return _FIELD.sub(lambda field: values[field[1]], template)
