"""TaskServer: one pipeline and one scheduler, answering HTTP. A plain class; app.py makes it a Serve deployment.

    bytes ──protocol.read──> preprocess ──> scheduler.submit | stream ──> postprocess ──protocol.write──> bytes

Behind HAProxy Serve runs `__call__` on the event loop that also reads the sockets, so nothing here may block it: JSON,
tokenizing and postprocessing of more than a few sentences go to host threads (host.py), the model runs in the
scheduler's own.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

import pipelines
from deployments.background import in_background
from deployments.cluster.platform import Platform
from deployments.cluster.processes import alive_s, assigned_cpus
from deployments.config import CUT_S, LimitsConfig, TaskConfig
from deployments.cores import OWN_CORES
from deployments.gpu_memory import memory_limit
from deployments.guidance.compiler import LlGuidance
from deployments.host import SMALL_ANSWER_TOKENS, SMALL_BODY_BYTES, HostThreads, give_memory_back
from deployments.http.errors import CLIENT_LEFT, Failure, logger
from deployments.http.event_stream import EventStream, begun
from deployments.http.request import Observer, Timings, cache_salt, deadline_of, is_bulk, load_header, read_body
from deployments.protocols.protocol import Protocol, Reply, Routes, TaskRequest
from deployments.rest import Rest
from deployments.served import description, details
from pipelines.errors import ConfigurationError, DeadlineExceededError, GenerationError
from pipelines.runtime.artifact import ModelArtifact
from pipelines.scheduling.scheduler import Row, Scheduler
from pipelines.tasks.pipeline import Pipeline
from stores.fetch import fetch

PARTS = ("process", "fetch", "load", "measure")  # of a start: imports, the artifact, warm sessions, the cost model
WORK, INSIDE = "work_s", "inside"  # of record_autoscaling_stats
STALLED_S = 60.0  # a batch that nobody waits for, or a decoding round, that takes so long will not end by itself

OnEnding = Callable[[Callable[[float], None]], None]
"""Is given what is to be called, with the seconds that are left, once the replica is to end."""


class Serving:
    """What answers requests now. `visits` counts those that began under it, `inside` those that have not ended."""

    def __init__(
        self,
        config: TaskConfig,
        pipeline: Pipeline[Any, Any, Any, Any],
        scheduler: Scheduler[Any, Any],
        observer: Observer,
        routes: Routes,
    ) -> None:
        self.config, self.pipeline, self.scheduler, self.routes = config, pipeline, scheduler, routes
        self.observer, self.visits, self.inside = observer, 0, 0
        self._empty = asyncio.Event()
        self._rest = Rest(pipeline.release_memory, lambda: (self.visits, self.inside))

    def enter(self) -> "Visit":
        """A request is inside until its visit ends."""
        self.visits, self.inside = self.visits + 1, self.inside + 1
        return Visit(self)

    def leave(self) -> None:
        self.inside -= 1
        if not self.inside:
            self._empty.set()

    async def retire(self, limit_s: float) -> None:
        """Let all that is inside end, for `limit_s` at most, then close the scheduler."""
        self._rest.end()
        ends_at = time.monotonic() + limit_s
        try:
            async with asyncio.timeout(limit_s):
                while self.inside:
                    self._empty.clear()
                    await self._empty.wait()
        except TimeoutError:
            logger.warning("%d requests did not end within %.0f s of a new model", self.inside, limit_s)
        await self.scheduler.drain(max(0.0, ends_at - time.monotonic()))
        self.observer.ended()


@dataclass
class Visit:
    """One request inside; `end` may be called more than once."""

    serving: Serving
    has_ended: bool = False

    def end(self) -> None:
        if not self.has_ended:
            self.has_ended = True
            self.serving.leave()


@dataclass(frozen=True)
class Prepared:
    """A request after preprocess: `rows[i]` belong to `inputs[i]`."""

    protocol: Protocol
    request: TaskRequest
    inputs: list[Any]
    parameters: Any
    rows: list[list[Row]]

    def all_rows(self) -> list[Any]:
        return [row for of_input in self.rows for row in of_input]


class TaskServer:
    """Answers one task. It has no model until `reconfigure` was called, which Serve does before the first request."""

    def __init__(
        self,
        task: str,
        observe: Callable[[ModelArtifact], Observer] = lambda artifact: Observer(),
        platform: Platform | None = None,
        reserved_gpus: Callable[[], float] = lambda: 1.0,
        on_ending: OnEnding = lambda begin: None,
        costs: Callable[[], Path | None] = lambda: None,
        model: str | None = None,
    ) -> None:
        """`observe` makes, in this process, what is told of all that a model does; `platform` adds the routes of its
        contract. `reserved_gpus` tells which part of a GPU this process may use, `costs` where this node keeps those of
        batches. `model` is the name that the model has in cluster.yaml, where it is not the task's default.
        """
        self.task, self.model, self._platform = task, model, platform
        self._reserved_gpus, self._costs = reserved_gpus, costs
        self._observe, self._host = observe, HostThreads()
        self._serving: Serving | None = None
        self._all_serving: set[Serving] = set()  # the present one, and those before it that have requests inside
        self._retiring: set[asyncio.Task[None]] = set()
        self._cut: asyncio.Task[None] | None = None
        self._loading = asyncio.Lock()
        self.ending = asyncio.Event()
        on_ending(self.end_within)

    async def reconfigure(self, user_config: Any) -> None:
        """Apply a `user_config` in place: a changed model is loaded beside the old one, then takes over.

        Requests that are inside end under the model they began with, for `drain_timeout_s` at most. Bounds of batches,
        queue and requests change without a new model. Raises ConfigurationError or ArtifactError.
        """
        config = TaskConfig.from_user_config(user_config, self.task)
        async with self._loading:  # one after the other: each takes over from the one before
            await self._apply(config)

    async def _apply(self, config: TaskConfig) -> None:
        old = self._serving
        if old is not None and old.config.of_model == config.of_model:
            old.scheduler.reconfigure(config.batching, config.queue)
            old.config = config
            old.observer.configured(config)
            return
        thread = ThreadPoolExecutor(1, thread_name_prefix="load")
        try:
            loading = asyncio.get_running_loop().run_in_executor(thread, self._load, config)
            pipeline, scheduler, observer = await loading
        finally:
            thread.shutdown(wait=False)  # who is cancelled does not wait, on the loop, until a model is there
        if config.device != "cpu":
            self._host.grow(config.threads or assigned_cpus())
        observer.configured(config)
        self._serving = Serving(config, pipeline, scheduler, observer, Routes(pipeline, self._platform))
        self._all_serving.add(self._serving)
        if old is not None:
            retiring = asyncio.create_task(self._retire(old, config.drain_timeout_s))
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)

    async def _retire(self, old: Serving, limit_s: float) -> None:
        await old.retire(limit_s)
        self._all_serving.discard(old)

    def end_within(self, limit_s: float) -> None:
        """Answer as before for all but CUT_S of `limit_s`. Then fail what is inside, streams with an error event."""
        self.ending.set()
        self._cut = asyncio.get_running_loop().create_task(self._cut_after(limit_s - CUT_S))

    async def _cut_after(self, limit_s: float) -> None:
        await asyncio.sleep(limit_s)
        if n_requests := sum(one.inside for one in self._all_serving):
            logger.warning("%d requests are cut: the replica ends, and they took more than %.0f s", n_requests, limit_s)
        for one in list(self._all_serving):
            await one.scheduler.drain()

    def check_health(self) -> None:
        """Raises where only a new replica helps."""
        if self._now.scheduler.stalled_s > STALLED_S:
            raise GenerationError(f"the model is busy with something that has not ended for {STALLED_S:.0f} s")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What Ray Serve gives to a policy: seconds of work, and scaling/signals.py. Async: Ray would run another
        function in a thread, and a scheduler belongs to the event loop.
        """
        if (serving := self._serving) is None:
            return {WORK: 0.0}
        inside = sum(one.inside for one in self._all_serving)
        return {WORK: serving.scheduler.work_s, **serving.observer.signals(), INSIDE: float(inside)}

    def describe(self) -> dict[str, Any]:
        """What the catalog says of this replica's model."""
        return description(self._now.pipeline, self._now.config.device)

    def details(self) -> dict[str, Any]:
        """What the page of this replica's model shows."""
        return details(self._now.pipeline, self._now.config.device)

    async def statistics(self) -> dict[str, float]:
        """What this replica's model has done: observability/statistics.py."""
        return self._now.observer.statistics()

    async def __call__(self, request: Request) -> Response:
        """Every outcome is a response with timings; only a client that left raises CancelledError."""
        timings, serving = Timings(), self._serving
        try:
            response = await self._answer(request, timings)
        except Exception as error:
            response = self._failed(request, Failure.of(error), timings)
        except asyncio.CancelledError:
            self._ended(serving, request, timings, CLIENT_LEFT)
            raise
        response.raw_headers += timings.headers()
        if isinstance(response, EventStream):
            response.ended = partial(self._ended, serving, request, timings)
        else:
            self._ended(serving, request, timings, timings.failure)
        if self._serving is not None:
            scheduler = self._serving.scheduler
            load = load_header(scheduler.expected_s(), scheduler.queue.max_queue_s, scheduler.row_s)
            response.raw_headers += (load, *self._serving.observer.headers(request, timings))
        return response

    async def _answer(self, request: Request, timings: Timings) -> Response:
        serving = self._now
        endpoint = serving.routes.find(request)
        endpoint.require(request.headers)
        protocol = endpoint.protocol
        if protocol is None:
            return endpoint.reply(request, self, serving.config.limits)
        deadline, timings.protocol, timings.adapter = deadline_of(request), protocol, endpoint.adapter
        visit, is_streaming = serving.enter(), False
        try:
            async with asyncio.timeout_at(deadline):
                limits = serving.config.limits
                body = await read_body(request, limits.max_body_bytes, protocol.media_types)
                bulk = is_bulk(request.headers)
                # And again with its tokens.
                serving.scheduler.admit((), deadline, asyncio.get_running_loop().time(), bulk=bulk)
                salt = cache_salt(serving.config, request.headers)
                prepare = partial(self._prepare, limits, protocol, body, request.headers, timings, salt)
                is_small = len(body) <= SMALL_BODY_BYTES
                on_loop = is_small and not serving.scheduler.is_busy
                prepared = prepare() if on_loop else await self._host.read(prepare, len(body))
                if isinstance(prepared, TaskRequest):
                    tokenize = partial(self._tokenized, limits, protocol, prepared, timings, salt)
                    prepared = await self._host.compile(tokenize)
                if prepared.request.stream:
                    events = await begun(self._events(visit, prepared, deadline, timings, bulk))
                    is_streaming = True
                    return EventStream(events, protocol.failure)
                completed = await serving.scheduler.submit(prepared.all_rows(), deadline, bulk=bulk)
                timings.ran(completed)
                finish = partial(self._finish, prepared, completed.outputs)
                on_loop = is_small and timings.read_tokens + timings.written_tokens <= SMALL_ANSWER_TOKENS
                reply = finish() if on_loop else await self._host.answer(finish, len(body))
                return reply.response()
        except TimeoutError:
            raise DeadlineExceededError("the request's deadline ran out before its answer was ready") from None
        finally:
            if not is_streaming:
                visit.end()

    def _failed(self, request: Request, failure: Failure, timings: Timings) -> Response:
        serving, timings.failure = self._serving, failure
        return failure.response(None if serving is None else serving.routes.find(request).errors.failure(failure))

    def _ended(self, serving: Serving | None, request: Request, timings: Timings, failure: Failure | None) -> None:
        if serving is not None:
            timings.failure = failure
            serving.observer.request(request, timings)

    def _prepare(
        self,
        limits: LimitsConfig,
        protocol: Protocol,
        body: bytes,
        headers: Mapping[str, str],
        timings: Timings,
        salt: str,
    ) -> Prepared | TaskRequest:
        """The request with its rows; without them where a grammar has to be compiled first, which takes long."""
        request = protocol.read(body, headers)
        request.check(limits)
        return request if request.parameters.compiles else self._tokenized(limits, protocol, request, timings, salt)

    def _tokenized(
        self, limits: LimitsConfig, protocol: Protocol, request: TaskRequest, timings: Timings, salt: str
    ) -> Prepared:
        if request.model is not None and request.model in protocol.adapted:
            protocol = protocol.adapted[request.model]
            timings.adapter = protocol.pipeline.artifact.adapter
        inputs, parameters = protocol.parse(request)
        started_at = time.perf_counter()
        rows: list[list[Any]] = protocol.rows(inputs, parameters, limits)
        if salt:
            rows = [[replace(row, cache_salt=f"{salt}\n{row.cache_salt}") for row in some] for some in rows]
        timings.tokenized_at = time.perf_counter()
        timings.tokenization_s = timings.tokenized_at - started_at
        return Prepared(protocol, request, inputs, parameters, rows)

    def _finish(self, prepared: Prepared, outputs: Sequence[Any]) -> Reply:
        remaining = iter(outputs)
        answers = [
            prepared.protocol.pipeline.postprocess(given, rows, list(islice(remaining, len(rows))), prepared.parameters)
            for given, rows in zip(prepared.inputs, prepared.rows, strict=True)
        ]
        return prepared.protocol.write(prepared.request, answers)

    async def _events(
        self, visit: Visit, prepared: Prepared, deadline: float | None, timings: Timings, bulk: bool
    ) -> AsyncGenerator[Any, None]:
        """The payloads of a stream, each as it comes; the visit ends with them."""
        pipeline = prepared.protocol.pipeline
        streamed = [pipeline.stream(row, prepared.parameters) for row in prepared.all_rows()]
        timings.read_tokens = sum(row.n_tokens for row, _ in streamed)
        stream = visit.serving.scheduler.stream([row for row, _ in streamed], deadline, bulk=bulk)

        async def numbered() -> AsyncGenerator[tuple[int, Any], None]:
            try:
                async for index, step in stream:
                    timings.token(index)
                    timings.queue_s, timings.inference_s = stream.queue_s, stream.inference_s
                    write = streamed[index][1]
                    event, is_last = await self._host.describe(partial(write, step)) if step.top else write(step)
                    if is_last:
                        stream.stop(index)
                    yield index, event
            finally:
                timings.written_tokens = stream.written_tokens
                await stream.aclose()

        try:
            async with (
                aclosing(numbered()) as events,
                aclosing(prepared.protocol.stream(prepared.request, events)) as sent,
            ):
                async for payload in sent:
                    yield payload
        finally:
            visit.end()

    @property
    def _now(self) -> Serving:
        if self._serving is None:
            raise ConfigurationError(f"the deployment {self.task} has no user_config")
        return self._serving

    @in_background()
    def _load(self, config: TaskConfig) -> tuple[Pipeline[Any, Any, Any, Any], Scheduler[Any, Any], Observer]:
        """A pipeline that is warm, its scheduler, and who is told what they do."""
        now = time.perf_counter()
        times = [now - alive_s() if self._serving is None else now, now]
        folder = fetch(config.model, logger.warning).folder
        times.append(time.perf_counter())
        threads = config.threads or assigned_cpus()
        OWN_CORES.ensure(threads if config.pin_cores else 0)
        pipeline: Pipeline[Any, Any, Any, Any] = pipelines.load(
            folder,
            task=self.task,
            device=config.device,
            threads=threads,
            concurrency=config.batching.concurrency,
            max_batch_size=config.batching.max_batch_size,
            gpu_mem_limit_bytes=memory_limit(config, self._reserved_gpus()),
            cuda_graphs=config.cuda_graphs,
            allow_unverified=config.allow_unverified,
            slots=config.slots,
            compiler=LlGuidance,
            adapters=config.adapter_folders,
        )
        times.append(time.perf_counter())
        pipeline.artifact = replace(pipeline.artifact, served_as=self.model)
        observer = self._observe(pipeline.artifact)
        scheduler = pipeline.scheduler(config.batching, config.queue, observer.batch, self._costs())
        give_memory_back()
        times.append(time.perf_counter())
        observer.started(scheduler, {part: end - at for part, (at, end) in zip(PARTS, pairwise(times), strict=True)})
        return pipeline, scheduler, observer
