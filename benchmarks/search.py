"""Search: the highest rate at which a server meets its objective."""

from collections.abc import Callable
from dataclasses import dataclass

FIRST = 0.75  # of the upper bound: the first rate to try
GIVE_UP = 1 / 256  # of the upper bound: the lowest rate to try


@dataclass(frozen=True)
class Trial:
    """One rate that was tried, and whether the objective was met."""

    rate_per_s: float
    met: bool


def highest_rate(
    attempt: Callable[[float], Trial], upper_per_s: float, resolution: float = 0.03
) -> tuple[float, list[Trial]]:
    """Bisect (0, upper_per_s] until the answer is known within `resolution`; 0.0 where no rate meets the objective.

    A rate counts as missed only after two trials, because other processes on the machine raise a p99, too.
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
