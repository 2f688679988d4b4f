"""Recorder: what the signals of a replica are made of, noted as requests and batches end. No Ray.

Noting a request takes two microseconds (benchmarks/observing.py); quantiles are taken when somebody asks, once a second
or less often.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import dropwhile
from typing import Any

from starlette.requests import Request

from deployments.config import TaskConfig
from deployments.http.request import Observer, Timings
from deployments.scaling.signals import QUANTILES, WINDOW_S, Quantiles, ReplicaSignals
from pipelines.scheduling.scheduler import BatchReport, Scheduler

OVERLOADED = 429
MOST = 1024  # requests and tokens that quantiles are taken of, at most


@dataclass(frozen=True)
class _Ended:
    """A request that has been answered. `own_s` is None where what a level bounds has no time of its own."""

    at: float
    response_s: float
    queue_s: float
    occupied_s: float
    own_s: float | None


class Recorder(Observer):
    """Of one loaded model. `now` is the clock of its times, in seconds."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._scheduler: Scheduler[Any, Any] | None = None
        self._ended: deque[_Ended] = deque(maxlen=MOST)
        self._gaps: deque[tuple[float, float]] = deque(maxlen=MOST)
        self._refused: deque[float] = deque(maxlen=MOST)
        self._busy_s, self._workers = 0.0, 1
        self._seen: deque[tuple[float, float, int, float]] = deque()  # time, demand_s, admitted, busy_s

    def started(self, scheduler: Scheduler[Any, Any], seconds: Mapping[str, float]) -> None:
        self._scheduler = scheduler
        self._seen.append((self._now(), scheduler.demand_s, scheduler.admitted, 0.0))

    def configured(self, config: TaskConfig) -> None:
        self._workers = config.batching.concurrency

    def batch(self, report: BatchReport) -> None:
        self._busy_s += report.inference_s

    def request(self, request: Request, timings: Timings) -> None:
        now, failure = self._now(), timings.failure
        if failure is not None:
            if failure.status == OVERLOADED:
                self._refused.append(now)
            return
        if timings.protocol is None:
            return
        first_s = timings.first_token_s if timings.is_stream else None
        starts_s = timings.total_s() - timings.inference_s
        if first_s is not None:
            response_s, own_s = first_s, max(0.0, first_s - timings.queue_s)
        elif timings.written_tokens:  # how long an answer becomes is its client's choice
            response_s, own_s = starts_s, None
        else:
            response_s, own_s = timings.total_s(), max(0.0, timings.total_s() - timings.queue_s)
        self._ended.append(_Ended(now, response_s, timings.queue_s, timings.inference_s, own_s))
        self._gaps.extend((now, gap_s) for gap_s in timings.gaps_s)

    def signals(self) -> Mapping[str, float]:
        scheduler = self._scheduler
        if scheduler is None:
            return {}
        return self._signals(scheduler).metrics()

    def _signals(self, scheduler: Scheduler[Any, Any]) -> ReplicaSignals:
        now = self._now()
        self._seen.append((now, scheduler.demand_s, scheduler.admitted, self._busy_s))
        while len(self._seen) > 2 and now - self._seen[1][0] >= WINDOW_S:
            self._seen.popleft()
        then, demand_s, admitted, busy_s = self._seen[0]
        over_s = max(now - then, 1e-3)
        ended = list(dropwhile(lambda one: now - one.at > WINDOW_S, self._ended))
        n_admitted = scheduler.admitted - admitted
        load = (scheduler.demand_s - demand_s) / over_s
        service_s = load * over_s / n_admitted if n_admitted else 0.0
        if scheduler.servers > 1:  # a sequence that waits asks for a slot, and occupies none yet
            service_s = _mean(one.occupied_s for one in ended)
        refused_per_s = sum(now - at <= WINDOW_S for at in self._refused) / over_s
        gaps = [gap_s for at, gap_s in self._gaps if now - at <= WINDOW_S]
        return ReplicaSignals(
            requests_per_s=n_admitted / over_s + refused_per_s,
            load=load + refused_per_s * service_s / scheduler.servers,
            servers=scheduler.servers,
            service_s=service_s,
            own_s=_mean(one.own_s for one in ended if one.own_s is not None),
            queued_s=scheduler.queued_s,
            utilization=min(1.0, (self._busy_s - busy_s) / over_s / max(scheduler.servers, self._workers)),
            ended=len(ended),
            response_s=_quantiles(one.response_s for one in ended),
            queue_s=_quantiles(one.queue_s for one in ended),
            inter_token_s=_quantiles(gaps),
        )


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0


def _quantiles(values: Iterable[float]) -> Quantiles:
    ordered = sorted(values)
    return {one: ordered[min(len(ordered) - 1, int(one * len(ordered)))] for one in QUANTILES} if ordered else {}
