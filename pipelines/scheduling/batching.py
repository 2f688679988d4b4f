"""Batching: whose row comes next, and how many rows a padded batch holds.

Turns. Requests share the model by the work that they cause, whatever number of rows they have (weighted fair queueing
with start tags). A request arrives at the current virtual time: the start tag of its first row. Each further row starts
when the work of the rows before it would end if all active requests shared the machine equally. So first rows go in
order of arrival, and a request of a thousand rows gets one share of the work, as a request of one row does.

Sizes. On a CPU the fixed cost of a forward is soon negligible: a large batch of long texts saves nothing and delays the
next batch, a batch of short ones saves several times. On a GPU it stays large. One rule (`cut`), over the cost model,
serves both.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from pipelines.scheduling.cost_model import SATURATED, CostModel
from pipelines.scheduling.scheduler import BatchingConfig


class FairClock:
    """Virtual time, in units of work: it advances by the work that starts, divided by the number of active requests."""

    def __init__(self) -> None:
        self.now = 0.0
        self.active = 0

    def arrive(self) -> float:
        """The start tag of a request that becomes active."""
        self.active += 1
        return self.now

    def leave(self) -> None:
        """A request is no longer active."""
        self.active -= 1

    def advance(self, work: float) -> None:
        """`work` starts."""
        self.now += work / max(1, self.active)


class Tagged(Protocol):
    """A row in the queue: `tag` is its start tag, `number` orders rows of equal tags."""

    @property
    def tag(self) -> float: ...

    @property
    def number(self) -> int: ...


TaggedT = TypeVar("TaggedT", bound=Tagged)


class FairQueue(Generic[TaggedT]):
    """Waiting rows in order of their start tags. Any row may leave at any time."""

    def __init__(self) -> None:
        self._rows: list[tuple[float, int, TaggedT]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[TaggedT]:
        return (row for _, _, row in self._rows)

    def put(self, rows: Iterable[TaggedT]) -> None:
        """Add rows, whose numbers are unique: rows themselves are never compared."""
        entries = [(row.tag, row.number, row) for row in rows]
        if len(entries) == 1:
            insort(self._rows, entries[0])
        else:
            self._rows += entries
            self._rows.sort()

    def discard(self, rows: Iterable[TaggedT]) -> list[TaggedT]:
        """Remove rows; returns those that were in the queue."""
        found = []
        for row in rows:
            key: Any = (row.tag, row.number)
            at = bisect_left(self._rows, key)
            if at < len(self._rows) and self._rows[at][2] is row:
                del self._rows[at]
                found.append(row)
        return found


class Measured(Protocol):
    """A row with its length in tokens."""

    @property
    def n_tokens(self) -> int: ...


MeasuredT = TypeVar("MeasuredT", bound=Measured)


def cut(
    first: MeasuredT, others: Sequence[MeasuredT], waiting: int, config: BatchingConfig, cost: CostModel
) -> list[MeasuredT]:
    """The batch of `first` and those of `others` with the nearest lengths that fit. `waiting` counts all waiting rows.

    A row joins where that costs less than a batch of its own, until the fixed cost is a small share of the batch, or
    one more row costs more than it saves: it delays every row of the batch by its own time, and saves every row behind
    it the fixed cost of a batch. Short queues are so answered by small batches, long ones by large batches. A row
    longer than `max_batch_tokens` is a batch of its own. A packed batch takes rows of any length, in their order.
    """
    if cost.packed:
        return _cut_packed(first, others, waiting, config, cost)
    rows, longest = [first], first.n_tokens
    for one in sorted(others, key=lambda one: abs(one.n_tokens - first.n_tokens)):
        saved_s = cost.start_s * (waiting - len(rows))
        if len(rows) == config.max_batch_size or cost.is_saturated(len(rows), longest):
            break
        if saved_s < cost.row_s(longest) * len(rows):
            break
        padded = max(longest, one.n_tokens)
        together_s = cost.batch_s(len(rows) + 1, padded)
        apart_s = cost.batch_s(len(rows), longest) + cost.batch_s(1, one.n_tokens)
        if padded * (len(rows) + 1) <= config.max_batch_tokens and together_s <= apart_s:
            rows.append(one)
            longest = padded
    return rows


def _cut_packed(
    first: MeasuredT, others: Sequence[MeasuredT], waiting: int, config: BatchingConfig, cost: CostModel
) -> list[MeasuredT]:
    rows, n_tokens, rows_s = [first], first.n_tokens, cost.row_s(first.n_tokens)
    for one in others:
        one_s = cost.row_s(one.n_tokens)
        if len(rows) == config.max_batch_size or cost.start_s <= SATURATED * (cost.start_s + rows_s):
            break
        if cost.start_s * (waiting - len(rows)) < one_s * len(rows):
            break
        if n_tokens + one.n_tokens <= config.max_batch_tokens:
            rows.append(one)
            n_tokens, rows_s = n_tokens + one.n_tokens, rows_s + one_s
    return rows
