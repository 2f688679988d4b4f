"""PaddedScheduler: forms batches of the rows of many requests, by their padded tokens. Plain asyncio, no framework.

    submit(rows) ──> FairQueue ──cut──> forward in a worker thread ──> outputs, row by row

No task runs while no row waits: a batch is cut when rows arrive and when a worker becomes free. All but `forward`
belongs to one event loop.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count, islice
from typing import Generic, cast

from pipelines.errors import ConfigurationError, GenerationError, InvalidInputError
from pipelines.scheduling.batching import (
    UNMEASURED,
    CostModel,
    FairClock,
    FairQueue,
    LearnedCost,
    Measurement,
    Pace,
    cut,
)
from pipelines.scheduling.scheduler import (
    Backlog,
    BatchingConfig,
    BatchReport,
    Completed,
    OnBatch,
    OutputT,
    QueueConfig,
    RowT,
    Scheduler,
    Stream,
    deadline_exceeded,
    shutting_down,
    unreported,
)
from pipelines.scheduling.workers import Workers

BATCHES_AHEAD = 8  # the search for rows of similar length spans so many full batches
BULK_S = 0.2  # a request of several rows with more work is bulk
BULK_TAG = 1e9  # seconds of work; added to the start tags of bulk requests: all others go before them
LATER_ROW = 2**40  # added to the number of every row after the first: at equal tags, first rows go first
INTERACTIVE_S = 1.0  # a worker stays free of bulk so long after another request arrived


@dataclass(eq=False, slots=True)
class _Request(Generic[RowT, OutputT]):
    """One call of `submit`. `bulk`: it leaves a worker free for short requests. `backlog` is that of its class."""

    done: asyncio.Future[None]
    outputs: list[OutputT | None]
    backlog: Backlog
    submitted_at: float
    rows: list["_Waiting[RowT, OutputT]"] = field(default_factory=list)
    batch_sizes: list[int] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    started_at: float = math.nan
    unanswered: int = 0
    bulk: bool = False
    waiting: int = 0
    departed_at: float | None = None  # answered, failed or left


@dataclass(eq=False, slots=True)
class _Waiting(Generic[RowT, OutputT]):
    """One row in the queue or in a batch: the `index`-th of its request."""

    request: _Request[RowT, OutputT]
    index: int
    row: RowT
    n_tokens: int
    cost_s: float
    tag: float
    number: int


@dataclass(eq=False, slots=True)
class _Batch(Generic[RowT, OutputT]):
    """Rows in a worker thread. `bulk`: its first row belongs to a bulk request; `crowded`: no worker was free after it;
    `full`: rows waited that it did not take. `forward_s` is 0.0 until the forward has ended without an error."""

    rows: list[_Waiting[RowT, OutputT]]
    predicted_s: float
    bulk: bool
    crowded: bool
    full: bool
    started_at: float
    number: int
    forward_s: float = 0.0


class PaddedScheduler(Scheduler[RowT, OutputT]):
    """`forward(rows)` returns one output per row, in order; it runs in a worker thread.

    A batch that raises runs again row by row, so that an input that fails does so alone.

    With several workers, bulk requests leave one worker free while short requests keep arriving: a short request waits
    for no batch of a long list.
    """

    def __init__(
        self,
        forward: Callable[[Sequence[RowT]], list[OutputT]],
        config: BatchingConfig | None = None,
        cost: CostModel = UNMEASURED,
        queue: QueueConfig | None = None,
        on_batch: OnBatch = unreported,
        learned: LearnedCost | None = None,
    ) -> None:
        """`learned` replaces `cost` as it learns from the batches that are served."""
        super().__init__(queue or QueueConfig(), on_batch)
        self.config = config or BatchingConfig()
        self.cost = cost
        self._forward, self._learned = forward, learned
        self._workers = Workers()
        self._waiting: FairQueue[_Waiting[RowT, OutputT]] = FairQueue()
        self._clock = FairClock()
        self._numbers = count()
        self._batch_numbers = count(1)
        self._running: set[_Batch[RowT, OutputT]] = set()
        self._running_s = 0.0  # predicted for the batches in worker threads
        self._interactive_at = -math.inf
        self._pace = Pace(measured=cost is not UNMEASURED)

    @property
    def is_busy(self) -> bool:
        return len(self._running) >= self.config.concurrency

    @property
    def running_batches(self) -> int:
        return len(self._running)

    @property
    def stalled_s(self) -> float:
        departures = [[one.request.departed_at for one in batch.rows] for batch in self._running]
        abandoned = [max(filter(None, batch)) for batch in departures if None not in batch]
        return self.now() - min(abandoned) if abandoned else 0.0

    def expected_wait_s(self, rows: Sequence[RowT] = (), *, bulk: bool = False) -> float:
        """By the cost model, at the pace of the last batches. Running ones count half: their mean remainder; of a list
        that waits, the fair share that goes before the last of `rows`."""
        if not self.is_busy:
            return 0.0
        own_s = sum(self.cost.row_s(row.n_tokens) for row in rows)
        before_s = self._backlog.work_s + self._bulk_backlog.before_s(own_s) if bulk else self._backlog.before_s(own_s)
        return self._until_done_s(before_s, self._running_s)

    def expected_s(self, rows: Sequence[RowT] = (), *, bulk: bool = False) -> float:
        """The wait, and then the time of a batch as recent ones took it, or of all rows where those take longer."""
        if self._pace.drift is None or not self.is_busy:
            return 0.0
        own_s = self._pace.drift * sum(self.cost.row_s(row.n_tokens) for row in rows) / self.config.concurrency
        return self.expected_wait_s(rows, bulk=bulk) + max(self._pace.batch_s, own_s)

    @property
    def work_s(self) -> float:
        return self.queued_s + self._until_done_s(self._bulk_backlog.work_s, self._running_s)

    @property
    def queued_s(self) -> float:
        return self._until_done_s(self._backlog.work_s, 0.0)

    @property
    def row_s(self) -> float:
        """The mean of the rows that wait: of a list, one row goes before a new request."""
        return self.queued_s / self._backlog.rows if self._backlog.rows else 0.0

    async def submit(
        self, rows: Sequence[RowT], deadline: float | None = None, *, bulk: bool = False
    ) -> Completed[OutputT]:
        request = self._enter(rows, deadline, bulk)
        try:
            await request.done
        finally:
            self._leave(request)
        ended_at = self.now()
        started_at = request.started_at if rows else ended_at
        return Completed(
            outputs=cast(list[OutputT], request.outputs),
            queue_s=started_at - request.submitted_at,
            inference_s=ended_at - started_at,
            read_tokens=sum(one.n_tokens for one in request.rows),
            batch_sizes=tuple(request.batch_sizes),
            batches=tuple(dict.fromkeys(request.batches)),
        )

    def stream(self, rows: Sequence[RowT], deadline: float | None = None, *, bulk: bool = False) -> Stream:
        raise InvalidInputError("stream is true; allowed for models that generate")

    def reconfigure(self, batching: BatchingConfig, queue: QueueConfig) -> None:
        """Another `concurrency` raises ConfigurationError: the sessions of a loaded model depend on it."""
        if batching.concurrency != self.config.concurrency:
            raise ConfigurationError(
                f"concurrency is {batching.concurrency}; the loaded model runs {self.config.concurrency}"
            )
        self.config, self.queue = batching, queue
        self._dispatch()

    async def drain(self, limit_s: float = 0.0) -> None:
        self._draining = True
        self._dispatch()
        if self._running:
            await self._until_idle(limit_s)
        for one in [*self._waiting, *(one for batch in self._running for one in batch.rows)]:
            self._fail(one.request, shutting_down())
        self._workers.end()
        if self._learned is not None:
            self._learned.keep()

    def _enter(self, rows: Sequence[RowT], deadline: float | None, bulk: bool) -> _Request[RowT, OutputT]:
        loop = asyncio.get_running_loop()
        self.admit(rows, deadline, None if deadline is None else loop.time(), bulk=bulk)
        backlog = self._bulk_backlog if bulk else self._backlog
        request: _Request[RowT, OutputT] = _Request(loop.create_future(), [None] * len(rows), backlog, self.now())
        if not rows:
            request.done.set_result(None)
            return request
        if deadline is not None:
            expiry = loop.call_at(deadline, self._fail, request, deadline_exceeded())
            request.done.add_done_callback(lambda _: expiry.cancel())
        tag, work_s, tokens = self._clock.arrive() + (BULK_TAG if bulk else 0.0), 0.0, 0
        for index, row in enumerate(rows):
            n_tokens = row.n_tokens
            cost_s = self.cost.row_s(n_tokens)
            number = next(self._numbers) + (LATER_ROW if index else 0)
            request.rows.append(_Waiting(request, index, row, n_tokens, cost_s, tag + work_s, number))
            work_s, tokens = work_s + cost_s, tokens + n_tokens
        request.unanswered = request.waiting = len(rows)
        request.backlog.put(request, len(rows), tokens, work_s)
        if not bulk:
            self._ask(self._until_done_s(work_s, 0.0))
        request.bulk = bulk or (len(rows) > 1 and work_s * (self._pace.drift or 1.0) > BULK_S)
        if not request.bulk:
            self._interactive_at = request.submitted_at
        self._waiting.put(request.rows)
        self._dispatch()
        return request

    def _take(self, rows: Sequence[_Waiting[RowT, OutputT]]) -> None:
        """Remove rows from the queue, except those that have left it already."""
        for one in self._waiting.discard(rows):
            one.request.backlog.take(one.request, one.n_tokens, one.cost_s)
            one.request.waiting -= 1

    def _leave(self, request: _Request[RowT, OutputT]) -> None:
        """Remove a request with its waiting rows."""
        if request.departed_at is None:
            request.departed_at = self.now()
            if request.rows:
                self._clock.leave()
        if request.waiting:
            self._take(request.rows)
        if not request.done.done():
            request.done.cancel()
        elif not request.done.cancelled():
            request.done.exception()  # asyncio logs errors that were not retrieved

    def _fail(self, request: _Request[RowT, OutputT], error: Exception) -> None:
        if not request.done.done():
            request.done.set_exception(error)
        self._leave(request)

    def _dispatch(self) -> None:
        """Give every free worker a batch. Called whenever rows arrive or a worker becomes free."""
        while self._waiting and not self.is_busy and (first := self._first()) is not None:
            size = self.config.max_batch_size
            span = size if self.cost.packed else BATCHES_AHEAD * size
            ahead = () if len(self._waiting) == 1 else islice(self._waiting, span)
            backlog = first.request.backlog  # a bulk row that joined others would delay them
            others = [one for one in ahead if one is not first and one.request.backlog is backlog]
            limit_s = self._pace.predicted_s(self.config.max_batch_s)
            rows = cut(first, others, len(self._waiting), self.config, self.cost, limit_s)
            company_s = self._company_s(rows)
            if company_s > 0:
                asyncio.get_running_loop().call_later(company_s, self._dispatch)
                return
            self._take(rows)
            predicted_s = self.cost.batch_s(*self.cost.shape([one.n_tokens for one in rows]))
            self._clock.advance(sum(one.cost_s for one in rows))
            crowded = self.config.concurrency == len(self._running) + 1
            left, number = bool(self._waiting), next(self._batch_numbers)
            batch = _Batch(rows, predicted_s, first.request.bulk, crowded, left, self.now(), number)
            for one in rows:
                one.request.batch_sizes.append(len(rows))
                one.request.batches.append(batch.number)
                if math.isnan(one.request.started_at):
                    one.request.started_at = batch.started_at
            self._running.add(batch)
            self._running_s += predicted_s
            self._run(batch)

    def _first(self) -> _Waiting[RowT, OutputT] | None:
        """The first row of the next batch; None where only bulk waits and all its workers are taken."""
        limit = self.config.concurrency - 1
        quiet_s = self.now() - self._interactive_at
        if limit == 0 or quiet_s >= INTERACTIVE_S or sum(batch.bulk for batch in self._running) < limit:
            return next(iter(self._waiting))
        first = next((one for one in self._waiting if not one.request.bulk), None)
        if first is None:
            asyncio.get_running_loop().call_later(INTERACTIVE_S - quiet_s, self._dispatch)
        return first

    def _until_done_s(self, waiting_s: float, running_s: float) -> float:
        return self._pace.until_done_s(waiting_s, running_s) / self.config.concurrency

    def _company_s(self, rows: list[_Waiting[RowT, OutputT]]) -> float:
        """Seconds that a batch of all waiting rows, with room for more, still waits for further rows."""
        if self.config.batch_wait_timeout_s == 0 or self._draining:
            return 0.0
        if len(rows) < len(self._waiting) or len(rows) == self.config.max_batch_size:
            return 0.0
        return self.config.batch_wait_timeout_s - (self.now() - rows[0].request.submitted_at)

    def _run(self, batch: _Batch[RowT, OutputT]) -> None:
        """Give a batch to a worker, after which `_ended` is called in the event loop."""
        if len(self._workers.threads) < self.config.concurrency:
            self._workers.grow(self.config.concurrency)
        self._workers.put(partial(self._work, batch, asyncio.get_running_loop()))

    def _work(self, batch: _Batch[RowT, OutputT], loop: asyncio.AbstractEventLoop) -> None:
        """Run a batch; where it raises, run its rows one by one, unless all belong to one request."""
        outcomes: list[OutputT | Exception]
        began_at = time.perf_counter()
        try:
            outcomes = list(self._outputs([one.row for one in batch.rows]))
            batch.forward_s = time.perf_counter() - began_at
        except Exception as error:
            if len({id(one.request) for one in batch.rows}) == 1:
                outcomes = [error] * len(batch.rows)
            else:
                outcomes = [self._alone(one) for one in batch.rows]
        with suppress(RuntimeError):  # the loop is closed: no request waits
            loop.call_soon_threadsafe(self._ended, batch, outcomes)

    def _alone(self, one: _Waiting[RowT, OutputT]) -> OutputT | Exception:
        if one.request.departed_at is not None:
            return shutting_down()  # no caller receives it
        try:
            return self._outputs([one.row])[0]
        except Exception as error:
            return error

    def _outputs(self, rows: list[RowT]) -> list[OutputT]:
        try:
            outputs = self._forward(rows)
        except StopIteration as error:  # a future cannot hold it: the request would wait for ever
            raise GenerationError("the model stopped without an answer") from error
        if len(outputs) != len(rows):
            raise GenerationError(f"the model gave {len(outputs)} outputs for {len(rows)} inputs")
        return outputs

    def _ended(self, batch: _Batch[RowT, OutputT], outcomes: Sequence[OutputT | Exception]) -> None:
        is_crowded = self.is_busy
        self._running.discard(batch)
        self._running_s = self._running_s - batch.predicted_s if self._running else 0.0
        # Before the answers: the worker would be idle until the loop has written all of them.
        self._dispatch()
        inference_s = self.now() - batch.started_at
        for one, outcome in zip(batch.rows, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._fail(one.request, outcome)
                continue
            request = one.request
            request.outputs[one.index] = outcome
            request.unanswered -= 1
            if not request.unanswered and not request.done.done():
                request.done.set_result(None)
        work_s = sum([one.cost_s for one in batch.rows])
        self._pace.note(inference_s, batch.predicted_s, work_s, is_full=batch.full and is_crowded)
        lengths = [one.n_tokens for one in batch.rows]
        # Only batches that share the machine with those of all other workers tell what a batch costs under load.
        learned, counts = self._learned, batch.crowded and is_crowded and batch.forward_s > 0
        if learned is not None and counts and learned.note(Measurement(*self.cost.shape(lengths), batch.forward_s)):
            self.cost = learned.model
            self._pace.refitted()
        queue_s = batch.started_at - batch.rows[0].request.submitted_at
        n_padded = self.cost.padded_tokens(lengths)
        self._on_batch(BatchReport(len(lengths), sum(lengths), 0, n_padded, queue_s, inference_s, batch.number))
        if not (self._running or self._waiting):
            self._idle.set()
