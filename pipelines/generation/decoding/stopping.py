"""Stop criteria and finish reasons of a sequence."""

from collections.abc import Callable, Sequence
from typing import Literal

FinishReason = Literal["eos_token", "stop_sequence", "length"]
StopCriterion = Callable[[Sequence[int]], bool]
"""Called after every token with all tokens so far, prompt included; true where the last one completes a stop."""

_BYTES_PER_CHARACTER = 4  # a character outside the vocabulary is encoded as byte tokens


class StopStrings:
    """True as soon as a stop string is complete, also where it ends inside a token.

    As transformers' StopStringCriteria: the string may begin in the prompt, the last token may continue after it, and
    special tokens count with their text. The answer keeps that last token, as in transformers and
    text-generation-inference. (The latter compares the very end of the answer only, and misses a string that ends
    inside a token.) Unlike transformers, this finds strings whose characters are several byte tokens.
    """

    def __init__(self, strings: Sequence[str], decode: Callable[[Sequence[int]], str]) -> None:
        self._strings = tuple(strings)
        self._decode = decode
        self._tail_tokens = _BYTES_PER_CHARACTER * (max(map(len, self._strings)) + 1)

    def __call__(self, ids: Sequence[int]) -> bool:
        tail = ids[-self._tail_tokens :]
        text = self._decode(tail)
        # Start at a character: from inside of one, LLaMA's byte tokens decode to U+FFFD up to the next other token.
        for more in range(1, _BYTES_PER_CHARACTER):
            if text.startswith("\ufffd") and len(ids) >= self._tail_tokens + more:
                tail = ids[-self._tail_tokens - more :]
                text = self._decode(tail)
        settled = self._settled_characters(tail[:-1])
        return any(text.find(string, max(0, settled + 1 - len(string))) >= 0 for string in self._strings)

    def _settled_characters(self, ids: Sequence[int]) -> int:
        """How many characters of the text of `ids` no later token can change.

        Half a character at the end decodes to U+FFFD until its last byte token. LLaMA's incomplete byte tokens also
        turn the whole characters before them into U+FFFD.
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
    """Why the sequence `ids`, prompt included, ends with its last token; None where it does not."""
    if ids[-1] in eos_token_id:
        return "eos_token"
    if stop is not None and stop(ids):
        return "stop_sequence"
    return "length" if len(ids) >= max_length else None
