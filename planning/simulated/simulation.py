"""Simulation: one trace, one policy, one kind of machine. The same arguments give the same result."""

import gc
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from planning.deciding.policy import Policy, View
from planning.simulated.fleet import Fleet, Outcome, Site
from planning.simulated.loop import SimulatedLoop
from planning.simulated.model import SimulatedModel
from planning.traces.trace import Trace

CHUNK = 50_000  # requests whose numbers are Python's at a time
SHOWN = 600  # points of a series
BUSY_REPLICAS = 200  # a policy looks so much more rarely as there are more replicas than this
SETTLE_S = 3600.0  # after the trace, for what is still under way


class Point(NamedTuple):
    """The fleet at a time; `inside` is the mean number of requests inside since the point before."""

    at_s: float
    running: int
    starting: int
    draining: int
    machines: int
    inside: float


@dataclass
class Played:
    """What a simulation found. `latencies_s` count from the arrival, NaN for what was not answered; `outcomes` are
    Outcome, uint8. `replica_s` and `machine_s` are those within the trace. `took_s` is real time.
    """

    policy: str
    trace: Trace
    site: Site
    latencies_s: np.ndarray
    outcomes: np.ndarray
    series: list[Point] = field(default_factory=list)
    replica_s: float = 0.0
    machine_s: float = 0.0
    most_replicas: int = 0
    most_machines: int = 0
    took_s: float = 0.0
    was_hopeless: bool = False

    def count(self, outcome: Outcome) -> int:
        return int((self.outcomes == outcome).sum())

    def quantile_s(self, quantile: float) -> float:
        """Of what was answered; NaN where nothing was."""
        answered = self.latencies_s[self.outcomes == Outcome.ANSWERED]
        return float(np.quantile(answered, quantile)) if len(answered) else float("nan")

    def within(self, slo_s: float) -> float:
        """The share of all requests that were answered within `slo_s`; 1.0 of none."""
        return float((self.latencies_s <= slo_s).mean()) if len(self.latencies_s) else 1.0

    def worst_hour(self, slo_s: float) -> float:
        """The least `within` of the hours of the trace that have at least a hundred requests."""
        hours = (self.trace.arrivals_s // 3600).astype(np.int64)
        total = np.bincount(hours)
        good = np.bincount(hours, weights=self.latencies_s <= slo_s)
        counted = total >= 100
        return float((good[counted] / total[counted]).min()) if counted.any() else self.within(slo_s)


@dataclass(frozen=True)
class Setting:
    """What is the same for all policies. A policy is asked every `tick_s`; `look_back_s` is Ray Serve's.

    With `hopeless`, (slo_s, quantile), a simulation ends as soon as the level cannot be held any more.
    """

    model: SimulatedModel
    site: Site
    overhead_s: float
    tick_s: float = 1.0
    look_back_s: float = 30.0
    hopeless: tuple[float, float] | None = None


def play(trace: Trace, policy: Policy, setting: Setting) -> Played:
    """Simulate a trace."""
    began_at = time.perf_counter()
    loop = SimulatedLoop()
    with loop.running(), _rare_collections():
        player = _Player(loop, trace, policy, setting)
        player.play()
    player.played.took_s = time.perf_counter() - began_at
    return player.played


class _Player:
    def __init__(self, loop: SimulatedLoop, trace: Trace, policy: Policy, setting: Setting) -> None:
        self._loop, self._trace, self._policy, self._setting = loop, trace, policy, setting
        latencies, outcomes = np.full(len(trace), np.nan), np.zeros(len(trace), np.uint8)
        self.played = Played(policy.name, trace, setting.site, latencies, outcomes)
        self._latencies, self._outcomes = latencies, outcomes
        mixed = bool(trace.bulk.any() or (trace.rows > 1).any())
        self._fleet = Fleet(
            loop, setting.model, setting.site, self._ended, setting.overhead_s, policy.reads_signals, mixed
        )
        self._fleet.place(policy.first())
        self._left = len(trace)
        self._missed = 0
        slo_s, quantile = setting.hopeless or (np.inf, 0.0)
        self._slo_s, self._may_miss = slo_s, (1 - quantile) * len(trace)
        self._inside: deque[tuple[float, float]] = deque([(0.0, 0.0)])  # (time, seconds of requests inside)
        self._running = self._fleet.running
        self._show_every_s = max(trace.duration_s / SHOWN, setting.tick_s)
        self._shown_at, self._shown_inside_s = -np.inf, 0.0
        self._tick_at = 0.0

    def play(self) -> None:
        loop, fleet, duration_s = self._loop, self._fleet, self._trace.duration_s
        for at_s, number, rows, left_s, bulk in self._requests():
            while self._tick_at <= at_s:
                self._tick()
                if self.played.was_hopeless:
                    return
            loop.advance(at_s)
            fleet.submit(number, rows, left_s, bulk)
        while self._tick_at <= duration_s:
            self._tick()
        loop.advance(duration_s)
        self.played.replica_s, self.played.machine_s = fleet.spent_s()
        self._show()
        while self._left and self._tick_at <= duration_s + SETTLE_S:
            self._tick()

    def _requests(self) -> Iterator[tuple[float, int, object, float, bool]]:
        trace, request = self._trace, self._setting.model.request
        for start in range(0, len(trace), CHUNK):
            some = slice(start, start + CHUNK)
            columns = (trace.rows, trace.tokens, trace.written, trace.arrivals_s, trace.deadlines_s, trace.bulk)
            listed = zip(*(one[some].tolist() for one in columns), strict=True)
            for number, (rows, tokens, written, at_s, left_s, bulk) in enumerate(listed, start=start):
                yield at_s, number, request(rows, tokens, written), left_s, bulk

    def _ended(self, number: int, latency_s: float, outcome: Outcome) -> None:
        self._outcomes[number] = outcome
        self._left -= 1
        if outcome == Outcome.ANSWERED:
            self._latencies[number] = latency_s
            self._missed += latency_s > self._slo_s
        else:
            self._missed += 1

    def _tick(self) -> None:
        """Ask the policy, and do as it says."""
        loop, fleet, played = self._loop, self._fleet, self.played
        loop.advance(self._tick_at)
        now_s = loop.now_s
        at_s = self._trace.day_at_s + now_s
        view = View(at_s, fleet.running, fleet.target, self._ongoing(), len(fleet.held), fleet.signals)
        wanted = self._policy.replicas(view)
        if wanted != fleet.target:
            fleet.scale_to(wanted)
        played.most_replicas = max(played.most_replicas, fleet.replicas)
        played.most_machines = max(played.most_machines, fleet.machines)
        played.was_hopeless = self._setting.hopeless is not None and self._missed > self._may_miss
        if now_s - self._shown_at >= self._show_every_s and now_s <= self._trace.duration_s:
            self._show()
        self._tick_at += self._setting.tick_s * (1 + fleet.running // BUSY_REPLICAS)

    def _ongoing(self) -> float:
        """The mean number of requests inside over the look-back period, or since the newest replica has been there: Ray
        Serve averages over what all replicas have reported.
        """
        fleet, now_s, inside_s = self._fleet, self._loop.now_s, self._fleet.inside_s()
        if 1 < fleet.running > self._running:
            self._inside.clear()
        self._running = fleet.running
        self._inside.append((now_s, inside_s))
        while len(self._inside) > 2 and self._inside[1][0] <= now_s - self._setting.look_back_s:
            self._inside.popleft()
        since_s, before_s = self._inside[0]
        return (inside_s - before_s) / (now_s - since_s) if now_s > since_s else float(fleet.inside)

    def _show(self) -> None:
        fleet, now_s, inside_s = self._fleet, self._loop.now_s, self._fleet.inside_s()
        passed_s = now_s - self._shown_at
        inside = len(fleet.held) + ((inside_s - self._shown_inside_s) / passed_s if passed_s > 0 else 0.0)
        self._shown_at, self._shown_inside_s = now_s, inside_s
        self.played.series.append(
            Point(self._shown_at, fleet.running, len(fleet.starting), len(fleet.draining), fleet.machines, inside)
        )


@contextmanager
def _rare_collections() -> Iterator[None]:
    """A request leaves no cycle behind: looking for some after every 700 objects takes a fifth of the time."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
