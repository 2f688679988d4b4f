"""Rates: what every engine did of every workload, and the figures that come of it."""

from dataclasses import dataclass, field
from typing import Any

from benchmarks.load.tally import Tally
from pipelines.errors import SextetError


@dataclass
class Rates:
    """`figures`: one value per repetition; `per_s`: tokens or sentences per second, by workload and engine.

    `missing` says why an engine has none; `points` hold what a load generator saw.
    """

    figures: dict[str, list[float]] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)
    per_s: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    missing: dict[tuple[str, str], str] = field(default_factory=dict)

    def figure(self, name: str, value: float) -> None:
        self.figures.setdefault(name, []).append(value)

    def keep(self, workload: str, per_s: dict[str, float]) -> None:
        """The rates of a workload's engines in one repetition."""
        for engine, rate in per_s.items():
            self.per_s.setdefault((workload, engine), []).append(rate)

    def keep_tally(self, tally: Tally, label: str) -> Tally:
        """Keep what was seen; raises SextetError where not everything was answered."""
        point = {"label": label, **tally.summary()}
        self.points.append(point)
        if point["errors"] or not tally.requests:
            raise SextetError(f"{label}: of {tally.requests} requests failed {point['errors']}")
        return tally

    def ratio(self, name: str, ours: tuple[str, str], theirs: tuple[str, str]) -> None:
        """A figure: our rate over theirs, repetition by repetition; none where one is missing."""
        pairs = zip(self.per_s.get(ours, []), self.per_s.get(theirs, []), strict=False)
        if values := [one / other for one, other in pairs]:
            self.figures[name] = values

    def entries(self) -> list[dict[str, Any]]:
        """As a report shows them, workload by workload."""
        entries = [
            {"workload": workload, "peer": engine, "inputs_per_s": rates, "missing": None, "batch_size": None}
            for (workload, engine), rates in self.per_s.items()
        ]
        entries += [
            {"workload": workload, "peer": engine, "inputs_per_s": [], "missing": reason, "batch_size": None}
            for (workload, engine), reason in self.missing.items()
        ]
        return sorted(entries, key=lambda entry: str(entry["workload"]))
