"""Overload: an open loop at a multiple of what a cluster can answer, from a process of its own."""

import asyncio
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from time import perf_counter
from typing import Any

import numpy as np
import uvloop

from benchmarks.load.arrivals import Alarm, poisson
from benchmarks.load.client import Exchange, Pool, request_bytes
from benchmarks.load.generator import allow_many_connections

HOST = "127.0.0.1"
REFUSED = "429"
TICK_S = 0.05
PROBE_S = 30.0  # how long a request may take after the flood


@dataclass(frozen=True)
class Flood:
    """`rate_per_s` requests for `duration_s`, each with a deadline of `deadline_s`, over as many connections as needed
    up to `max_connections`: a request that finds none is not sent.
    """

    port: int
    path: str
    body: bytes
    rate_per_s: float
    duration_s: float
    deadline_s: float
    max_connections: int

    def send(self) -> "Flooded":
        """Send it from a process that does nothing else."""
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(_send, self).result()


@dataclass
class Flooded:
    """What came of a flood. Latencies count from when a request was due, in seconds."""

    answered_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    most_connections: int = 0
    recovery_s: float = 0.0
    """From the last request of the flood until one that is sent after it is answered."""

    def take(self, exchange: Exchange) -> None:
        self.outcomes[exchange.status] += 1
        if exchange.succeeded:
            self.answered_s.append(exchange.latency_s)
        elif exchange.status == REFUSED:
            self.refused_s.append(exchange.latency_s)

    def in_time(self, deadline_s: float) -> int:
        return sum(latency_s <= deadline_s for latency_s in self.answered_s)

    def summary(self) -> dict[str, Any]:
        return {
            "outcomes": dict(self.outcomes),
            "answered_ms": _percentiles(self.answered_s),
            "refused_ms": _percentiles(self.refused_s),
            "most_connections": self.most_connections,
            "recovery_s": self.recovery_s,
        }


def percentile_ms(latencies_s: list[float], percent: float) -> float:
    return 1000 * float(np.percentile(latencies_s, percent)) if latencies_s else float("nan")


def _percentiles(latencies_s: list[float]) -> dict[str, float]:
    return {f"p{percent}": percentile_ms(latencies_s, percent) for percent in (50, 99)} if latencies_s else {}


def _send(flood: Flood) -> Flooded:
    allow_many_connections()
    return uvloop.run(_flood(flood))


async def _flood(flood: Flood) -> Flooded:
    flooded, pool = Flooded(), Pool(HOST, flood.port)
    request = request_bytes(HOST, flood.path, flood.body, {"x-request-timeout-seconds": f"{flood.deadline_s:g}"})
    due = perf_counter() + poisson(flood.rate_per_s, flood.duration_s, seed=0)
    sent = 0

    def send_due() -> None:
        nonlocal sent
        while sent < len(due):
            if due[sent] > perf_counter():
                alarm.set(float(due[sent]))
                return
            if pool.in_flight < flood.max_connections:
                pool.send(Exchange(request, float(due[sent]), flooded.take))
            else:
                flooded.outcomes["no connection left"] += 1
            sent += 1

    alarm = Alarm(send_due)
    send_due()
    while sent < len(due):
        await asyncio.sleep(TICK_S)
        flooded.most_connections = max(flooded.most_connections, pool.in_flight)
    alarm.close()
    flooded.recovery_s = await _recovery_s(flood, float(due[-1]))
    while pool.in_flight:
        await asyncio.sleep(TICK_S)
        pool.expire(PROBE_S)
    await pool.close()
    return flooded


async def _recovery_s(flood: Flood, ended_at: float) -> float:
    """Seconds from `ended_at` until a request that is sent now, or as soon as one is not refused, is answered."""
    pool, request = Pool(HOST, flood.port), request_bytes(HOST, flood.path, flood.body)
    try:
        while True:
            done: asyncio.Future[Exchange] = asyncio.get_running_loop().create_future()
            pool.send(Exchange(request, perf_counter(), done.set_result))
            try:
                exchange = await asyncio.wait_for(done, PROBE_S)
            except TimeoutError:
                return perf_counter() - ended_at
            if exchange.succeeded or perf_counter() - ended_at > PROBE_S:
                return exchange.ended_at - ended_at
            await asyncio.sleep(TICK_S)
    finally:
        await pool.close()
