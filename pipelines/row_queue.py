"""RowQueue: rows that wait for a worker, in order of arrival, and the batches that are cut from them."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Generic, Protocol, TypeVar

WASTE_TOKENS = 128  # padding that a batch may always have: shorter rows cost little more than starting another batch
WASTE_SHARE = 0.25  # above that, a row joins only while padding stays below this share of the padded tokens
BATCHES_AHEAD = 8  # how many full batches of rows are searched for neighbours of the oldest row's length


class Queued(Protocol):
    """What the queue must know of a row: its length in tokens, and whether it shares a batch with others."""

    @property
    def n_tokens(self) -> int: ...

    @property
    def alone(self) -> bool: ...


QueuedT = TypeVar("QueuedT", bound=Queued)


class RowQueue(Generic[QueuedT]):
    """Any row may leave at any time. A batch has at most `max_batch_size` rows of `max_batch_tokens` padded tokens."""

    def __init__(self, max_batch_tokens: int, max_batch_size: int) -> None:
        self.tokens = 0
        self._max_batch_tokens = max_batch_tokens
        self._max_batch_size = max_batch_size
        self._rows: dict[QueuedT, None] = {}  # keeps the order, and lets any row leave in O(1)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[QueuedT]:
        return iter(self._rows)

    def put(self, rows: Iterable[QueuedT]) -> None:
        for one in rows:
            self._rows[one] = None
            self.tokens += one.n_tokens

    def discard(self, rows: Iterable[QueuedT]) -> None:
        """Rows that have left already are no error."""
        for one in rows:
            if one in self._rows:
                del self._rows[one]
                self.tokens -= one.n_tokens

    def batches_ahead(self) -> float:
        """How many full batches the rows here make, the last one in parts."""
        return max(self.tokens / self._max_batch_tokens, len(self._rows) / self._max_batch_size)

    def next_batch(self) -> list[QueuedT]:
        """The oldest row, and of the rows behind it those nearest to its length that fit with it; they stay here.

        A row that is longer than `max_batch_tokens` goes alone.
        """
        oldest = next(iter(self._rows))
        batch = [oldest]
        if oldest.alone:
            return batch
        longest = real = oldest.n_tokens
        near = islice(self._rows, 1, BATCHES_AHEAD * self._max_batch_size)
        for one in sorted(near, key=lambda one: abs(one.n_tokens - oldest.n_tokens)):
            if len(batch) == self._max_batch_size:
                break
            padded = max(longest, one.n_tokens) * (len(batch) + 1)
            waste = padded - real - one.n_tokens
            fits = padded <= self._max_batch_tokens and waste <= max(WASTE_TOKENS, WASTE_SHARE * padded)
            if fits and not one.alone:
                batch.append(one)
                longest, real = max(longest, one.n_tokens), real + one.n_tokens
        return batch
