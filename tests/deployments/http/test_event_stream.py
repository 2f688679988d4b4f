"""Streams over ASGI, without Ray: events in order, errors with a status before the first and as an event after it."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from deployments.http.event_stream import EventStream
from deployments.task_server import TaskServer
from pipelines.errors import GenerationError

TASK = "text-generation"


@pytest.fixture(scope="module")
def server(exported: Callable[..., Path]) -> TaskServer:
    server = TaskServer(TASK)
    asyncio.run(server.reconfigure({"model": str(exported("gpt2", TASK)), "batching": {"max_batch_size": 1}}))
    return server


async def post(server: TaskServer, body: Any, messages: list[Message], **headers: str) -> None:
    """One POST; what the server sends goes to `messages` as it is sent."""
    scope = {
        "type": "http",
        "method": "POST",
        "path": f"/{TASK}",
        "root_path": f"/{TASK}",
        "query_string": b"",
        "server": ("sextet", 80),
        "headers": [
            (b"content-type", b"application/json"),
            *((name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()),
        ],
    }

    async def receive() -> Message:
        return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

    async def send(message: Message) -> None:
        messages.append(message)
        await asyncio.sleep(0)

    response = await server(Request(scope, receive, send))
    await response(scope, receive, send)


def events(messages: list[Message]) -> list[Any]:
    blocks = b"".join(message.get("body", b"") for message in messages[1:]).decode().split("\n\n")
    return [json.loads(block.removeprefix("data: ")) for block in blocks if block]


def body(max_new_tokens: int, **parameters: Any) -> dict[str, Any]:
    parameters = {"max_new_tokens": max_new_tokens, "do_sample": False, "return_full_text": False, **parameters}
    return {"inputs": "The river", "stream": True, "parameters": parameters}


def test_each_token_is_an_event_and_the_last_one_has_the_text(server: TaskServer) -> None:
    messages: list[Message] = []

    asyncio.run(post(server, body(6), messages))

    assert messages[0]["status"] == 200
    received = events(messages)
    assert [event["index"] for event in received] == list(range(1, len(received) + 1))
    assert [event["generated_text"] is None for event in received] == [True] * (len(received) - 1) + [False]
    assert messages[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


def test_a_stream_tells_its_times_and_forbids_caches(server: TaskServer) -> None:
    messages: list[Message] = []

    asyncio.run(post(server, body(2), messages))

    headers = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
    assert headers["content-type"].startswith("text/event-stream")
    assert (headers["cache-control"], "content-length" in headers) == ("no-store", False)
    assert float(headers["x-inference-time"]) > 0
    assert int(headers["x-compute-tokens"]) > 0


@pytest.mark.parametrize(
    ("parameters", "headers", "status"),
    [
        ({"temperature": -1.0}, {}, 400),
        ({"best_of": 2, "do_sample": True}, {}, 400),
        ({}, {"x_request_timeout_seconds": "0.0000001"}, 408),
    ],
)
def test_what_fails_before_the_first_token_has_a_status_of_its_own(
    server: TaskServer, parameters: dict[str, Any], headers: dict[str, str], status: int
) -> None:
    messages: list[Message] = []

    asyncio.run(post(server, body(4, **parameters), messages, **headers))

    assert messages[0]["status"] == status
    assert "error_type" in json.loads(messages[1]["body"])


def test_what_fails_in_mid_stream_is_a_last_event() -> None:
    async def source() -> Any:
        yield {"index": 1}
        raise GenerationError("no more")

    async def send(message: Message) -> None:
        messages.append(message)

    messages: list[Message] = []

    asyncio.run(EventStream(source())({}, None, send))  # type: ignore[arg-type]

    assert events(messages) == [{"index": 1}, {"error": "no more", "error_type": "generation"}]


def test_a_client_that_leaves_ends_its_decoding_and_frees_its_slot(server: TaskServer) -> None:
    async def scenario() -> int:
        messages: list[Message] = []
        leaving = asyncio.create_task(post(server, body(200), messages))
        while len(messages) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        received = len(messages)
        while server._now.pipeline.generator._engine._decoding:  # type: ignore[attr-defined]  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        return received

    async def limited() -> int:
        async with asyncio.timeout(20):
            return await scenario()

    assert asyncio.run(limited()) < 200
