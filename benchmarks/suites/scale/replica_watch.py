"""ReplicaWatch: when the replicas of a cluster began, answered first and ended.

Ray Serve's controller logs when it asked for a replica and which process that became:

    INFO 2026-01-31 12:00:00,123 controller 42 -- Replica(id='3yih0fwq', ...) started successfully on node '...' after
    3.7s (PID: 3517). ...

A process that drains is there until it is gone, which nobody logs: processes are sampled.
"""

import json
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from benchmarks.replicas import find

SAMPLE_S = 0.25
USUAL_START_S = 8.0
_STARTED = re.compile(
    r"^INFO (\S+ \S+) controller \d+ -- Replica\(id='(\w+)', deployment='([\w.-]+)'.* started successfully .* after "
    r"([\d.]+)s \(PID: (\d+)\)"
)


@dataclass(frozen=True)
class Life:
    """A replica: when it was asked for, in seconds since 1970, and its process."""

    replica: str
    began_at: float
    process_id: int


def lives(controller_log: str, deployment: str) -> list[Life]:
    """The replicas of a deployment in the log of Ray Serve's controller, each once."""
    found: dict[str, Life] = {}
    for line in controller_log.splitlines():
        match = _STARTED.match(line)
        if match and match[3] == deployment and match[2] not in found:
            started_at = datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S,%f").timestamp()
            found[match[2]] = Life(match[2], started_at - float(match[4]), int(match[5]))
    return list(found.values())


def first_served(request_log: str) -> dict[str, float]:
    """When the first request of each replica arrived, in seconds since 1970."""
    firsts: dict[str, float] = {}
    for line in request_log.splitlines():
        entry = json.loads(line)
        arrived_at = datetime.fromisoformat(entry["time"]).timestamp() - entry["total_s"]
        firsts[entry["replica"]] = min(arrived_at, firsts.get(entry["replica"], arrived_at))
    return firsts


class ReplicaWatch:
    """Samples the processes of replicas, four times a second, in a thread of its own; `began_at` is when it began."""

    def __init__(self, parent: int) -> None:
        self._parent, self._ended = parent, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.last_seen: dict[int, float] = {}
        self.began_at = 0.0

    def __enter__(self) -> "ReplicaWatch":
        self.began_at = time.time()
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.is_set():
            self.last_seen |= dict.fromkeys(find(self._parent), time.time())
            self._ended.wait(SAMPLE_S)


def replica_seconds(found: list[Life], last_seen: Mapping[int, float], since: float, within_s: float) -> float:
    """Of all replicas, from `since` on for so long."""
    until = since + within_s
    ends = [min(last_seen.get(one.process_id, since), until) for one in found]
    return sum(max(0.0, end - max(one.began_at, since)) for one, end in zip(found, ends, strict=True))


def mean_start_s(found: list[Life], served: Mapping[str, float], since: float) -> float:
    """From the moment at which a replica was asked for to its first request, the mean of those that began after
    `since`; a usual time where none did.
    """
    started = [served[one.replica] - one.began_at for one in found if one.began_at > since and one.replica in served]
    return sum(started) / len(started) if started else USUAL_START_S
