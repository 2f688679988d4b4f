"""Plan: whether `sextet plan` says what a real cluster does, and how much of one it can simulate.

A slow model is served by the real `sextet serve`, and a load of changing rate is sent: to a fixed number of replicas,
to those that Ray Serve's default policy starts, and to those of the policy that scales on a service level. Replicas log
every request. `sextet plan` replays that log, with the costs that the replicas have learned.

    plan_error       simulated over real, less 1, without its sign: the worst of p50 and p99 of what clients saw, and of
                     the seconds of replicas
    plan_replicas    replicas at once of a simulated day, in which each has a scheduler of its own; 0 where the day took
                     longer than DAY_WITHIN_S
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from benchmarks import Say
from benchmarks.figures.result import ROOT
from benchmarks.load.client import request_bytes
from benchmarks.load.generator import Call, Load, measure
from benchmarks.load.tally import Tally
from benchmarks.load.texts import Lengths, counter, synthetic
from benchmarks.suites.cluster import CLASSIFY, CONFIGURATION, Running, measured_cluster, running
from benchmarks.suites.generation import artifact_of
from benchmarks.suites.scale.replica_watch import ReplicaWatch, first_served, lives, mean_start_s, replica_seconds
from benchmarks.suites.scale.slow import cached_in
from benchmarks.suites.suite import Findings
from deployments.scaling.options import AUTOSCALER
from pipelines.errors import SextetError
from pipelines.runtime.artifact import ModelArtifact

DAY_WITHIN_S = 300.0
TEXTS, LONGEST = 512, 256
LENGTHS = "lognormal:24,120"
AUTOSCALING = {
    "min_replicas": 1,
    "max_replicas": 3,
    "target_ongoing_requests": 2,
    "metrics_interval_s": 1,
    "look_back_period_s": 4,
    "upscale_delay_s": 2,
    "downscale_delay_s": 15,
}
LEVEL = {
    "min_replicas": 1,
    "max_replicas": 3,
    "policy": {"policy_function": AUTOSCALER, "policy_kwargs": {"slo_ms": 600, "down_after_s": 15}},
}
DAY = {"rate": "day:17-50", "tokens": 128, "seconds": 30.0, "target": 0.75}
"""A fleet whose requests take half a minute each, as long documents do."""


class PlanError(SextetError):
    """`sextet plan` failed, or the cluster did not do what is to be simulated."""


@dataclass(frozen=True)
class Phase:
    """Requests at this rate for so long."""

    rate_per_s: float
    lasts_s: float


@dataclass(frozen=True)
class Case:
    """What a deployment says of its replicas, and the load that they get."""

    deployment: Mapping[str, Any]
    phases: Sequence[Phase]


CHANGING = (Phase(3, 25), Phase(14, 45), Phase(4, 35))
CASES = {
    "static": Case({"num_replicas": 2}, (Phase(9, 40), Phase(12, 30))),
    "ray": Case({"autoscaling_config": AUTOSCALING}, CHANGING),
    "level": Case({"autoscaling_config": LEVEL}, CHANGING),
}


def measure_error(findings: Findings, quick: bool, say: Say) -> None:
    """Note `plan_error`; raises SextetError."""
    artifact = artifact_of(CLASSIFY, say)
    for label, case in CASES.items():
        if quick:
            case = Case(case.deployment, [Phase(one.rate_per_s, one.lasts_s / 4) for one in case.phases])
        real, simulated = _both(artifact, label, case, findings, say)
        errors = {name: abs(simulated[name] / real[name] - 1) for name in real}
        for name, error in errors.items():
            say(f"{label}: {name} {real[name]:.1f}, simulated {simulated[name]:.1f}: {error:.1%}")
        findings.note(**{f"plan_error_{label}_{name}": error for name, error in errors.items()})
        findings.raw.append({"measurement": f"plan {label}", "real": real, "simulated": simulated})
    worst = [values for name, values in findings.figures.items() if name.startswith("plan_error_")]
    findings.figures["plan_error"] = [max(one) for one in zip(*worst, strict=True)]


def measure_replicas(findings: Findings, quick: bool, say: Say) -> None:
    """Note `plan_replicas`; raises SextetError."""
    seconds, tokens = float(str(DAY["seconds"])), int(str(DAY["tokens"]))
    with tempfile.TemporaryDirectory(prefix="sextet-plan-") as name:
        folder = Path(name)
        costs = [{"rows": 1, "longest": tokens, "seconds": seconds}]
        (folder / "costs.json").write_text(json.dumps(costs), encoding="utf-8")
        cluster = measured_cluster({CLASSIFY.name: artifact_of(CLASSIFY, say)})
        (deployment,) = cluster["applications"][0]["deployments"]
        deployment["autoscaling_config"] = AUTOSCALING | {"target_ongoing_requests": DAY["target"]}
        deployment["user_config"]["batching"] = {"max_batch_size": 1, "concurrency": 1}
        deployment["user_config"]["queue"] = {"max_queue_s": 600}
        (folder / CONFIGURATION).write_text(yaml.safe_dump(cluster), encoding="utf-8")
        given = ["--costs", str(folder / "costs.json"), "--tokens", f"fixed:{tokens}", "--policy", "ray"]
        given += ["--most-replicas", "5000", "--slo-ms", str(3000 * seconds), "--trace", str(DAY["rate"])]
        found = planned(folder, [*given, "--scale", "0.05"] if quick else given, say)
    (plan,) = found["plans"]
    took_s = plan["simulated_in_s"]
    say(f"{plan['most_replicas']:,} replicas, {found['requests']:,} requests, a day in {took_s:.0f} s")
    findings.note(
        plan_replicas=float(plan["most_replicas"]) if took_s <= DAY_WITHIN_S else 0.0,
        plan_day_s=took_s,
        plan_requests=float(found["requests"]),
    )


def _both(
    artifact: Path, label: str, case: Case, findings: Findings, say: Say
) -> tuple[dict[str, float], dict[str, float]]:
    """What the cluster did, and what `sextet plan` says it does."""
    with tempfile.TemporaryDirectory(prefix="sextet-plan-") as name, cached_in(Path(name) / "cache"):
        folder = Path(name)
        with running(_cluster(artifact, case.deployment), folder) as cluster:
            watch = ReplicaWatch(cluster.process_id)
            with watch:
                tally = _send(cluster, ModelArtifact.open(artifact), case.phases)
            requests = _logged(cluster, "requests_*.jsonl*", watch.began_at)
            found = lives(_logged(cluster, "controller_[0-9]*.log"), CLASSIFY.name)
        trace = folder / "trace.jsonl"
        trace.write_text(requests, encoding="utf-8")
        findings.keep_tally(tally, f"plan, {label}")
        answered, sent = tally.statuses["200"], tally.requests
        if answered < sent:
            raise PlanError(f"{label}: {sent - answered} of {sent} requests were not answered: {dict(tally.statuses)}")
        lasted_s = sum(one.lasts_s for one in case.phases)
        start_s = mean_start_s(found, first_served(requests), watch.began_at)
        given = ["--policy", "configured", "--trace", str(trace), "--start-s", f"{start_s:.2f}", "--slo-ms", "1000"]
        (plan,) = planned(folder, given, say)["plans"]
    real = {name: tally.latency.percentile_ms(quantile) for name, quantile in (("p50_ms", 50), ("p99_ms", 99))}
    real["replica_seconds"] = replica_seconds(found, watch.last_seen, watch.began_at, lasted_s)
    say(f"{label}: {sent} requests, {len(found)} replicas, a start took {start_s:.1f} s")
    return real, {name: float(plan[name]) for name in real}


def _cluster(artifact: Path, replicas: Mapping[str, Any]) -> dict[str, Any]:
    """The slow model in as many replicas as `replicas` says; every request is logged."""
    cluster = measured_cluster({CLASSIFY.name: artifact})
    (application,) = cluster["applications"]
    application["import_path"] = "benchmarks.suites.scale.slow:build"
    (deployment,) = application["deployments"]
    del deployment["num_replicas"]
    deployment |= replicas
    deployment["user_config"] |= {
        "threads": 1,
        "batching": {"max_batch_size": 8, "concurrency": 1},
        "request_log": {"sample": 1.0},
    }
    return cluster


def _send(cluster: Running, artifact: ModelArtifact, phases: Sequence[Phase]) -> Tally:
    """What clients see of the phases, one after the other."""
    texts = synthetic(Lengths.parse(LENGTHS), TEXTS, 0, counter(artifact), LONGEST)
    path = f"/{CLASSIFY.name}"
    calls = [Call(request_bytes("127.0.0.1", path, json.dumps({"inputs": text}).encode())) for text in texts]
    whole: Tally | None = None
    for number, phase in enumerate(phases):
        part = Load("127.0.0.1", cluster.port, calls, phase.lasts_s, 0.0, rate_per_s=phase.rate_per_s, seed=number)
        tally = measure(part)
        if whole is None:
            whole = tally
        else:
            whole.merge(tally)
    assert whole is not None
    return whole


def _logged(cluster: Running, names: str, since: float = 0.0) -> str:
    """The lines of the cluster's log files of such names; of requests, those that arrived after `since`."""
    (said,) = cluster.said("logs ")
    time.sleep(1.0)  # the threads that write them
    files = sorted((Path(said.removeprefix("logs ")) / "serve").glob(names))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return "\n".join(line for line in lines if not since or _arrived_at(line) >= since)


def _arrived_at(line: str) -> float:
    entry = json.loads(line)
    return float(datetime.fromisoformat(entry["time"]).timestamp() - entry["total_s"])


def planned(folder: Path, given: Sequence[str], say: Say) -> Mapping[str, Any]:
    """The last line of `sextet plan` of the cluster.yaml in `folder`; raises PlanError."""
    command = [sys.executable, "-m", "sextet", "plan", str(folder / CONFIGURATION), *given]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    for line in done.stderr.splitlines():
        say(line)
    if done.returncode:
        raise PlanError(f"sextet plan ended with {done.returncode}; its own message is above")
    found: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
