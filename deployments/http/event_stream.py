"""Server-sent events: a response that sends each event as it comes and tells its source when the client leaves."""

from collections.abc import AsyncGenerator, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deployments.http.errors import Failure
from pipelines.schema import encode


class EventStream(Response):
    """`data: {...}` for each payload of `events`; an exception among them becomes a last event, worded by `failure`.

    A payload is JSON, or bytes that are sent as they are.

    Serve cancels the task that sends when the client disconnects: `events` is closed then, and at the end.
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
                    await send(_event(payload if isinstance(payload, bytes) else encode(payload)))
            except Exception as error:
                await send(_event(self._failure(Failure.of(error))))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self._events.aclose()


def _event(data: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True}
