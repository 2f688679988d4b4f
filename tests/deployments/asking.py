"""Requests to a TaskServer without Ray, as Serve would hand them over."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from deployments.task_server import TaskServer

Ask = Callable[[httpx.AsyncClient], Awaitable[Any]]


def asking(server: TaskServer, ask: Ask) -> Any:
    """What `ask` returns, given a client whose requests reach the server as Serve would hand them over."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["root_path"] = f"/{server.task}"
        response = await server(Request(scope, receive, send))
        await response(scope, receive, send)

    async def scenario() -> Any:
        async with asyncio.timeout(60):
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://sextet") as client:
                return await ask(client)

    return asyncio.run(scenario())


def post(server: TaskServer, body: Any, path: str = "", **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    names = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    response: httpx.Response = asking(
        server, lambda client: client.post(f"/{server.task}{path}", content=content, headers=names)
    )
    return response
