"""Client: HTTP/1.1 over keep-alive connections, at about 16 us of CPU per request.

    exchange = Exchange(request_bytes("127.0.0.1", "/text-classification", body), intended_at, done)
    pool.send(exchange)        done(exchange) is called when it has ended, with an answer or an error

The load generator shares its processor with the server that it measures, so the client has to use little CPU. Requests
are bytes that are made before the measurement. The head of an answer is searched, not parsed. Its body is counted and
dropped, except for server-sent events, whose arrival times are kept.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import cast

from pipelines.errors import SextetError

CLOSED = "connection closed"
REFUSED = "connection refused"
TIMEOUT = "timeout"
MALFORMED = "malformed answer"
STREAM_ERROR = "error in the stream"
PARTS = ("queue", "tokenization", "inference", "total")
_PART_HEADERS = tuple(f"\r\nx-{part}-time: ".encode() for part in PARTS)


class UnreachableError(SextetError):
    """Nothing listens at the address of the load."""


@dataclass(eq=False, slots=True)
class Exchange:
    """One request and its outcome. Times are of `time.perf_counter`, in seconds (uvloop's own clock ticks in ms).

    `status` is the HTTP status as text, or one of this module's reasons. `event_times` has one entry per server-sent
    event with data, `parts_ms` the server's own times in the order of PARTS where it sends them, `request_id` the
    `x-request-id` of the answer.
    """

    request: bytes
    intended_at: float
    done: Callable[["Exchange"], None]
    n_inputs: int = 1
    new_tokens: int = 0
    started_at: float = 0.0
    ended_at: float = 0.0
    status: str = ""
    compute_tokens: int = 0
    request_id: str | None = None
    parts_ms: tuple[float, ...] | None = None
    event_times: list[float] = field(default_factory=list)

    @property
    def latency_s(self) -> float:
        return self.ended_at - self.intended_at

    @property
    def succeeded(self) -> bool:
        return self.status == "200"


def request_bytes(host: str, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """A POST with a JSON body, ready to be written; `headers` are added."""
    standing = {"host": host, "content-type": "application/json", "content-length": str(len(body))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in (standing | dict(headers or {})).items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


class Pool:
    """Keep-alive connections to one server, one for each exchange that is under way."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        self._opening: dict[asyncio.Task[None], Exchange] = {}
        self._loop = asyncio.get_running_loop()

    @property
    def in_flight(self) -> int:
        """Exchanges that have not ended."""
        return len(self._busy) + len(self._opening)

    def send(self, exchange: Exchange) -> None:
        """Write the request to an idle connection, or to a new one as soon as it is open."""
        exchange.started_at = perf_counter()
        if self._idle:
            self._write(self._idle.pop(), exchange)
        else:
            task = self._loop.create_task(self._open(exchange))
            self._opening[task] = exchange
            task.add_done_callback(self._opening.pop)

    async def open(self, count: int) -> None:
        """Open connections until `count` are idle; raises UnreachableError where nothing listens."""
        try:
            for _ in range(count - len(self._idle)):
                self._idle.append(await self._connect())
        except OSError as error:
            raise UnreachableError(f"nothing answers at http://{self._host}:{self._port} ({error.strerror})") from None

    def under_way(self) -> list[Exchange]:
        """The exchanges that have not ended."""
        return [*self._opening.values(), *(one.exchange for one in self._busy if one.exchange)]

    def expire(self, timeout_s: float) -> None:
        """End every exchange that is older than that; its connection is closed."""
        oldest = perf_counter() - timeout_s
        for connection in [one for one in self._busy if one.exchange and one.exchange.intended_at < oldest]:
            connection.abandon(TIMEOUT)
        for task in [task for task, exchange in self._opening.items() if exchange.intended_at < oldest]:
            task.cancel()

    async def close(self) -> None:
        """Drop every connection; exchanges that have not ended fail."""
        opening = list(self._opening)
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)
        for connection in [*self._idle, *self._busy]:
            connection.abandon(CLOSED)
        await asyncio.sleep(0)  # transports close in the next turn of the loop

    async def _open(self, exchange: Exchange) -> None:
        try:
            connection = await self._connect()
        except OSError:
            self._end(exchange, REFUSED)
        except asyncio.CancelledError:
            self._end(exchange, TIMEOUT)
            raise
        else:
            self._write(connection, exchange)

    async def _connect(self) -> "_Connection":
        _, connection = await self._loop.create_connection(lambda: _Connection(self), self._host, self._port)
        return connection

    def _write(self, connection: "_Connection", exchange: Exchange) -> None:
        self._busy.add(connection)
        connection.send(exchange)

    def _released(self, connection: "_Connection", exchange: Exchange, *, reusable: bool) -> None:
        self._busy.discard(connection)
        if reusable:
            self._idle.append(connection)
        else:
            connection.close()
        exchange.ended_at = perf_counter()
        exchange.done(exchange)

    def _gone(self, connection: "_Connection") -> None:
        self._busy.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def _end(self, exchange: Exchange, status: str) -> None:
        exchange.status, exchange.ended_at = status, perf_counter()
        exchange.done(exchange)


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one exchange on it."""

    def __init__(self, pool: Pool) -> None:
        self.exchange: Exchange | None = None
        self._pool = pool
        self._transport: asyncio.Transport
        self._buffer = b""
        self._missing: int | None = None  # bytes of the body still to arrive; None before the head
        self._chunks: _Chunks | None = None
        self._reusable = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports do not inherit from asyncio's

    def send(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self._transport.write(exchange.request)

    def close(self) -> None:
        self._transport.close()

    def abandon(self, reason: str) -> None:
        self._reusable = False
        self._transport.abort()
        self._pool._gone(self)
        self._finish(reason)

    def connection_lost(self, error: Exception | None) -> None:
        self._reusable = False
        self._pool._gone(self)
        self._finish(CLOSED)

    def data_received(self, data: bytes) -> None:
        if self.exchange is None:
            return
        if self._chunks is not None:
            self._read_chunks(data)
        elif self._missing is not None:
            self._read_body(len(data))
        else:
            self._buffer = self._buffer + data if self._buffer else data
            end = self._buffer.find(b"\r\n\r\n")
            if end >= 0:
                head, rest = self._buffer[: end + 2].lower(), self._buffer[end + 4 :]
                self._buffer = b""
                self._read_head(self.exchange, head, rest)

    def _read_head(self, exchange: Exchange, head: bytes, rest: bytes) -> None:
        exchange.status = head[9:12].decode("latin-1")
        self._reusable = b"\r\nconnection: close" not in head
        if (request_id := _value(head, b"\r\nx-request-id: ")) is not None:
            exchange.request_id = request_id.decode("latin-1")
        if _PART_HEADERS[0] in head:
            exchange.parts_ms = tuple(float(_value(head, name) or 0) for name in _PART_HEADERS)
            exchange.compute_tokens = int(_value(head, b"\r\nx-compute-tokens: ") or 0)
        length = _value(head, b"\r\ncontent-length: ")
        if length is not None:
            self._missing = int(length)
            self._read_body(len(rest))
        elif b"\r\ntransfer-encoding: chunked" in head:
            self._chunks = _Chunks(exchange)
            self._read_chunks(rest)
        else:
            self.abandon(MALFORMED)

    def _read_body(self, n_bytes: int) -> None:
        assert self._missing is not None
        self._missing -= n_bytes
        if self._missing <= 0:
            self._finish(None)

    def _read_chunks(self, data: bytes) -> None:
        assert self._chunks is not None
        if self._chunks.feed(data, perf_counter()):
            self._finish(STREAM_ERROR if self._chunks.failed else None)

    def _finish(self, reason: str | None) -> None:
        exchange, self.exchange = self.exchange, None
        self._missing = self._chunks = None
        self._buffer = b""
        if not self._reusable:
            self._transport.close()
        if exchange is not None:
            exchange.status = reason or exchange.status
            self._pool._released(self, exchange, reusable=self._reusable)


class _Chunks:
    """Reads a chunked body of server-sent events: notes when each event arrives and whether one is an error."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._raw = b""
        self._text = b""
        self.failed = False

    def feed(self, data: bytes, now: float) -> bool:
        """True when `data` ends the last chunk."""
        self._raw += data
        while (end := self._raw.find(b"\r\n")) >= 0:
            size = int(self._raw[:end].split(b";")[0] or b"0", 16)
            if len(self._raw) < end + size + 4:
                return False
            self._text += self._raw[end + 2 : end + 2 + size].replace(b"\r\n", b"\n")
            self._raw = self._raw[end + size + 4 :]
            if size == 0:
                return True
            self._take_events(now)
        return False

    def _take_events(self, now: float) -> None:
        *events, self._text = self._text.split(b"\n\n")
        for event in events:
            if event.startswith(b"data:") and event[5:].strip() != b"[DONE]":
                if event[5:].lstrip().startswith(b'{"error"'):
                    self.failed = True
                else:
                    self._exchange.event_times.append(now)


def _value(head: bytes, name: bytes) -> bytes | None:
    start = head.find(name)
    return None if start < 0 else head[start + len(name) : head.index(b"\r", start + 2)]
