"""Batching: whose row comes next, how many rows a padded batch holds, and what a batch costs.

Turns. Requests share the model by the work that they cause, whatever number of rows they have (weighted fair queueing
with start tags). A request arrives at the current virtual time: the start tag of its first row. Each further row starts
when the work of the rows before it would end if all active requests shared the machine equally. So first rows go in
order of arrival, and a request of a thousand rows gets one share of the work, as a request of one row does.

Costs. A forward has a fixed cost (kernel launches, reading the weights), a cost per padded token (matrix products) and
a cost per pair of tokens in a row (attention):

    seconds = start_s + token_s * rows * longest + pair_s * rows * longest**2

A packed batch (pipelines.runtime.rows) has no padding: of it, the tokens and pairs of each row count. It costs as much
as one of equal rows, of which `CostModel.shape` tells the number and the length. The prices are measured before the
first request (cost_measurement.py), once, on a machine where other replicas may be starting. So that decides nothing
for good: LearnedCost goes on fitting them to the batches that are served, and Pace tells how much slower or faster than
they say the last batches were.

Sizes. On a CPU the fixed cost of a forward is soon negligible: a large batch of long texts saves nothing and delays the
next batch, a batch of short ones saves several times. On a GPU it stays large. One rule (`cut`), over the cost model,
serves both. Where others take the machine's cores a batch lasts several times as long as it should, and who waits for
its end as well: `max_batch_s` bounds what batches take at their present pace.
"""

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import median
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np

from pipelines.scheduling.scheduler import BatchingConfig

SATURATED = 0.05
"""A batch is large enough once its fixed cost is at most this share of its whole cost: no more can be saved."""
WORTHWHILE = 0.25
"""A batch goes on growing, however long it takes, while its fixed cost is more than this share of its whole cost."""
MEMORY = 256  # served batches that LearnedCost keeps
RECENT = 8  # of them, those that count of shapes that are alike
REFIT = 32  # served batches after which LearnedCost fits again
PACE_MEMORY = 0.95
"""What a batch still counts after the next one: the last twenty decide."""
BATCH_MEMORY = 0.8
KNOWN = 5
"""What was known before the first batch counts as so many of its size."""


@dataclass(frozen=True)
class Measurement:
    """One forward of `rows` x `longest` tokens, padding included."""

    rows: float
    longest: float
    seconds: float


@dataclass(frozen=True)
class CostModel:
    """The three prices of a forward. The size of a batch depends on their ratios alone; the scheduler corrects
    predicted seconds by those that it measures. `packed`: batches have no padding.
    """

    start_s: float
    token_s: float
    pair_s: float = 0.0
    packed: bool = False

    def shape(self, lengths: Sequence[int]) -> tuple[float, float]:
        """Rows and longest row of a batch; of a packed one, those of equal rows with as many tokens and pairs."""
        if not self.packed:
            return len(lengths), max(lengths)
        tokens, pairs = sum(lengths), sum(one * one for one in lengths)
        return tokens * tokens / pairs, pairs / tokens

    def padded_tokens(self, lengths: Sequence[int]) -> int:
        """The tokens that a batch of rows of these lengths computes, padding included."""
        return sum(lengths) if self.packed else len(lengths) * max(lengths)

    def batch_s(self, rows: float, longest: float) -> float:
        """Seconds of a batch of that shape."""
        return self.start_s + rows * self.row_s(longest)

    def row_s(self, tokens: float) -> float:
        """Seconds that one more row of so many tokens, padding included, adds to a batch."""
        return tokens * (self.token_s + self.pair_s * tokens)

    def is_saturated(self, rows: float, longest: float) -> bool:
        """Whether the fixed cost is so small a share that further rows save next to nothing."""
        return self.start_s <= SATURATED * self.batch_s(rows, longest)

    @classmethod
    def fit(cls, measured: Sequence[Measurement], *, packed: bool = False) -> Self:
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
        start_s, token_s, pair_s = best.tolist()
        return cls(start_s, token_s, pair_s, packed)


UNMEASURED = CostModel(start_s=32.0, token_s=1.0)
"""For a model that was not measured: a batch has the fixed cost of 32 tokens."""


class LearnedCost:
    """A cost model that follows the machine: `model` is fitted to what was served last, where that was enough.

    Of shapes that were not served lately, the measurements from before the first request count, scaled by how much
    slower or faster than they say the served ones are.
    """

    def __init__(
        self,
        measured: Sequence[Measurement],
        *,
        packed: bool = False,
        on_end: Callable[[list[Measurement]], None] = lambda known: None,
    ) -> None:
        """`on_end` is told what is known when the model has served its last batch."""
        self._on_end = on_end
        self.model = CostModel.fit(measured, packed=packed)
        self.known = list(measured)
        """What `model` is fitted to: one measurement of each kind of shape."""
        self._measured = {_alike(one): one for one in measured}
        self._before = self.model
        self._served: deque[Measurement] = deque(maxlen=MEMORY)
        self._unread = 0

    def note(self, batch: Measurement) -> bool:
        """A batch was served while all workers were busy; returns whether `model` was fitted again."""
        self._served.append(batch)
        self._unread += 1
        if self._unread < REFIT:
            return False
        self._unread = 0
        newest: dict[tuple[int, int], list[Measurement]] = {}
        for one in reversed(self._served):
            alike = newest.setdefault(_alike(one), [])
            if len(alike) < RECENT:
                alike.append(one)
        served = [one for alike in newest.values() for one in alike]
        drift = median(one.seconds / self._before.batch_s(one.rows, one.longest) for one in served)
        rest = [replace(one, seconds=drift * one.seconds) for kind, one in self._measured.items() if kind not in newest]
        self.model = CostModel.fit([*served, *rest], packed=self.model.packed)
        self.known = [*(self._typical(alike) for alike in newest.values()), *rest]
        return True

    def keep(self) -> None:
        """The last batch was served."""
        self._on_end(self.known)

    def _typical(self, alike: list[Measurement]) -> Measurement:
        """The one that took the median of the time that their shapes should take."""
        return sorted(alike, key=lambda one: one.seconds / self._before.batch_s(one.rows, one.longest))[len(alike) // 2]


@dataclass
class _Ratio:
    """Real seconds over others, of the last batches: the older the less."""

    real_s: float = 0.0
    other_s: float = 0.0

    def start(self, value: float, other_s: float) -> None:
        """Believe in `value` as after `other_s` of batches; does nothing where something is known."""
        if self.value is None:
            self.real_s, self.other_s = value * other_s, other_s

    def note(self, real_s: float, other_s: float) -> None:
        self.real_s = PACE_MEMORY * self.real_s + real_s
        self.other_s = PACE_MEMORY * self.other_s + other_s

    @property
    def value(self) -> float | None:
        return self.real_s / self.other_s if self.other_s else None


class Pace:
    """Makes real seconds of what a cost model predicts, by sums over the last batches.

    Single batches are no measure: on a busy machine one takes five times as long as the next, and an ingress that
    follows each of them lets everybody in, then nobody. Predicted seconds include the fixed cost of a batch; work,
    which is what the queue counts, does not.
    """

    def __init__(self, *, measured: bool) -> None:
        """`measured`: the cost model is in seconds of this machine; until a batch has ended it counts as it is."""
        self.batch_s = 0.0
        """Moving average of the real seconds of a batch."""
        self._measured = measured
        self._batches, self._full = _Ratio(), _Ratio()

    @property
    def drift(self) -> float | None:
        """Real over predicted seconds; None where nobody knows."""
        return (1.0 if self._measured else None) if self._batches.value is None else self._batches.value

    def predicted_s(self, real_s: float) -> float:
        """What the cost model says of a batch that takes `real_s`; infinite where nobody knows."""
        return real_s / self.drift if self.drift else math.inf

    def until_done_s(self, work_s: float, running_s: float) -> float:
        """Real seconds of one worker for `work_s` that waits, and for running batches of `running_s` in all, which
        count half: their mean remainder; 0.0 where nobody knows.

        What waits goes as fast as in batches that left rows behind.
        """
        if self.drift is None:
            return 0.0
        per_work = self.drift / (1 - SATURATED) if self._full.value is None else self._full.value
        return per_work * work_s + self.drift * running_s / 2

    def note(self, real_s: float, predicted_s: float, work_s: float, *, is_full: bool) -> None:
        """A batch has ended; `is_full`: rows waited that it did not take."""
        self.batch_s = BATCH_MEMORY * self.batch_s + (1 - BATCH_MEMORY) * real_s
        if self.drift is not None:
            self._batches.start(self.drift, KNOWN * predicted_s)
            if is_full:
                self._full.start(self.drift / (1 - SATURATED), KNOWN * work_s)
        self._batches.note(real_s, predicted_s)
        if is_full:
            self._full.note(real_s, work_s)

    def refitted(self) -> None:
        """The cost model now says of the last batches what they took."""
        self._batches.other_s = self._batches.real_s
        self._full.other_s = (1 - SATURATED) * self._full.real_s


def _alike(batch: Measurement) -> tuple[int, int]:
    """Batches with equal keys differ by less than a factor of two in rows and in length."""
    return round(batch.rows).bit_length(), round(batch.longest).bit_length()


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
    first: MeasuredT,
    others: Sequence[MeasuredT],
    waiting: int,
    config: BatchingConfig,
    cost: CostModel,
    limit_s: float = math.inf,
) -> list[MeasuredT]:
    """The batch of `first` and those of `others` with the nearest lengths that fit. `waiting` counts all waiting rows.

    A row joins where that costs less than a batch of its own, until the fixed cost is a small share of the batch, or
    one more row costs more than it saves: it delays every row of the batch by its own time, and saves every row behind
    it the fixed cost of a batch. Short queues are so answered by small batches, long ones by large batches. No row
    makes a batch longer than `limit_s` by the cost model, unless the fixed cost is a large share of it. A row that is
    longer than that alone, or longer than `max_batch_tokens`, is a batch of its own. A packed batch takes rows of any
    length, in their order.
    """
    limit_s = max(limit_s, cost.start_s / WORTHWHILE)
    if cost.packed:
        return _cut_packed(first, others, waiting, config, cost, limit_s)
    rows, longest = [first], first.n_tokens
    for one in sorted(others, key=lambda one: abs(one.n_tokens - first.n_tokens)):
        saved_s = cost.start_s * (waiting - len(rows))
        if len(rows) == config.max_batch_size or cost.is_saturated(len(rows), longest):
            break
        if saved_s < cost.row_s(longest) * len(rows) or cost.batch_s(len(rows) + 1, longest) > limit_s:
            break
        padded = max(longest, one.n_tokens)
        together_s = cost.batch_s(len(rows) + 1, padded)
        apart_s = cost.batch_s(len(rows), longest) + cost.batch_s(1, one.n_tokens)
        if padded * (len(rows) + 1) <= config.max_batch_tokens and together_s <= min(apart_s, limit_s):
            rows.append(one)
            longest = padded
    return rows


def _cut_packed(
    first: MeasuredT,
    others: Sequence[MeasuredT],
    waiting: int,
    config: BatchingConfig,
    cost: CostModel,
    limit_s: float,
) -> list[MeasuredT]:
    rows, n_tokens, rows_s = [first], first.n_tokens, cost.row_s(first.n_tokens)
    for one in others:
        one_s = cost.row_s(one.n_tokens)
        if len(rows) == config.max_batch_size or cost.start_s <= SATURATED * (cost.start_s + rows_s):
            break
        if cost.start_s * (waiting - len(rows)) < one_s * len(rows):
            break
        fits = cost.start_s + rows_s + one_s <= limit_s
        if fits and n_tokens + one.n_tokens <= config.max_batch_tokens:
            rows.append(one)
            n_tokens, rows_s = n_tokens + one.n_tokens, rows_s + one_s
    return rows
