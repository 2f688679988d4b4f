"""gRPC on a real cluster, with the unmodified tritonclient.grpc; and what its HTTP client asks about models."""

import json
import queue
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http
import yaml
from tritonclient.utils import InferenceServerException

import pipelines
from deployments.cluster.ray_environment import spare_port
from deployments.config import deployment_of
from deployments.scaling.options import AUTOSCALER
from tests.cluster.serving import Serving, left_over, set_ingress, write_cluster
from tests.cluster.test_tasks import approximately
from tests.kserve_client import GRPC, REST, Call, outcomes
from tests.otlp import Receiver, receiver

pytestmark = pytest.mark.cluster
ENCODER, GENERATOR, RARE = "text-classification", "text-generation", "token-classification"
TEXTS = ["what a film", "정말 좋았어요 😀"]
STOPPED_S = 60.0


@pytest.fixture(scope="module")
def port() -> int:
    return spare_port()


@pytest.fixture(scope="module")
def collector() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


@pytest.fixture(scope="module")
def serving(
    models: dict[str, Path], port: int, collector: Receiver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    """Three tasks, one of them asleep, a port for gRPC, and traces of those who ask for them; it ends cleanly while a
    stream is open that nobody uses.
    """
    served = {name: models[name] for name in (ENCODER, GENERATOR, RARE)}
    file = write_cluster(tmp_path_factory.mktemp("grpc"), served)
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    policy = {"policy_function": AUTOSCALER, "policy_kwargs": {"slo_ms": 2000, "zero_after_s": 600}}
    deployment_of(RARE, content)["autoscaling_config"] = {"min_replicas": 0, "max_replicas": 1, "policy": policy}
    set_ingress(content, grpc_port=port)
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    serving = Serving.start(
        file,
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_BSP_SCHEDULE_DELAY="200",
        OTEL_TRACES_SAMPLER="parentbased_always_off",
    )
    try:
        yield serving.wait_until_ready()
        with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
            answers = stream(client)
            client.async_stream_infer(GENERATOR, [tensor(["Once"])], parameters={"max_new_tokens": 2})
            assert answers.get(timeout=60)[1] is None
            tree, began_at = serving.tree(), time.monotonic()
            assert serving.stop() == 0, "\n".join(serving.lines)
            assert time.monotonic() - began_at < STOPPED_S
            client.stop_stream(cancel_requests=True)
        assert left_over(tree) == []
    finally:
        serving.process.kill()


@pytest.fixture
def client(serving: Serving, port: int) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        yield client


def tensor(texts: list[str]) -> triton.InferInput:
    found = triton.InferInput("args", [len(texts)], "BYTES")
    found.set_data_from_numpy(np.array([text.encode() for text in texts], object))
    return found


def stream(client: triton.InferenceServerClient) -> "queue.Queue[tuple[Any, Any]]":
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    return answers


def test_a_list_is_answered_as_the_pipeline_answers_it(
    client: triton.InferenceServerClient, models: dict[str, Path]
) -> None:
    result = client.infer(ENCODER, [tensor(TEXTS)], parameters={"top_k": 2}, request_id="7")

    answers = [json.loads(one) for one in result.as_numpy("output").reshape(-1)]
    assert answers == approximately(pipelines.load(models[ENCODER])(TEXTS, top_k=2))
    assert result.get_response().id == "7"
    with pytest.raises(InferenceServerException, match="parameters.top_k is 0"):
        client.infer(ENCODER, [tensor(TEXTS)], parameters={"top_k": 0})


def test_a_stream_brings_tokens_and_then_the_text(
    client: triton.InferenceServerClient, models: dict[str, Path]
) -> None:
    asked: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    expected = pipelines.load(models[GENERATOR])("Once", return_full_text=False, **asked)[0]["generated_text"]
    answers = stream(client)
    events: list[Any] = []

    for name in ("a", "b"):
        client.async_stream_infer(GENERATOR, [tensor(["Once"])], request_id=name, parameters=asked)
    while len([one for one in events if one["generated_text"] is not None]) < 2:
        result, error = answers.get(timeout=60)
        assert error is None
        events.append(json.loads(result.as_numpy("output").item()))
    client.stop_stream()

    assert "".join(event["token"]["text"] for event in events[:: len(events) // 8] if event["generated_text"] is None)
    assert sum(event["token"] is not None for event in events) == len(events)
    assert {one["generated_text"].removeprefix("Once") for one in events if one["generated_text"]} == {expected}


def test_the_server_and_its_models_are_described(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(ENCODER)
    assert client.get_server_metadata().name == "sextet"
    assert client.get_model_metadata(GENERATOR).inputs[0].name == "array_inputs"
    index = client.get_model_repository_index()
    assert {(one.name, one.state) for one in index.models} == {(name, "READY") for name in (ENCODER, GENERATOR, RARE)}
    with pytest.raises(InferenceServerException, match="there is no model 'x'; allowed: text-classification"):
        client.get_model_metadata("x")
    with pytest.raises(InferenceServerException, match="there is no model 'x'$"):  # a probe needs no key
        client.is_model_ready("x")
    with pytest.raises(InferenceServerException, match=r"UNIMPLEMENTED.*'ModelConfig' is not served"):
        client.get_model_config(ENCODER)


def test_statistics_count_what_was_asked_over_grpc_and_over_http(
    serving: Serving, client: triton.InferenceServerClient
) -> None:
    def counted() -> Any:
        (one,) = client.get_inference_statistics(ENCODER).model_stats
        return one

    before = counted()
    client.infer(ENCODER, [tensor(TEXTS)])
    address = serving.url.removeprefix("http://")
    for url in (address, f"{address}/{ENCODER}"):
        with triton_http.InferenceServerClient(url) as http:
            column = triton_http.InferInput("args", [1], "BYTES")
            column.set_data_from_numpy(np.array([b"a"], object))
            http.infer(ENCODER, [column])
            give_up_at = time.monotonic() + 20
            while counted().inference_count == before.inference_count and time.monotonic() < give_up_at:
                time.sleep(0.1)
            (one,) = http.get_inference_statistics(ENCODER)["model_stats"]
            assert (one["name"], one["inference_stats"]["success"]["count"] > 0) == (ENCODER, True)
            assert {one["name"] for one in http.get_inference_statistics()["model_stats"]} >= {ENCODER, GENERATOR}
            assert {one["name"] for one in http.get_model_repository_index()} >= {ENCODER, GENERATOR}
            with pytest.raises(InferenceServerException, match="there is no model 'x'"):
                http.get_inference_statistics("x")
    time.sleep(0.6)  # an answer is given again for half a second
    after = counted()
    assert after.inference_count - before.inference_count == 4
    assert after.inference_stats.success.count - before.inference_stats.success.count == 3
    assert after.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns


def test_a_trace_that_a_client_began_goes_on_in_the_replicas(
    serving: Serving, client: triton.InferenceServerClient, collector: Receiver
) -> None:
    """Through HAProxy, over HTTP, over gRPC and in a stream of it, sampled as the client says."""
    told: list[str] = []
    written: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}

    def over_http(task: str, **headers: str) -> None:
        answer = httpx.post(f"{serving.url}/{task}", json={"inputs": TEXTS}, headers=headers, timeout=60)
        told.append(answer.headers["traceresponse"])

    def over_grpc(task: str, **headers: str) -> None:
        client.infer(task, [tensor(TEXTS)], headers=headers)

    def in_a_stream(task: str, **headers: str) -> None:
        answers: queue.Queue[Any] = queue.Queue()
        client.start_stream(lambda result, error: answers.put(error), headers=headers)
        client.async_stream_infer(task, [tensor(TEXTS[:1])], parameters=written)
        assert [answers.get(timeout=60) for _ in range(4)] == [None] * 4
        client.stop_stream()

    begin, parent = ["tokenization", "queue"], "b7ad6b7169203331"
    encoded, generated = [*begin, "inference", "answer", "batch"], [*begin, "prefill", "decode"]
    for number, (ask, task, parts) in enumerate(
        (
            (over_http, ENCODER, encoded),
            (over_grpc, ENCODER, encoded),
            (over_http, GENERATOR, [*generated, "answer"]),
            (in_a_stream, GENERATOR, generated),
        ),
        start=1,
    ):
        trace = f"{number:032x}"
        ask(task, traceparent=f"00-{trace}-{parent}-01")
        ask(task, traceparent=f"00-{number:031x}f-{parent}-00")  # which is not sampled
        spans = {one.name: one for one in collector.wait_for(trace, 1 + len(parts))}
        (root,) = [one for one in spans.values() if one.parent_span_id.hex() == parent]
        assert root.name.endswith(f"/{task}")
        assert spans.keys() - {root.name} == set(parts)
        assert {one.parent_span_id for one in spans.values()} == {bytes.fromhex(parent), root.span_id}
        attributes = {one.key: one.value.string_value for one in root.attributes}
        assert attributes["sextet.task"] == task
        assert attributes["sextet.protocol"] == ("huggingface" if ask is over_http else "open_inference_grpc")
        if ask is over_http:
            assert f"00-{trace}-{root.span_id.hex()}-01" in told
    assert {one.trace_id.hex() for one in collector.spans()} == {f"{number:032x}" for number in range(1, 5)}


def test_kserves_own_client_asks_what_there_is_and_is_answered(
    serving: Serving, port: int, models: dict[str, Path]
) -> None:
    address = f"127.0.0.1:{port}"
    asked = [
        Call(over, url, method, ENCODER, TEXTS, id="7")
        for over, url in ((GRPC, address), (REST, serving.url))
        for method in ("is_server_live", "is_server_ready", "is_model_ready", "infer")
    ]
    asked += [Call(over, url, "is_model_ready", "x") for over, url in ((GRPC, address), (REST, serving.url))]

    *found, unknown, is_ready, described = outcomes([*asked, Call(GRPC, address, "metadata", ENCODER)])

    expected = approximately(pipelines.load(models[ENCODER])(TEXTS, top_k=None))
    answer = {"id": "7", "model": ENCODER, "output": ["output", "BYTES", [2, 1]], "documents": expected}
    assert found == [True, True, True, answer] * 2
    assert unknown == {"code": "NOT_FOUND", "error": "there is no model 'x'"}
    assert is_ready is False  # what its client makes of a 404
    assert described == ["sextet", ENCODER, ["args"]]


def test_the_console_is_told_what_the_replicas_do(serving: Serving, client: triton.InferenceServerClient) -> None:
    """By the gateway, which asks all replicas."""
    asked = 0
    with httpx.stream("GET", f"{serving.url}/live", timeout=60) as response:
        for line in response.iter_lines():
            if line.startswith("data: "):
                models = {one["route"]: one for one in json.loads(line.removeprefix("data: "))["models"]}
                if models[f"/{ENCODER}"]["requests_per_s"] > 0:
                    break
                assert asked < 20
            client.infer(ENCODER, [tensor(TEXTS)])
            asked += 1

    assert set(models) == {f"/{name}" for name in (ENCODER, GENERATOR, RARE)}
    assert (models[f"/{ENCODER}"]["replicas"], models[f"/{ENCODER}"]["failed"]) == (1, 0)
    assert models[f"/{ENCODER}"]["p50_ms"] > 0
    assert models[f"/{GENERATOR}"]["slots"] > 0
    assert models[f"/{RARE}"]["replicas"] == 0  # who watches wakes nobody


def test_a_call_wakes_a_model_that_is_asleep(client: triton.InferenceServerClient, models: dict[str, Path]) -> None:
    result = client.infer(RARE, [tensor(TEXTS[:1])], client_timeout=120)
    again = client.infer(RARE, [tensor(TEXTS[:1])])

    (answer,) = result.as_numpy("output").reshape(-1)
    assert json.loads(answer) == approximately(pipelines.load(models[RARE])(TEXTS[0]))
    assert again.as_numpy("output").reshape(-1).tolist() == [answer]
