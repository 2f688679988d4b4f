"""Background: the threads that load and warm a model leave the cores to those that answer, of this process and others.

Linux gives each thread a niceness of its own, and a new thread that of the one that starts it: the threads with which
ONNX Runtime will compute start while a model is loaded. They get their niceness back once it is warm. The system lets
root, CAP_SYS_NICE and processes below their RLIMIT_NICE do that (deploy/sextet.service and deploy/compose.yaml see to
it); for others loading keeps its priority, as threads that answered slowly for ever would be worse.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NICER = 5
"""Where cores are scarce, a thread at normal priority gets three times the time of one that is so much nicer."""
LEAST = 19
_THREADS = Path("/proc/self/task")


@contextmanager
def in_background() -> Iterator[None]:
    """Run the block at low priority, in this thread and those that it starts. They have normal priority afterwards."""
    thread = threading.get_native_id()
    usual = os.getpriority(os.PRIO_PROCESS, thread)
    low = usual + NICER
    if low > LEAST or not _THREADS.is_dir() or not _comes_back(usual, low):
        yield
        return
    before = _threads()
    os.setpriority(os.PRIO_PROCESS, thread, low)
    try:
        yield
    finally:
        for one in {thread, *(_threads() - before)}:
            with suppress(ProcessLookupError):  # it has ended
                if os.getpriority(os.PRIO_PROCESS, one) == low:
                    os.setpriority(os.PRIO_PROCESS, one, usual)


def _threads() -> set[int]:
    return {int(one.name) for one in _THREADS.iterdir()}


def _comes_back(usual: int, low: int) -> bool:
    """Whether a thread that was made nicer may become what it was: a thread that does nothing else tries it."""
    came_back = False

    def attempt() -> None:
        nonlocal came_back
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, low)
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, thread, usual)
            came_back = True

    trying = threading.Thread(target=attempt, name="nice")
    trying.start()
    trying.join()
    return came_back
