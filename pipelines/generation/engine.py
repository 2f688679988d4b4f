"""DecodeEngine: requests in token ids to generations in token ids. It knows no text and no tokenizer.

    start(job, ...) ──> waiting ──> rounds in the decode thread ──> job.put(STARTED | Steps ... | Answer | Exception)

Two engines answer alike: `slots.engine.SlotEngine` decodes many sequences in one batch, `plain.engine.PlainEngine` one
sequence at a time on graphs without slots. Both give callers their shares in virtual time: who has used least is next.
"""

import threading
import time
from abc import ABC, abstractmethod
from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from queue import SimpleQueue
from typing import Generic, Protocol, TypeVar

from pipelines.errors import GenerationError
from pipelines.generation.decoding.request import Answer, Cancelled, Request, Step, never

PROMPT_TOKEN = 0.25  # work of a token that is read in a chunk, where one that is generated is 1
RATE_MEMORY = 0.9  # weight of the past in the moving averages of seconds per token


class Started:
    """A request got its first slot."""


STARTED = Started()


@dataclass(frozen=True)
class Steps:
    """New tokens of the first sequence of a request that streams."""

    steps: tuple[Step, ...]


Event = Started | Steps | Answer | Exception
"""What a job is told. An Answer or an Exception is the last."""


class Share:
    """One caller's part of an engine, whatever number of requests it has.

    `tag` is the work that was done for it, counted from the virtual time when it came.
    """

    def __init__(self) -> None:
        self.tag = 0.0
        self.sequences = 0


@dataclass(frozen=True)
class Job:
    """A request to decode.

    `put` is called in the decode thread, and must return at once. `cancelled` is asked between steps: true once nobody
    waits any more. With `streams`, steps come as they are made; else whoever is woken for each would take the engine's
    time.
    """

    request: Request
    put: Callable[[Event], None]
    share: Share = field(default_factory=Share)
    cancelled: Cancelled = never
    streams: bool = False


class Queued(Protocol):
    """What waits for slots; `number` is its place in the order of arrival."""

    number: int

    @property
    def share(self) -> Share: ...


QueuedT = TypeVar("QueuedT", bound=Queued)


class Line(Generic[QueuedT]):
    """What waits for slots: by share, and within a share by number.

    Thousands of prompts of one list may wait, and every round asks whose turn it is: it looks at each share's first.
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
        """The lines of all shares, next turn first: of those that have used least, whose first one came first."""
        return sorted(self._lines.values(), key=lambda line: (line[0].share.tag, line[0].number))

    def take(self, left: Callable[[QueuedT], bool]) -> list[QueuedT]:
        """Remove, and return, whatever of a share has left, where its first one has."""
        gone = [one for line in self._lines.values() if left(line[0]) for one in line if left(one)]
        for one in gone:
            self.remove(one)
        return gone


class DecodeEngine(ABC, Generic[QueuedT]):
    """The queue and the decode thread, which starts with the first request and ends with the last.

    `prompt_token_s` and `new_token_s` are seconds of the machine for each token that is read and generated lately; 0.0
    before the first.
    """

    def __init__(self) -> None:
        self.rounds, self.round_s, self.model_s = 0, 0.0, 0.0
        self.prompt_token_s = self.new_token_s = 0.0
        self._lock = threading.Lock()  # guards all below, which callers touch as well
        self._waiting: Line[QueuedT] = Line()
        self._is_awake = False
        self._shares: set[Share] = set()  # those with sequences
        self._now = 0.0  # virtual time: the work that each share had, were all served alike
        self._numbers = count()
        self._round_began: float | None = None

    @property
    @abstractmethod
    def slots(self) -> int:
        """How many sequences are decoded side by side."""

    @property
    def waiting(self) -> int:
        """How many wait for slots: a beam search, or a sample, counts one."""
        return len(self._waiting)

    @property
    def stalled_s(self) -> float:
        """For how long the round in hand has been going on; 0.0 where nothing is decoded."""
        began = self._round_began
        return 0.0 if began is None else time.perf_counter() - began

    @abstractmethod
    def check(self, request: Request) -> None:
        """Raises InputTooLongError or InvalidInputError for a request that does not fit, however long it waits."""

    @abstractmethod
    def _queued(self, job: Job) -> tuple[list[QueuedT], int]:
        """What of a job waits now, and how many sequences it has."""

    @abstractmethod
    def _round(self) -> bool:
        """Decode on; False where nothing is left, with the engine marked as asleep under the lock."""

    @abstractmethod
    def _fail(self, error: Exception) -> None:
        """Something raised that is nobody's own: end all there are with it."""

    def start(self, *jobs: Job) -> None:
        """Let jobs wait for their turns, all of them from the same round on. Any thread may call this."""
        for job in jobs:
            self.check(job.request)
        queued = [(job, *self._queued(job)) for job in jobs]
        with self._lock:
            if not self._is_awake:
                threading.Thread(target=self._run, name="decode", daemon=True).start()  # it raises where there is none
                self._is_awake = True
            for job, waiting, sequences in queued:
                if job.share not in self._shares:
                    # A newcomer has no claim to what was done before it came, and owes nothing either.
                    tags = [share.tag for share in self._shares] or [self._now]
                    job.share.tag = self._now = min(max(self._now, min(tags)), max(tags))
                    self._shares.add(job.share)
                job.share.sequences += sequences
                self._queue(waiting)

    def generate(self, request: Request, cancelled: Cancelled = never) -> Answer:
        """Decode to the end; what there is so far where `cancelled()` turned true."""
        return self.generate_all([request], cancelled)[0]

    def generate_all(self, requests: Sequence[Request], cancelled: Cancelled = never) -> list[Answer]:
        """An answer for each request; they share one part of the engine."""
        share = Share()
        with _Caller(cancelled) as caller:
            inboxes: list[SimpleQueue[Event]] = [SimpleQueue() for _ in requests]
            pairs = zip(requests, inboxes, strict=True)
            self.start(*(Job(request, inbox.put, share, caller) for request, inbox in pairs))
            return [_last(inbox) for inbox in inboxes]

    def stream(self, request: Request, cancelled: Cancelled = never) -> Iterator[Step]:
        """The steps of the first sequence as they come; ends early where `cancelled()` turns true."""
        assert request.config.num_beams == 1, "beams are known only at the end"
        with _Caller(cancelled) as caller:
            inbox: SimpleQueue[Event] = SimpleQueue()
            self.start(Job(request, inbox.put, cancelled=caller, streams=True))
            while not isinstance(event := inbox.get(), Answer):
                if isinstance(event, Exception):
                    raise event
                for step in event.steps if isinstance(event, Steps) else ():
                    if caller():  # the thread may be ahead of a reader that wants no more
                        return
                    yield step

    def _queue(self, newcomers: Iterable[QueuedT]) -> None:
        """Let some wait, behind all of their shares. The caller holds the lock."""
        for one in newcomers:
            one.number = next(self._numbers)
            self._waiting.put(one)

    def _did(self, share: Share, work: float) -> None:
        """`work` was done for a share. Time goes on by its part: were newcomers given the tag of whoever waits longest,
        a stream of them would go before all that had a turn, for ever.
        """
        with self._lock:
            share.tag += work
            self._now += work / max(1, len(self._shares))

    def _sequence_ended(self, share: Share, sequences: int = 1) -> None:
        with self._lock:
            share.sequences -= sequences
            if not share.sequences:
                self._shares.discard(share)

    def _learn(self, name: str, seconds: float, tokens: int) -> None:
        """Keep the moving average `name` of seconds per token."""
        past, measured = getattr(self, name), seconds / tokens
        setattr(self, name, RATE_MEMORY * past + (1 - RATE_MEMORY) * measured if past else measured)

    def _run(self) -> None:
        alive = True
        while alive:
            self._round_began = began = time.perf_counter()
            try:
                alive = self._round()
            except Exception as error:  # it fails all there are, but not those that come
                self._fail(error)
            self.rounds, self.round_s = self.rounds + 1, self.round_s + time.perf_counter() - began
        self._round_began = None


def _number(one: Queued) -> int:
    return one.number


class _Caller:
    """Whoever waits in a thread of its own: gone when `cancelled()` says so, or when it left the block."""

    def __init__(self, cancelled: Cancelled) -> None:
        self._cancelled, self._left = cancelled, False

    def __enter__(self) -> "_Caller":
        return self

    def __exit__(self, *_error: object) -> None:
        self._left = True

    def __call__(self) -> bool:
        return self._left or self._cancelled()


def _last(inbox: "SimpleQueue[Event]") -> Answer:
    """The answer that comes at the end; raises what decoding failed with."""
    while True:
        event = inbox.get()
        if isinstance(event, StopIteration):
            raise GenerationError("decoding stopped without an answer") from event
        if isinstance(event, Exception):
            raise event
        if isinstance(event, Answer):
            return event
