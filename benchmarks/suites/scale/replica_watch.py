"""ReplicaWatch: when the replicas of a cluster came and went, by their processes."""

import json
import threading
import time
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

    @property
    def most(self) -> int:
        return len(self._seen)

    def seconds(self, within_s: float) -> float:
        """Of all replicas, within so long after the beginning."""
        return sum(min(last, within_s) - min(first, within_s) for first, last in self._seen.values())

    def start_s(self, trace: Path) -> float:
        """From the process of a replica to its first request, the mean of those that started; Ray's usual time else."""
        lines = [json.loads(line) for line in trace.read_text(encoding="utf-8").splitlines()]
        firsts: dict[str, float] = {}
        for line in lines:
            began = datetime.fromisoformat(line["time"]).timestamp() - line["total_s"] - self._began_time
            firsts[line["replica"]] = min(began, firsts.get(line["replica"], began))
        late = sorted(at for at, _ in self._seen.values() if at > 2 * SAMPLE_S)
        answered = sorted(firsts.values())[len(firsts) - len(late) :] if late else []
        return sum(there - at for at, there in zip(late, answered, strict=True)) / len(late) if late else USUAL_START_S

    def _watch(self) -> None:
        while not self._ended.is_set():
            now = time.perf_counter() - self._began_at
            for process_id in find(self._parent):
                self._seen.setdefault(process_id, [now, now])[1] = now
            self._ended.wait(SAMPLE_S)
