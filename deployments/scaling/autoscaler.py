"""ServiceLevelAutoscaler: ServiceLevelPolicy as Ray Serve's controller calls it.

Ray Serve makes one for each deployment that names it, and again when its configuration changes. It pickles this module
by value, and what it imports by name: the controller's machine has this package.

It reads what replicas record about themselves. Of Ray's own count of requests it reads whether some wait while there is
no replica at all, and nothing else: streams that have ended may stay in that count.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deployments.scaling.daily import DailyPattern
from deployments.scaling.level import ServiceLevel
from deployments.scaling.policy import Observation, ServiceLevelPolicy
from deployments.scaling.signals import ReplicaSignals
from pipelines.errors import ConfigurationError

logger = logging.getLogger("ray.serve")


class ServiceLevelAutoscaler:
    """A `policy_function` of `autoscaling_config.policy`."""

    def __init__(self, **policy_kwargs: Any) -> None:
        """The fields of ServiceLevel. `sextet serve` refuses wrong ones before it starts anything. Where others deploy
        them, the log says so and replicas stay as many as they are: an error here would stop the controller's loop, for
        all applications.
        """
        self._level: ServiceLevel | None = None
        try:
            self._level = ServiceLevel.from_policy_kwargs(policy_kwargs)
        except ConfigurationError as error:
            logger.error("replicas stay as many as they are: %s", error)
        self._policy: ServiceLevelPolicy | None = None
        self._file: Path | None = None
        self._kept = 0
        self._said: int | None = None

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        """Ray's AutoscalingContext -> the replicas that are wanted, and the state that Ray keeps for its own delays."""
        if self._level is None:
            return ctx.target_num_replicas, dict(ctx.policy_state or {})
        name = f"{ctx.app_name}:{ctx.deployment_name}"
        if self._policy is None:
            self._policy = ServiceLevelPolicy(self._level, self._pattern(name, self._level))
        try:
            decision = self._policy.decide(observed(ctx, self._level.stale_s))
        except Exception:  # as above: no error may reach the controller's loop
            logger.exception("%s: replicas stay as many as they are", name)
            return ctx.target_num_replicas, dict(ctx.policy_state or {})
        if decision.replicas not in (self._said, ctx.target_num_replicas):
            logger.info("%s: %d -> %d replicas: %s", name, ctx.target_num_replicas, decision.replicas, decision.reason)
        self._said = decision.replicas
        self._keep()
        return decision.replicas, dict(ctx.policy_state or {})

    def _pattern(self, name: str, level: ServiceLevel) -> DailyPattern | None:
        """What earlier days took, from this deployment's file in the folder `pattern`."""
        if level.pattern is None:
            return None
        self._file = DailyPattern.file(Path(level.pattern), name)
        try:
            pattern = DailyPattern.of_text(self._file.read_bytes())
        except FileNotFoundError:
            return DailyPattern(level.day_s)
        except (OSError, ConfigurationError) as error:
            logger.warning("%s: %s: the days before are not known", self._file, error)
            return DailyPattern(level.day_s)
        return pattern if pattern.day_s == level.day_s else DailyPattern(level.day_s)

    def _keep(self) -> None:
        """Write the file whenever a part of the day has ended."""
        pattern = None if self._policy is None else self._policy.pattern
        if pattern is None or self._file is None or pattern.recorded == self._kept:
            return
        self._kept = pattern.recorded
        try:
            pattern.write(self._file)
        except OSError as error:
            logger.warning("%s is not written: %s", self._file, error)


def observed(ctx: Any, stale_s: float) -> Observation:
    """What Ray's AutoscalingContext says of a deployment. Signals of replicas that were silent for `stale_s` are left
    out.
    """
    latest: dict[str, dict[str, float]] = {}
    for name, of_replicas in (ctx.raw_metrics or {}).items():
        for replica, series in of_replicas.items():
            if series and ctx.current_time - series[-1].timestamp <= stale_s:
                latest.setdefault(replica.unique_id, {})[name] = series[-1].value
    said = {replica: ReplicaSignals.of_metrics(metrics) for replica, metrics in latest.items()}
    replicas: Mapping[str, ReplicaSignals] = {name: one for name, one in said.items() if one is not None}
    return Observation(
        now_s=ctx.current_time,
        running=ctx.current_num_replicas,
        target=ctx.target_num_replicas,
        least=ctx.capacity_adjusted_min_replicas,
        most=ctx.capacity_adjusted_max_replicas,
        replicas=replicas,
        waiting=ctx.total_num_requests if ctx.current_num_replicas == 0 else 0.0,
    )
