"""TokenBudgetBatcher: rows of many requests, cut into batches by their PADDED tokens. Plain asyncio, no framework.

    submit(rows) ──> waiting (oldest first) ──cut──> forward in a worker thread ──> outputs, row by row
    stream(row)  ──> the same queue and the same worker threads, one row per batch, items as they come

Nothing runs while nothing waits: a batch is cut when rows arrive and when a worker becomes free, so there is no
loop that must be started or could hang. One event loop per batcher; only `forward` leaves it.
"""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

from pipelines.errors import ConfigurationError, DeadlineExceededError, GenerationError, OverloadedError
from pipelines.runtime.padding import padded_tokens
from pipelines.scheduling.cost_model import UNMEASURED, CostModel
from pipelines.scheduling.row_queue import RowQueue
from pipelines.tasks.pipeline import Cancelled, Row

RowT = TypeVar("RowT", bound=Row)
OutputT = TypeVar("OutputT")
ItemT = TypeVar("ItemT")

MOST_AT_ONCE = 1024  # batches: each has a thread
MEMORY = 0.8  # weight of the past in the moving average of how true the cost model is


@dataclass(frozen=True)
class BatchingConfig:
    """What a batch, and the queue in front of it, may hold.

    `max_batch_tokens` bounds rows x longest row; a row longer than that goes alone. Below these bounds the cost model
    decides how large a batch becomes. `concurrency` batches run at
    once: as many as threads keeps a CPU busy. `batch_wait_timeout_s` lets an idle worker wait for company; zero
    starts at once. `max_queue_tokens` bounds the rows that wait, in real tokens; a request larger than that is
    admitted only to an empty queue.
    """

    max_batch_tokens: int = 4096
    max_batch_size: int = 32
    batch_wait_timeout_s: float = 0.0
    max_queue_tokens: int = 262_144
    concurrency: int = 1

    def __post_init__(self) -> None:
        for name in ("max_batch_tokens", "max_batch_size", "max_queue_tokens", "concurrency"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; allowed: an integer from 1")
        if self.concurrency > MOST_AT_ONCE:
            raise ConfigurationError(f"concurrency is {self.concurrency}; allowed: 1 to {MOST_AT_ONCE}")
        if not 0 <= self.batch_wait_timeout_s <= 10:
            raise ConfigurationError(f"batch_wait_timeout_s is {self.batch_wait_timeout_s}; allowed: 0 to 10 seconds")


@dataclass(frozen=True)
class Completed(Generic[OutputT]):
    """One output per submitted row, in order, and how they came about.

    `queue_s` ends when the first row starts; `inference_s` is the rest. `batch_sizes` has one entry, in rows, for
    each of this request's rows: the size of the batch that carried it.
    """

    outputs: list[OutputT]
    queue_s: float
    inference_s: float
    batch_sizes: tuple[int, ...]


@dataclass(frozen=True)
class BatchReport:
    """A batch that ended: its `rows`, their `tokens`, `padded_tokens` (rows x longest) and how long it took.

    `queue_s` is how long its oldest row had waited.
    """

    rows: int
    tokens: int
    padded_tokens: int
    queue_s: float
    inference_s: float


@dataclass(eq=False)
class _Request(Generic[RowT, OutputT]):
    """One call of `submit` or `stream`. `departed_at` once nobody waits for it any more: left, failed or answered."""

    done: asyncio.Future[None]
    items: Callable[[RowT, Cancelled], None] | None
    rows: list["_Waiting[RowT, OutputT]"] = field(default_factory=list)
    outputs: list[OutputT | None] = field(default_factory=list)
    batch_sizes: list[int] = field(default_factory=list)
    submitted_at: float = field(default_factory=time.perf_counter)
    started_at: float = math.nan
    unanswered: int = 0
    departed_at: float | None = None


@dataclass(eq=False)
class _Waiting(Generic[RowT, OutputT]):
    """One row in the queue or in a batch: the `index`-th of its request."""

    request: _Request[RowT, OutputT]
    index: int
    row: RowT
    n_tokens: int

    @property
    def alone(self) -> bool:
        return self.request.items is not None


class TokenBudgetBatcher(Generic[RowT, OutputT]):
    """Queue, cut, run, fan out. `forward(rows, cancelled)` gives one output per row and runs in a worker thread.

    `cancelled()` is true once nobody waits for any row of the batch. A batch that raises is run again row by row,
    so that one poisonous input fails alone.
    """

    def __init__(
        self,
        forward: Callable[[Sequence[RowT], Cancelled], list[OutputT]],
        config: BatchingConfig | None = None,
        cost: CostModel = UNMEASURED,
        on_batch: Callable[[BatchReport], None] = lambda _report: None,
    ) -> None:
        self.config = config or BatchingConfig()
        self.cost = cost
        self._forward = forward
        self._on_batch = on_batch
        self._workers = ThreadPoolExecutor(max_workers=self.config.concurrency, thread_name_prefix="forward")
        self._waiting: RowQueue[_Waiting[RowT, OutputT]] = RowQueue(
            self.config.max_batch_tokens, self.config.max_batch_size, cost
        )
        self._running: dict[asyncio.Task[None], list[_Waiting[RowT, OutputT]]] = {}
        self._drift: float | None = None  # seconds that pass for each that the cost model predicts
        self._closing = False

    @property
    def waiting_tokens(self) -> int:
        """Real tokens of the rows that no worker has started yet."""
        return self._waiting.tokens

    @property
    def running_batches(self) -> int:
        """Batches in worker threads now."""
        return len(self._running)

    @property
    def abandoned_s(self) -> float:
        """For how long the batch that nobody waits for any more has been going on all the same; 0.0 for none."""
        departures = [[one.request.departed_at for one in batch] for batch in self._running.values()]
        abandoned = [max(filter(None, batch)) for batch in departures if None not in batch]
        return time.perf_counter() - min(abandoned) if abandoned else 0.0

    def expected_wait_s(self) -> float:
        """How long a row that arrives now waits for a worker, by the cost model and by how true it was; 0.0 when idle.

        Running batches count half: on average that much of them is left.
        """
        if self._drift is None or len(self._running) < self.config.concurrency:
            return 0.0
        running_s = sum(self._predicted_s(batch) for batch in self._running.values())
        return self._drift * (running_s / 2 + self._waiting.work_s()) / self.config.concurrency

    async def submit(self, rows: Sequence[RowT], deadline: float | None = None) -> Completed[OutputT]:
        """Outputs of `rows`, in order. `deadline` is a time of the running loop's clock.

        Raises OverloadedError when the queue is full, closing, or too slow for the deadline; DeadlineExceededError
        when it ran out; and whatever `forward` raised for one of these rows. A caller that is cancelled leaves the
        queue at once.
        """
        request = self._admit(rows, deadline, items=None)
        try:
            await request.done
        finally:
            self._leave(request)
        ended_at = time.perf_counter()
        started_at = request.started_at if rows else ended_at
        return Completed(
            outputs=cast(list[OutputT], request.outputs),
            queue_s=started_at - request.submitted_at,
            inference_s=ended_at - started_at,
            batch_sizes=tuple(request.batch_sizes),
        )

    async def stream(
        self, row: RowT, items: Callable[[RowT, Cancelled], Iterator[ItemT]], deadline: float | None = None
    ) -> AsyncGenerator[ItemT, None]:
        """What `items(row, cancelled)` yields, iterated in a worker thread, each handed over as it comes.

        Raises as `submit` does. Closing the iterator makes `cancelled()` true, which ends decoding at its next step.
        """
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Any] = asyncio.Queue()
        end = object()

        def produce(row: RowT, cancelled: Cancelled) -> None:
            for item in items(row, cancelled):
                if cancelled():
                    return
                loop.call_soon_threadsafe(arrived.put_nowait, item)

        request = self._admit([row], deadline, items=produce)
        request.done.add_done_callback(lambda _: arrived.put_nowait(end))
        try:
            while (item := await arrived.get()) is not end:
                yield item
            await request.done
        finally:
            self._leave(request)

    async def close(self, drain_s: float = 0.0) -> None:
        """Refuse new rows, let those inside finish for `drain_s`, then fail the rest. Safe to call twice."""
        self._closing = True
        self._dispatch()
        leave_at = time.monotonic() + drain_s
        while self._running and (left_s := leave_at - time.monotonic()) > 0:
            await asyncio.wait(self._running, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        for one in [*self._waiting, *(one for batch in self._running.values() for one in batch)]:
            self._fail(one.request, _closing())
        self._workers.shutdown(wait=False)

    def _admit(
        self, rows: Sequence[RowT], deadline: float | None, items: Callable[[RowT, Cancelled], None] | None
    ) -> _Request[RowT, OutputT]:
        loop = asyncio.get_running_loop()
        n_tokens = [row.n_tokens for row in rows]
        self.refuse_overload(deadline, sum(n_tokens))
        request: _Request[RowT, OutputT] = _Request(done=loop.create_future(), items=items)
        request.rows = [_Waiting(request, index, row, n_tokens[index]) for index, row in enumerate(rows)]
        request.outputs = [None] * len(rows)
        request.unanswered = len(rows)
        if not rows:
            request.done.set_result(None)
        elif deadline is not None:
            error = DeadlineExceededError("the request's deadline ran out before its answer was ready")
            expiry = loop.call_at(deadline, self._fail, request, error)
            request.done.add_done_callback(lambda _: expiry.cancel())
        self._waiting.put(request.rows)
        self._dispatch()
        return request

    def refuse_overload(self, deadline: float | None, n_tokens: int = 1) -> None:
        """Raise OverloadedError where a request of so many tokens would not be admitted now."""
        if self._closing:
            raise _closing()
        time_left_s = None if deadline is None else deadline - asyncio.get_running_loop().time()
        wait_s = self.expected_wait_s()
        if self._waiting and self._waiting.tokens + n_tokens > self.config.max_queue_tokens:
            raise OverloadedError(
                f"the queue is full: {self._waiting.tokens} tokens wait and the request has {n_tokens}; "
                f"allowed: {self.config.max_queue_tokens} together",
                retry_after_s=wait_s,
            )
        if time_left_s is not None and wait_s > max(time_left_s, 0.0):
            raise OverloadedError(
                f"the deadline cannot be met: about {wait_s:.2f} s of work wait before it and {time_left_s:.2f} s are "
                "left",
                retry_after_s=wait_s,
            )

    def _leave(self, request: _Request[RowT, OutputT]) -> None:
        """Forget a request: its rows leave the queue, and the batches that carry others of its rows may stop."""
        request.departed_at = request.departed_at or time.perf_counter()
        if request.unanswered:
            self._waiting.discard(request.rows)
        if not request.done.done():
            request.done.cancel()
        elif not request.done.cancelled():
            request.done.exception()  # seen: asyncio logs errors that nobody looked at

    def _fail(self, request: _Request[RowT, OutputT], error: Exception) -> None:
        if not request.done.done():
            request.done.set_exception(error)
        self._leave(request)

    def _dispatch(self) -> None:
        """Give every free worker a batch. Called whenever rows arrive or a worker becomes free."""
        while self._waiting and len(self._running) < self.config.concurrency:
            batch = self._waiting.next_batch()
            company_s = self._company_s(batch)
            if company_s > 0:
                asyncio.get_running_loop().call_later(company_s, self._dispatch)
                return
            self._waiting.discard(batch)
            task = asyncio.get_running_loop().create_task(self._run(batch))
            self._running[task] = batch
            task.add_done_callback(self._finished)

    def _company_s(self, batch: list[_Waiting[RowT, OutputT]]) -> float:
        """How much longer a batch that took everything, and could take more, waits for rows to join it."""
        if self._closing or len(batch) < len(self._waiting) or len(batch) == self.config.max_batch_size:
            return 0.0
        return self.config.batch_wait_timeout_s - (time.perf_counter() - batch[0].request.submitted_at)

    async def _run(self, batch: list[_Waiting[RowT, OutputT]]) -> None:
        started_at = time.perf_counter()
        for one in batch:
            one.request.batch_sizes.append(len(batch))
            if math.isnan(one.request.started_at):
                one.request.started_at = started_at
        try:
            outputs = await self._in_worker(batch)
        except Exception as error:
            if len({id(one.request) for one in batch}) == 1:
                self._fail(batch[0].request, error)
            else:
                await self._run_one_by_one(batch)
        else:
            # Before anybody is answered: the worker would wait until the loop has written all these answers.
            self._release()
            for one, output in zip(batch, outputs, strict=True):
                self._answer(one, output)
        inference_s = time.perf_counter() - started_at
        drift = inference_s / self._predicted_s(batch)
        self._drift = drift if self._drift is None else MEMORY * self._drift + (1 - MEMORY) * drift
        lengths = [one.n_tokens for one in batch]
        queue_s = started_at - batch[0].request.submitted_at
        self._on_batch(BatchReport(len(batch), sum(lengths), padded_tokens(lengths), queue_s, inference_s))

    def _predicted_s(self, batch: list[_Waiting[RowT, OutputT]]) -> float:
        return self.cost.batch_s(len(batch), max(one.n_tokens for one in batch))

    async def _run_one_by_one(self, batch: list[_Waiting[RowT, OutputT]]) -> None:
        for one in batch:
            if one.request.departed_at is None:
                try:
                    self._answer(one, (await self._in_worker([one]))[0])
                except Exception as error:
                    self._fail(one.request, error)

    async def _in_worker(self, batch: list[_Waiting[RowT, OutputT]]) -> list[Any]:
        rows = [one.row for one in batch]
        items = batch[0].request.items

        def cancelled() -> bool:
            return all(one.request.departed_at is not None for one in batch)

        def work() -> list[Any]:
            try:
                outputs: list[Any] = self._forward(rows, cancelled) if items is None else [items(rows[0], cancelled)]
            except StopIteration as error:  # asyncio cannot carry it: the batch would wait for ever
                raise GenerationError("the model stopped without an answer") from error
            if len(outputs) != len(rows) and not cancelled():
                raise GenerationError(f"the model gave {len(outputs)} outputs for {len(rows)} inputs")
            return outputs if len(outputs) == len(rows) else [None] * len(rows)

        return await asyncio.get_running_loop().run_in_executor(self._workers, work)

    def _answer(self, one: _Waiting[RowT, OutputT], output: OutputT) -> None:
        request = one.request
        request.outputs[one.index] = output
        request.unanswered -= 1
        if not request.unanswered and not request.done.done():
            request.done.set_result(None)

    def _release(self) -> None:
        """Hand the worker of the running batch over to the next one."""
        task = asyncio.current_task()
        assert task is not None
        del self._running[task]
        self._dispatch()

    def _finished(self, task: asyncio.Task[None]) -> None:
        batch = self._running.pop(task, [])
        if task.cancelled():  # the event loop is going down
            for one in batch:
                self._fail(one.request, _closing())
        else:
            self._dispatch()


def _closing() -> OverloadedError:
    return OverloadedError("the replica is shutting down", retry_after_s=1.0)
