"""The admin socket of an HAProxy process: one command, one answer. The standard library alone (rewrite.py)."""

import socket
from functools import partial
from pathlib import Path


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
