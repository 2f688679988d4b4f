"""The policy that scales on a service level, in simulated time: deployments.scaling, on what simulated replicas say."""

from collections.abc import Mapping
from typing import Any

from deployments.scaling.daily import DailyPattern
from deployments.scaling.level import ServiceLevel
from deployments.scaling.options import AUTOSCALER, DEFAULTS
from deployments.scaling.policy import Observation, ServiceLevelPolicy
from deployments.scaling.signals import QUANTILES
from pipelines.errors import ConfigurationError
from pipelines.misfit import shown
from planning.deciding.policy import RayRules, View


def level_rules(name: str, level: ServiceLevel, autoscaling: Mapping[str, Any]) -> RayRules:
    """The policy behind Ray Serve's rules, with the settings that Sextet gives such a deployment."""
    pattern = None if level.pattern is None else DailyPattern(level.day_s)
    policy = ServiceLevelPolicy(level, pattern)

    def wanted(view: View, least: int, most: int) -> float:
        waiting = float(view.waiting) if view.running == 0 else 0.0
        seen = Observation(view.now_s, view.running, view.target, least, most, view.signals(), waiting)
        return policy.decide(seen).replicas

    return RayRules(name, {**DEFAULTS, **autoscaling}, wanted, pattern)


def level_for(slo_ms: float, quantile: float, start_s: float) -> ServiceLevel:
    """A level whose quantile is recorded: this one, or the next higher."""
    recorded = min((one for one in QUANTILES if one >= quantile), default=max(QUANTILES))
    return ServiceLevel(slo_ms=slo_ms, quantile=recorded, start_s=max(start_s, 0.1))


def configured_level(policy: Mapping[str, Any]) -> ServiceLevel:
    """What `autoscaling_config.policy` says; raises ConfigurationError for a policy that is not Sextet's."""
    function = policy.get("policy_function")
    if function != AUTOSCALER:
        raise ConfigurationError(f"--policy configured: policy_function is {shown(function)}; allowed: {AUTOSCALER}")
    return ServiceLevel.from_policy_kwargs(policy.get("policy_kwargs") or {})
