"""`sextet top`: the numbers between two looks at what a real replica hands out."""

from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from rich.console import Console

from deployments.observability.metrics import Metrics
from deployments.observability.top import COLUMNS, Snapshot, quantile, rows, table
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
