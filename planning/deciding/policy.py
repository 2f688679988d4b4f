"""Policies: how many replicas there should be. Ray Serve's own rules around them are Ray Serve's own code.

    FixedReplicas    always the same number
    RayDefault       target_ongoing_requests per replica, as Ray Serve decides without a policy

`autoscaling_config` bounds them; its factors and delays hold for both of what scales, as in Ray Serve.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from deployments.scaling.daily import DailyPattern
from pipelines.errors import ConfigurationError, first_line
from planning.bounds import MAX_REPLICAS, bounded


@dataclass(frozen=True)
class View:
    """What a policy sees. `now_s` begins at the time of day at which the trace does. `ongoing` is the mean number of
    requests inside over the look-back period, `waiting` how many wait for a first replica.
    """

    now_s: float
    running: int
    target: int
    ongoing: float
    waiting: int
    signals: Callable[[], Mapping[str, Any]]


class Policy(Protocol):
    """Decides for one deployment, and may remember what it saw. Signals are recorded where it `reads_signals`."""

    name: str
    reads_signals: bool

    def first(self) -> int:
        """Replicas that run when the trace begins."""

    def replicas(self, view: View) -> int:
        """Those that are wanted now."""


class FixedReplicas:
    """`static`."""

    reads_signals = False

    def __init__(self, count: int) -> None:
        self.name, self._count = f"static {count}", count

    def first(self) -> int:
        return self._count

    def replicas(self, view: View) -> int:
        return self._count


class RayRules:
    """What Ray Serve does around a policy: cold start, factors, delays and bounds of `autoscaling_config`.

    `wanted` is the policy; None for Ray Serve's default. `pattern` is what it remembers of days, if it does.

    Raises ConfigurationError for what Ray Serve would refuse.
    """

    def __init__(
        self,
        name: str,
        autoscaling: Mapping[str, Any],
        wanted: Callable[[View, int, int], float] | None = None,
        pattern: DailyPattern | None = None,
    ) -> None:
        from ray.serve.config import AutoscalingConfig

        given = {key: value for key, value in autoscaling.items() if key != "policy"}
        try:
            self._config: Any = AutoscalingConfig(**given)
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"autoscaling_config: {first_line(error)}") from None
        bounded("autoscaling_config.max_replicas", self._config.max_replicas, 1, MAX_REPLICAS)
        self.name, self._wanted, self.pattern = name, wanted, pattern
        self.reads_signals = wanted is not None
        self._state: dict[str, Any] = {}

    @property
    def metrics_interval_s(self) -> float:
        return float(self._config.metrics_interval_s)

    @property
    def look_back_s(self) -> float:
        return float(self._config.look_back_period_s)

    def first(self) -> int:
        initial = self._config.initial_replicas
        return int(self._config.min_replicas if initial is None else initial)

    def replicas(self, view: View) -> int:
        from ray.serve import autoscaling_policy as rules

        context: Any = _Context(view, self._config)
        cold = rules._get_cold_start_scale_up_replicas(context)
        if cold is not None:
            return self._bounded(cold)
        if self._wanted is None:
            desired, _ = rules._core_replica_queue_length_policy(context)
        else:
            desired = self._wanted(view, self._config.min_replicas, self._config.max_replicas)
        scaled = rules._apply_scaling_factors(desired, view.running, self._config)
        if view.running == 0 and scaled > 0:
            return self._bounded(scaled)
        decided, self._state = rules._apply_delay_logic(
            max(0, scaled), view.target, self._config, self._state, _now=view.now_s
        )
        return self._bounded(decided)

    def _bounded(self, replicas: float) -> int:
        return max(int(self._config.min_replicas), min(int(self._config.max_replicas), math.ceil(replicas)))


class _Context:
    """The part of Ray Serve's AutoscalingContext that its own rules read."""

    def __init__(self, view: View, config: Any) -> None:
        self.current_num_replicas, self.target_num_replicas = view.running, view.target
        self.total_num_requests = view.ongoing if view.running else float(view.waiting)
        self.config = config
