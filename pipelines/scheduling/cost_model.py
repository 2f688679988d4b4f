"""CostModel: what a batch costs on this machine, measured before serving and again by serving itself.

A forward has a fixed cost (kernel launches, reading the weights), a cost per padded token (matrix products) and a cost
per pair of tokens in a row (attention):

    seconds = start_s + token_s * rows * longest + pair_s * rows * longest**2

A packed batch (pipelines.runtime.rows) has no padding: of it, the tokens and pairs of each row count. It costs as much
as one of equal rows, of which `CostModel.shape` tells the number and the length.

A measurement before the first request is made once, on a machine where other replicas may be starting. So it decides
nothing for good: LearnedCost goes on fitting the prices to the batches that are served.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import median
from typing import Any, Self

import numpy as np

SATURATED = 0.05
"""A batch is large enough once its fixed cost is at most this share of its whole cost: no more can be saved."""
MEASURED_ROWS = (1, 4, 16)
LARGE_ROWS = (64, 256)
"""Measured too where a batch may have so many: a GPU computes some hundred rows in hardly more time than one."""
MEASURED_TOKENS = (16, 64, 128, 384)
REPETITIONS = 2  # timed rounds for each shape
IN_A_ROW = 2  # forwards for each worker and round
BUDGET_S = 2.0  # of all measurements together
RECENT = 8  # served batches that LearnedCost keeps of shapes that are alike
REFIT = 32  # served batches after which LearnedCost fits again


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

    Of shapes that were not served, the measurements from before the first request count, scaled by how much slower or
    faster than they say the served ones are.
    """

    def __init__(self, measured: Sequence[Measurement], *, packed: bool = False) -> None:
        self.model = CostModel.fit(measured, packed=packed)
        self._measured = {_alike(one): one for one in measured}
        self._before = self.model
        self._served: dict[tuple[int, int], deque[Measurement]] = {}
        self._unread = 0

    def note(self, batch: Measurement) -> bool:
        """A batch was served while all workers were busy; returns whether `model` was fitted again."""
        self._served.setdefault(_alike(batch), deque(maxlen=RECENT)).append(batch)
        self._unread += 1
        if self._unread < REFIT:
            return False
        self._unread = 0
        served = [one for recent in self._served.values() for one in recent]
        drift = median(one.seconds / self._before.batch_s(one.rows, one.longest) for one in served)
        rest = [
            replace(one, seconds=drift * one.seconds)
            for kind, one in self._measured.items()
            if kind not in self._served
        ]
        self.model = CostModel.fit([*served, *rest], packed=self.model.packed)
        return True


def _alike(batch: Measurement) -> tuple[int, int]:
    """Batches with equal keys differ by less than a factor of two in rows and in length."""
    return round(batch.rows).bit_length(), round(batch.longest).bit_length()


def measure(
    forward: Callable[[Sequence[Any]], object],
    blank_row: Callable[[int], Any],
    shapes: Iterable[tuple[int, int]],
    concurrency: int = 1,
    *,
    packed: bool = False,
) -> LearnedCost:
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
    return LearnedCost(measured, packed=packed)


def shapes_within(max_length: int, max_batch_tokens: int, max_batch_size: int) -> Iterator[tuple[int, int]]:
    """Shapes (rows, tokens) worth measuring that a model and a configuration allow, cheapest first."""
    lengths = sorted({min(tokens, max_length) for tokens in MEASURED_TOKENS})
    counts = (*MEASURED_ROWS, *(rows for rows in LARGE_ROWS if rows <= max_batch_size))
    shapes = [(rows, tokens) for rows in counts for tokens in lengths]
    allowed = [(rows, tokens) for rows, tokens in shapes if rows == 1 or rows * tokens <= max_batch_tokens]
    yield from sorted(
        {(min(rows, max_batch_size), tokens) for rows, tokens in allowed}, key=lambda shape: shape[0] * shape[1]
    )
