"""What a cluster.yaml says of scaling: checked, and completed where it scales on a service level."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deployments.config import deployment_of, user_configs
from deployments.scaling.level import ServiceLevel
from pipelines.errors import ConfigurationError
from pipelines.misfit import nearest, shown

AUTOSCALER = "deployments.scaling.autoscaler:ServiceLevelAutoscaler"
"""The policy_function of a service level."""
OURS = "deployments."
DEFAULTS = {
    "metrics_interval_s": 1.0,
    "look_back_period_s": 4.0,
    # The policy itself raises at once and lowers late.
    "upscale_delay_s": 0.0,
    "downscale_delay_s": 0.0,
    "downscale_to_zero_delay_s": 0.0,
}
"""Of `autoscaling_config` beside such a policy, where the file says nothing: Ray's own delays would come on top."""


def set_scaling(content: Mapping[str, Any], folder: Path) -> None:
    """Check the policies of all models, and complete those that hold a service level. `pattern` is relative to
    `folder`. Raises ConfigurationError.
    """
    for name, autoscaling in _autoscaling(content):
        policy = autoscaling.get("policy")
        function = policy.get("policy_function") if isinstance(policy, dict) else None
        if not isinstance(policy, dict) or not isinstance(function, str) or not function.startswith(OURS):
            continue  # Ray's own, which Ray Serve's schema checks, or the operator's
        if function.replace(":", ".") != AUTOSCALER.replace(":", "."):
            raise ConfigurationError(
                f"{name}: policy_function is {shown(function)}{nearest(function, [AUTOSCALER])}; allowed: {AUTOSCALER}"
            )
        given = {} if policy.get("policy_kwargs") is None else policy["policy_kwargs"]
        level = ServiceLevel.from_policy_kwargs(given, f"{name}: policy_kwargs")
        if level.pattern is not None:
            policy["policy_kwargs"] = {**given, "pattern": str(folder / level.pattern)}
        for key, value in DEFAULTS.items():
            autoscaling.setdefault(key, value)


def may_sleep(content: Mapping[str, Any]) -> list[str]:
    """The applications of models that may have no replica, in the order of the file."""
    return [name for name, autoscaling in _autoscaling(content) if autoscaling.get("min_replicas") == 0]


def start_asleep(content: Mapping[str, Any]) -> list[str]:
    """Those of `may_sleep` that have none at first."""
    asleep = dict(_autoscaling(content))
    return [name for name in may_sleep(content) if not asleep[name].get("initial_replicas")]


def _autoscaling(content: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The `autoscaling_config` of each model that has one, not copied."""
    for name in user_configs(content):
        autoscaling = deployment_of(name, content).get("autoscaling_config")
        if isinstance(autoscaling, dict):
            yield name, autoscaling
