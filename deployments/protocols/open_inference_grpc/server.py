"""The calls that belong to no model's replica: the gateway answers them, at /grpc/<call>."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any
from typing import Protocol as Interface

from starlette.requests import Request
from starlette.responses import Response

from deployments.config import task_of
from deployments.http.errors import MethodNotAllowedError, RouteNotFoundError
from deployments.http.request import may_ask, read_body
from deployments.protocols.open_inference import READY, model_metadata, server_metadata
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

    async def found(self, name: str, version: str = "") -> tuple[str, str]:
        """The application of a model, or of the base of an adapter; raises RouteNotFoundError."""

    async def index(self) -> list[dict[str, Any]]:
        """Entries of Triton's repository index."""

    async def statistics(self, name: str | None, version: str, may: "MayAsk") -> list[dict[str, Any]]:
        """Entries of Triton's `model_stats`; raises RouteNotFoundError, ForbiddenError."""


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
            application, _ = await self._models.found(asked.name, asked.version)
        except RouteNotFoundError as error:  # a probe needs no key, and is not told which models there are
            raise RouteNotFoundError(str(error).partition("; allowed: ")[0]) from None
        return {"ready": (await self._models.readiness()).get(application, False)}

    async def _model_metadata(self, asked: Any, may: MayAsk) -> dict[str, Any]:
        application, _ = await self._models.found(asked.name, asked.version)
        return model_metadata(TASKS[task_of(application)], asked.name)

    async def _statistics(self, asked: Any, may: MayAsk) -> dict[str, Any]:
        return {"model_stats": await self._models.statistics(asked.name or None, asked.version, may)}

    async def _index(self, asked: Any, may: MayAsk) -> dict[str, Any]:
        return {"models": [one for one in await self._models.index() if one["state"] == READY or not asked.ready]}
