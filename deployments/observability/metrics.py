"""Metrics: what models, batches and requests of this process did, for Prometheus. exposition.py hands them out.

Every series has the labels `task`, `model`, `version` (of the artifact) and `replica`. No label has what a client sent.

Counting a request takes two microseconds. What schedulers know by themselves, such as queues and slots, is read when
Prometheus asks.
"""

import time
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from starlette.requests import Request

from deployments.cluster.processes import resident_bytes
from deployments.http.request import Observer, Timings
from deployments.observability.series import Counter, Distribution, Gauge, Histogram, Value
from deployments.observability.statistics import BUCKET, NOW, NUMBERS, TIMES
from pipelines.runtime.artifact import ModelArtifact
from pipelines.scheduling.scheduler import BatchReport, Scheduler

LABELS = ("task", "model", "version", "replica")
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
BOUNDS = (*SECONDS, "inf")
OK = "200"
NO_PROTOCOL = "none"


class Metrics:
    """Those of one process. `replica` tells its series from those of others."""

    def __init__(self, replica: str = "") -> None:
        self.replica = replica
        self.registry = registry = CollectorRegistry()
        by_protocol = (*LABELS, "protocol")
        outcome = (*by_protocol, "status", "reason")

        def seconds(name: str, text: str, labels: tuple[str, ...] = by_protocol) -> Histogram:
            return Histogram(registry, name, text, labels, SECONDS)

        self.requests = Counter(registry, "sextet_requests", "Requests that have ended.", outcome)
        self.request_s = seconds("sextet_request_seconds", "Answered requests: the whole time.")
        self.queue_s = seconds("sextet_request_queue_seconds", "Of that, waiting for the model.")
        self.tokenization_s = seconds("sextet_request_tokenization_seconds", "Of that, tokenizing.")
        self.inference_s = seconds("sextet_request_inference_seconds", "Of that, in the model.")
        self.first_token_s = seconds("sextet_first_token_seconds", "Streams: time to the first token.")
        self.inter_token_s = seconds("sextet_inter_token_seconds", "Streams: time between two tokens of a row.")
        self.batch_rows = Histogram(registry, "sextet_batch_rows", "Rows of a batch.", LABELS, ROWS)
        self.batch_queue_s = seconds("sextet_batch_queue_seconds", "How long its first row had waited.", LABELS)
        self.batch_inference_s = seconds("sextet_batch_inference_seconds", "How long its forward took.", LABELS)
        self.tokens = Counter(registry, "sextet_tokens", "Tokens that the model read, without padding.", LABELS)
        self.padded_tokens = Counter(registry, "sextet_padded_tokens", "The same with padding.", LABELS)
        self.generated_tokens = Counter(registry, "sextet_generated_tokens", "Tokens that the model wrote.", LABELS)
        self.start_s = Gauge(registry, "sextet_start_seconds", "What a start took, by part.", (*LABELS, "part"))
        info = (*LABELS, "architecture", "precision", "parity")
        self.artifact = Gauge(registry, "sextet_artifact_info", "1 for the artifact that is loaded.", info)
        self.live: dict[tuple[str, ...], Scheduler[Any, Any]] = {}
        registry.register(Queues(self.live))

    def observer(self, artifact: ModelArtifact) -> Observer:
        """What counts for a model that is loaded."""
        return ModelMetrics(self, artifact)


class ModelMetrics(Observer):
    """Counts what one model does."""

    def __init__(self, metrics: Metrics, artifact: ModelArtifact) -> None:
        manifest = artifact.manifest
        self._metrics = metrics
        self._labels = (manifest.task, artifact.name, artifact.version, metrics.replica)
        self._info = (manifest.architecture, manifest.precision, "passed" if manifest.parity.passed else "failed")
        self._rows = metrics.batch_rows.at(*self._labels)
        self._batch_queue_s = metrics.batch_queue_s.at(*self._labels)
        self._batch_inference_s = metrics.batch_inference_s.at(*self._labels)
        self._tokens = metrics.tokens.at(*self._labels)
        self._padded_tokens = metrics.padded_tokens.at(*self._labels)
        self._generated_tokens = metrics.generated_tokens.at(*self._labels)
        self._scheduler: Scheduler[Any, Any] | None = None
        self._last_at = 0.0
        self._counters: dict[tuple[str, str, str, str], Value] = {}
        self._histograms: dict[tuple[str, str], tuple[Distribution, ...]] = {}  # by adapter and protocol

    def started(self, scheduler: Scheduler[Any, Any], seconds: Mapping[str, float]) -> None:
        for part, took_s in seconds.items():
            self._metrics.start_s.at(*self._labels, part).value = took_s
        self._metrics.artifact.at(*self._labels, *self._info).value = 1
        self._scheduler = self._metrics.live[self._labels] = scheduler

    def ended(self) -> None:
        live = self._metrics.live
        if live.get(self._labels) is self._scheduler:  # else the same artifact was loaded anew
            del live[self._labels]
            self._metrics.artifact.remove(*self._labels, *self._info)

    def batch(self, report: BatchReport) -> None:
        self._last_at = time.time()
        self._rows.observe(report.rows)
        self._batch_queue_s.observe(report.queue_s)
        self._batch_inference_s.observe(report.inference_s)
        self._tokens.value += report.read_tokens
        self._padded_tokens.value += report.padded_tokens
        self._generated_tokens.value += report.written_tokens

    def statistics(self) -> dict[str, float]:
        found = dict.fromkeys(NUMBERS, 0.0)
        for (_, protocol, status, _), count in list(self._counters.items()):
            if protocol != NO_PROTOCOL:
                found["answered" if status == OK else "failed"] += count.value
        for families in list(self._histograms.values()):
            for name, family in zip(TIMES, families, strict=False):
                found[name] += family.sum
        found["batches"], found["rows"] = float(sum(self._rows.counts)), self._rows.sum
        totals = [families[0].counts for families in list(self._histograms.values())]
        found |= {f"{BUCKET}{bound}": float(sum(counts)) for bound, *counts in zip(BOUNDS, *totals, strict=True)}
        if (scheduler := self._scheduler) is not None:
            cache = scheduler.cache
            slots, taken = (0, 0) if cache is None else (cache.slots, cache.taken_slots)
            found |= dict(zip(NOW, (1.0, float(scheduler.waiting_requests), float(slots), float(taken)), strict=True))
        return found | {"last_at": self._last_at}

    def request(self, request: Request, timings: Timings) -> None:
        protocol, failure = protocol_name(type(timings.protocol).__module__), timings.failure
        status, reason = (OK, "") if failure is None else (str(failure.status), failure.reason)
        outcome = timings.model, protocol, status, reason
        if outcome not in self._counters:
            self._counters[outcome] = self._metrics.requests.at(*self._labels_of(timings.model), *outcome[1:])
        self._counters[outcome].value += 1
        if failure is not None or timings.protocol is None:
            return
        key = timings.model, protocol
        if key not in self._histograms:
            self._histograms[key] = self._of_protocol(*key)
        total, queue, tokenization, inference, first_token, inter_token = self._histograms[key]
        total.observe(timings.total_s())
        queue.observe(timings.queue_s)
        tokenization.observe(timings.tokenization_s)
        inference.observe(timings.inference_s)
        if timings.first_token_s is not None:
            first_token.observe(timings.first_token_s)
        for gap_s in timings.gaps_s:
            inter_token.observe(gap_s)

    def _of_protocol(self, adapter: str, protocol: str) -> tuple[Distribution, ...]:
        metrics, labels = self._metrics, self._labels_of(adapter)
        families = (metrics.request_s, metrics.queue_s, metrics.tokenization_s, metrics.inference_s)
        return tuple(
            family.at(*labels, protocol) for family in (*families, metrics.first_token_s, metrics.inter_token_s)
        )

    def _labels_of(self, adapter: str) -> tuple[str, ...]:
        """A request to an adapter is one of the model of its name."""
        task, model, *others = self._labels
        return task, adapter or model, *others


class Queues:
    """Reads the schedulers of live models when Prometheus asks."""

    def __init__(self, live: Mapping[tuple[str, ...], Scheduler[Any, Any]]) -> None:
        self._live = live

    def collect(self) -> Iterator[Metric]:
        waiting = {
            "waiting_requests": GaugeMetricFamily("sextet_queue_requests", "Requests that wait.", labels=LABELS),
            "waiting_rows": GaugeMetricFamily("sextet_queue_rows", "Rows that wait.", labels=LABELS),
            "waiting_tokens": GaugeMetricFamily("sextet_queue_tokens", "Tokens to read that wait.", labels=LABELS),
            "work_s": GaugeMetricFamily(
                "sextet_work_seconds", "Predicted until all that is admitted is answered.", labels=LABELS
            ),
        }
        cached: dict[str, Metric] = {
            "slots": GaugeMetricFamily("sextet_slots", "KV cache slots.", labels=LABELS),
            "taken_slots": GaugeMetricFamily("sextet_slots_taken", "Of them, taken.", labels=LABELS),
            "tokens": GaugeMetricFamily("sextet_kv_cache_tokens", "Tokens that all slots can hold.", labels=LABELS),
            "held_tokens": GaugeMetricFamily("sextet_kv_cache_tokens_held", "Those in taken slots.", labels=LABELS),
            "prompt_tokens": CounterMetricFamily("sextet_prompt_tokens", "Tokens of prompts.", labels=LABELS),
            "reused_tokens": CounterMetricFamily(
                "sextet_prompt_tokens_reused", "Of them, found in the prefix cache.", labels=LABELS
            ),
        }
        memory = GaugeMetricFamily("sextet_memory_bytes", "Memory of the process.", labels=LABELS)
        memory_bytes = resident_bytes()
        for labels, scheduler in list(self._live.items()):
            memory.add_metric(labels, memory_bytes)
            for name, family in waiting.items():
                family.add_metric(labels, getattr(scheduler, name))
            if (state := scheduler.cache) is not None:
                for name, found in cached.items():
                    found.add_metric(labels, getattr(state, name))  # type: ignore[attr-defined]
        yield from (memory, *waiting.values(), *cached.values())


@cache
def protocol_name(module: str) -> str:
    """The module below deployments.protocols that a protocol is in; "none" for paths that have no protocol."""
    names = module.split(".")
    return names[2] if names[:2] == ["deployments", "protocols"] else NO_PROTOCOL
