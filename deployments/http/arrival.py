"""Arrival: when the ingress had read the head of a request, by the time stamp that it adds.

    x-request-start: 1764440000123 3e2a...    milliseconds since 1970, and the boot id of the machine whose clock it is

A request waits in HAProxy, in sockets and in Ray Serve before the handler of a replica runs. Its deadline begins before
all of that. HAProxy replaces a client's own header (deployments/ingress/overload.py). Where a client can reach a server
of Ray Serve directly, a false stamp shortens its own deadline and does nothing else.
"""

import math
import time
from functools import cache
from pathlib import Path

from starlette.types import Scope

START_HEADER = "x-request-start"
LOAD_HEADER = "x-sextet-load"
_START = START_HEADER.encode()
FOREIGN_SHARE = 0.5
"""Of a request's time that the clock of another machine may take at most: it may differ from this one's."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@cache
def clock() -> str:
    """Names the clock of this machine: two processes with the same name read the same clock, in containers too."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


def waited_s(scope: Scope, timeout_s: float = math.inf) -> float:
    """Seconds since the ingress had read the head, of the `timeout_s` that a client gives; 0.0 where no ingress said.

    A stamp of the future counts as now. One of another machine counts up to half of `timeout_s`.
    """
    given = next((value for name, value in scope["headers"] if name == _START), b"").split()
    if len(given) != 2 or not given[0].isdigit() or len(given[0]) > 15:
        return 0.0
    elapsed_s = max(0.0, time.time() - int(given[0]) / 1000)
    return min(elapsed_s, timeout_s if given[1].decode("latin-1") == clock() else FOREIGN_SHARE * timeout_s)


def load_header(expected_s: float, max_queue_s: float, row_s: float) -> tuple[bytes, bytes]:
    """What a replica tells the ingress with every answer, which refuses by it and removes it: how long the smallest
    request would take that arrived now (ms), how long one without a deadline may wait (ms), and by how long each
    request inside delays it at least (us).
    """
    return LOAD_HEADER.encode(), b"%d/%d/%d" % (1e3 * expected_s, 1e3 * max_queue_s, 1e6 * row_s)
