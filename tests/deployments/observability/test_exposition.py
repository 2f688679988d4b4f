"""One address of a node hands out the series of all its processes, as long as each of them lives."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from deployments.cluster.ray_environment import ADDRESS_VARIABLE, spare_port
from deployments.observability.exposition import Exposition, address, merged
from pipelines.errors import ConfigurationError
from tests.deployments.observability.observed import series_of

PROCESS = """
import sys, time
from pathlib import Path
from prometheus_client import CollectorRegistry, Counter, generate_latest
from deployments.observability.exposition import Exposition
folder, port, name = sys.argv[1:]
registry = CollectorRegistry()
Counter("asked", "Questions, \\\\ and all.", ("replica",), registry=registry).labels(name).inc(int(name[1:]))
Exposition(lambda: generate_latest(registry), Path(folder), ("127.0.0.1", int(port))).start()
print("started", flush=True)
sys.stdin.read()
"""
Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def port() -> int:
    return spare_port()


@pytest.fixture
def start(tmp_path: Path, port: int) -> Iterator[Start]:
    """Starts a process whose series say its name."""
    with ExitStack() as stack:

        def run(name: str) -> "subprocess.Popen[str]":
            command = [sys.executable, "-c", PROCESS, str(tmp_path / "node"), str(port), name]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.callback(process.communicate)
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            return process

        yield run


def scraped(port: int) -> dict[str, float]:
    series = series_of(httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=20).text)
    return {dict(labels)["replica"]: value for (name, labels), value in series.items() if name == "asked_total"}


def wait_for(port: int, expected: dict[str, float]) -> None:
    give_up_at = time.monotonic() + 30
    found: dict[str, float] = {}
    while found != expected and time.monotonic() < give_up_at:
        try:
            found = scraped(port)
        except httpx.TransportError:
            time.sleep(0.1)
    assert found == expected


def test_one_address_has_the_series_of_all_processes_and_those_of_the_dead_go(start: Start, port: int) -> None:
    first, second = start("r1"), start("r2")
    wait_for(port, {"r1": 1, "r2": 2})

    second.kill()
    second.wait()
    assert scraped(port) == {"r1": 1}

    start("r3")
    first.kill()  # it had the address
    first.wait()
    wait_for(port, {"r3": 3})


def test_a_process_that_hangs_is_left_out_and_delays_the_others_little(start: Start, port: int) -> None:
    start("r1")
    wait_for(port, {"r1": 1})
    hanging = start("r2")
    os.kill(hanging.pid, signal.SIGSTOP)
    try:
        assert scraped(port) == {"r1": 1}
    finally:
        os.kill(hanging.pid, signal.SIGCONT)
    wait_for(port, {"r1": 1, "r2": 2})


def test_other_paths_and_methods_have_nothing(start: Start, port: int) -> None:
    start("r1")
    wait_for(port, {"r1": 1})
    assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 404
    assert httpx.post(f"http://127.0.0.1:{port}/metrics").status_code == 501


def test_a_process_that_ends_its_exposition_gives_the_address_back(tmp_path: Path, port: int) -> None:
    exposition = Exposition(lambda: b"# HELP a A.\n# TYPE a gauge\na 1.0\n", tmp_path, ("127.0.0.1", port))
    exposition.start()
    give_up_at = time.monotonic() + 30
    while time.monotonic() < give_up_at:
        try:
            assert b"a 1.0" in urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read()
            break
        except OSError:
            time.sleep(0.05)
    exposition.close()
    assert list(tmp_path.glob("*.sock")) == []
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5)


def test_a_family_of_several_processes_has_its_head_once() -> None:
    head = b"# HELP a A.\n# TYPE a gauge\n"
    other = b"# HELP b B.\n# TYPE b gauge\nb 3.0\n"
    assert merged([head + b'a{r="1"} 1.0\n' + other, head + b'a{r="2"} 2.0\n']) == (
        head + b'a{r="1"} 1.0\na{r="2"} 2.0\n' + other
    )


@pytest.mark.parametrize("given", ["9103", "host:", ":1", "127.0.0.1:99999", "127.0.0.1:x"])
def test_an_address_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv(ADDRESS_VARIABLE, given)
    with pytest.raises(ConfigurationError, match=f"{ADDRESS_VARIABLE} is '{given}'; allowed: HOST:PORT, or off"):
        address()


def test_the_address_is_loopback_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)
    assert address() == ("127.0.0.1", 9103)
    for given, expected in (("[::1]:9", ("::1", 9)), ("0.0.0.0:1", ("0.0.0.0", 1)), ("off", None)):
        monkeypatch.setenv(ADDRESS_VARIABLE, given)
        assert address() == expected
