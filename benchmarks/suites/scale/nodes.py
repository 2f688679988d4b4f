"""Nodes: what clients see while machines of a cluster end, behind the balancer that deploy/balancer.cfg describes.

    python -m benchmarks.suites.scale.nodes             four nodes: one is killed, then one falls silent, under load
    python -m benchmarks.suites.scale.nodes --nodes 8   so many, the head among them

Each node is a namespace of this machine with an address of its own (benchmarks/machines/network.py). The head serves
nothing; every other node has a replica of the sentiment model. `nodes_lost` counts the short requests without an answer
that a client can act on, as the fault suite does. Needs root and `ip`. Prints one line of JSON last.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from time import sleep

from benchmarks import Say
from benchmarks.faults.ledger import Ledger
from benchmarks.faults.traffic import Traffic
from benchmarks.machines.balancer import balanced
from benchmarks.machines.network import Network, NetworkError
from benchmarks.machines.ray_cluster import RayCluster, ray_cluster
from benchmarks.suites.cluster import CLASSIFY, measured_cluster, shipped_user_config
from benchmarks.suites.suite import Findings, say
from pipelines.errors import SextetError

PATH, TEXT = f"/{CLASSIFY.name}", "The film was better than I had expected"
LEAST, MOST = 4, 16


@dataclass(frozen=True)
class NodesPace:
    """The load in requests per second, and how long it goes on: before, after the end of a node, during the silence."""

    rate_per_s: float = 40.0
    before_s: float = 5.0
    killed_s: float = 20.0
    silent_s: float = 45.0  # a node is known to be dead after 25


QUICK = NodesPace(before_s=2.0, killed_s=5.0, silent_s=30.0)


def measure_nodes(findings: Findings, is_quick: bool, say: Say, n_nodes: int = LEAST) -> None:
    """Note the figure `nodes_lost`; without root there is none. Raises SextetError."""
    pace = QUICK if is_quick else NodesPace()
    try:
        ledger = _ledger(n_nodes, pace, say)
    except NetworkError as error:
        say(f"nodes: {error}")
        return
    findings.raw.append({"measurement": f"one of {n_nodes} nodes killed, one silent", **ledger.summary()})
    findings.note(nodes_lost=len(ledger.lost))
    say(f"{len(ledger.entries)} sent, {len(ledger.lost)} lost, longest gap {ledger.gap_s:.2f} s: {ledger.summary()}")


def _ledger(n_nodes: int, pace: NodesPace, say: Say) -> Ledger:
    with Network(n_nodes) as network, ray_cluster(network, _content(n_nodes - 1)) as cluster:
        say(f"{n_nodes} nodes are ready")
        with balanced(cluster.ingresses, network.folder) as port:
            return _strike(cluster, port, pace, say).ledger


def _strike(cluster: RayCluster, port: int, pace: NodesPace, say: Say) -> Traffic:
    killed, silent = cluster.workers[:2]
    with Traffic(port, PATH, TEXT, pace.rate_per_s) as traffic:
        sleep(pace.before_s)
        traffic.strike()
        killed.kill()
        say(f"{killed.address} is killed")
        sleep(pace.killed_s)
        silent.silence()
        say(f"{silent.address} is silent")
        sleep(pace.silent_s)
    return traffic


def _content(n_replicas: int) -> dict[str, object]:
    """The sentiment model on each of so many nodes, and the gateway."""
    content = measured_cluster({CLASSIFY.name: Path(shipped_user_config(CLASSIFY)["model"])}, threads=1, gateway=True)
    content["http_options"] = {**content["http_options"], "host": "0.0.0.0"}
    (deployment,) = next(one for one in content["applications"] if one["name"] == CLASSIFY.name)["deployments"]
    deployment |= {"num_replicas": n_replicas, "max_replicas_per_node": 1, "ray_actor_options": {"num_cpus": 0.5}}
    return content


def main() -> None:
    parser = argparse.ArgumentParser(description="What clients see while nodes of a cluster end.")
    parser.add_argument("--nodes", type=int, default=LEAST, help=f"{LEAST} to {MOST}, the head among them")
    parser.add_argument("--quick", action="store_true", help="a shorter load: whether it works")
    args = parser.parse_args()
    if not LEAST <= args.nodes <= MOST:
        parser.error(f"--nodes is {args.nodes}; allowed: {LEAST} to {MOST}")
    findings = Findings()
    try:
        measure_nodes(findings, args.quick, say, args.nodes)
    except SextetError as error:
        sys.exit(f"nodes: {error}")
    if not findings.figures:
        sys.exit("nodes: not measured")
    print(json.dumps({name: values[-1] for name, values in findings.figures.items()}))


if __name__ == "__main__":
    main()
