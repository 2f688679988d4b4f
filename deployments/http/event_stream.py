"""Server-sent events: a response that sends each event as it comes."""

from collections.abc import AsyncGenerator, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deployments.http.errors import CLIENT_LEFT, Failure
from pipelines.schema import encode


class EventStream(Response):
    """One `data: ...` event for each payload of `events`: a value, encoded as JSON, or bytes, sent as is.

    An exception from `events` becomes the last event, worded by `failure`. `events` is closed at the end, and when the
    client disconnects (Ray Serve then cancels the task that sends). `ended` is then called, once, with what failed.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[Any, None], failure: Callable[[Failure], bytes] = Failure.body) -> None:
        super().__init__(headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self._events, self._failure = events, failure
        self.ended: Callable[[Failure | None], None] = lambda failure: None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        failed: Failure | None = None
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            try:
                async for payload in self._events:
                    await send(_event(payload if isinstance(payload, bytes) else encode(payload)))
            except Exception as error:
                failed = Failure.of(error)
                await send(_event(self._failure(failed)))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except BaseException:
            failed = CLIENT_LEFT
            raise
        finally:
            await self._events.aclose()
            self.ended(failed)


def _event(data: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True}


async def begun(events: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    """The same events, once the first is there: until then an error has a status."""
    try:
        first = await anext(events)
    except BaseException:
        await events.aclose()
        raise

    async def resumed() -> AsyncGenerator[Any, None]:
        try:
            yield first
            async for event in events:
                yield event
        finally:
            await events.aclose()

    return resumed()
