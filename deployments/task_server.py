"""TaskServer: one pipeline and one batcher, answering HTTP. A plain class; app.py makes it a Serve deployment.

Behind HAProxy Serve runs `__call__` on the event loop that also reads the sockets, so nothing here may block it:
JSON, tokenizing and postprocessing go to `_host` threads, the model's forward to the batcher's own. Except that a body
of a few sentences stays on the loop: going to a thread and back takes longer than the work (a third of the CPU of a
small request).
"""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

import pipelines
from deployments.cluster.platform import Platform
from deployments.config import LimitsConfig, TaskConfig
from deployments.http.errors import Failure, logger
from deployments.http.event_stream import EventStream
from deployments.http.merging import numbered
from deployments.http.relayed import Exchange, answer
from deployments.http.request import Timings, deadline_of, read_body
from deployments.protocols.protocol import Protocol, Reply, TaskRequest, json_reply
from deployments.protocols.routes import Routes
from pipelines.errors import (
    ConfigurationError,
    DeadlineExceededError,
    GenerationError,
)
from pipelines.generation.decoding.request import Cancelled
from pipelines.scheduling.cost_model import CostModel
from pipelines.scheduling.padded import BatchingConfig, BatchReport, TokenBudgetBatcher
from pipelines.tasks.pipeline import Pipeline, Row
from stores.fetch import fetch

T = TypeVar("T")
SMALL_BODY_BYTES = 1024  # tokenized in half a millisecond
DRAIN_S = 30.0  # how long requests that began under the previous configuration may take to end
ABANDONED_S = 60.0  # a batch that runs on for so long though everybody left it will not end by itself


@dataclass(frozen=True)
class Serving:
    """What answers requests now; replaced as a whole by `reconfigure`."""

    config: TaskConfig
    pipeline: Pipeline[Any, Any, Any, Any]
    batcher: TokenBudgetBatcher[Any, Any]
    routes: Routes
    inside: set[asyncio.Future[None]] = field(default_factory=set)
    """One for each request that began under it and has no answer yet, done when it has."""

    @contextmanager
    def entered(self) -> Iterator[None]:
        """A request is inside."""
        left = asyncio.get_running_loop().create_future()
        self.inside.add(left)
        try:
            yield
        finally:
            self.inside.discard(left)
            left.set_result(None)

    async def retire(self) -> None:
        """Close the batcher once nobody inside can come to it any more."""
        if self.inside:
            await asyncio.wait(self.inside, timeout=DRAIN_S)
        await self.batcher.close(DRAIN_S)


@dataclass(frozen=True)
class Prepared:
    """A request after preprocess: `rows[i]` belong to `inputs[i]`."""

    protocol: Protocol
    request: TaskRequest
    inputs: list[Any]
    parameters: Any
    rows: list[list[Row]]


def _unmetered() -> Callable[[BatchReport], None]:
    return lambda _report: None


class TaskServer:
    """Answers one task. It has no model until `reconfigure` was called, which Serve does before the first request."""

    def __init__(
        self,
        task: str,
        meter: Callable[[], Callable[[BatchReport], None]] = _unmetered,
        platform: Platform | None = None,
    ) -> None:
        """`meter` makes, in this process, what is told of every batch; `platform` adds the routes of its contract."""
        self.task = task
        self._platform = platform
        self._on_batch = meter()
        self._serving: Serving | None = None
        self._host = ThreadPoolExecutor(max_workers=2, thread_name_prefix="host")
        self._retiring: set[asyncio.Task[None]] = set()

    async def reconfigure(self, user_config: Any) -> None:
        """Apply a `user_config` in place: a changed model is loaded beside the old one, then takes over.

        Requests that are inside finish under the old configuration. Raises ConfigurationError or ArtifactError.
        """
        config = TaskConfig.from_user_config(user_config, self.task)
        old = self._serving
        if old is not None and _of_model(old.config) == _of_model(config):
            pipeline, cost, routes = old.pipeline, old.batcher.cost, old.routes
        else:
            pipeline, cost = await self._off_loop(lambda: self._load(config))
            routes = Routes(pipeline, self._platform)
        batching = config.batching
        if pipeline.slots:  # it puts rows together itself: each is handed over as soon as a slot is free
            batching = replace(batching, max_batch_size=1, concurrency=pipeline.slots)
        batcher = TokenBudgetBatcher(pipeline.forward, batching, cost, self._on_batch)
        self._serving = Serving(config, pipeline, batcher, routes)
        if old is not None:
            retiring = asyncio.create_task(old.retire())
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)

    def check_health(self) -> None:
        """Raises where only a new replica helps."""
        if self._now.batcher.abandoned_s > ABANDONED_S:
            raise GenerationError(f"a batch runs on though nobody has waited for it for {ABANDONED_S:.0f} s")

    def describe(self) -> dict[str, Any]:
        """What the catalog says of this replica's model."""
        serving = self._now
        manifest = serving.pipeline.artifact.manifest
        return {
            "id": manifest.source.name,
            "checkpoint": manifest.source.checkpoint,
            "revision": manifest.source.revision,
            "licence": manifest.source.licence,
            "architecture": manifest.architecture,
            "precision": manifest.precision,
            "device": serving.config.device,
            "max_length": manifest.tokenizer.max_length,
            "labels": list(manifest.labels),
            "parity": {"passed": manifest.parity.passed, "agreement": manifest.parity.agreement},
        }

    async def __call__(self, request: Request) -> Response:
        """Every outcome is a response with timings; only a client that left raises CancelledError."""
        timings = Timings()
        try:
            response = await self._answer(request, timings)
        except Exception as error:
            response = self._failed(request, Failure.of(error))
        response.raw_headers += timings.headers()
        return response

    async def relayed(self, exchange: Exchange) -> AsyncGenerator[Message, None]:
        """The ASGI messages of the answer to a request that came to the gateway."""
        async with aclosing(answer(exchange, self)) as messages:
            async for message in messages:
                yield message

    async def _answer(self, request: Request, timings: Timings) -> Response:
        serving = self._now
        route = serving.routes.find(request)
        serving.routes.require(route, request)
        protocol = route.protocol
        if protocol is None:
            return _response(json_reply(route.page))
        deadline = deadline_of(request)
        try:
            with serving.entered():
                async with asyncio.timeout_at(deadline):
                    body = await read_body(request, serving.config.limits.max_body_bytes, protocol.media_types)
                    serving.batcher.refuse_overload(deadline)  # before tokenizing, and again with its tokens
                    run = _at_once if len(body) <= SMALL_BODY_BYTES else self._off_loop
                    prepared = await run(lambda: self._prepare(serving, protocol, body, request.headers, timings))
                    if prepared.request.stream:
                        events = self._stream(serving, prepared, deadline, timings)
                        return EventStream(await self._started(events), protocol.failure)
                    rows = [row for of_input in prepared.rows for row in of_input]
                    completed = await serving.batcher.submit(rows, deadline)
                    timings.queue_s, timings.inference_s = completed.queue_s, completed.inference_s
                    reply = await run(lambda: self._finish(prepared, completed.outputs))
        except TimeoutError:
            raise DeadlineExceededError("the request's deadline ran out before its answer was ready") from None
        return _response(reply)

    def _failed(self, request: Request, failure: Failure) -> Response:
        serving = self._serving
        return failure.response(None if serving is None else serving.routes.find(request).errors.failure(failure))

    def _prepare(
        self, serving: Serving, protocol: Protocol, body: bytes, headers: Mapping[str, str], timings: Timings
    ) -> Prepared:
        request, pipeline = protocol.read(body, headers), protocol.pipeline
        request.check(serving.config.limits)
        inputs, parameters = protocol.parse(request)
        started_at = time.perf_counter()
        rows = pipeline.preprocess(inputs, parameters)
        timings.tokenization_s = time.perf_counter() - started_at
        timings.compute_tokens = sum(row.n_tokens for of_input in rows for row in of_input)
        return Prepared(protocol, request, inputs, parameters, rows)

    def _finish(self, prepared: Prepared, outputs: Sequence[Any]) -> Reply:
        remaining = iter(outputs)
        answers = [
            prepared.protocol.pipeline.postprocess(given, rows, list(islice(remaining, len(rows))), prepared.parameters)
            for given, rows in zip(prepared.inputs, prepared.rows, strict=True)
        ]
        return prepared.protocol.write(prepared.request, answers)

    def _stream(
        self, serving: Serving, prepared: Prepared, deadline: float | None, timings: Timings
    ) -> AsyncGenerator[Any, None]:
        submitted_at = time.perf_counter()
        stream = prepared.protocol.pipeline.stream  # type: ignore[attr-defined]

        def events(row: Row, cancelled: Cancelled) -> Iterator[Any]:
            started_at = time.perf_counter()
            timings.queue_s = started_at - submitted_at
            for event in stream(row, prepared.parameters, cancelled):
                timings.inference_s = time.perf_counter() - started_at
                yield event

        rows = [row for of_input in prepared.rows for row in of_input]
        streams = [serving.batcher.stream(row, events, deadline) for row in rows]
        return prepared.protocol.stream(prepared.request, numbered(streams))

    async def _started(self, events: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """The same events, once the first is there: until then an error has a status of its own."""
        first = await anext(events)

        async def resumed() -> AsyncGenerator[T, None]:
            try:
                yield first
                async for event in events:
                    yield event
            finally:
                await events.aclose()

        return resumed()

    @property
    def _now(self) -> Serving:
        if self._serving is None:
            raise ConfigurationError(f"the deployment {self.task} has no user_config")
        return self._serving

    def _load(self, config: TaskConfig) -> tuple[Pipeline[Any, Any, Any, Any], CostModel]:
        """A pipeline that is warm, and what its batches cost."""
        pipeline: Pipeline[Any, Any, Any, Any] = pipelines.load(
            fetch(config.model, logger.warning).folder,
            task=self.task,
            device=config.device,
            threads=config.threads or _assigned_cpus(),
            concurrency=config.batching.concurrency,
            gpu_mem_limit_bytes=config.gpu_mem_limit_bytes,
            allow_unverified=config.allow_unverified,
            slots=config.slots,
        )
        batching = config.batching
        return pipeline, pipeline.measure_cost(batching.max_batch_tokens, batching.max_batch_size, batching.concurrency)

    async def _off_loop(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._host, work)


def _assigned_cpus() -> int:
    """The whole CPUs that this replica reserves: Ray tells every worker so, in the variable that OpenMP reads."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(given)) if given.isdecimal() else 1


def _response(reply: Reply) -> Response:
    return Response(reply.body, headers=reply.headers or None, media_type=reply.media_type)


async def _at_once(work: Callable[[], T]) -> T:
    return work()


def _of_model(config: TaskConfig) -> TaskConfig:
    """The part of a configuration that a loaded pipeline depends on, the rest made equal."""
    batching = BatchingConfig(concurrency=config.batching.concurrency)
    return replace(config, source=None, batching=batching, limits=LimitsConfig())
