"""Lines: what the concerns of the ingress add to Ray Serve's configuration of HAProxy, and `Settings`, all of it.

A line may have marks, such as <application>, for what only the written file knows: rewrite.py replaces them. The
standard library alone, as in all that runs at a reload.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from deployments.ingress.keys import write_private

NO_LOG = "no log"
"""Of `defaults`: the frontends log nothing, either. Backends log which servers come and go."""
NODE, APPLICATION, PREFIX = "<node>", "<application>", "<prefix>"
"""In a line: the folder of the file, which is this node's own; an application's name and path prefix."""
TASK, MODELS, MODEL, MODEL_PREFIX = "<task>", "<models>", "<model>", "<model prefix>"
"""In a line of an application: its task. In one of a task with several models: the names of those beside the default;
one of them, and its prefix. In one of the frontend: the name by which other protocols ask for an application.
"""
SEPARATOR = "."
"""Between the task and the name in the name of an application of another model than the default (config.py)."""
BACKEND, BACKEND_NUMBER, SERVER, SERVER_NUMBER = "<backend>", "<backend number>", "<server>", "<server number>"
"""In a line of a backend: its name; a number for the name of a variable; the same of a server."""
SECRET = "<secret>"
"""In a line: what replicas know this ingress by (keys.py)."""
CLOCK = "<clock>"
"""In a line: the boot id of this machine (deployments/http/request.py)."""
OWN_SOCKET = "own"
OWN_BIND = f"bind unix@{NODE}/ingress.sock mode 600 name {OWN_SOCKET}"
"""A socket of the HTTP frontend that only the cluster's owner can open, as the admin socket: it needs no key."""


@dataclass(frozen=True)
class Alias:
    """`root` and every path below it are, for clients, `below` and the paths below it of a task's application."""

    root: str
    task: str
    below: str


@dataclass(frozen=True)
class Lines:
    """What one concern adds to the file. `+` puts several together, in their order.

    In `process` and `defaults` a line takes the place of Ray's lines that set the same.
    """

    process: tuple[str, ...] = ()
    """Of the section `global`."""
    defaults: tuple[str, ...] = ()
    """Of the section `defaults`: what holds for every frontend and every backend."""
    frontend: tuple[str, ...] = ()
    """Before Ray's rules of the HTTP frontend: paths are as clients sent them. A line that names a MODEL is repeated
    for each application of a task.
    """
    grpc: tuple[str, ...] = ()
    """Before Ray's rules of the gRPC frontend, where there is one."""
    application: tuple[str, ...] = ()
    """After `frontend` and the aliases, once for each application but the one at `/`: paths are the application's."""
    several: tuple[str, ...] = ()
    """After the aliases, once for each task with several models; lines in a row that name one are repeated for each."""
    replica: tuple[str, ...] = ()
    """Before an application's lines, once for each of its replicas."""
    absent: tuple[str, ...] = ()
    """After the aliases, for each application that is configured and has no backend yet; the condition follows."""
    gateway: tuple[str, ...] = ()
    """After all of these, where the gateway is at `/`."""
    backend: tuple[str, ...] = ()
    """Before Ray's lines of each backend of an application. Lines in a row that name a server are repeated for each."""
    nowhere: tuple[str, ...] = ()
    """In place of Ray's answer where no application has the path."""
    sections: tuple[str, ...] = ()
    """Sections of their own, each in one string."""

    def __add__(self, other: "Lines") -> "Lines":
        return Lines(**{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(self)})


@dataclass(frozen=True)
class GrpcLines:
    """What the frontend of gRPC and its backends consist of (grpc/sections.py); nothing without a `port`."""

    port: int | None = None
    bind_options: str = "proto h2"
    frontend: tuple[str, ...] = ()
    """What comes first."""
    several: tuple[str, ...] = ()
    """Then, once for each task with several models, as in Lines."""
    application: tuple[str, ...] = ()
    """Then, once for each application of a task; MODEL is the name by which requests ask for it."""
    rest: tuple[str, ...] = ()
    """At last; MODELS are all of these names."""
    backend: tuple[str, ...] = ()
    """Before Ray's lines of each backend, as in Lines."""
    nowhere: tuple[str, ...] = ()
    """Of the backend of calls for an application that is not there."""


@dataclass(frozen=True)
class Settings:
    """What the rewritten configuration has beside what Ray Serve wrote."""

    lines: Lines = Lines()
    aliases: tuple[Alias, ...] = ()
    address: str = ""
    """Where the HTTP frontend listens, in place of what Ray wrote; empty for Ray's own."""
    bind_options: str = ""
    """Of the HTTP frontend's address."""
    keys: str = ""
    """The operator's file of keys."""
    certificate: tuple[str, ...] = ()
    """The operator's files of the certificate and its key."""
    client_ca: str = ""
    """The operator's file of the authority of clients."""
    traffic: str = ""
    """The operator's file of shares (traffic.py)."""
    order: tuple[str, ...] = ()
    """Applications whose lines come first, in this order."""
    sleeping: tuple[str, ...] = ()
    """Applications that may have no replica: Ray Serve's fallback proxy holds requests until there is one."""
    configured: dict[str, str] = field(default_factory=dict)
    """The path prefix of each application of cluster.yaml, by its name: what is not there yet is no 404."""
    adapters: dict[str, str] = field(default_factory=dict)
    """The application of the base of each adapter of cluster.yaml, by the adapter's name."""
    hard_stop_s: int = 0
    """How long a process may live that a reload has replaced; 0 for what Ray wrote."""
    grpc: GrpcLines = GrpcLines()

    def write(self, file: Path) -> None:
        """For node.py to read."""
        write_private(file, json.dumps(asdict(self)).encode())

    @classmethod
    def read(cls, file: Path) -> "Settings":
        given: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        lines = Lines(**_tuples(given["lines"]))
        aliases = tuple(Alias(**alias) for alias in given["aliases"])
        return cls(**_tuples(given) | {"lines": lines, "aliases": aliases, "grpc": GrpcLines(**_tuples(given["grpc"]))})


def _tuples(given: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists where our objects have tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
