"""Routes: what a task answers below its prefix, path by path. Each module of this package brings its own protocol.

POST /                             the Hugging Face task API
POST /v2/models/{task}/infer       the Open Inference Protocol; GET /v2... describes the model
POST /predict                      text-embeddings-inference's, of tasks that name it
POST /v1/chat/completions ...      OpenAI's, of tasks that name it; GET /v1/models names the model
POST, GET                          the predict route and the health route of a platform, where the container is for one
"""

import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

from starlette.requests import Request

from deployments import protocols
from deployments.cluster.platform import Platform
from deployments.http.errors import RouteNotFoundError
from deployments.http.request import Route
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
class Endpoint:
    """What there is at a path: a protocol for POSTs, or a page for GETs; and the protocol that words its failures."""

    route: Route
    protocol: Protocol | None
    page: Any
    errors: Protocol
    others: Sequence[str]

    def require(self) -> None:
        """Raise RouteNotFoundError where there is nothing, MethodNotAllowedError for a method that has no answer."""
        if self.protocol is None and self.page is None:
            raise RouteNotFoundError(f"{self.route.url_path} does not exist; allowed: {', '.join(self.others)}")
        self.route.require_method(READING if self.protocol is None else "POST")


class Routes:
    """The routes of one pipeline."""

    def __init__(self, pipeline: Pipeline[Any, Any, Any, Any], platform: Platform | None = None) -> None:
        self._mounted: list[Mounted] = [module.mount(pipeline, platform) for module in modules()]
        self.protocols = {path: one for mounted in self._mounted for path, one in mounted.protocols.items()}
        self.pages = {path: page for mounted in self._mounted for path, page in mounted.pages.items()}
        posts = [f"POST /{pipeline.task}{path.rstrip('/')}" for path in self.protocols]
        self._listed = [*posts, *(f"GET /{pipeline.task}{path}" for path in self.pages)]

    def find(self, request: Request) -> Endpoint:
        """The endpoint of a request, once for all that is asked of it; it may be that of a path without one."""
        route = Route.of(request)
        protocol = self.protocols.get(route.path)
        errors = protocol or self._errors_at(route.path)
        return Endpoint(route, protocol, self.pages.get(route.path), errors, self._listed)

    def _errors_at(self, path: str) -> Protocol:
        for mounted in self._mounted:
            if mounted.prefix is not None and mounted.errors is not None and path.startswith(mounted.prefix):
                return mounted.errors
        return self.protocols["/"]
