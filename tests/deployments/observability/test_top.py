"""`sextet top`: the numbers between two looks at what a real replica hands out."""

from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from rich.console import Console

from deployments.observability.metrics import Metrics
from deployments.observability.statistics import live, quantile
from deployments.observability.top import COLUMNS, Snapshot, rows, table
from tests.deployments.asking import post
from tests.deployments.observability.observed import observed

TASK, GENERATION = "text-classification", "text-generation"


def test_a_line_has_what_happened_between_two_looks(exported: Callable[..., Path]) -> None:
    metrics = Metrics("r1")
    server = observed(GENERATION, exported("qwen2", GENERATION), metrics.observer, slots={"slots": 2, "max_tokens": 64})
    observed(TASK, exported("bert", TASK), metrics.observer)

    def look(at: float) -> Snapshot:
        return Snapshot.of(generate_latest(metrics.registry).decode(), at)

    post(server, {"inputs": 3})
    before = look(10.0)
    body = {"inputs": "The river", "parameters": {"max_new_tokens": 6, "do_sample": False}}
    tokens = sum(int(post(server, body).headers["x-compute-tokens"]) for _ in range(3))
    lines = {line[0]: dict(zip(COLUMNS, line, strict=True)) for line in rows(before, look(12.0))}

    assert set(lines) == {TASK, GENERATION}
    busy, idle = lines[GENERATION], lines[TASK]
    assert (busy["replicas"], busy["requests/s"], busy["failed"], busy["slots"]) == ("1", "1.5", "0.0%", "0/2")
    assert busy["tokens/s"] == f"{tokens / 2:,.0f}"
    assert busy["p50"].endswith(" ms")
    assert (idle["requests/s"], idle["p99"], idle["failed"], idle["slots"]) == ("0.0", "-", "-", "-")
    printed = StringIO()
    Console(file=printed, width=200).print(table(rows(before, look(12.0))))
    assert printed.getvalue().splitlines()[0].split() == [*COLUMNS]


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ([], 0.5, None),
        ([(1.0, 0.0), (float("inf"), 0.0)], 0.5, None),
        ([(1.0, 4.0), (float("inf"), 4.0)], 0.5, 0.5),
        ([(1.0, 2.0), (3.0, 4.0), (float("inf"), 4.0)], 0.75, 2.0),
        ([(1.0, 0.0), (float("inf"), 4.0)], 0.5, 1.0),
    ],
)
def test_quantiles_are_those_of_prometheus(
    counts: list[tuple[float, float]], share: float, expected: float | None
) -> None:
    assert quantile(counts, share) == expected


def test_a_live_row_is_what_happened_between_two_questions() -> None:
    before = {"answered": 10.0, "failed": 1.0, "at_most_0.1": 10.0, "at_most_0.2": 0.0, "at_most_inf": 0.0}
    after = before | {"answered": 110.0, "failed": 26.0, "at_most_0.1": 60.0, "at_most_0.2": 50.0}
    after |= {"replicas": 2.0, "waiting": 3.0, "slots": 16.0, "taken_slots": 5.0}

    row = live(before, after, elapsed_s=10.0)

    assert (row["requests_per_s"], row["failed"], row["p50_ms"]) == (12.5, 0.2, 100.0)
    assert row["p99_ms"] == pytest.approx(198.0)
    assert (row["replicas"], row["waiting"], row["slots"], row["taken_slots"]) == (2.0, 3.0, 16.0, 5.0)
    quiet = live(after, after, elapsed_s=10.0)
    assert (quiet["requests_per_s"], quiet["failed"], quiet["p50_ms"]) == (0.0, None, None)
    # A replica that has ended takes its counts with it.
    assert live(after, before, elapsed_s=10.0)["requests_per_s"] == 0.0
