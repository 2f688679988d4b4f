"""Gateway: the application at `/`. It knows the other applications and answers what is no task's.

GET /               the tasks, their models, whether they are ready (the console for browsers)
GET /health         200: this process is up
GET /ready          200 when every task has a ready replica, else 503 with those that have not
GET /openapi.json   the HTTP API
GET /console/...    what the page at / is made of
/v1/...             text-generation's; /predict is text-classification's
/v2/...             the server's; /v2/models/<task>/... is the task's
/models/<id>/...    the task's, by its name or by its model's
"""

import asyncio
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from deployments.console.page import page
from deployments.http.errors import Failure, RouteNotFoundError
from deployments.http.relay import Relayed, relay
from deployments.http.request import Timings, require_method, route_of
from deployments.protocols.open_inference import server_metadata
from deployments.protocols.openai.errors import failure_body
from pipelines.schema import encode, shown
from pipelines.tasks import TASKS

DESCRIBE_TIMEOUT_S = 2.0  # a task that is starting or busy is listed without its model
METHODS = "GET, HEAD"
ALIASES = ("/v1/...", "/v2/models/<task>/...", "/models/<id>/...", "POST /predict")


class Gateway:
    """Which tasks there are it asks Serve at each request: the answer changes while replicas come and go."""

    def __init__(self) -> None:
        self._routes: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "/": self._catalog,
            "/health": self._health,
            "/ready": self._ready,
            "/openapi.json": self._openapi,
            "/v2": self._server,
            "/v2/health/live": self._live,
            "/v2/health/ready": self._server_ready,
        }

    async def __call__(self, request: Request) -> Response:
        timings = Timings()
        try:
            response = await self._answer(request)
        except Exception as error:
            response = self._failed(request, Failure.of(error))
        if isinstance(response, Relayed):  # it brings the task's own times
            return response
        response.raw_headers += timings.headers()
        return response

    async def _answer(self, request: Request) -> Response:
        route = route_of(request)
        if (alias := await self._alias(route)) is not None:
            return await relay(request, *alias)
        if (console := page(route.removeprefix("/console/"))) is not None and route.startswith("/console/"):
            require_method(request, METHODS)
            return console
        if route not in self._routes:
            routes = [f"POST /{task}" for task in TASKS] + [f"GET {path}" for path in self._routes] + list(ALIASES)
            raise RouteNotFoundError(f"{request.url.path} does not exist; routes: {', '.join(routes)}")
        require_method(request, METHODS)
        return await self._routes[route](request)

    async def _alias(self, route: str) -> tuple[str, str] | None:
        """The task that a route is another name of, and the path below it."""
        first, _, rest = route.removeprefix("/").partition("/")
        if first == "v1":
            return "text-generation", route
        if first == "predict" and not rest:
            return "text-classification", route
        if first == "v2" and rest.startswith("models/"):
            return _known(rest.removeprefix("models/").partition("/")[0]), route
        if first == "models" and rest:
            return await _task_of(rest)
        return None

    def _failed(self, request: Request, failure: Failure) -> Response:
        if not route_of(request).startswith("/v1/"):
            return failure.response()
        return failure.response(failure_body(failure))

    async def _live(self, request: Request) -> Response:
        return _json({"live": True})

    async def _server_ready(self, request: Request) -> Response:
        ready = await _readiness()
        return _json({"ready": all(ready.values())}, 200 if ready and all(ready.values()) else 503)

    async def _server(self, request: Request) -> Response:
        return _json(server_metadata(version("sextet")))

    async def _health(self, request: Request) -> Response:
        return _json({"status": "ok"})

    async def _ready(self, request: Request) -> Response:
        ready = await _readiness()
        missing = [task for task, is_ready in ready.items() if not is_ready]
        if missing or not ready:
            error = f"no ready replica: {', '.join(missing)}" if missing else "no task is deployed"
            return _json({"error": error, "error_type": "overloaded", "not_ready": missing}, status=503)
        return _json({"status": "ready", "tasks": list(ready)})

    async def _catalog(self, request: Request) -> Response:
        if "text/html" in request.headers.get("accept", "") and (console := page("index.html")):
            return console
        ready = await _readiness()
        models = await asyncio.gather(*(_model(task) if is_ready else _nothing() for task, is_ready in ready.items()))
        tasks = [
            {"task": task, "route": f"/{task}", "ready": is_ready, "model": model}
            for (task, is_ready), model in zip(ready.items(), models, strict=True)
        ]
        return _json({"name": "sextet", "version": version("sextet"), "tasks": tasks})

    async def _openapi(self, request: Request) -> Response:
        from deployments.openapi import document  # imports every pipeline: only for those who ask

        return _json(await asyncio.to_thread(document, version("sextet")))


async def _readiness() -> dict[str, bool]:
    """Whether each deployed task has a replica that takes requests, in the order of TASKS."""
    applications = (await asyncio.to_thread(serve.status)).applications
    return {
        task: applications[task].deployments[task].replica_states.get("RUNNING", 0) > 0
        if task in applications[task].deployments
        else False
        for task in TASKS
        if task in applications
    }


async def _model(task: str) -> dict[str, Any] | None:
    handle = serve.get_app_handle(task)
    try:
        async with asyncio.timeout(DESCRIBE_TIMEOUT_S):
            described: dict[str, Any] = await handle.describe.remote()
            return described
    except Exception:
        return None


def _known(task: str) -> str:
    if task not in TASKS:
        raise RouteNotFoundError(f"there is no model {shown(task)}; allowed: {', '.join(TASKS)}")
    return task


async def _task_of(path: str) -> tuple[str, str]:
    """The task whose name, or whose model's, `path` begins with, and the path below; such names may have slashes."""
    names = {task: task for task in TASKS}
    if path.partition("/")[0] not in names:
        ready = [task for task, is_ready in (await _readiness()).items() if is_ready]
        models = await asyncio.gather(*map(_model, ready))
        # A model that serves several tasks answers for the last of them: the one that writes freely.
        names |= {model["id"]: task for task, model in zip(ready, models, strict=True) if model}
    for name in sorted(names, key=len, reverse=True):
        if path == name or path.startswith(f"{name}/"):
            return names[name], path[len(name) :] or "/"
    raise RouteNotFoundError(f"there is no model {shown(path)}; allowed: {', '.join(names)}")


async def _nothing() -> None:
    return None


def _json(content: Any, status: int = 200) -> Response:
    return Response(encode(content), status, media_type="application/json")
