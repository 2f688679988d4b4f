"""What a container of SageMaker or Vertex AI answers, and what a cluster.yaml becomes for one."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

import pipelines
from deployments.cluster.platform import Platform
from deployments.config import located
from deployments.task_server import TaskServer
from pipelines.errors import ConfigurationError

SHIPPED = Path(__file__).parents[3] / "cluster.yaml"
TASK = "text-classification"
SAGEMAKER = Platform.of("sagemaker", {})
VERTEX = Platform.of("vertex", {})


Containers = dict[str, TaskServer]


@pytest.fixture(scope="module")
def model(exported: Callable[..., Path]) -> Path:
    return exported("bert", TASK)


@pytest.fixture(scope="module")
def containers(model: Path) -> Containers:
    """A replica of each platform, by its name."""
    servers = {one.name: TaskServer(TASK, platform=one) for one in (SAGEMAKER, VERTEX)}
    for server in servers.values():
        asyncio.run(server.reconfigure({"model": str(model)}))
    return servers


def ask(server: TaskServer, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
    """The answer of a container's replica at its root, as Serve would hand it the request."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (await server(Request(scope, receive, send)))(scope, receive, send)

    async def scenario() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://container") as client:
            content = None if body is None else json.dumps(body).encode()
            return await client.request(method, path, content=content, headers=headers)

    return asyncio.run(scenario())


def answers(model: Path, texts: list[str], top_k: int | None) -> list[Any]:
    pipeline = pipelines.load(model)
    return [[pytest.approx(one, abs=1e-5) for one in pipeline(text, top_k=top_k)] for text in texts]


def test_sagemaker_gets_the_answers_of_the_pipeline_and_its_custom_attributes_back(
    containers: Containers, model: Path
) -> None:
    attributes = {"x-amzn-sagemaker-custom-attributes": "trace-7", "accept": "application/json"}
    response = ask(containers["sagemaker"], "POST", "/invocations", {"inputs": "정말 좋았어요"}, **attributes)

    assert response.json() == answers(model, ["정말 좋았어요"], top_k=None)
    assert response.headers["x-amzn-sagemaker-custom-attributes"] == "trace-7"
    plain = ask(containers["sagemaker"], "POST", "/invocations", {"inputs": "a"}, accept="*/*")
    assert (plain.status_code, "x-amzn-sagemaker-custom-attributes" in plain.headers) == (200, False)


def test_sagemaker_is_told_when_something_else_than_json_is_wanted(containers: Containers) -> None:
    response = ask(containers["sagemaker"], "POST", "/invocations", {"inputs": "a"}, accept="text/csv")

    assert (response.status_code, response.json()["error"]) == (406, "accept is 'text/csv'; allowed: application/json")


def test_vertex_gets_a_prediction_for_each_instance(containers: Containers, model: Path) -> None:
    texts = ["what a film", "meh"]
    body = {"instances": texts, "parameters": {"top_k": 1}}

    response = ask(containers["vertex"], "POST", "/predict", body)

    assert response.json() == {"predictions": answers(model, texts, top_k=1)}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"inputs": "a"}, "the body has no key 'inputs'; allowed: instances, parameters"),
        ({}, "instances is missing; allowed: a list of at most 65536, each a text or an object"),
        ({"instances": "a"}, "instances is 'a'; allowed: a list of at most 65536, each a text or an object"),
        ({"instances": []}, "instances is empty; allowed: at least one element"),
        ({"instances": ["a", ""]}, "instances[1] is empty; allowed: a text"),
        ({"instances": ["a", 3]}, "instances[1] is 3; allowed: a text or an object"),
        ({"instances": ["a"], "parameters": 1}, "parameters is 1; allowed: an object"),
    ],
)
def test_vertex_is_told_what_is_wrong_in_its_own_words(containers: Containers, body: Any, message: str) -> None:
    response = ask(containers["vertex"], "POST", "/predict", body)

    assert response.status_code == 400
    assert message in response.json()["error"]


@pytest.mark.parametrize("platform", [SAGEMAKER, VERTEX])
def test_a_replica_with_a_model_is_healthy(containers: Containers, platform: Platform) -> None:
    assert ask(containers[platform.name], "GET", platform.health_route).status_code == 200
    assert ask(containers[platform.name], "POST", platform.health_route).status_code == 405


def test_the_environment_says_where_a_platform_looks() -> None:
    vertex = {"AIP_HTTP_PORT": "9090", "AIP_HEALTH_ROUTE": "/v1/e/1", "AIP_PREDICT_ROUTE": "/v1/e/1:predict"}

    assert Platform.of("vertex", vertex) == Platform("vertex", 9090, "/v1/e/1", "/v1/e/1:predict")
    assert Platform.of("sagemaker", {"SAGEMAKER_BIND_TO_PORT": "7070"}).port == 7070
    assert (SAGEMAKER.port, SAGEMAKER.health_route, SAGEMAKER.predict_route) == (8080, "/ping", "/invocations")


@pytest.mark.parametrize(
    ("name", "environment", "message"),
    [
        ("azure", {}, "--platform is 'azure'; allowed: sagemaker, vertex"),
        ("vertex", {"AIP_HTTP_PORT": "x"}, "AIP_HTTP_PORT is 'x'; allowed: a port"),
        ("vertex", {"AIP_HTTP_PORT": "65536"}, "AIP_HTTP_PORT is '65536'; allowed: a port"),
        ("sagemaker", {"SAGEMAKER_BIND_TO_PORT": "0"}, "SAGEMAKER_BIND_TO_PORT is '0'; allowed: a port"),
        ("vertex", {"AIP_PREDICT_ROUTE": "//"}, "AIP_PREDICT_ROUTE is '//'; allowed: a path such as /predict"),
        ("vertex", {"AIP_HEALTH_ROUTE": "health"}, "AIP_HEALTH_ROUTE is 'health'; allowed: a path such as /health"),
        ("vertex", {"AIP_HEALTH_ROUTE": "/predict"}, "AIP_HEALTH_ROUTE and AIP_PREDICT_ROUTE are both '/predict'"),
    ],
)
def test_a_platform_that_is_none_is_refused(name: str, environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Platform.of(name, environment)

    assert message in str(refused.value)


def test_a_cluster_becomes_a_container_of_one_task_on_every_interface() -> None:
    content = SAGEMAKER.cut(located(SHIPPED), "translation")

    (application,) = content["applications"]
    assert (application["name"], application["route_prefix"]) == ("translation", "/")
    assert application["args"]["platform"]["predict_route"] == "/invocations"
    assert content["http_options"] == {"host": "0.0.0.0", "port": 8080}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (None, "a container of sagemaker serves one task; choose with --task: text-classification, question-"),
        ("translaton", "did you mean 'translation'?"),
    ],
)
def test_which_task_must_be_clear(task: str | None, message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        SAGEMAKER.cut(located(SHIPPED), task)

    assert message in str(refused.value)
