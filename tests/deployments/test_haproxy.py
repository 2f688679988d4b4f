"""The wrapper around HAProxy, run as Ray Serve runs it, with the bundled binary checking the result."""

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deployments import haproxy

CONFIG = """global
    stats socket {folder}/admin.sock mode 666 level admin expose-fd listeners
defaults
    mode http
    errorfile 503 {folder}/500.http
    timeout client 5s
    timeout server 5s
    timeout connect 5s
frontend prometheus
    bind :{metrics}
frontend http_frontend
    bind *:{public}
    default_backend nobody
backend nobody
    server gone 127.0.0.1:9
listen stats
  bind *:{stats}
  stats enable
"""


@pytest.fixture
def binary() -> Path:
    found = haproxy.find_binary()
    assert found is not None
    return found


def test_a_binary_that_is_forbidden_or_not_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert haproxy.find_binary() is not None
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    assert haproxy.find_binary() is None
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", "/nonexistent")
    assert haproxy.find_binary() is None


def test_the_wrapper_moves_the_pages_to_loopback_and_leaves_the_ingress(binary: Path, tmp_path: Path) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text(CONFIG.format(folder=tmp_path, metrics=19101, public=18000, stats=18404), encoding="utf-8")
    wrapper = haproxy.write_wrapper(binary, tmp_path)

    checked = subprocess.run(
        [str(wrapper), "-db", "-f", str(config), "-c"],
        env={"RAY_SERVE_HAPROXY_STATS_PORT": "18404", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )

    assert checked.returncode == 0, checked.stderr
    binds = [line.strip() for line in config.read_text(encoding="utf-8").splitlines() if "bind" in line]
    assert binds == ["bind 127.0.0.1:19101", "bind *:18000", "bind 127.0.0.1:18404"]


@pytest.fixture
def ingress(binary: Path, tmp_path: Path) -> Iterator[int]:
    """The port of a running HAProxy whose only server does not exist."""
    ports = []
    for _ in range(3):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    config = tmp_path / "haproxy.cfg"
    config.write_text(CONFIG.format(folder=tmp_path, metrics=ports[0], public=ports[1], stats=ports[2]))
    command = [str(haproxy.write_wrapper(binary, tmp_path)), "-db", "-f", str(config)]
    process = subprocess.Popen(command, env={"RAY_SERVE_HAPROXY_STATS_PORT": str(ports[2])})
    while not _connects(ports[1]):
        assert process.poll() is None
    yield ports[1]
    assert process.poll() is None
    process.kill()
    process.wait()


def test_where_no_replica_answers_it_is_a_503_in_json_that_says_when_to_come_back(ingress: int) -> None:
    response = httpx.get(f"http://127.0.0.1:{ingress}/translation")

    assert (response.status_code, response.json()["error_type"]) == (503, "overloaded")
    assert int(response.headers["retry-after"]) > 0


def test_draining_closes_the_ingress_and_an_empty_folder_needs_none(ingress: int, tmp_path: Path) -> None:
    assert _connects(ingress)

    haproxy.drain(tmp_path / "elsewhere", limit_s=5)
    assert _connects(ingress)

    haproxy.drain(tmp_path, limit_s=5)
    assert not _connects(ingress)


def _connects(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
