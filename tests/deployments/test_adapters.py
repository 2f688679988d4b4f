"""Adapters are models of their own at their base's server: by path, by name in a body, by header; and they say so."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from prometheus_client import generate_latest

from deployments.config import read_tasks
from deployments.observability.metrics import Metrics
from deployments.observability.replica import Observers
from deployments.observability.request_log import RequestLog
from deployments.observability.statistics import by_model
from deployments.observability.top import COLUMNS, Snapshot, rows
from deployments.task_server import TaskServer
from pipelines.errors import ConfigurationError
from tests.deployments.asking import asking, post
from tests.deployments.observability.observed import values
from tests.deployments.test_config import written
from tests.lora import save_adapter

TASK, NAME, OTHER = "text-generation", "pirate", "poet"
BODY: dict[str, Any] = {"inputs": "The river flows", "parameters": {"max_new_tokens": 8, "do_sample": False}}
ASKED: dict[str, Any] = {"prompt": "The river flows", "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def adapters(checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder, base = tmp_path_factory.mktemp("adapters"), checkpoint("llama", TASK)
    return {name: str(save_adapter(base, folder / name, seed)) for seed, name in enumerate((NAME, OTHER), start=1)}


@pytest.fixture(scope="module")
def config(exported: Callable[..., Path], adapters: dict[str, str]) -> dict[str, Any]:
    return {"model": str(exported("llama", TASK)), "adapters": adapters, "slots": {"slots": 3, "max_tokens": 200}}


@pytest.fixture(scope="module")
def server(config: dict[str, Any]) -> TaskServer:
    server = TaskServer(TASK)
    asyncio.run(server.reconfigure(config))
    return server


def text(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    answer = response.json()
    return str(answer["choices"][0]["text"] if "choices" in answer else answer[0]["generated_text"])


def test_each_is_asked_at_its_path_by_its_name_or_by_a_header(server: TaskServer) -> None:
    base, one, other = (text(post(server, BODY, path)) for path in ("", f"/{NAME}", f"/{OTHER}/"))
    assert len({base, one, other}) == 3
    assert text(post(server, BODY, x_model=NAME)) == one
    completions = "/v1/completions"
    by_path, base_again = text(post(server, ASKED, f"/{NAME}{completions}")), text(post(server, ASKED, completions))
    assert f"{ASKED['prompt']}{by_path}" == one
    assert f"{ASKED['prompt']}{base_again}" == base
    named = post(server, ASKED | {"model": NAME}, completions)
    assert (text(named), named.json()["model"]) == (by_path, NAME)
    unknown = post(server, BODY, x_model="nobody")
    assert unknown.status_code == 404
    assert unknown.json()["error"].startswith("there is no model 'nobody'; allowed: ")
    assert unknown.json()["error"].endswith(f", {TASK}, {NAME}, {OTHER}")
    assert text(post(server, BODY, x_model=TASK)) == base
    assert f"POST /{TASK}/{NAME}/v1/completions" in post(server, BODY, f"/{NAME}/nowhere").json()["error"]
    infer = {"inputs": [{"name": "array_inputs", "datatype": "BYTES", "shape": [1], "data": [BODY["inputs"]]}]}
    infer |= {"parameters": BODY["parameters"]}
    for path in (f"/{NAME}/v2/models/{NAME}/infer", f"/v2/models/{NAME}/infer"):
        answer = post(server, infer, path).json()
        assert (answer["model_name"], json.loads(answer["outputs"][0]["data"][0])[0]["generated_text"]) == (NAME, one)


def test_a_path_that_does_not_exist_names_the_models_of_the_task(server: TaskServer) -> None:
    """The name in it may be one that no model has; the ingress says which others there are."""
    alone = post(server, ASKED, "/nobody/v1/completions").json()["error"]
    beside = post(server, ASKED, "/nobody", x_sextet_models="large small").json()["error"]
    allowed = f"allowed: POST /{TASK}, POST /{TASK}/"
    assert alone.startswith(f"/{TASK}/nobody/v1/completions does not exist; models: {TASK}, {NAME}, {OTHER}; {allowed}")
    assert beside.startswith(f"/{TASK}/nobody does not exist; models: {TASK}, large, small, {NAME}, {OTHER}; {allowed}")


def test_openais_client_lists_them_and_is_told_of_names_that_none_has(server: TaskServer) -> None:
    async def ask(http: Any) -> tuple[list[str], list[str], str, str]:
        client = AsyncOpenAI(base_url=f"http://sextet/{TASK}/v1", api_key="none", http_client=http, max_retries=0)
        listed = [card.id async for card in client.models.list()]
        retrieved = (await client.models.retrieve(OTHER)).id
        stream = await client.chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": "hi"}], stream=True, max_tokens=4
        )
        models = {chunk.model async for chunk in stream}
        unknown = await http.post(f"/{TASK}/v1/completions", json=ASKED | {"model": "nobody"})
        assert unknown.status_code == 404
        return listed, sorted(models), retrieved, unknown.json()["error"]["message"]

    listed, models, retrieved, message = asking(server, ask)
    assert listed[1:] == [NAME, OTHER]
    assert (models, retrieved) == ([NAME], OTHER)
    assert message == f"there is no model 'nobody'; allowed: {listed[0]}, {TASK}, {NAME}, {OTHER}"


def test_a_grammar_holds_the_answer_of_the_adapter_that_a_body_names(server: TaskServer) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["a", "b"]}}}
    answer = post(server, ASKED | {"model": NAME, "response_format": schema}, "/v1/completions").json()
    assert answer["model"] == NAME
    assert json.loads(answer["choices"][0]["text"]) in ("a", "b")


def test_metrics_logs_and_the_catalog_name_the_adapter(config: dict[str, Any]) -> None:
    metrics, lines = Metrics("r"), list[str]()
    server = TaskServer(
        TASK, lambda artifact: Observers((metrics.observer(artifact), RequestLog(artifact, "r", lines.append)))
    )
    asyncio.run(server.reconfigure(config | {"request_log": {"sample": 1}}))
    post(server, BODY)
    post(server, BODY, f"/{NAME}")
    post(server, ASKED | {"model": OTHER}, "/v1/completions")
    described = server.describe()
    base, versions = described["id"], {one["name"]: one["version"] for one in described["adapters"]}
    versions[base] = described["version"]
    assert len(set(versions.values())) == 3
    assert [json.loads(line)["model"] for line in lines] == [base, NAME, OTHER]
    assert [json.loads(line)["version"] for line in lines] == [versions[name] for name in (base, NAME, OTHER)]
    exposed = generate_latest(metrics.registry).decode().splitlines()
    counted = [line for line in exposed if line.startswith("sextet_requests_total{")]
    assert all(
        any(f'model="{name}",' in line and f'version="{version}"' in line and line.endswith(" 1.0") for line in counted)
        for name, version in versions.items()
    )
    listed = described["adapters"]
    assert [(one["name"], one["rank"], len(one["version"])) for one in listed] == [(NAME, 4, 12), (OTHER, 4, 12)]
    assert all(one["digest"].startswith(one["version"]) and len(one["digest"]) == 64 for one in listed)


def test_each_adapter_has_its_own_numbers_beside_those_of_its_base(config: dict[str, Any]) -> None:
    metrics = Metrics("r")
    server = TaskServer(TASK, metrics.observer)
    asyncio.run(server.reconfigure(config))
    before = Snapshot.of(generate_latest(metrics.registry).decode(), 0.0)
    for body, path in ((BODY, ""), (BODY, f"/{NAME}"), (BODY, f"/{NAME}"), ({"inputs": 3}, f"/{NAME}")):
        post(server, body, path)

    counted = by_model(asyncio.run(server.statistics()))
    assert list(counted) == ["", NAME, OTHER]
    assert [one["answered"] for one in counted.values()] == [one["rows"] for one in counted.values()] == [1, 2, 0]
    assert [one["refused"] for one in counted.values()] == [0, 1, 0]
    assert {(one["replicas"], one["slots"]) for one in counted.values()} == {(1, 3)}
    after = Snapshot.of(generate_latest(metrics.registry).decode(), 1.0)
    lines = {line[1]: dict(zip(COLUMNS, line, strict=True)) for line in rows(before, after)}
    base = server.describe()["id"]
    assert list(lines) == [base, NAME, OTHER]
    assert [line["requests/s"] for line in lines.values()] == ["1.0", "3.0", "0.0"]
    assert {(line["replicas"], line["slots"]) for line in lines.values()} == {("1", "0/3")}
    assert lines[NAME]["tokens/s"] != "0" == lines[OTHER]["tokens/s"]


def test_an_adapter_that_is_gone_is_loaded_no_more(config: dict[str, Any], adapters: dict[str, str]) -> None:
    metrics = Metrics("r")
    server = TaskServer(TASK, metrics.observer)
    asyncio.run(server.reconfigure(config))

    async def ask(client: httpx.AsyncClient) -> None:
        await server.reconfigure(config | {"adapters": {NAME: adapters[NAME]}})
        await asyncio.gather(*server._retiring)

    asking(server, ask)
    assert values(metrics, "sextet_adapter_info", model=NAME, base=server.describe()["id"], rank="4") == [1]
    assert values(metrics, "sextet_adapter_info") == values(metrics, "sextet_artifact_info") == [1]


def test_an_adapter_is_added_while_a_stream_goes_on(config: dict[str, Any], adapters: dict[str, str]) -> None:
    server = TaskServer(TASK)
    asyncio.run(server.reconfigure(config | {"adapters": {NAME: adapters[NAME]}}))
    missing = post(server, BODY, f"/{OTHER}")
    assert missing.status_code == 404

    async def ask(client: httpx.AsyncClient) -> tuple[int, str, str]:
        streamed = ASKED | {"model": NAME, "max_tokens": 150, "ignore_eos": True}
        asked = asyncio.create_task(client.post(f"/{TASK}/v1/completions", json=streamed | {"stream": True}))
        while not server.describe() or not server._now.inside:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await server.reconfigure(config)
        added = await client.post(f"/{TASK}/{OTHER}", json=BODY)
        whole = await client.post(f"/{TASK}/v1/completions", json=streamed)
        events = [json.loads(line[6:]) for line in (await asked).text.split("\n") if line.startswith("data: {")]
        return added.status_code, "".join(one["choices"][0]["text"] for one in events), text(whole)

    status, streamed, whole = asking(server, ask)
    assert (status, streamed) == (200, whole)


def test_what_cluster_yaml_says_of_adapters_is_checked(tmp_path: Path) -> None:
    file = written(tmp_path, model="m", adapters={NAME: "adapters/pirate", OTHER: "/adapters/poet"})
    found = read_tasks(file)["translation"].adapters
    assert found == {NAME: str(tmp_path / "adapters/pirate"), OTHER: "/adapters/poet"}
    for given, message in (
        ({"Pirate": "x"}, "adapters is 'Pirate'; allowed: small letters, digits and -"),
        ({"v1": "x"}, "adapters is 'v1'; allowed: no task, and none of v1"),
        ({"translation": "x"}, "adapters is 'translation'; allowed: no task"),
        ({"a": 3}, "adapters: a is 3; allowed: a text"),
        ({f"a{n}": "x" for n in range(17)}, "adapters has 17"),
        (["x"], "adapters is ['x']"),
    ):
        with pytest.raises(ConfigurationError) as refused:
            read_tasks(written(tmp_path, model="m", adapters=given))
        assert message in str(refused.value)


def test_an_encoder_takes_none(exported: Callable[..., Path], adapters: dict[str, str]) -> None:
    server = TaskServer("text-classification")
    with pytest.raises(
        ConfigurationError, match="adapters is set for text-classification; allowed for: .*text-generation"
    ):
        asyncio.run(server.reconfigure({"model": str(exported("bert", "text-classification")), "adapters": adapters}))
