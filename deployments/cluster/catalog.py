"""Catalog: which tasks are deployed, whether each is ready, and which model it serves, as Ray Serve says it.

`serve.status()` takes tens of milliseconds and fails when two threads are inside it, and health probes come in crowds.
Each question is therefore asked by one call at a time, whose answer goes to everybody who waits.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from deployments.config import model_of, task_of
from deployments.http.errors import ForbiddenError, RouteNotFoundError, UnavailableError
from deployments.observability.statistics import added, by_model, model_statistics
from deployments.protocols.open_inference import VERSION, index_entry
from pipelines.misfit import shown
from pipelines.tasks import TASKS

T = TypeVar("T")
FRESH_S = 0.5
"""An answer is given to whoever asks within this time after the call began."""
STATUS_TIMEOUT_S = 2.0
DESCRIBE_TIMEOUT_S = 2.0
"""A task that is starting or busy for longer is listed without its model."""
RETRY_AFTER_S = 1.0
ANSWERING = ("RUNNING", "PENDING_MIGRATION")
"""The states in which Ray Serve sends requests to a replica; it migrates one that answers until the next one runs."""
AS_WANTED = ("HEALTHY", "UPSCALING", "DOWNSCALING")
"""The states of a deployment whose replicas are as many as autoscaling wants, or become so. One whose replica died is
UNHEALTHY, one that is deployed or changed UPDATING.
"""


@dataclass(frozen=True)
class Standing:
    """Of a deployed model: how many replicas take requests, and whether it is asleep.

    A model is asleep where autoscaling has it without a replica, or starts its first one: Ray Serve holds its requests
    meanwhile.
    """

    replicas: int
    asleep: bool = False

    @property
    def is_ready(self) -> bool:
        """Whether a request is answered, perhaps after the start of a replica."""
        return self.replicas > 0 or self.asleep


class SingleFlight(Generic[T]):
    """One call of `ask` at a time, for everybody who waits for its answer.

    It belongs to no request: where a client leaves, Ray Serve cancels the calls that its request has made.
    """

    def __init__(self, ask: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._ask = ask
        self._call: asyncio.Future[T] | None = None
        self._began_at = 0.0

    async def answer(self, timeout_s: float) -> T:
        """The answer of a call that began at most FRESH_S before this one, or later.

        Raises what `ask` raises, and TimeoutError after `timeout_s`; the call then goes on for the others.
        """
        loop = asyncio.get_running_loop()
        oldest = loop.time() - FRESH_S
        async with asyncio.timeout(timeout_s):
            while self._call is None or self._began_at < oldest:
                if self._call is None or self._call.done():
                    self._began_at, self._call = loop.time(), loop.create_task(self._ask(), context=Context())
                    self._call.add_done_callback(_retrieve)
                else:
                    await asyncio.wait([self._call])
            return await asyncio.shield(self._call)


class Catalog:
    """The tasks that Ray Serve runs; the answers change while replicas come and go."""

    def __init__(self) -> None:
        self._standings = SingleFlight(_standings)
        self._saying: dict[tuple[str, str], SingleFlight[dict[str, Any]]] = {}
        self._said: dict[tuple[str, str], dict[str, Any]] = {}
        self._counts: dict[str, SingleFlight[list[dict[str, float]]]] = {}

    async def readiness(self) -> dict[str, bool]:
        """Whether the requests of each deployed model are answered; raises as `standings` does."""
        return {name: one.is_ready for name, one in (await self.standings()).items()}

    async def standings(self) -> dict[str, Standing]:
        """Each deployed model by its application: in the order of TASKS, the default of a task before its others.

        Raises UnavailableError where Ray Serve does not answer within STATUS_TIMEOUT_S.
        """
        try:
            return await self._standings.answer(STATUS_TIMEOUT_S)
        except TimeoutError:
            reason = f"no answer in {STATUS_TIMEOUT_S:.0f} s"
        except (RayError, RayServeException) as error:
            reason = type(error).__name__
        raise UnavailableError(f"Ray Serve does not say which tasks are ready ({reason})", RETRY_AFTER_S)

    async def models(self) -> dict[str, dict[str, Any] | None]:
        """What a replica of each ready application says of its model; None where none does in time.

        Of a model that is asleep, what a replica said last: nobody wakes it to ask.
        """
        ready = {name: one for name, one in (await self.standings()).items() if one.is_ready}
        described = await asyncio.gather(*(self._says(name, "describe", one.asleep) for name, one in ready.items()))
        return dict(zip(ready, described, strict=True))

    async def details(self, application: str) -> dict[str, Any] | None:
        """What a replica of an application says for its model's page; None and asleep as in `models`.

        Raises KeyError where there is no such application.
        """
        standing = (await self.standings())[application]
        return await self._says(application, "details", standing.asleep) if standing.is_ready else None

    async def adapters(self) -> list[tuple[str, str]]:
        """Each adapter with the application of its base, as far as replicas say."""
        models = (await self.models()).items()
        return [
            (application, one["name"]) for application, model in models for one in (model or {}).get("adapters", ())
        ]

    async def found(self, name: str, version: str = "") -> tuple[str, str]:
        """The application of the model of that name, and its adapter of that name, "" where it is none.

        Raises RouteNotFoundError with the names that there are.
        """
        names = {model_of(one) or one: (one, "") for one in await self.standings()}
        if name not in names:  # only then a replica is asked
            names |= {adapter: (base, adapter) for base, adapter in await self.adapters()}
        if name not in names:
            raise RouteNotFoundError(f"there is no model {shown(name)}; allowed: {', '.join(names) or 'none'}")
        if version not in ("", VERSION):
            raise RouteNotFoundError(f"{name} has no version {shown(version)}; allowed: {VERSION}")
        return names[name]

    async def index(self) -> list[dict[str, Any]]:
        """All models and adapters, as Triton's repository index lists them."""
        ready = await self.readiness()
        entries = [index_entry(model_of(name) or name, is_ready) for name, is_ready in ready.items()]
        return entries + [index_entry(name, ready.get(base, False)) for base, name in await self.adapters()]

    async def statistics(
        self, name: str | None = None, version: str = "", may: Callable[[str], bool] = lambda task: True
    ) -> list[dict[str, Any]]:
        """What the replicas of a model or of an adapter have done, of all without a name, as Triton's `model_stats`.

        `may` says of which tasks one may know. Raises RouteNotFoundError for a name or a version that there is not,
        ForbiddenError for that of another task.
        """
        if name is not None:
            asked = [await self.found(name, version)]
            if not may(task_of(asked[0][0])):
                raise ForbiddenError("this key may not ask this task")
        else:
            asked = [(one, "") for one in await self.standings()] + await self.adapters()
            asked = [one for one in asked if may(task_of(one[0]))]
        numbers = await self.numbers(sorted({application for application, _ in asked}))
        return [
            model_statistics(
                adapter or model_of(application) or application,
                VERSION,
                added([by_model(numbers[application]).get(adapter, {})]),
            )
            for application, adapter in asked
        ]

    async def numbers(self, applications: Sequence[str]) -> dict[str, dict[str, float]]:
        """What the replicas of each have counted together: observability/statistics.py. Zeros where they are silent."""
        counted = await asyncio.gather(*map(self._counted, applications))
        return {name: added(replicas) for name, replicas in zip(applications, counted, strict=True)}

    async def _counted(self, application: str) -> list[dict[str, float]]:
        if application not in self._counts:
            self._counts[application] = SingleFlight(partial(_count, application))
        try:
            return await self._counts[application].answer(DESCRIBE_TIMEOUT_S)
        except Exception:  # whatever a replica fails with while it starts or ends
            return []

    async def _says(self, application: str, what: str, asleep: bool) -> dict[str, Any] | None:
        """What a replica answers when its method `what` is called."""
        key = application, what
        if asleep:
            return self._said.get(key)
        if key not in self._saying:
            self._saying[key] = SingleFlight(partial(_say, application, what))
        try:
            self._said[key] = await self._saying[key].answer(DESCRIBE_TIMEOUT_S)
        except Exception:  # whatever a replica fails with while it starts or ends
            return None
        return self._said[key]


def _retrieve(call: "asyncio.Future[Any]") -> None:
    """Asyncio logs an exception that nobody retrieves, as when everybody who waited has left."""
    if not call.cancelled():
        call.exception()


async def _standings() -> dict[str, Standing]:
    applications = (await asyncio.to_thread(serve.status)).applications
    names = [name for task in TASKS for name in sorted(applications) if task_of(name) == task]
    found = {}
    for name in names:
        deployment = applications[name].deployments.get(task_of(name))
        states = {} if deployment is None else deployment.replica_states
        n = sum(states.get(state, 0) for state in ANSWERING)
        found[name] = Standing(n, n == 0 and deployment is not None and deployment.status in AS_WANTED)
    return found


async def _say(application: str, what: str) -> dict[str, Any]:
    async with asyncio.timeout(DESCRIBE_TIMEOUT_S):  # a call that hangs must not be the last one
        said: dict[str, Any] = await getattr(serve.get_app_handle(application), what).remote()
        return said


async def _count(application: str) -> list[dict[str, float]]:
    async with asyncio.timeout(DESCRIBE_TIMEOUT_S):
        asked = serve.get_app_handle(application).broadcast("statistics")
        counted = await asked.results_async(return_exceptions=True)
        return [one for one in counted if isinstance(one, dict)]
