"""TaskServer over ASGI, without Ray: a tiny real model, real HTTP messages, statuses, headers, limits, deadlines."""

import asyncio
import gc
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message, Scope

import pipelines
from deployments.config import CUT_S
from deployments.http import request as exchange
from deployments.http.request import LOAD_HEADER, START_HEADER, clock
from deployments.task_server import WORK, TaskServer
from pipelines.errors import ArtifactError, ConfigurationError
from tests.deployments.asking import asking, post
from tests.tiny_checkpoints import CORPUS

TASK = "text-classification"
TIMINGS = ("x-queue-time", "x-tokenization-time", "x-inference-time", "x-total-time")


@pytest.fixture(scope="module")
def model(exported: Callable[..., Path]) -> Path:
    return exported("bert", TASK)


@pytest.fixture(scope="module")
def server(model: Path) -> TaskServer:
    return started(TASK, model)


def started(task: str, model: Path, **user_config: Any) -> TaskServer:
    server = TaskServer(task)
    asyncio.run(server.reconfigure({"model": str(model), **user_config}))
    return server


def test_a_text_is_answered_with_what_the_pipeline_says_and_a_list_in_its_order(
    server: TaskServer, model: Path
) -> None:
    texts = ["what a film", "정말 좋았어요 😀", "meh " * 300]
    pipeline = pipelines.load(model)
    expected = [[pytest.approx(one, abs=1e-5) for one in pipeline(text, top_k=None)] for text in texts]

    assert post(server, {"inputs": texts[0]}).json() == expected[:1]
    assert post(server, {"inputs": texts, "parameters": {}}).json() == expected


@pytest.mark.parametrize("path", ["", "/"])
def test_the_url_may_end_in_a_slash(server: TaskServer, path: str) -> None:
    assert post(server, {"inputs": "a"}, path).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "the body is not valid JSON: it is empty"),
        (b"{", 400, "the body is not valid JSON"),
        (b'{"inputs": NaN}', 400, "the body is not valid JSON"),
        (b'{"inputs": "\xff"}', 400, "the body is not valid JSON"),
        (b'{"inputs": "\\ud800"}', 400, "the body is not valid JSON"),
        (b"[" * 100_000, 400, "the body is not valid JSON"),
        (
            {"inputs": 3},
            400,
            "inputs is 3; allowed: a text or an object with text",
        ),
        ({"inputs": ["a", 3]}, 400, "inputs[1] is 3; allowed: a text or an object"),
        ({"inputs": ["a", {"text": 1}]}, 400, "inputs[1].text is 1; allowed: a string"),
        ({"inputs": "a", "parameters": {"top_k": "x"}}, 400, "parameters.top_k is 'x'; allowed: an integer"),
        ({"inputs": "a", "parameters": {"x": 1}}, 400, "The following `model_kwargs` are not used by the model: ['x']"),
        ({"inputs": ["a", "a" * 200_001]}, 422, "inputs[1] has 200001 characters; allowed: at most 200000"),
        ({"inputs": "a", "parameters": {"x" * 10_000: 1}}, 400, "x..."),
        ({"inputs": ["a"] * 1025}, 413, "inputs has 1025 elements; allowed: at most 1024 inputs"),
        ({"inputs": "a" * 5_000_000}, 413, "the body has more than 4194304 bytes; allowed: at most 4194304 bytes"),
    ],
)
def test_a_client_that_is_wrong_is_told_where(server: TaskServer, body: Any, status: int, message: str) -> None:
    response = post(server, body)

    assert (response.status_code, response.json()["error_type"]) == (status, "validation")
    assert message in response.json()["error"]
    assert all(float(response.headers[name]) >= 0 for name in TIMINGS)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=40) | st.text(max_size=40).map(lambda text: b'{"inputs": ' + text.encode() + b"}"))
def test_bytes_that_are_no_request_are_always_a_4xx(server: TaskServer, body: bytes) -> None:
    assert post(server, body).status_code in (200, 400)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(min_size=1, max_size=300))
def test_every_text_that_json_can_carry_is_answered(server: TaskServer, text: str) -> None:
    response = post(server, json.dumps({"inputs": text}, ensure_ascii=False).encode())

    assert response.status_code == 200


def test_an_answer_tells_its_times_and_tokens(server: TaskServer) -> None:
    headers = post(server, {"inputs": ["one", "one two"]}).headers

    times = [float(headers[name]) for name in TIMINGS]
    assert all(time >= 0 for time in times)
    assert times[3] >= max(times[:3])
    assert int(headers["x-compute-tokens"]) > 4


def test_other_methods_are_refused_with_the_right_one(server: TaskServer) -> None:
    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.request(method, f"/{TASK}") for method in ("GET", "PUT", "DELETE", "PATCH")]

    assert {(one.status_code, one.headers["allow"]) for one in asking(server, ask)} == {(405, "POST")}


def test_a_path_below_the_task_does_not_exist(server: TaskServer) -> None:
    response = post(server, {"inputs": "a"}, "/generate")

    assert (response.status_code, response.json()["error_type"]) == (404, "not_found")
    assert response.json()["error"].startswith(f"/{TASK}/generate does not exist; allowed: POST /{TASK}, POST ")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content_type": "application/json; charset=utf-8"}, 200),
        ({"content_type": "application/vnd.api+json"}, 200),
        ({"content_type": "text/plain"}, 415),
        ({"content_type": "application/x-www-form-urlencoded"}, 415),
        ({"content_encoding": "gzip"}, 415),
    ],
)
def test_a_body_that_is_declared_to_be_something_else_is_not_read(
    server: TaskServer, headers: dict[str, str], status: int
) -> None:
    assert post(server, {"inputs": "a"}, **headers).status_code == status


@pytest.mark.parametrize("header", ["origin", "sec-fetch-site"])
def test_a_body_without_a_content_type_is_refused_from_a_page_and_taken_from_a_program(
    server: TaskServer, header: str
) -> None:
    """A page can send one to any server, without asking first; Triton's client sends no other."""

    def asked(headers: dict[str, str]) -> Any:
        return asking(server, lambda client: client.post(f"/{TASK}", content=b'{"inputs": "a"}', headers=headers))

    refused = asked({header: "null"})

    assert (refused.status_code, refused.json()["error_type"]) == (415, "validation")
    assert refused.json()["error"] == "the content-type is missing; allowed: application/json"
    assert asked({}).status_code == 200


@pytest.mark.parametrize("timeout", ["abc", "-1", "0", "nan", "inf", ""])
def test_a_deadline_that_is_no_time_is_refused_by_the_name_of_its_header(server: TaskServer, timeout: str) -> None:
    response = post(server, {"inputs": "a"}, x_request_timeout_seconds=timeout)

    assert response.status_code == 400
    assert "x-request-timeout-seconds" in response.json()["error"]


def test_a_deadline_that_ran_out_is_a_408_and_the_next_request_is_answered(server: TaskServer) -> None:
    late = post(server, {"inputs": "a"}, x_request_timeout_seconds="0.0000001")

    assert (late.status_code, late.json()["error_type"]) == (408, "timeout")
    assert post(server, {"inputs": "a"}, x_request_timeout_seconds="20").status_code == 200


def test_a_deadline_begins_when_the_ingress_had_read_the_head(server: TaskServer) -> None:
    waited = {START_HEADER: f"{int(1000 * (time.time() - 30))} {clock()}"}

    late = post(server, {"inputs": "a"}, x_request_timeout_seconds="30", **waited)

    assert (late.status_code, late.json()["error_type"]) == (408, "timeout")
    assert post(server, {"inputs": "a"}, x_request_timeout_seconds="90", **waited).status_code == 200


def test_every_answer_tells_the_ingress_what_the_next_request_would_wait(model: Path) -> None:
    server = started(TASK, model)

    answers = [post(server, {"inputs": "a"}), post(server, {"inputs": 1})]

    assert [answer.status_code for answer in answers] == [200, 400]
    assert [answer.headers[LOAD_HEADER] for answer in answers] == ["0/30000/0"] * 2


def test_the_work_of_a_huge_list_is_what_autoscaling_is_told(model: Path) -> None:
    server = started(TASK, model, batching={"max_batch_size": 1})

    async def ask(client: httpx.AsyncClient) -> float:
        most_s = 0.0
        listed = asyncio.create_task(client.post(f"/{TASK}", json={"inputs": ["some text"] * 900}))
        while not listed.done():
            most_s = max(most_s, (await server.record_autoscaling_stats())[WORK])
            await asyncio.sleep(0)
        assert (await listed).status_code == 200
        return most_s

    before_s = asyncio.run(server.record_autoscaling_stats())[WORK]
    one = asking(server, lambda client: client.post(f"/{TASK}", json={"inputs": "some text"}))
    one_s = float(one.headers["x-inference-time"]) / 1000
    most_s = asking(server, ask)

    assert before_s == asyncio.run(server.record_autoscaling_stats())[WORK] == 0.0
    assert most_s > 10 * one_s > 0.0


def test_a_full_queue_is_a_429_that_says_when_to_come_back(model: Path) -> None:
    server = started(TASK, model, batching={"max_batch_size": 1}, queue={"max_queue_tokens": 500})

    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        body = {"inputs": ["some text"] * 50}
        return await asyncio.gather(*(client.post(f"/{TASK}", json=body) for _ in range(8)))

    responses = asking(server, ask)

    refused = [one for one in responses if one.status_code == 429]
    assert refused
    assert all(one.json()["error_type"] == "overloaded" and int(one.headers["retry-after"]) >= 1 for one in refused)
    assert any(one.status_code == 200 for one in responses)


def test_a_client_that_leaves_takes_its_rows_out_of_the_queue(model: Path) -> None:
    server = started(TASK, model, batching={"max_batch_size": 1})

    async def ask(client: httpx.AsyncClient) -> int:
        leaving = asyncio.create_task(client.post(f"/{TASK}", json={"inputs": ["some text"] * 500}))
        scheduler = server._now.scheduler
        while not scheduler.waiting_tokens:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert (await client.post(f"/{TASK}", json={"inputs": "a"})).status_code == 200
        return scheduler.waiting_tokens

    assert asking(server, ask) == 0


def test_limits_change_in_place_and_the_model_stays_loaded(model: Path) -> None:
    server = started(TASK, model)
    pipeline = server._now.pipeline
    assert post(server, {"inputs": ["a", "b"]}).status_code == 200

    asyncio.run(server.reconfigure({"model": str(model), "limits": {"max_inputs": 1}}))

    assert server._now.pipeline is pipeline
    assert post(server, {"inputs": ["a", "b"]}).status_code == 413


def test_requests_that_are_inside_finish_under_the_configuration_they_began_with(model: Path) -> None:
    server = started(TASK, model, batching={"max_batch_size": 1})

    async def ask(client: httpx.AsyncClient) -> tuple[httpx.Response, httpx.Response]:
        inside = asyncio.create_task(client.post(f"/{TASK}", json={"inputs": ["some text"] * 200}))
        while not server._now.scheduler.waiting_tokens:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await server.reconfigure({"model": str(model), "limits": {"max_inputs": 1}})
        after = await client.post(f"/{TASK}", json={"inputs": ["a", "b"]})
        return await inside, after

    inside, after = asking(server, ask)

    assert (inside.status_code, len(inside.json())) == (200, 200)
    assert after.status_code == 413


def test_a_request_that_has_not_reached_the_queue_yet_outlives_a_change_too(model: Path) -> None:
    server = started(TASK, model)
    changed = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b'{"inputs": '
        await changed.wait()
        yield b'["a", "b"]}'

    async def ask(client: httpx.AsyncClient) -> httpx.Response:
        declared = {"content-type": "application/json"}
        inside = asyncio.create_task(client.post(f"/{TASK}", content=body(), headers=declared))
        old = server._now
        while not old.inside:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await server.reconfigure({"model": str(model), "limits": {"max_inputs": 1}})
        await asyncio.sleep(0.01)  # what was there before may end now
        changed.set()
        return await inside

    response = asking(server, ask)

    assert (response.status_code, len(response.json())) == (200, 2)


def test_a_changed_model_replaces_the_old_one_and_a_bad_one_does_not(
    model: Path, exported: Callable[..., Path], tmp_path: Path
) -> None:
    server = started(TASK, model)

    with pytest.raises(ArtifactError, match="is not a model artifact"):
        asyncio.run(server.reconfigure({"model": str(tmp_path)}))
    assert post(server, {"inputs": "a"}).status_code == 200

    asyncio.run(server.reconfigure({"model": str(exported("distilbert", TASK))}))
    assert server.describe()["architecture"] == "distilbert"
    assert post(server, {"inputs": "a"}).status_code == 200


def test_changes_that_overlap_are_applied_in_their_order_and_leave_one_model(model: Path, monkeypatch: Any) -> None:
    server, schedulers = started(TASK, model), []
    load = server._load

    def loaded(config: Any) -> Any:
        time.sleep(0.3 if config.threads == 1 else 0.0)
        pipeline, scheduler, observer = load(config)
        schedulers.append(scheduler)
        return pipeline, scheduler, observer

    monkeypatch.setattr(server, "_load", loaded)

    async def ask(client: httpx.AsyncClient) -> int:
        changes = [server.reconfigure({"model": str(model), "threads": threads}) for threads in (1, 2)]
        await asyncio.gather(*changes)
        await asyncio.gather(*server._retiring)
        return (await client.post(f"/{TASK}", json={"inputs": "a"})).status_code

    assert asking(server, ask) == 200
    assert server._now.config.threads == 2
    assert [scheduler._draining for scheduler in schedulers] == [True, False]


def test_who_gives_up_a_change_does_not_hold_the_event_loop_until_the_model_is_loaded(
    model: Path, monkeypatch: Any
) -> None:
    server = started(TASK, model)
    monkeypatch.setattr(server, "_load", lambda config: time.sleep(2))

    async def ask(client: httpx.AsyncClient) -> float:
        change = asyncio.create_task(server.reconfigure({"model": str(model), "threads": 1}))
        await asyncio.sleep(0.1)
        change.cancel()
        began = time.perf_counter()
        await asyncio.gather(change, return_exceptions=True)
        return time.perf_counter() - began

    assert asking(server, ask) < 1


def test_an_artifact_of_another_task_is_refused(model: Path) -> None:
    with pytest.raises(ArtifactError, match="was exported for text-classification, not for translation"):
        started("translation", model)


def test_a_deployment_without_a_user_config_is_unhealthy_by_name() -> None:
    with pytest.raises(ConfigurationError, match="the deployment translation has no user_config"):
        TaskServer("translation").check_health()


def test_a_replica_that_works_is_healthy(server: TaskServer) -> None:
    server.check_health()


def test_questions_come_as_objects_and_one_that_lacks_its_context_is_named(exported: Callable[..., Path]) -> None:
    server = started("question-answering", exported("bert", "question-answering"))
    question = {"question": "Who?", "context": "Anna went to Paris."}

    one, many = post(server, {"inputs": question}), post(server, {"inputs": [question, question]})
    wrong = post(server, {"inputs": [question, {"question": "Who?"}]})

    assert set(one.json()) == {"score", "start", "end", "answer"}
    assert many.json() == [one.json(), one.json()]
    assert (wrong.status_code, wrong.json()["error"].split(";")[0]) == (400, "inputs[1] lacks context")


def test_a_body_that_never_ends_is_given_up(server: TaskServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "BODY_S", 0.05)

    async def body() -> AsyncIterator[bytes]:
        yield b'{"inputs": '
        await asyncio.sleep(20)

    async def ask(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post(f"/{TASK}", content=body(), headers={"content-type": "application/json"})

    response = asking(server, ask)

    assert (response.status_code, response.json()["error_type"]) == (408, "timeout")
    assert response.json()["error"].startswith("the body was not complete after")


def test_without_threads_a_session_has_as_many_as_ray_reserved_cpus(model: Path, monkeypatch: Any) -> None:
    threads: list[int] = []
    load = pipelines.load

    def recorded(path: Path, **given: Any) -> Any:
        threads.append(given["threads"])
        return load(path, **given)

    monkeypatch.setattr(pipelines, "load", recorded)

    for cpus, wanted in (("3", None), ("", None), ("3", 2)):
        monkeypatch.setenv("OMP_NUM_THREADS", cpus)
        started(TASK, model, **({"threads": wanted} if wanted else {}))

    assert threads == [3, 1, 2]


def test_requests_to_a_generator_share_its_slots_and_are_answered_as_each_alone(exported: Callable[..., Path]) -> None:
    model = exported("llama", "text-generation")
    server = started("text-generation", model, slots={"slots": 3, "max_tokens": 100, "prefill_chunk_tokens": 4})
    parameters = {"max_new_tokens": 12, "do_sample": False}
    texts = [text[:length] for text in CORPUS[:4] for length in (3, 20, 50)]

    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        bodies = [
            {"inputs": text, "parameters": parameters, "stream": index % 2 == 1} for index, text in enumerate(texts)
        ]
        return list(await asyncio.gather(*(client.post("/text-generation", json=body) for body in bodies)))

    responses = asking(server, ask)

    generate = pipelines.load(model)
    for index, (text, response) in enumerate(zip(texts, responses, strict=True)):
        events = response.text.strip().split("data:")
        answer = json.loads(events[-1]) if index % 2 else response.json()[0]
        assert answer["generated_text"] == generate(text, **parameters)[0]["generated_text"]


def test_a_model_that_writes_nothing_has_no_slots(model: Path) -> None:
    with pytest.raises(ConfigurationError, match="slots is set for text-classification; allowed for: translation, "):
        started(TASK, model, slots={"slots": 3})


def test_a_long_body_is_answered_as_a_short_one_is(server: TaskServer) -> None:
    text = "what a film"
    short = post(server, {"inputs": text})
    long = post(server, json.dumps({"inputs": text}).encode() + b" " * 5000)

    assert short.json() == long.json()


def test_a_stream_whose_client_is_gone_before_its_head_is_sent_leaves_nothing_inside(
    exported: Callable[..., Path],
) -> None:
    server = started("text-generation", exported("llama", "text-generation"))
    body = b'{"inputs": "a", "stream": true, "parameters": {"max_new_tokens": 200, "min_new_tokens": 200}}'
    scope: Scope = {"type": "http", "method": "POST", "path": "/text-generation", "root_path": "/text-generation"}
    scope = {**scope, "headers": [(b"content-type", b"application/json")], "query_string": b""}

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        raise OSError("the client is gone")

    async def scenario() -> tuple[int, int]:
        response = await server(Request(scope, receive))
        inside = server._now.inside
        with pytest.raises(OSError, match="gone"):
            await response(scope, receive, send)
        del response
        await asyncio.sleep(0.1)
        return inside, server._now.inside

    assert asyncio.run(scenario()) == (1, 0)


GENERATE = "text-generation"


@pytest.mark.parametrize("change", ["bounds", "model"])
def test_a_stream_outlives_every_change_of_its_configuration(change: str, exported: Callable[..., Path]) -> None:
    """Over real ASGI messages: httpx's own transport would hand a stream over at its end only."""
    model, slots = exported("llama", GENERATE), {"slots": 2, "max_tokens": 250, "prefill_chunk_tokens": 16}
    server = started(GENERATE, model, slots=slots)
    body = {"inputs": "a", "parameters": {"max_new_tokens": 200, "min_new_tokens": 200}, "stream": True}
    sent: list[bytes] = []
    begun, changed = asyncio.Event(), asyncio.Event()

    async def receive() -> Any:
        return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))
        if len(sent) == 3:
            begun.set()
            await changed.wait()  # the client reads no more until then: tiny models are fast

    async def scenario() -> None:
        scope = {"type": "http", "method": "POST", "path": f"/{GENERATE}", "root_path": f"/{GENERATE}"}
        request = Request({**scope, "headers": [(b"content-type", b"application/json")], "query_string": b""}, receive)

        async def stream() -> None:
            response = await server(request)
            await response(request.scope, receive, send)

        streaming = asyncio.create_task(stream())
        await begun.wait()
        if change == "bounds":
            await server.reconfigure({"model": str(model), "slots": slots, "limits": {"max_inputs": 1}})
        else:
            await server.reconfigure({"model": str(exported("qwen2", GENERATE)), "slots": slots})
        assert not streaming.done()
        assert server._now.inside == (1 if change == "bounds" else 0)
        changed.set()
        await streaming
        await asyncio.gather(*server._retiring)

    asyncio.run(scenario())

    last = json.loads(sent[-2].removeprefix(b"data: "))
    assert last["details"]["generated_tokens"] == 200


def test_a_replica_that_must_end_cuts_a_stream_with_an_error_event(exported: Callable[..., Path]) -> None:
    model, slots = exported("llama", GENERATE), {"slots": 2, "max_tokens": 250, "prefill_chunk_tokens": 16}
    body = {
        "inputs": "a",
        "parameters": {"max_new_tokens": 200, "min_new_tokens": 200},
        "stream": True,
    }
    sent: list[bytes] = []
    begun, cut = asyncio.Event(), asyncio.Event()
    told: list[Callable[[float], None]] = []
    server = TaskServer(GENERATE, on_ending=told.append)

    async def receive() -> Any:
        return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))
        if len(sent) == 3:
            begun.set()
            await cut.wait()  # the client reads no more until then: tiny models are fast

    async def scenario() -> None:
        await server.reconfigure({"model": str(model), "slots": slots})
        scope = {"type": "http", "method": "POST", "path": f"/{GENERATE}", "root_path": f"/{GENERATE}"}
        request = Request({**scope, "headers": [(b"content-type", b"application/json")], "query_string": b""}, receive)

        async def stream() -> None:
            response = await server(request)
            await response(request.scope, receive, send)

        streaming = asyncio.create_task(stream())
        await begun.wait()
        (begin,) = told
        begin(CUT_S)  # which leaves no time but that to tell it
        assert server._cut is not None
        await server._cut
        cut.set()
        async with asyncio.timeout(30):
            await streaming

    asyncio.run(scenario())

    last = json.loads(sent[-2].removeprefix(b"data: "))
    assert (last["error"], last["error_type"]) == ("the replica is shutting down", "overloaded")
    assert sent[-1] == b"", "the stream ends as every stream does"
    assert len(sent) < 200


def test_a_model_that_loads_slowly_holds_up_no_request(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = started(TASK, model)
    loading, loaded = threading.Event(), threading.Event()
    load = pipelines.load

    def slow(path: Path, **given: Any) -> Any:
        loading.set()
        loaded.wait(20)
        return load(path, **given)

    monkeypatch.setattr(pipelines, "load", slow)

    async def ask(client: httpx.AsyncClient) -> list[int]:
        change = asyncio.create_task(server.reconfigure({"model": str(model), "threads": 2}))
        while not loading.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        texts = ["some text " * 200] * 4
        answers = [await client.post(f"/{TASK}", json={"inputs": texts[:n]}) for n in (1, 2, 4)]
        loaded.set()
        await change
        return [answer.status_code for answer in answers]

    assert asking(server, ask) == [200, 200, 200]


def test_an_iterator_that_ends_early_in_a_host_thread_is_an_error_and_not_a_hang(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = started(TASK, model)

    def ends(*_: Any) -> Any:
        return next(iter([]))

    monkeypatch.setattr(type(server._now.pipeline), "preprocess", ends)

    for words in (1, 1000):
        assert post(server, {"inputs": "word " * words}).status_code == 500


def test_a_request_over_its_own_bound_is_refused_whatever_the_queue_holds(exported: Callable[..., Path]) -> None:
    server = started(GENERATE, exported("llama", GENERATE), limits={"max_tokens": 1000, "max_rows": 20})
    body = {"prompt": ["a"] * 10, "n": 2, "max_tokens": 100}

    refused = post(server, body, "/v1/completions")
    many = post(server, body | {"n": 3}, "/v1/completions")
    fits = post(server, body | {"n": 1, "max_tokens": 5}, "/v1/completions")

    assert (refused.status_code, many.status_code, fits.status_code) == (422, 413, 200)
    assert "may read and write" in refused.json()["error"]["message"]


def test_tokens_that_a_generator_read_and_wrote_are_told(exported: Callable[..., Path]) -> None:
    server = started(GENERATE, exported("llama", GENERATE), slots={"slots": 2, "max_tokens": 250})

    response = post(server, {"prompt": "hi", "max_tokens": 3, "temperature": 0}, "/v1/completions")

    usage = response.json()["usage"]
    assert int(response.headers["x-compute-tokens"]) == usage["total_tokens"] < 20


def test_a_crowd_of_requests_inside_is_seldom_searched_for_garbage(server: TaskServer) -> None:
    async def crowd(client: httpx.AsyncClient) -> list[httpx.Response]:
        return await asyncio.gather(*(client.post(f"/{TASK}", json={"inputs": "good"}) for _ in range(200)))

    before = gc.get_stats()[0]["collections"]
    answers = asking(server, crowd)

    assert {answer.status_code for answer in answers} == {200}
    assert gc.get_stats()[0]["collections"] - before < 20
