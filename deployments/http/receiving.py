"""Receiving: the memory that bodies take of which some is still to come. A client decides how long that is.

What HAProxy's buffer holds comes as a whole (deployments/ingress/limits.py) and is never counted here.
"""

import asyncio

MOST_BYTES, MOST_BODIES = 128 * 2**20, 8
"""What a process holds at most of bodies that are not complete: so many bytes, or the largest body so many times."""
STALLED = "bodies that are not complete hold too much memory, and this one has not grown for longest"


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

    def grown(self, body: Arriving, n_bytes: int, max_bytes: int) -> None:
        """`body` holds `n_bytes` now; it may have `max_bytes`."""
        self.left(body)
        if not n_bytes:
            return
        self._bodies[body] = n_bytes
        self.n_bytes += n_bytes
        while self.n_bytes > max(MOST_BYTES, MOST_BODIES * max_bytes):
            stalled = next(iter(self._bodies))
            self.left(stalled)
            stalled.refuse()

    def left(self, body: Arriving) -> None:
        """It is complete, or given up."""
        self.n_bytes -= self._bodies.pop(body, 0)


RECEIVING = Receiving()
