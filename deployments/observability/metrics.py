"""Metrics: what models, batches and requests of this process did, for Prometheus. exposition.py hands them out.

Every series has the labels `task`, `model`, `version` (of the artifact, or of the adapter) and `replica`. No label has
what a client sent.

Counting a request takes two microseconds (benchmarks/observing.py). What schedulers know by themselves, such as queues
and slots, is read when Prometheus asks.
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
from deployments.observability.statistics import BUCKET, NOW, NUMBERS, OK, TIMES, of_adapter, outcome_of
from pipelines.runtime.artifact import ModelArtifact
from pipelines.scheduling.scheduler import BatchReport, Scheduler

LABELS = ("task", "model", "version", "replica")
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
BOUNDS = (*SECONDS, "inf")
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
        self.first_token_s = seconds("sextet_first_token_seconds", "Generators: time to the first token.")
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
        beside = (*LABELS, "base", "rank")
        self.adapter = Gauge(registry, "sextet_adapter_info", "1 for an adapter that is loaded beside it.", beside)
        self.live: dict[tuple[str, ...], Scheduler[Any, Any]] = {}
        self.beside: dict[tuple[str, ...], Observer] = {}
        registry.register(Queues(self.live))

    def observer(self, artifact: ModelArtifact) -> Observer:
        """What counts for a model that is loaded."""
        return ModelMetrics(self, artifact)


class ModelMetrics(Observer):
    """Counts what one model does. What is asked of one of its adapters, and a row of it, is that adapter's."""

    def __init__(self, metrics: Metrics, artifact: ModelArtifact) -> None:
        manifest = artifact.manifest
        self._metrics = metrics
        self._labels = (manifest.task, artifact.name, artifact.version, metrics.replica)
        self._info = (manifest.architecture, manifest.precision, "passed" if manifest.parity.passed else "failed")
        self._adapters = {
            (manifest.task, one.name, one.version, metrics.replica): (artifact.name, str(one.rank))
            for one in artifact.adapters
        }
        self._counts = [Counts(metrics, labels) for labels in (self._labels, *self._adapters)]  # by an adapter's number
        self._by_name = dict(zip(["", *(one.name for one in artifact.adapters)], self._counts, strict=True))
        self._scheduler: Scheduler[Any, Any] | None = None

    def started(self, scheduler: Scheduler[Any, Any], seconds: Mapping[str, float]) -> None:
        for part, took_s in seconds.items():
            self._metrics.start_s.at(*self._labels, part).value = took_s
        self._metrics.artifact.at(*self._labels, *self._info).value = 1
        for labels, info in self._adapters.items():
            self._metrics.beside[labels] = self
            self._metrics.adapter.at(*labels, *info).value = 1
        self._scheduler = self._metrics.live[self._labels] = scheduler

    def ended(self) -> None:
        live = self._metrics.live
        if live.get(self._labels) is self._scheduler:  # else the same artifact was loaded anew
            del live[self._labels]
            self._metrics.artifact.remove(*self._labels, *self._info)
        for labels, info in self._adapters.items():
            if self._metrics.beside.get(labels) is self:
                del self._metrics.beside[labels]
                self._metrics.adapter.remove(*labels, *info)

    def batch(self, report: BatchReport) -> None:
        self._counts[report.adapter].batch(report)

    def request(self, request: Request, timings: Timings) -> None:
        adapter = timings.adapter
        self._by_name["" if adapter is None else adapter.name].request(timings)

    def statistics(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for adapter, counts in self._by_name.items():
            found |= of_adapter(adapter, counts.numbers() | self._now())
        return found

    def _now(self) -> dict[str, float]:
        """What is so at this moment; of the adapters, too, as they share it."""
        if (scheduler := self._scheduler) is None:
            return {}
        cache = scheduler.cache
        slots, taken = (0, 0) if cache is None else (cache.slots, cache.taken_slots)
        return dict(zip(NOW, (1.0, float(scheduler.waiting_requests), float(slots), float(taken)), strict=True))


class Counts:
    """What one model, or one adapter, has done: the series with some `labels`."""

    def __init__(self, metrics: Metrics, labels: tuple[str, ...]) -> None:
        self._metrics, self._labels = metrics, labels
        self._rows = metrics.batch_rows.at(*labels)
        self._batch_queue_s = metrics.batch_queue_s.at(*labels)
        self._batch_inference_s = metrics.batch_inference_s.at(*labels)
        self._tokens = metrics.tokens.at(*labels)
        self._padded_tokens = metrics.padded_tokens.at(*labels)
        self._generated_tokens = metrics.generated_tokens.at(*labels)
        self._last_at = 0.0
        self._counters: dict[tuple[str, str, str], Value] = {}
        self._histograms: dict[str, tuple[Distribution, ...]] = {}  # by protocol

    def batch(self, report: BatchReport) -> None:
        self._last_at = time.time()
        self._rows.observe(report.rows)
        self._batch_queue_s.observe(report.queue_s)
        self._batch_inference_s.observe(report.inference_s)
        self._tokens.value += report.read_tokens
        self._padded_tokens.value += report.padded_tokens
        self._generated_tokens.value += report.written_tokens

    def request(self, timings: Timings) -> None:
        protocol, failure = protocol_name(type(timings.protocol).__module__), timings.failure
        outcome = (protocol, OK, "") if failure is None else (protocol, str(failure.status), failure.reason)
        if outcome not in self._counters:
            self._counters[outcome] = self._metrics.requests.at(*self._labels, *outcome)
        self._counters[outcome].value += 1
        if failure is not None or timings.protocol is None:
            return
        if protocol not in self._histograms:
            self._histograms[protocol] = self._of_protocol(protocol)
        total, queue, tokenization, inference, first_token, inter_token = self._histograms[protocol]
        total.observe(timings.total_s())
        queue.observe(timings.queue_s)
        tokenization.observe(timings.tokenization_s)
        inference.observe(timings.inference_s)
        if timings.first_token_s is not None:
            first_token.observe(timings.first_token_s)
        for gap_s in timings.gaps_s:
            inter_token.observe(gap_s)

    def numbers(self) -> dict[str, float]:
        """For those who ask the replica: observability/statistics.py."""
        found = dict.fromkeys(NUMBERS, 0.0)
        for (protocol, status, _), count in list(self._counters.items()):
            if protocol != NO_PROTOCOL:
                found[outcome_of(status)] += count.value
        for families in list(self._histograms.values()):
            for name, family in zip(TIMES, families, strict=False):
                found[name] += family.sum
        found["batches"], found["rows"] = float(sum(self._rows.counts)), self._rows.sum
        totals = [families[0].counts for families in list(self._histograms.values())]
        found |= {f"{BUCKET}{bound}": float(sum(counts)) for bound, *counts in zip(BOUNDS, *totals, strict=True)}
        return found | {"last_at": self._last_at}

    def _of_protocol(self, protocol: str) -> tuple[Distribution, ...]:
        metrics = self._metrics
        families = (metrics.request_s, metrics.queue_s, metrics.tokenization_s, metrics.inference_s)
        return tuple(
            family.at(*self._labels, protocol) for family in (*families, metrics.first_token_s, metrics.inter_token_s)
        )


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
