"""Traffic: a steady load of short requests over kept connections, in a thread, each written into a ledger."""

import asyncio
import json
import threading
from collections.abc import Mapping
from time import perf_counter
from types import TracebackType
from typing import Self

import uvloop

from benchmarks.faults.ledger import Entry, Ledger
from benchmarks.load.arrivals import Alarm
from benchmarks.load.client import Exchange, Pool, request_bytes

HOST = "127.0.0.1"
CLIENTS = 8  # each keeps its own connections: those of a quiet client are idle between its requests
DEADLINE_S = 5.0  # of every request: what waits longer would delay those that come after the fault
END_S = 60.0  # how long requests under way may take once no more are sent
TICK_S = 0.05
DEADLINE = {"x-request-timeout-seconds": str(DEADLINE_S)}


class Traffic:
    """Sends `rate_per_s` requests to `path` inside a `with` block, whether or not earlier ones were answered.

    A request has its number as `x-request-id`, which the answer repeats, and `headers`. `timeout_s` after a request was
    sent, it counts as one without an answer.
    """

    def __init__(
        self,
        port: int,
        path: str,
        text: str,
        rate_per_s: float,
        timeout_s: float = END_S,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.ledger = Ledger()
        self._port, self._path, self._text = port, path, text
        self._headers = DEADLINE | dict(headers or {})
        self._gap_s, self._timeout_s = 1 / rate_per_s, timeout_s
        self._is_over = threading.Event()
        self._sent = 0
        self._thread = threading.Thread(target=lambda: uvloop.run(self._run()), name="traffic")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.ledger.closed_at = perf_counter()
        self._is_over.set()
        self._thread.join()

    def strike(self) -> None:
        """Note that the fault happens now."""
        self.ledger.struck_at = perf_counter()

    async def _run(self) -> None:
        self._pools = [Pool(HOST, self._port) for _ in range(CLIENTS)]
        self._due_at = perf_counter()
        alarm = Alarm(lambda: self._send_due(alarm))
        self._send_due(alarm)
        while not self._is_over.is_set():
            await self._tick()
        alarm.close()
        give_up_at = perf_counter() + END_S
        while any(pool.in_flight for pool in self._pools) and perf_counter() < give_up_at:
            await self._tick()
        for pool in self._pools:
            await pool.close()

    async def _tick(self) -> None:
        await asyncio.sleep(TICK_S)
        for pool in self._pools:
            pool.expire(self._timeout_s)

    def _send_due(self, alarm: Alarm) -> None:
        while self._due_at <= perf_counter():
            number = str(self._sent)
            body = json.dumps({"inputs": f"{self._text} ({number})"}).encode()
            request = request_bytes(HOST, self._path, body, {"x-request-id": number} | self._headers)

            def record(exchange: Exchange, number: str = number) -> None:
                self.ledger.entries.append(Entry.of(number, exchange))

            self._pools[self._sent % CLIENTS].send(Exchange(request, self._due_at, record))
            self._sent += 1
            self._due_at += self._gap_s
        alarm.set(self._due_at)
