"""Refusals: what the ingress of this node refuses by itself, as HAProxy has counted it (ingress/refusals.py)."""

from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from deployments.config import task_of
from deployments.ingress.refusals import Counts, read_counts


class Refusals(Collector):
    """Asks HAProxy at each scrape; nothing where it does not answer."""

    def __init__(self, admin_socket: Path) -> None:
        self._admin_socket = admin_socket
        self._last = Counts()

    def collect(self) -> Iterator[Metric]:
        text, labels = "Requests that the ingress has refused by itself.", ("task", "application", "status", "reason")
        family = CounterMetricFamily("sextet_refusals", text, labels=labels)
        for (application, status, reason), count in self._counts().items():
            family.add_metric((task_of(application), application, status, reason), count)
        yield family

    def describe(self) -> list[Metric]:
        """Registering asks nobody."""
        return []

    def _counts(self) -> dict[tuple[str, str, str], int]:
        """They never fall, but where HAProxy itself began anew: Prometheus would take less for a start at 0."""
        now = read_counts(self._admin_socket)
        if now is None:
            return {}
        before = self._last.of if now.epoch == self._last.epoch else {}
        counts = {kind: max(count, before.get(kind, 0)) for kind, count in now.of.items()}
        self._last = Counts(now.epoch, counts)
        return counts
