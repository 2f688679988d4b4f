"""Relayed: a request that crosses processes, and its answer as ASGI messages: the replica's half of relay.py."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message


@dataclass(frozen=True)
class Exchange:
    """A request as it crosses processes: ASGI's scope, cut to what can, and the whole body."""

    scope: Mapping[str, Any]
    body: bytes

    def request(self) -> Request:
        """The request again. Its `receive` waits for ever after the body: who leaves cancels the task instead."""
        sent = False

        async def receive() -> Message:
            nonlocal sent
            if sent:
                await asyncio.Event().wait()
            sent = True
            return {"type": "http.request", "body": self.body, "more_body": False}

        return Request(dict(self.scope), receive)


async def answer(exchange: Exchange, call: Callable[[Request], Awaitable[Response]]) -> AsyncGenerator[Message, None]:
    """The ASGI messages of what `call` answers; closing the generator cancels it."""
    messages: asyncio.Queue[Message | None] = asyncio.Queue()

    async def run() -> None:
        request = exchange.request()
        try:
            response = await call(request)
            await response(request.scope, request.receive, messages.put)
        finally:
            messages.put_nowait(None)

    task = asyncio.create_task(run())
    try:
        while (message := await messages.get()) is not None:
            yield message
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
