"""A node of a Ray cluster as an operator starts it: `ray start`, with what `sextet environment` prints."""

import os
import secrets
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from deployments.cluster.ray_environment import DRAIN_VARIABLE, spare_port
from tests.cluster.serving import clean_environment, replicas_of

TOOLS = Path(sys.executable).parent
ADDRESS, OTHER_ADDRESS = "127.0.0.1", "127.0.0.2"
"""Of the head, and of the other nodes: this machine stands for two."""


def printed_environment(folder: Path) -> str:
    """What `sextet environment` prints where HAProxy's script goes into `folder`."""
    command = [sys.executable, "-m", "sextet", "environment", "--folder", str(folder)]
    return subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=True).stdout


def environment(folder: Path) -> dict[str, str]:
    """What `eval "$(sextet environment)"` leaves, a token of the operator, and ports that no other cluster here has."""
    token = folder / "token"
    token.write_text(secrets.token_hex(32), encoding="ascii")
    own = ("RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT")
    before = clean_environment() | {name: str(spare_port()) for name in own}
    before |= {"RAY_AUTH_TOKEN_PATH": str(token), DRAIN_VARIABLE: "0"}  # nobody waits for an answer when a test ends
    shell = ["bash", "-c", f"{printed_environment(folder / 'haproxy')}\nenv -0"]
    after = subprocess.check_output(shell, env=before, text=True)
    return dict(variable.split("=", 1) for variable in after.rstrip("\0").split("\0"))


@dataclass
class RayNode:
    """A started `ray start --block`."""

    process: "subprocess.Popen[bytes]"
    address: str

    @classmethod
    def start(cls, folder: Path, environment: dict[str, str], address: str, *options: str) -> "RayNode":
        """In `folder`, where the models of cluster.yaml are looked for."""
        command = [str(TOOLS / "ray"), "start", "--block", f"--node-ip-address={address}", "--disable-usage-stats"]
        command += [f"--dashboard-agent-listen-port={spare_port()}", *options]
        with (folder / "ray-start.log").open("ab") as log:
            return cls(subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log), address)

    def tree(self) -> list[psutil.Process]:
        """Its processes: Ray's own, proxies and replicas."""
        parent = psutil.Process(self.process.pid)
        return [*parent.children(recursive=True), parent]

    def replicas(self, task: str) -> list[psutil.Process]:
        """The replicas of a task that run on this node."""
        return replicas_of(task, self.tree())

    def kill(self) -> None:
        """As when a machine loses its power."""
        _kill(self.tree())
        self.process.wait(60)

    def stop(self) -> None:
        """End it, and see to it that nothing is left."""
        if self.process.poll() is not None:
            return
        tree = self.tree()
        self.process.terminate()
        self.process.wait(60)
        psutil.wait_procs(tree, timeout=20)
        _kill(tree)


def _kill(tree: list[psutil.Process]) -> None:
    for one in tree:
        if one.is_running():
            os.kill(one.pid, signal.SIGKILL)
