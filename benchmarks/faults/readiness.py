"""Readiness: what `/ready` says, asked again and again, to be compared with whether requests are answered."""

import threading
from http.client import HTTPConnection, HTTPException
from itertools import pairwise
from time import perf_counter
from types import TracebackType
from typing import Self

from benchmarks.faults.ledger import READY, Ledger
from benchmarks.load.asker import HOST

EVERY_S = 0.1
TIMEOUT_S = 5.0
UNNOTICED_S = 0.3  # a shorter pause between answers is none that a probe should see


class Readiness:
    """Asks `/ready` every 0.1 s inside a `with` block."""

    def __init__(self, port: int) -> None:
        self.samples: list[tuple[float, float, str]] = []  # asked at, answered at, the status or why there is none
        self._port = port
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="readiness")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._is_over.set()
        self._thread.join()

    def wrong(self, ledger: Ledger) -> list[tuple[float, float, str]]:
        """From when until when, in seconds after the fault, `/ready` said 200 though nothing was answered, or the
        reverse, and what it said, which holds until it is asked again.

        A 429 is an answer: who probes readiness takes an instance away that answers nothing, not one that is busy.
        """
        gaps = ledger.gaps(UNNOTICED_S, READY)
        wrong: list[tuple[float, float, str]] = []
        for (_, said_at, said), (_, said_again_at, _) in zip(self.samples, self.samples[1:], strict=False):
            since, until = max(said_at, ledger.struck_at), min(said_again_at, ledger.closed_at)
            edges = [since, *(edge for gap in gaps for edge in gap if since < edge < until), until]
            for begin, end in pairwise(edges):
                middle = (begin + end) / 2
                if begin < end and (said == "200") == any(one < middle < other for one, other in gaps):
                    from_s, until_s = begin - ledger.struck_at, end - ledger.struck_at
                    if wrong and wrong[-1][1:] == (from_s, said):
                        from_s = wrong.pop()[0]
                    wrong.append((from_s, until_s, said))
        return wrong

    def _ask(self) -> None:
        while not self._is_over.wait(EVERY_S):
            asked_at = perf_counter()
            connection = HTTPConnection(HOST, self._port, timeout=TIMEOUT_S)
            try:
                connection.request("GET", "/ready")
                said = str(connection.getresponse().status)
            except (OSError, HTTPException) as error:
                said = type(error).__name__
            finally:
                connection.close()
            self.samples.append((asked_at, perf_counter(), said))
