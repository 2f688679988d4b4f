"""Suite: the frame of a benchmark that measures many figures in one run: options, result file, report, last line."""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from benchmarks.figures.report import write_report
from benchmarks.figures.result import Result, default_path
from benchmarks.scenarios import bottlenecks
from pipelines.errors import SextetError

Say = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """What a run found, in the terms of `Result`."""

    load: Mapping[str, Any]
    figures: Mapping[str, list[float]]
    points: list[dict[str, Any]]
    peers: list[dict[str, Any]]
    raw: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Repeated:
    """How often each measurement is made; what a suite's own pace adds is how long."""

    repetitions: int


PaceT = TypeVar("PaceT", bound=Repeated)


@dataclass(frozen=True)
class Options:
    """`quick`: short windows. `peers`: measure what it is compared with. `repetitions` None: as many as usual."""

    quick: bool
    peers: bool
    repetitions: int | None

    def pace(self, usual: PaceT, quick: PaceT) -> PaceT:
        """The one that was asked for."""
        chosen = quick if self.quick else usual
        return chosen if self.repetitions is None else replace(chosen, repetitions=self.repetitions)


def main(name: str, description: str, run: Callable[[Options, Say], Measured]) -> None:
    """Measure with `run(options, say)`; write benchmarks/results/NAME.json and the report unless quick."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="short windows: whether it works; nothing is written")
    parser.add_argument("--no-peers", action="store_true", help="leave out what it is compared with")
    parser.add_argument("--repetitions", type=int, help="how often each measurement is made")
    args = parser.parse_args()
    if args.repetitions is not None and args.repetitions < 1:
        parser.error(f"--repetitions is {args.repetitions}; allowed: 1 and above")
    try:
        measured = run(Options(args.quick, not args.no_peers, args.repetitions), say)
    except SextetError as error:
        sys.exit(f"{name}: {error}")
    given = sys.argv[1:]
    result = Result(
        name=name,
        scenario=name,
        command=shlex.join(["python", "-m", f"benchmarks.suites.{name}", *given]) if given else f"make bench-{name}",
        load=measured.load,
        figures=measured.figures,
        points=measured.points,
        raw=measured.raw,
        peers=measured.peers,
        warnings=bottlenecks(measured.points),
    )
    if not args.quick:
        result.write(default_path(name))
        write_report()
    print(json.dumps(result.headline()))


def say(line: str) -> None:
    """Progress, where it does not mix with the last line."""
    print(line, file=sys.stderr, flush=True)
