"""SlotModel: what the slot engine asks of a model, decoder-only or encoder-decoder.

A KV cache slot holds the keys and values of the tokens that one sequence has read, and those of its source where the
model has an encoder. The engine knows which tokens these are; the model knows no requests.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from pipelines.generation.decoding.step_logits import StepLogits


class SlotModel(Protocol):
    """One thread at a time calls these. A call that raises changes no slot but those that it names.

    A read covers neighbouring slots. Slots in between, free or waiting, read a token too, which is written behind the
    slot's content and overwritten later. Every slot must allow that, also one without a source.
    """

    @property
    def slots(self) -> int:
        """How many sequences the cache holds."""

    @property
    def max_tokens(self) -> int:
        """How many tokens, prompt and answer, a slot holds. A read does not write beyond the end of a full slot."""

    @property
    def vocab(self) -> int:
        """The size of the vocabulary; a token id outside it fails all rows of a read."""

    @property
    def run_tokens(self) -> int:
        """As many padding tokens cost as much as a read of its own."""

    @property
    def adapters(self) -> np.ndarray:
        """(slots,) int64: the number of the adapter by which each slot is read, 0 for none. The engine writes it."""

    @property
    def reads_ahead(self) -> bool:
        """Whether a read of several tokens of one row costs little more than one of a single token."""

    def step_rows(self, first: int, end: int) -> tuple[int, int]:
        """The slots that a read of one token should cover in place of those from `first` to `end`, which are in it."""

    def read(
        self, first: int, ids: np.ndarray, lengths: np.ndarray, logits_at: np.ndarray, counts: np.ndarray | None = None
    ) -> StepLogits:
        """Read `ids`, (rows, tokens) int64, into the slots from `first` on, which hold `lengths`, (rows,) int64.

        Returns the logits of the tokens `logits_at`, (n,) int64, which number those of `ids` row by row, as n rows.
        `counts`, (rows,) int64, says how many tokens each row has; what follows is padding, and the longest row has
        none. Without it no row is padded. Several rows of several tokens must all begin: `lengths` are 0. The content
        of a slot after its tokens is lost. `lengths + counts <= max_tokens`.
        """

    def open(self, sources: Mapping[int, Sequence[int]]) -> Mapping[int, Exception]:
        """Begin new sequences in some slots, each with its source, before their first tokens.

        An encoder-decoder runs its encoder and fills the slots' cross-attention caches. Returns the errors of slots
        that failed: InputTooLongError for a source that a slot cannot hold. A decoder-only model has empty sources and
        does nothing.
        """

    def release_memory(self) -> None:
        """Give back to the system what the largest reads took beside the cache. Any thread may call it."""

    def copy(self, sources: Sequence[int], targets: Sequence[int], tokens: int, start: int = 0) -> None:
        """Copy the tokens from `start` up to `tokens` of each slot `sources[i]` to the slot `targets[i]`.

        All copies happen at once: a slot may be source and target, a source may be listed several times, a target once.
        With `start` 0 the cross-attention cache is copied too; above 0, it and the tokens before `start` are equal in
        both slots already.
        """

    def save(self, slot: int, tokens: int) -> Any:
        """A copy of the content of a slot that holds `tokens` tokens, bit for bit."""

    def restore(self, slot: int, saved: Any) -> None:
        """Write what `save` returned into any slot."""
