"""The deadline header, kept from Serve: it would answer in plain text, and now and then before us.

Serve cancels a request whose `x-request-timeout-seconds` are over and answers by itself. This middleware, which Serve
puts around its HTTP servers (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH), hands the header on under another name.
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

PUBLIC = "x-request-timeout-seconds"
PRIVATE = "x-sextet-timeout-seconds"
_PUBLIC, _PRIVATE = PUBLIC.encode(), PRIVATE.encode()


class RenameDeadline:
    """ASGI middleware: one header has another name inside."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["headers"] = [(_PRIVATE if name == _PUBLIC else name, value) for name, value in scope["headers"]]
        await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Serve calls in every process that serves HTTP."""
    return [Middleware(RenameDeadline)]
