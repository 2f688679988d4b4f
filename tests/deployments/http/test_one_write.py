"""The head and the body of an answer leave a replica, and HAProxy, in one write: a client sees one packet."""

import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from deployments.cluster.ray_environment import spare_port
from deployments.ingress.config import IngressConfig
from tests.deployments.ingress.running import APPLICATIONS, Running

SERVER = """
import socket, sys
import uvicorn, uvloop
from starlette.responses import JSONResponse
from deployments.http.listening import Server
from deployments.http.middleware import RenameDeadline

async def serve():
    app = RenameDeadline(JSONResponse({"label": "positive"}))
    opened = socket.create_server(("127.0.0.1", int(sys.argv[1])))
    config = uvicorn.Config(lambda: app, factory=True, port=int(sys.argv[1]), lifespan="off", log_config=None)
    await Server(config, []).serve([opened])

uvloop.run(serve())
"""
"""As Ray Serve runs the application of a replica."""
REQUEST = b"GET /text-classification HTTP/1.1\r\nhost: localhost\r\n\r\n"
DATA_SEGMENTS_IN = 152  # of the kernel's struct tcp_info


@pytest.fixture
def port() -> Iterator[int]:
    port = spare_port()
    with subprocess.Popen([sys.executable, "-c", SERVER, str(port)]) as server:
        try:
            wait_for(port, server)
            yield port
        finally:
            server.kill()


def packets(connection: socket.socket) -> int:
    """With data, that have come on a connection so far."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int(struct.unpack_from("I", info, DATA_SEGMENTS_IN)[0])


def answers(port: int, n: int) -> int:
    """The packets in which `n` answers come on one connection."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(n):
            connection.sendall(REQUEST)
            received = b""
            while not received.endswith(b'{"label":"positive"}'):
                received += connection.recv(65536)
        return packets(connection)


def wait_for(port: int, server: "subprocess.Popen[bytes]") -> None:
    while server.poll() is None:
        with suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
    raise AssertionError("the server has ended")


def test_a_replica_sends_an_answer_in_one_packet(port: int) -> None:
    assert answers(port, 20) == 20


def test_haproxy_passes_it_on_in_one_packet(port: int, tmp_path: Path) -> None:
    ingress = Running(tmp_path, IngressConfig(), "127.0.0.1", spare_port(), dict.fromkeys(APPLICATIONS, port))
    try:
        ingress.start()
        assert answers(ingress.port, 20) == 20
    finally:
        for process in ingress.processes:
            process.kill()
            process.wait()
