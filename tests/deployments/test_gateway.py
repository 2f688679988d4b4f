"""The gateway without Ray: what it asks of Ray Serve, how often, and what it answers when Serve does not."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from ray.exceptions import RayActorError
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from deployments.cluster import catalog
from deployments.gateway import Gateway
from deployments.protocols.open_inference_grpc.frames import framed, only
from deployments.protocols.open_inference_grpc.messages import message

READY = {"text-classification": 1, "text-generation": 1}
REQUEST: ContextVar[str | None] = ContextVar("REQUEST", default=None)


class Serve:
    """Ray Serve as the gateway sees it. As in Serve, `status` fails when two threads are inside it."""

    def __init__(self) -> None:
        self.replicas = dict(READY)
        self.status_calls = self.describe_calls = 0
        self.answering = threading.Event()
        self.answering.set()
        self.describing = True
        self.without_replicas = "UNHEALTHY"
        self.adapters: dict[str, list[dict[str, Any]]] = {}
        self.error: Exception | None = None
        self._inside = threading.Lock()

    def status(self) -> Any:
        if not self._inside.acquire(blocking=False):
            raise ValueError("<module> is not registered for pickle by value")
        try:
            self.status_calls += 1
            time.sleep(0.02)
            self.answering.wait()
            if self.error is not None:
                raise self.error
            found = {task: application(task, n, self.without_replicas) for task, n in self.replicas.items()}
            return SimpleNamespace(applications=found)
        finally:
            self._inside.release()

    def get_app_handle(self, task: str) -> Any:
        return SimpleNamespace(describe=SimpleNamespace(remote=lambda: self._describe(task)), broadcast=self._broadcast)

    def _broadcast(self, method: str) -> Any:
        async def results(return_exceptions: bool) -> list[Any]:
            one = {"answered": 3.0, "failed": 1.0, "total_s": 2.0, "queue_s": 0.5, "tokenization_s": 0.25}
            one |= {"inference_s": 1.0, "batches": 2.0, "rows": 5.0, "last_at": 7.0}
            of_adapter = {"pirate/answered": 1.0, "pirate/rows": 1.0, "pirate/last_at": 5.0} if self.adapters else {}
            return [one | of_adapter, one | {"last_at": 9.0} | of_adapter, RayActorError()]

        assert method == "statistics"
        return SimpleNamespace(results_async=results)

    async def _describe(self, task: str) -> dict[str, Any]:
        self.describe_calls += 1
        while not self.describing:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        adapters = {"adapters": self.adapters[task]} if task in self.adapters else {}
        return {"id": task.partition(".")[2] or f"someone/{task}", **adapters}


def application(task: str, replicas: int, status: str = "UNHEALTHY") -> Any:
    deployment = task.partition(".")[0]
    return SimpleNamespace(
        deployments={
            deployment: SimpleNamespace(
                replica_states={"RUNNING": replicas} if replicas else {}, status="HEALTHY" if replicas else status
            )
        }
    )


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    fake = Serve()
    monkeypatch.setattr("ray.serve.status", fake.status)
    monkeypatch.setattr("ray.serve.get_app_handle", fake.get_app_handle)
    yield fake
    fake.answering.set()


class Client:
    """Asks one gateway from one event loop."""

    def __init__(self) -> None:
        gateway = Gateway()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await (await gateway(Request(scope, receive, send)))(scope, receive, send)

        self._http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway", timeout=30)

    async def get(self, path: str, **headers: str) -> httpx.Response:
        return await self._http.get(path, headers=headers)

    async def post(self, path: str, content: bytes = b"", **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self._http.post(path, content=content, headers=named)

    async def many(self, path: str, times: int) -> list[httpx.Response]:
        return list(await asyncio.gather(*(self.get(path) for _ in range(times))))


@pytest.mark.parametrize("path", ["/ready", "/", "/v2/health/ready"])
def test_sixty_probes_at_once_all_get_the_answer_of_one_call(
    serve: Serve, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "FRESH_S", 60.0)  # a busy machine may take longer than half a second for sixty

    responses = asyncio.run(Client().many(path, 60))

    assert {response.status_code for response in responses} == {200}
    assert serve.status_calls == 1
    assert serve.describe_calls == (len(READY) if path == "/" else 0)


def test_a_question_belongs_to_no_request_for_where_a_client_leaves_serve_cancels_the_calls_of_its_request(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(asked: "asyncio.Future[Any]") -> None:
        if not asked.done():
            asked.set_result({"id": "a"})

    def describe(task: str) -> Any:
        """As a handle of Ray Serve does: a call belongs to the request in whose context it is made."""
        asked = asyncio.get_running_loop().create_future()
        if (request := REQUEST.get()) is not None:
            calls.setdefault(request, []).append(asked)
        asyncio.get_running_loop().call_later(0.1, answer, asked)
        return asked

    async def scenario() -> list[httpx.Response]:
        async def get(request: str) -> httpx.Response:
            REQUEST.set(request)
            return await client.get("/v2/models/nobody")

        client = Client()
        leaving = asyncio.create_task(get("first"))
        await asyncio.sleep(0.05)
        others = [asyncio.create_task(get(name)) for name in ("second", "third")]
        await asyncio.sleep(0.02)
        leaving.cancel()
        for call in calls.get("first", ()):
            call.cancel()
        return await asyncio.gather(*others)

    calls: dict[str, list[asyncio.Future[Any]]] = {}
    monkeypatch.setattr(serve, "_describe", describe)

    assert [response.status_code for response in asyncio.run(scenario())] == [404, 404]


def test_steady_probes_ask_at_most_about_twice_a_second_and_see_a_replica_go(serve: Serve) -> None:
    async def scenario() -> float:
        client, began_at = Client(), time.monotonic()
        while time.monotonic() - began_at < 1.0:
            assert (await client.get("/ready")).status_code == 200
        serve.replicas["text-generation"] = 0
        gone_at = time.monotonic()
        while (response := await client.get("/ready")).status_code == 200:
            assert time.monotonic() - gone_at < 1.0
        assert response.json()["not_ready"] == ["text-generation"]
        return time.monotonic() - began_at

    assert asyncio.run(scenario()) >= (serve.status_calls - 2) * catalog.FRESH_S


@pytest.mark.parametrize("path", ["/ready", "/", "/v2/health/ready", "/models/someone/x", "/v1/models"])
def test_while_serve_hangs_a_probe_is_told_so_within_a_bound_and_the_next_one_after_it_gets_the_answer(
    serve: Serve, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "STATUS_TIMEOUT_S", 0.2)

    async def scenario() -> None:
        client = Client()
        serve.answering.clear()
        async with asyncio.timeout(20):  # Serve hangs on meanwhile
            responses = await client.many(path, 60)
        assert {response.status_code for response in responses} == {503}
        assert "Ray Serve does not say which tasks are ready (no answer in 0 s)" in responses[0].text
        assert int(responses[0].headers["retry-after"]) > 0
        assert (await client.get("/health")).status_code == 200
        assert serve.status_calls == 1
        serve.answering.set()
        await asyncio.sleep(catalog.FRESH_S)
        assert (await client.get("/ready")).status_code == 200

    try:
        asyncio.run(scenario())
    finally:
        serve.answering.set()  # else the thread that asks would never end


def test_a_task_whose_only_replica_moves_to_another_node_is_ready(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving = SimpleNamespace(replica_states={"PENDING_MIGRATION": 1, "STARTING": 1})
    applications = {"translation": SimpleNamespace(deployments={"translation": moving})}
    monkeypatch.setattr("ray.serve.status", lambda: SimpleNamespace(applications=applications))

    (response,) = asyncio.run(Client().many("/ready", 1))

    assert (response.status_code, response.json()["tasks"]) == (200, ["translation"])


def test_serve_without_its_controller_is_a_503_of_one_line(serve: Serve) -> None:
    serve.error = RayActorError()

    (response,) = asyncio.run(Client().many("/ready", 1))

    assert (response.status_code, response.json()["error_type"]) == (503, "overloaded")
    assert response.json()["error"] == "Ray Serve does not say which tasks are ready (RayActorError)"


def test_a_replica_that_does_not_describe_its_model_is_listed_without_it(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "DESCRIBE_TIMEOUT_S", 0.1)
    serve.describing = False

    responses = asyncio.run(Client().many("/", 20))

    assert [task["model"] for task in responses[0].json()["tasks"]] == [None, None]
    assert {response.status_code for response in responses} == {200}
    assert serve.describe_calls == len(READY)


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("/v1/chat/completions", "/text-generation/v1/chat/completions"),
        ("/v1/models?x=1", "/text-generation/v1/models?x=1"),
        ("/predict/", "/text-classification/predict"),
        ("/rerank/", "/text-classification/rerank"),
        ("/v1/rerank", "/text-classification/v1/rerank"),
        ("/v2/rerank", "/text-classification/v2/rerank"),
        ("/v2/models/text-classification/infer", "/text-classification/v2/models/text-classification/infer"),
        ("/models/text-classification", "/text-classification"),
        ("/models/someone/text-generation/v1/x y", "/text-generation/v1/x%20y"),
        ("/models/someone/text-generation", "/text-generation"),
    ],
)
def test_an_alias_is_redirected_to_the_path_of_its_task(serve: Serve, path: str, location: str) -> None:
    (response,) = asyncio.run(Client().many(path, 1))

    assert response.status_code == 308
    assert response.headers["location"].startswith("../")  # holds behind a proxy that adds a prefix
    assert str(response.url.join(response.headers["location"])) == f"http://gateway{location}"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "/v2/models/translation/infer",
            "/v2/models/translation/infer needs the task translation, which is not deployed",
        ),
        ("/v2/models/nobody", "there is no model 'nobody'; allowed: text-classification"),
        ("/models/nobody/x", "there is no model 'nobody/x'; allowed: text-classification"),
        ("/nowhere", "/nowhere does not exist; routes: POST /text-classification"),
    ],
)
def test_what_nobody_serves_is_a_404_of_one_line(serve: Serve, path: str, message: str) -> None:
    (response,) = asyncio.run(Client().many(path, 1))

    assert (response.status_code, response.json()["error_type"]) == (404, "not_found")
    assert response.json()["error"].startswith(message)


@pytest.mark.parametrize("path", ["/text-generation", "/text-generation/", "/text-generation/v1/models"])
def test_a_model_that_haproxy_does_not_know_yet_is_a_503_that_says_to_come_back(serve: Serve, path: str) -> None:
    """Else its requests do not come here."""
    responses = asyncio.run(Client().many(path, 20))

    assert {(one.status_code, one.headers["retry-after"]) for one in responses} == {(503, "1")}
    assert serve.status_calls == 1
    assert asyncio.run(Client().many("/text-generations", 1))[0].status_code == 404
    assert asyncio.run(Client().many("/translation", 1))[0].status_code == 404, "it is not deployed"


def test_an_error_below_v1_has_the_shape_that_openais_clients_read(serve: Serve) -> None:
    del serve.replicas["text-generation"]

    (response,) = asyncio.run(Client().many("/v1/models", 1))

    assert (response.status_code, response.json()["error"]["type"]) == (404, "invalid_request_error")


@pytest.fixture
def several(serve: Serve) -> Serve:
    serve.replicas |= {"text-generation.large": 2, "text-generation.small": 0}
    return serve


def test_the_catalog_lists_the_other_models_of_a_task_beside_its_default(several: Serve) -> None:
    (response,) = asyncio.run(Client().many("/", 1))

    tasks = {one["task"]: one for one in response.json()["tasks"]}
    assert list(tasks) == list(READY)
    assert tasks["text-classification"]["others"] == []
    assert tasks["text-generation"]["replicas"] == 1
    assert tasks["text-generation"]["others"] == [
        {
            "name": "large",
            "route": "/text-generation/large",
            "ready": True,
            "asleep": False,
            "replicas": 2,
            "model": {"id": "large"},
        },
        {
            "name": "small",
            "route": "/text-generation/small",
            "ready": False,
            "asleep": False,
            "replicas": 0,
            "model": None,
        },
    ]
    (ready,) = asyncio.run(Client().many("/ready", 1))
    assert ready.json()["not_ready"] == ["text-generation.small"]


@pytest.mark.parametrize("status", ["HEALTHY", "UPSCALING", "DOWNSCALING"])
def test_a_model_that_autoscaling_has_without_a_replica_is_ready_and_asleep(several: Serve, status: str) -> None:
    several.without_replicas = status

    async def scenario() -> tuple[httpx.Response, ...]:
        client = Client()
        await client.get("/")  # while `large` has replicas, which describe it
        several.replicas["text-generation.large"] = 0
        await asyncio.sleep(catalog.FRESH_S)
        return await client.get("/"), await client.get("/ready"), await client.get("/v2/repository/index")

    listed, ready, index = asyncio.run(scenario())

    others = {one["name"]: one for one in listed.json()["tasks"][1]["others"]}
    for name, model in (("large", {"id": "large"}), ("small", None)):
        found = {key: others[name][key] for key in ("ready", "asleep", "replicas", "model")}
        assert found == {"ready": True, "asleep": True, "replicas": 0, "model": model}
    assert ready.status_code == 200
    assert {one["state"] for one in index.json()} == {"READY"}


def test_openai_lists_the_models_of_a_task_by_every_name_that_it_answers_to(several: Serve) -> None:
    client = Client()

    async def scenario() -> list[httpx.Response]:
        base = "/catalog/text-generation/v1/models"
        return [await client.get(path) for path in (base, f"{base}/large", f"{base}/nobody")]

    everything, one, nobody = asyncio.run(scenario())
    names = ["someone/text-generation", "large", "text-generation"]
    assert [card["id"] for card in everything.json()["data"]] == names
    assert (one.json()["id"], one.json()["object"]) == ("large", "model")
    assert nobody.status_code == 404
    assert nobody.json()["error"]["message"] == f"there is no model 'nobody'; allowed: {', '.join(names)}"


def test_the_repository_index_lists_each_model_and_its_state(several: Serve) -> None:
    client = Client()

    async def scenario() -> tuple[httpx.Response, httpx.Response]:
        return await client.get("/v2/repository/index"), await client.post("/v2/repository/index")

    got, posted = asyncio.run(scenario())
    assert got.json() == posted.json()
    assert {one["name"]: one["state"] for one in got.json()} == {
        "text-classification": "READY",
        "text-generation": "READY",
        "large": "READY",
        "small": "UNAVAILABLE",
    }


def test_a_name_of_another_model_leads_to_it_where_no_haproxy_serves(several: Serve) -> None:
    for path, location in (
        ("/v2/models/large/infer", "/text-generation/large/v2/models/large/infer"),
        ("/models/large/v1/completions", "/text-generation/large/v1/completions"),
    ):
        (response,) = asyncio.run(Client().many(path, 1))
        assert str(response.url.join(response.headers["location"])) == f"http://gateway{location}"
    (response,) = asyncio.run(Client().many("/v2/models/nobody", 1))
    assert response.json()["error"] == (
        "there is no model 'nobody'; allowed: text-classification, text-generation, large, small"
    )


@pytest.mark.parametrize("path", ["/v2/models/text-generation/stats", "/v2/repository/models/text-generation/stats"])
def test_statistics_are_those_of_all_replicas_of_a_model(serve: Serve, path: str) -> None:
    (one,) = asyncio.run(Client().get(path)).json()["model_stats"]

    assert (one["name"], one["version"], one["last_inference"]) == ("text-generation", "1", 9000)
    assert (one["inference_count"], one["execution_count"]) == (10, 4)
    of_requests = one["inference_stats"]
    assert of_requests["success"] == {"count": 6, "ns": 4_000_000_000}
    assert of_requests["fail"]["count"] == 2
    assert [of_requests[part]["ns"] for part in ("queue", "compute_input", "compute_infer", "compute_output")] == [
        1_000_000_000,
        500_000_000,
        2_000_000_000,
        500_000_000,
    ]


def test_statistics_of_all_models_and_of_none(serve: Serve) -> None:
    everything = asyncio.run(Client().get("/v2/models/stats")).json()["model_stats"]
    nothing = asyncio.run(Client().get("/v2/models/nobody/stats"))
    version = asyncio.run(Client().get("/v2/models/text-generation/versions/2/stats"))

    assert [one["name"] for one in everything] == list(READY)
    assert (nothing.status_code, version.status_code) == (404, 404)
    assert "there is no model 'nobody'; allowed: text-classification, text-generation" in nothing.json()["error"]


def call(name: str, expected: int = 200, /, **fields: Any) -> Any:
    """What the gateway answers to a call of gRPC."""
    body = framed(message(f"{name}Request")(**fields).SerializeToString())
    response = asyncio.run(Client().post(f"/grpc/{name}", body, content_type="application/grpc"))
    assert response.status_code == expected, response.text
    return message(f"{name}Response").FromString(only(response.content)) if expected == 200 else response.json()


def test_a_key_for_some_tasks_reads_their_statistics_alone(serve: Serve) -> None:
    """The ingress says which those are."""
    serve.replicas["text-classification.large"] = 1
    classification = {"x-sextet-tasks": "|summarization|text-classification|"}

    def named(path: str) -> tuple[int, Any]:
        answer = asyncio.run(Client().get(path, **classification))
        return answer.status_code, [one["name"] for one in answer.json().get("model_stats", ())]

    def called(name: str) -> tuple[int, list[str]]:
        body = framed(message("ModelStatisticsRequest")(name=name).SerializeToString())
        sent = Client().post("/grpc/ModelStatistics", body, content_type="application/grpc", **classification)
        answer = asyncio.run(sent)
        if answer.status_code != 200:
            return answer.status_code, []
        found = message("ModelStatisticsResponse").FromString(only(answer.content)).model_stats
        return 200, [one.name for one in found]

    for ask, all_of_them in ((named, "/v2/repository/models/stats"), (called, "")):
        path = "/v2/repository/models/{}/stats" if all_of_them else "{}"
        assert ask(all_of_them) == (200, ["text-classification", "large"])
        assert ask(path.format("large")) == (200, ["large"])
        assert ask(path.format("text-generation")) == (403, [])


def test_the_probe_of_a_model_that_is_not_there_names_no_other(serve: Serve) -> None:
    """It needs no key."""
    for fields in ({"name": "x"}, {"name": "text-generation", "version": "2"}):
        body = framed(message("ModelReadyRequest")(**fields).SerializeToString())
        answer = asyncio.run(Client().post("/grpc/ModelReady", body, content_type="application/grpc"))

        assert answer.status_code == 404
        assert "text-classification" not in answer.text


def test_the_calls_of_grpc_that_belong_to_no_replica(serve: Serve) -> None:
    serve.replicas["text-generation"] = 0

    assert call("ServerLive").live
    assert not call("ServerReady").ready
    assert call("ServerMetadata").name == "sextet"
    assert call("ModelReady", name="text-classification").ready
    assert not call("ModelReady", name="text-generation", version="1").ready
    assert call("ModelMetadata", name="text-classification").inputs[0].name == "args"
    assert [(one.name, one.state) for one in call("RepositoryIndex").models] == [
        ("text-classification", "READY"),
        ("text-generation", "UNAVAILABLE"),
    ]
    assert [one.name for one in call("RepositoryIndex", ready=True).models] == ["text-classification"]
    (one,) = call("ModelStatistics", name="text-classification").model_stats
    assert (one.inference_count, one.inference_stats.success.ns) == (10, 4_000_000_000)
    assert len(call("ModelStatistics").model_stats) == 2
    assert "there is no model 'x'" in call("ModelReady", 404, name="x")["error"]
    assert "has no version '2'" in call("ModelMetadata", 404, name="text-generation", version="2")["error"]
    unknown = asyncio.run(Client().post("/grpc/ModelConfig", content_type="application/grpc"))
    assert (unknown.status_code, "'ModelConfig' is not served; allowed: ServerLive" in unknown.text) == (405, True)


def test_an_adapter_is_listed_and_found_by_its_name_wherever_models_are(serve: Serve) -> None:
    pirate = {"name": "pirate", "base": "b", "version": "0123456789ab", "rank": 16, "memory_bytes": 2**20}
    pirate["digest"] = "0123456789abcdef"
    serve.adapters = {"text-generation": [pirate]}
    client = Client()

    async def scenario() -> list[httpx.Response]:
        listed = ("/", "/catalog/text-generation/v1/models", "/v2/repository/index")
        found = ("/v2/models/pirate/infer", "/models/pirate/v1/completions", "/v2/models/nobody")
        return [await client.get(path) for path in (*listed, *found)]

    catalog, cards, index, inference, completion, nobody = asyncio.run(scenario())
    (entry,) = catalog.json()["tasks"][1]["others"]
    assert (entry["name"], entry["route"], entry["replicas"]) == ("pirate", "/text-generation/pirate", 1)
    own = {"id": "pirate", "version": "0123456789ab", "digest": "0123456789abcdef", "memory_bytes": 2**20, "rank": 16}
    assert entry["model"] == {**own, "adapter_of": "someone/text-generation", "adapters": []}
    assert [card["id"] for card in cards.json()["data"]] == ["someone/text-generation", "text-generation", "pirate"]
    assert {one["name"]: one["state"] for one in index.json()}["pirate"] == "READY"
    for response, location in (
        (inference, "/text-generation/pirate/v2/models/pirate/infer"),
        (completion, "/text-generation/pirate/v1/completions"),
    ):
        assert str(response.url.join(response.headers["location"])) == f"http://gateway{location}"
    assert "allowed: text-classification, text-generation, pirate" in nobody.json()["error"]


def test_an_adapter_has_statistics_of_its_own_over_http_and_grpc(serve: Serve) -> None:
    serve.adapters = {"text-generation": [{"name": "pirate", "version": "0123456789ab"}]}

    async def scenario() -> list[httpx.Response]:
        client = Client()
        return [await client.get(f"/v2/models{path}/stats") for path in ("/pirate", "/text-generation", "", "/nobody")]

    own, base, everything, nobody = asyncio.run(scenario())
    (one,), (other,) = own.json()["model_stats"], base.json()["model_stats"]
    assert (one["name"], one["version"], one["inference_count"], one["last_inference"]) == ("pirate", "1", 2, 5000)
    assert (one["inference_stats"]["success"]["count"], other["inference_stats"]["success"]["count"]) == (2, 6)
    names = [*READY, "pirate"]
    assert [one["name"] for one in everything.json()["model_stats"]] == names
    assert nobody.json()["error"] == f"there is no model 'nobody'; allowed: {', '.join(names)}"
    assert [one.name for one in call("RepositoryIndex").models] == names
    assert [one.name for one in call("ModelStatistics").model_stats] == names
    (counted,) = call("ModelStatistics", name="pirate").model_stats
    assert (counted.name, counted.inference_count) == ("pirate", 2)
    assert call("ModelReady", name="pirate").ready
    assert call("ModelMetadata", name="pirate").name == "pirate"
    assert "pirate has no version '2'" in call("ModelReady", 404, name="pirate", version="2")["error"]


def test_the_repository_index_leaves_out_what_is_not_ready_where_a_client_asks_for_that(several: Serve) -> None:
    client = Client()

    async def scenario() -> list[httpx.Response]:
        bodies = (b'{"ready": true}', b'{"ready": false}', b'{"ready": 3}', b'{"read": true}')
        headers = {"content_type": "application/json"}
        return [await client.post("/v2/repository/index", body, **headers) for body in bodies]

    ready, everything, wrong, unknown = asyncio.run(scenario())
    assert [one["name"] for one in ready.json()] == [*READY, "large"]
    assert [one["name"] for one in everything.json()] == [*READY, "large", "small"]
    assert (wrong.status_code, unknown.status_code) == (400, 400)
    assert "ready is 3" in wrong.json()["error"]


def test_the_server_says_which_of_tritons_extensions_it_has(serve: Serve) -> None:
    extensions = asyncio.run(Client().get("/v2")).json()["extensions"]
    assert extensions == ["binary_tensor_data", "model_repository", "statistics"]
    assert list(call("ServerMetadata").extensions) == extensions
