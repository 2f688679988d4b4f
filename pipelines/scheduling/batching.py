"""Batching: whose row comes next, and how many rows a padded batch holds.

Turns. Requests share the model by the work that they cause, whatever number of rows they have (weighted fair queueing
with start tags). A request arrives at the current virtual time: the start tag of its first row. Each further row starts
when the work of the rows before it would end if all active requests shared the machine equally. So first rows go in
order of arrival, and a request of a thousand rows gets one share of the work, as a request of one row does.

Sizes. A forward has a fixed cost (kernel launches, reading the weights), a cost per padded token (matrix products) and
a cost per pair of tokens in a row (attention):

    seconds = start_s + token_s * rows * longest + pair_s * rows * longest**2

`measure` fits the three prices on this machine. On a CPU the fixed cost is soon negligible: a large batch of long texts
saves nothing and delays the next batch, a batch of short ones saves several times. On a GPU it stays large. One rule
(`cut`) serves both.
"""

import time
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np

from pipelines.scheduling.scheduler import BatchingConfig

SATURATED = 0.05
"""A batch is large enough once its fixed cost is at most this share of its whole cost: no more can be saved."""
MEASURED_ROWS = (1, 4, 16)
MEASURED_TOKENS = (16, 64, 128, 384)
REPETITIONS = 2  # timed rounds for each shape
IN_A_ROW = 2  # forwards for each worker and round
BUDGET_S = 2.0  # of all measurements together


@dataclass(frozen=True)
class Measurement:
    """One forward of `rows` x `longest` padded tokens."""

    rows: int
    longest: int
    seconds: float


@dataclass(frozen=True)
class CostModel:
    """The three prices of a forward. The size of a batch depends on their ratios alone; the scheduler corrects
    predicted seconds by those that it measures.
    """

    start_s: float
    token_s: float
    pair_s: float = 0.0

    def batch_s(self, rows: int, longest: int) -> float:
        """Seconds of a batch of that shape."""
        return self.start_s + rows * self.row_s(longest)

    def row_s(self, tokens: int) -> float:
        """Seconds that one more row of so many padded tokens adds to a batch."""
        return tokens * (self.token_s + self.pair_s * tokens)

    def is_saturated(self, rows: int, longest: int) -> bool:
        """Whether the fixed cost is so small a share that further rows save next to nothing."""
        return self.start_s <= SATURATED * self.batch_s(rows, longest)

    @classmethod
    def fit(cls, measured: Sequence[Measurement]) -> Self:
        """Least squares of the relative errors, all prices at least 0; needs one measurement or more."""
        shapes = np.array([(1, one.rows * one.longest, one.rows * one.longest**2) for one in measured], np.float64)
        seconds = np.array([one.seconds for one in measured])
        shapes /= seconds[:, None]
        best, least = np.array([0.0, 1.0, 0.0]), np.inf
        for used in (list(names) for n in (1, 2, 3) for names in combinations(range(3), n)):
            prices = np.zeros(3)
            prices[used] = np.linalg.lstsq(shapes[:, used], np.ones(len(measured)), rcond=None)[0]
            error = float(((shapes @ prices - 1) ** 2).sum())
            # A model without a price per token would never be saturated.
            if (prices >= 0).all() and prices[1] > 0 and error < least:
                best, least = prices, error
        return cls(*best.tolist())


UNMEASURED = CostModel(start_s=32.0, token_s=1.0)
"""For a model that was not measured: a batch has the fixed cost of 32 tokens."""


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
    longer than `max_batch_tokens` is a batch of its own.
    """
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


def measure(
    forward: Callable[[Sequence[Any]], object],
    blank_row: Callable[[int], Any],
    shapes: Iterable[tuple[int, int]],
    concurrency: int = 1,
) -> CostModel:
    """Time `forward` on batches of (rows, tokens) for at most about `BUDGET_S`, which also warms the session up.

    `concurrency` workers run batches one after the other, as in service: one fills the gaps of another, so that a batch
    has a lower fixed cost than alone. `shapes` are ordered by cost, cheapest first. Each runs once to let onnxruntime
    allocate, then the fastest of a few rounds counts: other load of the machine only adds time.
    """
    measured: list[Measurement] = []
    ends_at = time.perf_counter() + BUDGET_S
    with ThreadPoolExecutor(concurrency) as workers:
        for rows, tokens in shapes:
            batch, times_s = [blank_row(tokens)] * rows, []
            for in_a_row in (1, *[IN_A_ROW] * REPETITIONS):
                started_at = time.perf_counter()
                list(workers.map(lambda n, batch=batch: [forward(batch) for _ in range(n)], [in_a_row] * concurrency))
                times_s.append((time.perf_counter() - started_at) / (in_a_row * concurrency))
            measured.append(Measurement(rows, tokens, min(times_s)))
            if time.perf_counter() > ends_at:
                break
    return CostModel.fit(measured)


def shapes_within(max_length: int, max_batch_tokens: int, max_batch_size: int) -> Iterator[tuple[int, int]]:
    """Shapes (rows, tokens) worth measuring that a model and a configuration allow, cheapest first."""
    lengths = sorted({min(tokens, max_length) for tokens in MEASURED_TOKENS})
    shapes = [(rows, tokens) for rows in MEASURED_ROWS for tokens in lengths]
    allowed = [(rows, tokens) for rows, tokens in shapes if rows == 1 or rows * tokens <= max_batch_tokens]
    yield from sorted(
        {(min(rows, max_batch_size), tokens) for rows, tokens in allowed}, key=lambda shape: shape[0] * shape[1]
    )
