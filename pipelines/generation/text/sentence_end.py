"""SentenceEnd: where a sentence has ended, seen from the token that comes after it."""

import re
from collections.abc import Callable, Sequence

_TAIL_TOKENS = 32  # enough for the last word before the end, in any script
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
    """True for the first token of another sentence, or of another line, after at least `least` tokens.

    A `StopCriterion` that is asked after every token: what was before its last token is whole sentences. Dots of
    numbers, initials and common English abbreviations end none, and what goes on in small letters is not another one.
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
