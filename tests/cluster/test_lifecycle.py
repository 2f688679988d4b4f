"""From start to end: what is printed when something is wrong, and that nothing is left behind."""

import signal
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import onnxruntime
import psutil
import pytest

from deployments.cluster.guardian import KILLED
from deployments.cluster.local_ray import RAY_METRICS_PORT
from deployments.cluster.ray_environment import METRICS_PORT, SPARE_PORTS, free_port
from tests.artifacts import write_artifact
from tests.cluster.serving import (
    READY_S,
    STOP_S,
    Serving,
    is_listening,
    left_over,
    listeners,
    write_cluster,
)
from tests.deploy.unit import is_started_again

pytestmark = pytest.mark.cluster

TASK = "text-classification"
USUAL_PORTS = (8404, 9101, 8500, RAY_METRICS_PORT, METRICS_PORT)
"""Statistics and metrics of HAProxy, Serve's fallback proxy, Ray's metrics and ours."""
BODY = {"inputs": ["good", "bad"]}


@pytest.fixture
def small(models: dict[str, Path], tmp_path: Path) -> Path:
    """A cluster.yaml of one task and the gateway."""
    return write_cluster(tmp_path, {TASK: models[TASK]})


def replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_a_cluster_applies_changes_ends_without_a_trace_and_starts_again_at_once_on_its_port(
    small: Path, closing: ExitStack
) -> None:
    serving = Serving.start(small).wait_until_ready()
    give_up_at = time.monotonic() + READY_S
    replica = serving.replica(TASK)
    assert httpx.post(f"{serving.url}/{TASK}", json=BODY, timeout=60).status_code == 200

    replace_in(small, "threads: 1", "threads: 1\n      limits: {max_inputs: 1}")
    serving.process.send_signal(signal.SIGUSR1)
    serving.wait_for(f"applied {small}")
    assert httpx.post(f"{serving.url}/{TASK}", json=BODY, timeout=60).status_code == 413
    assert serving.replica(TASK) == replica

    replace_in(small, "max_inputs", "max_input")
    serving.process.send_signal(signal.SIGUSR1)
    serving.wait_for(f"not applied: user_config of {TASK}: limits has no key 'max_input' (did you mean 'max_inputs'?)")
    assert httpx.post(f"{serving.url}/{TASK}", json=BODY, timeout=60).status_code == 413

    asking = requests_inside(serving.url, replica, closing)
    replica.kill()
    late = httpx.post(f"{serving.url}/{TASK}", json=BODY, headers={"x-request-timeout-seconds": "0.1"}, timeout=60)
    assert late.status_code in (408, 503), "nobody is there who could answer in time"
    assert late.json()["error_type"] in ("timeout", "overloaded")
    while (answer := httpx.post(f"{serving.url}/{TASK}", json=BODY, timeout=60)).status_code != 413:
        assert (answer.status_code, answer.json()["error_type"]) == (503, "overloaded")
        assert time.monotonic() < give_up_at
        time.sleep(0.1)
    assert [one.result(READY_S) for one in asking] == [200] * len(asking), "the next replica answers them"

    tree = serving.tree()
    inside, body = request_inside(serving.url)
    closing.enter_context(inside)
    serving.process.send_signal(signal.SIGTERM)
    serving.wait_for("stopping")
    inside.sendall(body)
    assert b"HTTP/1.1 200 OK" in inside.recv(65536)
    assert serving.wait(STOP_S) == 0, "\n".join(serving.lines)
    assert left_over(tree) == []
    assert not is_listening(serving.url)
    assert serving.lines[-1] == "stopped"

    replace_in(small, "max_input", "max_inputs")
    again = Serving.start(small, port=int(serving.url.rpartition(":")[2])).wait_until_ready()
    assert httpx.post(f"{again.url}/{TASK}", json={"inputs": "good"}, timeout=60).status_code == 200
    tree = again.tree()
    allowed = {*USUAL_PORTS, *SPARE_PORTS}  # another cluster of this machine may have the usual ones
    own = allowed.intersection(port for _, _, port in listeners(tree))
    assert own
    (folder,) = Path("/tmp").glob(f"sextet-{again.process.pid}-*")
    again.stop(signal.SIGKILL)
    again.reader.join(STOP_S)
    assert again.lines[-1] == KILLED
    assert left_over(tree) == []
    assert not is_listening(again.url)
    assert not folder.exists()
    assert [port for port in own if free_port(port) != str(port)] == [], "the next start has them again"


def requests_inside(url: str, replica: psutil.Process, closing: ExitStack) -> list[Future[int]]:
    """The statuses of requests on connections that are kept, which are in `replica`, and it does not go on."""
    clients = [closing.enter_context(httpx.Client(base_url=url, timeout=READY_S)) for _ in range(4)]

    def ask(client: httpx.Client) -> int:
        return client.post(f"/{TASK}", json={"inputs": "good"}).status_code

    assert [ask(client) for client in clients] == [200] * len(clients)
    replica.suspend()
    pool = ThreadPoolExecutor(len(clients))
    asking = [pool.submit(ask, client) for client in clients]
    pool.shutdown(wait=False)
    time.sleep(0.5)
    assert not any(one.done() for one in asking)
    return asking


def request_inside(url: str) -> tuple[socket.socket, bytes]:
    """A connection on which HAProxy waits for the body of a request, and that body."""
    body = b'{"inputs": "good"}'
    connection = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=STOP_S)
    head = f"POST /{TASK} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}\r\nexpect: 100-continue\r\n\r\n"
    connection.sendall(head.encode())
    assert b"100 Continue" in connection.recv(65536)
    return connection, body


def test_a_stop_while_it_starts_ends_it_too(small: Path) -> None:
    serving = Serving.start(small)
    serving.wait_for("deploying")
    tree = serving.tree()

    assert serving.stop(signal.SIGTERM) == 0, "\n".join(serving.lines)

    assert left_over(tree) == []
    assert serving.lines[-1] == "stopped"


def test_without_haproxy_the_python_proxy_serves_and_says_so(small: Path) -> None:
    serving = Serving.start(small, RAY_SERVE_HAPROXY_BINARY_PATH="/nonexistent").wait_until_ready()
    tree = serving.tree()
    assert any("serving through Ray Serve's Python proxy" in line for line in serving.lines)
    assert not [one for one in tree if one.name() == "haproxy"]

    response = httpx.post(f"{serving.url}/{TASK}/", json=BODY, timeout=60)
    late = httpx.post(f"{serving.url}/{TASK}", json=BODY, headers={"x-request-timeout-seconds": "0.00001"}, timeout=60)

    alias = httpx.post(f"{serving.url}/predict", json={"inputs": "good"}, timeout=60, follow_redirects=True)

    assert (response.status_code, len(response.json())) == (200, 2)
    assert (alias.status_code, alias.history[0].status_code) == (200, 308)
    assert len(response.headers.get_list("x-request-id")) == 1
    assert (late.status_code, late.json()["error_type"]) == (408, "timeout")
    assert httpx.get(f"{serving.url}/{TASK}/deeper", timeout=60).status_code == 404
    assert serving.stop(signal.SIGINT) == 0
    assert left_over(tree) == []


def failed(cluster: Path, *options: str, port: int | None = None) -> list[str]:
    """What a `sextet serve` prints that has to fail."""
    serving = Serving.start(cluster, *options, port=port)
    status = serving.wait(READY_S)
    assert status == 1
    assert not is_started_again(status), "another start would fail the same way"
    return serving.lines


def test_a_port_that_is_taken_is_one_line_and_nothing_is_started(small: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        lines = failed(small, port=port)

    assert lines[-1].startswith(f"sextet: cannot listen on 127.0.0.1 port {port} (Address already in use); stop what")
    assert not any("Ray" in line for line in lines)


def test_an_artifact_that_is_missing_is_one_line_that_names_it(tmp_path: Path) -> None:
    cluster = write_cluster(tmp_path, {TASK: tmp_path / "nothing", "translation": tmp_path / "nothing"})

    lines = failed(cluster)

    assert lines[-1] == (
        f"sextet: {tmp_path}/{TASK} is not a model artifact (no artifact.json); make it with `sextet export` "
        "(and 1 more; `sextet export --all` makes what is missing)"
    )
    assert not any("Ray" in line for line in lines)


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this one has CUDA")
def test_a_device_that_is_missing_is_one_line_and_nothing_is_started(models: dict[str, Path], tmp_path: Path) -> None:
    cluster = write_cluster(tmp_path, {TASK: models[TASK]}, text_classification={"device": "cuda"})

    lines = failed(cluster)

    assert lines[-1].startswith(f"sextet: {TASK}: device is 'cuda', but this onnxruntime has only")
    assert not any("Ray" in line for line in lines)


def test_a_replica_that_cannot_start_is_one_line_with_its_reason(tmp_path: Path) -> None:
    cluster = write_cluster(tmp_path, {TASK: write_artifact(tmp_path / "broken")})
    reason = f"sextet: {TASK} did not start: ArtifactError: {tmp_path}/{TASK}/"
    serving = Serving.start(cluster)
    serving.wait_for("deploying")
    tree = serving.tree()

    assert serving.wait(READY_S) == 1

    assert serving.lines[-1].startswith(reason), "\n".join(serving.lines)
    assert not any("Traceback" in line for line in serving.lines)
    assert left_over(tree) == []
