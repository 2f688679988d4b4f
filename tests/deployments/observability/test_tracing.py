"""Traces of real requests, as the SDK of OpenTelemetry receives them."""

import asyncio
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
from tests.deployments.asking import asking, post
from tests.deployments.observability.observed import observed
from tests.deployments.test_task_server import started
from tests.otlp import receiver

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


@pytest.mark.parametrize(
    ("task", "architecture", "parameters"),
    [
        (GENERATION, "gpt2", {"max_new_tokens": 20, "do_sample": False}),
        (GENERATION, "gpt2", {"max_new_tokens": 20, "do_sample": True, "best_of": 2}),
        ("translation", "marian", {"generate_parameters": {"num_beams": 2, "min_new_tokens": 20}}),
    ],
)
def test_a_generation_that_does_not_stream_has_prefill_and_decode(
    exported: Callable[..., Path], task: str, architecture: str, parameters: dict[str, Any]
) -> None:
    traced = Traced(task, exported(architecture, task))
    spans = traced.spans({"inputs": ["The river", "A film"], "parameters": parameters})

    root = spans.pop(f"POST /{task}")
    assert list(spans) == ["tokenization", "queue", "prefill", "decode", "answer"]
    times = [(span.start_time or 0, span.end_time or 0) for span in spans.values()]
    assert times == sorted(times)
    assert all((root.start_time or 0) <= begin <= end <= (root.end_time or 0) for begin, end in times)
    assert spans["prefill"].end_time == spans["decode"].start_time
    assert all((spans[name].end_time or 0) > (spans[name].start_time or 0) for name in ("prefill", "decode"))


def test_a_batch_is_a_span_that_is_linked_with_the_requests_in_it(classifier: Traced) -> None:
    classifier.exporter.clear()

    async def at_once(client: Any) -> None:
        body = {"inputs": "a b c"}
        await asyncio.gather(*(client.post(f"/{TASK}", json=body, headers={"x-request-id": str(n)}) for n in range(8)))
        await asyncio.sleep(tracing.LINKING_S + 0.2)

    asking(classifier.server, at_once)

    spans = classifier.exporter.get_finished_spans()
    requests = {one.context.span_id: one for one in spans if one.name.startswith("POST ") and one.context}
    batches = {one.context.span_id: one for one in spans if one.name == "batch" and one.context}
    assert len(requests) == 8
    assert 0 < len(batches) < 8
    rows: list[Any] = [(one.attributes or {})["sextet.batch.rows"] for one in batches.values()]
    assert sum(rows) == 8
    linked = [link.context.span_id for batch in batches.values() for link in batch.links]
    assert sorted(linked) == sorted(requests)
    for one in spans:
        if one.name == "inference":
            assert {link.context.span_id for link in one.links} <= set(batches)
            assert len(one.links) == 1
    for batch in batches.values():
        first = requests[batch.links[0].context.span_id]
        assert batch.parent == first.context
        assert (first.start_time or 0) <= (batch.start_time or 0) <= (batch.end_time or 0) <= (first.end_time or 0)


def test_an_answer_names_its_trace_and_span_and_that_of_a_stream_too(
    classifier: Traced, exported: Callable[..., Path]
) -> None:
    generator = Traced(GENERATION, exported("gpt2", GENERATION))
    streamed = {"inputs": "The river", "stream": True, "parameters": {"max_new_tokens": 2, "do_sample": False}}
    for traced, body, status in ((classifier, {"inputs": "a"}, 200), (classifier, {}, 400), (generator, streamed, 200)):
        traced.exporter.clear()
        response = post(traced.server, body, traceparent=f"00-{TRACE}-{PARENT}-01")
        (root,) = [one for one in traced.exporter.get_finished_spans() if one.name.startswith("POST ")]
        assert root.context is not None
        assert response.status_code == status
        assert response.headers["traceresponse"] == f"00-{TRACE}-{root.context.span_id:016x}-01"


def test_without_traces_an_answer_names_none(exported: Callable[..., Path]) -> None:
    assert "traceresponse" not in post(started(TASK, exported("bert", TASK)), {"inputs": "a"}).headers


def test_spans_reach_a_collector_by_the_exporter_that_is_served(
    exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    with receiver() as collector:
        monkeypatch.setenv(tracing.VARIABLES[0], collector.url)
        tracing.provider.cache_clear()
        provider: Any = tracing.provider()
        made = observed(TASK, exported("bert", TASK), lambda one: Tracing(one, "r1", provider.get_tracer("sextet")))
        post(made, {"inputs": TEXT}, traceparent=f"00-{TRACE}-{PARENT}-01")
        provider.shutdown()
        tracing.provider.cache_clear()

    ((path, request),) = collector.received
    (resource,) = request.resource_spans
    spans = {one.name: one for one in resource.scope_spans[0].spans}
    assert path == "/v1/traces"
    assert {one.key: one.value.string_value for one in resource.resource.attributes}["service.name"] == "sextet"
    assert spans[f"POST /{TASK}"].trace_id.hex() == TRACE
    assert spans[f"POST /{TASK}"].parent_span_id.hex() == PARENT
    assert {"tokenization", "queue", "inference", "answer"} < spans.keys()
    assert TEXT not in str(request)


def test_it_is_on_where_the_environment_names_a_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tracing.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert not tracing.is_on()
    monkeypatch.setenv(tracing.VARIABLES[1], "http://127.0.0.1:4318/v1/traces")
    assert tracing.is_on()
