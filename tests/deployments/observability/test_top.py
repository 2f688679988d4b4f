"""`sextet top`: the numbers between two looks at what a real replica hands out."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from io import StringIO
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from rich.console import Console

from deployments.observability.metrics import Metrics
from deployments.observability.statistics import added, live, model_statistics, quantile
from deployments.observability.top import COLUMNS, Snapshot, look, rows, table
from tests.deployments.asking import post
from tests.deployments.observability.observed import observed
from tests.local_server import LocalServer

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


def test_what_the_client_did_wrong_is_no_failure_anywhere(
    exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the terminal, in the console and for Triton's clients; the alerts count 5xx."""
    metrics = Metrics("r1")
    server = observed(TASK, exported("bert", TASK), metrics.observer)
    look, numbers = Snapshot.of(generate_latest(metrics.registry).decode(), 0.0), asyncio.run(server.statistics())

    post(server, {"inputs": "a"})
    post(server, {"inputs": 3})
    monkeypatch.setattr(server._now.pipeline, "postprocess", lambda *given: 1 / 0)
    assert post(server, {"inputs": "a"}).status_code == 500

    (line,) = rows(look, Snapshot.of(generate_latest(metrics.registry).decode(), 1.0))
    now = asyncio.run(server.statistics())
    assert (line[3], line[4]) == ("3.0", "33.3%")
    assert live(numbers, now, 1.0)["requests_per_s"] == 3
    assert live(numbers, now, 1.0)["failed"] == pytest.approx(1 / 3)
    counted = model_statistics(TASK, "1", added([now]))["inference_stats"]
    assert (counted["success"]["count"], counted["fail"]["count"]) == (1, 1)


def test_a_live_row_is_what_happened_between_two_questions() -> None:
    before = {
        "answered": 10.0,
        "refused": 0.0,
        "failed": 1.0,
        "at_most_0.1": 10.0,
        "at_most_0.2": 0.0,
        "at_most_inf": 0.0,
    }
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


class Handing(BaseHTTPRequestHandler):
    """Hands out what `service.text` makes; nothing where that is empty."""

    def do_GET(self) -> None:
        text = self.server.service.text()  # type: ignore[attr-defined]
        self.send_response(200 if text else 503)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


class NodeOf(LocalServer):
    """A node with a model of which so many requests are answered between two looks, each in 60 ms."""

    def __init__(self, replica: str, requests: int, waiting: int = 0) -> None:
        super().__init__(Handing)
        self._labels = f'task="{TASK}",model="m",version="v",replica="{replica}"'
        self._requests, self._waiting, self._looks, self.is_lost = requests, waiting, 0, False

    def text(self) -> str:
        if self.is_lost:
            return ""
        self._looks += 1
        labels, counted = self._labels, 1000 + self._looks * self._requests
        buckets = [
            f'sextet_request_seconds_bucket{{{labels},le="{le}"}} {n}' for le, n in (("0.05", 0), ("0.1", counted))
        ]
        lines = [
            f"sextet_artifact_info{{{labels}}} 1",
            f'sextet_requests_total{{{labels},status="200"}} {counted}',
            f"sextet_queue_requests{{{labels}}} {self._waiting}",
            *buckets,
        ]
        return "".join(f"{line}\n" for line in lines)


def printed(*urls: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """`sextet top --once` of some nodes."""
    options = [option for url in urls for option in ("--metrics", url)]
    command = [sys.executable, "-m", "sextet", "top", "--once", "--every", "0.5", *options]
    wide = os.environ | {"COLUMNS": "200"} | environment
    return subprocess.run(command, capture_output=True, text=True, env=wide, timeout=60)


def test_the_command_adds_up_the_nodes_that_it_is_given() -> None:
    with NodeOf("a", 100, waiting=3) as one, NodeOf("b", 200, waiting=4) as two:
        found = printed(one.url, two.url)
        alone = printed(one.url)
        named = printed(SEXTET_METRICS=f"{one.url} {two.url}")

    assert found.returncode == 0, found.stderr
    head, *lines = (line.split() for line in found.stdout.splitlines() if line.strip())
    assert head == [*COLUMNS]
    (line,) = lines
    assert line[:3] == [TASK, "m", "2"]
    assert 0 < float(line[3]) <= 600
    assert (line[4], line[5:7], line[9]) == ("0.0%", ["75", "ms"], "7")
    assert [run.stdout.splitlines()[1].split()[2] for run in (alone, named)] == ["1", "2"]


def test_a_node_that_is_lost_is_named_and_the_others_are_shown_with_their_own_rates() -> None:
    with NodeOf("a", 100) as one, NodeOf("b", 5000) as two:
        before, silent = look((one.url, two.url))
        assert silent == []
        two.is_lost = True
        without, silent = look((one.url, two.url))
        two.is_lost = False
        again, _ = look((one.url, two.url))
        settled, _ = look((one.url, two.url))
        two.is_lost = True
        asked = printed(one.url, two.url)

    (named,) = silent
    assert named.startswith(f"{two.url} answered 503")
    rates = []
    for earlier, later in ((before, without), (without, again), (again, settled)):
        (line,) = rows(replace(earlier, at=0.0), replace(later, at=1.0))
        rates.append((line[2], line[3]))
    assert rates == [("1", "100.0"), ("2", "100.0"), ("2", "5100.0")]
    assert asked.returncode == 0
    assert f"{two.url} answered 503" in asked.stdout


def test_where_no_node_hands_anything_out_the_command_ends_in_one_line() -> None:
    with NodeOf("a", 1) as one:
        one.is_lost = True
        lost = printed(one.url)
    gone = printed(one.url)
    for found in (lost, gone):
        assert (found.returncode, found.stdout) == (1, "")
        assert len(found.stderr.splitlines()) == 1
    assert lost.stderr.startswith(f"sextet: {one.url} answered 503")
    assert gone.stderr.startswith(f"sextet: no answer from {one.url}")


def test_an_address_that_hands_out_something_else_is_told_in_one_line() -> None:
    with NodeOf("a", 1) as one:
        one.text = lambda: '{"name": "sextet", "tasks": []}'  # type: ignore[method-assign]
        found = printed(one.url)
    (line,) = found.stderr.splitlines()
    assert line.startswith(f"sextet: {one.url} hands out no metrics (")
    (line,) = printed("nowhere").stderr.splitlines()
    assert line.startswith("sextet: --metrics: unknown url type: 'nowhere'; allowed: ")
