"""ReplicaWatch: when the replicas of a cluster came and went, by their processes."""

import json
import threading
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from benchmarks.replicas import find

SAMPLE_S = 0.25
USUAL_START_S = 8.0


class ReplicaWatch:
    """Counts the processes of replicas, four times a second, in a thread of its own."""

    def __init__(self, parent: int) -> None:
        self._parent, self._ended = parent, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._seen: dict[int, list[float]] = {}  # process: when it was seen first and last
        self._began_at = self._began_time = 0.0

    def __enter__(self) -> "ReplicaWatch":
        self._began_at, self._began_time = time.perf_counter(), time.time()
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()

    def count(self) -> int:
        """How many there were, whenever."""
        return len(self._seen)

    def seconds(self, within_s: float) -> float:
        """Of all replicas, within so long after the beginning."""
        return sum(min(last, within_s) - min(first, within_s) for first, last in self._seen.values())

    def start_s(self, log: Path) -> float:
        """How long starts took, from the process of a replica to its first request in the log."""
        firsts: dict[str, float] = {}
        for line in log.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            began = datetime.fromisoformat(entry["time"]).timestamp() - entry["total_s"] - self._began_time
            firsts[entry["replica"]] = min(began, firsts.get(entry["replica"], began))
        return mean_start_s([first for first, _ in self._seen.values()], list(firsts.values()))

    def _watch(self) -> None:
        while not self._ended.is_set():
            now = time.perf_counter() - self._began_at
            for process_id in find(self._parent):
                self._seen.setdefault(process_id, [now, now])[1] = now
            self._ended.wait(SAMPLE_S)


def mean_start_s(appeared_s: Sequence[float], served_s: Sequence[float]) -> float:
    """The mean time from the appearance of a process to its first request, of those that were not there at first; a
    usual one where all were. Replicas are asked in the order in which they appear.
    """
    late = sorted(at for at in appeared_s if at > 2 * SAMPLE_S)
    served = sorted(served_s)[len(appeared_s) - len(late) :]
    started = [there - at for at, there in zip(late, served, strict=False)]
    return sum(started) / len(started) if started else USUAL_START_S
