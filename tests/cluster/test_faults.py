"""A bad day of a cluster: what dies, what clients see of it, and that what they began goes on."""

import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psutil
import pytest
import yaml

from tests.cluster.serving import READY_S, STOP_S, Serving, left_over, write_cluster
from tests.deploy.unit import is_started_again

pytestmark = pytest.mark.cluster
CLASSIFY, GENERATE = "text-classification", "text-generation"
REPLICA_PORTS = range(30_000, 31_000)
TOKENS = 200
"""Of an answer of the generator."""


def write(folder: Path, models: dict[str, Path], **of_generator: Any) -> Path:
    """Two replicas that classify, and one that generates."""
    path = write_cluster(folder, {task: models[task] for task in (CLASSIFY, GENERATE)})
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    for application in content["applications"]:
        (deployment,) = application["deployments"]
        if application["name"] == CLASSIFY:
            deployment["autoscaling_config"] |= {"min_replicas": 2, "max_replicas": 2}
        if application["name"] == GENERATE:
            deployment["user_config"]["slots"] = {"slots": 2, "max_tokens": 250, "prefill_chunk_tokens": 16}
            deployment["user_config"] |= of_generator
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def change(path: Path, **of_generator: Any) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    (application,) = [one for one in content["applications"] if one["name"] == GENERATE]
    application["deployments"][0]["user_config"] |= of_generator
    path.write_text(yaml.safe_dump(content), encoding="utf-8")


def processes(serving: Serving, name: str) -> list[psutil.Process]:
    """Those whose command line begins so, HAProxy by its name."""
    found = []
    for one in serving.tree():
        with suppress(psutil.Error):  # it ended while it was looked at
            if one.name() == name or " ".join(one.cmdline()).startswith(name):
                found.append(one)
    return found


class Asking:
    """Clients that ask one after the other on connections that they keep, while a block runs; `seen` is what came."""

    def __init__(self, url: str, method: str, path: str, body: Any = None, clients: int = 2) -> None:
        self._url, self._request, self._n_clients = url, (method, path, body), clients
        self._is_over = False
        self.seen: list[int | str] = []

    def __enter__(self) -> "Asking":
        self._pool = ThreadPoolExecutor(self._n_clients)
        self._asking = [self._pool.submit(self._ask) for _ in range(self._n_clients)]
        return self

    def __exit__(self, *failed: object) -> None:
        self._is_over = True
        self._pool.shutdown()
        for one in self._asking:
            one.result()

    def _ask(self) -> None:
        method, path, body = self._request
        with httpx.Client(base_url=self._url, timeout=60) as client:
            while not self._is_over:
                try:
                    self.seen.append(client.request(method, path, json=body).status_code)
                except httpx.TransportError as error:
                    self.seen.append(type(error).__name__)
                time.sleep(0.01)


def until(condition: Any) -> None:
    give_up_at = time.monotonic() + READY_S
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.1)


class Inside:
    """A request for a stream, in a replica that waits for the rest of its body: as long as the test likes."""

    BODY = (
        json.dumps(
            {"inputs": "a", "stream": True, "parameters": {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS}}
        ).encode()
        + b" " * 200_000
    )
    """More than HAProxy's buffer holds, so that the replica has it before it is complete."""

    def __init__(self, serving: Serving) -> None:
        self._socket = socket.create_connection(("127.0.0.1", int(serving.url.rpartition(":")[2])), timeout=READY_S)
        head = f"POST /{GENERATE} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        self._socket.sendall(f"{head}content-length: {len(self.BODY)}\r\nconnection: close\r\n\r\n".encode())
        self._socket.sendall(self.BODY[:150_000])
        time.sleep(1)  # nobody tells when it has arrived

    def answer(self) -> bytes:
        """Send the rest, and receive everything."""
        self._socket.sendall(self.BODY[150_000:])
        with self._socket:
            return b"".join(iter(lambda: self._socket.recv(65536), b""))


def is_whole(answer: bytes) -> bool:
    return answer.startswith(b"HTTP/1.1 200 ") and f'"generated_tokens":{TOKENS}'.encode() in answer


def test_what_dies_comes_back_and_what_has_begun_goes_on(
    models: dict[str, Path], tmp_path: Path, closing: ExitStack
) -> None:
    path = write(tmp_path, models)
    serving = closing.enter_context(Serving.start(path)).wait_until_ready()
    classify = {"inputs": "good"}

    with Asking(serving.url, "POST", f"/{CLASSIFY}", classify) as asking:
        before = processes(serving, "haproxy")  # those before the last reload may still end
        for one in before:
            one.kill()
        until(lambda: set(processes(serving, "haproxy")) - set(before))
        until(lambda: asking.seen[-5:] == [200] * 5)
    assert set(asking.seen) <= {200, "ConnectError", "RemoteProtocolError", "ReadError"}, "no route is ever missing"

    with Asking(serving.url, "POST", f"/{CLASSIFY}", classify) as asking, Asking(serving.url, "GET", "/ready") as ready:
        serving.replicas(CLASSIFY)[0].kill()
        (gateway,) = serving.replicas("gateway")
        gateway.kill()
        until(lambda: serving.replicas("gateway") not in ([], [gateway]))
        until(lambda: len(serving.replicas(CLASSIFY)) == 2)
        serving.process.send_signal(signal.SIGUSR1)
        serving.wait_for(f"applied {path}")  # once replicas that still start have made the task healthy again
        until(lambda: httpx.get(serving.url, timeout=60).status_code == 200)
    assert set(asking.seen) == {200}, "the other replica answers"
    assert set(ready.seen) == {200}, "nobody needs the gateway for that"

    with Asking(serving.url, "POST", f"/{CLASSIFY}", classify) as asking:
        hung = serving.replicas(CLASSIFY)[0]
        hung.suspend()
        until(lambda: len(asking.seen) > 500)
        until(lambda: hung not in serving.replicas(CLASSIFY))
        until(lambda: len(serving.replicas(CLASSIFY)) == 2)
    assert set(asking.seen) == {200}, "the other replica answers, at last what was inside this one, too"

    (generator,) = serving.replicas(GENERATE)
    inside = Inside(serving)
    (own_url,) = [
        f"http://127.0.0.1:{one.laddr.port}"
        for one in generator.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN and one.laddr.port in REPLICA_PORTS
    ]
    with (
        Asking(serving.url, "POST", f"/{CLASSIFY}", classify) as asking,
        Asking(serving.url, "GET", "/ready") as ready,
        Asking(own_url, "GET", "/-/healthz") as health,
    ):
        change(path, threads=2)  # another session: as another model
        serving.process.send_signal(signal.SIGUSR1)
        until(lambda: len(serving.replicas(GENERATE)) == 2)
        with Asking(serving.url, "POST", f"/{GENERATE}", {"inputs": "a", "parameters": {"max_new_tokens": 2}}) as new:
            until(lambda: len(new.seen) > 5)
        assert generator.is_running()
        assert is_whole(inside.answer())
        serving.wait_for(f"applied {path}", times=2)
    assert set(asking.seen) == set(new.seen) == set(ready.seen) == {200}
    assert 503 not in health.seen, "HAProxy keeps the old replica until it knows the new one"

    once = {"inputs": "a", "parameters": {"max_new_tokens": 1}}
    before = serving.replicas(GENERATE)
    with Asking(serving.url, "GET", "/ready") as ready, Asking(serving.url, "POST", f"/{GENERATE}", once) as asking:
        change(path, limits={"max_inputs": 1}, drain_timeout_s=900)
        serving.process.send_signal(signal.SIGUSR1)
        serving.wait_for(f"applied {path}", times=3)
        several = {**once, "inputs": ["a", "a"]}
        assert httpx.post(f"{serving.url}/{GENERATE}", json=several, timeout=60).status_code == 413
    assert serving.replicas(GENERATE) == before, "it is changed in place"
    (folder,) = Path("/tmp").glob(f"sextet-{serving.process.pid}-*")
    (written,) = folder.rglob("haproxy.cfg")
    (hard_stop_s,) = re.findall(r"hard-stop-after (\d+)s", written.read_text(encoding="utf-8"))
    assert int(hard_stop_s) > 2 * 900, "HAProxy knows of it"
    assert set(ready.seen) == set(asking.seen) == {200}

    (generator,) = serving.replicas(GENERATE)
    generator.kill()
    until(lambda: httpx.get(f"{serving.url}/ready", timeout=60).status_code == 503)
    missing = httpx.get(f"{serving.url}/ready", timeout=60)
    assert missing.status_code == 200 or missing.json()["not_ready"] == [GENERATE]
    until(lambda: httpx.get(f"{serving.url}/ready", timeout=60).status_code == 200)

    tree = serving.tree()
    with ExitStack() as stack:
        kept = stack.enter_context(httpx.Client(base_url=serving.url, timeout=60))
        assert kept.post(f"/{CLASSIFY}", json=classify).status_code == 200
        inside = Inside(serving)
        serving.process.send_signal(signal.SIGTERM)
        serving.wait_for("stopping")
        last = kept.post(f"/{CLASSIFY}", json=classify)
        assert (last.status_code, last.headers["connection"]) == (200, "close")
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{serving.url}/ready")
        assert is_whole(inside.answer())
    assert serving.wait(STOP_S) == 0, "\n".join(serving.lines)
    assert left_over(tree) == []


def test_a_second_signal_ends_at_once_what_a_first_one_lets_go_on(
    models: dict[str, Path], tmp_path: Path, closing: ExitStack
) -> None:
    serving = closing.enter_context(Serving.start(write(tmp_path, models))).wait_until_ready()
    tree = serving.tree()
    inside = Inside(serving)
    serving.process.send_signal(signal.SIGTERM)
    serving.wait_for("stopping")
    with pytest.raises(psutil.TimeoutExpired):
        psutil.Process(serving.process.pid).wait(8)  # longer than it takes where nothing is inside

    assert serving.stop(signal.SIGTERM) == 0, "\n".join(serving.lines)
    with suppress(ConnectionError):
        assert not is_whole(inside.answer())
    assert left_over(tree) == []


TREE = Path(__file__).parents[2]
SMALL_DISK = (
    *("unshare", "--mount", "sh", "-c"),
    f"exec 3<{shlex.quote(str(TREE))} && mount -t tmpfs -o size=96m tmpfs /tmp && mkdir -p {shlex.quote(str(TREE))} && "
    f'mount -c --bind /proc/self/fd/3 {shlex.quote(str(TREE))} && exec 3<&- && exec "$@"',
    "sh",
)
"""Becomes a command that has a /tmp of its own; the source tree stays where it is, there as well."""


@pytest.fixture
def elsewhere(models: dict[str, Path]) -> Iterator[Path]:
    """A folder that is not below /tmp, with a configuration and its models."""
    if subprocess.run([*SMALL_DISK, "true"], capture_output=True).returncode:
        pytest.skip("this system mounts no file system of a test")
    with TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        yield write(
            folder, {task: shutil.copytree(models[task], folder / f"of-{task}") for task in (CLASSIFY, GENERATE)}
        )


def fill(disk: Path) -> Path:
    """A file that takes all that is left."""
    file = disk / "full"
    with file.open("wb", buffering=0) as written, suppress(OSError):
        while True:
            written.write(bytes(4096))
    return file


def test_a_full_disk_stops_no_answers_and_once_there_is_space_all_is_as_before(
    elsewhere: Path, closing: ExitStack
) -> None:
    """Not even those of a task that loses a replica meanwhile."""
    serving = closing.enter_context(Serving.start(elsewhere, inside=SMALL_DISK)).wait_until_ready()
    tree = serving.tree()

    full = fill(Path(f"/proc/{serving.process.pid}/root/tmp"))
    with Asking(serving.url, "POST", f"/{CLASSIFY}", {"inputs": "good"}) as asking:
        serving.replicas(CLASSIFY)[0].kill()
        until(lambda: len(asking.seen) > 3000)
    assert set(asking.seen) == {200}
    generated = httpx.post(f"{serving.url}/{GENERATE}", json={"inputs": "a", "parameters": {"max_new_tokens": 2}})
    assert generated.status_code == 200
    full.unlink()
    until(lambda: len(serving.replicas(CLASSIFY)) == 2)
    until(lambda: httpx.get(f"{serving.url}/ready", timeout=60).status_code == 200)
    assert serving.stop() == 0, "\n".join(serving.lines)
    assert left_over(tree) == []


@pytest.mark.parametrize("daemon", ["raylet", "gcs_server"])
def test_where_ray_dies_all_ends_with_one_line_and_a_status_to_start_again(
    models: dict[str, Path], tmp_path: Path, daemon: str, closing: ExitStack
) -> None:
    path = write_cluster(tmp_path, {CLASSIFY: models[CLASSIFY]})
    serving = closing.enter_context(Serving.start(path)).wait_until_ready()
    tree = serving.tree()

    next(one for one in tree if one.name() == daemon).kill()

    status = serving.wait(STOP_S)
    assert status == 75, "\n".join(serving.lines)
    assert is_started_again(status)
    assert serving.lines[-1].startswith(f"sextet: Ray's {daemon} died (killed by signal 9); its log is in ")
    assert Path(serving.lines[-1].rpartition(" ")[2]).is_dir()
    assert left_over(tree) == []
