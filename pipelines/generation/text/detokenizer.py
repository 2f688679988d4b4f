"""Detokenizer: token ids to text as they come, in whole characters."""

import re
from collections.abc import Callable, Sequence

# Where transformers' `clean_up_tokenization` could still join what follows: every pattern it replaces begins with a
# space and has only these characters before its last one.
_MAY_JOIN = re.compile(r" [ 'nvr]*\Z")


class Detokenizer:
    """The pieces of text that tokens add to a prompt; together what decoding the whole sequence at once adds.

    (But for LLaMA's byte tokens that are no UTF-8: they change how the complete characters before them decode, which
    were shown already.)

    A token whose text ends inside a character (half an emoji, a Korean syllable in byte tokens), or with a space that
    `clean_up` may remove, adds "" and the next ones add the rest. Special tokens add nothing. `decode` turns ids into
    text without special tokens; `clean_up`, where given, is applied to the text as a whole.
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
        # Only the tokens from `_anchor` on are decoded again: they give the ones from `_read` on the context that
        # decides about a leading space.
        self._anchor, self._read = 0, len(self._ids)
        known = decode(self._ids)
        self._anchor_text = known
        self._held = known if clean_up is not None else ""
        self._skip = len(clean_up(known)) if clean_up is not None else 0

    def push(self, token_id: int) -> str:
        """The text that `token_id` settles."""
        self._ids.append(token_id)
        text = self._decode(self._ids[self._anchor :])
        if text.endswith("\ufffd"):
            return ""
        return self._settled(self._advance(text))

    def peek(self, token_id: int) -> str:
        """The text of `token_id` if it were the next one, half characters as they decode."""
        return self._decode([*self._ids[self._anchor :], token_id])[len(self._anchor_text) :]

    def finish(self) -> str:
        """The text that was held back until it was clear that nothing follows."""
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
        """`text` without what belongs to the prompt."""
        shown = text[self._skip :]
        self._skip = max(0, self._skip - len(text))
        return shown
