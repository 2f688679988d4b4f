"""One write: what an answer sends in one turn of the event loop leaves together.

uvicorn writes the head of an answer, and then its body: two packets, each of which wakes HAProxy, and a replica could
die between them. Here both go to the socket at the end of the turn.

Answers of gRPC end with trailers, which uvicorn does not write: `trailers` of the last message of a body, as headers.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

LARGE_BYTES = 65_536
"""More than that goes to the socket at once, so that a client that reads slowly still holds up its answer."""
WITH_TRAILERS = b"/grpc/"
"""In the path of a request whose answer has trailers."""
_LAST_CHUNK = b"0\r\n"


class OneWrite(HttpToolsProtocol):
    """uvicorn's protocol, on a transport that writes so."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(Together(transport))  # type: ignore[arg-type]

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if WITH_TRAILERS in self.url:  # its task has not begun yet
            self.cycle.__class__ = WithTrailers


class WithTrailers(RequestResponseCycle):
    """An answer whose last message may have trailers."""

    async def send(self, message: Any) -> None:
        trailers = message.get("trailers")
        if trailers is None or not self.chunked_encoding or self.disconnected:
            await super().send(message)
            return
        if body := message["body"]:
            await super().send({"type": "http.response.body", "body": body, "more_body": True})
        fields = b"".join(b"%b: %b\r\n" % field for field in trailers)
        self.transport.write(_LAST_CHUNK + fields + b"\r\n")
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


class Together:
    """A transport that keeps what is written until the end of the turn. All else is `transport`'s own."""

    def __init__(self, transport: Any) -> None:
        self._transport, self._loop = transport, asyncio.get_running_loop()
        self._waiting: list[bytes] = []
        self._n_bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(data)
        self._n_bytes += len(data)
        if self._n_bytes > LARGE_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._flush()
        self._transport.set_protocol(protocol)

    def _flush(self) -> None:
        waiting, self._waiting, self._n_bytes = self._waiting, [], 0
        if waiting:
            self._transport.write(b"".join(waiting))
