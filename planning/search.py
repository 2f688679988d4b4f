"""Search: plays policies on kinds of machines, and finds the fixed number of replicas that holds a level."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipelines.errors import ConfigurationError
from planning.deciding.policy import FixedReplicas, Policy
from planning.machines import Kind
from planning.simulated.simulation import Played, Setting, play
from planning.traces.trace import Trace

Say = Callable[[str], None]


@dataclass(frozen=True)
class Level:
    """The share `quantile` of requests is answered within `slo_s`."""

    slo_s: float
    quantile: float


@dataclass(frozen=True)
class Plan:
    """A policy on a kind of machine, played."""

    kind: Kind
    played: Played
    level: Level

    @property
    def holds(self) -> bool:
        return self.played.within(self.level.slo_s) >= self.level.quantile

    @property
    def price(self) -> float | None:
        """Of the whole trace; None where the kind has none."""
        hourly = self.kind.price_per_hour
        return None if hourly is None else hourly * self.played.machine_s / 3600

    @property
    def cost(self) -> float:
        """What plans are compared by: the price, or seconds of machines where one lacks a price."""
        return self.played.machine_s if self.price is None else self.price


def best(plans: Sequence[Plan]) -> Plan | None:
    """The cheapest that holds the level; of equal ones, that with the fewest seconds of replicas."""
    holding = [one for one in plans if one.holds]
    if len({one.price is None for one in holding}) > 1:  # prices beside none: compare what all have
        return min(holding, key=lambda one: (one.played.machine_s, one.played.replica_s))
    return min(holding, key=lambda one: (one.cost, one.played.replica_s), default=None)


def fewest(trace: Trace, setting: Setting, level: Level, most: int, say: Say) -> Policy:
    """The fixed number of replicas that holds the level; raises ConfigurationError where `most` do not."""
    hopeless = replace(setting, hopeless=(level.slo_s, level.quantile))

    def holds(count: int) -> bool:
        played = play(trace, FixedReplicas(count), hopeless)
        found = not played.was_hopeless and played.within(level.slo_s) >= level.quantile
        say(f"{count:,} replicas: {'enough' if found else 'too few'} ({played.took_s:.1f} s)")
        return found

    load = _least_load(trace, setting, level)
    low = max(1, math.floor(load * level.quantile))
    if low > most:
        raise ConfigurationError(f"the work takes at least {low:,} replicas; allowed by --most-replicas: {most:,}")
    high = low
    while not holds(high):
        if high >= most:
            raise ConfigurationError(f"{most:,} replicas do not hold the level; raise --most-replicas")
        low, high = high + 1, min(most, max(high + 1, math.ceil(1.3 * high)))
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return FixedReplicas(high)


def _least_load(trace: Trace, setting: Setting, level: Level) -> float:
    """Replicas that the work keeps busy all the time; raises ConfigurationError for a level that no number holds."""
    model, speed = setting.model, setting.site.speed
    sizes, counts = np.unique(np.stack([trace.rows, trace.tokens, trace.written]), axis=1, return_counts=True)
    work_s, late = 0.0, 0
    for size, count in zip(sizes.T.tolist(), counts.tolist(), strict=True):
        work_s += count * model.seconds(*size)
        late += count * (model.alone_s(*size) / speed + setting.overhead_s > level.slo_s)
    if late > (1 - level.quantile) * len(trace):
        raise ConfigurationError(
            f"{late / len(trace):.1%} of the requests take longer than {1000 * level.slo_s:g} ms in a replica that has "
            f"nothing else to do; allowed: at most {1 - level.quantile:.1%}"
        )
    return work_s / speed / trace.duration_s
