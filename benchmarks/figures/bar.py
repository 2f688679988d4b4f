"""Bar: the number that a figure is held to, and whether a result meets it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Result = Mapping[str, Any]
"""A result file, decoded."""


@dataclass(frozen=True)
class Bar:
    """At least, at most, or exactly a number."""

    relation: str  # ">=", "<=" or "="
    number: float

    def __str__(self) -> str:
        return f"{self.relation} {self.number:g}"

    def met(self, value: float) -> bool:
        if self.relation == ">=":
            return value >= self.number
        return value <= self.number if self.relation == "<=" else value == self.number


@dataclass(frozen=True)
class Figure:
    """`what` is measured, in one line. `reason` says from a result what a missed bar comes from."""

    what: str = ""
    bar: Bar | None = None
    reason: Callable[[Result], str] | None = None

    def verdict(self, result: Result, values: Sequence[float]) -> str:
        """Whether the median meets the bar, by how much, and for a missed one why; empty without a bar."""
        if self.bar is None:
            return ""
        value, number = median(values), self.bar.number
        margin = f" by {_difference(value / number)}" if number and value != number else ""
        if self.bar.met(value):
            return f"met{margin}"
        found = self.reason(result) if self.reason else ""
        reasons = [found or f"from {shown(min(values))} to {shown(max(values))}"]
        if met := sum(map(self.bar.met, values)):
            reasons.append(f"{met} of {len(values)} repetitions meet it")
        return f"**missed**{margin}: {'; '.join(reasons)}"


def shown(value: float) -> str:
    """A number with three digits, or all of those before the decimal point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _difference(ratio: float) -> str:
    """How far a ratio is from 1: as a percentage, or as a factor where that is easier to read."""
    return f"{abs(ratio - 1):.0%}" if ratio < 2 else f"a factor of {shown(ratio)}"


def at_least(number: float) -> Bar:
    return Bar(">=", number)


def at_most(number: float) -> Bar:
    return Bar("<=", number)


def exactly(number: float) -> Bar:
    return Bar("=", number)
