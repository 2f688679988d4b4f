"""Crowd: clients that keep large requests inside a server, while something else is measured."""

import threading
from collections.abc import Callable
from http.client import HTTPException
from time import perf_counter
from typing import Self

from benchmarks.load.asker import Asker
from pipelines.errors import SextetError

PAUSE_AFTER_ERROR_S = 0.05
BEGIN_S = 60.0
ANSWER_S = 600.0  # more than the largest request takes
INSIDE_SHARE = 0.9  # of a window in which the requests of the crowd have to be inside

Send = Callable[[Asker, int, Callable[[], None]], None]
"""Sends the request of client `number` and reads its answer; calls the function once the server has begun with it."""


class CrowdError(SextetError):
    """The large requests were not inside: nothing was measured beside them."""


class Crowd:
    """`clients` threads, each with one request under way at any time, inside a `with` block.

    At the end of the block the requests under way are aborted.
    """

    def __init__(self, port: int, clients: int, send: Send) -> None:
        self._askers = [Asker(port, ANSWER_S) for _ in range(clients)]
        self._send = send
        self._begun = [threading.Event() for _ in range(clients)]
        self._over = False
        self._inside: list[tuple[float, float]] = []
        self._error: Exception | None = None
        self._threads = [threading.Thread(target=self._repeat, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        for asker in self._askers:
            asker.abort()
        for thread in self._threads:
            thread.join()

    def wait(self) -> None:
        """Until the server has begun with a request of every client; raises CrowdError."""
        give_up_at = perf_counter() + BEGIN_S
        for begun in self._begun:
            if not begun.wait(max(0.0, give_up_at - perf_counter())):
                raise CrowdError(f"the large requests did not begin within {BEGIN_S:.0f} s: {self._error}")

    def check(self, since: float, until: float) -> None:
        """Raises CrowdError where they were not inside between these times of `perf_counter`. Ask after the block."""
        overlaps = (min(until, ended) - max(since, began) for began, ended in self._inside)
        share = sum(overlap for overlap in overlaps if overlap > 0) / (len(self._threads) * (until - since))
        if share < INSIDE_SHARE:
            raise CrowdError(f"the large requests were inside for {share:.0%} of the window: {self._error}")

    def _repeat(self, number: int) -> None:
        asker = self._askers[number]
        while not self._over:
            began_at = perf_counter()
            try:
                self._send(asker, number, self._begun[number].set)
            except (OSError, HTTPException) as error:
                if not self._over:
                    self._error = error
                    threading.Event().wait(PAUSE_AFTER_ERROR_S)
                    continue
            self._inside.append((began_at, perf_counter()))
        asker.close()
