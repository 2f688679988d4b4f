"""Relay: a request that came to the gateway, answered by a replica of a task through its handle: one hop more.

    Gateway ──relay(task, path)──> handle ──> TaskServer.relayed(exchange) ──> its __call__, as at the task's own URL
            <──────────────── the ASGI messages of its response, as they come ────────────────

The messages go on to the client one by one, so that streams stay streams; a client that leaves cancels the replica's
work through the handle.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from ray import serve
from ray.serve.exceptions import RayServeException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from deployments.errors import RouteNotFoundError
from deployments.exchange import read_any_body
from deployments.relayed import Exchange

MAX_BODY_BYTES = 64 * 2**20
"""Above what any task is told to accept; the task's own limit is checked by the task."""
_PASSED = ("type", "http_version", "method", "headers", "query_string")


class Relayed(Response):
    """The response of a task's replica, message by message."""

    def __init__(self, first: Message, messages: AsyncGenerator[Message, None]) -> None:
        super().__init__()
        self._first, self._messages = first, messages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._messages) as messages:
            await send(self._first)
            async for message in messages:
                await send(message)


async def relay(request: Request, task: str, path: str) -> Response:
    """The response of a replica of `task` at `path` below its prefix; RouteNotFoundError where it is not deployed."""
    try:
        handle = serve.get_app_handle(task)
    except RayServeException:
        raise RouteNotFoundError(f"{request.url.path} needs the task {task}, which is not deployed") from None
    scope = {name: request.scope[name] for name in _PASSED if name in request.scope}
    scope |= {"path": f"/{task}{path}", "root_path": f"/{task}", "server": ("sextet", 80)}
    exchange = Exchange(scope, await read_any_body(request, MAX_BODY_BYTES))
    messages = _messages(handle.options(stream=True).relayed.remote(exchange))
    return Relayed(await anext(messages), messages)  # what fails before the first one still has a status


async def _messages(remote: Any) -> AsyncGenerator[Message, None]:
    try:
        async for message in remote:
            yield message
    finally:
        remote.cancel()
