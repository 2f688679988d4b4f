"""Guardian: a small process beside the launcher. Where the launcher is killed, it ends all that belongs to its cluster.

    python -IS guardian.py FOLDER

A script of the standard library alone: it is there before anything else starts, in a session of its own, and holds
eight megabytes. It reads its standard input, which only the launcher writes to: STOPPED, or nothing where the launcher
was killed. Every process of the cluster inherits MARK, so that it is found whoever its parent has become.
"""

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

MARK = "SEXTET_CLUSTER"
"""The environment variable of all processes of a cluster: its folder, whose name no other cluster has."""
STOPPED = b"stopped"
LONGEST_S = 30.0  # how long processes may take to die; one that waits for a disk does not die at once
KILLED = "sextet: the launcher was killed; what it had started has ended too"


class Guardian:
    """The launcher's end. `stand_down` when everything has ended; until then the guardian acts if this process dies."""

    def __init__(self, folder: Path) -> None:
        """Marks this process, and all that it starts from now on, as the cluster in `folder`."""
        self._process = subprocess.Popen(
            [sys.executable, "-IS", __file__, str(folder)], stdin=subprocess.PIPE, start_new_session=True
        )
        self.pid = self._process.pid
        os.environ[MARK] = str(folder)

    def stand_down(self) -> None:
        """End it; it does nothing more."""
        del os.environ[MARK]
        with suppress(BrokenPipeError):  # somebody killed it
            self._process.communicate(STOPPED)


def of_cluster(folder: Path) -> Iterator[int]:
    """The ids of all processes that belong to the cluster in `folder`, other than this one."""
    for process in Path("/proc").glob("[0-9]*"):
        pid = int(process.name)
        with suppress(OSError):  # another user's, or it ended while it was looked at
            if pid != os.getpid() and (_is_marked(process, folder) or _writes_to(process, folder)):
                yield pid


def _is_marked(process: Path, folder: Path) -> bool:
    return f"{MARK}={folder}".encode() in (process / "environ").read_bytes().split(b"\0")


def _writes_to(process: Path, folder: Path) -> bool:
    """Ray's processes give themselves titles, which are written over their environment; each writes a log."""
    for one in (process / "fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            if os.readlink(one).startswith(f"{folder}/") and one.lstat().st_mode & stat.S_IWUSR:
                return True
    return False


def end(folder: Path, patience_s: float = 0.0, is_hurried: Callable[[], bool] = lambda: False) -> None:
    """Return when no process of the cluster is left.

    They are killed unless they end within `patience_s`, or once `is_hurried` says so.
    """
    kill_at = time.monotonic() + patience_s
    while (pids := list(of_cluster(folder))) and time.monotonic() < kill_at + LONGEST_S:
        for pid in pids if is_hurried() or time.monotonic() >= kill_at else ():
            with suppress(OSError):  # it ended meanwhile
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def main(folder: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # it stays as long as the launcher
        signal.signal(number, signal.SIG_IGN)
    if sys.stdin.buffer.read() == STOPPED:
        return
    end(folder)
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # the terminal is gone too
        print(KILLED, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
