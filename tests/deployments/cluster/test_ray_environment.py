"""The environment of a cluster beside another one on the same machine."""

import math
import os
import re
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from deployments.cluster.ray_environment import DRAIN_VARIABLE, SPARE_PORTS, lacks_token, node_exports, prepare
from deployments.config import CUT_S, DRAIN_S, user_configs
from deployments.ingress.config import Address, IngressConfig
from deployments.ingress.haproxy import SETTINGS, find_binary
from deployments.ingress.lines import Settings
from pipelines.runtime.session_config import usable_cores
from sextet import app
from tests.cluster.serving import SHIPPED


@pytest.mark.cluster  # it takes a port of Ray Serve's
def test_a_port_that_another_cluster_has_is_replaced_by_one_that_no_process_is_handed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.environ", {})
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):  # where another cluster really is there
            other.bind(("0.0.0.0", 8404))
            other.listen()

        prepare(tmp_path, find_binary(), IngressConfig(), Address("127.0.0.1", 8000))

        assert int(os.environ["RAY_SERVE_HAPROXY_STATS_PORT"]) in SPARE_PORTS


def exported(folder: Path, **environment: str) -> dict[str, str]:
    """The environment after a shell has read what `sextet environment` prints."""
    script = "\n".join(node_exports(folder, find_binary(), IngressConfig()))
    shell = subprocess.run(
        ["bash", "-c", f"{script}\nenv"], env=environment, capture_output=True, text=True, check=True
    )
    return dict(line.split("=", 1) for line in shell.stdout.splitlines())


def test_the_gcs_does_not_log_its_state_without_a_pause(tmp_path: Path) -> None:
    """It takes -1, which Ray says to disable that, for "at once": a core of the machine, for ever."""
    assert int(exported(tmp_path)["RAY_event_stats_print_interval_ms"]) >= 0


ARENAS = """
import ctypes, threading
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.fopen.restype = ctypes.c_void_p, ctypes.c_void_p
together = threading.Barrier(12)
def take():
    together.wait()
    libc.malloc(ctypes.c_size_t(1000))
threads = [threading.Thread(target=take) for _ in range(12)]
[one.start() for one in threads], [one.join() for one in threads]
libc.malloc_info(0, ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w")))
libc.fflush(None)
"""


def test_the_threads_of_a_replica_share_the_memory_that_they_free(tmp_path: Path) -> None:
    """With an arena for each of a dozen threads, a replica kept ten times as much of what hostile requests took."""
    environment = exported(tmp_path, PATH=os.environ["PATH"])
    assert 2 <= int(environment["MALLOC_ARENA_MAX"]) < 12 or usable_cores() >= 48

    printed = subprocess.run(
        [sys.executable, "-c", ARENAS], env=environment, capture_output=True, text=True, check=True
    )

    assert 1 < printed.stdout.count("<heap nr=") <= int(environment["MALLOC_ARENA_MAX"])


def test_the_nodes_of_a_cluster_ask_for_a_token_unless_their_operator_says_otherwise(tmp_path: Path) -> None:
    assert exported(tmp_path)["RAY_AUTH_MODE"] == "token"
    assert exported(tmp_path, RAY_AUTH_MODE="disabled")["RAY_AUTH_MODE"] == "disabled"
    assert exported(tmp_path, RAY_AUTH_TOKEN="given")["RAY_AUTH_TOKEN"] == "given"
    assert "RAY_AUTH_TOKEN" not in exported(tmp_path)


def test_a_node_that_is_told_to_end_waits_as_long_as_requests_may_take_unless_its_operator_says_otherwise(
    tmp_path: Path,
) -> None:
    assert DRAIN_S + CUT_S < float(exported(tmp_path)[DRAIN_VARIABLE]) < math.inf
    assert exported(tmp_path, **{DRAIN_VARIABLE: "0"})[DRAIN_VARIABLE] == "0"


def test_an_old_haproxy_lives_until_a_replica_that_is_told_to_end_later_has_told_its_streams_so(tmp_path: Path) -> None:
    """One that ended 15 s after the drain closed streams without an error event: their replica had begun later."""
    assert float(exported(tmp_path)["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"]) > 2 * DRAIN_S + CUT_S


def test_every_node_knows_how_long_requests_may_take_from_the_file_that_it_is_given(tmp_path: Path) -> None:
    """`sextet environment --cluster`: what ends a node, and what an old HAProxy waits for."""
    content = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    for user_config in user_configs(content).values():
        user_config["drain_timeout_s"] = 1000
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")

    said = CliRunner().invoke(
        app, ["environment", "--folder", str(tmp_path / "node"), "--cluster", str(tmp_path / "cluster.yaml")]
    )

    (drain,) = re.findall(rf"^export {DRAIN_VARIABLE}=.*:-(\d+)", said.stdout, re.MULTILINE)
    assert int(drain) > 1000 + CUT_S
    told = Settings.read(tmp_path / "node" / SETTINGS)
    assert told.hard_stop_s > 2 * 1000 + CUT_S
    assert told.configured["translation"] == "/translation"


@pytest.mark.parametrize(
    ("given", "lacks"),
    [
        ({}, True),
        ({"RAY_AUTH_TOKEN": "given"}, False),
        ({"RAY_AUTH_MODE": "disabled"}, False),
        ({"RAY_AUTH_TOKEN_PATH": "{folder}/token"}, False),
        ({"RAY_AUTH_TOKEN_PATH": "{folder}/nothing"}, True),
    ],
    ids=str,
)
def test_an_operator_learns_that_there_is_no_token_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], lacks: bool
) -> None:
    (tmp_path / "token").touch()
    variables = {name: value.format(folder=tmp_path) for name, value in given.items()}
    monkeypatch.setattr("os.environ", {"HOME": str(tmp_path), **variables})

    assert lacks_token() == lacks

    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").touch()
    assert lacks_token() == (lacks and "RAY_AUTH_TOKEN_PATH" in given)
