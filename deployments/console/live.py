"""Live: what the models of the whole cluster do, as server-sent events for the console.

    GET /live      every two seconds: {"models": [{"route", "requests_per_s", "failed", "p50_ms", "p99_ms", "replicas",
                                                   "waiting", "slots", "taken_slots"}, ...]}

An adapter has a row of its own: its requests, and the replicas, queue and slots of its base. The replicas are asked
once for everybody who watches (Catalog).
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from deployments.config import route_of, task_of
from deployments.http.errors import UnavailableError
from deployments.http.event_stream import EventStream
from deployments.observability.statistics import by_model, live

EVERY_S = 2.0
MAX_WATCHERS = 64


class Models(Protocol):
    """What there is: deployments.cluster.catalog."""

    async def readiness(self) -> Mapping[str, bool]:
        """The models, by application."""

    async def numbers(self, applications: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
        """What the replicas of each, and of its adapters, have counted."""


class LiveView:
    """Streams to everybody who watches, until `end`."""

    def __init__(self, models: Models) -> None:
        self._models, self._ending = models, asyncio.Event()
        self._watchers = 0

    def stream(self, may: Callable[[str], bool] = lambda task: True) -> EventStream:
        """Of the tasks that one may ask; raises UnavailableError where too many watch."""
        if self._watchers >= MAX_WATCHERS:
            raise UnavailableError(f"{self._watchers} watch already; allowed: {MAX_WATCHERS}", retry_after_s=10.0)
        self._watchers += 1
        stream = EventStream(self._events(may))
        stream.ended = lambda failure: self._left()
        return stream

    def end(self) -> None:
        """The process ends: nobody waits for those who watch."""
        self._ending.set()

    def _left(self) -> None:
        self._watchers -= 1

    async def _events(self, may: Callable[[str], bool]) -> AsyncGenerator[Any, None]:
        loop = asyncio.get_running_loop()
        before, asked_at = await self._numbers(may), loop.time()
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), EVERY_S)
                return
            now, at = await self._numbers(may), loop.time()
            models = [
                {"route": route, **live(before.get(route, {}), numbers, at - asked_at)}
                for route, numbers in now.items()
            ]
            before, asked_at = now, at
            yield {"models": models}

    async def _numbers(self, may: Callable[[str], bool]) -> dict[str, dict[str, float]]:
        """Those of each model and each adapter, by its route."""
        counted = await self._models.numbers([one for one in await self._models.readiness() if may(task_of(one))])
        return {
            f"{route_of(name)}/{adapter}".rstrip("/"): numbers
            for name, of_all in counted.items()
            for adapter, numbers in by_model(of_all).items()
        }
