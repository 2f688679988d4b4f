"""Rest: a replica that has had nothing to do for a while gives back to the system what its peaks have taken.

    largest batches         onnxruntime keeps the memory of the largest run so far, of each session
    crowds, large bodies    glibc keeps freed memory, in each of its arenas (cluster/ray_environment.py)

Both are fast because they keep it, so nothing is given back while requests come. What was given back costs page faults
when it is needed again: a process that has hardly grown keeps it. For the same reason Python searches for garbage in
cycles seldom while requests come.
"""

import asyncio
import gc
import logging
import threading
from collections.abc import Callable

from deployments.cluster.processes import resident_bytes
from deployments.host import give_memory_back

logger = logging.getLogger("ray.serve")
COLLECTED_AFTER = (20_000, 10, 10)  # objects; collections of the youngest; of the young
QUIET_S = 5.0
GROWN_BYTES = 4 * 2**20


class Rest:
    """Of one loaded model; on the event loop, every QUIET_S until `end`."""

    def __init__(self, release: Callable[[], None], visits: Callable[[], tuple[int, int]]) -> None:
        """`release` has the model give memory back, and runs in a thread. `visits`: how many requests have come so far,
        and how many of them are inside.
        """
        collect_seldom()
        self._release, self._visits = release, visits
        self._kept_bytes = resident_bytes()
        self._looked = visits()
        self._giving: threading.Thread | None = None
        self._timer = asyncio.get_running_loop().call_later(QUIET_S, self._look)

    def end(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        before, self._looked = self._looked, self._visits()
        is_quiet = self._looked == before and not self._looked[1]
        is_giving = self._giving is not None and self._giving.is_alive()
        if is_quiet and not is_giving and resident_bytes() > self._kept_bytes + GROWN_BYTES:
            self._giving = threading.Thread(target=self._give_back, name="rest", daemon=True)
            self._giving.start()
        self._timer = asyncio.get_running_loop().call_later(QUIET_S, self._look)

    def _give_back(self) -> None:
        try:
            self._release()
        except Exception:  # the system may have no memory left for that
            logger.exception("the model gives no memory back")
        give_memory_back()
        self._kept_bytes = resident_bytes()


def collect_seldom() -> None:
    """Have Python look for garbage in cycles after so many more objects than its default of 700.

    A collection looks at every object of the requests inside. With a thousand of them inside, a third of a core would
    do nothing else, and hold everything up meanwhile.
    """
    gc.set_threshold(*COLLECTED_AFTER)
