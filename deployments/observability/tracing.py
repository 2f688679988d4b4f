"""Tracing: spans of OpenTelemetry for the requests of a replica, where the environment names a collector.

    POST /translation            the caller's `traceparent` is its parent
      tokenization
      queue                      from the scheduler to the first row's start
      inference                  of a stream: prefill, to the first token, and decode
      answer                     postprocessing and JSON; of a stream, nothing

Spans are made when a request has ended, from the times that it has anyway: tracing adds nothing to the way of a
request, and nothing at all where it is off. OTEL_TRACES_SAMPLER and the other variables of the SDK hold.
"""

import os
import time
from collections.abc import Iterator
from functools import cache

from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer, TracerProvider, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.requests import Request

from deployments.http.request import Observer, Timings
from deployments.observability.metrics import protocol_name
from pipelines.errors import ConfigurationError
from pipelines.runtime.artifact import ModelArtifact

VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
NS = 1_000_000_000
SERVER_ERRORS = 500
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
        self._tracer = tracer
        self._model = {
            "sextet.task": artifact.manifest.task,
            "sextet.model": artifact.name,
            "sextet.version": artifact.version,
            "sextet.replica": replica,
        }

    def request(self, request: Request, timings: Timings) -> None:
        ended_at, ended_ns = time.perf_counter(), time.time_ns()

        def ns(at: float) -> int:
            return ended_ns - int((ended_at - at) * NS)

        caller = {name: request.headers.get(name, "") for name in ("traceparent", "tracestate")}
        failure = timings.failure
        span = self._tracer.start_span(
            f"{request.method} /{self._model['sextet.task']}",
            _propagator.extract(caller),
            SpanKind.SERVER,
            start_time=ns(timings.started_at),
        )
        if span.is_recording():
            span.set_attributes(
                self._model
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
                self._tracer.start_span(name, parent, start_time=ns(begins)).end(ns(ends))
        span.end(ended_ns)


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
    if timings.first_token_s is not None:
        first_at = min(max(begun_at, timings.started_at + timings.first_token_s), ended_at)
        yield "prefill", begun_at, first_at
        yield "decode", first_at, ended_at
        return
    inferred_at = min(begun_at + timings.inference_s, ended_at)
    yield "inference", begun_at, inferred_at
    yield "answer", inferred_at, ended_at
