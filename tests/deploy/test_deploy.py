"""The files under deploy/, by the tools that read them; what needs a registry or Kubernetes is not tried here."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.cluster.local_ray import END_S, RayError
from deployments.config import CUT_S, DRAIN_S
from deployments.ingress.drain import GRACE_S
from tests.cluster.ray_node import printed_environment
from tests.cluster.serving import clean_environment

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def loaded(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("runtime", ["cpu", "gpu"])
def test_the_image_installs_the_locks_and_the_extra_of_its_runtime(runtime: str, tmp_path: Path) -> None:
    """What the shell gives pip: locks that exist, with one runtime, in a layer before the source; extras that exist."""
    stage = re.split(r"^FROM .*", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)[2]
    defaults = dict(re.findall(r"^ARG (\w+)=(\S+)$", stage, re.MULTILINE))
    locked, installed = re.findall(r"^RUN (pip install (?:.*\\\n)*.*)", stage, re.MULTILINE)
    assert stage.index("COPY requirements ") < stage.index(locked) < stage.index("COPY . .") < stage.index(installed)
    stubs = "pip() { printf '%s\\n' \"$@\"; }\npython() { :; }"
    shell = ["bash", "-euc", f"{stubs}\n{locked}\n{installed}"]
    given = subprocess.run(
        shell, env={**defaults, "RUNTIME": runtime}, capture_output=True, text=True, check=True
    ).stdout.split()
    locks = [given[index + 1] for index, one in enumerate(given) if one == "-r"]
    assert locks == ["requirements/serve.lock", f"requirements/{runtime}.lock"]
    assert all((ROOT / lock).is_file() for lock in locks)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    asked = re.fullmatch(r"\.\[(.*)\]", given[-1])
    assert asked is not None
    assert asked[1].split(",") == ["serve", runtime]
    assert {*asked[1].split(",")} <= extras.keys()
    assert defaults["RUNTIME"] == "cpu"


def test_the_bill_of_materials_names_what_is_installed_with_its_licence(tmp_path: Path) -> None:
    """As the Dockerfile makes it, of this environment."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    (made,) = re.findall(r"/sbom/bin/(cyclonedx-py environment .*)$", text, re.MULTILINE)
    command = made.replace("/sbom/", f"{tmp_path}/").replace('"$(command -v python)"', sys.executable)
    subprocess.run(f"{Path(sys.executable).parent}/{command}", shell=True, check=True, capture_output=True)
    bill = json.loads((tmp_path / "sextet.cdx.json").read_text(encoding="utf-8"))
    found = {one["name"]: one for one in bill["components"]}

    assert bill["bomFormat"] == "CycloneDX"
    for name in ("ray", "onnxruntime", "tokenizers", "msgspec"):
        assert found[name]["version"] == version(name)
        assert found[name]["purl"].startswith(f"pkg:pypi/{name}@")
    # As their metadata declare them; that of Ray is no name that SPDX knows.
    assert all(found[name]["licenses"] for name in ("onnxruntime", "tokenizers", "msgspec"))


def test_rays_launcher_takes_its_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(loaded("ray-up.yaml"))
    validate_config(prepared)
    assert prepared["max_workers"] == len(loaded("ray-up.yaml")["provider"]["worker_ips"])


def test_rays_launcher_takes_the_image_for_workers_with_gpus() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    text = (DEPLOY / "ray-up.yaml").read_text(encoding="utf-8").replace("# worker_image:", "worker_image:")
    prepared = prepare_config(yaml.safe_load(text))
    validate_config(prepared)
    assert prepared["docker"]["worker_image"] == f"{prepared['docker']['image']}-gpu"


def test_every_cluster_that_is_deployed_asks_for_a_token() -> None:
    """Without one, whoever reaches the dashboard of a head runs code on every node; KubeRay: test_kuberay.py."""
    launched = loaded("ray-up.yaml")
    assert launched["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    for step in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert '. "$BASH_ENV" && ray start' in launched[step][-1]


def test_a_shell_of_the_image_finds_rays_environment_and_a_haproxy_that_runs(tmp_path: Path) -> None:
    """As the Dockerfile and KubeRay do it: printed into the file that BASH_ENV names, read by `bash -c`."""
    printed = tmp_path / "environment.sh"
    printed.write_text(printed_environment(tmp_path / "haproxy"), encoding="utf-8")
    shell = ["bash", "-c", 'echo "$RAY_SERVE_ENABLE_HA_PROXY"; "$RAY_SERVE_HAPROXY_BINARY_PATH" -v']
    said = subprocess.run(
        shell, env=clean_environment() | {"BASH_ENV": str(printed)}, capture_output=True, text=True, check=True
    )
    assert said.stdout.startswith("1\nHAProxy version")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "sextet", "environment", "--folder", str(tmp_path / "file" / "haproxy")]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 1
    assert said.stdout == ""
    assert said.stderr.splitlines()[-1] == (
        f"sextet: cannot write {tmp_path}/file/haproxy (Not a directory); name another --folder"
    )


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = (DEPLOY / "sextet.service").read_text(encoding="utf-8")
    command, user = "/opt/sextet/.venv/bin/sextet serve", "User=sextet"
    assert command in unit
    assert user in unit
    here = tmp_path / "sextet.service"
    here.write_text(unit.replace(command, f"{sys.executable} -m sextet serve").replace(user, "User=root"))

    said = subprocess.run(["systemd-analyze", "verify", str(here)], capture_output=True, text=True)

    assert (said.returncode, [line for line in said.stderr.splitlines() if "sextet.service" in line]) == (0, [])


def test_a_supervisor_starts_again_after_ray_died_and_waits_as_long_as_requests_may_take() -> None:
    unit = (DEPLOY / "sextet.service").read_text(encoding="utf-8")
    (service,) = loaded("compose.yaml")["services"].values()
    waits_s = [int(found[1]) for found in re.finditer(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)]
    waits_s.append(int(service["stop_grace_period"].removesuffix("s")))

    assert f"\nRestartForceExitStatus={RayError.exit_status}\n" in unit
    assert service["restart"] == "unless-stopped"
    assert all(wait_s > DRAIN_S + CUT_S + GRACE_S + END_S for wait_s in waits_s)
    assert len(waits_s) == 2


def test_both_ports_of_the_ingress_leave_the_container_on_loopback_alone() -> None:
    published = loaded("compose.yaml")["services"]["sextet"]["ports"]
    exposed = re.findall(r"^EXPOSE (.*)$", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)

    assert published == ["127.0.0.1:8000:8000", "127.0.0.1:8001:8001"]
    assert exposed == ["8000 8001"]


def test_compose_takes_its_file() -> None:
    compose = subprocess.run(["docker", "compose", "version"], capture_output=True) if shutil.which("docker") else None
    if compose is None or compose.returncode:
        pytest.skip("docker compose is not installed")
    subprocess.run(["docker", "compose", "-f", str(DEPLOY / "compose.yaml"), "config", "--quiet"], check=True)
