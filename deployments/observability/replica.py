"""What a process of Ray Serve observes: metrics and request log of a replica; in the gateway, which replicas there are.

Imports ray. What it starts belongs to the process: it is made when it is needed first, and ends with it.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import ray
from prometheus_client import CollectorRegistry, generate_latest
from ray import serve
from ray.serve._private.constants import RAY_SERVE_ENABLE_HA_PROXY, RAY_SERVE_HAPROXY_SOCKET_PATH
from starlette.requests import Request

from deployments.config import TaskConfig
from deployments.http.errors import logger
from deployments.http.request import Observer, Timings
from deployments.observability.exposition import Exposition, address
from deployments.observability.metrics import Metrics
from deployments.observability.refusals import Refusals
from deployments.observability.replicas import Replicas
from deployments.observability.request_log import LogFile, RequestLog
from deployments.observability.tracing import Tracing, is_on, provider
from deployments.scaling.recorder import Recorder
from pipelines.errors import ConfigurationError
from pipelines.runtime.artifact import ModelArtifact
from pipelines.scheduling.scheduler import BatchReport, Scheduler


class Observers(Observer):
    """Tells several."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self._observers = tuple(observers)
        self._with_headers = [one for one in self._observers if type(one).headers is not Observer.headers]

    def started(self, scheduler: Scheduler[Any, Any], seconds: Mapping[str, float]) -> None:
        for one in self._observers:
            one.started(scheduler, seconds)

    def configured(self, config: TaskConfig) -> None:
        for one in self._observers:
            one.configured(config)

    def batch(self, report: BatchReport) -> None:
        for one in self._observers:
            one.batch(report)

    def request(self, request: Request, timings: Timings) -> None:
        for one in self._observers:
            one.request(request, timings)

    def headers(self, request: Request, timings: Timings) -> list[tuple[bytes, bytes]]:
        return [header for one in self._with_headers for header in one.headers(request, timings)]

    def ended(self) -> None:
        for one in self._observers:
            one.ended()

    def statistics(self) -> dict[str, float]:
        return {name: value for one in self._observers for name, value in one.statistics().items()}

    def signals(self) -> Mapping[str, float]:
        return {name: value for one in self._observers for name, value in one.signals().items()}


def observe(artifact: ModelArtifact) -> Observer:
    """What is told of a model that this replica has loaded."""
    metrics = _metrics()
    return observers(artifact, metrics, _log_file().write, *_tracing(artifact, metrics.replica))


def observers(artifact: ModelArtifact, metrics: Metrics, write: Callable[[str], None], *more: Observer) -> Observers:
    """What counts, logs and tells autoscaling what a model does, and `more`; `write` takes the lines of the log."""
    log = RequestLog(artifact, metrics.replica, write)
    return Observers((metrics.observer(artifact), log, Recorder(), *more))


def watch_replicas() -> None:
    """Hand out which replicas are wanted and there."""
    _metrics().registry.register(Replicas())


@cache
def _metrics() -> Metrics:
    """Those of this process, which Prometheus finds from now on."""
    metrics = Metrics(serve.get_replica_context().replica_id.unique_id)
    try:
        at = address()
        if at is not None:
            Exposition(lambda: generate_latest(metrics.registry), _session() / "sextet", at, _of_node()).start()
    except (OSError, ConfigurationError) as error:  # a replica serves nevertheless
        logger.error("no metrics: %s", error)
    return metrics


def _of_node() -> Callable[[], bytes]:
    """What HAProxy counts on this node."""
    registry = CollectorRegistry()
    if RAY_SERVE_ENABLE_HA_PROXY:
        named = Path(RAY_SERVE_HAPROXY_SOCKET_PATH)  # Ray Serve puts it into a folder of the node's
        registry.register(Refusals(named.parent / ray.get_runtime_context().get_node_id() / named.name))
    return partial(generate_latest, registry)


def _tracing(artifact: ModelArtifact, replica: str) -> Iterator[Observer]:
    if is_on():
        try:
            yield Tracing(artifact, replica, provider().get_tracer("sextet"))
        except ConfigurationError as error:  # a replica serves nevertheless
            logger.error("no traces: %s", error)


@cache
def _log_file() -> LogFile:
    return LogFile(_session() / "logs" / "serve" / f"requests_{os.getpid()}.jsonl")


def _session() -> Path:
    """Ray's folder on this node: one for each cluster, and short enough for the path of a socket."""
    return Path(ray._private.worker._global_node.get_session_dir_path())
