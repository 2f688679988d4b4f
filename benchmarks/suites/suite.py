"""Suite: the frame of a benchmark that measures many figures in one run: options, findings, result file, report."""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, TypeVar

from benchmarks import Say
from benchmarks.figures.bar import Figure
from benchmarks.figures.front import write_front
from benchmarks.figures.report import write_report
from benchmarks.figures.result import IN_SOURCE_TREE, Result, default_path
from benchmarks.load.tally import Tally
from benchmarks.peers.peer import PeerError
from benchmarks.scenarios import bottlenecks
from pipelines.errors import SextetError


@dataclass(frozen=True)
class Repeated:
    """How often each measurement is made. The pace of a suite adds durations."""

    repetitions: int


PaceT = TypeVar("PaceT", bound=Repeated)
SEXTET = "Sextet"


@dataclass(frozen=True)
class Options:
    """`quick`: short windows. `peers`: measure other servers, too. `repetitions` None: the number of the suite.

    `only` names the parts of a suite to run; all where it is empty.
    """

    quick: bool
    peers: bool
    repetitions: int | None
    only: Sequence[str] = ()

    def chosen(self, parts: Iterable[str]) -> list[str]:
        """Those of `parts` that are asked for, in their order."""
        return [part for part in parts if not self.only or part in self.only]

    def pace(self, usual: PaceT, quick: PaceT) -> PaceT:
        """The pace that the options ask for."""
        chosen = quick if self.quick else usual
        return chosen if self.repetitions is None else replace(chosen, repetitions=self.repetitions)


@dataclass
class Findings:
    """What a run found, in the terms of `Result`: what was sent, one value per repetition of each figure, and more.

    `points` hold what a load generator saw, `raw` single measurements, `peers` the rates of every server.
    """

    load: Mapping[str, Any] = field(default_factory=dict)
    figures: dict[str, list[float]] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)
    raw: list[dict[str, Any]] = field(default_factory=list)
    peers: list[dict[str, Any]] = field(default_factory=list)

    def note(self, **figures: float) -> None:
        """One more repetition of each of these figures."""
        for name, value in figures.items():
            self.figures.setdefault(name, []).append(value)

    def keep_tally(self, tally: Tally, label: str) -> Tally:
        """Keep what a load generator saw."""
        self.points.append({"label": label, **tally.summary()})
        return tally

    def complete(self, name: str) -> None:
        """Add from the result file NAME.json what this run did not measure."""
        if not default_path(name).exists():
            return
        earlier = Result.read(default_path(name))
        self.figures = {**earlier.figures, **self.figures}
        labels = {point["label"] for point in self.points}
        self.points = [*(one for one in earlier.points if one["label"] not in labels), *self.points]
        measured = {one["measurement"] for one in self.raw}
        self.raw = [*(one for one in earlier.raw if one["measurement"] not in measured), *self.raw]
        workloads = {one["workload"] for one in self.peers}
        self.peers = [*(one for one in earlier.peers if one["workload"] not in workloads), *self.peers]


@dataclass
class Rates(Findings):
    """Also `per_s`: tokens or sentences per second, by workload and engine; `missing` says why an engine has none."""

    per_s: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    missing: dict[tuple[str, str], str] = field(default_factory=dict)

    def keep(self, workload: str, per_s: dict[str, float]) -> None:
        """The rates of a workload's engines in one repetition."""
        for engine, rate in per_s.items():
            self.per_s.setdefault((workload, engine), []).append(rate)

    def keep_tally(self, tally: Tally, label: str) -> Tally:
        """`keep_tally` that raises SextetError where not everything was answered."""
        super().keep_tally(tally, label)
        errors = self.points[-1]["errors"]
        if errors or not tally.requests:
            raise SextetError(f"{label}: of {tally.requests} requests failed {errors}")
        return tally

    def ratio(self, name: str, ours: tuple[str, str], theirs: tuple[str, str]) -> None:
        """A figure: our rate over theirs, repetition by repetition; none where one is missing."""
        pairs = zip(self.per_s.get(ours, []), self.per_s.get(theirs, []), strict=False)
        if values := [one / other for one, other in pairs]:
            self.figures[name] = values

    def over_best(self, workload: str, peers: Sequence[str]) -> list[float]:
        """Our rate over that of the best of `peers`, by its median, repetition by repetition.

        None where one of them has no rate: what is missing may be the best. None either where the best has the rate 0.
        """
        rates = [self.per_s.get((workload, peer), []) for peer in peers if (workload, peer) not in self.missing]
        if len(rates) < len(peers) or not all(rates):
            return []
        best = max(rates, key=median)
        if not all(best):
            return []
        return [one / other for one, other in zip(self.per_s.get((workload, SEXTET), []), best, strict=False)]

    def compare(self, name: str, values: list[float]) -> None:
        """A figure, where it has values."""
        if values:
            self.figures[name] = values

    def complete(self, name: str) -> None:
        """Also the rates that figures are made of."""
        super().complete(name)
        measured = {workload for workload, _ in (*self.per_s, *self.missing)}
        for one in self.peers:
            if one["workload"] in measured:
                continue
            if one["missing"]:
                self.missing[one["workload"], one["peer"]] = one["missing"]
            else:
                self.per_s[one["workload"], one["peer"]] = one["inputs_per_s"]

    def entries(self) -> list[dict[str, Any]]:
        """The entries of `Result.peers`, workload by workload."""
        entries = [
            {"workload": workload, "peer": engine, "inputs_per_s": rates, "missing": None, "batch_size": None}
            for (workload, engine), rates in self.per_s.items()
        ]
        entries += [
            {"workload": workload, "peer": engine, "inputs_per_s": [], "missing": reason, "batch_size": None}
            for (workload, engine), reason in self.missing.items()
        ]
        return sorted(entries, key=lambda entry: str(entry["workload"]))


def main(
    name: str,
    description: str,
    run: Callable[[Options, Say], Findings],
    expected: Mapping[str, Figure],
    parts: Sequence[str] = (),
    target: str = "",
) -> None:
    """Measure with `run(options, say)`; write benchmarks/results/NAME.json and the report.

    The last line of JSON names those of the `expected` figures that were not measured as "missing", and the exit status
    is then 1. Nothing is written of a quick run, and of one without peers. A run of some of the `parts` keeps the
    figures of the others in the result file. `target` of make runs the suite; bench-NAME unless given.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="short windows: whether it works; nothing is written")
    parser.add_argument("--no-peers", action="store_true", help="leave out other servers; nothing is written")
    parser.add_argument("--repetitions", type=int, help="how often each measurement is made")
    if parts:
        parser.add_argument("--only", action="append", choices=parts, default=[], help="run this part; may be repeated")
    args = parser.parse_args()
    only: list[str] = args.only if parts else []
    if args.repetitions is not None and args.repetitions < 1:
        parser.error(f"--repetitions is {args.repetitions}; allowed: 1 and above")
    if not IN_SOURCE_TREE:
        sys.exit(f"{name}: needs the source tree, whose cluster.yaml it serves; an installation has `sextet bench`")
    try:
        findings = run(Options(args.quick, not args.no_peers, args.repetitions, only), say)
    except PeerError as error:
        sys.exit(
            f"{name}: {error}; not measured: {', '.join(expected)}; --no-peers measures what needs no other server"
        )
    except SextetError as error:
        sys.exit(f"{name}: {error}")
    given, usual = sys.argv[1:], f"make {target or f'bench-{name}'}"
    if not args.quick and only:
        findings.complete(name)
    result = Result(
        name=name,
        scenario=name,
        command=shlex.join(["python", "-m", f"benchmarks.suites.{name}", *given]) if given else usual,
        load=findings.load,
        figures=findings.figures,
        points=findings.points,
        raw=findings.raw,
        peers=findings.peers,
        warnings=bottlenecks(findings.points),
        missing=[figure for figure in expected if figure not in findings.figures],
    )
    if not args.quick and not args.no_peers:
        result.write(default_path(name))
        write_report()
        write_front()
    print(json.dumps(result.headline()))
    if result.missing:
        sys.exit(f"{name}: not measured: {', '.join(result.missing)}; {absent(findings.peers)}")


def absent(peers: Sequence[Mapping[str, Any]]) -> str:
    """Why peers have no rate, in one line."""
    reasons = {peer["peer"]: peer["missing"] for peer in peers if peer["missing"]}
    return "; ".join(f"{peer}: {reason}" for peer, reason in reasons.items()) or "peers were left out"


def say(line: str) -> None:
    """Write progress to stderr; stdout has only the last line."""
    print(line, file=sys.stderr, flush=True)
