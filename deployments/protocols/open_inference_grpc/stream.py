"""ModelStreamInfer: requests that come on one stream, each answered as if it had come alone, as it is ready.

    a message in  ──> a request of its own to the TaskServer: bounds, queue, deadline, metrics
    its answers   ──> messages out, with its id; those of several requests take turns

The stream ends when its client has sent its last request and all are answered, when a message is none, or when the
replica ends. Its trailers say which.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from deployments.config import LimitsConfig
from deployments.protocols.open_inference_grpc.frames import (
    INVALID_ARGUMENT,
    MEDIA_TYPE,
    OK,
    UNAVAILABLE,
    first,
    framed,
    last,
)
from deployments.protocols.open_inference_grpc.infer import of_request
from deployments.protocols.protocol import Server
from pipelines.errors import InvalidInputError

ONE = "/grpc/ModelStreamInfer/one"
"""Where a message goes inside the application."""
MAX_INSIDE = 64
"""Requests of one stream that are answered at once; further ones wait in their sockets."""
ENDING = "the replica ends; open the stream again"
_EVENT, _END = len(b"data: "), len(b"\n\n")


class Stream(Response):
    """The answer to a stream of requests, which `server` answers one by one."""

    media_type = MEDIA_TYPE

    def __init__(self, request: Request, server: Server, limits: LimitsConfig) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._prefix, self._server = request.scope.get("root_path", ""), server
        self._max_bytes = limits.max_body_bytes
        self._requests: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        reading = asyncio.create_task(self._read(scope, receive, send))
        helping: list[asyncio.Task[Any]] = [reading, asyncio.create_task(self._server.ending.wait())]
        try:
            await asyncio.wait(helping, return_when=asyncio.FIRST_COMPLETED)
            status, message = reading.result() if reading.done() else (UNAVAILABLE, ENDING)
            reading.cancel()
            if self._requests:
                helping += [asyncio.create_task(_left(receive)), asyncio.create_task(asyncio.wait(self._requests))]
                await asyncio.wait(helping[-2:], return_when=asyncio.FIRST_COMPLETED)
                if helping[-2].done():
                    raise asyncio.CancelledError
            await send(last(b"", status, message))
        finally:
            for one in (*helping, *self._requests):
                one.cancel()

    async def _read(self, scope: Scope, receive: Receive, send: Send) -> tuple[int, str]:
        """Start the request of each message; returns how the stream is to end. Raises CancelledError where the client
        has left.
        """
        waiting, more = bytearray(), True
        while more:
            received = await receive()
            if received["type"] == "http.disconnect":
                raise asyncio.CancelledError
            waiting += received.get("body", b"")
            more = received.get("more_body", False)
            try:
                while (found := first(waiting, self._max_bytes)) is not None:
                    message, end = found
                    del waiting[:end]
                    await self._begin(scope, message, send)
            except InvalidInputError as error:
                return INVALID_ARGUMENT, str(error)
        if waiting:
            return INVALID_ARGUMENT, "the stream ends inside a message; allowed: whole messages"
        return OK, ""

    async def _begin(self, scope: Scope, message: bytes, send: Send) -> None:
        while len(self._requests) >= MAX_INSIDE:
            await asyncio.wait(self._requests, return_when=asyncio.FIRST_COMPLETED)
        answering = asyncio.create_task(self._answer(scope, message, send))
        self._requests.add(answering)
        answering.add_done_callback(self._requests.discard)

    async def _answer(self, scope: Scope, message: bytes, send: Send) -> None:
        path = f"{self._prefix}{ONE}"
        headers = [one for one in scope["headers"] if one[0] != b"content-length"]
        alone: Scope = {**scope, "path": path, "raw_path": path.encode(), "headers": headers}
        receive, unframed = _holding(message), _Unframed(message, send)
        with suppress(asyncio.CancelledError):
            response = await self._server(Request(alone, receive))
            await response(alone, receive, unframed)


class _Unframed:
    """Sends the messages of an answer, without the events that they may come in."""

    def __init__(self, request: bytes, send: Send) -> None:
        self._request, self._send, self._is_events = request, send, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._is_events = any(value.startswith(b"text/event-stream") for _, value in message["headers"])
            return
        body: bytes = message.get("body", b"")
        if body:
            answer = of_request(body[_EVENT:-_END] if self._is_events else body, self._request)
            await self._send({"type": "http.response.body", "body": framed(answer), "more_body": True})


async def _left(receive: Receive) -> None:
    """Until the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _holding(message: bytes) -> Callable[[], Awaitable[Message]]:
    """The body of a request that has come as a whole, from a client that stays."""
    messages: list[Message] = [{"type": "http.request", "body": message, "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()
        raise AssertionError

    return receive
