"""Drain: how the cluster's HAProxy processes stop taking requests and let those inside finish."""

import time
from contextlib import suppress
from pathlib import Path

from deployments.ingress.admin import command
from deployments.ingress.rewrite import Lines

DRAINING = "proc.draining"
"""A variable of the HAProxy process, set through its admin socket when the cluster ends."""


def draining() -> Lines:
    """Clients that keep their connection could otherwise send requests until the cluster has ended."""
    return Lines(frontend=(f"http-after-response set-header connection close if {{ var({DRAINING}) -m bool }}",))


def drain(folder: Path, limit_s: float) -> None:
    """Accept no more connections, close each after its next answer, and wait until no request is inside.

    Waits for at most `limit_s`.

    `folder` holds the configurations and admin sockets of the cluster's HAProxy processes. Without one, this returns
    at once.
    """
    leave_at = time.monotonic() + limit_s
    admin_sockets = list(folder.rglob("admin.sock"))
    for admin_socket in admin_sockets:
        # HAProxy 2.8 calls `set var` experimental.
        command(admin_socket, f"experimental-mode on; disable frontend http_frontend; set var {DRAINING} bool(true)")
    while time.monotonic() < leave_at and (
        any(_requests_inside(command(admin_socket, "show sess")) for admin_socket in admin_sockets)
        or _running(folder) > len(admin_sockets)
    ):
        time.sleep(0.05)


def _running(folder: Path) -> int:
    """How many HAProxy processes run on configurations in `folder`.

    At each reload the new process takes over the admin socket. The old one cannot be asked any more, and runs until its
    requests are answered.
    """
    option, count = f"\0-f\0{folder}/".encode(), 0
    for command_line in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it ended while it was looked at
            count += option in command_line.read_bytes()
    return count


def _requests_inside(sessions: str) -> bool:
    """Whether a request arrives or is being answered, from HAProxy's `show sess`, which leaves idle connections out."""
    return " fe=http_frontend " in sessions
