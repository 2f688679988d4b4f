"""Traces of real requests, as the SDK of OpenTelemetry receives them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from deployments.observability import tracing
from deployments.observability.tracing import Tracing
from deployments.task_server import TaskServer
from pipelines.runtime.artifact import ModelArtifact
from tests.deployments.asking import post
from tests.deployments.observability.observed import observed

TASK, GENERATION = "text-classification", "text-generation"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TEXT = "nobody may read this"


class Traced:
    """A served model, and the spans of what it was asked."""

    def __init__(self, task: str, model: Path) -> None:
        self.exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.server: TaskServer = observed(
            task, model, lambda artifact: Tracing(artifact, "r1", provider.get_tracer("sextet"))
        )

    def spans(self, body: Any, **headers: str) -> dict[str, ReadableSpan]:
        self.exporter.clear()
        post(self.server, body, **headers)
        return {span.name: span for span in self.exporter.get_finished_spans()}


@pytest.fixture
def classifier(exported: Callable[..., Path]) -> Traced:
    return Traced(TASK, exported("bert", TASK))


def test_a_request_is_a_span_of_its_callers_trace_and_its_parts_lie_inside_it(
    classifier: Traced, exported: Any
) -> None:
    spans = classifier.spans({"inputs": [TEXT, "b"]}, traceparent=f"00-{TRACE}-{PARENT}-01", x_request_id="id-1")

    root = spans.pop(f"POST /{TASK}")
    assert root.context is not None
    assert root.parent is not None
    assert (f"{root.context.trace_id:032x}", f"{root.parent.span_id:016x}") == (TRACE, PARENT)
    assert root.kind is SpanKind.SERVER
    artifact = ModelArtifact.open(exported("bert", TASK))
    attributes = dict(root.attributes or {})
    assert attributes.pop("sextet.read_tokens") > 0  # type: ignore[operator]
    assert attributes == {
        "sextet.task": TASK,
        "sextet.model": artifact.name,
        "sextet.version": artifact.version,
        "sextet.replica": "r1",
        "sextet.protocol": "huggingface",
        "sextet.request_id": "id-1",
        "sextet.written_tokens": 0,
        "http.response.status_code": 200,
    }
    assert list(spans) == ["tokenization", "queue", "inference", "answer"]
    times = [(span.start_time or 0, span.end_time or 0) for span in spans.values()]
    assert times == sorted(times)
    assert all((root.start_time or 0) <= begin <= end <= (root.end_time or 0) for begin, end in times)
    assert all(span.parent == root.context for span in spans.values())
    assert TEXT not in str([span.to_json() for span in (root, *spans.values())])


def test_a_trace_that_is_not_sampled_makes_no_span_and_one_without_a_caller_is_its_own(classifier: Traced) -> None:
    assert classifier.spans({"inputs": "a"}, traceparent=f"00-{TRACE}-{PARENT}-00") == {}
    for wrong in ({}, {"traceparent": "x"}):
        assert classifier.spans({"inputs": "a"}, **wrong)[f"POST /{TASK}"].parent is None


def test_a_refusal_says_its_reason(classifier: Traced) -> None:
    (root,) = classifier.spans({"inputs": 3}).values()
    attributes = root.attributes or {}
    assert (attributes["http.response.status_code"], attributes["error.type"]) == (400, "validation")


def test_a_stream_has_prefill_and_decode(exported: Callable[..., Path]) -> None:
    traced = Traced(GENERATION, exported("gpt2", GENERATION))
    body = {"inputs": "The river", "stream": True, "parameters": {"max_new_tokens": 4, "do_sample": False}}
    spans = traced.spans(body)

    root = spans.pop(f"POST /{GENERATION}")
    assert list(spans) == ["tokenization", "queue", "prefill", "decode"]
    assert (root.attributes or {})["sextet.written_tokens"] == 4
    assert spans["decode"].end_time == root.end_time


def test_it_is_on_where_the_environment_names_a_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tracing.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert not tracing.is_on()
    monkeypatch.setenv(tracing.VARIABLES[1], "http://127.0.0.1:4318/v1/traces")
    assert tracing.is_on()
