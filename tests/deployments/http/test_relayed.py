"""A request that crosses processes, without Ray: the same answer in messages, and nothing runs on for nobody."""

import asyncio
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deployments.http.relayed import Exchange
from deployments.task_server import TaskServer
from tests.deployments.test_task_server import started

TASK = "text-generation"


def exchange(body: Any) -> Exchange:
    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": f"/{TASK}/v1/completions",
        "root_path": f"/{TASK}",
    }
    scope |= {"headers": [(b"content-type", b"application/json")], "query_string": b"", "server": ("sextet", 80)}
    made: Exchange = pickle.loads(pickle.dumps(Exchange(scope, json.dumps(body).encode())))
    return made


def server_of(exported: Callable[..., Path]) -> TaskServer:
    return started(TASK, exported("llama", TASK), slots={"slots": 1, "max_tokens": 250, "prefill_chunk_tokens": 16})


def test_a_relayed_request_is_answered_in_messages(exported: Callable[..., Path]) -> None:
    server = server_of(exported)

    async def scenario() -> list[Any]:
        return [message async for message in server.relayed(exchange({"prompt": "a", "max_tokens": 3}))]

    start, body, *_ = asyncio.run(scenario())

    assert start["status"] == 200
    assert json.loads(body["body"])["object"] == "text_completion"


def test_whoever_leaves_a_relayed_stream_ends_its_decoding(exported: Callable[..., Path]) -> None:
    server = server_of(exported)
    engine: Any = server._now.pipeline.generator._engine  # type: ignore[attr-defined]

    async def scenario() -> None:
        messages = server.relayed(exchange({"prompt": "a", "max_tokens": 240, "stream": True, "temperature": 0}))
        async for message in messages:
            if message["type"] == "http.response.body":
                break
        assert engine.free_slots == 0
        await messages.aclose()
        async with asyncio.timeout(20):
            while not engine.free_slots:  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    asyncio.run(scenario())
