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

pytestmark = pytest.mark.cluster
ENCODER, GENERATOR, RARE = "text-classification", "text-generation", "token-classification"
TEXTS = ["what a film", "정말 좋았어요 😀"]
STOPPED_S = 60.0


@pytest.fixture(scope="module")
def port() -> int:
    return spare_port()


@pytest.fixture(scope="module")
def serving(models: dict[str, Path], port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """Three tasks, one of them asleep, and a port for gRPC; it ends cleanly while a stream is open that nobody uses."""
    served = {name: models[name] for name in (ENCODER, GENERATOR, RARE)}
    file = write_cluster(tmp_path_factory.mktemp("grpc"), served)
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    policy = {"policy_function": AUTOSCALER, "policy_kwargs": {"slo_ms": 2000, "zero_after_s": 600}}
    deployment_of(RARE, content)["autoscaling_config"] = {"min_replicas": 0, "max_replicas": 1, "policy": policy}
    set_ingress(content, grpc_port=port)
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    serving = Serving.start(file)
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
