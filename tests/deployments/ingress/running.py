"""HAProxy as Ray Serve runs it, without Ray: Ray's own file, our lines, and small servers in place of replicas."""

import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

from deployments.cluster.ray_environment import TUNED, spare_port
from deployments.http.request import LOAD_HEADER
from deployments.ingress import haproxy
from deployments.ingress.config import Address, IngressConfig
from deployments.ingress.haproxy import command as ask_admin
from deployments.ingress.settings import settings

APPLICATIONS = {"text-generation": "/text-generation", "text-classification": "/text-classification", "gateway": "/"}
START_S = 30.0
STATUS, LOAD = "x-test-status", "x-test-load"
"""Headers of requests: see Replica."""


def ray_file(
    folder: Path, prefixes: Mapping[str, str] = APPLICATIONS, ports: Mapping[str, int] | None = None, **options: Any
) -> Path:
    """Ray's own file for applications at some prefixes, each with one replica at some port; that of the fallback proxy
    is `ports["proxy"]`.
    """
    backends = {}
    for name, prefix in prefixes.items():
        replica = ServerConfig(name=f"replica-{name}", host="127.0.0.1", port=(ports or {}).get(name, 9))
        fallback = ServerConfig(name="proxy", host="127.0.0.1", port=(ports or {}).get("proxy", 9))
        backends[f"http-{name}"] = BackendConfig(
            name=f"http-{name}", path_prefix=prefix, app_name=name, servers=[replica], fallback_server=fallback
        )
    options = {"http_options": HTTPOptions(host="127.0.0.1", port=18000), **options}
    config = HAProxyConfig(
        socket_path=f"{folder}/admin.sock",
        server_state_base=str(folder),
        server_state_file=f"{folder}/state",
        is_head=True,
        has_received_routes=True,
        has_received_servers=True,
        **options,
    )
    api = HAProxyApi(config, backends, config_file_path=f"{folder}/haproxy.cfg")
    api._generate_config_file_internal()
    return folder / "haproxy.cfg"


def own_address() -> str:
    """An address of this machine that is not loopback; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has loopback alone")
        return str(probe.getsockname()[0])


def command(folder: Path, file: Path, config: IngressConfig | None = None, address: str = "") -> list[str]:
    """What runs HAProxy on `file`, as Ray wrote it, with `config`; `folder` is the wrapper's."""
    binary = haproxy.find_binary()
    assert binary is not None
    wrapper = haproxy.write_wrapper(binary, folder, settings(config or IngressConfig(), address))
    return [str(wrapper), "-db", "-f", str(file)]


class Replica(ThreadingHTTPServer):
    """Answers with its name, the method, the path, the headers it was asked with and the length of the body.

    A request may name the status of its answer, and the load that the replica says: STATUS and LOAD.
    """

    def __init__(self, name: str) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                asked = {"name": name, "method": self.command, "path": self.path, "length": len(body)}
                answer = json.dumps({**asked, "headers": {k.lower(): v for k, v in self.headers.items()}}).encode()
                self.send_response(int(self.headers.get(STATUS, "200")))
                if load := self.headers.get(LOAD):
                    self.send_header(LOAD_HEADER, load)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_POST = do_PUT = do_DELETE = do_OPTIONS = do_GET  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A health check does not wait for the end of an answer."""


@dataclass
class Running:
    """An ingress in front of a replica of each application; `reload` is what Ray does when replicas change."""

    folder: Path
    config: IngressConfig
    host: str
    port: int
    ports: Mapping[str, int]
    applications: Mapping[str, str] = field(default_factory=lambda: APPLICATIONS)
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of Ray's own configuration."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """The application of each adapter."""
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    configured: Mapping[str, str] = field(default_factory=dict)
    """The applications of cluster.yaml and their prefixes."""

    @property
    def url(self) -> str:
        return Address(self.host, self.port).url(self.config)

    @property
    def admin(self) -> Path:
        return self.folder / "admin.sock"

    def write(self) -> list[str]:
        """Ray writes its file anew; what runs HAProxy on it."""
        # Ray's own part of a single machine is on loopback; where the ingress listens is ours.
        loopback = HTTPOptions(host="127.0.0.1", port=self.port)
        bufsize = int(TUNED["RAY_SERVE_HAPROXY_TUNE_BUFSIZE"])
        spare: dict[str, Any] = {"bufsize": bufsize, "metrics_port": spare_port(), "stats_port": spare_port()}
        timeouts: dict[str, Any] = {"timeout_connect_s": 5, "timeout_client_s": 60, "timeout_server_s": 60}
        own = {**spare, **timeouts, **self.options}
        file = ray_file(self.folder, self.applications, ports=self.ports, http_options=loopback, **own)
        run = command(self.folder, file, self.config, Address(self.host, self.port).text())
        haproxy.tell(self.folder, (), self.configured, 0, self.adapters)
        return run

    def start(self, *options: str) -> None:
        """One more HAProxy, on the file that Ray has written anew; it has the admin socket when this returns."""
        self.run([*self.write(), *options])

    def run(self, command: list[str]) -> None:
        """The same on a file that is there."""
        self.processes.append(subprocess.Popen(command))
        give_up_at = time.monotonic() + START_S
        while f"Pid: {self.processes[-1].pid}\n" not in ask_admin(self.admin, "show info"):
            assert self.processes[-1].poll() is None
            assert time.monotonic() < give_up_at
            time.sleep(0.02)

    def reload(self) -> None:
        self.start(*self.taking_over())

    def taking_over(self) -> list[str]:
        """The options of an HAProxy that replaces those that run."""
        return ["-x", str(self.admin), "-sf", *(str(one.pid) for one in self.processes)]

    def client(self, key: str | None = None, **options: Any) -> httpx.Client:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, **options)

    def raw(self, request: bytes, timeout_s: float = 30) -> bytes:
        """All that comes back for bytes that no HTTP client would send, until the ingress closes or is silent."""
        received = b""
        with (
            suppress(TimeoutError, ConnectionResetError, BrokenPipeError),
            socket.create_connection((self.host, self.port), timeout=timeout_s) as connection,
        ):
            connection.sendall(request)
            for some in iter(partial(connection.recv, 65536), b""):
                received += some
        return received


@contextmanager
def running(
    folder: Path,
    config: IngressConfig | None = None,
    host: str = "127.0.0.1",
    applications: Mapping[str, str] = APPLICATIONS,
    elsewhere: Mapping[str, int] | None = None,
    adapters: Mapping[str, str] | None = None,
    **options: Any,
) -> Iterator[Running]:
    """HAProxy in front of a replica of each application, which are given with their prefixes; `elsewhere` are ports of
    some that run, or do not, outside, `adapters` those with their base. `options` are of Ray's own configuration.
    """
    replicas = {name: Replica(name) for name in applications}
    ports = {name: replica.server_address[1] for name, replica in replicas.items()} | dict(elsewhere or {})
    ingress = Running(folder, config or IngressConfig(), host, spare_port(), ports, applications, options)
    ingress.adapters = adapters or {}
    try:
        ingress.start()
        yield ingress
    finally:
        for process in ingress.processes:
            process.kill()
            process.wait()
        for replica in replicas.values():
            replica.shutdown()
            replica.server_close()
