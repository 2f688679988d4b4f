"""What HAProxy refuses by what replicas said: the bundled binary in front of replicas that say what a test wants."""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from deployments.cluster.ray_environment import spare_port
from deployments.http.request import DEADLINE_HEADER, LOAD_HEADER, START_HEADER, clock
from deployments.ingress.overload import SURE_PERCENT
from tests.deployments.ingress.running import command

CONFIG = """global
    stats socket {folder}/admin.sock mode 666 level admin expose-fd listeners
defaults
    mode http
    timeout client 5s
    timeout server 5s
    timeout connect 5s
frontend prometheus
    bind :{metrics}
frontend http_frontend
    bind 127.0.0.1:{public}
    acl is_http-task path_beg /task/
    acl is_http-task path /task
    use_backend http-task if is_http-task
    default_backend default_backend
backend default_backend
    http-request return status 404
backend http-task
    balance roundrobin
    default-server inter 100ms fall 1 rise 1 check
{servers}
listen stats
  bind *:{stats}
"""


class Replica(ThreadingHTTPServer):
    """Says `load` with each answer, and keeps the headers of what it was asked. `gate` holds its answers back."""

    daemon_threads = True

    def __init__(self, load: str | None = None) -> None:
        self.load, self.asked, self.gate = load, list[dict[str, str]](), threading.Event()
        self.gate.set()
        replica = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", "0")))
                replica.asked.append({name.lower(): value for name, value in self.headers.items()})
                replica.gate.wait(10)
                self.send_response(200)
                self.send_header("content-length", "0")
                if replica.load is not None:
                    self.send_header(LOAD_HEADER, replica.load)
                self.end_headers()

            do_GET = do_POST  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        """HAProxy resets the connections of its health checks."""


@dataclass
class Ingress:
    url: str
    replicas: list[Replica] = field(default_factory=list)

    def ask(self, deadline_s: object = None, path: str = "/task", **headers: str) -> httpx.Response:
        given = {} if deadline_s is None else {DEADLINE_HEADER: str(deadline_s)}
        return httpx.post(f"{self.url}{path}", json={}, headers={**given, **headers}, timeout=20)

    def learn(self, *loads: str) -> None:
        """Let each replica say one of `loads`."""
        for replica, load in zip(self.replicas, loads, strict=True):
            replica.load = load
        for _ in loads:
            assert self.ask().status_code == 200
        for replica in self.replicas:
            replica.load = None
            replica.asked.clear()

    @property
    def asked(self) -> int:
        return sum(len(replica.asked) for replica in self.replicas)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[int], Ingress]]:
    processes, replicas = [], list[Replica]()

    def start(n: int) -> Ingress:
        replicas.extend(Replica() for _ in range(n))
        public = spare_port()
        ports = [replica.server_address[1] for replica in replicas]
        servers = "\n".join(f"    server replica-{index} 127.0.0.1:{port}" for index, port in enumerate(ports))
        file = tmp_path / "haproxy.cfg"
        free = {"metrics": spare_port(), "stats": spare_port()}
        file.write_text(CONFIG.format(folder=tmp_path, public=public, servers=servers, **free), encoding="utf-8")
        processes.append(subprocess.Popen(command(tmp_path, file)))
        ingress = Ingress(f"http://127.0.0.1:{public}", replicas)
        give_up_at = time.monotonic() + 30
        while True:
            try:
                ingress.ask()
                return ingress
            except httpx.ConnectError:
                assert time.monotonic() < give_up_at

    yield start
    for process in processes:
        process.kill()
        process.wait()
    for replica in replicas:
        replica.gate.set()
        replica.shutdown()
        replica.server_close()


def until(wait_s: float, deadline_s: float) -> float:
    """Seconds until a prediction of `wait_s` takes no more of a deadline than it may."""
    return wait_s - SURE_PERCENT / 100 * deadline_s


def test_what_no_replica_answers_in_time_is_refused_before_it_costs_a_replica_anything(
    serve: Callable[[int], Ingress],
) -> None:
    ingress = serve(1)
    ingress.learn("60000/90000/0")

    refused = ingress.ask(20)

    assert (refused.status_code, refused.json()["error_type"]) == (429, "overloaded")
    assert refused.headers["content-type"] == "application/json"
    assert until(60, 20) - 1 <= int(refused.headers["retry-after"]) <= until(60, 20) + 1
    assert refused.headers["x-request-id"]
    assert ingress.asked == 0
    assert [ingress.ask(seconds).status_code for seconds in (120, 120.5, None, "1e3")] == [200] * 4


@pytest.mark.parametrize("seconds", [".25", "0.25", "2", "2.", "2.123456789", "000002"])
def test_seconds_are_read_as_the_replica_reads_them(serve: Callable[[int], Ingress], seconds: str) -> None:
    ingress = serve(1)

    ingress.learn(f"{int(1000 * float(seconds)) + 60_000}/900000/0")
    assert ingress.ask(seconds).status_code == 429
    assert ingress.ask((float(seconds) + 60) * 100 / SURE_PERCENT).status_code == 200


def test_a_deadline_that_is_none_is_left_to_the_replica(serve: Callable[[int], Ingress]) -> None:
    ingress = serve(1)
    ingress.learn("60000/90000/0")

    assert [ingress.ask(seconds).status_code for seconds in ("soon", "-1", "2,5", "1e-3")] == [200] * 4


def test_without_a_deadline_the_wait_is_bounded_by_the_replica_s_own_setting(serve: Callable[[int], Ingress]) -> None:
    ingress = serve(1)

    ingress.learn("60000/30000/0")

    assert 29 <= int(ingress.ask().headers["retry-after"]) <= 30
    assert ingress.ask(1000).status_code == 429


def test_the_shape_is_that_of_the_protocol(serve: Callable[[int], Ingress]) -> None:
    ingress = serve(1)
    ingress.learn("60000/90000/0")

    refused = ingress.ask(1, "/task/v1/completions", **{"x-request-id": "mine"})

    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
    assert refused.headers["x-request-id"] == "mine"


def test_the_wait_passes_by_itself(serve: Callable[[int], Ingress]) -> None:
    ingress = serve(1)
    ingress.learn("2000/30000/0")

    assert ingress.ask(1).status_code == 429
    give_up_at = time.monotonic() + 10
    while ingress.ask(1).status_code == 429:
        assert time.monotonic() < give_up_at
        time.sleep(0.05)


def test_one_replica_that_is_free_is_enough(serve: Callable[[int], Ingress]) -> None:
    ingress = serve(2)
    ingress.learn("60000/90000/0", "50/90000/0")

    assert ingress.ask(20).status_code == 200

    ingress.learn("60000/90000/0", "70000/90000/0")
    assert until(60, 20) - 1 <= int(ingress.ask(20).headers["retry-after"]) <= until(60, 20) + 1


def test_what_is_under_way_counts_before_a_replica_says_so(serve: Callable[[int], Ingress]) -> None:
    ingress = serve(1)
    ingress.learn("0/90000/10000000")  # ten seconds for each row that is inside
    replica = ingress.replicas[0]
    replica.gate.clear()

    inside = [threading.Thread(target=ingress.ask) for _ in range(3)]
    for thread in inside:
        thread.start()
    give_up_at = time.monotonic() + 10
    while len(replica.asked) < 3:
        assert time.monotonic() < give_up_at
    statuses = [ingress.ask(20).status_code]
    replica.gate.set()
    for thread in inside:
        thread.join()

    assert [*statuses, ingress.ask(20).status_code] == [429, 200]


def test_pages_are_always_answered(serve: Callable[[int], Ingress]) -> None:
    ingress = serve(1)
    ingress.learn("60000/30000/0")

    assert httpx.get(f"{ingress.url}/task").status_code == 200


def test_a_replica_that_is_gone_refuses_nothing(serve: Callable[[int], Ingress]) -> None:
    ingress = serve(2)
    ingress.learn("60000/90000/0", "0/90000/0")
    gone = ingress.replicas[1]
    gone.shutdown()
    gone.server_close()

    give_up_at = time.monotonic() + 10
    while ingress.ask(20).status_code != 429:  # until its health check has failed
        assert time.monotonic() < give_up_at


def test_the_time_stamp_is_the_ingress_s_own_and_a_client_sees_no_load(serve: Callable[[int], Ingress]) -> None:
    ingress = serve(1)
    ingress.replicas[0].load = "0/30000/0"
    before_ms = 1000 * time.time()

    answer = ingress.ask(20, **{START_HEADER: "1 of-a-client"})

    stamped_ms, name = ingress.replicas[0].asked[-1][START_HEADER].split()
    assert before_ms - 50 <= int(stamped_ms) <= 1000 * time.time() + 50
    assert name == clock()
    assert LOAD_HEADER not in answer.headers


def test_each_request_of_a_kept_connection_has_a_time_of_its_own_from_before_its_body(
    serve: Callable[[int], Ingress],
) -> None:
    ingress = serve(1)
    sent_ms = []

    def slow_body() -> Iterator[bytes]:
        sent_ms.append(1000 * time.time())
        yield b"{"
        time.sleep(0.5)
        yield b"}"

    headers = {"content-type": "application/json", "content-length": "2"}
    with httpx.Client(timeout=20) as client:
        for _ in range(2):
            client.post(f"{ingress.url}/task", content=slow_body(), headers=headers)

    stamps = [int(asked[START_HEADER].split()[0]) for asked in ingress.replicas[0].asked[-2:]]
    assert [stamp - sent for stamp, sent in zip(stamps, sent_ms, strict=True)] == pytest.approx([0, 0], abs=400)
    assert stamps[1] - stamps[0] >= 450
