"""What waits for an application whose replicas are away: some in Ray Serve's fallback proxy, the rest in HAProxy."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from deployments.cluster.ray_environment import spare_port
from deployments.ingress.config import IngressConfig
from deployments.ingress.grpc.sections import with_grpc
from deployments.ingress.rewrite import FALLBACK_MAXCONN, rewrite, sections_of
from deployments.ingress.settings import settings
from tests.deployments.ingress.running import APPLICATIONS, Running, ray_file, running

TASK = "text-classification"
OTHERS = 8


class Fallback(ThreadingHTTPServer):
    """Holds every POST until its gate opens, as Ray Serve's proxy does until a replica is there."""

    def __init__(self) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:  # a health check
                self._answer(b"success")

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                self.server.inside.release()  # type: ignore[attr-defined]
                self.server.gate.wait(30)  # type: ignore[attr-defined]
                self._answer(b"{}")

            def _answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.inside, self.gate = threading.Semaphore(0), threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


@contextmanager
def without_replica(folder: Path) -> Iterator[tuple[Running, Fallback]]:
    fallback = Fallback()
    elsewhere = {TASK: spare_port(), "proxy": fallback.server_address[1]}
    try:
        with running(folder, applications={TASK: f"/{TASK}"}, elsewhere=elsewhere) as ingress:
            yield ingress, fallback
    finally:
        fallback.gate.set()
        fallback.shutdown()
        fallback.server_close()


@pytest.mark.parametrize("length", [10, 40_000])
def test_the_fallback_proxy_holds_so_many_and_the_others_are_told_to_come_back(tmp_path: Path, length: int) -> None:
    """Bodies that HAProxy cannot repeat have a backend of their own."""
    body = json.dumps({"inputs": "a" * length}).encode()
    with without_replica(tmp_path) as (ingress, fallback), ThreadPoolExecutor(FALLBACK_MAXCONN + OTHERS) as clients:

        def ask(_: int) -> tuple[int, str | None]:
            with ingress.client() as client:
                answer = client.post(f"/{TASK}", content=body, headers={"content-type": "application/json"})
            return answer.status_code, answer.headers.get("retry-after")

        held = clients.map(ask, range(FALLBACK_MAXCONN))
        for _ in range(FALLBACK_MAXCONN):
            assert fallback.inside.acquire(timeout=30)
        refused = list(clients.map(ask, range(OTHERS)))
        assert not fallback.inside.acquire(blocking=False)
        fallback.gate.set()

        assert refused == [(503, "5")] * OTHERS
        assert list(held) == [(200, None)] * FALLBACK_MAXCONN


@pytest.mark.parametrize("protocol", ["http", "large", "grpc"])
def test_every_backend_of_an_application_has_the_bound_unless_it_sleeps(tmp_path: Path, protocol: str) -> None:
    """What wakes an application that sleeps is not held back."""
    ours = settings(IngressConfig(grpc_port=18002), "127.0.0.1:18001")
    written = with_grpc(ray_file(tmp_path).read_text(encoding="utf-8"), ours)
    for sleeping in ((), (TASK,)):
        sections = sections_of(rewrite(written, replace(ours, sleeping=sleeping), str(tmp_path)))
        for task in APPLICATIONS.keys() - {"gateway"}:
            (fallback,) = [line.split() for line in sections[f"backend {protocol}-{task}"] if "server proxy" in line]
            assert ("maxconn" in fallback) == (task not in sleeping)
            assert task in sleeping or fallback[-3:] == ["backup", "maxconn", str(FALLBACK_MAXCONN)]
