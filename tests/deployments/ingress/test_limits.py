"""What clients may hold of the ingress: connections of one and in all, slow heads and bodies, idle connections."""

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from deployments.http.request import BODY_HEADER
from deployments.ingress.config import ConnectionLimits, IngressConfig
from deployments.ingress.haproxy import command as ask_admin
from tests.deployments.ingress.running import Running, own_address, running

TASK = "/text-classification"
SHORT_S = 0.5


@contextmanager
def limited(folder: Path, host: str = "127.0.0.1", **limits: int) -> Iterator[tuple[Running, ExitStack]]:
    """An ingress with some limits, and what closes the connections of a test."""
    config = IngressConfig(open_to_everybody=True, limits=ConnectionLimits(**limits))
    with running(folder, config, host) as ingress, ExitStack() as stack:
        yield ingress, stack


def connect(ingress: Running, stack: ExitStack, source: str | None = None) -> socket.socket:
    address = (source, 0) if source else None
    opened = socket.create_connection((ingress.host, ingress.port), timeout=30, source_address=address)
    return stack.enter_context(opened)


def answers(connection: socket.socket) -> bool:
    """Whether a request on a connection that is kept gets its answer."""
    connection.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
    answer = b""
    while not answer.endswith(b"}}"):
        answer += (some := connection.recv(65536))
        if not some:
            return False
    return answer.startswith(b"HTTP/1.1 200 ")


def test_connections_of_one_client_have_a_bound_and_those_of_others_stay(tmp_path: Path) -> None:
    with limited(tmp_path, max_connections_per_client=5) as (ingress, stack):
        first = [connect(ingress, stack, "127.0.0.1") for _ in range(5)]
        for one in first:
            assert answers(one)
        assert ingress.raw(b"GET /ready HTTP/1.0\r\n\r\n") == b""  # a sixth is closed without a word
        assert answers(connect(ingress, stack, "127.0.0.2"))
        assert all(answers(one) for one in first)


def test_beyond_loopback_a_client_has_a_tenth_of_all_connections_unless_it_is_said_otherwise(tmp_path: Path) -> None:
    with limited(tmp_path, own_address(), max_connections=30) as (ingress, stack):
        first = [connect(ingress, stack) for _ in range(3)]
        assert all(answers(one) for one in first)
        assert ingress.raw(b"GET /ready HTTP/1.0\r\n\r\n") == b""
        assert all(answers(one) for one in first)


def test_on_loopback_a_client_has_all_of_them_and_further_ones_wait(tmp_path: Path) -> None:
    with limited(tmp_path, max_connections=10) as (ingress, stack):
        first = [connect(ingress, stack) for _ in range(10)]
        assert all(answers(one) for one in first)
        waiting = connect(ingress, stack)
        waiting.settimeout(SHORT_S)
        with pytest.raises(TimeoutError):
            answers(waiting)
        first[0].close()
        waiting.settimeout(30)
        assert b"HTTP/1.1 200 " in waiting.recv(65536)


def test_a_client_of_ipv6_is_its_network(tmp_path: Path) -> None:
    with limited(tmp_path, "::1", max_connections_per_client=5) as (ingress, stack):
        assert answers(connect(ingress, stack))
        table = ask_admin(ingress.admin, "show table sextet_addresses")

    assert re.findall(r"key=(\S+) ", table) == ["::"], "the first 64 bits of ::1"


def test_a_kept_connection_that_is_idle_is_closed(tmp_path: Path) -> None:
    with limited(tmp_path, idle_timeout_s=1, head_timeout_s=20) as (ingress, stack):
        idle = connect(ingress, stack)
        assert answers(idle)
        assert idle.recv(65536) == b""


def test_a_head_that_does_not_come_ends_the_connection_with_a_408(tmp_path: Path) -> None:
    """By HAProxy itself, whose page for it is built in, as for what is no HTTP: it writes that one, or none."""
    with limited(tmp_path, head_timeout_s=1) as (ingress, stack):
        assert connect(ingress, stack).recv(65536) == b""  # who has sent nothing has asked for nothing
        answer = ingress.raw(b"POST /text-classification HTTP/1.1\r\nhost: localhost\r\nx-slow")

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert body.startswith(b"<html><body><h1>408 Request Time-out</h1>")


def test_a_body_that_does_not_come_ends_the_connection_with_a_408_in_json(tmp_path: Path) -> None:
    with limited(tmp_path, body_timeout_s=1) as (ingress, _):
        head = b"POST /text-classification HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{"
        head, _, body = ingress.raw(head).partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 408 ")
    assert body == b'{"error":"the request was not complete after 1 s","error_type":"timeout"}'


def test_replicas_learn_how_long_a_body_may_take_where_they_do_not_know(tmp_path: Path) -> None:
    for limit_s, learned in ((60, None), (120, "120")):
        (folder := tmp_path / str(limit_s)).mkdir()
        with limited(folder, body_timeout_s=limit_s) as (ingress, _), ingress.client() as client:
            seen = client.post(TASK, json={}, headers={BODY_HEADER: "9"}).json()["headers"]
        assert seen.get(BODY_HEADER) == learned


def test_idle_connections_and_slow_heads_block_nobody(tmp_path: Path) -> None:
    """4,200 of them, of which each used to take one of 4,096 places for a minute."""
    with limited(tmp_path) as (ingress, stack):
        for number in range(4_200):
            idle = connect(ingress, stack)
            if number % 3 == 1:
                idle.sendall(b"POST /text-classification HTTP/1.1\r\nhost: localhost\r\nx-slow")
            elif number % 3 == 2:
                idle.sendall(b"POST /text-classification HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{")
        with ingress.client() as client:
            assert [client.get(path).status_code for path in ("/ready", TASK)] == [200, 200]
