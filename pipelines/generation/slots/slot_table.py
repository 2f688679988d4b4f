"""SlotTable: which slots are taken, and which tokens every slot holds, taken or not.

A slot that was given back keeps what it holds until somebody else takes it. So a prompt that begins like one that was
there before, or like one that is being answered, need not be read from its beginning.

But only what was read as a prompt is of use to another one. A token that is read alone, as those of answers are, goes
through other kernels than several of a sequence at once, and its keys and values differ in their last bits: eight-bit
weights make another answer of that, and what a prompt is answered would depend on what was asked before.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Held:
    """What a slot holds: its tokens, (tokens,) int64, how many of them were read in chunks, and its source."""

    ids: np.ndarray
    chunked: int
    source: tuple[int, ...] | None


class SlotTable:
    """What slots hold, as far as a decoder can be asked to go on from it."""

    def __init__(self, slots: int, max_tokens: int) -> None:
        self.lengths = np.zeros(slots, np.int64)  # tokens that each slot holds
        self._chunked = np.zeros(slots, np.int64)  # how many of them, the first ones, were read in chunks of a prompt
        self._ids = np.zeros((slots, max_tokens), np.int64)  # which ones
        self._sources: list[tuple[int, ...] | None] = [None] * slots  # what an encoder read; None: nothing of use
        self._taken: set[int] = set()
        self._used = np.zeros(slots, np.int64)  # when each was given back, in slots given back
        self._given_back = 0

    @property
    def free(self) -> int:
        return len(self.lengths) - len(self._taken)

    def shared(self, source: tuple[int, ...], ids: Sequence[int]) -> np.ndarray:
        """How many tokens each slot holds, from its first on, that a prompt of `ids` begins with: (slots,) int64."""
        wanted = np.asarray(ids, np.int64)
        differs = self._ids[:, : len(wanted)] != wanted
        differs |= np.arange(len(wanted)) >= self.lengths[:, None]
        counts = np.minimum(np.where(differs.any(axis=1), differs.argmax(axis=1), len(wanted)), self._chunked)
        counts[[held != source for held in self._sources]] = 0
        return counts

    def source(self, slot: int) -> tuple[int, ...] | None:
        """What an encoder read into a slot; None where a sequence must be opened in it first."""
        return self._sources[slot]

    def take(self, shared: np.ndarray) -> int:
        """Take a free slot for a sequence of which each slot holds `shared` tokens.

        A step reads the rows from the first taken slot to the last: one that lies between costs nothing. Then one
        whose tokens are mostly of use, where they lie; then the one that has been of no use for longest.
        """
        low, high = (min(self._taken), max(self._taken)) if self._taken else (0, len(self.lengths))

        def cost(slot: int) -> tuple[int, bool, int]:
            in_place = 2 * int(shared[slot]) > int(self.lengths[slot])
            return max(0, low - slot, slot - high), not in_place, int(self._used[slot])

        chosen = min(set(range(len(self.lengths))) - self._taken, key=cost)
        self._taken.add(chosen)
        return chosen

    def hole(self) -> tuple[int, int] | None:
        """The last taken slot and a free one before it, where half of the rows that a step reads are nobody's."""
        if not self._taken:
            return None
        first, last = min(self._taken), max(self._taken)
        if last + 1 - first < 2 * len(self._taken) or last == first:
            return None
        return last, min(set(range(first, last)) - self._taken)

    def move(self, source: int, target: int) -> None:
        """Whoever has one slot has another instead."""
        self._taken.add(target)
        self.give_back(source)

    def give_back(self, slot: int) -> None:
        self._taken.remove(slot)
        self._given_back += 1
        self._used[slot] = self._given_back

    def save(self, slot: int) -> "Held":
        """What a slot holds, to be restored in any."""
        length = int(self.lengths[slot])
        return Held(self._ids[slot, :length].copy(), int(self._chunked[slot]), self._sources[slot])

    def restore(self, slot: int, held: "Held") -> None:
        """A slot holds what another one held when it was saved."""
        length = len(held.ids)
        self._ids[slot, :length] = held.ids
        self.lengths[slot], self._chunked[slot], self._sources[slot] = length, held.chunked, held.source

    def open(self, slot: int, source: tuple[int, ...]) -> None:
        """A slot holds a source, and no tokens."""
        self._sources[slot] = source
        self.cut(slot, 0)

    def forget(self, slot: int) -> None:
        """What a slot holds is of no use."""
        self._sources[slot] = None
        self.cut(slot, 0)

    def cut(self, slot: int, length: int) -> None:
        """A slot holds its first `length` tokens only."""
        self.lengths[slot] = length
        self._chunked[slot] = min(length, self._chunked[slot])

    def append(self, slot: int, ids: np.ndarray) -> None:
        """A slot holds more tokens of a prompt, (n,) int64."""
        start = self.lengths[slot]
        self._ids[slot, start : start + len(ids)] = ids
        self.lengths[slot] = self._chunked[slot] = start + len(ids)

    def append_each(self, slots: Sequence[int], ids: Sequence[int]) -> None:
        """Each of `slots` holds one more token."""
        self._ids[slots, self.lengths[slots]] = ids
        self.lengths[slots] += 1

    def alike(self, source: int, target: int, tokens: int) -> int:
        """How many of the first `tokens` tokens of one slot another holds just as well; 0 for another source."""
        if self._sources[source] != self._sources[target]:
            return 0
        bound = min(tokens, int(self.lengths[target]))
        if self._chunked[source] != self._chunked[target]:  # from there on, one has read alone what the other has not
            bound = min(bound, int(self._chunked[[source, target]].min()))
        differs = self._ids[source, :bound] != self._ids[target, :bound]
        return int(differs.argmax()) if differs.any() else bound

    def copy(self, sources: Sequence[int], targets: Sequence[int], tokens: int) -> None:
        """Each of `targets` holds the first `tokens` tokens of one of `sources`, and no more."""
        self._ids[targets, :tokens] = self._ids[sources, :tokens]
        self._chunked[targets] = np.minimum(self._chunked[sources], tokens)
        held = [self._sources[source] for source in sources]
        for target, source in zip(targets, held, strict=True):
            self._sources[target], self.lengths[target] = source, tokens
