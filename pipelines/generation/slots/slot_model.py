"""SlotModel: what the slot engine asks of a model, decoder-only or encoder-decoder.

A KV cache slot holds what one sequence has read: the keys and values of its tokens, and of its source where the model
has an encoder. The engine knows which tokens those are; the model knows nothing of requests.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np


class SlotModel(Protocol):
    """One thread at a time calls any of these. A call that raises changes no slot but those that it names.

    A read covers neighbouring slots. Slots in between that no sequence reads from, free or waiting, read a token too:
    it is written behind what the slot holds and overwritten later. So every slot must allow that, also one that was
    never opened.
    """

    @property
    def slots(self) -> int:
        """How many sequences there is room for."""

    @property
    def max_tokens(self) -> int:
        """How many tokens, prompt and answer, a slot holds. A full slot in between is not written beyond its end."""

    @property
    def vocab(self) -> int:
        """How many tokens the model knows; one that it does not know fails all rows of a read."""

    def read(self, first: int, ids: np.ndarray, lengths: np.ndarray, logits_at: np.ndarray) -> np.ndarray:
        """Read `ids`, (rows, tokens) int64, into the slots from `first` on, which hold `lengths`, (rows,) int64.

        The logits of the tokens `logits_at`, (n,) int64, of each row: (rows, n, vocab) float32, the caller's own.
        What a slot held after its length is overwritten, or never read again. `lengths + tokens <= max_tokens`.
        """

    def open(self, sources: Mapping[int, Sequence[int]]) -> Mapping[int, Exception]:
        """Let new sequences begin in some slots, each with the source that it answers, before their first tokens.

        An encoder-decoder runs its encoder and fills the slots' cross-attention caches. The slots for which that
        failed, and why: InputTooLongError for a source that a slot cannot hold. For a decoder-only model the sources
        are empty and nothing is to be done.
        """

    def copy(self, sources: Sequence[int], targets: Sequence[int], tokens: int, start: int = 0) -> None:
        """Let each slot `targets[i]` hold the tokens from `start` up to `tokens` that `sources[i]` holds.

        All at once: a slot may be source and target, and a source may come several times, a target only once. With
        `start` 0 the cache of the source's encoder output comes too; above 0, it and the tokens before `start` are the
        same in both slots already.
        """

    def save(self, slot: int, tokens: int) -> Any:
        """The content of a slot that holds `tokens` tokens, copied out of it, bit for bit."""

    def restore(self, slot: int, saved: Any) -> None:
        """Put what `save` returned into a slot, whichever it is now."""
