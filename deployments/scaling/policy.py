"""ServiceLevelPolicy: how many replicas a deployment needs, from what its replicas say. No Ray, no clock, no chance.

    policy = ServiceLevelPolicy(ServiceLevel(slo_ms=500))
    policy.decide(Observation(now_s, running=2, target=2, least=1, most=8, replicas={"a": ..., "b": ...})).replicas

The same observations in the same order give the same decisions: autoscaler.py asks it in Ray Serve's controller, and a
simulation asks it with times of its own.

    load       what arrives asks for the fewest replicas that hold the level by queueing theory (queueing.py)
    backlog    what waits beyond the level is to be gone soon, with what comes until new replicas have started
    margin     measured quantiles correct the theory upwards: it grows while the level is missed though nothing starts
    pattern    never fewer than the work of this time of the day took on recent days
    down       only to what has been enough for `down_after_s`, all of that time with signals of every replica
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from deployments.scaling.daily import DailyPattern
from deployments.scaling.level import ServiceLevel
from deployments.scaling.queueing import replicas_for
from deployments.scaling.signals import WINDOW_S, Quantiles, ReplicaSignals

MOST_MARGIN = 2.0
RAISE_S, LOWER_S = 60.0, 300.0  # in which the margin changes by a factor e while the level is missed, or held easily
EASY = 0.6  # of a level
SETTLE_S = 20.0  # after a change of replicas, until the quantiles are those of the present number
STEP_S = 5.0  # the longest time that one observation stands for
LEAST_BUDGET = 0.1  # of a level, for waiting: whatever the model itself takes of it


@dataclass(frozen=True)
class Observation:
    """A deployment at one moment. `now_s` is of a clock that does not go back, in seconds.

    `running` replicas answer, of the `target` that were decided last; `replicas` holds the signals of those that run
    and whose signals are fresh. `least` and `most` are allowed. `waiting` counts requests that no replica has yet.
    """

    now_s: float
    running: int
    target: int
    least: int
    most: int
    replicas: Mapping[str, ReplicaSignals] = field(default_factory=dict)
    waiting: float = 0.0


@dataclass(frozen=True)
class Decision:
    """`replicas` are wanted, within the bounds; `reason` is one line for logs."""

    replicas: int
    reason: str


@dataclass(frozen=True)
class _Asked:
    """Sums and means over the replicas that are known, as if all were. `load` and `queued_s` are in replicas."""

    load: float
    requests_per_s: float
    servers: float
    service_s: float
    own_s: float
    queued_s: float
    inside: float
    over_level: float  # the measured quantile over the level; 0.0 where nothing has ended


class ServiceLevelPolicy:
    """Decides for one deployment, and remembers what it has seen. `pattern` is read and written in place."""

    def __init__(self, level: ServiceLevel, pattern: DailyPattern | None = None) -> None:
        self.level, self.pattern = level, pattern
        self.margin = 1.0
        self._start_s = level.start_s
        self._starting_since: float | None = None
        self._changed_at = -math.inf
        self._seen_at: float | None = None
        self._running = self._target = 0
        self._used_at: float | None = None
        self._loads: deque[tuple[float, float]] = deque()  # of `trend_s`, one per second at most
        self._load_sum = 0.0
        self._enough: deque[tuple[float, int]] = deque()  # of `down_after_s`: falling, the first is the most

    def decide(self, seen: Observation) -> Decision:
        """The replicas that are wanted now."""
        self._follow(seen)
        if self._used_at is None or seen.waiting > 0:
            self._used_at = seen.now_s
        if seen.running == 0:
            return self._without_replicas(seen)
        if not seen.replicas:
            return self._bounded(seen, seen.target, "held: no replica says anything")
        asked = self._sum(seen)
        if asked.inside > 0 or asked.requests_per_s > 0:
            self._used_at = seen.now_s
        self._correct(seen, asked)
        wanted, reason = self._wanted(seen, asked)
        if len(seen.replicas) < seen.running and wanted < seen.target:
            missing = seen.running - len(seen.replicas)
            wanted, reason = seen.target, f"held: {missing} of {seen.running} replicas say nothing"
        elif self.pattern is not None:
            self.pattern.note(seen.now_s, max(wanted, seen.least))
        needs = 0 if self.pattern is None else self.pattern.needs(seen.now_s, self._start_s)
        if needs > wanted:
            wanted, reason = needs, f"this time of the day took {needs}"
        lasting = self._lasting(seen.now_s, wanted)
        if seen.target > wanted > 0 and lasting > wanted:
            wanted, reason = min(lasting, seen.target), f"{lasting} within the last {self.level.down_after_s:g} s"
        return self._bounded(seen, wanted, reason)

    def _follow(self, seen: Observation) -> None:
        """Learn how long a start takes, and when the number of replicas changed."""
        if (seen.running, seen.target) != (self._running, self._target):
            self._changed_at = seen.now_s
        if seen.running > self._running == 0:
            self._used_at = seen.now_s
        self._running, self._target = seen.running, seen.target
        if seen.running < seen.target:
            if self._starting_since is None:
                self._starting_since = seen.now_s
        elif self._starting_since is not None:
            took_s = min(seen.now_s - self._starting_since, 10 * self.level.start_s)
            self._start_s = (self._start_s + took_s) / 2
            self._starting_since = None

    def _without_replicas(self, seen: Observation) -> Decision:
        needs = 0 if self.pattern is None else self.pattern.needs(seen.now_s, self._start_s)
        first = max(seen.target, 1 if seen.waiting > 0 else 0)
        if self.pattern is not None and first == 0:
            self.pattern.note(seen.now_s, 0)
        reason = f"this time of the day took {needs}" if needs > first else f"{seen.waiting:g} requests wait for one"
        return self._bounded(seen, max(first, needs), reason if seen.waiting or needs else "no replica, no request")

    def _sum(self, seen: Observation) -> _Asked:
        known = [seen.replicas[name] for name in sorted(seen.replicas)]
        scale = seen.running / len(known)
        requests_per_s = sum(one.requests_per_s for one in known)
        level = self.level
        over = _mean(((one.ended, one.response_s) for one in known), level.quantile) / level.slo_s
        if level.inter_token_ms is not None:
            between_s = _mean(((one.ended, one.inter_token_s) for one in known), level.quantile)
            over = max(over, 1000 * between_s / level.inter_token_ms)
        return _Asked(
            load=scale * sum(one.load for one in known),
            requests_per_s=scale * requests_per_s,
            servers=sum(one.servers for one in known) / len(known),
            service_s=_weighted((one.requests_per_s, one.service_s) for one in known),
            own_s=_weighted((one.ended, one.own_s) for one in known),
            queued_s=scale * sum(one.queued_s for one in known),
            inside=scale * sum(one.inside for one in known),
            over_level=over,
        )

    def _correct(self, seen: Observation, asked: _Asked) -> None:
        """Change the margin for the time since the last observation, where the number of replicas is settled."""
        step_s = 0.0 if self._seen_at is None else min(max(0.0, seen.now_s - self._seen_at), STEP_S)
        self._seen_at = seen.now_s
        settled = seen.running >= seen.target and seen.now_s - self._changed_at >= SETTLE_S
        if not settled or asked.over_level == 0.0:
            return
        if asked.over_level > 1:
            self.margin *= math.exp(step_s / RAISE_S)
        elif asked.over_level < EASY:
            self.margin *= math.exp(-step_s / LOWER_S)
        self.margin = min(max(self.margin, 1.0), MOST_MARGIN)

    def _wanted(self, seen: Observation, asked: _Asked) -> tuple[int, str]:
        """What the present work asks for, and why."""
        level = self.level
        load = self._lasting_load(seen.now_s, asked)
        budget_s = max(LEAST_BUDGET * level.slo_s, level.slo_s - asked.own_s)
        late = 1 - level.quantile
        offered = min(self.margin * load, seen.most + 1)  # the time of the search grows with it
        wanted = replicas_for(offered, asked.servers, asked.service_s, budget_s, late)
        wanted = max(wanted, math.ceil(load / level.max_utilization - 1e-9))
        reason = f"load {load:.2f} with margin {self.margin:.2f}"
        more_s = max(0.0, load - seen.running) * self._start_s
        if (asked.queued_s + more_s) / seen.running > budget_s:
            catching_up = math.ceil(load + (asked.queued_s + more_s) / level.catch_up_s)
            if catching_up > wanted:
                wanted, reason = catching_up, f"{asked.queued_s:.1f} s of work wait, load {load:.2f}"
        assert self._used_at is not None
        idle_s = seen.now_s - self._used_at
        if idle_s >= level.zero_after_s and seen.least == 0:
            return 0, f"no request for {idle_s:.0f} s"
        return wanted, reason

    def _lasting_load(self, now_s: float, asked: _Asked) -> float:
        """The mean of `trend_s`; the present load instead where it is higher by more than chance makes it."""
        if not self._loads or now_s - self._loads[-1][0] >= 1.0:
            self._loads.append((now_s, asked.load))
            self._load_sum += asked.load
        while now_s - self._loads[0][0] > self.level.trend_s:
            self._load_sum -= self._loads.popleft()[1]
        n_requests = asked.requests_per_s * WINDOW_S
        chance = min(1.0, 1 / math.sqrt(n_requests)) if n_requests > 0 else 1.0
        return max(0.0, self._load_sum / len(self._loads), asked.load * (1 - chance))

    def _lasting(self, now_s: float, wanted: int) -> int:
        """The most that was wanted within `down_after_s`."""
        while self._enough and self._enough[-1][1] <= wanted:
            self._enough.pop()
        self._enough.append((now_s, wanted))
        while now_s - self._enough[0][0] > self.level.down_after_s:
            self._enough.popleft()
        return self._enough[0][1]

    def _bounded(self, seen: Observation, wanted: int, reason: str) -> Decision:
        if not seen.replicas:  # nothing that is not known is enough
            self._lasting(seen.now_s, wanted)
        bounded = max(seen.least, min(seen.most, wanted))
        return Decision(bounded, reason if bounded == wanted else f"{reason}; allowed: {seen.least} to {seen.most}")


def _weighted(pairs: Iterable[tuple[float, float]]) -> float:
    """The mean of the second of each pair, weighted by the first; 0.0 where nothing weighs."""
    listed = list(pairs)
    weight = sum(one for one, _ in listed)
    return sum(one * value for one, value in listed) / weight if weight > 0 else 0.0


def _mean(pairs: Iterable[tuple[float, Quantiles]], quantile: float) -> float:
    """Over replicas, by the requests of each: HAProxy gives all of them the same kind of requests."""
    return _weighted((weight, found[quantile]) for weight, found in pairs if quantile in found)
