"""RowQueue: rows that wait for a worker, in order of arrival, and the batches that are cut from them."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Generic, Protocol, TypeVar

from pipelines.scheduling.cost_model import SATURATED, CostModel

BATCHES_AHEAD = 8  # how many full batches of rows are searched for neighbours of the oldest row's length


class Queued(Protocol):
    """What the queue must know of a row: its length in tokens, and whether it shares a batch with others."""

    @property
    def n_tokens(self) -> int: ...

    @property
    def alone(self) -> bool: ...


QueuedT = TypeVar("QueuedT", bound=Queued)


class RowQueue(Generic[QueuedT]):
    """Any row may leave at any time. A batch has at most `max_batch_size` rows of `max_batch_tokens` padded tokens.

    Every batch is built around the oldest row, so a row is overtaken only by rows that share a batch with an older
    one: it waits for at most as many batches as there were rows before it.
    """

    def __init__(self, max_batch_tokens: int, max_batch_size: int, cost: CostModel) -> None:
        self.tokens = 0
        self._max_batch_tokens = max_batch_tokens
        self._max_batch_size = max_batch_size
        self._cost = cost
        self._rows_s = 0.0
        self._rows: dict[QueuedT, None] = {}  # keeps the order, and lets any row leave in O(1)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[QueuedT]:
        return iter(self._rows)

    def put(self, rows: Iterable[QueuedT]) -> None:
        for one in rows:
            self._rows[one] = None
            self.tokens += one.n_tokens
            self._rows_s += self._cost.row_s(one.n_tokens)

    def discard(self, rows: Iterable[QueuedT]) -> None:
        """Rows that have left already are no error."""
        for one in rows:
            if one in self._rows:
                del self._rows[one]
                self.tokens -= one.n_tokens
                self._rows_s -= self._cost.row_s(one.n_tokens)

    def work_s(self) -> float:
        """What the rows here will cost, by the cost model: themselves, and starting the batches that they make."""
        full_batches = len(self._rows) / self._max_batch_size
        return self._rows_s / (1 - SATURATED) + self._cost.start_s * full_batches

    def next_batch(self) -> list[QueuedT]:
        """The oldest row, and of the rows behind it those nearest to its length that fit with it; they stay here.

        A row joins where that costs less than a batch of its own, until the batch is large enough for those who wait.
        A row that is longer than `max_batch_tokens` goes alone.
        """
        oldest = next(iter(self._rows))
        batch = [oldest]
        if oldest.alone:
            return batch
        longest = oldest.n_tokens
        near = islice(self._rows, 1, BATCHES_AHEAD * self._max_batch_size)
        for one in sorted(near, key=lambda one: abs(one.n_tokens - oldest.n_tokens)):
            if len(batch) == self._max_batch_size or self._is_large_enough(len(batch), longest):
                break
            padded = max(longest, one.n_tokens)
            together_s = self._cost.batch_s(len(batch) + 1, padded)
            apart_s = self._cost.batch_s(len(batch), longest) + self._cost.batch_s(1, one.n_tokens)
            if not one.alone and padded * (len(batch) + 1) <= self._max_batch_tokens and together_s <= apart_s:
                batch.append(one)
                longest = padded
        return batch

    def _is_large_enough(self, rows: int, longest: int) -> bool:
        """Whether one more row would hardly make any cheaper, or would cost more than it saves.

        It keeps every row of the batch waiting for its own part, and saves everyone behind the start of a batch: few
        who wait are answered soonest by small batches, many by large ones.
        """
        saved_s = self._cost.start_s * (len(self._rows) - rows)
        return self._cost.is_saturated(rows, longest) or saved_s < self._cost.row_s(longest) * rows
