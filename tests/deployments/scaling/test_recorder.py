"""What replicas say of themselves: a real TaskServer under real requests."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.http.request import BULK, CLASS_HEADER
from deployments.scaling.recorder import Recorder
from deployments.scaling.signals import QUANTILES, ReplicaSignals
from deployments.task_server import TaskServer
from tests.deployments.asking import asking

CLASSIFY, WRITE = "text-classification", "text-generation"


def started(task: str, model: Path, **user_config: Any) -> TaskServer:
    server = TaskServer(task, lambda artifact: Recorder())
    asyncio.run(server.reconfigure({"model": str(model), **user_config}))
    return server


async def said(server: TaskServer) -> ReplicaSignals:
    signals = ReplicaSignals.of_metrics(await server.record_autoscaling_stats())
    assert signals is not None
    return signals


@pytest.fixture(scope="module")
def model(exported: Callable[..., Path]) -> Path:
    return exported("bert", CLASSIFY)


def test_a_server_without_a_model_says_nothing() -> None:
    assert ReplicaSignals.of_metrics(asyncio.run(TaskServer(CLASSIFY).record_autoscaling_stats())) is None


def test_signals_are_read_as_they_were_written() -> None:
    signals = ReplicaSignals(2.0, 0.5, 8.0, 3.0, queue_s={0.9: 0.2}, inter_token_s={0.5: 0.01})
    assert ReplicaSignals.of_metrics(signals.metrics()) == signals


def test_answered_requests_are_load_with_times(model: Path) -> None:
    server = started(CLASSIFY, model)

    async def ask(client: httpx.AsyncClient) -> ReplicaSignals:
        for _ in range(20):
            assert (await client.post(f"/{CLASSIFY}", json={"inputs": "what a film"})).status_code == 200
        return await said(server)

    signals = asking(server, ask)

    assert (signals.ended, signals.servers, signals.inside) == (20, 1, 0)
    assert signals.load > 0
    assert signals.load == pytest.approx(signals.requests_per_s * signals.service_s)
    assert 0 < signals.utilization <= 1
    assert set(signals.response_s) == set(QUANTILES)
    assert 0 < signals.response_s[0.5] <= signals.response_s[0.99]
    assert signals.inter_token_s == {}


def test_what_waits_and_what_is_inside_is_said_while_it_is_so(model: Path) -> None:
    server = started(CLASSIFY, model, batching={"max_batch_size": 1})

    async def ask(client: httpx.AsyncClient) -> tuple[float, float]:
        await client.post(f"/{CLASSIFY}", json={"inputs": "what a film"})  # the cost model knows its drift then
        asked = [client.post(f"/{CLASSIFY}", json={"inputs": ["what a film"] * 50}) for _ in range(8)]
        waiting = asyncio.gather(*asked)
        most = ReplicaSignals()
        while not waiting.done():
            now = await said(server)
            most = max(most, now, key=lambda one: one.queued_s)
            await asyncio.sleep(0.001)
        assert {one.status_code for one in await waiting} == {200}
        return most.queued_s, most.inside

    queued_s, inside = asking(server, ask)

    assert queued_s > 0
    assert inside == 8
    assert asyncio.run(said(server)).queued_s == 0


def test_refused_requests_are_load_too(model: Path) -> None:
    """A replica that refuses gets more than it can do, though what it admits is never more than that."""
    server = started(CLASSIFY, model, batching={"max_batch_size": 1}, queue={"max_queue_tokens": 500})

    async def ask(client: httpx.AsyncClient) -> tuple[int, ReplicaSignals]:
        body = {"inputs": ["some text"] * 50}
        responses = await asyncio.gather(*(client.post(f"/{CLASSIFY}", json=body) for _ in range(12)))
        return sum(one.status_code == 429 for one in responses), await said(server)

    refused, signals = asking(server, ask)

    assert refused > 0
    over_s = (12 - refused) / (signals.load / signals.service_s - refused / 12 * signals.requests_per_s)
    assert signals.requests_per_s * over_s == pytest.approx(12, rel=0.01)


def test_bulk_requests_ask_for_no_replicas_and_keep_the_one_they_are_in(model: Path) -> None:
    server = started(CLASSIFY, model, batching={"max_batch_size": 1})

    async def ask(client: httpx.AsyncClient) -> ReplicaSignals:
        asked = client.post(f"/{CLASSIFY}", json={"inputs": ["text"] * 200}, headers={CLASS_HEADER: BULK})
        waiting, most = asyncio.ensure_future(asked), ReplicaSignals()
        while not waiting.done():
            most = max(most, await said(server), key=lambda one: one.inside)
            await asyncio.sleep(0.001)
        assert (await waiting).status_code == 200
        return most

    most = asking(server, ask)

    assert (most.inside, most.queued_s, most.load, most.requests_per_s) == (1, 0, 0, 0)
    assert asyncio.run(said(server)).load == 0


def test_of_an_answer_that_does_not_stream_a_level_bounds_the_wait_for_its_start(exported: Callable[..., Path]) -> None:
    """How long it becomes is its client's choice, who does not see its first token."""
    server = started(WRITE, exported("qwen2", WRITE), slots={"slots": 2, "max_tokens": 512})
    body = {"inputs": "The river", "parameters": {"max_new_tokens": 100, "do_sample": False}}

    async def ask(client: httpx.AsyncClient) -> tuple[ReplicaSignals, float]:
        answer = await client.post(f"/{WRITE}", json=body)
        return await said(server), float(answer.headers["x-inference-time"]) / 1000

    signals, inference_s = asking(server, ask)

    assert (signals.ended, signals.own_s, signals.inter_token_s) == (1, 0.0, {})
    assert signals.response_s[0.5] < inference_s


def test_streams_have_times_of_tokens_and_are_not_counted_once_they_ended(exported: Callable[..., Path]) -> None:
    server = started(WRITE, exported("qwen2", WRITE), slots={"slots": 2, "max_tokens": 512})
    body = {"inputs": "The river", "parameters": {"max_new_tokens": 200}, "stream": True}

    async def ask(client: httpx.AsyncClient) -> tuple[ReplicaSignals, ReplicaSignals]:
        streams = asyncio.gather(*(client.post(f"/{WRITE}", json=body) for _ in range(2)))
        most = ReplicaSignals()
        while not streams.done():
            most = max(most, await said(server), key=lambda one: one.inside)
            await asyncio.sleep(0.001)
        assert {one.status_code for one in await streams} == {200}
        left = asyncio.create_task(client.post(f"/{WRITE}", json=body))
        while (await said(server)).inside == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        left.cancel()  # the client leaves in the middle
        await asyncio.wait([left])
        async with asyncio.timeout(10):
            while server._now.scheduler._rows_inside:  # type: ignore[attr-defined]  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        before = server._now.scheduler.demand_s
        await asyncio.sleep(0.05)
        assert server._now.scheduler.demand_s == before, "a stream that has ended asks for nothing"
        return most, await said(server)

    most, after = asking(server, ask)

    assert (most.inside, most.servers) == (2, 2)
    assert 0 < most.load <= 1.01
    assert after.inside == 0
    assert after.ended == 2
    assert 0 < after.inter_token_s[0.9] < after.service_s
    assert 0 < after.own_s < after.service_s
