"""HostThreads: what waits for the thread of large bodies is bounded, and what leaves it makes room."""

import asyncio
import threading

import pytest

from deployments.host import BULK_BYTES, HostThreads
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


def test_a_body_larger_than_all_that_may_wait_is_read_where_none_waits() -> None:
    assert asyncio.run(HostThreads().read(lambda: "read", 2 * BULK_BYTES)) == "read"
