"""Fleet: how many replicas of each application there are while something is measured, those that start included."""

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

import psutil

SAMPLE_S = 0.5


class Fleet:
    """Counts processes below `parent`, twice a second."""

    def __init__(self, parent: int, applications: Sequence[str]) -> None:
        self._parent, self._applications = psutil.Process(parent), applications
        self.samples: list[tuple[float, dict[str, int]]] = []
        """Seconds since the start, and the replicas of each application."""

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While the block runs."""
        ended = threading.Event()
        thread = threading.Thread(target=self._watch, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def replica_seconds(self, application: str) -> float:
        """Of all samples, each standing until the next."""
        pairs = zip(self.samples, self.samples[1:], strict=False)
        return sum((later - at) * counts[application] for (at, counts), (later, _) in pairs)

    def count(self) -> dict[str, int]:
        """The replicas that there are now."""
        counts = dict.fromkeys(self._applications, 0)
        for process in self._parent.children(recursive=True):
            try:
                found = re.match(r"ray::ServeReplica:([\w.-]+):", " ".join(process.cmdline()))
            except psutil.Error:  # it ended while it was looked at
                continue
            if found and found[1] in counts:
                counts[found[1]] += 1
        return counts

    def _watch(self, ended: threading.Event) -> None:
        began_at = perf_counter()
        while not ended.wait(SAMPLE_S):
            self.samples.append((perf_counter() - began_at, self.count()))
