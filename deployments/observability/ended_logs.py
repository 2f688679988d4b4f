"""Ended logs: the oldest log files of processes that have ended go, so that a session's folder has a bound.

Ray and Ray Serve rotate the files of each process, and keep those of every process that ever ran: a replica that fails
at each start adds some every few seconds.
"""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MAX_FILES, MAX_BYTES = 1000, 256 * 2**20
"""Of ended processes, all together: as many bytes as one replica's own request log has."""
OF_ONE_PROCESS = (
    "python-core-*",
    "worker-*",
    "serve/replica_*",
    "serve/requests_*",
    "serve/proxy_*",
    "serve/haproxy_*",
)
"""Files that a process has for itself; those that each session has once stay."""
_NUMBER = re.compile(r"\.\d+(?=(\.\w+)?$)")
"""That of an older file: worker.out.1, or python-core-worker.1.log."""


def remove_ended(logs: Path, max_files: int = MAX_FILES, max_bytes: int = MAX_BYTES) -> list[Path]:
    """Remove the oldest files of ended processes in a session's folder `logs` until the rest is within both bounds.

    Returns what it has removed. A file, and what it was rotated to, is one of a living process as long as any process
    has it open.
    """
    files = [(file, status) for file in _files(logs) if (status := _status(file)) is not None]
    if len(files) <= max_files and sum(status.st_size for _, status in files) <= max_bytes:
        return []
    living = _open_files(f"{logs.resolve()}/")
    ended = [(file, status) for file, status in files if _NUMBER.sub("", str(file.resolve())) not in living]
    removed: list[Path] = []
    n_bytes = 0
    for number, (file, status) in enumerate(sorted(ended, key=lambda one: -one[1].st_mtime_ns)):
        n_bytes += status.st_size
        if number >= max_files or n_bytes > max_bytes:
            with suppress(OSError):  # somebody else removed it
                file.unlink()
                removed.append(file)
    return removed


def _files(logs: Path) -> Iterator[Path]:
    for pattern in OF_ONE_PROCESS:
        yield from logs.glob(pattern)


def _status(file: Path) -> os.stat_result | None:
    with suppress(OSError):  # it was rotated meanwhile
        return file.stat()
    return None


def _open_files(start: str) -> set[str]:
    """The paths that begin so of all files that processes of this user have open."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # another user's, or it ended while it was looked at
            for one in (process / "fd").iterdir():
                with suppress(OSError):  # closed meanwhile
                    if (path := os.readlink(one)).startswith(start):
                        found.add(_NUMBER.sub("", path))
    return found
