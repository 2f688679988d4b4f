"""Drain: how the cluster's HAProxy processes stop taking requests and let those inside finish.

1. No connection is accepted any more, and each that is kept closes after its next answer.
2. Once nothing is inside, or after GRACE_S, a further request on a connection that is kept is answered with 503.
3. What is inside has the rest of the time.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from deployments.ingress.haproxy import command
from deployments.ingress.lines import Lines

DRAINING, REFUSING = "proc.draining", "proc.refusing"
"""Variables of the HAProxy process, set through its admin socket when the cluster ends."""
FRONTENDS = ("http_frontend", "sextet_grpc")
GRACE_S = 4.0
POLL_S = 0.05


def draining() -> Lines:
    """Clients that keep their connection could otherwise send requests until the cluster has ended."""
    from deployments.http.errors import UnavailableError  # imports starlette, which the end of a cluster needs not
    from deployments.ingress.limits import page

    ending = page(503, "shutting_down", UnavailableError("the cluster is shutting down", retry_after_s=5.0))
    return Lines(
        frontend=(
            f"http-after-response set-header connection close if {{ var({DRAINING}) -m bool }}",
            f"http-request return status 503 {ending} if {{ var({REFUSING}) -m bool }}",
        )
    )


def drain(
    folder: Path,
    limit_s: float,
    is_hurried: Callable[[], bool] = lambda: False,
    on_refusing: Callable[[], object] = lambda: None,
) -> None:
    """Take no more requests, and wait until none is inside: for at most `limit_s`, or until `is_hurried`.

    `on_refusing` is called where requests are still inside when further ones are refused. `folder` holds the
    configurations and admin sockets of the cluster's HAProxy processes. Without one, this returns at once.
    """
    admin_sockets = list(folder.rglob("admin.sock"))
    began_at = time.monotonic()

    def wait(until: float) -> bool:
        """Whether nothing is inside."""
        while is_inside := _is_inside(folder, admin_sockets):
            if is_hurried() or time.monotonic() > until:
                break
            time.sleep(POLL_S)
        return not is_inside

    def set_variable(name: str) -> str:
        return f"experimental-mode on; set var {name} bool(true)"  # HAProxy 2.8 calls `set var` experimental

    for admin_socket in admin_sockets:
        closed = "; ".join(f"disable frontend {frontend}" for frontend in FRONTENDS)
        command(admin_socket, f"{closed}; {set_variable(DRAINING)}")
    wait(began_at + min(GRACE_S, limit_s))
    for admin_socket in admin_sockets:
        command(admin_socket, set_variable(REFUSING))
    if not wait(time.monotonic()):
        on_refusing()
        wait(began_at + limit_s)


def _is_inside(folder: Path, admin_sockets: list[Path]) -> bool:
    """Whether a request arrives or is being answered."""
    sessions = (command(admin_socket, "show sess") for admin_socket in admin_sockets)
    # `show sess` leaves idle connections out.
    return any(f" fe={frontend} " in one for one in sessions for frontend in FRONTENDS) or _running(folder) > len(
        admin_sockets
    )


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
