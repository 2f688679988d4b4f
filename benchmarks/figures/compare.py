"""Compare: which figures of two results differ by more than the noise of their repetitions.

Welch's t-test at 95%: the difference of two means against the spread of both groups of repetitions. With fewer than
two repetitions on a side there is no spread, and no verdict.
"""

import math
from dataclasses import dataclass
from statistics import mean, variance

from benchmarks.figures.result import Result

# Two-sided 95% quantiles of Student's t distribution for 1, 2, ... degrees of freedom; the normal one above.
_T95 = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120)
_NORMAL95 = 1.960


@dataclass(frozen=True)
class Difference:
    """One figure in both results. `beyond_noise` None where there are too few repetitions to tell."""

    figure: str
    before: float
    after: float
    beyond_noise: bool | None

    @property
    def change(self) -> float:
        """After over before, minus one; NaN from zero."""
        return self.after / self.before - 1 if self.before else math.nan

    def __str__(self) -> str:
        verdict = {True: "differs", False: "within noise", None: "unknown: too few repetitions"}[self.beyond_noise]
        return f"{self.figure}: {self.before:.4g} -> {self.after:.4g} ({self.change:+.1%}), {verdict}"


def compare(before: Result, after: Result) -> list[Difference]:
    """The figures that both results have, in the order of the first."""
    return [
        Difference(name, mean(values), mean(after.figures[name]), _beyond_noise(values, after.figures[name]))
        for name, values in before.figures.items()
        if name in after.figures
    ]


def cautions(before: Result, after: Result) -> list[str]:
    """What differs besides the figures and may be their reason."""
    differing = [
        f"{name}: {before.machine.get(name)} | {after.machine.get(name)}"
        for name in before.machine
        if name not in ("commit", "load_average") and before.machine[name] != after.machine.get(name)
    ]
    differing += [
        f"load, {name}: {before.load[name]} | {after.load.get(name)}"
        for name in before.load
        if before.load[name] != after.load.get(name)
    ]
    return differing


def _beyond_noise(before: list[float], after: list[float]) -> bool | None:
    if len(before) < 2 or len(after) < 2:
        return None
    errors = variance(before) / len(before), variance(after) / len(after)
    difference = abs(mean(after) - mean(before))
    if not sum(errors):
        return difference > 0
    freedom = sum(errors) ** 2 / (errors[0] ** 2 / (len(before) - 1) + errors[1] ** 2 / (len(after) - 1))
    quantile = _T95[int(freedom) - 1] if freedom < len(_T95) + 1 else _NORMAL95
    return difference > quantile * math.sqrt(sum(errors))
