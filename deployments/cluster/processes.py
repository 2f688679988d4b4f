"""Processes below this one, read from /proc, and the signals that operators send to `sextet serve`."""

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType


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
        """Send SIGKILL, unless it has ended or belongs to another user."""
        if self.is_alive():
            with suppress(ProcessLookupError, PermissionError):
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
    """Wait until `processes` have ended by themselves, for at most `patience_s`; then kill the rest."""
    leave_at = time.monotonic() + patience_s
    while any(one.is_alive() for one in processes) and time.monotonic() < leave_at:
        time.sleep(0.05)
    for one in processes:
        one.kill()


def _read(pid: int) -> Process | None:
    """The running process `pid`; None where it has ended or is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else Process(pid, parent=int(fields[1]), started_at=int(fields[19]))


def assigned_cpus() -> int:
    """The whole CPUs that this replica reserves: Ray tells every worker so, in the variable that OpenMP reads."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(given)) if given.isdecimal() else 1


def resident_bytes() -> int:
    """The memory that this process has of the machine's."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class StopRequested(BaseException):
    """SIGINT, SIGTERM or SIGHUP came."""


class Signals:
    """The first SIGINT, SIGTERM or SIGHUP raises StopRequested in the main thread; SIGUSR1 is remembered.

    Later stop signals do nothing: what is being ended is not interrupted.
    """

    def __init__(self) -> None:
        self.stop_was_requested = False
        self._ending = False
        self._reload = False
        self._stops = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            self._stops.append(signal.SIGHUP)

    def install(self) -> None:
        """Install the handlers. Call it again where a library has installed its own."""
        for number in self._stops:
            signal.signal(number, self._stop)
        signal.signal(signal.SIGUSR1, self._ask_to_reload)

    def ignore_stops(self) -> None:
        """Raise nothing from now on."""
        self._ending = True
        self.install()

    def raise_if_stop_requested(self) -> None:
        """Raise StopRequested again, in case a library swallowed it."""
        if self.stop_was_requested:
            raise StopRequested

    def reload_was_requested(self) -> bool:
        """Whether SIGUSR1 came since the last call."""
        asked, self._reload = self._reload, False
        return asked

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if not self.stop_was_requested and not self._ending:
            self.stop_was_requested = True
            raise StopRequested

    def _ask_to_reload(self, number: int, frame: FrameType | None) -> None:
        self._reload = True
