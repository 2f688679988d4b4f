"""The memory that bodies take while some of them is still to come, attacked at a replica's own server."""

import json
import re
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from deployments.cluster.ray_environment import spare_port
from tests.deployments.http.test_one_write import wait_for

SERVER = """
import socket, sys
import uvicorn, uvloop
from starlette.requests import Request
from starlette.responses import JSONResponse
from deployments.http import receiving
from deployments.http.errors import Failure
from deployments.http.listening import Server
from deployments.http.request import read_body
from pipelines.errors import SextetError

receiving.MOST_BYTES, receiving.MOST_BODIES = int(sys.argv[2]), 1

async def app(scope, receive, send):
    try:
        response = JSONResponse(len(await read_body(Request(scope, receive), 4 * 2**20)))
    except SextetError as error:
        response = Failure.of(error).response()
    await response(scope, receive, send)

async def serve():
    opened = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=512)
    config = uvicorn.Config(lambda: app, factory=True, port=int(sys.argv[1]), lifespan="off", log_config=None)
    await Server(config, []).serve([opened])

uvloop.run(serve())
"""
MIB = 2**20
ALLOWED_BYTES = 8 * MIB
ATTACKERS = 100
HEAD = "POST / HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{}\r\n"


class Replica:
    """A server that reads bodies as a replica does."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        self.process, self.port = process, port

    def send(self, stack: ExitStack, length: int, sent: int, *headers: str) -> socket.socket:
        """A request that has sent so much of its body."""
        opened = stack.enter_context(socket.create_connection(("127.0.0.1", self.port), timeout=60))
        opened.sendall(HEAD.format(length, "".join(f"{one}\r\n" for one in headers)).encode() + b"x" * sent)
        return opened

    def memory_bytes(self) -> int:
        """The most that the process has had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None
        return 1024 * int(found[1])


@pytest.fixture
def replica() -> Iterator[Replica]:
    port = spare_port()
    with subprocess.Popen([sys.executable, "-c", SERVER, str(port), str(ALLOWED_BYTES)]) as process:
        try:
            wait_for(port, process)
            yield Replica(process, port)
        finally:
            process.kill()


def answer(connection: socket.socket) -> tuple[int, str, object]:
    """The status, the head and the body of an answer."""
    received = b""
    for some in iter(partial(connection.recv, 65536), b""):
        received += some
        head, _, body = received.decode().partition("\r\n\r\n")
        length = re.search(r"content-length: (\d+)", head)
        if length is not None and len(body) == int(length[1]):
            break
    return int(head.split()[1]), head, json.loads(body)


def test_bodies_that_stall_are_refused_before_they_fill_the_memory_and_one_that_comes_is_read(replica: Replica) -> None:
    """A hundred times a megabyte of four, and no more."""
    before = replica.memory_bytes()
    with ExitStack() as stack:
        stalled = [replica.send(stack, 4 * MIB, MIB) for _ in range(ATTACKERS)]
        answered: list[socket.socket] = []
        while len(answered) < ATTACKERS - ALLOWED_BYTES // MIB:
            answered = select.select(stalled, [], [], 60)[0]
            assert answered
        refused = [answer(one) for one in answered]
        small, large = replica.send(stack, 10, 10), replica.send(stack, 3 * MIB, 3 * MIB)

        assert answer(small)[::2] == (200, 10)
        assert answer(large)[::2] == (200, 3 * MIB)

    assert {status for status, _, _ in refused} == {429}
    assert all("retry-after: 5" in head for _, head, _ in refused)
    # What waits in uvicorn, 64 KiB of each connection, is not counted.
    assert replica.memory_bytes() - before < ALLOWED_BYTES + ATTACKERS * 2**17 + 8 * MIB


def test_a_client_that_is_refused_may_send_the_rest_and_ask_again_on_its_connection(replica: Replica) -> None:
    with ExitStack() as stack:
        first = replica.send(stack, 4 * MIB, MIB)
        for _ in range(4):
            replica.send(stack, 4 * MIB, 3 * MIB)
        assert answer(first)[0] == 429
        first.sendall(b"x" * 3 * MIB + HEAD.format(4, "").encode() + b"1234")

        assert answer(first)[::2] == (200, 4)


def test_the_ingress_says_how_long_a_body_may_take(replica: Replica) -> None:
    with ExitStack() as stack:
        stalled = replica.send(stack, MIB, 100_000, "x-sextet-body-timeout-seconds: 1")
        status, _, body = answer(stalled)

    assert status == 408
    assert str(body).startswith("{'error': 'the body was not complete after 1 s; 100000 bytes came'")


@pytest.mark.parametrize("given", ["", "nan", "-1", "1e9", "9999999"])
def test_what_is_no_number_of_seconds_changes_nothing(replica: Replica, given: str) -> None:
    with ExitStack() as stack:
        arriving = replica.send(stack, MIB, 100_000, f"x-sextet-body-timeout-seconds: {given}")
        arriving.sendall(b"x" * (MIB - 100_000))

        assert answer(arriving)[::2] == (200, MIB)
