"""Routes: what a task answers below its prefix, path by path. Each module of this package brings its own protocol.

POST /                             the Hugging Face task API
POST /v2/models/{task}/infer       the Open Inference Protocol; GET /v2... describes the model
POST /predict                      text-embeddings-inference's, of tasks that name it
POST /v1/chat/completions ...      OpenAI's, of tasks that name it; GET /v1/models names the model
POST, GET                          the predict route and the health route of a platform, where the container is for one
"""

import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

from starlette.requests import Request

from deployments import protocols
from deployments.cluster.platform import Platform
from deployments.http.errors import RouteNotFoundError
from deployments.http.request import require_method, route_of
from deployments.protocols.protocol import Mounted, Protocol
from pipelines.tasks.pipeline import Pipeline

READING = "GET, HEAD"


@cache
def modules() -> tuple[ModuleType, ...]:
    """The modules of this package that serve a protocol."""
    names = sorted(module.name for module in pkgutil.iter_modules(protocols.__path__))
    found = [import_module(f"{protocols.__name__}.{name}") for name in names]
    return tuple(module for module in found if hasattr(module, "mount"))


@dataclass(frozen=True)
class Route:
    """One path: what answers a POST there, or the `page` that a GET has; and the protocol that words its failures."""

    path: str
    protocol: Protocol | None
    page: Any
    errors: Protocol


class Routes:
    """The routes of one pipeline."""

    def __init__(self, pipeline: Pipeline[Any, Any, Any, Any], platform: Platform | None = None) -> None:
        self.task = pipeline.task
        self._mounted: list[Mounted] = [module.mount(pipeline, platform) for module in modules()]
        self.protocols = {path: one for mounted in self._mounted for path, one in mounted.protocols.items()}
        self.pages = {path: page for mounted in self._mounted for path, page in mounted.pages.items()}
        self._native = self.protocols["/"]

    def find(self, request: Request) -> Route:
        """The route of a request, whether or not there is one: `require` tells."""
        path = route_of(request)
        protocol = self.protocols.get(path)
        return Route(path, protocol, self.pages.get(path), protocol or self._errors_at(path))

    def require(self, route: Route, request: Request) -> None:
        """Raise RouteNotFoundError where nothing answers, MethodNotAllowedError for a method that does not."""
        if route.protocol is not None:
            require_method(request, "POST")
        elif route.path in self.pages:
            require_method(request, READING)
        else:
            raise RouteNotFoundError(f"{request.url.path} does not exist; allowed: {', '.join(self._listed())}")

    def _errors_at(self, path: str) -> Protocol:
        for mounted in self._mounted:
            if mounted.prefix is not None and mounted.errors is not None and path.startswith(mounted.prefix):
                return mounted.errors
        return self._native

    def _listed(self) -> Iterator[str]:
        for path in self.protocols:
            yield f"POST /{self.task}{path.rstrip('/')}"
        for path in self.pages:
            yield f"GET /{self.task}{path}"
