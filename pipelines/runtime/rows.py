"""Rows: how the rows of a batch become the feeds of an encoder's graph, and its outputs become those of each row.

RowLayout    what both have in common; PaddedRows, (rows, longest row) with a mask, is in encoder.py
PackedRows   the tokens of all rows one after the other, with cumulative lengths (export.graphs.encoders.packed)
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from tokenizers import Encoding

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False, slots=True)
class EncoderRow:
    """One row of an encoder's batch, unpadded; `token_type_ids` None means zeros."""

    encoding: Encoding
    input_ids: np.ndarray  # (tokens,) int64
    token_type_ids: np.ndarray | None  # (tokens,) int64
    n_tokens: int
    max_new_tokens: ClassVar[int] = 0
    """An encoder writes no tokens."""

    @classmethod
    def of(cls, encoding: Encoding, input_ids: np.ndarray, token_type_ids: np.ndarray | None = None) -> Self:
        """A row of these tokens."""
        return cls(encoding, input_ids, token_type_ids, len(input_ids))

    @classmethod
    def blank(cls, n_tokens: int, token_id: int = 0) -> Self:
        """A row that repeats one token, to measure or to capture runs of that length."""
        return cls.of(Encoding(), np.full(n_tokens, token_id, np.int64))


class RowLayout(ABC):
    """The feeds of a graph with the inputs `names`; `pad_token_id` stands where no row has a token."""

    inputs: tuple[str, ...]
    """The inputs that a graph of this layout may have."""

    def __init__(self, names: Collection[str], pad_token_id: int) -> None:
        self.names = names
        self._pad_token_id = pad_token_id

    @abstractmethod
    def feeds(self, rows: Sequence[EncoderRow]) -> Feeds:
        """One feed for each input of the graph."""

    @abstractmethod
    def by_row(self, output: np.ndarray, rows: Sequence[EncoderRow]) -> list[np.ndarray]:
        """An output with a value for each token: that of each row, (tokens, ...), without padding."""


@dataclass(frozen=True, order=True)
class Capacity:
    """The fixed shape of a packed batch: its tokens, rows, and the bound of its longest row."""

    tokens: int
    rows: int
    longest: int

    def holds(self, rows: int, tokens: int, longest: int) -> bool:
        """Whether a batch fits. Filler takes one row and one token at least, and rows that it does not exceed."""
        filler = self.tokens - tokens
        return filler > 0 and longest <= self.longest and filler <= (self.rows - rows) * self.longest


class PackedRows(RowLayout):
    """Feeds of (tokens,) int32, cumulative lengths of (rows + 1,) int32, and the shape of the batch, (2,) int64."""

    inputs = ("input_ids", "position_ids", "token_type_ids", "cumulative_sequence_length", "batch_shape")

    def feeds(self, rows: Sequence[EncoderRow], capacity: Capacity | None = None) -> Feeds:
        """With a `capacity` that holds the rows: its shapes, by filler tokens in rows behind the others."""
        lengths = np.array([row.n_tokens for row in rows])
        n_tokens, longest = int(lengths.sum()), int(lengths.max())
        if capacity is not None:
            lengths = np.concatenate([lengths, _filler(capacity, len(rows), n_tokens)])
            longest = capacity.longest
        ends = np.zeros(len(lengths) + 1, np.int32)
        np.cumsum(lengths, out=ends[1:])
        feeds = {
            "input_ids": self._flat([row.input_ids for row in rows], int(ends[-1]), self._pad_token_id),
            "position_ids": np.arange(ends[-1], dtype=np.int32) - np.repeat(ends[:-1], lengths),
            "cumulative_sequence_length": ends,
            "batch_shape": np.array([len(lengths), longest], np.int64),
        }
        if "token_type_ids" in self.names:
            types = [row.token_type_ids for row in rows if row.token_type_ids is not None]
            feeds["token_type_ids"] = self._flat(types, int(ends[-1]), 0)
        return feeds

    def by_row(self, output: np.ndarray, rows: Sequence[EncoderRow]) -> list[np.ndarray]:
        ends = np.cumsum([row.n_tokens for row in rows])
        return np.split(output[: ends[-1]], ends[:-1])

    @staticmethod
    def _flat(values: Sequence[np.ndarray], size: int, fill: int) -> np.ndarray:
        flat = np.full(size, fill, np.int32)
        if values:
            together = np.concatenate(values)
            flat[: len(together)] = together
        return flat


def _filler(capacity: Capacity, rows: int, tokens: int) -> np.ndarray:
    """The lengths of the rows that fill a capacity. The last is never empty: a graph reads each row's first token."""
    lengths = np.zeros(capacity.rows - rows, np.int64)
    whole, rest = divmod(capacity.tokens - tokens, capacity.longest)
    lengths[len(lengths) - whole :] = capacity.longest
    if rest:
        lengths[len(lengths) - whole - 1] = rest
    return lengths
