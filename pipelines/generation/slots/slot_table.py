"""SlotTable: which KV cache slots are taken, and which tokens each slot holds (prefix caching).

A slot that was given back keeps its content until another sequence takes it: a prompt that shares a prefix with an
earlier or a running sequence skips the prefill of that prefix.

Only tokens that were read in prefill chunks are reused. GEMV and GEMM kernels round differently: the keys and values of
a token that was read alone, as those of answers are, differ in their last bits. With int8 weights that can change the
argmax, and an answer would depend on earlier requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.generation.decoding.request import CacheKey
from pipelines.generation.engine import CacheState


@dataclass(frozen=True)
class Held:
    """The content of a slot: its tokens, (tokens,) int64, how many were read in prefill chunks, and its key."""

    ids: np.ndarray
    chunked: int
    key: CacheKey | None


class SlotTable:
    """The slots and their contents, as far as a later sequence can reuse them.

    Sequences with the same key (`DecodeRequest.cache_key`) share prefixes. None is nobody's key: nothing to reuse.
    In `adapters`, (slots,) int64, it says by which adapter each taken slot is read, and 0 of free ones.
    """

    def __init__(self, slots: int, max_tokens: int, adapters: np.ndarray | None = None) -> None:
        self.lengths = np.zeros(slots, np.int64)  # tokens that each slot holds
        self._chunked = np.zeros(slots, np.int64)  # how many of them, from the first on, were read in prefill chunks
        self._ids = np.zeros((slots, max_tokens), np.int64)  # their ids
        self._keys: list[CacheKey | None] = [None] * slots
        self._adapters = np.zeros(slots, np.int64) if adapters is None else adapters
        self._taken: set[int] = set()
        self._used = np.zeros(slots, np.int64)  # when each was given back: the count of returns then
        self._given_back = 0
        self._prompt_tokens = self._reused_tokens = 0  # of all sequences so far

    @property
    def free(self) -> int:
        return len(self.lengths) - len(self._taken)

    def state(self) -> CacheState:
        """Any thread may call this."""
        slots, tokens = self._ids.shape
        taken = list(self._taken)
        held = int(self.lengths[taken].sum())
        return CacheState(slots, len(taken), slots * tokens, held, self._prompt_tokens, self._reused_tokens)

    def begin(self, slot: int, prompt_tokens: int) -> int:
        """How many tokens of a prompt of that length a slot has, whose content was cut to what the prompt reuses."""
        reused = int(self.lengths[slot])
        self._prompt_tokens += prompt_tokens
        self._reused_tokens += reused
        return reused

    def shared(self, key: CacheKey, ids: Sequence[int]) -> np.ndarray:
        """The length of the prefix of the prompt `ids` that each slot holds, in tokens: (slots,) int64."""
        wanted = np.asarray(ids, np.int64)
        differs = self._ids[:, : len(wanted)] != wanted
        differs |= np.arange(len(wanted)) >= self.lengths[:, None]
        counts = np.minimum(np.where(differs.any(axis=1), differs.argmax(axis=1), len(wanted)), self._chunked)
        counts[[held != key for held in self._keys]] = 0
        return counts

    def key(self, slot: int) -> CacheKey | None:
        """The key of the content of a slot; None where `open` must come first."""
        return self._keys[slot]

    def take(self, shared: np.ndarray) -> int:
        """Take a free slot for a sequence of which each slot holds a prefix of `shared` tokens, (slots,).

        A step reads the rows from the first taken slot to the last: a slot between them costs nothing and is preferred.
        Next come slots of which the sequence reuses more than half, then the least recently used.
        """
        low, high = (min(self._taken), max(self._taken)) if self._taken else (0, len(self.lengths))

        def cost(slot: int) -> tuple[int, bool, int]:
            in_place = 2 * int(shared[slot]) > int(self.lengths[slot])
            return max(0, low - slot, slot - high), not in_place, int(self._used[slot])

        chosen = min(set(range(len(self.lengths))) - self._taken, key=cost)
        self._taken.add(chosen)
        self._set_key(chosen, self._keys[chosen])
        return chosen

    def hole(self) -> tuple[int, int] | None:
        """The last taken slot and a free one before it, where at least half of the rows that a step reads are free."""
        if not self._taken:
            return None
        first, last = min(self._taken), max(self._taken)
        if last + 1 - first < 2 * len(self._taken) or last == first:
            return None
        return last, min(set(range(first, last)) - self._taken)

    def move(self, source: int, target: int) -> None:
        """Exchange a taken slot for a free one."""
        self._taken.add(target)
        self._set_key(target, self._keys[target])
        self.give_back(source)

    def give_back(self, slot: int) -> None:
        self._taken.remove(slot)
        self._adapters[slot] = 0
        self._given_back += 1
        self._used[slot] = self._given_back

    def save(self, slot: int) -> "Held":
        """The content of a slot, to be restored in any slot."""
        length = int(self.lengths[slot])
        return Held(self._ids[slot, :length].copy(), int(self._chunked[slot]), self._keys[slot])

    def restore(self, slot: int, held: "Held") -> None:
        """Set the content of a slot to a saved one."""
        length = len(held.ids)
        self._ids[slot, :length] = held.ids
        self.lengths[slot], self._chunked[slot] = length, held.chunked
        self._set_key(slot, held.key)

    def open(self, slot: int, key: CacheKey) -> None:
        """Set the key of a slot, which holds no tokens then."""
        self._set_key(slot, key)
        self.cut(slot, 0)

    def forget(self, slot: int) -> None:
        """Clear a slot: no sequence may reuse its content."""
        self._set_key(slot, None)
        self.cut(slot, 0)

    def cut(self, slot: int, length: int) -> None:
        """Keep the first `length` tokens of a slot only."""
        self.lengths[slot] = length
        self._chunked[slot] = min(length, self._chunked[slot])

    def append(self, slot: int, ids: np.ndarray) -> None:
        """Append tokens of a prefill chunk, (n,) int64."""
        start = self.lengths[slot]
        self._ids[slot, start : start + len(ids)] = ids
        self.lengths[slot] = self._chunked[slot] = start + len(ids)

    def append_each(self, slots: Sequence[int], ids: Sequence[int]) -> None:
        """Append one decoded token to each of `slots`."""
        self._ids[slots, self.lengths[slots]] = ids
        self.lengths[slots] += 1

    def alike(self, source: int, target: int, tokens: int) -> int:
        """The length of the prefix that two slots share bit for bit, at most `tokens`; 0 for different keys."""
        if self._keys[source] != self._keys[target]:
            return 0
        bound = min(tokens, int(self.lengths[target]))
        if self._chunked[source] != self._chunked[target]:  # after it, only one of them has read tokens alone
            bound = min(bound, int(self._chunked[[source, target]].min()))
        differs = self._ids[source, :bound] != self._ids[target, :bound]
        return int(differs.argmax()) if differs.any() else bound

    def copy(self, sources: Sequence[int], targets: Sequence[int], tokens: int) -> None:
        """Set the content of each of `targets` to the first `tokens` tokens of one of `sources`."""
        self._ids[targets, :tokens] = self._ids[sources, :tokens]
        self._chunked[targets] = np.minimum(self._chunked[sources], tokens)
        held = [self._keys[source] for source in sources]
        for target, key in zip(targets, held, strict=True):
            self._set_key(target, key)
            self.lengths[target] = tokens

    def _set_key(self, slot: int, key: CacheKey | None) -> None:
        self._keys[slot] = key
        self._adapters[slot] = key.adapter if key is not None and slot in self._taken else 0
