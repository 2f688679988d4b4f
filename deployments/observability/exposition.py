"""Exposition: one address of each node where Prometheus finds the series of all processes there.

    a process      a socket in the node's folder, NODE/<pid>.sock: whoever connects gets its series as text
    one of them    http://ADDRESS/metrics: asks every socket, and puts the families together; it adds the node's own

Whoever gets the address first has it, and another process takes it over within a second after that one has ended. A
socket that nobody listens on is removed: the series of a process that has died go with it, at once.
"""

import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from prometheus_client.exposition import CONTENT_TYPE_LATEST

from deployments.cluster.ray_environment import ADDRESS_VARIABLE, METRICS_PORT
from pipelines.errors import ConfigurationError

ADDRESS = f"127.0.0.1:{METRICS_PORT}"
OFF = "off"
RETRY_S = 1.0
PROCESS_S = 1.0  # for one process to hand out its series
SCRAPE_S = 2.5  # for all of them, the last one's time and HAProxy's on top: Prometheus waits for five
CLIENT_S = 5.0  # for a client to say what it wants

_logger = logging.getLogger("ray.serve")


def address() -> tuple[str, int] | None:
    """Where this node's series are to be found, by the environment; None where it says `off`."""
    given = os.environ.get(ADDRESS_VARIABLE) or ADDRESS
    if given == OFF:
        return None
    host, _, port = given.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise ConfigurationError(f"{ADDRESS_VARIABLE} is {given!r}; allowed: HOST:PORT, or {OFF}")
    return host.strip("[]"), int(port)


class Exposition:
    """Hands out `render()`, the series of this process, in the text format of prometheus_client.

    `of_node()` are series that belong to no process of ours: they are handed out once for the node.
    """

    def __init__(
        self, render: Callable[[], bytes], folder: Path, at: tuple[str, int], of_node: Callable[[], bytes] = bytes
    ) -> None:
        self._render, self._folder, self._at, self._of_node = render, folder, at, of_node
        self._file = folder / f"{os.getpid()}.sock"
        self._socket = socket.socket(socket.AF_UNIX)
        self._server: HTTPServer | None = None
        self._closed = threading.Event()
        self._lock = threading.Lock()  # either `close` sees the server, or the thread sees that it is closed
        self._serving = threading.Thread(target=self._serve, name="metrics", daemon=True)

    def start(self) -> None:
        """Listen, in threads of their own; raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file.unlink(missing_ok=True)  # of a process that had this id
        self._socket.bind(str(self._file))
        self._socket.listen()
        threading.Thread(target=self._hand_out, name="metrics", daemon=True).start()
        self._serving.start()

    def close(self) -> None:
        """Stop listening; the address is free when this returns."""
        with self._lock:
            self._closed.set()
        self._file.unlink(missing_ok=True)
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._socket.close()
        if self._server is not None:
            self._server.shutdown()
        if self._serving.is_alive():
            self._serving.join()

    def _hand_out(self) -> None:
        while not self._closed.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.settimeout(PROCESS_S)
                try:
                    connection.sendall(self._render())
                except OSError:
                    raise
                except Exception:  # what a library fails with must not end the thread
                    _logger.exception("metrics cannot be written")

    def _serve(self) -> None:
        """Serve the node's address once it is free."""
        while not self._closed.is_set():
            try:
                server = _Server(self._at, self._folder, self._of_node)
            except OSError:
                self._closed.wait(RETRY_S)
                continue
            with server:
                with self._lock:
                    if self._closed.is_set():
                        return
                    self._server = server
                server.serve_forever()


class _Server(HTTPServer):
    """One request after the other: only Prometheus asks."""

    def __init__(self, at: tuple[str, int], folder: Path, of_node: Callable[[], bytes]) -> None:
        self.folder, self.of_node = folder, of_node
        self.address_family = socket.AF_INET6 if ":" in at[0] else socket.AF_INET
        super().__init__(at, _Handler)

    def server_bind(self) -> None:  # that of HTTPServer looks the host up in the DNS
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves is no error."""


class _Handler(BaseHTTPRequestHandler):
    timeout = CLIENT_S
    server: _Server

    def do_GET(self) -> None:
        found = self.path.split("?")[0] == "/metrics"
        body = merged([*series(self.server.folder), self.server.of_node()]) if found else b"GET /metrics\n"
        self.send_response(200 if found else 404)
        self.send_header("content-type", CONTENT_TYPE_LATEST if found else "text/plain")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def series(folder: Path) -> list[bytes]:
    """What each process of the node hands out; one that does not within its time is left out."""
    texts, give_up_at = [], time.monotonic() + SCRAPE_S
    for file in sorted(folder.glob("*.sock")):
        text = _ask(file) if time.monotonic() < give_up_at else None
        if text is not None:
            texts.append(text)
    return texts


def _ask(file: Path) -> bytes | None:
    text, give_up_at = b"", time.monotonic() + PROCESS_S
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PROCESS_S)
            connection.connect(str(file))
            while some := connection.recv(65_536):
                text += some
                if time.monotonic() > give_up_at:
                    return None
    except ConnectionRefusedError:
        file.unlink(missing_ok=True)
        return None
    except OSError:
        return None
    return text


def merged(texts: Iterable[bytes]) -> bytes:
    """The families of several texts, each with its `# HELP` and `# TYPE` once, as the format wants it."""
    families: dict[bytes, list[bytes]] = {}
    for text in texts:
        for block in re.split(rb"^(?=# HELP )", text, flags=re.MULTILINE):
            if block.startswith(b"# HELP "):
                help_, type_, *samples = block.splitlines(keepends=True)
                families.setdefault(help_ + type_, []).extend(samples)
    return b"".join(head + b"".join(samples) for head, samples in families.items())
