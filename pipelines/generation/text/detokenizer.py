"""Detokenizer: streamed token ids to text, in whole characters; StopFilter: that text up to its stop string."""

import re
from collections.abc import Callable, Sequence

# Text that transformers' `clean_up_tokenization` may still join with later text: every pattern that it replaces begins
# with a space and has only these characters before its last one.
_MAY_JOIN = re.compile(r" [ 'nvr]*\Z")


class Detokenizer:
    """The text that each token adds to a prompt; joined, what decoding the whole sequence at once adds.

    (Except LLaMA's byte tokens that are no UTF-8: they change how complete characters before them decode, whose text
    was returned already.)

    A token whose text ends inside a character (half an emoji, a Korean syllable in byte tokens), or with a space that
    `clean_up` may remove, adds ""; the next tokens add the rest. Special tokens add nothing. `decode` turns ids into
    text without special tokens; `clean_up`, if given, applies to the text as a whole.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        decode: Callable[[Sequence[int]], str],
        clean_up: Callable[[str], str] | None = None,
    ) -> None:
        self._decode = decode
        self._clean_up = clean_up
        self._ids = list(prompt)
        # Each push decodes the tokens from `_anchor` on: those before `_read` are the context that decides about a
        # leading space.
        self._anchor, self._read = 0, len(self._ids)
        known = decode(self._ids)
        self._anchor_text = known
        self._held = known if clean_up is not None else ""
        self._skip = len(clean_up(known)) if clean_up is not None else 0

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes; "" while a character is incomplete."""
        self._ids.append(token_id)
        text = self._decode(self._ids[self._anchor :])
        if text.endswith("\ufffd"):
            return ""
        return self._settled(self._advance(text))

    def peek(self, token_id: int) -> str:
        """The text of `token_id` as the next token, incomplete characters as U+FFFD."""
        return self._decode([*self._ids[self._anchor :], token_id])[len(self._anchor_text) :]

    def finish(self) -> str:
        """The text that was held back, now that no token follows."""
        added = self._advance(self._decode(self._ids[self._anchor :]))
        if self._clean_up is None:
            return added
        rest, self._held = self._held + added, ""
        return self._unskipped(self._clean_up(rest))

    def _advance(self, text: str) -> str:
        added = text[len(self._anchor_text) :]
        if added:
            self._anchor, self._read = self._read, len(self._ids)
            self._anchor_text = self._decode(self._ids[self._anchor :])
        return added

    def _settled(self, added: str) -> str:
        if self._clean_up is None:
            return added
        text = self._held + added
        may_join = _MAY_JOIN.search(text)
        end = may_join.start() if may_join else len(text)
        self._held = text[end:]
        return self._unskipped(self._clean_up(text[:end]))

    def _unskipped(self, text: str) -> str:
        """`text` without the part that belongs to the prompt."""
        shown = text[self._skip :]
        self._skip = max(0, self._skip - len(text))
        return shown


class StopFilter:
    """Streamed text up to its first stop string: text that may begin a stop string is held back until it does not."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """The text to send after `piece`; "" once `stopped`."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = [position for stop in self._stops if (position := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        kept = self._begun(text)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self) -> str:
        """The text that was held back, now that no text follows."""
        held, self._held = self._held, ""
        return held

    def _begun(self, text: str) -> int:
        """The length of the longest end of `text` that begins a stop string, in characters."""
        longest = min(len(text), self._longest - 1)
        return next((n for n in range(longest, 0, -1) if any(one.startswith(text[-n:]) for one in self._stops)), 0)
