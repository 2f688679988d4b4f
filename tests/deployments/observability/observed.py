"""A TaskServer whose metrics are read as Prometheus reads them."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from deployments.http.request import Observer
from deployments.observability.metrics import Metrics
from deployments.task_server import TaskServer
from pipelines.runtime.artifact import ModelArtifact

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def observed(task: str, model: Path, observe: Callable[[ModelArtifact], Observer], **user_config: Any) -> TaskServer:
    server = TaskServer(task, observe)
    asyncio.run(server.reconfigure({"model": str(model), **user_config}))
    return server


def series_of(text: str) -> Series:
    """Each series of an exposition by its name and labels; fails where one occurs twice."""
    found: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, key
            found[key] = sample.value
    return found


def values(metrics: Metrics, name: str, **labels: str) -> list[float]:
    """Those of the series of a name that have these labels."""
    series = series_of(generate_latest(metrics.registry).decode())
    return [value for (found, has), value in series.items() if found == name and labels.items() <= dict(has).items()]
