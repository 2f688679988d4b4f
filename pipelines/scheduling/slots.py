"""SlotScheduler: requests of a generative model, on an engine that decodes in a thread of its own.

    submit(rows), stream(rows) ──> Job ──> DecodeEngine ──events──> mailbox ──> event loop

No thread waits for a sequence: the decode thread appends events to a mailbox and wakes the event loop once for all of
them. The engine schedules the requests; this side admits them, counts tokens and delivers steps.
"""

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.errors import ConfigurationError, GenerationError
from pipelines.generation.decoding.request import Answer, DecodeRequest, Step
from pipelines.generation.engine import CacheState, DecodeEngine, Event, Job, Scheduled, Share, Steps
from pipelines.scheduling.scheduler import (
    Backlog,
    BatchingConfig,
    BatchReport,
    Completed,
    OnBatch,
    QueueConfig,
    Scheduler,
    Stream,
    deadline_exceeded,
    shutting_down,
    unreported,
)

TYPICAL_TOKENS = 64.0  # length of an answer before the first one has ended
TYPICAL_MEMORY = 0.95  # weight of the past in the moving average of answer lengths


@dataclass(eq=False, slots=True)
class _Row:
    """One prompt of a request. `left`: its caller has left; `cost_s` is its predicted work in seconds."""

    call: "_Call"
    index: int
    request: DecodeRequest
    cost_s: float
    left: bool = False
    waiting: bool = True
    ended: bool = False

    def has_left(self) -> bool:
        return self.left


@dataclass(eq=False, slots=True)
class _Call:
    """One call of `submit` or `stream`."""

    done: asyncio.Future[None]
    streams: bool
    backlog: Backlog
    submitted_at: float
    rows: list[_Row] = field(default_factory=list)
    outputs: list[Answer | None] = field(default_factory=list)
    steps: deque[tuple[int, Step]] = field(default_factory=deque)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    started_at: float = math.nan
    unanswered: int = 0
    written_tokens: int = 0


class SlotScheduler(Scheduler[DecodeRequest, Answer]):
    """`engine` decodes up to `engine.slots` sequences at once; a sequence keeps its slot for at least `turn_tokens`
    tokens while others wait.
    """

    def __init__(
        self,
        engine: DecodeEngine[Any],
        queue: QueueConfig | None = None,
        on_batch: OnBatch = unreported,
        turn_tokens: int = 64,
    ) -> None:
        super().__init__(queue or QueueConfig(), on_batch)
        self._engine, self._turn_tokens = engine, turn_tokens
        self._inside: dict[_Call, None] = {}
        self._rows_inside = 0  # rows that have not ended
        self._asking = 0  # of them, those that are not bulk
        self._asked_at = self.now()  # until then, their seconds are counted
        self._typical_tokens = TYPICAL_TOKENS
        self._mailbox: deque[tuple[_Row, Event, float]] = deque()
        self._is_woken = False
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def cache(self) -> CacheState | None:
        return self._engine.cache()

    @property
    def is_busy(self) -> bool:
        return self._rows_inside >= self._engine.slots

    @property
    def stalled_s(self) -> float:
        """Seconds since the engine's current round began."""
        return self._engine.stalled_s

    def expected_wait_s(self, rows: Sequence[DecodeRequest] = (), *, bulk: bool = False) -> float:
        """Predicted from the engine's recent seconds per token and the typical length of answers.

        A waiting row goes before a new one for one turn at most.
        """
        if not self.is_busy:
            return 0.0
        turn_s = self._turn_tokens * self._engine.new_token_s
        own_s = sum(self._cost_s(row) for row in rows)
        before_s = self._backlog.before_s(own_s)
        if bulk:
            before_s = self._backlog.work_s + self._bulk_backlog.before_s(own_s)
        return before_s + turn_s / 2

    def expected_s(self, rows: Sequence[DecodeRequest] = (), *, bulk: bool = False) -> float:
        """The wait and the reading of the prompts. How long an answer becomes, nobody knows."""
        if not self.is_busy:
            return 0.0
        return self.expected_wait_s(rows, bulk=bulk) + sum(row.n_tokens for row in rows) * self._engine.prompt_token_s

    @property
    def servers(self) -> int:
        return self._engine.slots

    @property
    def demand_s(self) -> float:
        """A sequence asks for a slot from its arrival to its end."""
        return self._demand_s + self._asking * (self.now() - self._asked_at) / self._engine.slots

    @property
    def queued_s(self) -> float:
        return self._backlog.work_s if self.is_busy else 0.0

    @property
    def work_s(self) -> float:
        running = self._rows_inside - self.waiting_rows
        answers = self.waiting_rows + running / 2  # what runs has half of its answer before it, on average
        new_s = answers * self._typical_tokens * self._engine.new_token_s
        return new_s + self.waiting_tokens * self._engine.prompt_token_s

    async def submit(
        self, rows: Sequence[DecodeRequest], deadline: float | None = None, *, bulk: bool = False
    ) -> Completed[Answer]:
        call = self._enter(rows, deadline, streams=False, bulk=bulk)
        try:
            await call.done
        finally:
            self._leave(call)
        ended_at = self.now()
        started_at = ended_at if math.isnan(call.started_at) else call.started_at
        outputs = [output for output in call.outputs if output is not None]
        first = [output.first_token_at for output in outputs if output.first_token_at is not None]
        return Completed(
            outputs=outputs,
            queue_s=started_at - call.submitted_at,
            inference_s=ended_at - started_at,
            read_tokens=sum(row.request.n_tokens for row in call.rows),
            written_tokens=call.written_tokens,
            first_token_at=min(first, default=None),
        )

    def stream(
        self, rows: Sequence[DecodeRequest], deadline: float | None = None, *, bulk: bool = False
    ) -> "SlotStream":
        return SlotStream(self, self._enter(rows, deadline, streams=True, bulk=bulk))

    def reconfigure(self, batching: BatchingConfig, queue: QueueConfig) -> None:
        """`batching` has no effect: slots take the place of batches."""
        self.queue = queue

    async def drain(self, limit_s: float = 0.0) -> None:
        self._draining = True
        if self._inside:
            await self._until_idle(limit_s)
        for call in list(self._inside):
            self._fail(call, shutting_down())

    def _cost_s(self, row: DecodeRequest) -> float:
        """Predicted seconds that a waiting row takes before others: its prompt, and an answer of typical length.

        A turn at most counts of the answer: then it may be paused for those who wait.
        """
        new_tokens = min(row.max_new_tokens, min(self._typical_tokens, self._turn_tokens) * row.config.n_sequences)
        return row.n_tokens * self._engine.prompt_token_s + new_tokens * self._engine.new_token_s

    def _enter(self, rows: Sequence[DecodeRequest], deadline: float | None, *, streams: bool, bulk: bool) -> _Call:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._inside:
                raise ConfigurationError("a scheduler belongs to one event loop")
            self._loop, self._is_woken = loop, False
        for row in rows:
            self._engine.check(row)
        self.admit(rows, deadline, loop.time(), bulk=bulk)
        call = _Call(loop.create_future(), streams, self._bulk_backlog if bulk else self._backlog, self.now())
        if not rows:
            call.done.set_result(None)
            return call
        if deadline is not None:
            expiry = loop.call_at(deadline, self._fail, call, deadline_exceeded())
            call.done.add_done_callback(lambda _: expiry.cancel())
        call.rows = [_Row(call, index, row, self._cost_s(row)) for index, row in enumerate(rows)]
        call.outputs = [None] * len(rows)
        call.unanswered = len(rows)
        share = Share(bulk)
        jobs = [
            Job(row.request, lambda event, row=row: self._post(row, event), share, row.has_left, streams)  # type: ignore[misc]
            for row in call.rows
        ]
        self._engine.start(*jobs)
        self._inside[call] = None
        self._count(call, len(rows))
        if not bulk:
            self._ask(0.0)  # its sequences ask for slots while they are inside
        tokens, work_s = sum(row.n_tokens for row in rows), sum(row.cost_s for row in call.rows)
        call.backlog.put(call, len(rows), tokens, work_s)
        return call

    def _leave(self, call: _Call) -> None:
        """Remove a call: its sequences stop at their next token."""
        if call in self._inside:
            del self._inside[call]
            for row in call.rows:
                row.left = True
                self._start(row)
                self._count(call, -int(not row.ended))
            if not self._inside:
                self._idle.set()
        if not call.done.done():
            call.done.cancel()
        elif not call.done.cancelled():
            call.done.exception()  # asyncio logs errors that were not retrieved

    def _fail(self, call: _Call, error: Exception) -> None:
        if not call.done.done():
            call.done.set_exception(error)
            call.arrived.set()
        self._leave(call)

    def _count(self, call: _Call, rows: int) -> None:
        """So many rows of a call have come; fewer than none: have ended."""
        self._rows_inside += rows
        if call.backlog is self._backlog:
            self._demand_s, self._asked_at = self.demand_s, self.now()
            self._asking += rows

    def _start(self, row: _Row) -> None:
        """Take a row off the backlog, once."""
        if row.waiting:
            row.waiting = False
            row.call.backlog.take(row.call, row.request.n_tokens, row.cost_s)

    def _post(self, row: _Row, event: Event) -> None:
        """Append an event, in the decode thread; wake the loop unless it is woken already."""
        self._mailbox.append((row, event, self.now()))
        if not self._is_woken:
            self._is_woken = True
            assert self._loop is not None
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:  # the loop is closed: no request waits
                self._mailbox.clear()

    def _deliver(self) -> None:
        self._is_woken = False  # before reading the mailbox: later events wake the loop again
        while self._mailbox:
            self._take(*self._mailbox.popleft())

    def _take(self, row: _Row, event: Event, happened_at: float) -> None:
        call = row.call
        if isinstance(event, Scheduled):
            self._start(row)
            if math.isnan(call.started_at):
                call.started_at = happened_at
        elif isinstance(event, Steps):
            if not row.left:
                call.written_tokens += len(event.steps)
                call.steps += ((row.index, step) for step in event.steps)
                call.arrived.set()
        elif isinstance(event, Answer):
            self._answer(row, event)
        elif not call.done.done():
            failure = GenerationError("decoding stopped without an answer")
            self._fail(call, failure if isinstance(event, StopIteration) else event)

    def _answer(self, row: _Row, answer: Answer) -> None:
        call = row.call
        written = sum(len(generation.steps) for generation in answer.generations)
        if not call.streams:
            call.written_tokens += written
        if call in self._inside:
            self._start(row)
            self._count(call, -1)
            past, sequences = self._typical_tokens, max(1, len(answer.generations))
            self._typical_tokens = TYPICAL_MEMORY * past + (1 - TYPICAL_MEMORY) * written / sequences
        queue_s = call.started_at - call.submitted_at
        read = row.request.n_tokens
        if not math.isnan(queue_s):
            inference_s, adapter = self.now() - call.started_at, row.request.adapter
            self._on_batch(BatchReport(1, read, written, read, queue_s, inference_s, adapter=adapter))
        row.ended = True
        call.outputs[row.index] = answer
        call.unanswered -= 1
        if not call.unanswered and not call.done.done():
            call.done.set_result(None)
            call.arrived.set()


class SlotStream(Stream):
    """The steps of one call, in the order of decoding."""

    def __init__(self, scheduler: SlotScheduler, call: _Call) -> None:
        self._scheduler, self._call = scheduler, call
        self._stopped: set[int] = set()

    async def __anext__(self) -> tuple[int, Step]:
        call = self._call
        while True:
            while call.steps:
                index, step = call.steps.popleft()
                if index not in self._stopped:
                    return index, step
            if call.done.done():
                await self.aclose()
                if not call.done.cancelled() and (error := call.done.exception()):
                    raise error
                raise StopAsyncIteration
            call.arrived.clear()
            await call.arrived.wait()

    def stop(self, index: int) -> None:
        self._stopped.add(index)
        self._call.rows[index].left = True

    async def aclose(self) -> None:
        self._scheduler._leave(self._call)

    @property
    def queue_s(self) -> float:
        started_at = self._call.started_at
        return (self._scheduler.now() if math.isnan(started_at) else started_at) - self._call.submitted_at

    @property
    def inference_s(self) -> float:
        return 0.0 if math.isnan(self._call.started_at) else self._scheduler.now() - self._call.started_at

    @property
    def written_tokens(self) -> int:
        return self._call.written_tokens
