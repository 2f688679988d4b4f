"""What holds for every task: headers, limits, deadlines, unknown paths, the gateway, and what the processes are."""

import json
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deployments.ask import AskError, ask
from deployments.observability.ended_logs import remove_ended
from pipelines.tasks import TASKS
from tests.cluster.serving import LOOPBACK, READY_S, Serving, listeners

pytestmark = pytest.mark.cluster
TEXT = "Where does the river flow?"
DAY_S, MOST_A_DAY = 86_400, 5_000_000


@pytest.fixture(scope="module")
def http(cluster: Serving) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=cluster.url, timeout=60) as client:
        yield client


def test_the_start_printed_the_url_and_one_question_and_answer_per_task(cluster: Serving) -> None:
    cluster.wait_for("text-generation")
    printed = cluster.lines[cluster.lines.index(f"ready {cluster.url}") + 1 :]

    deadline = time.monotonic() + 60
    while len(printed) < 3 * len(TASKS) and time.monotonic() < deadline:
        time.sleep(0.1)
        printed = cluster.lines[cluster.lines.index(f"ready {cluster.url}") + 1 :]

    assert printed[::3] == list(TASKS)
    assert any("훌륭하고" in line for line in printed[1::3])
    assert all(line.startswith("  -> ") and "no answer" not in line for line in printed[2::3])


def test_nothing_of_ray_reached_the_terminal(cluster: Serving) -> None:
    assert not [line for line in cluster.lines if "ray::" in line or "INFO" in line or "Traceback" in line]


def test_prometheus_finds_the_batches_of_each_task(cluster: Serving, http: httpx.Client) -> None:
    (url,) = [line.removeprefix("metrics ") for line in cluster.lines if line.startswith("metrics ")]
    http.post("/text-classification", json={"inputs": [TEXT, "Short."]}).raise_for_status()

    families = {one.name: one.samples for one in text_string_to_metric_families(httpx.get(url, timeout=30).text)}
    value = {
        sample.name: sample.value
        for samples in families.values()
        for sample in samples
        if sample.labels.get("task") == "text-classification"
    }
    assert value["sextet_batch_rows_count"] >= 1
    assert 0 < value["sextet_tokens_total"] <= value["sextet_padded_tokens_total"]
    assert value["sextet_batch_inference_seconds_sum"] > 0
    assert "sextet_batch_queue_seconds_count" in value
    assert {sample.labels["task"] for sample in families["sextet_artifact_info"]} == set(TASKS)
    there = {(one.labels["application"], one.labels["state"]): one.value for one in families["sextet_replicas"]}
    assert all(there[task, state] >= 1 for task in TASKS for state in ("wanted", "there"))


def test_prometheus_finds_what_the_ingress_refuses_by_itself(cluster: Serving, http: httpx.Client) -> None:
    (url,) = [line.removeprefix("metrics ") for line in cluster.lines if line.startswith("metrics ")]

    def refused() -> Counter[tuple[str, str, str]]:
        families = text_string_to_metric_families(httpx.get(url, timeout=30).text)
        (samples,) = [one.samples for one in families if one.name == "sextet_refusals"]
        found = [(one.labels["task"], one.labels["status"], one.labels["reason"]) for one in samples]
        assert len(set(found)) == len(found), "the node says it once"
        assert {(task, "503", "no_replica") for task in TASKS} < set(found)
        return Counter({kind: int(one.value) for kind, one in zip(found, samples, strict=True)})

    before = refused()
    for path in ("/", "/text-classification", "/v1/models"):
        assert http.get(path, headers={"host": "evil.example"}).status_code == 421

    assert refused() - before == {("none", "421", "host"): 3}


def test_the_gateway_lists_the_tasks_and_their_models(http: httpx.Client) -> None:
    catalog = http.get("/").json()

    assert (catalog["name"], catalog["version"]) == ("sextet", version("sextet"))
    assert [one["task"] for one in catalog["tasks"]] == list(TASKS)
    assert all(one["ready"] and one["model"]["parity"]["passed"] for one in catalog["tasks"])
    page = http.get("/", headers={"accept": "text/html"})
    assert page.headers["content-type"].startswith("text/html")
    assert "<title>Sextet</title>" in page.text
    for name in re.findall(r'"(console/[a-z.]+)"', page.text):
        assert http.get(f"/{name}").status_code == 200
    assert http.get("/console/page.py").status_code == 404


def test_the_gateway_is_healthy_and_every_task_ready(http: httpx.Client) -> None:
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/ready").json() == {"status": "ready", "tasks": list(TASKS)}


@pytest.mark.parametrize("path", ["/ready", "/", "/v2/health/ready"])
def test_sixty_probes_at_once_all_get_the_true_answer(cluster: Serving, path: str) -> None:
    with ThreadPoolExecutor(60) as pool:
        statuses = list(pool.map(lambda _: httpx.get(f"{cluster.url}{path}", timeout=30).status_code, range(60)))

    assert statuses == [200] * 60


def test_the_gateway_describes_every_route_and_parameter(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()

    assert document["openapi"].startswith("3.1")
    assert {f"/{task}" for task in TASKS} | {"/", "/health", "/ready", "/openapi.json"} <= set(document["paths"])
    for path, operations in document["paths"].items():  # what is written down is there
        if "{model}" in path:  # a second model of a task: none has one here, tests/deployments/console does
            continue
        method = "POST" if "post" in operations else "GET"
        with http.stream(method, path.replace("{task}", next(iter(TASKS))), json={}) as answer:  # /live has no end
            assert answer.status_code != 404, path
    body = document["paths"]["/question-answering"]["post"]["requestBody"]["content"]["application/json"]
    schemas = document["components"]["schemas"]
    parameters, null = schemas[body["schema"]["$ref"].rpartition("/")[2]]["properties"]["parameters"]["anyOf"]
    assert "doc_stride" in schemas[parameters["$ref"].rpartition("/")[2]]["properties"]
    assert null == {"type": "null"}
    for task in TASKS:
        example = document["paths"][f"/{task}"]["post"]["requestBody"]["content"]["application/json"]["example"]
        assert http.post(f"/{task}", json=example).status_code == 200


def test_an_unknown_path_is_a_404_with_the_routes(http: httpx.Client) -> None:
    for path in ("/nowhere", "/v3/nowhere", "/text-classificationx"):
        response = http.post(path, json={})

        assert (response.status_code, response.json()["error_type"]) == (404, "not_found")
        assert "POST /translation" in response.json()["error"]
    assert http.post("/translation/v9", json={}).status_code == 404


def test_a_wrong_method_or_type_or_size_is_refused_by_the_task_itself(http: httpx.Client) -> None:
    get = http.get("/translation")
    plain = http.post("/translation", content=b"hello", headers={"content-type": "text/plain"})
    large = http.post("/translation", json={"inputs": "a" * 9_000_000})
    many = http.post("/text-classification", json={"inputs": ["a"] * 1025})

    assert (get.status_code, get.headers["allow"]) == (405, "POST")
    assert plain.status_code == 415
    assert (large.status_code, many.status_code) == (413, 413)
    assert "at most 4194304 bytes" in large.json()["error"]
    assert "at most 1024 inputs" in many.json()["error"]


def test_every_response_has_its_times_and_one_request_id(http: httpx.Client) -> None:
    given = http.post("/text-classification", json={"inputs": "a"}, headers={"x-request-id": "abc-123"})
    generated = http.post("/text-classification", json={})

    assert given.headers.get_list("x-request-id") == ["abc-123"]
    assert len(generated.headers.get_list("x-request-id")) == 1
    for response in (given, generated, http.get("/ready"), http.get("/nowhere")):
        for name in ("queue", "tokenization", "inference", "total"):
            assert float(response.headers[f"x-{name}-time"]) >= 0
        assert int(response.headers["x-compute-tokens"]) >= 0


def answer_to(url: str, head: bytes) -> str:
    """What comes back for bytes that no HTTP client would send."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(head)
        return connection.recv(65536).decode()


def test_what_serve_itself_fails_on_is_kept_from_it(cluster: Serving) -> None:
    body = b'{"inputs": "good"}'
    post = b"POST /text-classification HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
    post += b"content-type: application/json\r\n"

    odd_id = answer_to(cluster.url, post + b"x-request-id: \xff\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
    upgrade = b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
    upgrade += b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    websocket = answer_to(cluster.url, b"GET /text-classification HTTP/1.1\r\nhost: localhost\r\n" + upgrade + b"\r\n")

    assert odd_id.startswith("HTTP/1.1 200 ")
    assert websocket.startswith("HTTP/1.1 403 ")


def test_a_deadline_that_runs_out_is_answered_by_us_and_not_by_serve(http: httpx.Client) -> None:
    body: dict[str, Any] = {"inputs": [TEXT] * 300, "parameters": {"max_new_tokens": 50, "do_sample": False}}
    for timeout in ("0.0001", "0.001", "0.01", "0.05"):
        response = http.post("/text-generation", json=body, headers={"x-request-timeout-seconds": timeout})

        assert response.status_code in (408, 429), response.text
        assert response.json()["error_type"] in ("timeout", "overloaded")
    body["inputs"] = TEXT
    assert http.post("/text-generation", json=body, headers={"x-request-timeout-seconds": "x"}).status_code == 400
    assert http.post("/text-generation", json=body, headers={"x-request-timeout-seconds": "60"}).status_code == 200


def test_a_client_that_leaves_in_mid_stream_does_not_stop_the_others(http: httpx.Client, cluster: Serving) -> None:
    body = {"inputs": "a", "stream": True, "parameters": {"max_new_tokens": 200, "do_sample": False}}
    for _ in range(5):
        with http.stream("POST", "/text-generation", json=body) as response:
            next(response.iter_lines())
    with socket.create_connection(("127.0.0.1", int(cluster.url.rpartition(":")[2]))) as half:
        half.sendall(b"POST /text-generation HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")

    assert http.post("/text-generation", json=body | {"stream": False}).status_code == 200


def test_the_terminal_client_asks_one_or_several_and_passes_on_what_the_server_says(cluster: Serving) -> None:
    one = ask("text-classification", ["good"], url=cluster.url)
    several = ask("text-classification", ["good", "bad"], url=f"{cluster.url}/")
    answer = ask("question-answering", ["Who?", "Anna went to Paris."], url=cluster.url)

    assert (len(one), len(several)) == (1, 2)
    assert set(answer) == {"score", "start", "end", "answer"}
    with pytest.raises(AskError, match="answered 400: inputs is empty"):
        ask("text-classification", [""], url=cluster.url)


def test_everything_listens_on_loopback(cluster: Serving) -> None:
    listening = list(listeners(cluster.tree()))

    assert any(one[0] == "haproxy" for one in listening)
    assert [one for one in listening if one[1] not in LOOPBACK] == []


def test_an_idle_cluster_writes_next_to_nothing(cluster: Serving) -> None:
    """On a full disk too, of which Ray warns every 10 s. Ray's GCS once logged its state without a pause, and an agent
    logged a traceback for each warning.
    """
    (logs,) = [Path(line.removeprefix("logs ")).resolve() for line in cluster.lines if line.startswith("logs ")]

    def sizes() -> dict[int, int]:
        """Bytes of each file, by its inode: a log that is rotated keeps it."""
        files = [one.stat() for one in logs.parents[2].rglob("*") if one.is_file() and not one.is_symlink()]
        return {one.st_ino: one.st_size for one in files}

    give_up_at = time.monotonic() + READY_S
    while True:  # what other tests began may still end
        before, began_at = sizes(), time.monotonic()
        time.sleep(20)
        grown = sum(max(0, size - before.get(inode, 0)) for inode, size in sizes().items())
        if grown / (time.monotonic() - began_at) * DAY_S < MOST_A_DAY:
            break
        assert time.monotonic() < give_up_at, grown


def test_no_log_of_a_process_that_runs_is_taken_for_one_that_has_ended(cluster: Serving) -> None:
    (logs,) = [Path(line.removeprefix("logs ")).resolve() for line in cluster.lines if line.startswith("logs ")]

    def opened() -> set[str]:
        found = set()
        for process in cluster.tree():
            for one in Path(f"/proc/{process.pid}/fd").iterdir():
                with suppress(OSError):  # closed meanwhile
                    if (path := os.readlink(one)).startswith(f"{logs}/"):
                        found.add(path)
        return found

    assert any("/serve/replica_" in path for path in opened())
    assert any("/worker-" in path for path in opened())
    remove_ended(logs, max_files=0)

    assert [path for path in opened() if path.endswith(" (deleted)")] == []
    assert len(list(logs.glob("python-core-*"))) < 2 * len(cluster.tree())


@pytest.mark.parametrize("task", TASKS)
def test_a_replica_has_onnxruntime_and_no_torch_in_it(cluster: Serving, task: str) -> None:
    libraries = {mapped.path for mapped in cluster.replica(task).memory_maps()}

    assert any("onnxruntime" in path for path in libraries)
    assert [path for path in libraries if "torch" in path] == []


def test_a_text_of_every_kind_comes_back_in_utf8(http: httpx.Client) -> None:
    body = json.dumps({"inputs": "é 한국어 😀 \u0000"}, ensure_ascii=False).encode()

    response = http.post("/text-classification", content=body, headers={"content-type": "application/json"})

    assert response.status_code == 200, response.text
