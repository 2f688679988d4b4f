"""Replicas: how many of each task Ray Serve wants, and how many take requests, as its controller says."""

from collections.abc import Iterator
from typing import Any

import ray
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

# serve.status() does not say how many are wanted.
from ray.serve.context import _get_global_client

from deployments.cluster.catalog import ANSWERING
from deployments.http.errors import logger

TIMEOUT_S = 0.8  # less than exposition.PROCESS_S


class Replicas(Collector):
    """Asks the controller at each scrape; nothing where it does not answer in time."""

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily("sextet_replicas", "Replicas of an application.", labels=("application", "state"))
        for name, application in self._applications().items():
            for deployment in application["deployments"].values():
                there = [one for one in deployment["replicas"] if one["state"] in ANSWERING]
                family.add_metric((name, "wanted"), deployment["target_num_replicas"])
                family.add_metric((name, "there"), len(there))
        yield family

    def describe(self) -> list[Metric]:
        """Registering asks nobody."""
        return []

    def _applications(self) -> dict[str, Any]:
        try:
            controller = _get_global_client()._controller
            details: dict[str, Any] = ray.get(controller.get_serve_instance_details.remote(), timeout=TIMEOUT_S)
        except Exception as error:  # whatever Ray fails with while it starts, ends or is busy
            logger.warning("the controller does not say which replicas there are: %s", type(error).__name__)
            return {}
        applications: dict[str, Any] = details["applications"]
        return applications
