"""Workers: the threads in which a scheduler runs batches."""

import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue


class Workers:
    """Threads on a SimpleQueue: an executor's future for each batch costs more than the rest of its dispatch."""

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.put: Callable[[Callable[[], None]], None] = self._work.put
        """Run work in the thread that is free first."""
        self.threads: list[threading.Thread] = []

    def grow(self, count: int) -> None:
        """Start threads until there are `count`."""
        for number in range(len(self.threads), count):
            thread = threading.Thread(target=_run, args=(self._work,), name=f"forward-{number}", daemon=True)
            thread.start()
            self.threads.append(thread)
            weakref.finalize(self, self._work.put, None)  # ends the thread of a scheduler that was dropped

    def end(self) -> None:
        """The threads end once they have run what was put."""
        for _ in self.threads:
            self._work.put(None)
        self.threads = []


def _run(queue: "SimpleQueue[Callable[[], None] | None]") -> None:
    """Run work until the queue holds None; while it waits, the thread holds no reference to the scheduler."""
    while (work := queue.get()) is not None:
        work()
        del work
