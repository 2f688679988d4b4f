"""Listening: the servers of Ray Serve's processes listen on their node's address in the cluster, and on loopback.

By itself Ray Serve binds the HTTP servers of replicas and of its fallback proxy to `http_options.host`, on several
machines every interface, and its gRPC servers to every interface whatever the file says. From elsewhere HAProxy alone
is to be reached. It asks the replicas of its own node on loopback, and those of others on their node's address.
"""

import os
import socket
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import uvicorn

from deployments.http.one_write import OneWrite

_EVERY_INTERFACE = "[::]:"  # how Ray writes it for gRPC, before the port


class Here:
    """Where servers behind HAProxy listen on this node: at `node`, its address in the cluster, and at `loopback`."""

    def __init__(self, node: str, loopback: str) -> None:
        self._node, self._loopback = node, loopback

    def http(self, host: str) -> list[str]:
        """In place of `host`."""
        is_local = host in (self._loopback, "localhost")
        return [self._loopback] if is_local else list(dict.fromkeys([self._node, self._loopback]))

    def grpc(self, address: str) -> list[str]:
        """In place of ADDRESS:PORT. Port 0, which the system chooses, is for other replicas alone."""
        if not address.startswith(_EVERY_INTERFACE):
            return [address]
        port = address.removeprefix(_EVERY_INTERFACE)
        hosts = [self._node] if port == "0" else list(dict.fromkeys([self._node, self._loopback]))
        return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts]

    def socket(self, *arguments: Any, **options: Any) -> "Socket":
        """In place of `socket.socket`, which Ray Serve binds to `http_options.host`."""
        return Socket(self, *arguments, **options)

    def server(self, config: uvicorn.Config) -> "Server":
        """In place of `uvicorn.Server`."""
        return Server(config, self.http(config.host)[1:])


class Socket(socket.socket):
    """Listens at the first of the addresses that take the place of the one that it is bound to."""

    def __init__(self, here: Here, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._here = here

    def bind(self, address: Any) -> None:
        host, port = address
        super().bind((_as(self.family, self._here.http(host)[0]), port))


class Server(uvicorn.Server):
    """Listens on `others`, too: addresses of the same port as the socket that it is given. Writes an answer at once."""

    def __init__(self, config: uvicorn.Config, others: list[str]) -> None:
        """Raises RuntimeError where somebody listens there, as Ray Serve does: it then takes another port."""
        config.http = OneWrite
        super().__init__(config)
        self._others: list[socket.socket] = []
        for host in others:
            opened = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            try:
                opened.bind((host, config.port))
            except OSError as error:
                for one in (opened, *self._others):
                    one.close()
                raise RuntimeError(f"cannot listen on {host} port {config.port}") from error
            self._others.append(opened)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await super().serve([*(sockets or ()), *self._others])


def listen_privately() -> None:
    """Call it in a process of Ray Serve before its servers listen.

    Does nothing where there is no HAProxy: Ray Serve's own proxy is then what clients reach.
    """
    import ray
    from ray._common import tls_utils
    from ray._common.network_utils import get_localhost_ip
    from ray.serve._private import default_impl, http_util

    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "1" or default_impl.add_grpc_address.__module__ == __name__:
        return
    here = Here(ray.util.get_node_ip_address(), get_localhost_ip())
    add_address, add_port = default_impl.add_grpc_address, tls_utils.add_port_to_grpc_server

    def add_grpc_address(server: Any, address: str) -> None:
        for one in here.grpc(address):
            add_address(server, one)

    def add_port_to_grpc_server(server: Any, address: str) -> int:
        ports: list[int] = [add_port(server, one) for one in here.grpc(address)]
        return ports[0]

    # Inside the functions of these modules: the actors that call them come pickled, and keep what they imported.
    http_util.socket = ModuleType(socket.__name__)
    vars(http_util.socket).update(vars(socket) | {"socket": here.socket})
    http_util.uvicorn = SimpleNamespace(Config=uvicorn.Config, Server=here.server)
    default_impl.add_grpc_address = add_grpc_address
    replica: Any = sys.modules.get("ray.serve._private.replica")
    if replica is not None:
        replica.add_port_to_grpc_server = add_port_to_grpc_server


def _as(family: int, host: str) -> str:
    """An IPv4 address for a socket of IPv6."""
    return f"::ffff:{host}" if family == socket.AF_INET6 and ":" not in host else host
