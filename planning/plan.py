"""Plan: what `sextet plan` does with its options, checked."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.load.texts import Lengths
from deployments.config import deployment_of, located, task_configs
from deployments.doctor.demand import AUTO_REPLICAS
from deployments.scaling.daily import DailyPattern
from pipelines.errors import ConfigurationError
from pipelines.misfit import nearest
from pipelines.runtime.artifact import ModelArtifact
from planning.bounds import MAX_REPLICAS, MAX_TOKENS, bounded
from planning.costs import model_of
from planning.deciding.level import configured_level, level_for, level_rules
from planning.deciding.policy import FixedReplicas, Policy, RayRules
from planning.machines import Kind, Needs, read_kinds, this_machine, with_room
from planning.search import Level, Plan, Say, fewest
from planning.simulated.simulation import Setting, play
from planning.traces.trace import FORMS, Sizes, Trace, named
from planning.traces.trace_files import MAX_DEADLINE_S, from_file
from stores.fetch import fetch

POLICIES = ("level", "ray", "static")
ALL_POLICIES = ("level", "ray", "configured", "static")
OVERHEAD_MS = 2.0  # of HTTP, tokenizing and the answer's JSON, where nothing was measured
MAX_HOURS = 24.0 * 31


@dataclass(frozen=True)
class Asked:
    """The options; the command has their texts."""

    cluster: Path
    slo_ms: float
    trace: str
    quantile: float = 0.9
    task: str | None = None
    policies: tuple[str, ...] = POLICIES
    machines: Path | None = None
    costs: Path | None = None
    hours: float | None = None
    scale: float = 1.0
    tokens: str = "lognormal:24,200"
    written_tokens: str = "lognormal:64,256"
    deadline_s: float | None = None
    start_s: float = 8.0
    overhead_ms: float | None = None
    least_replicas: int | None = None
    most_replicas: int = 1000
    seed: int = 0
    pattern: Path | None = None

    def __post_init__(self) -> None:
        """Raises ConfigurationError for a number out of its bounds and a policy that nobody knows."""
        bounded("--slo-ms", self.slo_ms, 0.1, 3_600_000)
        bounded("--quantile", self.quantile, 0.5, 0.9999)
        bounded("--scale", self.scale, 1e-6, 1e6)
        bounded("--start-s", self.start_s, 0, 86_400)
        bounded("--most-replicas", self.most_replicas, 1, MAX_REPLICAS)
        bounded("--seed", self.seed, 0, 2**32 - 1)
        for name, value, least, most in (
            ("--hours", self.hours, 1 / 3600, MAX_HOURS),
            ("--deadline-s", self.deadline_s, 1e-3, MAX_DEADLINE_S),
            ("--overhead-ms", self.overhead_ms, 0, 60_000),
            ("--least-replicas", self.least_replicas, 0, self.most_replicas),
        ):
            if value is not None:
                bounded(name, value, least, most)
        for one in self.policies:
            if one not in ALL_POLICIES and not re.fullmatch(r"static:\d{1,7}", one):
                raise ConfigurationError(
                    f"--policy is {one!r}{nearest(one, ALL_POLICIES)}; allowed: {', '.join(ALL_POLICIES)}, static:N"
                )

    def level(self) -> Level:
        return Level(self.slo_ms / 1000, self.quantile)


@dataclass(frozen=True)
class Application:
    """One model of a cluster.yaml. `deployment` is what the file says of it, not copied."""

    name: str
    deployment: Mapping[str, Any]
    needs: Needs
    artifact: ModelArtifact
    setting: Callable[[Kind, float], Setting]


def plans(asked: Asked, say: Say) -> list[Plan]:
    """Every policy on every kind of machine that has room for a replica; raises ConfigurationError."""
    kinds = read_kinds(asked.machines) if asked.machines is not None else [this_machine()]
    content = located(asked.cluster)
    configs = task_configs(content)
    name = asked.task or next(iter(configs))
    if name not in configs:
        raise ConfigurationError(
            f"--task is {name!r}{nearest(name, configs)}; allowed: {', '.join(configs)}, which {asked.cluster} has"
        )
    config, deployment = configs[name], deployment_of(name, content)
    if asked.pattern is not None and not ("configured" in asked.policies and _remembers(deployment)):
        raise ConfigurationError(
            f"--pattern is set; allowed: with --policy configured, where {name} has `pattern` in its policy_kwargs"
        )
    artifact = ModelArtifact.open(fetch(config.model, say).folder)
    model = model_of(name, config, artifact, asked.costs, say)
    trace = _trace(asked, name, artifact)
    overhead_s = trace.overhead_s if trace.overhead_s is not None else OVERHEAD_MS / 1000
    if asked.overhead_ms is not None:
        overhead_s = asked.overhead_ms / 1000
    needs = Needs.of(name, content, config, artifact)
    hours, beside_ms = trace.duration_s / 3600, 1000 * overhead_s
    say(f"{name}: {len(trace):,} requests in {hours:.2f} h, {beside_ms:.1f} ms each beside queue and model")
    found = []
    for kind in with_room(kinds, needs):
        setting = Setting(model, kind.site(needs, asked.start_s), overhead_s)
        for policy, timed in _policies(asked, deployment, trace, setting, say):
            played = play(trace, policy, timed)
            say(f"{policy.name} on {kind.name}: {played.within(asked.slo_ms / 1000):.2%} ({played.took_s:.1f} s)")
            found.append(Plan(kind, played, asked.level()))
            if asked.pattern is not None and isinstance(policy, RayRules) and policy.pattern is not None:
                file = DailyPattern.file(asked.pattern, f"{name}:{deployment['name']}")
                policy.pattern.write(file)
                say(f"wrote {file}")
    return found


def _remembers(deployment: Mapping[str, Any]) -> bool:
    policy = (deployment.get("autoscaling_config") or {}).get("policy") or {}
    return bool((policy.get("policy_kwargs") or {}).get("pattern"))


def _trace(asked: Asked, name: str, artifact: ModelArtifact) -> Trace:
    longest = min(artifact.manifest.tokenizer.max_length, MAX_TOKENS)
    read, written = Lengths.parse(asked.tokens), Lengths.parse(asked.written_tokens)
    sizes = Sizes(
        lambda count, seed: read.draw(count, seed, longest),
        lambda count, seed: written.draw(count, seed, MAX_TOKENS),
        asked.deadline_s,
    )
    trace = named(asked.trace, asked.hours, sizes, asked.seed)
    if trace is None:
        if ":" in asked.trace and not Path(asked.trace).exists():
            raise ConfigurationError(f"--trace is {asked.trace!r}; allowed: {FORMS}")
        trace = from_file(Path(asked.trace), sizes, asked.seed, task=artifact.manifest.task, longest=longest)
    return trace if asked.scale == 1 else trace.thinned(asked.seed, asked.scale)


def _policies(
    asked: Asked, deployment: Mapping[str, Any], trace: Trace, setting: Setting, say: Say
) -> Iterator[tuple[Policy, Setting]]:
    """Each policy that is asked for, new, with the setting in which it is asked."""
    given = deployment.get("autoscaling_config")
    scaling: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {}
    if deployment.get("num_replicas") == "auto":
        scaling = dict(zip(("min_replicas", "max_replicas"), AUTO_REPLICAS, strict=True)) | scaling
    bounds = {"min_replicas": scaling.get("min_replicas", 1), "max_replicas": asked.most_replicas}
    if asked.least_replicas is not None:
        bounds["min_replicas"] = asked.least_replicas
    for name in asked.policies:
        if name == "static":
            yield fewest(trace, setting, asked.level(), asked.most_replicas, say), setting
        elif name.startswith("static:"):
            yield FixedReplicas(int(bounded("static:N", int(name.split(":")[1]), 1, MAX_REPLICAS))), setting
        elif name == "configured" and not scaling:
            count = deployment.get("num_replicas", 1)
            yield FixedReplicas(count if isinstance(count, int) else 1), setting
        else:
            yield _scaling(name, asked, scaling, bounds, setting)


def _scaling(
    name: str, asked: Asked, scaling: dict[str, Any], bounds: dict[str, Any], setting: Setting
) -> tuple[Policy, Setting]:
    """A policy that scales. `configured` is what the file says; the others have our bounds."""
    policy = scaling.get("policy") or {}
    if name == "configured":
        rules = level_rules(name, configured_level(policy), scaling) if policy else RayRules(name, scaling)
    elif name == "ray":
        rules = RayRules(name, scaling | bounds)
    else:
        starts_s = asked.start_s + setting.site.boot_s
        rules = level_rules(name, level_for(asked.slo_ms, asked.quantile, starts_s), bounds)
    return rules, replace(setting, tick_s=rules.metrics_interval_s, look_back_s=rules.look_back_s)
