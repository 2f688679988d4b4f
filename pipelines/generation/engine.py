"""DecodeEngine: decodes requests of token ids to generations of token ids. It knows no text and no tokenizer.

    start(job, ...) ──> waiting ──> rounds in the decode thread ──> job.put(Scheduled | Steps ... | Answer | Exception)

Two engines give equal answers: `slots.engine.SlotEngine` decodes many sequences in one batch, and
`plain.engine.PlainEngine` one sequence at a time, on graphs without slots. Both schedule callers by fair shares: who
has used least is next.
"""

import threading
import time
from abc import ABC, abstractmethod
from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, count
from queue import SimpleQueue
from typing import Generic, Protocol, TypeVar

from pipelines.errors import GenerationError, InvalidInputError
from pipelines.generation.decoding.guide import MaskThread
from pipelines.generation.decoding.request import Answer, Cancelled, DecodeRequest, Step, not_cancelled

PROMPT_TOKEN = 0.25  # work of a prefill token; a generated token is 1
RATE_MEMORY = 0.9  # weight of the past in the moving averages of seconds per token


@dataclass(frozen=True)
class Scheduled:
    """A request has its first KV cache slot."""


@dataclass(frozen=True)
class Steps:
    """New tokens of the first sequence of a request that streams."""

    steps: tuple[Step, ...]


Event = Scheduled | Steps | Answer | Exception
"""What `Job.put` receives. An Answer or an Exception is the last."""


@dataclass(frozen=True)
class CacheState:
    """The KV cache of an engine: its slots, those that are taken, the tokens that all can hold and that those hold.

    Since the start, `prompt_tokens` were asked, and `reused_tokens` of them found in a slot: the prefix cache.
    """

    slots: int
    taken_slots: int
    tokens: int
    held_tokens: int
    prompt_tokens: int
    reused_tokens: int


class Share:
    """The fair share of one caller, whatever number of requests it has.

    `tag` is the work done for the caller, in generated tokens. A new share starts at the virtual time of the engine.
    `sequences` counts those that have not ended. All others go before a `bulk` one.
    """

    def __init__(self, bulk: bool = False) -> None:
        self.tag = 0.0
        self.sequences = 0
        self.bulk = bulk

    def order(self, lag: float = 0.0) -> tuple[bool, float]:
        """Smaller goes first; `lag` is work that it would have had beside its own."""
        return self.bulk, self.tag + lag


@dataclass(frozen=True)
class Job:
    """A request to decode.

    The decode thread calls `put`, which must return at once, and `cancelled` between steps: true once no client waits.
    With `streams`, `put` receives each step when it is decoded; without, none, as waking a reader for each step costs
    the engine's time.
    """

    request: DecodeRequest
    put: Callable[[Event], None]
    share: Share = field(default_factory=Share)
    cancelled: Cancelled = not_cancelled
    streams: bool = False


class Queued(Protocol):
    """An entry of the queue; `number` is its place in the order of arrival."""

    number: int

    @property
    def share(self) -> Share: ...


QueuedT = TypeVar("QueuedT", bound=Queued)


class Line(Generic[QueuedT]):
    """The entries that wait for slots: by share, and within a share by number.

    A list may have thousands of them. A round looks at the first of each share only.
    """

    def __init__(self) -> None:
        self._lines: dict[Share, list[QueuedT]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[QueuedT]:
        return chain.from_iterable(self._lines.values())

    def put(self, one: QueuedT) -> None:
        insort(self._lines.setdefault(one.share, []), one, key=_number)

    def remove(self, one: QueuedT) -> None:
        line = self._lines[one.share]
        line.remove(one)
        if not line:
            del self._lines[one.share]

    def ordered(self) -> list[list[QueuedT]]:
        """The entries of each share: bulk shares last, then by what they have used, then by their first entry."""
        return sorted(self._lines.values(), key=lambda line: (line[0].share.order(), line[0].number))

    def take(self, left: Callable[[QueuedT], bool]) -> list[QueuedT]:
        """Remove and return the entries that have left, of each share whose first entry has."""
        gone = [one for line in self._lines.values() if left(line[0]) for one in line if left(one)]
        for one in gone:
            self.remove(one)
        return gone


class DecodeEngine(ABC, Generic[QueuedT]):
    """The queue and the decode thread, which starts with the first request and ends with the last.

    `prompt_token_s` and `new_token_s` are moving averages of the seconds per prefill token and per generated token; 0.0
    before the first one. Any thread may call `cache`, which gives None for an engine without KV cache slots, and
    `release_memory`, which gives back to the system what the largest rounds took beside such a cache.
    """

    def __init__(self) -> None:
        self.cache: Callable[[], CacheState | None] = lambda: None
        self.release_memory: Callable[[], None] = lambda: None
        self.rounds, self.round_s, self.model_s = 0, 0.0, 0.0
        self.prompt_token_s = self.new_token_s = 0.0
        self._lock = threading.Lock()  # guards all below, which callers write too
        self._waiting: Line[QueuedT] = Line()
        self._is_awake = False
        self._shares: set[Share] = set()  # those with sequences
        self._now = 0.0  # virtual time: the work that each share had, were all served alike
        self._numbers = count()
        self._round_began: float | None = None
        self._masks = MaskThread()

    @property
    @abstractmethod
    def slots(self) -> int:
        """How many sequences decode at once."""

    @property
    def waiting(self) -> int:
        """How many entries wait for slots: a beam search, or a sample, counts one."""
        return len(self._waiting)

    @property
    def stalled_s(self) -> float:
        """Seconds since the current round began; 0.0 while nothing decodes."""
        began = self._round_began
        return 0.0 if began is None else time.perf_counter() - began

    @abstractmethod
    def check(self, request: DecodeRequest) -> None:
        """Raise InputTooLongError or InvalidInputError for a request that can never fit."""

    @abstractmethod
    def _queued(self, job: Job) -> tuple[list[QueuedT], int]:
        """The queue entries of a job, and how many sequences it has."""

    @abstractmethod
    def _round(self) -> bool:
        """Run one round; False where no request is left, after marking the engine as asleep under the lock."""

    @abstractmethod
    def _fail(self, error: Exception) -> None:
        """End every request with an error that belongs to none of them."""

    def start(self, *jobs: Job) -> None:
        """Queue jobs, all of them from the same round on. Any thread may call this; raises as `check` does."""
        for job in jobs:
            if job.request.grammar is not None and job.request.config.num_beams > 1:
                raise InvalidInputError("is set with num_beams; allowed: without beams", ("parameters", "grammar"))
            self.check(job.request)
        queued = [(job, *self._queued(job)) for job in jobs]
        with self._lock:
            if not self._is_awake:
                self._wake()
                self._is_awake = True
            for job, waiting, sequences in queued:
                if job.share not in self._shares:
                    # A new share starts level with the active ones: no credit and no debt for earlier work.
                    tags = [share.tag for share in self._shares if share.bulk == job.share.bulk] or [self._now]
                    job.share.tag = self._now = min(max(self._now, min(tags)), max(tags))
                    self._shares.add(job.share)
                job.share.sequences += sequences
                self._queue(waiting)

    def _wake(self) -> None:
        """Start the decode thread; it raises where the system has no thread left."""
        threading.Thread(target=self._run, name="decode", daemon=True).start()

    def generate(self, request: DecodeRequest, cancelled: Cancelled = not_cancelled) -> Answer:
        """Decode to the end; the tokens so far where `cancelled()` turns true."""
        return self.generate_all([request], cancelled)[0]

    def generate_all(self, requests: Sequence[DecodeRequest], cancelled: Cancelled = not_cancelled) -> list[Answer]:
        """An answer for each request; all requests have one fair share together."""
        share = Share()
        with _Caller(cancelled) as caller:
            inboxes: list[SimpleQueue[Event]] = [SimpleQueue() for _ in requests]
            pairs = zip(requests, inboxes, strict=True)
            self.start(*(Job(request, inbox.put, share, caller) for request, inbox in pairs))
            return [_last(inbox) for inbox in inboxes]

    def stream(self, request: DecodeRequest, cancelled: Cancelled = not_cancelled) -> Iterator[Step]:
        """The steps of the first sequence when they are decoded; ends early where `cancelled()` turns true."""
        assert request.config.num_beams == 1, "beams are known only at the end"
        with _Caller(cancelled) as caller:
            inbox: SimpleQueue[Event] = SimpleQueue()
            self.start(Job(request, inbox.put, cancelled=caller, streams=True))
            while not isinstance(event := inbox.get(), Answer):
                if isinstance(event, Exception):
                    raise event
                for step in event.steps if isinstance(event, Steps) else ():
                    if caller():  # the decode thread may be ahead of a reader that has stopped
                        return
                    yield step

    def _queue(self, newcomers: Iterable[QueuedT]) -> None:
        """Add entries behind the others of their shares. The caller holds the lock."""
        for one in newcomers:
            one.number = next(self._numbers)
            self._waiting.put(one)

    def _did(self, share: Share, work: float) -> None:
        """Count `work` done for a share. Virtual time advances by its part of all active shares: if new shares started
        at the least tag, a steady stream of them would always go before a share that has had a turn.
        """
        with self._lock:
            share.tag += work
            self._now += work / max(1, sum(one.bulk == share.bulk for one in self._shares))

    def _sequence_ended(self, share: Share, sequences: int = 1) -> None:
        with self._lock:
            share.sequences -= sequences
            if not share.sequences:
                self._shares.discard(share)

    def _learn(self, name: str, seconds: float, tokens: int) -> None:
        """Keep the moving average `name` of seconds per token."""
        past, measured = getattr(self, name), seconds / tokens
        setattr(self, name, RATE_MEMORY * past + (1 - RATE_MEMORY) * measured if past else measured)

    @contextmanager
    def _in_model(self) -> Iterator[None]:
        """Count the seconds of the block as the model's."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.model_s += time.perf_counter() - began

    def _run(self) -> None:
        alive = True
        while alive:
            self._round_began = began = time.perf_counter()
            try:
                alive = self._round()
            except Exception as error:  # it fails the requests inside, not later ones
                self._fail(error)
            self.rounds, self.round_s = self.rounds + 1, self.round_s + time.perf_counter() - began
        self._round_began = None


def _number(one: Queued) -> int:
    return one.number


class _Caller:
    """A caller in a thread of its own; cancelled when `cancelled()` is true, or after the block."""

    def __init__(self, cancelled: Cancelled) -> None:
        self._cancelled, self._left = cancelled, False

    def __enter__(self) -> "_Caller":
        return self

    def __exit__(self, *_error: object) -> None:
        self._left = True

    def __call__(self) -> bool:
        return self._left or self._cancelled()


def _last(inbox: "SimpleQueue[Event]") -> Answer:
    """The answer, the last event; raises the error of a request that failed."""
    while True:
        event = inbox.get()
        if isinstance(event, StopIteration):
            raise GenerationError("decoding stopped without an answer") from event
        if isinstance(event, Exception):
            raise event
        if isinstance(event, Answer):
            return event
