"""Network: hosts of this machine with addresses of their own: namespaces that a bridge connects.

    with Network(4) as network:
        network.hosts[0].start([...])

Each host has its own loopback, ports and /tmp, as a machine has. It shares processors, memory and disk with the others.
Needs root, and `ip` of iproute2. The addresses are of the range that RFC 2544 keeps for benchmarks.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from benchmarks.figures.result import ROOT
from pipelines.errors import SextetError

FOLDERS = Path("/run")  # not below /tmp, which each host has for itself
OWN_TMP = 'mount --bind "$0" /tmp && exec "$@"'
MAX_HOSTS = 200


class NetworkError(SextetError):
    """The namespaces cannot be made."""


class Host:
    """A namespace with an address, and the processes in it."""

    def __init__(self, name: str, address: str, folder: Path) -> None:
        self.name, self.address = name, address
        self.tmp = folder / "tmp"
        self.tmp.mkdir(parents=True)
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, command: Sequence[str], environment: Mapping[str, str], folder: Path, log: IO[bytes]) -> None:
        """Run `command` in `folder`; it writes into `log`."""
        inside = ["ip", "netns", "exec", self.name, "sh", "-c", OWN_TMP, str(self.tmp), *command]
        self._started.append(subprocess.Popen(inside, cwd=folder, env=dict(environment), stdout=log, stderr=log))

    def processes(self) -> list[int]:
        """Ids of all its processes."""
        said = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True)
        return [int(line) for line in said.stdout.split()]

    def kill(self) -> None:
        """End every process at once, as a crash of the machine does."""
        while found := self.processes():
            self._signal(signal.SIGKILL, found)
            for process in self._started:
                process.wait()
        for process in self._started:  # what had ended by itself
            process.wait()
        self._started.clear()

    def replace(self) -> None:
        """Another machine comes under its address: nothing runs there, and its /tmp is empty."""
        self.kill()
        shutil.rmtree(self.tmp)
        self.tmp.mkdir()

    def silence(self) -> None:
        """Stop every process: connections are accepted still, and nothing answers."""
        self._signal(signal.SIGSTOP, self.processes())

    def wake(self) -> None:
        """End the silence."""
        self._signal(signal.SIGCONT, self.processes())

    def cut(self) -> None:
        """Nothing reaches it any more, and nothing comes from it, not even the end of a connection."""
        _ip("-n", self.name, "link", "set", "eth0", "down")

    @staticmethod
    def _signal(number: int, process_ids: Sequence[int]) -> None:
        for process_id in process_ids:
            with suppress(ProcessLookupError):
                os.kill(process_id, number)


class Network:
    """So many hosts, and this machine at `address`; all are gone at the end of the block."""

    def __init__(self, n_hosts: int) -> None:
        self._n_hosts = n_hosts
        self._bridge = f"sextet{os.getpid()}"
        self._net = f"198.18.{os.getpid() % 256}"
        self.address = f"{self._net}.1"
        self.hosts: list[Host] = []

    def __enter__(self) -> Self:
        if os.geteuid() != 0 or shutil.which("ip") is None:
            raise NetworkError("hosts with addresses of their own need root, and `ip` (Debian's iproute2)")
        if ROOT.is_relative_to("/tmp") or Path(sys.prefix).is_relative_to("/tmp"):
            raise NetworkError(f"hosts have a /tmp of their own, and see no program below that of this machine: {ROOT}")
        self.folder = Path(tempfile.mkdtemp(prefix="sextet-", dir=FOLDERS))
        try:
            _ip("link", "add", self._bridge, "type", "bridge")
            _ip("address", "add", f"{self.address}/24", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
            for number in range(min(self._n_hosts, MAX_HOSTS)):
                self.hosts.append(self._host(number))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for host in self.hosts:
            host.kill()
            _quietly(lambda host=host: _ip("netns", "delete", host.name))  # type: ignore[misc]
        _quietly(lambda: _ip("link", "delete", self._bridge))
        shutil.rmtree(self.folder, ignore_errors=True)

    def _host(self, number: int) -> Host:
        name, wire = f"{self._bridge}-{number}", f"sx{os.getpid()}.{number}"
        address = f"{self._net}.{10 + number}"
        _ip("netns", "add", name)
        host = Host(name, address, self.folder / str(number))
        _ip("link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", wire, "master", self._bridge, "up")
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        return host


def _ip(*arguments: str) -> None:
    said = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if said.returncode != 0:
        raise NetworkError(f"ip {' '.join(arguments)}: {said.stderr.strip()}")


def _quietly(act: Callable[[], None]) -> None:
    with suppress(NetworkError):
        act()
