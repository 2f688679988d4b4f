"""Replicas: the processes that serve the tasks on this machine, and their resident memory."""

import re
import threading
from time import perf_counter
from typing import Any

import psutil

SAMPLE_S = 1.0
FIND_S = 10.0  # a replica that the autoscaler adds is found after this time at most
EDGE = 0.1  # of the samples: the first and the last level are the medians of so many


def find(parent: int | None = None) -> dict[int, str]:
    """Replica processes as {process id: task}: Ray names each after its application.

    Only those below the process `parent`, where given: there may be other clusters on the machine.
    """
    candidates = psutil.Process(parent).children(recursive=True) if parent else psutil.process_iter()
    found = {}
    for process in candidates:
        try:
            match = re.match(r"ray::ServeReplica:([a-z-]+):", " ".join(process.cmdline()))
        except psutil.Error:  # it ended, or is not ours to look at
            continue
        if match:
            found[process.pid] = match[1]
    return found


def resident_bytes(process_id: int) -> int | None:
    """None where it has ended."""
    try:
        return int(psutil.Process(process_id).memory_info().rss)
    except psutil.Error:
        return None


class MemoryWatch:
    """Samples the resident memory of a task's replicas, or of all, in a thread from `start` until `stop`."""

    def __init__(self, task: str | None, parent: int | None = None) -> None:
        self._task, self._parent = task, parent
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.samples: dict[int, list[tuple[float, int]]] = {}  # process id -> (seconds since the start, bytes)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def growth(self, after_s: float) -> float | None:
        """The largest growth, as a share, of the replicas that lived from `after_s` to the end; None without any."""
        growths = []
        last_at = max((series[-1][0] for series in self.samples.values()), default=0.0)
        for series in self.samples.values():
            levels = [size for at, size in series if at >= after_s]
            if len(levels) >= 2 and series[0][0] <= after_s and series[-1][0] > last_at - 3 * SAMPLE_S:
                edge = max(1, int(len(levels) * EDGE))
                growths.append(_median(levels[-edge:]) / _median(levels[:edge]) - 1)
        return max(growths, default=None)

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {
                "process": process_id,
                "at_s": [at for at, _ in series],
                "resident_mib": [size / 2**20 for _, size in series],
            }
            for process_id, series in self.samples.items()
        ]

    def _watch(self) -> None:
        started_at = perf_counter()
        find_at = started_at
        while not self._ended.is_set():
            now = perf_counter()
            if now >= find_at:
                for process_id, task in find(self._parent).items():
                    if self._task in (None, task):
                        self.samples.setdefault(process_id, [])
                find_at = now + FIND_S
            for process_id, series in self.samples.items():
                if (size := resident_bytes(process_id)) is not None:
                    series.append((now - started_at, size))
            self._ended.wait(SAMPLE_S)
        self.samples = {process_id: series for process_id, series in self.samples.items() if series}


def _median(sizes: list[int]) -> int:
    return sorted(sizes)[len(sizes) // 2]
