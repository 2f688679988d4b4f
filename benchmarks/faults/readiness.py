"""Readiness: what `/ready` says, asked again and again, to be compared with whether requests are answered."""

import threading
from http.client import HTTPConnection, HTTPException
from time import perf_counter
from types import TracebackType
from typing import Self

from benchmarks.faults.ledger import Ledger
from benchmarks.load.asker import HOST

EVERY_S = 0.1
TIMEOUT_S = 5.0
UNNOTICED_S = 0.3  # a shorter pause between answers is none that a probe should see


class Readiness:
    """Asks `/ready` every 0.1 s inside a `with` block."""

    def __init__(self, port: int) -> None:
        self.samples: list[tuple[float, float, bool]] = []  # asked at, answered at, whether with 200
        self._port = port
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="readiness")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._is_over.set()
        self._thread.join()

    def false_s(self, ledger: Ledger) -> float:
        """Seconds after the fault in which `/ready` said 200 though nothing was answered, or the reverse.

        What it said holds until it is asked again.
        """
        gaps = ledger.gaps(UNNOTICED_S)
        false_s = 0.0
        for (_, since, is_ready), (_, until, _) in zip(self.samples, self.samples[1:], strict=False):
            since, until = max(since, ledger.struck_at), min(until, ledger.closed_at)
            inside_s = sum(max(0.0, min(until, end) - max(since, begin)) for begin, end in gaps)
            false_s += inside_s if is_ready else max(0.0, until - since) - inside_s
        return false_s

    def _ask(self) -> None:
        while not self._is_over.wait(EVERY_S):
            asked_at = perf_counter()
            connection = HTTPConnection(HOST, self._port, timeout=TIMEOUT_S)
            try:
                connection.request("GET", "/ready")
                is_ready = connection.getresponse().status == 200
            except (OSError, HTTPException):
                is_ready = False
            finally:
                connection.close()
            self.samples.append((asked_at, perf_counter(), is_ready))
