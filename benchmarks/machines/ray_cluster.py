"""RayCluster: a Ray cluster over several hosts, started as docs/nodes.md says: a head, and workers that serve.

Every node has the token, and what `sextet environment --cluster` prints of the file that is deployed. The head has no
replicas. With a Redis, the head may die and come back.
"""

import os
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.figures.result import ROOT
from benchmarks.machines.network import Host, Network
from benchmarks.machines.redis import Redis
from deployments.cluster.ray_environment import ADDRESS_VARIABLE, METRICS_PORT
from deployments.ingress.access import OPEN_VARIABLE
from deployments.ingress.config import IngressConfig
from pipelines.errors import SextetError

TOOLS = Path(sys.executable).parent
GCS_PORT, DASHBOARD_PORT, PORT = 6379, 8265, 8000
READY_S = 120.0
POLL_S = 0.2
SHOWN = 500  # of the end of what a node says, in an error
STORE_BYTES = 100_000_000
RECONNECT_S = 600  # as long as workers wait for a head that comes back; KubeRay sets it likewise


class RayClusterError(SextetError):
    """The cluster does not do what is asked of it."""


class RayCluster:
    """The nodes of a network's hosts, which will serve `content`; the first is the head.

    `environment` adds to that of every node.
    """

    def __init__(
        self,
        network: Network,
        content: Mapping[str, Any],
        redis: Redis | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.head, self.workers = network.folder, network.hosts[0], network.hosts[1:]
        self._redis = redis
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SEXTET_"))}
        self.environment = inherited | {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            ADDRESS_VARIABLE: f"0.0.0.0:{METRICS_PORT}",
            "SEXTET_CACHE": "/tmp/cache",
            **(environment or {}),
        }
        if IngressConfig.of(content, self.folder).keys is None:
            self.environment[OPEN_VARIABLE] = "1"
        self.file = self.folder / "cluster.yaml"
        self.file.write_text(yaml.safe_dump(dict(content)), encoding="utf-8")

    @property
    def ingresses(self) -> list[str]:
        """HOST:PORT of every worker's ingress."""
        return [f"{host.address}:{PORT}" for host in self.workers]

    def start_head(self) -> None:
        """Also again, on a machine that takes its place: with a Redis it finds its cluster."""
        self.head.replace()
        own = ["--head", f"--port={GCS_PORT}", "--dashboard-host=0.0.0.0", "--num-cpus=0"]
        environment = self.environment
        if self._redis is not None:
            own.append(f"--redis-password={self._redis.password}")
            environment = environment | {
                "RAY_REDIS_ADDRESS": self._redis.address,
                "RAY_external_storage_namespace": "sextet",
            }
        self._start(self.head, environment, own)
        self.wait(lambda: self.answers(self.head, DASHBOARD_PORT, "/api/version"), "the head does not start")

    def start_worker(self, host: Host) -> None:
        environment = self.environment | {"RAY_gcs_rpc_server_reconnect_timeout_s": str(RECONNECT_S)}
        self._start(host, environment, [f"--address={self.head.address}:{GCS_PORT}", "--num-cpus=1"])

    def deploy(self) -> None:
        """`serve deploy`, and wait until every worker's ingress has every application."""
        address = f"http://{self.head.address}:{DASHBOARD_PORT}"
        command = [str(TOOLS / "serve"), "deploy", self.file.name, "--address", address]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise RayClusterError(f"serve deploy: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
        for host in self.workers:
            self.wait_until_ready(host)

    def wait_until_ready(self, host: Host) -> None:
        self.wait(lambda: self.answers(host, PORT, "/ready"), f"{host.address} is not ready")

    def answers(self, host: Host, port: int, path: str) -> bool:
        """Whether a GET is answered with 200."""
        connection = HTTPConnection(host.address, port, timeout=2.0)
        try:
            connection.request("GET", path, headers={"authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"})
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()

    def replicas(self, host: Host, application: str) -> list[psutil.Process]:
        """The processes of an application's replicas on a host."""
        return [one for one in self._processes(host) if _line(one).startswith(f"ray::ServeReplica:{application}:")]

    def ray_start(self, host: Host) -> psutil.Process:
        """The process that `ray start --block` is."""
        return next(one for one in self._processes(host) if " start --block" in _line(one))

    def wait(self, happened: Callable[[], bool], otherwise: str, limit_s: float = READY_S) -> None:
        """Raises RayClusterError where that does not happen in time."""
        give_up_at = time.monotonic() + limit_s
        while not happened():
            if time.monotonic() > give_up_at:
                said = {file.stem: file.read_text(errors="replace")[-SHOWN:] for file in self.folder.glob("*-*.log")}
                raise RayClusterError(f"{otherwise} after {limit_s:.0f} s; `ray start` said {said}")
            time.sleep(POLL_S)

    def _start(self, host: Host, environment: Mapping[str, str], own: Sequence[str]) -> None:
        ray = [str(TOOLS / "ray"), "start", "--block", f"--node-ip-address={host.address}", "--disable-usage-stats"]
        ray += [f"--object-store-memory={STORE_BYTES}", *own]
        options = ["--folder", "/tmp/haproxy", "--cluster", str(self.file)]
        prints = [sys.executable, "-m", "sextet", "environment", *options]
        script = f'environment=$({shlex.join(prints)}) || exit 1; eval "$environment"; exec {shlex.join(ray)}'
        with (self.folder / f"{host.name}.log").open("ab") as log:
            host.start(["bash", "-c", script], environment, self.folder, log)

    @staticmethod
    def _processes(host: Host) -> list[psutil.Process]:
        found = []
        for process_id in host.processes():
            try:
                found.append(psutil.Process(process_id))
            except psutil.NoSuchProcess:  # it has ended
                continue
        return found


@contextmanager
def ray_cluster(
    network: Network,
    content: Mapping[str, Any],
    redis: Redis | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[RayCluster]:
    """A cluster that serves `content` on every host but the first; its processes end with the network's block."""
    made = RayCluster(network, content, redis, environment)
    made.start_head()
    for host in made.workers:
        made.start_worker(host)
    made.deploy()
    yield made


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
