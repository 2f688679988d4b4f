"""Fleet: the replicas of one model, the machines below them and the ingress in front, in simulated time.

    scale_to(n) ──> booting ──> starting ──> running ──> draining ──> gone
    submit(...) ──> LeastConnections ──> the replica's own scheduler ──> ended(latency, outcome)

A request that comes to an idle replica is answered after the time of a batch of its own. Only where a second one comes
meanwhile, the scheduler gets both, each at its time. In a large fleet most requests are alone, and cost little.

A replica starts on a machine with room, else on a new one, which boots first. What starts is taken back first where
fewer are wanted; a running one gets no further requests, and is gone once those inside have ended.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Any

from deployments.scaling.signals import ReplicaSignals
from pipelines.errors import DeadlineExceededError, OverloadedError
from pipelines.scheduling.scheduler import Scheduler
from planning.simulated.ingress import LeastConnections
from planning.simulated.loop import SimulatedLoop, Timer
from planning.simulated.model import SimulatedModel
from planning.simulated.recorder import ReplicaRecorder

DRAIN_S = 5.0
"""RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S: what a replica that ends stays at least."""
SPEAKERS = 128
"""Replicas of a fleet whose signals are taken, at least where there are so many: quantiles cost more than requests."""


class Outcome(IntEnum):
    """What became of a request."""

    UNDER_WAY = 0
    ANSWERED = 1
    REFUSED = 2  # 429, by the ingress or by a replica
    EXPIRED = 3  # its deadline ran out


@dataclass(frozen=True)
class Site:
    """Where replicas run: how long a start takes, how many a machine has room for, how fast it is and how long it boots
    and stays without a replica.
    """

    start_s: float = 8.0
    per_machine: int = 1
    speed: float = 1.0
    boot_s: float = 0.0
    idle_s: float = 0.0


Ended = Callable[[int, float, Outcome], None]
"""(number of the request, seconds since its arrival, what became of it)."""


@dataclass(slots=True)
class Lone:
    """A request that its replica's scheduler does not know yet; `ending` is its end, if nothing else comes."""

    number: int
    rows: Any
    arrived_s: float
    began_s: float
    bulk: bool
    ending: Timer


class Replica:
    """One replica; `inside` is the ingress's count. It said last that it is free at `free_at_s`. One that drains stays
    until `leaves_at` at least.
    """

    __slots__ = ("free_at_s", "inside", "leaves_at", "lone", "name", "recorder", "row_s", "scheduler", "starting")

    def __init__(self, name: str, scheduler: Scheduler[Any, Any], recorder: ReplicaRecorder | None) -> None:
        self.name, self.scheduler, self.recorder = name, scheduler, recorder
        self.inside = 0
        self.leaves_at = math.inf
        self.free_at_s = self.row_s = 0.0
        self.starting: Timer | None = None
        self.lone: Lone | None = None


class Fleet:
    """`ended` is told of each request that has ended; `overhead_s` is what an answer takes beside queue and model.
    `signals` is empty unless it `records`. `mixed`: lists and bulk come beside short requests.
    """

    def __init__(
        self,
        loop: SimulatedLoop,
        model: SimulatedModel,
        site: Site,
        ended: Ended,
        overhead_s: float = 0.0,
        records: bool = False,
        mixed: bool = False,
    ) -> None:
        self._loop, self._model, self._site, self._records = loop, model, site, records
        self._ended, self._overhead_s = ended, overhead_s
        # A list leaves a worker free for short requests, of which the scheduler has to know.
        self._skips_lone = not records and not (mixed and model.batching.concurrency > 1)
        self.ingress: LeastConnections[Replica] = LeastConnections()
        self.starting: list[Replica] = []
        self.draining: set[Replica] = set()
        self.held: deque[tuple[int, Any, float, float, bool]] = deque()
        """Requests that came while there was no replica."""
        self.target = 0
        self.inside = 0
        self._numbers = 0
        self._machines: list[float] = []  # when each has booted
        self._roomy_since: float | None = None
        self._replicas_s = self._machines_s = self._inside_s = 0.0
        self._since = self._inside_since = 0.0

    # --- how many there are ---

    @property
    def running(self) -> int:
        return len(self.ingress)

    @property
    def replicas(self) -> int:
        """All that occupy room on a machine."""
        return len(self.ingress) + len(self.starting) + len(self.draining)

    @property
    def machines(self) -> int:
        return len(self._machines)

    def spent_s(self) -> tuple[float, float]:
        """Seconds of replicas and of machines so far."""
        self._count()
        return self._replicas_s, self._machines_s

    def inside_s(self) -> float:
        """Seconds that requests have spent in running replicas so far: their mean number is its slope."""
        self._count_inside(0)
        return self._inside_s

    def signals(self) -> dict[str, ReplicaSignals]:
        """What each running replica says of its load. Of a large fleet, whose replicas get alike requests, every n-th
        says it for those beside it.
        """
        servers = list(self.ingress.servers)
        said: dict[str, ReplicaSignals] = {}
        for start in range(0, len(servers), stride := max(1, len(servers) // SPEAKERS)):
            speaker = servers[start].recorder
            if speaker is not None:
                said |= dict.fromkeys((one.name for one in servers[start : start + stride]), speaker.signals())
        return said

    def scale_to(self, target: int) -> None:
        """Start or end replicas until `target` are running or starting."""
        self._count()
        self.target = target
        active = self.running + len(self.starting)
        for _ in range(active, target):
            self._start()
        for _ in range(target, active):
            if self.starting:
                self._cancel(self.starting.pop())
            else:
                self._drain(next(reversed(self.ingress.servers)))
        self._fit_machines()

    def place(self, replicas: int) -> None:
        """Begin with so many replicas that run already."""
        self._count()
        self.target = replicas
        for _ in range(replicas):
            self._running(self._made())
        self._machines = [self._loop.now_s] * math.ceil(replicas / self._site.per_machine)

    def _start(self) -> None:
        replica = self._made()
        self.starting.append(replica)
        now_s, machine = self._loop.now_s, math.ceil(self.replicas / self._site.per_machine) - 1
        while len(self._machines) <= machine:
            self._machines.append(now_s + self._site.boot_s)
        boots_s = max(0.0, self._machines[machine] - now_s)
        replica.starting = self._loop.call_later(boots_s + self._site.start_s, self._started, replica)

    def _started(self, replica: Replica) -> None:
        self._count()
        self.starting.remove(replica)
        self._running(replica)

    def _running(self, replica: Replica) -> None:
        replica.starting = None
        self.ingress.add(replica)
        while self.held:
            self._give(*self.held.popleft())

    def _cancel(self, replica: Replica) -> None:
        assert replica.starting is not None
        replica.starting.cancel()

    def _drain(self, replica: Replica) -> None:
        self.ingress.remove(replica)
        self._count_inside(-replica.inside)
        self.draining.add(replica)
        replica.leaves_at = self._loop.now_s + DRAIN_S
        self._loop.call_later(DRAIN_S, self._gone, replica)

    def _gone(self, replica: Replica) -> None:
        """Called when a replica has waited long enough, and again when its last request ends."""
        if replica in self.draining and not replica.inside and self._loop.now_s >= replica.leaves_at:
            self._count()
            self.draining.discard(replica)
            self._fit_machines()

    def _made(self) -> Replica:
        self._numbers += 1
        name, loop, speed = str(self._numbers), self._loop, self._site.speed
        if not self._records:
            return Replica(name, self._model.scheduler(loop, speed), None)
        recorder = ReplicaRecorder(loop, self._model.batching)
        scheduler = self._model.scheduler(loop, speed, recorder.batch)
        recorder.started(scheduler)
        return Replica(name, scheduler, recorder)

    def _fit_machines(self) -> None:
        """Give machines back that were not needed for `idle_s`; called whenever a replica came or went."""
        now_s, needed = self._loop.now_s, math.ceil(self.replicas / self._site.per_machine)
        if needed >= self.machines:
            self._roomy_since = None
        elif self._roomy_since is None:
            self._roomy_since = now_s
            self._loop.call_later(self._site.idle_s, self._fit_machines)
        elif now_s - self._roomy_since >= self._site.idle_s - 1e-6:
            self._count()
            del self._machines[needed:]
            self._roomy_since = None

    def _count(self) -> None:
        """Add up the time since the number of replicas or machines changed last; before it changes again."""
        now_s = self._loop.now_s
        passed_s, self._since = now_s - self._since, now_s
        self._replicas_s += passed_s * self.replicas
        self._machines_s += passed_s * self.machines

    def _count_inside(self, more: int) -> None:
        now_s = self._loop.now_s
        self._inside_s += (now_s - self._inside_since) * self.inside
        self._inside_since = now_s
        self.inside += more

    # --- requests ---

    def submit(self, number: int, rows: Any, left_s: float, bulk: bool) -> None:
        """A request arrives now, and waits for `left_s` seconds at most, infinite for ever."""
        now_s = self._loop.now_s
        if not self.ingress.servers:
            self.held.append((number, rows, now_s, now_s + left_s, bulk))
            if not math.isinf(left_s):
                self._loop.call_later(left_s, self._expire_held, number)
            return
        if self.ingress.is_late(now_s, left_s, self._model.queue.max_queue_s):
            self._ended(number, 0.0, Outcome.REFUSED)
            return
        self._give(number, rows, now_s, now_s + left_s, bulk)

    def _give(self, number: int, rows: Any, arrived_s: float, deadline: float, bulk: bool) -> None:
        replica, loop = self.ingress.take(), self._loop
        self._count_inside(1)
        if self._skips_lone and replica.inside == 1 and math.isinf(deadline):
            alone_s = self._model.undisturbed_s(rows)
            if alone_s is not None:
                ending = loop.call_later(alone_s / self._site.speed, self._undisturbed, replica)
                replica.lone = Lone(number, rows, arrived_s, loop.now_s, bulk, ending)
                return
        elif (lone := replica.lone) is not None:
            lone.ending.cancel()
            replica.lone, now_s = None, loop.now_s
            loop.now_s = lone.began_s
            self._schedule(replica, lone.number, lone.rows, lone.arrived_s, math.inf, lone.bulk)
            loop.now_s = now_s
        self._schedule(replica, number, rows, arrived_s, deadline, bulk)

    def _schedule(
        self, replica: Replica, number: int, rows: Any, arrived_s: float, deadline: float, bulk: bool
    ) -> None:
        submitted = replica.scheduler.submit(rows, None if math.isinf(deadline) else deadline, bulk=bulk)
        self._loop.run(submitted, partial(self._left, number, replica, rows, arrived_s))

    def _undisturbed(self, replica: Replica) -> None:
        """The only request of a replica is answered."""
        lone, replica.lone = replica.lone, None
        assert lone is not None
        self._left(lone.number, replica, lone.rows, lone.arrived_s, None, None)

    def _left(
        self, number: int, replica: Replica, rows: Any, arrived_s: float, completed: Any, error: Exception | None
    ) -> None:
        now_s, scheduler = self._loop.now_s, replica.scheduler
        self.ingress.release(replica)
        if replica in self.draining:
            self._gone(replica)
        else:
            self._count_inside(-1)
        replica.free_at_s, replica.row_s = now_s + scheduler.expected_s(), scheduler.row_s
        if error is None:
            took_s = self._model.answered_at(rows, now_s) - arrived_s + self._overhead_s
            self._ended(number, took_s, Outcome.ANSWERED)
            if replica.recorder is not None:
                replica.recorder.answered(completed, took_s)
        else:
            if replica.recorder is not None and isinstance(error, OverloadedError):
                replica.recorder.refused()
            expired = isinstance(error, DeadlineExceededError)
            self._ended(number, now_s - arrived_s, Outcome.EXPIRED if expired else Outcome.REFUSED)

    def _expire_held(self, number: int) -> None:
        for one in self.held:
            if one[0] == number:
                self.held.remove(one)
                self._ended(number, self._loop.now_s - one[2], Outcome.EXPIRED)
                return
