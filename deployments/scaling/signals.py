"""ReplicaSignals: what one replica says of its load, for whoever decides how many there are. No Ray, no clock.

Ray Serve carries numbers by name (`record_autoscaling_stats`), so `metrics` and `of_metrics` translate. A quantile that
a replica has no sample of is missing there, and None here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

WINDOW_S = 10.0
"""Over which a replica counts what arrives and ends."""
QUANTILES = (0.5, 0.9, 0.95, 0.99)
"""Those that replicas record."""

Quantiles = Mapping[float, float]
"""Seconds by quantile; empty without samples."""


@dataclass(frozen=True)
class ReplicaSignals:
    """The last seconds of one replica (`WINDOW_S`), as far as not said otherwise.

    `load` is what has arrived, in replicas: seconds of work per second for an encoder; for a generator the mean of the
    sequences inside, waiting ones too, over its slots. It exceeds 1 where a replica gets more than it can do.
    `servers` is how many requests share a replica at full speed: its slots, or 1. `service_s` is the mean time that a
    request occupies one of them. `own_s` is the mean time from the start of a request to what a level bounds: the
    answer, or the first token of a generator.

    `queued_s` is the predicted time until what waits now has started, if nothing else arrived. `inside` counts requests
    that have not ended now; a stream ends with its last event or its client. `utilization` is the share of its time in
    which the model worked.

    `response_s` are quantiles of the time from arrival to what a level bounds, over the `ended` requests of the window;
    `queue_s` those of the wait for the model, `inter_token_s` those between two tokens of a stream.
    """

    requests_per_s: float = 0.0
    load: float = 0.0
    servers: float = 1.0
    service_s: float = 0.0
    own_s: float = 0.0
    queued_s: float = 0.0
    inside: float = 0.0
    utilization: float = 0.0
    ended: float = 0.0
    response_s: Quantiles = field(default_factory=dict)
    queue_s: Quantiles = field(default_factory=dict)
    inter_token_s: Quantiles = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Numbers by name: `load`, ..., `response_s_p90`, ..."""
        named: dict[str, float] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Mapping):
                named |= {_name(one.name, quantile): seconds for quantile, seconds in value.items()}
            else:
                named[one.name] = float(value)
        return named

    @classmethod
    def of_metrics(cls, given: Mapping[str, float]) -> "ReplicaSignals | None":
        """What `metrics` made; None where a number is missing that every replica says, or is none."""
        if not all(map(math.isfinite, given.values())):
            return None
        found: dict[str, float | Quantiles] = {}
        for one in fields(cls):
            if one.name in DISTRIBUTIONS:
                named = {quantile: _name(one.name, quantile) for quantile in QUANTILES}
                found[one.name] = {quantile: given[name] for quantile, name in named.items() if name in given}
            elif one.name in given:
                found[one.name] = given[one.name]
            else:
                return None
        return cls(**found)  # type: ignore[arg-type]


DISTRIBUTIONS = ("response_s", "queue_s", "inter_token_s")


def _name(distribution: str, quantile: float) -> str:
    return f"{distribution}_p{100 * quantile:g}"
