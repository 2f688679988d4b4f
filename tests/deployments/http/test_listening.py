"""Where the servers behind HAProxy listen: on their node's address and loopback, and nowhere else."""

import asyncio
import errno
import socket
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.responses import PlainTextResponse

from deployments.http.listening import Here, Server

HERE, ALSO = "127.0.0.2", "127.0.0.1"


@pytest.mark.parametrize(
    ("host", "node", "listens"),
    [
        ("0.0.0.0", "10.0.0.5", ["10.0.0.5", "127.0.0.1"]),
        ("203.0.113.1", "10.0.0.5", ["10.0.0.5", "127.0.0.1"]),  # another interface of this machine, or of another one
        ("127.0.0.1", "10.0.0.5", ["127.0.0.1"]),
        ("localhost", "10.0.0.5", ["127.0.0.1"]),
        ("0.0.0.0", "127.0.0.1", ["127.0.0.1"]),
    ],
)
def test_http_servers_do_not_listen_where_the_ingress_does(host: str, node: str, listens: list[str]) -> None:
    assert Here(node, "127.0.0.1").http(host) == listens


def test_grpc_servers_do_not_listen_on_every_interface() -> None:
    here = Here("10.0.0.5", "127.0.0.1")

    assert here.grpc("[::]:30001") == ["10.0.0.5:30001", "127.0.0.1:30001"]
    assert Here("fd00::5", "::1").grpc("[::]:30001") == ["[fd00::5]:30001", "[::1]:30001"]
    assert here.grpc("[::]:0") == ["10.0.0.5:0"]
    assert here.grpc("127.0.0.1:0") == ["127.0.0.1:0"]


@pytest.mark.parametrize(
    ("family", "given", "listens"),
    [(socket.AF_INET, "0.0.0.0", HERE), (socket.AF_INET6, "::", f"::ffff:{HERE}"), (socket.AF_INET, ALSO, ALSO)],
)
def test_a_socket_that_ray_serve_binds_to_every_interface_is_bound_to_the_nodes(
    family: socket.AddressFamily, given: str, listens: str
) -> None:
    with Here(HERE, ALSO).socket(family, socket.SOCK_STREAM) as opened:
        opened.bind((given, 0))

        assert opened.getsockname()[0] == listens


def opened() -> socket.socket:
    """The socket that Ray Serve opens itself."""
    first = socket.socket()
    first.bind((HERE, 0))
    return first


def test_one_server_answers_on_both_addresses_and_closes_both() -> None:
    async def ask() -> list[str]:
        first = opened()
        port: int = first.getsockname()[1]
        config = uvicorn.Config(PlainTextResponse("here"), host=HERE, port=port, lifespan="off", log_config=None)
        server = Server(config, [ALSO])
        serving = asyncio.create_task(server.serve([first]))
        while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0.01)
        async with httpx.AsyncClient() as client:
            answers = [(await client.get(f"http://{host}:{port}/")).text for host in (HERE, ALSO)]
            server.should_exit = True
            await serving
            for host in (HERE, ALSO):
                with pytest.raises(httpx.ConnectError):
                    await client.get(f"http://{host}:{port}/")
        return answers

    assert asyncio.run(ask()) == ["here", "here"]


def test_a_port_that_is_taken_on_one_of_them_is_told_as_ray_serve_understands_it() -> None:
    with socket.socket() as other:
        other.bind((ALSO, 0))
        config: Any = uvicorn.Config(PlainTextResponse("here"), host=HERE, port=other.getsockname()[1])

        with pytest.raises(RuntimeError) as failed:
            Server(config, [ALSO])

    assert isinstance(failed.value.__cause__, OSError)
    assert failed.value.__cause__.errno == errno.EADDRINUSE
