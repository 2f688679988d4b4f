"""Faults: what clients see while something of the cluster fails or changes, at 70% of its capacity.

python -m benchmarks.suites.faults                         what `make faults` does, within 30 minutes
python -m benchmarks.suites.faults --only replica_killed   the parts of these names
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from time import sleep
from typing import Any

from benchmarks import Say
from benchmarks.faults.fuzz import RAW, bodies_of, described, filling, fuzz, mutated
from benchmarks.faults.ledger import Ledger
from benchmarks.faults.overload import Flood, percentile_ms
from benchmarks.faults.readiness import Readiness
from benchmarks.faults.streams import Streams, tokens_within
from benchmarks.faults.subject import CONTROLLER, INGRESS, Subject
from benchmarks.faults.traffic import HOST, Traffic
from benchmarks.figures.bars import FAULT_FIGURES
from benchmarks.load.asker import Asker
from benchmarks.load.client import request_bytes
from benchmarks.load.generator import Call, Load, measure
from benchmarks.suites.cluster import (
    CLASSIFY,
    NOOP,
    SHIPPED,
    WRITE,
    measured_cluster,
    running,
    shipped_user_config,
)
from benchmarks.suites.suite import Findings, Options, Repeated, main
from deployments.config import cut_down, located, user_configs
from deployments.ingress.config import GATEWAY
from deployments.ingress.keys import Key, add, new_key
from deployments.rest import QUIET_S

KEYS = "keys"
GUARD_TURNS = 3
FUZZ_TOKENS = 256
FILLED_S = 120.0  # until all KV cache slots are full
REST_S = 3 * QUIET_S  # replicas then have given back what their peaks took
SHARE = 0.7  # of the capacity that the load takes
CAPACITY_CLIENTS = 32
BEFORE_S, AFTER_S = 2.0, 3.0  # of load before a fault, and after the cluster has recovered from it
STREAMS = 16
TRIALS, MAX_STREAM_TOKENS = (200, 800), 4000  # tokens of streams by which the pace is measured; of one that fits a slot
OVERLOAD, OVERLOAD_DEADLINE_S, CONNECTIONS = 5, 2.0, 16_000
PATH, TEXT = f"/{CLASSIFY.name}", "The film was better than I had expected"
BODY = json.dumps({"inputs": TEXT}).encode()


@dataclass(frozen=True)
class Pace(Repeated):
    """`capacity_s` measures the capacity, `overload_s` is how long it is exceeded; `repeats` is how often a reload or a
    change of scale is made; `controller_s` is how long the cluster is watched after what serves no requests was killed.
    `stream_s` is how long a stream lasts. Of the `fuzz_requests` schemathesis draws `fuzz_described`; these and
    `fuzz_warm_up` more go before memory is measured.
    """

    capacity_s: float
    overload_s: float
    repeats: int
    controller_s: float
    stream_s: float
    fuzz_requests: int
    fuzz_described: int
    fuzz_warm_up: int


USUAL, QUICK = (
    Pace(
        repetitions=1,
        capacity_s=4.0,
        overload_s=60.0,
        repeats=20,
        controller_s=10.0,
        stream_s=180.0,
        fuzz_requests=100_000,
        fuzz_described=2000,
        fuzz_warm_up=5000,
    ),
    Pace(
        repetitions=1,
        capacity_s=2.0,
        overload_s=12.0,
        repeats=2,
        controller_s=5.0,
        stream_s=20.0,
        fuzz_requests=3000,
        fuzz_described=200,
        fuzz_warm_up=500,
    ),
)


class FaultFindings(Findings):
    """Of `/ready` the worst fault counts, of this run or of an earlier one that this run completes."""

    def complete(self, name: str) -> None:
        super().complete(name)
        self.find_worst()

    def find_worst(self) -> None:
        wrong = [one["ready_wrong_from_until"] for one in self.raw if "ready_wrong_from_until" in one]
        if wrong:
            self.figures["ready_false_s"] = [max(map(longest_s, wrong))]


def longest_s(spans: Iterable[Sequence[Any]]) -> float:
    """Of spans that begin with from when until when: so late is told who asks at the worst moment."""
    return max((until - since for since, until, *_ in spans), default=0.0)


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
        wrong = readiness.wrong(ledger)
        self.findings.raw.append({"measurement": name, **ledger.summary(), "ready_wrong_from_until": wrong})
        self.say(f"{name}: {_words(ledger)}, /ready wrong for {longest_s(wrong):.1f} s at once")


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


def replica_hung(bench: Bench) -> None:
    """One of two stops and ends nothing that is inside it, until Ray Serve kills it."""
    bench.subject.scale(CLASSIFY.name, 2)
    with bench.loaded("one of two replicas hangs") as traffic:
        bench.subject.hang(bench.subject.replicas(CLASSIFY.name)[:1])
    bench.subject.scale(CLASSIFY.name, 1)
    bench.findings.note(lost_replica_hung=len(traffic.ledger.lost), gap_replica_hung_s=traffic.ledger.gap_s)


def overload(bench: Bench) -> None:
    """Five times what the cluster can answer, by clients that wait for two seconds.

    The capacity is the mean of those measured just before and just after.
    """
    bench.capacity_per_s = capacity(bench.findings, bench.subject.port, bench.pace)
    rate_per_s = OVERLOAD * bench.capacity_per_s
    flood = Flood(bench.subject.port, PATH, BODY, rate_per_s, bench.pace.overload_s, OVERLOAD_DEADLINE_S, CONNECTIONS)
    flooded = flood.send()
    in_time_per_s = flooded.in_time(flood.deadline_s) / flood.duration_s
    bench.findings.raw.append({"measurement": "overload", "rate_per_s": rate_per_s, **flooded.summary()})
    capacity_per_s = (bench.capacity_per_s + capacity(bench.findings, bench.subject.port, bench.pace)) / 2
    bench.findings.note(
        overload5_goodput=in_time_per_s / capacity_per_s,
        overload5_refusal_p99_ms=percentile_ms(flooded.refused_s, 99),
        overload_recovery_s=flooded.recovery_s,
    )
    bench.say(f"overload: {in_time_per_s:.0f} of {capacity_per_s:.0f}/s answered in time, {flooded.summary()}")


def haproxy_reload(bench: Bench) -> None:
    """Reloads by the scaling of another application."""
    with bench.loaded("haproxy reloaded") as traffic:
        for number in range(bench.pace.repeats):
            bench.subject.scale(NOOP, 2 - number % 2)
    bench.subject.scale(NOOP, 1)
    bench.findings.note(lost_haproxy_reload_20x=len(traffic.ledger.lost))


def haproxy_killed(bench: Bench) -> None:
    with bench.loaded("haproxy killed") as traffic:
        bench.subject.kill(bench.subject.processes(INGRESS))
    ledger = traffic.ledger
    bench.findings.note(lost_haproxy_killed=len(ledger.lost_besides_outage), gap_haproxy_killed_s=ledger.gap_s)


def controller_killed(bench: Bench) -> None:
    with bench.loaded("controller killed") as traffic:
        bench.subject.kill(bench.subject.processes(CONTROLLER))
        sleep(bench.pace.controller_s)
    bench.findings.note(gap_controller_killed_s=traffic.ledger.gap_s)


def gateway_killed(bench: Bench) -> None:
    """One of its replicas: nobody but probes asks it."""
    with bench.loaded("gateway killed"):
        bench.subject.kill(bench.subject.replicas(GATEWAY)[:1])
        sleep(bench.pace.controller_s)


def new_model(bench: Bench) -> None:
    """Another folder with the same model, loaded beside the old one."""
    with bench.loaded("new model") as traffic, tempfile.TemporaryDirectory() as folder:
        model = Path(shipped_user_config(CLASSIFY)["model"])
        other = Path(shutil.copytree(model, Path(folder) / model.name))
        bench.subject.change(CLASSIFY.name, lambda deployment: deployment["user_config"].update(model=str(other)))
        bench.subject.change(CLASSIFY.name, lambda deployment: deployment["user_config"].update(model=str(model)))
    bench.findings.note(gap_new_model_s=traffic.ledger.gap_s)


def rolling_update(bench: Bench) -> None:
    """A change that replaces the replica."""
    with bench.loaded("rolling update") as traffic:
        bench.subject.replace(CLASSIFY.name)
    bench.findings.note(lost_rolling_update=len(traffic.ledger.lost))


def scale(bench: Bench) -> None:
    with bench.loaded("scaled 1-4-1") as traffic:
        for _ in range(bench.pace.repeats):
            bench.subject.scale(CLASSIFY.name, 4)
            bench.subject.scale(CLASSIFY.name, 1)
    bench.findings.note(lost_scale_1_4_1_20x=len(traffic.ledger.lost))


PARTS: dict[str, Callable[[Bench], None]] = {
    "replica_killed": replica_killed,
    "replica_hung": replica_hung,
    "haproxy_reload": haproxy_reload,
    "haproxy_killed": haproxy_killed,
    "controller_killed": controller_killed,
    "gateway_killed": gateway_killed,
    "new_model": new_model,
    "rolling_update": rolling_update,
    "scale": scale,
    "overload": overload,
}
LONG_STREAM, FUZZ, GUARD = "long_stream", "fuzz", "guard"
ALL = (*PARTS, LONG_STREAM, FUZZ, GUARD)


def run(options: Options, say: Say) -> Findings:
    pace, findings = options.pace(USUAL, QUICK), FaultFindings()
    parts = options.chosen(ALL)
    if chosen := [part for part in parts if part in PARTS]:
        _run_short(chosen, findings, pace, say)
    if LONG_STREAM in parts:
        _run_long(findings, pace, say)
    if FUZZ in parts:
        _run_fuzz(findings, pace, say)
    if GUARD in parts:
        _run_guard(findings, pace, say)
    findings.find_worst()
    return findings


def _run_short(parts: Sequence[str], findings: Findings, pace: Pace, say: Say) -> None:
    """The faults under a load of short requests."""
    model = Path(shipped_user_config(CLASSIFY)["model"])
    configuration = measured_cluster({CLASSIFY.name: model}, noop=True, gateway=True)
    with tempfile.TemporaryDirectory() as folder, Subject.serving(configuration, Path(folder)) as subject:
        capacity_per_s = capacity(findings, subject.port, pace)
        say(f"capacity {capacity_per_s:.0f} requests/s; {SHARE:.0%} of it is the load")
        bench = Bench(subject, capacity_per_s, pace, findings, say)
        for name in parts:
            PARTS[name](bench)
    findings.load = {"path": PATH, "text": TEXT, "capacity_per_s": capacity_per_s, "share_of_capacity": SHARE}


def _run_long(findings: Findings, pace: Pace, say: Say) -> None:
    """Streams through a change of configuration, a downscale, a rolling update and the end of the cluster."""
    model = Path(shipped_user_config(WRITE)["model"])
    configuration = measured_cluster({WRITE.name: model}, gateway=True)
    path = f"/{WRITE.name}"
    with tempfile.TemporaryDirectory() as folder, Subject.serving(configuration, Path(folder)) as subject:
        subject.scale(WRITE.name, 2)
        lasted_s = []
        for tokens in TRIALS:
            with Streams(subject.port, path, STREAMS, tokens) as trial:
                pass
            lasted_s.append(max(stream.lasted_s for stream in trial.all))
        tokens = min(tokens_within(pace.stream_s, TRIALS, lasted_s), MAX_STREAM_TOKENS)
        say(f"{STREAMS} streams of {tokens} tokens, for {pace.stream_s:.0f} s")
        with Streams(subject.port, path, STREAMS, tokens) as first:
            sleep(BEFORE_S)
            subject.change(WRITE.name, lambda deployment: deployment["user_config"].update(limits={"max_inputs": 8}))
            subject.change(WRITE.name, lambda deployment: deployment.update(num_replicas=1))
            say(f"{WRITE.name} is scaled down, its configuration changed")
        say(f"then: {first.summary()}")
        with Streams(subject.port, path, STREAMS, tokens) as second:
            sleep(BEFORE_S)
            subject.replace(WRITE.name)
            sleep(BEFORE_S)
            subject.stop()
            say(f"{WRITE.name} is replaced, and the cluster told to end")
        say(f"then: {second.summary()}")
    cut = len(first.cut) + len(second.cut)
    findings.raw += [
        {"measurement": "streams through a change and a downscale", **first.summary()},
        {"measurement": "streams through a rolling update and SIGTERM", **second.summary()},
    ]
    findings.note(long_stream_cut=cut)
    say(f"long streams: {cut} of {2 * STREAMS} cut")


def _run_fuzz(findings: Findings, pace: Pace, say: Say) -> None:
    """Hostile requests to every task of the shipped configuration."""
    shipped = user_configs(located(SHIPPED))
    configuration = measured_cluster({name: Path(one["model"]) for name, one in shipped.items()}, gateway=True)
    for user_config in user_configs(configuration).values():
        if "slots" in user_config:  # else their KV caches would go on growing with the longest sequence so far
            user_config["slots"] = {**user_config["slots"], "max_tokens": FUZZ_TOKENS}
    with tempfile.TemporaryDirectory() as folder, Subject.serving(configuration, Path(folder)) as subject:
        asker = Asker(subject.port, FILLED_S)
        for task, user_config in user_configs(configuration).items():
            if "slots" in user_config:
                asker.ask(f"/{task}", filling(user_config, TEXT, FUZZ_TOKENS))
        document = json.loads(asker.get("/openapi.json"))
        examples = bodies_of(document)
        drawn = list(described(document, pace.fuzz_described))
        below = [raw.replace(b"PATH", path.encode()) for path in examples for raw in RAW]
        # Allocators and caches fill: some requests of each kind.
        warm_up = fuzz(subject.port, chain(drawn, mutated(document, examples, pace.fuzz_warm_up, seed=1)), below)
        sleep(REST_S)
        before_mib = subject.resident_mib()
        requests = chain(drawn, mutated(document, examples, pace.fuzz_requests - len(drawn)))
        fuzzed = fuzz(subject.port, requests, below)
        sleep(REST_S)
        grown_mib = subject.resident_mib() - before_mib
    n_faults, faults = warm_up.n_faults + fuzzed.n_faults, [*warm_up.faults, *fuzzed.faults]
    findings.raw.append(
        {"measurement": "fuzz", "outcomes": dict(fuzzed.outcomes), "faults": faults, "grown_mib": grown_mib}
    )
    findings.note(fuzz_5xx=n_faults, fuzz_memory_mib=grown_mib)
    say(f"fuzz: {sum(fuzzed.outcomes.values())} requests, {n_faults} 5xx or hangs, {grown_mib:.0f} MiB above")


def _run_guard(findings: Findings, pace: Pace, say: Say) -> None:
    """A replica that does nothing, asked with a key, and in another cluster without: windows in turn."""
    model = Path(shipped_user_config(CLASSIFY)["model"])
    key, digest = new_key()
    with ExitStack() as stack:
        loads = []
        for headers in ({"authorization": f"Bearer {key}"}, {}):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            configuration = measured_cluster({CLASSIFY.name: model}, noop=True, gateway=True)
            if headers:
                add(folder / KEYS, Key(digest, "bench"))
                (gateway,) = cut_down(configuration, [GATEWAY])["applications"]
                gateway["deployments"][0]["user_config"] = {"ingress": {"keys": KEYS}}
            port = stack.enter_context(running(configuration, folder)).port
            call = Call(request_bytes(HOST, f"/{NOOP}", b"{}", headers))
            loads.append(Load(HOST, port, [call], pace.capacity_s, warm_up_s=1.0, concurrency=CAPACITY_CLIENTS))
        for _ in range(GUARD_TURNS):
            guarded, unguarded = (findings.keep_tally(measure(load), "guard") for load in loads)
            findings.note(guard_cost=guarded.summary()["requests_per_s"] / unguarded.summary()["requests_per_s"])
    say(f"with keys over without: {findings.figures['guard_cost']}")


def capacity(findings: Findings, port: int, pace: Pace) -> float:
    """Requests per second of a closed loop."""
    call = Call(request_bytes(HOST, PATH, BODY))
    load = Load(HOST, port, [call], pace.capacity_s, warm_up_s=1.0, concurrency=CAPACITY_CLIENTS)
    rate: float = findings.keep_tally(measure(load), "capacity").summary()["requests_per_s"]
    return rate


if __name__ == "__main__":
    description = "What clients see while something of the cluster fails or changes."
    main("faults", description, run, FAULT_FIGURES, parts=ALL, target="faults")
