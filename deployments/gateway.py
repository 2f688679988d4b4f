"""Gateway: the application at `/`, for people and probes. It answers what belongs to no task.

GET /               the tasks, their models, whether they are ready (the console for browsers)
GET /health         200: this process is up
GET /ready          200 when every task has a ready replica or may have none, else 503 with those that have not
GET /openapi.json   the HTTP API
GET /live           what the models do, as server-sent events
GET /console/...    the files of the page at /
GET /v2, /v2/health/live, /v2/health/ready    the server, as the Open Inference Protocol describes it
GET, POST /v2/repository/index                the models, as Triton lists them
GET /v2/models/[<model>/]stats                what they have done, as Triton counts it; HAProxy: /v2/repository/...
POST /grpc/<call>                             calls of gRPC that belong to no model's replica
GET /catalog/<task>[/<model>][/<adapter>]     one model: its card, parity, labels, replicas (console/models.py)
GET /catalog/<task>/v1/models[/<name>]        the models of a task with several, as OpenAI lists them; clients ask
                                              /<task>/v1/models

HAProxy rewrites the aliases at the root (deployments/ingress/model_rules/aliases.py), so they do not come here. Two
kinds do, and get a redirect to the task's own path: /models/<model id>/..., whose ids only the replicas know, and every
alias where Ray Serve's Python proxy serves.
"""

import asyncio
import posixpath
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import version
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from deployments.cluster.catalog import RETRY_AFTER_S, Catalog
from deployments.config import model_of, route_of, task_of
from deployments.console.live import LiveView
from deployments.console.models import model_page
from deployments.console.page import page
from deployments.http.errors import Failure, RouteNotFoundError, UnavailableError
from deployments.http.request import Route, Timings, may_ask, read_body
from deployments.ingress.config import IngressConfig
from deployments.ingress.model_rules.aliases import of_path
from deployments.ingress.model_rules.shares import split_of
from deployments.protocols.open_inference import READY, IndexBody, server_metadata
from deployments.protocols.open_inference_grpc.server import MAX_BYTES, PREFIX, ServerCalls
from deployments.protocols.openai.errors import failure_body
from deployments.protocols.openai.protocol import model_card
from deployments.served import with_adapter
from pipelines.misfit import shown
from pipelines.schema import decode, encode
from pipelines.tasks import TASKS

METHODS = "GET, HEAD"
INDEX = "/v2/repository/index"
OnEnding = Callable[[Callable[[float], None]], None]
OF_OPENAI = re.compile(r"(/catalog/[^/]+)?/v1/")
ALIASES = ("/v2/models/<task>/...", "/models/<id>/...")


class Gateway:
    """Answers from `catalog`, which asks Ray Serve."""

    def __init__(self, observe: Callable[[], None] = lambda: None, on_ending: OnEnding = lambda begin: None) -> None:
        """`observe` is called in this process. `on_ending` is given what is to be called once it is to end."""
        observe()
        self._catalog = Catalog()
        self._calls = ServerCalls(self._catalog, version("sextet"))
        self._view = LiveView(self._catalog)
        on_ending(lambda limit_s: self._view.end())
        self._pages: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "/": self._tasks,
            "/health": self._health,
            "/live": self._watch,
            "/ready": self._ready,
            "/openapi.json": self._openapi,
            "/v2": self._server,
            "/v2/health/live": self._live,
            "/v2/health/ready": self._server_ready,
            INDEX: self._index,
        }

    def reconfigure(self, user_config: Any) -> None:
        """Refuse a `user_config` that is wrong. The ingress of each node has read it before: ingress/config.py."""
        IngressConfig.from_user_config(user_config)

    async def __call__(self, request: Request) -> Response:
        timings, route = Timings(), Route.of(request)
        try:
            response = await self._answer(request, route)
        except Exception as error:
            failure = Failure.of(error)
            response = failure.response(failure_body(failure) if OF_OPENAI.match(route.path) else None)
        response.raw_headers += timings.headers()
        return response

    async def _answer(self, request: Request, route: Route) -> Response:
        if route.path.startswith(PREFIX):
            route.require_method("POST")
            return await self._calls.answer(route.path.removeprefix(PREFIX), request)
        if found := re.fullmatch(r"/v2(?:/repository)?/models(?:/([^/]+)(?:/versions/([^/]+))?)?/stats", route.path):
            route.require_method(METHODS)
            may = partial(may_ask, request.headers)
            return _json({"model_stats": await self._catalog.statistics(found[1], found[2] or "", may)})
        if (target := await self._task_path(route)) is not None:
            return _redirect(request, target)
        if (console := page(route.path.removeprefix("/console/"))) is not None and route.path.startswith("/console/"):
            route.require_method(METHODS)
            return console
        if found := re.fullmatch(r"/catalog/([^/]+)/v1/models(?:/(.+))?", route.path):
            route.require_method(METHODS)
            return await self._models_of(found[1], found[2])
        if found := re.fullmatch(r"/catalog((?:/[^/]+){1,3})", route.path):
            route.require_method(METHODS)
            return await self._model(found[1])
        if route.path not in self._pages:
            await self._raise_if_not_there_yet(route)
            raise RouteNotFoundError(f"{route.url_path} does not exist; routes: {', '.join(self._listed())}")
        route.require_method(f"{METHODS}, POST" if route.path == INDEX else METHODS)
        return await self._pages[route.path](request)

    async def _raise_if_not_there_yet(self, route: Route) -> None:
        """Requests for a model come here as long as HAProxy does not know its replicas."""
        if route.path.split("/")[1] in TASKS:
            for name in await self._catalog.readiness():
                if f"{route.path}/".startswith(f"{route_of(name)}/"):
                    raise UnavailableError(f"no replica of {name} is known to the ingress yet", RETRY_AFTER_S)

    def _listed(self) -> Iterator[str]:
        yield from (f"POST /{task}" for task in TASKS)
        yield from (f"GET {path}" for path in self._pages)
        yield from (f"{path}/..." for task in TASKS.values() for path in task.root_paths)
        yield from ALIASES

    async def _task_path(self, route: Route) -> str | None:
        """The path of the task that `route` is an alias of; None where it is no alias."""
        if (found := of_path(route.path)) is not None:
            task, path = found
            if task not in await self._catalog.readiness():
                raise RouteNotFoundError(f"{route.url_path} needs the task {task}, which is not deployed")
            return path
        if route.path.startswith("/v2/models/"):
            name = route.path.removeprefix("/v2/models/").partition("/")[0]
            application, adapter = await self._catalog.found(name)
            return f"{route_of(application)}{f'/{adapter}' if adapter else ''}{route.path}"
        if route.path.startswith("/models/"):
            return await self._model_path(route.path.removeprefix("/models/"))
        return None

    async def _model_path(self, path: str) -> str:
        """The path of the task that serves the model whose id `path` begins with; ids may contain slashes."""
        # A model that serves several tasks answers for the last of them: the one that generates text.
        tasks = {model["id"]: route_of(name) for name, model in (await self._catalog.models()).items() if model}
        tasks |= {name: f"{route_of(base)}/{name}" for base, name in await self._catalog.adapters()}
        for name in sorted(tasks, key=len, reverse=True):
            if path == name or path.startswith(f"{name}/"):
                return f"{tasks[name]}{path[len(name) :]}"
        raise RouteNotFoundError(f"there is no model {shown(path)}; allowed: {', '.join([*TASKS, *tasks])}")

    async def _live(self, request: Request) -> Response:
        return _json({"live": True})

    async def _server_ready(self, request: Request) -> Response:
        ready = await self._catalog.readiness()
        return _json({"ready": all(ready.values())}, 200 if ready and all(ready.values()) else 503)

    async def _server(self, request: Request) -> Response:
        return _json(server_metadata(version("sextet")))

    async def _watch(self, request: Request) -> Response:
        return self._view.stream(partial(may_ask, request.headers))

    async def _health(self, request: Request) -> Response:
        return _json({"status": "ok"})

    async def _ready(self, request: Request) -> Response:
        ready = await self._catalog.readiness()
        missing = [task for task, is_ready in ready.items() if not is_ready]
        if missing or not ready:
            error = f"no ready replica: {', '.join(missing)}" if missing else "no task is deployed"
            return _json({"error": error, "error_type": "overloaded", "not_ready": missing}, status=503)
        return _json({"status": "ready", "tasks": list(ready)})

    async def _tasks(self, request: Request) -> Response:
        if "text/html" in request.headers.get("accept", "") and (console := page("index.html")):
            return console
        replicas, models = await self._catalog.standings(), await self._catalog.models()

        def entry(name: str) -> dict[str, Any]:
            one = replicas[name]
            counted = {"ready": one.is_ready, "asleep": one.asleep, "replicas": one.replicas}
            return {"route": route_of(name), **counted, "model": models.get(name)}

        tasks = []
        for task in [name for name in replicas if model_of(name) is None]:
            others = [name for name in replicas if task_of(name) == task != name]
            listed = [{"name": model_of(name), **entry(name)} for name in others]
            listed += [one for name in (task, *others) for one in _adapter_entries(entry(name))]
            tasks.append({"task": task, **entry(task), "others": listed})
        return _json({"name": "sextet", "version": version("sextet"), "tasks": tasks})

    async def _index(self, request: Request) -> Response:
        asked = IndexBody()
        if request.method == "POST" and (body := await read_body(request, MAX_BYTES)):
            asked = decode(body, IndexBody)
        return _json([one for one in await self._catalog.index() if one["state"] == READY or not asked.ready])

    async def _models_of(self, task: str, name: str | None) -> Response:
        """As OpenAI lists models: the default by its own name and by its task's, the others by theirs."""
        described = (await self._catalog.models()).items()
        found = {application: model for application, model in described if task_of(application) == task}
        names = [model["id"] for model in found.values() if model] + [one for one in found if one == task]
        names += [one["name"] for model in found.values() if model for one in model.get("adapters", ())]
        cards = {one: model_card(one) for one in names}
        if name is None:
            return _json({"object": "list", "data": list(cards.values())})
        if name not in cards:
            raise RouteNotFoundError(f"there is no model {shown(name)}; allowed: {', '.join(cards)}")
        return _json(cards[name])

    async def _model(self, route: str) -> Response:
        """The page of the model, or of the adapter, that clients ask at `route`."""
        standings = await self._catalog.standings()
        applications = {route_of(one): one for one in standings}
        base, _, name = route.rpartition("/")
        application = applications.get(route) or applications.get(base)
        said = await self._catalog.details(application) if application else None
        adapters = {one["name"]: one for one in (said or {}).get("adapters", ())}
        if application is None or (route not in applications and name not in adapters):
            routes = [*applications, *(f"{route_of(one)}/{adapter}" for one, adapter in await self._catalog.adapters())]
            allowed = ", ".join(one[1:] for one in routes) or "none"
            raise RouteNotFoundError(f"there is no model {shown(route[1:])}; allowed: {allowed}")
        task = task_of(application)
        others = {other for one in standings if task_of(one) == task and (other := model_of(one)) is not None}
        adapter = None if route in applications else adapters[name]
        page = partial(model_page, application, standings[application], said, split_of(task), others, adapter)
        return _json(await asyncio.to_thread(page))  # a large card takes a while

    async def _openapi(self, request: Request) -> Response:
        from deployments.openapi import document  # imports every pipeline: only for those who ask

        return _json(await asyncio.to_thread(document, version("sextet")))


def _adapter_entries(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The entries of a model's adapters: all replicas of the model answer for them."""
    model = entry["model"] or {}
    for one in model.get("adapters", ()):
        route = f"{entry['route']}/{one['name']}"
        yield {**entry, "name": one["name"], "route": route, "model": with_adapter(model, one)}


def _redirect(request: Request, path: str) -> Response:
    """308 keeps method and body. The location is relative: it also holds behind a proxy that adds a prefix."""
    location = quote(posixpath.relpath(path, posixpath.dirname(request.scope["path"])))
    query = request.scope["query_string"].decode("latin-1")
    return Response(status_code=308, headers={"location": f"{location}?{query}" if query else location})


def _json(content: Any, status: int = 200) -> Response:
    return Response(encode(content), status, media_type="application/json")
