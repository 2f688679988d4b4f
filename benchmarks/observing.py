"""What observing a request costs its replica: CPU microseconds of the real observers, called as TaskServer does.

    observed_request_us    of an encoder: the report of its batch, its end, and what is added to the head of its answer
    observed_stream_us     of a generator, 64 tokens: each token, the report of its sequence, its end and its head
    sampled_request_us     as the first, with a log and traces of a share of the requests

Calls run in blocks, of which the median counts; what they are given is made before a block begins.
"""

import gc
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any, cast

from starlette.requests import Request

from deployments.config import RequestLogConfig, TaskConfig
from deployments.http.request import Observer, Timings
from deployments.observability.metrics import Metrics
from deployments.observability.replica import observers
from deployments.observability.request_log import LogFile
from deployments.observability.tracing import Tracing, provider
from deployments.protocols.huggingface import HuggingFace
from pipelines.runtime.artifact import ModelArtifact
from pipelines.scheduling.scheduler import BatchReport, Completed

TOKENS = 64
BLOCKS, BLOCK = 20, 1000
REPLICA = "measured"
SCOPE = {"type": "http", "method": "POST", "path": "/", "headers": [(b"x-request-id", b"measured")]}
_PROTOCOL = object.__new__(HuggingFace)  # observers read its class
_numbers = count()


@dataclass(frozen=True)
class Seen:
    """A request that has ended, as far as observers see it."""

    timings: Timings
    report: BatchReport
    completed: Completed[None]

    @classmethod
    def new(cls) -> "Seen":
        now, number = perf_counter(), next(_numbers)
        timings = Timings(now - 0.002, tokenization_s=0.0002, tokenized_at=now - 0.0015, protocol=_PROTOCOL)
        report = BatchReport(1, 12, 0, 12, 0.0001, 0.001, number)
        return cls(timings, report, Completed([None], 0.0001, 0.001, 12, batch_sizes=(1,), batches=(number,)))


Observe = Callable[[Observer, Request, Seen], None]


async def observing_us(model: Path, sampled_share: float) -> dict[str, float]:
    """Each figure by its name; traces go where the environment says."""
    artifact, traces = ModelArtifact.open(model), cast(Any, provider())  # the SDK's, which can be shut down
    with tempfile.TemporaryDirectory(prefix="sextet-bench-") as folder:
        log = LogFile(Path(folder) / "requests.jsonl")
        try:
            alone = observers(artifact, Metrics(REPLICA), log.write)
            alone.configured(TaskConfig("measured"))
            tracing = Tracing(artifact, REPLICA, traces.get_tracer("sextet"))
            sampled = observers(artifact, Metrics(REPLICA), log.write, tracing)
            sampled.configured(TaskConfig("measured", request_log=RequestLogConfig(sample=sampled_share)))
            return {
                "observed_request_us": _median_us(alone, _observe_request, BLOCK),
                "observed_stream_us": _median_us(alone, _observe_stream, BLOCK // TOKENS),
                "sampled_request_us": _median_us(sampled, _observe_request, BLOCK),
            }
        finally:
            log.close()
            traces.shutdown()
            provider.cache_clear()


def _median_us(observer: Observer, observe: Observe, calls: int) -> float:
    request = Request(SCOPE)
    assert request.headers  # a protocol has read them before observers do
    return median(_block_us(observer, observe, request, [Seen.new() for _ in range(calls)]) for _ in range(BLOCKS))


def _block_us(observer: Observer, observe: Observe, request: Request, block: Sequence[Seen]) -> float:
    gc.collect()
    began_s = process_time()
    for seen in block:
        observe(observer, request, seen)
    return 1e6 * (process_time() - began_s) / len(block)


def _observe_request(observer: Observer, request: Request, seen: Seen) -> None:
    observer.batch(seen.report)
    seen.timings.ran(seen.completed)
    observer.request(request, seen.timings)
    observer.headers(request, seen.timings)


def _observe_stream(observer: Observer, request: Request, seen: Seen) -> None:
    observer.headers(request, seen.timings)
    for _ in range(TOKENS):
        seen.timings.token(0)
    observer.batch(seen.report)
    observer.request(request, seen.timings)
