"""The calls that belong to no model's replica: the gateway answers them, at /grpc/<call>."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any
from typing import Protocol as Interface

from starlette.requests import Request
from starlette.responses import Response

from deployments.config import model_of, task_of
from deployments.http.errors import ForbiddenError, MethodNotAllowedError, RouteNotFoundError
from deployments.http.request import may_ask, read_body
from deployments.protocols.open_inference import VERSION, index_entry, model_metadata, server_metadata
from deployments.protocols.open_inference_grpc.frames import MEDIA_TYPES, GrpcResponse, only
from deployments.protocols.open_inference_grpc.messages import decoded, message
from pipelines.misfit import shown
from pipelines.tasks import TASKS

PREFIX = "/grpc/"
MAX_BYTES = 65_536


class Models(Interface):
    """What there is: deployments.cluster.catalog."""

    async def readiness(self) -> Mapping[str, bool]:
        """Whether each model has a replica that takes requests, by application."""

    async def statistics(self, applications: Sequence[str]) -> list[dict[str, Any]]:
        """Entries of Triton's `model_stats`."""


MayAsk = Callable[[str], bool]
"""Whether who asks has a key for a task."""


class ServerCalls:
    """Answers from `models`."""

    def __init__(self, models: Models, version: str) -> None:
        self._models, self._version = models, version
        self._calls: dict[str, Callable[[Any, MayAsk], Awaitable[dict[str, Any]]]] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ServerMetadata": self._metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelStatistics": self._statistics,
            "RepositoryIndex": self._index,
        }

    async def answer(self, call: str, request: Request) -> Response:
        """Raises what HTTP errors are made of."""
        if call not in self._calls:
            names = ", ".join([*self._calls, "ModelInfer", "ModelStreamInfer"])
            raise MethodNotAllowedError(f"{shown(call)} is not served; allowed: {names}", names)
        body = await read_body(request, MAX_BYTES, MEDIA_TYPES)
        asked, may = decoded(f"{call}Request", only(body)), partial(may_ask, request.headers)
        return GrpcResponse(message(f"{call}Response")(**await self._calls[call](asked, may)).SerializeToString())

    async def _live(self, asked: Any, may: MayAsk) -> dict[str, Any]:
        return {"live": True}

    async def _ready(self, asked: Any, may: MayAsk) -> dict[str, Any]:
        ready = await self._models.readiness()
        return {"ready": bool(ready) and all(ready.values())}

    async def _metadata(self, asked: Any, may: MayAsk) -> dict[str, Any]:
        return server_metadata(self._version)

    async def _model_ready(self, asked: Any, may: MayAsk) -> dict[str, Any]:
        try:
            application, ready = await self._found(asked)
        except RouteNotFoundError:  # a probe needs no key, and is not told which models there are
            raise RouteNotFoundError(f"there is no model {shown(asked.name)} of this version") from None
        return {"ready": ready[application]}

    async def _model_metadata(self, asked: Any, may: MayAsk) -> dict[str, Any]:
        application, _ = await self._found(asked)
        return model_metadata(TASKS[task_of(application)], asked.name)

    async def _statistics(self, asked: Any, may: MayAsk) -> dict[str, Any]:
        return {"model_stats": await statistics(self._models, asked.name, asked.version, may)}

    async def _index(self, asked: Any, may: MayAsk) -> dict[str, Any]:
        ready = await self._models.readiness()
        listed = [one for one in ready.items() if one[1] or not asked.ready]
        return {"models": [index_entry(model_of(name) or name, is_ready) for name, is_ready in listed]}

    async def _found(self, asked: Any) -> tuple[str, Mapping[str, bool]]:
        """The application of the model that a message names, and the readiness of all."""
        return application_of(asked.name, asked.version, ready := await self._models.readiness()), ready


async def statistics(models: Models, name: str, version: str, may: MayAsk) -> list[dict[str, Any]]:
    """Of one model, or of all that a key is for where `name` is empty. Raises RouteNotFoundError, ForbiddenError."""
    ready = await models.readiness()
    if not name:
        return await models.statistics([one for one in ready if may(task_of(one))])
    application = application_of(name, version, ready)
    if not may(task_of(application)):
        raise ForbiddenError("this key may not ask this task")
    return await models.statistics([application])


def application_of(name: str, version: str, ready: Mapping[str, bool]) -> str:
    """The application of a model by its name; raises RouteNotFoundError."""
    applications = {model_of(one) or one: one for one in ready}
    if name not in applications:
        raise RouteNotFoundError(f"there is no model {shown(name)}; allowed: {', '.join(applications) or 'none'}")
    if version not in ("", VERSION):
        raise RouteNotFoundError(f"{name} has no version {shown(version)}; allowed: {VERSION}")
    return applications[name]
