"""deploy/balancer.cfg: the bundled HAProxy in front of nodes of which one fails."""

import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
import pytest

from benchmarks.machines.balancer import balanced
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
