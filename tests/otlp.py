"""A receiver of traces: OTLP over HTTP, decoded with the protocol's own messages."""

import gzip
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

_PATIENCE_S = 20.0


class Receiver:
    """What has come so far: paths and messages."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.received: list[tuple[str, Any]] = []

    def spans(self, trace: str = "") -> list[Any]:
        """Those of a trace, by its id in hexadecimal digits, or all."""
        found = [
            span
            for _, message in list(self.received)
            for resource in message.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        return [span for span in found if not trace or span.trace_id.hex() == trace]

    def wait_for(self, trace: str, spans: int) -> list[Any]:
        """The spans of a trace, once so many have come."""
        give_up_at = time.monotonic() + _PATIENCE_S
        while len(found := self.spans(trace)) < spans:
            assert time.monotonic() < give_up_at, [one.name for one in found]
            time.sleep(0.05)
        return found


@contextmanager
def receiver() -> Iterator[Receiver]:
    """It listens on loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            found.received.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Receiver(f"http://127.0.0.1:{server.server_address[1]}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield found
        finally:
            server.shutdown()
