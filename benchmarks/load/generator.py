"""Generator: one process that sends a load and measures it; several of them merge into one tally.

Closed loop: `concurrency` requests are under way at any time. Open loop: requests are due at the times of a Poisson
process, whether or not earlier ones were answered. Their latency counts from the due time: when the server stalls, the
requests that queue up meanwhile show it.
"""

import asyncio
import os
import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import reduce
from multiprocessing import get_context
from time import perf_counter

import uvloop

from benchmarks.load.arrivals import Alarm, along, poisson
from benchmarks.load.client import Exchange, Pool
from benchmarks.load.objective import Objective
from benchmarks.load.tally import BUSY_CPU_SHARE, Tally

TICK_S = 0.05  # how often timeouts and hopeless trials are looked for
PAUSE_AFTER_ERROR_S = 0.01  # so that a closed loop on a dead server does not spin
SPAWN_S = 2.0  # until every generator process has started and waits for the common start
FIRST_CONNECTIONS = 32  # of an open loop; more are opened as needed


@dataclass(frozen=True)
class Call:
    """A request ready to be sent: head and body, how many inputs it carries, and how long its answer is."""

    request: bytes
    n_inputs: int = 1
    new_tokens: int = 0  # of the answer, where that is known


@dataclass(frozen=True)
class Load:
    """What is sent where. Exactly one of `concurrency` (closed loop) and `rate_per_s` (open loop) is set, or `curve`.

    `hopeless_stops` ends an open loop as soon as so many requests missed the objective that it cannot be met.
    """

    host: str
    port: int
    calls: Sequence[Call]
    duration_s: float
    warm_up_s: float = 1.0
    concurrency: int | None = None
    rate_per_s: float | None = None
    curve: Sequence[float] = ()  # of an open loop whose rate changes, from its start to its end, in place of the rate
    seed: int = 0
    slo_s: float | None = None
    timeout_s: float = 60.0
    hopeless_stops: bool = False
    objective: Objective | None = None  # of streams; else the p99 of the latency has to meet `slo_s`


def measure(load: Load, processes: int | None = 1) -> Tally:
    """Send the load and count; raises UnreachableError where nothing listens.

    `processes` None starts with one generator and repeats with twice as many while they use up their cores.
    """
    if processes is None:
        processes = 1
        tally = measure(load, processes)
        while max(tally.cpu_shares) >= BUSY_CPU_SHARE and processes < len(os.sched_getaffinity(0)):
            processes *= 2
            tally = measure(load, processes)
        return tally
    if processes == 1:
        return _generate(load, perf_counter())
    start_at = perf_counter() + SPAWN_S
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        tallies = list(pool.map(_generate, split(load, processes), [start_at] * processes))
    return reduce(_merged, tallies)


def split(load: Load, processes: int) -> list[Load]:
    """Equal shares of a load; each has its own seed and its own part of the texts."""
    shares = []
    for index in range(processes):
        share = replace(load, seed=load.seed * processes + index, calls=load.calls[index::processes] or load.calls)
        if load.concurrency is not None:
            share = replace(share, concurrency=len(range(index, load.concurrency, processes)))
        if load.rate_per_s is not None:
            share = replace(share, rate_per_s=load.rate_per_s / processes)
        shares.append(share)
    return [share for share in shares if share.concurrency != 0]


def _merged(tally: Tally, other: Tally) -> Tally:
    tally.merge(other)
    return tally


def _generate(load: Load, start_at: float) -> Tally:
    allow_many_connections()
    time.sleep(max(0.0, start_at - perf_counter()))
    return uvloop.run(_Generator(load).run())


class _Generator:
    """One run of a load in the running process.

    The window of an open loop contains the requests that are due in it. The window of a closed loop begins and ends
    with an answer: the first one after the warm-up, and the first one `duration_s` later. Servers answer in batches,
    so a window that ended at any time would count one batch more or less, which can be a tenth of all requests.
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        self._tally = Tally(load.objective or (None if load.slo_s is None else Objective(latency_s=load.slo_s)))
        self._sent = 0
        self._over = False
        self._opened_at: float | None = None
        self._closed_at: float | None = None
        self._start_cpu_clock()

    async def run(self) -> Tally:
        load = self._load
        self._pool = Pool(load.host, load.port)
        await self._pool.open(load.concurrency or FIRST_CONNECTIONS)
        self._opens_at = perf_counter() + load.warm_up_s
        self._closes_at = self._opens_at + load.duration_s
        try:
            await (self._open_loop() if load.rate_per_s is not None or load.curve else self._closed_loop())
        finally:
            self._over = True
            await self._pool.close()
        return self._tally

    # --- closed loop ---

    async def _closed_loop(self) -> None:
        for _ in range(self._load.concurrency or 1):
            self._send(perf_counter(), self._ended_in_closed_loop)
        while self._closed_at is None and perf_counter() < self._closes_at + self._load.timeout_s:
            await self._tick(measure_lag=True)
        ended_at = self._closed_at or perf_counter()
        self._close(ended_at - (self._opened_at or self._opens_at))

    def _ended_in_closed_loop(self, exchange: Exchange) -> None:
        if self._over or self._closed_at is not None:
            return
        if self._opened_at is not None:
            self._tally.count_answer(exchange)
            self._tally.count_latency(exchange)
            if exchange.ended_at >= self._closes_at:
                self._closed_at = exchange.ended_at
        elif exchange.ended_at >= self._opens_at:
            self._opened_at = exchange.ended_at
            self._closes_at = exchange.ended_at + self._load.duration_s
            self._start_cpu_clock()
        if exchange.succeeded:
            self._send(exchange.ended_at, self._ended_in_closed_loop)
        else:
            asyncio.get_running_loop().call_later(PAUSE_AFTER_ERROR_S, self._resume)

    def _resume(self) -> None:
        if not self._over:
            self._send(perf_counter(), self._ended_in_closed_loop)

    # --- open loop ---

    async def _open_loop(self) -> None:
        load = self._load
        started_at = self._opens_at - load.warm_up_s
        lasts_s = load.warm_up_s + load.duration_s
        rate_per_s = load.rate_per_s or 0.0
        times = along(load.curve, lasts_s, load.seed) if load.curve else poisson(rate_per_s, lasts_s, load.seed)
        self._arrivals = started_at + times
        self._expected = int((self._arrivals >= self._opens_at).sum())
        asyncio.get_running_loop().call_later(load.warm_up_s, self._start_cpu_clock)
        self._alarm = Alarm(self._send_due)
        try:
            self._send_due()
            while not self._tally.stopped_early and (self._sent < len(self._arrivals) or self._pool.in_flight):
                await self._tick(measure_lag=False)
                self._tally.stopped_early = load.hopeless_stops and self._is_hopeless()
        finally:
            self._alarm.close()
        lasted_s = max(perf_counter() - self._opens_at, TICK_S)
        self._close(min(lasted_s, load.duration_s) if self._tally.stopped_early else load.duration_s)

    def _send_due(self) -> None:
        while self._sent < len(self._arrivals):
            intended_at = float(self._arrivals[self._sent])
            now = perf_counter()
            if intended_at > now:
                self._alarm.set(intended_at)
                return
            if self._in_window(intended_at):
                self._tally.late.record(now - intended_at)
            self._send(intended_at, self._ended_in_open_loop)

    def _ended_in_open_loop(self, exchange: Exchange) -> None:
        if self._over:
            return
        if self._in_window(exchange.ended_at):
            self._tally.count_answer(exchange)
        if self._in_window(exchange.intended_at):
            self._tally.count_latency(exchange)

    def _is_hopeless(self) -> bool:
        objective = self._tally.objective
        assert objective is not None
        now = perf_counter()
        overdue = sum(
            one.intended_at >= self._opens_at and objective.is_missed(one, now) for one in self._pool.under_way()
        )
        return self._tally.bad + overdue > objective.bad_share * self._expected

    # --- both ---

    def _send(self, intended_at: float, done: Callable[[Exchange], None]) -> None:
        call = self._load.calls[self._sent % len(self._load.calls)]
        self._sent += 1
        self._pool.send(Exchange(call.request, intended_at, done, call.n_inputs, call.new_tokens))

    async def _tick(self, *, measure_lag: bool) -> None:
        asleep_at = perf_counter()
        await asyncio.sleep(TICK_S)
        if measure_lag and self._in_window(asleep_at):
            self._tally.late.record(max(0.0, perf_counter() - asleep_at - TICK_S))
        self._pool.expire(self._load.timeout_s)

    def _in_window(self, at: float) -> bool:
        return self._opens_at <= at < self._closes_at

    def _start_cpu_clock(self) -> None:
        self._cpu_s, self._cpu_since = time.process_time(), perf_counter()

    def _close(self, duration_s: float) -> None:
        cpu_s = time.process_time() - self._cpu_s
        self._tally.close(duration_s, cpu_share=cpu_s / (perf_counter() - self._cpu_since))


def allow_many_connections() -> None:
    """Raise the limit of open files: an open loop has one connection for each request that waits."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
