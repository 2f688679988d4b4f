"""Redis: a server for the state of Ray's head, with a password, for the time of a block."""

import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import SextetError

START_S = 20.0
PORT = 6379


class RedisError(SextetError):
    """No Redis runs."""


@dataclass(frozen=True)
class Redis:
    """Where it listens, and its password."""

    address: str
    password: str


@contextmanager
def redis(host: str, folder: Path) -> Iterator[Redis]:
    """A server on `host` that keeps everything in `folder`."""
    if shutil.which("redis-server") is None:
        raise RedisError("redis-server is not installed (Debian's redis-server)")
    password = secrets.token_hex(16)
    command = ["redis-server", "--bind", host, "--port", str(PORT), "--dir", str(folder)]
    command += ["--appendonly", "yes", "--requirepass", password]
    with (folder / "redis.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        give_up_at = time.monotonic() + START_S
        while not _listens(host):
            if process.poll() is not None or time.monotonic() > give_up_at:
                raise RedisError(f"redis-server does not start: {folder / 'redis.log'}")
            time.sleep(0.05)
        yield Redis(f"{host}:{PORT}", password)
    finally:
        process.terminate()
        process.wait(START_S)


def _listens(host: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, PORT)) == 0
