"""HostThreads: what waits for the thread of large bodies is bounded, and what leaves it makes room."""

import asyncio
import subprocess
import sys
import threading

import pytest

from deployments.host import BULK_BYTES, MAX_COMPILING, HostThreads
from pipelines.errors import OverloadedError


def test_large_bodies_are_refused_where_too_many_wait_and_small_ones_never() -> None:
    gate = threading.Event()

    def held() -> str:
        gate.wait(20)
        return "read"

    async def scenario() -> list[str]:
        host = HostThreads()
        waiting = [asyncio.create_task(host.read(held, BULK_BYTES // 2)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="16777216 bytes of large bodies wait to be tokenized"):
            await host.read(lambda: "read", 100_000)
        assert await host.read(lambda: "small", 10_000) == "small"
        waiting.pop().cancel()
        await asyncio.sleep(0)
        waiting.append(asyncio.create_task(host.read(lambda: "later", 100_000)))
        await asyncio.sleep(0)
        gate.set()
        return await asyncio.gather(*waiting)

    assert asyncio.run(scenario()) == ["read", "later"]


def test_grammars_are_refused_where_too_many_wait_and_other_bodies_are_not() -> None:
    gate = threading.Event()

    async def scenario() -> list[bool]:
        host = HostThreads()
        waiting = [asyncio.create_task(host.compile(lambda: gate.wait(20))) for _ in range(MAX_COMPILING)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match=f"{MAX_COMPILING} grammars wait to be compiled; allowed: "):
            await host.compile(lambda: True)
        assert await host.read(lambda: "small", 100) == "small"
        gate.set()
        answers = await asyncio.gather(*waiting)
        return [*answers, await host.compile(lambda: True)]

    assert all(asyncio.run(scenario()))


def test_a_body_larger_than_all_that_may_wait_is_read_where_none_waits() -> None:
    assert asyncio.run(HostThreads().read(lambda: "read", 2 * BULK_BYTES)) == "read"


@pytest.mark.parametrize(("workers", "body_bytes", "at_once"), [(6, 10_000, 6), (6, 100, 3), (1, 10_000, 2)])
def test_a_replica_on_a_gpu_reads_as_many_bodies_at_once_as_it_has_cores(
    workers: int, body_bytes: int, at_once: int
) -> None:
    together, begun = threading.Barrier(at_once), threading.Semaphore(0)

    def work() -> int:
        begun.release()
        return together.wait(20)

    async def scenario() -> list[int]:
        host = HostThreads()
        host.grow(workers)
        reading = []
        for _ in range(at_once):
            reading.append(asyncio.create_task(host.read(work, body_bytes)))
            await asyncio.to_thread(begun.acquire, timeout=20)  # a burst would take all that wait
        return await asyncio.gather(*reading)

    assert sorted(asyncio.run(scenario())) == list(range(at_once))


def test_memory_that_was_freed_between_what_is_kept_goes_back_to_the_system() -> None:
    code = (
        "import os, psutil, deployments.host as host; resident = lambda: psutil.Process().memory_info().rss;"
        "blocks = [bytes(60_000) for _ in range(2_000)]; kept = blocks[::2]; full = resident(); del blocks;"
        "held = resident(); host.give_memory_back(); print(full - held < 2**24, held - resident() > 2**25)"
    )

    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["True", "True"]
