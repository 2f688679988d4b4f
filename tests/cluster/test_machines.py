"""A Ray cluster over machines with addresses of their own, its head's state in Redis: what it shows, what it survives.

docs/nodes.md says what is lost with what.
"""

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from benchmarks.faults.traffic import Traffic
from benchmarks.figures.result import ROOT
from benchmarks.machines.balancer import balanced
from benchmarks.machines.network import Network, NetworkError
from benchmarks.machines.ray_cluster import DASHBOARD_PORT, GCS_PORT, PORT, TOOLS, RayCluster, ray_cluster
from benchmarks.machines.redis import redis
from deployments.cluster.ray_environment import DRAIN_VARIABLE, METRICS_PORT
from tests.cluster.serving import keys, set_ingress, write_cluster

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed"),
]

TASK = "text-classification"
BODY = {"inputs": ["good", "bad"]}
DRAIN_S = 60.0
ENDED_S = 60.0  # what Ray takes to end a node that has drained, or whose time is up


@pytest.fixture(scope="module")
def machines(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """A head, and two workers that fetch the artifact by its URL, each a replica."""
    file = write_cluster(tmp_path_factory.mktemp("machines"), {TASK: models[TASK]})
    content = yaml.safe_load(file.read_text(encoding="utf-8")) | {"http_options": {"host": "0.0.0.0", "port": PORT}}
    (deployment,) = next(one for one in content["applications"] if one["name"] == TASK)["deployments"]
    del deployment["autoscaling_config"]
    deployment |= {"num_replicas": 2, "max_replicas_per_node": 1, "ray_actor_options": {"num_cpus": 0.5}}
    del deployment["user_config"]["source"]
    deployment["user_config"]["model"] = models[TASK].resolve().as_uri()
    set_ingress(content, keys="keys")
    try:
        with (
            Network(3) as network,
            redis(network.address, network.folder) as state,
            ray_cluster(network, content, state, {DRAIN_VARIABLE: str(DRAIN_S)}) as made,
        ):
            yield made
    except NetworkError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def key(machines: RayCluster) -> str:
    """One that every node knows."""
    made = keys(machines.folder, "add", "all")
    machines.wait(lambda: statuses(machines, made) == [200, 200], "the key is not known")
    return made


def statuses(machines: RayCluster, key: str) -> list[int]:
    """Of a request to the ingress of each worker."""
    headers = {"authorization": f"Bearer {key}"}
    urls = [f"http://{ingress}/{TASK}" for ingress in machines.ingresses]
    return [httpx.post(url, json=BODY, headers=headers, timeout=60).status_code for url in urls]


def test_a_key_comes_and_goes_within_a_second_on_every_node(machines: RayCluster, key: str) -> None:
    def settled_s(expected: int) -> float:
        since = time.monotonic()
        machines.wait(lambda: statuses(machines, made) == [expected] * 2, f"not {expected} everywhere")
        return time.monotonic() - since

    assert statuses(machines, "guessed") == [401, 401]
    made = keys(machines.folder, "add", "alice")
    assert settled_s(200) < 1
    keys(machines.folder, "revoke", "alice")
    assert settled_s(401) < 1
    assert statuses(machines, key) == [200, 200]


def test_every_node_answers_and_holds_the_artifact_once(machines: RayCluster, key: str) -> None:
    assert statuses(machines, key) == [200, 200]
    for host in machines.workers:
        assert len(machines.replicas(host, TASK)) == 1
        assert len(list((host.tmp / "cache" / "artifacts").glob("[0-9a-f]*/artifact.json"))) == 1


def test_nobody_joins_or_deploys_without_the_token(machines: RayCluster) -> None:
    """From another address than the nodes' own."""
    dashboard = f"http://{machines.head.address}:{DASHBOARD_PORT}/api/serve/applications/"
    stranger = machines.environment | {"RAY_AUTH_TOKEN": "guessed"}
    joining = [str(TOOLS / "ray"), "health-check", f"--address={machines.head.address}:{GCS_PORT}"]

    assert httpx.get(dashboard).status_code == 401
    assert subprocess.run(joining, env=stranger, capture_output=True, timeout=60).returncode != 0
    assert subprocess.run(joining, env=machines.environment, capture_output=True, timeout=60).returncode == 0


def test_one_list_of_targets_scrapes_the_replicas_of_all_nodes(machines: RayCluster) -> None:
    """nodes.yaml of deploy/observability, with a line for each node: no series is missing, none is there twice."""
    shipped = (ROOT / "deploy" / "observability" / "nodes.yaml").read_text(encoding="utf-8")
    here = [f"{host.address}:{METRICS_PORT}" for host in machines.workers]
    (listed,) = yaml.safe_load(shipped.replace(f'["127.0.0.1:{METRICS_PORT}"]', str(here)))
    assert listed["targets"] == here
    seen = []
    for target in listed["targets"]:
        lines = httpx.get(f"http://{target}/metrics", timeout=60).text.splitlines()
        seen += [line for line in lines if line.startswith("sextet_artifact_info{")]
    replicas = {line.partition('replica="')[2].partition('"')[0] for line in seen}

    assert len(seen) == len(replicas) == 2


def test_the_head_dies_and_comes_back_with_its_state(machines: RayCluster, key: str) -> None:
    before = [machines.replicas(host, TASK)[0].pid for host in machines.workers]
    machines.head.kill()
    assert statuses(machines, key) + statuses(machines, key) == [200] * 4
    machines.start_head()
    assert [machines.replicas(host, TASK)[0].pid for host in machines.workers] == before

    # The controller is back, too: it replaces a replica, though nobody deployed anything.
    psutil.Process(before[0]).kill()
    machines.wait(
        lambda: [one.pid for one in machines.replicas(machines.workers[0], TASK)] not in ([], before[:1]), "none"
    )
    machines.wait_until_ready(machines.workers[0])
    assert statuses(machines, key) == [200, 200]


def test_a_node_that_is_told_to_end_loses_no_request_behind_the_balancer(machines: RayCluster, key: str) -> None:
    """As Kubernetes ends a pod: SIGTERM to `ray start --block`."""
    headers = {"authorization": f"Bearer {key}"}
    with (
        balanced(machines.ingresses, machines.folder) as port,
        Traffic(port, f"/{TASK}", "good", 20.0, headers=headers) as traffic,
    ):
        time.sleep(3.0)
        traffic.strike()
        leaving = machines.ray_start(machines.workers[0])
        leaving.send_signal(signal.SIGTERM)
        leaving.wait(DRAIN_S + ENDED_S)
        time.sleep(1.0)
    outcomes = {entry.outcome for entry in traffic.ledger.entries}

    assert outcomes == {"200"}
    assert len(traffic.ledger.entries) > 60
