"""Scheduler: what stands between requests and a model. One interface, two implementations.

    padded.PaddedScheduler   batches of rows, padded to the longest              encoders
    slots.SlotScheduler      sequences in slots that decode token by token       generators

Both admit a request or refuse it at once, share the model fairly by request, count the tokens that are really read and
written, and let what is inside end when they drain. All methods belong to one event loop; the model runs elsewhere.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Protocol, TypeVar

from msgspec import Meta

from pipelines.errors import DeadlineExceededError, InputTooLongError, OverloadedError
from pipelines.schema import Positive, check_fields

MAX_CONCURRENCY = 1024  # batches that one scheduler runs at once
MAX_WAIT_S = 10
MAX_QUEUE_S = 86_400


class Row(Protocol):
    """One line of a batch, or one prompt."""

    @property
    def n_tokens(self) -> int:
        """Tokens that the model reads, special tokens included."""

    @property
    def max_new_tokens(self) -> int:
        """Tokens that the model may write at most; 0 for an encoder."""


RowT = TypeVar("RowT", bound=Row)
OutputT = TypeVar("OutputT")
ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class BatchingConfig:
    """What a batch may hold.

    `max_batch_tokens` bounds rows x longest row; a row longer than that goes alone. Below these bounds the cost model
    decides how large a batch becomes. `concurrency` batches run at once: as many as threads keeps a CPU busy.
    `batch_wait_timeout_s` lets an idle worker wait for company; zero starts at once.
    """

    max_batch_tokens: Positive = 4096
    max_batch_size: Positive = 32
    batch_wait_timeout_s: Annotated[float, Meta(ge=0, le=MAX_WAIT_S)] = 0.0
    concurrency: Annotated[int, Meta(ge=1, le=MAX_CONCURRENCY)] = 1

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class QueueConfig:
    """Bounds of the queue in front of a model.

    A request is refused where about `max_queue_s` seconds of other requests' work would go before its own. Under fair
    sharing that is their due share, not all that waits. `max_queue_tokens` bounds the memory of what waits.
    """

    max_queue_s: Annotated[float, Meta(gt=0, le=MAX_QUEUE_S)] = 30.0
    max_queue_tokens: Positive = 2**21

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Completed(Generic[OutputT]):
    """One output per submitted row, in order, and what they took.

    `queue_s` ends when the first row starts; `inference_s` is the rest. `read_tokens` and `written_tokens` are real
    tokens, without padding. `batch_sizes` has one entry for each row: the rows of the batch that carried it.
    """

    outputs: list[OutputT]
    queue_s: float
    inference_s: float
    read_tokens: int
    written_tokens: int = 0
    batch_sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class BatchReport:
    """A batch, or a sequence in slots, that ended.

    `read_tokens` and `written_tokens` are real, `padded_tokens` is rows x longest. `queue_s` is the wait of the first
    row, `inference_s` the time from its start to the end.
    """

    rows: int
    read_tokens: int
    written_tokens: int
    padded_tokens: int
    queue_s: float
    inference_s: float


OnBatch = Callable[[BatchReport], None]


def unreported(_report: BatchReport) -> None:
    """The `OnBatch` of a scheduler whose batches nobody counts."""


class Backlog:
    """The work that waits, by request: how much of it goes before a newcomer under fair sharing."""

    def __init__(self) -> None:
        self.tokens = 0
        self.work_s = 0.0
        self._requests: dict[Any, tuple[int, float]] = {}  # with several waiting rows: how many, and their seconds

    def put(self, request: Any, rows: int, tokens: int, work_s: float) -> None:
        """`rows` of a new request wait."""
        self.tokens += tokens
        self.work_s += work_s
        if rows > 1:
            self._requests[request] = (rows, work_s)

    def take(self, request: Any, tokens: int, work_s: float) -> None:
        """One row of a request waits no more."""
        self.tokens -= tokens
        self.work_s -= work_s
        if request in self._requests:
            rows, rest_s = self._requests.pop(request)
            if rows > 2:
                self._requests[request] = (rows - 1, rest_s - work_s)
        if not self.tokens:
            self.work_s = 0.0  # without what rounding left

    @property
    def has_lists(self) -> bool:
        """Whether a request with several waiting rows is among them; else `work_s` goes before any newcomer."""
        return bool(self._requests)

    def before_s(self, own_s: float) -> float:
        """Seconds of other requests' work that go before the last of `own_s` seconds of a request that comes now.

        First rows go in order of arrival; of a request with several rows, at most as much as the newcomer gets itself.
        """
        before_s = self.work_s
        for rows, rest_s in self._requests.values():
            before_s -= rest_s - min(rest_s, max(own_s, rest_s / rows))
        return max(0.0, before_s)


class Scheduler(ABC, Generic[RowT, OutputT]):
    """Admits, queues, runs and answers rows of requests."""

    def __init__(self, queue: QueueConfig, on_batch: OnBatch = unreported) -> None:
        self.queue = queue
        self._on_batch = on_batch
        self._draining = False

    @property
    @abstractmethod
    def waiting_tokens(self) -> int:
        """Tokens to read of the rows that wait."""

    @property
    @abstractmethod
    def is_busy(self) -> bool:
        """Whether a row that arrives now has to wait for others."""

    @property
    @abstractmethod
    def stalled_s(self) -> float:
        """For how long the model has been busy with something that should have ended; 0.0 for nothing."""

    @abstractmethod
    def expected_wait_s(self, rows: Sequence[RowT] = ()) -> float:
        """Seconds until the first of `rows` would start, were it to arrive now; 0.0 when idle."""

    @abstractmethod
    async def submit(self, rows: Sequence[RowT], deadline: float | None = None) -> Completed[OutputT]:
        """Outputs of `rows`, in order. `deadline` is a time of the running loop's clock.

        Raises OverloadedError for a full queue, a scheduler that drains, or a deadline that cannot be met;
        DeadlineExceededError once it ran out; and whatever the model raised for one of these rows. A caller that is
        cancelled leaves the queue, and its sequences stop at their next token.
        """

    @abstractmethod
    def stream(self, rows: Sequence[RowT], deadline: float | None = None) -> "Stream":
        """The steps of `rows` as they are made; raises as `submit` does."""

    @abstractmethod
    def reconfigure(self, batching: BatchingConfig, queue: QueueConfig) -> None:
        """Bounds for batches and requests from now on; what is inside stays."""

    @abstractmethod
    async def drain(self, limit_s: float = 0.0) -> None:
        """Refuse new rows, let what is inside end for `limit_s`, then fail the rest. Safe to call twice."""

    def admit(self, rows: Sequence[RowT] = (), deadline: float | None = None, now: float | None = None) -> None:
        """Raise OverloadedError where a request of these rows would not be admitted now, DeadlineExceededError where it
        is late already.

        Without rows this is the check before tokenizing, which costs a client that is refused anyway. A request that
        the queue can never hold raises InputTooLongError. `now` is the time of the clock that `deadline` belongs to.
        """
        if self._draining:
            raise shutting_down()
        if deadline is not None and now is not None and deadline <= now:
            raise deadline_exceeded()
        n_tokens = sum([row.n_tokens for row in rows])
        if n_tokens > self.queue.max_queue_tokens:
            raise InputTooLongError(
                f"the request has {n_tokens} tokens; allowed: {self.queue.max_queue_tokens}, all that the queue holds"
            )
        wait_s = self.expected_wait_s(rows)
        if self.waiting_tokens + n_tokens > self.queue.max_queue_tokens:
            raise OverloadedError(
                f"the queue is full: {self.waiting_tokens} tokens wait and the request has {n_tokens}; "
                f"allowed: {self.queue.max_queue_tokens} together",
                retry_after_s=wait_s,
            )
        if wait_s > self.queue.max_queue_s:
            raise OverloadedError(
                f"the queue is full: about {wait_s:.1f} s of work go before this request; "
                f"allowed: {self.queue.max_queue_s:g} s",
                retry_after_s=wait_s - self.queue.max_queue_s,
            )
        if deadline is not None and now is not None and wait_s > deadline - now:
            raise OverloadedError(
                f"the deadline cannot be met: about {wait_s:.2f} s of work go before this request and "
                f"{deadline - now:.2f} s are left",
                retry_after_s=wait_s,
            )


class Stream(AsyncIterator[tuple[int, Any]]):
    """Steps of several rows, each with its row's index, in the order in which they are made."""

    @abstractmethod
    def stop(self, index: int) -> None:
        """Row `index` has enough: it ends at its next token, and nothing more comes from it."""

    @abstractmethod
    async def aclose(self) -> None:
        """Leave: all rows end at their next token."""

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
    """The error of whoever comes to, or is left in, a scheduler that ends."""
    return OverloadedError("the replica is shutting down", retry_after_s=1.0)


def deadline_exceeded() -> DeadlineExceededError:
    """The error of a request that is not answered when its deadline comes."""
    return DeadlineExceededError("the request's deadline ran out before its answer was ready")


def elapsed_s(since: float) -> float:
    """Seconds of `time.perf_counter` since `since`."""
    return time.perf_counter() - since
