"""CostModel: the seconds of a batch by its shape, measured on this machine; it decides how large batches become.

A forward costs something whatever it holds (starting it, reading the weights), something per padded token (the
matrix products) and something per pair of tokens in a row (attention):

    seconds = start_s + token_s * rows * longest + pair_s * rows * longest**2

On a CPU the first is soon negligible, so a large batch of long texts gains nothing and only keeps the next one
waiting; a batch of short ones gains several times. On a GPU it stays large. The same rule serves both.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Self

import numpy as np

SATURATED = 0.05
"""A batch is large enough once starting it is this share of what it costs: nothing more can be gained than that."""
MEASURED_ROWS = (1, 4, 16)
MEASURED_TOKENS = (16, 64, 128, 384)
REPETITIONS = 2
IN_A_ROW = 2
BUDGET_S = 2.0


@dataclass(frozen=True)
class Measurement:
    """One forward of `rows` x `longest` padded tokens."""

    rows: int
    longest: int
    seconds: float


@dataclass(frozen=True)
class CostModel:
    """The three prices of a forward. Only their ratios matter to a batch; absolute times are kept true by the batcher,
    which compares what it predicts with what it sees.
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
        """Whether further rows would hardly make any row cheaper."""
        return self.start_s <= SATURATED * self.batch_s(rows, longest)

    @classmethod
    def fit(cls, measured: Sequence[Measurement]) -> Self:
        """Least squares of the relative errors over prices that are not negative; needs one measurement or more."""
        shapes = np.array([(1, one.rows * one.longest, one.rows * one.longest**2) for one in measured], np.float64)
        seconds = np.array([one.seconds for one in measured])
        shapes /= seconds[:, None]
        best, least = np.array([0.0, 1.0, 0.0]), np.inf
        for used in (list(names) for n in (1, 2, 3) for names in combinations(range(3), n)):
            prices = np.zeros(3)
            prices[used] = np.linalg.lstsq(shapes[:, used], np.ones(len(measured)), rcond=None)[0]
            error = float(((shapes @ prices - 1) ** 2).sum())
            # A batch must cost something per token: a model without that would never be saturated.
            if (prices >= 0).all() and prices[1] > 0 and error < least:
                best, least = prices, error
        return cls(*best.tolist())


UNMEASURED = CostModel(start_s=32.0, token_s=1.0)
"""For models whose forward has no fixed shape: starting a batch costs as much as 32 tokens."""


def measure(
    forward: Callable[[Sequence[Any]], object],
    blank_row: Callable[[int], Any],
    shapes: Iterable[tuple[int, int]],
    concurrency: int = 1,
) -> CostModel:
    """Time `forward` on batches of (rows, tokens) for at most about `BUDGET_S`, and warm the session up by that.

    `concurrency` workers run batches one after the other, as they will: one fills the gaps that another leaves, so that
    starting a batch costs less than it does alone. The time of each is its share. `shapes` come cheapest first. Each is
    run once to let onnxruntime allocate, then the fastest of a few rounds counts: whatever else the machine does only
    adds time.
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
