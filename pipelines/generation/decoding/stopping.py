"""Stopping: why and when a sequence ends."""

from collections.abc import Callable, Sequence
from typing import Literal

FinishReason = Literal["eos_token", "stop_sequence", "length"]
StopCriterion = Callable[[Sequence[int]], bool]
"""Asked after every token, with all tokens so far, prompt included: true where the last one completes a stop."""

_BYTES_PER_CHARACTER = 4  # a character that the vocabulary lacks is spelled in bytes, one token each


class StopStrings:
    """True as soon as a stop string is complete, wherever the boundaries of tokens fall in it.

    As transformers' StopStringCriteria: the string may begin in the prompt, the last token may go on after it, and
    special tokens count with their text. The text up to and with that last token is the answer; both transformers and
    text-generation-inference keep the stop string in it. (The latter only looks at the very end of the answer, and
    misses a string that ends inside a token.) Unlike transformers, strings of characters that are spelled in several
    byte tokens are found too.
    """

    def __init__(self, strings: Sequence[str], decode: Callable[[Sequence[int]], str]) -> None:
        self._strings = tuple(strings)
        self._decode = decode
        self._tail_tokens = _BYTES_PER_CHARACTER * (max(map(len, self._strings)) + 1)

    def __call__(self, ids: Sequence[int]) -> bool:
        tail = ids[-self._tail_tokens :]
        text = self._decode(tail)
        # Not from inside a character on: LLaMA's byte tokens decode to U+FFFD then, all up to the next other token.
        for more in range(1, _BYTES_PER_CHARACTER):
            if text.startswith("\ufffd") and len(ids) >= self._tail_tokens + more:
                tail = ids[-self._tail_tokens - more :]
                text = self._decode(tail)
        settled = self._settled_characters(tail[:-1])
        return any(text.find(string, max(0, settled + 1 - len(string))) >= 0 for string in self._strings)

    def _settled_characters(self, ids: Sequence[int]) -> int:
        """How many characters of the text of `ids` stay as they are, whatever token comes next.

        Half a character at the end decodes to U+FFFD and may become another one. LLaMA's byte tokens even make the
        whole characters that they follow decode to that, until they are complete.
        """
        settled = 0
        for end in range(len(ids), max(0, len(ids) - _BYTES_PER_CHARACTER), -1):
            text = self._decode(ids[:end])
            settled = max(settled, len(text.rstrip("\ufffd")))
            if not text.endswith("\ufffd"):
                break
        return settled


def finish_reason(
    ids: Sequence[int], *, eos_token_id: Sequence[int], max_length: int, stop: StopCriterion | None
) -> FinishReason | None:
    """Why the sequence `ids`, prompt included, ends with its last token; None where it goes on."""
    if ids[-1] in eos_token_id:
        return "eos_token"
    if stop is not None and stop(ids):
        return "stop_sequence"
    return "length" if len(ids) >= max_length else None
