"""The parts of `make bench-fairness` that need no cluster."""

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable
from time import perf_counter
from typing import Any

import pytest

from benchmarks.load.asker import Asker
from benchmarks.load.crowd import Crowd, CrowdError
from benchmarks.suites import fairness
from benchmarks.suites.fairness import list_body, loop_thread
from deployments.config import LimitsConfig
from tests.benchmarks.local_server import LocalServer, response


async def slow(_body: Any) -> bytes:
    await asyncio.sleep(0.05)
    return response(b"{}")


async def refused(_body: Any) -> bytes:
    return response(b"{}", "429 Too Many Requests")


def send(asker: Asker, _number: int, begun: Callable[[], None]) -> None:
    begun()
    asker.ask("/", b"{}")


def test_a_crowd_has_one_request_of_each_client_inside_at_any_time() -> None:
    with LocalServer(slow) as server:
        with Crowd(server.port, 3, send) as crowd:
            crowd.wait()
            since = perf_counter()
            time.sleep(0.5)
            until = perf_counter()
        crowd.check(since, until)


def test_a_crowd_that_is_refused_was_not_inside_and_the_error_says_why() -> None:
    with LocalServer(refused) as server:
        with Crowd(server.port, 1, send) as crowd:
            since = perf_counter()
            time.sleep(0.3)
            until = perf_counter()
        with pytest.raises(CrowdError, match="429"):
            crowd.check(since, until)


def test_requests_under_way_are_dropped_at_the_end() -> None:
    async def never(_body: Any) -> bytes:
        await asyncio.sleep(60)
        return b""

    began_at = perf_counter()
    with LocalServer(never) as server, Crowd(server.port, 2, send) as crowd:
        crowd.wait()
        time.sleep(0.1)

    assert perf_counter() - began_at < 10


def test_the_list_is_within_the_limits_of_a_body() -> None:
    body = list_body(0)

    inputs = json.loads(body)["inputs"]
    limits = LimitsConfig()
    assert len(body) <= limits.max_body_bytes
    assert len(inputs) <= limits.max_inputs
    assert {len(text.split()) for text in inputs} == {fairness.LIST_WORDS}


def test_the_loop_thread_is_the_one_that_works() -> None:
    over, busy = threading.Event(), threading.Event()
    found: list[int] = []

    def work() -> None:
        found.append(threading.get_native_id())
        while not over.is_set():
            busy.is_set()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert loop_thread(os.getpid(), lambda: time.sleep(0.5)) == found[0]
    finally:
        over.set()
        thread.join()
