"""Relay: a request that came to the gateway, answered by a replica of a task through its handle: one hop more.

    Gateway ──relay(task, path)──> handle ──> TaskServer.relayed(exchange) ──> its __call__, as at the task's own URL
            <──────────────── the ASGI messages of its response, as they come ────────────────

The messages go on to the client one by one, so that streams stay streams; a client that leaves cancels the replica's
work through the handle. A replica that dies before its answer has begun is followed by another, as at a task's own URL.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from deployments.http.errors import RouteNotFoundError, UnavailableError
from deployments.http.relayed import Exchange
from deployments.http.request import read_any_body

MAX_BODY_BYTES = 64 * 2**20
"""Above what any task is told to accept; the task's own limit is checked by the task."""
REPLICAS = 4
"""How many a request is given that its replicas do not survive."""
_PASSED = ("type", "http_version", "method", "headers", "query_string")


class Relayed(Response):
    """The response of a task's replica, message by message."""

    def __init__(self, head: Message, body: Message, messages: AsyncGenerator[Message, None]) -> None:
        """`body` is the first message of it, which is there before the head is sent: a head cannot be taken back."""
        super().__init__()
        self._begun, self._messages = (head, body), messages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._messages) as messages:
            for message in self._begun:
                await send(message)
            async for message in messages:
                await send(message)


async def relay(request: Request, task: str, path: str) -> Response:
    """The response of a replica of `task` at `path` below its prefix; RouteNotFoundError where it is not deployed.

    Raises UnavailableError where no replica lives long enough to answer.
    """
    try:
        handle = serve.get_app_handle(task)
    except RayServeException:
        raise RouteNotFoundError(f"{request.url.path} needs the task {task}, which is not deployed") from None
    scope = {name: request.scope[name] for name in _PASSED if name in request.scope}
    scope |= {"path": f"/{task}{path}", "root_path": f"/{task}", "server": ("sextet", 80)}
    exchange = Exchange(scope, await read_any_body(request, MAX_BODY_BYTES))
    for _ in range(REPLICAS):
        messages = _messages(handle.options(stream=True).relayed.remote(exchange))
        try:
            return Relayed(await anext(messages), await anext(messages), messages)  # what fails until then has a status
        except RayActorError:
            continue
    raise UnavailableError(f"{REPLICAS} replicas of {task} ended while they had this request", retry_after_s=5.0)


async def _messages(remote: Any) -> AsyncGenerator[Message, None]:
    try:
        async for message in remote:
            yield message
    finally:
        remote.cancel()
