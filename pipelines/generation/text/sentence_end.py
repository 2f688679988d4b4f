"""SentenceEnd: a stop criterion that ends an answer after a whole sentence."""

import re
from collections.abc import Callable, Sequence

_TAIL_TOKENS = 32  # hold the last word before the end, in any script
_ENDED = re.compile(r"(\S+?)[.!?。！？…]+[\"'”’)\]]*$")
_ABBREVIATIONS = frozenset(
    (
        "al",
        "approx",
        "cf",
        "dr",
        "etc",
        "fig",
        "inc",
        "jr",
        "ltd",
        "mr",
        "mrs",
        "ms",
        "no",
        "nos",
        "prof",
        "sr",
        "st",
        "vs",
    )
)


class SentenceEnd:
    """True for the first token of a new sentence or line, once there are more than `least` tokens, prompt included.

    The tokens before it are whole sentences. Dots of numbers, initials and common English abbreviations end no
    sentence; a word in lower case begins none.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt_tokens: int, least: int) -> None:
        self._decode, self._prompt_tokens, self._least = decode, prompt_tokens, least

    def __call__(self, ids: Sequence[int]) -> bool:
        if len(ids) <= self._least:
            return False
        answer = ids[self._prompt_tokens :][-_TAIL_TOKENS:]
        before, after = self._decode(answer[:-1]), self._decode(answer)
        following = after[len(before) :]
        if not before.strip() or not after.startswith(before) or not following[:1].isspace():
            return False
        return "\n" in following or (not following.strip()[:1].islower() and _ends(before))


def _ends(text: str) -> bool:
    found = _ENDED.search(text)
    if found is None:
        return False
    word = found[1].lower().lstrip("\"'“‘([")
    is_initial = len(word) == 1 and word.isascii()
    return not (is_initial or word.isdecimal() or "." in word or word in _ABBREVIATIONS)
