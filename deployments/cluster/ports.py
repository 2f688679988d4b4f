"""Ports of this machine: whether the ingress can listen, and who listens already."""

import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigurationError

MAX_PORT = 65535
_LISTENS = "0A"  # a state of /proc/net/tcp


def check_port(host: Any, port: Any, chosen_by: str = "--port") -> None:
    """Raise ConfigurationError where nothing can listen at this address; it names who listens there, and by which
    option another port is chosen.
    """
    if not isinstance(host, str):
        raise ConfigurationError(f"http_options.host is {host!r}; allowed: an address")
    if not isinstance(port, int) or not 1 <= port <= MAX_PORT:
        raise ConfigurationError(f"http_options.port is {port!r}; allowed: 1 to {MAX_PORT}")
    try:
        family = socket.getaddrinfo(host, port)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        found = ", ".join(listeners(port))
        who = f" ({found})" if found else ""
        hint = f"stop what is there{who}, or choose another with {chosen_by}"
        raise ConfigurationError(f"cannot listen on {host} port {port} ({reason}); {hint}") from None


def listeners(port: int) -> list[str]:
    """The processes that listen on a TCP port, as `NAME, pid PID`. Those of other users stay unknown."""
    sockets = set(_listening_sockets(port))
    found = []
    for process in Path("/proc").glob("[0-9]*") if sockets else ():
        with suppress(OSError):  # it ended, or belongs to another user
            if any(_inode(file) in sockets for file in (process / "fd").iterdir()):
                found.append(f"{(process / 'comm').read_text().strip()}, pid {process.name}")
    return sorted(found)


def _listening_sockets(port: int) -> Iterator[str]:
    """Inodes of sockets, from the kernel's tables for IPv4 and IPv6."""
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                columns = line.split()
                if columns[3] == _LISTENS and int(columns[1].rpartition(":")[2], 16) == port:
                    yield columns[9]


def _inode(file: Path) -> str | None:
    with suppress(OSError):  # it was closed meanwhile
        if found := re.fullmatch(r"socket:\[(\d+)\]", str(file.readlink())):
            return found[1]
    return None
