"""A slot decoder that keeps what it was asked, and fails when it is told to."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.generation.decoding.step_logits import StepLogits
from pipelines.generation.slots.slot_model import SlotModel


def broken_after(times: int) -> Callable[[], bool]:
    """A caller's question whether it has gone away: no, so many times, and then it fails."""
    asked: list[int] = []

    def broken() -> bool:
        asked.append(1)
        if len(asked) > times:
            raise ZeroDivisionError("who knows")
        return False

    return broken


def logits_of(
    decoder: SlotModel, first: int, ids: np.ndarray, lengths: np.ndarray, logits_at: np.ndarray
) -> np.ndarray:
    """Read as `SlotModel.read`: the logits of the tokens `logits_at` of every row, (rows, n, vocab)."""
    rows, tokens = ids.shape
    numbers = (np.arange(rows)[:, None] * tokens + logits_at).ravel()
    read = decoder.read(first, ids, lengths, numbers)
    return read.rows(range(len(numbers))).reshape(rows, len(logits_at), -1)


class RecordingDecoder:
    """`reads` are the tokens of each read, (rows, tokens); `copies` the slots and the number of tokens of each copy;
    `opened`, for each source, how many reads came before it and its length; `saved`, how many tokens each save copies.

    `fails` and `copy_fails`, asked before each read, or copy, with how many there were, make it raise.
    """

    def __init__(self, decoder: SlotModel) -> None:
        self._decoder = decoder
        self.slots, self.max_tokens, self.vocab = decoder.slots, decoder.max_tokens, decoder.vocab
        self.run_tokens, self._prompt_tokens = decoder.run_tokens, 0
        self.reads_ahead, self.adapters = decoder.reads_ahead, decoder.adapters
        self.reads: list[tuple[int, int]] = []
        self.copies: list[tuple[int, int]] = []
        self.opened: list[tuple[int, int]] = []
        self.saved: list[int] = []
        self.fails: Callable[[int], bool] = lambda _reads: False
        self.copy_fails: Callable[[int], bool] = lambda _copies: False

    @property
    def prompt_tokens(self) -> int:
        """How many tokens were read in chunks of prompts."""
        return self._prompt_tokens

    def step_rows(self, first: int, end: int) -> tuple[int, int]:
        return self._decoder.step_rows(first, end)

    def read(
        self, first: int, ids: np.ndarray, lengths: np.ndarray, logits_at: np.ndarray, counts: np.ndarray | None = None
    ) -> StepLogits:
        rows, tokens = ids.shape
        assert (lengths + tokens <= self.max_tokens).all()
        assert tokens == 1 or rows == 1 or not lengths.any()
        self.reads.append((rows, tokens))
        if tokens > 1:
            self._prompt_tokens += tokens * rows if counts is None else int(counts.sum())
        if self.fails(len(self.reads)):
            raise FloatingPointError("the decoder failed")
        return self._decoder.read(first, ids, lengths, logits_at, counts)

    def open(self, sources: Mapping[int, Sequence[int]]) -> Mapping[int, Exception]:
        self.opened += [(len(self.reads), len(source)) for source in sources.values()]
        return self._decoder.open(sources)

    def release_memory(self) -> None:
        self._decoder.release_memory()

    def save(self, slot: int, tokens: int) -> Any:
        self.saved.append(tokens)
        return self._decoder.save(slot, tokens)

    def restore(self, slot: int, saved: Any) -> None:
        self._decoder.restore(slot, saved)

    def copy(self, sources: Sequence[int], targets: Sequence[int], tokens: int, start: int = 0) -> None:
        assert len(set(targets)) == len(targets)
        self.copies.append((len(targets), tokens - start))
        if self.copy_fails(len(self.copies)):
            raise FloatingPointError("the decoder failed")
        self._decoder.copy(sources, targets, tokens, start)
