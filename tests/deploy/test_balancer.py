"""deploy/balancer.cfg: the bundled HAProxy in front of nodes of which one fails."""

import re
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from benchmarks.machines.balancer import FILE, balanced
from deployments.cluster.ray_environment import spare_port
from deployments.ingress.haproxy import find_binary
from tests.deployments.grpc.served import Served, served, tensor
from tests.local_server import LocalServer

ASKED = 6


class Alive(BaseHTTPRequestHandler):
    """A node that answers."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer("success")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.answer("alive")

    def answer(self, text: str) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


class Failing(Alive):
    """One that looks well, and whose requests end without an answer."""

    asked = 0

    def do_POST(self) -> None:
        type(self).asked += 1
        self.fail()
        self.close_connection = True

    def fail(self) -> None:
        """The connection is closed, as where a process dies."""


class Silent(Failing):
    over = threading.Event()

    def fail(self) -> None:
        self.over.wait(30)


@pytest.mark.parametrize("broken", [Failing, Silent])
def test_a_request_that_a_node_does_not_answer_is_answered_by_another(broken: type[Failing], tmp_path: Path) -> None:
    with LocalServer(Alive) as alive, LocalServer(broken) as failing:
        nodes = [one.url.removeprefix("http://") for one in (failing, alive)]
        with balanced(nodes, tmp_path) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            answers = [client.post("/task", json={}, headers={"x-request-timeout-seconds": "1"}) for _ in range(ASKED)]
        Silent.over.set()

    assert [(one.status_code, one.text) for one in answers] == [(200, "alive")] * ASKED
    assert broken.asked > 0


def both(nodes: list[Served], port: int, grpc_port: int) -> str:
    """The whole file with these nodes, listening on loopback."""
    text = re.sub(r"^    server node.*\n", "", FILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    http = "".join(f"    server node{n} {one.ingress.host}:{one.ingress.port}\n" for n, one in enumerate(nodes))
    checked = [(one.address, one.ingress.port) for one in nodes]
    grpc = "".join(f"    server node{n} {address} port {at}\n" for n, (address, at) in enumerate(checked))
    text = text.replace("\n\n# gRPC", f"\n{http}\n# gRPC") + grpc
    return text.replace("bind :8000", f"bind 127.0.0.1:{port}").replace("bind :8001", f"bind 127.0.0.1:{grpc_port}")


def test_calls_of_grpc_reach_the_nodes_that_live(exported: Callable[..., Path], tmp_path: Path) -> None:
    task = "text-classification"
    with ExitStack() as stack:
        folders = [tmp_path / name for name in ("a", "b")]
        for folder in folders:
            folder.mkdir()
        nodes = [stack.enter_context(served(one, {task: exported("bert", task)}, threads=1)) for one in folders]
        file, port, grpc_port = tmp_path / "balancer.cfg", spare_port(), spare_port()
        file.write_text(both(nodes, port, grpc_port), encoding="utf-8")
        process = subprocess.Popen([str(find_binary()), "-db", "-f", str(file)])
        stack.callback(process.wait, 10)
        stack.callback(process.kill)
        client = stack.enter_context(triton.InferenceServerClient(f"127.0.0.1:{grpc_port}"))

        def ask() -> bool:
            try:
                return len(client.infer(task, [tensor(["a film"])]).as_numpy("output")) == 1
            except InferenceServerException:
                return False

        give_up_at = time.monotonic() + 30
        while not ask():
            assert process.poll() is None
            assert time.monotonic() < give_up_at
        assert [ask() for _ in range(ASKED)] == [True] * ASKED
        for one in nodes[0].ingress.processes:
            one.kill()
            one.wait()

        assert [ask() for _ in range(ASKED)] == [True] * ASKED  # also before a check has found the other one dead
        assert httpx.get(f"http://127.0.0.1:{port}/-/healthz").status_code == 200
