"""The clients of `make faults` against a server of a few lines: what they send, and what they make of the answers."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipelines
from benchmarks.faults.fuzz import RAW, bodies_of, filling, fuzz, mutated
from benchmarks.faults.overload import Flood
from benchmarks.faults.streams import Streams, tokens_within
from benchmarks.faults.traffic import Traffic
from benchmarks.load.client import CLOSED
from deployments.openapi import document
from pipelines.generation.slots.config import SlotsConfig
from tests.benchmarks.local_server import LocalServer, at_once, chunked, one_at_a_time, response


async def naming(body: Any) -> bytes:
    number = body["inputs"].rpartition("(")[2].rstrip(")")
    return response(b"{}", "200 OK", f"x-request-id: {number}")


async def failing(_body: Any) -> bytes:
    return response(b"{}", "500 Internal Server Error")


def test_every_request_is_written_down_with_its_answer() -> None:
    with LocalServer(naming) as server, Traffic(server.port, "/", "Text", 100.0) as traffic:
        traffic.strike()
        asyncio.run(asyncio.sleep(0.5))

    numbers = [int(entry.number) for entry in traffic.ledger.entries]
    assert sorted(numbers) == list(range(len(numbers)))
    assert {entry.outcome for entry in traffic.ledger.entries} == {"200"}
    assert traffic.ledger.lost == []


def test_a_server_that_dies_leaves_requests_without_an_answer() -> None:
    async def never(_body: Any) -> bytes:
        await asyncio.sleep(60)
        return b""

    with LocalServer(never) as server:
        traffic = Traffic(server.port, "/", "Text", 50.0)
        traffic.__enter__()
        asyncio.run(asyncio.sleep(0.3))
    traffic.__exit__(None, None, None)

    assert CLOSED in {entry.outcome for entry in traffic.ledger.lost}


def test_a_flood_counts_what_comes_in_time_and_what_is_refused() -> None:
    served = 0

    async def every_second(_body: Any) -> bytes:
        nonlocal served
        served += 1
        return response(b"{}", "200 OK" if served % 2 else "429 Too Many Requests")

    with LocalServer(every_second) as server:
        flooded = Flood(server.port, "/", b"{}", 200.0, 0.5, 2.0, 100).send()

    assert set(flooded.outcomes) == {"200", "429"}
    assert len(flooded.answered_s) == flooded.outcomes["200"] == flooded.in_time(2.0) > 0
    assert len(flooded.refused_s) == flooded.outcomes["429"] > 0
    assert 0.0 < flooded.recovery_s < 10.0


def test_a_flood_opens_no_more_connections_than_it_may() -> None:
    with LocalServer(one_at_a_time(0.05)) as server:
        flooded = Flood(server.port, "/", b"{}", 200.0, 0.5, 2.0, 5).send()

    assert flooded.most_connections <= 5
    assert flooded.outcomes["no connection left"] > 0


@pytest.mark.parametrize(
    ("events", "outcome"),
    [
        (3, "whole"),
        (2, "ended early"),
        (0, "error event: the replica is shutting down"),
    ],
)
def test_a_stream_is_whole_or_says_how_it_was_cut(events: int, outcome: str) -> None:
    async def stream(_body: Any) -> bytes:
        said = [b'data: {"token":{"id":1}}\n\n'] * events
        return chunked(*(said or [b'data: {"error":"the replica is shutting down"}\n\n']))

    with LocalServer(stream) as server, Streams(server.port, "/", 2, 3) as streams:
        pass

    assert {one.outcome for one in streams.all} == {outcome}
    assert len(streams.cut) == (0 if outcome == "whole" else 2)


@pytest.mark.parametrize(("first_s", "more_s"), [(0.04, 2.6e-5), (0.04, 0.0)])
def test_the_length_of_a_stream_follows_from_two_shorter_ones_whose_tokens_took_longer_and_longer(
    first_s: float, more_s: float
) -> None:
    def took_s(tokens: int) -> float:
        return first_s * tokens + more_s * tokens**2

    tokens = tokens_within(180.0, (200, 800), (took_s(200), took_s(800)))

    assert took_s(tokens) <= 180.0 < took_s(tokens + 2)


def test_hostile_requests_are_the_same_each_time_and_go_to_every_path() -> None:
    described = document("1")
    examples = bodies_of(described)
    requests = list(mutated(described, examples, 500))

    assert requests == list(mutated(described, examples, 500))
    assert {path for path in examples if any(f"POST {path}".encode() in one for one in requests)} == set(examples)


def test_an_answer_above_499_is_a_fault_and_one_below_is_none() -> None:
    bodies = [b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}"] * 3

    with LocalServer(failing) as server:
        fuzzed = fuzz(server.port, iter(bodies), ())
    assert (fuzzed.n_faults, fuzzed.outcomes["500"], len(fuzzed.faults)) == (3, 3, 3)

    with LocalServer(at_once) as server:
        fuzzed = fuzz(server.port, iter(bodies), RAW[:1])
    assert (fuzzed.n_faults, fuzzed.outcomes["200"]) == (0, 3)


@pytest.mark.parametrize(("architecture", "task"), [("llama", "text-generation"), ("marian", "translation")])
def test_all_slots_are_filled_by_three_quarters_at_least(
    architecture: str, task: str, exported: Callable[..., Path]
) -> None:
    model = exported(architecture, task)
    body = json.loads(filling({"model": str(model), "slots": {"slots": 4}}, "good bad", 64))
    pipeline = pipelines.load(model, task=task, slots=SlotsConfig(slots=4, max_tokens=64))
    assert len(body["inputs"]) == 4

    rows = pipeline.preprocess(body["inputs"], pipeline.parameters(body["parameters"]))

    written = [
        sum(len(one.steps) for one in answer.generations) for answer in pipeline.forward([row for (row,) in rows])
    ]
    assert [one >= 48 for one in written] == [True] * 4
