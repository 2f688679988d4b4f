"""A TaskServer whose metrics are read as Prometheus reads them, and the requests that tests send it."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from deployments.http.request import Observer
from deployments.observability.metrics import Metrics
from deployments.task_server import TaskServer
from pipelines.runtime.artifact import ModelArtifact

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def observed(task: str, model: Path, observe: Callable[[ModelArtifact], Observer], **user_config: Any) -> TaskServer:
    server = TaskServer(task, observe)
    asyncio.run(server.reconfigure({"model": str(model), **user_config}))
    return server


def asking(server: TaskServer, ask: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
    """What `ask` returns, given a client of the server."""

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
    names = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response: httpx.Response = asking(
        server, lambda client: client.post(f"/{server.task}{path}", content=content, headers=names)
    )
    return response


def series_of(text: str) -> Series:
    """Each series of an exposition by its name and labels; fails where one occurs twice."""
    found: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, key
            found[key] = sample.value
    return found


def values(metrics: Metrics, name: str, **labels: str) -> list[float]:
    """Those of the series of a name that have these labels."""
    series = series_of(generate_latest(metrics.registry).decode())
    return [value for (found, has), value in series.items() if found == name and labels.items() <= dict(has).items()]
