"""ModelStreamInfer: requests that come on one stream, each answered as if it had come alone, as it is ready.

    a message in  ──> a request of its own to the TaskServer: bounds, queue, deadline, metrics
    its answers   ──> messages out, with its id; those of several requests take turns

The stream ends when its client has sent its last request and all are answered, when a message is none, or when the
replica ends. Its trailers say which.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from deployments.config import LimitsConfig
from deployments.http.receiving import RECEIVING, STALLED, Arriving
from deployments.protocols.open_inference_grpc.frames import (
    INVALID_ARGUMENT,
    MEDIA_TYPE,
    OK,
    RESOURCE_EXHAUSTED,
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
"""Requests of one stream that are answered at once; further ones wait, up to the bytes that one body may have."""
ENDING = "the replica ends; open the stream again"
_EVENT, _END = len(b"data: "), len(b"\n\n")


class Stream(Response):
    """The answer to a stream of requests, which `server` answers one by one."""

    media_type = MEDIA_TYPE

    def __init__(self, request: Request, server: Server, limits: LimitsConfig) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._server, self._max_bytes = server, limits.max_body_bytes
        self._scope = _of_one(request.scope)
        self._send: Send = _nowhere
        self._inside: set[asyncio.Task[None]] = set()
        self._waiting: deque[bytes] = deque()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        reading = asyncio.create_task(self._read(receive))
        helping: list[asyncio.Task[Any]] = [reading, asyncio.create_task(self._server.ending.wait())]
        try:
            await asyncio.wait(helping, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                end = reading.result()
            else:
                end = UNAVAILABLE, ENDING
                reading.cancel()
                self._waiting.clear()
            left = asyncio.create_task(_left(receive))
            helping += [left, asyncio.create_task(self._all_answered())]
            await asyncio.wait(helping[-2:], return_when=asyncio.FIRST_COMPLETED)
            if end is not None and not left.done():
                await send(last(b"", *end))
        finally:
            self._waiting.clear()
            for one in (*helping, *self._inside):
                one.cancel()

    async def _read(self, receive: Receive) -> tuple[int, str] | None:
        """Begin with each message as it comes; returns how the stream is to end, None where the client has left."""
        try:
            async with asyncio.timeout(None) as timeout:
                arriving = Arriving(timeout)
                try:
                    return await self._read_messages(receive, arriving)
                finally:
                    RECEIVING.left(arriving)
        except TimeoutError:
            return RESOURCE_EXHAUSTED, STALLED

    async def _read_messages(self, receive: Receive, arriving: Arriving) -> tuple[int, str] | None:
        buffer, more = bytearray(), True
        while more:
            RECEIVING.grown(arriving, len(buffer), self._max_bytes)
            received = await receive()
            if received["type"] == "http.disconnect":
                return None
            buffer += received.get("body", b"")
            more = received.get("more_body", False)
            try:
                while (found := first(buffer, self._max_bytes)) is not None:
                    message, end = found
                    del buffer[:end]
                    self._waiting.append(message)
            except InvalidInputError as error:
                return INVALID_ARGUMENT, str(error)
            self._begin()
            while sum(map(len, self._waiting)) > self._max_bytes:  # the rest waits in sockets
                await asyncio.wait(self._inside, return_when=asyncio.FIRST_COMPLETED)
        return (INVALID_ARGUMENT, "the stream ends inside a message; allowed: whole messages") if buffer else (OK, "")

    def _begin(self, _ended: object = None) -> None:
        """Begin with messages that wait, as far as there is room."""
        while self._waiting and len(self._inside) < MAX_INSIDE:
            answering = asyncio.create_task(self._answer(self._waiting.popleft()))
            self._inside.add(answering)
            answering.add_done_callback(self._inside.discard)
            answering.add_done_callback(self._begin)

    async def _all_answered(self) -> None:
        while self._inside:
            await asyncio.wait(self._inside)
            await asyncio.sleep(0)  # what waited has begun then

    async def _answer(self, message: bytes) -> None:
        receive, send = _holding(message), _Unframed(message, self._send)
        with suppress(asyncio.CancelledError):
            scope = dict(self._scope)
            response = await self._server(Request(scope, receive))
            await response(scope, receive, send)


def _of_one(scope: Scope) -> Scope:
    """The scope of a message, by itself a request; its deadline is that of the stream."""
    path = f"{scope.get('root_path', '')}{ONE}"
    headers = [one for one in scope["headers"] if one[0] != b"content-length"]
    return {**scope, "path": path, "raw_path": path.encode(), "headers": headers}


async def _nowhere(message: Message) -> None:
    """What is sent before the answer has begun."""


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
