"""ServiceLevel: the `policy_kwargs` of a deployment that scales on a service level.

autoscaling_config:
  policy:
    policy_function: deployments.scaling.autoscaler:ServiceLevelAutoscaler
    policy_kwargs: {slo_ms: 500, quantile: 0.9}
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta

from deployments.config import read
from deployments.scaling.signals import QUANTILES
from pipelines.errors import ConfigurationError
from pipelines.schema import Text, check_fields

DAY_S = 86_400.0
Seconds = Annotated[float, Meta(gt=0, le=7 * DAY_S)]
Pause = Annotated[float, Meta(ge=0, le=7 * DAY_S)]


@dataclass(frozen=True)
class ServiceLevel:
    """The share `quantile` of requests is answered within `slo_ms` of their arrival; of generators, has its first token
    by then, and with `inter_token_ms` that share of tokens comes within it of the one before.

    `max_utilization` bounds what is planned of a replica, whatever the level allows. A backlog is to be gone
    `catch_up_s` after the replicas for it have started; `start_s` is how long a start takes until one was seen. A
    replica goes once fewer have been enough for `down_after_s`, and the last one, where min_replicas is 0, after
    `zero_after_s` without a request. Signals older than `stale_s` count as missing. `trend_s` is the time over which
    load is averaged; faster changes count as far as they are no chance.

    `pattern` is a file on the head node that keeps how many replicas the work of each quarter of an hour of recent days
    took. There are never fewer than that, and they start `start_s` ahead. A day is `day_s` long.
    """

    slo_ms: Annotated[float, Meta(gt=0, le=3_600_000)]
    quantile: float = 0.9
    inter_token_ms: Annotated[float, Meta(gt=0, le=3_600_000)] | None = None
    max_utilization: Annotated[float, Meta(gt=0, le=1)] = 0.9
    catch_up_s: Seconds = 10.0
    start_s: Seconds = 10.0
    down_after_s: Pause = 120.0
    zero_after_s: Pause = 600.0
    stale_s: Seconds = 15.0
    trend_s: Seconds = 60.0
    pattern: Text | None = None
    day_s: Seconds = DAY_S

    def __post_init__(self) -> None:
        check_fields(self)
        if self.quantile not in QUANTILES:
            allowed = ", ".join(map(str, QUANTILES))
            raise ConfigurationError(f"quantile is {self.quantile}; allowed: {allowed}, which replicas record")

    @classmethod
    def from_policy_kwargs(cls, given: Mapping[str, Any], where: str = "policy_kwargs") -> "ServiceLevel":
        """Raises ConfigurationError that names the key and what is allowed."""
        return read(cls, given, where)

    @property
    def slo_s(self) -> float:
        return self.slo_ms / 1000
