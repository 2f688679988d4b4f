"""Headers that are kept from Serve, because it would answer in plain text, and now and then before us.

Serve cancels a request whose `x-request-timeout-seconds` are over and answers by itself: this middleware, which Serve
puts around its HTTP servers (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH), hands that header on under another name. It
fails on an `x-request-id` that is not UTF-8, and on a websocket, which none of our routes is: the first is left out (a
new id is made), the second closed.
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

PUBLIC = "x-request-timeout-seconds"
PRIVATE = "x-sextet-timeout-seconds"
_PUBLIC, _PRIVATE, _REQUEST_ID = PUBLIC.encode(), PRIVATE.encode(), b"x-request-id"
_NOT_SUPPORTED = 1003


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
        await self._app(scope, receive, send)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def middlewares() -> list[Middleware]:
    """What Serve calls in every process that serves HTTP."""
    return [Middleware(RenameDeadline)]
