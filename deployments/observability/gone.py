"""Gone: series of replicas that have ended disappear from Ray's metrics, two minutes after the last sign of life.

Ray lets go of gauges whose process is silent. Counters and histograms stay in its agent, the process of each node that
Prometheus scrapes, as long as that runs. Each replica reports one gauge every ten seconds, whatever it does; once that
stops, what is left of it is left out of the answer.

Ray has no setting for this, and starts the agent itself. OpenTelemetry's resource detectors are the code of others that
runs there: the agent loads those that OTEL_EXPERIMENTAL_RESOURCE_DETECTORS names (pyproject.toml has ours).
"""

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

DETECTOR = "sextet"
"""Its name as an entry point."""
SIGN = "serve_replica_utilization_percent"
"""The gauge that only a replica itself reports."""
SILENT_S = 120.0
_RECORDER = "ray._private.telemetry.open_telemetry_metric_recorder"
_REPLICA = re.compile(r"^SERVE_REPLICA::.*#(\w+)(?::|$)")  # in the names of actors, tasks and workers


class Signs:
    """When each replica of this node, and its process, was heard of."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard: dict[str, float] = {}

    def note(self, name: str, tags: Mapping[str, str]) -> None:
        """A process has reported a value of the metric `name`."""
        if name == SIGN and (replica := tags.get("replica")):
            self._heard[replica] = self._heard[tags.get("WorkerId", replica)] = self._clock()

    def is_gone(self, labels: Mapping[str, str]) -> bool:
        """Whether a series with these labels is of a replica, or of its process, that has ended."""
        for one in (labels.get("WorkerId"), labels.get("replica"), _named(labels)):
            if one is not None and self._is_silent(one):
                return True
        return False

    def left(self, families: Iterable[Any]) -> Iterator[Any]:
        """Prometheus' metric families, without the series of replicas that are gone."""
        for family in families:
            family.samples = [sample for sample in family.samples if not self.is_gone(sample.labels)]
            yield family

    def _is_silent(self, one: str) -> bool:
        return self._clock() - self._heard.get(one, self._clock()) > SILENT_S


def _named(labels: Mapping[str, str]) -> str | None:
    found = _REPLICA.match(labels.get("Name", ""))
    return found[1] if found else None


def watch(recorder: Any, registry: Any, signs: Signs) -> None:
    """Have `signs` hear what is reported to the class `recorder`, and decide what `registry` shows."""
    set_value, collect = recorder.set_metric_value, registry.collect

    def noted(self: Any, name: str, tags: dict[str, str], value: float) -> None:
        signs.note(name, tags)
        set_value(self, name, tags, value)

    recorder.set_metric_value = noted
    registry.collect = lambda: signs.left(collect())


class Detector:
    """A resource detector that detects nothing. In Ray's agent, it is what runs first."""

    raise_on_error = False
    _is_watching = False

    def detect(self) -> Any:
        from opentelemetry.sdk.resources import Resource

        if (module := sys.modules.get(_RECORDER)) is not None and not Detector._is_watching:
            from prometheus_client import REGISTRY

            Detector._is_watching = True
            watch(module.OpenTelemetryMetricRecorder, REGISTRY, Signs())
        return Resource.get_empty()
