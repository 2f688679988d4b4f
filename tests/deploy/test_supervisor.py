"""What starts the cluster and starts it again: the unit for systemd, and the service for Docker Compose."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

import sextet
from benchmarks.figures.result import ROOT
from deployments.cluster.launch import Launch
from deployments.cluster.local_ray import END_S, RayError
from deployments.config import CUT_S, DRAIN_S
from deployments.ingress.config import IngressConfig, TlsConfig
from deployments.ingress.drain import GRACE_S
from pipelines.errors import ConfigurationError
from tests.certificates import Authority
from tests.cluster.serving import clean_environment, set_ingress
from tests.deploy.unit import UNIT, is_started_again, service
from tests.deployments.ingress.running import running

DEPLOY = ROOT / "deploy"


def composed() -> dict[str, Any]:
    """The service of Docker Compose, its variables replaced as Compose does where they are not set."""
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(re.sub(r"\$\{\w+-([^}]*)\}", r"\1", text))
    found: dict[str, Any] = content["services"]["sextet"]
    return found


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = UNIT.read_text(encoding="utf-8")
    command, user = "/opt/sextet/.venv/bin/sextet serve", "User=sextet"
    assert command in unit
    assert user in unit
    here = tmp_path / "sextet.service"
    here.write_text(unit.replace(command, f"{sys.executable} -m sextet serve").replace(user, "User=root"))

    said = subprocess.run(["systemd-analyze", "verify", str(here)], capture_output=True, text=True)

    assert (said.returncode, [line for line in said.stderr.splitlines() if "sextet.service" in line]) == (0, [])


def test_a_supervisor_waits_as_long_as_requests_may_take() -> None:
    waits_s = [int(service()["TimeoutStopSec"]), int(composed()["stop_grace_period"].removesuffix("s"))]

    assert all(wait_s > DRAIN_S + CUT_S + GRACE_S + END_S for wait_s in waits_s)


def ended(*arguments: str) -> int:
    """The exit status of a real launcher."""
    command = [sys.executable, "-m", "sextet", "serve", *arguments]
    return subprocess.run(command, env=clean_environment(), capture_output=True, timeout=120).returncode


def test_a_mistake_is_not_repeated_and_a_cluster_that_was_killed_is_started_again(tmp_path: Path) -> None:
    """tests/cluster/test_faults.py and test_lifecycle.py have the status of a launcher whose Ray died."""
    mistake = ended(str(tmp_path / "missing.yaml"))

    assert mistake == 1
    assert not is_started_again(mistake)
    assert not is_started_again(0)
    assert is_started_again(-9)
    assert is_started_again(RayError.exit_status)
    assert composed()["restart"] == "unless-stopped"


def test_a_replica_that_the_kernel_kills_for_its_memory_ends_no_cluster() -> None:
    """By default systemd ends all processes of a unit where the kernel has killed one."""
    assert service()["OOMPolicy"] == "continue"


def test_both_ports_of_the_ingress_leave_the_container_on_loopback_alone() -> None:
    published = composed()["ports"]
    exposed = re.findall(r"^EXPOSE (.*)$", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)

    assert published == ["127.0.0.1:8000:8000", "127.0.0.1:8001:8001"]
    assert exposed == ["8000 8001"]


def test_compose_takes_its_file() -> None:
    compose = subprocess.run(["docker", "compose", "version"], capture_output=True) if shutil.which("docker") else None
    if compose is None or compose.returncode:
        pytest.skip("docker compose is not installed")
    subprocess.run(["docker", "compose", "-f", str(DEPLOY / "compose.yaml"), "config", "--quiet"], check=True)


def launched(cluster: Path, environment: dict[str, str]) -> IngressConfig:
    """What the image's command makes of a cluster.yaml; raises ConfigurationError where it would not start."""
    (command,) = re.findall(r"^CMD (.*)$", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    said = [str(cluster) if one == "cluster.yaml" else one for one in json.loads(command)]
    assert said[:2] == ["sextet", "serve"]
    serving = typer.main.get_command(sextet.app).commands["serve"]  # type: ignore[attr-defined]
    with CliRunner().isolation(env=environment):
        given = serving.make_context("serve", said[2:]).params
    launch = Launch(cluster, given["host"], given["port"], print, open_to_everybody=given["open_to_everybody"])
    return launch.ingress(launch.content())


def test_the_container_starts_with_the_cluster_as_it_is_shipped() -> None:
    """Its command listens on every interface of the container, with no keys: Compose says that this is meant."""
    with pytest.raises(ConfigurationError, match="without keys"):
        launched(ROOT / "cluster.yaml", {})

    assert launched(ROOT / "cluster.yaml", composed()["environment"]).open_to_everybody


def test_the_container_asks_for_keys_where_the_waiver_is_set_to_nothing(tmp_path: Path) -> None:
    content = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    set_ingress(content, keys="keys")
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    (tmp_path / "keys").touch()

    assert launched(tmp_path / "cluster.yaml", dict.fromkeys(composed()["environment"], "")).keys
    with pytest.raises(ConfigurationError, match="exclude each other"):
        launched(tmp_path / "cluster.yaml", composed()["environment"])


@pytest.mark.skipif(shutil.which("wget") is None, reason="wget is not installed")
@pytest.mark.parametrize("encrypts", [False, True])
def test_the_health_check_of_the_container_finds_the_ingress_with_tls_and_without(
    tmp_path: Path, encrypts: bool
) -> None:
    authority = Authority.make(tmp_path)
    authority.issue("site", "localhost")
    pair = TlsConfig(str(tmp_path / "site.pem"), str(tmp_path / "site.key"))
    kind, check = composed()["healthcheck"]["test"]
    assert kind == "CMD-SHELL"

    def status(port: int) -> int:
        return subprocess.run(["sh", "-c", check.replace(":8000", f":{port}")], timeout=60).returncode

    (tmp_path / "node").mkdir()
    with running(tmp_path / "node", IngressConfig(tls=pair if encrypts else None)) as ingress:
        assert status(ingress.port) == 0
    assert status(ingress.port) != 0
