"""`sextet serve` as a process: what the cluster tests start, ask and stop."""

import contextlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from deployments.cluster.ray_environment import spare_port
from deployments.config import cut_down, read_yaml, user_configs
from deployments.ingress.config import GATEWAY

LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
READY_S = 180.0
STOP_S = 60.0
SHIPPED = Path(__file__).parents[2] / "cluster.yaml"


def write_cluster(folder: Path, models: Mapping[str, Path], **changes: Mapping[str, Any]) -> Path:
    """The shipped cluster.yaml cut down to `models`, whose paths become relative to the file; changes by task."""
    cluster = cut_down(read_yaml(SHIPPED), [*models, GATEWAY])
    for name, user_config in user_configs(cluster).items():
        (folder / name).symlink_to(models[name])
        user_config |= {"model": name, "threads": 1, **changes.get(name.replace("-", "_"), {})}
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(cluster), encoding="utf-8")
    return path


def set_ingress(content: Mapping[str, Any], **settings: object) -> None:
    """Write the ingress of a cluster.yaml, which `write_cluster` leaves as it is shipped, in place."""
    (gateway,) = next(one for one in content["applications"] if one["name"] == GATEWAY)["deployments"]
    gateway["user_config"] = {"ingress": settings}


def keys(folder: Path, *arguments: str) -> str:
    """What `sextet keys` prints in `folder`."""
    command = [sys.executable, "-m", "sextet", "keys", *arguments]
    return subprocess.run(
        command, cwd=folder, env=clean_environment(), capture_output=True, text=True, check=True
    ).stdout.strip()


@dataclass
class Serving:
    """A started `sextet serve`; `lines` is what it has printed so far, stdout and stderr together."""

    process: "subprocess.Popen[str]"
    url: str
    lines: list[str] = field(default_factory=list)
    reader: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    @classmethod
    def start(
        cls, cluster: Path, *options: str, port: int | None = None, inside: Sequence[str] = (), **environment: str
    ) -> "Serving":
        """`inside` is a command that becomes the one that follows it."""
        port = port or spare_port()
        command = [*inside, sys.executable, "-m", "sextet", "serve", str(cluster), "--port", str(port), *options]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=clean_environment() | environment,
        )
        return cls(process, f"http://127.0.0.1:{port}")

    def __enter__(self) -> "Serving":
        return self

    def __exit__(self, *failed: object) -> None:
        """Kill what a test that failed has left."""
        self.process.kill()

    def wait_until_ready(self) -> "Serving":
        """Until the demonstration is over too; fails with the process's own words when it ends before."""
        self.wait_for(f"ready {self.url}")
        return self

    def wait_for(self, start: str, times: int = 1) -> None:
        give_up_at = time.monotonic() + READY_S
        while sum(line.startswith(start) for line in self.lines) < times:
            assert self.process.poll() is None, "\n".join(self.lines)
            assert time.monotonic() < give_up_at, "\n".join(self.lines)
            time.sleep(0.05)

    def tree(self) -> list[psutil.Process]:
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def replicas(self, task: str) -> list[psutil.Process]:
        return replicas_of(task, self.tree())

    def replica(self, task: str) -> psutil.Process:
        (found,) = self.replicas(task)
        return found

    def stop(self, number: int = signal.SIGTERM) -> int:
        """The exit status after the signal."""
        self.process.send_signal(number)
        return self.wait(STOP_S)

    def wait(self, timeout_s: float) -> int:
        """The exit status; `lines` is then complete, unless a process that was left behind still holds the pipe."""
        status = self.process.wait(timeout_s)
        self.reader.join(STOP_S)
        return status

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as printed:
            for line in printed:
                self.lines.append(line.rstrip("\n"))


def clean_environment() -> dict[str, str]:
    """This process's environment without what earlier tests or shells told Ray."""
    import os

    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


def is_listening(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def replicas_of(task: str, processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those among some processes that are replicas of a task."""
    found = []
    for one in processes:
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            if " ".join(one.cmdline()).startswith(f"ray::ServeReplica:{task}:"):
                found.append(one)
    return found


def left_over(tree: list[psutil.Process]) -> list[str]:
    """Of the processes of a cluster that has ended, those that still run."""
    running = []
    for one in tree:
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended while it was looked at
            # One without a command line has let go of its memory: it is ending.
            if one.is_running() and one.status() != psutil.STATUS_ZOMBIE and (command := one.cmdline()):
                running.append(" ".join(command))
    return running


def listeners(processes: Iterable[psutil.Process]) -> Iterator[tuple[str, str, int]]:
    """Name of the process, address and port of each TCP socket that listens."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended while it was looked at
            for one in process.net_connections(kind="tcp"):
                if one.status == psutil.CONN_LISTEN:
                    address: Any = one.laddr
                    yield process.name(), address.ip, address.port


def kinds(listening: Iterable[tuple[str, str, int]]) -> Counter[str]:
    """How many sockets processes of each kind listen on: `ray::ServeReplica` for those of all tasks."""
    return Counter(re.sub(r"(?<=\w)[:.][\w-].*", "", name) for name, _, _ in listening)
