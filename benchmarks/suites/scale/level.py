"""Level: a day in ten minutes, on models that scale on a service level and, beside them, as Ray Serve does by itself.

    slo_attainment                     share of the day's requests that were answered within the level
    replica_seconds_over_static_peak   what that took, over as many replicas all day as the peak takes
    slo_over_default_policy            that share over the one of Ray's default policy, which spent no fewer
                                       replica-seconds; where it spent fewer, over what it would reach for as many
    slo_over_tuned_policy              the same beside Ray's policy with the number that suits this day best

Three applications serve the same slow model (slow.py) and get the same arrivals at the same time, so whatever disturbs
one disturbs all. The first holds a level, and knows the pattern of three days before: it kept that in simulated days,
whose arrivals follow the same curve by other chance. `plain` has Ray's policy with Ray's own number of ongoing requests
for each replica, `tuned` with half of it, which simulated days found to be the best. In all three a replica goes after
it has not been wanted for ten seconds.

The day rises from a tenth of its peak to noon, falls, and has a second, lower peak in the evening. Its peak offers as
many seconds of work per second as 3.2 replicas can do, and all three may have four.
"""

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import Say
from benchmarks.load.arrivals import along
from benchmarks.load.client import request_bytes
from benchmarks.load.generator import Call, Load, measure
from benchmarks.load.texts import Lengths, counter, synthetic
from benchmarks.suites.cluster import CLASSIFY, measured_cluster, running
from benchmarks.suites.generation import artifact_of
from benchmarks.suites.scale.fleet import Fleet
from benchmarks.suites.scale.slow import cached_in
from benchmarks.suites.suite import Findings
from deployments.config import SEPARATOR, route_of
from deployments.scaling.daily import DailyPattern
from deployments.scaling.level import ServiceLevel
from deployments.scaling.options import AUTOSCALER, DEFAULTS
from pipelines.errors import SextetError
from pipelines.runtime.artifact import ModelArtifact
from pipelines.scheduling.batching import CostModel
from pipelines.scheduling.scheduler import BatchingConfig
from planning.deciding.level import level_rules
from planning.simulated.fleet import Site
from planning.simulated.model import EncoderModel
from planning.simulated.simulation import Setting, play
from planning.traces.trace import Sizes

LEVEL_MS, QUANTILE = 1000.0, 0.9
REPLICAS = 4
COST = {"start_s": 0.02, "token_s": 0.005}
TOKENS, LONGEST = "lognormal:32,96", 256
PEAK_LOAD = 3.2  # replicas
DOWN_S, TREND_S = 10.0, 10.0  # of a day in ten minutes these are 24 minutes; the former holds for all three
DAYS_BEFORE, START_S = 3, 8.0  # of which a pattern is known; of a replica on those
UP_S = 120.0  # until the cluster is up, and the day begins
OVERHEAD_S = 0.003  # of a request beside queue and model
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
        pattern = days_before(content, curve, tokens(texts), day_s, begins_at % day_s)
        DailyPattern.file(Path(name), f"{CLASSIFY.name}:{CLASSIFY.name}").write_bytes(pattern.text())
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


def days_before(
    content: Mapping[str, Any], curve: Sequence[float], lengths: Sequence[int], day_s: float, begins_s: float
) -> DailyPattern:
    """What the policy of the first application keeps of simulated days that begin at the time of day `begins_s`."""
    (deployment,) = content["applications"][0]["deployments"]
    scaling, pattern = deployment["autoscaling_config"], DailyPattern(day_s)
    level = ServiceLevel.from_policy_kwargs(scaling["policy"]["policy_kwargs"])
    model = EncoderModel(CostModel(COST["start_s"], COST["token_s"]), BatchingConfig(max_batch_size=1))
    sizes = Sizes(lambda count, seed: np.random.default_rng(seed).choice(lengths, count))
    for seed in range(1, 1 + DAYS_BEFORE):
        rules = level_rules(CLASSIFY.name, level, scaling, pattern)
        setting = Setting(model, Site(START_S, REPLICAS), OVERHEAD_S, rules.metrics_interval_s, rules.look_back_s)
        play(sizes.trace("a day before", day_s, along(curve, day_s, seed), seed, day_at_s=begins_s), rules, setting)
    return pattern


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
