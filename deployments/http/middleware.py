"""Headers that are kept from Serve, because it would answer in plain text, and now and then before us.

Serve cancels a request whose `x-request-timeout-seconds` are over and answers by itself: this middleware, which Serve
puts around its HTTP servers (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH), hands that header on under another name. The
replica keeps the deadline; where none takes the request in time (while the only replica of a task is replaced, Serve's
fallback proxy holds its requests), the answer is given here. Serve fails on an `x-request-id` that is not UTF-8, and on
a websocket, which none of our routes is: the first is left out (a new id is made), the second closed. As the
outermost one it also holds the head of an answer back until its body begins.
"""

import asyncio
import uuid

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.http.errors import Failure
from pipelines.errors import DeadlineExceededError

PUBLIC = "x-request-timeout-seconds"
PRIVATE = "x-sextet-timeout-seconds"
_PUBLIC, _PRIVATE, _REQUEST_ID = PUBLIC.encode(), PRIVATE.encode(), b"x-request-id"
_NOT_SUPPORTED = 1003
GRACE_S = 0.5  # this answers so much later than a replica would, whose answer has timings
LONGEST_S = 86_400.0  # a later deadline is none: timers do not reach as far as floats


class RenameDeadline:
    """ASGI middleware: the deadline has another name inside, which nobody can send from outside."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _NOT_SUPPORTED})
            return
        if scope["type"] == "http":
            scope["headers"] = [
                (_PRIVATE if name == _PUBLIC else name, value)
                for name, value in scope["headers"]
                if name != _PRIVATE and (name != _REQUEST_ID or _is_utf8(value))
            ]
        timeout_s, send = _seconds(scope), _head_with_body(send)
        if timeout_s is None:
            await self._app(scope, receive, send)
        else:
            await self._within(timeout_s, scope, receive, send)

    async def _within(self, timeout_s: float, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, and answer for it where it has not begun to after `timeout_s`."""

        async def relay(message: Message) -> None:
            if limit.expired():  # what Serve says of a request that was cancelled
                return
            limit.reschedule(None)
            await send(message)

        limit = asyncio.timeout(timeout_s + GRACE_S)
        try:
            async with limit:
                await self._app(scope, receive, relay)
        except TimeoutError:
            if not limit.expired():
                raise
        if limit.expired():
            error = DeadlineExceededError("the request's deadline ran out before a replica took it")
            response = Failure.of(error).response()
            response.headers["x-request-id"] = _request_id(scope)  # Serve's own middleware for it is further inside
            await response(scope, receive, send)


def _head_with_body(send: Send) -> Send:
    """The head of an answer goes out when its body begins: between them a process that dies could not be replaced."""
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
    """The deadline of a request; None where it has none, or one that the replica will refuse."""
    given = [value for name, value in scope.get("headers", ()) if name == _PRIVATE]
    try:
        timeout_s = float(given[0]) if given else 0.0
    except ValueError:
        return None
    return timeout_s if 0 < timeout_s <= LONGEST_S else None


def _request_id(scope: Scope) -> str:
    """The client's own, else a new one."""
    given = [value.decode() for name, value in scope["headers"] if name == _REQUEST_ID]
    return given[0] if given and given[0].isascii() else str(uuid.uuid4())


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def middlewares() -> list[Middleware]:
    """What Serve calls in every process that serves HTTP."""
    return [Middleware(RenameDeadline)]
