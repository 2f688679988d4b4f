"""Keys: who may ask. A file has a line for each key, with its SHA-256 and never the key itself.

    SHA256 NAME:PER_MINUTE:CLASS:TASKS

HAProxy reads such a file as a map, and the fields of its values by their number (access.py). PER_MINUTE 0 is no limit,
TASKS `*` all of them, else `|translation|summarization|`.

Replicas know an ingress of their own cluster by a secret. It follows from Ray's token, which every node of a cluster
has and whose holders can run code there anyway: nothing more has to be given to nodes. A header costs a request less
than mutual TLS, which Ray's servers cannot speak to HAProxy.

The standard library alone: node.py runs without packages.
"""

import fcntl
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PREFIX = "sextet_"  # by which scanners of leaked secrets know a key
CLASSES = ("interactive", "bulk")
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
MAX_PER_MINUTE = 1_000_000
_LINE = re.compile(rf"([0-9a-f]{{64}}) ({NAME}):([0-9]{{1,7}}):({'|'.join(CLASSES)}):([*]|[|](?:[a-z0-9-]+[|])+)")
HEAD = "# Written by `sextet keys`: SHA-256 of each key, its name, requests per minute, class and tasks.\n"


class KeysError(Exception):
    """A file of keys that cannot be read, or a key that cannot be added or revoked."""


@dataclass(frozen=True)
class Key:
    """What one key allows."""

    digest: str
    name: str
    per_minute: int = 0
    kind: str = CLASSES[0]
    tasks: tuple[str, ...] = ()
    """All of them if empty."""

    @classmethod
    def read(cls, line: str) -> "Key":
        """Raises ValueError."""
        if (found := _LINE.fullmatch(line)) is None:
            raise ValueError(line)
        digest, name, per_minute, kind, tasks = found.groups()
        return cls(digest, name, int(per_minute), kind, tuple(tasks.strip("*|").split("|")) if tasks != "*" else ())

    def line(self) -> str:
        tasks = f"|{'|'.join(self.tasks)}|" if self.tasks else "*"
        return f"{self.digest} {self.name}:{self.per_minute}:{self.kind}:{tasks}\n"


def new_key() -> tuple[str, str]:
    """A key and its digest."""
    key = PREFIX + secrets.token_urlsafe(32)
    return key, hashlib.sha256(key.encode()).hexdigest()


def read_keys(file: Path) -> list[Key]:
    """The keys of a file; raises KeysError for the first line that is none."""
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        raise KeysError(f"{file} does not exist; `sextet keys add NAME` makes it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise KeysError(f"{file} cannot be read: {error}") from None
    keys = []
    for number, line in enumerate(lines, start=1):
        if line and not line.startswith("#"):
            try:
                keys.append(Key.read(line))
            except ValueError:
                raise KeysError(f"{file}, line {number}: not a line of `sextet keys`") from None
    return keys


def add(file: Path, key: Key) -> None:
    """Raises KeysError where the name is taken."""
    with _changing(file) as keys:
        if any(one.name == key.name for one in keys):
            raise KeysError(f"{file} has a key {key.name!r}; revoke it, or choose another name")
        keys.append(key)


def revoke(file: Path, name: str) -> None:
    """Raises KeysError where there is no such key."""
    with _changing(file) as keys:
        kept = [one for one in keys if one.name != name]
        if len(kept) == len(keys):
            raise KeysError(f"{file} has no key {name!r}; it has: {', '.join(one.name for one in keys) or 'none'}")
        keys[:] = kept


@contextmanager
def _changing(file: Path) -> Iterator[list[Key]]:
    """The keys of a file, which are written when the block ends; one process at a time."""
    with file.with_name(f".{file.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keys = read_keys(file) if file.exists() else []
        yield keys
        write_private(file, text_of(keys).encode())


def text_of(keys: list[Key]) -> str:
    """The file of these keys."""
    return HEAD + "".join(one.line() for one in keys)


def shared_secret() -> str:
    """Empty where Ray asks for no token, or no HAProxy runs: then replicas answer everybody who reaches them."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token" or os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "1":
        return ""
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    if not token:
        named = os.environ.get("RAY_AUTH_TOKEN_PATH")
        try:
            token = (Path(named) if named else Path.home() / ".ray" / "auth_token").read_text(encoding="utf-8").strip()
        except OSError:
            return ""
    return hmac.new(token.strip().encode(), b"sextet ingress", hashlib.sha256).hexdigest() if token else ""


def write_private(file: Path, content: bytes) -> None:
    """Write a file whole or not at all: somebody may be reading it, and the disk may be full."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as opened:
            opened.write(content)
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
