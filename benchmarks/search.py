"""Search: the highest rate at which a server still meets its objective."""

from collections.abc import Callable
from dataclasses import dataclass

FIRST = 0.75  # of the upper bound: where servers usually are
GIVE_UP = 1 / 256  # of the upper bound: a server that fails there meets the objective at no rate


@dataclass(frozen=True)
class Trial:
    """One rate that was tried, and whether the objective was met."""

    rate_per_s: float
    met: bool


def highest_rate(
    attempt: Callable[[float], Trial], upper_per_s: float, resolution: float = 0.03
) -> tuple[float, list[Trial]]:
    """Bisect (0, upper_per_s] until the answer is known within `resolution`; 0.0 where no rate meets the objective.

    A rate is given up only when it missed the objective twice: whatever else runs on the machine makes a p99, too.
    """
    met, missed = 0.0, upper_per_s
    trials: list[Trial] = []
    rate = FIRST * upper_per_s
    while rate > GIVE_UP * upper_per_s and missed - met > resolution * missed:
        trial = attempt(rate)
        trials.append(trial)
        if not trial.met:
            trial = attempt(rate)
            trials.append(trial)
        met, missed = (rate, missed) if trial.met else (met, rate)
        rate = (met + missed) / 2
    return met, trials
