"""Cost measurement: what batches cost on this machine, before the first request."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipelines.scheduling.batching import Measurement

MEASURED_ROWS = (1, 4, 16)
LARGE_ROWS = (64, 256)
"""Measured too where a batch may have so many: a GPU computes some hundred rows in hardly more time than one."""
MEASURED_TOKENS = (16, 64, 128, 384)
REPETITIONS = 2  # timed rounds for each shape
IN_A_ROW = 2  # forwards for each worker and round
BUDGET_S = 2.0  # of all measurements together
WARM_UP_S = 0.2  # where costs are known


def measure(
    forward: Callable[[Sequence[Any]], object],
    blank_row: Callable[[int], Any],
    shapes: Iterable[tuple[int, int]],
    concurrency: int = 1,
) -> list[Measurement]:
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
    return measured


def warm(
    forward: Callable[[Sequence[Any]], object],
    blank_row: Callable[[int], Any],
    shapes: Iterable[tuple[int, int]],
    concurrency: int = 1,
) -> None:
    """Run each shape once in each worker, cheapest first, for at most about `WARM_UP_S`: onnxruntime allocates."""
    ends_at = time.perf_counter() + WARM_UP_S
    with ThreadPoolExecutor(concurrency) as workers:
        for rows, tokens in shapes:
            batch = [blank_row(tokens)] * rows
            list(workers.map(lambda _, batch=batch: forward(batch), range(concurrency)))
            if time.perf_counter() > ends_at:
                break


def shapes_within(max_length: int, max_batch_tokens: int, max_batch_size: int) -> Iterator[tuple[int, int]]:
    """Shapes (rows, tokens) worth measuring that a model and a configuration allow, cheapest first."""
    lengths = sorted({min(tokens, max_length) for tokens in MEASURED_TOKENS})
    counts = (*MEASURED_ROWS, *(rows for rows in LARGE_ROWS if rows <= max_batch_size))
    shapes = [(rows, tokens) for rows in counts for tokens in lengths]
    allowed = [(rows, tokens) for rows, tokens in shapes if rows == 1 or rows * tokens <= max_batch_tokens]
    yield from sorted(
        {(min(rows, max_batch_size), tokens) for rows, tokens in allowed}, key=lambda shape: shape[0] * shape[1]
    )
