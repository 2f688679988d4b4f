"""Server-sent events: a response that sends each event as it comes, and several streams merged into one."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deployments.http.errors import Failure

T = TypeVar("T")


class EventStream(Response):
    """One `data: ...` event for each payload of `events`: a value, encoded as JSON, or bytes, sent as is.

    An exception from `events` becomes the last event, worded by `failure`. `events` is closed at the end, and when the
    client disconnects (Ray Serve then cancels the task that sends).
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[Any, None], failure: Callable[[Failure], bytes] = Failure.body) -> None:
        super().__init__(headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self._events, self._failure = events, failure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            try:
                async for payload in self._events:
                    await send(_event(payload if isinstance(payload, bytes) else orjson.dumps(payload)))
            except Exception as error:
                await send(_event(self._failure(Failure.of(error))))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self._events.aclose()


def _event(data: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True}


async def numbered(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """The items of all streams as they come, each with its stream's index.

    An exception in one stream is raised here and closes all of them.
    """
    if len(streams) == 1:  # needs no task and no queue
        async with aclosing(streams[0]) as only:
            async for first in only:
                yield 0, first
        return
    arrived: asyncio.Queue[tuple[int, T] | asyncio.Task[None]] = asyncio.Queue()

    async def read(number: int, stream: AsyncGenerator[T, None]) -> None:
        async with aclosing(stream):
            async for item in stream:
                arrived.put_nowait((number, item))

    tasks = [asyncio.create_task(read(number, stream)) for number, stream in enumerate(streams)]
    for task in tasks:
        task.add_done_callback(arrived.put_nowait)
    running = len(tasks)
    try:
        while running:
            item = await arrived.get()
            if isinstance(item, asyncio.Task):
                running -= 1
                item.result()
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
