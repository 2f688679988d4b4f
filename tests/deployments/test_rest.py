"""Rest: when a replica gives memory back, and that it does so while nobody waits."""

import asyncio
import gc
import logging
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments import rest
from deployments.host import give_memory_back
from deployments.rest import COLLECTED_AFTER, Rest, collect_seldom
from deployments.task_server import TaskServer
from tests.deployments.asking import asking

TASK = "text-classification"
QUIET_S = 0.05
LOOKS = 8


@pytest.fixture(autouse=True)
def quiet_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "QUIET_S", QUIET_S)


def released(
    monkeypatch: pytest.MonkeyPatch,
    *resident_mib: int,
    visits: Callable[[], tuple[int, int]] = lambda: (7, 0),
    release: Callable[[], None] = lambda: None,
) -> list[str]:
    """The threads in which a Rest released memory, of a process whose size is one of `resident_mib` after the other."""
    sizes, threads = list(resident_mib), list[str]()
    monkeypatch.setattr(rest, "resident_bytes", lambda: sizes.pop(0) * 2**20 if len(sizes) > 1 else sizes[0] * 2**20)

    def noted() -> None:
        threads.append(threading.current_thread().name)
        release()

    looks: list[tuple[int, int]] = []

    def looked() -> tuple[int, int]:
        looks.append(visits())
        return looks[-1]

    async def scenario() -> None:
        resting = Rest(noted, looked)
        async with asyncio.timeout(60):
            while len(looks) < LOOKS:  # noqa: ASYNC110
                await asyncio.sleep(QUIET_S)
        resting.end()
        if resting._giving is not None:
            resting._giving.join()

    asyncio.run(scenario())
    return threads


def test_a_replica_that_has_grown_gives_memory_back_once_it_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    assert released(monkeypatch, 100, 150, 110) == ["rest"]


def test_a_model_that_gives_nothing_back_is_said_so_and_glibc_does_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given: list[str] = []
    monkeypatch.setattr(rest, "give_memory_back", lambda: given.append("glibc"))
    monkeypatch.setattr(rest, "logger", logging.getLogger("rest"))  # Ray's hands nothing on

    def fails() -> None:
        raise MemoryError("none left")

    assert released(monkeypatch, 100, 150, 110, release=fails) == ["rest"]
    assert given == ["glibc"]
    assert "the model gives no memory back" in caplog.text


def test_one_that_has_hardly_grown_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert released(monkeypatch, 100, 103) == []


def test_nothing_is_given_back_while_a_request_is_inside_or_others_come(monkeypatch: pytest.MonkeyPatch) -> None:
    came = count()

    assert released(monkeypatch, 100, 900, visits=lambda: (7, 1)) == []
    assert released(monkeypatch, 100, 900, visits=lambda: (next(came), 0)) == []


def test_the_memory_of_a_peak_is_given_back_and_the_next_request_answered(
    exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, done = TaskServer(TASK), threading.Event()

    def give_back() -> None:
        give_memory_back()
        done.set()

    monkeypatch.setattr(rest, "GROWN_BYTES", -(2**40))
    monkeypatch.setattr(rest, "give_memory_back", give_back)

    async def visit(client: httpx.AsyncClient) -> list[Any]:
        async def ask() -> httpx.Response:
            return await client.post(f"/{TASK}", json={"inputs": ["good"] * 64})

        await server.reconfigure({"model": str(exported("bert", TASK))})
        answers = [await ask()]
        assert await asyncio.to_thread(done.wait, 20)
        return [*answers, await ask()]

    first, second = asking(server, visit)
    assert first.status_code == second.status_code == 200
    assert first.json() == second.json()


def test_objects_of_a_crowd_are_seldom_searched_for_garbage_and_garbage_in_cycles_does_not_stay() -> None:
    usual = gc.get_threshold()

    class Node:
        def __init__(self) -> None:
            self.itself = self

    def searches() -> int:
        return sum(generation["collections"] for generation in gc.get_stats())

    try:
        collect_seldom()
        gc.collect()
        before = searches()
        inside = [[number] for number in range(COLLECTED_AFTER[0] - 2000)]
        assert searches() == before
        for _ in range(3 * COLLECTED_AFTER[0]):
            Node()
        assert len(inside) == COLLECTED_AFTER[0] - 2000
        assert sum(type(one) is Node for one in gc.get_objects()) <= COLLECTED_AFTER[0]
    finally:
        gc.set_threshold(*usual)
