"""A cluster that others can reach: keys, TLS, and what listens where, on the real thing."""

import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import httpx
import pytest
import yaml

from tests.certificates import Authority
from tests.cluster.serving import LOOPBACK, Serving, keys, kinds, listeners, set_ingress, write_cluster

pytestmark = pytest.mark.cluster

TASK = "text-classification"
BODY = {"inputs": "good"}


@pytest.fixture(scope="module")
def folder(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a cluster.yaml that names keys and a certificate."""
    folder = tmp_path_factory.mktemp("guarded")
    file = write_cluster(folder, {TASK: models[TASK]})
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    tls = {"certificate": "site.pem", "key": "site.key"}
    set_ingress(content, keys="keys", tls=tls)
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    Authority.make(folder).issue("site", "localhost")
    return folder


@pytest.fixture(scope="module")
def guarded(folder: Path) -> Iterator[Serving]:
    """On every interface."""
    keys(folder, "add", "first")
    serving = Serving.start(folder / "cluster.yaml", "--host", "0.0.0.0")
    try:
        serving.url = serving.url.replace("http://", "https://")
        yield serving.wait_until_ready()
        assert serving.stop() == 0, "\n".join(serving.lines)
    finally:
        serving.process.kill()


def client(guarded: Serving, folder: Path, key: str | None) -> httpx.Client:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    url = guarded.url.replace("127.0.0.1", "localhost")
    trusted = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    return httpx.Client(base_url=url, verify=trusted, headers=headers, timeout=60)


def until(happened: Callable[[], bool]) -> float:
    started_at = time.monotonic()
    while not happened():
        assert time.monotonic() - started_at < 30
        time.sleep(0.05)
    return time.monotonic() - started_at


def test_the_launcher_asks_its_own_cluster_without_a_key(guarded: Serving) -> None:
    until(lambda: any(line.startswith("  -> ") for line in guarded.lines))

    assert not [line for line in guarded.lines if "no answer" in line]


def test_a_key_comes_and_goes_within_a_second_while_the_cluster_runs(guarded: Serving, folder: Path) -> None:
    def status(key: str | None, path: str = f"/{TASK}") -> int:
        with client(guarded, folder, key) as http:
            return http.post(path, json=BODY).status_code

    assert status(None) == 401
    key = keys(folder, "add", "alice", "--task", TASK)
    assert until(lambda: status(key) == 200) < 1
    with client(guarded, folder, key) as http:
        assert http.post(f"/{TASK}", json=BODY).json()[0][0]["label"]
    assert "alice" in keys(folder, "list")
    keys(folder, "revoke", "alice")
    assert until(lambda: status(key) == 401) < 1
    with client(guarded, folder, None) as http:
        assert http.get("/ready").status_code == 200
        assert http.get("/", headers={"accept": "text/html"}).status_code == 200


def test_a_models_readiness_needs_no_key_and_its_statistics_one_for_its_task(guarded: Serving, folder: Path) -> None:
    of_model, of_task = f"/v2/models/{TASK}", f"/{TASK}/v2/models/{TASK}"
    for key in (keys(folder, "add", "own", "--task", TASK), keys(folder, "add", "other", "--task", "translation")):
        with client(guarded, folder, key) as http:
            until(lambda: http.get("/").status_code == 200)
            names = [one["name"] for one in http.get("/v2/models/stats").json()["model_stats"]]
            stats = [http.get(f"{prefix}/stats").status_code for prefix in (of_model, of_task)]
        assert (names, stats) in (([TASK], [200, 200]), ([], [403, 403]))
    with client(guarded, folder, None) as http:
        for path in (f"{of_model}/ready", f"{of_task}/ready", f"/{TASK}/v2/health/ready", "/ready/"):
            assert http.get(path).status_code == 200
        for path in (of_model, f"{of_model}/stats", "/console/v2/models/stats", "/console/v2/repository/index"):
            assert http.get(path).status_code == 401


def test_no_key_and_no_text_is_in_a_file_of_the_cluster(guarded: Serving, folder: Path) -> None:
    key, text = keys(folder, "add", "bob"), "a-sentence-that-nobody-else-writes"
    with client(guarded, folder, key) as http:
        until(lambda: http.post(f"/{TASK}", json={"inputs": text}).status_code == 200)

    places = [*Path("/tmp").glob("sextet-[0-9]*-*"), Path("/tmp/ray/session_latest").resolve()]
    for place in places:
        for file in place.rglob("*"):
            if file.is_file() and not file.is_symlink() and file.stat().st_size < 2**26:
                content = file.read_bytes()
                assert key.encode() not in content, file
                assert text.encode() not in content, file


def test_replicas_and_the_proxy_behind_them_answer_the_ingress_alone(guarded: Serving) -> None:
    """Whoever is on this machine, or reaches the port otherwise, would pass by keys, hosts and limits."""
    served = [
        one for one in listeners(guarded.tree()) if one[2] in range(30_000, 30_100) or one[0].startswith("ray::Proxy")
    ]
    asked = 0
    for _, _, port in served:
        for headers in ({}, {"x-sextet-ingress": "none"}, {"x-sextet-ingress": "0" * 64, "x-sextet-client": "root"}):
            try:
                answer = httpx.post(f"http://127.0.0.1:{port}/{TASK}", json=BODY, headers=headers, timeout=10)
            except httpx.TransportError:  # another protocol's port
                continue
            asked += 1
            assert (answer.status_code, answer.json()["error_type"]) == (403, "unauthorized"), port
    assert asked >= 2 * 3  # the task and the gateway


KNOWN = {
    "haproxy": 3,  # the ingress, its statistics and metrics
    "ray::ServeReplica": 7,  # of two: HTTP, for calls between replicas, and that of each worker of Ray; metrics of one
    "ray::ProxyActor": 2,  # HTTP where no replica is
    "ray::HAProxyManager": 1,
    "ray::ServeController": 1,
    "ray::IDLE": 8,
    "ray::DashboardAgent": 3,  # metrics among them
    "ray::RuntimeEnvAgent": 1,
    "gcs_server": 1,
    "raylet": 2,
    "python": 3,  # the launcher, and Ray's autoscaler
}


def test_every_socket_that_listens_is_known(guarded: Serving) -> None:
    assert kinds(listeners(guarded.tree())) - Counter(KNOWN) == Counter()


def test_only_the_ingress_listens_beyond_loopback(guarded: Serving) -> None:
    listening = list(listeners(guarded.tree()))
    port = int(guarded.url.rpartition(":")[2])

    assert {one for one in listening if one[1] not in LOOPBACK} == {("haproxy", "0.0.0.0", port)}


def test_replicas_take_calls_of_grpc_from_holders_of_the_token_alone(guarded: Serving) -> None:
    """Whoever makes such a call has the replica unpickle what it sends."""
    replicas = [one for one in guarded.tree() if one.name().startswith("ray::ServeReplica")]
    (token,) = {one.environ()["RAY_AUTH_TOKEN"] for one in guarded.tree() if one.name() == "raylet"}

    def code(port: int, token: str | None) -> grpc.StatusCode:
        metadata = [("authorization", f"Bearer {token}")] if token else []
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            try:
                channel.unary_unary("/ray.serve.ASGIService/HandleRequest")(b"", metadata=metadata, timeout=10)
            except grpc.RpcError as error:
                return error.code()
        return grpc.StatusCode.OK

    ports = [port for _, _, port in listeners(replicas)]
    refusing = [port for port in ports if code(port, None) == grpc.StatusCode.UNAUTHENTICATED]
    assert len(refusing) >= len(replicas) == 2
    assert {code(port, "0" * len(token)) for port in refusing} == {grpc.StatusCode.UNAUTHENTICATED}
    assert grpc.StatusCode.UNAUTHENTICATED not in {code(port, token) for port in refusing}
    answered = {code(port, None) for port in ports if port not in refusing}
    assert answered <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INTERNAL}


def test_no_other_user_enters_the_folder_of_the_cluster(guarded: Serving) -> None:
    (folder,) = Path("/tmp").glob(f"sextet-{guarded.process.pid}-*")

    assert folder.stat().st_mode & 0o777 == 0o700
