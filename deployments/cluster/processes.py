"""Processes that this one started, directly or not, read from /proc: to end what a shutdown left behind."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """`started_at` (clock ticks since boot) tells it from a later process with the same id."""

    pid: int
    parent: int
    started_at: int

    def is_alive(self) -> bool:
        now = _read(self.pid)
        return now is not None and now.started_at == self.started_at

    def kill(self) -> None:
        if self.is_alive():
            os.kill(self.pid, signal.SIGKILL)


def descendants(pid: int) -> list[Process]:
    """All processes below `pid`, parents before children."""
    everyone = [found for entry in Path("/proc").glob("[0-9]*") if (found := _read(int(entry.name)))]
    below, parents = [], [pid]
    while parents:
        children = [one for one in everyone if one.parent in parents]
        below += children
        parents = [one.pid for one in children]
    return below


def end(processes: list[Process], patience_s: float) -> None:
    """Wait for processes that are about to end, then kill the rest."""
    leave_at = time.monotonic() + patience_s
    while any(one.is_alive() for one in processes) and time.monotonic() < leave_at:
        time.sleep(0.05)
    for one in processes:
        one.kill()


def _read(pid: int) -> Process | None:
    """A process that runs, None for one that is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else Process(pid, parent=int(fields[1]), started_at=int(fields[19]))
