"""The folder of a cluster: it lives as long as its launcher, whichever container that runs in."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deployments.cluster import local_ray
from deployments.cluster.local_ray import remove_stale
from deployments.ingress.config import Address, IngressConfig
from pipelines.errors import ConfigurationError

LAUNCHER = """
import sys, time
from pathlib import Path
from deployments.cluster import local_ray
local_ray.FOLDERS = Path(sys.argv[1])
with local_ray.own_folder() as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(local_ray, "FOLDERS", tmp_path)
    return tmp_path


@contextmanager
def launched(folders: Path) -> "Iterator[tuple[subprocess.Popen[str], Path]]":
    """A launcher that runs, and its folder; it is killed at the end."""
    command = [sys.executable, "-c", LAUNCHER, str(folders)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def test_a_folder_is_removed_once_its_launcher_was_killed_and_not_before(folders: Path) -> None:
    with launched(folders) as (_, folder):
        (folder / "haproxy.cfg").touch()
        remove_stale()
        assert (folder / "haproxy.cfg").exists()

    remove_stale()
    assert list(folders.iterdir()) == []


def test_a_folder_whose_launcher_has_its_process_id_in_another_container_stays(folders: Path) -> None:
    """Seen from here, that process does not exist."""
    with launched(folders) as (_, folder):
        elsewhere = folder.rename(folders / "sextet-4194999-abc")
        assert not Path("/proc/4194999").exists()

        remove_stale()

        assert elsewhere.exists()


def test_a_folder_whose_killed_launcher_had_a_process_id_that_runs_here_is_removed(folders: Path) -> None:
    stale = folders / f"sextet-{os.getpid()}-abc"
    stale.mkdir()
    (stale / "lock").touch()

    remove_stale()

    assert not stale.exists()


def test_a_launcher_that_ends_takes_its_folder_along(folders: Path) -> None:
    with launched(folders) as (process, folder):
        assert folder.name.startswith(f"sextet-{process.pid}-")
        process.communicate("", timeout=30)

    assert list(folders.iterdir()) == []


@pytest.mark.parametrize(
    ("ingress", "host", "message"),
    [
        (IngressConfig(keys="keys"), "127.0.0.1", "ingress has keys, which Ray Serve's Python proxy does not know"),
        (IngressConfig(hosts=("a.example",), grpc_port=9), "127.0.0.1", "ingress has hosts, grpc_port, which"),
        (IngressConfig(), "0.0.0.0", "Python proxy would listen on 0.0.0.0, and knows no keys"),
    ],
)
def test_without_haproxy_what_would_guard_the_ingress_is_refused(
    ingress: IngressConfig, host: str, message: str, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    with (
        pytest.raises(ConfigurationError, match=message),
        local_ray.environment(ingress, Address(host, 8000), lambda line: None, 1.0),
    ):
        pass

    assert list(folders.iterdir()) == []
