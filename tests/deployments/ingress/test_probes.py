"""HAProxy's own answers to health probes, in front of replicas that come and go."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import pytest
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

from deployments.cluster.ray_environment import spare_port
from deployments.ingress.haproxy import tell
from deployments.ingress.probes import STALLED_S
from tests.deployments.ingress.running import command

TASKS = ("token-classification", "question-answering")
"""In the order of Ray's file: the longest path first."""


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.going_on.wait()  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Replica(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Healthy)
        self.going_on = Event()
        self.going_on.set()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A health check that was not answered in time has closed its connection."""


@dataclass
class Ingress:
    url: str
    replicas: dict[str, Replica]

    def end(self, task: str) -> None:
        """The process of the task's only replica ends."""
        self.replicas[task].shutdown()
        self.replicas[task].server_close()

    def hang(self, task: str) -> Event:
        """The task's only replica answers nothing any more until the event is set."""
        going_on = self.replicas[task].going_on
        going_on.clear()
        return going_on

    def probe(self, path: str, method: str = "GET") -> httpx.Response:
        return httpx.request(method, f"{self.url}{path}")

    def wait_for(self, path: str, status: int) -> httpx.Response:
        give_up_at = time.monotonic() + 30
        while True:
            with suppress(httpx.ConnectError):
                if (response := self.probe(path)).status_code == status:
                    return response
            assert time.monotonic() < give_up_at


@pytest.fixture
def without() -> tuple[str, ...]:
    """Tasks that have no replica."""
    return ()


@pytest.fixture
def sleeping() -> tuple[str, ...]:
    """Tasks that may have no replica."""
    return ()


@pytest.fixture
def ingress(tmp_path: Path, without: tuple[str, ...], sleeping: tuple[str, ...]) -> Iterator[Ingress]:
    """Two tasks with a replica each, and a gateway whose only replica is dead; a proxy takes their requests instead."""
    replicas = {task: Replica() for task in (*TASKS, "fallback")}
    for one in replicas.values():
        Thread(target=one.serve_forever, daemon=True).start()
    ports = {task: one.server_address[1] for task, one in replicas.items()} | {"gateway": spare_port()}
    fallback = ServerConfig(name="proxy", host="127.0.0.1", port=ports["fallback"])
    backends = {
        f"http-{name}": BackendConfig(
            name=f"http-{name}",
            path_prefix="/" if name == "gateway" else f"/{name}",
            app_name=name,
            servers=[]
            if name in without
            else [ServerConfig(name=f"SERVE_REPLICA__{name}-1", host="127.0.0.1", port=ports[name])],
            fallback_server=fallback,
        )
        for name in (*TASKS, "gateway")
    }
    public = spare_port()
    config = HAProxyConfig(
        socket_path=f"{tmp_path}/admin.sock",
        server_state_base=str(tmp_path),
        server_state_file=f"{tmp_path}/state",
        is_head=True,
        has_received_routes=True,
        has_received_servers=True,
        http_options=HTTPOptions(host="127.0.0.1", port=public),
        metrics_port=spare_port(),
        stats_port=spare_port(),
        health_check_inter="100ms",
        health_check_fastinter="100ms",
    )
    HAProxyApi(config, backends, config_file_path=f"{tmp_path}/haproxy.cfg")._generate_config_file_internal()
    run = command(tmp_path, tmp_path / "haproxy.cfg")
    tell(tmp_path, sleeping, {}, 0)
    process = subprocess.Popen(run)
    started = Ingress(f"http://127.0.0.1:{public}", replicas)
    started.wait_for("/health", 200)
    yield started
    process.kill()
    process.wait()
    for one in replicas.values():
        one.shutdown()
        one.server_close()


def test_the_ingress_is_healthy_and_ready_though_the_gateway_is_dead(ingress: Ingress) -> None:
    assert ingress.probe("/health").json() == {"status": "ok"}
    assert ingress.probe("/v2/health/live").json() == {"live": True}
    assert ingress.probe("/v2/health/ready").json() == {"ready": True}
    ready = ingress.probe("/ready/")
    assert ready.headers["content-type"] == "application/json"
    assert ready.json() == {"status": "ready", "tasks": ["question-answering", "token-classification"]}, "in our order"


def test_a_head_has_the_status_without_the_body(ingress: Ingress) -> None:
    assert (ingress.probe("/ready", "HEAD").status_code, ingress.probe("/ready", "HEAD").content) == (200, b"")


def test_a_task_whose_replica_has_ended_is_named_though_a_proxy_takes_its_requests(ingress: Ingress) -> None:
    ingress.end("question-answering")

    missing = ingress.wait_for("/ready", 503)

    assert missing.json() == {
        "error": "no ready replica: question-answering",
        "error_type": "overloaded",
        "not_ready": ["question-answering"],
    }
    assert (ingress.probe("/v2/health/ready").status_code, ingress.probe("/v2/health/ready").json()) == (
        503,
        {"ready": False},
    )
    assert ingress.probe("/question-answering").status_code == 200, "the proxy"
    assert ingress.probe("/health").status_code == 200


def test_a_replica_that_hangs_is_missing_until_it_goes_on(ingress: Ingress) -> None:
    """The kernel takes its connections, as those of a process that was stopped; `make faults` has the time."""
    going_on = ingress.hang("question-answering")

    assert ingress.wait_for("/ready", 503).json()["not_ready"] == ["question-answering"]
    going_on.set()
    assert ingress.wait_for("/ready", 200)


def test_an_event_loop_that_is_busy_for_as_long_as_loading_may_take_is_not_missing(ingress: Ingress) -> None:
    time.sleep(0.5)  # it has answered some checks: of a new one HAProxy takes the first for the last
    going_on = ingress.hang("question-answering")
    statuses, give_up_at = set(), time.monotonic() + 0.9 * STALLED_S
    while time.monotonic() < give_up_at:
        statuses.add(ingress.probe("/ready").status_code)
        time.sleep(0.05)
    going_on.set()

    assert statuses == {200}


@pytest.mark.parametrize("without", [("question-answering",), TASKS])
def test_a_task_that_has_no_replica_yet_is_not_ready(ingress: Ingress, without: tuple[str, ...]) -> None:
    ready = ingress.probe("/ready")

    assert (ready.status_code, set(ready.json()["not_ready"])) == (503, set(without))


@pytest.mark.parametrize("without", [TASKS[:1]])
@pytest.mark.parametrize("sleeping", [TASKS[:1]])
def test_a_task_that_may_have_no_replica_is_ready_while_a_proxy_would_start_one(ingress: Ingress) -> None:
    assert ingress.wait_for("/ready", 200).json()["tasks"] == [TASKS[1], TASKS[0]]
    assert ingress.probe(f"/{TASKS[0]}").status_code == 200, "the proxy"

    ingress.end("fallback")

    assert ingress.wait_for("/ready", 503).json()["not_ready"] == [TASKS[0]]


def test_what_is_no_probe_goes_to_the_gateway(ingress: Ingress) -> None:
    ingress.end("fallback")

    assert ingress.wait_for("/readyx", 503).json()["error"].startswith("no replica of this task answers")
    assert ingress.probe("/ready", "POST").json()["error"].startswith("no replica of this task answers")
