"""PromptBatch: the prompt tokens that one call of the model reads.

Several rows may read several tokens at once only where all of them begin, and a call covers neighbouring slots. Prompts
that come together get such slots. A prompt that is too long for a chunk, or whose beginning a slot holds already, is
read alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.generation.slots.decodings import Decoding
from pipelines.generation.slots.slot_table import SlotTable

_PADDED = 0.25  # padding that a batch may have, relative to its real tokens


@dataclass(frozen=True)
class PromptBatch:
    """The next `counts` tokens, (rows,) int64, of the prompts of `decodings`, whose slots are neighbours from `first`.

    `ids` (rows, tokens) int64 are padded at the end; `lengths` (rows,) are the tokens that the slots hold.
    """

    decodings: Sequence[Decoding]
    first: int
    counts: np.ndarray
    lengths: np.ndarray
    ids: np.ndarray

    @classmethod
    def next(
        cls, waiting: Sequence[Decoding], table: SlotTable, budget: int, chunk_tokens: int, run_tokens: int
    ) -> "PromptBatch":
        """That of the first decoding that waits, with as many others as pay off; `budget` bounds their tokens."""
        decoding, lengths = waiting[0], table.lengths
        begin = {
            one.slots[0]: one
            for one in waiting
            if not lengths[one.slots[0]] and len(one.prompt.request.prompt) <= budget
        }
        if decoding.slots[0] in begin:
            tokens = {slot: len(one.prompt.request.prompt) for slot, one in begin.items()}
            slots = batch_around(decoding.slots[0], tokens, budget, run_tokens)
            return cls._of([begin[slot] for slot in slots], [tokens[slot] for slot in slots], lengths)
        missing = len(decoding.prompt.request.prompt) - int(lengths[decoding.slots[0]])
        count = min(missing, chunk_tokens)
        if missing - count == 1 and count > 1:  # leave two tokens for the last chunk
            count -= 1
        return cls._of([decoding], [count], lengths)

    @classmethod
    def _of(cls, decodings: Sequence[Decoding], counts: Sequence[int], lengths: np.ndarray) -> "PromptBatch":
        first = decodings[0].slots[0]
        held = lengths[first : first + len(decodings)].copy()
        ids = np.zeros((len(decodings), max(counts)), np.int64)
        for row, (decoding, count) in enumerate(zip(decodings, counts, strict=True)):
            ids[row, :count] = decoding.prompt.request.prompt[held[row] : held[row] + count]
        return cls(decodings, first, np.asarray(counts, np.int64), held, ids)

    @property
    def shown(self) -> list[np.ndarray]:
        """The tokens of each row whose logits are needed: the last, or all where the prompt's logprobs are wanted.

        A second read of a prompt has its logprobs already.
        """
        prompts = [decoding.prompt for decoding in self.decodings]
        every = [one.request.prompt_logprobs and one.logits is None for one in prompts]
        return [np.arange(0 if all_ else n - 1, n) for all_, n in zip(every, self.counts.tolist(), strict=True)]


def batch_around(slot: int, tokens: Mapping[int, int], most: int, run_tokens: int) -> range:
    """The slots whose prompts are read together with that of `slot`.

    `tokens` are those of each prompt that begins, by its slot. A batch has at most `most` tokens with its padding, and
    at most as much padding as costs less than another call, which costs as much as `run_tokens` tokens.
    """
    first, end, longest, total = slot, slot + 1, tokens[slot], tokens[slot]
    tried = [end, first - 1]
    while tried:
        joining = tried.pop(0)
        if joining not in tokens:
            continue
        wider, more = max(longest, tokens[joining]), total + tokens[joining]
        padded = (end - first + 1) * wider
        if padded <= most and padded - more <= max(run_tokens, _PADDED * more):
            longest, total = wider, more
            first, end = min(first, joining), max(end, joining + 1)
            tried.append(end if joining == end - 1 else first - 1)
    return range(first, end)
