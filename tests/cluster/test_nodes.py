"""A Ray cluster of two nodes that an operator started: what Ray's own commands deploy there, and what it survives."""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
import ray
import yaml

from deployments.cluster.ray_environment import spare_port
from tests.cluster.ray_node import ADDRESS, OTHER_ADDRESS, TOOLS, RayNode, environment
from tests.cluster.serving import LOOPBACK, READY_S, is_listening, kinds, listeners, write_cluster

pytestmark = pytest.mark.cluster

TASK = "text-classification"
BODY = {"inputs": ["good", "bad"]}


@dataclass
class Nodes:
    """A head and a worker, and cluster.yaml, which wants a replica on each."""

    file: Path
    environment: dict[str, str]
    gcs: int
    url: str
    api: str
    started: list[RayNode]

    @property
    def head(self) -> RayNode:
        return self.started[0]

    @property
    def worker(self) -> RayNode:
        return self.started[-1]

    def start(self, address: str, *options: str) -> None:
        """One more node."""
        self.started.append(RayNode.start(self.file.parent, self.environment, address, "--num-cpus=1", *options))

    def join(self) -> None:
        """One more worker."""
        self.start(OTHER_ADDRESS, f"--address={ADDRESS}:{self.gcs}")


def wait_until(happened: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + READY_S
    while not happened():
        assert time.monotonic() < give_up_at
        time.sleep(0.5)


def answers(url: str) -> bool:
    return is_listening(url) and httpx.get(f"{url}/ready", timeout=60).status_code == 200


@pytest.fixture(scope="module")
def nodes(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    file = write_cluster(tmp_path_factory.mktemp("nodes"), {TASK: models[TASK]})
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    gcs, dashboard, port = spare_port(), spare_port(), spare_port()
    # On this machine only one of the nodes can listen on the ingress's port.
    content |= {"proxy_location": "HeadOnly", "http_options": {"host": "0.0.0.0", "port": port}}
    (deployment,) = next(one for one in content["applications"] if one["name"] == TASK)["deployments"]
    del deployment["autoscaling_config"]
    deployment |= {"num_replicas": 2, "max_replicas_per_node": 1, "ray_actor_options": {"num_cpus": 0.5}}
    file.write_text(yaml.safe_dump(content), encoding="utf-8")

    found = environment(file.parent)
    nodes = Nodes(file, found, gcs, f"http://{ADDRESS}:{port}", f"http://{ADDRESS}:{dashboard}", [])
    try:
        nodes.start(ADDRESS, "--head", f"--port={gcs}", f"--dashboard-port={dashboard}")
        wait_until(lambda: is_listening(nodes.api))
        nodes.join()
        deploy = [str(TOOLS / "serve"), "deploy", file.name, "--address", nodes.api]
        wait_until(lambda: subprocess.run(deploy, cwd=file.parent, env=found).returncode == 0)
        wait_until(lambda: answers(nodes.url))
        yield nodes
    finally:
        for node in reversed(nodes.started):
            node.stop()


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_ray_listens_to_nobody_without_the_token(nodes: Nodes) -> None:
    """Whoever reaches Ray's dashboard, or its control port, could run code on every node."""
    applications = f"{nodes.api}/api/serve/applications/"
    token = Path(nodes.environment["RAY_AUTH_TOKEN_PATH"]).read_text(encoding="ascii")
    stranger = {name: value for name, value in nodes.environment.items() if name != "RAY_AUTH_TOKEN_PATH"}
    stranger |= {"RAY_AUTH_TOKEN": "guessed"}
    joining = [str(TOOLS / "ray"), "start", f"--address={ADDRESS}:{nodes.gcs}", "--node-ip-address=127.0.0.1"]

    assert httpx.get(applications).status_code == 401
    assert httpx.get(applications, headers={"authorization": f"Bearer {token}"}).status_code == 200
    refused = subprocess.run(joining, env=stranger, capture_output=True, text=True, timeout=READY_S)
    assert refused.returncode != 0


def test_an_agent_of_ray_runs_no_job_for_whom_lacks_the_token(nodes: Nodes) -> None:
    """Each node has one, on every interface."""
    statuses = []  # of all servers of HTTP that it has
    for node in nodes.started:
        agents = [one for one in node.tree() if one.name().startswith("ray::DashboardAgent")]
        for _, _, port in listeners(agents):
            with suppress(httpx.TransportError):  # gRPC
                answer = httpx.post(f"http://{node.address}:{port}/api/job_agent/jobs/", json={"entrypoint": "true"})
                if not answer.text.startswith("# HELP"):  # metrics
                    statuses.append(answer.status_code)

    assert statuses.count(401) >= len(nodes.started)
    assert set(statuses) <= {401, 404, 405}


def test_replicas_answer_the_ingress_of_their_cluster_alone(nodes: Nodes) -> None:
    """Of this node or of another one: all nodes derive the same secret from their token."""
    ports = {
        one.laddr.port
        for node in nodes.started
        for process in node.tree()
        for one in process.net_connections(kind="inet")
        if one.status == psutil.CONN_LISTEN and one.laddr.port in range(30_000, 30_100)
    }

    assert len(ports) >= 2 + 1  # two replicas of the task, and the gateway
    for port in ports:
        refused = httpx.post(f"http://{ADDRESS}:{port}/{TASK}", json=BODY, headers={"x-sextet-ingress": "guess"})
        assert (refused.status_code, refused.json()["error_type"]) == (403, "unauthorized")
    assert httpx.post(f"{nodes.url}/{TASK}", json=BODY, timeout=60).status_code == 200


EVERYWHERE = ("0.0.0.0", "::")
RAYS_OWN = {  # they ask for the token, but for the autoscaler's metrics (`python`); Ray cannot bind them to an address
    "gcs_server": 1,
    "raylet": 2,
    "python": 2,
    "ray::DashboardAgent": 2,
    "ray-dashboard-ServeHead-0": 1,
    "ray::ServeController": 1,
    "ray::HAProxyManager": 1,
    "ray::ProxyActor": 1,
    "ray::ServeReplica": 2,
    "ray::IDLE": 8,
}


def test_on_every_interface_the_ingress_listens_and_what_ray_cannot_bind_to_an_address(nodes: Nodes) -> None:
    """Whatever `http_options.host` says: a machine may have an interface that the internet reaches."""
    port = int(nodes.url.rpartition(":")[2])
    for node in nodes.started:
        listening = list(listeners(node.tree()))
        everywhere = [one for one in listening if one[1] in EVERYWHERE and one != ("haproxy", "0.0.0.0", port)]

        assert kinds(everywhere) - Counter(RAYS_OWN) == Counter(), node.address
        assert not [one for one in everywhere if one[2] in range(30_000, 30_100)], "replicas"
        addresses = {node.address, ray.util.get_node_ip_address(), *LOOPBACK, *EVERYWHERE}
        assert {address.removeprefix("::ffff:") for _, address, _ in listening} <= addresses


def test_the_file_is_deployed_verbatim_and_then_again_by_our_own_command(nodes: Nodes) -> None:
    """`serve deploy cluster.yaml` in the folder of `ray start`; then `sextet serve --address`."""
    wait_until(lambda: len(nodes.head.replicas(TASK)) == len(nodes.worker.replicas(TASK)) == 1)
    assert len(httpx.post(f"{nodes.url}/{TASK}", json=BODY, timeout=60).json()) == 2

    again = [sys.executable, "-m", "sextet", "serve", str(nodes.file), "--open-to-everybody"]
    again += ["--address", f"{ADDRESS}:{nodes.gcs}"]
    finished = subprocess.run(again, env=nodes.environment, capture_output=True, text=True, timeout=READY_S)
    assert finished.returncode == 0, finished.stderr
    assert f"ready {nodes.url}" in finished.stdout
    assert len(httpx.post(f"{nodes.url}/{TASK}", json=BODY, timeout=60).json()) == 2


def test_no_request_is_lost_with_a_node_and_a_new_one_takes_its_replica(nodes: Nodes, closing: ExitStack) -> None:
    """Their clients keep their connections; some are inside the node's replica, which does not go on, when it dies."""
    wait_until(lambda: len(nodes.head.replicas(TASK)) == len(nodes.worker.replicas(TASK)) == 1)
    clients = [closing.enter_context(httpx.Client(base_url=nodes.url, timeout=60)) for _ in range(8)]

    def ask(client: httpx.Client) -> int:
        return client.post(f"/{TASK}", json=BODY).status_code

    with ThreadPoolExecutor(len(clients)) as pool:
        assert set(pool.map(ask, clients)) == {200}
        nodes.worker.replicas(TASK)[0].suspend()
        asking = [pool.submit(ask, client) for client in clients]
        time.sleep(0.5)
        assert not all(one.done() for one in asking)
        nodes.worker.kill()
        assert [one.result() for one in asking] == [200] * len(clients)

    nodes.join()
    wait_until(lambda: len(nodes.worker.replicas(TASK)) == 1)
    assert httpx.post(f"{nodes.url}/{TASK}", json=BODY, timeout=60).status_code == 200
