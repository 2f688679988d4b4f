"""ASGI middleware around the HTTP servers of Ray Serve (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH).

Deadline: Serve cancels a request whose `x-request-timeout-seconds` are over, and answers in plain text. The header is
therefore renamed. The replica keeps the deadline. Where no replica takes the request in time (Serve's fallback proxy
holds the requests of a task whose only replica is being replaced), the 408 comes from here.

Headers that Serve fails on: an `x-request-id` that is not UTF-8 is dropped (Serve makes a new one), a websocket closed.

Retries: the head of a response is held back until its body begins, so that HAProxy can still ask another replica.
"""

import asyncio
import uuid

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.http.errors import Failure
from deployments.http.guard import FromIngress
from deployments.http.listening import listen_privately
from deployments.http.request import DEADLINE_HEADER, HIDDEN_DEADLINE_HEADER, waited_s
from deployments.ingress.keys import shared_secret
from pipelines.errors import DeadlineExceededError

GRACE_S = 0.5  # a replica answers at the deadline, with timings; without a replica the answer comes this much later
LONGEST_S = 86_400.0  # a longer deadline is ignored: the event loop's timers do not reach as far as floats
_DEADLINE, _HIDDEN, _REQUEST_ID = DEADLINE_HEADER.encode(), HIDDEN_DEADLINE_HEADER.encode(), b"x-request-id"
_NOT_SUPPORTED = 1003  # a close code of websockets


class RenameDeadline:
    """Renames the deadline header, drops a client's header of the hidden name, and answers where nobody else does."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _NOT_SUPPORTED})
            return
        if scope["type"] == "http":
            scope["headers"] = [
                (_HIDDEN if name == _DEADLINE else name, value)
                for name, value in scope["headers"]
                if name != _HIDDEN and (name != _REQUEST_ID or _is_utf8(value))
            ]
        timeout_s, send = _seconds(scope), _head_with_body(send)
        if timeout_s is None:
            await self._app(scope, receive, send)
        else:
            await self._within(timeout_s, scope, receive, send)

    async def _within(self, timeout_s: float, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, and answer in its place where it has not begun to after `timeout_s` and GRACE_S."""

        async def send_in_time(message: Message) -> None:
            if limit.expired():  # Serve's own answer to a request that was cancelled
                return
            limit.reschedule(None)
            await send(message)

        limit = asyncio.timeout(timeout_s - waited_s(scope, timeout_s) + GRACE_S)
        try:
            async with limit:
                await self._app(scope, receive, send_in_time)
        except TimeoutError:
            if not limit.expired():
                raise
        if limit.expired():
            error = DeadlineExceededError("the request's deadline ran out before a replica took it")
            response = Failure.of(error).response()
            response.headers["x-request-id"] = _request_id(scope)  # Serve's own middleware for it is not reached
            await response(scope, receive, send)


def _head_with_body(send: Send) -> Send:
    """Send the head of a response together with the beginning of its body: a head cannot be taken back."""
    head: Message | None = None

    async def send_together(message: Message) -> None:
        nonlocal head
        if message["type"] == "http.response.start":
            head = message
            return
        if head is not None:
            begun, head = head, None
            await send(begun)
        await send(message)

    return send_together


def _seconds(scope: Scope) -> float | None:
    """The seconds of a valid deadline header, else None; the replica refuses an invalid one."""
    given = [value for name, value in scope.get("headers", ()) if name == _HIDDEN]
    try:
        timeout_s = float(given[0]) if given else 0.0
    except ValueError:
        return None
    return timeout_s if 0 < timeout_s <= LONGEST_S else None


def _request_id(scope: Scope) -> str:
    """The client's own id, else a new one."""
    given = [value.decode() for name, value in scope["headers"] if name == _REQUEST_ID]
    return given[0] if given and given[0].isascii() else str(uuid.uuid4())


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def middlewares() -> list[Middleware]:
    """Serve calls this in every process that serves HTTP, before it listens."""
    listen_privately()
    return [Middleware(RenameDeadline), Middleware(FromIngress, shared_secret())]
