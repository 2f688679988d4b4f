"""Faults: what clients see while something of the cluster fails or changes, at 70% of its capacity.

python -m benchmarks.suites.faults                         what `make faults` does, within 30 minutes
python -m benchmarks.suites.faults --only replica_killed   the parts of these names
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import sleep

from benchmarks import Say
from benchmarks.faults.ledger import Ledger
from benchmarks.faults.overload import Flood, percentile_ms
from benchmarks.faults.readiness import Readiness
from benchmarks.faults.subject import Subject
from benchmarks.faults.traffic import HOST, Traffic
from benchmarks.figures.bars import FAULT_FIGURES
from benchmarks.load.client import request_bytes
from benchmarks.load.generator import Call, Load, measure
from benchmarks.suites.cluster import CLASSIFY, measured_cluster, shipped_user_config
from benchmarks.suites.suite import Findings, Options, Repeated, main

SHARE = 0.7  # of the capacity that the load takes
CAPACITY_CLIENTS = 32
BEFORE_S, AFTER_S = 2.0, 3.0  # of load before a fault, and after the cluster has recovered from it
OVERLOAD, OVERLOAD_DEADLINE_S, CONNECTIONS = 5, 2.0, 16_000
PATH, TEXT = f"/{CLASSIFY.name}", "The film was better than I had expected"
BODY = json.dumps({"inputs": TEXT}).encode()


@dataclass(frozen=True)
class Pace(Repeated):
    """`capacity_s` measures the capacity, `overload_s` is how long it is exceeded; `repeats` is how often a reload or a
    change of scale is made.
    """

    capacity_s: float
    overload_s: float
    repeats: int


USUAL, QUICK = Pace(1, 4.0, 60.0, 20), Pace(1, 2.0, 12.0, 2)


@dataclass
class Bench:
    """What every part needs: the cluster, its load, and where figures go."""

    subject: Subject
    capacity_per_s: float
    pace: Pace
    findings: Findings
    say: Say

    @contextmanager
    def loaded(self, name: str) -> Iterator[Traffic]:
        """Load before, during and after a fault that is made in the block; note how long `/ready` was wrong."""
        traffic = Traffic(self.subject.port, PATH, TEXT, SHARE * self.capacity_per_s)
        with Readiness(self.subject.port) as readiness, traffic:
            sleep(BEFORE_S)
            traffic.strike()
            yield traffic
            self.subject.settle(PATH, BODY)
            sleep(AFTER_S)
        ledger = traffic.ledger
        false_s = readiness.false_s(ledger)
        self.findings.raw.append({"measurement": name, **ledger.summary(), "ready_false_s": false_s})
        self.findings.figures.setdefault("ready_false_s", []).append(false_s)
        self.say(f"{name}: {_words(ledger)}, /ready wrong for {false_s:.1f} s")


def _words(ledger: Ledger) -> str:
    return f"{len(ledger.entries)} sent, {len(ledger.lost)} lost, longest gap {ledger.gap_s:.2f} s"


def replica_killed(bench: Bench) -> None:
    """The only replica of a task, then one of two."""
    with bench.loaded("one replica killed") as alone:
        bench.subject.kill(bench.subject.replicas(CLASSIFY.name))
    bench.subject.scale(CLASSIFY.name, 2)
    with bench.loaded("one of two replicas killed") as beside:
        bench.subject.kill(bench.subject.replicas(CLASSIFY.name)[:1])
    bench.subject.scale(CLASSIFY.name, 1)
    bench.findings.note(
        lost_replica_killed=len(alone.ledger.lost) + len(beside.ledger.lost),
        gap_replica_killed_s=alone.ledger.gap_s,
        gap_replica_of_two_killed_s=beside.ledger.gap_s,
    )


def overload(bench: Bench) -> None:
    """Five times what the cluster can answer, by clients that wait for two seconds."""
    rate_per_s = OVERLOAD * bench.capacity_per_s
    flood = Flood(bench.subject.port, PATH, BODY, rate_per_s, bench.pace.overload_s, OVERLOAD_DEADLINE_S, CONNECTIONS)
    flooded = flood.send()
    in_time_per_s = flooded.in_time(flood.deadline_s) / flood.duration_s
    bench.findings.raw.append({"measurement": "overload", "rate_per_s": rate_per_s, **flooded.summary()})
    bench.findings.note(
        overload5_goodput=in_time_per_s / bench.capacity_per_s,
        overload5_refusal_p99_ms=percentile_ms(flooded.refused_s, 99),
        overload_recovery_s=flooded.recovery_s,
    )
    bench.say(f"overload: {in_time_per_s:.0f} of {bench.capacity_per_s:.0f}/s answered in time, {flooded.summary()}")


PARTS: dict[str, Callable[[Bench], None]] = {"replica_killed": replica_killed, "overload": overload}


def run(options: Options, say: Say) -> Findings:
    pace = options.pace(USUAL, QUICK)
    parts = options.chosen(PARTS)
    findings = Findings()
    model = Path(shipped_user_config(CLASSIFY)["model"])
    configuration = measured_cluster({CLASSIFY.name: model}, noop=True, gateway=True)
    with tempfile.TemporaryDirectory() as folder, Subject.serving(configuration, Path(folder)) as subject:
        capacity_per_s = _capacity(findings, subject.port, pace)
        say(f"capacity {capacity_per_s:.0f} requests/s; {SHARE:.0%} of it is the load")
        bench = Bench(subject, capacity_per_s, pace, findings, say)
        for name in parts:
            PARTS[name](bench)
    findings.load = {"path": PATH, "text": TEXT, "capacity_per_s": capacity_per_s, "share_of_capacity": SHARE}
    return findings


def _capacity(findings: Findings, port: int, pace: Pace) -> float:
    """Requests per second of a closed loop."""
    call = Call(request_bytes(HOST, PATH, BODY))
    load = Load(HOST, port, [call], pace.capacity_s, warm_up_s=1.0, concurrency=CAPACITY_CLIENTS)
    rate: float = findings.keep_tally(measure(load), "capacity").summary()["requests_per_s"]
    return rate


if __name__ == "__main__":
    description = "What clients see while something of the cluster fails or changes."
    main("faults", description, run, FAULT_FIGURES, parts=list(PARTS))
