"""Level: a day in ten minutes, on models that scale on a service level and, beside them, as Ray Serve does by itself.

    slo_attainment                     share of the day's requests that were answered within the level
    replica_seconds_over_static_peak   what that took, over as many replicas all day as the peak takes
    slo_over_default_policy            that share over the one of Ray's default policy, which spent no fewer
                                       replica-seconds; where it spent fewer, over what it would reach for as many
    slo_over_tuned_policy              the same beside Ray's policy with the number that suits this day best

Three applications serve the same slow model (slow.py) and get the same arrivals at the same time, so whatever disturbs
one disturbs all. The first holds a level, and knows the pattern of three days before: `sextet plan --pattern` simulates
them, whose arrivals follow the same curve by other chance. `plain` has Ray's policy with Ray's own number of ongoing
requests for each replica, `tuned` with half of it, which simulated days found to be the best. In all three a replica
goes after it has not been wanted for ten seconds.

The day rises from a tenth of its peak to noon, falls, and has a second, lower peak in the evening. Its peak offers as
many seconds of work per second as 3.2 replicas can do, and all three may have four.
"""

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks import Say
from benchmarks.load.arrivals import along
from benchmarks.load.client import request_bytes
from benchmarks.load.generator import Call, Load, measure
from benchmarks.load.texts import Lengths, counter, synthetic
from benchmarks.suites.cluster import CLASSIFY, CONFIGURATION, measured_cluster, running
from benchmarks.suites.generation import artifact_of
from benchmarks.suites.scale.fleet import Fleet
from benchmarks.suites.scale.plan import planned
from benchmarks.suites.scale.slow import cached_in
from benchmarks.suites.suite import Findings
from deployments.config import SEPARATOR, deployment_of, route_of
from deployments.scaling.options import AUTOSCALER, DEFAULTS
from pipelines.errors import SextetError
from pipelines.runtime.artifact import ModelArtifact

LEVEL_MS, QUANTILE = 1000.0, 0.9
REPLICAS = 4
COST = {"start_s": 0.02, "token_s": 0.005}
TOKENS, LONGEST = "lognormal:32,96", 256
PEAK_LOAD = 3.2  # replicas
DOWN_S, TREND_S = 10.0, 10.0  # of a day in ten minutes these are 24 minutes; the former holds for all three
DAYS_BEFORE, START_S = 3, 8.0  # of which a pattern is known; of a replica on those
UP_S = 120.0  # until the cluster is up, and the day begins
LOGGED = {
    "task": CLASSIFY.name,
    "status": 200,
    "total_s": 0.003,
    "queue_s": 0.0,
    "inference_s": 0.0,
    "written_tokens": 0,
}
ONGOING = {"plain": 2.0, "tuned": 1.0}
TEXTS = 512
DAY_S, QUICK_DAY_S = 600.0, 90.0


def measure_level(findings: Findings, quick: bool, say: Say) -> None:
    """Note its figures; raises SextetError."""
    artifact, day_s = artifact_of(CLASSIFY, say), QUICK_DAY_S if quick else DAY_S
    tokens = counter(ModelArtifact.open(artifact))
    texts = synthetic(Lengths.parse(TOKENS), TEXTS, 0, tokens, LONGEST)
    service_s = COST["start_s"] + COST["token_s"] * float(np.mean(tokens(texts)))
    curve = [one / service_s for one in day(PEAK_LOAD)]
    names = [CLASSIFY.name, *(f"{CLASSIFY.name}{SEPARATOR}{model}" for model in ONGOING)]
    with tempfile.TemporaryDirectory(prefix="sextet-scale-") as name, cached_in(Path(name) / "cache"):
        content, begins_at = cluster(artifact, day_s, Path(name)), time.time() + UP_S
        remember_days(Path(name), content, curve, tokens(texts), begins_at, say)
        with running(content, Path(name)) as served:
            fleet = Fleet(served.process_id, names)
            loads = [load(served.port, one, texts, curve, day_s) for one in names]
            left_s = begins_at - time.time()
            if left_s < 0:
                raise SextetError(f"the cluster was not up within {UP_S:.0f} s, when its day begins")
            time.sleep(left_s)
            with fleet.watched(), ThreadPoolExecutor(len(loads)) as generators:
                tallies = list(generators.map(measure, loads))
    shares = [
        findings.keep_tally(tally, f"a day of {one}").good / tally.requests
        for one, tally in zip(names, tallies, strict=True)
    ]
    spent = [fleet.replica_seconds(one) for one in names]
    if not all(spent):
        raise SextetError(f"replicas were not found: {dict(zip(names, spent, strict=True))}")
    for one, share, seconds in zip(names, shares, spent, strict=True):
        say(f"{one}: {share:.1%} within {LEVEL_MS:.0f} ms, {seconds:.0f} s of replicas")
    static_s = REPLICAS * fleet.samples[-1][0]
    plain, tuned = zip(spent[1:], shares[1:], strict=True)
    rays = plain[1] if plain[0] >= spent[0] else at_equal_cost(spent[0], (plain, tuned))
    findings.note(
        slo_attainment=shares[0],
        replica_seconds_over_static_peak=spent[0] / static_s,
        slo_over_default_policy=shares[0] / max(rays, 1e-9),
        slo_over_tuned_policy=shares[0] / max(tuned[1], 1e-9),
        default_policy_attainment=plain[1],
        default_policy_over_static_peak=plain[0] / static_s,
        tuned_policy_attainment=tuned[1],
        tuned_policy_over_static_peak=tuned[0] / static_s,
    )
    samples = [[round(at, 1), *(counts[one] for one in names)] for at, counts in fleet.samples]
    raw = {"day_s": day_s, "samples": samples, "applications": names, "shares": shares, "replica_seconds": spent}
    findings.raw.append({"measurement": "replicas over a day", **raw})


def day(peak: float, steps: int = 97) -> list[float]:
    """The load of a day at equal steps: a quiet night, noon, a dip, the evening."""
    hour = np.linspace(0.0, 24.0, steps)
    noon, evening = (np.exp(-(((hour - at) / wide) ** 2)) for at, wide in ((11.5, 3.5), (19.5, 2.5)))
    shape = 0.1 + 0.9 * noon + 0.55 * evening
    return [float(one) for one in peak * shape / shape.max()]


def remember_days(
    folder: Path, content: Mapping[str, Any], curve: Sequence[float], lengths: Sequence[int], begins_at: float, say: Say
) -> None:
    """Keep in `folder` what the first application's policy remembers of the days before the one at `begins_at`."""
    day_s: float = deployment_of(CLASSIFY.name, content)["autoscaling_config"]["policy"]["policy_kwargs"]["day_s"]
    lines = []
    for number in range(1, 1 + DAYS_BEFORE):
        arrivals = along(curve, day_s, seed=number)
        drawn = np.random.default_rng(number).choice(lengths, len(arrivals))
        for arrived_s, tokens in zip(arrivals, drawn, strict=True):
            at = datetime.fromtimestamp(begins_at - number * day_s + float(arrived_s), UTC).isoformat()
            lines.append(LOGGED | {"time": at, "read_tokens": int(tokens)})
    (folder / "days.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    points = [{"rows": 1, "longest": n, "seconds": COST["start_s"] + n * COST["token_s"]} for n in (10, 100, LONGEST)]
    (folder / "costs.json").write_text(json.dumps(points), encoding="utf-8")
    (folder / CONFIGURATION).write_text(yaml.safe_dump(dict(content)), encoding="utf-8")
    given = ["--policy", "configured", "--trace", str(folder / "days.jsonl"), "--costs", str(folder / "costs.json")]
    planned(folder, [*given, "--start-s", str(START_S), "--pattern", str(folder)], say)


def cluster(artifact: Path, day_s: float, patterns: Path) -> dict[str, Any]:
    """The three applications; the task's default is the one that holds a level."""
    content = measured_cluster({CLASSIFY.name: artifact})
    (default,) = content["applications"]
    default |= {"import_path": "benchmarks.suites.scale.slow:build"}
    default["args"] |= {"cost": COST}
    (deployment,) = default["deployments"]
    deployment.pop("num_replicas")
    deployment["ray_actor_options"] = {"num_cpus": 0.01}
    deployment["user_config"] |= {"threads": 1, "batching": {"max_batch_size": 1, "concurrency": 1}}
    others = []
    for model, ongoing in ONGOING.items():
        other = deepcopy(default)
        other |= {"name": f"{CLASSIFY.name}{SEPARATOR}{model}", "route_prefix": f"/{CLASSIFY.name}/{model}"}
        other["args"]["model"] = model
        bounds = {"min_replicas": 1, "max_replicas": REPLICAS, "target_ongoing_requests": ongoing}
        delays = {"upscale_delay_s": 2, "downscale_delay_s": DOWN_S}
        other["deployments"][0]["autoscaling_config"] = DEFAULTS | bounds | delays
        others.append(other)
    level: dict[str, Any] = {"slo_ms": LEVEL_MS, "quantile": QUANTILE, "down_after_s": DOWN_S, "trend_s": TREND_S}
    level |= {"pattern": str(patterns), "day_s": day_s}
    policy = {"policy_function": AUTOSCALER, "policy_kwargs": level}
    deployment["autoscaling_config"] = {"min_replicas": 1, "max_replicas": REPLICAS, "policy": policy, **DEFAULTS}
    return {**content, "applications": [default, *others]}


def load(port: int, name: str, texts: Sequence[str], curve: Sequence[float], day_s: float) -> Load:
    """The day's requests to one of them."""
    path = route_of(name)
    calls = [Call(request_bytes("127.0.0.1", path, json.dumps({"inputs": text}).encode())) for text in texts]
    return Load("127.0.0.1", port, calls, day_s, warm_up_s=0.0, curve=curve, slo_s=LEVEL_MS / 1000)


def at_equal_cost(cost: float, points: Sequence[tuple[float, float]]) -> float:
    """The share on the line between two policies of (cost, share); beyond them, that of the nearer."""
    costs, shares = zip(*sorted(points), strict=True)
    return float(np.interp(cost, costs, shares))
