"""Tracing: spans of OpenTelemetry for the requests of a replica, where the environment names a collector.

    POST /translation            the caller's `traceparent` is its parent
      tokenization
      queue                      from the scheduler to the first row's start
      inference                  of an encoder
      prefill                    of a generator: to the first token, of a beam search to its first step
      decode                     of a generator: to the last token, of a stream to its end
      answer                     postprocessing and JSON; of a stream, nothing
    batch                        of an encoder: in the trace of the first traced request that was in it, with links to
                                 those of all; their `inference` has a link to it

An answer has `traceresponse` (W3C Trace Context, level 2): the trace and the span of its request.

Spans are made when a request has ended, from the times that it has anyway: tracing adds nothing to the way of a
request, and nothing at all where it is off. OTEL_TRACES_SAMPLER and the other variables of the SDK hold.
"""

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from functools import cache

from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    TracerProvider,
    format_span_id,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.requests import Request

from deployments.http.request import Observer, Timings
from deployments.observability.metrics import protocol_name
from pipelines.errors import ConfigurationError
from pipelines.runtime.artifact import ModelArtifact
from pipelines.scheduling.scheduler import BatchReport

VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
CALLER = ("traceparent", "tracestate")  # headers of W3C Trace Context
NS = 1_000_000_000
SERVER_ERRORS = 500
KEPT_BATCHES = 1024
LINKING_S = 1.0
"""After the first request of a batch has ended, others in it get links for so long."""
_propagator = TraceContextTextMapPropagator()


def is_on() -> bool:
    """Whether the environment names a collector."""
    return any(os.environ.get(name) for name in VARIABLES)


@cache
def provider() -> TracerProvider:
    """What sends spans to the collector, in a thread of its own. Raises ConfigurationError without the exporter."""
    from opentelemetry.sdk import trace
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise ConfigurationError(f"{VARIABLES[0]} is set; tracing needs: pip install 'sextet[otlp]'") from None
    service = {"service.name": os.environ.get("OTEL_SERVICE_NAME", "sextet")}
    made = trace.TracerProvider(resource=Resource.create(service))
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return made


class Tracing(Observer):
    """Makes the spans of one model's requests."""

    def __init__(self, artifact: ModelArtifact, replica: str, tracer: Tracer) -> None:
        self._tracer, self._batches = tracer, Batches(tracer)
        self._model = {
            "sextet.task": artifact.manifest.task,
            "sextet.model": artifact.name,
            "sextet.version": artifact.version,
            "sextet.replica": replica,
        }

    def batch(self, report: BatchReport) -> None:
        self._batches.add(report)

    def headers(self, request: Request, timings: Timings) -> list[tuple[bytes, bytes]]:
        told = self._span(request, timings).get_span_context()
        value = f"00-{format_trace_id(told.trace_id)}-{format_span_id(told.span_id)}-{told.trace_flags:02x}"
        return [(b"traceresponse", value.encode())]

    def ended(self) -> None:
        self._batches.end()

    def _span(self, request: Request, timings: Timings) -> Span:
        """The request's, begun when it came."""
        if timings.trace is None:
            caller = {name: value for name in CALLER if (value := request.headers.get(name))}
            timings.trace = self._tracer.start_span(
                f"{request.method} /{self._model['sextet.task']}",
                _propagator.extract(caller) if caller else Context(),
                SpanKind.SERVER,
                start_time=time.time_ns() - int(timings.total_s() * NS),
            )
        span: Span = timings.trace
        return span

    def request(self, request: Request, timings: Timings) -> None:
        ended_at, ended_ns = time.perf_counter(), time.time_ns()

        def ns(at: float) -> int:
            return ended_ns - int((ended_at - at) * NS)

        failure, adapter, span = timings.failure, timings.adapter, self._span(request, timings)
        if span.is_recording():
            span.set_attributes(
                self._model
                | ({} if adapter is None else {"sextet.model": adapter.name, "sextet.version": adapter.version})
                | {
                    "sextet.protocol": protocol_name(type(timings.protocol).__module__),
                    "sextet.request_id": request.headers.get("x-request-id", ""),
                    "sextet.read_tokens": timings.read_tokens,
                    "sextet.written_tokens": timings.written_tokens,
                    "http.response.status_code": 200 if failure is None else failure.status,
                }
            )
            if failure is not None:
                span.set_attribute("error.type", failure.reason)
                if failure.status >= SERVER_ERRORS:
                    span.set_status(Status(StatusCode.ERROR, failure.reason))
            parent = set_span_in_context(span)
            for name, begins, ends in parts(timings, ended_at):
                links = [*self._batches.links(timings.batches, span)] if name == "inference" else None
                self._tracer.start_span(name, parent, links=links, start_time=ns(begins)).end(ns(ends))
        span.end(ended_ns)


class Batches:
    """The last batches of a model, by number; those of traced requests become spans."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._ended: dict[int, tuple[BatchReport, int]] = {}
        self._spans: dict[int, Span] = {}

    def add(self, report: BatchReport) -> None:
        if report.number is not None:
            self._ended[report.number] = report, time.time_ns()
            while len(self._ended) > KEPT_BATCHES:
                forgotten = next(iter(self._ended))
                del self._ended[forgotten]
                self._spans.pop(forgotten, None)

    def links(self, numbers: Sequence[int], request: Span) -> Iterator[Link]:
        """From a request to the batches that its rows were in; these get one to the request."""
        for number in numbers:
            if number not in self._ended:
                continue
            if number not in self._spans:
                self._spans[number] = self._begun(number, request)
            if (span := self._spans[number]).is_recording():
                span.add_link(request.get_span_context())
            yield Link(span.get_span_context())

    def end(self) -> None:
        """End all spans."""
        for number in list(self._spans):
            self._end(number)

    def _begun(self, number: int, request: Span) -> Span:
        report, ended_ns = self._ended[number]
        counted = {"rows": report.rows, "read_tokens": report.read_tokens, "padded_tokens": report.padded_tokens}
        asyncio.get_running_loop().call_later(LINKING_S, self._end, number)
        return self._tracer.start_span(
            "batch",
            set_span_in_context(request),
            attributes={f"sextet.batch.{name}": value for name, value in counted.items()},
            start_time=ended_ns - int(report.inference_s * NS),
        )

    def _end(self, number: int) -> None:
        if number in self._spans and self._spans[number].is_recording():
            self._spans[number].end(self._ended[number][1])


def parts(timings: Timings, ended_at: float) -> Iterator[tuple[str, float, float]]:
    """Name, begin and end of each part that a request came to, in the order of time."""
    tokenized_at = timings.tokenized_at
    if tokenized_at is None:
        return
    yield "tokenization", tokenized_at - timings.tokenization_s, tokenized_at
    begun_at = min(tokenized_at + timings.queue_s, ended_at)
    yield "queue", tokenized_at, begun_at
    if not timings.inference_s:
        return
    inferred_at = ended_at if timings.is_stream else min(begun_at + timings.inference_s, ended_at)
    if timings.first_token_s is None:
        yield "inference", begun_at, inferred_at
    else:
        first_at = min(max(begun_at, timings.started_at + timings.first_token_s), inferred_at)
        yield "prefill", begun_at, first_at
        yield "decode", first_at, inferred_at
    if not timings.is_stream:
        yield "answer", inferred_at, ended_at
