"""Scheduler: admits, queues and runs the requests of one model. One interface, two implementations.

    padded.PaddedScheduler   batches of rows, padded to the longest              encoders
    slots.SlotScheduler      sequences in slots that decode token by token       generators

Both admit a request or refuse it at once, share the model fairly by request, count the real tokens read and written,
and finish running requests when they drain. All methods belong to one event loop; the model runs in other threads.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Protocol, TypeVar

from msgspec import Meta

from pipelines.errors import DeadlineExceededError, InputTooLongError, OverloadedError
from pipelines.generation.engine import CacheState
from pipelines.schema import Positive, check_fields

MAX_CONCURRENCY = 1024  # batches that one scheduler runs at once
MAX_WAIT_S = 10
MAX_QUEUE_S = 86_400
SURE_SHARE = 0.8
"""Of the time that a deadline leaves: a prediction that takes more of it is not sure enough. A request that is admitted
and then misses its deadline wastes the model, and a shorter queue loses no throughput."""


class Row(Protocol):
    """One line of a batch, or one prompt."""

    @property
    def n_tokens(self) -> int:
        """Tokens that the model reads, special tokens included."""

    @property
    def max_new_tokens(self) -> int:
        """The most tokens that the model may write; 0 for an encoder."""


RowT = TypeVar("RowT", bound=Row)
OutputT = TypeVar("OutputT")
ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class BatchingConfig:
    """Bounds of a batch.

    `max_batch_tokens` bounds rows x longest row, or the tokens of a packed batch; a longer row is a batch of its own.
    `max_batch_s` bounds how long it takes, by the cost model and the pace of recent batches, unless its fixed cost
    alone takes a quarter of that. Within the bounds the cost model decides the size of a batch. `concurrency` batches
    run at once: as many as threads keep a CPU busy. `batch_wait_timeout_s`: an idle worker waits so long for more rows.
    """

    max_batch_tokens: Positive = 4096
    max_batch_size: Positive = 32
    max_batch_s: Annotated[float, Meta(gt=0, le=MAX_WAIT_S)] = 0.25
    batch_wait_timeout_s: Annotated[float, Meta(ge=0, le=MAX_WAIT_S)] = 0.0
    concurrency: Annotated[int, Meta(ge=1, le=MAX_CONCURRENCY)] = 1

    def __post_init__(self) -> None:
        check_fields(self)


GPU_BATCHING = BatchingConfig(max_batch_tokens=2**15, max_batch_size=512, concurrency=2)
"""The defaults on a GPU. An encoder's batches are large before their fixed cost is a small share, and the copies of one
batch overlap with the kernels of another."""


@dataclass(frozen=True)
class QueueConfig:
    """Bounds of the queue in front of a model.

    A request is refused where more than about `max_queue_s` seconds of other requests' work go before its own: under
    fair sharing their fair share, not all waiting work. `max_queue_tokens` and `max_queue_rows` bound the memory of
    waiting rows: a row takes some kilobytes, however short it is.
    """

    max_queue_s: Annotated[float, Meta(gt=0, le=MAX_QUEUE_S)] = 30.0
    max_queue_tokens: Positive = 2**21
    max_queue_rows: Positive = 2**16

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Completed(Generic[OutputT]):
    """One output per submitted row, in order, and their times and real tokens, without padding.

    `queue_s` ends when the first row starts; `inference_s` is the rest. `batch_sizes` has one entry for each row: the
    rows of the batch that carried it. `batches` are the numbers of these batches. `first_token_at` is the time of
    `time.perf_counter` at which a generator had written its first token; None of an encoder.
    """

    outputs: list[OutputT]
    queue_s: float
    inference_s: float
    read_tokens: int
    written_tokens: int = 0
    batch_sizes: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    first_token_at: float | None = None


@dataclass(frozen=True)
class BatchReport:
    """A batch, or a request in slots, that has ended.

    `read_tokens` and `written_tokens` are real, `padded_tokens` is rows x longest. `queue_s` is the wait of the first
    row, `inference_s` the time from its start to the end. `number` tells a batch from others; None: a request in slots.
    `adapter` is the number of the adapter that changed the answer, 0 for none; rows of a batch have none.
    """

    rows: int
    read_tokens: int
    written_tokens: int
    padded_tokens: int
    queue_s: float
    inference_s: float
    number: int | None = None
    adapter: int = 0


OnBatch = Callable[[BatchReport], None]


def unreported(_report: BatchReport) -> None:
    """The `OnBatch` of a scheduler without metrics."""


class Backlog:
    """The waiting work, by request: how much of it goes before a new request under fair sharing."""

    def __init__(self) -> None:
        self.requests = self.rows = self.tokens = 0
        self.work_s = 0.0
        self._requests: dict[Any, tuple[int, float]] = {}  # those with several waiting rows: rows and seconds

    def put(self, request: Any, rows: int, tokens: int, work_s: float) -> None:
        """`rows` of a new request wait."""
        self.requests += 1
        self.rows += rows
        self.tokens += tokens
        self.work_s += work_s
        if rows > 1:
            self._requests[request] = (rows, work_s)

    def take(self, request: Any, tokens: int, work_s: float) -> None:
        """One row of a request has left the queue."""
        self.rows -= 1
        self.tokens -= tokens
        self.work_s -= work_s
        if request in self._requests:
            rows, rest_s = self._requests.pop(request)
            if rows > 2:
                self._requests[request] = (rows - 1, rest_s - work_s)
        else:
            self.requests -= 1
        if not self.tokens:
            self.work_s = 0.0  # drops rounding errors

    def before_s(self, own_s: float) -> float:
        """Seconds of other requests' work that go before the last of `own_s` seconds of a request that arrives now.

        First rows go in order of arrival; of a request with several rows, at most as much work as the new one has.
        """
        before_s = self.work_s
        for rows, rest_s in self._requests.values():
            before_s -= rest_s - min(rest_s, max(own_s, rest_s / rows))
        return max(0.0, before_s)


class Scheduler(ABC, Generic[RowT, OutputT]):
    """Admits, queues, runs and answers rows of requests."""

    now: Callable[[], float] = staticmethod(time.perf_counter)
    """Seconds of the clock of all its times but deadlines; a simulation replaces it, and the workers (planning/)."""

    def __init__(self, queue: QueueConfig, on_batch: OnBatch = unreported) -> None:
        self.queue = queue
        self._on_batch = on_batch
        self._draining = False
        self._backlog, self._bulk_backlog = Backlog(), Backlog()
        self._idle = asyncio.Event()  # set once nothing runs while it drains
        self._demand_s, self.admitted = 0.0, 0
        """Requests so far, without bulk: it gives way, and asks for no replicas."""

    @property
    def waiting_tokens(self) -> int:
        """Tokens to read of the waiting rows."""
        return self._backlog.tokens + self._bulk_backlog.tokens

    @property
    def waiting_rows(self) -> int:
        """Rows that wait."""
        return self._backlog.rows + self._bulk_backlog.rows

    @property
    def waiting_requests(self) -> int:
        """Requests with rows that wait."""
        return self._backlog.requests + self._bulk_backlog.requests

    @property
    def cache(self) -> CacheState | None:
        """The KV cache slots of a generator; None where there are none."""
        return None

    @property
    @abstractmethod
    def is_busy(self) -> bool:
        """Whether a row that arrives now has to wait."""

    @property
    @abstractmethod
    def stalled_s(self) -> float:
        """Seconds that the model has spent on work that should have ended; 0.0 for none."""

    @abstractmethod
    def expected_wait_s(self, rows: Sequence[RowT] = (), *, bulk: bool = False) -> float:
        """Predicted seconds from now to the start of `rows`, if they arrived now; 0.0 when idle.

        Work of bulk requests does not go before others.
        """

    @abstractmethod
    def expected_s(self, rows: Sequence[RowT] = (), *, bulk: bool = False) -> float:
        """Predicted seconds from now to the answer of `rows`, as far as it is known; 0.0 when idle.

        Without rows: of the smallest request.
        """

    @property
    @abstractmethod
    def work_s(self) -> float:
        """Predicted seconds until everything that is admitted is answered, if nothing else arrived."""

    @property
    def servers(self) -> int:
        """How many rows run at once without slowing each other down much: the slots of a generator."""
        return 1

    @property
    def demand_s(self) -> float:
        """Seconds of this scheduler that requests so far asked for, without bulk. Where it grows by more than a second
        per second, more arrives than can be done.
        """
        return self._demand_s

    @property
    @abstractmethod
    def queued_s(self) -> float:
        """Predicted seconds until what waits now has started, without bulk, if nothing else arrived."""

    @property
    def row_s(self) -> float:
        """Predicted seconds by which each request inside delays a new one now; 0.0 where none waits, or nobody knows.

        Of sequences in slots nobody does: which of them go before a new one follows from what they have used.
        """
        return 0.0

    @abstractmethod
    async def submit(
        self, rows: Sequence[RowT], deadline: float | None = None, *, bulk: bool = False
    ) -> Completed[OutputT]:
        """Outputs of `rows`, in order. `deadline` is a time of the running loop's clock. `bulk` requests run when no
        other ones wait.

        Raises OverloadedError for a full queue, a scheduler that drains, or a deadline that cannot be met;
        DeadlineExceededError once it has passed; and the error that the model raised for one of these rows. The rows of
        a cancelled caller leave the queue, and its sequences stop at their next token.
        """

    @abstractmethod
    def stream(self, rows: Sequence[RowT], deadline: float | None = None, *, bulk: bool = False) -> "Stream":
        """The steps of `rows` when they are decoded; raises as `submit` does."""

    @abstractmethod
    def reconfigure(self, batching: BatchingConfig, queue: QueueConfig) -> None:
        """Set the bounds for later batches and requests; admitted ones stay."""

    @abstractmethod
    async def drain(self, limit_s: float = 0.0) -> None:
        """Refuse new rows, wait up to `limit_s` for running ones, then fail the rest. Safe to call twice."""

    def _ask(self, seconds: float) -> None:
        """A request has come that is not bulk, and asks for so many seconds of this scheduler."""
        self.admitted += 1
        self._demand_s += seconds

    async def _until_idle(self, limit_s: float) -> None:
        """Wait for `_idle`, up to `limit_s` seconds."""
        self._idle.clear()
        try:
            async with asyncio.timeout(limit_s):
                await self._idle.wait()
        except TimeoutError:
            pass

    def admit(
        self,
        rows: Sequence[RowT] = (),
        deadline: float | None = None,
        now: float | None = None,
        *,
        bulk: bool = False,
    ) -> None:
        """Raise OverloadedError where a request of these rows is not admitted now, DeadlineExceededError after its
        deadline, InputTooLongError for one that the queue can never hold.

        Without rows it is the check before tokenizing: a request that is refused costs no tokenizer time. `deadline`
        and `now` are times of one clock.
        """
        if self._draining:
            raise shutting_down()
        if deadline is not None and now is not None and deadline <= now:
            raise deadline_exceeded()
        wait_s = self.expected_wait_s(rows, bulk=bulk)
        behind = self._bulk_backlog
        for unit, waiting, bulk_waiting, asked, most in (
            (
                "tokens",
                self.waiting_tokens,
                behind.tokens,
                sum([row.n_tokens for row in rows]),
                self.queue.max_queue_tokens,
            ),
            ("rows", self.waiting_rows, behind.rows, len(rows), self.queue.max_queue_rows),
        ):
            if asked > most:
                raise InputTooLongError(f"the request has {asked} {unit}; allowed: {most}, all that the queue holds")
            if waiting + asked > most:
                raise OverloadedError(
                    f"the queue is full: {waiting} {unit} wait and the request has {asked}; allowed: {most} together",
                    retry_after_s=wait_s,
                    reason=f"queue_{unit}",
                )
            if bulk and bulk_waiting and bulk_waiting + asked > most // 2:
                raise OverloadedError(
                    f"the bulk half of the queue is full: {bulk_waiting} {unit} wait and the request has {asked}; "
                    f"allowed: {most // 2} together",
                    retry_after_s=wait_s,
                    reason=f"bulk_{unit}",
                )
        if wait_s > self.queue.max_queue_s:
            raise OverloadedError(
                f"the queue is full: about {wait_s:.1f} s of work go before this request; "
                f"allowed: {self.queue.max_queue_s:g} s",
                retry_after_s=wait_s - self.queue.max_queue_s,
                reason="queue_seconds",
            )
        answer_s = 0.0 if deadline is None else self.expected_s(rows, bulk=bulk)
        if deadline is not None and now is not None and answer_s > SURE_SHARE * (deadline - now):
            raise OverloadedError(
                f"the deadline cannot be met: the answer takes about {answer_s:.2f} s, {wait_s:.2f} s of them other "
                f"requests' work, and {deadline - now:.2f} s are left",
                retry_after_s=wait_s,
                reason="deadline",
            )


class Stream(AsyncIterator[tuple[int, Any]]):
    """Steps of several rows, each with its row's index, in the order of decoding."""

    @abstractmethod
    def stop(self, index: int) -> None:
        """End row `index` at its next token; the stream yields no further step of it."""

    @abstractmethod
    async def aclose(self) -> None:
        """End all rows at their next token."""

    @property
    @abstractmethod
    def queue_s(self) -> float:
        """Seconds from the submission to the start of the first row; the time so far before that."""

    @property
    @abstractmethod
    def inference_s(self) -> float:
        """Seconds since the start of the first row."""

    @property
    @abstractmethod
    def written_tokens(self) -> int:
        """Steps so far."""


def shutting_down() -> OverloadedError:
    """The error of requests that arrive at, or wait in, a scheduler that drains."""
    return OverloadedError("the replica is shutting down", retry_after_s=1.0, reason="shutting_down")


def deadline_exceeded() -> DeadlineExceededError:
    """The error of a request without an answer at its deadline."""
    return DeadlineExceededError("the request's deadline ran out before its answer was ready")
