"""Calibration: what a start beside busy processes costs a server after they are gone.

A server that measures its machine while it starts must not keep for life what it saw then.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from statistics import mean

from benchmarks import Say
from benchmarks.suites.cluster import Running

NEIGHBOURS = 4
SPIN = "while True: pass"


def calibration_survives(
    served: Callable[[], AbstractContextManager[Running]], rates: Callable[[Running], list[float]], say: Say
) -> float:
    """What `rates` measures of a server that started beside busy processes, which then ended, over a quiet start."""
    with beside(NEIGHBOURS) as stop, served() as cluster:
        stop()
        noisy = rates(cluster)
    with served() as cluster:
        quiet = rates(cluster)
    shown = ", ".join(f"{one:.1f} of {other:.1f}/s" for one, other in zip(noisy, quiet, strict=True))
    say(f"started beside {NEIGHBOURS} busy processes, over a quiet start: {shown}")
    return mean(one / other for one, other in zip(noisy, quiet, strict=True))


@contextmanager
def beside(count: int) -> Iterator[Callable[[], None]]:
    """So many busy processes, until the function that is given is called, or the block ends."""
    neighbours = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(count)]

    def stop() -> None:
        for one in neighbours:
            one.kill()
        for one in neighbours:
            one.wait()

    try:
        yield stop
    finally:
        stop()
