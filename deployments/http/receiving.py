"""Receiving: the memory that bodies take of which some is still to come. A client decides how long that is.

What HAProxy's buffer holds comes as a whole (deployments/ingress/limits.py) and is never counted here.
"""

import asyncio


class Arriving:
    """One body that is not complete; `timeout` ends its reading."""

    def __init__(self, timeout: asyncio.Timeout) -> None:
        self.is_refused, self.n_received = False, 0
        self._timeout = timeout

    def refuse(self) -> None:
        if not self._timeout.expired():
            self.is_refused = True
            self._timeout.reschedule(0.0)


class Receiving:
    """The bodies of this process that are not complete. Beyond a limit, those that have not grown for longest are
    refused: a client that sends goes before one that stalls.
    """

    def __init__(self) -> None:
        self.n_bytes = 0
        self._bodies: dict[Arriving, int] = {}

    def grown(self, body: Arriving, n_bytes: int, most: int) -> None:
        """`body` holds `n_bytes` now; all together may hold `most`."""
        self.left(body)
        self._bodies[body] = n_bytes
        self.n_bytes += n_bytes
        while self.n_bytes > most:
            stalled = next(iter(self._bodies))
            self.left(stalled)
            stalled.refuse()

    def left(self, body: Arriving) -> None:
        """It is complete, or given up."""
        self.n_bytes -= self._bodies.pop(body, 0)


RECEIVING = Receiving()
