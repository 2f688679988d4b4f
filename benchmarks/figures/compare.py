"""Compare: which figures of two results differ by more than the noise of their repetitions.

Welch's t-test at 95% compares the difference of two means with the spread of both groups of repetitions. With fewer
than two repetitions on a side there is no spread, and no verdict.
"""

import math
from dataclasses import dataclass
from statistics import mean, variance

from scipy.stats import ttest_ind

from benchmarks.figures.result import Result

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Difference:
    """One figure of both results. `beyond_noise` is None where there are too few repetitions to tell."""

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
    """Differences of machine and load, which may be the reason for those of the figures."""
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
    if not variance(before) and not variance(after):  # the test divides by the spread
        return mean(before) != mean(after)
    return bool(ttest_ind(before, after, equal_var=False).pvalue < SIGNIFICANCE)
