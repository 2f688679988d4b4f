"""The wrapper around HAProxy, run as Ray Serve runs it, with the bundled binary checking the result."""

import os
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.cluster.ray_environment import TUNED
from deployments.ingress import haproxy
from deployments.ingress.config import ConnectionLimits, IngressConfig
from deployments.ingress.drain import drain
from deployments.ingress.rewrite import RETRIES_OF_ONE
from tests.deployments.ingress.running import command

CONFIG = """global
    stats socket {folder}/admin.sock mode 666 level admin expose-fd listeners
defaults
    mode http
    errorfile 502 {folder}/500.http
    errorfile 503 {folder}/500.http
    timeout client 5s
    timeout server 5s
    timeout connect 5s
    option redispatch 1
    retry-on {retry_on}
    retries {retries}
frontend prometheus
    bind :{metrics}
frontend http_frontend
    bind *:{public}
    acl is_http-slow path_beg /translation/slow/
    acl is_http-slow path /translation/slow
    use_backend http-slow if is_http-slow
    acl is_http-twins path_beg /translation/twins/
    acl is_http-twins path /translation/twins
    use_backend http-twins if is_http-twins
    acl is_http-gone path_beg /translation/
    acl is_http-gone path /translation
    use_backend http-gone if is_http-gone
    default_backend default_backend
backend default_backend
    http-request return status 404
backend http-gone
    server gone 127.0.0.1:9 check observe layer4 error-limit 1 on-error mark-down
backend http-slow
    http-reuse always
    server slow 127.0.0.1:{replica}
backend http-twins
    http-reuse always
    server one 127.0.0.1:{replica}
    server two 127.0.0.1:{replica}
listen stats
  bind *:{stats}
  stats enable
"""

RETRIES = int(TUNED["RAY_SERVE_HAPROXY_RETRIES"])
REPEATING = {"retry_on": TUNED["RAY_SERVE_HAPROXY_RETRY_ON"], "retries": RETRIES}


def test_a_binary_that_is_forbidden_or_not_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert haproxy.find_binary() is not None
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    assert haproxy.find_binary() is None
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", "/nonexistent")
    assert haproxy.find_binary() is None


def test_the_wrapper_moves_the_pages_to_loopback_and_leaves_the_ingress(tmp_path: Path) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text(CONFIG.format(folder=tmp_path, metrics=19101, public=18000, stats=18404, replica=9, **REPEATING))

    checked = subprocess.run(
        [*command(tmp_path, config), "-c"],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )

    assert checked.returncode == 0, checked.stderr
    binds = [line.strip() for line in config.read_text(encoding="utf-8").splitlines() if "bind" in line]
    own = f"bind unix@{tmp_path}/ingress.sock mode 600 name own"  # in a folder that only the owner can enter
    assert binds == ["bind 127.0.0.1:19101", "bind *:18000", own, "bind 127.0.0.1:18404"]


class Replica(socket.socket):
    """The replica that a test plays: it keeps the connections that it took until it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.bind(("127.0.0.1", 0))
        self.listen()
        self.taken: list[socket.socket] = []

    def accept(self) -> tuple[socket.socket, Any]:
        inside, address = super().accept()
        self.taken.append(inside)
        return inside, address

    def close(self) -> None:
        for one in self.taken:
            one.close()
        super().close()


@dataclass
class Ingress:
    """HAProxy as Ray Serve runs it: only the last of `processes` accepts connections."""

    port: int
    replica: socket.socket
    start: Callable[..., "subprocess.Popen[bytes]"]
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def reload(self) -> None:
        """Another process takes over; the one before finishes what is inside it."""
        before = [str(process.pid) for process in self.processes]
        self.processes.append(self.start("-sf", *before) if before else self.start())


@pytest.fixture
def body_s() -> int:
    """How long a client may take to send a request."""
    return 60


@pytest.fixture
def ingress(tmp_path: Path, body_s: int) -> Iterator[Ingress]:
    """Two paths: one to a server that does not exist, one to replicas that the test plays."""
    replica, *others = [Replica() for _ in range(4)]
    metrics, public, stats = [one.getsockname()[1] for one in others]
    for one in others:
        one.close()
    config = tmp_path / "haproxy.cfg"
    ports = {"metrics": metrics, "public": public, "stats": stats, "replica": replica.getsockname()[1]}
    config.write_text(CONFIG.format(folder=tmp_path, **ports, **REPEATING))
    run = command(tmp_path, config, IngressConfig(limits=ConnectionLimits(body_timeout_s=body_s)))
    started = Ingress(public, replica, lambda *more: subprocess.Popen([*run, *more]))
    started.reload()
    while not _connects(public) or not _answering(tmp_path):  # the admin socket appears a little later
        assert started.processes[0].poll() is None
    with replica:
        yield started
    assert started.processes[-1].poll() is None
    for process in started.processes:
        process.kill()
        process.wait()


def test_where_no_replica_answers_it_is_a_503_in_json_that_says_when_to_come_back(ingress: Ingress) -> None:
    response = httpx.get(f"http://127.0.0.1:{ingress.port}/translation")

    assert (response.status_code, response.json()["error_type"]) == (503, "overloaded")
    assert int(response.headers["retry-after"]) > 0


def test_haproxy_has_no_child_that_it_would_have_to_reap(ingress: Ingress) -> None:
    """It reaps none: a process that ends before it stays in the table of processes."""
    ingress.reload()

    def children() -> list[str]:
        return [Path(f"/proc/{one.pid}/task/{one.pid}/children").read_text() for one in ingress.processes]

    assert children()
    while any(children()):  # the shell's own, until it has become HAProxy; one that is not reaped stays for ever
        time.sleep(0.05)


def test_draining_closes_the_ingress_and_an_empty_folder_needs_none(ingress: Ingress, tmp_path: Path) -> None:
    assert _connects(ingress.port)

    drain(tmp_path / "elsewhere", limit_s=5)
    assert _connects(ingress.port)

    drain(tmp_path, limit_s=5)
    assert not _connects(ingress.port)


@pytest.mark.parametrize("reloads", [0, 1, 2])
def test_draining_waits_for_a_request_inside_whichever_process_it_is_in(
    ingress: Ingress, tmp_path: Path, reloads: int
) -> None:
    with socket.create_connection(("127.0.0.1", ingress.port), timeout=30) as client:
        client.sendall(b"GET /translation/slow HTTP/1.1\r\nhost: localhost\r\n\r\n")
        inside, _ = ingress.replica.accept()
        for _ in range(reloads):
            ingress.reload()
            while _answering(tmp_path) != ingress.processes[-1].pid:
                assert ingress.processes[-1].poll() is None
        draining = threading.Thread(target=drain, args=(tmp_path, 30.0))
        draining.start()
        draining.join(0.5)
        assert draining.is_alive()

        with inside:
            inside.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        assert client.recv(65536).endswith(b"ok")
    draining.join(30)
    assert not draining.is_alive()


def test_draining_waits_for_a_request_that_still_arrives_and_for_no_connection_that_is_only_kept(
    ingress: Ingress, tmp_path: Path
) -> None:
    with (
        socket.create_connection(("127.0.0.1", ingress.port), timeout=30) as kept,
        socket.create_connection(("127.0.0.1", ingress.port), timeout=30) as client,
    ):
        kept.sendall(b"GET /translation HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert b"503" in kept.recv(65536)
        _send_head(client)
        draining = threading.Thread(target=drain, args=(tmp_path, 30.0))
        draining.start()
        draining.join(0.5)
        assert draining.is_alive()

        client.sendall(b"body")
        with _request_inside(ingress.replica) as inside:
            _answer_as_replica(inside)
        assert client.recv(65536).endswith(b"ok")
        draining.join(30)
        assert not draining.is_alive()


def test_a_client_that_keeps_its_connection_cannot_keep_on_asking_while_it_drains(
    ingress: Ingress, tmp_path: Path
) -> None:
    asked = b"GET /translation HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with (
        socket.create_connection(("127.0.0.1", ingress.port), timeout=30) as kept,
        socket.create_connection(("127.0.0.1", ingress.port), timeout=30) as client,
    ):
        kept.sendall(asked)
        assert b"connection: close" not in kept.recv(65536).lower()
        client.sendall(b"GET /translation/slow HTTP/1.1\r\nhost: localhost\r\n\r\n")
        inside, _ = ingress.replica.accept()
        draining = threading.Thread(target=drain, args=(tmp_path, 30.0))
        draining.start()
        draining.join(0.5)

        kept.sendall(asked)
        assert b"connection: close" in kept.recv(65536).lower()
        assert kept.recv(65536) == b""

        with inside:
            inside.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        answer = client.recv(65536)
        assert b"connection: close" in answer.lower()
        assert answer.endswith(b"ok")
    draining.join(30)
    assert not draining.is_alive()


def test_requests_on_connections_that_are_kept_are_refused_in_the_end_while_what_is_inside_goes_on(
    ingress: Ingress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.ingress.drain.GRACE_S", 0.2)
    refusing = threading.Event()
    with (
        socket.create_connection(("127.0.0.1", ingress.port), timeout=30) as kept,
        socket.create_connection(("127.0.0.1", ingress.port), timeout=30) as client,
    ):
        kept.sendall(b"GET /translation HTTP/1.1\r\nhost: localhost\r\n\r\n")
        kept.recv(65536)
        client.sendall(b"GET /translation/slow HTTP/1.1\r\nhost: localhost\r\n\r\n")
        inside, _ = ingress.replica.accept()
        draining = threading.Thread(target=drain, args=(tmp_path, 30.0, lambda: False, refusing.set))
        draining.start()
        assert refusing.wait(10)

        kept.sendall(b"GET /translation/slow HTTP/1.1\r\nhost: localhost\r\n\r\n")
        refused = kept.recv(65536).lower()
        assert refused.startswith(b"http/1.1 503 ")
        assert b"retry-after: 5" in refused
        assert b"connection: close" in refused
        assert b"the cluster is shutting down" in refused
        assert draining.is_alive()

        with inside:
            inside.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        assert client.recv(65536).endswith(b"ok")
    draining.join(30)
    assert not draining.is_alive()


def test_a_drain_ends_when_it_must_though_a_request_is_inside(ingress: Ingress, tmp_path: Path) -> None:
    with socket.create_connection(("127.0.0.1", ingress.port), timeout=30) as client:
        client.sendall(b"GET /translation/slow HTTP/1.1\r\nhost: localhost\r\n\r\n")
        inside, _ = ingress.replica.accept()
        with inside:
            drain(tmp_path, 300.0, lambda: True)
            drain(tmp_path, 0.1)


def test_a_request_whose_replica_dies_is_answered_by_the_next_one_though_it_came_in_parts(ingress: Ingress) -> None:
    """On a connection that is kept, as the replica's is: without another try it would be closed without a word."""
    with socket.create_connection(("127.0.0.1", ingress.port), timeout=30) as client:
        _send_in_parts(client)
        inside = _request_inside(ingress.replica)
        _answer_as_replica(inside)
        assert client.recv(65536).endswith(b"ok")

        _send_in_parts(client)
        _receive(inside)
        inside.close()
        with _request_inside(ingress.replica) as inside:
            _answer_as_replica(inside)
        assert client.recv(65536).endswith(b"ok")


@pytest.mark.parametrize("is_complete", [True, False])
def test_a_large_body_inside_a_replica_that_dies_is_answered_with_503_though_all_connections_were_kept(
    ingress: Ingress, is_complete: bool
) -> None:
    """HAProxy cannot repeat it. On the replica's connection it would say nothing: the client could repeat it then."""
    body = b"a" * 400_000
    with socket.create_connection(("127.0.0.1", ingress.port), timeout=30) as client:
        _send_in_parts(client)
        kept = _request_inside(ingress.replica)
        _answer_as_replica(kept)
        assert client.recv(65536).endswith(b"ok")

        client.sendall(b"POST /translation/slow HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body))
        client.sendall(body if is_complete else body[:200_000])
        inside, _ = ingress.replica.accept()
        with inside:
            received = len(inside.recv(65536))
            while received < 150_000:
                received += len(inside.recv(65536))

        answer = client.recv(65536)
        kept.close()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: " in answer
    assert b'"error_type":"overloaded"' in answer


def test_a_request_finds_the_next_replica_though_all_kept_connections_of_the_only_one_die(ingress: Ingress) -> None:
    """One by one, as the system closes them: each is another try."""
    kept: list[socket.socket] = []
    with ExitStack() as clients:
        for _ in range(RETRIES_OF_ONE):  # each connection of the replica is busy while the next one is made
            client = clients.enter_context(socket.create_connection(("127.0.0.1", ingress.port), timeout=30))
            _send_in_parts(client)
            kept.append(_request_inside(ingress.replica))
        for inside in kept:
            _answer_as_replica(inside)
        assert client.recv(65536).endswith(b"ok")

        _send_in_parts(client)
        while kept:
            (asked,), _, _ = select.select(kept, [], [], 30)
            kept.remove(asked)
            _receive(asked)
            asked.close()
        with _request_inside(ingress.replica) as inside:
            _answer_as_replica(inside)
        assert client.recv(65536).endswith(b"ok")


def test_a_request_that_kills_its_replicas_is_given_up_after_so_many_of_them(ingress: Ingress) -> None:
    with socket.create_connection(("127.0.0.1", ingress.port), timeout=30) as client:
        _send_in_parts(client, "twins")
        for _ in range(1 + RETRIES):
            _request_inside(ingress.replica).close()

        assert client.recv(65536).startswith(b"HTTP/1.1 503 ")
    ingress.replica.settimeout(0.5)
    with pytest.raises(TimeoutError):
        ingress.replica.accept()


def test_the_machine_of_a_replica_is_asked_for_a_sign_while_its_answer_is_awaited(ingress: Ingress) -> None:
    """The kernel does that: it has a timer (02) that ends in 10 s at most on HAProxy's end of the connection."""
    with socket.create_connection(("127.0.0.1", ingress.port), timeout=30) as client:
        _send_in_parts(client)
        with _request_inside(ingress.replica) as inside:
            ends = [f"0100007F:{port:04X}" for _, port in (inside.getpeername(), inside.getsockname())]
            rows = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()]
            (timer,) = [row[5].split(":") for row in rows if row[1:3] == ends]

    assert timer[0] == "02"
    assert int(timer[1], 16) <= 10 * os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("body_s", [1])
def test_a_request_that_does_not_arrive_in_time_is_told_so_in_json(ingress: Ingress) -> None:
    with socket.create_connection(("127.0.0.1", ingress.port), timeout=30) as client:
        _send_head(client)
        answer = client.recv(65536)

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert answer.endswith(b'{"error":"the request was not complete after 1 s","error_type":"timeout"}')


def _send_head(client: socket.socket, application: str = "slow") -> None:
    """Of a POST to the replica, up to its body; HAProxy has it then."""
    headers = b"host: localhost\r\nexpect: 100-continue\r\ncontent-length: 4"
    client.sendall(b"POST /translation/%s HTTP/1.1\r\n%s\r\n\r\n" % (application.encode(), headers))
    assert b" 100 Continue" in client.recv(65536)


def _send_in_parts(client: socket.socket, application: str = "slow") -> None:
    _send_head(client, application)
    client.sendall(b"body")


def _request_inside(replica: socket.socket) -> socket.socket:
    """A new connection to the replica, on which it has received a whole request."""
    replica.settimeout(30)
    inside, _ = replica.accept()
    _receive(inside)
    return inside


def _receive(inside: socket.socket) -> None:
    received = b""
    while not received.endswith(b"body"):
        received += inside.recv(65536)


def _answer_as_replica(inside: socket.socket) -> None:
    inside.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")


def _answering(folder: Path) -> int:
    """The process id of the HAProxy that has the admin socket now, 0 where none has it."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as admin:
        admin.connect(str(folder / "admin.sock"))
        admin.sendall(b"show info\n")
        lines = b"".join(iter(partial(admin.recv, 65536), b"")).decode().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pid:"))
    return 0


def _connects(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
